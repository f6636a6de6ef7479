//! What the driver asks of the load program `bench-worker`, and what that answers: one JSON text each.

use serde::{Deserialize, Serialize};

/// How both processes wait for the next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// In a blocking `recv`.
    Blocking,
    /// In `epoll_wait`, level-triggered.
    Epoll,
    /// In `poll`.
    Poll,
}

/// Descriptors without news beside the busy one, in a set that is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Idle {
    /// So many more connections between the same two processes.
    Connections(usize),
    /// So many eventfds, which only the kernel knows.
    Eventfds(usize),
}

/// What the two processes do with each other. Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// A message there and one back, each `pause_us` after the one before.
    PingPong {
        /// Message size.
        bytes: usize,
        /// How both wait.
        wait: Wait,
        /// What else is waited for.
        idle: Idle,
        /// Sleep of the client between round trips, in µs.
        pause_us: u64,
    },
    /// Messages one way: one send and one receive each.
    Stream {
        /// Message size.
        bytes: usize,
    },
    /// Connect, accept, close, over and over.
    Connect {
        /// With 8 bytes there and back in between.
        exchange: bool,
    },
    /// Many connections in one epoll set on each side.
    Crowd {
        /// How many.
        connections: usize,
        /// How many of them are used.
        active: usize,
    },
    /// Many connections that are used once and then kept.
    Keep {
        /// How many.
        connections: usize,
        /// With 8 bytes there and back on each.
        exchange: bool,
    },
}

impl Shape {
    /// Ping-pong without anything beside it.
    #[must_use]
    pub fn ping_pong(bytes: usize, wait: Wait) -> Shape {
        Shape::PingPong { bytes, wait, idle: Idle::Connections(0), pause_us: 0 }
    }

    /// Connections that the client makes before it measures.
    #[must_use]
    pub fn connections(&self) -> usize {
        match self {
            Shape::PingPong { idle: Idle::Connections(n), .. } => n + 1,
            Shape::Crowd { connections, .. } | Shape::Keep { connections, .. } => *connections,
            _ => 1,
        }
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Job {
    /// What to do.
    pub shape: Shape,
    /// For how long.
    pub seconds: f64,
    /// Processors of the server and of the client, if they are to stay on one.
    pub cpus: Option<[usize; 2]>,
    /// When to begin, on the monotonic clock; for several pairs that must run at the same time.
    pub start_ns: Option<u64>,
}

/// What one process found.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Round trips, messages, connections or records.
    pub count: u64,
    /// How long they took.
    pub seconds: f64,
    /// Half of the round trips took at most this, in ns.
    pub p50_ns: f64,
    /// 99% of the round trips took at most this, in ns.
    pub p99_ns: f64,
    /// Processor time of this process meanwhile, in s.
    pub cpu_s: f64,
}

impl Figures {
    /// How many each second.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // counts stay far below 2^52
    pub fn per_s(&self) -> f64 {
        if self.seconds > 0.0 { self.count as f64 / self.seconds } else { 0.0 }
    }
}

/// How a parent's child reaches the parent in `bench-worker pair`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Over {
    /// Two pipes.
    Pipe,
    /// `socketpair(AF_UNIX, SOCK_STREAM)`.
    Socketpair,
    /// A TCP connection whose bytes an eBPF program moves from socket to socket.
    Sockmap,
    /// The raw ring in shared memory.
    Ring,
}
