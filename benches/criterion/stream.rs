//! The stream ring alone, in one process: what one message costs the two sides, and a round trip between two
//! threads that both poll. No system call, no sleep: the limit of what a connection can reach.

#![allow(missing_docs)] // of what criterion_group! makes
#![allow(unsafe_code)] // a heap allocation stands in for the mapped segment; see the SAFETY lines

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::hint::{black_box, spin_loop};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ring::segment::{Direction, RING_BYTES, SEGMENT_BYTES, Segment};
use ring::shared::Region;
use ring::stream::{self, Reader, RingBytes, Writer};

/// Message sizes in bytes: a word, a page, and a write of many records.
const SIZES: [usize; 3] = [8, 4096, 65_536];

/// Zeroed memory in the shape of a segment; untouched pages cost nothing.
struct Memory {
    base: NonNull<u8>,
    layout: Layout,
}

impl Memory {
    fn new() -> Memory {
        let Ok(layout) = Layout::from_size_align(SEGMENT_BYTES, 4096) else {
            unreachable!("a constant size")
        };
        // SAFETY: the layout is not empty.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
        Memory { base, layout }
    }

    /// One direction of slot 0: its control lines and its ring.
    fn direction(&self, direction: usize) -> Option<(&Direction, RingBytes)> {
        // SAFETY: the memory is ours, page-aligned, and lives as long as `self`, which every user borrows.
        let region = unsafe { Region::new(self.base, SEGMENT_BYTES) };
        let segment = Segment::over(region)?;
        let control = segment.slots.first()?.directions.get(direction)?;
        let ring = segment.ring(0, u32::try_from(direction).ok()?)?;
        stream::open(ring, control, 1);
        Some((control, ring))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// Sends all of `data`, polling while the ring is full; false if the other side stopped.
fn send(ring: &RingBytes, dir: &Direction, w: &mut Writer, data: &[u8], stop: &AtomicBool) -> bool {
    let mut left = data;
    while !left.is_empty() {
        match stream::reserve(ring, dir, w, left.len()) {
            Ok(Some(span)) => {
                // SAFETY: the source is at least `span.len` long, since `reserve` gives no more than asked for.
                unsafe { ring.copy_in(span.at, left.as_ptr(), span.len) };
                if stream::commit(ring, w, span.len).is_err() {
                    return false;
                }
                left = left.get(span.len..).unwrap_or(&[]);
            }
            Ok(None) if stop.load(Ordering::Relaxed) => return false,
            Ok(None) => spin_loop(),
            Err(_) => return false,
        }
    }
    true
}

/// Fills all of `room`, polling while the ring is empty; false if the other side stopped.
fn receive(ring: &RingBytes, dir: &Direction, r: &mut Reader, room: &mut [u8], stop: &AtomicBool) -> bool {
    let mut filled = 0;
    while filled < room.len() {
        let Some(left) = room.get_mut(filled..) else { return false };
        match stream::next(ring, r) {
            Ok(Some(span)) => {
                let n = span.len.min(left.len());
                // SAFETY: the destination is at least `n` long.
                unsafe { ring.copy_out(span.at, left.as_mut_ptr(), n) };
                stream::take(r, n);
                stream::release(dir, r);
                filled += n;
            }
            Ok(None) if stop.load(Ordering::Relaxed) => return false,
            Ok(None) => spin_loop(),
            Err(_) => return false,
        }
    }
    true
}

/// Both sides in one thread: the work without the cache-line transfers.
fn one_thread(c: &mut Criterion) {
    let memory = Memory::new();
    let Some((dir, ring)) = memory.direction(0) else { return };
    let (mut w, mut r) = (Writer::default(), Reader::default());
    let go_on = AtomicBool::new(false);
    let mut group = c.benchmark_group("write and read, one thread");
    for size in SIZES {
        assert!(size < RING_BYTES / 2, "both halves of a message must fit at once");
        let (data, mut room) = (vec![1_u8; size], vec![0_u8; size]);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("{size} bytes"), |b| {
            b.iter(|| {
                let sent = send(&ring, dir, &mut w, black_box(&data), &go_on);
                sent && receive(&ring, dir, &mut r, black_box(&mut room), &go_on)
            });
        });
    }
    group.finish();
}

/// A round trip between two polling threads.
fn two_threads(c: &mut Criterion) {
    let mut group = c.benchmark_group("round trip, two polling threads");
    for size in SIZES {
        let memory = Memory::new();
        let (Some((up, up_ring)), Some((down, down_ring))) = (memory.direction(0), memory.direction(1))
        else {
            return;
        };
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut w, mut r) = (Writer::default(), Reader::default());
                let mut room = vec![0_u8; size];
                while receive(&up_ring, up, &mut r, &mut room, &stop)
                    && send(&down_ring, down, &mut w, &room, &stop)
                {}
            });
            let (mut w, mut r) = (Writer::default(), Reader::default());
            let (data, mut room) = (vec![1_u8; size], vec![0_u8; size]);
            group.bench_function(format!("{size} bytes"), |b| {
                b.iter(|| {
                    let sent = send(&up_ring, up, &mut w, black_box(&data), &stop);
                    sent && receive(&down_ring, down, &mut r, black_box(&mut room), &stop)
                });
            });
            stop.store(true, Ordering::Relaxed);
        });
    }
    group.finish();
}

criterion_group!(benches, one_thread, two_threads);
criterion_main!(benches);
