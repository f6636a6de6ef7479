//! Connections that have joined ([`crate::unix`]) and are in two places: what the kernel still has comes first, and whoever reads
//! waits for both.
//!
//! A writer that has begun with the ring never goes back to the kernel, so a reader who has seen that, and then finds the
//! kernel's queue empty, is through with the kernel in this direction. Reads are done here under the lock of the direction; writes
//! that go through the kernel are libc's own calls, counted, so that nobody begins with the ring meanwhile.
//!
//! `unsafe` is allowed here: calls to libc's originals, on the application's buffers.
#![allow(unsafe_code)]

use core::sync::atomic::{Ordering, fence};
use core::time::Duration;

use libc::{iovec, msghdr};
use ring::segment::state;
use ring::{stream, switch};

use crate::ancillary::Wanted;
use crate::buffers::{Buffers, Cursor};
use crate::handle::{Handle, Stream};
use crate::sock::{DEAD, modes, shut};
use crate::stream::ReadHow;
use crate::sys::{Errno, Result};
use crate::unix::Busy;
use crate::{epoll, poll, real, sys, table, wait};

impl Stream {
    /// What we read may come from the kernel.
    #[must_use]
    pub fn is_from_kernel(&self) -> bool {
        self.sock.modes.load(Ordering::Relaxed) & modes::FROM_KERNEL != 0
    }

    /// What we write goes to the kernel.
    #[inline(always)]
    #[must_use]
    pub fn is_to_kernel(&self) -> bool {
        self.sock.shut.load(Ordering::Relaxed) & shut::TO_KERNEL != 0
    }

    /// The other side has joined.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        stream::is_open(self.in_dir, self.conn.generation())
    }

    /// After we have left the kernel in a direction, for the ring of somebody who may be gone.
    fn has_left(&self) {
        // Pairs with the fence in `is_kernels_end`.
        fence(Ordering::SeqCst);
        if self.sock.shut.load(Ordering::Relaxed) & shut::GONE != 0 {
            self.sock.dead.store(DEAD, Ordering::Release);
        }
    }

    /// The other side writes to the ring, or has ended there. Acquire, in both: what it gave to the kernel before is there.
    fn has_switched(&self) -> bool {
        self.has_data() || self.input_state() != state::OPEN
    }
}

/// The other side is gone: was it never in the ring, so that the kernel tells its end? Where we are ourselves decides before
/// what it shows, which it may have taken back.
#[must_use]
pub fn is_kernels_end(s: &Stream) -> bool {
    s.sock.shut.fetch_or(shut::GONE, Ordering::AcqRel);
    // Pairs with the fence in `has_left`: it sees that the other side is gone, or we see that we have left.
    fence(Ordering::SeqCst);
    s.is_from_kernel() && s.is_to_kernel() && !s.is_joined()
}

/// Of these epoll events, which the kernel has to tell; `None`: none at all.
#[must_use]
pub fn kernel_part(s: &Stream, events: u32) -> Option<u32> {
    let theirs = match (s.is_from_kernel(), s.is_to_kernel()) {
        (false, false) => return None,
        (true, true) => u32::MAX,
        (true, false) => !poll::OUT,
        (false, true) => !(poll::IN | poll::PRI | poll::RDHUP),
    };
    Some(events & theirs)
}

/// Before a write of a connection that wrote to the kernel so far: begins with the ring if the other side has joined. Else the
/// call is the kernel's; so is one with ancillary data, for which the kernel is the shorter way.
#[cold]
pub fn before_write(h: &Handle, s: Stream, ancillary: bool) -> core::result::Result<(), Option<Busy>> {
    {
        // In a handler of a signal that came in the middle of this: before any switch.
        let Some(_tx) = s.sock.tx.take() else { return Err(Some(Busy::writer(s.sock))) };
        if !s.current(h) {
            return Err(None);
        }
        let ended = s.sock.shut.load(Ordering::Relaxed) & (shut::WRITE | shut::URGENT) != 0;
        if s.is_to_kernel() {
            let begun = !ended
                && !ancillary
                && s.is_joined()
                && switch::begin(&s.sock.shut, shut::TO_KERNEL, &s.sock.kernel_writers);
            if !begun {
                return Err(Some(Busy::writer(s.sock)));
            }
            s.has_left();
        }
    }
    epoll::handle_changed(h);
    Ok(())
}

/// Lets `send` give something to the kernel if nothing is in the ring yet, although somebody has begun with it: the lock keeps
/// the first record back meanwhile.
pub fn before_ring<T>(s: &Stream, send: impl FnOnce() -> T) -> Option<T> {
    let _tx = s.sock.tx.take()?;
    (s.sock.writer().tail == 0).then(send)
}

/// The other side is through with the kernel: it has read from the ring. Until then, what the kernel gets is taken for data.
#[must_use]
pub fn is_drained(s: &Stream) -> bool {
    s.out_dir.consumed.load(Ordering::Acquire) != 0
}

/// An urgent byte is about to be sent through the kernel, which the other side must not take for the last of it.
pub fn urgent(fd: i32) {
    crate::unix::stays(fd, ring::stats::Reason::Operation);
    if let Some(s) = table::get(fd).and_then(Handle::stream).filter(Stream::is_to_kernel) {
        s.sock.shut.fetch_or(shut::URGENT, Ordering::Relaxed);
    }
}

/// What a read found at the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Got {
    /// All that this call returns.
    All,
    /// What there was, maybe nothing.
    Some,
    /// What there was; the ring goes on there.
    Ring,
}

/// Reads what the kernel has, without waiting.
///
/// # Errors
/// As recvmsg(2).
pub fn read(
    h: &Handle,
    s: &Stream,
    to: &Buffers<'_>,
    at: &mut Cursor,
    how: ReadHow,
    flags: i32,
) -> Result<Got> {
    let got = read_locked(h, s, to, at, how, flags)?;
    if got == Got::Ring && !s.is_from_kernel() {
        epoll::handle_changed(h);
    }
    Ok(got)
}

fn read_locked(
    h: &Handle,
    s: &Stream,
    to: &Buffers<'_>,
    at: &mut Cursor,
    how: ReadHow,
    flags: i32,
) -> Result<Got> {
    let Some(_rx) = s.sock.rx.take() else { return Err(Errno(libc::EAGAIN)) };
    let fd = table::find(h).filter(|_| s.current(h)).ok_or(Errno(libc::EBADF))?;
    if !s.is_from_kernel() {
        return Ok(Got::Ring);
    }
    // Before the look at the kernel's queue.
    let switched = s.has_switched();
    let through = || {
        s.sock.modes.fetch_and(!modes::FROM_KERNEL, Ordering::AcqRel);
        s.has_left();
        Ok(Got::Ring)
    };
    // SAFETY: the place of the call that reads, which outlives it.
    let mut wanted = how.ancillary.map(|mut w| unsafe { w.as_mut() });
    let room = to.total() - at.done;
    match receive(fd, to, at, wanted.as_deref_mut(), flags | libc::MSG_DONTWAIT) {
        Ok(0) if switched && room > 0 => through(),
        Ok(0) => Ok(Got::All),
        Ok(n) => {
            to.pieces(at, n, |_, _| {});
            at.barrier |= wanted.is_some_and(|w| w.has_any());
            let left = unread(fd).saturating_sub(if how.peek { n } else { 0 });
            if at.barrier || !switched || n == room || left > 0 {
                return Ok(if at.barrier { Got::All } else { Got::Some });
            }
            if how.peek { Ok(Got::Ring) } else { through() }
        }
        Err(Errno(libc::EAGAIN)) if switched => through(),
        Err(Errno(libc::EAGAIN)) => Ok(Got::Some),
        Err(_) if switched && s.has_data() => through(),
        Err(e) => Err(e),
    }
}

fn receive(fd: i32, to: &Buffers<'_>, at: &Cursor, wanted: Option<&mut Wanted>, flags: i32) -> Result<usize> {
    const PIECES: usize = 16;
    let mut pieces = [iovec { iov_base: core::ptr::null_mut(), iov_len: 0 }; PIECES];
    let mut walk = *at;
    let mut n = 0;
    for place in &mut pieces {
        let Some((base, len)) = to.next_piece(&mut walk) else { break };
        *place = iovec { iov_base: base.cast(), iov_len: len };
        to.skip(&mut walk, len);
        n += 1;
    }
    // SAFETY: all zero is a valid msghdr.
    let mut m: msghdr = unsafe { core::mem::zeroed() };
    (m.msg_iov, m.msg_iovlen) = (pieces.as_mut_ptr(), n);
    if let Some(w) = &wanted {
        w.ask(&mut m);
    }
    let cloexec = wanted.as_ref().map_or(0, |w| w.wants());
    // SAFETY: the application's buffers, and its room for control messages.
    let got = unsafe { real::recvmsg(fd, &raw mut m, flags | cloexec) };
    let got = usize::try_from(got).map_err(|_| sys::errno())?;
    if let Some(w) = wanted {
        w.take(&m);
    }
    Ok(got)
}

/// Bytes that the kernel has for us.
#[must_use]
pub fn unread(fd: i32) -> usize {
    rustix::io::ioctl_fionread(sys::borrow(fd)).map_or(0, |n| usize::try_from(n).unwrap_or(usize::MAX))
}

/// Sleeps until the kernel or the ring has something to read, or an end.
///
/// # Errors
/// `EINTR`, and `EAGAIN` when the time is over.
pub fn wait_for_input(h: &Handle, s: &Stream, left: Option<Duration>) -> Result<()> {
    if left.is_some_and(|t| t.is_zero()) {
        return Err(Errno(libc::EAGAIN));
    }
    let fd = table::find(h).ok_or(Errno(libc::EBADF))?;
    let ready = || s.has_switched() || s.sock.shut.load(Ordering::Relaxed) & shut::READ != 0;
    match wait::sleep_with(Some(fd), Some(&s.in_dir.rx_wait), &ready, left) {
        Err(Errno(libc::EINTR)) if left.is_none() && sys::handlers_restart() => Ok(()),
        other => other,
    }
}

/// shutdown(2), as far as the kernel is concerned.
pub fn shutdown(fd: i32, s: &Stream, how: i32) {
    let reads = s.is_from_kernel() && how != libc::SHUT_WR;
    let writes = s.is_to_kernel() && how != libc::SHUT_RD;
    let how = match (reads, writes) {
        (false, false) => return,
        (true, false) => libc::SHUT_RD,
        (false, true) => libc::SHUT_WR,
        (true, true) => libc::SHUT_RDWR,
    };
    // SAFETY: no pointers.
    unsafe { real::shutdown(fd, how) };
}
