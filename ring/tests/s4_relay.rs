//! SPEC 4.10: two rings, and a relay between them, against the bytes that were written.

#![cfg(not(loom))]

mod support;

use proptest::prelude::*;
use ring::atomic::Ordering;
use ring::relay::{self, Run};
use ring::segment::Direction;
use ring::stream::{self, Memory as _, Place, Reader, RingBytes, Violation, Writer};
use support::{StreamMemory, copy_in, copy_out};

const VALID: u64 = 1 << 63;

/// One segment's direction.
struct End(StreamMemory);

impl End {
    fn new(bytes: usize) -> End {
        End::with_head(bytes, 0)
    }
    fn with_head(bytes: usize, head: u64) -> End {
        let end = End(StreamMemory::with_head(bytes, head));
        stream::open(end.ring(), end.dir(), 1);
        end
    }
    fn ring(&self) -> RingBytes {
        self.0.ring()
    }
    fn dir(&self) -> &Direction {
        self.0.direction()
    }
    /// The words of a run but its first.
    fn copy_to(&self, to: &End, pos: u64, run: Run) {
        for at in (8..run.len).step_by(8) {
            let place = self.ring().place(pos).plus(usize::try_from(at).unwrap());
            let word = self.ring().header(place).unwrap().load(Ordering::Relaxed);
            to.ring().header(place).unwrap().store(word, Ordering::Relaxed);
        }
    }
}

fn write(end: &End, w: &mut Writer, bytes: &[u8]) -> usize {
    let mut done = 0;
    while done < bytes.len() {
        let Some(span) = stream::reserve(end.ring(), end.dir(), w, bytes.len() - done).unwrap() else {
            break;
        };
        copy_in(&end.ring(), span, &bytes[done..done + span.len]);
        stream::commit(end.ring(), w, span.len).unwrap();
        done += span.len;
    }
    done
}

fn read(end: &End, r: &mut Reader, max: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < max {
        let Some(span) = stream::next(end.ring(), r).unwrap() else { break };
        let n = span.len.min(max - got.len());
        got.extend(copy_out(&end.ring(), span, n));
        stream::take(r, n);
        stream::release(end.dir(), r);
    }
    got
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    Relay(u64),
    Credit,
    Read(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1..700_usize).prop_map(Step::Write),
        (8..600_u64).prop_map(Step::Relay),
        Just(Step::Credit),
        (1..700_usize).prop_map(Step::Read),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #[test]
    fn s4_10_bytes_come_through_in_order(steps in steps(), power in 6_u32..11, head in 0..8_u64) {
        let size = 1_usize << power;
        let head = (head * 8).min(size as u64 / 2);
        let (here, there) = (End::with_head(size, head), End::with_head(size, head));
        let (mut w, mut r, mut far) = (Writer::default(), Reader::default(), Writer::default());
        let (mut relayed, mut credit) = (0, 0);
        let (mut sent, mut got) = (Vec::new(), Vec::new());
        for step in steps.into_iter().chain((0..400).flat_map(|_| [Step::Relay(64), Step::Read(500), Step::Credit])) {
            match step {
                Step::Write(n) => {
                    let bytes: Vec<u8> = (0..n).map(|i| (sent.len() + i).to_le_bytes()[0]).collect();
                    let done = write(&here, &mut w, &bytes);
                    sent.extend_from_slice(&bytes[..done]);
                }
                Step::Relay(max) => {
                    if let Some(run) = relay::next_run(here.ring(), relayed, credit, max).unwrap() {
                        let fill = |at| {
                            assert_eq!(at, here.ring().place(relayed).plus(8));
                            here.copy_to(&there, relayed, run);
                        };
                        relay::place(there.ring(), there.dir(), &mut far, run.first, run.len, fill).unwrap();
                        relayed += run.len;
                    }
                }
                Step::Credit => {
                    credit = relay::consumed(there.ring(), there.dir(), &mut far).unwrap();
                    here.dir().consumed.store(credit, Ordering::Release);
                }
                Step::Read(n) => got.extend(read(&there, &mut r, n)),
            }
        }
        prop_assert_eq!(got, sent);
        prop_assert_eq!(relayed, w.tail);
        prop_assert_eq!(credit, w.tail);
    }

    #[test]
    fn s4_10_2_any_words_are_a_run_inside_or_a_violation(
        words in prop::collection::vec(prop_oneof![any::<u64>(), (0..80_u64).prop_map(|n| 1 << 32 | VALID | n)], 16),
        turn in 0..3_u64, at in 0..16_u64, freed in 0..=128_u64,
    ) {
        let end = End::new(128);
        for (at, word) in words.iter().enumerate() {
            end.ring().header(Place::in_ring(at * 8)).unwrap().store(*word, Ordering::Relaxed);
        }
        let pos = turn * 128 + at * 8;
        let consumed = pos.saturating_sub(freed);
        if let Ok(Some(run)) = relay::next_run(end.ring(), pos, consumed, 64) {
            prop_assert!(run.len % 8 == 0 && at * 8 + run.len <= 128);
            prop_assert!(pos + run.len + 8 <= consumed + 128);
            prop_assert_eq!(run.first, words[usize::try_from(at).unwrap()]);
        }
    }

    #[test]
    fn s4_10_3_nonsense_is_not_placed(
        first in prop_oneof![any::<u64>(), (0..200_u64).prop_map(|n| 1 << 32 | VALID | n), Just(2 << 32 | VALID)],
        len in 0..300_u64, tail in 0..40_u64, behind in 0..=16_u64,
    ) {
        let end = End::new(128);
        let tail = tail * 8;
        // A writer is never more than the ring ahead of what it has seen.
        let seen = tail.saturating_sub(behind * 8);
        end.dir().consumed.store(seen, Ordering::Relaxed);
        let mut w = Writer { tail, limit: seen + 128 };
        let offset = tail % 128;
        match relay::place(end.ring(), end.dir(), &mut w, first, len, |_| ()) {
            Ok(()) => {
                prop_assert!(len % 8 == 0 && offset + len <= 128 && tail + len + 8 <= seen + 128);
                prop_assert_eq!(end.ring().header(end.ring().place(tail)).unwrap().load(Ordering::Relaxed), first);
                prop_assert_eq!(end.ring().header(end.ring().place(tail + len)).unwrap().load(Ordering::Relaxed), 0);
                prop_assert_eq!(w.tail, tail + len);
            }
            Err(Violation) => prop_assert_eq!(w.tail, tail),
        }
    }
}

#[test]
fn s4_10_2_ancillary_data_does_not_go_to_another_host() {
    let end = End::new(128);
    let mut w = Writer::default();
    let span = stream::reserve(end.ring(), end.dir(), &mut w, 8).unwrap().unwrap();
    stream::commit_ancillary(end.ring(), &mut w, span.len).unwrap();
    assert_eq!(relay::next_run(end.ring(), 0, 0, 64), Err(Violation));
}

#[test]
fn s4_10_4_a_reader_that_lies() {
    let end = End::new(128);
    let mut w = Writer { tail: 64, limit: 16 + 128 };
    for consumed in [8, 72, u64::MAX] {
        end.dir().consumed.store(consumed, Ordering::Relaxed);
        assert_eq!(relay::consumed(end.ring(), end.dir(), &mut w), Err(Violation));
    }
    end.dir().consumed.store(64, Ordering::Relaxed);
    assert_eq!(relay::consumed(end.ring(), end.dir(), &mut w), Ok(64));
}
