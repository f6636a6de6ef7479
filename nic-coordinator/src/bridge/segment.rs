//! Segments as a bridge sees them: one of the two sides is a process group, and the other one is the bridge, on behalf of a group
//! on another host.
//!
//! `unsafe` is allowed here to view the mappings, and for the copies between a ring and a message.
#![allow(unsafe_code)]

use std::mem::offset_of;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use fabric::memory::{Access, Memory, Region as Registered, RegisterError};
use fabric::provider::Fabric;
use memmap2::MmapRaw;
use ring::atomic::{AtomicU64, Ordering, fence, light_barrier};
use ring::segment::{
    Direction, READER_SHUT, RINGS_OFFSET, SEGMENT_BYTES, SEGMENT_MAGIC, SIDE_STRIDE, SIDES_OFFSET, SLOTS,
    Segment, Side, Slot, ring_bytes_of, state,
};
use ring::shared::Region;
use ring::stream::{self, Place, RingBytes};
use ring::wake::{self, Announced, SleepWord};

use crate::mapping::{MapError, map_sealed, sealed_bytes};

/// The lane of its side that a bridge watches with: it is the only one on that side.
const LANE: usize = 0;

/// What a bridge asks of whoever runs it.
pub trait Outside {
    /// futex(2): wakes all that wait for `word`, which lies in `segment`.
    fn wake(&mut self, segment: &SegmentMemory, word: &SleepWord);
    /// Rings a bell of the processes on `side` (SPEC 6.8); [`wake::EVERYBODY`]: the segment's wire.
    fn ring(&mut self, segment: &SegmentMemory, side: u32, bell: u32);
    /// An urgent byte on the wire (SPEC 6.4.10).
    fn ring_urgent(&mut self, segment: &SegmentMemory, side: u32);
    /// The heavy barrier (SPEC 6.2).
    fn heavy_barrier(&mut self);
}

/// A mapped segment.
#[derive(Debug)]
pub struct SegmentMemory {
    _map: MmapRaw,
    region: Region,
    ring_bytes: usize,
    number: u32,
}

// SAFETY: mapped, and sealed against shrinking, until `self` is dropped; `Region` gives references to atomics only.
unsafe impl Memory for SegmentMemory {
    fn base(&self) -> NonNull<u8> {
        self.region.base()
    }
    fn len(&self) -> usize {
        self.region.len()
    }
}

impl SegmentMemory {
    /// Maps a segment that the agent has formatted.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn map(memfd: impl AsFd) -> Result<Arc<Self>, MapError> {
        let bytes = sealed_bytes(memfd.as_fd(), "segment")?;
        let known = usize::try_from(bytes).ok().and_then(|bytes| Some((bytes, ring_bytes_of(bytes)?)));
        let wrong = MapError::Size { what: "segment", bytes, expected: SEGMENT_BYTES };
        let (bytes, ring_bytes) = known.ok_or(wrong)?;
        let (map, region) = map_sealed(memfd.as_fd(), bytes, "segment")?;
        let header = Segment::over(region).ok_or(MapError::Header("segment"))?.header;
        // Acquire: pairs with the Release in `format`.
        if header.magic.load(Ordering::Acquire) != SEGMENT_MAGIC {
            return Err(MapError::Header("segment"));
        }
        let number = header.segment.load(Ordering::Relaxed);
        Ok(Arc::new(SegmentMemory { _map: map, region, ring_bytes, number }))
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Bytes of each ring, which are the same on the other host.
    #[must_use]
    pub fn ring_bytes(&self) -> usize {
        self.ring_bytes
    }

    /// Registers both rings of `slot`: what the bridge of the other host needs to write to one of them, and this one to read the
    /// other one. An RDMA card keeps them in place, so it is for slots that have a connection.
    ///
    /// # Errors
    /// [`RegisterError`].
    pub fn register(self: &Arc<Self>, fabric: &Fabric, slot: u16) -> Result<Arc<Registered>, RegisterError> {
        let both = 2 * self.ring_bytes;
        let start = RINGS_OFFSET + usize::from(slot.min(SLOTS)) * both;
        let memory: Arc<dyn Memory> = Arc::clone(self) as _;
        fabric.register(memory, start..start + both, Access::SourceAndTarget).map(Arc::new)
    }
}

/// What a bridge watches in one segment, and sleeps on.
pub(super) struct Lane {
    memory: Arc<SegmentMemory>,
    /// The process group's side.
    side: u32,
    /// Numbers of the slots' connections.
    pub(super) connections: Box<[Option<u32>]>,
    // The 'static of these is a lie that stays in this struct: they are valid as long as `memory`.
    ours: &'static Side,
    news: &'static [AtomicU64],
}

impl Lane {
    pub(super) fn new(memory: &Arc<SegmentMemory>, side: u32) -> Option<Lane> {
        let other = side.checked_sub(1).map_or(1, |_| 0);
        let at = SIDES_OFFSET + other * SIDE_STRIDE + offset_of!(Side, news) + LANE * usize::from(SLOTS);
        Some(Lane {
            memory: Arc::clone(memory),
            side,
            connections: vec![None; usize::from(SLOTS)].into(),
            ours: Segment::over(memory.region)?.side(u32::try_from(other).ok()?)?,
            news: memory.region.slice(at, usize::from(SLOTS) / 8)?,
        })
    }

    pub(super) fn is(&self, memory: &Arc<SegmentMemory>, side: u32) -> bool {
        Arc::ptr_eq(&self.memory, memory) && self.side == side
    }

    /// Takes the news, and hands out the connections that have some.
    pub(super) fn collect(&self, mut each: impl FnMut(u32)) {
        let Some(flags) = self.ours.news.get(LANE) else { return };
        for (word, (flags, connections)) in
            self.news.iter().zip(flags.chunks(8).zip(self.connections.chunks(8)))
        {
            // Relaxed: only whether to look closer. Eight bytes are read at once as they are written one by one: what this
            // read misses the next one sees, or the scan behind the heavy barrier.
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            for (flag, connection) in flags.iter().zip(connections) {
                if wake::collect(flag) != 0
                    && let Some(number) = connection
                {
                    each(*number);
                }
            }
        }
    }

    pub(super) fn has_news(&self) -> bool {
        self.news.iter().any(|word| word.load(Ordering::Relaxed) != 0)
    }

    /// Before a barrier, and another look: whoever leaves news from now on rings the bridge's end of the wire.
    pub(super) fn announce(&self) -> Option<Announced> {
        Some(self.ours.lanes.get(LANE)?.sleeping.announce(wake::WIRE, wake::EVERYBODY))
    }

    /// A heavy barrier has passed since it was announced: later ones need none.
    pub(super) fn settle(&self, announced: Option<Announced>) {
        if let Some((lane, announced)) = self.ours.lanes.get(LANE).zip(announced) {
            lane.sleeping.settle(announced);
        }
    }
}

/// One slot, seen from the other side of a process.
pub(super) struct View {
    memory: Arc<SegmentMemory>,
    slot: u16,
    /// The process's side.
    side: u32,
    generation: u32,
    // As in `Lane`.
    directions: &'static [Direction; 2],
    rings: [RingBytes; 2],
    theirs: &'static Side,
}

impl View {
    pub(super) fn new(memory: &Arc<SegmentMemory>, slot: u16, side: u32, generation: u32) -> Option<View> {
        let segment = Segment::over(memory.region)?;
        let slots: &'static [Slot] = segment.slots;
        Some(View {
            memory: Arc::clone(memory),
            slot,
            side: if side > 1 { return None } else { side },
            generation,
            directions: &slots.get(usize::from(slot))?.directions,
            rings: [segment.ring(slot, 0)?, segment.ring(slot, 1)?],
            theirs: segment.side(side)?,
        })
    }

    /// Whether this is the process's side in `lane`, and which slot.
    pub(super) fn place_in(&self, lane: &Lane) -> Option<usize> {
        lane.is(&self.memory, self.side).then_some(usize::from(self.slot))
    }

    /// What the process writes.
    pub(super) fn out(&self) -> (&Direction, &RingBytes) {
        let [zero, one] = self.directions;
        let [ring_zero, ring_one] = &self.rings;
        if self.side == 0 { (zero, ring_zero) } else { (one, ring_one) }
    }

    /// What the process reads.
    pub(super) fn input(&self) -> (&Direction, &RingBytes) {
        let [zero, one] = self.directions;
        let [ring_zero, ring_one] = &self.rings;
        if self.side == 0 { (one, ring_one) } else { (zero, ring_zero) }
    }

    /// Where the ring that the process writes lies in a registration of both; at the other host, the one that is read.
    pub(super) fn out_ring_at(&self) -> usize {
        if self.side == 0 { 0 } else { self.memory.ring_bytes }
    }

    /// Opens what the process reads, and watches both. Before the process knows of the connection, so that its first publication
    /// sees the watches without any barrier (SPEC 6.4.6).
    pub(super) fn open(&self) {
        let ((out, _), (input, input_ring)) = (self.out(), self.input());
        input.tx_wake_at.store(0, Ordering::Relaxed);
        wake::set_lane(&out.rx_watch, LANE_PLUS_ONE);
        wake::set_lane(&input.tx_watch, LANE_PLUS_ONE);
        stream::open(input_ring, input, self.generation);
    }

    pub(super) fn is_open(&self) -> bool {
        stream::is_open(self.out().0, self.generation)
    }

    /// Watches for the process having read up to `at`. True if that needs another look, behind a heavy barrier.
    pub(super) fn watch_consumption(&self, at: u64) -> bool {
        let input = self.input().0;
        if wake::lane(input.tx_watch.load(Ordering::Relaxed)) == LANE_PLUS_ONE {
            return false;
        }
        input.tx_wake_at.store(at, Ordering::Relaxed);
        wake::set_lane(&input.tx_watch, LANE_PLUS_ONE);
        true
    }

    /// How the process has ended its direction so far. To be asked before the look that finds no records (SPEC 4.5.2).
    pub(super) fn out_state(&self) -> u32 {
        self.out().0.state.load(Ordering::Acquire)
    }

    /// Ends what the process reads.
    pub(super) fn end_input(&self, state: u32) {
        // Release: behind all records.
        self.input().0.state.store(state, Ordering::Release);
    }

    pub(super) fn input_state(&self) -> u32 {
        self.input().0.state.load(Ordering::Relaxed)
    }

    /// Whether the process has said that it will not read any more; `Some(true)`: and has not closed.
    pub(super) fn reader_closed(&self) -> Option<bool> {
        let word = self.input().0.reader_closed.load(Ordering::Relaxed);
        (word & !READER_SHUT == self.generation).then_some(word & READER_SHUT != 0)
    }

    /// Tells the process that nobody will read what it writes.
    pub(super) fn close_out(&self, shut: bool) {
        let word = self.generation | if shut { READER_SHUT } else { 0 };
        // Relaxed: as in the shim's close.
        self.out().0.reader_closed.store(word, Ordering::Relaxed);
    }

    /// As a reset: the end of what it reads, and nobody reads what it writes.
    pub(super) fn reset(&self, outside: &mut impl Outside) {
        let ended = match self.input_state() {
            state::OPEN => state::RST,
            state::FIN => state::FIN_RST,
            ended => ended,
        };
        self.close_out(false);
        self.end_input(ended);
        self.tell_reader(outside, false);
        self.tell_writer(outside, None);
    }

    /// The process has something new to read.
    pub(super) fn tell_reader(&self, outside: &mut impl Outside, urgent: bool) {
        let input = self.input().0;
        light_barrier();
        // Relaxed: ordered after the publication by the barrier pair (SPEC 6.2).
        let watch = input.rx_watch.load(Ordering::Relaxed);
        if watch & wake::STAMP != 0 {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
            let now_s = now.tv_sec.unsigned_abs().saturating_mul(1_000_000_000);
            // Relaxed: a hint beside the records, as in the shim.
            input.sent_at_ns.store(now_s.saturating_add(now.tv_nsec.unsigned_abs()), Ordering::Relaxed);
        }
        if input.rx_wait.is_announced() || watch != 0 {
            let watch = self.notify(outside, &input.rx_wait, || input.rx_watch.load(Ordering::Relaxed));
            if urgent && watch & wake::RING_URGENT != 0 {
                outside.ring_urgent(&self.memory, self.side);
            }
        }
    }

    /// The process has room to write; `None`: or will not have any.
    pub(super) fn tell_writer(&self, outside: &mut impl Outside, consumed: Option<u64>) {
        let out = self.out().0;
        light_barrier();
        // Relaxed: as above.
        if !out.tx_wait.is_announced() && out.tx_watch.load(Ordering::Relaxed) == 0 {
            return;
        }
        if out.tx_wait.is_fenced() {
            // SeqCst: as in `claim_announced`, for the words below.
            fence(Ordering::SeqCst);
        }
        if consumed.is_none_or(|consumed| consumed >= out.tx_wake_at.load(Ordering::Relaxed)) {
            self.notify(outside, &out.tx_wait, || out.tx_watch.swap(0, Ordering::AcqRel));
        }
    }

    /// Wakes the sleepers of `word`, and leaves news where `watch` reads that they are wanted; what it has read.
    fn notify(&self, outside: &mut impl Outside, word: &SleepWord, watch: impl FnOnce() -> u32) -> u32 {
        let here = word.sleepers();
        // After the word: behind the fence that it may ask for (SPEC 6.7.5).
        let watch = watch();
        if here.how() & wake::FUTEX != 0 {
            outside.wake(&self.memory, word);
        }
        let there = self.theirs.leave_news(wake::lane(watch), self.slot);
        if watch & wake::RING_EACH != 0 {
            outside.ring(&self.memory, self.side, wake::EVERYBODY);
            return watch;
        }
        for bell in here.bell().into_iter().chain(there.bell().filter(|bell| here.bell() != Some(*bell))) {
            outside.ring(&self.memory, self.side, bell);
        }
        watch
    }
}

/// In watch words.
#[allow(clippy::cast_possible_truncation)] // a small constant
const LANE_PLUS_ONE: u32 = LANE as u32 + 1;

/// Copies from a ring into a message.
pub(super) fn copy_out(ring: &RingBytes, at: Place, into: &mut [u8]) {
    // SAFETY: a slice of that length; outside of head or ring nothing is copied.
    unsafe { ring.copy_out(at, into.as_mut_ptr(), into.len()) }
}

/// Copies from a message into a ring.
pub(super) fn copy_in(ring: &RingBytes, at: Place, from: &[u8]) {
    // SAFETY: as above.
    unsafe { ring.copy_in(at, from.as_ptr(), from.len()) }
}
