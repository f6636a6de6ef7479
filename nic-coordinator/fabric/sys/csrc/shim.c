#include "shim.h"

const uint32_t shim_api_version = FI_VERSION(1, 11);

const uint64_t shim_msg = FI_MSG, shim_rma = FI_RMA, shim_send = FI_SEND, shim_recv = FI_RECV, shim_write = FI_WRITE,
	       shim_remote_write = FI_REMOTE_WRITE, shim_transmit = FI_TRANSMIT;
const uint64_t shim_source = FI_SOURCE, shim_numerichost = FI_NUMERICHOST, shim_order_saw = FI_ORDER_SAW;
const int shim_mr_local = FI_MR_LOCAL, shim_mr_virt_addr = FI_MR_VIRT_ADDR, shim_mr_allocated = FI_MR_ALLOCATED,
	  shim_mr_prov_key = FI_MR_PROV_KEY;

struct fi_info *shim_allocinfo(void) { return fi_allocinfo(); }
int shim_close(struct fid *fid) { return fi_close(fid); }
int shim_wait_fd(struct fid *fid, int *fd) { return fi_control(fid, FI_GETWAIT, fd); }

int shim_trywait(struct fid_fabric *fabric, struct fid **fids, int count)
{
	return fi_trywait(fabric, fids, count);
}

int shim_domain(struct fid_fabric *fabric, struct fi_info *info, struct fid_domain **domain)
{
	return fi_domain(fabric, info, domain, NULL);
}

int shim_eq_open(struct fid_fabric *fabric, struct fi_eq_attr *attr, struct fid_eq **eq)
{
	return fi_eq_open(fabric, attr, eq, NULL);
}

int shim_cq_open(struct fid_domain *domain, struct fi_cq_attr *attr, struct fid_cq **cq)
{
	return fi_cq_open(domain, attr, cq, NULL);
}

int shim_passive_ep(struct fid_fabric *fabric, struct fi_info *info, struct fid_pep **pep)
{
	return fi_passive_ep(fabric, info, pep, NULL);
}

int shim_pep_bind(struct fid_pep *pep, struct fid *fid) { return fi_pep_bind(pep, fid, 0); }

int shim_endpoint(struct fid_domain *domain, struct fi_info *info, struct fid_ep **ep)
{
	return fi_endpoint(domain, info, ep, NULL);
}

int shim_ep_bind(struct fid_ep *ep, struct fid *fid, uint64_t flags) { return fi_ep_bind(ep, fid, flags); }
int shim_enable(struct fid_ep *ep) { return fi_enable(ep); }

int shim_listen(struct fid_pep *pep) { return fi_listen(pep); }
int shim_getname(struct fid *fid, void *address, size_t *length) { return fi_getname(fid, address, length); }

int shim_connect(struct fid_ep *ep, const void *address, const void *data, size_t length)
{
	return fi_connect(ep, address, data, length);
}

int shim_accept(struct fid_ep *ep, const void *data, size_t length) { return fi_accept(ep, data, length); }

int shim_reject(struct fid_pep *pep, struct fid *request, const void *data, size_t length)
{
	return fi_reject(pep, request, data, length);
}

int shim_shutdown(struct fid_ep *ep) { return fi_shutdown(ep, 0); }

int shim_mr_reg(struct fid_domain *domain, const void *base, size_t length, uint64_t access, uint64_t requested_key,
		struct fid_mr **mr)
{
	return fi_mr_reg(domain, base, length, access, 0, requested_key, 0, mr, NULL);
}

void *shim_mr_desc(struct fid_mr *mr) { return fi_mr_desc(mr); }
uint64_t shim_mr_key(struct fid_mr *mr) { return fi_mr_key(mr); }

ssize_t shim_ep_recv(struct fid_ep *ep, void *base, size_t length, void *desc, void *context)
{
	return fi_recv(ep, base, length, desc, FI_ADDR_UNSPEC, context);
}

ssize_t shim_ep_send(struct fid_ep *ep, const void *base, size_t length, void *desc, void *context)
{
	return fi_send(ep, base, length, desc, FI_ADDR_UNSPEC, context);
}

ssize_t shim_ep_inject(struct fid_ep *ep, const void *base, size_t length)
{
	return fi_inject(ep, base, length, FI_ADDR_UNSPEC);
}

ssize_t shim_ep_write(struct fid_ep *ep, const void *base, size_t length, void *desc, uint64_t address, uint64_t key,
		      void *context)
{
	return fi_write(ep, base, length, desc, FI_ADDR_UNSPEC, address, key, context);
}

ssize_t shim_cq_read(struct fid_cq *cq, struct fi_cq_msg_entry *entries, size_t count)
{
	return fi_cq_read(cq, entries, count);
}

ssize_t shim_cq_readerr(struct fid_cq *cq, struct fi_cq_err_entry *entry) { return fi_cq_readerr(cq, entry, 0); }

ssize_t shim_eq_read(struct fid_eq *eq, uint32_t *event, void *entry, size_t length)
{
	return fi_eq_read(eq, event, entry, length, 0);
}

ssize_t shim_eq_readerr(struct fid_eq *eq, struct fi_eq_err_entry *entry) { return fi_eq_readerr(eq, entry, 0); }
