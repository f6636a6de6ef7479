//! Safe wrappers over Debian's libfabric, as much of it as a link between two hosts needs: connected endpoints that send
//! small messages and write into each other's memory (RMA).
//!
//! | module | what |
//! |---|---|
//! | [`provider`] | opening a provider by name, at an address of this machine |
//! | [`listener`] | waiting for connections; who asks, with what private data |
//! | [`endpoint`] | one connection: its events, messages, writes, completions, and sleeping for them |
//! | [`memory`] | registering memory, so that a provider may read it, or a peer write it |
//! | [`errno`] | libfabric's error numbers |
//!
//! The provider is a name, `tcp` on any machine and `verbs` on an RDMA card, and everything else is the same for both:
//! `FI_EP_MSG` endpoints with `FI_MSG` and `FI_RMA`, the memory registration that verbs asks for (where a provider asks for less,
//! it gets it all the same), and one promise about order, `FI_ORDER_SAW`: a message that is sent after a write is delivered
//! after the write's bytes are in place.
//!
//! Nothing here blocks and nothing here has a thread, but for asking for a connection: that is to be had with either. Who wants to
//! sleep asks [`endpoint::Endpoint::may_sleep`] and waits for [`endpoint::Endpoint::wait_fds`].
//!
//! A peer whose process dies is an event. A peer whose whole host goes without a word may be none: over verbs on soft-RoCE, a
//! minute passed and a message that nobody acknowledged was still under way. A link needs signs of life of its own.
//!
//! ```no_run
//! use fabric::endpoint::{Completion, Endpoint, Event, Settings};
//! use fabric::provider::Fabric;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let fabric = Fabric::open("tcp", "127.0.0.1".parse()?)?;
//! let mut endpoint = fabric.connect("127.0.0.1:7000".parse()?, &Settings::default(), b"hello")?;
//! while !matches!(endpoint.event()?, Some(Event::Connected(_))) {}
//! if let Some(room) = endpoint.outgoing() {
//!     room[..4].copy_from_slice(b"ping");
//!     endpoint.send(4)?;
//! }
//! endpoint.poll(|completion| {
//!     if let Completion::Received(bytes) = completion {
//!         println!("{} bytes", bytes.len());
//!     }
//! })?;
//! # Ok(())
//! # }
//! ```

pub mod endpoint;
pub mod errno;
pub mod listener;
pub mod memory;
pub mod provider;

mod buffers;
mod event;
mod graves;
