//! Signals for arriving data: `O_ASYNC` with `SIGIO`, and `SIGURG` (fcntl(2), `F_SETOWN`).
//!
//! Nobody but the kernel may send a signal in the kernel's name, and it does so for a descriptor's owner. So the owner
//! and the signal that the application chose for its descriptor are repeated on our end of the wire, and the peer is asked to
//! ring the wire for each publication (SPEC 6.4). The wire belongs to all connections between the same two
//! processes: the owner and signal chosen last count for all of them, and one that wants no signals may cause some.
//!
//! A listener with `O_ASYNC` is left to the kernel.
//!
//! `unsafe` is allowed here: fcntl(2) with pointers.
#![allow(unsafe_code)]

use core::ffi::{c_int, c_ulong};
use core::sync::atomic::{AtomicU32, Ordering};

use ring::atomic::Heavy;
use ring::wake;

use crate::handle::{self, Handle, Kind, Stream};
use crate::real;
use crate::segments::{self, Mapped};
use crate::sock::modes;
use crate::sys::{self, Membarrier};

const F_SETSIG: c_int = 10;
const F_GETSIG: c_int = 11;
const F_SETOWN_EX: c_int = 15;
const F_GETOWN_EX: c_int = 16;

/// `struct f_owner_ex`.
#[repr(C)]
#[derive(Default)]
struct Owner {
    /// Thread, process or group.
    kind: c_int,
    pid: libc::pid_t,
}

/// fcntl(2) commands after which [`follow`] is due.
pub fn concerns(cmd: c_int) -> bool {
    matches!(cmd, libc::F_SETFL | libc::F_SETOWN | F_SETSIG | F_SETOWN_EX)
}

/// `O_ASYNC` is set on a descriptor in the kernel.
pub fn is_async(fd: i32) -> bool {
    fcntl(fd, libc::F_GETFL, 0) & libc::O_ASYNC != 0
}

fn fcntl(fd: i32, cmd: c_int, arg: c_ulong) -> c_int {
    // SAFETY: commands without pointers.
    unsafe { real::fcntl(fd, cmd, arg) }
}

/// Repeats on the wire what the kernel knows of `fd`, a connection: after it has changed.
pub fn follow(fd: i32, h: &Handle) {
    let saved = sys::errno();
    if let (Some(_pinned), Some(s)) = (h.pin(), h.stream())
        && let Some(m) = segments::by_index(h.place.load(Ordering::Relaxed))
    {
        follow_on(fd, h, &s, m);
    }
    sys::set_errno(saved);
}

fn follow_on(fd: i32, h: &Handle, s: &Stream, m: &Mapped) {
    let on = is_async(fd);
    let mut owner = Owner::default();
    // SAFETY: an owner's structure of ours.
    let owned = unsafe { real::fcntl(fd, F_GETOWN_EX, (&raw mut owner) as c_ulong) } == 0 && owner.pid != 0;
    set(&s.in_dir.rx_watch, wake::RING_EACH, on);
    set(&s.in_dir.rx_watch, wake::RING_URGENT, owned);
    if on {
        s.sock.modes.fetch_or(modes::ASYNC, Ordering::Relaxed);
    } else {
        s.sock.modes.fetch_and(!modes::ASYNC, Ordering::Relaxed);
    }
    if owned {
        // SAFETY: as above.
        unsafe { real::fcntl(m.wire(), F_SETOWN_EX, (&raw const owner) as c_ulong) };
    }
    let signal = fcntl(fd, F_GETSIG, 0).max(0).cast_unsigned();
    fcntl(m.wire(), F_SETSIG, signal.into());
    let any = on || handle::all().any(|other| is_async_on(other, h));
    let flags = fcntl(m.wire(), libc::F_GETFL, 0).max(0) & !libc::O_ASYNC;
    let flags = if any { flags | libc::O_ASYNC } else { flags }.cast_unsigned();
    if on && signal != 0 {
        named_after(fd, m.wire(), || fcntl(fd, libc::F_SETFL, flags.into()));
    } else {
        fcntl(m.wire(), libc::F_SETFL, flags.into());
    }
    // From here on every publication rings.
    Membarrier.heavy_barrier();
}

/// Makes a call while `fd` is the wire: the kernel tells handlers of a chosen signal the number by which `O_ASYNC` was set.
fn named_after(fd: i32, wire: i32, call: impl FnOnce() -> c_int) {
    let cloexec = if fcntl(fd, libc::F_GETFD, 0) & libc::FD_CLOEXEC != 0 { libc::O_CLOEXEC } else { 0 };
    let kept = fcntl(fd, libc::F_DUPFD_CLOEXEC, 0);
    if kept < 0 {
        return;
    }
    // SAFETY: descriptor numbers only; `fd` gets back what it was.
    unsafe {
        // Off first: a number that the kernel has already is not replaced.
        let flags = fcntl(wire, libc::F_GETFL, 0).max(0) & !libc::O_ASYNC;
        fcntl(wire, libc::F_SETFL, flags.cast_unsigned().into());
        if real::dup3(wire, fd, libc::O_CLOEXEC) == fd {
            call();
            real::dup3(kept, fd, cloexec);
        }
    }
    sys::close(kept);
}

fn set(watch: &AtomicU32, bit: u32, on: bool) {
    if on {
        watch.fetch_or(bit, Ordering::AcqRel);
    } else {
        watch.fetch_and(!bit, Ordering::AcqRel);
    }
}

/// Another connection over the same wire wants signals.
fn is_async_on(other: &Handle, h: &Handle) -> bool {
    other.kind() == Kind::Stream
        && !core::ptr::eq(other, h)
        && other.place.load(Ordering::Relaxed) == h.place.load(Ordering::Relaxed)
        && other.sock().is_some_and(|s| s.modes.load(Ordering::Relaxed) & modes::ASYNC != 0)
}

/// Before a read: a wire that nobody empties takes no more rings.
#[cold]
pub fn make_room(h: &Handle) {
    if let Some(m) = segments::by_index(h.place.load(Ordering::Relaxed)) {
        m.drain();
    }
}

/// A write found no room: with `O_ASYNC`, room is an arrival, too. True if it came before the peer could see that we want it.
pub fn room_came(h: &Handle, s: &Stream) -> bool {
    if s.sock.modes.load(Ordering::Relaxed) & modes::ASYNC == 0 {
        return false;
    }
    make_room(h);
    let _tells_how_much = s.writable();
    s.out_dir.tx_watch.fetch_or(wake::RING_EACH, Ordering::AcqRel);
    Membarrier.heavy_barrier();
    s.writable()
}
