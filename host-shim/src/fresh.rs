//! Sockets that are not connected yet. One that will be a connection in user space needs no socket of the kernel's, but a face
//! ([`crate::faces`]); one that the kernel will be asked for anything but options and flags needs its own, and having a face first costs a
//! little. So after a socket of this process has become a connection in user space, the next ones get a face; and when one had to be given its
//! own, first some more have to.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::handle::{Handle, Kind, touched};
use crate::sys::{self, Result};
use crate::{faces, ports, process, socket, table};

/// Sockets of their own that have to become connections in user space before others get a face. Threads that count at once count less.
static TO_GO: AtomicU32 = AtomicU32::new(1);
/// As many, after the next one that has a face in vain.
static NEXT_TIME: AtomicU32 = AtomicU32::new(1);
const TO_GO_MAX: u32 = 1024;

/// A connection in user space was made of the socket `h`, in the namespace that the coordinator takes us for.
pub fn hit(h: &Handle) {
    let (counter, least) = if h.was(touched::COMMON) { (&NEXT_TIME, 1) } else { (&TO_GO, 0) };
    let count = counter.load(Ordering::Relaxed);
    if count > least {
        counter.store(count - 1, Ordering::Relaxed);
    }
}

/// A socket had to be given a file of its own before it was connected.
pub fn missed() {
    let next = NEXT_TIME.load(Ordering::Relaxed);
    TO_GO.store(next, Ordering::Relaxed);
    NEXT_TIME.store((next * 2).min(TO_GO_MAX), Ordering::Relaxed);
}

/// As socket(2), with a face. `None`: libc's socket(2) is to be called.
pub fn open(domain: i32, ty: i32, protocol: i32) -> Option<Result<i32>> {
    let flags = ty & (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
    let is_tcp = matches!(domain, libc::AF_INET | libc::AF_INET6)
        && ty & !flags == libc::SOCK_STREAM
        && matches!(protocol, 0 | libc::IPPROTO_TCP);
    let may = is_tcp && TO_GO.load(Ordering::Relaxed) == 0 && process::is_attached();
    if !may || ports::are_scarce(domain) || process::is_borrowed() {
        return None;
    }
    let (fd, face) = match faces::fresh((domain, libc::SOCK_STREAM), flags) {
        Ok(opened) => opened,
        Err(e) => return Some(Err(e)),
    };
    socket::made_with(fd, domain, ty, face);
    if table::get(fd).is_none() {
        // A number that we can't know: what it stands for must not be one of many.
        sys::close(fd);
        return None;
    }
    Some(Ok(fd))
}

/// It has a face, and is no connection.
pub fn is_one(h: &Handle) -> bool {
    h.was(touched::COMMON) && h.kind() == Kind::Kernel
}

/// Before the kernel does something to `fd` that leaves a trace: `None` if it may, or what the call returns.
pub fn refused(fd: i32) -> Option<i32> {
    table::get(fd).filter(|h| is_one(h)).and_then(|_| faces::refused(fd))
}
