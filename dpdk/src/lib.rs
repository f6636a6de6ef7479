//! Safe wrappers over Debian's libdpdk (22.11), a module for each idea, each usable without the others:
//!
//! | module | what |
//! |---|---|
//! | [`eal`] | starting and ending DPDK, once per process |
//! | [`lcore`] | DPDK's pinned threads, and running closures on them |
//! | [`affinity`] | undoing the pinning for threads that are not DPDK's |
//! | [`mbuf`] | packet buffers, owned, and their pools |
//! | [`ethdev`] | Ethernet ports and queues |
//! | [`ring`] | messages from one lcore to another |
//! | [`telemetry`] | commands for `dpdk-telemetry.py` |
//! | [`errno`] | DPDK's error numbers |
//!
//! Everything that uses DPDK's memory borrows from the one [`eal::Eal`], so it is gone before DPDK is; queues and
//! buffers are owned, so that no two threads use the same one.
//!
//! ```no_run
//! use dpdk::eal::Eal;
//! use dpdk::ethdev::{Port, PortConfig};
//! use dpdk::mbuf::PktPool;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // An ordinary machine, an ordinary user: no card, no huge pages.
//! let (eal, consumed) = Eal::init(["echo", "--no-pci", "--no-huge", "-m", "64", "--vdev=net_null0"])?;
//! # let _ = consumed;
//! let pool = PktPool::new(&eal, "packets", 1023, 32, 2048)?;
//! let mut port = Port::by_name(&eal, "net_null0")?;
//! let (mut rx, mut tx) = port.start(&PortConfig::default(), pool)?;
//!
//! let mut packets = Vec::with_capacity(32);
//! for _turn in 0..1000 {
//!     rx[0].burst(&mut packets, 32);
//!     while !packets.is_empty() && tx[0].burst(&mut packets) > 0 {}
//!     packets.clear(); // What could not be sent goes back to the pool.
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Running it anywhere
//!
//! | machine | EAL options |
//! |---|---|
//! | no card | `--no-pci`, and `--vdev=net_null0` or another virtual device |
//! | no huge pages | `--no-huge -m 64` |
//! | huge pages, nothing left behind | `--in-memory -m 32` |
//! | several instances at once | a `--file-prefix=NAME` each; with `--no-shconf` also the same name |
//! | no root | the same, with `XDG_RUNTIME_DIR` set: see [`eal::Eal::runtime_dir`] |
//! | fewer CPUs than lcores | `--lcores=0@0,(1-3)@1` |
//!
//! What stays behind at the end: the empty runtime directory and, without `--no-shconf` and `--in-memory`, about 1 MB
//! of files in it (`config`, `fbarray_*`), which the next start reuses. After a kill also the sockets, which the next
//! start replaces.

pub mod affinity;
pub mod eal;
pub mod errno;
pub mod ethdev;
pub mod lcore;
pub mod mbuf;
pub mod ring;
pub mod telemetry;
