//! One direction of a connection (SPEC 4): a ring of records with inline headers, and a second, larger one for when it is too small.
//!
//! A record is a 64-bit header and its payload, padded to 8 bytes; it never crosses the end of the ring.
//! A header is valid when it is not zero, and the word where the next header will stand is zeroed before a header
//! is published: so one small message costs one cache line, and the reader needs no index of the writer's.
//!
//! ```text
//! header: bits 0-31 payload bytes, 32-39 kind (1 data, 2 skip to the ring's start, 3 one urgent byte, 4 data with something
//!         beside it at the kernel, 5 on to the second ring), 63 valid
//! ```
//!
//! Positions are bytes since the beginning, never wrapped; each side keeps its own in memory that the
//! other cannot write, and checks whatever it loads from the shared part (SPEC 4.6).

use crate::atomic::{AtomicU64, Ordering};
use crate::segment::Direction;

/// Longest payload of one record: a large write becomes several records, so that the reader starts
/// on the first while the writer copies the next.
pub const RECORD_MAX: usize = 16 * 1024;
const HEADER: u64 = 8;
pub(crate) const VALID: u64 = 1 << 63;
/// Payload bytes in a header.
pub(crate) const LEN: u64 = 0xffff_ffff;
pub(crate) const KIND_DATA: u64 = 1 << 32;
pub(crate) const KIND_SKIP: u64 = 2 << 32;
pub(crate) const KIND_URGENT: u64 = 3 << 32;
const KIND_ANCILLARY: u64 = 4 << 32;
pub(crate) const KIND_GROWN: u64 = 5 << 32;

/// Position at which a stream goes on in its second ring, whatever it had come to in the first (SPEC 4.10). Positions stay in order.
pub const GROWN: u64 = 1 << 48;

/// A ring: a power of two of bytes of a [`Memory`].
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// First position that is in it.
    pub from: u64,
    /// Where its first byte lies in the memory.
    pub start: u64,
    /// Its bytes.
    pub size: u64,
}

impl Part {
    #[inline(always)]
    /// Where `pos` is in it.
    #[must_use]
    pub fn offset(&self, pos: u64) -> u64 {
        pos & (self.size - 1)
    }
    #[inline(always)]
    /// Where `pos` is in the memory.
    #[must_use]
    pub fn place(&self, pos: u64) -> u64 {
        self.start + self.offset(pos)
    }
}

/// The two rings of a direction, as headers and payload. The shipped one is [`crate::rings::Rings`]; the loom tests
/// bring one that detects overlapping accesses.
pub trait Memory {
    /// The ring that `pos` is in: the first one below [`GROWN`].
    fn part(&self, pos: u64) -> Part;
    /// The header word at a place of the memory, if there is one.
    fn header(&self, place: u64) -> Option<&AtomicU64>;
}

/// The other side broke the rules: the connection is to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation;

/// The writer's own position. All zero for a fresh ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writer {
    /// Bytes written, headers and padding included.
    pub tail: u64,
    /// The reader's position as last seen.
    pub seen: u64,
}

/// The reader's own position. All zero for a fresh ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reader {
    /// Position of the current record's header, or of the next one if `left` is 0.
    pub pos: u64,
    /// Payload bytes of the current record not yet taken.
    pub left: u32,
    /// Payload bytes of the current record in all.
    pub len: u32,
}

/// A place to copy to or from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Place in the memory.
    pub at: usize,
    /// Bytes, at least 1.
    pub len: usize,
    /// Reader: this is the byte of an urgent record, and the reader stands before it ([`crate::urgent`]).
    pub urgent: bool,
    /// Reader: ancillary data belongs to the first byte of this record (SPEC 4.9), and the reader has not taken it yet.
    pub ancillary: bool,
}

const fn padded(len: u64) -> u64 {
    (len + 7) & !7
}

/// Writer: makes the ring ready for a new connection of generation `generation` (SPEC 5.5).
/// Until this is done the reader takes the direction for empty.
pub fn open(mem: &impl Memory, dir: &Direction, generation: u32) {
    use crate::segment::state;
    if let Some(word) = mem.header(mem.part(0).place(0)) {
        // Relaxed, all of these: published by the generation below.
        word.store(0, Ordering::Relaxed);
    }
    dir.consumed.store(0, Ordering::Relaxed);
    dir.state.store(state::OPEN, Ordering::Relaxed);
    dir.urgent.store(0, Ordering::Relaxed);
    // Release: pairs with the Acquire in `is_open`; a reader that sees the generation sees an empty ring.
    dir.generation.store(generation, Ordering::Release);
}

/// Reader: true once the writer has opened the direction for `generation`.
#[must_use]
pub fn is_open(dir: &Direction, generation: u32) -> bool {
    // Acquire: pairs with the Release in `open`.
    dir.generation.load(Ordering::Acquire) == generation
}

/// Writer: bytes of the ring that the reader has freed, looking at its line only when the known space is below `want`. The first
/// ring has none if it has not enough: the stream is to [`grow`].
#[inline(always)]
fn space(mem: &impl Memory, dir: &Direction, w: &mut Writer, want: u64) -> Result<u64, Violation> {
    let part = mem.part(w.tail);
    let free = part.size.wrapping_sub(w.tail.wrapping_sub(w.seen));
    if free >= want {
        return Ok(free);
    }
    // Acquire: pairs with the Release in `release`: the reader has finished copying out what it frees. While it is in the first
    // ring it has freed nothing of the second.
    let consumed = dir.consumed.load(Ordering::Acquire).max(part.from);
    // Below what was seen, or ahead of what was written: only a reader that lies says so.
    if consumed < w.seen || consumed > w.tail {
        return Err(Violation);
    }
    w.seen = consumed;
    let free = part.size - (w.tail - consumed);
    // No position of the first ring comes near those of the second.
    let outgrown = w.tail < GROWN && (free < want || w.tail >= GROWN - 2 * part.size);
    Ok(if outgrown { 0 } else { free })
}

/// Writer: reserves room for up to `want` payload bytes (at least 1) in one record.
///
/// `Ok(None)`: full, unless the stream can [`grow`]. The span may be shorter than `want`: copy, [`commit`], and reserve again.
///
/// # Errors
/// [`Violation`] if the reader's position is impossible.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // lengths and places are below the memory's size
pub fn reserve(
    mem: &impl Memory,
    dir: &Direction,
    w: &mut Writer,
    want: usize,
) -> Result<Option<Span>, Violation> {
    let want = want.min(RECORD_MAX) as u64;
    // Room for: a skip header, this header, the payload, and the next header's zero.
    let free = space(mem, dir, w, padded(want) + 3 * HEADER)?;
    let part = mem.part(w.tail);
    let mut offset = part.offset(w.tail);
    let mut used = 0;
    if part.size - offset == HEADER {
        // Only a header fits before the end: skip to the start. Published here, as an empty step.
        if free < 3 * HEADER + 8 {
            return Ok(None);
        }
        publish(mem, w.tail, KIND_SKIP | VALID, w.tail + HEADER)?;
        w.tail += HEADER;
        offset = 0;
        used = HEADER;
    }
    let room = free.saturating_sub(used + 2 * HEADER).min(part.size - offset - HEADER) & !7;
    let len = want.min(room);
    if len == 0 {
        return Ok(None);
    }
    let at = (part.start + offset + HEADER) as usize;
    Ok(Some(Span { at, len: len as usize, urgent: false, ancillary: false }))
}

/// Writer: goes on in the second ring (SPEC 4.10). False: it is there already.
///
/// # Errors
/// As [`commit`].
#[cold]
pub fn grow(mem: &impl Memory, w: &mut Writer) -> Result<bool, Violation> {
    if w.tail >= GROWN {
        return Ok(false);
    }
    publish(mem, w.tail, KIND_GROWN | VALID, GROWN)?;
    *w = Writer { tail: GROWN, seen: GROWN };
    Ok(true)
}

/// Writer: publishes the `len` bytes (1 to the reserved length) that were copied to the reserved span.
///
/// # Errors
/// [`Violation`] only if the ring itself is unusable (too small); nothing is published then.
#[inline(always)]
pub fn commit(mem: &impl Memory, w: &mut Writer, len: usize) -> Result<(), Violation> {
    let len = len as u64;
    let next = w.tail + HEADER + padded(len);
    publish(mem, w.tail, KIND_DATA | VALID | len, next)?;
    w.tail = next;
    Ok(())
}

/// Writer: [`commit`] of data that ancillary data belongs to, which is at the kernel already (SPEC 4.9).
///
/// # Errors
/// As [`commit`].
pub fn commit_ancillary(mem: &impl Memory, w: &mut Writer, len: usize) -> Result<(), Violation> {
    let len = len as u64;
    let next = w.tail + HEADER + padded(len);
    publish(mem, w.tail, KIND_ANCILLARY | VALID | len, next)?;
    w.tail = next;
    Ok(())
}

/// Writer: [`commit`] of one byte that is urgent, announced before ([`crate::urgent::announce`]).
///
/// # Errors
/// As [`commit`].
pub fn commit_urgent(mem: &impl Memory, w: &mut Writer) -> Result<(), Violation> {
    let next = w.tail + HEADER + padded(1);
    publish(mem, w.tail, KIND_URGENT | VALID | 1, next)?;
    w.tail = next;
    Ok(())
}

/// The header at `tail`, behind which the next one will stand at `next`.
#[inline(always)]
pub(crate) fn publish(mem: &impl Memory, tail: u64, header: u64, next: u64) -> Result<(), Violation> {
    let word = |pos| mem.header(mem.part(pos).place(pos)).ok_or(Violation);
    let (this, next) = (word(tail)?, word(next)?);
    // Relaxed: the Release below orders it before this header becomes visible, and nobody looks
    // for the next header before having seen this one.
    next.store(0, Ordering::Relaxed);
    // Release: pairs with the Acquire in `next`: whoever sees the header sees the payload and the zero.
    this.store(header, Ordering::Release);
    Ok(())
}

/// Reader: the next bytes, as one contiguous span; `Ok(None)`: empty for now.
/// Moves `r` over skips, to the second ring and to a new record, but frees nothing: see [`take`] and [`release`].
///
/// # Errors
/// [`Violation`] if a header is impossible.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // lengths and places are below the memory's size
pub fn next(mem: &impl Memory, r: &mut Reader) -> Result<Option<Span>, Violation> {
    let (mut urgent, mut ancillary) = (false, false);
    if r.left == 0 {
        let mut header = load_header(mem, r.pos)?;
        if header & !LEN != KIND_DATA | VALID {
            if header == 0 {
                return Ok(None);
            }
            header = pass(mem, r, header)?;
            if header == 0 {
                return Ok(None);
            }
            urgent = header == KIND_URGENT | VALID | 1;
            ancillary = header & !LEN == KIND_ANCILLARY | VALID;
            if !urgent && !ancillary && header & !LEN != KIND_DATA | VALID {
                return Err(Violation);
            }
        }
        let part = mem.part(r.pos);
        let len = header & LEN;
        if len == 0 || len > part.size - part.offset(r.pos) - HEADER {
            return Err(Violation);
        }
        r.len = len as u32;
        r.left = len as u32;
    }
    let start = mem.part(r.pos).place(r.pos) + HEADER + u64::from(r.len) - u64::from(r.left);
    Ok(Some(Span { at: start as usize, len: r.left as usize, urgent, ancillary }))
}

/// Reader: moves `r` over what only says where the stream goes on: to the second ring, once, then to the start of the ring, once.
/// The header that stands there.
#[cold]
fn pass(mem: &impl Memory, r: &mut Reader, mut header: u64) -> Result<u64, Violation> {
    if header == KIND_GROWN | VALID {
        if r.pos >= GROWN {
            return Err(Violation);
        }
        r.pos = GROWN;
        header = load_header(mem, r.pos)?;
    }
    if header == KIND_SKIP | VALID {
        let part = mem.part(r.pos);
        if part.size - part.offset(r.pos) != HEADER {
            return Err(Violation);
        }
        r.pos += HEADER;
        header = load_header(mem, r.pos)?;
    }
    Ok(header)
}

#[inline(always)]
fn load_header(mem: &impl Memory, pos: u64) -> Result<u64, Violation> {
    // Acquire: pairs with the Release in `publish`.
    Ok(mem.header(mem.part(pos).place(pos)).ok_or(Violation)?.load(Ordering::Acquire))
}

/// Reader: `n` bytes of the span from [`next`] (at most its length) are copied out.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // cut to `left`, which is 32 bits
pub fn take(r: &mut Reader, n: usize) {
    let n = (n as u64).min(u64::from(r.left)) as u32;
    r.left -= n;
    if r.left == 0 {
        r.pos += HEADER + padded(u64::from(r.len));
        r.len = 0;
    }
}

/// Reader: tells the writer how far it may write, as whole words behind the bytes taken. Returns that position.
#[inline(always)]
pub fn release(dir: &Direction, r: &Reader) -> u64 {
    let inside = if r.left == 0 { 0 } else { HEADER + u64::from(r.len - r.left) };
    let consumed = r.pos + (inside & !7);
    // Release: pairs with the Acquire in `space`: our copies out of the ring are done.
    dir.consumed.store(consumed, Ordering::Release);
    consumed
}

/// What waits in the rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Payload bytes.
    pub bytes: usize,
    /// Bytes of the rings that their records take.
    pub ring_bytes: u64,
    /// Position behind them.
    pub end: u64,
}

/// Reader: what is there now.
///
/// # Errors
/// [`Violation`] if a header is impossible.
pub fn unread(mem: &impl Memory, r: &Reader) -> Result<Unread, Violation> {
    let mut r = *r;
    let (mut bytes, mut ring_bytes) = (0, 0);
    // Ends: each step moves on by at least 16 bytes. There can be more than one turn of the ring: the part of the
    // current record that was taken and released may hold the newest one.
    while ring_bytes < 2 * mem.part(r.pos).size {
        let Some(span) = next(mem, &mut r)? else { break };
        bytes += span.len;
        let record = r.pos;
        take(&mut r, span.len);
        ring_bytes += r.pos - record;
    }
    Ok(Unread { bytes, ring_bytes, end: r.pos })
}

/// Bytes of the rings from one position to a later one; of the first ring none, if the later one is in the second.
#[must_use]
pub fn distance(from: u64, to: u64) -> u64 {
    let start = if to < GROWN { from } else { from.max(GROWN) };
    to.saturating_sub(start)
}

/// Writer: room for `want` payload bytes in records of any number right now?
///
/// # Errors
/// [`Violation`] if the reader's position is impossible.
pub fn has_room(mem: &impl Memory, dir: &Direction, w: &mut Writer, want: u64) -> Result<bool, Violation> {
    // Who asks without the lock may have the two words of different moments.
    w.seen = w.seen.max(mem.part(w.tail).from);
    Ok(w.tail < GROWN || space(mem, dir, w, want + 4 * HEADER)? >= want + 4 * HEADER)
}

/// Writer: the reader's position from which [`has_room`] holds for `want`.
#[must_use]
pub fn room_at(mem: &impl Memory, w: &Writer, want: u64) -> u64 {
    (w.tail + want + 4 * HEADER).saturating_sub(mem.part(w.tail).size)
}

/// Writer: true if the reader has consumed everything.
#[must_use]
pub fn drained(dir: &Direction, w: &Writer) -> bool {
    // Acquire: as in `space`.
    dir.consumed.load(Ordering::Acquire) == w.tail
}
