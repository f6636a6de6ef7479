//! Sleeping and waking (SPEC 6): sleepers pay, senders only read a flag.
//!
//! The sleeper sets a flag, runs the heavy barrier, looks again, and only then sleeps. The waker
//! publishes, then reads the flag. Without a barrier both could read the old value (the store buffers
//! of both cores delay the stores): the waker sees no sleeper, the sleeper no news. The sleeper's
//! [`Heavy`] barrier rules that out for both: it forces a full fence on every core that runs a waker. Either
//! the waker's publication came before that fence, then the sleeper's second look sees it; or the
//! waker's read of the flag comes after it, then it reads the flag set.

use crate::atomic::{AtomicU32, Heavy, Ordering, light_barrier};

/// Sleeper, step 1 of 2: announce. After this returns the caller must look again for what it waits
/// for, and only if it is still not there sleep while the word is 1.
pub fn announce(word: &AtomicU32, heavy: &impl Heavy) {
    mark(word);
    heavy.heavy_barrier();
}

/// The announcement alone, for a sleeper with several words and one barrier after them all.
pub fn mark(word: &AtomicU32) {
    // Relaxed: ordered against the second look by the heavy barrier that follows.
    word.store(1, Ordering::Relaxed);
}

/// Sleeper, last step: awake again, whatever the cause.
pub fn retract(word: &AtomicU32) {
    // Relaxed: a waker that still sees the 1 sends a wake-up in vain.
    word.store(0, Ordering::Relaxed);
}

/// Waker: after publishing. True if somebody sleeps and the caller must wake them; of several
/// wakers exactly one is told so for one announcement.
#[inline(always)]
#[must_use]
pub fn should_wake(word: &AtomicU32) -> bool {
    light_barrier();
    // Relaxed: the read is ordered after the publication by the barrier pair. The swap claims the
    // wake-up; AcqRel orders what the waker does next (the futex or wire call) after it.
    word.load(Ordering::Relaxed) != 0 && word.swap(0, Ordering::AcqRel) != 0
}
