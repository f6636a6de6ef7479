//! Whole Ethernet frames to and from a link: packet(7), with the header by which the kernel says what it has left to the
//! network card (checksums, segmentation), so that frames pass on as they came.
//!
//! `unsafe` is allowed here for the C structures of these sockets.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A frame as large as the kernel hands over, with its header.
pub(crate) const FRAME_BYTES_MAX: usize = 65_536 + 64;
/// Bytes of frames that wait to be read; the kernel allows root as much.
const BUFFER_BYTES: i32 = 8 << 20;

/// A socket that receives every frame of one link, and sends there.
#[derive(Debug)]
pub(crate) struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens it on the link named `link` of this network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn open(link: &str) -> io::Result<PacketSocket> {
        let name = CString::new(link)?;
        // SAFETY: the name is terminated.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // Protocol 0: nothing arrives before bind(2) below names the link.
        // SAFETY: plain numbers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else knows.
        let socket = PacketSocket(unsafe { OwnedFd::from_raw_fd(fd) });
        socket.set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        // Else it would receive what it sends.
        socket.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER_BYTES)?;
        socket.set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, BUFFER_BYTES)?;
        // SAFETY: a structure of integers.
        let mut address = unsafe { zeroed::<libc::sockaddr_ll>() };
        address.sll_family = libc::AF_PACKET.unsigned_abs().try_into().unwrap_or_default();
        address.sll_protocol = u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be();
        address.sll_ifindex = index.cast_signed();
        let length = size_of::<libc::sockaddr_ll>().try_into().unwrap_or_default();
        // SAFETY: the address is a whole sockaddr_ll of that length, and is read only.
        if unsafe { libc::bind(socket.0.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }

    fn set(&self, level: i32, option: i32, value: i32) -> io::Result<()> {
        let length = size_of::<i32>().try_into().unwrap_or_default();
        // SAFETY: an int of that length, read only.
        let ret =
            unsafe { libc::setsockopt(self.0.as_raw_fd(), level, option, (&raw const value).cast(), length) };
        if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// A frame with its header, if one is there; it is cut if it is longer than `buffer`.
    ///
    /// # Errors
    /// The link is gone.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.0, buffer) {
            Ok(n) => Ok(Some(n)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Sends a frame with its header. One that does not fit now is lost, as on a wire.
    pub(crate) fn send(&self, frame: &[u8]) {
        let _ = rustix::io::write(&self.0, frame);
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
