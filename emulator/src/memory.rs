//! Sealed memfds and their mappings.
//!
//! `unsafe` is allowed here to describe a mapping that this module owns as a [`Region`].
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw};
use ring::shared::Region;
use rustix::fs::{MemfdFlags, SealFlags};

/// Makes a zeroed memfd of `len` bytes whose size nobody can change any more (so no holder can turn
/// another's access into SIGBUS), and that can't be sealed further (so no holder can make it
/// read-only for the others). `name` shows up in `/proc/PID/maps`.
///
/// # Errors
/// Those of memfd_create(2), ftruncate(2) and fcntl(2) `F_ADD_SEALS`.
pub fn sealed_memfd(name: &str, len: usize) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, len as u64)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

/// A shared read-write mapping of the start of a file; unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    map: MmapRaw,
}

impl Mapping {
    /// Maps the first `len` bytes, or more: hugepages are mapped and unmapped whole.
    ///
    /// # Errors
    /// Those of mmap(2) and fstat(2).
    pub fn new(fd: impl AsFd, len: usize) -> io::Result<Mapping> {
        let page = usize::try_from(rustix::fs::fstat(&fd)?.st_blksize).unwrap_or(1).max(1);
        let len = len.next_multiple_of(page);
        Ok(Mapping { map: MmapOptions::new().len(len).map_raw(fd.as_fd().as_raw_fd())? })
    }

    /// The mapped range. References taken through it must not outlive `self`: whoever keeps both
    /// in one struct keeps the mapping until the struct goes.
    #[must_use]
    pub fn region(&self) -> Region {
        let base = NonNull::new(self.map.as_mut_ptr()).unwrap_or(NonNull::dangling());
        let len = if self.map.as_mut_ptr().is_null() { 0 } else { self.map.len() };
        // SAFETY: `map` is a live MAP_SHARED read-write mapping of `len` bytes, page aligned (so 64-byte
        // aligned), owned by `self` and unmapped only by its drop; the method's contract passes
        // "not longer than the mapping" on to the caller. An (impossible) null base gets length 0.
        unsafe { Region::new(base, len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_memfd_is_sealed_and_shared() {
        let fd = sealed_memfd("ipc-direct-test", 8192).unwrap();
        assert!(rustix::fs::ftruncate(&fd, 0).is_err());
        assert!(rustix::fs::ftruncate(&fd, 16384).is_err());
        assert!(rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE).is_err());
        let (one, two) = (Mapping::new(&fd, 8192).unwrap(), Mapping::new(&fd, 4096).unwrap());
        one.region().get::<AtomicU32>(64).unwrap().store(7, Ordering::Relaxed);
        assert_eq!(two.region().get::<AtomicU32>(64).unwrap().load(Ordering::Relaxed), 7);
        assert!(two.region().get::<AtomicU32>(4096).is_none());
    }
}
