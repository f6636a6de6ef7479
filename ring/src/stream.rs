//! One direction of a connection (SPEC 4): records with inline headers, the first ones in a short head, all others in a ring.
//!
//! A record is a 64-bit header and its payload, padded to 8 bytes; it never crosses the end of the ring.
//! A header is valid when it is not zero, and the word where the next header will stand is zeroed before a header
//! is published: so one small message costs one cache line, and the reader needs no index of the writer's.
//!
//! ```text
//! header: bits 0-31 payload bytes, 32-39 kind (1 data, 2 skip to the ring's start or from the head to the ring, 3 one urgent
//!         byte, 4 data with something beside it at the kernel), 63 valid
//! ```
//!
//! Positions are bytes since the beginning, never wrapped; each side keeps its own in memory that the
//! other cannot write, and checks whatever it loads from the shared part (SPEC 4.6).
//!
//! `unsafe` is allowed here for the raw copies between a ring and a caller's buffer.
#![allow(unsafe_code)]

use crate::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
use crate::hint;
use crate::segment::Direction;
#[cfg(not(loom))]
use crate::shared::Region;

/// Longest payload of one record: a large write becomes several records, so that the reader starts
/// on the first while the writer copies the next.
pub const RECORD_MAX: usize = 16 * 1024;
const HEADER: u64 = 8;
const LINE: u64 = 64;
/// A line that the reader has had is fetched from its cache so long before it is written.
const AHEAD: u64 = 4 * LINE;
pub(crate) const VALID: u64 = 1 << 63;
pub(crate) const KIND_DATA: u64 = 1 << 32;
pub(crate) const KIND_SKIP: u64 = 2 << 32;
pub(crate) const KIND_URGENT: u64 = 3 << 32;
const KIND_ANCILLARY: u64 = 4 << 32;

/// Where bytes of a stream lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// In the head, not in the ring.
    pub in_head: bool,
    /// From its start.
    pub offset: usize,
}

impl Place {
    /// `offset` bytes into the ring.
    #[must_use]
    pub fn in_ring(offset: usize) -> Place {
        Place { in_head: false, offset }
    }

    /// `bytes` further in the same part.
    #[inline(always)]
    #[must_use]
    pub fn plus(self, bytes: usize) -> Place {
        Place { offset: self.offset.wrapping_add(bytes), ..self }
    }

    /// Where the payload of the record begins whose header is here.
    #[inline(always)]
    pub(crate) fn behind_header(self) -> Place {
        self.plus(size_of::<u64>())
    }
}

/// The bytes of a ring, a power of two of them, and of the head before it, as headers and payload. The shipped one is [`RingBytes`];
/// the loom tests bring one that detects overlapping accesses. (Copied, so that its parts stay in registers.)
pub trait Memory: Copy {
    /// Ring size in bytes.
    fn size(&self) -> u64;
    /// Bytes of the head, a multiple of 8 below the ring's size: positions below this are there. 0: there is none.
    fn head(&self) -> u64 {
        0
    }
    /// The header word at a place (multiple of 8), if it is inside.
    fn header(&self, place: Place) -> Option<&AtomicU64>;

    /// Where a position lies.
    #[inline(always)]
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // below the ring's size
    fn place(&self, pos: u64) -> Place {
        Place { in_head: pos < self.head(), offset: (pos & (self.size() - 1)) as usize }
    }

    /// Bytes of the part that a place is in.
    #[inline(always)]
    #[must_use]
    fn part(&self, place: Place) -> u64 {
        if place.in_head { self.head() } else { self.size() }
    }

    /// Writer: a hint that the line at `pos` of the ring will be written soon.
    #[inline(always)]
    fn fetch_to_write(&self, pos: u64) {
        let _ = pos;
    }
}

impl<M: Memory> Memory for &M {
    fn size(&self) -> u64 {
        M::size(self)
    }
    fn head(&self) -> u64 {
        M::head(self)
    }
    fn header(&self, place: Place) -> Option<&AtomicU64> {
        M::header(self, place)
    }
    fn fetch_to_write(&self, pos: u64) {
        M::fetch_to_write(self, pos);
    }
}

/// Head and ring in a mapped segment. (Not under loom, whose atomics are not plain memory.)
#[cfg(not(loom))]
#[derive(Clone, Copy, Debug)]
pub struct RingBytes {
    /// As long as the ring: what is mapped behind the head is nothing that the peer could not spoil anyway. One bound for both parts is
    /// cheaper to check than two.
    head: Region,
    head_bytes: u64,
    ring: Region,
}

#[cfg(not(loom))]
impl RingBytes {
    /// Views a region whose length is a power of two as a ring without a head.
    #[must_use]
    pub fn new(ring: Region) -> Option<Self> {
        let aligned = (ring.base().as_ptr() as usize).is_multiple_of(8);
        let fine = ring.len().is_power_of_two() && ring.len() >= 64 && aligned;
        fine.then_some(RingBytes { head: ring, head_bytes: 0, ring })
    }

    /// A ring, with the first `head_bytes` of a region of the same length as its head.
    #[inline(always)]
    #[must_use]
    pub fn with_head(head: Region, head_bytes: u64, ring: Region) -> Self {
        debug_assert!(
            ring.len().is_power_of_two() && head.len() == ring.len() && head_bytes.is_multiple_of(8)
        );
        RingBytes { head, head_bytes, ring }
    }

    /// The ring alone.
    #[must_use]
    pub fn ring(&self) -> Region {
        self.ring
    }

    #[inline(always)]
    fn region(&self, place: Place) -> Region {
        if place.in_head { self.head } else { self.ring }
    }

    /// Copies `src` to a place (from [`reserve`]); bytes beyond the ring's length are not written.
    ///
    /// # Safety
    /// `src` is readable for `len` bytes.
    #[inline(always)]
    pub unsafe fn copy_in(&self, at: Place, src: *const u8, len: usize) {
        let part = self.region(at);
        if at.offset.checked_add(len).is_none_or(|end| end > part.len()) {
            return;
        }
        // SAFETY: inside the mapped part (checked), `src` readable (contract). The two sides are the user's private
        // memory and the segment; a hostile peer may write there meanwhile, which garbles its own data only.
        unsafe { copy(src, part.base().as_ptr().add(at.offset), len) }
    }

    /// Copies from a place (from [`next`]) to `dst`; nothing is copied from beyond the ring's length.
    ///
    /// # Safety
    /// `dst` is writable for `len` bytes.
    #[inline(always)]
    pub unsafe fn copy_out(&self, at: Place, dst: *mut u8, len: usize) {
        let part = self.region(at);
        if at.offset.checked_add(len).is_none_or(|end| end > part.len()) {
            return;
        }
        // SAFETY: as in `copy_in`, the other way.
        unsafe { copy(part.base().as_ptr().add(at.offset), dst, len) }
    }

    /// First byte of the payload at a place, for system calls that read or write it in place.
    #[must_use]
    pub fn at(&self, at: Place, len: usize) -> Option<*mut u8> {
        Some(self.region(at).part(at.offset, len)?.base().as_ptr())
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
        self.ring.len() as u64
    }
    #[inline(always)]
    fn head(&self) -> u64 {
        self.head_bytes
    }
    #[inline(always)]
    fn header(&self, place: Place) -> Option<&AtomicU64> {
        let part = self.region(place);
        // A position's is inside already, and a multiple of 8; this is cheaper than asking.
        let offset = place.offset & (part.len() - 8);
        // SAFETY: in range (the length is a power of two, 8 at least), aligned (both parts are), mapped, and any bit pattern and
        // concurrent change is fine.
        Some(unsafe { &*part.base().as_ptr().add(offset).cast() })
    }
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // below the ring's size
    fn fetch_to_write(&self, pos: u64) {
        hint::will_write(self.ring.base().as_ptr().wrapping_add(pos as usize & (self.ring.len() - 1)));
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
    /// Up to where there is room, as last seen; the head's end, while it is in the head.
    pub limit: u64,
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
    /// Of its first byte.
    pub at: Place,
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

/// Writer: makes the memory ready for a new connection of generation `generation` (SPEC 5.5).
/// Until this is done the reader takes the direction for empty.
pub fn open(mem: impl Memory, dir: &Direction, generation: u32) {
    use crate::segment::state;
    if let Some(word) = mem.header(mem.place(0)) {
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

/// Writer: how far the reader says it has come.
///
/// # Errors
/// [`Violation`] if that is impossible.
#[inline(always)]
pub(crate) fn consumed(mem: impl Memory, dir: &Direction, w: &Writer) -> Result<u64, Violation> {
    // Acquire: pairs with the Release in `release`: the reader has finished copying out what it frees.
    let consumed = dir.consumed.load(Ordering::Acquire);
    // Below what was seen, or ahead of what was written: only a reader that lies says so.
    if consumed > w.tail || consumed + mem.size() < w.limit { Err(Violation) } else { Ok(consumed) }
}

/// Writer: reserves room for up to `want` payload bytes (at least 1) in one record.
///
/// `Ok(None)`: full. The span may be shorter than `want`: copy, [`commit`], and reserve again.
///
/// # Errors
/// [`Violation`] if the reader's position is impossible.
#[inline(always)]
pub fn reserve(
    mem: impl Memory,
    dir: &Direction,
    w: &mut Writer,
    want: usize,
) -> Result<Option<Span>, Violation> {
    let want = want.min(RECORD_MAX);
    let span = room(mem, w, want);
    if span.is_some() {
        return Ok(span);
    }
    let (moved, span) = reserve_part(mem, dir, *w, want)?;
    *w = moved;
    Ok(span)
}

/// Writer: [`reserve`], where no more is to be done than to see that there is room for all of `want` in one record. `None` says nothing.
#[inline(always)]
#[must_use]
pub fn room(mem: impl Memory, w: &Writer, want: usize) -> Option<Span> {
    let at = mem.place(w.tail);
    // Room for: a skip header, this header, the payload, and the next header's zero; before the end of the ring, too.
    let need = needed(want);
    let fits = want.wrapping_sub(1) < RECORD_MAX
        && w.limit.wrapping_sub(w.tail) >= need
        && mem.size() - at.offset as u64 >= need;
    fits.then_some(Span { at: at.behind_header(), len: want, urgent: false, ancillary: false })
}

const fn needed(want: usize) -> u64 {
    padded(want as u64) + 3 * HEADER
}

/// [`reserve`], where that is not as simple.
#[cold]
#[inline(never)]
#[allow(clippy::cast_possible_truncation)] // lengths are below the ring's size
fn reserve_part(
    mem: impl Memory,
    dir: &Direction,
    mut w: Writer,
    want: usize,
) -> Result<(Writer, Option<Span>), Violation> {
    let size = mem.size();
    let need = needed(want);
    if w.limit.wrapping_sub(w.tail) < need {
        w = more_room(mem, dir, w, need)?;
    }
    let mut free = w.limit - w.tail;
    if size - (w.tail & (size - 1)) == HEADER {
        // Only a header fits before the end: skip to the start. Published here, as an empty step.
        if free < 3 * HEADER + 8 {
            return Ok((w, None));
        }
        publish(mem, w.tail, KIND_SKIP | VALID, HEADER)?;
        w.tail += HEADER;
        free -= HEADER;
    }
    let at = mem.place(w.tail).behind_header();
    let room = free.saturating_sub(2 * HEADER).min(size - at.offset as u64) & !7;
    let len = want.min(room as usize);
    Ok((w, (len > 0).then_some(Span { at, len, urgent: false, ancillary: false })))
}

/// Writer: `want` is more than the room that is known: looks for more. Of the head there is all from the beginning; who needs more
/// goes on in the ring.
fn more_room(mem: impl Memory, dir: &Direction, mut w: Writer, want: u64) -> Result<Writer, Violation> {
    let consumed = consumed(mem, dir, &w)?;
    let head = mem.head();
    if w.tail < head {
        w.limit = head;
        if head - w.tail >= want {
            return Ok(w);
        }
        // Each record in the head has left room for this one.
        publish_at(mem, mem.place(w.tail), KIND_SKIP | VALID, mem.place(head))?;
        w.tail = head;
    }
    w.limit = consumed + mem.size();
    Ok(w)
}

/// Writer: publishes the `len` bytes (1 to the reserved length) that were copied to the reserved span.
///
/// # Errors
/// [`Violation`] only if the ring itself is unusable (too small); nothing is published then.
#[inline(always)]
pub fn commit(mem: impl Memory, w: &mut Writer, len: usize) -> Result<(), Violation> {
    append(mem, w, KIND_DATA, len as u64)
}

/// Publishes a record of `len` bytes at the tail, which comes behind it.
#[inline(always)]
fn append(mem: impl Memory, w: &mut Writer, kind: u64, len: u64) -> Result<(), Violation> {
    let before = w.tail;
    let step = HEADER + padded(len);
    publish(mem, before, kind | VALID | len, step)?;
    w.tail += step;
    if (before ^ w.tail) >= LINE {
        mem.fetch_to_write(w.tail + AHEAD);
    }
    Ok(())
}

/// Writer: [`commit`] of data that ancillary data belongs to, which is at the kernel already (SPEC 4.9).
///
/// # Errors
/// As [`commit`].
pub fn commit_ancillary(mem: impl Memory, w: &mut Writer, len: usize) -> Result<(), Violation> {
    append(mem, w, KIND_ANCILLARY, len as u64)
}

/// Writer: [`commit`] of one byte that is urgent, announced before ([`crate::urgent::announce`]).
///
/// # Errors
/// As [`commit`].
pub fn commit_urgent(mem: impl Memory, w: &mut Writer) -> Result<(), Violation> {
    append(mem, w, KIND_URGENT, 1)
}

/// The word behind it is in the same part: nothing but a skip ends at the head's end.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // below the ring's size
fn publish(mem: impl Memory, tail: u64, header: u64, step: u64) -> Result<(), Violation> {
    let at = mem.place(tail);
    let next = Place { offset: ((tail + step) & (mem.size() - 1)) as usize, ..at };
    publish_at(mem, at, header, next)
}

/// Publishes a header; the one behind it will stand at `next`.
#[inline(always)]
pub(crate) fn publish_at(mem: impl Memory, at: Place, header: u64, next: Place) -> Result<(), Violation> {
    let next = mem.header(next).ok_or(Violation)?;
    let this = mem.header(at).ok_or(Violation)?;
    // Relaxed: the Release below orders it before this header becomes visible, and nobody looks
    // for the next header before having seen this one.
    next.store(0, Ordering::Relaxed);
    // Release: pairs with the Acquire in `load_header`: whoever sees the header sees the payload and the zero.
    this.store(header, Ordering::Release);
    Ok(())
}

/// Reader: the next bytes, as one contiguous span; `Ok(None)`: empty for now.
/// Moves `r` over skips and to a new record, but frees nothing: see [`take`] and [`release`].
///
/// # Errors
/// [`Violation`] if a header is impossible.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // lengths and places are below the memory's size
pub fn next(mem: impl Memory, r: &mut Reader) -> Result<Option<Span>, Violation> {
    let (mut urgent, mut ancillary) = (false, false);
    if r.left == 0 {
        // At most two steps: a skip is followed by something else.
        let mut header = load_header(mem, r.pos)?;
        if header == KIND_SKIP | VALID {
            (r.pos, header) = behind_skip(mem, r.pos)?;
        }
        if header == 0 {
            return Ok(None);
        }
        let at = mem.place(r.pos);
        let len = header & 0xffff_ffff;
        if header != KIND_DATA | VALID | len {
            urgent = header == KIND_URGENT | VALID | 1;
            ancillary = header == KIND_ANCILLARY | VALID | len;
            if !urgent && !ancillary {
                return Err(Violation);
            }
        }
        if len == 0 || len + HEADER > mem.part(at) - at.offset as u64 {
            return Err(Violation);
        }
        r.len = len as u32;
        r.left = len as u32;
    }
    let at = mem.place(r.pos).behind_header().plus(r.len as usize - r.left as usize);
    Ok(Some(Span { at, len: r.left as usize, urgent, ancillary }))
}

/// The position behind a skip at `pos`, and the header there.
#[cold]
#[inline(never)]
fn behind_skip(mem: impl Memory, pos: u64) -> Result<(u64, u64), Violation> {
    let pos = pos + skipped(mem, pos).ok_or(Violation)?;
    Ok((pos, load_header(mem, pos)?))
}

/// Bytes from a skip at `pos` to where it goes on; `None`: none may stand there.
pub(crate) fn skipped(mem: impl Memory, pos: u64) -> Option<u64> {
    match mem.head().checked_sub(pos) {
        Some(rest) if rest > 0 => Some(rest),
        _ => (mem.size() - (pos & (mem.size() - 1)) == HEADER).then_some(HEADER),
    }
}

#[inline(always)]
fn load_header(mem: impl Memory, pos: u64) -> Result<u64, Violation> {
    // Acquire: pairs with the Release in `publish_at`.
    Ok(mem.header(mem.place(pos)).ok_or(Violation)?.load(Ordering::Acquire))
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
    // Release: pairs with the Acquire in `consumed`: our copies out of the ring are done.
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
pub fn unread(mem: impl Memory, r: &Reader) -> Result<Unread, Violation> {
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
pub fn has_room(mem: impl Memory, dir: &Direction, w: &mut Writer, want: u64) -> Result<bool, Violation> {
    let need = want + 4 * HEADER;
    if w.limit.wrapping_sub(w.tail) >= need {
        return Ok(true);
    }
    let limit = consumed(mem, dir, w)? + mem.size();
    if w.tail >= mem.head() {
        w.limit = limit;
    }
    // What does not go into the head goes into the ring.
    Ok(limit.saturating_sub(w.tail.max(mem.head())) >= need)
}

/// Writer: the reader's position from which [`has_room`] holds for `want`.
#[must_use]
pub fn room_at(mem: impl Memory, w: &Writer, want: u64) -> u64 {
    (w.tail.max(mem.head()) + want + 4 * HEADER).saturating_sub(mem.size())
}

/// Writer: true if the reader has consumed everything.
#[must_use]
pub fn drained(dir: &Direction, w: &Writer) -> bool {
    // Acquire: as in `consumed`.
    dir.consumed.load(Ordering::Acquire) == w.tail
}
