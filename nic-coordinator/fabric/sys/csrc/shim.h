/*
 * What bindgen cannot see: libfabric's static inline functions and macros with types in them, each under its own name
 * with `shim_` instead of `fi_`. Nothing here has behaviour of its own.
 */
#ifndef IPC_DIRECT_FABRIC_SHIM_H
#define IPC_DIRECT_FABRIC_SHIM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>

/* The interface that we are written for. */
extern const uint32_t shim_api_version;

/* Capabilities and the like, which the headers have as unsigned long long. */
extern const uint64_t shim_msg, shim_rma, shim_send, shim_recv, shim_write, shim_remote_write, shim_transmit;
extern const uint64_t shim_source, shim_numerichost, shim_order_saw;
extern const int shim_mr_local, shim_mr_virt_addr, shim_mr_allocated, shim_mr_prov_key;

struct fi_info *shim_allocinfo(void);
int shim_close(struct fid *fid);
/* The descriptor of a queue that was opened with FI_WAIT_FD. */
int shim_wait_fd(struct fid *fid, int *fd);
int shim_trywait(struct fid_fabric *fabric, struct fid **fids, int count);

int shim_domain(struct fid_fabric *fabric, struct fi_info *info, struct fid_domain **domain);
int shim_eq_open(struct fid_fabric *fabric, struct fi_eq_attr *attr, struct fid_eq **eq);
int shim_cq_open(struct fid_domain *domain, struct fi_cq_attr *attr, struct fid_cq **cq);
int shim_passive_ep(struct fid_fabric *fabric, struct fi_info *info, struct fid_pep **pep);
int shim_pep_bind(struct fid_pep *pep, struct fid *fid);
int shim_endpoint(struct fid_domain *domain, struct fi_info *info, struct fid_ep **ep);
int shim_ep_bind(struct fid_ep *ep, struct fid *fid, uint64_t flags);
int shim_enable(struct fid_ep *ep);

int shim_listen(struct fid_pep *pep);
int shim_getname(struct fid *fid, void *address, size_t *length);
int shim_connect(struct fid_ep *ep, const void *address, const void *data, size_t length);
int shim_accept(struct fid_ep *ep, const void *data, size_t length);
int shim_reject(struct fid_pep *pep, struct fid *request, const void *data, size_t length);
int shim_shutdown(struct fid_ep *ep);

int shim_mr_reg(struct fid_domain *domain, const void *base, size_t length, uint64_t access, uint64_t requested_key,
		struct fid_mr **mr);
void *shim_mr_desc(struct fid_mr *mr);
uint64_t shim_mr_key(struct fid_mr *mr);

ssize_t shim_ep_recv(struct fid_ep *ep, void *base, size_t length, void *desc, void *context);
ssize_t shim_ep_send(struct fid_ep *ep, const void *base, size_t length, void *desc, void *context);
ssize_t shim_ep_inject(struct fid_ep *ep, const void *base, size_t length);
ssize_t shim_ep_write(struct fid_ep *ep, const void *base, size_t length, void *desc, uint64_t address, uint64_t key,
		      void *context);

ssize_t shim_cq_read(struct fid_cq *cq, struct fi_cq_msg_entry *entries, size_t count);
ssize_t shim_cq_readerr(struct fid_cq *cq, struct fi_cq_err_entry *entry);
ssize_t shim_eq_read(struct fid_eq *eq, uint32_t *event, void *entry, size_t length);
ssize_t shim_eq_readerr(struct fid_eq *eq, struct fi_eq_err_entry *entry);

#endif
