//! What the bridges of two hosts say to each other (SPEC 14): messages of 64-bit words, little-endian.
//!
//! ```text
//! message: head, items      head: bits 0-31 messages taken, 32-63 "D", "I" and the version
//! item: head, words         head: bits 0-31 connection, 32-39 kind, 40-63 a small number
//! ```

mod contact;

pub use contact::{Contact, KNOCK_BYTES, Knock, Token, WELCOME_BYTES, Welcome};

use crate::VERSION;

const MAGIC: u64 = 0x4944 << 48 | (VERSION as u64) << 32;
const MAGIC_MASK: u64 = 0xffff_ffff << 32;

/// Bytes of a message without items.
pub const HEAD_BYTES: usize = 8;
/// Bytes of the longest item without inline bytes.
pub const ITEM_MAX: usize = 24;

/// Not a message of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// One thing that is said about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// A run of records at ring position `start` (SPEC 4.10). All but its first header has been written to the ring.
    Run {
        /// Position of its first header.
        start: u64,
        /// That header.
        first: u64,
        /// Bytes, a multiple of 8.
        len: u64,
        /// A record in it is urgent.
        urgent: bool,
    },
    /// The same, with the bytes behind its first header.
    Inline {
        /// Position of its first header.
        start: u64,
        /// That header.
        first: u64,
        /// A record in it is urgent.
        urgent: bool,
        /// The rest.
        rest: &'a [u8],
    },
    /// The process has consumed what was written up to there.
    Consumed(u64),
    /// The process's direction has this state, behind all that was said before.
    State(u32),
    /// The last urgent byte, and where it stands.
    Urgent(u64),
    /// The process will not read any more; `shut`: and has not closed, it has shut down.
    ReaderClosed {
        /// See [`crate::segment::READER_SHUT`].
        shut: bool,
    },
    /// The connection is reset. Nothing else is said, or written, for it after this.
    Reset,
    /// Nothing else is said, or written, for it after this.
    Done,
}

/// An item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// The receiver's number of the connection.
    pub connection: u32,
    /// What is said.
    pub body: Body<'a>,
}

const RUN: u64 = 1;
const INLINE: u64 = 2;
const CONSUMED: u64 = 3;
const STATE: u64 = 4;
const URGENT: u64 = 5;
const READER_CLOSED: u64 = 6;
const RESET: u64 = 7;
const DONE: u64 = 8;

/// In the small number of a run, beside its length in words.
const IS_URGENT: u64 = 1 << 20;

/// Writes a message into a buffer.
#[derive(Debug)]
pub struct Builder<'a> {
    room: &'a mut [u8],
    /// Bytes written.
    len: usize,
}

impl<'a> Builder<'a> {
    /// Goes on with a message of `len` bytes in `room`; with 0, begins one. Its head is written by [`seal`].
    pub fn new(room: &'a mut [u8], len: usize) -> Self {
        Builder { room, len: len.max(HEAD_BYTES) }
    }

    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// No items so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == HEAD_BYTES
    }

    /// Bytes that are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.room.len().saturating_sub(self.len)
    }

    fn words(&mut self, words: &[u64]) -> bool {
        let end = self.len + words.len() * 8;
        let Some(room) = self.room.get_mut(self.len..end) else { return false };
        for (room, word) in room.chunks_exact_mut(8).zip(words) {
            room.copy_from_slice(&word.to_le_bytes());
        }
        self.len = end;
        true
    }

    /// Adds an item. False: no room, and nothing added.
    #[must_use]
    pub fn add(&mut self, connection: u32, body: &Body<'_>) -> bool {
        let head = |kind: u64, small: u64| u64::from(connection) | kind << 32 | small << 40;
        match *body {
            Body::Run { start, first, len, urgent } => {
                let small = (len / 8) | if urgent { IS_URGENT } else { 0 };
                self.words(&[head(RUN, small), start, first])
            }
            Body::Inline { start, first, urgent, rest } => {
                self.add_inline(connection, start, first, urgent, rest.len(), |room| {
                    room.copy_from_slice(rest)
                })
            }
            Body::Consumed(position) => self.words(&[head(CONSUMED, 0), position]),
            Body::State(state) => self.words(&[head(STATE, u64::from(state) & 0xff)]),
            Body::Urgent(word) => self.words(&[head(URGENT, 0), word]),
            Body::ReaderClosed { shut } => self.words(&[head(READER_CLOSED, u64::from(shut))]),
            Body::Reset => self.words(&[head(RESET, 0)]),
            Body::Done => self.words(&[head(DONE, 0)]),
        }
    }

    /// Adds [`Body::Inline`] whose `rest` bytes, a multiple of 8, are filled in by `fill`. False: no room, and nothing added.
    #[must_use]
    pub fn add_inline(
        &mut self,
        connection: u32,
        start: u64,
        first: u64,
        urgent: bool,
        rest: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> bool {
        if self.left() < ITEM_MAX + rest {
            return false;
        }
        let small = (rest as u64 / 8 + 1) | if urgent { IS_URGENT } else { 0 };
        let head = u64::from(connection) | INLINE << 32 | small << 40;
        let added = self.words(&[head, start, first]);
        if let Some(room) = self.room.get_mut(self.len..self.len + rest) {
            fill(room);
            self.len += rest;
        }
        added
    }
}

/// Writes the head of a message: its sender has taken `taken` messages so far, modulo 2^32.
pub fn seal(message: &mut [u8], taken: u32) {
    if let Some(head) = message.get_mut(..HEAD_BYTES) {
        head.copy_from_slice(&(MAGIC | u64::from(taken)).to_le_bytes());
    }
}

/// A message that has come, taken apart.
#[derive(Clone, Debug)]
pub struct Items<'a>(&'a [u8]);

/// Takes a message apart: how many its sender has taken, and its items.
///
/// # Errors
/// [`Malformed`].
pub fn parse(mut message: &[u8]) -> Result<(u32, Items<'_>), Malformed> {
    let head = word(&mut message).filter(|head| head & MAGIC_MASK == MAGIC).ok_or(Malformed)?;
    #[allow(clippy::cast_possible_truncation)] // its lower half
    Ok((head as u32, Items(message)))
}

fn word(bytes: &mut &[u8]) -> Option<u64> {
    let (word, rest) = bytes.split_first_chunk::<8>()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*word))
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<Item<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let item = self.item().ok_or(Malformed);
        if item.is_err() {
            // What follows can't be told apart any more.
            self.0 = &[];
        }
        Some(item)
    }
}

impl<'a> Items<'a> {
    fn item(&mut self) -> Option<Item<'a>> {
        let head = word(&mut self.0)?;
        #[allow(clippy::cast_possible_truncation)] // its lower half
        let connection = head as u32;
        let (kind, small) = ((head >> 32) & 0xff, head >> 40);
        let (words, urgent) = (small & (IS_URGENT - 1), small & IS_URGENT != 0);
        let none = |body| (small == 0).then_some(body);
        let body = match kind {
            RUN | INLINE if small <= IS_URGENT | (IS_URGENT - 1) && words > 0 => {
                let (start, first) = (word(&mut self.0)?, word(&mut self.0)?);
                if kind == RUN {
                    Body::Run { start, first, len: words * 8, urgent }
                } else {
                    let (rest, left) = self.0.split_at_checked(usize::try_from(words - 1).ok()? * 8)?;
                    self.0 = left;
                    Body::Inline { start, first, urgent, rest }
                }
            }
            CONSUMED => none(Body::Consumed(word(&mut self.0)?))?,
            STATE if (1..=3).contains(&small) => Body::State(u32::try_from(small).ok()?),
            URGENT => none(Body::Urgent(word(&mut self.0)?))?,
            READER_CLOSED if small <= 1 => Body::ReaderClosed { shut: small == 1 },
            RESET => none(Body::Reset)?,
            DONE => none(Body::Done)?,
            _ => return None,
        };
        Some(Item { connection, body })
    }
}
