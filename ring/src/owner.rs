//! Biased ownership (SPEC 11): who uses one direction of a socket again and again enters without a locked instruction; who comes in
//! between takes it from him, and pays.
//!
//! Beside an [`Owner`] lies a lock that any thread of any process that shares the socket may take. While there is no owner, the lock alone counts.
//! The owner says that it is inside, and looks whether it is still the owner; who holds the lock takes the ownership, runs the heavy
//! barrier, and waits until nobody is inside. Without the barrier both could read the old value, as in [`crate::wake`].
//!
//! A thread that was the owner may be about to say that it is inside, however late. So nobody else becomes the owner until that thread
//! has come by again, and has seen that it is none any more.

use crate::atomic::{AtomicU32, AtomicU64, Heavy, Ordering, light_barrier};

/// In [`Owner`]'s word: not the owner, but who took the lock last.
const CANDIDATE: u64 = 1 << 63;
/// The owner until somebody else came, who has not seen that yet.
const REVOKED: u64 = 1 << 62;
/// The same, and it may be inside: who took the ownership is about to wait, or died before it was done.
const REVOKING: u64 = REVOKED | CANDIDATE;
/// Names are at least this, and below [`REVOKED`]; who has a smaller one never becomes an owner.
pub const NAME_MIN: u64 = 1 << 61;
/// Times in a row that a thread takes the lock until it is the owner: a connection that is set up by one thread and used by another
/// stays free for that. Four times as many after each that it was taken away.
pub const STREAK: u32 = if cfg!(loom) { 1 } else { 64 };

/// Who owns one direction of a socket. Zero: nobody. Its processes trust each other as those of one family do.
#[repr(C)]
pub struct Owner {
    word: AtomicU64,
    /// Thread id of the owner while it is inside.
    inside: AtomicU32,
    /// How often in a row the candidate took the lock; in the upper half how often the ownership was taken away. Under the lock.
    streak: AtomicU32,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Owner>() == 16);

/// What [`Owner::enter`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The owner is inside, until [`Owner::leave`].
    Inside,
    /// This very thread is inside already: it is in a signal handler.
    Again,
    /// Somebody else, or nobody, is the owner: take the lock.
    Locked,
}

/// What who took the lock is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Before anything else: wait until nobody [`Owner::is_inside`], then [`Owner::expelled`].
    pub expels: bool,
    /// Before the lock is given back: [`Owner::promote`].
    pub promotes: bool,
}

impl Owner {
    /// Nobody.
    #[must_use]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Owner { word: AtomicU64::new(0), inside: AtomicU32::new(0), streak: AtomicU32::new(0) }
    }

    /// As new: nobody knows of it yet.
    pub fn reset(&self) {
        self.word.store(0, Ordering::Relaxed);
        self.inside.store(0, Ordering::Relaxed);
        self.streak.store(0, Ordering::Relaxed);
    }

    /// The thread `tid`, whose name is `name` in all processes, enters if it is the owner.
    #[inline(always)]
    #[must_use]
    pub fn enter(&self, name: u64, tid: u32) -> Entry {
        // Relaxed, all three: what the last holder of the lock did is known since the promotion, which was under the lock.
        if self.word.load(Ordering::Relaxed) != name {
            return Entry::Locked;
        }
        if self.inside.load(Ordering::Relaxed) != 0 {
            return Entry::Again;
        }
        self.inside.store(tid, Ordering::Relaxed);
        // Pairs with the heavy barrier in `take_turn`: we see the word without our name, or it sees us inside.
        light_barrier();
        if self.word.load(Ordering::Relaxed) == name {
            return Entry::Inside;
        }
        self.leave();
        Entry::Locked
    }

    /// The owner is done.
    #[inline(always)]
    pub fn leave(&self) {
        // Release: pairs with the Acquire in `is_inside`: whoever took the ownership sees what we did.
        self.inside.store(0, Ordering::Release);
    }

    /// The thread `tid` itself is inside, as the owner, whatever became of the ownership since: it is in a signal handler, and must not wait
    /// for who waits until it leaves.
    #[must_use]
    pub fn is_inside_itself(&self, tid: u32) -> bool {
        /// The kernel's mark (futex(2), `FUTEX_WAITERS`).
        const MARK: u32 = 1 << 31;
        self.inside.load(Ordering::Relaxed) & !MARK == tid
    }

    /// Under the lock, first of all: the ownership of others ends.
    #[must_use]
    pub fn take_turn(&self, name: u64, heavy: &impl Heavy) -> Turn {
        // Relaxed: the word changes under the lock only.
        let word = self.word.load(Ordering::Relaxed);
        let streak = self.streak.load(Ordering::Relaxed);
        let (times, revoked) = (streak & 0xffff, streak >> 16);
        let (owner, state) = (word & !REVOKING, word & REVOKING);
        if owner != name && owner != 0 && (state == 0 || state == REVOKING) {
            self.word.store(owner | REVOKING, Ordering::Relaxed);
            self.streak.store((revoked + 1).min(0xffff) << 16, Ordering::Relaxed);
            heavy.heavy_barrier();
            return Turn { expels: true, promotes: false };
        }
        // Another one may still believe that it is the owner, see above.
        if name < NAME_MIN || (owner != name && state == REVOKED) {
            return Turn::default();
        }
        // (If it is ours, a handler made us the owner on the way to the lock: while we hold that, it must not let another one in.)
        let times = if word == name | CANDIDATE { (times + 1).min(0xffff) } else { 1 };
        self.word.store(name | CANDIDATE, Ordering::Relaxed);
        self.streak.store(times | revoked << 16, Ordering::Relaxed);
        Turn { expels: false, promotes: u64::from(times) >= u64::from(STREAK) << (2 * revoked).min(32) }
    }

    /// Under the lock: nobody is inside any more.
    pub fn expelled(&self) {
        self.word.store(self.word.load(Ordering::Relaxed) & !REVOKING | REVOKED, Ordering::Relaxed);
    }

    /// Under the lock, after [`Owner::take_turn`] has taken the ownership: the former owner is not done yet.
    #[must_use]
    pub fn is_inside(&self) -> bool {
        // Acquire: pairs with the Release in `leave`.
        self.inside.load(Ordering::Acquire) != 0
    }

    /// Where the former owner's thread id stands, for who waits to ask the kernel about it (futex(2), `FUTEX_TRYLOCK_PI`).
    #[must_use]
    pub fn inside(&self) -> &AtomicU32 {
        &self.inside
    }

    /// Under the lock, right before it is given back: this thread need not take it again.
    pub fn promote(&self, name: u64) {
        // Who asked the kernel for the place of a dead owner, and died with it.
        self.inside.store(0, Ordering::Relaxed);
        // Relaxed: others see it when they have the lock.
        self.word.store(name, Ordering::Relaxed);
    }
}
