//! Datagrams with file descriptors over `SOCK_SEQPACKET` sockets (unix(7), `SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// Most descriptors in one datagram.
pub const FDS_MAX: usize = 8;

/// A connected pair of non-blocking, close-on-exec sockets of type `kind`.
///
/// # Errors
/// Those of socketpair(2).
pub fn pair(kind: SocketType) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?)
}

/// Sends one datagram with up to [`FDS_MAX`] descriptors. Never raises SIGPIPE, and never waits: `WouldBlock` when the
/// other end does not read.
///
/// # Errors
/// Those of sendmsg(2); `InvalidInput` for too many descriptors.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )?;
    Ok(())
}

/// Receives one datagram into `buffer`: its length (0: the other end is closed) and its descriptors,
/// close-on-exec. A datagram longer than `buffer` is cut.
///
/// # Errors
/// Those of recvmsg(2); `WouldBlock` when nothing is there.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    receive_with(socket, buffer, RecvFlags::empty())
}

/// As [`receive`], and never waits, whatever `O_NONBLOCK` says: who shares the socket can change that.
///
/// # Errors
/// As [`receive`].
pub fn receive_now(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    receive_with(socket, buffer, RecvFlags::DONTWAIT)
}

fn receive_with(socket: impl AsFd, buffer: &mut [u8], flags: RecvFlags) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    let fds = control
        .drain()
        .filter_map(|m| match m {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    Ok((got.bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_travel_and_an_end_is_seen() {
        let (a, b) = pair(SocketType::SEQPACKET).unwrap();
        let (c, _d) = pair(SocketType::STREAM).unwrap();
        send(&a, b"hello", &[c.as_fd(), c.as_fd()]).unwrap();
        let mut buffer = [0; 16];
        let (n, fds) = receive(&b, &mut buffer).unwrap();
        assert_eq!((&buffer[..n], fds.len()), (&b"hello"[..], 2));
        assert_eq!(receive(&b, &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert_eq!(receive(&b, &mut buffer).unwrap().0, 0);
        assert!(send(&b, b"x", &[c.as_fd(); FDS_MAX + 1]).is_err());
    }
}
