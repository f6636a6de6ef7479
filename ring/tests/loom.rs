//! Every interleaving that matters, by loom (SPEC sections in the names).
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ipc-direct-ring --release --target-dir target/loom --test loom`
//!
//! Each property comes with a twin that runs a deliberately broken variant and must panic: what cannot
//! fail proves nothing. `unsafe` is allowed for loom's cells, which is how it finds overlapping accesses.
#![cfg(loom)]
#![allow(unsafe_code)]

#[path = "loom/futex.rs"]
mod futex;
#[path = "loom/model.rs"]
mod model;
#[path = "loom/s11_owner.rs"]
mod s11_owner;
#[path = "loom/s2_queue.rs"]
mod s2_queue;
#[path = "loom/s2_window.rs"]
mod s2_window;
#[path = "loom/s3_switch.rs"]
mod s3_switch;
#[path = "loom/s4_stream.rs"]
mod s4_stream;
#[path = "loom/s6_wake.rs"]
mod s6_wake;
