//! The ways between two processes that are compared.

use std::fmt;

use serde::{Serialize, Serializer};

/// How the bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// TCP over the kernel's loopback.
    Tcp,
    /// The kernel's local sockets.
    Unix,
    /// A pair of the kernel's local sockets, inherited.
    Socketpair,
    /// The kernel's pipes.
    Pipe,
    /// TCP whose bytes an eBPF program moves from socket to socket.
    Sockmap,
    /// Shared memory that is polled, without any of what makes it a socket: the limit.
    Ring,
    /// libfabric between two hosts, polled, without sockets on top: the limit there.
    Fabric,
    /// The same, asked for by another thread on each host, which shares its processor: what any way costs there whose endpoint is not the
    /// application's own.
    FabricBehind,
    /// The same programs under `ipc-direct run`.
    Direct,
}

impl Path {
    /// What a server program can be reached by, the reference first.
    pub const ALL: [Path; 3] = [Path::Tcp, Path::Unix, Path::Direct];

    /// What no way with sockets can beat.
    #[must_use]
    pub fn is_limit(self) -> bool {
        matches!(self, Path::Ring | Path::Fabric)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Path::Tcp => "kernel TCP",
            Path::Unix => "AF_UNIX",
            Path::Socketpair => "socketpair",
            Path::Pipe => "pipe",
            Path::Sockmap => "TCP + sockmap",
            Path::Ring => "raw ring",
            Path::Fabric => "raw libfabric",
            Path::FabricBehind => "libfabric behind a thread",
            Path::Direct => "IPC-Direct",
        })
    }
}

impl Serialize for Path {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
