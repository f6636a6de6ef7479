//! Request and completion rings (SPEC 2).
//!
//! Both are the same single-producer single-consumer ring of 64-byte entries. An entry is valid
//! when its sequence number is the consumer's index plus one, so neither side reads the other's
//! index: the request ring lives in device memory and is only ever stored to by the host, the
//! completion ring lives in host memory and is only ever stored to by the card. How far the other
//! side has read travels inside the entries that flow the other way (SPEC 2.4).
//!
//! `unsafe` is allowed here for the `Shared` markers only.
#![allow(unsafe_code)]

use crate::VERSION;
use crate::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::queue::{Key, Kind};
use crate::shared::{Region, Shared};

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
pub struct Entry {
    pub(crate) words: [AtomicU64; 8],
}
// SAFETY: an array of atomics, repr(C), any bit pattern valid.
unsafe impl Shared for Entry {}

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

/// Start of the window: written once by the card, except for `posted`.
#[repr(C, align(64))]
pub struct WindowHeader {
    /// [`WINDOW_MAGIC`].
    pub magic: AtomicU32,
    /// [`crate::VERSION`].
    pub version: AtomicU32,
    /// [`ENTRIES`].
    pub entries: AtomicU32,
    /// The function's number.
    pub function: AtomicU32,
    /// Completions that the host had consumed when it last posted (SPEC 2.5): credit and interrupt
    /// request in one: the card interrupts once when it has pushed more than `armed - 1`.
    pub armed: AtomicU64,
}
// SAFETY: atomics only, repr(C).
unsafe impl Shared for WindowHeader {}

/// Start of a function's host memory.
#[repr(C, align(64))]
pub struct HostHeader {
    /// [`HOST_MAGIC`].
    pub magic: AtomicU32,
    /// [`crate::VERSION`].
    pub version: AtomicU32,
    /// Non-zero: the card sleeps and wants a doorbell after a request (SPEC 2.6). Card-written.
    pub doorbell_wanted: AtomicU32,
    /// Incarnation of the coordinator. Card-written, once.
    pub epoch: AtomicU32,
    /// Secret of the function, by which its requests in the shared ring are known (SPEC 2.8). Agent-written, once.
    pub key: [AtomicU64; 2],
    /// How the function's requests go to the card: a [`crate::queue::Kind`]. Agent-written, once.
    pub queue: AtomicU32,
    pad: [AtomicU32; 7],
    /// Futex word that the agent bumps when the process should look at its events (SPEC 6.5).
    pub notice: AtomicU32,
    pad_after_notice: [AtomicU32; 15],
    /// Odd while the host pushes into the shared ring: may hold a ticket (SPEC 2.8). Host-written.
    pub pushing: AtomicU64,
}
// SAFETY: atomics only, repr(C).
unsafe impl Shared for HostHeader {}

#[cfg(not(loom))]
const _: () = {
    use core::mem::{align_of, offset_of, size_of};
    assert!(size_of::<Entry>() == 64 && align_of::<Entry>() == 64);
    assert!(size_of::<WindowHeader>() == 64);
    assert!(offset_of!(WindowHeader, armed) == 16);
    assert!(size_of::<HostHeader>() == 192);
    assert!(offset_of!(HostHeader, doorbell_wanted) == 8);
    assert!(offset_of!(HostHeader, key) == 16);
    assert!(offset_of!(HostHeader, queue) == 32);
    assert!(offset_of!(HostHeader, notice) == 64);
    assert!(offset_of!(HostHeader, pushing) == 128);
    assert!(ENTRIES_OFFSET + ENTRIES as usize * 64 <= WINDOW_BYTES);
    assert!(ENTRIES_OFFSET + ENTRIES as usize * 64 <= HOST_BYTES);
    assert!(ENTRIES.is_power_of_two());
};

/// The ring is full: the other side has not yet told that it consumed enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Writing half: host for requests, card for completions.
#[derive(Debug)]
pub struct Producer<'a> {
    entries: &'a [Entry],
    next: u64,
    consumed: u64,
}

/// Reading half: card for requests, host for completions.
#[derive(Debug)]
pub struct Consumer<'a> {
    entries: &'a [Entry],
    next: u64,
    credit: u64,
}

#[cfg(loom)]
impl Entry {
    /// A zeroed entry; under loom there is no memory to map one from.
    #[must_use]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Entry { words: core::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl core::fmt::Debug for Entry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Entry")
    }
}

fn ring_size(entries: &[Entry]) -> u64 {
    entries.len() as u64
}

pub(crate) fn slot_of(entries: &[Entry], index: u64) -> Option<&Entry> {
    let mask = ring_size(entries).checked_sub(1)?;
    entries.get(usize::try_from(index & mask).ok()?)
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

impl<'a> Producer<'a> {
    /// A producer that continues at `index` (0 for a fresh ring) over `entries`, whose number is a
    /// power of two.
    #[must_use]
    pub fn new(entries: &'a [Entry], index: u64) -> Self {
        debug_assert!(entries.len().is_power_of_two());
        Producer { entries, next: index, consumed: index }
    }

    /// Entries that can be pushed now.
    #[must_use]
    pub fn space(&self) -> u64 {
        ring_size(self.entries) - (self.next - self.consumed)
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
        let Some(slot) = slot_of(self.entries, self.next) else { return Err(Full) };
        let [head, second, body @ ..] = &slot.words;
        // Relaxed: nobody looks at these words before the header below says so.
        second.store(u64::from(credit) | u64::from(raw.token) << 32, Ordering::Relaxed);
        for (word, value) in body.iter().zip(raw.body) {
            word.store(value, Ordering::Relaxed);
        }
        let header = u64::from(sequence(self.next))
            | u64::from(raw.kind) << 32
            | (u64::from(VERSION) & 0xff) << 40
            | u64::from(raw.status) << 48;
        // Release: pairs with the Acquire in `pop`; whoever sees this sequence sees the words above.
        head.store(header, Ordering::Release);
        self.next += 1;
        Ok(())
    }
}

/// Why a valid-looking entry is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongVersion(pub u8);

impl<'a> Consumer<'a> {
    /// A consumer that continues at `index` (0 for a fresh ring).
    #[must_use]
    pub fn new(entries: &'a [Entry], index: u64) -> Self {
        debug_assert!(entries.len().is_power_of_two());
        Consumer { entries, next: index, credit: index }
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
        slot_of(self.entries, self.next).is_some_and(|s| {
            s.words[0].load(Ordering::Relaxed) & 0xffff_ffff == u64::from(sequence(self.next))
        })
    }

    /// Where the next entry will show, and the low 32 bits that its header will have then: for a look without the consumer.
    #[must_use]
    pub fn next_header(&self) -> Option<(&'a AtomicU64, u32)> {
        let [head, ..] = &slot_of(self.entries, self.next)?.words;
        Some((head, sequence(self.next)))
    }

    /// Takes the next entry and the credit inside it, if there is one.
    ///
    /// # Errors
    /// [`WrongVersion`] if the entry is of another version; it is consumed.
    #[allow(clippy::cast_possible_truncation)] // fields are cut out of words
    pub fn pop(&mut self) -> Result<Option<(Raw, u32)>, WrongVersion> {
        let Some(slot) = slot_of(self.entries, self.next) else { return Ok(None) };
        let [head, second, body @ ..] = &slot.words;
        // Acquire: pairs with the Release in `push`.
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

/// The parts of a mapped window, checked.
#[derive(Clone, Copy)]
pub struct Window<'a> {
    /// Header.
    pub header: &'a WindowHeader,
    /// Request ring.
    pub requests: &'a [Entry],
}

/// The parts of a function's mapped host memory, checked.
#[derive(Clone, Copy)]
pub struct HostMemory<'a> {
    /// Header.
    pub header: &'a HostHeader,
    /// Completion ring.
    pub completions: &'a [Entry],
}

impl<'a> Window<'a> {
    /// Views `region` as a window; `None` if it is too small.
    #[must_use]
    pub fn over(region: Region) -> Option<Window<'a>> {
        Some(Window { header: region.get(0)?, requests: region.slice(ENTRIES_OFFSET, ENTRIES as usize)? })
    }

    /// Fills in the header of a fresh, zeroed window.
    pub fn format(&self, function: u32) {
        self.header.entries.store(ENTRIES, Ordering::Relaxed);
        self.header.function.store(function, Ordering::Relaxed);
        self.header.version.store(VERSION, Ordering::Relaxed);
        // Release: whoever sees the magic sees the rest. (In practice the fd is passed after this.)
        self.header.magic.store(WINDOW_MAGIC, Ordering::Release);
    }

    /// True if the header is one of this version. Only for memory that the reader trusts (its own side).
    #[must_use]
    pub fn valid(&self) -> bool {
        self.header.magic.load(Ordering::Acquire) == WINDOW_MAGIC
            && self.header.version.load(Ordering::Relaxed) == VERSION
            && self.header.entries.load(Ordering::Relaxed) == ENTRIES
    }
}

impl<'a> HostMemory<'a> {
    /// Views `region` as a function's host memory; `None` if it is too small.
    #[must_use]
    pub fn over(region: Region) -> Option<HostMemory<'a>> {
        Some(HostMemory {
            header: region.get(0)?,
            completions: region.slice(ENTRIES_OFFSET, ENTRIES as usize)?,
        })
    }

    /// Fills in the header of fresh, zeroed memory, for requests that go by `queue`. `key`: random, for this function only.
    pub fn format(&self, queue: Kind, key: Key) {
        self.header.queue.store(queue.to_wire(), Ordering::Relaxed);
        for (word, value) in self.header.key.iter().zip(key.0) {
            word.store(value, Ordering::Relaxed);
        }
        self.header.version.store(VERSION, Ordering::Relaxed);
        // Release: as in `Window::format`.
        self.header.magic.store(HOST_MAGIC, Ordering::Release);
    }

    /// The function's secret, as the agent wrote it.
    #[must_use]
    pub fn key(&self) -> Key {
        Key(self.header.key.each_ref().map(|word| word.load(Ordering::Relaxed)))
    }

    /// True if the header is one of this version.
    #[must_use]
    pub fn valid(&self) -> bool {
        self.header.magic.load(Ordering::Acquire) == HOST_MAGIC
            && self.header.version.load(Ordering::Relaxed) == VERSION
    }
}

/// The card's view of [`WindowHeader::armed`] (SPEC 2.5): decides when to interrupt.
#[derive(Clone, Copy, Debug, Default)]
pub struct IrqGate {
    fired: u64,
}

impl IrqGate {
    /// `armed`: the word as just read; `pushed`: completions pushed so far. True: interrupt now.
    /// Fires once for each value of `armed`, as soon as a completion beyond it exists, in whatever
    /// order the posted write of `armed` and the completions became visible.
    pub fn should_fire(&mut self, armed: u64, pushed: u64) -> bool {
        if armed == 0 || armed == self.fired || pushed < armed {
            return false;
        }
        self.fired = armed;
        true
    }
}
