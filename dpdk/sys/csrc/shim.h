/*
 * What bindgen cannot see: DPDK's static inline functions, macros and thread-local variables,
 * each under its own name with the prefix `shim_`. Nothing here has behaviour of its own.
 */
#ifndef IPC_DIRECT_DPDK_SHIM_H
#define IPC_DIRECT_DPDK_SHIM_H

#include <stdint.h>

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_launch.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_ring.h>
#include <rte_telemetry.h>
#include <rte_version.h>

/* Values that depend on how libdpdk was built. */
extern const uint32_t shim_max_ethports;
extern const uint16_t shim_mbuf_headroom;
extern const uint32_t shim_lcore_id_any;

/* rte_errno and rte_lcore_id() of the calling thread. */
int shim_errno(void);
uint32_t shim_lcore_id(void);

/* 1 when `cpu` is in the affinity of `lcore`, else 0; any two numbers may be asked for. */
int shim_lcore_has_cpu(uint32_t lcore, uint32_t cpu);

struct rte_mbuf *shim_pktmbuf_alloc(struct rte_mempool *pool);
void shim_pktmbuf_free(struct rte_mbuf *m);
uint8_t *shim_pktmbuf_data(const struct rte_mbuf *m);
uint16_t shim_pktmbuf_data_len(const struct rte_mbuf *m);
uint32_t shim_pktmbuf_pkt_len(const struct rte_mbuf *m);
uint16_t shim_pktmbuf_segments(const struct rte_mbuf *m);
uint16_t shim_pktmbuf_tailroom(const struct rte_mbuf *m);
uint8_t *shim_pktmbuf_append(struct rte_mbuf *m, uint16_t len);

uint16_t shim_eth_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **pkts, uint16_t count);
uint16_t shim_eth_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **pkts, uint16_t count);

/* Elements of `bytes` bytes each; both return how many were moved. */
uint32_t shim_ring_sp_enqueue_burst(struct rte_ring *r, const void *elements, uint32_t bytes, uint32_t count);
uint32_t shim_ring_sc_dequeue_burst(struct rte_ring *r, void *elements, uint32_t bytes, uint32_t count);

/* Of struct rte_eth_dev_info, which is long. */
int shim_eth_if_index(uint16_t port, uint32_t *if_index);

/* struct rte_eth_link is made of bit fields: they are taken apart here. */
int shim_eth_link(uint16_t port, uint32_t *speed_mbps, int *full_duplex, int *up);

#endif
