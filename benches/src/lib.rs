//! What the measuring programs share.
//!
//! | module | what it does |
//! |---|---|
//! | [`path`] | the ways between two processes that are compared |
//! | [`job`] | what the load program is asked to do, and what it answers |
//! | [`pairs`] | runs the load program: a server and a client, or a process and its child |
//! | [`redis`] | redis-benchmark, on any path |
//! | [`services`] | servers with several processes, with their usual load programs |
//! | [`row`] | what a report is made of |
//! | [`turns`] | rounds in which every way is measured in turn |
//! | [`report`] | medians, ratios, verdicts; the table and the JSON |
//! | [`stats`] | medians and percentiles |
//! | [`clock`] | what the measuring processes measure with |
//! | [`rig`] | the coordinator's polling loop with any number of functions, in one process |
//! | [`machine`] | what else the machine does meanwhile |
//! | [`fonts`] | the typeface of plots |
//! | [`progress`] | one line at a time about what is being measured |
//!
//! Absolute figures drift by a factor of 1.5-3 on shared machines; so everything that is compared is measured in
//! turns within one run, and medians are taken.

pub mod clock;
pub mod fonts;
pub mod job;
pub mod machine;
pub mod pairs;
pub mod path;
pub mod progress;
pub mod redis;
pub mod report;
pub mod rig;
pub mod row;
pub mod services;
pub mod stats;
pub mod turns;
