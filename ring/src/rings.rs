//! The two rings of one direction in a mapped segment (SPEC 4.10): a small one that lies in the slot, so that idle connections share
//! pages, and a large one with pages of its own, which a stream goes on in once the small one has no room.
//!
//! `unsafe` is allowed here for the raw copies between a ring and a caller's buffer.
#![allow(unsafe_code)]

use crate::atomic::AtomicU64;
use crate::segment::{FIRST_BYTES, RING_BYTES};
use crate::shared::Region;
use crate::stream::{GROWN, Memory, Part};

/// See the module. The sizes are parameters for the tests' sake.
#[derive(Clone, Copy, Debug)]
pub struct Rings<const FIRST: usize = FIRST_BYTES, const MAIN: usize = RING_BYTES> {
    region: Region,
    first: usize,
    main: usize,
}

impl<const FIRST: usize, const MAIN: usize> Rings<FIRST, MAIN> {
    const SIZES: () =
        assert!(FIRST.is_power_of_two() && MAIN.is_power_of_two() && FIRST >= 64 && MAIN >= 64, "SPEC 4.1");

    /// The rings at the offsets `first` and `main` of a region. What is not inside the region is not touched.
    #[inline(always)]
    #[must_use]
    pub fn new(region: Region, first: usize, main: usize) -> Self {
        let () = Self::SIZES;
        Rings { region, first, main }
    }

    /// Offsets of the two.
    #[must_use]
    pub fn offsets(&self) -> [usize; 2] {
        [self.first, self.main]
    }

    /// Copies `src` into a ring at `at` (from [`crate::stream::reserve`]); bytes outside the region are not written.
    ///
    /// # Safety
    /// `src` is readable for `len` bytes.
    #[inline(always)]
    pub unsafe fn copy_in(&self, at: usize, src: *const u8, len: usize) {
        if at.checked_add(len).is_none_or(|end| end > self.region.len()) {
            return;
        }
        // SAFETY: inside the mapping (checked), `src` readable (contract). The two sides are the user's private
        // memory and the ring; a hostile peer may write the ring meanwhile, which garbles its own data only.
        unsafe { copy(src, self.region.base().as_ptr().add(at), len) }
    }

    /// Copies from a ring at `at` (from [`crate::stream::next`]) to `dst`; nothing is copied from outside the region.
    ///
    /// # Safety
    /// `dst` is writable for `len` bytes.
    #[inline(always)]
    pub unsafe fn copy_out(&self, at: usize, dst: *mut u8, len: usize) {
        if at.checked_add(len).is_none_or(|end| end > self.region.len()) {
            return;
        }
        // SAFETY: as in `copy_in`, the other way.
        unsafe { copy(self.region.base().as_ptr().add(at), dst, len) }
    }

    /// First byte of the payload at `at`, for system calls that read or write it in place.
    #[must_use]
    pub fn at(&self, at: usize, len: usize) -> Option<*mut u8> {
        Some(self.region.part(at, len)?.base().as_ptr())
    }
}

/// memcpy with the smallest sizes inline: a call costs more than an 8-byte message does.
///
/// # Safety
/// As for `core::ptr::copy_nonoverlapping`.
#[inline(always)]
unsafe fn copy(src: *const u8, dst: *mut u8, len: usize) {
    if len == 8 {
        // SAFETY: 8 bytes are readable and writable (contract); unaligned access is asked for.
        unsafe { dst.cast::<u64>().write_unaligned(src.cast::<u64>().read_unaligned()) }
    } else {
        // SAFETY: contract.
        unsafe { core::ptr::copy_nonoverlapping(src, dst, len) }
    }
}

impl<const FIRST: usize, const MAIN: usize> Memory for Rings<FIRST, MAIN> {
    #[inline(always)]
    fn part(&self, pos: u64) -> Part {
        if pos < GROWN {
            Part { from: 0, start: self.first as u64, size: FIRST as u64 }
        } else {
            Part { from: GROWN, start: self.main as u64, size: MAIN as u64 }
        }
    }
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // places are below the region's length
    fn header(&self, place: u64) -> Option<&AtomicU64> {
        self.region.get(place as usize)
    }
}
