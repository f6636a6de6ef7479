//! SPEC 2: entries, credits, interrupts and doorbells between a host and a card.

use crate::model::explore;
use loom::sync::Arc;
use loom::thread;
use ring::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use ring::window::{Consumer, Entry, IrqGate, Producer, Raw};

/// Both rings, of two entries each.
struct Rings {
    requests: [Entry; 2],
    completions: [Entry; 2],
    armed: AtomicU64,
    doorbell_wanted: AtomicU32,
    irqs: AtomicU32,
    doorbells: AtomicU32,
}

fn rings() -> Arc<Rings> {
    Arc::new(Rings {
        requests: [Entry::new(), Entry::new()],
        completions: [Entry::new(), Entry::new()],
        armed: AtomicU64::new(0),
        doorbell_wanted: AtomicU32::new(0),
        irqs: AtomicU32::new(0),
        doorbells: AtomicU32::new(0),
    })
}

fn raw(n: u32) -> Raw {
    Raw { kind: 7, status: 0, token: n, body: [u64::from(n); 6] }
}

fn whole(got: &Raw, n: u32) {
    assert_eq!(*got, raw(n), "a torn or lost entry");
}

/// The host posts `N` requests, the card answers each; the rings hold two.
#[test]
fn s2_4_entries_and_credits_pass_both_ways() {
    const N: u32 = 3;
    explore(2, || {
        let rings = rings();
        let card = thread::spawn({
            let r = rings.clone();
            move || {
                let mut requests = Consumer::new(&r.requests, 0);
                let mut completions = Producer::new(&r.completions, 0);
                for i in 1..=N {
                    let (got, credit) = loop {
                        match requests.pop().unwrap() {
                            Some(got) => break got,
                            None => thread::yield_now(),
                        }
                    };
                    whole(&got, i);
                    assert!(completions.take_credit(credit));
                    completions.push(&raw(i), requests.credit()).unwrap();
                }
            }
        });
        let mut requests = Producer::new(&rings.requests, 0);
        let mut completions = Consumer::new(&rings.completions, 0);
        let mut answered = 0;
        let mut answer =
            |requests: &mut Producer, completions: &mut Consumer| match completions.pop().unwrap() {
                Some((got, credit)) => {
                    answered += 1;
                    whole(&got, answered);
                    assert!(requests.take_credit(credit));
                    answered
                }
                None => {
                    thread::yield_now();
                    answered
                }
            };
        for i in 1..=N {
            while requests.push(&raw(i), completions.credit()).is_err() {
                answer(&mut requests, &mut completions);
            }
        }
        while answer(&mut requests, &mut completions) < N {}
        card.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "a torn or lost entry")]
fn s2_4_twin_that_does_not_wait_for_credit() {
    explore(2, || {
        let rings = rings();
        let card = thread::spawn({
            let r = rings.clone();
            move || {
                let mut requests = Consumer::new(&r.requests, 0);
                for i in 1..=2 {
                    if let Some((got, _)) = requests.pop().unwrap() {
                        whole(&got, i);
                    }
                }
            }
        });
        let mut requests = Producer::new(&rings.requests, 0);
        for i in 1..=3 {
            if requests.space() == 0 {
                assert!(requests.take_credit(1));
            }
            requests.push(&raw(i), 0).unwrap();
        }
        card.join().unwrap();
    });
}

/// The host arms and looks, the card pushes and reads `armed`, and once more before it sleeps.
fn arm_against_push(scan_before_sleep: bool) {
    explore(3, move || {
        let rings = rings();
        let host = thread::spawn({
            let r = rings.clone();
            move || {
                let mut completions = Consumer::new(&r.completions, 0);
                r.armed.store(completions.consumed() + 1, Ordering::Release);
                fence(Ordering::SeqCst);
                completions.pop().unwrap().is_some()
            }
        });
        let mut completions = Producer::new(&rings.completions, 0);
        let mut gate = IrqGate::default();
        let mut check = |pushed| {
            if gate.should_fire(rings.armed.load(Ordering::Acquire), pushed) {
                rings.irqs.fetch_add(1, Ordering::Relaxed);
            }
        };
        check(0);
        completions.push(&raw(1), 0).unwrap();
        check(completions.pushed());
        if scan_before_sleep {
            fence(Ordering::SeqCst);
            check(completions.pushed());
        }
        let saw = host.join().unwrap();
        let irqs = rings.irqs.load(Ordering::Relaxed);
        assert!(saw || irqs == 1, "no interrupt");
        assert!(irqs <= 1, "two interrupts for one");
    });
}

#[test]
fn s2_5_an_armed_host_sees_the_completion_or_gets_one_interrupt() {
    arm_against_push(true);
}

#[test]
#[should_panic(expected = "no interrupt")]
fn s2_5_twin_that_does_not_read_armed_again() {
    arm_against_push(false);
}

/// The card announces its sleep, the host posts a request.
fn doorbell(card_fences: bool) {
    explore(3, move || {
        let rings = rings();
        let card = thread::spawn({
            let r = rings.clone();
            move || {
                let mut requests = Consumer::new(&r.requests, 0);
                r.doorbell_wanted.store(1, Ordering::Relaxed);
                if card_fences {
                    fence(Ordering::SeqCst);
                }
                requests.pop().unwrap().is_some()
            }
        });
        Producer::new(&rings.requests, 0).push(&raw(1), 0).unwrap();
        fence(Ordering::SeqCst);
        if rings.doorbell_wanted.load(Ordering::Relaxed) != 0 {
            rings.doorbells.fetch_add(1, Ordering::Relaxed);
        }
        let saw = card.join().unwrap();
        assert!(saw || rings.doorbells.load(Ordering::Relaxed) == 1, "no doorbell");
    });
}

#[test]
fn s2_6_a_sleeping_card_gets_a_doorbell() {
    doorbell(true);
}

#[test]
#[should_panic(expected = "no doorbell")]
fn s2_6_twin_without_the_cards_fence() {
    doorbell(false);
}
