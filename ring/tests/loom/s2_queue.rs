//! SPEC 2.8 and 2.9: hosts that share a ring, one of which dies or dawdles; hints.

use crate::model::explore;
use loom::sync::Arc;
use loom::thread;
use ring::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use ring::queue::Key;
use ring::queue::hint::{Hint, Watcher};
use ring::queue::shared::{Found, Poster, Ring, Sealed, Taker, Ticket};
use ring::window::{Consumer, Entry, Producer, Raw};

/// A shared ring of two entries, and the words of two hosts.
struct Words {
    tail: AtomicU64,
    freed: AtomicU64,
    usable: [AtomicU64; 2],
    entries: [Entry; 2],
    pushing: [AtomicU64; 2],
}

fn words() -> Arc<Words> {
    Arc::new(Words {
        tail: AtomicU64::new(0),
        freed: AtomicU64::new(0),
        usable: [AtomicU64::new(0), AtomicU64::new(0)],
        entries: [Entry::new(), Entry::new()],
        pushing: [AtomicU64::new(0), AtomicU64::new(0)],
    })
}

impl Words {
    fn ring(&self) -> Ring<'_> {
        Ring { tail: &self.tail, freed: &self.freed, usable: &self.usable, entries: &self.entries }
    }

    fn poster(&self, host: u16) -> Poster<'_> {
        Poster::new(self.ring(), &self.pushing[usize::from(host)], host, Key([1, 2]))
    }
}

fn raw(n: u32) -> Raw {
    Raw { kind: 7, status: 0, token: n, body: [n.into(), n.into(), n.into(), n.into(), n.into(), 0] }
}

fn push(poster: &mut Poster, n: u32) {
    while poster.push(&raw(n), n).is_err() {
        thread::yield_now();
    }
}

/// The number of a request that came through whole.
fn number(entry: &Sealed) -> u32 {
    let (got, credit) = entry.open(&Key([1, 2])).expect("a torn entry");
    assert_eq!((got, credit), (raw(got.token), got.token), "a torn entry");
    got.token
}

/// Takes until the requests of `wanted` are there, passing by no ticket; some time.
fn take_all(taker: &mut Taker, wanted: usize) -> Vec<u32> {
    let mut got = Vec::new();
    while got.len() < wanted {
        match taker.take(0, 1) {
            Found::Entry(entry) => got.push(number(&entry)),
            Found::Gap(_) => unreachable!(),
            Found::Nothing => thread::yield_now(),
        }
        taker.tell();
    }
    got
}

/// Two hosts push, the card takes; the ring goes round.
#[test]
fn s2_8_two_hosts_share_a_ring() {
    explore(2, || {
        let words = words();
        let other = thread::spawn({
            let w = words.clone();
            move || push(&mut w.poster(0), 1)
        });
        let card = thread::spawn({
            let w = words.clone();
            move || take_all(&mut Taker::new(w.ring()), 3)
        });
        let mut poster = words.poster(1);
        for n in [2, 3] {
            push(&mut poster, n);
        }
        other.join().unwrap();
        let mut got = card.join().unwrap();
        assert!(got.iter().position(|n| *n == 2) < got.iter().position(|n| *n == 3), "out of order");
        got.sort_unstable();
        assert_eq!(got, [1, 2, 3]);
    });
}

/// A host dies with a ticket; the card passes it by, and sees that nobody can hold it any more when it is gone.
#[test]
fn s2_8_a_dead_hosts_ticket_loses_nobody_elses() {
    explore(2, || {
        let words = words();
        let dead = words.poster(0).draw().unwrap();
        assert_eq!(dead.number(), 0);
        let card = thread::spawn({
            let w = words.clone();
            move || {
                let mut taker = Taker::new(w.ring());
                assert_eq!(taker.take(0, 0), Found::Gap(0));
                taker.tell();
                let mut got = take_all(&mut taker, 1);
                assert_eq!(taker.release(0), None);
                got.extend(take_all(&mut taker, 1));
                got
            }
        });
        let mut poster = words.poster(1);
        for n in [1, 2] {
            push(&mut poster, n);
        }
        assert_eq!(card.join().unwrap(), [1, 2]);
    });
}

/// A host dawdles: it publishes when its ticket was passed by, perhaps while another one's push goes on in the slot beside
/// it. `reuse`: what the card does with the slot.
fn dawdling(reuse: fn(&Words, &mut Taker)) {
    explore(3, move || {
        let words = words();
        let late = words.poster(0).draw().unwrap();
        let mut taker = Taker::new(words.ring());
        assert_eq!(taker.take(0, 0), Found::Gap(0));
        taker.tell();
        reuse(&words, &mut taker);
        let slow = thread::spawn({
            let w = words.clone();
            move || publish(&w, 0, late, 1)
        });
        let fast = thread::spawn({
            let w = words.clone();
            move || {
                let mut poster = w.poster(1);
                [2, 3].map(|n| poster.push(&raw(n), n).is_ok())
            }
        });
        let pushed = fast.join().unwrap();
        slow.join().unwrap();
        let mut got = Vec::new();
        loop {
            match taker.take(0, 0) {
                Found::Entry(entry) => got.push(number(&entry)),
                Found::Gap(_) => unreachable!(),
                Found::Nothing => break,
            }
        }
        let said = [1, 2, 3].into_iter().zip([true].into_iter().chain(pushed));
        for (n, pushed) in said {
            let times = got.iter().filter(|g| **g == n).count();
            assert_eq!(times, usize::from(pushed), "request {n} was lost or doubled: {got:?}");
        }
    });
}

fn publish(words: &Words, host: u16, ticket: Ticket, n: u32) {
    words.poster(host).publish(ticket, &raw(n), n);
}

#[test]
fn s2_8_a_late_publication_is_taken_and_hurts_nobody() {
    dawdling(|_, _| {});
}

#[test]
#[should_panic]
fn s2_8_twin_that_uses_the_slot_again_at_once() {
    dawdling(|words, _| words.usable[0].store(0, Ordering::Relaxed));
}

#[test]
#[should_panic]
fn s2_8_twin_that_gives_up_on_one_who_lives() {
    dawdling(|_, taker| {
        assert_eq!(taker.release(0), None);
        taker.tell();
    });
}

/// The card has seen a ticket drawn and asks who may hold it. `look`: what it sees of a host.
fn who_holds(look: fn(&Words) -> u64) {
    explore(3, move || {
        let words = words();
        let host = thread::spawn({
            let w = words.clone();
            move || w.poster(0).push(&raw(1), 1).unwrap()
        });
        // A thread of its own, so that loom runs the host first and looks for conflicts with what it did.
        let card = thread::spawn(move || {
            let mut taker = Taker::new(words.ring());
            let mut found = Vec::new();
            match taker.take(0, 0) {
                Found::Entry(entry) => found.push(number(&entry)),
                // Not in a push (any more): it has published, here or, if it saw the slot out of use, elsewhere.
                Found::Gap(ticket) if look(&words).is_multiple_of(2) => {
                    found.extend(taker.release(ticket).map(|entry| number(&entry)));
                }
                _ => {}
            }
            taker.tell();
            host.join().unwrap();
            while let Found::Entry(entry) = taker.take(0, 1) {
                found.push(number(&entry));
            }
            assert_eq!(found, [1], "given up on one who publishes");
        });
        card.join().unwrap();
    });
}

#[test]
fn s2_8_who_holds_a_ticket_is_in_a_push_or_has_published() {
    who_holds(|words| words.pushing[0].load(Ordering::Acquire));
}

#[test]
#[should_panic(expected = "given up on one who publishes")]
fn s2_8_twin_that_does_not_ask() {
    who_holds(|_| 0);
}

/// A function posts and raises its mark while another one of its group does the same; the card looks where it is told to.
fn hinted(raise: fn(&AtomicU32, &AtomicU16)) {
    explore(3, move || {
        struct Hinted {
            group: [AtomicU32; 1],
            marks: [AtomicU16; 2],
            requests: [Entry; 2],
        }
        let h = Arc::new(Hinted {
            group: [AtomicU32::new(0)],
            marks: [AtomicU16::new(0), AtomicU16::new(0)],
            requests: [Entry::new(), Entry::new()],
        });
        let host = thread::spawn({
            let h = h.clone();
            move || {
                Producer::new(&h.requests, 0).push(&raw(1), 0).unwrap();
                raise(&h.group[0], &h.marks[0]);
            }
        });
        let other = thread::spawn({
            let h = h.clone();
            move || Hint::new(&h.group[0], &h.marks[1]).raise()
        });
        let (mut watcher, mut requests) = (Watcher::over(&h.group, &h.marks), Consumer::new(&h.requests, 0));
        let mut taken = 0;
        let mut look = |watcher: &mut Watcher| {
            let mut told = false;
            watcher.collect(|function| told |= function == 0);
            if told {
                taken += usize::from(requests.pop().unwrap().is_some());
            }
            taken
        };
        look(&mut watcher);
        host.join().unwrap();
        other.join().unwrap();
        assert_eq!(look(&mut watcher), 1, "a request that nobody looks at");
    });
}

#[test]
fn s2_9_a_raised_mark_leads_to_the_request() {
    hinted(|group, mark| Hint::new(group, mark).raise());
}

#[test]
#[should_panic(expected = "a request that nobody looks at")]
fn s2_9_twin_whose_mark_is_not_released() {
    hinted(|group, mark| {
        mark.store(1, Ordering::Relaxed);
        group.fetch_add(1, Ordering::Release);
    });
}

#[test]
#[should_panic(expected = "a request that nobody looks at")]
fn s2_9_twin_that_counts_before_it_marks() {
    hinted(|group, mark| {
        group.fetch_add(1, Ordering::Release);
        mark.store(1, Ordering::Release);
    });
}
