//! The counters that a process shows to the agent (SPEC 9). The process writes, the agent reads
//! and believes nothing: every value is data for a table, never an index or a decision.
//!
//! `unsafe` is allowed here for the `Shared` markers only.
#![allow(unsafe_code)]

use crate::VERSION;
use crate::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::msg::Addr;
use crate::shared::{Region, Shared};

/// "IPDS".
pub const STATS_MAGIC: u32 = u32::from_le_bytes(*b"IPDS");
/// Sockets that a process can show; more are handled, but not listed.
pub const SOCKETS_MAX: usize = 32_768;
/// Sleeping threads that a process can show.
pub const SLEEPERS_MAX: usize = 64;
/// Bytes before the first sleeper.
pub const SLEEPERS_OFFSET: usize = 1024;
/// Bytes before the first socket.
pub const SOCKETS_OFFSET: usize = 4096;
/// Bytes of a stats memory (sparse: pages are touched as sockets appear).
pub const STATS_BYTES: usize = SOCKETS_OFFSET + SOCKETS_MAX * 128;

/// Traffic of one path: written by one process only, so plain adds on relaxed atomics.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes sent.
    pub tx_bytes: AtomicU64,
    /// Bytes received.
    pub rx_bytes: AtomicU64,
    /// Calls that sent.
    pub tx_ops: AtomicU64,
    /// Calls that received.
    pub rx_ops: AtomicU64,
}
// SAFETY: atomics only, repr(C).
unsafe impl Shared for Traffic {}

/// Start of the stats memory.
#[repr(C, align(64))]
pub struct StatsHeader {
    /// [`STATS_MAGIC`]; written by the agent, like `version`.
    pub magic: AtomicU32,
    /// [`VERSION`].
    pub version: AtomicU32,
    /// One past the highest socket entry ever used.
    pub used: AtomicU32,
    pad: AtomicU32,
    /// Connections that ever were in user space.
    pub user_conns: AtomicU64,
    /// Connections that ever went through the kernel.
    pub kernel_conns: AtomicU64,
    /// Times a thread went to sleep in our code.
    pub sleeps: AtomicU64,
    /// Wake-ups sent (futex or wire).
    pub wakes: AtomicU64,
    /// Descriptors of ours that the kernel had given out again: [`Reason::Escaped`].
    pub escapes: AtomicU64,
    /// Times that the program asked for io_uring(7) and was told that this kernel has none.
    pub io_urings_refused: AtomicU64,
    /// Closed sockets' user-space traffic.
    pub closed_user: Traffic,
    /// Closed sockets' kernel traffic.
    pub closed_kernel: Traffic,
}
// SAFETY: atomics only, repr(C).
unsafe impl Shared for StatsHeader {}

/// A thread that sleeps in our code.
#[repr(C, align(32))]
pub struct SleeperStats {
    /// Thread id in the process's own pid namespace; 0: entry unused.
    pub tid: AtomicU32,
    /// [`Sleep`].
    pub what: AtomicU32,
    /// Descriptor that it waits for, or -1.
    pub fd: AtomicU32,
    pad: AtomicU32,
    /// `CLOCK_MONOTONIC` when it fell asleep, in nanoseconds.
    pub since_ns: AtomicU64,
    pad2: AtomicU64,
}
// SAFETY: atomics only, repr(C).
unsafe impl Shared for SleeperStats {}

/// What a thread sleeps on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Sleep {
    /// A futex: data or space of one connection.
    Stream = 1,
    /// The coordinator's answer, an accept, or a read or write with a time limit.
    Answer = 2,
    /// poll(2) or select(2).
    Poll = 3,
    /// epoll_wait(2).
    Epoll = 4,
}

impl Sleep {
    /// As `ipc-direct ps --verbose` prints it; unknown values are shown as such.
    #[must_use]
    pub fn name_of(v: u32) -> &'static str {
        match v {
            1 => "stream",
            2 => "answer",
            3 => "poll",
            4 => "epoll",
            _ => "unknown",
        }
    }
}

/// One socket.
#[repr(C, align(128))]
pub struct SocketStats {
    /// [`SocketState`]; 0: entry unused.
    pub state: AtomicU32,
    /// Lowest descriptor number seen for it.
    pub fd: AtomicU32,
    /// [`Reason`].
    pub reason: AtomicU32,
    /// `socket(2)` domain in the low half, type in the high half.
    pub family_type: AtomicU32,
    /// Connection id, or 0.
    pub conn: AtomicU64,
    local_ip: [AtomicU64; 2],
    peer_ip: [AtomicU64; 2],
    /// Local port in the low half, peer's in the high half.
    ports: AtomicU32,
    /// Connection in user space: our side, 0 or 1.
    pub side: AtomicU32,
    /// On the path that the socket is on.
    pub traffic: Traffic,
    /// Connection in user space: our position in the outgoing stream (SPEC 4.1).
    pub tail: AtomicU64,
    pad2: AtomicU64,
}
// SAFETY: atomics only, repr(C).
unsafe impl Shared for SocketStats {}

#[cfg(not(loom))]
const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<StatsHeader>() == 128);
    assert!(size_of::<SocketStats>() == 128);
    assert!(offset_of!(SocketStats, traffic) == 64);
    assert!(offset_of!(SocketStats, tail) == 96);
    assert!(size_of::<SleeperStats>() == 32);
    assert!(size_of::<StatsHeader>() <= SLEEPERS_OFFSET);
    assert!(SLEEPERS_OFFSET + SLEEPERS_MAX * size_of::<SleeperStats>() <= SOCKETS_OFFSET);
};

/// What a socket is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SocketState {
    /// Entry unused.
    Unused = 0,
    /// Neither connected nor listening.
    Idle = 1,
    /// Listening in both worlds.
    Listening = 2,
    /// Connected in user space.
    User = 3,
    /// Connected through the kernel.
    Kernel = 4,
}

impl SocketState {
    /// Checks a value from the wire; anything unknown is `Unused`.
    #[must_use]
    pub fn from_wire(v: u32) -> SocketState {
        match v {
            1 => SocketState::Idle,
            2 => SocketState::Listening,
            3 => SocketState::User,
            4 => SocketState::Kernel,
            _ => SocketState::Unused,
        }
    }
    /// As `ipc-direct ps` prints it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            SocketState::Unused => "unused",
            SocketState::Idle => "idle",
            SocketState::Listening => "listening",
            SocketState::User => "user-space",
            SocketState::Kernel => "kernel",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $code:literal, $text:literal;)*) => {
        /// Why a socket is not accelerated: reason codes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Reason { $($(#[$doc])* $name = $value,)* }
        impl Reason {
            /// Every reason, for documentation and tests.
            pub const ALL: &'static [Reason] = &[$(Reason::$name),*];
            /// Checks a value from the wire; anything unknown is `Unknown`.
            #[must_use]
            pub fn from_wire(v: u32) -> Reason { match v { $($value => Reason::$name,)* _ => Reason::Unknown } }
            /// The code, for scripts.
            #[must_use]
            pub fn code(self) -> &'static str { match self { $(Reason::$name => $code,)* } }
            /// The sentence, for people.
            #[must_use]
            pub fn text(self) -> &'static str { match self { $(Reason::$name => $text,)* } }
        }
    };
}

reasons! {
    /// Accelerated, or may still become so.
    None = 0, "-", "accelerated";
    /// No agent.
    NoAgent = 1, "no-agent", "no IPC-Direct agent answered when the socket was made";
    /// Neither TCP nor an `AF_UNIX` stream.
    Family = 2, "family", "only TCP and AF_UNIX streams are accelerated so far";
    /// Destination elsewhere.
    Remote = 3, "remote", "the other end is not an address of this host";
    /// Nobody listens with the shim.
    NoListener = 4, "peer-unshimmed", "the server is not running under ipc-direct";
    /// A client from outside.
    ClientUnshimmed = 5, "client-unshimmed", "the client is not running under ipc-direct, or chose the kernel";
    /// Accept queue full.
    BacklogFull = 6, "backlog-full", "the server's accept queue was full, so the kernel's queue took the connection";
    /// Policy.
    Denied = 7, "denied", "the coordinator's policy does not allow this address pair";
    /// Tables full.
    Quota = 8, "quota", "a table or quota of the coordinator is full";
    /// Memory.
    NoSegment = 9, "no-memory", "the shared memory for this pair of processes could not be made or mapped";
    /// Coordinator silent.
    CoordinatorGone = 10, "coordinator-gone", "the coordinator or agent did not answer or is gone";
    /// Binding the client's address failed.
    Source = 11, "source-address", "the client's own address could not be reserved, or is an AF_UNIX name";
    /// An option that user space can't honour.
    Option = 12, "socket-option", "a socket option is set that only the kernel implements";
    /// Came from elsewhere.
    Inherited = 13, "inherited", "the descriptor was not made by this process through intercepted calls";
    /// Table full.
    TooMany = 14, "too-many", "the process has more descriptors than the shim tracks";
    /// An operation on a pipe.
    Operation = 32, "operation", "an operation that only the kernel can do (epoll, splice, ...) was made on this pipe, or one (shutdown, MSG_OOB) on this AF_UNIX connection before it left the kernel";
    /// Inherited by a program without the shim.
    Relayed = 15, "relayed", "a program without the shim has it, too: a relay process copies, or the kernel accepts";
    /// Shared by fork too early.
    Shared = 20, "shared-early", "the socket was shared by fork before it was connected or listening";
    /// Datagrams over IP.
    Udp = 16, "udp", "datagrams over UDP go through the kernel";
    /// Messages over AF_UNIX.
    UnixMessage = 17, "unix-message", "AF_UNIX datagram and seqpacket sockets go through the kernel";
    /// Closed or replaced by a raw system call.
    Escaped = 18, "escaped", "the descriptor was closed or replaced by a system call that did not come through libc";
    /// In another network namespace than the process when it attached, or (`AF_UNIX`) in another pid namespace than the agent.
    Namespace = 19, "other-namespace", "the socket is of another network namespace than the process had when it attached, or the process of another pid namespace";
    /// An `AF_UNIX` connection that has just begun.
    Few = 21, "few-messages", "an AF_UNIX connection begins in the kernel, and leaves it after some messages if both sides can";
    /// Not of this version.
    Unknown = 255, "unknown", "unknown reason";
}

impl SocketStats {
    /// Shows both addresses.
    pub fn set_addrs(&self, local: Addr, peer: Addr) {
        for (words, addr) in [(&self.local_ip, local), (&self.peer_ip, peer)] {
            for (word, value) in words.iter().zip(addr.words()) {
                word.store(value, Ordering::Relaxed);
            }
        }
        self.ports.store(u32::from(local.port) | u32::from(peer.port) << 16, Ordering::Relaxed);
    }

    /// Local and peer address as shown.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // halves of a word
    pub fn addrs(&self) -> (Addr, Addr) {
        let ports = self.ports.load(Ordering::Relaxed);
        let load = |[lo, hi]: &[AtomicU64; 2], port| {
            Addr::from_words(lo.load(Ordering::Relaxed), hi.load(Ordering::Relaxed), port)
        };
        (load(&self.local_ip, ports as u16), load(&self.peer_ip, (ports >> 16) as u16))
    }
}

/// A checked view of stats memory.
#[derive(Clone, Copy)]
pub struct Stats<'a> {
    /// Header.
    pub header: &'a StatsHeader,
    /// Sleeping threads.
    pub sleepers: &'a [SleeperStats],
    /// Sockets, by the process's own numbering.
    pub sockets: &'a [SocketStats],
}

impl<'a> Stats<'a> {
    /// Views `region` as stats memory; `None` if it is too small.
    #[must_use]
    pub fn over(region: Region) -> Option<Stats<'a>> {
        Some(Stats {
            header: region.get(0)?,
            sleepers: region.slice(SLEEPERS_OFFSET, SLEEPERS_MAX)?,
            sockets: region.slice(SOCKETS_OFFSET, SOCKETS_MAX)?,
        })
    }

    /// Fills in the header of fresh, zeroed memory.
    pub fn format(&self) {
        self.header.version.store(VERSION, Ordering::Relaxed);
        self.header.magic.store(STATS_MAGIC, Ordering::Relaxed);
    }
}

/// Adds to a counter that only this process writes: no locked instruction. Two threads that add at the
/// same moment may lose one addition; the direction locks keep that from happening on data paths.
#[inline(always)]
pub fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}
