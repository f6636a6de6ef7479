//! A direction of a connection whose two ends are in two memories (SPEC 4.10): a relay reads the writer's ring as a reader does, and
//! whole runs of records are put into the reader's ring, at the same positions, by somebody who copies memory.
//!
//! The run's first header stays out of the copy. It is what makes the rest visible, and is published last, by [`place`].

use crate::atomic::Ordering;
use crate::segment::Direction;
use crate::stream::{self, KIND_DATA, KIND_SKIP, KIND_URGENT, Memory, Place, VALID, Violation, Writer};

const HEADER: u64 = 8;

/// Records that follow one another, up to the end of the head or of the ring at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first one's header.
    pub first: u64,
    /// Bytes from that header to the word behind the last record; a multiple of 8.
    pub len: u64,
    /// A record in it is urgent.
    pub urgent: bool,
}

/// Bytes of the record with `header` at `pos`, header and padding included. `None`: no valid header, or one of what does not go
/// to another memory (SPEC 4.9).
fn step(mem: impl Memory, pos: u64, header: u64) -> Option<u64> {
    if header == KIND_SKIP | VALID {
        return stream::skipped(mem, pos);
    }
    let len = header & 0xffff_ffff;
    let known = header == KIND_DATA | VALID | len || header == KIND_URGENT | VALID | 1;
    (known && len > 0 && len <= rest(mem, pos) - HEADER).then(|| HEADER + ((len + 7) & !7))
}

/// Bytes from `pos` to the end of the head or of the ring.
fn rest(mem: impl Memory, pos: u64) -> u64 {
    mem.part(mem.place(pos)) - (pos & (mem.size() - 1))
}

/// Relay: the records from position `pos` on, at most `max` bytes of them unless the first one is longer. `consumed` is what
/// the reader has freed, as the relay has told the writer. `Ok(None)`: nothing yet.
///
/// # Errors
/// [`Violation`] if a header is impossible, or the writer had no room for what it wrote.
pub fn next_run(mem: impl Memory, pos: u64, consumed: u64, max: u64) -> Result<Option<Run>, Violation> {
    let (size, rest) = (mem.size(), rest(mem, pos));
    let mut run = Run { first: 0, len: 0, urgent: false };
    // Ends: each step moves on by 8 bytes at least, and never over the end.
    while run.len < rest {
        let at = pos + run.len;
        // Acquire: pairs with the Release in `publish_at`: the copy is made after this, and finds the payload.
        let header = mem.header(mem.place(at)).ok_or(Violation)?.load(Ordering::Acquire);
        if header == 0 {
            break;
        }
        let step = step(mem, at, header).ok_or(Violation)?;
        if run.len > 0 && run.len + step > max {
            break;
        }
        // The word behind it is the writer's, too.
        if pos + run.len + step + HEADER > consumed + size {
            return Err(Violation);
        }
        if run.len == 0 {
            run.first = header;
        }
        run.len += step;
        run.urgent |= header == KIND_URGENT | VALID | 1;
    }
    Ok((run.len > 0).then_some(run))
}

/// Writer of the reader's ring: the `len` bytes at its position are in place, but for the first word, once `fill` has been called
/// with the place of the second. Publishes the first one, which is `first`.
///
/// # Errors
/// [`Violation`]: no run of that length, first header and place is possible, or the reader's position isn't. Nothing is filled in or
/// published.
pub fn place(
    mem: impl Memory,
    dir: &Direction,
    w: &mut Writer,
    first: u64,
    len: u64,
    fill: impl FnOnce(Place),
) -> Result<(), Violation> {
    let step = step(mem, w.tail, first).ok_or(Violation)?;
    if !len.is_multiple_of(HEADER) || step > len || len > rest(mem, w.tail) {
        return Err(Violation);
    }
    let next = w.tail + len;
    if next + HEADER > w.limit {
        consumed(mem, dir, w)?;
    }
    if next + HEADER > w.limit {
        return Err(Violation);
    }
    fill(mem.place(w.tail).behind_header());
    stream::publish_at(mem, mem.place(w.tail), first, mem.place(next))?;
    w.tail = next;
    Ok(())
}

/// Relay: how far the reader has come, which the writer of its ring has not been told yet.
///
/// # Errors
/// [`Violation`] if its position is impossible.
pub fn consumed(mem: impl Memory, dir: &Direction, w: &mut Writer) -> Result<u64, Violation> {
    let consumed = stream::consumed(mem, dir, w)?;
    w.limit = consumed + mem.size();
    Ok(consumed)
}
