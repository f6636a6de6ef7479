//! The buffers of a call, as the application passed them, and how far the call is in them.
//!
//! `unsafe` is allowed here: copying from them.
#![allow(unsafe_code)]

use ring::stream::{RingBytes, Span};

/// A buffer of the application: where, and how long.
#[derive(Clone, Copy)]
pub struct Buffer {
    /// Start.
    pub base: *mut u8,
    /// Bytes.
    pub len: usize,
}

/// Buffers of one call, in order.
pub struct Buffers<'a> {
    list: &'a [libc::iovec],
    /// The only one.
    pub single: Option<Buffer>,
    /// It is one byte, and urgent.
    pub urgent: bool,
}

impl Buffer {
    /// No application can have memory there: the first page, or the kernel's half. Other wrong addresses are told from
    /// right ones by using them only, which ends the program where the kernel would have said `EFAULT`.
    #[inline(always)]
    pub fn is_nowhere(self) -> bool {
        is_nowhere(self.base)
    }
}

/// See [`Buffer::is_nowhere`].
#[inline(always)]
pub fn is_nowhere<T>(p: *const T) -> bool {
    const FIRST_PAGE: usize = 4096;
    (p as usize).wrapping_sub(FIRST_PAGE) >= (1 << 63) - FIRST_PAGE
}

impl<'a> Buffers<'a> {
    /// One buffer.
    #[inline(always)]
    #[must_use]
    pub fn one(base: *mut u8, len: usize) -> Self {
        Buffers { list: &[], single: Some(Buffer { base, len }), urgent: false }
    }

    /// `readv` and friends.
    #[must_use]
    pub fn many(list: &'a [libc::iovec]) -> Self {
        Buffers { list, single: None, urgent: false }
    }

    /// One byte to be sent as urgent.
    #[must_use]
    pub fn urgent(byte: *mut u8) -> Self {
        Buffers { urgent: true, ..Self::one(byte, 1) }
    }

    /// The buffer of that number.
    #[must_use]
    pub fn get(&self, i: usize) -> Option<Buffer> {
        match self.single {
            Some(b) => (i == 0).then_some(b),
            None => self.list.get(i).map(|v| Buffer { base: v.iov_base.cast(), len: v.iov_len }),
        }
    }

    /// Where a call goes on, and how much of that buffer is left; `None` at the end.
    #[inline(always)]
    pub fn next_piece(&self, at: &mut Cursor) -> Option<(*mut u8, usize)> {
        while let Some(b) = self.get(at.index) {
            let left = b.len - at.offset;
            if left != 0 {
                // SAFETY: inside the application's buffer.
                return Some((unsafe { b.base.add(at.offset) }, left));
            }
            at.index += 1;
            at.offset = 0;
        }
        None
    }

    /// `n` bytes of the piece that [`Buffers::next_piece`] gave are done.
    #[inline(always)]
    pub fn skip(&self, at: &mut Cursor, n: usize) {
        at.offset += n;
        at.done += n;
    }

    /// Goes through up to `max` bytes, piece by piece. The number of bytes.
    #[inline(always)]
    pub fn pieces(&self, at: &mut Cursor, max: usize, mut each: impl FnMut(*mut u8, usize)) -> usize {
        let mut n = 0;
        while n < max
            && let Some((base, len)) = self.next_piece(at)
        {
            let len = len.min(max - n);
            each(base, len);
            self.skip(at, len);
            n += len;
        }
        n
    }

    /// Bytes in all.
    #[inline(always)]
    #[must_use]
    pub fn total(&self) -> usize {
        match self.single {
            Some(b) => b.len,
            None => self.list.iter().fold(0, |sum, v| sum.saturating_add(v.iov_len)),
        }
    }
}

impl Buffers<'_> {
    /// Copies from where `at` is into the span, from several buffers if they fit: what one call sends becomes visible at once, as
    /// far as a record goes. How many bytes; 0: the next buffer is nowhere.
    #[inline(always)]
    pub fn fill(&self, ring: &RingBytes, span: &Span, at: &mut Cursor) -> usize {
        let mut filled = 0;
        while filled < span.len {
            let Some(b) = self.get(at.index) else { break };
            let n = (b.len - at.offset).min(span.len - filled);
            if n > 0 && b.is_nowhere() {
                break;
            }
            // SAFETY: the application's buffer has at least `n` bytes from `offset`; the span has room for them.
            unsafe { ring.copy_in(span.at.plus(filled), b.base.add(at.offset), n) };
            filled += n;
            at.offset += n;
            if at.offset == b.len {
                at.index += 1;
                at.offset = 0;
            }
        }
        filled
    }
}

/// Where a call is in its buffers.
#[derive(Clone, Copy, Default)]
pub struct Cursor {
    /// Which buffer.
    pub index: usize,
    /// Where in it.
    pub offset: usize,
    /// Bytes moved so far.
    pub done: usize,
    /// Ancillary data came with the last of them: one call does not go on behind it.
    pub barrier: bool,
}
