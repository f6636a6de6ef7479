//! How a direction of an `AF_UNIX` connection leaves the kernel for the ring (SPEC 3.10.5, 3.10.6), on the writers' side.
//!
//! A write that goes to the kernel may sleep there, so it holds no lock; it is counted instead. Under the writers' lock a writer
//! either counts itself and goes to the kernel, or begins with the ring, for all of them and for good: that it may do only when
//! the other side has joined ([`crate::stream::is_open`]) and nobody is counted. So all that the kernel gets is there before the
//! first record is.

use crate::atomic::{AtomicU32, Ordering};

/// Under the writers' lock: a write goes to the kernel, until [`leave`].
#[inline]
pub fn enter(writers: &AtomicU32) {
    // Relaxed would do: the lock orders it before the next one's look in `begin`.
    writers.fetch_add(1, Ordering::AcqRel);
}

/// The kernel has what was written, or refused it.
#[inline]
pub fn leave(writers: &AtomicU32) {
    // Release: pairs with the Acquire in `begin`: whoever begins then comes after our call.
    writers.fetch_sub(1, Ordering::AcqRel);
}

/// Under the writers' lock, of a direction whose other side has joined: takes `to_kernel` out of `bits`, unless bytes are on
/// their way to the kernel. True: the ring's from now on.
#[inline]
pub fn begin(bits: &AtomicU32, to_kernel: u32, writers: &AtomicU32) -> bool {
    // Acquire: pairs with the Release in `leave`: who is not counted any more has given his bytes to the kernel, before
    // the record that follows is published (Release, in `stream`).
    if writers.load(Ordering::Acquire) != 0 {
        return false;
    }
    bits.fetch_and(!to_kernel, Ordering::AcqRel);
    true
}
