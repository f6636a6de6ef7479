//! A lock whose holder may die: its word is the holder's thread id, as the kernel's priority-inheritance
//! futexes want it (futex(2), `FUTEX_LOCK_PI`), so the kernel tells a waiter that the holder is gone.
//!
//! Works within one process and, in memory that forked processes share, between them.
//!
//! `unsafe` is allowed here: the guarded value's cell.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::thread::futex;

use crate::handlers::PutOff;
use crate::me;

/// The lock word alone. Zero: free.
#[repr(transparent)]
#[derive(Default)]
pub struct Lock {
    word: AtomicU32,
}

/// Unlocks when dropped.
pub struct Held<'a> {
    lock: &'a Lock,
    tid: u32,
}

impl Lock {
    /// A free lock.
    #[must_use]
    pub const fn new() -> Self {
        Lock { word: AtomicU32::new(0) }
    }

    /// Takes the lock. `None`: this very thread holds it already (we are in a signal handler that interrupted our own
    /// critical section), so waiting would never end.
    #[inline(always)]
    pub fn take(&self) -> Option<Held<'_>> {
        let tid = me::tid();
        // Acquire: pairs with the Release in `drop`: we see what the last holder wrote.
        if self.word.compare_exchange(0, tid, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            return Some(Held { lock: self, tid });
        }
        self.take_slow(tid)
    }

    #[cold]
    fn take_slow(&self, tid: u32) -> Option<Held<'_>> {
        if self.is_own() {
            return None;
        }
        for round in 0..64 {
            if self.word.compare_exchange(0, tid, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return Some(Held { lock: self, tid });
            }
            if round >= 32 {
                rustix::thread::sched_yield();
            } else {
                core::hint::spin_loop();
            }
        }
        loop {
            match futex::lock_pi(&self.word, futex::Flags::empty(), None) {
                Ok(()) => return Some(Held { lock: self, tid }),
                Err(Errno::DEADLK) => return None,
                // The holder died: whatever it had not published is as if never done.
                Err(Errno::SRCH) => {
                    let dead = self.word.load(Ordering::Relaxed);
                    if dead != 0
                        && self.word.compare_exchange(dead, tid, Ordering::Acquire, Ordering::Relaxed).is_ok()
                    {
                        return Some(Held { lock: self, tid });
                    }
                }
                Err(Errno::NOSYS) => {
                    rustix::thread::sched_yield();
                    if self.word.compare_exchange(0, tid, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                        return Some(Held { lock: self, tid });
                    }
                }
                Err(_) => {}
            }
        }
    }

    /// This very thread holds it.
    pub fn is_own(&self) -> bool {
        self.word.load(Ordering::Relaxed) & !futex::WAITERS == me::tid()
    }

    /// Unlocks what this thread took and forgot (around fork).
    pub fn give_back(&self) {
        drop(Held { lock: self, tid: me::tid() });
    }

    /// After fork, in the child: the parent's thread that forked held it; we are that thread's copy.
    pub fn reset(&self) {
        self.word.store(0, Ordering::Release);
    }
}

impl Drop for Held<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // Release: pairs with the Acquire of the next holder.
        if self.lock.word.compare_exchange(self.tid, 0, Ordering::Release, Ordering::Relaxed).is_err() {
            let _ = futex::unlock_pi(&self.lock.word, futex::Flags::empty());
        }
    }
}

/// A value behind a [`Lock`], private to the process.
pub struct Guarded<T> {
    lock: Lock,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only through `with`, which holds the lock, or `get_mut`-like exclusive access.
unsafe impl<T: Send> Sync for Guarded<T> {}

/// Access to a [`Guarded`] value.
pub struct Guard<'a, T> {
    value: &'a mut T,
    _held: Held<'a>,
    // Dropped after that: a handler does not find it held by what it interrupted.
    _put_off: Option<PutOff>,
}

impl<T> Guarded<T> {
    /// Free, with a value.
    pub const fn new(value: T) -> Self {
        Guarded { lock: Lock::new(), value: UnsafeCell::new(value) }
    }

    /// Takes the lock, and puts handlers off if it can; `None` as in [`Lock::take`].
    #[inline(always)]
    pub fn take(&self) -> Option<Guard<'_, T>> {
        let put_off = PutOff::begin();
        let held = self.lock.take()?;
        // SAFETY: the lock is held by this thread, and was not before (`take` would have said None).
        Some(Guard { value: unsafe { &mut *self.value.get() }, _held: held, _put_off: put_off })
    }

    /// For the fork handlers.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.value
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value
    }
}
