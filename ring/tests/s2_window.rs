//! SPEC 2: request and completion rings against an oracle, from any index, and against a side that lies.
#![cfg(not(loom))]

mod support;

use proptest::prelude::*;
use ring::VERSION;
use ring::atomic::{AtomicU64, Ordering};
use ring::queue::{Key, Kind, Requests};
use ring::window::{
    CardEnd, Consumer, ENTRIES, ENTRIES_OFFSET, Entry, Full, HOST_BYTES, HostEnd, HostMemory, IrqGate,
    Producer, Raw, WINDOW_BYTES, Window, WrongVersion,
};
use std::collections::VecDeque;
use support::Memory;

/// Not ours.
const OTHER_VERSION: u8 = VERSION.to_le_bytes()[0] + 1;

fn raw() -> impl Strategy<Value = Raw> {
    (any::<u8>(), any::<u16>(), any::<u32>(), any::<[u64; 6]>()).prop_map(|(kind, status, token, body)| Raw {
        kind,
        status,
        token,
        body,
    })
}

/// Ring indices: small, around the wrap of the 32-bit sequence and credit, and very large. (They never wrap 64 bits.)
fn index() -> impl Strategy<Value = u64> {
    let near = |at: u64| (0..2048u64).prop_map(move |d| at.saturating_sub(1024) + d);
    prop_oneof![
        2 => near(1024),
        4 => near(1 << 32),
        2 => near(1 << 31),
        2 => near(3 << 32),
        2 => near(u64::MAX - (1 << 20)),
        2 => 0..u64::MAX - (1 << 20),
    ]
}

#[derive(Clone, Debug)]
enum Op {
    HostPush(Raw),
    HostPop,
    CardPush(Raw),
    CardPop,
    /// The host posts `armed`.
    Arm,
    /// The card reads it, whenever it does.
    ReadArmed,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => raw().prop_map(Op::HostPush),
        2 => Just(Op::HostPop),
        3 => raw().prop_map(Op::CardPush),
        2 => Just(Op::CardPop),
        1 => Just(Op::Arm),
        1 => Just(Op::ReadArmed),
    ]
}

fn entries(memory: &Memory, n: usize) -> &[Entry] {
    memory.region().slice(0, n).expect("entries fit")
}

/// A ring in use, both sides at `index`: its entries hold what the turn before left there.
fn ring_at(entries: &[Entry], index: u64) -> (Producer<'_>, Consumer<'_>) {
    let size = entries.len() as u64;
    let before = index.saturating_sub(size);
    let (mut p, mut c) = (Producer::new(entries, before), Consumer::new(entries, before));
    while p.pushed() < index {
        p.push(&Raw { kind: 255, ..Raw::default() }, 0).unwrap();
        assert!(c.pop().unwrap().is_some());
        assert!(p.take_credit(c.credit()));
    }
    (p, c)
}

/// One direction with its oracle.
struct Way<'a> {
    p: Producer<'a>,
    c: Consumer<'a>,
    oracle: VecDeque<Raw>,
    size: u64,
}

impl<'a> Way<'a> {
    fn new(entries: &'a [Entry], index: u64) -> Self {
        let (p, c) = ring_at(entries, index);
        Way { p, c, oracle: VecDeque::new(), size: entries.len() as u64 }
    }

    fn push(&mut self, raw: &Raw, credit: u32) -> bool {
        let space = self.p.space();
        assert!(space + self.oracle.len() as u64 <= self.size, "space that is not there");
        let pushed = self.p.push(raw, credit);
        assert_eq!(pushed, if space > 0 { Ok(()) } else { Err(Full) });
        if pushed.is_ok() {
            self.oracle.push_back(*raw);
        }
        pushed.is_ok()
    }

    /// The credit that came with the entry.
    fn pop(&mut self) -> Option<u32> {
        assert_eq!(self.c.ready(), !self.oracle.is_empty());
        let got = self.c.pop().unwrap();
        assert_eq!(got.map(|(raw, _)| raw), self.oracle.pop_front());
        got.map(|(_, credit)| credit)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn s2_4_entries_pass_in_order_and_honest_credit_is_taken(
        starts in (index(), index()),
        bits in 1..9u32,
        ops in prop::collection::vec(op(), 0..300),
    ) {
        let n = 1usize << bits;
        let memory = [Memory::zeroed(n * 64), Memory::zeroed(n * 64)];
        let mut requests = Way::new(entries(&memory[0], n), starts.0);
        let mut completions = Way::new(entries(&memory[1], n), starts.1);
        let mut armed = 0;
        for op in &ops {
            match op {
                Op::HostPush(raw) if requests.p.space() > 0 => {
                    let credit = completions.c.credit();
                    prop_assert!(requests.push(raw, credit));
                    prop_assert_eq!(completions.c.untold(), 0);
                }
                Op::CardPush(raw) if completions.p.space() > 0 => {
                    let credit = requests.c.credit();
                    prop_assert!(completions.push(raw, credit));
                }
                Op::HostPush(raw) => prop_assert!(!requests.push(raw, 0)),
                Op::CardPush(raw) => prop_assert!(!completions.push(raw, 0)),
                Op::HostPop => if let Some(credit) = completions.pop() {
                    prop_assert!(requests.p.take_credit(credit), "honest credit refused");
                },
                // May bring a credit that is older than the `armed` read before it.
                Op::CardPop => if let Some(credit) = requests.pop() {
                    prop_assert!(completions.p.take_credit(credit), "honest credit refused");
                },
                Op::Arm => armed = completions.c.consumed() + 1,
                Op::ReadArmed => prop_assert!(completions.p.take_armed(armed), "honest credit refused"),
            }
        }
    }

    #[test]
    fn s2_4_a_credit_ahead_of_what_was_pushed_is_a_lie(start in index(), ahead in 1..1u32 << 30, used in 0..8u32) {
        let memory = Memory::zeroed(8 * 64);
        let (mut p, _) = ring_at(entries(&memory, 8), start);
        for _ in 0..used {
            p.push(&Raw::default(), 0).unwrap();
        }
        let truth = u32::try_from(p.pushed() & 0xffff_ffff).unwrap();
        prop_assert!(!p.take_credit(truth.wrapping_add(ahead)));
        prop_assert!(!p.take_armed((p.pushed() + 1).saturating_add(u64::from(ahead))));
        prop_assert_eq!(p.space(), u64::from(8 - used));
        prop_assert!(p.take_credit(truth));
        prop_assert_eq!(p.space(), 8);
    }

    #[test]
    fn s2_4_whatever_credit_comes_space_stays_possible(
        start in index(),
        claims in prop::collection::vec((any::<u32>(), any::<u64>(), raw()), 0..100),
    ) {
        let memory = Memory::zeroed(8 * 64);
        let (mut p, _) = ring_at(entries(&memory, 8), start);
        for (credit, armed, raw) in &claims {
            let _ = (p.push(raw, 0), p.take_credit(*credit), p.take_armed(*armed));
            let _ = p.take_credit(u32::try_from(p.pushed() & 0xffff_ffff).unwrap().wrapping_sub(credit % 12));
            prop_assert!(p.space() <= 8);
        }
    }

    #[test]
    fn s2_3_random_entries_are_copied_or_refused(
        start in index(),
        words in prop::collection::vec(any::<[u64; 8]>(), 0..64),
        valid in any::<bool>(),
    ) {
        let memory = Memory::zeroed(8 * 64);
        let (_, mut c) = ring_at(entries(&memory, 8), start);
        for content in &words {
            let at = c.consumed();
            let offset = usize::try_from(at % 8).unwrap() * 64;
            let mut content = *content;
            if valid {
                content[0] = content[0] & !0xffff_ffff | (at + 1) & 0xffff_ffff;
            }
            for (i, word) in content.iter().enumerate() {
                memory.region().get::<AtomicU64>(offset + i * 8).unwrap().store(*word, Ordering::Relaxed);
            }
            let version = content[0].to_le_bytes()[5];
            match c.pop() {
                Ok(Some((raw, _))) => {
                    prop_assert_eq!(u32::from(version), VERSION);
                    prop_assert_eq!(&raw.body[..], &content[2..]);
                }
                Ok(None) => prop_assert_ne!(content[0] & 0xffff_ffff, (at + 1) & 0xffff_ffff),
                Err(WrongVersion(v)) => prop_assert_eq!(v, version),
            }
            prop_assert!(c.consumed() - at <= 1);
        }
    }

    #[test]
    fn s2_5_an_interrupt_fires_once_for_each_armed_value(
        steps in prop::collection::vec((any::<bool>(), any::<bool>(), 0..4u64), 0..200),
    ) {
        // The host arms only what it has consumed; the card may see the word late.
        let (mut pushed, mut consumed, mut posted, mut seen) = (0u64, 0u64, 0u64, 0u64);
        let mut gate = IrqGate::default();
        let mut fired = Vec::new();
        for (arm, look, n) in steps {
            pushed += n;
            if arm {
                consumed = pushed - consumed.min(pushed) % 2;
                posted = posted.max(consumed + 1);
            }
            if look {
                seen = posted;
            }
            let due = seen != 0 && pushed >= seen && fired.last() != Some(&seen);
            prop_assert_eq!(gate.should_fire(seen, pushed), due);
            prop_assert!(!gate.should_fire(seen, pushed), "twice for one value");
            if due {
                fired.push(seen);
            }
        }
        prop_assert!(fired.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn s2_5_any_armed_word_is_harmless(words in prop::collection::vec((any::<u64>(), any::<u64>()), 0..100)) {
        let mut gate = IrqGate::default();
        for (armed, pushed) in words {
            if gate.should_fire(armed, pushed) {
                prop_assert!(armed <= pushed);
            }
        }
    }
}

#[test]
fn s2_3_an_entry_of_another_version_is_refused_and_consumed() {
    let memory = Memory::zeroed(4 * 64);
    let (mut p, mut c) = ring_at(entries(&memory, 4), 0);
    p.push(&Raw { kind: 9, ..Raw::default() }, 0).unwrap();
    let head: &AtomicU64 = memory.region().get(0).unwrap();
    head.store(
        head.load(Ordering::Relaxed) & !(0xff << 40) | u64::from(OTHER_VERSION) << 40,
        Ordering::Relaxed,
    );
    assert_eq!(c.pop(), Err(WrongVersion(OTHER_VERSION)));
    assert_eq!(c.pop(), Ok(None));
    assert_eq!(c.consumed(), 1);
}

#[test]
fn s2_4_a_credit_older_than_armed_is_no_lie() {
    let memory = Memory::zeroed(8 * 64);
    let (mut p, _) = ring_at(entries(&memory, 8), 0);
    for _ in 0..6 {
        p.push(&Raw::default(), 0).unwrap();
    }
    // The host posted a request when it had consumed 2, then consumed 5 and armed; the card reads `armed` first.
    assert!(p.take_armed(6));
    assert!(p.take_credit(2));
    assert_eq!(p.space(), 8 - 1);
}

#[test]
fn s2_1_windows_and_host_memory_are_checked() {
    let (window, host) = (Memory::zeroed(WINDOW_BYTES), Memory::zeroed(HOST_BYTES));
    let (w, h) = (Window::over(window.region()).unwrap(), HostMemory::over(host.region()).unwrap());
    assert!(!w.valid() && !h.valid());
    w.format(7);
    h.format(Kind::PerProcess, Key([3, 4]));
    assert_eq!(h.key(), Key([3, 4]));
    assert!(w.valid() && h.valid());
    assert_eq!(w.header.function.load(Ordering::Relaxed), 7);
    assert_eq!((w.requests.len(), h.completions.len()), (ENTRIES as usize, ENTRIES as usize));
    w.header.version.store(OTHER_VERSION.into(), Ordering::Relaxed);
    h.header.magic.store(0, Ordering::Relaxed);
    assert!(!w.valid() && !h.valid());

    let short = ENTRIES_OFFSET + ENTRIES as usize * 64 - 1;
    assert!(Window::over(window.region().part(0, short).unwrap()).is_none());
    assert!(HostMemory::over(host.region().part(0, short).unwrap()).is_none());
}

/// A function of real size, and both its ends.
struct Ends {
    memory: [Memory; 2],
}

impl Ends {
    fn new() -> Ends {
        Ends { memory: [Memory::zeroed(WINDOW_BYTES), Memory::zeroed(HOST_BYTES)] }
    }

    fn both(&self) -> (HostEnd<'_>, CardEnd<'_>) {
        let [window, host] = &self.memory;
        let (window, host) =
            (Window::over(window.region()).unwrap(), HostMemory::over(host.region()).unwrap());
        let requests = Requests::private(&window.far());
        let host_end = HostEnd::new(requests, &window.far(), &host.near());
        (host_end, CardEnd::new(&window.near(), &host.far()))
    }
}

#[test]
fn s2_4_4_who_has_no_room_gives_credit_by_armed() {
    let ends = Ends::new();
    let (mut host, mut card) = ends.both();
    let raw = Raw { kind: 1, ..Raw::default() };
    // News, and then requests, and nobody takes anything.
    (0..ENTRIES).for_each(|_| card.push(&raw).unwrap());
    (0..ENTRIES).for_each(|_| host.post(&raw).unwrap());
    assert_eq!(card.push(&raw), Err(Full));
    // The card takes, and can't say so.
    while card.take().unwrap().is_some() {}
    assert_eq!((card.untold(), card.push(&raw)), (ENTRIES.into(), Err(Full)));
    // What the host takes brings no credit.
    while host.take().unwrap().is_some() {}
    assert_eq!(host.post(&raw), Err(Full));
    assert!(card.look_at_armed().unwrap());
    card.push(&raw).unwrap();
    assert!(host.take().unwrap().is_some());
    host.post(&raw).unwrap();
}

#[test]
fn s2_6_5_a_sleeping_card_hears_of_credit_once_a_ring_was_taken() {
    let ends = Ends::new();
    let (mut host, mut card) = ends.both();
    let raw = Raw { kind: 1, ..Raw::default() };
    card.set_doorbell_wanted(true);
    for turn in 0..3 {
        for taken in 1..=ENTRIES {
            card.push(&raw).unwrap();
            assert!(host.take().unwrap().is_some());
            let armed = host.arm(|| ());
            // Not each time that somebody sleeps.
            assert_eq!((armed.ready, armed.ring), (false, taken == ENTRIES), "turn {turn}, {taken}");
            card.look_at_armed().unwrap();
        }
    }
    // A request rings for itself, and tells as much.
    for _ in 0..ENTRIES - 1 {
        card.push(&raw).unwrap();
        assert!(host.take().unwrap().is_some());
    }
    host.post(&raw).unwrap();
    assert!(host.doorbell_wanted(|| ()));
    assert!(card.take().unwrap().is_some());
    card.push(&raw).unwrap();
    assert!(host.take().unwrap().is_some());
    assert!(!host.arm(|| ()).ring);
}

#[test]
fn s2_6_6_a_quiet_request_tells_a_sleeping_card_nothing() {
    let ends = Ends::new();
    let (mut host, mut card) = ends.both();
    let raw = Raw { kind: 1, ..Raw::default() };
    card.set_doorbell_wanted(true);
    for taken in 1..=ENTRIES {
        card.push(&raw).unwrap();
        assert!(host.take().unwrap().is_some());
        host.post_quietly(&raw).unwrap();
        let armed = host.arm(|| ());
        assert_eq!((armed.ready, armed.ring), (false, taken == ENTRIES), "{taken}");
        card.look_at_armed().unwrap();
    }
    // No room: the card is to be rung.
    assert_eq!(host.post_quietly(&raw), Err(Full));
    // What was posted quietly comes first.
    let requests = std::iter::from_fn(|| card.take().unwrap()).count();
    assert_eq!(requests, ENTRIES as usize);
}
