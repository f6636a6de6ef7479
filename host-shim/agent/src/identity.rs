//! Who a client is, from the kernel and never from the client.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags};

use crate::peer;

/// A process behind a socket.
#[derive(Debug)]
pub struct Identity {
    /// In the agent's pid namespace.
    pub pid: u32,
    /// Effective user when it connected.
    pub uid: u32,
    /// Readable when the process has ended.
    pub pidfd: OwnedFd,
    /// Its network namespace, as [`peer::netns_cookie`] names it.
    pub netns: u64,
    /// `/proc/PID/comm`.
    pub command: String,
}

impl Identity {
    /// The process that connected `socket`.
    ///
    /// # Errors
    /// It is already gone, or of a pid namespace that the agent can't see.
    pub fn of_peer(socket: impl AsFd) -> io::Result<Identity> {
        let (raw, uid) = peer::credentials(&socket)?;
        let unseen = || io::Error::other("it lives in a pid namespace outside of the agent's");
        let pid = Pid::from_raw(raw).ok_or_else(unseen)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        let comm = fs::read(format!("/proc/{raw}/comm")).unwrap_or_default();
        Ok(Identity {
            pid: raw.unsigned_abs(),
            uid,
            pidfd,
            netns: peer::netns_cookie(&socket)?,
            command: String::from_utf8_lossy(comm.trim_ascii_end()).into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::SocketType;

    #[test]
    fn the_kernel_says_who_we_are() {
        let (a, _b) = emulator::packet::pair(SocketType::SEQPACKET).unwrap();
        let me = Identity::of_peer(&a).unwrap();
        assert_eq!(me.pid, std::process::id());
        assert_eq!(me.uid, rustix::process::geteuid().as_raw());
        assert!(me.netns != 0 && !me.command.is_empty());
    }
}
