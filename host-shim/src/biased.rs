//! The lock of one direction of a socket, biased to the thread that uses it (SPEC 11): that thread takes and gives it back with plain
//! stores. A locked instruction also waits until what was written before it has reached the other side's processor, each message
//! on its own; plain stores of several messages go there together.

use core::sync::atomic::AtomicU32;

use ring::owner::{Entry, Owner};
use rustix::thread::{Timespec, futex, nanosleep};

use crate::lock::{Held, Lock};
use crate::me::{me, owners_name, tid};
use crate::sys::Membarrier;

/// Zero: free, and nobody's.
#[repr(C)]
pub struct Biased {
    owner: Owner,
    lock: Lock,
    pad: AtomicU32,
}

const _: () = assert!(size_of::<Biased>() == 24);

/// Gives back when dropped.
pub struct Using<'a> {
    biased: &'a Biased,
    /// Not as the owner; with the name of who becomes the owner, or 0.
    locked: Option<(Held<'a>, u64)>,
}

impl Biased {
    /// Takes it. `None`: this very thread has it already (we are in a signal handler that interrupted it).
    #[inline(always)]
    pub fn take(&self) -> Option<Using<'_>> {
        let me = me();
        match self.owner.enter(me.name, me.tid) {
            Entry::Inside => Some(Using { biased: self, locked: None }),
            Entry::Again => None,
            Entry::Locked => self.take_locked(me.tid),
        }
    }

    #[inline(never)]
    fn take_locked(&self, tid: u32) -> Option<Using<'_>> {
        if self.owner.is_inside_itself(tid) {
            return None;
        }
        let held = self.lock.take()?;
        let name = owners_name();
        let turn = self.owner.take_turn(name, &Membarrier);
        if turn.expels {
            self.expel();
            self.owner.expelled();
        }
        Some(Using { biased: self, locked: Some((held, if turn.promotes { name } else { 0 })) })
    }

    /// Waits until the former owner is done, or dead: what it had not published is as if never done.
    #[cold]
    fn expel(&self) {
        for round in 0u64.. {
            if !self.owner.is_inside() {
                return;
            }
            match round {
                0..32 => core::hint::spin_loop(),
                32..64 => rustix::thread::sched_yield(),
                // The kernel knows whether that thread lives. If so it marks the word, and the owner's plain store takes the mark away.
                _ => match futex::trylock_pi(self.owner.inside(), futex::Flags::empty()) {
                    Ok(true) | Err(rustix::io::Errno::SRCH) => return self.owner.leave(),
                    _ => drop(nanosleep(&LOOK)),
                },
            }
        }
    }

    /// This very thread has it.
    pub fn is_own(&self) -> bool {
        self.lock.is_own() || self.owner.is_inside_itself(tid())
    }

    /// A place is used anew: nobody knows of it yet.
    pub fn reset(&self) {
        self.owner.reset();
        self.lock.reset();
    }
}

/// Between two looks at an owner that was interrupted inside.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000 };

impl Drop for Using<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        match self.locked.take() {
            None => self.biased.owner.leave(),
            Some((held, name)) => self.give_back(held, name),
        }
    }
}

impl Using<'_> {
    #[inline(never)]
    fn give_back(&self, held: Held<'_>, name: u64) {
        if name != 0 {
            self.biased.owner.promote(name);
        }
        drop(held);
    }
}

#[cfg(test)]
mod tests {
    #![allow(unsafe_code)] // children, and memory that they share

    use core::cell::UnsafeCell;

    use ring::owner::STREAK;
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

    use super::*;
    use crate::sys;

    const OFTEN: u32 = 3 * STREAK;

    struct Counted {
        biased: Biased,
        sum: UnsafeCell<u64>,
    }

    // SAFETY: the sum is touched by who has `biased` alone, which is what is tested.
    unsafe impl Sync for Counted {}

    /// In memory that children share; never unmapped.
    fn counted(n: usize) -> &'static [Counted] {
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a fresh mapping, zeroed, which is a valid value, long enough and aligned to a page.
        unsafe {
            let at = mmap_anonymous(core::ptr::null_mut(), n * size_of::<Counted>(), prot, flags).unwrap();
            core::slice::from_raw_parts(at.cast(), n)
        }
    }

    impl Counted {
        fn add(&self) {
            let using = self.biased.take().unwrap();
            // SAFETY: we have it. Volatile: the load and the store stay apart.
            unsafe {
                let sum = self.sum.get();
                let before = sum.read_volatile();
                core::hint::spin_loop();
                sum.write_volatile(before + 1);
            }
            drop(using);
        }

        fn sum(&self) -> u64 {
            // SAFETY: asked for when nobody else is left.
            unsafe { *self.sum.get() }
        }

        fn is_owned(&self) -> bool {
            self.biased.take().unwrap().locked.is_none()
        }
    }

    /// A child that runs `f`, without handlers of fork(2); its status is collected by [`status`].
    fn child(f: impl FnOnce()) -> i32 {
        // SAFETY: the child runs nothing that other threads could have left locked, and ends.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            f();
            sys::exit_now(0);
        }
        pid
    }

    /// The child's exit status, once it has ended.
    fn status(pid: i32, how: WaitIdOptions) -> Option<i32> {
        let which = WaitId::Pid(Pid::from_raw(pid)?);
        waitid(which, how | WaitIdOptions::EXITED).ok()??.exit_status()
    }

    #[test]
    fn who_uses_it_again_and_again_owns_it() {
        let [counted] = counted(1) else { return };
        for _ in 0..STREAK {
            assert!(!counted.is_owned());
        }
        assert!(counted.is_owned());
        std::thread::spawn(|| assert!(!counted.is_owned())).join().unwrap();
        assert!(!counted.is_owned(), "the ownership was taken away");
    }

    #[test]
    fn a_handler_does_not_get_in() {
        let [counted] = counted(1) else { return };
        for owned in [false, true] {
            (0..STREAK * u32::from(owned)).for_each(|_| counted.add());
            let using = counted.biased.take().unwrap();
            assert_eq!(using.locked.is_none(), owned);
            assert!(counted.biased.is_own() && counted.biased.take().is_none());
            drop(using);
            assert!(!counted.biased.is_own());
        }
    }

    /// Who takes the ownership waits for the owner; a handler of the owner must not wait for that one.
    #[test]
    fn a_handler_of_who_is_waited_for_does_not_wait() {
        let [counted] = counted(1) else { return };
        (0..OFTEN).for_each(|_| counted.add());
        std::thread::scope(|scope| {
            let using = counted.biased.take().unwrap();
            assert!(using.locked.is_none());
            scope.spawn(|| counted.add());
            while counted.biased.owner.enter(me().name, 0) != Entry::Locked {
                std::thread::yield_now();
            }
            assert!(counted.biased.is_own() && counted.biased.take().is_none());
            drop(using);
        });
        assert_eq!(counted.sum(), u64::from(OFTEN) + 1);
    }

    /// Places of which each gets an owner, whom another one then disturbs.
    const PLACES: usize = 3_000;
    const USES: u64 = 2 * OFTEN as u64;

    fn own_each(places: &[Counted]) {
        for place in places {
            (0..USES).for_each(|_| place.add());
        }
    }

    /// Follows the owner from place to place, as far as it has come.
    fn disturb_each(places: &[Counted]) {
        for place in places {
            // SAFETY: any value will do.
            while unsafe { place.sum.get().read_volatile() } < u64::from(STREAK) + 8 {
                core::hint::spin_loop();
            }
            (0..4).for_each(|_| place.add());
        }
    }

    #[test]
    fn one_at_a_time_of_threads() {
        let places = counted(PLACES);
        std::thread::scope(|scope| {
            scope.spawn(|| own_each(places));
            disturb_each(places);
        });
        assert!(places.iter().all(|place| place.sum() == USES + 4));
    }

    #[test]
    fn one_at_a_time_of_relatives() {
        let places = counted(PLACES);
        let pid = child(|| own_each(places));
        disturb_each(places);
        assert_eq!(status(pid, WaitIdOptions::empty()), Some(0));
        assert!(places.iter().all(|place| place.sum() == USES + 4));
    }

    #[test]
    fn a_dead_owner_keeps_nobody_out() {
        let [counted] = counted(1) else { return };
        let pid = child(|| {
            (0..OFTEN).for_each(|_| counted.add());
            core::mem::forget(counted.biased.take());
        });
        // Dead, and nobody has asked for its status.
        assert_eq!(status(pid, WaitIdOptions::NOWAIT), Some(0));
        assert!(counted.biased.owner.is_inside());
        counted.add();
        assert_eq!(status(pid, WaitIdOptions::empty()), Some(0));
    }
}
