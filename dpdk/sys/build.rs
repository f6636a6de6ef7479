//! Generates the bindings from the installed libdpdk and compiles `csrc/shim.c`.

use bind::Library;

/// The functions and constants that `ipc-direct-dpdk` uses, by module, beside those of csrc/shim.h.
const ALLOWED_FUNCTIONS: &[&str] = &[
    // eal, lcores, errno
    "rte_eal_(init|cleanup|has_hugepages|get_runtime_dir|remote_launch|wait_lcore)",
    "rte_get_(main_lcore|next_lcore)",
    "rte_lcore_to_socket_id",
    "rte_strerror",
    "rte_version",
    // mempool, mbuf
    "rte_pktmbuf_pool_create",
    "rte_mempool_(avail_count|in_use_count)",
    // ethdev
    "rte_eth_dev_(get_port_by_name|info_get|socket_id|configure|adjust_nb_rx_tx_desc|start|stop|close)",
    "rte_eth_(rx|tx)_queue_setup",
    "rte_eth_(macaddr_get|promiscuous_enable|stats_get|find_next)",
    // ring
    "rte_ring_(create_elem|free)",
    // telemetry
    "rte_telemetry_register_cmd",
    "rte_tel_data_(start_array|start_dict|string|alloc|free)",
    "rte_tel_data_add_(array|dict)_(string|u64|container)",
];

fn main() {
    let libdpdk = Library {
        name: "libdpdk",
        version: "22.11",
        install: "apt-get install libdpdk-dev libclang-dev pkg-config gcc libc6-dev",
        shim: "ipc_direct_dpdk_shim",
        is_loud: true,
        // The drivers are loaded at run time from DPDK's own directory: only what is called from here is linked.
        links: &["rte_ethdev", "rte_mbuf", "rte_mempool", "rte_ring", "rte_eal", "rte_telemetry"],
    };
    libdpdk.bind(|builder| {
        let builder = builder
            // Only ever handled by pointer. With their fields they are packed-and-aligned mixtures (E0588).
            .opaque_type("rte_mbuf")
            .opaque_type("rte_mempool")
            .opaque_type("rte_ring")
            .allowlist_var("RTE_MAX_LCORE")
            .allowlist_var("RING_F_(SP_ENQ|SC_DEQ|EXACT_SZ)")
            .allowlist_type("rte_tel_value_type");
        ALLOWED_FUNCTIONS.iter().fold(builder, |builder, name| builder.allowlist_function(name))
    });
}
