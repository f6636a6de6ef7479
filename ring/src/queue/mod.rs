//! The three ways of requests to the card (SPEC 2.7): private rings, one shared ring, private rings with a hint.
//!
//! | module | SPEC | what it holds |
//! |---|---|---|
//! | [`shared`] | 2.8 | the ring that all processes push into: tickets, gaps, late publications |
//! | [`seal`] | 2.8 | how the card knows whose entry of that ring is |
//! | [`hint`] | 2.9 | the summary of who has work |
//!
//! To a host they differ in [`Requests`] only, which it makes over what it was given at attach.
//!
//! `unsafe` is allowed here for the `Shared` marker only.
#![allow(unsafe_code)]

pub mod hint;
pub mod seal;
pub mod shared;

use crate::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use crate::bus::FUNCTIONS_MAX;
use crate::shared::{Region, Shared};
use crate::side::{InOrder, Memory};
use crate::window::{Entry, FarWindow, Full, HostMemory, Producer, Raw};
use crate::{VERSION, queue::hint::Hint, queue::shared::Poster};

pub use seal::Key;

/// How requests go to the card, one for all functions but the agent's, whose ring is always private. The default is an emulated card's; one
/// behind PCI has private rings only (SPEC 12.9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Each function has its own ring, and the card polls them all.
    PerProcess,
    /// All push into one ring. For processes that trust each other.
    Shared,
    /// Private rings, and a summary of who has work that is only a hint.
    #[default]
    Hybrid,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::PerProcess, Kind::Shared, Kind::Hybrid];

    /// As options spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::PerProcess => "per-process",
            Kind::Shared => "shared",
            Kind::Hybrid => "hybrid",
        }
    }

    /// As shared memory has it.
    #[must_use]
    pub fn to_wire(self) -> u32 {
        match self {
            Kind::PerProcess => 0,
            Kind::Shared => 1,
            Kind::Hybrid => 2,
        }
    }

    /// Checks a value from shared memory.
    #[must_use]
    pub fn from_wire(value: u32) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.to_wire() == value)
    }
}

impl core::fmt::Display for Kind {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// Not the name of a [`Kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownKind;

impl core::fmt::Display for UnknownKind {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("there is no such request queue; use per-process, shared or hybrid")
    }
}

impl core::error::Error for UnknownKind {}

impl core::str::FromStr for Kind {
    type Err = UnknownKind;
    fn from_str(text: &str) -> Result<Kind, UnknownKind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == text).ok_or(UnknownKind)
    }
}

/// "IPDC", first word of the common memory.
pub const COMMON_MAGIC: u32 = u32::from_le_bytes(*b"IPDC");
/// Bytes of the common memory.
pub const COMMON_BYTES: usize = 327_680;
/// Entries of the shared ring.
pub const SHARED_ENTRIES: usize = 4096;
/// Functions whose marks one count in [`CommonMemory::groups`] stands for.
pub const GROUP: usize = 256;
const FUNCTIONS: usize = FUNCTIONS_MAX as usize;

/// Host memory that all functions and the card map, unless the rings are private (SPEC 2.7.2). Each line has one writing
/// side; read-modify-writes are the hosts' only.
#[repr(C, align(64))]
pub struct CommonMemory {
    /// [`COMMON_MAGIC`]. Agent-written, once.
    pub magic: AtomicU32,
    /// [`crate::VERSION`]. Agent-written, once.
    pub version: AtomicU32,
    pad: [AtomicU64; 7],
    /// Next ticket of the shared ring. Hosts, by compare-and-swap.
    pub tail: AtomicU64,
    pad_after_tail: [AtomicU64; 7],
    /// Tickets below this are done with. Card-written.
    pub freed: AtomicU64,
    pad_after_freed: [AtomicU64; 7],
    /// How often a mark of each group of functions has changed. Hosts, by addition.
    pub groups: [AtomicU32; FUNCTIONS / GROUP],
    pad_after_groups: [AtomicU64; 992],
    /// For each function, how often it had news for the card. That function's host.
    pub marks: [AtomicU16; FUNCTIONS],
    pad_after_marks: [AtomicU64; 2048],
    /// For each slot of the shared ring, the first ticket that may use it. Card-written.
    pub usable: [AtomicU64; SHARED_ENTRIES],
    /// The shared ring. Who holds the ticket.
    pub entries: [Entry; SHARED_ENTRIES],
}
// SAFETY: atomics only, repr(C).
unsafe impl Shared for CommonMemory {}

#[cfg(not(loom))]
const _: () = {
    use core::mem::{align_of, offset_of, size_of};
    assert!(size_of::<CommonMemory>() == COMMON_BYTES && align_of::<CommonMemory>() == 64);
    assert!(offset_of!(CommonMemory, tail) == 64);
    assert!(offset_of!(CommonMemory, freed) == 128);
    assert!(offset_of!(CommonMemory, groups) == 192);
    assert!(offset_of!(CommonMemory, marks) == 8192);
    assert!(offset_of!(CommonMemory, usable) == 32_768);
    assert!(offset_of!(CommonMemory, entries) == 65_536);
    assert!(COMMON_BYTES.is_multiple_of(65_536));
    assert!(SHARED_ENTRIES.is_power_of_two() && FUNCTIONS.is_multiple_of(GROUP));
    // A function's number has 16 bits in an entry's header.
    assert!(FUNCTIONS_MAX <= 1 << 16);
};

impl CommonMemory {
    /// Views `region` as common memory; `None` if it is too small.
    #[must_use]
    pub fn over<'a>(region: Region) -> Option<&'a CommonMemory> {
        region.get(0)
    }

    /// Fills in the header of fresh, zeroed memory.
    pub fn format(&self) {
        self.version.store(VERSION, Ordering::Relaxed);
        // Release: whoever sees the magic sees the version. (In practice the fd is passed after this.)
        self.magic.store(COMMON_MAGIC, Ordering::Release);
    }

    /// True if the header is one of this version. Any process may have written it since.
    #[must_use]
    pub fn valid(&self) -> bool {
        self.magic.load(Ordering::Acquire) == COMMON_MAGIC && self.version.load(Ordering::Relaxed) == VERSION
    }

    /// The parts that make up the shared ring.
    #[must_use]
    pub fn ring(&self) -> shared::Ring<'_> {
        shared::Ring { tail: &self.tail, freed: &self.freed, usable: &self.usable, entries: &self.entries }
    }
}

/// A host's way to the card: the same for all three kinds.
#[derive(Debug)]
pub struct Requests<'a, M: Memory = InOrder> {
    /// The private ring, and the account of credit in any case.
    own: Producer<'a, M>,
    way: Way<'a>,
}

#[derive(Debug)]
enum Way<'a> {
    PerProcess,
    Hybrid(Hint<'a>),
    Shared(Poster<'a>, Hint<'a>),
}

impl<'a> Requests<'a> {
    /// For function `function`, over its fresh memory, of the kind that the agent wrote there. `common`: the common memory,
    /// if one was given. `None`: something is missing, or of another version.
    #[must_use]
    pub fn over(
        function: u32,
        window: &FarWindow<'a>,
        host: &HostMemory<'a>,
        common: Option<&'a CommonMemory>,
    ) -> Option<Requests<'a>> {
        let way = match Kind::from_wire(host.header.queue.load(Ordering::Relaxed))? {
            Kind::PerProcess => Way::PerProcess,
            Kind::Hybrid => Way::Hybrid(Hint::of(common?, function)?),
            Kind::Shared => {
                let common = common?;
                let poster = Poster::new(
                    common.ring(),
                    &host.header.pushing,
                    u16::try_from(function).ok()?,
                    host.key(),
                );
                Way::Shared(poster, Hint::of(common, function)?)
            }
        };
        Some(Requests { own: Producer::new(window.requests, 0), way })
    }
}

impl<'a, M: Memory> Requests<'a, M> {
    /// By the private ring of a fresh window.
    #[must_use]
    pub fn private(window: &FarWindow<'a, M>) -> Requests<'a, M> {
        Requests { own: Producer::new(window.requests, 0), way: Way::PerProcess }
    }

    /// Posts one entry, carrying `credit` (what our own consumer has read) to the card. Of a process's entry; the agent's own
    /// function has a private ring.
    ///
    /// # Errors
    /// [`Full`]: no credit is left, or no room in the shared ring; nothing is written.
    #[inline]
    pub fn push(&mut self, raw: &Raw, credit: u32) -> Result<(), Full> {
        match &mut self.way {
            Way::PerProcess => self.own.push(raw, credit),
            Way::Hybrid(hint) => {
                self.own.push(raw, credit)?;
                hint.raise();
                Ok(())
            }
            Way::Shared(poster, _) => {
                if self.own.space() == 0 {
                    return Err(Full);
                }
                poster.push(raw, credit)?;
                self.own.count_shared();
                Ok(())
            }
        }
    }

    /// After [`crate::window::WindowHeader::armed`] was stored: has the card look at it (SPEC 2.9.3).
    pub fn armed(&mut self) {
        match &mut self.way {
            Way::PerProcess => {}
            Way::Hybrid(hint) | Way::Shared(_, hint) => hint.raise(),
        }
    }

    /// As [`Producer::take_credit`].
    #[must_use]
    pub fn take_credit(&mut self, credit: u32) -> bool {
        self.own.take_credit(credit)
    }

    /// As [`Producer::space`]. The shared ring may be full all the same.
    #[must_use]
    pub fn space(&self) -> u64 {
        self.own.space()
    }

    /// As [`Producer::pushed`].
    #[must_use]
    pub fn pushed(&self) -> u64 {
        self.own.pushed()
    }
}
