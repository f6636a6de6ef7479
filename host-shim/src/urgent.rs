//! TCP's urgent byte (`MSG_OOB`, `SO_OOBINLINE`, `SIOCATMARK`), read and sent as in Linux: tcp(7).
//!
//! The byte stands in the stream, where it marks a place: a read does not go over the mark, and one that starts at it leaves the
//! byte out, unless `SO_OOBINLINE` is set. Only the last urgent byte is a mark; an earlier one is data, or gone if the
//! reader stood before it. All of this is off the path of plain data: urgent records are of a kind of their own.
//!
//! `unsafe` is allowed here: the caller's buffers, as the application passed them.
#![allow(unsafe_code)]

use core::sync::atomic::Ordering;

use ring::stream::{self, Memory as _, Reader, Violation};
use ring::urgent::{self, Urgent};

use crate::buffers::Buffers;
use crate::handle::{Handle, Stream};
use crate::sock::modes;
use crate::sys::{Errno, Result};
use crate::{io, segments};

/// What an urgent record is to the read that comes to it.
pub enum Met {
    /// A byte like others.
    Data,
    /// The end of this read.
    Mark,
    /// Nothing: it is left out.
    Hole,
}

impl Stream {
    fn inline(&self) -> bool {
        self.sock.modes.load(Ordering::Relaxed) & modes::OOB_INLINE != 0
    }

    /// The urgent byte that is not passed yet, as seen from `r`.
    fn ahead(&self, r: &Reader) -> Option<Urgent> {
        if !stream::is_open(self.in_dir, self.conn.generation()) {
            return None;
        }
        urgent::ahead(self.in_dir, r)
    }

    /// `r` stands before the byte of an urgent record; `moved`: this read has got something already.
    #[cold]
    pub fn meets_urgent(&self, r: &Reader, moved: bool) -> Met {
        let is_mark = self.ahead(r).is_some_and(|u| u.pos == r.pos);
        match (is_mark, moved) {
            (true, true) => Met::Mark,
            _ if self.inline() => Met::Data,
            (false, true) => Met::Data,
            (_, false) => Met::Hole,
        }
    }

    /// `r` stands before the byte of an urgent record: is there anything that a read would return?
    #[cold]
    pub fn more_than_urgent(&self, mut r: Reader) -> bool {
        if self.inline() {
            return true;
        }
        let end = r.pos + self.in_ring().size();
        while r.pos < end {
            stream::take(&mut r, 1);
            match stream::next(self.in_ring(), &mut r) {
                Ok(None) => return false,
                Ok(Some(span)) if span.urgent => {}
                _ => return true,
            }
        }
        true
    }

    /// The next byte is the urgent one (`SIOCATMARK`).
    pub fn at_mark(&self) -> bool {
        let mut r = self.behind_holes(self.sock.reader());
        let Some(mark) = self.ahead(&r) else { return false };
        matches!(stream::next(self.in_ring(), &mut r), Ok(Some(span)) if span.urgent && mark.pos == r.pos)
    }

    /// `r` behind urgent bytes that are gone, since a later one came while the reader stood before them.
    fn behind_holes(&self, mut r: Reader) -> Reader {
        let end = r.pos + self.in_ring().size();
        while r.pos < end && !self.inline() {
            let mut next = r;
            match stream::next(self.in_ring(), &mut next) {
                Ok(Some(span)) if span.urgent && self.ahead(&next).is_none_or(|u| u.pos != next.pos) => {
                    stream::take(&mut next, 1);
                    r = next;
                }
                _ => break,
            }
        }
        r
    }

    /// The next byte is there, and a read will leave it out.
    pub fn mark_hides_a_byte(&self) -> bool {
        !self.inline() && self.at_mark()
    }

    /// `POLLPRI`: an urgent byte is ahead that nobody has taken.
    #[inline(always)]
    pub fn has_urgent(&self) -> bool {
        self.in_dir.urgent.load(Ordering::Relaxed) != 0 && self.untaken(&self.sock.reader()).is_some()
    }

    #[cold]
    fn untaken(&self, r: &Reader) -> Option<Urgent> {
        self.ahead(r).filter(|u| self.sock.urgent_taken.load(Ordering::Relaxed) != u.pos + 1)
    }

    /// Bytes before the mark, if there is one that a read would stop at.
    ///
    /// # Errors
    /// There is none (or the peer broke the ring).
    pub fn before_mark(&self, r: &Reader) -> core::result::Result<usize, Violation> {
        let mark = self.ahead(r).filter(|_| !self.inline()).ok_or(Violation)?;
        let mut r = self.behind_holes(*r);
        let mut bytes = 0;
        while r.pos <= mark.pos {
            let span = stream::next(self.in_ring(), &mut r)?.ok_or(Violation)?;
            if r.pos == mark.pos {
                return Ok(bytes);
            }
            bytes += span.len;
            if bytes as u64 > 2 * self.in_ring().size() {
                break;
            }
            stream::take(&mut r, span.len);
        }
        Err(Violation)
    }
}

impl Handle {
    /// The peer wants a signal for urgent data.
    #[cold]
    pub fn ring_urgent(&self) {
        if let Some(m) = segments::by_index(self.place.load(Ordering::Relaxed)) {
            m.ring_urgent();
        }
    }
}

/// recv(2) with `MSG_OOB`. 0 if the buffer has no room for the byte.
///
/// # Errors
/// `EINVAL`: no urgent byte, or it is taken, or it is read inline.
pub fn receive(h: &Handle, s: &Stream, to: &Buffers<'_>, flags: i32) -> Result<usize> {
    let Some(_rx) = s.sock.rx.take() else { return Err(Errno(libc::EAGAIN)) };
    if !s.current(h) {
        return Err(Errno(libc::EBADF));
    }
    let urgent = s.untaken(&s.sock.reader()).filter(|_| !s.inline()).ok_or(Errno(libc::EINVAL))?;
    if flags & libc::MSG_PEEK == 0 {
        s.sock.urgent_taken.store(urgent.pos + 1, Ordering::Relaxed);
    }
    let Some(room) = (0..).map_while(|i| to.get(i)).find(|b| b.len > 0) else { return Ok(0) };
    if flags & libc::MSG_TRUNC == 0 {
        // SAFETY: the application's buffer of at least one byte.
        unsafe { *room.base = urgent.byte };
    }
    Ok(1)
}

/// send(2) with `MSG_OOB`: the last byte is urgent.
///
/// # Errors
/// As send(2).
pub fn send(h: &Handle, s: &Stream, from: &Buffers<'_>, flags: i32) -> Result<usize> {
    let flags = flags & !libc::MSG_OOB;
    let total = from.total();
    let mut done = 0;
    for b in (0..).map_while(|i| from.get(i)).filter(|b| b.len > 0) {
        let is_last = done + b.len == total;
        let plain = b.len - usize::from(is_last);
        match io::send(h, s, &Buffers::one(b.base, plain), flags) {
            Ok(n) => done += n,
            Err(_) if done > 0 => return Ok(done),
            Err(e) => return Err(e),
        }
        if is_last && done + 1 == total {
            // The last byte of a buffer that is not empty.
            let byte = Buffers::urgent(b.base.wrapping_add(plain));
            return match io::send(h, s, &byte, flags) {
                Err(e) if done == 0 => Err(e),
                other => Ok(done + other.unwrap_or(0)),
            };
        }
    }
    Ok(done)
}
