//! Readiness: poll, select, epoll.
#![allow(unsafe_code, clippy::missing_safety_doc, missing_docs)]

use core::slice;
use core::time::Duration;

use libc::{c_int, epoll_event, fd_set, nfds_t, pollfd, sigset_t, size_t, timespec, timeval};

use super::fail;
use crate::epoll::{Interest, Kernel};
use crate::handle::{self, Handle, Kind};
use crate::poll::{self, Select, Set};
use crate::scratch::Scratch;
use crate::sys::{self, Errno, Result};
use crate::{cancel, epoll, epoll_wait, faces, fresh, listener, overlay, real, socket, table, unix};

/// A timespec of the application; a negative one counts as none left.
pub fn duration(t: &timespec) -> Duration {
    let seconds = u64::try_from(t.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(t.tv_nsec).unwrap_or(0).min(999_999_999))
}

fn milliseconds(ms: c_int) -> Option<Duration> {
    u64::try_from(ms).ok().map(Duration::from_millis)
}

fn count(r: Result<usize>) -> c_int {
    match r {
        Ok(n) => c_int::try_from(n).unwrap_or(c_int::MAX),
        Err(e) => fail(e),
    }
}

/// The application's array.
///
/// # Safety
/// `fds` has `n` elements.
unsafe fn array<'a>(fds: *mut pollfd, n: nfds_t) -> &'a mut [pollfd] {
    match usize::try_from(n) {
        // SAFETY: contract.
        Ok(n) if n > 0 && !fds.is_null() => unsafe { slice::from_raw_parts_mut(fds, n) },
        _ => &mut [],
    }
}

/// A poll of these is ours.
///
/// # Safety
/// `fds` has `n` elements.
pub unsafe fn poll_concerns_us(fds: *mut pollfd, n: nfds_t) -> bool {
    // SAFETY: contract.
    poll::concerns_us(unsafe { array(fds, n) })
}

fn poll_ours(fds: &mut [pollfd], timeout: Option<Duration>, mask: *const sigset_t) -> c_int {
    cancel::point();
    listener::serving();
    let Some(mut scratch) = Scratch::new(fds.len() + 1) else { return fail(Errno(libc::ENOMEM)) };
    let mut set = Set { fds, kernel: scratch.get(), closed: false };
    count(poll::wait(&mut set, timeout, mask))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn poll(fds: *mut pollfd, n: nfds_t, timeout: c_int) -> c_int {
    // SAFETY: the application's array.
    let list = unsafe { array(fds, n) };
    if !poll::concerns_us(list) {
        // SAFETY: the application's arguments, unchanged; so in every pass-through below.
        return unsafe { real::poll(fds, n, timeout) };
    }
    poll_ours(list, milliseconds(timeout), core::ptr::null())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ppoll(
    fds: *mut pollfd,
    n: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the application's array.
    let list = unsafe { array(fds, n) };
    if !poll::concerns_us(list) {
        // SAFETY: as above.
        return unsafe { real::ppoll(fds, n, timeout, mask) };
    }
    // SAFETY: the application's pointer, null or to a timespec.
    poll_ours(list, unsafe { timeout.as_ref() }.map(duration), mask)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn __poll_chk(fds: *mut pollfd, n: nfds_t, timeout: c_int, size: size_t) -> c_int {
    if size / size_of::<pollfd>() < usize::try_from(n).unwrap_or(usize::MAX) {
        // SAFETY: as above; the original ends the program.
        return unsafe { real::__poll_chk(fds, n, timeout, size) };
    }
    // SAFETY: as above.
    unsafe { poll(fds, n, timeout) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn __ppoll_chk(
    fds: *mut pollfd,
    n: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
    size: size_t,
) -> c_int {
    if size / size_of::<pollfd>() < usize::try_from(n).unwrap_or(usize::MAX) {
        // SAFETY: as above; the original ends the program.
        return unsafe { real::__ppoll_chk(fds, n, timeout, mask, size) };
    }
    // SAFETY: as above.
    unsafe { ppoll(fds, n, timeout, mask) }
}

fn select_ours(sets: &Select, timeout: Option<Duration>, mask: *const sigset_t) -> c_int {
    cancel::point();
    listener::serving();
    let Some(mut list) = Scratch::new(sets.n) else { return fail(Errno(libc::ENOMEM)) };
    let n = sets.fill(list.get());
    let Some(mut kernel) = Scratch::new(n + 1) else { return fail(Errno(libc::ENOMEM)) };
    let Some(fds) = list.get().get_mut(..n) else { return fail(Errno(libc::EINVAL)) };
    let mut set = Set { fds, kernel: kernel.get(), closed: false };
    let result = poll::wait(&mut set, timeout, mask);
    count(result.and_then(|_| sets.take_result(&set)))
}

/// The sets, if they concern us.
pub fn select_sets(n: c_int, sets: [*mut fd_set; 3]) -> Option<Select> {
    let sets = Select { n: usize::try_from(n).ok()?, sets };
    sets.concerns_us().then_some(sets)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn select(
    n: c_int,
    r: *mut fd_set,
    w: *mut fd_set,
    e: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    let Some(sets) = select_sets(n, [r, w, e]) else {
        // SAFETY: as above.
        return unsafe { real::select(n, r, w, e, timeout) };
    };
    // SAFETY: the application's pointer, null or to a timeval.
    let limit = unsafe { timeout.as_mut() };
    let Some(limit) = limit else { return select_ours(&sets, None, core::ptr::null()) };
    let (Ok(seconds), Ok(us)) = (u64::try_from(limit.tv_sec), u64::try_from(limit.tv_usec)) else {
        return fail(Errno(libc::EINVAL));
    };
    let given = Duration::from_secs(seconds) + Duration::from_micros(us);
    let start = sys::now();
    let result = select_ours(&sets, Some(given), core::ptr::null());
    // Linux tells how much was left.
    let left = given.saturating_sub(sys::now() - start);
    limit.tv_sec = libc::time_t::try_from(left.as_secs()).unwrap_or(0);
    limit.tv_usec = left.subsec_micros().into();
    result
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pselect(
    n: c_int,
    r: *mut fd_set,
    w: *mut fd_set,
    e: *mut fd_set,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    match select_sets(n, [r, w, e]) {
        // SAFETY: the application's pointer, null or to a timespec.
        Some(sets) => select_ours(&sets, unsafe { timeout.as_ref() }.map(duration), mask),
        // SAFETY: as above.
        None => unsafe { real::pselect(n, r, w, e, timeout, mask) },
    }
}

/// A new epoll descriptor: from now on we see what is added to it.
fn epoll_made(fd: c_int) -> c_int {
    if fd >= 0 {
        socket::closing(fd);
        if let Some(h) = handle::allocate(Kind::Epoll, fd, 0, 0)
            && !(epoll::created(fd, h) && table::set(fd, h))
        {
            socket::release(h);
        }
    }
    fd
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_create(size: c_int) -> c_int {
    // SAFETY: as above.
    epoll_made(unsafe { real::epoll_create(size) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_create1(flags: c_int) -> c_int {
    // SAFETY: as above.
    epoll_made(unsafe { real::epoll_create1(flags) })
}

fn instance(ep: c_int) -> Option<&'static Handle> {
    table::get(ep).filter(|h| h.kind() == Kind::Epoll)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_ctl(ep: c_int, op: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
    if op != libc::EPOLL_CTL_DEL {
        overlay::never(fd);
    }
    let Some(e) = instance(ep) else {
        // A set that we don't know remembers the file.
        if let Some(refused) = faces::refused(fd) {
            return refused;
        }
        unix::stays(fd, ring::stats::Reason::Operation);
        // SAFETY: as above.
        return unsafe { real::epoll_ctl(ep, op, fd, event) };
    };
    if op != libc::EPOLL_CTL_DEL
        && let Some(refused) = fresh::refused(fd)
    {
        return refused;
    }
    let h = table::get(fd);
    if h.is_some_and(|h| h.kind() == Kind::Listener) {
        listener::serving();
    }
    // SAFETY: the application's pointer, null or to an event.
    let interest = match unsafe { event.as_ref() } {
        Some(ev) => Interest { events: ev.events, data: ev.u64 },
        None if op == libc::EPOLL_CTL_DEL => Interest { events: 0, data: 0 },
        None => return fail(Errno(libc::EFAULT)),
    };
    match epoll::control(ep, e, op, fd, h, interest) {
        Err(error) => fail(error),
        Ok(Kernel::No) => 0,
        Ok(Kernel::Yes) => {
            // SAFETY: as above.
            let r = unsafe { real::epoll_ctl(ep, op, fd, event) };
            if let (true, libc::EPOLL_CTL_ADD, Some(h)) = (r != 0, op, h) {
                let saved = sys::errno();
                epoll::undo_add(e, fd, h);
                sys::set_errno(saved);
            }
            r
        }
    }
}

/// The application's array of events, and its instance if we know it.
///
/// # Safety
/// `events` has `max` elements.
unsafe fn epoll_ours<'a>(
    ep: c_int,
    events: *mut epoll_event,
    max: c_int,
) -> Option<(&'static Handle, &'a mut [epoll_event])> {
    let e = instance(ep)?;
    cancel::point();
    listener::serving();
    let n = usize::try_from(max).ok().filter(|n| *n > 0 && !events.is_null())?;
    // SAFETY: contract.
    Some((e, unsafe { slice::from_raw_parts_mut(events, n) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_wait(
    ep: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout: c_int,
) -> c_int {
    // SAFETY: the application's array.
    match unsafe { epoll_ours(ep, events, max) } {
        Some((e, out)) => count(epoll_wait::wait(ep, e, out, milliseconds(timeout), core::ptr::null())),
        // SAFETY: as above.
        None => unsafe { real::epoll_wait(ep, events, max, timeout) },
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_pwait(
    ep: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout: c_int,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the application's array.
    match unsafe { epoll_ours(ep, events, max) } {
        Some((e, out)) => count(epoll_wait::wait(ep, e, out, milliseconds(timeout), mask)),
        // SAFETY: as above.
        None => unsafe { real::epoll_pwait(ep, events, max, timeout, mask) },
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_pwait2(
    ep: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // SAFETY: the application's pointer, null or to a timespec.
    let limit = unsafe { timeout.as_ref() }.map(duration);
    // SAFETY: the application's array.
    match unsafe { epoll_ours(ep, events, max) } {
        Some((e, out)) => count(epoll_wait::wait(ep, e, out, limit, mask)),
        // SAFETY: as above.
        None => unsafe { real::epoll_pwait2(ep, events, max, timeout, mask) },
    }
}
