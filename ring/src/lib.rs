//! The contract of IPC-Direct: every byte that two parties share is defined here, once.
//!
//! `SPEC.md` beside this crate is the specification; its section numbers are quoted in the
//! modules and in the names of the tests. From the bottom up:
//!
//! | module | SPEC | what it holds |
//! |---|---|---|
//! | [`atomic`] | 1 | the atomics, switchable to loom; the asymmetric barrier |
//! | [`hint`] | | which lines are wanted soon |
//! | [`shared`] | 1 | what may live in shared memory; checked access to a mapping |
//! | [`side`] | 2.2 | what each side of the bus may do with memory, as types |
//! | [`window`] | 2 | request and completion rings: 64-byte entries, credits inside |
//! | [`queue`] | 2.7-2.9 | the three ways of requests to the card: private, shared, hinted |
//! | [`msg`] | 3 | what the entries say, parsed and validated |
//! | [`owner`] | 11 | who enters one direction of a socket without a locked instruction |
//! | [`switch`] | 3.10 | how a connection that the kernel has made leaves it |
//! | [`stream`] | 4 | one direction of a connection: records with inline headers |
//! | [`relay`] | 4.10 | a direction whose ends are in two memories, on two hosts |
//! | [`segment`] | 5 | the memory that two process groups share: slots, lanes, rings |
//! | [`wake`] | 6 | sleeping and waking without a fence on the sender's side |
//! | [`attach`] | 7 | messages between a process and the host agent |
//! | [`bus`] | 8 | messages of the emulated bus between the agent and the coordinator |
//! | [`stats`] | 9 | the counters that a process shows to the agent; reason codes |
//! | [`image`] | 10 | what a process leaves for the program that it executes |
//! | [`profile`] | | how long a bus takes that an emulated card imitates |
//! | [`link`] | 14 | messages between the bridges of two hosts |
//! | [`card`] | 12 | the bus of a real card: the same messages through function 0's memories |
//! | [`hosts`] | 13 | datagrams between the coordinators of different hosts |
//!
//! Nothing here makes a system call, allocates or panics on foreign input.

#![cfg_attr(not(any(test, loom)), no_std)]
#![deny(unsafe_code)]

pub mod atomic;
pub mod attach;
pub mod bus;
pub mod card;
pub mod hint;
pub mod hosts;
pub mod image;
pub mod link;
pub mod msg;
pub mod owner;
pub mod profile;
pub mod queue;
pub mod relay;
pub mod segment;
pub mod shared;
pub mod side;
pub mod stats;
pub mod stream;
pub mod switch;
pub mod urgent;
pub mod wake;
pub mod window;

/// Version of everything in this crate. Both sides refuse any other one.
pub const VERSION: u32 = 5;
