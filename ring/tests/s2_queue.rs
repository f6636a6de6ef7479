//! SPEC 2.7-2.9: the shared ring and the hints against an oracle.
#![cfg(not(loom))]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ring::atomic::{AtomicU64, Ordering};
use ring::queue::hint::{Hint, Watcher};
use ring::queue::shared::{Found, LATE_MAX, Poster, Ring, Sealed, Taker, Ticket};
use ring::queue::{COMMON_BYTES, CommonMemory, Key, Kind, Requests};
use ring::window::{Entry, Full, HOST_BYTES, HostMemory, Raw, WINDOW_BYTES, Window};
use support::Memory;

const POSTERS: usize = 4;
/// Slots; few, so that the ring goes round often.
const SLOTS: usize = 8;
const PATIENCE_US: u64 = 10;

fn key(function: usize) -> Key {
    Key([function as u64 + 1, 77])
}

/// The words of a small shared ring.
struct Words {
    marks: Memory,
    usable: Memory,
    entries: Memory,
}

impl Words {
    fn new() -> Words {
        Words {
            marks: Memory::zeroed(4096),
            usable: Memory::zeroed(SLOTS * 8),
            entries: Memory::zeroed(SLOTS * 64),
        }
    }

    /// As after `start` tickets: each slot still holds the last one that it had.
    fn starting_at(start: u64) -> Words {
        let words = Words::new();
        words.word(0).store(start, Ordering::Relaxed);
        words.word(64).store(start, Ordering::Relaxed);
        for ticket in start.saturating_sub(SLOTS as u64)..start {
            let slot = usize::try_from(ticket % SLOTS as u64).unwrap();
            let head: &AtomicU64 = words.entries.region().get(slot * 64).expect("inside");
            head.store((ticket + 1) & 0xffff_ffff, Ordering::Relaxed);
        }
        words
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        self.marks.region().get(offset).expect("inside")
    }

    fn ring(&self) -> Ring<'_> {
        Ring {
            tail: self.word(0),
            freed: self.word(64),
            usable: self.usable.region().slice(0, SLOTS).expect("inside"),
            entries: self.entries.region().slice::<Entry>(0, SLOTS).expect("inside"),
        }
    }

    fn pushing(&self, function: usize) -> &AtomicU64 {
        self.word(128 + 64 * function)
    }

    fn poster(&self, function: usize) -> Poster<'_> {
        Poster::new(self.ring(), self.pushing(function), u16::try_from(function).unwrap(), key(function))
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// Draws a ticket, if this one holds none.
    Draw(usize),
    /// Publishes what it holds, however late.
    Publish(usize),
    /// Dies; another process takes its place.
    Die(usize),
    /// The card takes this many times, after this much time.
    Take(usize, u64),
    /// The card gives up on tickets whose holders are gone.
    Resolve,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (0..POSTERS).prop_map(Op::Draw),
        4 => (0..POSTERS).prop_map(Op::Publish),
        1 => (0..POSTERS).prop_map(Op::Die),
        5 => (1..6usize, prop_oneof![3 => Just(0u64), 1 => 0..30u64]).prop_map(|(n, us)| Op::Take(n, us)),
        2 => Just(Op::Resolve),
    ]
}

/// What must come out: each published entry once, whole, and those of one poster in their order.
#[derive(Default)]
struct Oracle {
    /// Published and not taken: number of the request by ticket.
    there: BTreeMap<u64, (usize, u64)>,
    /// Last request of each poster that was taken.
    last: [u64; POSTERS],
    gaps: BTreeSet<u64>,
}

impl Oracle {
    fn taken(&mut self, entry: &Sealed) {
        let function = usize::try_from(entry.function()).unwrap();
        let (raw, _) = entry.open(&key(function)).expect("a torn entry");
        let number = raw.body[0];
        let ticket =
            *self.there.iter().find(|(_, said)| **said == (function, number)).expect("taken twice").0;
        // In the order of tickets, but for those that were passed by.
        let first = self.there.keys().find(|ticket| !self.gaps.contains(ticket));
        assert!(self.gaps.contains(&ticket) || first == Some(&ticket), "out of order");
        self.there.remove(&ticket);
        assert!(number > self.last[function], "a poster's requests out of order");
        self.last[function] = number;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn s2_8_each_published_entry_is_taken_once_whoever_dies_or_dawdles(
        ops in prop::collection::vec(op(), 0..400),
        start in prop_oneof![Just(0), (1 << 32) - 100..1u64 << 32, 0..1u64 << 60],
    ) {
        let words = Words::starting_at(start);
        let mut taker = Taker::starting_at(words.ring(), start);
        let mut posters: Vec<Poster> = (0..POSTERS).map(|f| words.poster(f)).collect();
        let mut held: [Option<Ticket>; POSTERS] = Default::default();
        let (mut oracle, mut now_us, mut number) = (Oracle::default(), 0, 0);
        // The card's view of who may hold a ticket that was passed by.
        let mut suspects: BTreeMap<u64, Vec<(usize, u64)>> = BTreeMap::new();
        let said = |f: usize| words.pushing(f).load(Ordering::Acquire);
        let take = |taker: &mut Taker, suspects: &mut BTreeMap<u64, Vec<(usize, u64)>>, oracle: &mut Oracle, now_us, patience| {
            match taker.take(now_us, patience) {
                Found::Entry(entry) => oracle.taken(&entry),
                Found::Gap(ticket) => {
                    oracle.gaps.insert(ticket);
                    suspects.insert(ticket, (0..POSTERS).map(|f| (f, said(f))).filter(|(_, s)| s % 2 == 1).collect());
                }
                Found::Nothing => return false,
            }
            true
        };
        let publish = |posters: &mut Vec<Poster>, oracle: &mut Oracle, f: usize, ticket: Ticket, number: u64| {
            oracle.there.insert(ticket.number(), (f, number));
            posters[f].publish(ticket, &Raw { kind: 3, body: [number, 1, 2, 3, number, 0], ..Raw::default() }, 5);
        };
        for op in ops {
            match op {
                Op::Draw(f) if held[f].is_none() => held[f] = posters[f].draw().ok(),
                Op::Publish(f) => if let Some(ticket) = held[f].take() {
                    number += 1;
                    publish(&mut posters, &mut oracle, f, ticket, number);
                },
                Op::Die(f) => {
                    held[f] = None;
                    words.pushing(f).store(0, Ordering::Relaxed);
                    posters[f] = words.poster(f);
                }
                Op::Take(n, us) => {
                    now_us += us;
                    for _ in 0..n {
                        take(&mut taker, &mut suspects, &mut oracle, now_us, PATIENCE_US);
                    }
                    taker.tell();
                }
                Op::Resolve => for (ticket, of) in &mut suspects {
                    of.retain(|(f, value)| said(*f) == *value);
                    if of.is_empty() && taker.unresolved().any(|t| t == *ticket) {
                        if let Some(entry) = taker.release(*ticket) {
                            oracle.taken(&entry);
                        }
                        taker.tell();
                    }
                },
                Op::Draw(_) => {}
            }
        }
        // Everybody comes to an end: then all that was published is taken, and the ring is whole again.
        for (f, held) in held.iter_mut().enumerate() {
            if let Some(ticket) = held.take() {
                number += 1;
                publish(&mut posters, &mut oracle, f, ticket, number);
            }
        }
        for _ in 0..4 * SLOTS {
            now_us += PATIENCE_US;
            take(&mut taker, &mut suspects, &mut oracle, now_us, PATIENCE_US);
        }
        let open: Vec<u64> = taker.unresolved().collect();
        for ticket in open {
            prop_assert!(taker.release(ticket).is_none(), "published, and not found");
        }
        taker.tell();
        prop_assert!(oracle.there.is_empty(), "lost: {:?}", oracle.there);
        for round in 0..3 * SLOTS {
            number += 1;
            // Every slot may have been out of use: then all tickets of a round are holes, which the card has yet to pass.
            let ticket = posters[round % POSTERS].draw().or_else(|Full| {
                take(&mut taker, &mut suspects, &mut oracle, now_us, PATIENCE_US);
                taker.tell();
                posters[round % POSTERS].draw()
            }).expect("room");
            publish(&mut posters, &mut oracle, round % POSTERS, ticket, number);
            prop_assert!(take(&mut taker, &mut suspects, &mut oracle, now_us, PATIENCE_US));
            taker.tell();
        }
        prop_assert!(oracle.there.is_empty());
    }

    #[test]
    fn s2_8_an_entry_is_whose_key_made_it(
        function in 0..4096u16,
        kind in any::<u8>(),
        token in any::<u32>(),
        credit in any::<u32>(),
        body in any::<[u64; 5]>(),
        word in 0..8usize,
        bit in 0..64u32,
    ) {
        let words = Words::new();
        let [a, b, c, d, e] = body;
        let raw = Raw { kind, status: 0, token, body: [a, b, c, d, e, 0] };
        let (mine, others) = (Key([1, 2]), Key([1, 3]));
        let mut poster = Poster::new(words.ring(), words.pushing(0), function, mine);
        poster.push(&raw, credit).unwrap();
        let Found::Entry(entry) = Taker::new(words.ring()).take(0, PATIENCE_US) else { panic!("nothing") };
        prop_assert_eq!(entry.function(), u32::from(function));
        prop_assert_eq!(entry.open(&mine), Some((raw, credit)));
        prop_assert_eq!(entry.open(&others), None);
        // Anything changed by somebody else shows.
        let changed: &AtomicU64 = words.entries.region().get(word * 8).unwrap();
        changed.store(changed.load(Ordering::Relaxed) ^ 1 << bit, Ordering::Relaxed);
        if let Found::Entry(entry) = Taker::new(words.ring()).take(0, PATIENCE_US) {
            prop_assert_eq!(entry.open(&mine), None);
        }
    }

    #[test]
    fn s2_9_every_raised_function_is_reported(
        rounds in prop::collection::vec(prop::collection::vec(0..4096u32, 0..20), 0..20),
    ) {
        let memory = Memory::zeroed(COMMON_BYTES);
        let common = CommonMemory::over(memory.region()).unwrap();
        let mut watcher = Watcher::new(common);
        let mut hints = BTreeMap::new();
        for round in rounds {
            for function in &round {
                hints.entry(*function).or_insert_with(|| Hint::of(common, *function).unwrap()).raise();
            }
            let mut found = Vec::new();
            watcher.collect(|function| found.push(function));
            prop_assert_eq!(found, round.into_iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>());
        }
    }
}

#[test]
fn s2_8_a_copied_entry_is_not_taken_again() {
    let words = Words::new();
    let mut taker = Taker::new(words.ring());
    words.poster(1).push(&Raw { kind: 9, ..Raw::default() }, 0).unwrap();
    let Found::Entry(entry) = taker.take(0, PATIENCE_US) else { panic!("nothing") };
    assert!(entry.open(&key(1)).is_some());
    // Another process copies it into a place of its own, with that place's sequence.
    let ticket = words.poster(2).draw().unwrap();
    let at = |slot: u64, word: usize| {
        words.entries.region().get::<AtomicU64>(usize::try_from(slot).unwrap() * 64 + word * 8).unwrap()
    };
    for word in (0..8).rev() {
        let mut value = at(0, word).load(Ordering::Relaxed);
        if word == 0 {
            value = value & !0xffff_ffff | (ticket.number() + 1);
        }
        at(ticket.number(), word).store(value, Ordering::Relaxed);
    }
    let Found::Entry(copy) = taker.take(0, PATIENCE_US) else { panic!("nothing") };
    assert_eq!((copy.function(), copy.open(&key(1))), (1, None));
}

#[test]
fn s2_8_a_full_ring_gives_no_ticket() {
    let words = Words::new();
    let mut poster = words.poster(0);
    for _ in 0..SLOTS {
        poster.push(&Raw::default(), 0).unwrap();
    }
    assert_eq!(poster.push(&Raw::default(), 0), Err(Full));
    assert_eq!(words.pushing(0).load(Ordering::Relaxed) % 2, 0, "nobody is in a push");
    let mut taker = Taker::new(words.ring());
    assert!(matches!(taker.take(0, 0), Found::Entry(_)));
    assert_eq!(poster.push(&Raw::default(), 0), Err(Full), "not told yet");
    taker.tell();
    assert_eq!(poster.push(&Raw::default(), 0), Ok(()));
}

#[test]
fn s2_8_more_gaps_than_can_be_remembered_wait() {
    let memory = Memory::zeroed(COMMON_BYTES);
    let common = CommonMemory::over(memory.region()).unwrap();
    let word = AtomicU64::new(0);
    let mut poster = Poster::new(common.ring(), &word, 1, key(1));
    let mut taker = Taker::new(common.ring());
    let tickets: Vec<Ticket> = (0..=LATE_MAX).map(|_| poster.draw().unwrap()).collect();
    poster.push(&Raw::default(), 0).unwrap();
    for i in 0..LATE_MAX as u64 {
        assert_eq!(taker.take(0, 0), Found::Gap(i));
    }
    assert_eq!(taker.take(0, 0), Found::Nothing);
    for ticket in tickets {
        poster.publish(ticket, &Raw::default(), 0);
    }
    for _ in 0..LATE_MAX + 2 {
        assert!(matches!(taker.take(0, 0), Found::Entry(_)));
    }
    assert_eq!(taker.take(0, 0), Found::Nothing);
}

/// Slots that are in use again leave no trace that could fill up.
#[test]
fn s2_8_any_number_of_dead_tickets_is_passed_by() {
    let memory = Memory::zeroed(COMMON_BYTES);
    let common = CommonMemory::over(memory.region()).unwrap();
    let word = AtomicU64::new(0);
    let mut poster = Poster::new(common.ring(), &word, 1, key(1));
    let mut taker = Taker::new(common.ring());
    for _ in 0..20_000 {
        let dead = poster.draw().unwrap().number();
        assert_eq!(taker.take(0, 0), Found::Gap(dead));
        assert_eq!(taker.release(dead), None);
        poster.push(&Raw::default(), 0).unwrap();
        assert!(matches!(taker.take(0, 0), Found::Entry(_)));
        taker.tell();
    }
}

#[test]
fn s2_7_a_host_finds_its_way_from_what_it_was_given() {
    let memories = [Memory::zeroed(WINDOW_BYTES), Memory::zeroed(HOST_BYTES), Memory::zeroed(COMMON_BYTES)];
    let [window, host, common] = memories.each_ref().map(Memory::region);
    let (window, host) = (Window::over(window).unwrap(), HostMemory::over(host).unwrap());
    let common = CommonMemory::over(common).unwrap();
    common.format();
    assert!(common.valid());
    for kind in Kind::ALL {
        assert_eq!((kind.name().parse(), Kind::from_wire(kind.to_wire())), (Ok(kind), Some(kind)));
        host.format(kind, key(3));
        let mut requests = Requests::over(3, &window.far(), &host, Some(common)).unwrap();
        assert_eq!(Requests::over(3, &window.far(), &host, None).is_some(), kind == Kind::PerProcess);
        for pushed in 1..=256 {
            requests.push(&Raw { kind: 2, ..Raw::default() }, 0).unwrap();
            assert_eq!(requests.pushed(), pushed);
        }
        assert_eq!(requests.push(&Raw::default(), 0), Err(Full), "one function's credit, in any ring");
        let shared = common.tail.load(Ordering::Relaxed);
        assert_eq!(shared, if kind == Kind::PerProcess { 0 } else { 256 }, "{kind}");
    }
    host.header.queue.store(9, Ordering::Relaxed);
    assert!(Requests::over(3, &window.far(), &host, Some(common)).is_none());
}
