//! SPEC 4 and 6 on real memory and real cores: long runs, checksummed, polling and sleeping.
//!
//! `unsafe` is allowed here for futex(2) and membarrier(2).
#![cfg(not(loom))]
#![allow(unsafe_code)]

mod support;

use ring::atomic::{Heavy, Ordering};
use ring::segment::state;
use ring::stream::{self, Reader, Writer};
use ring::wake::{EVERYBODY, FUTEX, SleepWord};
use ring::window::{Consumer, Entry, Producer, Raw};
use std::sync::Arc;
use std::time::Duration;
use support::{Memory, StreamMemory, copy_in, copy_out};

/// What the writer's and the reader's bytes come from: position in the stream.
fn byte(position: u64) -> u8 {
    (position.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).to_le_bytes()[0]
}

/// Lengths of calls: mostly small, sometimes beyond a record.
fn length(seed: &mut u64) -> usize {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    let small = usize::try_from(*seed >> 58).unwrap() + 1;
    if seed.is_multiple_of(64) { small * 600 } else { small }
}

/// `MEMBARRIER_CMD_PRIVATE_EXPEDITED`: threads of one process, so the private kind does.
struct Membarrier;

impl Membarrier {
    fn register() {
        // SAFETY: membarrier(2) touches no memory of ours.
        let result = unsafe { libc::syscall(libc::SYS_membarrier, 1 << 4, 0, 0) };
        assert_eq!(result, 0, "this test needs membarrier(2), Linux 4.14 or later");
    }
}

impl Heavy for Membarrier {
    fn heavy_barrier(&self) {
        // SAFETY: as above.
        let result = unsafe { libc::syscall(libc::SYS_membarrier, 1 << 3, 0, 0) };
        assert_eq!(result, 0);
    }
}

/// How a side waits.
trait Wait: Send + 'static {
    fn wait(&self, word: &SleepWord, ready: &mut dyn FnMut() -> bool);
    fn wake(&self, word: &SleepWord);
}

struct Poll;
impl Wait for Poll {
    fn wait(&self, _: &SleepWord, _: &mut dyn FnMut() -> bool) {
        std::thread::yield_now();
    }
    fn wake(&self, _: &SleepWord) {}
}

struct Sleep;
impl Wait for Sleep {
    fn wait(&self, word: &SleepWord, ready: &mut dyn FnMut() -> bool) {
        let value = word.announce_and_fence(FUTEX, EVERYBODY, &Membarrier).futex_value();
        if ready() {
            return;
        }
        let bound = libc::timespec { tv_sec: 5, tv_nsec: 0 };
        let (null, any) = (std::ptr::null::<u32>(), 0u32);
        // SAFETY: the word and the timeout live across the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_futex,
                word.futex_address(),
                libc::FUTEX_WAIT,
                value,
                &raw const bound,
                null,
                any,
            )
        };
        let timed_out =
            result == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ETIMEDOUT);
        assert!(!(timed_out && ready()), "a wake-up was lost");
    }
    fn wake(&self, word: &SleepWord) {
        if word.sleepers().how() & FUTEX != 0 {
            // SAFETY: the word lives across the call.
            unsafe { libc::syscall(libc::SYS_futex, word.futex_address(), libc::FUTEX_WAKE, i32::MAX) };
        }
    }
}

/// Writes `total` bytes and FIN.
fn write_all(mem: &StreamMemory, total: u64, how: &impl Wait) {
    let (ring, dir) = (mem.ring(), mem.direction());
    let (mut w, mut sent, mut seed) = (Writer::default(), 0, 1);
    while sent < total {
        let mut want = length(&mut seed).min(usize::try_from(total - sent).unwrap());
        while want > 0 {
            let Some(span) = stream::reserve(ring, dir, &mut w, want).unwrap() else {
                let mut copy = w;
                how.wait(&dir.tx_wait, &mut || stream::has_room(ring, dir, &mut copy, 1).unwrap());
                continue;
            };
            let bytes: Vec<u8> = (sent..sent + span.len as u64).map(byte).collect();
            copy_in(&ring, span, &bytes);
            stream::commit(ring, &mut w, span.len).unwrap();
            how.wake(&dir.rx_wait);
            sent += span.len as u64;
            want -= span.len;
        }
    }
    dir.state.store(state::FIN, Ordering::Release);
    how.wake(&dir.rx_wait);
}

/// Reads to the end; returns the bytes read, each checked.
fn read_all(mem: &StreamMemory, how: &impl Wait) -> u64 {
    let (ring, dir) = (mem.ring(), mem.direction());
    let (mut r, mut got, mut seed) = (Reader::default(), 0, 2);
    loop {
        let ended = dir.state.load(Ordering::Acquire) == state::FIN;
        let Some(span) = stream::next(ring, &mut r).unwrap() else {
            if ended {
                return got;
            }
            let mut copy = r;
            let mut ready = || {
                dir.state.load(Ordering::Acquire) == state::FIN || stream::next(ring, &mut copy) != Ok(None)
            };
            how.wait(&dir.rx_wait, &mut ready);
            continue;
        };
        let bytes = copy_out(&ring, span, span.len.min(length(&mut seed)));
        for b in &bytes {
            assert_eq!(*b, byte(got), "byte {got}");
            got += 1;
        }
        stream::take(&mut r, bytes.len());
        stream::release(dir, &r);
        how.wake(&dir.tx_wait);
    }
}

fn run<W: Wait>(ring_bytes: usize, total: u64, writer: W, reader: &W) {
    let mem = Arc::new(StreamMemory::new(ring_bytes));
    stream::open(mem.ring(), mem.direction(), 1);
    let thread = std::thread::spawn({
        let mem = mem.clone();
        move || write_all(&mem, total, &writer)
    });
    assert_eq!(read_all(&mem, reader), total);
    thread.join().unwrap();
}

#[test]
fn s4_2_a_long_stream_arrives_whole() {
    for (ring_bytes, total) in [(64, 20_000), (1024, 500_000), (ring::segment::RING_BYTES, 20_000_000)] {
        run(ring_bytes, total, Poll, &Poll);
    }
}

#[test]
fn s6_2_a_long_stream_between_sleepers_loses_no_wake_up() {
    Membarrier::register();
    for (ring_bytes, total) in [(64, 50_000), (1024, 500_000), (ring::segment::RING_BYTES, 5_000_000)] {
        run(ring_bytes, total, Sleep, &Sleep);
    }
}

#[test]
fn s2_4_many_requests_are_all_answered() {
    const N: u32 = 50_000;
    let memory = Arc::new((Memory::zeroed(16 * 64), Memory::zeroed(16 * 64)));
    let card = std::thread::spawn({
        let memory = memory.clone();
        move || {
            let mut requests = Consumer::new(memory.0.region().slice::<Entry>(0, 16).unwrap(), 0);
            let mut completions = Producer::new(memory.1.region().slice::<Entry>(0, 16).unwrap(), 0);
            let mut answered = 0;
            while answered < N {
                let Some((raw, credit)) = requests.pop().unwrap() else {
                    std::thread::yield_now();
                    continue;
                };
                assert!(completions.take_credit(credit));
                completions.push(&raw, requests.credit()).unwrap();
                answered += 1;
            }
        }
    });
    let mut requests = Producer::new(memory.0.region().slice::<Entry>(0, 16).unwrap(), 0);
    let mut completions = Consumer::new(memory.1.region().slice::<Entry>(0, 16).unwrap(), 0);
    let (mut posted, mut answered) = (0, 0);
    while answered < N {
        let raw = Raw { kind: 1, status: 2, token: posted, body: [u64::from(posted); 6] };
        // At most as many in flight as the completion ring can hold.
        if posted < N && posted - answered < 16 && requests.push(&raw, completions.credit()).is_ok() {
            posted += 1;
        }
        match completions.pop().unwrap() {
            Some((raw, credit)) => {
                assert!(requests.take_credit(credit));
                assert_eq!((raw.token, raw.body), (answered, [u64::from(answered); 6]));
                answered += 1;
            }
            None => std::thread::sleep(Duration::ZERO),
        }
    }
    card.join().unwrap();
}
