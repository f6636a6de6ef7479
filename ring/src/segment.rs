//! The memory that two process groups share (SPEC 5).
//!
//! ```text
//! 0        SegmentHeader
//! 4096     Side 0 (clients): lanes, news
//! 28672    Side 1 (servers): lanes, news
//! 65536    Slot[256]: control lines and heads of both directions
//! 524288   rings: slot 0 client-to-server, slot 0 server-to-client, slot 1 ...
//! ```
//! The memory is sparse: pages that no connection touches cost nothing.
//!
//! `unsafe` is allowed here for the `Shared` markers, and to view a direction's head and ring.
#![allow(unsafe_code)]

#[cfg(not(loom))]
use core::mem::{offset_of, size_of};
#[cfg(not(loom))]
use core::ptr::NonNull;

use crate::VERSION;
use crate::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use crate::hint;
use crate::shared::{Region, Shared};
#[cfg(not(loom))]
use crate::stream::RingBytes;
use crate::wake::{self, Claimed, SleepWord};

/// "IPDG".
pub const SEGMENT_MAGIC: u32 = u32::from_le_bytes(*b"IPDG");
/// Connections in one segment.
pub const SLOTS: u16 = 256;
/// Bytes of one direction's head, in the slot: room for the first messages, so that a connection with little to say touches no ring.
pub const HEAD_BYTES: usize = 320;
/// Bytes of one direction's ring, as a rule: what fits into a processor's own cache.
pub const RING_BYTES: usize = 256 * 1024;
/// Bytes of one direction's ring between hosts, where news is long on its way, and more must be, too; unless whatever carries the bytes
/// keeps all of a ring in memory.
pub const FAR_RING_BYTES: usize = 1024 * 1024;
/// Lanes of one side: epoll instances that are told of news separately.
pub const LANES: usize = 64;
/// First byte of the sides.
pub const SIDES_OFFSET: usize = 4096;
/// Bytes from one side to the next.
pub const SIDE_STRIDE: usize = 24_576;
/// First byte of the slots.
pub const SLOTS_OFFSET: usize = 65_536;
/// First byte of the rings.
pub const RINGS_OFFSET: usize = 524_288;
/// Bytes of a segment with rings of [`RING_BYTES`].
pub const SEGMENT_BYTES: usize = segment_bytes(RING_BYTES);

/// Bytes of a segment with rings of that size.
#[must_use]
pub const fn segment_bytes(ring_bytes: usize) -> usize {
    RINGS_OFFSET + SLOTS as usize * 2 * ring_bytes
}

/// Bytes of the rings of a segment of that size, which is sealed: what its header says a peer can change. `None`: no segment's.
#[must_use]
pub fn ring_bytes_of(segment: usize) -> Option<usize> {
    [RING_BYTES, FAR_RING_BYTES].into_iter().find(|ring| segment_bytes(*ring) == segment)
}

/// Start of a segment: written once by the agent.
#[repr(C, align(64))]
pub struct SegmentHeader {
    /// [`SEGMENT_MAGIC`].
    pub magic: AtomicU32,
    /// [`VERSION`].
    pub version: AtomicU32,
    /// Its number.
    pub segment: AtomicU32,
    /// [`SLOTS`].
    pub slots: AtomicU32,
    /// Bytes of each ring.
    pub ring_bytes: AtomicU64,
}
// SAFETY: atomics only, repr(C).
unsafe impl Shared for SegmentHeader {}

/// A lane's words, on a line of their own: the peer uses them after each message to a watched slot.
#[repr(C, align(64))]
pub struct Lane {
    /// Who sleeps for news of this lane (SPEC 6.4).
    pub sleeping: SleepWord,
    /// The latest stamp of news ([`crate::wake::stamp`]). Peer-written.
    pub order: AtomicU32,
}
// SAFETY: atomics only, repr(C).
unsafe impl Shared for Lane {}

/// What the processes of one side watch; the other side writes news into it.
#[repr(C, align(64))]
pub struct Side {
    /// Sleep words and orders.
    pub lanes: [Lane; LANES],
    /// `news[lane][slot]`: a stamp, not zero, when that slot may have become ready for this side.
    pub news: [[AtomicU8; SLOTS as usize]; LANES],
}
// SAFETY: atomics only, repr(C).
unsafe impl Shared for Side {}

impl Side {
    /// Waker: [`Side::leave_news`] may follow soon.
    #[inline]
    pub fn will_leave_news(&self, watch: u32, slot: u16) {
        let news = self.news.get((watch as usize).wrapping_sub(1));
        if let Some(flag) = news.and_then(|news| news.get(usize::from(slot))) {
            hint::will_write(flag);
        }
    }

    /// Waker: leaves news of a slot for the lane of `watch` (plus one; [`wake::lane`]). Who sleeps on it.
    #[must_use]
    #[inline]
    pub fn leave_news(&self, watch: u32, slot: u16) -> Claimed {
        let lane = (watch as usize).wrapping_sub(1);
        let flag = self.news.get(lane).and_then(|news| news.get(usize::from(slot)));
        match (flag, self.lanes.get(lane)) {
            (Some(flag), Some(lane)) => wake::post(flag, wake::stamp(&lane.order), &lane.sleeping),
            _ => Claimed::NONE,
        }
    }
}

/// Stream states in [`Direction::state`].
pub mod state {
    /// The writer may still write.
    pub const OPEN: u32 = 0;
    /// The writer has shut down: after the last record comes EOF.
    pub const FIN: u32 = 1;
    /// The writer's side is gone with data unread: after the last record comes `ECONNRESET`.
    pub const RST: u32 = 2;
    /// [`FIN`], and later what would have made it [`RST`]: after the last record comes EOF; writing is an error.
    pub const FIN_RST: u32 = 3;
}

/// In [`Direction::reader_closed`]: what comes from now on is lost, as after a close; what is in the ring is still being read.
pub const READER_SHUT: u32 = 1 << 31;

/// Control lines of one direction of a connection.
#[repr(C, align(64))]
pub struct Direction {
    /// Bytes of the ring that the reader has consumed. Reader-written.
    pub consumed: AtomicU64,
    pad0: [AtomicU64; 7],
    /// Generation for which the writer has initialised the ring (SPEC 5.5). Writer-written.
    pub generation: AtomicU32,
    /// [`state`]. Writer-written.
    pub state: AtomicU32,
    /// The last urgent byte and where it stands ([`crate::urgent`]); 0: none so far. Writer-written.
    pub urgent: AtomicU64,
    /// When the last record was published, in nanoseconds since 1970, if the reader asks for that ([`crate::wake::STAMP`]). Writer-written.
    pub sent_at_ns: AtomicU64,
    pad1: [AtomicU64; 5],
    /// Who sleeps for data here. Reader-set.
    pub rx_wait: SleepWord,
    /// Who sleeps for space here. Writer-set.
    pub tx_wait: SleepWord,
    /// Lane plus one whose epoll instances watch for data, or 0, and [`crate::wake::RING_EACH`] and the like. Reader-set.
    pub rx_watch: AtomicU32,
    /// The same for space. Writer-set.
    pub tx_watch: AtomicU32,
    /// Generation that the reader's side has closed entirely: nobody will ever read. With [`READER_SHUT`]: it has shut down both
    /// directions, and not closed. Reader-written.
    pub reader_closed: AtomicU32,
    pad2: AtomicU32,
    /// The writer that waits or watches for space wants to be told when `consumed` gets here. Writer-set.
    pub tx_wake_at: AtomicU64,
    pad3: [AtomicU64; 3],
    /// Where the stream begins ([`crate::stream`]). (Models have none.)
    #[cfg(not(loom))]
    head: [AtomicU64; HEAD_BYTES / 8],
}
// SAFETY: atomics only, repr(C).
unsafe impl Shared for Direction {}

#[cfg(not(loom))]
impl Direction {
    /// Its head, and its ring, which begins at `ring`.
    ///
    /// # Safety
    /// It is one of a mapped segment, and `ring` is a ring of the same, as long as all of its rings.
    #[inline(always)]
    #[must_use]
    pub unsafe fn memory(&self, ring: NonNull<u8>, ring_bytes: usize) -> RingBytes {
        // SAFETY: mapped, as the caller says. The rings are behind the slots, and each is as long as this.
        unsafe {
            let head = Region::new(NonNull::from(&self.head).cast(), ring_bytes);
            RingBytes::with_head(head, HEAD_BYTES as u64, Region::new(ring, ring_bytes))
        }
    }
}

#[cfg(loom)]
impl Direction {
    /// A zeroed direction; under loom there is no memory to map one from.
    #[must_use]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let word = || AtomicU32::new(0);
        Direction {
            consumed: AtomicU64::new(0),
            pad0: core::array::from_fn(|_| AtomicU64::new(0)),
            generation: word(),
            state: word(),
            urgent: AtomicU64::new(0),
            sent_at_ns: AtomicU64::new(0),
            pad1: core::array::from_fn(|_| AtomicU64::new(0)),
            rx_wait: SleepWord::new(),
            tx_wait: SleepWord::new(),
            rx_watch: word(),
            tx_watch: word(),
            reader_closed: word(),
            pad2: word(),
            tx_wake_at: AtomicU64::new(0),
            pad3: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

/// Both directions of a connection: 0 from client to server, 1 back.
#[repr(C, align(1024))]
pub struct Slot {
    /// Direction `d` is written by side `d`.
    pub directions: [Direction; 2],
}
// SAFETY: atomics only, repr(C).
unsafe impl Shared for Slot {}

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<SleepWord>() == 8 && size_of::<Lane>() == 64);
    assert!(size_of::<Side>() == 64 * LANES + LANES * SLOTS as usize);
    assert!(size_of::<Side>() <= SIDE_STRIDE);
    assert!(size_of::<Direction>() == 512);
    assert!(offset_of!(Direction, generation) == 64);
    assert!(offset_of!(Direction, urgent) == 72 && offset_of!(Direction, sent_at_ns) == 80);
    assert!(offset_of!(Direction, rx_wait) == 128);
    assert!(offset_of!(Direction, rx_watch) == 144);
    assert!(offset_of!(Direction, tx_wake_at) == 160);
    assert!(offset_of!(Direction, head) == 192);
    assert!(size_of::<Slot>() == 1024);
    assert!(SIDES_OFFSET + 2 * SIDE_STRIDE <= SLOTS_OFFSET);
    assert!(SLOTS_OFFSET + SLOTS as usize * size_of::<Slot>() <= RINGS_OFFSET);
    // What `Direction::memory` takes for mapped.
    assert!(RINGS_OFFSET + RING_BYTES <= SEGMENT_BYTES);
    assert!(RING_BYTES.is_power_of_two() && FAR_RING_BYTES.is_power_of_two() && SLOTS.is_power_of_two());
};

/// A checked view of a segment's control parts.
#[derive(Clone, Copy)]
pub struct Segment<'a> {
    region: Region,
    ring_bytes: usize,
    /// Header.
    pub header: &'a SegmentHeader,
    /// Slots.
    pub slots: &'a [Slot],
}

impl<'a> Segment<'a> {
    /// Views `region` as a segment; `None` if none has its size.
    #[must_use]
    pub fn over(region: Region) -> Option<Segment<'a>> {
        let ring_bytes = ring_bytes_of(region.len())?;
        let slots = region.slice(SLOTS_OFFSET, SLOTS as usize)?;
        Some(Segment { region, ring_bytes, header: region.get(0)?, slots })
    }

    /// Bytes of each ring.
    #[must_use]
    pub fn ring_bytes(&self) -> usize {
        self.ring_bytes
    }

    /// The whole mapping.
    #[must_use]
    pub fn region(&self) -> Region {
        self.region
    }

    /// What side 0 or 1 watches.
    #[must_use]
    pub fn side(&self, side: u32) -> Option<&'a Side> {
        if side > 1 {
            return None;
        }
        self.region.get(SIDES_OFFSET + side as usize * SIDE_STRIDE)
    }

    /// Head and ring of `slot`, direction 0 or 1.
    #[cfg(not(loom))]
    #[must_use]
    pub fn ring(&self, slot: u16, direction: u32) -> Option<RingBytes> {
        if slot >= SLOTS || direction > 1 {
            return None;
        }
        let control = self.slots.get(usize::from(slot))?.directions.get(direction as usize)?;
        let ring = RINGS_OFFSET + (usize::from(slot) * 2 + direction as usize) * self.ring_bytes;
        // SAFETY: both are of this segment.
        Some(unsafe { control.memory(self.region.part(ring, self.ring_bytes)?.base(), self.ring_bytes) })
    }
}

/// Fills in the header of a fresh, zeroed segment (the agent does, before anybody else maps it).
/// `head` is the first page of the memory.
pub fn format(head: &SegmentHeader, segment: u32, ring_bytes: usize) {
    head.version.store(VERSION, Ordering::Relaxed);
    head.segment.store(segment, Ordering::Relaxed);
    head.slots.store(u32::from(SLOTS), Ordering::Relaxed);
    head.ring_bytes.store(ring_bytes as u64, Ordering::Relaxed);
    // Release: whoever sees the magic sees the rest. (In practice the fd is passed after this.)
    head.magic.store(SEGMENT_MAGIC, Ordering::Release);
}
