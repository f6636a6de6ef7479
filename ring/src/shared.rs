//! What may live in shared memory, and checked views of a mapping (SPEC 1).
//!
//! `unsafe` is allowed here: this module turns a raw mapping into references, once, checked.
#![allow(unsafe_code)]

use core::mem::{align_of, size_of};
use core::ptr::NonNull;

/// Types that may live in memory that another process writes at any time.
///
/// # Safety
/// Every field is a fixed-width atomic integer (or an array or struct of such), any bit pattern
/// is valid, the layout is `repr(C)`, and there is no padding that matters. No pointer, bool,
/// enum or usize.
pub unsafe trait Shared {}

/// A mapped region: start and length in bytes. It does not own the mapping.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a Region is an address range; all access through it goes to `Shared` types (atomics)
// or to raw copies whose synchronisation the rings argue for themselves.
unsafe impl Send for Region {}
// SAFETY: as above; `&Region` gives nothing that `Region` does not.
unsafe impl Sync for Region {}

impl Region {
    /// Describes `len` bytes from `base`.
    ///
    /// # Safety
    /// The range must be mapped readable and writable for as long as any copy of the region, or
    /// anything borrowed from it, is used; `base` is aligned to 64 bytes.
    #[must_use]
    pub unsafe fn new(base: NonNull<u8>, len: usize) -> Self {
        Region { base, len }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a region without bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The `T` at byte `offset`, or `None` if it would not fit or not be aligned.
    ///
    /// The lifetime is the caller's to bound: it must not outlive the mapping (see [`Region::new`]).
    #[must_use]
    pub fn get<'a, T: Shared>(&self, offset: usize) -> Option<&'a T> {
        let end = offset.checked_add(size_of::<T>())?;
        if end > self.len
            || !(self.base.as_ptr() as usize).wrapping_add(offset).is_multiple_of(align_of::<T>())
        {
            return None;
        }
        // SAFETY: in range and aligned (checked above), mapped (contract of `new`), and `T: Shared`
        // accepts any bit pattern and any concurrent change.
        Some(unsafe { &*self.base.as_ptr().add(offset).cast::<T>() })
    }

    /// `n` consecutive `T` from byte `offset`, or `None` if they would not fit or not be aligned.
    #[must_use]
    pub fn slice<'a, T: Shared>(&self, offset: usize, n: usize) -> Option<&'a [T]> {
        let end = n.checked_mul(size_of::<T>())?.checked_add(offset)?;
        if end > self.len
            || !(self.base.as_ptr() as usize).wrapping_add(offset).is_multiple_of(align_of::<T>())
        {
            return None;
        }
        // SAFETY: as in `get`, for n consecutive values.
        Some(unsafe { core::slice::from_raw_parts(self.base.as_ptr().add(offset).cast::<T>(), n) })
    }

    /// The sub-range of `len` bytes from `offset`, if it lies inside.
    #[must_use]
    pub fn part(&self, offset: usize, len: usize) -> Option<Region> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: offset is inside the range, so the pointer stays in the same mapping.
        Some(Region { base: unsafe { self.base.add(offset) }, len })
    }

    /// First byte. For the raw copies of [`crate::stream`] and for unmapping.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }
}

#[cfg(not(loom))]
mod impls {
    use super::Shared;
    use crate::atomic::{AtomicU8, AtomicU32, AtomicU64};
    // SAFETY: fixed-width atomic integers accept any bit pattern.
    unsafe impl Shared for AtomicU8 {}
    // SAFETY: as above.
    unsafe impl Shared for AtomicU32 {}
    // SAFETY: as above.
    unsafe impl Shared for AtomicU64 {}
}
// SAFETY: arrays of shared values are shared values.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}
