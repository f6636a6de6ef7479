//! What the models share: bounded exploration, the heavy barrier, a ring whose payload detects races.

use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicU64;
use ring::atomic::{Heavy, Ordering, fence};
use ring::stream::{Memory, Span};

/// Explores every interleaving with at most `preemptions` involuntary switches.
pub fn explore(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(f);
}

/// Under loom `light_barrier` is a full fence, so the heavy half is one, too: the pair then orders as
/// membarrier(2) and a compiler fence do.
#[derive(Clone, Copy)]
pub struct Full;
impl Heavy for Full {
    fn heavy_barrier(&self) {
        fence(Ordering::SeqCst);
    }
}

/// A barrier that orders nothing, for the broken twins.
#[derive(Clone, Copy)]
pub struct Nothing;
impl Heavy for Nothing {
    fn heavy_barrier(&self) {}
}

/// A ring of 64 bytes. Each word exists twice: as the atomic that headers are read from, and as a cell
/// that fails the model when a payload copy overlaps another one. A payload copy also writes the atomic
/// (it is the same memory), so old payload can be mistaken for a header, as in real memory.
pub struct ModelRing {
    words: [AtomicU64; 8],
    cells: [UnsafeCell<u64>; 8],
}

// SAFETY: the cells are accessed as the stream protocol allows; loom checks exactly that.
unsafe impl Sync for ModelRing {}
// SAFETY: as above.
unsafe impl Send for ModelRing {}

impl ModelRing {
    pub fn new() -> Self {
        // Not zero: what an earlier connection may have left, looking like valid headers.
        let old = 1 << 63 | 1 << 32 | 8;
        ModelRing {
            words: core::array::from_fn(|_| AtomicU64::new(old)),
            cells: core::array::from_fn(|_| UnsafeCell::new(0)),
        }
    }

    /// Copies one word in.
    pub fn write(&self, span: Span, value: u64) {
        assert!(span.len >= 8 && span.at.is_multiple_of(8));
        let i = span.at / 8;
        self.words[i].store(value, Ordering::Relaxed);
        // SAFETY: loom fails the model if another access overlaps.
        self.cells[i].with_mut(|p| unsafe { *p = value });
    }

    /// Copies one word out.
    pub fn read(&self, span: Span) -> u64 {
        assert_eq!(span.len, 8);
        let i = span.at / 8;
        // SAFETY: loom fails the model if a write overlaps.
        let value = self.cells[i].with(|p| unsafe { *p });
        assert_eq!(self.words[i].load(Ordering::Relaxed), value, "a header was written over payload");
        value
    }
}

impl Memory for ModelRing {
    fn size(&self) -> u64 {
        64
    }
    fn header(&self, offset: u64) -> Option<&AtomicU64> {
        self.words.get(usize::try_from(offset).ok()? / 8)
    }
}
