//! poll(2) and select(2) over connections in user space and kernel descriptors, and what a connection is ready for.
//!
//! `unsafe` is allowed here: the application's arrays.
#![allow(unsafe_code)]

use core::sync::atomic::Ordering;
use core::time::Duration;

use ring::segment::state;
use ring::stats::Sleep;
use ring::wake::SleepWord;

use crate::handle::{Handle, Kind, Stream, touched};
use crate::sock::shut;
use crate::sys::{Errno, Result};
use crate::wait::{Announcements, Asleep, Sleeper, Spin};
use crate::{
    connect, coordinator, dual, epoll, listener, overlay, process, real, stats, sys, table, unix, zerocopy,
};

/// `POLLIN | POLLRDNORM`; the same bits as epoll's.
pub const IN: u32 = 0x41;
/// `POLLOUT | POLLWRNORM`.
pub const OUT: u32 = 0x104;
/// `POLLPRI`.
pub const PRI: u32 = 0x2;
const ERR: u32 = 0x8;
const HUP: u32 = 0x10;
const NVAL: u32 = 0x20;
/// `POLLRDHUP`.
pub const RDHUP: u32 = 0x2000;
/// Told without being asked for.
pub const ALWAYS: u32 = ERR | HUP;

/// Kernel descriptors are looked at once in so many turns of a busy wait.
const KERNEL_TURN: u32 = 128;

/// Linux would be in state CLOSE: reset, or both ends have shut down. Linux knows of a reset by itself; we have to ask whether the
/// coordinator has word of one.
pub fn is_dead(h: &Handle, s: &Stream) -> bool {
    coordinator::pump();
    let theirs = s.input_state();
    let ours = s.out_dir.state.load(Ordering::Relaxed);
    theirs == state::FIN_RST
        || s.end_is_reset(h)
        || s.sock.shut.load(Ordering::Relaxed) & shut::BROKEN != 0
        || (theirs != state::OPEN && ours != state::OPEN)
}

/// What a connection is ready for.
pub fn events(h: &Handle, s: &Stream) -> u32 {
    // AF_UNIX counts the urgent byte as data for poll(2), though no plain read returns it.
    let data = s.readable() || (s.is_unix() && s.has_urgent());
    let bits = s.sock.shut.load(Ordering::Relaxed);
    let input_ended = s.input_ended();
    let reset = s.input_state() == state::FIN_RST || (input_ended && s.end_is_reset(h));
    let output_ended = bits & shut::WRITE != 0 || (s.is_unix() && s.reader_is_gone());
    let mut now = 0;
    if data || input_ended {
        now |= IN;
    }
    if input_ended {
        now |= RDHUP;
    }
    if s.writable() {
        now |= OUT;
    }
    if s.has_urgent() {
        now |= PRI;
    }
    if s.pending_error(h).is_some() || zerocopy::is_pending(s) {
        now |= ERR;
    }
    if (input_ended && output_ended) || (!s.is_unix() && (reset || bits & shut::BROKEN != 0)) {
        now |= HUP;
    }
    now
}

/// What a descriptor of ours is ready for, in `wanted` and [`ALWAYS`]. `None`: it is the kernel's.
fn ours(h: &Handle, wanted: u32) -> Option<u32> {
    match h.kind() {
        Kind::Stream => {
            let _pinned = h.pin()?;
            let s = h.stream()?;
            Some(events(h, &s) & (wanted | ALWAYS))
        }
        // Both worlds: what the kernel says is added.
        Kind::Listener => Some(if listener::ready_in_user(h) { IN & wanted } else { 0 }),
        Kind::Epoll => Some(if epoll::is_ready(h) { IN & wanted } else { 0 }),
        _ => None,
    }
}

/// Not ours, or a connection that is ready for nothing in `wanted`. False says nothing. For who keeps it mapped.
fn is_quiet(h: &Handle, wanted: u32) -> bool {
    match h.kind() {
        Kind::Stream => wanted & OUT == 0 && h.stream().is_some_and(|s| s.is_quiet()),
        Kind::Kernel | Kind::Overlay | Kind::Free => true,
        Kind::Listener | Kind::Epoll => false,
    }
}

/// A set of descriptors of one call.
pub struct Set<'a> {
    /// The application's, or made from its fd_sets.
    pub fds: &'a mut [libc::pollfd],
    /// The same for the kernel, with our connections taken out; one place more, for our own.
    pub kernel: &'a mut [libc::pollfd],
    /// Some were closed while it waited.
    pub closed: bool,
}

/// True if a poll of these needs us.
pub fn concerns_us(fds: &[libc::pollfd]) -> bool {
    fds.iter().any(|p| table::get(p.fd).is_some_and(needs_us))
}

fn needs_us(h: &Handle) -> bool {
    match h.kind() {
        Kind::Stream | Kind::Listener => true,
        Kind::Epoll => epoll::has_regs(h),
        Kind::Overlay => overlay::may_use_ring(h),
        Kind::Kernel => h.was(touched::MOVES),
        Kind::Free => false,
    }
}

fn wanted(p: &libc::pollfd) -> u32 {
    u32::from(p.events.cast_unsigned())
}

impl Set<'_> {
    /// Fills in the kernel's array. True if the kernel has anything in it.
    fn split(&mut self) -> bool {
        let mut any = false;
        for (p, k) in self.fds.iter().zip(self.kernel.iter_mut()) {
            *k = *p;
            k.revents = 0;
            let h = table::get(p.fd).inspect(|h| connect::settled(h));
            match h.and_then(Handle::stream) {
                Some(s) => match dual::kernel_part(&s, wanted(p)) {
                    None => k.fd = -1,
                    Some(theirs) => {
                        k.events = u16::try_from(theirs).unwrap_or(0).cast_signed();
                        any = true;
                    }
                },
                _ => any |= p.fd >= 0,
            }
        }
        any
    }

    /// Gives the kernel what was a connection of ours when the call began, and is not any more. True if there is something.
    fn split_closed(&mut self) -> bool {
        let mut any = false;
        for (p, k) in self.fds.iter().zip(self.kernel.iter_mut()).filter(|(p, k)| k.fd < 0 && p.fd >= 0) {
            if table::get(p.fd).and_then(Handle::stream).is_none() {
                *k = libc::pollfd { revents: 0, ..*p };
                any = true;
            }
        }
        self.closed |= any;
        any
    }

    /// Looks at ours. The number that is ready.
    fn look(&mut self) -> usize {
        let mut n = 0;
        // Most of a large set is quiet. One lock keeps them all mapped, where a pin each would cost more than the looks.
        let mut mapped = None;
        for p in self.fds.iter_mut() {
            let h = table::get(p.fd);
            if h.is_some_and(|h| h.kind() == Kind::Stream) {
                mapped = mapped.or_else(epoll::exclude);
            }
            let now = match h {
                None => 0,
                Some(h) if mapped.is_some() && is_quiet(h, wanted(p)) => 0,
                Some(h) => {
                    mapped = None;
                    ours(h, wanted(p)).unwrap_or(0)
                }
            };
            p.revents = u16::try_from(now & 0xffff).unwrap_or(0).cast_signed();
            n += usize::from(now != 0);
        }
        n
    }

    /// Adds what the kernel said. The number that is ready in all.
    fn merge(&mut self) -> usize {
        let mut n = 0;
        for (p, k) in self.fds.iter_mut().zip(self.kernel.iter()) {
            if k.fd >= 0 {
                p.revents |= k.revents;
            }
            n += usize::from(p.revents != 0);
        }
        n
    }

    /// Something in it is not the kernel's alone, once pipes wait there.
    fn has_ours(&self) -> bool {
        self.fds.iter().any(|p| {
            table::get(p.fd).is_some_and(|h| !matches!(h.kind(), Kind::Overlay | Kind::Kernel) && needs_us(h))
        })
    }

    fn clear(&mut self) {
        for p in self.fds.iter_mut() {
            p.revents = 0;
        }
    }

    fn ask_kernel(
        &mut self,
        timeout: Option<Duration>,
        mask: *const libc::sigset_t,
        extra: Option<i32>,
    ) -> Result<()> {
        let n = self.fds.len();
        let len = match (extra, self.kernel.get_mut(n)) {
            (Some(fd), Some(last)) => {
                *last = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
                n + 1
            }
            _ => n,
        };
        let end = timeout.map(c_timespec);
        let end = end.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
        // SAFETY: `len` elements of ours; the mask is the application's.
        let r = unsafe { real::ppoll(self.kernel.as_mut_ptr(), len as libc::nfds_t, end, mask) };
        if r < 0 {
            return Err(sys::errno());
        }
        self.take_back_edges();
        Ok(())
    }

    /// A set that was slept in may be readable for nothing but an edge of ours.
    fn take_back_edges(&mut self) {
        let readable = |k: &&mut libc::pollfd| k.revents & libc::POLLIN != 0;
        for (p, k) in self.fds.iter().zip(self.kernel.iter_mut()).filter(|(_, k)| readable(k)) {
            let set = table::get(p.fd).filter(|h| h.kind() == Kind::Epoll);
            if set.is_some_and(epoll::take_back_edges) {
                // SAFETY: one pollfd of ours.
                unsafe { real::poll(k, 1, 0) };
            }
        }
    }

    /// Each word that says whom a peer must wake for what we wait for.
    fn each_word(&self, mut act: impl FnMut(&SleepWord)) {
        for p in self.fds.iter() {
            let Some(h) = table::get(p.fd) else { continue };
            if h.kind() == Kind::Epoll {
                epoll::each_word_of(h, &mut act);
            }
            let Some(_pinned) = h.pin() else { continue };
            let Some(s) = h.stream() else { continue };
            act(&s.in_dir.rx_wait);
            if wanted(p) & OUT != 0 {
                act(&s.out_dir.tx_wait);
            }
        }
    }

    /// Announces to every peer that we sleep in the kernel, and runs the barrier that is due.
    fn announce(&self, bell: u32) {
        let mut announced = Announcements::new(bell);
        self.each_word(|word| announced.announce(word));
        // A set in here may have watches that are new.
        let has_sets = self.fds.iter().any(|p| table::get(p.fd).is_some_and(|h| h.kind() == Kind::Epoll));
        if announced.fence(has_sets) {
            self.each_word(|word| announced.settle(word));
        }
    }
}

pub fn c_timespec(d: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(d.as_secs()).unwrap_or(libc::time_t::MAX >> 1),
        tv_nsec: d.subsec_nanos().into(),
    }
}

/// ppoll(2). The number of descriptors that are ready.
///
/// # Errors
/// As ppoll(2).
pub fn wait(set: &mut Set<'_>, timeout: Option<Duration>, mask: *const libc::sigset_t) -> Result<usize> {
    let (mut in_kernel, _young) = loop {
        let in_kernel = set.split();
        if let Some(young) = unix::polled(set.fds.iter().map(|p| p.fd)) {
            break (in_kernel, young);
        }
    };
    let _in_kernel = overlay::polled(set.fds.iter().map(|p| p.fd));
    if !set.has_ours() {
        set.ask_kernel(timeout, mask, None)?;
        set.clear();
        return Ok(set.merge());
    }
    let start = sys::now();
    let mut spin = Spin::new();
    let mut turn = 0u32;
    loop {
        coordinator::pump();
        let mut n = set.look();
        if in_kernel && turn.is_multiple_of(KERNEL_TURN) {
            set.ask_kernel(Some(Duration::ZERO), core::ptr::null(), None)?;
            n = set.merge();
        }
        if n > 0 {
            return Ok(n);
        }
        let left = match timeout {
            Some(Duration::ZERO) if mask.is_null() => return Ok(0),
            // A signal that the mask lets in ends even a call that does not wait.
            Some(Duration::ZERO) => return set.ask_kernel(timeout, mask, None).map(|()| set.merge()),
            Some(t) if turn.is_multiple_of(KERNEL_TURN) => Some(t.saturating_sub(sys::now() - start)),
            other => other,
        };
        if left.is_some_and(|t| t.is_zero()) {
            return Ok(0);
        }
        turn = turn.wrapping_add(1);
        if spin.turn() {
            continue;
        }
        turn = 0;
        let left = timeout.map(|t| t.saturating_sub(sys::now() - start));
        let n = sleep(set, left, mask)?;
        if n > 0 {
            return Ok(n);
        }
        if set.split_closed() {
            in_kernel = true;
        } else if left.is_some_and(|t| t.is_zero()) {
            return Ok(0);
        }
    }
}

/// Sleeps in the kernel. The number that is ready; 0: look again.
fn sleep(set: &mut Set<'_>, timeout: Option<Duration>, mask: *const libc::sigset_t) -> Result<usize> {
    let timeout = process::patient(timeout);
    let Some(sleeper) = Sleeper::acquire() else {
        let slice = Duration::from_millis(1);
        set.ask_kernel(Some(timeout.map_or(slice, |t| t.min(slice))), mask, None)?;
        set.look();
        return Ok(set.merge());
    };
    let _noted = sleeper.note();
    let _asleep = Asleep::announce();
    let _noted_asleep = Asleep::note();
    sleeper.keep_open(set.fds.iter().filter_map(|p| table::get(p.fd)).filter(|h| h.kind() == Kind::Stream));
    sleeper.drain();
    set.announce(sleeper.bell());
    if coordinator::arm() || set.look() > 0 {
        return Ok(0);
    }
    let shown = stats::asleep(Sleep::Poll, None);
    let before = sys::now();
    let result = set.ask_kernel(timeout, mask, Some(sleeper.fd()));
    drop(shown);
    Spin::learn(sys::now() - before);
    sleeper.drain();
    result?;
    set.look();
    Ok(set.merge())
}

/// select(2)'s sets as a poll array.
pub struct Select {
    /// Descriptors below this.
    pub n: usize,
    /// Wanted: readable, writable, exceptional; any may be null.
    pub sets: [*mut libc::fd_set; 3],
}

/// Events that select(2) counts for each of its sets (Linux fs/select.c documents them in select(2)).
const SELECT_IN: u32 = IN | HUP | ERR | NVAL;
const SELECT_OUT: u32 = OUT | ERR | NVAL;
const SELECT_EXCEPT: u32 = PRI | NVAL;

impl Select {
    fn has(&self, set: usize, fd: usize) -> bool {
        let Some(p) = self.sets.get(set).copied().filter(|p| !p.is_null()) else { return false };
        // SAFETY: the application's set; `fd` is below its own bound `n`. Read as words, since a set may be larger than fd_set.
        let word = unsafe { *p.cast::<u64>().add(fd / 64) };
        word >> (fd % 64) & 1 != 0
    }

    fn put(&self, set: usize, fd: usize, on: bool) {
        let Some(p) = self.sets.get(set).copied().filter(|p| !p.is_null()) else { return };
        // SAFETY: as in `has`.
        unsafe {
            let word = p.cast::<u64>().add(fd / 64);
            *word = if on { *word | 1 << (fd % 64) } else { *word & !(1 << (fd % 64)) };
        }
    }

    /// Some descriptor in the sets is ours.
    pub fn concerns_us(&self) -> bool {
        (0..self.n).any(|fd| {
            (0..3).any(|set| self.has(set, fd))
                && i32::try_from(fd).ok().and_then(table::get).is_some_and(needs_us)
        })
    }

    /// Descriptors in any set, as poll wants them; the number of them.
    pub fn fill(&self, out: &mut [libc::pollfd]) -> usize {
        let mut n = 0;
        for fd in 0..self.n {
            let mut events = 0i16;
            for (set, bits) in [(0, libc::POLLIN), (1, libc::POLLOUT), (2, libc::POLLPRI)] {
                if self.has(set, fd) {
                    events |= bits;
                }
            }
            if events == 0 {
                continue;
            }
            let (Some(place), Ok(fd)) = (out.get_mut(n), i32::try_from(fd)) else { break };
            *place = libc::pollfd { fd, events, revents: 0 };
            n += 1;
        }
        n
    }

    /// Puts the result into the sets; the number of bits.
    ///
    /// # Errors
    /// `EBADF` if a descriptor was not open when the call began.
    pub fn take_result(&self, set: &Set<'_>) -> Result<usize> {
        let fds = &*set.fds;
        if !set.closed && fds.iter().any(|p| p.revents & libc::POLLNVAL != 0) {
            return Err(Errno(libc::EBADF));
        }
        let mut bits = 0;
        for p in fds {
            let (Ok(fd), now) = (usize::try_from(p.fd), u32::from(p.revents.cast_unsigned())) else {
                continue;
            };
            for (set, asked, mask) in [
                (0, libc::POLLIN, SELECT_IN),
                (1, libc::POLLOUT, SELECT_OUT),
                (2, libc::POLLPRI, SELECT_EXCEPT),
            ] {
                let on = p.events & asked != 0 && now & mask != 0;
                bits += usize::from(on);
                self.put(set, fd, on);
            }
        }
        Ok(bits)
    }
}
