//! Ancillary data of `AF_UNIX` connections in user space: descriptors and credentials (unix(7)).
//!
//! They go over the kernel's own connection beside a byte that carries them, so rights, limits, truncation and errors are the
//! kernel's. The record in the ring that they belong to is of a kind of its own, and published afterwards: who comes to it
//! finds the carrier there (SPEC 4.9).
//!
//! `unsafe` is allowed here: the application's messages.
#![allow(unsafe_code)]

use core::ffi::c_void;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use libc::{cmsghdr, iovec, msghdr};

use crate::buffers::{Buffers, Cursor};
use crate::handle::{Handle, Stream};
use crate::sock::modes;
use crate::stream::ReadHow;
use crate::sys::{Errno, NoSignals, Result};
use crate::{dual, io, options, real, rights, sys, table};

/// What a recvmsg(2) wants beside the bytes.
pub struct Wanted {
    control: *mut c_void,
    room: usize,
    cloexec: i32,
    /// What it got.
    length: usize,
    flags: i32,
}

/// recvmsg(2) of an `AF_UNIX` connection: the bytes, and what `msg_control` and `msg_flags` say then.
///
/// # Errors
/// As recvmsg(2).
///
/// # Safety
/// The application's message.
pub unsafe fn receive(h: &Handle, s: &Stream, m: &mut msghdr, to: &Buffers<'_>, flags: i32) -> Result<usize> {
    let room = if m.msg_control.is_null() { 0 } else { m.msg_controllen };
    let cloexec = flags & libc::MSG_CMSG_CLOEXEC;
    let mut wanted = Wanted { control: m.msg_control, room, cloexec, length: 0, flags: 0 };
    let fetched = s.sock.modes.load(Ordering::Relaxed);
    let n = io::receive_with(h, s, to, flags, Some(NonNull::from_mut(&mut wanted)))?;
    if wanted.length == 0 && wanted.flags == 0 && fetched & modes::PASS_CREDENTIALS != 0 && n > 0 {
        wanted.say_who(h);
    }
    m.msg_controllen = wanted.length;
    m.msg_flags = wanted.flags | cloexec;
    Ok(n)
}

/// Under the reading lock, at a record that ancillary data belongs to: takes it from the kernel. Nobody who does not want it
/// keeps it.
#[cold]
pub fn fetch(h: &Handle, how: ReadHow) {
    let Some(fd) = table::find(h) else { return };
    let mut byte = 0u8;
    let mut one = iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: all zero is a valid msghdr.
    let mut m: msghdr = unsafe { core::mem::zeroed() };
    m.msg_iov = &raw mut one;
    m.msg_iovlen = 1;
    let mut flags = libc::MSG_DONTWAIT | if how.peek { libc::MSG_PEEK } else { 0 };
    // SAFETY: the place of the call that reads, which outlives it.
    let wanted = how.ancillary.map(|mut w| unsafe { w.as_mut() });
    if let Some(w) = &wanted {
        w.ask(&mut m);
        flags |= w.wants();
    }
    // SAFETY: a byte of ours, and the application's room for control messages.
    let got = unsafe { real::recvmsg(fd, &raw mut m, flags) };
    if let Some(w) = wanted.filter(|_| got > 0) {
        w.take(&m);
    }
}

impl Wanted {
    /// Into a message header.
    pub fn ask(&self, m: &mut msghdr) {
        (m.msg_control, m.msg_controllen) = (self.control, self.room);
    }

    /// Flags that go with it.
    pub fn wants(&self) -> i32 {
        self.cloexec
    }

    /// What recvmsg(2) has left in the header.
    pub fn take(&mut self, m: &msghdr) {
        self.length = m.msg_controllen;
        self.flags = m.msg_flags & libc::MSG_CTRUNC;
    }

    /// Something came, or there was no room for it.
    pub fn has_any(&self) -> bool {
        self.length != 0 || self.flags != 0
    }

    /// `SCM_CREDENTIALS` of plain bytes, which no carrier belongs to: the peer's, as `SO_PEERCRED` has them.
    fn say_who(&mut self, h: &Handle) {
        let Some(who) = table::find(h).and_then(options::kernel_peer_credentials) else { return };
        // SAFETY: three words are so many bytes.
        let bytes = unsafe { core::slice::from_raw_parts(who.as_ptr().cast(), size_of_val(&who)) };
        // SAFETY: the application's room.
        (self.length, self.flags) = unsafe { put(self.control, self.room, libc::SCM_CREDENTIALS, bytes) };
    }
}

/// Writes a control message of `SOL_SOCKET`, cut to `room`, as the kernel does (put_cmsg): bytes of control data, and flags.
///
/// # Safety
/// `control` has `room` bytes.
pub unsafe fn put(control: *mut c_void, room: usize, kind: i32, data: &[u8]) -> (usize, i32) {
    let head = size_of::<cmsghdr>();
    let whole = head + data.len();
    if room < head {
        return (0, libc::MSG_CTRUNC);
    }
    let length = room.min(whole);
    // SAFETY: by contract; no more than `length` bytes are written.
    unsafe {
        let mut header: cmsghdr = core::mem::zeroed();
        header.cmsg_len = length;
        header.cmsg_level = libc::SOL_SOCKET;
        header.cmsg_type = kind;
        control.cast::<cmsghdr>().write_unaligned(header);
        core::ptr::copy_nonoverlapping(data.as_ptr(), control.cast::<u8>().add(head), length - head);
    }
    let flags = if length < whole { libc::MSG_CTRUNC } else { 0 };
    (room.min(whole.next_multiple_of(size_of::<usize>())), flags)
}

/// sendmsg(2) with control messages on an `AF_UNIX` connection.
///
/// # Errors
/// As sendmsg(2).
///
/// # Safety
/// The application's message.
pub unsafe fn send(h: &Handle, s: &Stream, m: &msghdr, from: &Buffers<'_>, flags: i32) -> Result<usize> {
    let fd = table::find(h).ok_or(Errno(libc::EBADF))?;
    if from.total() == 0 {
        // Nothing is sent, but what is wrong with it is said. SAFETY: by contract.
        let sent = unsafe { real::sendmsg(fd, m, flags) };
        return usize::try_from(sent).map_err(|_| sys::errno());
    }
    // SAFETY: by contract.
    let mut substitute = unsafe { rights::substitute(m) }?;
    let mut carrier = match &mut substitute {
        // SAFETY: by contract: it was made for this message.
        Some(other) => unsafe { other.message(m) },
        // SAFETY: plain data.
        None => unsafe { core::ptr::read(m) },
    };
    // SAFETY: the application's message, with control messages that anybody can use.
    match unsafe { send_before_ring(fd, s, &carrier, flags) } {
        Ok(None) => {}
        Ok(Some(n)) if n == from.total() || is_nonblocking(s, flags) => return Ok(n),
        Ok(Some(n)) => {
            let mut at = Cursor::default();
            from.pieces(&mut at, n, |_, _| {});
            return io::send_rest(h, s, from, flags, at);
        }
        Err(e) => return Err(failed(e, flags)),
    }
    let mut byte = 0u8;
    let mut one = iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    carrier.msg_iov = &raw mut one;
    carrier.msg_iovlen = 1;
    let carry = || {
        // SAFETY: a byte of ours, and the application's control messages.
        match unsafe { real::sendmsg(fd, &raw const carrier, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) } {
            n if n < 0 => Err(sys::errno()),
            _ => Ok(()),
        }
    };
    while !dual::is_drained(s) && !s.reader_is_gone() {
        if is_nonblocking(s, flags) {
            return Err(Errno(libc::EAGAIN));
        }
        // SAFETY: no descriptors: a nap.
        if unsafe { real::poll(core::ptr::null_mut(), 0, 1) } < 0 {
            return Err(sys::errno());
        }
    }
    let mut at = Cursor::default();
    loop {
        let written = {
            let _no_signals = NoSignals::new();
            h.try_write_ancillary(s, from, &mut at, carry)
        };
        match written {
            Ok(true) => return io::send_rest(h, s, from, flags, at),
            Ok(false) => io::wait_for_space(h, s, flags)?,
            Err(Errno(libc::EAGAIN)) => wait_for_carriers(fd, s, flags)?,
            Err(e) => return Err(failed(e, flags)),
        }
    }
}

fn is_nonblocking(s: &Stream, flags: i32) -> bool {
    flags & libc::MSG_DONTWAIT != 0 || s.sock.is_nonblocking()
}

/// An error that a call ends with, and the signal that goes with it.
fn failed(e: Errno, flags: i32) -> Errno {
    if e.0 == libc::EPIPE && flags & libc::MSG_NOSIGNAL == 0 {
        sys::raise_sigpipe();
    }
    e
}

/// As long as nothing is in the ring, a message with ancillary data is the kernel's, or as much of it as there is room for.
/// `None`: something is in the ring.
///
/// # Safety
/// A message of the application's.
unsafe fn send_before_ring(fd: i32, s: &Stream, m: &msghdr, flags: i32) -> Result<Option<usize>> {
    let send = || {
        // SAFETY: by contract.
        let sent = unsafe { real::sendmsg(fd, m, flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        usize::try_from(sent).map_err(|_| sys::errno())
    };
    loop {
        let sent = {
            let _no_signals = NoSignals::new();
            dual::before_ring(s, send)
        };
        match sent.transpose() {
            Err(Errno(libc::EAGAIN)) => wait_for_carriers(fd, s, flags)?,
            other => return other,
        }
    }
}

/// The kernel holds as many carriers as it may: until the reader has taken some.
fn wait_for_carriers(fd: i32, s: &Stream, flags: i32) -> Result<()> {
    if is_nonblocking(s, flags) {
        return Err(Errno(libc::EAGAIN));
    }
    let mut set = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd of ours.
    if unsafe { real::poll(&raw mut set, 1, -1) } < 0 { Err(sys::errno()) } else { Ok(()) }
}
