//! Memory for the tests: zeroed, aligned, seen as a [`Region`].
//!
//! `unsafe` is allowed here to allocate it and to copy between slices and a ring.
#![allow(unsafe_code, dead_code)] // each test binary uses its part of this

use ring::atomic::{AtomicU64, Ordering};
use ring::segment::{Direction, Slot};
use ring::shared::Region;
use ring::stream::{Memory as _, RingBytes, Span};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Owned zeroed memory, aligned as a mapping is. Regions borrowed from it must not outlive it.
pub struct Memory {
    base: NonNull<u8>,
    layout: Layout,
}

impl Memory {
    pub fn zeroed(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, 4096).expect("a sane size");
        assert!(bytes > 0);
        // SAFETY: the size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("memory for the test");
        Memory { base, layout }
    }

    pub fn region(&self) -> Region {
        // SAFETY: allocated with this length and alignment; the tests keep `self` for as long as they use the region.
        unsafe { Region::new(self.base, self.layout.size()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated by `zeroed` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

// SAFETY: an allocation, shared between threads as a mapping between processes is.
unsafe impl Send for Memory {}
// SAFETY: as above; access goes through `Region`.
unsafe impl Sync for Memory {}

/// A ring, its head, and its control lines.
pub struct StreamMemory {
    slot: Memory,
    ring: Memory,
    head: Memory,
    head_bytes: u64,
}

impl StreamMemory {
    pub fn new(ring_bytes: usize) -> Self {
        Self::with_head(ring_bytes, 0)
    }

    pub fn with_head(ring_bytes: usize, head_bytes: u64) -> Self {
        let [slot, ring, head] = [1024, ring_bytes, ring_bytes].map(Memory::zeroed);
        StreamMemory { slot, ring, head, head_bytes }
    }

    pub fn direction(&self) -> &Direction {
        let slot: &Slot = self.slot.region().get(0).expect("a slot fits");
        &slot.directions[0]
    }

    pub fn ring(&self) -> RingBytes {
        let ring = RingBytes::new(self.ring.region()).expect("a power of two");
        if self.head_bytes == 0 {
            return ring;
        }
        RingBytes::with_head(self.head.region(), self.head_bytes, ring.ring())
    }

    pub fn inside(&self, span: Span) -> bool {
        let part = self.ring().part(span.at);
        span.len >= 1 && (span.at.offset + span.len) as u64 <= part
    }

    /// Every word of it.
    pub fn fill(&self, mut word: impl FnMut() -> u64) {
        for (memory, bytes) in [(&self.ring, self.ring.layout.size() as u64), (&self.head, self.head_bytes)] {
            for offset in (0..bytes).step_by(8) {
                let at: &AtomicU64 = memory.region().get(usize::try_from(offset).unwrap()).unwrap();
                at.store(word(), Ordering::Relaxed);
            }
        }
    }

    pub fn ring_region(&self) -> Region {
        self.ring.region()
    }
}

/// Copies `bytes` to the start of a reserved span.
pub fn copy_in(ring: &RingBytes, span: Span, bytes: &[u8]) {
    assert!(bytes.len() <= span.len);
    // SAFETY: the slice is readable.
    unsafe { ring.copy_in(span.at, bytes.as_ptr(), bytes.len()) }
}

/// Copies the first `n` bytes of a span out.
pub fn copy_out(ring: &RingBytes, span: Span, n: usize) -> Vec<u8> {
    assert!(n <= span.len);
    let mut out = vec![0; n];
    // SAFETY: the vector is writable for its length.
    unsafe { ring.copy_out(span.at, out.as_mut_ptr(), n) };
    out
}
