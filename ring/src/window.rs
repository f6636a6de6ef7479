//! Request and completion rings (SPEC 2).
//!
//! Both are the same single-producer single-consumer ring of 64-byte entries. An entry is valid
//! when its sequence number is the consumer's index plus one, so neither side reads the other's
//! index: the request ring lives in device memory and is only ever stored to by the host, the
//! completion ring lives in host memory and is only ever stored to by the card. How far the other
//! side has read travels inside the entries that flow the other way (SPEC 2.4).
//!
//! | module | what it holds |
//! |---|---|
//! | [`views`] | the memories of a function, and what each side may do with them |
//! | [`ends`] | a function's two ends: rings, credits, interrupts, doorbell |
//!
//! `unsafe` is allowed here for the `Shared` markers only.
#![allow(unsafe_code)]

mod ends;
mod views;

use crate::VERSION;
use crate::atomic::Ordering;
use crate::shared::Shared;
use crate::side::{Combining, Far, InOrder, Memory, Near};

pub use ends::{Armed, Broken, CardEnd, HostEnd, IrqGate};
pub use views::{FarHost, FarWindow, HostHeader, HostMemory, NearHost, NearWindow, Window, WindowHeader};

/// Entries in a request ring and in a completion ring.
pub const ENTRIES: u32 = 256;
/// Bytes of a window (device memory of one function). 64 KiB pages are assumed nowhere smaller.
pub const WINDOW_BYTES: usize = 65_536;
/// Bytes of a function's host memory (completion ring, card's posted words, agent's notice word).
pub const HOST_BYTES: usize = 65_536;
/// First entry, from the start of the window and of the host memory.
pub const ENTRIES_OFFSET: usize = 4096;
/// "IPDW", first word of a window.
pub const WINDOW_MAGIC: u32 = u32::from_le_bytes(*b"IPDW");
/// "IPDH", first word of a function's host memory.
pub const HOST_MAGIC: u32 = u32::from_le_bytes(*b"IPDH");

/// One entry: a header word, a credit word, and 48 bytes of content.
///
/// Word 0: sequence (bits 0-31), kind (32-39), version (40-47), status (48-63).
/// Word 1: credit (0-31), token (32-63). Words 2-7: content by kind.
#[repr(C, align(64))]
pub struct Entry<M: Memory = InOrder> {
    pub(crate) words: [M::Word; 8],
}
// SAFETY: an array of atomics, repr(C), any bit pattern valid.
unsafe impl Shared for Entry {}
// SAFETY: as above.
unsafe impl Shared for Entry<Combining> {}

/// A copied entry, not yet interpreted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Raw {
    /// What the content means; see [`crate::msg`].
    pub kind: u8,
    /// Outcome, in completions.
    pub status: u16,
    /// Chosen by the requester, repeated in the answer.
    pub token: u32,
    /// Content.
    pub body: [u64; 6],
}

#[cfg(not(loom))]
const _: () = {
    use core::mem::{align_of, size_of};
    assert!(size_of::<Entry>() == 64 && align_of::<Entry>() == 64);
    assert!(size_of::<Entry<Combining>>() == 64);
    assert!(ENTRIES_OFFSET + ENTRIES as usize * 64 <= WINDOW_BYTES);
    assert!(ENTRIES_OFFSET + ENTRIES as usize * 64 <= HOST_BYTES);
    assert!(ENTRIES.is_power_of_two());
};

/// The ring is full: the other side has not yet told that it consumed enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Writing half: host for requests, card for completions.
#[derive(Debug)]
pub struct Producer<'a, M: Memory = InOrder> {
    entries: Far<'a, [Entry<M>]>,
    next: u64,
    consumed: u64,
}

/// Reading half: card for requests, host for completions.
#[derive(Debug)]
pub struct Consumer<'a, M: Memory = InOrder> {
    entries: Near<'a, [Entry<M>]>,
    next: u64,
    credit: u64,
}

impl<M: Memory> Entry<M> {
    /// An entry of these words, as models have them: there is no memory to map one from.
    pub fn of(words: [M::Word; 8]) -> Self {
        Entry { words }
    }
}

#[cfg(loom)]
impl Entry {
    /// A zeroed entry.
    #[must_use]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Entry::of(core::array::from_fn(|_| crate::atomic::AtomicU64::new(0)))
    }
}

impl<M: Memory> core::fmt::Debug for Entry<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Entry")
    }
}

/// Sequence number that marks the entry of `index` valid.
#[allow(clippy::cast_possible_truncation)] // the sequence is the index modulo 2^32, on purpose
pub(crate) fn sequence(index: u64) -> u32 {
    (index as u32).wrapping_add(1)
}

/// Extends a 32-bit credit to 64 bits: a value in `known..=produced`.
///
/// An older one is no news (`known`): an entry may be popped after a later [`WindowHeader::armed`] was
/// read. `None` when the claim is ahead of `produced`: the other side lies.
#[allow(clippy::cast_possible_truncation)] // modular arithmetic on the low half
fn extend_credit(claim: u32, known: u64, produced: u64) -> Option<u64> {
    let ahead = u64::from(claim.wrapping_sub(known as u32));
    if ahead <= produced - known {
        return Some(known + ahead);
    }
    (ahead > u64::from(u32::MAX / 2)).then_some(known)
}

impl<'a, M: Memory> Producer<'a, M> {
    /// A producer that continues at `index` (0 for a fresh ring) over `entries`, whose number is a
    /// power of two.
    #[must_use]
    pub fn new(entries: impl Into<Far<'a, [Entry<M>]>>, index: u64) -> Self {
        let entries = entries.into();
        debug_assert!(entries.size().is_power_of_two());
        Producer { entries, next: index, consumed: index }
    }

    /// Entries that can be pushed now.
    #[must_use]
    pub fn space(&self) -> u64 {
        self.entries.size() - (self.next - self.consumed)
    }

    /// Total pushed so far (the index of the next entry).
    #[must_use]
    pub fn pushed(&self) -> u64 {
        self.next
    }

    /// Counts an entry that went by the shared ring instead (SPEC 2.8), under the same credit.
    pub(crate) fn count_shared(&mut self) {
        self.next += 1;
    }

    /// Takes the credit that came inside an entry of the other ring (SPEC 2.4).
    /// `false`: the claim is impossible, the other side is broken.
    #[must_use]
    pub fn take_credit(&mut self, credit: u32) -> bool {
        match extend_credit(credit, self.consumed, self.next) {
            Some(v) => {
                self.consumed = v;
                true
            }
            None => false,
        }
    }

    /// Takes the credit in [`WindowHeader::armed`] (consumed count plus one; 0 says nothing).
    /// `false`: the claim is impossible, the other side is broken.
    #[must_use]
    pub fn take_armed(&mut self, armed: u64) -> bool {
        match armed.checked_sub(1) {
            None => true,
            // An older value than the entries told us: no news.
            Some(v) if v <= self.consumed => true,
            Some(v) if v <= self.next => {
                self.consumed = v;
                true
            }
            Some(_) => false,
        }
    }

    /// Writes one entry, carrying `credit` (what our own consumer has read) to the other side.
    ///
    /// # Errors
    /// [`Full`] when no credit is left; nothing is written.
    pub fn push(&mut self, raw: &Raw, credit: u32) -> Result<(), Full> {
        if self.space() == 0 {
            return Err(Full);
        }
        let Some(slot) = self.entries.slot(self.next) else { return Err(Full) };
        let [head, second, body @ ..] = slot.words();
        second.put(u64::from(credit) | u64::from(raw.token) << 32);
        for (word, value) in body.into_iter().zip(raw.body) {
            word.put(value);
        }
        let header = u64::from(sequence(self.next))
            | u64::from(raw.kind) << 32
            | (u64::from(VERSION) & 0xff) << 40
            | u64::from(raw.status) << 48;
        // Pairs with the Acquire in `pop`; whoever sees this sequence sees the words above.
        head.publish(header);
        self.next += 1;
        Ok(())
    }
}

/// Why a valid-looking entry is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongVersion(pub u8);

impl<'a, M: Memory> Consumer<'a, M> {
    /// A consumer that continues at `index` (0 for a fresh ring).
    #[must_use]
    pub fn new(entries: impl Into<Near<'a, [Entry<M>]>>, index: u64) -> Self {
        let entries = entries.into();
        debug_assert!(entries.size().is_power_of_two());
        Consumer { entries, next: index, credit: index }
    }

    /// Entries of the ring.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.entries.size()
    }

    /// Total consumed so far.
    #[must_use]
    pub fn consumed(&self) -> u64 {
        self.next
    }

    /// Our credit for the other side, as it goes into the next entry we push.
    #[allow(clippy::cast_possible_truncation)] // the wire carries the low half
    pub fn credit(&mut self) -> u32 {
        self.credit = self.next;
        self.next as u32
    }

    /// Counts an entry of this producer that came by the shared ring instead (SPEC 2.8).
    pub fn count_shared(&mut self) {
        self.next += 1;
    }

    /// Entries consumed that the other side has not been told of.
    #[must_use]
    pub fn untold(&self) -> u64 {
        self.next - self.credit
    }

    /// True when the next entry is there.
    #[must_use]
    pub fn ready(&self) -> bool {
        // Relaxed: only a hint; `pop` looks again with Acquire.
        self.next_header()
            .is_some_and(|(head, next)| head.load(Ordering::Relaxed) & 0xffff_ffff == u64::from(next))
    }

    /// Where the next entry will show, and the low 32 bits that its header will have then: for a look without the consumer.
    #[must_use]
    pub fn next_header(&self) -> Option<(Near<'a, M::Word>, u32)> {
        let [head, ..] = self.entries.slot(self.next)?.words();
        Some((head, sequence(self.next)))
    }

    /// Takes the next entry and the credit inside it, if there is one.
    ///
    /// # Errors
    /// [`WrongVersion`] if the entry is of another version; it is consumed.
    #[allow(clippy::cast_possible_truncation)] // fields are cut out of words
    pub fn pop(&mut self) -> Result<Option<(Raw, u32)>, WrongVersion> {
        let Some(slot) = self.entries.slot(self.next) else { return Ok(None) };
        let [head, second, body @ ..] = slot.words();
        // Acquire: pairs with the `publish` in `push`.
        let header = head.load(Ordering::Acquire);
        if header as u32 != sequence(self.next) {
            return Ok(None);
        }
        self.next += 1;
        let version = (header >> 40) as u8;
        if u32::from(version) != VERSION {
            return Err(WrongVersion(version));
        }
        let word = second.load(Ordering::Relaxed);
        let mut raw = Raw {
            kind: (header >> 32) as u8,
            status: (header >> 48) as u16,
            token: (word >> 32) as u32,
            body: [0; 6],
        };
        for (value, word) in raw.body.iter_mut().zip(body) {
            *value = word.load(Ordering::Relaxed);
        }
        Ok(Some((raw, word as u32)))
    }
}

/// How far a ring is, as an onlooker sees it who is neither producer nor consumer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Entries pushed so far, modulo 2^32.
    pub pushed: u32,
    /// What the newest entry says of the other ring: entries consumed there, modulo 2^32.
    pub credit: u32,
}

impl Progress {
    /// Looks for the newest entry. For people: it may be written at the same moment.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // fields are cut out of words
    pub fn of(entries: &[Entry]) -> Progress {
        let read = |entry: &Entry| {
            let [head, second, ..] = &entry.words;
            let pushed = head.load(Ordering::Acquire) as u32;
            Progress { pushed, credit: second.load(Ordering::Relaxed) as u32 }
        };
        let newer = |a: Progress, b: Progress| {
            if b.pushed.wrapping_sub(a.pushed) < u32::MAX / 2 { b } else { a }
        };
        entries.iter().map(read).filter(|p| p.pushed != 0).reduce(newer).unwrap_or_default()
    }
}
