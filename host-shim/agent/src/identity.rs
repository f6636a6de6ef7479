//! Who a client is, from the kernel and never from the client.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use rustix::net::sockopt;
use rustix::process::PidfdFlags;

/// A process behind a socket.
#[derive(Debug)]
pub struct Identity {
    /// In the agent's pid namespace.
    pub pid: u32,
    /// Effective user when it connected.
    pub uid: u32,
    /// Readable when the process has ended.
    pub pidfd: OwnedFd,
    /// Inode of its network namespace.
    pub netns: u64,
    /// `/proc/PID/comm`.
    pub command: String,
}

/// The uid at the other end (`SO_PEERCRED`, unix(7)).
///
/// # Errors
/// Those of getsockopt(2).
pub fn peer_uid(socket: impl AsFd) -> io::Result<u32> {
    Ok(sockopt::socket_peercred(socket)?.uid.as_raw())
}

impl Identity {
    /// The process that connected `socket`.
    ///
    /// # Errors
    /// It is already gone, or of a pid namespace that the agent can't see.
    pub fn of_peer(socket: impl AsFd) -> io::Result<Identity> {
        let credentials = sockopt::socket_peercred(socket)?;
        let pid = credentials.pid;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        let raw = pid.as_raw_nonzero().get();
        let netns = |of: &str| fs::metadata(format!("/proc/{of}/ns/net")).map(|m| m.ino());
        let comm = fs::read(format!("/proc/{raw}/comm")).unwrap_or_default();
        Ok(Identity {
            pid: u32::try_from(raw).unwrap_or(0),
            uid: credentials.uid.as_raw(),
            pidfd,
            // Not readable (another user's process): it reached our abstract socket, or was given a
            // path by somebody of our namespace; ours is the best guess.
            netns: netns(&raw.to_string()).or_else(|_| netns("self"))?,
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
