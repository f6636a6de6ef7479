//! Waiting for readiness, and the other things one can wait for.
//!
//! `unsafe` is allowed here: libc calls on sets and arrays that live on the stack.
#![allow(unsafe_code)]

use std::mem::zeroed;
use std::ptr::{null, null_mut};

use harness::wire::{Op, Out, PollBy};

use crate::calls::answer;
use crate::fortified;

/// Makes one of this module's calls.
pub fn make(op: &Op) -> Out {
    match op {
        Op::Poll { fds, timeout_ms, by } => poll(fds, *timeout_ms, *by),
        // SAFETY: no pointers.
        Op::EpollCreate { flags } => answer(unsafe { libc::epoll_create1(*flags) }),
        Op::EpollCtl { ep, op, fd, events } => {
            let mut event = libc::epoll_event { events: *events, u64: *fd as u64 };
            // SAFETY: the event lives across the call.
            answer(unsafe { libc::epoll_ctl(*ep, *op, *fd, &raw mut event) })
        }
        Op::EpollWait { ep, max, timeout_ms } => events_of(*max, |room| {
            // SAFETY: room for `max` events.
            unsafe { libc::epoll_wait(*ep, room, *max, *timeout_ms) }
        }),
        Op::EpollPwait { ep, max, timeout_ms, mask, ns } => {
            epoll_pwait(*ep, *max, *timeout_ms, mask.as_deref(), *ns)
        }
        _ => Out { ret: -1, errno: libc::ENOSYS, ..Out::default() },
    }
}

/// Makes a descriptor of another kind to wait for.
pub fn make_source(op: &Op) -> Out {
    match op {
        // SAFETY: no pointers.
        Op::Eventfd { initial, flags } => answer(unsafe { libc::eventfd(*initial, *flags) }),
        Op::Timerfd { ms } => {
            // SAFETY: no pointers.
            let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, 0) };
            let once = libc::itimerspec {
                it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
                it_value: timespec(*ms as i64),
            };
            // SAFETY: the specification lives across the call; the old one is not asked for.
            unsafe { libc::timerfd_settime(fd, 0, &raw const once, null_mut()) };
            answer(fd)
        }
        _ => Out { ret: -1, errno: libc::ENOSYS, ..Out::default() },
    }
}

fn timespec(ms: i64) -> libc::timespec {
    libc::timespec { tv_sec: ms / 1000, tv_nsec: ms % 1000 * 1_000_000 }
}

/// Waits by `by`; a negative time-out means for ever.
pub fn poll(fds: &[(i32, i16)], timeout_ms: i32, by: PollBy) -> Out {
    match by {
        PollBy::Poll | PollBy::Ppoll | PollBy::PollChk | PollBy::PpollChk => {
            let mut set: Vec<libc::pollfd> = fds
                .iter()
                .map(|(fd, events)| libc::pollfd { fd: *fd, events: *events, revents: 0 })
                .collect();
            let count = set.len() as libc::nfds_t;
            let time = timespec(i64::from(timeout_ms));
            let time: *const libc::timespec = if timeout_ms < 0 { null() } else { &raw const time };
            let at = set.as_mut_ptr();
            let size = size_of_val(set.as_slice());
            // SAFETY: `count` entries, `size` bytes; the time is null or lives across the call; no mask.
            let mut out = answer(unsafe {
                match by {
                    PollBy::Poll => libc::poll(at, count, timeout_ms),
                    PollBy::PollChk => fortified::__poll_chk(at, count, timeout_ms, size),
                    PollBy::PpollChk => fortified::__ppoll_chk(at, count, time, null(), size),
                    _ => libc::ppoll(at, count, time, null()),
                }
            });
            let ready = set.iter().filter(|p| p.revents != 0);
            out.events = ready.map(|p| (p.fd, u32::from(p.revents as u16))).collect();
            out
        }
        PollBy::Select | PollBy::Pselect | PollBy::SelectChk => select(fds, timeout_ms, by),
    }
}

fn select(fds: &[(i32, i16)], timeout_ms: i32, by: PollBy) -> Out {
    let bits = [libc::POLLIN, libc::POLLOUT, libc::POLLPRI];
    // SAFETY: all-zero is an empty fd_set.
    let mut sets: [libc::fd_set; 3] = unsafe { zeroed() };
    let mut highest = -1;
    for (fd, events) in fds {
        highest = highest.max(*fd);
        for (set, _) in sets.iter_mut().zip(bits).filter(|(_, bit)| events & bit != 0) {
            if by == PollBy::SelectChk {
                // SAFETY: no pointers; it ends the program for a number that no set holds.
                unsafe { fortified::__fdelt_chk(i64::from(*fd)) };
            }
            // SAFETY: cases use descriptors below FD_SETSIZE.
            unsafe { libc::FD_SET(*fd, set) };
        }
    }
    let [r, w, e] = &mut sets;
    let mut out = answer(if by == PollBy::Select || by == PollBy::SelectChk {
        let mut time = libc::timeval {
            tv_sec: i64::from(timeout_ms / 1000),
            tv_usec: i64::from(timeout_ms % 1000 * 1000),
        };
        let time = if timeout_ms < 0 { null_mut() } else { &raw mut time };
        // SAFETY: three sets and a time (or null) that live across the call.
        unsafe { libc::select(highest + 1, r, w, e, time) }
    } else {
        let time = timespec(i64::from(timeout_ms));
        let time = if timeout_ms < 0 { null() } else { &raw const time };
        // SAFETY: as above; no mask.
        unsafe { libc::pselect(highest + 1, r, w, e, time, null()) }
    });
    for (fd, _) in fds {
        let mut found = 0;
        for (set, bit) in sets.iter().zip(bits) {
            // SAFETY: as for FD_SET.
            if unsafe { libc::FD_ISSET(*fd, set) } {
                found |= bit;
            }
        }
        if found != 0 {
            out.events.push((*fd, found as u32));
        }
    }
    out
}

fn epoll_pwait(ep: i32, max: i32, timeout_ms: i32, mask: Option<&[i32]>, ns: bool) -> Out {
    // SAFETY: all-zero is a valid signal set, and `sigaddset` gets one.
    let mut set: libc::sigset_t = unsafe { zeroed() };
    for signal in mask.unwrap_or_default() {
        // SAFETY: as above.
        unsafe { libc::sigaddset(&raw mut set, *signal) };
    }
    let set: *const libc::sigset_t = if mask.is_some() { &raw const set } else { null() };
    let time = timespec(i64::from(timeout_ms));
    let time: *const libc::timespec = if timeout_ms < 0 { null() } else { &raw const time };
    events_of(max, |room| {
        // SAFETY: room for `max` events; mask and time are null or live across the call.
        unsafe {
            if ns {
                libc::epoll_pwait2(ep, room, max, time, set)
            } else {
                libc::epoll_pwait(ep, room, max, timeout_ms, set)
            }
        }
    })
}

/// Makes a call that fills in at most `max` events.
fn events_of(max: i32, call: impl FnOnce(*mut libc::epoll_event) -> i32) -> Out {
    let mut room = vec![libc::epoll_event { events: 0, u64: 0 }; max.max(1) as usize];
    let mut out = answer(call(room.as_mut_ptr()));
    room.truncate(out.ret.max(0) as usize);
    out.events = room.iter().map(|e| (e.u64 as i32, e.events)).collect();
    out.events.sort_unstable();
    out
}
