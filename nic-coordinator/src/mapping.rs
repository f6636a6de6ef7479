//! A function's two memories as the card sees them: the window, which is the card's own, and the host memory that
//! the bus maps for it.
//!
//! `unsafe` is allowed here to view the mappings, and nowhere else in this library. No reference into a mapping
//! leaves this module: [`FunctionMemory`] hands out copies only, so that it can be unmapped at any time.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};
use ring::atomic::{AtomicU32, AtomicU64, Ordering};
use ring::queue::shared::{Found, Sealed, Taker};
use ring::queue::{COMMON_BYTES, CommonMemory, Key, hint::Watcher};
use ring::shared::Region;
use ring::side::{Far, Fetched};
use ring::window::{Broken, CardEnd, Full, HOST_BYTES, HostMemory, Raw, WINDOW_BYTES, Window};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};

/// Why a function's memory could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The kernel refused.
    #[error("the {0} cannot be mapped: {1}")]
    Kernel(&'static str, #[source] std::io::Error),
    /// Its owner could cut it off under our feet.
    #[error("the {0} is not sealed against shrinking: it must be a memfd with F_SEAL_SHRINK")]
    Unsealed(&'static str),
    /// Not the size of this version.
    #[error("the {what} has {bytes} bytes instead of {expected}: use files of one release")]
    Size {
        /// Which memory.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The right size.
        expected: usize,
    },
    /// The card has no such window, or the host's memory ends before.
    #[error("the {what} at {address:#x} is not inside of what this card reaches")]
    Outside {
        /// Which memory.
        what: &'static str,
        /// Where it was to be.
        address: u64,
    },
    /// Not formatted, or by another version, or for another function.
    #[error("the {0} has no valid header: use files of one release")]
    Header(&'static str),
}

/// The mapped memories of one function, and our end of it.
#[derive(Debug)]
pub struct FunctionMemory {
    // The 'static of these is a lie that stays in this struct: they are valid as long as `maps`.
    end: CardEnd<'static>,
    epoch: Far<'static, AtomicU32>,
    pushing: Fetched<'static, AtomicU64>,
    key: Key,
    maps: Arc<[MmapRaw; 2]>,
}

/// What a function's host says about its pushes into the shared ring: for who takes entries out of that, perhaps on another lcore
/// than the function's. Keeps the memory mapped.
#[derive(Debug)]
pub struct Pushing {
    // As in FunctionMemory.
    word: Fetched<'static, AtomicU64>,
    _maps: Arc<[MmapRaw; 2]>,
}

impl Pushing {
    /// Odd while it may hold a ticket. Read across the bus: only when a ticket was not published in time.
    #[must_use]
    pub fn get(&self) -> u64 {
        // Acquire: pairs with the Release at the end of a push: who sees that sees the entry published.
        self.word.fetch(Ordering::Acquire)
    }
}

/// A mapping of memory that the card has anyhow: its own, or the host's, which the bus shows it.
#[derive(Debug)]
pub struct CardMemory {
    map: MmapRaw,
    region: Region,
}

impl CardMemory {
    /// Maps `len` bytes of `file` from `address`.
    ///
    /// # Errors
    /// [`MapError`]: the kernel refused, or that is outside of the file, or not aligned to a cache line.
    pub fn map(file: impl AsFd, address: u64, len: usize, what: &'static str) -> Result<Self, MapError> {
        let outside = || MapError::Outside { what, address };
        let size = fstat(file.as_fd()).map_err(|e| MapError::Kernel(what, e.into()))?.st_size;
        let end = address.checked_add(len as u64).filter(|end| *end <= u64::try_from(size).unwrap_or(0));
        if end.is_none() || !address.is_multiple_of(64) {
            return Err(outside());
        }
        let fd = file.as_fd();
        let map = MmapOptions::new().offset(address).len(len).map_raw(&fd);
        let map = map.map_err(|error| MapError::Kernel(what, error))?;
        let base = NonNull::new(map.as_mut_ptr()).ok_or_else(outside)?;
        // SAFETY: mapped shared, readable and writable, `len` bytes long, aligned to 64 (page-aligned plus `address`). The
        // file is the card's own or the host's memory: trusted not to shrink. Who borrows from the region keeps `self`.
        let region = unsafe { Region::new(base, len) };
        Ok(CardMemory { map, region })
    }

    /// The mapped range; it must not be used after `self` is dropped.
    #[must_use]
    pub fn region(&self) -> Region {
        self.region
    }

    /// Stores 0 to all words from byte `from` to byte `to`.
    pub fn clear(&self, from: usize, to: usize) {
        let words = self.region.slice::<AtomicU64>(from, to.saturating_sub(from) / size_of::<AtomicU64>());
        for word in words.into_iter().flatten() {
            // Relaxed: whoever may look at it is told later.
            word.store(0, Ordering::Relaxed);
        }
    }
}

impl FunctionMemory {
    /// Maps the window and the host memory of function `number`, freshly formatted by the agent and not yet known to
    /// the process.
    ///
    /// # Errors
    /// [`MapError`]; nothing stays mapped.
    pub fn map(number: u32, window: BorrowedFd<'_>, host: BorrowedFd<'_>) -> Result<Self, MapError> {
        let (window_map, window) = map_one(window, WINDOW_BYTES, "window")?;
        let (host_map, host) = map_one(host, HOST_BYTES, "host memory")?;
        let window = Window::over(window).filter(Window::valid).ok_or(MapError::Header("window"))?;
        if window.header.function.load(Ordering::Relaxed) != number {
            return Err(MapError::Header("window"));
        }
        let host = HostMemory::over(host).filter(HostMemory::valid).ok_or(MapError::Header("host memory"))?;
        Ok(Self::over(window, host, [window_map, host_map]))
    }

    /// Over a window of the card's own, which is formatted here, and host memory that the agent has formatted.
    ///
    /// # Errors
    /// [`MapError::Header`].
    pub fn of_card(number: u32, window: CardMemory, host: CardMemory) -> Result<Self, MapError> {
        // Behind the request ring, function 0 has the bus.
        window.clear(0, ring::card::BUS_OFFSET);
        let view = Window::over(window.region).ok_or(MapError::Header("window"))?;
        view.format(number);
        let host_view = HostMemory::over(host.region).filter(HostMemory::valid);
        let host_view = host_view.ok_or(MapError::Header("host memory"))?;
        Ok(Self::over(view, host_view, [window.map, host.map]))
    }

    fn over(window: Window<'static>, host: HostMemory<'static>, maps: [MmapRaw; 2]) -> Self {
        FunctionMemory {
            end: CardEnd::new(&window.near(), &host.far()),
            epoch: host.epoch(),
            pushing: host.pushing(),
            // Read across the bus, once, before the process knows the memory.
            key: host.key(),
            maps: Arc::new(maps),
        }
    }

    /// The host's word about its pushes.
    #[must_use]
    pub fn pushing(&self) -> Pushing {
        Pushing { word: self.pushing, _maps: Arc::clone(&self.maps) }
    }

    /// As [`CardEnd::take`].
    ///
    /// # Errors
    /// [`Broken`]: the function has to be dropped.
    pub fn next_request(&mut self) -> Result<Option<Raw>, Broken> {
        self.end.take()
    }

    /// Takes an entry that says it is this function's out of the shared ring, and the credit in it. `None`: somebody else made it.
    ///
    /// # Errors
    /// [`Broken`]: the function has to be dropped.
    pub fn open(&mut self, entry: &Sealed) -> Result<Option<Raw>, Broken> {
        let Some((raw, credit)) = entry.open(&self.key) else { return Ok(None) };
        self.end.take_credit(credit).map(|()| Some(raw))
    }

    /// As [`CardEnd::count_shared`].
    pub fn count_shared(&mut self) {
        self.end.count_shared();
    }

    /// As [`CardEnd::has_request`].
    #[must_use]
    pub fn has_request(&self) -> bool {
        self.end.has_request()
    }

    /// As [`CardEnd::look_at_armed`].
    ///
    /// # Errors
    /// [`Broken`]: the function has to be dropped.
    pub fn look_at_armed(&mut self) -> Result<bool, Broken> {
        self.end.look_at_armed()
    }

    /// As [`CardEnd::armed_changed`].
    #[must_use]
    pub fn armed_changed(&self) -> bool {
        self.end.armed_changed()
    }

    /// As [`CardEnd::has_room`].
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.end.has_room()
    }

    /// As [`CardEnd::interrupt_due`].
    pub fn interrupt_due(&mut self) -> bool {
        self.end.interrupt_due()
    }

    /// As [`CardEnd::push`].
    ///
    /// # Errors
    /// [`Full`] until the host gives credit.
    pub fn push(&mut self, raw: &Raw) -> Result<(), Full> {
        self.end.push(raw)
    }

    /// As [`CardEnd::untold`].
    #[must_use]
    pub fn untold(&self) -> u64 {
        self.end.untold()
    }

    /// Says in host memory which incarnation of the coordinator this is.
    pub fn set_epoch(&self, epoch: u32) {
        // The host looks at it only after a message that says the function is mapped.
        self.epoch.publish(epoch);
    }

    /// As [`CardEnd::set_doorbell_wanted`].
    pub fn set_doorbell_wanted(&self, wanted: bool) {
        self.end.set_doorbell_wanted(wanted);
    }
}

/// The mapped common memory (SPEC 2.7.2), and our positions in it.
pub struct Common {
    // The 'static of these is a lie that stays in this struct: they are valid as long as `_map`.
    taker: Taker<'static>,
    watcher: Watcher<'static>,
    _map: MmapRaw,
}

impl std::fmt::Debug for Common {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Common").field("taker", &self.taker).finish_non_exhaustive()
    }
}

impl Common {
    /// Maps the common memory, freshly formatted by the agent and not yet known to any process.
    ///
    /// # Errors
    /// [`MapError`]; nothing stays mapped.
    pub fn map(fd: BorrowedFd<'_>) -> Result<Self, MapError> {
        let (map, region) = map_one(fd, COMMON_BYTES, "common memory")?;
        let common =
            CommonMemory::over(region).filter(|c| c.valid()).ok_or(MapError::Header("common memory"))?;
        Ok(Common { taker: Taker::new(common.ring()), watcher: Watcher::new(common), _map: map })
    }

    /// As [`Taker::take`].
    pub fn take(&mut self, now_us: u64, patience_us: u64) -> Found {
        self.taker.take(now_us, patience_us)
    }

    /// As [`Taker::tell`].
    pub fn tell(&mut self) {
        self.taker.tell();
    }

    /// As [`Taker::release`].
    pub fn release(&mut self, ticket: u64) -> Option<Sealed> {
        self.taker.release(ticket)
    }

    /// As [`Taker::unresolved`].
    pub fn unresolved(&self) -> impl Iterator<Item = u64> {
        self.taker.unresolved()
    }

    /// As [`Taker::gap_until_us`].
    #[must_use]
    pub fn gap_until_us(&self, patience_us: u64) -> Option<u64> {
        self.taker.gap_until_us(patience_us)
    }

    /// As [`Watcher::collect`].
    pub fn hints(&mut self, each: impl FnMut(u32)) {
        self.watcher.collect(each);
    }
}

pub(crate) fn map_one(
    fd: BorrowedFd<'_>,
    expected: usize,
    what: &'static str,
) -> Result<(MmapRaw, Region), MapError> {
    let bytes = sealed_bytes(fd, what)?;
    if bytes != expected as u64 {
        return Err(MapError::Size { what, bytes, expected });
    }
    map_sealed(fd, expected, what)
}

/// Maps a memory of `expected` bytes, as [`sealed_bytes`] has said.
pub(crate) fn map_sealed(
    fd: BorrowedFd<'_>,
    expected: usize,
    what: &'static str,
) -> Result<(MmapRaw, Region), MapError> {
    let map = MmapOptions::new().len(expected).map_raw(&fd).map_err(|error| MapError::Kernel(what, error))?;
    let base = NonNull::new(map.as_mut_ptr()).ok_or(MapError::Header(what))?;
    // SAFETY: mapped shared, readable and writable, page-aligned and `expected` bytes long (and the file cannot shrink);
    // the region and all that is borrowed from it stay in the FunctionMemory that owns the mapping.
    let region = unsafe { Region::new(base, expected) };
    Ok((map, region))
}

/// Bytes of a memory, which stay.
pub(crate) fn sealed_bytes(fd: BorrowedFd<'_>, what: &'static str) -> Result<u64, MapError> {
    let kernel = |error: rustix::io::Errno| MapError::Kernel(what, error.into());
    // A memory that can shrink would kill us with SIGBUS at the next access.
    match fcntl_get_seals(fd) {
        Ok(seals) if seals.contains(SealFlags::SHRINK) => {}
        Ok(_) | Err(rustix::io::Errno::INVAL) => return Err(MapError::Unsealed(what)),
        Err(error) => return Err(kernel(error)),
    }
    Ok(u64::try_from(fstat(fd).map_err(kernel)?.st_size).unwrap_or(0))
}
