//! What the kernel says of the other end of a unix socket.
//!
//! `unsafe` is allowed here: getsockopt(2) of options that rustix has no safe function for, or one that can't say
//! "no such process".
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixDatagram;

/// Process and user (`SO_PEERCRED`, unix(7)) as of connect(2) or socketpair(2), in the agent's namespaces. Process 0: it
/// lives in a pid namespace that the agent can't see into.
///
/// # Errors
/// Those of getsockopt(2).
pub fn credentials(socket: impl AsFd) -> io::Result<(i32, u32)> {
    let credentials: libc::ucred = option(socket, libc::SO_PEERCRED)?;
    Ok((credentials.pid, credentials.uid))
}

/// The network namespace that the other end's socket belongs to, by the number that the kernel never gives twice
/// (`SO_NETNS_COOKIE`, Linux 5.14). The socket that accept(2) makes, like both of socketpair(2), is in the namespace of the
/// process that connected, so nobody can claim one that he has not been in.
///
/// # Errors
/// Those of getsockopt(2).
pub fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    option(socket, libc::SO_NETNS_COOKIE)
}

/// The network namespace of this thread.
///
/// # Errors
/// Those of socket(2) and getsockopt(2).
pub fn own_netns_cookie() -> io::Result<u64> {
    netns_cookie(UnixDatagram::unbound()?)
}

/// True for `SOCK_SEQPACKET` of `AF_UNIX`: a socket that a client may be behind.
pub fn is_client_socket(socket: impl AsFd) -> bool {
    let option = |name| option::<i32>(socket.as_fd(), name).unwrap_or(-1);
    option(libc::SO_DOMAIN) == libc::AF_UNIX && option(libc::SO_TYPE) == libc::SOCK_SEQPACKET
}

/// Of a stream listener of `AF_UNIX` in that network namespace: who has called listen(2), by process and user id, and the number of its
/// name ([`ring::msg::name_hash`]).
pub fn listener(socket: impl AsFd, netns: u64) -> Option<(u32, u32, u64)> {
    let socket = socket.as_fd();
    let is = |name, value| option::<i32>(socket, name).is_ok_and(|v| v == value);
    let fits = is(libc::SO_DOMAIN, libc::AF_UNIX)
        && is(libc::SO_TYPE, libc::SOCK_STREAM)
        && is(libc::SO_ACCEPTCONN, 1)
        && netns_cookie(socket).ok()? == netns;
    let (pid, uid) = credentials(socket).ok().filter(|(pid, _)| fits && *pid > 0)?;
    let mut name = MaybeUninit::<libc::sockaddr_un>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<libc::sockaddr_un>()).ok()?;
    // SAFETY: room for `length` bytes, which live as long as the call.
    let r = unsafe { libc::getsockname(socket.as_raw_fd(), name.as_mut_ptr().cast(), &raw mut length) };
    // SAFETY: zeroed, then filled in by the kernel; any bytes are a name.
    let bytes = unsafe { std::slice::from_raw_parts(name.as_ptr().cast::<u8>(), size_of_val(&name)) };
    let name = bytes
        .get(size_of::<libc::sa_family_t>()..length as usize)
        .filter(|name| r == 0 && !name.is_empty())?;
    Some((pid.unsigned_abs(), uid, ring::msg::name_hash(name)))
}

/// Types that the kernel fills in, for which any bytes will do.
trait Plain: Copy {}
impl Plain for i32 {}
impl Plain for u64 {}
impl Plain for libc::ucred {}

fn option<T: Plain>(socket: impl AsFd, name: i32) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let size = size_of::<T>();
    let mut length = libc::socklen_t::try_from(size).map_err(io::Error::other)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: room for `length` bytes, which live as long as the call.
    let r =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, value.as_mut_ptr().cast(), &raw mut length) };
    if r != 0 {
        return Err(io::Error::last_os_error());
    }
    if length as usize != size {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // SAFETY: zeroed, then filled in by the kernel; any bytes are a `Plain`.
    Ok(unsafe { value.assume_init() })
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    use super::*;
    use emulator::packet;
    use rustix::net::SocketType;

    #[test]
    fn a_listener_says_who_made_it() {
        let name = format!("ipc-direct-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let made = UnixListener::bind_addr(&address).unwrap();
        let netns = netns_cookie(&made).unwrap();
        let bytes = [&[0], name.as_bytes()].concat();
        let me = (std::process::id(), rustix::process::geteuid().as_raw(), ring::msg::name_hash(&bytes));
        assert_eq!(listener(&made, netns), Some(me));
        assert_eq!(listener(&made, netns + 1), None);
        let connected = UnixStream::connect_addr(&address).unwrap();
        let (accepted, _) = made.accept().unwrap();
        assert!(listener(connected, netns).is_none() && listener(accepted, netns).is_none());
    }

    #[test]
    fn the_kernel_says_who_we_are() {
        let (a, b) = packet::pair(SocketType::SEQPACKET).unwrap();
        let (pid, uid) = credentials(&a).unwrap();
        assert_eq!((pid.unsigned_abs(), uid), (std::process::id(), rustix::process::geteuid().as_raw()));
        let cookie = netns_cookie(&a).unwrap();
        assert!(cookie != 0 && cookie == netns_cookie(&b).unwrap());
        assert!(is_client_socket(&a));
        let (stream, _) = packet::pair(SocketType::STREAM).unwrap();
        assert!(!is_client_socket(stream) && !is_client_socket(std::fs::File::open("/dev/null").unwrap()));
    }
}
