//! SPEC 4: the stream against an oracle, and against a peer that lies.
#![cfg(not(loom))]

mod support;

use proptest::prelude::*;
use ring::atomic::Ordering;
use ring::segment::{RING_BYTES, state};
use ring::stream::{self, Memory as _, Place, RECORD_MAX, Reader, RingBytes, Span, Violation, Writer};
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

fn ring_bytes() -> impl Strategy<Value = usize> {
    prop_oneof![3 => Just(64usize), 2 => Just(128), 2 => Just(1024), 1 => Just(RING_BYTES)]
}

/// At least one byte, at most all of them.
fn part_of(len: usize, part: u8) -> usize {
    (len * (usize::from(part) + 1) / 256).max(1)
}

/// A stream whose sides both stand at `start`, in memory full of what looks like headers.
struct Sut {
    mem: StreamMemory,
    w: Writer,
    r: Reader,
    written: u64,
    oracle: VecDeque<u8>,
    /// Bytes written before each record that something belongs to, and bytes read.
    beside: VecDeque<u64>,
    taken: u64,
}

impl Sut {
    fn at(start: u64, ring_bytes: usize) -> Self {
        Self::in_memory(start, StreamMemory::new(ring_bytes))
    }

    fn in_memory(start: u64, mem: StreamMemory) -> Self {
        mem.fill(|| 1 << 63 | 1 << 32 | 8);
        stream::open(mem.ring(), mem.direction(), 1);
        mem.ring().header(mem.ring().place(start)).unwrap().store(0, Ordering::Relaxed);
        mem.direction().consumed.store(start, Ordering::Relaxed);
        Sut {
            mem,
            w: Writer { tail: start, limit: start },
            r: Reader { pos: start, left: 0, len: 0 },
            written: 0,
            oracle: VecDeque::new(),
            beside: VecDeque::new(),
            taken: 0,
        }
    }

    fn inside(&self, span: Span) {
        assert!(self.mem.inside(span));
    }

    fn free(&self) -> u64 {
        let consumed = self.mem.direction().consumed.load(Ordering::Relaxed);
        self.mem.ring_region().len() as u64 - (self.w.tail - consumed)
    }

    fn write(&mut self, want: usize, part: u8, ancillary: bool) {
        let start = self.written;
        let free = self.free();
        let ring = self.mem.ring();
        let Some(span) = stream::reserve(ring, self.mem.direction(), &mut self.w, want).unwrap() else {
            let in_head = self.w.tail < ring.head();
            assert!(free < 32 && !in_head, "called full with {free} bytes free");
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
            stream::commit_ancillary(ring, &mut self.w, bytes.len()).unwrap();
            self.beside.push_back(start);
        } else {
            stream::commit(ring, &mut self.w, bytes.len()).unwrap();
        }
        self.oracle.extend(bytes);
    }

    fn read(&mut self, part: u8) -> bool {
        let Some(span) = stream::next(self.mem.ring(), &mut self.r).unwrap() else {
            assert!(self.oracle.is_empty(), "empty with bytes written");
            return false;
        };
        self.inside(span);
        let due = self.beside.front() == Some(&self.taken);
        assert_eq!(span.ancillary, due, "it belongs to the first byte of its record, once");
        if due {
            self.beside.pop_front();
        }
        let got = copy_out(&self.mem.ring(), span, part_of(span.len, part));
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
                let there = stream::unread(self.mem.ring(), &self.r).unwrap();
                assert_eq!(there.bytes, self.oracle.len());
                assert!(there.ring_bytes <= self.w.tail - self.r.pos);
            }
            Op::HasRoom { want } => {
                let ring = self.mem.ring();
                let room = stream::has_room(ring, self.mem.direction(), &mut self.w, want).unwrap();
                let consumed = self.mem.direction().consumed.load(Ordering::Relaxed);
                let possible = want + 32 <= ring.size();
                let in_head = self.w.tail + want + 32 <= ring.head();
                assert_eq!(room, in_head || possible && consumed >= stream::room_at(ring, &self.w, want));
                if room && want > 0 {
                    let want = usize::try_from(want).unwrap();
                    let mut w = self.w;
                    let span = stream::reserve(ring, self.mem.direction(), &mut w, want).unwrap();
                    assert!(span.is_some(), "room, but nothing to reserve");
                    // `reserve` may have published a skip.
                    self.w = w;
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
        start in 0..1u64 << 60,
        bytes in ring_bytes(),
        ops in prop::collection::vec(op(), 0..200),
    ) {
        let mut sut = Sut::at(start * 8, bytes);
        for op in &ops {
            sut.step(op);
        }
        sut.finish();
    }

    #[test]
    fn s4_1_what_begins_in_the_head_goes_on_in_the_ring(
        head in 1..60u64,
        bytes in ring_bytes(),
        ops in prop::collection::vec(op(), 0..200),
    ) {
        let head = (head * 8).min(bytes as u64 / 2);
        let mut sut = Sut::in_memory(0, StreamMemory::with_head(bytes, head));
        for op in &ops {
            sut.step(op);
        }
        sut.finish();
    }

    #[test]
    fn s4_6_a_peer_that_lies_gets_no_further_than_a_violation(
        start in prop_oneof![Just(0), 0..1u64 << 60],
        head in 0..8u64,
        bytes in ring_bytes(),
        words in prop::collection::vec(header_like(), 8..64),
        ops in prop::collection::vec((op(), prop::option::of(any::<u64>()), header_like()), 0..100),
    ) {
        hostile(start * 8, StreamMemory::with_head(bytes, (head * 8).min(bytes as u64 / 2)), &words, &ops);
    }
}

/// Words that get past some of the checks.
fn header_like() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => (0..64u64).prop_map(|len| 1 << 63 | 1 << 32 | len),
        1 => Just(1 << 63 | 2 << 32),
        1 => Just(1 << 63 | 3 << 32 | 1),
        1 => (0..1u64 << 20).prop_map(|len| 1 << 63 | 1 << 32 | len),
        1 => (0..64u32).prop_map(|bit| 1 << 63 | 1 << 32 | 8 | 1 << bit),
        1 => any::<u64>(),
        1 => Just(0),
    ]
}

/// Both sides work on memory that somebody else scribbles over between their steps.
fn hostile(start: u64, mem: StreamMemory, words: &[u64], ops: &[(Op, Option<u64>, u64)]) {
    let mut sut = Sut::in_memory(start, mem);
    let ring: RingBytes = sut.mem.ring();
    let (bytes, head) = (ring.size(), ring.head());
    let mut words = words.iter().cycle();
    sut.mem.fill(|| *words.next().unwrap());
    let dir = sut.mem.direction();
    let mut looks = 0;
    for (op, consumed, word) in ops {
        if let Some(consumed) = consumed {
            // Anything, or something near the truth.
            let near = sut.w.tail.wrapping_sub(64).wrapping_add(consumed % 128);
            dir.consumed.store(if consumed & 1 == 0 { near } else { *consumed }, Ordering::Relaxed);
        }
        ring.header(ring.place(sut.r.pos)).unwrap().store(*word, Ordering::Relaxed);
        let (w, r) = (sut.w, sut.r);
        match *op {
            Op::Write { want, part, .. } => match stream::reserve(ring, dir, &mut sut.w, want) {
                Ok(Some(span)) => {
                    sut.inside(span);
                    stream::commit(ring, &mut sut.w, part_of(span.len, part)).unwrap();
                    assert!(
                        sut.w.tail <= sut.w.limit && sut.w.limit - sut.w.tail <= bytes,
                        "wrote over unread bytes"
                    );
                }
                Ok(None) => {}
                Err(Violation) => assert_eq!(sut.w.tail, w.tail),
            },
            Op::Read { part } => match stream::next(ring, &mut sut.r) {
                Ok(Some(span)) => {
                    sut.inside(span);
                    looks += 1;
                    stream::take(&mut sut.r, part_of(span.len, part));
                    assert!(sut.r.pos - r.pos <= bytes + 8 + head, "more than a turn in one record");
                }
                Ok(None) => {}
                Err(Violation) => assert!(sut.r.pos - r.pos <= head.max(8)),
            },
            Op::Release => {
                stream::release(dir, &sut.r);
                assert!(dir.consumed.load(Ordering::Relaxed) <= sut.r.pos + bytes);
            }
            Op::Unread => {
                if let Ok(there) = stream::unread(ring, &sut.r) {
                    assert!(there.bytes as u64 <= there.ring_bytes.max(bytes));
                    assert!(there.ring_bytes <= 3 * bytes);
                }
            }
            Op::HasRoom { want } => {
                let _ = stream::has_room(ring, dir, &mut sut.w, want);
            }
        }
        let _ = stream::drained(dir, &sut.w);
    }
    assert!(looks <= ops.len());
}

#[test]
fn s4_3_a_skip_record_takes_the_last_word_of_the_ring() {
    let mut sut = Sut::at(64 - 8, 64);
    sut.write(8, 255, false);
    let last = sut.mem.ring().header(Place::in_ring(56)).unwrap().load(Ordering::Relaxed);
    assert_eq!(last, 1 << 63 | 2 << 32);
    assert_eq!(sut.w.tail, 56 + 8 + 16);
    assert!(sut.read(255));
    assert_eq!(sut.r.pos, sut.w.tail);
}

#[test]
fn s4_6_a_skip_that_is_not_at_the_end_is_a_violation() {
    for offset in (0..64).step_by(8) {
        let mut sut = Sut::at(offset as u64, 64);
        sut.mem.ring().header(Place::in_ring(offset)).unwrap().store(1 << 63 | 2 << 32, Ordering::Relaxed);
        sut.mem.ring().header(Place::in_ring((offset + 8) % 64)).unwrap().store(0, Ordering::Relaxed);
        let expected = if offset == 56 { Ok(None) } else { Err(Violation) };
        assert_eq!(stream::next(sut.mem.ring(), &mut sut.r), expected);
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
        let mut sut = Sut::at(0, 64);
        sut.mem.ring().header(Place::in_ring(0)).unwrap().store(wrong, Ordering::Relaxed);
        assert_eq!(stream::next(sut.mem.ring(), &mut sut.r), Err(Violation), "{wrong:#x}");
    }
}

#[test]
fn s4_6_a_reader_position_outside_of_what_was_written_is_a_violation() {
    for (consumed, fine) in
        [(4095, false), (4096, true), (4096 + 48, true), (4096 + 49, false), (u64::MAX, false), (0, false)]
    {
        let mut sut = Sut::at(4096, 64);
        for _ in 0..3 {
            sut.write(8, 255, false);
        }
        sut.mem.direction().consumed.store(consumed, Ordering::Relaxed);
        let got = stream::reserve(sut.mem.ring(), sut.mem.direction(), &mut sut.w, 32);
        assert_eq!(got.is_ok(), fine, "{consumed}");
    }
}

#[test]
fn s4_4_space_inside_a_record_is_freed_in_words() {
    let mut sut = Sut::at(0, 1024);
    sut.write(100, 255, false);
    let mut freed = Vec::new();
    for n in [1, 6, 1, 92] {
        stream::next(sut.mem.ring(), &mut sut.r).unwrap();
        stream::take(&mut sut.r, n);
        sut.release();
        freed.push(sut.mem.direction().consumed.load(Ordering::Relaxed));
    }
    assert_eq!(freed, [8, 8, 16, 112]);
}

#[test]
fn s4_5_the_end_is_told_after_the_data() {
    let mut sut = Sut::at(0, 1024);
    sut.write(5, 255, false);
    sut.mem.direction().state.store(state::FIN, Ordering::Release);
    assert_eq!(sut.mem.direction().state.load(Ordering::Acquire), state::FIN);
    assert!(sut.read(255));
    assert!(!sut.read(255));
}

#[test]
fn s4_8_the_last_urgent_byte_is_told_ahead_and_stands_in_the_stream() {
    let mut sut = Sut::at(40, 128);
    assert_eq!(urgent::ahead(sut.mem.direction(), &sut.r), None);
    sut.write(3, 255, false);
    for byte in [7, 8] {
        let span = stream::reserve(sut.mem.ring(), sut.mem.direction(), &mut sut.w, 1).unwrap().unwrap();
        urgent::announce(sut.mem.direction(), &sut.w, byte);
        copy_in(&sut.mem.ring(), span, &[byte]);
        stream::commit_urgent(sut.mem.ring(), &mut sut.w).unwrap();
    }
    let last = Urgent { pos: 40 + 2 * 16, byte: 8 };
    assert_eq!(urgent::ahead(sut.mem.direction(), &sut.r), Some(last));
    assert!(sut.read(255));
    for byte in [7, 8] {
        let span = stream::next(sut.mem.ring(), &mut sut.r).unwrap().unwrap();
        assert!(span.urgent);
        assert_eq!(urgent::ahead(sut.mem.direction(), &sut.r), Some(last));
        assert_eq!(copy_out(&sut.mem.ring(), span, 1), [byte]);
        stream::take(&mut sut.r, 1);
    }
    assert_eq!(urgent::ahead(sut.mem.direction(), &sut.r), None);
    stream::open(sut.mem.ring(), sut.mem.direction(), 2);
    assert_eq!(urgent::ahead(sut.mem.direction(), &Reader::default()), None);
}

#[test]
fn s5_5_open_empties_the_ring() {
    let mut sut = Sut::at(0, 64);
    sut.write(8, 255, false);
    sut.mem.direction().state.store(state::RST, Ordering::Release);
    assert!(!stream::is_open(sut.mem.direction(), 2));
    stream::open(sut.mem.ring(), sut.mem.direction(), 2);
    assert!(stream::is_open(sut.mem.direction(), 2));
    assert_eq!(sut.mem.direction().state.load(Ordering::Acquire), state::OPEN);
    assert_eq!(stream::next(sut.mem.ring(), &mut Reader::default()), Ok(None));
    assert!(stream::drained(sut.mem.direction(), &Writer::default()));
}

#[test]
fn s4_1_only_a_power_of_two_of_at_least_64_bytes_is_a_ring() {
    let memory = support::Memory::zeroed(4096);
    for (bytes, fine) in [(0, false), (8, false), (32, false), (64, true), (96, false), (4096, true)] {
        let part = memory.region().part(0, bytes).unwrap();
        assert_eq!(RingBytes::new(part).is_some(), fine, "{bytes}");
    }
}

#[test]
fn s4_1_a_stream_leaves_its_head_by_a_skip_once() {
    let mut sut = Sut::in_memory(0, StreamMemory::with_head(1024, 64));
    // Room is left for the skip: 16, 32, and the third has none.
    for (bytes, tail) in [(8, 16), (8, 32), (8, 48), (8, 64 + 16), (8, 64 + 32)] {
        sut.write(bytes, 255, false);
        assert_eq!(sut.w.tail, tail);
    }
    while sut.read(255) {}
    assert_eq!(sut.r.pos, sut.w.tail);
    // What does not fit leaves it at once.
    let mut sut = Sut::in_memory(0, StreamMemory::with_head(1024, 64));
    sut.write(100, 255, false);
    assert_eq!(sut.w.tail, 64 + 112);
    assert!(sut.read(255));
}
