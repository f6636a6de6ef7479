//! The IPC-Direct coordinator, without DPDK. The program around it is `main.rs`.
//!
//! | module | what it does |
//! |---|---|
//! | [`logic`] | decides; no I/O |
//! | [`mapping`] | a function's window and host memory |
//! | [`bus`] | where functions come from: the emulated bus |
//! | [`card`] | or a card's own |
//! | [`intake`] | where requests come from besides private rings: the shared ring, hints |
//! | [`poll`] | one turn over all rings |
//! | [`outbox`] | what waits for credit |
//! | [`sleep`] | when nothing happens |
//! | [`counters`] | what is counted and shown |
#![deny(unsafe_code)]

pub mod bus;
pub mod card;
pub mod counters;
pub mod intake;
pub mod logic;
pub mod mapping;
pub mod outbox;
pub mod poll;
pub mod sleep;
