//! SPEC 11: the owner of a direction enters without the lock, others take the ownership away.
//!
//! The lock that the shim has beside the owner's word (`host-shim/src/biased.rs`) is loom's mutex here.

use crate::model::{Full, Nothing, explore};
use loom::cell::UnsafeCell;
use loom::sync::{Arc, Mutex};
use loom::thread;
use ring::atomic::Heavy;
use ring::owner::{Entry, NAME_MIN, Owner};

/// What is guarded, with a count of who has been there.
struct Shared {
    owner: Owner,
    lock: Mutex<()>,
    value: UnsafeCell<u64>,
}

// SAFETY: the cell is what the model is about; loom tells of two who are in it at once.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// How one twin does it otherwise.
#[derive(Clone, Copy)]
struct Rules {
    /// Who took the ownership waits until the owner has left.
    waits: bool,
    /// Somebody else may become the owner before the former one has come by.
    forgets: bool,
}

const RIGHT: Rules = Rules { waits: true, forgets: false };

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Shared { owner: Owner::new(), lock: Mutex::new(()), value: UnsafeCell::new(0) })
    }

    fn add(&self) {
        // SAFETY: whoever is here is alone, which loom checks.
        self.value.with_mut(|value| unsafe { *value += 1 });
    }

    /// One use by the thread of that number.
    fn by(&self, tid: u32, heavy: &impl Heavy, rules: Rules) {
        let name = NAME_MIN + u64::from(tid);
        match self.owner.enter(name, tid) {
            Entry::Inside => {
                self.add();
                self.owner.leave();
            }
            Entry::Again => unreachable!("no handlers here"),
            Entry::Locked => {
                let _held = self.lock.lock().unwrap();
                let turn = self.owner.take_turn(name, heavy);
                while turn.expels && rules.waits && self.owner.is_inside() {
                    thread::yield_now();
                }
                if turn.expels {
                    self.owner.expelled();
                }
                self.add();
                if turn.promotes || (rules.forgets && turn.expels) {
                    self.owner.promote(name);
                }
            }
        }
    }
}

/// Threads that use it so many times each.
fn users(uses: &'static [u32], heavy: impl Heavy + Copy + Send + Sync + 'static, rules: Rules) {
    explore(3, move || {
        let shared = Shared::new();
        // The first thread is the owner.
        shared.by(1, &heavy, rules);
        let others: Vec<_> = (2..)
            .zip(uses.iter().skip(1))
            .map(|(tid, n)| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || (0..*n).for_each(|_| shared.by(tid, &heavy, rules)))
            })
            .collect();
        (0..uses[0]).for_each(|_| shared.by(1, &heavy, rules));
        for other in others {
            other.join().unwrap();
        }
        // SAFETY: all others are done.
        let sum = shared.value.with(|value| unsafe { *value });
        assert_eq!(sum, 1 + u64::from(uses.iter().sum::<u32>()));
    });
}

#[test]
fn one_at_a_time() {
    users(&[2, 2], Full, RIGHT);
}

#[test]
fn one_at_a_time_of_three() {
    users(&[1, 1, 1], Full, RIGHT);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_a_barrier_two_are_in() {
    users(&[2, 2], Nothing, RIGHT);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn without_waiting_two_are_in() {
    users(&[2, 2], Full, Rules { waits: false, ..RIGHT });
}

/// One takes the ownership and dies before it has waited; the next one uses it. `early`: it had said already that it has waited.
fn one_dies(early: bool) {
    explore(3, move || {
        let shared = Shared::new();
        shared.by(1, &Full, RIGHT);
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                {
                    // The kernel gives a dead holder's lock to the next one.
                    let _held = shared.lock.lock().unwrap();
                    let turn = shared.owner.take_turn(NAME_MIN + 2, &Full);
                    assert!(turn.expels);
                    if early {
                        shared.owner.expelled();
                    }
                }
                shared.by(3, &Full, RIGHT);
            })
        };
        shared.by(1, &Full, RIGHT);
        other.join().unwrap();
    });
}

#[test]
fn the_next_one_waits_for_who_died_waiting() {
    one_dies(false);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn who_says_too_early_that_it_has_waited_lets_two_in() {
    one_dies(true);
}

/// The former owner says that it is inside, and not any more, over the head of the next one.
#[test]
#[should_panic(expected = "Causality violation")]
fn an_heir_too_early_is_not_seen() {
    users(&[1, 2, 1], Full, Rules { forgets: true, ..RIGHT });
}
