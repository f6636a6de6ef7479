//! What needs the C library: a descriptor that we inherited, signals as a descriptor, and a last act at exit.
//!
//! `unsafe` is allowed here for these calls.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Takes over descriptor `number`, which whoever started us left open, and keeps it from our children.
///
/// To be called once for a number, early: nothing else of this program may own it.
///
/// # Errors
/// `EBADF` if it is not open; 0, 1 and 2 are refused with `EINVAL`.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: F_SETFD takes any number and an int; it fails for a number that is not open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: open (checked above), and the caller says that nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Turns `SIGTERM` and `SIGINT` into a descriptor that becomes readable. Threads started later inherit that the
/// signals do nothing else.
///
/// # Errors
/// The kernel's.
pub fn end_signals() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set, the others change or read it; all arguments are valid.
    let fd = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
        let error = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A socket that becomes readable when a frame comes in on a link, whoever else takes it.
///
/// # Errors
/// The kernel's; without `CAP_NET_RAW`, `EPERM`.
pub fn frames_of(if_index: u32) -> io::Result<OwnedFd> {
    let kinds = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers. Of no protocol, until it is bound to a link.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kinds, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else knows.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // What we send is no news.
    let yes: libc::c_int = 1;
    let room = libc::socklen_t::try_from(size_of_val(&yes)).unwrap_or(0);
    // SAFETY: an int of that size.
    let ignored = unsafe {
        libc::setsockopt(fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, (&raw const yes).cast(), room)
    };
    // SAFETY: all zero is a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::c_ushort::try_from(libc::AF_PACKET).unwrap_or(0);
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL).unwrap_or(0).to_be();
    address.sll_ifindex = i32::try_from(if_index).unwrap_or(0);
    let room = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
    // SAFETY: an address of that size.
    if ignored != 0 || unsafe { libc::bind(fd, (&raw const address).cast(), room) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Classic BPF (socket(7), `SO_ATTACH_FILTER`; bpf(4) of the BSDs): every frame but TCP's, with IPv4 or IPv6.
const NOT_TCP: [libc::sock_filter; 9] = [
    instruction(0x28, 0, 0, 12),     // ldh [12]: the EtherType
    instruction(0x15, 0, 2, 0x0800), // IPv4?
    instruction(0x30, 0, 0, 23),     // ldb [23]: its protocol
    instruction(0x15, 4, 3, 6),
    instruction(0x15, 0, 2, 0x86dd), // IPv6?
    instruction(0x30, 0, 0, 20),     // ldb [20]: its next header
    instruction(0x15, 1, 0, 6),
    instruction(0x06, 0, 0, u32::MAX), // all of it
    instruction(0x06, 0, 0, 0),        // none
];

const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// The packet sockets of this process, the port's among them, get no TCP: nobody here takes it from a port, and beside a data path of
/// the kernel's TCP on the same link they would get a copy of each of its frames. Where it can't be done, they get it.
pub fn keep_tcp_out() {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else { return };
    let len = u16::try_from(NOT_TCP.len()).unwrap_or(0);
    for fd in open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let mut domain: libc::c_int = 0;
        let mut room = libc::socklen_t::try_from(size_of_val(&domain)).unwrap_or(0);
        let program = libc::sock_fprog { len, filter: NOT_TCP.as_ptr().cast_mut() };
        let bytes = libc::socklen_t::try_from(size_of_val(&program)).unwrap_or(0);
        // SAFETY: room for an int; a program of that length, which the kernel copies.
        unsafe {
            let at = (&raw mut domain).cast();
            let known = libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_DOMAIN, at, &raw mut room) == 0;
            if known && domain == libc::AF_PACKET {
                let at = (&raw const program).cast();
                libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, at, bytes);
            }
        }
    }
}

/// See [`remove_at_exit`].
static DIR_TO_REMOVE: OnceLock<PathBuf> = OnceLock::new();

/// DPDK leaves its runtime directory behind, and removes the telemetry socket in it only at exit. Registers that the
/// directory named by [`set_dir_to_remove`], and the one above it, are removed after that if they are empty: another
/// instance may use them.
///
/// # Errors
/// The C library has no room for the registration.
pub fn remove_at_exit() -> io::Result<()> {
    extern "C" fn remove() {
        if let Some(dir) = DIR_TO_REMOVE.get() {
            for dir in dir.ancestors().take(2) {
                // Not empty, or not ours: fine.
                let _ = std::fs::remove_dir(dir);
            }
        }
    }
    // SAFETY: `remove` needs nothing that ends before the process does, and does not unwind.
    if unsafe { libc::atexit(remove) } == 0 { Ok(()) } else { Err(io::ErrorKind::OutOfMemory.into()) }
}

/// Which directory [`remove_at_exit`] means. The first call counts.
pub fn set_dir_to_remove(dir: &Path) {
    let _ = DIR_TO_REMOVE.set(dir.to_owned());
}
