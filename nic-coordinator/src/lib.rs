//! The IPC-Direct coordinator, without DPDK but for the rings between lcores. The program around it is `main.rs`.
//!
//! | module | what it does |
//! |---|---|
//! | [`logic`] | decides; no I/O |
//! | [`mapping`] | a function's window and host memory |
//! | [`bus`] | where functions come from: the emulated bus |
//! | [`card`] | or a card's own |
//! | [`intake`] | where requests come from besides private rings: the shared ring, hints |
//! | [`shard`] | the functions that one lcore polls |
//! | [`poll`] | one turn of the lcore that decides, and polls, too |
//! | [`worker`] | one turn of a shard on another lcore |
//! | [`link`] | the messages between those |
//! | [`hosts`] | other hosts' coordinators: who is there, and connections with them |
//! | [`exchange`] | between the logic and those |
//! | [`latency`] | the time that a real bus takes, added to the emulated one |
//! | [`outbox`] | what waits for credit |
//! | [`sleep`] | when nothing happens |
//! | [`bridge`] | the bytes of connections to other hosts |
//! | [`carrier`] | and all that it needs: links, segments, waking |
//! | [`counters`] | what is counted and shown |
#![deny(unsafe_code)]

pub mod bridge;
pub mod bus;
pub mod card;
pub mod carrier;
pub mod counters;
pub mod exchange;
pub mod hosts;
pub mod intake;
pub mod latency;
pub mod link;
pub mod logic;
pub mod mapping;
pub mod outbox;
pub mod poll;
pub mod shard;
pub mod sleep;
pub mod worker;
