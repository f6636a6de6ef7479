//! The memory of messages: one registered block, in pieces of one size.
#![allow(unsafe_code)] // A block that a provider writes into, and slices of it.

use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::memory::{Access, Memory, Region, RegisterError};
use crate::provider::Fabric;

/// Plain memory, which is looked at through raw pointers only.
struct Block(Box<[UnsafeCell<u64>]>);

// SAFETY: nothing but bytes; who may look at which is `Buffers`' business.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

// SAFETY: the box stays where it is; `UnsafeCell` lets others write it, and only `Buffers` makes references into it, to
// pieces that the provider does not have.
unsafe impl Memory for Block {
    fn base(&self) -> NonNull<u8> {
        NonNull::from(&*self.0).cast()
    }
    fn len(&self) -> usize {
        size_of_val(&*self.0)
    }
}

/// Pieces of one size.
pub(crate) struct Buffers {
    region: Region,
    base: NonNull<u8>,
    bytes: usize,
    count: usize,
}

// SAFETY: plain memory and a registration.
unsafe impl Send for Buffers {}

impl Buffers {
    pub(crate) fn new(fabric: &Fabric, count: usize, bytes: usize) -> Result<Self, RegisterError> {
        let bytes = bytes.next_multiple_of(64);
        let block = Arc::new(Block((0..count * bytes / 8).map(|_| UnsafeCell::new(0)).collect()));
        let base = block.base();
        let region = fabric.register(block, 0..count * bytes, Access::Messages)?;
        Ok(Buffers { region, base, bytes, count })
    }

    /// Bytes of a piece.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Pieces.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn desc(&self) -> *mut std::ffi::c_void {
        self.region.desc()
    }

    /// The piece's first byte.
    pub(crate) fn at(&self, index: usize) -> Option<NonNull<u8>> {
        // SAFETY: inside of the block (checked).
        (index < self.count).then(|| unsafe { self.base.add(index * self.bytes) })
    }

    /// The first `len` bytes of a piece.
    ///
    /// # Safety
    /// The provider has not got the piece, nor is it given to it while the slice is used, and `&mut self` is the only way to slices.
    pub(crate) unsafe fn slice(&mut self, index: usize, len: usize) -> &mut [u8] {
        match self.at(index) {
            // SAFETY: inside of the block, initialised, and ours (contract).
            Some(base) => unsafe { std::slice::from_raw_parts_mut(base.as_ptr(), len.min(self.bytes)) },
            None => &mut [],
        }
    }
}
