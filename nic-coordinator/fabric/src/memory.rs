//! Memory that a provider may read, or a peer write.
//!
//! A registration owns a share of the memory, so the memory outlives it by type. It does so even where libfabric is loose: the
//! `tcp` provider goes on with a write that has begun when its registration is closed, so memory that peers could write stays
//! until that cannot be any more (see `graves`), and the source of a write until the write has ended.
#![allow(unsafe_code)] // Registers memory.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use fabric_sys as sys;
use thiserror::Error;

use crate::errno::FiError;
use crate::provider::{Domain, Fabric, Opened, check, close};

/// Memory that may be registered.
///
/// # Safety
/// The range is mapped, readable and writable, from now until `self` is dropped, and always the same. Peers and the provider
/// may write to it, and read it, at any time: nobody has references into it but to atomics.
pub unsafe trait Memory: Send + Sync + 'static {
    /// Its first byte.
    fn base(&self) -> NonNull<u8>;
    /// How many bytes there are.
    fn len(&self) -> usize;
    /// No bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a registration is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Source of our writes.
    Source,
    /// Source of our writes, and peers that know the key may write to it.
    SourceAndTarget,
    /// Messages that we send and receive.
    Messages,
}

impl Access {
    fn bits(self) -> u64 {
        // SAFETY: reads constants of the library.
        unsafe {
            match self {
                Access::Source => sys::shim_write,
                Access::SourceAndTarget => sys::shim_write | sys::shim_remote_write,
                Access::Messages => sys::shim_send | sys::shim_recv,
            }
        }
    }
}

/// Why memory could not be registered.
#[derive(Debug, Error)]
pub enum RegisterError {
    /// Not a part of the memory, or empty.
    #[error("bytes {0:?} are not inside of the memory")]
    Outside(Range<usize>),
    /// libfabric's refusal: for example too much memory to be kept in place.
    #[error("cannot register {bytes} bytes of memory (see `ulimit -l`): {error}")]
    Refused {
        /// How much it was.
        bytes: usize,
        /// libfabric's reason.
        error: FiError,
    },
}

/// What a peer needs to write to registered memory. To be told to it by other means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Where it begins, as the provider counts.
    pub address: u64,
    /// Its key.
    pub key: u64,
    /// How many bytes there are.
    pub len: u64,
}

/// A registered range of memory.
pub struct Region {
    mr: NonNull<sys::fid_mr>,
    memory: ManuallyDrop<Arc<dyn Memory>>,
    base: NonNull<u8>,
    len: usize,
    access: Access,
    domain: Arc<Domain>,
}

// SAFETY: the provider's object may be used by any thread (FI_THREAD_SAFE), the memory is `Send` and `Sync`.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Fabric {
    /// Registers bytes `range` of `memory`. Providers with hardware keep them in place, and so in existence, as long as they
    /// are registered.
    ///
    /// # Errors
    /// [`RegisterError`].
    pub fn register(
        &self,
        memory: Arc<dyn Memory>,
        range: Range<usize>,
        access: Access,
    ) -> Result<Region, RegisterError> {
        if range.is_empty() || range.end > memory.len() {
            return Err(RegisterError::Outside(range));
        }
        let len = range.len();
        // SAFETY: inside of the memory (checked), which is mapped (contract of `Memory`).
        let base = unsafe { memory.base().add(range.start) };
        let refused = |error| RegisterError::Refused { bytes: len, error };
        let domain = &self.0;
        let mut mr = ptr::null_mut();
        // SAFETY: an open domain, and mapped memory that stays until the registration is closed (`Region` keeps a share).
        check(unsafe {
            let (base, key) = (base.as_ptr().cast_const().cast(), domain.next_key());
            sys::shim_mr_reg(domain.domain.as_ptr(), base, len, access.bits(), key, &raw mut mr)
        })
        .map_err(refused)?;
        let mr = Opened::new(mr).ok_or_else(|| refused(FiError::of_entry(0)))?.keep();
        Ok(Region { mr, memory: ManuallyDrop::new(memory), base, len, access, domain: Arc::clone(domain) })
    }
}

impl Region {
    /// What a peer needs to write to it.
    #[must_use]
    pub fn remote(&self) -> Remote {
        let address = if self.domain.has_virtual_addresses() { self.base.as_ptr() as u64 } else { 0 };
        // SAFETY: an open registration.
        Remote { address, key: unsafe { sys::shim_mr_key(self.mr.as_ptr()) }, len: self.len as u64 }
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: an empty one can't be registered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first of `len` bytes at `at`, if they are inside, and of this provider.
    pub(crate) fn part(&self, domain: &Arc<Domain>, at: usize, len: usize) -> Option<NonNull<u8>> {
        let inside =
            at.checked_add(len).is_some_and(|end| end <= self.len) && Arc::ptr_eq(domain, &self.domain);
        // SAFETY: inside of the range (checked).
        inside.then(|| unsafe { self.base.add(at) })
    }

    /// What the provider calls it when it is a source.
    pub(crate) fn desc(&self) -> *mut std::ffi::c_void {
        // SAFETY: an open registration.
        unsafe { sys::shim_mr_desc(self.mr.as_ptr()) }
    }

    pub(crate) fn can_be_source(&self) -> bool {
        self.access != Access::Messages
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let closed = close(self.mr.cast());
        // SAFETY: taken once, here.
        let memory = unsafe { ManuallyDrop::take(&mut self.memory) };
        if !closed {
            // The provider still uses it: it has to stay for good.
            std::mem::forget(memory);
        } else if self.access == Access::SourceAndTarget {
            self.domain.graves.bury(memory);
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("remote", &self.remote())
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}
