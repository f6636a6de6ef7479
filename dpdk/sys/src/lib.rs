//! Raw bindings to the libdpdk that is installed on the build machine (22.11 or newer), as much of it as
//! `ipc-direct-dpdk` wraps.
//!
//! Names and meanings are DPDK's (<https://doc.dpdk.org/api-22.11/>). DPDK's inline functions, macros and
//! thread-local variables are reached through `csrc/shim.c` and are called `shim_*`: `shim_eth_rx_burst` is
//! `rte_eth_rx_burst`, `shim_errno` reads `rte_errno`.
//!
//! The bindings are generated for the target of the build, never checked in: Debian's arm64 DPDK has other cache
//! lines, and so other layouts, than its x86 one.
#![no_std]
#![allow(unsafe_code)] // Generated declarations of C functions.
#![allow(missing_docs, non_camel_case_types, non_upper_case_globals, non_snake_case)]
#![allow(clippy::all, clippy::pedantic, clippy::undocumented_unsafe_blocks)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
