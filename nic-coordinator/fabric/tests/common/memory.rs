//! Mapped memory for tests, and a pattern in it.
#![allow(unsafe_code)] // Describes a mapping.
#![allow(dead_code, reason = "each program uses its part")]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use fabric::memory::Memory;

/// How many are mapped in this process.
pub static MAPPED: AtomicUsize = AtomicUsize::new(0);

/// Bytes that anybody may change at any time.
pub struct Mapped(Box<[AtomicU8]>);

impl Mapped {
    pub fn new(bytes: usize) -> Arc<Mapped> {
        MAPPED.fetch_add(1, Ordering::SeqCst);
        Arc::new(Mapped((0..bytes).map(|_| AtomicU8::new(0)).collect()))
    }

    pub fn bytes(&self) -> &[AtomicU8] {
        &self.0
    }

    /// A pattern that differs from round to round and from place to place.
    pub fn fill(&self, len: usize, round: u64) {
        self.0
            .iter()
            .take(len)
            .enumerate()
            .for_each(|(at, byte)| byte.store(pattern(at, round), Ordering::Relaxed));
    }

    pub fn check(&self, len: usize, round: u64) -> Result<(), String> {
        if len > self.0.len() {
            return Err(format!("{len} bytes are too many"));
        }
        let wrong = self
            .0
            .iter()
            .take(len)
            .enumerate()
            .find(|(at, b)| b.load(Ordering::Relaxed) != pattern(*at, round));
        wrong.map_or(Ok(()), |(at, _)| {
            Err(format!("round {round}: byte {at} of {len} is not there yet, or wrong"))
        })
    }
}

#[allow(clippy::cast_possible_truncation)] // a mix of bits
fn pattern(at: usize, round: u64) -> u8 {
    ((at as u64).wrapping_mul(0x9e37_79b9).wrapping_add(round.wrapping_mul(0x85eb_ca6b)) >> 7) as u8
}

impl Drop for Mapped {
    fn drop(&mut self) {
        MAPPED.fetch_sub(1, Ordering::SeqCst);
    }
}

// SAFETY: the box stays where it is, and all access to it is by atomics.
unsafe impl Memory for Mapped {
    fn base(&self) -> NonNull<u8> {
        NonNull::from(&*self.0).cast()
    }
    fn len(&self) -> usize {
        self.0.len()
    }
}
