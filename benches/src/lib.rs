//! What the measuring programs share.
//!
//! | module | what it does |
//! |---|---|
//! | [`path`] | the three ways between two processes that are compared |
//! | [`ping_pong`] | round trips between two processes, on any path |
//! | [`redis`] | redis-benchmark, on any path |
//! | [`stats`] | medians over interleaved rounds |
//! | [`progress`] | one line at a time about what is being measured |
//!
//! Absolute figures drift by a factor of 1.5-3 on shared machines; so everything that is compared is measured in
//! turns within one run, and medians are taken.

pub mod path;
pub mod ping_pong;
pub mod progress;
pub mod redis;
pub mod stats;
