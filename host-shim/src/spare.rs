//! Placeholders for connections to come. A socket of the kernel's takes microseconds to make and to close, and one whose connection in user
//! space is over is as good as new: it was never connected, and nobody but us has seen it. So a few stay open, as descriptors of ours, for the next
//! connections that the same listener accepts, which in Linux begin as copies of it ([`crate::options::inherit`]).
//!
//! One that anybody else may have a descriptor of, or that the application did something to that can't be taken back, is closed
//! ([`touched::WORN`]).
//!
//! `unsafe` is allowed here: libc's originals.
#![allow(unsafe_code)]

use core::ffi::c_ulong;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use crate::handle::{Handle, Kind, touched};
use crate::{fds, real};

/// Kept at a time: as many as are accepted and closed between two looks of a busy server.
const SPARES_MAX: usize = 16;

/// No placeholder is here.
const FREE: i32 = -1;
/// A thread puts one here, or takes it.
const BUSY: i32 = -2;

struct Place {
    /// Its descriptor, or one of the above.
    fd: AtomicI32,
    nonblocking: AtomicU32,
    /// The listener that it is for.
    listener: AtomicU64,
    /// Options in which it is not as that one: bits of [`Handle::options`].
    options: AtomicU64,
}

static PLACES: [Place; SPARES_MAX] = [const {
    Place {
        fd: AtomicI32::new(FREE),
        nonblocking: AtomicU32::new(0),
        listener: AtomicU64::new(0),
        options: AtomicU64::new(0),
    }
}; SPARES_MAX];

/// A listener, as its connections know it.
fn key(listener: &Handle) -> u64 {
    u64::from(listener.incarnation.load(Ordering::Relaxed)) << 32 | u64::from(listener.index() + 1)
}

/// The new connection `h` was accepted there.
pub fn accepted(h: &Handle, listener: &Handle) {
    h.turns.store(listener.index() + 1, Ordering::Relaxed);
    h.ready.store(listener.incarnation.load(Ordering::Relaxed), Ordering::Relaxed);
    h.options.store(0, Ordering::Relaxed);
}

/// A placeholder whose connection ends.
pub struct Spare {
    listener: u64,
    options: u64,
    nonblocking: u32,
}

/// That of `h`, whose last descriptor is about to be closed; if it is as good as new.
pub fn of(h: &Handle) -> Option<Spare> {
    let listener = h.turns.load(Ordering::Relaxed);
    if h.kind() != Kind::Stream || listener == 0 || h.is_unix() || h.has_others() || h.was(touched::WORN) {
        return None;
    }
    let sock = h.sock().filter(|s| s.processes.load(Ordering::Acquire) == 1)?;
    Some(Spare {
        listener: u64::from(h.ready.load(Ordering::Relaxed)) << 32 | u64::from(listener),
        options: h.options.load(Ordering::Relaxed),
        nonblocking: sock.nonblock.load(Ordering::Relaxed),
    })
}

impl Spare {
    /// Keeps the file of `fd`, which is closed in any case by the caller. Nothing here fails: a spare is no necessity.
    pub fn keep(&self, fd: i32) {
        let claimed =
            |p: &&Place| p.fd.compare_exchange(FREE, BUSY, Ordering::Acquire, Ordering::Relaxed).is_ok();
        let Some(place) = PLACES.iter().find(claimed) else { return };
        let kept = fds::duplicate(fd);
        if kept.is_some() {
            place.listener.store(self.listener, Ordering::Relaxed);
            place.options.store(self.options, Ordering::Relaxed);
            place.nonblocking.store(self.nonblocking, Ordering::Relaxed);
        }
        // Release: pairs with the Acquire of who claims it: the rest is there.
        place.fd.store(kept.unwrap_or(FREE), Ordering::Release);
    }
}

/// A placeholder under the lowest free number, for a connection of `listener`; `flags` as of accept4(2). With it come the options that are to be
/// copied from the listener.
pub fn take(listener: &Handle, flags: i32) -> Option<(i32, u64)> {
    let wanted = key(listener);
    let (high, options, nonblocking) = PLACES.iter().find_map(|p| p.claim(wanted))?;
    let command = if flags & libc::SOCK_CLOEXEC != 0 { libc::F_DUPFD_CLOEXEC } else { libc::F_DUPFD };
    // SAFETY: no pointers.
    let fd = unsafe { real::fcntl(high, command, 0) };
    fds::discard(high);
    if fd < 0 {
        return None;
    }
    let wanted = flags & libc::SOCK_NONBLOCK;
    if (wanted != 0) != nonblocking {
        // SAFETY: no pointers.
        unsafe { real::fcntl(fd, libc::F_SETFL, c_ulong::from((libc::O_RDWR | wanted).cast_unsigned())) };
    }
    Some((fd, options))
}

impl Place {
    /// Takes what is here, if it is for that listener: descriptor, options, whether it does not block.
    fn claim(&self, listener: u64) -> Option<(i32, u64, bool)> {
        let fd = self.fd.load(Ordering::Acquire);
        if fd < 0 || self.listener.load(Ordering::Relaxed) != listener || !self.empty(fd, BUSY) {
            return None;
        }
        let here = self.listener.load(Ordering::Relaxed) == listener;
        let found = (fd, self.options.load(Ordering::Relaxed), self.nonblocking.load(Ordering::Relaxed) != 0);
        // Release: pairs with the Acquire in `keep`: it is read. (It may be another one than the first look saw, which had the same number.)
        self.fd.store(if here { FREE } else { fd }, Ordering::Release);
        here.then_some(found)
    }

    /// `fd` is not here any more, but `state`. False: it was not.
    fn empty(&self, fd: i32, state: i32) -> bool {
        self.fd.compare_exchange(fd, state, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// A listener is gone, or not as it was: its spares are of no use.
pub fn forget(listener: &Handle) {
    let gone = key(listener);
    for (fd, ..) in PLACES.iter().filter_map(|p| p.claim(gone)) {
        fds::discard(fd);
    }
}

/// `fd` was one, and is the application's now.
pub fn lost(fd: i32) {
    for p in &PLACES {
        p.empty(fd, FREE);
    }
}

/// After fork, in the child: they are the parent's, and a thread of the parent may have been busy with one.
pub fn forget_all() {
    for p in &PLACES {
        let fd = p.fd.load(Ordering::Relaxed);
        if fd != FREE {
            p.fd.store(FREE, Ordering::Relaxed);
            fds::discard(fd);
        }
    }
}
