//! The two sides of the bus as types (SPEC 2.2): what lies across it can be stored to and nothing else, and what is stored to
//! from over there can be loaded and nothing else.
//!
//! The host's hot path across the bus, reading and read-modify-writing what lies there, does not compile:
//!
//! ```compile_fail,E0599
//! use ring::{atomic::Ordering, window::FarWindow};
//! fn host_reads(window: FarWindow) -> u64 { window.armed.load(Ordering::Acquire) }
//! ```
//! ```compile_fail,E0599
//! use ring::{atomic::Ordering, window::FarWindow};
//! fn host_adds(window: FarWindow) { window.armed.fetch_add(1, Ordering::AcqRel); }
//! ```
//! Nor does the card's:
//!
//! ```compile_fail,E0599
//! use ring::{atomic::Ordering, window::FarHost};
//! fn card_reads(host: FarHost) -> u32 { host.doorbell_wanted.load(Ordering::Acquire) }
//! ```
//! ```compile_fail,E0599
//! use ring::{atomic::Ordering, window::FarHost};
//! fn card_swaps(host: FarHost) { host.doorbell_wanted.swap(0, Ordering::AcqRel); }
//! ```
//! Nor can entries across the bus be consumed, from either side:
//!
//! ```compile_fail,E0277
//! use ring::window::{Consumer, FarWindow};
//! fn host_consumes(window: FarWindow) { Consumer::new(window.requests, 0).pop(); }
//! ```
//! ```compile_fail,E0277
//! use ring::window::{Consumer, FarHost};
//! fn card_consumes(host: FarHost) { Consumer::new(host.completions, 0).pop(); }
//! ```
//! What may be done, so that the above fails for its reason alone:
//!
//! ```
//! use ring::{atomic::Ordering, window::{Consumer, FarHost, FarWindow, NearHost, NearWindow}};
//! fn host(window: FarWindow, host: NearHost) -> u32 {
//!     window.armed.publish(1);
//!     Consumer::new(host.completions, 0).pop();
//!     host.doorbell_wanted.load(Ordering::Relaxed)
//! }
//! fn card(window: NearWindow, host: FarHost) -> u64 {
//!     host.doorbell_wanted.publish(1);
//!     Consumer::new(window.requests, 0).pop();
//!     window.armed.load(Ordering::Acquire)
//! }
//! ```
//!
//! Everything that protocol code does with memory it does through [`Word`], so that tests run it over a model of the bus, which
//! reorders and delays what a bus may (`tests/s2_bus.rs`), and count what crosses it.
//!
//! `unsafe` is allowed here for the `Shared` markers, and for the instruction that empties write-combining buffers.
#![allow(unsafe_code)]

use crate::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use crate::shared::Shared;
use crate::window::Entry;

/// A word that one side stores and the other one loads.
pub trait Word {
    /// What it holds.
    type Value: Copy;
    /// Loads it. For the side whose memory it is.
    fn load(&self, order: Ordering) -> Self::Value;
    /// Stores it.
    fn store(&self, value: Self::Value, order: Ordering);
    /// What this side has stored to such words arrives, and arrives before what it stores later (SPEC 2.10).
    #[inline(always)]
    fn flush(&self) {}
}

/// How the memory is mapped that two sides share.
pub trait Memory: 'static {
    /// 64 bits of it.
    type Word: Word<Value = u64>;
    /// 32 bits of it.
    type Half: Word<Value = u32>;
}

/// Memory to which stores arrive by themselves and in their order: coherent, as the emulator's, or uncached (SPEC 2.10.2).
#[derive(Clone, Copy, Debug)]
pub struct InOrder;

/// A write-combining mapping (SPEC 2.10.3).
#[derive(Clone, Copy, Debug)]
pub struct Combining;

impl Memory for InOrder {
    type Word = AtomicU64;
    type Half = AtomicU32;
}

impl Memory for Combining {
    type Word = Combined<AtomicU64>;
    type Half = Combined<AtomicU32>;
}

macro_rules! words {
    ($($atomic:ident $value:ident)*) => {$(
        impl Word for $atomic {
            type Value = $value;
            #[inline(always)]
            fn load(&self, order: Ordering) -> $value {
                self.load(order)
            }
            #[inline(always)]
            fn store(&self, value: $value, order: Ordering) {
                self.store(value, order);
            }
        }
    )*};
}
words! { AtomicU16 u16 AtomicU32 u32 AtomicU64 u64 }

/// A word in a write-combining mapping: the processor gathers stores, and gives them to the bus in any order and when it likes.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Combined<A>(A);
// SAFETY: transparent over a shared word.
#[cfg(not(loom))]
unsafe impl<A: Shared> Shared for Combined<A> {}

impl<A: Word> Word for Combined<A> {
    type Value = A::Value;
    #[inline(always)]
    fn load(&self, order: Ordering) -> A::Value {
        self.0.load(order)
    }
    #[inline(always)]
    fn store(&self, value: A::Value, order: Ordering) {
        self.0.store(value, order);
    }
    #[inline(always)]
    fn flush(&self) {
        // SAFETY: instructions that only order and drain this core's stores; SSE is part of x86-64.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            core::arch::x86_64::_mm_sfence();
        }
        // Of Normal non-cacheable memory, for observers outside of the processor (Linux's dma_wmb).
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            core::arch::asm!("dmb oshst", options(nostack, preserves_flags));
        }
    }
}

/// Memory across the bus: it can be stored to, by posted writes.
#[derive(Debug)]
pub struct Far<'a, T: ?Sized>(&'a T);

/// Memory on this side, which the other one stores to: it can be loaded.
#[derive(Debug)]
pub struct Near<'a, T: ?Sized>(&'a T);

/// Host memory that the card reads across the bus, by DMA, on purpose: what hosts share among themselves (SPEC 2.7.3). Each load waits
/// for a round trip.
#[derive(Debug)]
pub struct Fetched<'a, T: ?Sized>(&'a T);

macro_rules! views {
    ($($view:ident)*) => {$(
        impl<T: ?Sized> Clone for $view<'_, T> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<T: ?Sized> Copy for $view<'_, T> {}
        impl<'a, T: ?Sized> From<&'a T> for $view<'a, T> {
            #[inline(always)]
            fn from(memory: &'a T) -> Self {
                $view(memory)
            }
        }
        impl<'a, T, const N: usize> From<&'a [T; N]> for $view<'a, [T]> {
            fn from(memory: &'a [T; N]) -> Self {
                $view(memory)
            }
        }
        impl<'a, M: Memory> $view<'a, Entry<M>> {
            /// The entry's words.
            #[inline(always)]
            pub(crate) fn words(self) -> [$view<'a, M::Word>; 8] {
                self.0.words.each_ref().map(|word| $view(word))
            }
        }
        impl<'a, T> $view<'a, [T]> {
            /// All of them, one by one.
            #[inline(always)]
            pub fn iter(self) -> impl Iterator<Item = $view<'a, T>> {
                self.0.iter().map(|place| $view(place))
            }

            /// How many there are.
            #[must_use]
            #[inline(always)]
            pub fn size(self) -> u64 {
                self.0.len() as u64
            }

            /// Of a ring, whose size is a power of two: the place of `index`.
            #[must_use]
            #[inline(always)]
            pub fn slot(self, index: u64) -> Option<$view<'a, T>> {
                let mask = self.size().checked_sub(1)?;
                self.0.get(usize::try_from(index & mask).ok()?).map($view)
            }
        }
    )*};
}
views! { Far Near Fetched }

impl<W: Word> Far<'_, W> {
    /// Stores: nobody looks at it before [`Far::publish`] of another word says so.
    #[inline(always)]
    pub fn put(self, value: W::Value) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Stores, so that who sees the value (Acquire) sees what this side has stored before; and that it arrives.
    #[inline(always)]
    pub fn publish(self, value: W::Value) {
        self.0.flush();
        self.0.store(value, Ordering::Release);
        self.0.flush();
    }
}

impl<W: Word> Near<'_, W> {
    /// Loads.
    #[must_use]
    #[inline(always)]
    pub fn load(self, order: Ordering) -> W::Value {
        self.0.load(order)
    }
}

impl<W: Word> Fetched<'_, W> {
    /// Loads across the bus.
    #[must_use]
    #[inline(always)]
    pub fn fetch(self, order: Ordering) -> W::Value {
        self.0.load(order)
    }
}

impl<'a, T: ?Sized> Near<'a, T> {
    /// The memory itself, which is on this side.
    #[must_use]
    pub fn get(self) -> &'a T {
        self.0
    }
}

impl<'a, T> Fetched<'a, [T]> {
    /// In runs of `length`.
    #[inline(always)]
    pub fn chunks(self, length: usize) -> impl Iterator<Item = Fetched<'a, [T]>> {
        self.0.chunks(length).map(Fetched)
    }
}
