//! What most calls do: one buffer, and one record in the ring. Whatever is otherwise, or would need a loop, [`crate::stream`] does, and so
//! none of it costs anything here. A call that is left to it has changed nothing.
//!
//! `unsafe` is allowed here: the caller's buffer, as the application passed it.
#![allow(unsafe_code)]

use ring::stream::{self, Memory as _};

use crate::buffers::is_nowhere;
use crate::handle::{Handle, Stream};

/// Writes all of a buffer as one record. False: not in this way.
#[inline(always)]
pub fn write(h: &Handle, s: &Stream, base: *const u8, n: usize) -> bool {
    let Some(_tx) = s.sock.tx.take() else { return false };
    let (ring, mut w) = (s.out_ring(), s.sock.writer());
    let before = w.tail;
    if !s.current(h) || s.writes_are_over() || before < ring.head() || is_nowhere(base) {
        return false;
    }
    let Some(span) = stream::room(ring, &w, n) else { return false };
    // SAFETY: the application's buffer; the span has room for it.
    unsafe { ring.copy_in(span.at, base, n) };
    if stream::commit(ring, &mut w, n).is_err() {
        return false;
    }
    h.has_written(s, before, n, w);
    true
}

/// How [`read`] went.
pub enum Read {
    /// Bytes, at least 1.
    Some(usize),
    /// As many, and the buffer takes more, and more is there.
    GoesOn(usize),
    /// Nothing has come, and nothing has ended.
    Nothing,
    /// Not in this way.
    Otherwise,
}

/// Reads of one record, or the rest of one, as much as the buffer takes.
#[inline(always)]
pub fn read(h: &Handle, s: &Stream, base: *mut u8, n: usize) -> Read {
    let Some(_rx) = s.sock.rx.take() else { return Read::Otherwise };
    let (ring, mut r) = (s.in_ring(), s.sock.reader());
    let before = r.pos;
    if !s.current(h) || before < ring.head() || is_nowhere(base) || n == 0 {
        return Read::Otherwise;
    }
    let span = match stream::next(ring, &mut r) {
        Ok(Some(span)) if !span.urgent && !span.ancillary => span,
        Ok(None) if s.is_open_to_read() => return Read::Nothing,
        _ => return Read::Otherwise,
    };
    let got = span.len.min(n);
    // SAFETY: the application's buffer has room for `n` bytes.
    unsafe { ring.copy_out(span.at, base, got) };
    stream::take(&mut r, got);
    h.has_read(s, before, got, r);
    if got < n && stream::next(ring, &mut r) != Ok(None) { Read::GoesOn(got) } else { Read::Some(got) }
}
