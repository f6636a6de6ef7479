//! SPEC 6: no wake-up is ever lost.

use crate::futex::{Futex, Wire};
use crate::model::{Full, Nothing, explore};
use loom::sync::Arc;
use loom::thread;
use ring::atomic::{AtomicU8, AtomicU32, AtomicU64, Heavy, Ordering};
use ring::wake::{self, FUTEX, WIRE};

/// Somebody waits for `data` on a futex word.
struct Waiting {
    data: AtomicU64,
    word: AtomicU32,
    queue: Futex,
}

impl Waiting {
    fn new() -> Arc<Self> {
        Arc::new(Waiting { data: AtomicU64::new(0), word: AtomicU32::new(0), queue: Futex::new() })
    }

    fn there(&self) -> bool {
        self.data.load(Ordering::Acquire) != 0
    }

    /// Returns with the data there, or asleep.
    fn sleep(&self, heavy: &impl Heavy) {
        while !self.there() {
            let value = wake::announce_and_fence(&self.word, FUTEX, heavy);
            if !self.there() && self.queue.wait(&self.word, value) {
                return;
            }
        }
    }

    fn publish(&self) {
        self.data.store(1, Ordering::Release);
        if wake::sleepers(&self.word) & FUTEX != 0 {
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
    sleeping: AtomicU32,
    wire: Wire,
}

type Post = fn(&AtomicU8, &AtomicU32) -> u32;

/// One slot alone has no order.
fn post(news: &AtomicU8, sleeping: &AtomicU32) -> u32 {
    wake::post(news, 1, sleeping)
}

impl Laned {
    fn new(watch: u32) -> Arc<Self> {
        Arc::new(Laned {
            published: AtomicU64::new(0),
            watch: AtomicU32::new(watch),
            news: AtomicU8::new(0),
            sleeping: AtomicU32::new(0),
            wire: Wire::new(),
        })
    }

    fn look(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    fn tell(&self, post: Post) {
        if post(&self.news, &self.sleeping) & WIRE != 0 {
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
                        wake::announce_and_fence(&l.sleeping, WIRE, &heavy);
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
            wake::sleepers(sleeping)
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
                wake::announce_and_fence(&l.sleeping, WIRE, &Full);
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
                wake::announce_and_fence(&w.word, WIRE, &Full);
                w.there()
            }
        });
        w.data.store(1, Ordering::Release);
        let who = wake::sleepers(&w.word);
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
