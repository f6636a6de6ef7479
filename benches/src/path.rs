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
    /// TCP under `ipc-direct run`.
    Direct,
}

impl Path {
    /// All of them, the reference first.
    pub const ALL: [Path; 3] = [Path::Tcp, Path::Unix, Path::Direct];
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Path::Tcp => "kernel TCP",
            Path::Unix => "AF_UNIX",
            Path::Direct => "IPC-Direct",
        })
    }
}

impl Serialize for Path {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
