//! What the models share: bounded exploration, the heavy barrier, a ring whose payload detects races.

use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicU64;
use ring::atomic::{Heavy, Ordering, fence};
use ring::stream::{Memory, Place, Span};

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
    head: Option<ModelHead>,
}

/// A head of 32 bytes.
struct ModelHead {
    words: [AtomicU64; 4],
    cells: [UnsafeCell<u64>; 4],
}

/// Not zero: what an earlier connection may have left, looking like valid headers.
const OLD: u64 = 1 << 63 | 1 << 32 | 8;

// SAFETY: the cells are accessed as the stream protocol allows; loom checks exactly that.
unsafe impl Sync for ModelRing {}
// SAFETY: as above.
unsafe impl Send for ModelRing {}

impl ModelRing {
    pub fn new() -> Self {
        ModelRing {
            words: core::array::from_fn(|_| AtomicU64::new(OLD)),
            cells: core::array::from_fn(|_| UnsafeCell::new(0)),
            head: None,
        }
    }

    pub fn with_head() -> Self {
        let head = ModelHead {
            words: core::array::from_fn(|_| AtomicU64::new(OLD)),
            cells: core::array::from_fn(|_| UnsafeCell::new(0)),
        };
        ModelRing { head: Some(head), ..ModelRing::new() }
    }

    fn at(&self, place: Place) -> Option<(&AtomicU64, &UnsafeCell<u64>)> {
        let i = place.offset / 8;
        match self.head.as_ref().filter(|_| place.in_head) {
            Some(head) => head.words.get(i).zip(head.cells.get(i)),
            None => self.words.get(i).zip(self.cells.get(i)),
        }
    }

    /// Copies one word in.
    pub fn write(&self, span: Span, value: u64) {
        assert!(span.len >= 8 && span.at.offset.is_multiple_of(8));
        let (word, cell) = self.at(span.at).unwrap();
        word.store(value, Ordering::Relaxed);
        // SAFETY: loom fails the model if another access overlaps.
        cell.with_mut(|p| unsafe { *p = value });
    }

    /// Copies one word out.
    pub fn read(&self, span: Span) -> u64 {
        assert_eq!(span.len, 8);
        let (word, cell) = self.at(span.at).unwrap();
        // SAFETY: loom fails the model if a write overlaps.
        let value = cell.with(|p| unsafe { *p });
        assert_eq!(word.load(Ordering::Relaxed), value, "a header was written over payload");
        value
    }
}

impl Memory for &ModelRing {
    fn size(&self) -> u64 {
        64
    }
    fn head(&self) -> u64 {
        if self.head.is_some() { 32 } else { 0 }
    }
    fn header(&self, place: Place) -> Option<&AtomicU64> {
        self.at(place).map(|(word, _)| word)
    }
}
