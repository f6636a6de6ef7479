//! SPEC 4 and 5.5: the stream between two threads.

use crate::futex::Futex;
use crate::model::{Full, ModelRing, explore};
use loom::sync::Arc;
use loom::thread;
use ring::atomic::Ordering;
use ring::segment::{Direction, state};
use ring::stream::{self, Memory as _, Reader, Span, Writer};
use ring::wake::{EVERYBODY, FUTEX};

struct Stream {
    mem: ModelRing,
    dir: Direction,
    data_queue: Futex,
    space_queue: Futex,
}

/// A stream in use, both sides at `start`.
fn stream_at(start: u64) -> (Arc<Stream>, Writer, Reader) {
    stream_in(ModelRing::new(), start)
}

fn stream_in(mem: ModelRing, start: u64) -> (Arc<Stream>, Writer, Reader) {
    let s = Stream { mem, dir: Direction::new(), data_queue: Futex::new(), space_queue: Futex::new() };
    stream::open(&s.mem, &s.dir, 1);
    let mem = &s.mem;
    mem.header(mem.place(start)).unwrap().store(0, Ordering::Relaxed);
    s.dir.consumed.store(start, Ordering::Relaxed);
    (Arc::new(s), Writer { tail: start, limit: start }, Reader { pos: start, left: 0, len: 0 })
}

impl Stream {
    fn reserve(&self, w: &mut Writer) -> Option<Span> {
        stream::reserve(&self.mem, &self.dir, w, 8).unwrap()
    }

    fn write(&self, w: &mut Writer, value: u64) -> bool {
        let Some(span) = self.reserve(w) else { return false };
        self.mem.write(span, value);
        stream::commit(&self.mem, w, 8).unwrap();
        true
    }

    /// Writer: Release, so that who sees the end sees the records before it (SPEC 4.5).
    fn finish(&self, how: u32) {
        self.dir.state.store(how, Ordering::Release);
    }

    /// Reader: to be asked before the last look.
    fn ended(&self) -> u32 {
        self.dir.state.load(Ordering::Acquire)
    }

    fn read(&self, r: &mut Reader) -> Option<u64> {
        let span = stream::next(&self.mem, r).unwrap()?;
        let value = self.mem.read(span);
        stream::take(r, 8);
        stream::release(&self.dir, r);
        Some(value)
    }
}

type Write = fn(&Stream, &mut Writer, u64) -> bool;

/// More messages than the ring holds, so that space is used again.
fn messages_pass(start: u64, messages: u64, write: Write) {
    messages_pass_in(ModelRing::new, start, messages, write);
}

fn messages_pass_in(ring: fn() -> ModelRing, start: u64, messages: u64, write: Write) {
    explore(2, move || {
        let (s, mut w, mut r) = stream_in(ring(), start);
        let writer = thread::spawn({
            let s = s.clone();
            move || {
                for value in 1..=messages {
                    while !write(&s, &mut w, value) {
                        thread::yield_now();
                    }
                }
            }
        });
        for value in 1..=messages {
            let got = loop {
                match s.read(&mut r) {
                    Some(got) => break got,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(got, value, "out of order");
        }
        writer.join().unwrap();
        assert_eq!(s.read(&mut r), None);
    });
}

#[test]
fn s4_2_messages_pass_in_order_and_space_is_used_again() {
    messages_pass(0, 5, Stream::write);
}

#[test]
fn s4_3_messages_pass_over_a_skip_at_the_end() {
    messages_pass(56, 2, Stream::write);
    messages_pass(40, 4, Stream::write);
}

#[test]
fn s4_1_messages_pass_from_the_head_into_the_ring() {
    messages_pass_in(ModelRing::with_head, 0, 4, Stream::write);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn s4_1_twin_that_does_not_zero_the_ring_before_it_leaves_the_head() {
    let write: Write = |s, w, value| {
        let mem = &s.mem;
        let first = mem.header(mem.place(32)).unwrap();
        let old = first.load(Ordering::Relaxed);
        let in_head = w.tail < 32;
        let Some(span) = s.reserve(w) else { return false };
        if in_head && w.tail >= 32 {
            first.store(old, Ordering::Relaxed);
        }
        s.mem.write(span, value);
        stream::commit(&s.mem, w, 8).unwrap();
        true
    };
    messages_pass_in(ModelRing::with_head, 0, 2, write);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn s4_2_twin_that_publishes_before_the_payload() {
    let write: Write = |s, w, value| {
        let Some(span) = s.reserve(w) else { return false };
        stream::commit(&s.mem, w, 8).unwrap();
        s.mem.write(span, value);
        true
    };
    messages_pass(0, 1, write);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn s4_2_twin_that_does_not_zero_the_next_header() {
    let write: Write = |s, w, value| {
        let Some(span) = s.reserve(w) else { return false };
        let mem = &s.mem;
        let next = mem.header(mem.place(w.tail + 16)).unwrap();
        let old = next.load(Ordering::Relaxed);
        s.mem.write(span, value);
        stream::commit(&s.mem, w, 8).unwrap();
        next.store(old, Ordering::Relaxed);
        true
    };
    messages_pass(0, 2, write);
}

/// Two messages are read while the writer waits for their space.
fn space_is_freed(copy_before_release: bool) {
    explore(3, move || {
        let (s, mut w, mut r) = stream_at(0);
        for value in 1..=3 {
            assert!(s.write(&mut w, value));
        }
        let reader = thread::spawn({
            let s = s.clone();
            move || {
                let spans = [(); 2].map(|()| {
                    let span = stream::next(&s.mem, &mut r).unwrap().unwrap();
                    stream::take(&mut r, 8);
                    span
                });
                let copy = || spans.map(|span| s.mem.read(span));
                let early = copy_before_release.then(copy);
                stream::release(&s.dir, &r);
                assert_eq!(early.unwrap_or_else(copy), [1, 2], "overwritten");
            }
        });
        for value in 4..=5 {
            s.write(&mut w, value);
        }
        reader.join().unwrap();
    });
}

#[test]
fn s4_4_space_is_freed_after_copying_out() {
    space_is_freed(true);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn s4_4_twin_that_frees_before_copying_out() {
    space_is_freed(false);
}

/// Data, then FIN: the reader gets the data before the end.
fn fin_after_data(ask_first: bool) {
    explore(3, move || {
        let (s, mut w, mut r) = stream_at(0);
        let reader = thread::spawn({
            let s = s.clone();
            move || {
                loop {
                    // `None`: asleep; `Some`: what was read before the end.
                    let step = |r: &mut Reader| {
                        let end_before = s.ended();
                        let value = s.read(r);
                        let end = if ask_first { end_before } else { s.ended() };
                        (value, end)
                    };
                    for looked_again in [false, true] {
                        let value =
                            looked_again.then(|| s.dir.rx_wait.announce_and_fence(FUTEX, EVERYBODY, &Full));
                        match step(&mut r) {
                            (Some(v), _) => return Some(v),
                            (None, state::FIN) => return Some(0),
                            _ => {}
                        }
                        if value.is_some_and(|v| s.data_queue.wait(&s.dir.rx_wait, v)) {
                            return None;
                        }
                    }
                }
            }
        });
        assert!(s.write(&mut w, 7));
        s.finish(state::FIN);
        if s.dir.rx_wait.sleepers().how() & FUTEX != 0 {
            s.data_queue.wake();
        }
        let got = reader.join().unwrap();
        assert_ne!(got, Some(0), "EOF before the data");
        assert_eq!(s.data_queue.asleep(), 0, "slept through the end");
    });
}

#[test]
fn s4_5_all_data_comes_before_the_end() {
    fin_after_data(true);
}

#[test]
#[should_panic(expected = "EOF before the data")]
fn s4_5_twin_that_asks_for_the_end_after_looking() {
    fin_after_data(false);
}

/// A full ring: the writer sleeps for space, and says how much (SPEC 4.7). `look_again`: after announcing.
fn writer_waits_for_space(look_again: bool) {
    explore(3, move || {
        let (s, mut w, mut r) = stream_at(0);
        for value in 1..=3 {
            assert!(s.write(&mut w, value));
        }
        let writer = thread::spawn({
            let s = s.clone();
            move || {
                while !stream::has_room(&s.mem, &s.dir, &mut w, 8).unwrap() {
                    let at = stream::room_at(&s.mem, &w, 8);
                    s.dir.tx_wake_at.store(at, Ordering::Relaxed);
                    let value = s.dir.tx_wait.announce_and_fence(FUTEX, EVERYBODY, &Full);
                    if look_again && stream::has_room(&s.mem, &s.dir, &mut w, 8).unwrap() {
                        break;
                    }
                    if s.space_queue.wait(&s.dir.tx_wait, value) {
                        return;
                    }
                }
                assert!(s.write(&mut w, 4), "room, but not for the message");
            }
        });
        for value in 1..=3 {
            let span = stream::next(&s.mem, &mut r).unwrap().unwrap();
            assert_eq!(s.mem.read(span), value);
            stream::take(&mut r, 8);
            let consumed = stream::release(&s.dir, &r);
            ring::atomic::light_barrier();
            if s.dir.tx_wait.is_announced()
                && consumed >= s.dir.tx_wake_at.load(Ordering::Relaxed)
                && s.dir.tx_wait.sleepers().how() & FUTEX != 0
            {
                s.space_queue.wake();
            }
        }
        writer.join().unwrap();
        assert_eq!(s.space_queue.asleep(), 0, "slept through the space");
    });
}

#[test]
fn s4_7_a_writer_that_waits_for_space_is_woken() {
    writer_waits_for_space(true);
}

#[test]
#[should_panic(expected = "slept through the space")]
fn s4_7_twin_that_does_not_look_again() {
    writer_waits_for_space(false);
}

/// The slot's second connection: nothing of the first one is ever taken for the second one's.
fn second_generation(ask_generation: bool) {
    explore(3, move || {
        let (s, mut w, mut r) = stream_at(0);
        assert!(s.write(&mut w, 7));
        s.finish(state::FIN);
        r.pos = 0;
        let reader = thread::spawn({
            let s = s.clone();
            move || {
                if !ask_generation || stream::is_open(&s.dir, 2) {
                    assert_eq!(s.ended(), state::OPEN, "the old end");
                    assert!(matches!(s.read(&mut r), None | Some(8)), "old data");
                }
            }
        });
        let mut w = Writer::default();
        stream::open(&s.mem, &s.dir, 2);
        assert!(s.write(&mut w, 8));
        reader.join().unwrap();
    });
}

#[test]
fn s5_5_a_new_generation_shows_nothing_of_the_old_one() {
    second_generation(true);
}

#[test]
#[should_panic(expected = "the old end")]
fn s5_5_twin_that_does_not_ask_for_the_generation() {
    second_generation(false);
}
