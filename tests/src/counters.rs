//! What `ipc-direct ps --json` says, and differences of it.

use std::net::SocketAddr;
use std::ops::{Add, Sub};

use serde::Deserialize;

/// The whole report.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    /// Schema version.
    pub version: u32,
    /// The agent.
    pub agent: Agent,
    /// Sums over all processes, ended ones included.
    pub totals: Totals,
    /// Attached processes.
    pub processes: Vec<Process>,
}

/// The agent's part.
#[derive(Clone, Debug, Deserialize)]
pub struct Agent {
    /// Process id.
    pub pid: u32,
    /// Incarnation of the coordinator.
    pub epoch: u32,
    /// For `dpdk-telemetry.py -f`.
    pub telemetry_prefix: String,
    /// How programs' requests go to the card.
    pub request_queue: String,
    /// How slow a bus its card imitates.
    pub pcie_profile: String,
    /// Leases held by `ipc-direct run`.
    pub leases: u64,
}

/// Sums per path.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Totals {
    /// Through shared memory.
    pub user: Traffic,
    /// Through the kernel.
    pub kernel: Traffic,
}

/// Traffic of one path, both directions as their processes saw them.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Traffic {
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Calls that sent.
    pub tx_ops: u64,
    /// Calls that received.
    pub rx_ops: u64,
    /// Connections, counted at each attached end.
    pub connections: u64,
}

/// One attached process.
#[derive(Clone, Debug, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub command: String,
    /// Its sockets.
    pub sockets: Vec<Socket>,
}

/// One socket.
#[derive(Clone, Debug, Deserialize)]
pub struct Socket {
    /// Lowest descriptor.
    pub fd: i64,
    /// Listening, connected, ...
    pub state: String,
    /// user-space, kernel, ...
    #[serde(default)]
    pub path: Option<String>,
    /// Reason code.
    pub reason: String,
    /// `ADDRESS:PORT`.
    pub local: String,
}

impl Report {
    /// True once somebody listens on `addr` in user space, too.
    #[must_use]
    pub fn listens(&self, addr: SocketAddr) -> bool {
        let local = addr.to_string();
        self.processes.iter().flat_map(|p| &p.sockets).any(|s| s.state == "listening" && s.local == local)
    }
}

impl Sub for Traffic {
    type Output = Traffic;
    fn sub(self, before: Traffic) -> Traffic {
        Traffic {
            tx_bytes: self.tx_bytes.saturating_sub(before.tx_bytes),
            rx_bytes: self.rx_bytes.saturating_sub(before.rx_bytes),
            tx_ops: self.tx_ops.saturating_sub(before.tx_ops),
            rx_ops: self.rx_ops.saturating_sub(before.rx_ops),
            connections: self.connections.saturating_sub(before.connections),
        }
    }
}

impl Add for Traffic {
    type Output = Traffic;
    fn add(self, more: Traffic) -> Traffic {
        Traffic {
            tx_bytes: self.tx_bytes + more.tx_bytes,
            rx_bytes: self.rx_bytes + more.rx_bytes,
            tx_ops: self.tx_ops + more.tx_ops,
            rx_ops: self.rx_ops + more.rx_ops,
            connections: self.connections + more.connections,
        }
    }
}

impl Add for Totals {
    type Output = Totals;
    fn add(self, more: Totals) -> Totals {
        Totals { user: self.user + more.user, kernel: self.kernel + more.kernel }
    }
}

impl Sub for Totals {
    type Output = Totals;
    fn sub(self, before: Totals) -> Totals {
        Totals { user: self.user - before.user, kernel: self.kernel - before.kernel }
    }
}
