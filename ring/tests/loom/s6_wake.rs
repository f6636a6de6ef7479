//! SPEC 6: no wake-up is ever lost.

use crate::futex::{Futex, Wire};
use crate::model::{Full, Nothing, explore};
use loom::sync::Arc;
use loom::thread;
use ring::atomic::{AtomicU8, AtomicU32, AtomicU64, Heavy, Ordering};
use ring::wake::{self, Claimed, EVERYBODY, FUTEX, SleepWord, WIRE};

/// Somebody waits for `data` on a futex word.
struct Waiting {
    data: AtomicU64,
    word: SleepWord,
    queue: Futex,
}

impl Waiting {
    fn new() -> Arc<Self> {
        Arc::new(Waiting { data: AtomicU64::new(0), word: SleepWord::new(), queue: Futex::new() })
    }

    fn there(&self) -> bool {
        self.data.load(Ordering::Acquire) != 0
    }

    /// Returns with the data there, or asleep.
    fn sleep(&self, heavy: &impl Heavy) {
        while !self.there() {
            let value = self.word.announce_and_fence(FUTEX, EVERYBODY, heavy);
            if !self.there() && self.queue.wait(&self.word, value) {
                return;
            }
        }
    }

    fn publish(&self) {
        self.data.store(1, Ordering::Release);
        if self.word.sleepers().how() & FUTEX != 0 {
            self.queue.wake();
        }
    }
}

fn sleepers_and_a_waker(sleepers: usize, heavy: impl Heavy + Copy + Send + Sync + 'static) {
    explore(3, move || {
        let w = Waiting::new();
        let threads: Vec<_> = (0..sleepers)
            .map(|_| {
                let w = w.clone();
                thread::spawn(move || w.sleep(&heavy))
            })
            .collect();
        w.publish();
        for t in threads {
            t.join().unwrap();
        }
        assert_eq!(w.queue.asleep(), 0, "slept through the news");
    });
}

#[test]
fn s6_2_a_futex_sleeper_is_woken() {
    sleepers_and_a_waker(1, Full);
}

#[test]
#[should_panic(expected = "slept through the news")]
fn s6_2_twin_without_the_heavy_barrier_a_wake_up_is_lost() {
    sleepers_and_a_waker(1, Nothing);
}

#[test]
fn s6_3_two_sleepers_of_one_word_are_both_woken() {
    sleepers_and_a_waker(2, Full);
}

#[test]
fn s6_3_two_wakers_of_one_word_wake_everybody() {
    explore(3, move || {
        let w = Waiting::new();
        let sleeper = thread::spawn({
            let w = w.clone();
            move || w.sleep(&Full)
        });
        let waker = thread::spawn({
            let w = w.clone();
            move || w.publish()
        });
        w.publish();
        w.sleep(&Full);
        sleeper.join().unwrap();
        waker.join().unwrap();
        assert_eq!(w.queue.asleep(), 0, "slept through the news");
    });
}

/// A reader's lane with one slot: published messages, the news byte, the lane's sleep word, the wire.
struct Laned {
    published: AtomicU64,
    watch: AtomicU32,
    news: AtomicU8,
    sleeping: SleepWord,
    wire: Wire,
}

type Post = fn(&AtomicU8, &SleepWord) -> Claimed;

/// One slot alone has no order.
fn post(news: &AtomicU8, sleeping: &SleepWord) -> Claimed {
    wake::post(news, 1, sleeping)
}

impl Laned {
    fn new(watch: u32) -> Arc<Self> {
        Arc::new(Laned {
            published: AtomicU64::new(0),
            watch: AtomicU32::new(watch),
            news: AtomicU8::new(0),
            sleeping: SleepWord::new(),
            wire: Wire::new(),
        })
    }

    fn look(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    fn tell(&self, post: Post) {
        if post(&self.news, &self.sleeping).bell().is_some() {
            self.wire.ring();
        }
    }

    /// What a sleeper in poll(2) learns in the end, having seen `seen`.
    fn after_sleep(&self, seen: u64) -> u64 {
        if self.wire.readable() && wake::collect(&self.news) != 0 { self.look() } else { seen }
    }
}

/// Two messages to a watched slot; the receiver looks at it only when the news say so.
fn a_watched_slot(post: Post, heavy: impl Heavy + Copy + Send + Sync + 'static) {
    explore(3, move || {
        let l = Laned::new(1);
        let receiver = thread::spawn({
            let l = l.clone();
            move || {
                let mut seen = 0;
                for sleeping in [false, true] {
                    if sleeping {
                        l.sleeping.announce_and_fence(WIRE, 7, &heavy);
                    }
                    if wake::collect(&l.news) != 0 {
                        seen = l.look();
                    }
                }
                seen
            }
        });
        for n in [1, 2] {
            l.published.store(n, Ordering::Release);
            l.tell(post);
        }
        let seen = receiver.join().unwrap();
        assert_eq!(l.after_sleep(seen), 2, "a message was missed");
    });
}

#[test]
fn s6_4_news_of_a_watched_slot_are_never_lost() {
    a_watched_slot(post, Full);
}

#[test]
#[should_panic(expected = "a message was missed")]
fn s6_4_twin_without_the_heavy_barrier_news_are_lost() {
    a_watched_slot(post, Nothing);
}

#[test]
#[should_panic(expected = "a message was missed")]
fn s6_4_twin_that_does_not_set_a_set_byte_again_loses_news() {
    a_watched_slot(
        |news, sleeping| {
            if news.load(Ordering::Relaxed) == 0 {
                ring::atomic::store_against_rmw(news, 1, Ordering::Release);
            }
            sleeping.sleepers()
        },
        Full,
    );
}

/// The slot is watched from some moment on: until the next heavy barrier the receiver looks at it directly.
fn a_newly_watched_slot(last_look: bool) {
    explore(3, move || {
        let l = Laned::new(0);
        let receiver = thread::spawn({
            let l = l.clone();
            move || {
                l.watch.store(1, Ordering::Relaxed);
                let mut seen = l.look();
                l.sleeping.announce_and_fence(WIRE, 7, &Full);
                if last_look || wake::collect(&l.news) != 0 {
                    seen = l.look();
                }
                seen
            }
        });
        l.published.store(1, Ordering::Release);
        ring::atomic::light_barrier();
        if l.watch.load(Ordering::Relaxed) != 0 {
            l.tell(post);
        }
        let seen = receiver.join().unwrap();
        assert_eq!(l.after_sleep(seen), 1, "a message was missed");
    });
}

#[test]
fn s6_4_a_new_watch_misses_nothing() {
    a_newly_watched_slot(true);
}

#[test]
#[should_panic(expected = "a message was missed")]
fn s6_4_twin_that_trusts_a_new_watch_before_the_barrier() {
    a_newly_watched_slot(false);
}

#[test]
fn s6_3_one_sleeps_on_the_word_and_one_on_the_wire() {
    explore(3, || {
        let w = Waiting::new();
        let wire = Arc::new(Wire::new());
        let on_word = thread::spawn({
            let w = w.clone();
            move || w.sleep(&Full)
        });
        let on_wire = thread::spawn({
            let w = w.clone();
            move || {
                w.word.announce_and_fence(WIRE, 7, &Full);
                w.there()
            }
        });
        w.data.store(1, Ordering::Release);
        let who = w.word.sleepers().how();
        if who & FUTEX != 0 {
            w.queue.wake();
        }
        if who & WIRE != 0 {
            wire.ring();
        }
        on_word.join().unwrap();
        let saw = on_wire.join().unwrap();
        assert_eq!(w.queue.asleep(), 0, "slept through the news");
        assert!(saw || wire.readable(), "polled through the news");
    });
}

/// A settled word: sleeper and waker fence, and there is no barrier pair (no heavy one, and the waker's light one is none).
fn settled() -> Arc<Waiting> {
    let w = Waiting::new();
    let announced = w.word.announce(FUTEX, EVERYBODY);
    w.word.settle(announced);
    assert_eq!(w.word.claim_announced().how(), FUTEX);
    w
}

type Claim = fn(&SleepWord) -> Claimed;

/// `announce`: the sleeper's part before its second look; `None`: it does not sleep.
fn a_settled_word(announce: fn(&SleepWord) -> Option<wake::Announced>, claim: Claim, relax: bool) {
    explore(3, move || {
        let w = settled();
        let sleeper = thread::spawn({
            let w = w.clone();
            move || {
                if let Some(announced) = announce(&w.word)
                    && !w.there()
                {
                    w.queue.wait(&w.word, announced);
                }
            }
        });
        let other = relax.then(|| {
            let w = w.clone();
            thread::spawn(move || w.word.relax())
        });
        w.data.store(1, Ordering::Release);
        if claim(&w.word).how() & FUTEX != 0 {
            w.queue.wake();
        }
        sleeper.join().unwrap();
        if let Some(other) = other {
            other.join().unwrap();
        }
        assert_eq!(w.queue.asleep(), 0, "slept through the news");
    });
}

/// Fences if it may; where the heavy barrier would be due, the model, which has none, stays awake.
fn announce_and_fence(word: &SleepWord) -> Option<wake::Announced> {
    let announced = word.announce(FUTEX, EVERYBODY);
    ring::atomic::fence(Ordering::SeqCst);
    announced.is_settled().then_some(announced)
}

#[test]
fn s6_7_fences_on_both_sides_are_enough_for_a_settled_word() {
    a_settled_word(announce_and_fence, SleepWord::claim_announced, false);
}

#[test]
#[should_panic(expected = "slept through the news")]
fn s6_7_twin_without_the_sleepers_fence_a_wake_up_is_lost() {
    a_settled_word(|word| Some(word.announce(FUTEX, EVERYBODY)), SleepWord::claim_announced, false);
}

#[test]
#[should_panic(expected = "slept through the news")]
fn s6_7_twin_without_the_wakers_fence_a_wake_up_is_lost() {
    // The word's own claim is behind a look that nothing orders.
    let hasty = |word: &SleepWord| if word.is_sleeping() { word.claim_announced() } else { Claimed::NONE };
    a_settled_word(announce_and_fence, hasty, false);
}

#[test]
fn s6_7_who_takes_the_fences_back_leaves_no_sleeper_behind() {
    a_settled_word(announce_and_fence, SleepWord::claim_announced, true);
}

/// The slot is watched from some moment on, and its word is settled. `read`: what the publisher finds in the watch, and whom it wakes.
fn a_newly_watched_slot_with_fences(read: fn(&SleepWord, &AtomicU32) -> u32, relax: bool) {
    explore(3, move || {
        let w = settled();
        let l = Laned::new(0);
        let receiver = thread::spawn({
            let (w, l) = (w.clone(), l.clone());
            move || {
                l.watch.store(1, Ordering::Relaxed);
                // Else the heavy barrier would be due, which the model has not.
                w.word.fence_if_settled().then(|| l.look())
            }
        });
        let other = relax.then(|| {
            let w = w.clone();
            thread::spawn(move || w.word.relax())
        });
        l.published.store(1, Ordering::Release);
        if read(&w.word, &l.watch) != 0 {
            ring::atomic::store_against_rmw(&l.news, 1, Ordering::Release);
        }
        let seen = receiver.join().unwrap();
        if let Some(other) = other {
            other.join().unwrap();
        }
        let missed = seen == Some(0) && wake::collect(&l.news) == 0;
        assert!(!missed, "a message was missed");
    });
}

fn word_then_watch(word: &SleepWord, watch: &AtomicU32) -> u32 {
    let _ = word.is_announced().then(|| word.claim_announced());
    watch.load(Ordering::Relaxed)
}

#[test]
fn s6_7_a_new_watch_beside_a_settled_word_misses_nothing() {
    a_newly_watched_slot_with_fences(word_then_watch, false);
    a_newly_watched_slot_with_fences(word_then_watch, true);
}

#[test]
#[should_panic(expected = "a message was missed")]
fn s6_7_twin_that_reads_the_watch_before_the_fence() {
    let hasty = |word: &SleepWord, watch: &AtomicU32| {
        let watch = watch.load(Ordering::Relaxed);
        let _ = word.is_announced().then(|| word.claim_announced());
        watch
    };
    a_newly_watched_slot_with_fences(hasty, false);
}

/// Two connections in one place: the second's waker hears of it when the first's sleeper is done. `take_up`: what the second's sleeper does first.
fn the_next_connection(take_up: fn(&SleepWord), retires: bool) {
    explore(3, move || {
        let w = Waiting::new();
        let free = Arc::new(AtomicU32::new(0));
        let sleeper = thread::spawn({
            let (w, free) = (w.clone(), free.clone());
            move || {
                if retires {
                    w.word.retire();
                }
                // Release: as the coordinator's rings, through which the other side hears of it.
                free.store(1, Ordering::Release);
                take_up(&w.word);
                if let Some(announced) = announce_and_fence(&w.word)
                    && !w.there()
                {
                    w.queue.wait(&w.word, announced);
                }
            }
        });
        let connected = free.load(Ordering::Acquire) != 0;
        if connected {
            w.data.store(1, Ordering::Release);
            // As `sleepers`, without the light barrier, which the model takes for a fence.
            if w.word.is_announced() && w.word.claim_announced().how() & FUTEX != 0 {
                w.queue.wake();
            }
        }
        sleeper.join().unwrap();
        assert!(!connected || w.queue.asleep() == 0, "slept through the news");
    });
}

#[test]
fn s6_7_the_next_connection_needs_no_heavy_barrier() {
    the_next_connection(SleepWord::reset, true);
    the_next_connection(SleepWord::reset, false);
}

#[test]
#[should_panic(expected = "slept through the news")]
fn s6_7_twin_in_which_the_next_sleeper_asks_for_fences_itself() {
    the_next_connection(SleepWord::retire, false);
}

/// Two sleepers in poll(2) with bells of their own, and a waker that rings what it has claimed.
fn two_bells(hears_all: bool) {
    explore(3, move || {
        let w = Waiting::new();
        let bells = Arc::new([Wire::new(), Wire::new(), Wire::new()]);
        let sleep = |bell: u32| {
            let w = w.clone();
            thread::spawn(move || {
                w.word.announce_and_fence(WIRE, bell, &Full);
                w.there()
            })
        };
        let sleepers = [sleep(1), sleep(2)];
        w.data.store(1, Ordering::Release);
        if let Some(bell) = w.word.sleepers().bell() {
            bells[bell as usize].ring();
        }
        for (bell, sleeper) in (1..).zip(sleepers) {
            let saw = sleeper.join().unwrap();
            let rung = (hears_all && bells[0].readable()) || bells[bell].readable();
            assert!(saw || rung, "polled through the news");
        }
    });
}

#[test]
fn s6_8_of_two_sleepers_with_bells_both_are_woken() {
    two_bells(true);
}

#[test]
#[should_panic(expected = "polled through the news")]
fn s6_8_twin_whose_sleepers_hear_their_own_bells_only() {
    two_bells(false);
}
