//! The two memories of a function (SPEC 2.1), and what each side may do with them: each has its own as it is, and the other's
//! across the bus.
//!
//! `unsafe` is allowed here for the `Shared` markers only.
#![allow(unsafe_code)]

use super::{ENTRIES, ENTRIES_OFFSET, Entry, HOST_MAGIC, WINDOW_MAGIC};
use crate::VERSION;
use crate::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::queue::{Key, Kind};
use crate::shared::{Region, Shared};
use crate::side::{Far, Fetched, InOrder, Memory, Near};

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
    use core::mem::{offset_of, size_of};
    assert!(size_of::<WindowHeader>() == 64);
    assert!(offset_of!(WindowHeader, armed) == 16);
    assert!(size_of::<HostHeader>() == 192);
    assert!(offset_of!(HostHeader, doorbell_wanted) == 8);
    assert!(offset_of!(HostHeader, key) == 16);
    assert!(offset_of!(HostHeader, queue) == 32);
    assert!(offset_of!(HostHeader, notice) == 64);
    assert!(offset_of!(HostHeader, pushing) == 128);
};

/// A window as it is: for the card, whose memory it is, and for who sets a function up or only looks on. To the host it is a
/// [`FarWindow`].
#[derive(Clone, Copy)]
pub struct Window<'a> {
    /// Header.
    pub header: &'a WindowHeader,
    /// Request ring.
    pub requests: &'a [Entry],
}

/// A function's host memory as it is: for the host, and for who sets a function up or only looks on. To the card it is a
/// [`FarHost`].
#[derive(Clone, Copy)]
pub struct HostMemory<'a> {
    /// Header.
    pub header: &'a HostHeader,
    /// Completion ring.
    pub completions: &'a [Entry],
}

/// What the host does with a window: it stores.
#[derive(Debug)]
pub struct FarWindow<'a, M: Memory = InOrder> {
    /// [`WindowHeader::armed`].
    pub armed: Far<'a, M::Word>,
    /// Request ring.
    pub requests: Far<'a, [Entry<M>]>,
}

/// What the card does with a window: it loads.
#[derive(Debug)]
pub struct NearWindow<'a, M: Memory = InOrder> {
    /// [`WindowHeader::armed`].
    pub armed: Near<'a, M::Word>,
    /// Request ring.
    pub requests: Near<'a, [Entry<M>]>,
}

/// What the host does with its memory, as far as the card stores there: it loads.
#[derive(Debug)]
pub struct NearHost<'a, M: Memory = InOrder> {
    /// [`HostHeader::doorbell_wanted`].
    pub doorbell_wanted: Near<'a, M::Half>,
    /// Completion ring.
    pub completions: Near<'a, [Entry<M>]>,
}

/// What the card does with a function's host memory: it stores.
#[derive(Debug)]
pub struct FarHost<'a, M: Memory = InOrder> {
    /// [`HostHeader::doorbell_wanted`].
    pub doorbell_wanted: Far<'a, M::Half>,
    /// Completion ring.
    pub completions: Far<'a, [Entry<M>]>,
}

impl<'a> Window<'a> {
    /// Views `region` as a window; `None` if it is too small.
    #[must_use]
    pub fn over(region: Region) -> Option<Window<'a>> {
        Some(Window { header: region.get(0)?, requests: region.slice(ENTRIES_OFFSET, ENTRIES as usize)? })
    }

    /// As the host may use it.
    #[must_use]
    pub fn far(&self) -> FarWindow<'a> {
        FarWindow { armed: (&self.header.armed).into(), requests: self.requests.into() }
    }

    /// As the card uses it.
    #[must_use]
    pub fn near(&self) -> NearWindow<'a> {
        NearWindow { armed: (&self.header.armed).into(), requests: self.requests.into() }
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

    /// As the card may use it.
    #[must_use]
    pub fn far(&self) -> FarHost<'a> {
        FarHost {
            doorbell_wanted: (&self.header.doorbell_wanted).into(),
            completions: self.completions.into(),
        }
    }

    /// As the host uses it.
    #[must_use]
    pub fn near(&self) -> NearHost<'a> {
        NearHost {
            doorbell_wanted: (&self.header.doorbell_wanted).into(),
            completions: self.completions.into(),
        }
    }

    /// What the card says once.
    #[must_use]
    pub fn epoch(&self) -> Far<'a, AtomicU32> {
        (&self.header.epoch).into()
    }

    /// What the card reads across the bus when a ticket of the shared ring was not published in time.
    #[must_use]
    pub fn pushing(&self) -> Fetched<'a, AtomicU64> {
        (&self.header.pushing).into()
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
