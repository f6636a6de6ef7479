//! epoll_wait(2) over both worlds: look, spin, sleep; and the calls into the kernel's epoll that go with it.
//!
//! `unsafe` is allowed here: the application's event array and libc's originals.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use ring::stats::Sleep;

use crate::handle::Handle;
use crate::sys::{Errno, Result};
use crate::wait::{Asleep, Sleeper, Spin};
use crate::{coordinator, epoll, poll, process, real, socket, stats, sys, wait};

/// Ticks between two looks at the kernel while connections in user space keep an instance busy (about 30 µs).
const KERNEL_TICKS: u64 = 80_000;
/// Turns of a busy wait between two looks at the kernel.
const KERNEL_TURN: u32 = 256;
/// Slice of a sleep without a sleeper of ours.
const SLICE: Duration = Duration::from_millis(1);

/// Data word of our own descriptor in the application's epoll sets: random, so that it is nobody else's.
static COOKIE: AtomicU64 = AtomicU64::new(0);
static LAST_KERNEL: AtomicU64 = AtomicU64::new(0);

/// Chooses the cookie. Called when the library is loaded.
pub fn choose_cookie() {
    let mut bytes = [0u8; 8];
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK);
    let value = u64::from_ne_bytes(bytes) ^ sys::ticks();
    COOKIE.store(value | 1 << 63, Ordering::Relaxed);
}

/// The cookie, for a program that inherits sets with descriptors of ours in them.
pub fn cookie() -> u64 {
    COOKIE.load(Ordering::Relaxed)
}

/// Sets that this program inherited know our descriptors by this cookie.
pub fn inherit_cookie(cookie: u64) {
    COOKIE.store(cookie, Ordering::Relaxed);
}

/// Takes a descriptor out of the kernel's set: its connection is in user space now.
pub fn kernel_delete(ep: i32, fd: i32) {
    // SAFETY: EPOLL_CTL_DEL takes no event.
    unsafe { real::epoll_ctl(ep, libc::EPOLL_CTL_DEL, fd, core::ptr::null_mut()) };
}

/// Changes what the kernel's set tells of a descriptor, which comes into it if it is not there.
pub fn kernel_set(ep: i32, fd: i32, interest: epoll::Interest) {
    let mut event = libc::epoll_event { events: interest.events, u64: interest.data };
    // SAFETY: an event of ours.
    if unsafe { real::epoll_ctl(ep, libc::EPOLL_CTL_MOD, fd, &raw mut event) } != 0 {
        kernel_add(ep, fd, interest);
    }
}

/// Puts a descriptor into the kernel's set: its connection has left user space.
pub fn kernel_add(ep: i32, fd: i32, interest: epoll::Interest) {
    let mut event = libc::epoll_event { events: interest.events, u64: interest.data };
    // SAFETY: an event of ours.
    unsafe { real::epoll_ctl(ep, libc::EPOLL_CTL_ADD, fd, &raw mut event) };
}

/// Puts a sleeper's set into the application's. False: the kernel refused.
pub fn kernel_add_sleeper(ep: i32, sleeper: i32) -> bool {
    let mut event = libc::epoll_event {
        events: (libc::EPOLLIN | libc::EPOLLET).cast_unsigned(),
        u64: COOKIE.load(Ordering::Relaxed),
    };
    // SAFETY: an event of ours.
    unsafe { real::epoll_ctl(ep, libc::EPOLL_CTL_ADD, sleeper, &raw mut event) == 0 }
}

/// Events of the kernel, ours taken out. The number left, and whether ours was among them.
fn ask_kernel(
    ep: i32,
    out: &mut [libc::epoll_event],
    timeout: Option<Duration>,
    mask: *const libc::sigset_t,
) -> Result<(usize, bool)> {
    let max = i32::try_from(out.len()).unwrap_or(i32::MAX);
    let ms = timeout.map_or(-1, |t| i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
    // SAFETY: `max` events of the application's array; its own mask.
    let n = unsafe { real::epoll_pwait(ep, out.as_mut_ptr(), max, ms, mask) };
    let Ok(n) = usize::try_from(n) else { return Err(sys::errno()) };
    let cookie = COOKIE.load(Ordering::Relaxed);
    let mut kept = 0;
    for i in 0..n {
        let Some(event) = out.get(i).copied() else { break };
        if { event.u64 } == cookie {
            continue;
        }
        if let Some(place) = out.get_mut(kept) {
            *place = event;
            kept += 1;
        }
    }
    Ok((kept, kept < n))
}

/// The same where the sleeper is beside the application's set: sleeps on both, then asks.
fn ask_beside(
    ep: i32,
    sleeper: u32,
    out: &mut [libc::epoll_event],
    timeout: Option<Duration>,
    mask: *const libc::sigset_t,
) -> Result<(usize, bool)> {
    let member = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut members = [member(ep), member(Sleeper::kept(sleeper).fd())];
    let end = timeout.map(poll::c_timespec);
    let end = end.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
    // SAFETY: two elements of ours; the mask is the application's.
    if unsafe { real::ppoll(members.as_mut_ptr(), 2, end, mask) } < 0 {
        return Err(sys::errno());
    }
    let rung = members.last().is_some_and(|m| m.revents != 0);
    Ok((ask_kernel(ep, out, Some(Duration::ZERO), core::ptr::null())?.0, rung))
}

/// A listener may be ready in both worlds: one event of it, as Linux would report.
fn merge_twins(out: &mut [libc::epoll_event], ours: usize, all: usize) -> usize {
    let mut kept = ours;
    for i in ours..all {
        let Some(event) = out.get(i).copied() else { break };
        let twin = (0..ours).find(|j| out.get(*j).is_some_and(|o| { o.u64 } == { event.u64 }));
        match twin.and_then(|j| out.get_mut(j)) {
            Some(first) => first.events |= event.events,
            None => {
                if let Some(place) = out.get_mut(kept) {
                    *place = event;
                    kept += 1;
                }
            }
        }
    }
    kept
}

/// Both worlds, without waiting. The kernel is asked when nothing else is there, or it has not been for a while.
fn look(ep: i32, e: &Handle, out: &mut [libc::epoll_event], settled: bool, ask: bool) -> Result<usize> {
    let (n, rung) = look_once(ep, e, out, settled, ask)?;
    if !rung {
        return Ok(n);
    }
    // The edge was meant for a sleeper, and we took it: what it tells of may have come after our look, and a wire that hung up
    // says so this once.
    epoll::drain_sleeper(e);
    if n == 0 {
        return Ok(epoll::look(e, out, false).n);
    }
    wait::kick_others();
    Ok(n)
}

/// [`look`], and whether an edge for the instance's sleeper was taken from the kernel's set.
fn look_once(
    ep: i32,
    e: &Handle,
    out: &mut [libc::epoll_event],
    settled: bool,
    ask: bool,
) -> Result<(usize, bool)> {
    let ours = epoll::look(e, out, settled);
    let now = sys::ticks();
    let due = ask || now.wrapping_sub(LAST_KERNEL.load(Ordering::Relaxed)) > KERNEL_TICKS;
    if !ours.kernel || !due || ours.n >= out.len() {
        return Ok((ours.n, false));
    }
    LAST_KERNEL.store(now, Ordering::Relaxed);
    let rest = out.get_mut(ours.n..).unwrap_or(&mut []);
    let (k, rung) = ask_kernel(ep, rest, Some(Duration::ZERO), core::ptr::null())?;
    let all = ours.n + k;
    Ok((if ours.listeners && ours.n > 0 { merge_twins(out, ours.n, all) } else { all }, rung))
}

/// epoll_pwait2(2) of an instance that has connections of ours in it. The number of events.
///
/// # Errors
/// As epoll_pwait2(2).
pub fn wait(
    ep: i32,
    e: &Handle,
    out: &mut [libc::epoll_event],
    timeout: Option<Duration>,
    mask: *const libc::sigset_t,
) -> Result<usize> {
    if epoll::has_regs(e) {
        let n = look(ep, e, out, false, timeout == Some(Duration::ZERO))?;
        if n > 0 || timeout == Some(Duration::ZERO) {
            return Ok(n);
        }
    }
    // As in Linux, the call keeps the set, whoever closes it meanwhile.
    let pinned = e.pin().ok_or(Errno(libc::EBADF))?;
    let noted = pinned.note();
    let result = wait_pinned(ep, e, out, timeout, mask);
    drop((noted, pinned));
    result
}

fn wait_pinned(
    ep: i32,
    e: &Handle,
    out: &mut [libc::epoll_event],
    timeout: Option<Duration>,
    mask: *const libc::sigset_t,
) -> Result<usize> {
    let timeout = if epoll::has_regs(e) {
        timeout
    } else {
        match wait_in_kernel(ep, e, out, timeout, mask)? {
            Ok(n) => return Ok(n),
            Err(left) => left,
        }
    };
    let start = sys::now();
    let left = || timeout.map(|t| t.saturating_sub(sys::now() - start));
    loop {
        let ep = socket::descriptor(ep, e);
        let mut spin = Spin::new();
        let mut turn = 0u32;
        while spin.turn() {
            turn = turn.wrapping_add(1);
            let n = look(ep, e, out, false, turn.is_multiple_of(KERNEL_TURN))?;
            if n > 0 {
                return Ok(n);
            }
            if turn.is_multiple_of(KERNEL_TURN) && left().is_some_and(|t| t.is_zero()) {
                return Ok(0);
            }
        }
        let n = sleep(ep, e, out, left(), mask)?;
        if n > 0 || left().is_some_and(|t| t.is_zero()) {
            return Ok(n);
        }
    }
}

/// Nothing of ours is in the set: the kernel's wait is all. If another thread adds something of ours meanwhile, the inner
/// `Err` says how much of the timeout is left.
fn wait_in_kernel(
    ep: i32,
    e: &Handle,
    out: &mut [libc::epoll_event],
    timeout: Option<Duration>,
    mask: *const libc::sigset_t,
) -> Result<core::result::Result<usize, Option<Duration>>> {
    if timeout == Some(Duration::ZERO) {
        return if epoll::has_gained(e) {
            Ok(Err(timeout))
        } else {
            ask_kernel(ep, out, timeout, mask).map(|(n, _)| Ok(n))
        };
    }
    let start = sys::now();
    let left = || timeout.map(|t| t.saturating_sub(sys::now() - start));
    while epoll::begin_kernel_sleep(e) {
        let noted = epoll::note_sleep(e, true);
        let _asleep = Asleep::announce();
        let _noted_asleep = Asleep::note();
        let result = ask_kernel(socket::descriptor(ep, e), out, left(), mask);
        drop(noted);
        epoll::end_sleep(e, true);
        let (n, rung) = result?;
        if rung {
            epoll::drain_sleeper(e);
        }
        if n > 0 || !rung {
            return Ok(Ok(n));
        }
    }
    Ok(Err(left()))
}

fn sleep(
    ep: i32,
    e: &Handle,
    out: &mut [libc::epoll_event],
    timeout: Option<Duration>,
    mask: *const libc::sigset_t,
) -> Result<usize> {
    let timeout = process::patient(timeout);
    let asleep = Asleep::announce();
    let noted_asleep = Asleep::note();
    let how = epoll::announce_sleep(e, ep);
    let noted = epoll::note_sleep(e, how.inside);
    let result = sleep_announced(ep, e, out, timeout, mask, how);
    drop(noted);
    epoll::end_sleep(e, how.inside);
    drop(noted_asleep);
    drop(asleep);
    // Awake again, so that what this look finds wakes others only.
    match result? {
        0 => look(socket::descriptor(ep, e), e, out, false, false),
        n => Ok(n),
    }
}

/// The number of the kernel's events, or of all that the last look before the sleep found.
fn sleep_announced(
    ep: i32,
    e: &Handle,
    out: &mut [libc::epoll_event],
    timeout: Option<Duration>,
    mask: *const libc::sigset_t,
    epoll::SleepOn { sleeper, inside, settled }: epoll::SleepOn,
) -> Result<usize> {
    if coordinator::arm() {
        return Ok(0);
    }
    let (n, rung) = look_once(ep, e, out, settled, true)?;
    if rung && let Some(s) = sleeper {
        Sleeper::kept(s).drain();
    }
    // Rung: the edge would have ended this sleep, so there is none.
    if n > 0 || rung {
        return Ok(n);
    }
    let timeout = if sleeper.is_some() { timeout } else { Some(timeout.map_or(SLICE, |t| t.min(SLICE))) };
    let shown = stats::asleep(Sleep::Epoll, Some(ep));
    let before = sys::now();
    let result = match sleeper.filter(|_| !inside) {
        Some(s) => ask_beside(ep, s, out, timeout, mask),
        None => ask_kernel(ep, out, timeout, mask),
    };
    drop(shown);
    Spin::learn(sys::now() - before);
    let (k, rung) = result?;
    if rung && let Some(s) = sleeper {
        Sleeper::kept(s).drain();
        if k > 0 {
            wait::kick_others();
        }
    }
    Ok(k)
}
