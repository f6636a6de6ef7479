//! What `ipc-direct ps` shows: the JSON schema (docs/ps-json.md), filled from the processes' counters.

use std::ops::AddAssign;

use ring::atomic::{AtomicU64, Ordering};
use ring::msg::ConnId;
use ring::stats::{Reason, SocketState, SocketStats, Stats, Traffic};
use serde::{Deserialize, Serialize};

use crate::function::Function;
use crate::inspect::{ProcessRings, SegmentReport};
use crate::names::Names;

/// Version of the schema; new fields may come without a new version.
pub const SCHEMA_VERSION: u32 = 1;
/// Sockets that one report lists; the rest are counted in `sockets_omitted`.
pub const SOCKETS_MAX: usize = 65_536;

/// `libc::AF_UNIX`, as the counters have it.
const AF_UNIX: u32 = libc::AF_UNIX.cast_unsigned();

/// The whole report.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub version: u32,
    /// The agent and its card.
    pub agent: AgentReport,
    /// Of living and ended processes together.
    pub totals: Totals,
    /// Attached processes, by function number.
    pub processes: Vec<ProcessReport>,
    /// Sockets that were not listed because there are too many.
    pub sockets_omitted: u64,
    /// Segments and their connections; only with `--verbose`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<Vec<SegmentReport>>,
}

/// The agent and its card.
#[derive(Debug, Serialize, Deserialize)]
pub struct AgentReport {
    /// Process id.
    pub pid: u32,
    /// Of the coordinator; 0: it runs on a card of its own.
    pub coordinator_pid: u32,
    /// Incarnation of the coordinator.
    pub epoch: u32,
    /// Seconds since the card was up.
    pub uptime_s: u64,
    /// For `dpdk-telemetry.py -f`; empty: on the card.
    pub telemetry_prefix: String,
    /// How programs' requests go to the card: `per-process`, `shared` or `hybrid`.
    pub request_queue: String,
    /// How slow a bus an emulated card imitates; `none` otherwise.
    pub pcie_profile: String,
    /// Segments in use.
    pub segments: u64,
    /// Leases held by `ipc-direct run`.
    pub leases: u64,
}

/// Counters of one path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathTotals {
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Calls that sent.
    pub tx_ops: u64,
    /// Calls that received.
    pub rx_ops: u64,
    /// Connections that ever took this path, counted at each of their ends that runs the shim.
    pub connections: u64,
}

/// Counters of both paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Through shared memory.
    pub user: PathTotals,
    /// Through the kernel.
    pub kernel: PathTotals,
    /// Times a thread went to sleep in the shim.
    pub sleeps: u64,
    /// Wake-ups that the shim sent.
    pub wakes: u64,
}

/// One attached process.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProcessReport {
    /// Process id.
    pub pid: u32,
    /// `/proc/PID/comm`.
    pub command: String,
    /// Function number.
    pub function: u32,
    /// Fork family.
    pub group: u32,
    /// User.
    pub uid: u32,
    /// Of this process, closed sockets included.
    pub totals: Totals,
    /// Descriptors of sockets that were closed or replaced by system calls that did not come through libc.
    pub escapes: u64,
    /// Times that the program asked for io_uring(7) and was told that this kernel has none.
    pub io_urings_refused: u64,
    /// Open sockets.
    pub sockets: Vec<SocketReport>,
    /// Rings and sleepers; only with `--verbose`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rings: Option<ProcessRings>,
}

/// One open socket.
#[derive(Debug, Serialize, Deserialize)]
pub struct SocketReport {
    /// A descriptor of it; -1: it has none any more, but a call uses it.
    pub fd: i32,
    /// `idle`, `listening` or `connected`.
    pub state: String,
    /// `user-space`, `kernel`, or `both` (listeners) or `-` (idle).
    pub path: String,
    /// Reason code; `-` when accelerated or still undecided.
    pub reason: String,
    /// The reason as a sentence.
    pub reason_text: String,
    /// `ADDRESS:PORT`; of an `AF_UNIX` socket its path, or `@` and its abstract name; `-` without either.
    pub local: String,
    /// `ADDRESS:PORT`; `-` without a peer.
    pub peer: String,
    /// Connection in user space, `SEGMENT.SLOT#GENERATION`; else `-`.
    pub conn: String,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Calls that sent.
    pub tx_ops: u64,
    /// Calls that received.
    pub rx_ops: u64,
}

fn get(counter: &AtomicU64) -> u64 {
    // Relaxed: counters for people; nothing is concluded from their order.
    counter.load(Ordering::Relaxed)
}

impl AddAssign for PathTotals {
    fn add_assign(&mut self, other: Self) {
        // Wrapping: what a process shows may be anything.
        self.tx_bytes = self.tx_bytes.wrapping_add(other.tx_bytes);
        self.rx_bytes = self.rx_bytes.wrapping_add(other.rx_bytes);
        self.tx_ops = self.tx_ops.wrapping_add(other.tx_ops);
        self.rx_ops = self.rx_ops.wrapping_add(other.rx_ops);
        self.connections = self.connections.wrapping_add(other.connections);
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.user += other.user;
        self.kernel += other.kernel;
        self.sleeps = self.sleeps.wrapping_add(other.sleeps);
        self.wakes = self.wakes.wrapping_add(other.wakes);
    }
}

fn path(traffic: &Traffic, connections: u64) -> PathTotals {
    PathTotals {
        tx_bytes: get(&traffic.tx_bytes),
        rx_bytes: get(&traffic.rx_bytes),
        tx_ops: get(&traffic.tx_ops),
        rx_ops: get(&traffic.rx_ops),
        connections,
    }
}

/// Entries that the process says it has used, whatever it says.
pub(crate) fn used<'a>(stats: &Stats<'a>) -> &'a [SocketStats] {
    let used = stats.header.used.load(Ordering::Relaxed) as usize;
    stats.sockets.get(..used).unwrap_or(stats.sockets)
}

impl Totals {
    /// Sums up what a process shows.
    #[must_use]
    pub fn of(stats: &Stats<'_>) -> Totals {
        let header = stats.header;
        let mut totals = Totals {
            user: path(&header.closed_user, get(&header.user_conns)),
            kernel: path(&header.closed_kernel, get(&header.kernel_conns)),
            sleeps: get(&header.sleeps),
            wakes: get(&header.wakes),
        };
        for socket in used(stats) {
            match SocketState::from_wire(socket.state.load(Ordering::Relaxed)) {
                SocketState::User => totals.user += path(&socket.traffic, 0),
                SocketState::Kernel => totals.kernel += path(&socket.traffic, 0),
                SocketState::Unused | SocketState::Idle | SocketState::Listening => {}
            }
        }
        totals
    }
}

impl SocketReport {
    fn of(socket: &SocketStats, names: &Names) -> Option<SocketReport> {
        let (state, path) = match SocketState::from_wire(socket.state.load(Ordering::Relaxed)) {
            SocketState::Unused => return None,
            SocketState::Idle => ("idle", "-"),
            SocketState::Listening => ("listening", "both"),
            SocketState::User => ("connected", "user-space"),
            SocketState::Kernel => ("connected", "kernel"),
        };
        let reason = Reason::from_wire(socket.reason.load(Ordering::Relaxed));
        // A listener that user-space clients can't reach says so by its reason.
        let path = if state == "listening" && reason != Reason::None { "kernel" } else { path };
        let (local, peer) = socket.addrs();
        let fd = socket.fd.load(Ordering::Relaxed).cast_signed();
        let is_unix = socket.family_type.load(Ordering::Relaxed) & 0xffff == AF_UNIX;
        let name = if is_unix { names.get(fd) } else { None };
        let traffic = self::path(&socket.traffic, 0);
        Some(SocketReport {
            fd,
            state: state.into(),
            path: path.into(),
            reason: reason.code().into(),
            reason_text: reason.text().into(),
            local: match name {
                Some(name) => name,
                None if local.port == 0 => "-".into(),
                None => local.to_string(),
            },
            peer: if peer.port == 0 { "-".into() } else { peer.to_string() },
            conn: match ConnId(socket.conn.load(Ordering::Relaxed)) {
                conn if path == "user-space" => format!("{conn:?}"),
                _ => "-".into(),
            },
            tx_bytes: traffic.tx_bytes,
            rx_bytes: traffic.rx_bytes,
            tx_ops: traffic.tx_ops,
            rx_ops: traffic.rx_ops,
        })
    }
}

impl ProcessReport {
    /// Up to `room` sockets are listed; the second value counts the others.
    #[must_use]
    pub fn of(number: u32, function: &Function, room: usize) -> (ProcessReport, u64) {
        let stats = function.stats();
        let names = Names::of(function.identity.pid);
        let mut sockets = used(stats).iter().filter_map(|s| SocketReport::of(s, &names));
        let listed: Vec<_> = sockets.by_ref().take(room).collect();
        let omitted = sockets.count() as u64;
        let report = ProcessReport {
            pid: function.identity.pid,
            command: function.identity.command.clone(),
            function: number,
            group: function.group,
            uid: function.identity.uid,
            totals: Totals::of(stats),
            escapes: get(&stats.header.escapes),
            io_urings_refused: get(&stats.header.io_urings_refused),
            sockets: listed,
            rings: None,
        };
        (report, omitted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emulator::memory::{Mapping, sealed_memfd};
    use ring::msg::Addr;
    use ring::stats::STATS_BYTES;

    #[test]
    fn counters_are_summed_and_lies_are_only_numbers() {
        let fd = sealed_memfd("ipc-direct-test", STATS_BYTES).unwrap();
        let map = Mapping::new(&fd, STATS_BYTES).unwrap();
        let stats = Stats::over(map.region()).unwrap();
        stats.format();
        stats.header.user_conns.store(2, Ordering::Relaxed);
        stats.header.closed_user.tx_bytes.store(u64::MAX, Ordering::Relaxed);
        stats.header.used.store(u32::MAX, Ordering::Relaxed);
        let socket = &stats.sockets[3];
        socket.state.store(SocketState::User as u32, Ordering::Relaxed);
        socket.reason.store(4711, Ordering::Relaxed);
        socket.traffic.tx_bytes.store(11, Ordering::Relaxed);
        socket.set_addrs(Addr::v4([127, 0, 0, 1], 80), Addr::v4([127, 0, 0, 1], 4000));
        let totals = Totals::of(&stats);
        assert_eq!((totals.user.tx_bytes, totals.user.connections), (10, 2));
        let names = Names::of(std::process::id());
        let shown = SocketReport::of(socket, &names).unwrap();
        assert_eq!((shown.local.as_str(), shown.path.as_str()), ("127.0.0.1:80", "user-space"));
        assert_eq!(shown.reason, "unknown");
        assert!(SocketReport::of(&stats.sockets[4], &names).is_none());
    }
}
