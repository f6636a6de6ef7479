#define _GNU_SOURCE
#include <sched.h>

#include "shim.h"

const uint32_t shim_max_ethports = RTE_MAX_ETHPORTS;
const uint16_t shim_mbuf_headroom = RTE_PKTMBUF_HEADROOM;
const uint32_t shim_lcore_id_any = LCORE_ID_ANY;

int shim_errno(void) { return rte_errno; }
uint32_t shim_lcore_id(void) { return rte_lcore_id(); }

int shim_lcore_has_cpu(uint32_t lcore, uint32_t cpu)
{
	if (lcore >= RTE_MAX_LCORE || cpu >= CPU_SETSIZE)
		return 0;
	rte_cpuset_t set = rte_lcore_cpuset(lcore);
	return CPU_ISSET(cpu, &set) ? 1 : 0;
}

struct rte_mbuf *shim_pktmbuf_alloc(struct rte_mempool *pool) { return rte_pktmbuf_alloc(pool); }
void shim_pktmbuf_free(struct rte_mbuf *m) { rte_pktmbuf_free(m); }
uint8_t *shim_pktmbuf_data(const struct rte_mbuf *m) { return rte_pktmbuf_mtod(m, uint8_t *); }
uint16_t shim_pktmbuf_data_len(const struct rte_mbuf *m) { return rte_pktmbuf_data_len(m); }
uint32_t shim_pktmbuf_pkt_len(const struct rte_mbuf *m) { return rte_pktmbuf_pkt_len(m); }
uint16_t shim_pktmbuf_segments(const struct rte_mbuf *m) { return m->nb_segs; }

uint16_t shim_pktmbuf_tailroom(const struct rte_mbuf *m)
{
	return rte_pktmbuf_tailroom(rte_pktmbuf_lastseg((struct rte_mbuf *)(uintptr_t)m));
}

uint8_t *shim_pktmbuf_append(struct rte_mbuf *m, uint16_t len)
{
	return (uint8_t *)rte_pktmbuf_append(m, len);
}

uint16_t shim_eth_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **pkts, uint16_t count)
{
	return rte_eth_rx_burst(port, queue, pkts, count);
}

uint16_t shim_eth_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **pkts, uint16_t count)
{
	return rte_eth_tx_burst(port, queue, pkts, count);
}

uint32_t shim_ring_sp_enqueue_burst(struct rte_ring *r, const void *elements, uint32_t bytes, uint32_t count)
{
	return rte_ring_sp_enqueue_burst_elem(r, elements, bytes, count, NULL);
}

uint32_t shim_ring_sc_dequeue_burst(struct rte_ring *r, void *elements, uint32_t bytes, uint32_t count)
{
	return rte_ring_sc_dequeue_burst_elem(r, elements, bytes, count, NULL);
}

int shim_eth_if_index(uint16_t port, uint32_t *if_index)
{
	struct rte_eth_dev_info info;
	int ret = rte_eth_dev_info_get(port, &info);

	*if_index = ret == 0 ? info.if_index : 0;
	return ret;
}

int shim_eth_link(uint16_t port, uint32_t *speed_mbps, int *full_duplex, int *up)
{
	struct rte_eth_link link = {0};
	int ret = rte_eth_link_get_nowait(port, &link);
	*speed_mbps = link.link_speed;
	*full_duplex = link.link_duplex == RTE_ETH_LINK_FULL_DUPLEX;
	*up = link.link_status == RTE_ETH_LINK_UP;
	return ret;
}
