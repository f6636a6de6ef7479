//! One direction of a connection (SPEC 4): a ring of records with inline headers.
//!
//! A record is a 64-bit header and its payload, padded to 8 bytes; it never crosses the end of the ring.
//! A header is valid when it is not zero, and the word where the next header will stand is zeroed before a header
//! is published: so one small message costs one cache line, and the reader needs no index of the writer's.
//!
//! ```text
//! header: bits 0-31 payload bytes, 32-39 kind (1 data, 2 skip to the ring's start, 3 one urgent byte, 4 data with something
//!         beside it at the kernel), 63 valid
//! ```
//!
//! Positions are bytes since the beginning, never wrapped; each side keeps its own in memory that the
//! other cannot write, and checks whatever it loads from the shared part (SPEC 4.6).
//!
//! `unsafe` is allowed here for the raw copies between a ring and a caller's buffer.
#![allow(unsafe_code)]

use crate::atomic::{AtomicU64, Ordering};
use crate::segment::Direction;
#[cfg(not(loom))]
use crate::shared::Region;

/// Longest payload of one record: a large write becomes several records, so that the reader starts
/// on the first while the writer copies the next.
pub const RECORD_MAX: usize = 16 * 1024;
const HEADER: u64 = 8;
pub(crate) const VALID: u64 = 1 << 63;
pub(crate) const KIND_DATA: u64 = 1 << 32;
pub(crate) const KIND_SKIP: u64 = 2 << 32;
pub(crate) const KIND_URGENT: u64 = 3 << 32;
const KIND_ANCILLARY: u64 = 4 << 32;

/// The bytes of a ring, a power of two of them, as headers and payload. The shipped one is [`RingBytes`]; the loom tests
/// bring one that detects overlapping accesses.
pub trait Memory {
    /// Ring size in bytes.
    fn size(&self) -> u64;
    /// The header word at `offset` (multiple of 8, inside the ring), if there is one.
    fn header(&self, offset: u64) -> Option<&AtomicU64>;
}

/// Ring bytes in a mapped segment. (Not under loom, whose atomics are not plain memory.)
#[cfg(not(loom))]
#[derive(Clone, Copy, Debug)]
pub struct RingBytes {
    region: Region,
}

#[cfg(not(loom))]
impl RingBytes {
    /// Views a region whose length is a power of two as a ring.
    #[must_use]
    pub fn new(region: Region) -> Option<Self> {
        (region.len().is_power_of_two() && region.len() >= 64).then_some(RingBytes { region })
    }

    /// Copies `src` into the ring at `at` (from [`reserve`]); bytes outside the ring are not written.
    ///
    /// # Safety
    /// `src` is readable for `len` bytes.
    #[inline(always)]
    pub unsafe fn copy_in(&self, at: usize, src: *const u8, len: usize) {
        if at.checked_add(len).is_none_or(|end| end > self.region.len()) {
            return;
        }
        // SAFETY: inside the mapped ring (checked), `src` readable (contract). The two sides are the user's private
        // memory and the ring; a hostile peer may write the ring meanwhile, which garbles its own data only.
        unsafe { copy(src, self.region.base().as_ptr().add(at), len) }
    }

    /// Copies from the ring at `at` (from [`next`]) to `dst`; nothing is copied from outside the ring.
    ///
    /// # Safety
    /// `dst` is writable for `len` bytes.
    #[inline(always)]
    pub unsafe fn copy_out(&self, at: usize, dst: *mut u8, len: usize) {
        if at.checked_add(len).is_none_or(|end| end > self.region.len()) {
            return;
        }
        // SAFETY: as in `copy_in`, the other way.
        unsafe { copy(self.region.base().as_ptr().add(at), dst, len) }
    }

    /// First byte of the payload at `at`, for system calls that read or write it in place.
    #[must_use]
    pub fn at(&self, at: usize, len: usize) -> Option<*mut u8> {
        Some(self.region.part(at, len)?.base().as_ptr())
    }
}

/// memcpy with the smallest sizes inline: a call costs more than an 8-byte message does.
///
/// # Safety
/// As for `core::ptr::copy_nonoverlapping`.
#[cfg(not(loom))]
#[inline(always)]
unsafe fn copy(src: *const u8, dst: *mut u8, len: usize) {
    if len == 8 {
        // SAFETY: 8 bytes are readable and writable (contract); unaligned access is asked for.
        unsafe { dst.cast::<u64>().write_unaligned(src.cast::<u64>().read_unaligned()) }
    } else {
        // SAFETY: contract.
        unsafe { core::ptr::copy_nonoverlapping(src, dst, len) }
    }
}

#[cfg(not(loom))]
impl Memory for RingBytes {
    #[inline(always)]
    fn size(&self) -> u64 {
        self.region.len() as u64
    }
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // offsets are below the region's length
    fn header(&self, offset: u64) -> Option<&AtomicU64> {
        self.region.get(offset as usize)
    }
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

/// A place to copy to or from: offset of its first byte in the ring, and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Offset in the ring.
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
    if let Some(word) = mem.header(0) {
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

/// Writer: bytes that the reader has freed, looking at its line only when the known space is below `want`.
#[inline(always)]
pub(crate) fn space(mem: &impl Memory, dir: &Direction, w: &mut Writer, want: u64) -> Result<u64, Violation> {
    let free = mem.size().wrapping_sub(w.tail.wrapping_sub(w.seen));
    if free >= want {
        return Ok(free);
    }
    // Acquire: pairs with the Release in `release`: the reader has finished copying out what it frees.
    let consumed = dir.consumed.load(Ordering::Acquire);
    // Below what was seen, or ahead of what was written: only a reader that lies says so.
    if consumed < w.seen || consumed > w.tail {
        return Err(Violation);
    }
    w.seen = consumed;
    Ok(mem.size() - (w.tail - consumed))
}

/// Writer: reserves room for up to `want` payload bytes (at least 1) in one record.
///
/// `Ok(None)`: full. The span may be shorter than `want`: copy, [`commit`], and reserve again.
///
/// # Errors
/// [`Violation`] if the reader's position is impossible.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // lengths and offsets are below the ring's size
pub fn reserve(
    mem: &impl Memory,
    dir: &Direction,
    w: &mut Writer,
    want: usize,
) -> Result<Option<Span>, Violation> {
    let size = mem.size();
    let want = want.min(RECORD_MAX) as u64;
    // Room for: a skip header, this header, the payload, and the next header's zero.
    let free = space(mem, dir, w, padded(want) + 3 * HEADER)?;
    let mut offset = w.tail & (size - 1);
    let mut used = 0;
    if size - offset == HEADER {
        // Only a header fits before the end: skip to the start. Published here, as an empty step.
        if free < 3 * HEADER + 8 {
            return Ok(None);
        }
        publish(mem, w.tail, KIND_SKIP | VALID, HEADER)?;
        w.tail += HEADER;
        offset = 0;
        used = HEADER;
    }
    let room = (free - used).saturating_sub(2 * HEADER).min(size - offset - HEADER) & !7;
    let len = want.min(room);
    if len == 0 {
        return Ok(None);
    }
    Ok(Some(Span { at: (offset + HEADER) as usize, len: len as usize, urgent: false, ancillary: false }))
}

/// Writer: publishes the `len` bytes (1 to the reserved length) that were copied to the reserved span.
///
/// # Errors
/// [`Violation`] only if the ring itself is unusable (too small); nothing is published then.
#[inline(always)]
pub fn commit(mem: &impl Memory, w: &mut Writer, len: usize) -> Result<(), Violation> {
    let len = len as u64;
    let step = HEADER + padded(len);
    publish(mem, w.tail, KIND_DATA | VALID | len, step)?;
    w.tail += step;
    Ok(())
}

/// Writer: [`commit`] of data that ancillary data belongs to, which is at the kernel already (SPEC 4.9).
///
/// # Errors
/// As [`commit`].
pub fn commit_ancillary(mem: &impl Memory, w: &mut Writer, len: usize) -> Result<(), Violation> {
    let len = len as u64;
    let step = HEADER + padded(len);
    publish(mem, w.tail, KIND_ANCILLARY | VALID | len, step)?;
    w.tail += step;
    Ok(())
}

/// Writer: [`commit`] of one byte that is urgent, announced before ([`crate::urgent::announce`]).
///
/// # Errors
/// As [`commit`].
pub fn commit_urgent(mem: &impl Memory, w: &mut Writer) -> Result<(), Violation> {
    publish(mem, w.tail, KIND_URGENT | VALID | 1, HEADER + padded(1))?;
    w.tail += HEADER + padded(1);
    Ok(())
}

#[inline(always)]
pub(crate) fn publish(mem: &impl Memory, tail: u64, header: u64, step: u64) -> Result<(), Violation> {
    let mask = mem.size() - 1;
    let next = mem.header((tail + step) & mask).ok_or(Violation)?;
    let this = mem.header(tail & mask).ok_or(Violation)?;
    // Relaxed: the Release below orders it before this header becomes visible, and nobody looks
    // for the next header before having seen this one.
    next.store(0, Ordering::Relaxed);
    // Release: pairs with the Acquire in `next`: whoever sees the header sees the payload and the zero.
    this.store(header, Ordering::Release);
    Ok(())
}

/// Reader: the next bytes, as one contiguous span; `Ok(None)`: empty for now.
/// Moves `r` over skips and to a new record, but frees nothing: see [`take`] and [`release`].
///
/// # Errors
/// [`Violation`] if a header is impossible.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // lengths and offsets are below the ring's size
pub fn next(mem: &impl Memory, r: &mut Reader) -> Result<Option<Span>, Violation> {
    let size = mem.size();
    let (mut urgent, mut ancillary) = (false, false);
    if r.left == 0 {
        // At most two steps: a skip is followed by something else.
        let mut header = load_header(mem, r.pos)?;
        if header == KIND_SKIP | VALID {
            if size - (r.pos & (size - 1)) != HEADER {
                return Err(Violation);
            }
            r.pos += HEADER;
            header = load_header(mem, r.pos)?;
        }
        if header == 0 {
            return Ok(None);
        }
        let offset = r.pos & (size - 1);
        let len = header & 0xffff_ffff;
        if header != KIND_DATA | VALID | len {
            urgent = header == KIND_URGENT | VALID | 1;
            ancillary = header == KIND_ANCILLARY | VALID | len;
            if !urgent && !ancillary {
                return Err(Violation);
            }
        }
        if len == 0 || len > size - offset - HEADER {
            return Err(Violation);
        }
        r.len = len as u32;
        r.left = len as u32;
    }
    let start = (r.pos & (size - 1)) + HEADER + u64::from(r.len) - u64::from(r.left);
    Ok(Some(Span { at: start as usize, len: r.left as usize, urgent, ancillary }))
}

#[inline(always)]
fn load_header(mem: &impl Memory, pos: u64) -> Result<u64, Violation> {
    // Acquire: pairs with the Release in `publish`.
    Ok(mem.header(pos & (mem.size() - 1)).ok_or(Violation)?.load(Ordering::Acquire))
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

/// What waits in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Payload bytes.
    pub bytes: usize,
    /// Bytes of the ring that they take, headers and padding included.
    pub ring_bytes: u64,
}

/// Reader: what is there now.
///
/// # Errors
/// [`Violation`] if a header is impossible.
pub fn unread(mem: &impl Memory, r: &Reader) -> Result<Unread, Violation> {
    let start = r.pos;
    let mut r = *r;
    let mut bytes = 0;
    // Ends: each step moves on by at least 16 bytes. There can be more than one turn of the ring: the part of the
    // current record that was taken and released may hold the newest one.
    while r.pos < start + 2 * mem.size() {
        let Some(span) = next(mem, &mut r)? else { break };
        bytes += span.len;
        take(&mut r, span.len);
    }
    Ok(Unread { bytes, ring_bytes: r.pos - start })
}

/// Writer: room for `want` payload bytes in records of any number right now?
///
/// # Errors
/// [`Violation`] if the reader's position is impossible.
pub fn has_room(mem: &impl Memory, dir: &Direction, w: &mut Writer, want: u64) -> Result<bool, Violation> {
    Ok(space(mem, dir, w, want + 4 * HEADER)? >= want + 4 * HEADER)
}

/// Writer: the reader's position from which [`has_room`] holds for `want`.
#[must_use]
pub fn room_at(mem: &impl Memory, w: &Writer, want: u64) -> u64 {
    (w.tail + want + 4 * HEADER).saturating_sub(mem.size())
}

/// Writer: true if the reader has consumed everything.
#[must_use]
pub fn drained(dir: &Direction, w: &Writer) -> bool {
    // Acquire: as in `space`.
    dir.consumed.load(Ordering::Acquire) == w.tail
}
