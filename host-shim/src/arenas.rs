//! Where [`Sock`]s live: memfds that children inherit by fork, and executed programs by their descriptors.
//!
//! A process makes new sockets in an arena of its own; those of its ancestors stay mapped.
//!
//! `unsafe` is allowed here: mappings, and views of what is mapped.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use ring::image::ArenaRef;
use rustix::fd::IntoRawFd;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::places::Places;
use crate::sock::Sock;
use crate::{fds, sys};

/// Connections and listeners that one process makes itself.
const ARENA_SOCKS: usize = 65_536;
const ARENA_BYTES: usize = ARENA_SOCKS * size_of::<Sock>();
/// Arenas that one process sees: its own, and those of ancestors.
const ARENAS_MAX: usize = 64;
/// What keeps others from making a mapping of ours fault.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

struct Arena {
    base: AtomicPtr<Sock>,
    fd: AtomicI32,
    inode: AtomicU64,
}

static ARENAS: [Arena; ARENAS_MAX] = [const {
    Arena { base: AtomicPtr::new(core::ptr::null_mut()), fd: AtomicI32::new(-1), inode: AtomicU64::new(0) }
}; ARENAS_MAX];
/// Index plus one of this process's own arena.
static OWN: AtomicUsize = AtomicUsize::new(0);
static PLACES: Places = Places::new(ARENA_SOCKS);

impl Arena {
    fn socks(&self) -> Option<&'static [Sock]> {
        // Acquire: pairs with the exchange in `enter`.
        let base = self.base.load(Ordering::Acquire);
        if base.is_null() {
            return None;
        }
        // SAFETY: mapped for ARENA_SOCKS Socks, for which any bytes are a valid value, shared and never unmapped.
        Some(unsafe { core::slice::from_raw_parts(base, ARENA_SOCKS) })
    }
}

/// The arena for this process's new sockets; made at first use.
pub fn own() -> Option<&'static [Sock]> {
    let index = match OWN.load(Ordering::Acquire).checked_sub(1) {
        Some(index) => index,
        None => make_own()?,
    };
    ARENAS.get(index)?.socks()
}

/// Places of [`own`] to try.
pub fn places() -> impl Iterator<Item = usize> {
    PLACES.candidates()
}

fn make_own() -> Option<usize> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create(c"ipc-direct-sockets", flags).ok()?;
    rustix::fs::ftruncate(&fd, ARENA_BYTES as u64).ok()?;
    rustix::fs::fcntl_add_seals(&fd, SEALS).ok()?;
    let fd = fds::adopt(fd.into_raw_fd());
    let Some(index) = enter(fd) else {
        fds::discard(fd);
        return None;
    };
    match OWN.compare_exchange(0, index + 1, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Some(index),
        // Another thread was first; ours stays, and is used when a child looks for room.
        Err(other) => other.checked_sub(1),
    }
}

/// Maps the memfd `fd`, which must be an arena; it is kept open from now on.
fn enter(fd: i32) -> Option<usize> {
    let stat = rustix::fs::fstat(sys::borrow(fd)).ok()?;
    let seals = rustix::fs::fcntl_get_seals(sys::borrow(fd)).ok()?;
    if usize::try_from(stat.st_size).ok()? != ARENA_BYTES || !seals.contains(SEALS) {
        return None;
    }
    let flags = MapFlags::SHARED | MapFlags::NORESERVE;
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a fresh mapping at an address of the kernel's choice, of a file that cannot shrink.
    let new = unsafe { mmap(core::ptr::null_mut(), ARENA_BYTES, prot, flags, sys::borrow(fd), 0) }.ok()?;
    for (index, arena) in ARENAS.iter().enumerate() {
        let claimed = arena.fd.compare_exchange(-1, fd, Ordering::AcqRel, Ordering::Relaxed);
        if claimed.is_ok() {
            arena.inode.store(stat.st_ino, Ordering::Relaxed);
            arena.base.store(new.cast(), Ordering::Release);
            return Some(index);
        }
    }
    // SAFETY: our own mapping, which nobody has seen.
    let _ = unsafe { munmap(new, ARENA_BYTES) };
    None
}

/// After fork, in the child: new sockets go to an arena of its own.
pub fn leave_own() {
    OWN.store(0, Ordering::Release);
}

/// Index of the arena that `sock` is in, and its place there.
pub fn locate(sock: &Sock) -> Option<(usize, u32)> {
    let address = core::ptr::from_ref(sock) as usize;
    ARENAS.iter().enumerate().find_map(|(index, arena)| {
        let base = arena.base.load(Ordering::Acquire) as usize;
        let place = address.checked_sub(base).filter(|_| base != 0)? / size_of::<Sock>();
        (place < ARENA_SOCKS).then_some((index, u32::try_from(place).ok()?))
    })
}

/// How to name an arena to a new program: `None` if its descriptor was closed behind our back.
pub fn reference(index: usize) -> Option<ArenaRef> {
    let arena = ARENAS.get(index)?;
    let (fd, inode) = (arena.fd.load(Ordering::Acquire), arena.inode.load(Ordering::Relaxed));
    let same = rustix::fs::fstat(sys::borrow(fd)).is_ok_and(|s| s.st_ino == inode);
    same.then_some(ArenaRef { fd: u32::try_from(fd).ok()?, inode })
}

/// Takes over an arena that the program before us left open.
pub fn inherit(left: ArenaRef) -> Option<usize> {
    let fd = i32::try_from(left.fd).ok()?;
    if rustix::fs::fstat(sys::borrow(fd)).ok()?.st_ino != left.inode {
        return None;
    }
    let index = enter(fd)?;
    crate::table::set_internal(fd);
    Some(index)
}

/// The socket at a place of an arena.
pub fn at(index: usize, place: u32) -> Option<&'static Sock> {
    ARENAS.get(index)?.socks()?.get(place as usize)
}
