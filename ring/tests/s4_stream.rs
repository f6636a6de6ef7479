//! SPEC 4: the stream against an oracle, and against a peer that lies.
#![cfg(not(loom))]

mod support;

use proptest::prelude::*;
use ring::atomic::{AtomicU64, Ordering};
use ring::rings::Rings;
use ring::segment::{FIRST_BYTES, RING_BYTES, state};
use ring::stream::{self, GROWN, Memory as _, RECORD_MAX, Reader, Span, Violation, Writer};
use ring::urgent::{self, Urgent};
use std::collections::VecDeque;
use support::{StreamMemory, copy_in, copy_out};

#[derive(Clone, Debug)]
enum Op {
    /// Reserve `want`, commit `part`/256 of what was given, maybe with something beside it.
    Write {
        want: usize,
        part: u8,
        ancillary: bool,
    },
    /// Take `part`/256 of the next span.
    Read {
        part: u8,
    },
    Release,
    Unread,
    HasRoom {
        want: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let want = prop_oneof![1..=40usize, 1..=3 * RECORD_MAX];
    let part = prop_oneof![Just(255u8), any::<u8>()];
    prop_oneof![
        4 => (want, part.clone(), any::<bool>())
            .prop_map(|(want, part, ancillary)| Op::Write { want, part, ancillary }),
        4 => part.prop_map(|part| Op::Read { part }),
        3 => Just(Op::Release),
        1 => Just(Op::Unread),
        1 => (0..20_000u64).prop_map(|want| Op::HasRoom { want }),
    ]
}

/// Where both sides stand at first: in either ring, anywhere, or near the last position of the first one.
fn start() -> impl Strategy<Value = u64> {
    let anywhere = prop_oneof![0..GROWN / 8 - 16, GROWN / 8..1u64 << 60];
    prop_oneof![2 => anywhere, 1 => 0..128u64, 1 => GROWN / 8 - 64..GROWN / 8 - 16]
        .prop_map(|words| words * 8)
}

/// Runs `$body` with one of the pairs of sizes that the tests know, by number.
macro_rules! with_sizes {
    ($number:expr, $f:ident($($arg:expr),*)) => {
        match $number {
            0 => $f::<64, 64>($($arg),*),
            1 => $f::<64, 128>($($arg),*),
            2 => $f::<128, 1024>($($arg),*),
            _ => $f::<FIRST_BYTES, RING_BYTES>($($arg),*),
        }
    };
}

/// At least one byte, at most all of them.
fn part_of(len: usize, part: u8) -> usize {
    (len * (usize::from(part) + 1) / 256).max(1)
}

/// A stream whose sides both stand at `start`, in memory full of what looks like headers.
struct Sut<const F: usize, const M: usize> {
    mem: StreamMemory<F, M>,
    w: Writer,
    r: Reader,
    written: u64,
    oracle: VecDeque<u8>,
    /// Bytes written before each record that something belongs to, and bytes read.
    beside: VecDeque<u64>,
    taken: u64,
}

impl<const F: usize, const M: usize> Sut<F, M> {
    fn at(start: u64) -> Self {
        let mem = StreamMemory::new();
        for offset in (0..F + M).step_by(8) {
            let word: &AtomicU64 = mem.region().get(offset).unwrap();
            word.store(1 << 63 | 1 << 32 | 8, Ordering::Relaxed);
        }
        stream::open(&mem.rings(), mem.direction(), 1);
        header(&mem.rings(), start).store(0, Ordering::Relaxed);
        mem.direction().consumed.store(start, Ordering::Relaxed);
        Sut {
            mem,
            w: Writer { tail: start, seen: start },
            r: Reader { pos: start, left: 0, len: 0 },
            written: 0,
            oracle: VecDeque::new(),
            beside: VecDeque::new(),
            taken: 0,
        }
    }

    fn inside(&self, span: Span) {
        let inside = |from, to| span.at >= from && span.at + span.len <= to;
        assert!(span.len >= 1 && (inside(0, F) || inside(F, F + M)));
    }

    fn free(&self) -> u64 {
        let consumed = self.mem.direction().consumed.load(Ordering::Relaxed);
        self.mem.rings().part(self.w.tail).size - stream::distance(consumed, self.w.tail)
    }

    /// As the shim does: what has no room in the first ring goes to the second.
    fn reserve(&mut self, want: usize) -> Option<Span> {
        let rings = self.mem.rings();
        let reserve = |w: &mut Writer| stream::reserve(&rings, self.mem.direction(), w, want).unwrap();
        let span = reserve(&mut self.w);
        if span.is_some() || !stream::grow(&rings, &mut self.w).unwrap() {
            return span;
        }
        let span = reserve(&mut self.w);
        assert!(span.is_some(), "no room in a ring that nobody has used");
        span
    }

    fn write(&mut self, want: usize, part: u8, ancillary: bool) {
        let start = self.written;
        let free = self.free();
        let ring = self.mem.rings();
        let Some(span) = self.reserve(want) else {
            assert!(free < 32, "called full with {free} bytes free");
            return;
        };
        self.inside(span);
        assert!(span.len <= want.min(RECORD_MAX));
        let bytes: Vec<u8> = (0..part_of(span.len, part))
            .map(|_| {
                self.written += 1;
                // Not a multiple of 8, so that a byte at a wrong place shows.
                u8::try_from(self.written % 251).unwrap()
            })
            .collect();
        copy_in(&ring, span, &bytes);
        if ancillary {
            stream::commit_ancillary(&ring, &mut self.w, bytes.len()).unwrap();
            self.beside.push_back(start);
        } else {
            stream::commit(&ring, &mut self.w, bytes.len()).unwrap();
        }
        self.oracle.extend(bytes);
    }

    fn read(&mut self, part: u8) -> bool {
        let Some(span) = stream::next(&self.mem.rings(), &mut self.r).unwrap() else {
            assert!(self.oracle.is_empty(), "empty with bytes written");
            return false;
        };
        self.inside(span);
        let due = self.beside.front() == Some(&self.taken);
        assert_eq!(span.ancillary, due, "it belongs to the first byte of its record, once");
        if due {
            self.beside.pop_front();
        }
        let got = copy_out(&self.mem.rings(), span, part_of(span.len, part));
        let expected: Vec<u8> = self.oracle.drain(..got.len()).collect();
        assert_eq!(got, expected);
        stream::take(&mut self.r, got.len());
        self.taken += got.len() as u64;
        true
    }

    fn release(&mut self) {
        let before = self.mem.direction().consumed.load(Ordering::Relaxed);
        let after = stream::release(self.mem.direction(), &self.r);
        assert_eq!(after, self.mem.direction().consumed.load(Ordering::Relaxed));
        assert!((before..=self.w.tail).contains(&after));
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Write { want, part, ancillary } => self.write(want, part, ancillary),
            Op::Read { part } => {
                self.read(part);
            }
            Op::Release => self.release(),
            Op::Unread => {
                let there = stream::unread(&self.mem.rings(), &self.r).unwrap();
                assert_eq!(there.bytes, self.oracle.len());
                assert!(there.ring_bytes <= self.w.tail - self.r.pos && there.end <= self.w.tail);
            }
            Op::HasRoom { want } => {
                let ring = self.mem.rings();
                let room = stream::has_room(&ring, self.mem.direction(), &mut self.w, want).unwrap();
                let consumed = self.mem.direction().consumed.load(Ordering::Relaxed);
                let first = self.w.tail < GROWN;
                let possible = want + 32 <= ring.part(self.w.tail).size;
                let due = consumed.max(ring.part(self.w.tail).from) >= stream::room_at(&ring, &self.w, want);
                assert_eq!(room, first || (possible && due));
                if room && want > 0 {
                    let span = self.reserve(usize::try_from(want).unwrap());
                    assert!(span.is_some(), "room, but nothing to reserve");
                }
            }
        }
    }

    fn finish(&mut self) {
        while self.read(255) {}
        self.release();
        assert!(stream::drained(self.mem.direction(), &self.w));
        // An empty ring takes a message, whatever its position.
        self.write(1, 255, false);
        assert_eq!(self.oracle.len(), 1);
        assert!(self.read(255));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn s4_2_what_is_written_is_read(
        start in start(),
        sizes in 0..4u32,
        ops in prop::collection::vec(op(), 0..200),
    ) {
        with_sizes!(sizes, honest(start, &ops));
    }

    #[test]
    fn s4_6_a_peer_that_lies_gets_no_further_than_a_violation(
        start in start(),
        sizes in 0..4u32,
        words in prop::collection::vec(header_like(), 8..64),
        ops in prop::collection::vec((op(), prop::option::of(any::<u64>()), header_like()), 0..100),
    ) {
        with_sizes!(sizes, hostile(start, &words, &ops));
    }
}

fn honest<const F: usize, const M: usize>(start: u64, ops: &[Op]) {
    let mut sut = Sut::<F, M>::at(start);
    for op in ops {
        sut.step(op);
    }
    sut.finish();
}

/// The word at a position, in its ring.
fn header<const F: usize, const M: usize>(rings: &Rings<F, M>, pos: u64) -> &AtomicU64 {
    let part = rings.part(pos);
    rings.header(part.start + pos % part.size).unwrap()
}

/// Words that get past some of the checks.
fn header_like() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => (0..64u64).prop_map(|len| 1 << 63 | 1 << 32 | len),
        1 => Just(1 << 63 | 2 << 32),
        1 => Just(1 << 63 | 3 << 32 | 1),
        1 => Just(1 << 63 | 5 << 32),
        1 => (0..1u64 << 20).prop_map(|len| 1 << 63 | 1 << 32 | len),
        1 => (0..64u32).prop_map(|bit| 1 << 63 | 1 << 32 | 8 | 1 << bit),
        1 => any::<u64>(),
        1 => Just(0),
    ]
}

/// Both sides work on memory that somebody else scribbles over between their steps.
fn hostile<const F: usize, const M: usize>(start: u64, words: &[u64], ops: &[(Op, Option<u64>, u64)]) {
    let mut sut = Sut::<F, M>::at(start);
    let ring = sut.mem.rings();
    let dir = sut.mem.direction();
    let bytes = F.max(M) as u64;
    for (offset, word) in (0..(F + M) as u64).step_by(8).zip(words.iter().cycle()) {
        ring.header(offset).unwrap().store(*word, Ordering::Relaxed);
    }
    let mut looks = 0;
    for (op, consumed, word) in ops {
        if let Some(consumed) = consumed {
            // Anything, or something near the truth.
            let near = sut.w.tail.wrapping_sub(64).wrapping_add(consumed % 128);
            dir.consumed.store(if consumed & 1 == 0 { near } else { *consumed }, Ordering::Relaxed);
        }
        header(&ring, sut.r.pos).store(*word, Ordering::Relaxed);
        let (w, r) = (sut.w, sut.r);
        match *op {
            Op::Write { want, part, .. } => match stream::reserve(&ring, dir, &mut sut.w, want) {
                Ok(Some(span)) => {
                    sut.inside(span);
                    stream::commit(&ring, &mut sut.w, part_of(span.len, part)).unwrap();
                    let size = ring.part(sut.w.tail).size;
                    assert!(sut.w.tail - sut.w.seen <= size, "wrote over unread bytes");
                }
                Ok(None) => drop(stream::grow(&ring, &mut sut.w).unwrap()),
                Err(Violation) => assert_eq!(sut.w.tail, w.tail),
            },
            Op::Read { part } => match stream::next(&ring, &mut sut.r) {
                Ok(Some(span)) => {
                    sut.inside(span);
                    looks += 1;
                    stream::take(&mut sut.r, part_of(span.len, part));
                    let moved = stream::distance(r.pos, sut.r.pos);
                    assert!(moved <= bytes + 8, "more than a turn in one record");
                }
                Ok(None) => {}
                Err(Violation) => assert!(stream::distance(r.pos, sut.r.pos) <= 8),
            },
            Op::Release => {
                stream::release(dir, &sut.r);
                assert!(dir.consumed.load(Ordering::Relaxed) <= sut.r.pos + bytes);
            }
            Op::Unread => {
                if let Ok(there) = stream::unread(&ring, &sut.r) {
                    assert!(there.bytes as u64 <= there.ring_bytes.max(bytes));
                    assert!(there.ring_bytes <= 5 * bytes);
                }
            }
            Op::HasRoom { want } => {
                let _ = stream::has_room(&ring, dir, &mut sut.w, want);
            }
        }
        let _ = stream::drained(dir, &sut.w);
    }
    assert!(looks <= ops.len());
}

#[test]
fn s4_3_a_skip_record_takes_the_last_word_of_the_ring() {
    let mut sut = Sut::<64, 64>::at(64 - 8);
    sut.write(8, 255, false);
    let last = header(&sut.mem.rings(), 56).load(Ordering::Relaxed);
    assert_eq!(last, 1 << 63 | 2 << 32);
    assert_eq!(sut.w.tail, 56 + 8 + 16);
    assert!(sut.read(255));
    assert_eq!(sut.r.pos, sut.w.tail);
}

#[test]
fn s4_6_a_skip_that_is_not_at_the_end_is_a_violation() {
    for offset in (0..64).step_by(8) {
        let mut sut = Sut::<64, 64>::at(offset);
        header(&sut.mem.rings(), offset).store(1 << 63 | 2 << 32, Ordering::Relaxed);
        header(&sut.mem.rings(), offset + 8).store(0, Ordering::Relaxed);
        let expected = if offset == 56 { Ok(None) } else { Err(Violation) };
        assert_eq!(stream::next(&sut.mem.rings(), &mut sut.r), expected);
    }
}

#[test]
fn s4_6_every_wrong_header_is_a_violation() {
    let data = 1 << 63 | 1 << 32;
    for wrong in [
        data,
        data | 57,
        data | 1 << 31,
        1 << 32 | 8,
        1 << 63 | 8,
        1 << 63 | 3 << 32 | 8,
        1 << 63 | 3 << 32,
        data | 8 | 1 << 62,
        1,
    ] {
        let mut sut = Sut::<64, 64>::at(0);
        header(&sut.mem.rings(), 0).store(wrong, Ordering::Relaxed);
        assert_eq!(stream::next(&sut.mem.rings(), &mut sut.r), Err(Violation), "{wrong:#x}");
    }
}

#[test]
fn s4_6_a_reader_position_outside_of_what_was_written_is_a_violation() {
    for (consumed, fine) in
        [(4095, false), (4096, true), (4096 + 48, true), (4096 + 49, false), (u64::MAX, false), (0, false)]
    {
        let mut sut = Sut::<64, 64>::at(4096);
        for _ in 0..3 {
            sut.write(8, 255, false);
        }
        sut.mem.direction().consumed.store(consumed, Ordering::Relaxed);
        let got = stream::reserve(&sut.mem.rings(), sut.mem.direction(), &mut sut.w, 32);
        assert_eq!(got.is_ok(), fine, "{consumed}");
    }
}

#[test]
fn s4_4_space_inside_a_record_is_freed_in_words() {
    let mut sut = Sut::<1024, 1024>::at(0);
    sut.write(100, 255, false);
    let mut freed = Vec::new();
    for n in [1, 6, 1, 92] {
        stream::next(&sut.mem.rings(), &mut sut.r).unwrap();
        stream::take(&mut sut.r, n);
        sut.release();
        freed.push(sut.mem.direction().consumed.load(Ordering::Relaxed));
    }
    assert_eq!(freed, [8, 8, 16, 112]);
}

#[test]
fn s4_5_the_end_is_told_after_the_data() {
    let mut sut = Sut::<1024, 1024>::at(0);
    sut.write(5, 255, false);
    sut.mem.direction().state.store(state::FIN, Ordering::Release);
    assert_eq!(sut.mem.direction().state.load(Ordering::Acquire), state::FIN);
    assert!(sut.read(255));
    assert!(!sut.read(255));
}

#[test]
fn s4_8_the_last_urgent_byte_is_told_ahead_and_stands_in_the_stream() {
    let mut sut = Sut::<128, 128>::at(40);
    assert_eq!(urgent::ahead(sut.mem.direction(), &sut.r), None);
    sut.write(3, 255, false);
    for byte in [7, 8] {
        let span = stream::reserve(&sut.mem.rings(), sut.mem.direction(), &mut sut.w, 1).unwrap().unwrap();
        urgent::announce(sut.mem.direction(), &sut.w, byte);
        copy_in(&sut.mem.rings(), span, &[byte]);
        stream::commit_urgent(&sut.mem.rings(), &mut sut.w).unwrap();
    }
    let last = Urgent { pos: 40 + 2 * 16, byte: 8 };
    assert_eq!(urgent::ahead(sut.mem.direction(), &sut.r), Some(last));
    assert!(sut.read(255));
    for byte in [7, 8] {
        let span = stream::next(&sut.mem.rings(), &mut sut.r).unwrap().unwrap();
        assert!(span.urgent);
        assert_eq!(urgent::ahead(sut.mem.direction(), &sut.r), Some(last));
        assert_eq!(copy_out(&sut.mem.rings(), span, 1), [byte]);
        stream::take(&mut sut.r, 1);
    }
    assert_eq!(urgent::ahead(sut.mem.direction(), &sut.r), None);
    stream::open(&sut.mem.rings(), sut.mem.direction(), 2);
    assert_eq!(urgent::ahead(sut.mem.direction(), &Reader::default()), None);
}

#[test]
fn s5_5_open_empties_the_ring() {
    let mut sut = Sut::<64, 64>::at(0);
    sut.write(8, 255, false);
    sut.mem.direction().state.store(state::RST, Ordering::Release);
    assert!(!stream::is_open(sut.mem.direction(), 2));
    stream::open(&sut.mem.rings(), sut.mem.direction(), 2);
    assert!(stream::is_open(sut.mem.direction(), 2));
    assert_eq!(sut.mem.direction().state.load(Ordering::Acquire), state::OPEN);
    assert_eq!(stream::next(&sut.mem.rings(), &mut Reader::default()), Ok(None));
    assert!(stream::drained(sut.mem.direction(), &Writer::default()));
}

#[test]
fn s4_10_what_has_no_room_in_the_first_ring_goes_on_in_the_second() {
    let mut sut = Sut::<64, 1024>::at(8);
    sut.write(8, 255, false);
    assert_eq!(sut.w.tail, 24);
    // More than the ring holds: not a piece of it, but all of it there.
    sut.write(100, 255, false);
    assert_eq!(header(&sut.mem.rings(), 24).load(Ordering::Relaxed), 1 << 63 | 5 << 32);
    assert_eq!(sut.w.tail, GROWN + 8 + 104);
    assert!(!stream::grow(&sut.mem.rings(), &mut sut.w).unwrap(), "once");
    assert_eq!(stream::unread(&sut.mem.rings(), &sut.r).unwrap().end, sut.w.tail);
    assert_eq!(stream::distance(sut.r.pos, sut.w.tail), 112);
    assert!(sut.read(255) && sut.read(255) && !sut.read(255));
    sut.release();
    assert!(stream::drained(sut.mem.direction(), &sut.w));
}

#[test]
fn s4_10_a_reader_in_the_first_ring_has_freed_nothing_of_the_second() {
    let mut sut = Sut::<64, 64>::at(0);
    sut.write(8, 255, false);
    sut.write(40, 255, false);
    sut.write(8, 255, false);
    assert!(sut.w.tail > GROWN && sut.reserve(8).is_none());
    // All of the first: still nothing of the second.
    assert!(sut.read(255));
    sut.release();
    assert!(sut.reserve(8).is_none());
    assert!(sut.read(255));
    sut.release();
    assert!(sut.reserve(8).is_some());
    // Back to the first ring: a lie.
    sut.mem.direction().consumed.store(16, Ordering::Relaxed);
    assert_eq!(stream::reserve(&sut.mem.rings(), sut.mem.direction(), &mut sut.w, 64), Err(Violation));
}

#[test]
fn s4_10_going_on_twice_is_a_violation() {
    let mut sut = Sut::<64, 64>::at(GROWN + 8);
    header(&sut.mem.rings(), GROWN + 8).store(1 << 63 | 5 << 32, Ordering::Relaxed);
    assert_eq!(stream::next(&sut.mem.rings(), &mut sut.r), Err(Violation));
}
