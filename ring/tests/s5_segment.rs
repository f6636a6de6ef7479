//! SPEC 1, 5 and 9: geometry, views, and the counters' names.
#![cfg(not(loom))]

mod support;

use ring::atomic::{AtomicU32, AtomicU64, Ordering};
use ring::msg::Addr;
use ring::segment::{
    FAR_RING_BYTES, RING_BYTES, RINGS_OFFSET, SEGMENT_MAGIC, SLOTS, Segment, SegmentHeader, format,
    segment_bytes,
};
use ring::shared::Region;
use ring::stats::{self, Reason, STATS_BYTES, SocketState, Stats};
use support::Memory;

#[test]
fn s1_3_a_region_gives_only_what_lies_inside_and_is_aligned() {
    let memory = Memory::zeroed(4096);
    let r = memory.region();
    assert!(r.get::<AtomicU64>(4088).is_some());
    for (offset, why) in [(4089, "beyond"), (4, "unaligned"), (usize::MAX - 3, "overflow"), (4096, "end")] {
        assert!(r.get::<AtomicU64>(offset).is_none(), "{why}");
    }
    assert!(r.slice::<AtomicU32>(0, 1024).is_some());
    assert!(r.slice::<AtomicU32>(4, 1024).is_none());
    assert!(r.slice::<AtomicU32>(0, usize::MAX).is_none());
    assert!(r.part(4096, 0).is_some_and(|p| p.is_empty()));
    assert!(r.part(1, usize::MAX).is_none() && r.part(4000, 97).is_none());
}

fn range(r: Region) -> std::ops::Range<usize> {
    let start = r.base().as_ptr() as usize;
    start..start + r.len()
}

#[test]
fn s5_1_every_ring_has_its_own_place_in_the_segment() {
    // Sparse, as a segment is: untouched pages cost nothing.
    for ring_bytes in [RING_BYTES, FAR_RING_BYTES] {
        places(ring_bytes);
    }
}

fn places(ring_bytes: usize) {
    let memory = Memory::zeroed(segment_bytes(ring_bytes));
    let s = Segment::over(memory.region()).unwrap();
    assert_eq!(s.ring_bytes(), ring_bytes);
    format(s.header, 5, ring_bytes);
    assert_eq!(s.header.magic.load(Ordering::Relaxed), SEGMENT_MAGIC);
    assert_eq!(s.header.segment.load(Ordering::Relaxed), 5);
    let base = memory.region().base().as_ptr() as usize;
    let mut end = base + RINGS_OFFSET;
    for slot in 0..SLOTS {
        for direction in 0..2 {
            let ring = range(s.ring(slot, direction).unwrap().ring());
            assert_eq!((ring.start, ring.len()), (end, ring_bytes));
            end = ring.end;
        }
    }
    assert_eq!(end, base + segment_bytes(ring_bytes));
    assert!(s.ring(SLOTS, 0).is_none() && s.ring(0, 2).is_none());
    assert!(s.side(0).is_some() && s.side(1).is_some() && s.side(2).is_none());
    assert!(Segment::over(memory.region().part(0, segment_bytes(ring_bytes) - 8).unwrap()).is_none());
    assert_eq!(size_of::<SegmentHeader>(), 64);
}

#[test]
fn s9_1_stats_show_what_was_put_there() {
    let memory = Memory::zeroed(STATS_BYTES);
    let s = Stats::over(memory.region()).unwrap();
    s.format();
    assert_eq!(s.header.magic.load(Ordering::Relaxed), stats::STATS_MAGIC);
    let entry = s.sockets.last().unwrap();
    let (local, peer) = (Addr::v4([127, 0, 0, 1], 6379), Addr { ip: [7; 16], port: 65_535 });
    entry.set_addrs(local, peer);
    assert_eq!(entry.addrs(), (local, peer));
    stats::add(&entry.traffic.tx_bytes, u64::MAX);
    stats::add(&entry.traffic.tx_bytes, 3);
    assert_eq!(entry.traffic.tx_bytes.load(Ordering::Relaxed), 2);
    assert!(Stats::over(memory.region().part(0, STATS_BYTES - 1).unwrap()).is_none());
}

#[test]
fn s9_2_reasons_and_states_are_distinct_and_unknown_values_harmless() {
    for (i, reason) in Reason::ALL.iter().enumerate() {
        assert_eq!(Reason::from_wire(*reason as u32), *reason);
        assert!(!reason.text().is_empty());
        assert!(Reason::ALL.iter().skip(i + 1).all(|other| other.code() != reason.code()));
    }
    assert_eq!(Reason::from_wire(12_345), Reason::Unknown);
    for state in 0..5 {
        assert_eq!(SocketState::from_wire(state) as u32, state);
    }
    assert_eq!(SocketState::from_wire(u32::MAX), SocketState::Unused);
    assert_eq!(SocketState::User.name(), "user-space");
}
