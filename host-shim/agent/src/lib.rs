//! The host agent and the `ipc-direct` command.
//!
//! | module | what it holds |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`run`], [`start`] | `ipc-direct run`: a lease, the environment, exec; starting an agent that goes away by itself |
//! | [`check`], [`program`] | `ipc-direct check`: what a command line would run, and what keeps the shim out of it |
//! | [`fault`] | `ipc-direct fault`: an emulated card that fails |
//! | [`ps`], [`report`] | `ipc-direct ps`, and the report that it prints |
//! | [`status`] | `ipc-direct status`: other hosts |
//! | [`inspect`] | `ipc-direct ps --verbose`: rings and sleepers |
//! | [`address`], [`dial`] | where an agent is, and talking to it |
//! | [`serve`] | the agent: its event loop |
//! | [`clients`], `calls` | client sockets, and what they ask |
//! | [`identity`], `peer`, `attach`, [`function`] | who a process is; how it becomes a function |
//! | `born` | forked children that have not become one |
//! | [`groups`] | fork families, and the segments between them |
//! | [`death`] | what happens when a process is gone |
//! | [`lab`] | `ipc-direct lab`: several hosts on this machine |
//! | [`relay`], [`pump`] | connections that a program without the shim has inherited |
//!
//! The agent is one thread that sleeps in epoll. It believes no client: identity comes from the kernel,
//! every message is checked, and no client can make it wait.

pub mod address;
mod attach;
mod born;
mod calls;
pub mod check;
pub mod cli;
pub mod clients;
pub mod death;
pub mod dial;
pub mod fault;
pub mod function;
pub mod groups;
pub mod identity;
pub mod inspect;
pub mod lab;
mod names;
mod peer;
pub mod program;
pub mod ps;
pub mod pump;
pub mod relay;
pub mod report;
pub mod run;
pub mod serve;
pub mod start;
pub mod status;
