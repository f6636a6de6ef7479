//! The gate of a pipe (SPEC 11): bytes go through the kernel's object or through a ring over it, and are never under way in both.
//!
//! Readers and writers count themselves before a call on the object, and then look at the mode; who wants the ring closes the gate
//! first and then looks at the counts ([`Gate::close`], [`Gate::open_ring`]). The second look is a read-modify-write: either it comes after
//! the caller's count, and sees it; or the count comes after it, reads from it, and so its caller sees the closed gate. Nothing needs a fence.

use crate::atomic::{AtomicU32, Ordering};

/// Everything goes through the kernel, for now.
pub const KERNEL: u32 = 0;
/// Everything goes through the ring.
pub const RING: u32 = 1;
/// Everything goes through the kernel, for ever.
pub const NEVER: u32 = 2;
/// The gate is closed: nobody starts a write, readers take what the object still has.
pub const DRAIN: u32 = 3;

/// The words of one gate.
#[derive(Clone, Copy)]
pub struct Gate<'a> {
    /// [`KERNEL`], [`DRAIN`], [`RING`] or [`NEVER`].
    pub mode: &'a AtomicU32,
    /// Readers in a call on the object.
    pub readers: &'a AtomicU32,
    /// Writers in a call on the object.
    pub writers: &'a AtomicU32,
}

/// The count, by a read-modify-write (see the module).
fn look(count: &AtomicU32) -> u32 {
    count.fetch_add(0, Ordering::AcqRel)
}

/// A call on the object has ended.
#[inline(always)]
pub fn leave(count: &AtomicU32) {
    // Release: pairs with `look`: who sees that we are out sees what we did to the object.
    count.fetch_sub(1, Ordering::Release);
}

impl Gate<'_> {
    /// Before a call on the object, as one of `count`; [`leave`] after it. False: not now, look at the mode again.
    #[inline(always)]
    #[must_use]
    pub fn enter(&self, count: &AtomicU32) -> bool {
        // AcqRel: pairs with `look`.
        count.fetch_add(1, Ordering::AcqRel);
        let may = matches!(self.mode.load(Ordering::Acquire), KERNEL | NEVER);
        if !may {
            leave(count);
        }
        may
    }

    /// Before a reader's call while the gate is closed: one at a time, so that it finds the bytes that it has seen there. [`leave`] after it.
    #[must_use]
    pub fn enter_to_drain(&self) -> bool {
        self.readers.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// A reader closes the gate: with the readers' lock, and while no reader is in a call (which might sleep for ever).
    #[must_use]
    pub fn close(&self) -> bool {
        if self.readers.load(Ordering::Relaxed) != 0
            || self.mode.compare_exchange(KERNEL, DRAIN, Ordering::AcqRel, Ordering::Relaxed).is_err()
        {
            return false;
        }
        if look(self.readers) != 0 {
            self.reopen();
            return false;
        }
        true
    }

    /// Anybody gives the closed gate up, without a lock. False: it was not closed.
    pub fn reopen(&self) -> bool {
        self.mode.compare_exchange(DRAIN, KERNEL, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Behind the closed gate, with both locks: the ring is in use from now on, if nobody is in a call and the object is empty. False: not now.
    #[must_use]
    pub fn open_ring(&self, is_empty: impl FnOnce() -> bool) -> bool {
        // Who reopens the gate meanwhile makes the last step fail: nobody can close it again without the readers' lock.
        self.mode.load(Ordering::Acquire) == DRAIN
            && look(self.writers) == 0
            && look(self.readers) == 0
            && is_empty()
            && self.mode.compare_exchange(DRAIN, RING, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}
