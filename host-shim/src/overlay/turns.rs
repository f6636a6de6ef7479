//! Reading and writing an end: agreeing to the ring, waiting for the other end, and the ways between ring and kernel.
//!
//! `unsafe` is allowed here: libc's original calls on the application's buffers, and the ring's bytes as slices.
#![allow(unsafe_code)]

use core::sync::atomic::Ordering;
use core::time::Duration;
use std::io::IoSlice;

use ring::stats::{Reason, SocketState};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};

use super::channel::{Busy, CAPACITY, Channel, KERNEL, NEVER, RING, Role, Wrote};
use super::{REFUSED, SHOWN, View, agreed, is_libcs, of};
use crate::buffers::{Buffers, Cursor};
use crate::sys::Errno;
use crate::{config, fds, process, real, stats, sys};

/// Reads or writes by our calls after which a process agrees to use the ring.
const CALLS_BEFORE_AGREEING: u32 = 16;
/// Spin rounds before a caller asks whether it may wait at all: about a microsecond.
const ROUNDS_BEFORE_FLAGS: u32 = 20;
/// Spin rounds before the processor is offered to others: half a microsecond, as such an offer takes when nobody takes it.
const ROUNDS_BEFORE_YIELD: u32 = 16;
/// How many times longer some waits are.
const LONG_WAIT: u32 = 8;
/// Longest wait for the other end.
const WAIT_MAX: Duration = Duration::from_millis(20);

impl View {
    /// This process agrees to use the ring here. Counts the calls that lead there.
    fn agrees(&self) -> bool {
        if self.end.has(agreed(self.role)) {
            return true;
        }
        let calls = self.end.calls.load(Ordering::Relaxed);
        self.end.calls.store(calls.saturating_add(1), Ordering::Relaxed);
        calls >= CALLS_BEFORE_AGREEING && !self.end.has(REFUSED) && self.agree()
    }

    #[cold]
    fn agree(&self) -> bool {
        if process::is_borrowed() {
            return false;
        }
        let for_stdio = (0..=2).any(|fd| is_libcs(fd) && of(fd).is_some_and(|h| core::ptr::eq(h, self.h)));
        let can = !for_stdio
            && process::ensure_attached()
            && (self.role == Role::Writer || self.reopen().is_some());
        if !can {
            self.end.state.fetch_or(REFUSED, Ordering::AcqRel);
            return false;
        }
        if self.end.state.fetch_or(agreed(self.role), Ordering::AcqRel) & agreed(self.role) == 0 {
            self.channel.agree(self.role);
        }
        true
    }

    pub(super) fn disagree(&self) {
        self.end.calls.store(0, Ordering::Relaxed);
        if self.end.state.fetch_and(!agreed(self.role), Ordering::AcqRel) & agreed(self.role) != 0 {
            self.channel.disagree(self.role);
        }
    }

    /// Bytes go through the ring from now on: `ps` shows it.
    fn show(&self) {
        if self.end.state.fetch_or(SHOWN, Ordering::AcqRel) & SHOWN == 0 {
            let family_type = self.h.family_type.load(Ordering::Relaxed);
            stats::show(self.h.index(), self.fd, family_type, SocketState::Idle, Reason::None);
            stats::set_state(self.h.index(), SocketState::User, Reason::None, None);
        }
    }

    #[cold]
    pub(super) fn read_slow(&self, to: &Buffers<'_>, native: &dyn Fn() -> isize) -> isize {
        loop {
            match self.channel.mode() {
                RING => {
                    self.show();
                    match self.channel.read(to, &mut Cursor::default()) {
                        Some(0) => {}
                        Some(n) => {
                            stats::received(self.h.index(), n);
                            return n.cast_signed();
                        }
                        // A signal handler that interrupted a read of this very end.
                        None if self.channel.mode() == RING => return native(),
                        None => continue,
                    }
                    if let Some(result) = self.wait_for_bytes(native) {
                        return result;
                    }
                }
                KERNEL if self.agrees() => {
                    if self.channel.is_due() {
                        self.channel.want();
                        if self.is_quiet() && self.enter_ring() {
                            continue;
                        }
                    }
                    let Some(_busy) = self.channel.enter_kernel(Role::Reader) else { continue };
                    return self.by_kernel(native());
                }
                _ => return self.by_kernel(native()),
            }
        }
    }

    /// The ring is empty: waits a moment for bytes, then goes back to the kernel. A result if the call ends here.
    fn wait_for_bytes(&self, native: &dyn Fn() -> isize) -> Option<isize> {
        let mut wait = Wait::new(Some(self.channel));
        let mut round = 0;
        while self.channel.available() == 0 && self.channel.mode() == RING {
            round += 1;
            if round == ROUNDS_BEFORE_FLAGS && is_nonblocking(self.fd) {
                // The kernel knows whether anybody writes at all. Who does has written before it closed.
                let got = native();
                return (got != 0 || self.channel.available() == 0).then_some(got);
            }
            if self.channel.is_deserted(Role::Writer) || !wait.turn() {
                if !self.leave_if_empty() {
                    rustix::thread::sched_yield();
                }
                break;
            }
        }
        None
    }

    #[cold]
    pub(super) fn write_slow(&self, from: &Buffers<'_>, mut at: Cursor, native: &dyn Fn() -> isize) -> isize {
        if at.done > 0 {
            stats::sent(self.h.index(), at.done);
        }
        loop {
            match self.channel.mode() {
                RING => {
                    self.show();
                    let before = at.done;
                    let wrote = self.channel.write(from, &mut at, || self.somebody_reads());
                    if at.done > before {
                        stats::sent(self.h.index(), at.done - before);
                    }
                    match wrote {
                        Wrote::All => return at.done.cast_signed(),
                        Wrote::Full => {
                            if let Some(result) = self.wait_for_room(from.total(), at.done) {
                                return result;
                            }
                        }
                        Wrote::Kernel if self.channel.mode() != RING => {}
                        Wrote::Kernel if self.channel.is_deserted(Role::Reader) || !self.somebody_reads() => {
                            self.leave_surely(KERNEL);
                        }
                        // A signal handler that interrupted a write to this very end.
                        Wrote::Kernel => return self.write_rest(from, at, native),
                    }
                }
                KERNEL if self.agrees() => {
                    if self.channel.is_wanted() {
                        self.wait_for_reader();
                    }
                    let Some(_busy) = self.channel.enter_kernel(Role::Writer) else { continue };
                    return self.write_rest(from, at, native);
                }
                _ => return self.write_rest(from, at, native),
            }
        }
    }

    /// A reader wants the ring: it has to empty the kernel's object first, and the ring is there, or it sleeps and we don't wait.
    fn wait_for_reader(&self) {
        let mut wait = Wait::new(None);
        let mut round = 0u32;
        while self.channel.mode() == KERNEL {
            round += 1;
            let look = round.is_multiple_of(ROUNDS_BEFORE_FLAGS) && is_empty(self.fd);
            if look && (self.channel.reader_is_in_kernel() || self.enter_ring()) {
                return;
            }
            if !wait.turn() {
                self.channel.postpone();
                return;
            }
        }
    }

    /// The ring is full: waits a moment for room, then goes back to the kernel. A result if the call ends here.
    fn wait_for_room(&self, total: usize, done: usize) -> Option<isize> {
        let mut wait = Wait::new(Some(self.channel));
        let mut round = 0;
        while !self.channel.has_room(total - done) && self.channel.mode() == RING {
            round += 1;
            if round == ROUNDS_BEFORE_FLAGS && is_nonblocking(self.fd) && self.somebody_reads() {
                if done > 0 {
                    return Some(done.cast_signed());
                }
                sys::set_errno(Errno(libc::EAGAIN));
                return Some(-1);
            }
            if self.channel.is_deserted(Role::Reader) || !wait.turn() {
                self.leave_surely(KERNEL);
            }
        }
        None
    }

    /// Counts what a call on the kernel's object has moved, if other bytes of this end went through the ring.
    fn by_kernel(&self, result: isize) -> isize {
        if let (true, Ok(n @ 1..)) = (self.end.has(SHOWN), usize::try_from(result)) {
            stats::moved_by_kernel(self.role == Role::Writer, n);
        }
        result
    }

    /// What is left of a write goes through the kernel. The result of the whole call.
    fn write_rest(&self, from: &Buffers<'_>, mut at: Cursor, native: &dyn Fn() -> isize) -> isize {
        if at.done == 0 {
            return self.by_kernel(native());
        }
        while let Some((base, len)) = from.next_piece(&mut at) {
            // SAFETY: the application's buffer.
            let n = self.by_kernel(unsafe { real::write(self.fd, base.cast(), len) });
            let Ok(n) = usize::try_from(n) else { break };
            from.skip(&mut at, n);
            if n < len {
                break;
            }
        }
        at.done.cast_signed()
    }

    /// Changes to the ring if that is possible now.
    fn enter_ring(&self) -> bool {
        let size = rustix::pipe::fcntl_getpipe_size(sys::borrow(self.fd));
        if size.is_ok_and(|n| n != CAPACITY) {
            self.leave_surely(NEVER);
            return false;
        }
        self.channel.enter_ring(|| is_empty(self.fd))
    }

    /// Back to the kernel, unless bytes have come.
    fn leave_if_empty(&self) -> bool {
        self.channel.leave_ring(KERNEL, |_| false)
    }

    /// Back to the kernel with all that is in the ring.
    pub(super) fn leave_surely(&self, mode: u32) {
        while !self.channel.leave_ring(mode, |pieces| self.carry(pieces)) {
            // The object has bytes of somebody who uses it behind our back: the reader will take them.
            let _ = rustix::event::poll(&mut [], Some(&sys::timespec(Duration::from_millis(1))));
        }
    }

    pub(super) fn enter_kernel_surely(&self) -> Busy {
        loop {
            if let Some(busy) = self.channel.enter_kernel(self.role) {
                return busy;
            }
            self.leave_surely(KERNEL);
        }
    }

    /// Puts what is in the ring into the kernel's object. All of it or nothing: it is empty, and as large as the ring.
    fn carry(&self, pieces: &[libc::iovec]) -> bool {
        if self.role == Role::Writer && !self.somebody_reads() {
            // As when a pipe's last reader goes.
            return true;
        }
        if !is_empty(self.fd) {
            return false;
        }
        let mut slices = [IoSlice::new(&[]), IoSlice::new(&[])];
        let mut total = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            // SAFETY: a part of the ring, under both locks.
            *slice = IoSlice::new(unsafe {
                core::slice::from_raw_parts(piece.iov_base.cast::<u8>(), piece.iov_len)
            });
            total += piece.iov_len;
        }
        let written = match self.role {
            Role::Writer => rustix::io::writev(sys::borrow(self.fd), &slices),
            Role::Reader => match self.reopen() {
                Some(writer) => rustix::io::writev(writer, &slices),
                None => return false,
            },
        };
        written.is_ok_and(|n| n == total)
    }

    /// A writing end of the pipe that we read from.
    fn reopen(&self) -> Option<rustix::fd::OwnedFd> {
        let mut name = [0; 32];
        let path = fds::path(self.fd, &mut name)?;
        rustix::fs::open(path, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).ok()
    }

    /// The writing end's word: somebody may still read.
    pub(super) fn somebody_reads(&self) -> bool {
        !events(self.fd, PollFlags::empty()).intersects(PollFlags::ERR | PollFlags::HUP)
    }

    /// The reading end's word: nothing to read, and somebody may still write.
    fn is_quiet(&self) -> bool {
        events(self.fd, PollFlags::IN).is_empty()
    }
}

/// A wait for the other end, counted in turns of the processor: where others want it, each turn lets them run, the other end
/// among them, however long that takes; alone, it is about as long as other waits ([`crate::wait::Spin`]).
///
/// Some waits in the ring are longer, if it has served many calls since the last such wait: in a pipeline, the other end has to wait
/// itself for somebody who has no processor now.
struct Wait<'a> {
    /// The ring, until its longer wait is used up.
    ring: Option<&'a Channel>,
    round: u32,
    yields: u32,
    yields_max: u32,
    start: Option<Duration>,
}

impl<'a> Wait<'a> {
    fn new(ring: Option<&'a Channel>) -> Self {
        Wait { ring, round: 0, yields: 0, yields_max: config::spin_us_max(), start: None }
    }

    /// False: it has been long enough.
    fn turn(&mut self) -> bool {
        self.round += 1;
        if !self.round.is_multiple_of(ROUNDS_BEFORE_YIELD) {
            core::hint::spin_loop();
            return true;
        }
        let now = sys::now();
        let start = *self.start.get_or_insert(now);
        if now - start > WAIT_MAX || (self.yields >= self.yields_max && !self.is_prolonged()) {
            return false;
        }
        self.yields += 1;
        rustix::thread::sched_yield();
        true
    }

    fn is_prolonged(&mut self) -> bool {
        let prolonged = self.ring.take().is_some_and(Channel::deserves_patience);
        if prolonged {
            self.yields_max = self.yields_max.saturating_mul(LONG_WAIT);
        }
        prolonged
    }
}

/// What the kernel says about a descriptor, without waiting.
fn events(fd: i32, wanted: PollFlags) -> PollFlags {
    let mut set = [PollFd::from_borrowed_fd(sys::borrow(fd), wanted)];
    let _ = rustix::event::poll(&mut set, Some(&sys::timespec(Duration::ZERO)));
    let [p] = set;
    p.revents()
}

/// Nothing is in the kernel's object.
fn is_empty(fd: i32) -> bool {
    rustix::io::ioctl_fionread(sys::borrow(fd)).is_ok_and(|n| n == 0)
}

fn is_nonblocking(fd: i32) -> bool {
    rustix::fs::fcntl_getfl(sys::borrow(fd)).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK))
}
