//! Raw bindings to the libfabric that is installed on the build machine (1.11 or newer), as much of it as the crate
//! `fabric` wraps.
//!
//! Names and meanings are libfabric's (<https://ofiwg.github.io/libfabric/>). Most of its functions are inline calls
//! through tables of the provider's; these are reached through `csrc/shim.c` and are called `shim_*`: `shim_cq_read`
//! is `fi_cq_read`.
#![no_std]
#![allow(unsafe_code)] // Generated declarations of C functions.
#![allow(missing_docs, non_camel_case_types, non_upper_case_globals, non_snake_case)]
#![allow(clippy::all, clippy::pedantic, clippy::undocumented_unsafe_blocks)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
