//! TCP's urgent byte (SPEC 4.8): where the last one stands in the stream, and what it is.
//!
//! The byte is in the stream, in a record of its own kind, and once more in a word beside it, so that a reader who is not
//! there yet hears of it. Only the last one counts: an earlier urgent record that was not read is an ordinary byte.

use crate::atomic::Ordering;
use crate::segment::Direction;
use crate::stream::{Reader, Writer};

const VALID: u64 = 1 << 8;

/// An urgent byte as its writer announced it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Urgent {
    /// Position of its record's header. Compared, and never used as a place in memory: the writer may lie.
    pub pos: u64,
    /// The byte.
    pub byte: u8,
}

/// Writer, with room reserved for the record at `w`: says what comes there.
pub fn announce(dir: &Direction, w: &Writer, byte: u8) {
    // The position is a multiple of 8, and below 2^56 for ever (SPEC 1.5).
    // Relaxed: published by the record, whose Release comes after this.
    dir.urgent.store(w.tail << 8 | VALID | u64::from(byte), Ordering::Relaxed);
}

/// Reader: the last urgent byte, unless the reader has passed it.
#[must_use]
pub fn ahead(dir: &Direction, r: &Reader) -> Option<Urgent> {
    // Relaxed: who has seen the record (Acquire) sees its announcement; who sees this earlier hears of it earlier.
    let word = dir.urgent.load(Ordering::Relaxed);
    let [byte, ..] = word.to_le_bytes();
    let urgent = Urgent { pos: (word >> 8) & !7, byte };
    (word & VALID != 0 && urgent.pos >= r.pos).then_some(urgent)
}
