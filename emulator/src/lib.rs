//! The card that isn't there: the host half of the emulated SmartNIC.
//!
//! On a real card the host finds PCI functions, maps their windows and is interrupted by MSI-X. Here
//! the card is the same `nic-coordinator` program as a child process, a window is a sealed memfd, an
//! interrupt an eventfd, and enumeration a few datagrams on a socket (`ring::bus`).
//!
//! | module | what it holds |
//! |---|---|
//! | [`card`] | [`Card`]: boots the coordinator, maps functions, sees it die |
//! | [`launch`] | the coordinator's command line; why it did not come up |
//! | [`coordinator`] | its process: stderr, last words, end |
//! | [`function`] | the memory and interrupts of one function |
//! | [`agent_ring`] | the agent's own function 0: requests out, completions in |
//! | [`memory`] | sealed memfds and their mappings |
//! | `inherit` | how the child gets its end of the bus |
//! | [`packet`] | datagrams with file descriptors |
//! | [`runtime_dir`] | the directory that DPDK leaves behind, and who removes it |

pub mod agent_ring;
pub mod card;
pub mod coordinator;
pub mod function;
mod inherit;
pub mod launch;
pub mod memory;
pub mod packet;
pub mod runtime_dir;

pub use agent_ring::AgentRing;
pub use card::{Card, CardEvent, CardGone};
pub use function::FunctionMemory;
pub use launch::{BootError, BootOptions};
