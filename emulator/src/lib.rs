//! The host half of the SmartNIC: the card that isn't there, and one that is.
//!
//! On a real card ([`pci`]) the host finds PCI functions and maps their windows. Otherwise
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
//! | [`pci`] | a card behind PCI BARs |
//! | [`lab`] | several hosts on one machine |
//! | [`memory`] | sealed memfds and their mappings |
//! | `inherit` | how the child gets its end of the bus |
//! | [`packet`] | datagrams with file descriptors |
//! | [`runtime_dir`] | the directory that DPDK leaves behind, and who removes it |

pub mod agent_ring;
pub mod card;
pub mod coordinator;
pub mod function;
mod inherit;
pub mod lab;
pub mod launch;
pub mod memory;
pub mod packet;
pub mod pci;
pub mod runtime_dir;

pub use agent_ring::AgentRing;
pub use card::{Card, CardEvent, CardGone};
pub use function::FunctionMemory;
pub use launch::{BootError, BootOptions, Fabric, Lcores, Uplink};
pub use pci::PciId;
