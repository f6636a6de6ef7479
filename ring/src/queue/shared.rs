//! One ring for all processes (SPEC 2.8): tickets, gaps, late publications.
//!
//! A host draws a ticket (a compare-and-swap that also checks for room), writes the entry of that number, and stores its header
//! last. One that dies in between leaves a gap. The card waits a moment for it, then goes on: it takes the slot out of use, so
//! that a host that was only slow can still publish there without touching anybody else's entry, and takes what it finds
//! there later. The slot is used again once its publication was taken, or every host that could hold the ticket has been seen
//! outside of a push, or is gone.

use super::{Key, SHARED_ENTRIES};
use crate::VERSION;
use crate::atomic::{AtomicU64, Ordering};
use crate::side::{Far, Fetched};
use crate::window::{Entry, Full, Raw, sequence};

/// Slots out of use at the same time. With more gaps than that, the card waits for one to be resolved.
pub const LATE_MAX: usize = 64;
/// Tickets drawn in vain, or lost to others, before a push gives up as if the ring were full.
const DRAWS_MAX: usize = 1024;
/// Slots that the card can keep account of. Loom's stacks hold few.
const SLOTS_MAX: usize = if cfg!(loom) { 8 } else { SHARED_ENTRIES };
/// In [`Ring::usable`]: no ticket.
const NEVER: u64 = u64::MAX;

/// The words of a shared ring, as hosts have them: in their own memory. `usable` and `entries` are equally long, a power of two.
#[derive(Clone, Copy, Debug)]
pub struct Ring<'a> {
    /// Next ticket. Hosts.
    pub tail: &'a AtomicU64,
    /// Tickets below this are done with. Card.
    pub freed: &'a AtomicU64,
    /// First ticket that may use each slot. Card.
    pub usable: &'a [AtomicU64],
    /// The entries.
    pub entries: &'a [Entry],
}

/// The same across the bus.
#[derive(Clone, Copy, Debug)]
struct FarRing<'a> {
    tail: Fetched<'a, AtomicU64>,
    freed: Far<'a, AtomicU64>,
    usable: Far<'a, [AtomicU64]>,
    entries: Fetched<'a, [Entry]>,
}

impl<'a> Ring<'a> {
    fn far(&self) -> FarRing<'a> {
        FarRing {
            tail: self.tail.into(),
            freed: self.freed.into(),
            usable: self.usable.into(),
            entries: self.entries.into(),
        }
    }

    fn size(&self) -> u64 {
        self.entries.len() as u64
    }

    fn usable_of(&self, ticket: u64) -> Option<&'a AtomicU64> {
        self.usable.get(place(ticket, self.size())?)
    }
}

/// Where `ticket` goes, in all arrays of a ring of `size`.
fn place(ticket: u64, size: u64) -> Option<usize> {
    usize::try_from(ticket & size.checked_sub(1)?).ok()
}

/// A place in the ring that its holder has to fill.
#[derive(Debug)]
pub struct Ticket(u64);

impl Ticket {
    /// Its number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0
    }
}

/// Host side, of one function.
#[derive(Debug)]
pub struct Poster<'a> {
    ring: Ring<'a>,
    /// Odd: in a push. What is in `pushing`.
    turn: u64,
    pushing: &'a AtomicU64,
    freed: u64,
    function: u16,
    key: Key,
}

impl<'a> Poster<'a> {
    /// For a function whose requests are sealed with `key`. `pushing`: its word in its own host memory.
    #[must_use]
    pub fn new(ring: Ring<'a>, pushing: &'a AtomicU64, function: u16, key: Key) -> Poster<'a> {
        Poster { ring, turn: 0, pushing, freed: 0, function, key }
    }

    /// Draws a ticket, which has to be published.
    ///
    /// # Errors
    /// [`Full`]: no room, or too much contention; nothing is held.
    pub fn draw(&mut self) -> Result<Ticket, Full> {
        // Odd, and another value than before, also if a thread ended in the middle of a push.
        self.turn = (self.turn + 1) | 1;
        // Relaxed: ordered before the ticket by the Release of the swap that draws it: a card that sees the ticket drawn
        // sees that this function is in a push.
        self.pushing.store(self.turn, Ordering::Relaxed);
        for _ in 0..DRAWS_MAX {
            let next = self.ring.tail.load(Ordering::Relaxed);
            // A wrong `tail` or `freed`, whoever wrote it, is no room, or a place inside of the ring.
            if next.wrapping_sub(self.freed) >= self.ring.size() {
                // Acquire: pairs with the Release in `tell`. What the card consumed is copied out, and what it took out of use
                // before says so.
                self.freed = self.ring.freed.load(Ordering::Acquire);
                if next.wrapping_sub(self.freed) >= self.ring.size() {
                    break;
                }
            }
            let after = next.wrapping_add(1);
            // AcqRel: Release for `pushing` above; and all draws are read-modify-writes, so the card that sees a later one sees
            // what came before this one, too.
            let drawn = self.ring.tail.compare_exchange(next, after, Ordering::AcqRel, Ordering::Relaxed);
            // Relaxed: what the card said of this slot because of an earlier ticket, it said before the value of `freed` that gave
            // us room: both sides see the same holes. What it says because of this one, which it has passed by already, we may see
            // or not: then we draw another, or publish late.
            let usable = self.ring.usable_of(next).is_some_and(|from| from.load(Ordering::Relaxed) <= next);
            if drawn.is_ok() && usable {
                return Ok(Ticket(next));
            }
        }
        self.leave();
        Err(Full)
    }

    /// Fills the place of a ticket. `credit` as in [`crate::window::Producer::push`]; the last word of `raw` is not
    /// transmitted: the seal stands there.
    pub fn publish(&mut self, ticket: Ticket, raw: &Raw, credit: u32) {
        let Ticket(ticket) = ticket;
        let [a, b, c, d, e, _] = raw.body;
        let header = u64::from(sequence(ticket))
            | u64::from(raw.kind) << 32
            | (u64::from(VERSION) & 0xff) << 40
            | u64::from(self.function) << 48;
        let words = [header, u64::from(credit) | u64::from(raw.token) << 32, a, b, c, d, e];
        let seal = self.key.seal(ticket, &words);
        let slot = place(ticket, self.ring.size()).and_then(|place| self.ring.entries.get(place));
        if let Some(Entry { words: [head, rest @ .., last] }) = slot {
            // Relaxed: nobody looks at these words before the header below says so.
            for (word, value) in rest.iter().zip(words.iter().skip(1)) {
                word.store(*value, Ordering::Relaxed);
            }
            last.store(seal, Ordering::Relaxed);
            // Release: pairs with the Acquire in `look`; whoever sees this sequence sees the words above.
            head.store(header, Ordering::Release);
        }
        self.leave();
    }

    /// Draws and publishes.
    ///
    /// # Errors
    /// As [`Poster::draw`].
    pub fn push(&mut self, raw: &Raw, credit: u32) -> Result<(), Full> {
        let ticket = self.draw()?;
        self.publish(ticket, raw, credit);
        Ok(())
    }

    fn leave(&mut self) {
        self.turn = (self.turn | 1) + 1;
        // Release: a card that sees this sees the entry published, and need not wait for us.
        self.pushing.store(self.turn, Ordering::Release);
    }
}

/// An entry as it was copied out of the ring; whose it is has to be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    ticket: u64,
    words: [u64; 7],
    seal: u64,
}

impl Sealed {
    /// Whose it claims to be.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // a field cut out of a word
    pub fn function(&self) -> u32 {
        let [header, ..] = self.words;
        u32::from((header >> 48) as u16)
    }

    /// The request and its credit, if the entry is of this version and was made with `key`.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // fields are cut out of words
    pub fn open(&self, key: &Key) -> Option<(Raw, u32)> {
        let [header, second, a, b, c, d, e] = self.words;
        if u32::from((header >> 40) as u8) != VERSION || key.seal(self.ticket, &self.words) != self.seal {
            return None;
        }
        let body = [a, b, c, d, e, 0];
        let raw = Raw { kind: (header >> 32) as u8, status: 0, token: (second >> 32) as u32, body };
        Some((raw, second as u32))
    }
}

/// What the card found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// An entry.
    Entry(Sealed),
    /// The ticket of this number was not published in time: its slot is out of use until it is, or until [`Taker::release`].
    Gap(u64),
    /// Nothing that can be taken now.
    Nothing,
}

/// Card side.
#[derive(Debug)]
pub struct Taker<'a> {
    ring: FarRing<'a>,
    next: u64,
    /// Tickets below this were drawn when we looked last.
    drawn: u64,
    /// What `freed` says.
    told: u64,
    /// When the ticket `next` was first seen to be drawn and not published.
    gap_since_us: Option<u64>,
    /// The tickets that were passed by and are not resolved.
    late: [u64; LATE_MAX],
    lates: usize,
    /// What we have said in [`Ring::usable`], which hosts can write.
    usable: [u64; SLOTS_MAX],
}

impl<'a> Taker<'a> {
    /// Over a fresh ring.
    #[must_use]
    pub fn new(ring: Ring<'a>) -> Taker<'a> {
        Taker::starting_at(ring, 0)
    }

    /// Over a ring whose tickets so far, `next` of them, are done with.
    #[must_use]
    pub fn starting_at(ring: Ring<'a>, next: u64) -> Taker<'a> {
        debug_assert!(ring.entries.len().is_power_of_two() && ring.entries.len() <= SLOTS_MAX);
        debug_assert!(ring.usable.len() == ring.entries.len());
        let (drawn, told, usable) = (next, next, [0; SLOTS_MAX]);
        let ring = ring.far();
        Taker { ring, next, drawn, told, gap_since_us: None, late: [0; LATE_MAX], lates: 0, usable }
    }

    /// Takes the next entry, if there is one. A ticket that is not published for `patience_us` is passed by. `now_us`: any clock that
    /// never goes back.
    pub fn take(&mut self, now_us: u64, patience_us: u64) -> Found {
        if let Some(late) = self.take_late() {
            return Found::Entry(late);
        }
        // Holes: at most one a slot.
        for _ in 0..=self.ring.entries.size() {
            if !self.is_drawn() {
                return Found::Nothing;
            }
            if self.is_hole(self.next) {
                self.pass();
                continue;
            }
            let Some(entry) = self.look(self.next) else { return self.gap(now_us, patience_us) };
            self.pass();
            return Found::Entry(entry);
        }
        Found::Nothing
    }

    /// Tells the hosts how far the ring is free. After some takes, and before doing anything slow.
    pub fn tell(&mut self) {
        if self.told != self.next {
            self.told = self.next;
            // Pairs with the Acquire in `draw`: our copies are done, and `usable` is stored before.
            self.ring.freed.publish(self.next);
        }
    }

    /// When a gap will have lasted for `patience_us`, if there is one.
    #[must_use]
    pub fn gap_until_us(&self, patience_us: u64) -> Option<u64> {
        Some(self.gap_since_us? + patience_us)
    }

    /// The tickets that were passed by and are not resolved.
    pub fn unresolved(&self) -> impl Iterator<Item = u64> {
        self.late.iter().take(self.lates).copied()
    }

    /// Puts the slot of an unresolved ticket to use again: nobody will publish there any more. What was published since the last
    /// look, if it was.
    pub fn release(&mut self, ticket: u64) -> Option<Sealed> {
        let index = self.index_of(ticket)?;
        let found = self.look(ticket);
        self.reuse(index);
        found
    }

    fn index_of(&self, ticket: u64) -> Option<usize> {
        self.unresolved().position(|late| late == ticket)
    }

    fn is_drawn(&mut self) -> bool {
        if self.next == self.drawn {
            // Acquire: pairs with the Release in `draw`: who holds a ticket below this is seen to be in a push.
            let drawn = self.ring.tail.fetch(Ordering::Acquire);
            // More than there is room for: somebody wrote nonsense, and nothing is taken any more.
            if drawn.wrapping_sub(self.told) <= self.ring.entries.size() {
                self.drawn = drawn.max(self.next);
            }
        }
        self.next != self.drawn
    }

    fn is_hole(&self, ticket: u64) -> bool {
        place(ticket, self.ring.entries.size())
            .and_then(|slot| self.usable.get(slot))
            .is_some_and(|from| *from > ticket)
    }

    fn pass(&mut self) {
        self.next += 1;
        self.gap_since_us = None;
    }

    /// Put before: a host looks at it after it saw the next `freed` (Release in `tell`), or finds a hole either way.
    fn set_usable(&mut self, ticket: u64, from: u64) {
        let Some(slot) = place(ticket, self.ring.usable.size()) else { return };
        if let (Some(own), Some(said)) = (self.usable.get_mut(slot), self.ring.usable.slot(ticket)) {
            *own = from;
            said.put(from);
        }
    }

    fn gap(&mut self, now_us: u64, patience_us: u64) -> Found {
        let since_us = *self.gap_since_us.get_or_insert(now_us);
        if now_us.saturating_sub(since_us) < patience_us {
            return Found::Nothing;
        }
        let Some(place) = self.late.get_mut(self.lates) else { return Found::Nothing };
        let ticket = self.next;
        *place = ticket;
        self.lates += 1;
        self.set_usable(ticket, NEVER);
        self.pass();
        Found::Gap(ticket)
    }

    fn take_late(&mut self) -> Option<Sealed> {
        for index in 0..self.lates {
            if let Some(entry) = self.look(*self.late.get(index)?) {
                self.reuse(index);
                return Some(entry);
            }
        }
        None
    }

    /// From the first ticket on that nobody can have drawn yet: those below `told` and a ring's length may be drawn, by hosts
    /// that saw the slot out of use or did not look yet. To them and to us it is a hole.
    fn reuse(&mut self, index: usize) {
        let size = self.ring.entries.size();
        self.lates = self.lates.saturating_sub(1);
        let last = self.late.get(self.lates).copied().unwrap_or_default();
        let Some(place) = self.late.get_mut(index) else { return };
        let ticket = core::mem::replace(place, last);
        let behind = (self.told + size).saturating_sub(ticket);
        self.set_usable(ticket, ticket + behind.div_ceil(size) * size);
    }

    /// Copies the entry of `ticket`, if it is published.
    #[allow(clippy::cast_possible_truncation)] // the sequence is cut out of a word
    fn look(&self, ticket: u64) -> Option<Sealed> {
        let [head, rest @ .., last] = self.ring.entries.slot(ticket)?.words();
        // Acquire: pairs with the Release in `publish`.
        let header = head.fetch(Ordering::Acquire);
        if header as u32 != sequence(ticket) {
            return None;
        }
        let mut words = [header; 7];
        for (value, word) in words.iter_mut().skip(1).zip(rest) {
            *value = word.fetch(Ordering::Relaxed);
        }
        Some(Sealed { ticket, words, seal: last.fetch(Ordering::Relaxed) })
    }
}
