//! Host memory that a card can store to: one hugepage, which the kernel neither swaps nor moves, and its physical address.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use ring::queue::{Key, Kind};
use ring::shared::Region;
use ring::window::{HOST_BYTES, HostMemory};
use rustix::fs::{MemfdFlags, SealFlags};

use super::PciError;
use crate::memory::Mapping;

const PAGEMAP: &str = "/proc/self/pagemap";
/// Bits of a pagemap entry (Linux, Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

/// One function's host memory, formatted. The memory itself lives as long as any descriptor or mapping of it.
#[derive(Debug)]
pub(super) struct DmaMemory {
    fd: OwnedFd,
    address: u64,
}

impl DmaMemory {
    /// Takes a free hugepage.
    pub fn new() -> Result<DmaMemory, PciError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
        let none = |e: io::Error| PciError::NoHugepages(e);
        let fd = rustix::fs::memfd_create("ipc-direct-host", flags).map_err(|e| none(e.into()))?;
        let page = rustix::fs::fstat(&fd).map_err(|e| none(e.into()))?.st_blksize;
        let page = u64::try_from(page).unwrap_or(0);
        rustix::fs::ftruncate(&fd, page.max(HOST_BYTES as u64)).map_err(|e| none(e.into()))?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals).map_err(|e| none(e.into()))?;
        // Fails without a free page, so that the store below can't.
        let mapping = Mapping::new(&fd, HOST_BYTES).map_err(none)?;
        // The key is the shared ring's, which a card does not have.
        HostMemory::over(mapping.region())
            .ok_or_else(|| none(io::ErrorKind::InvalidData.into()))?
            .format(Kind::PerProcess, Key::default());
        let address = physical(mapping.region()).map_err(|e| PciError::Io(PAGEMAP.into(), e))?;
        Ok(DmaMemory { fd, address })
    }

    /// The memory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where the card finds it.
    pub fn address(&self) -> u64 {
        self.address
    }
}

/// The physical address of a page that was stored to.
fn physical(region: Region) -> io::Result<u64> {
    let page = rustix::param::page_size() as u64;
    let start = region.base().as_ptr() as u64;
    let mut entry = [0; 8];
    File::open(PAGEMAP)?.read_exact_at(&mut entry, start / page * 8)?;
    let entry = u64::from_ne_bytes(entry);
    // Without CAP_SYS_ADMIN the frame reads as 0.
    if entry & PRESENT == 0 || entry & FRAME == 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok((entry & FRAME) * page + start % page)
}
