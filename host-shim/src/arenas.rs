//! Memory that relatives share: memfds that children inherit by fork, and executed programs by their descriptors.
//!
//! Three kinds of things live in such arenas: [`Sock`]s ([`SOCKS`]), the rings of pipes ([`crate::overlay`]) and what relatives share of
//! epoll sets ([`crate::epoll`]). A process makes new
//! ones in an arena of its own; those of its ancestors stay mapped.
//!
//! `unsafe` is allowed here: mappings, and views of what is mapped.
#![allow(unsafe_code)]

use core::ffi::CStr;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use ring::image::ArenaRef;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::places::Places;
use crate::sock::Sock;
use crate::{fds, sys};

/// Arenas of one kind that one process sees: its own, and those of ancestors.
const ARENAS_MAX: usize = 64;
/// What keeps others from making a mapping of ours fault.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

struct Arena {
    base: AtomicPtr<u8>,
    fd: AtomicI32,
    inode: AtomicU64,
}

/// The arenas of one kind.
pub struct Arenas {
    name: &'static CStr,
    /// Length of each; no two kinds have the same.
    bytes: usize,
    table: [Arena; ARENAS_MAX],
    /// Index plus one of this process's own arena.
    own: AtomicUsize,
}

impl Arenas {
    /// Of so many bytes each; the name is for `/proc/PID/maps`.
    pub const fn new(name: &'static CStr, bytes: usize) -> Self {
        let table = [const {
            Arena {
                base: AtomicPtr::new(core::ptr::null_mut()),
                fd: AtomicI32::new(-1),
                inode: AtomicU64::new(0),
            }
        }; ARENAS_MAX];
        Arenas { name, bytes, table, own: AtomicUsize::new(0) }
    }

    /// First byte of the arena for this process's new things; made at first use, zeroed.
    pub fn own(&self) -> Option<*mut u8> {
        let index = match self.own.load(Ordering::Acquire).checked_sub(1) {
            Some(index) => index,
            None => self.make_own()?,
        };
        self.base(index)
    }

    /// First byte of an arena: mapped, shared, and never unmapped.
    pub fn base(&self, index: usize) -> Option<*mut u8> {
        // Acquire: pairs with the Release in `enter`.
        let base = self.table.get(index)?.base.load(Ordering::Acquire);
        (!base.is_null()).then_some(base)
    }

    fn make_own(&self) -> Option<usize> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = fds::made(|| rustix::fs::memfd_create(self.name, flags)).ok()?;
        let memory = sys::borrow(fd);
        let sized = rustix::fs::ftruncate(memory, self.bytes as u64)
            .and_then(|()| rustix::fs::fcntl_add_seals(memory, SEALS));
        let Some(index) = sized.ok().and_then(|()| self.enter(fd)) else {
            fds::discard(fd);
            return None;
        };
        match self.own.compare_exchange(0, index + 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Some(index),
            // Another thread was first; ours stays, and is used when a child looks for room.
            Err(other) => other.checked_sub(1),
        }
    }

    /// Maps the memfd `fd`, which must be an arena of this kind; it is kept open from now on.
    fn enter(&self, fd: i32) -> Option<usize> {
        let stat = rustix::fs::fstat(sys::borrow(fd)).ok()?;
        let seals = rustix::fs::fcntl_get_seals(sys::borrow(fd)).ok()?;
        if usize::try_from(stat.st_size).ok()? != self.bytes || !seals.contains(SEALS) {
            return None;
        }
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice, of a file that cannot shrink.
        let new = unsafe { mmap(core::ptr::null_mut(), self.bytes, prot, flags, sys::borrow(fd), 0) }.ok()?;
        for (index, arena) in self.table.iter().enumerate() {
            let claimed = arena.fd.compare_exchange(-1, fd, Ordering::AcqRel, Ordering::Relaxed);
            if claimed.is_ok() {
                arena.inode.store(stat.st_ino, Ordering::Relaxed);
                arena.base.store(new.cast(), Ordering::Release);
                return Some(index);
            }
        }
        // SAFETY: our own mapping, which nobody has seen.
        let _ = unsafe { munmap(new, self.bytes) };
        None
    }

    /// After fork, in the child: new things go to an arena of its own.
    pub fn leave_own(&self) {
        self.own.store(0, Ordering::Release);
    }

    /// Index of the arena that an address is in, and the offset there.
    pub fn locate(&self, address: usize) -> Option<(usize, usize)> {
        self.table.iter().enumerate().find_map(|(index, arena)| {
            let base = arena.base.load(Ordering::Acquire) as usize;
            let offset = address.checked_sub(base).filter(|_| base != 0)?;
            (offset < self.bytes).then_some((index, offset))
        })
    }

    /// What names an arena to relatives, whose own index of it may be another.
    pub fn inode(&self, index: usize) -> Option<u64> {
        self.table.get(index).map(|arena| arena.inode.load(Ordering::Relaxed))
    }

    /// How to name an arena to a new program: `None` if its descriptor was closed behind our back.
    pub fn reference(&self, index: usize) -> Option<ArenaRef> {
        let arena = self.table.get(index)?;
        let (fd, inode) = (arena.fd.load(Ordering::Acquire), arena.inode.load(Ordering::Relaxed));
        let same = rustix::fs::fstat(sys::borrow(fd)).is_ok_and(|s| s.st_ino == inode);
        same.then_some(ArenaRef { fd: u32::try_from(fd).ok()?, inode })
    }

    /// Takes over an arena that the program before us left open. `None`: it is none of this kind.
    pub fn inherit(&self, left: ArenaRef) -> Option<usize> {
        let fd = i32::try_from(left.fd).ok()?;
        if rustix::fs::fstat(sys::borrow(fd)).ok()?.st_ino != left.inode {
            return None;
        }
        let index = self.enter(fd)?;
        crate::table::set_internal(fd);
        Some(index)
    }
}

/// Connections and listeners that one process makes itself.
const ARENA_SOCKS: usize = 65_536;

/// Where [`Sock`]s live.
pub static SOCKS: Arenas = Arenas::new(c"ipc-direct-sockets", ARENA_SOCKS * size_of::<Sock>());
static PLACES: Places = Places::new(ARENA_SOCKS);

fn socks(base: *mut u8) -> &'static [Sock] {
    // SAFETY: mapped for ARENA_SOCKS Socks, for which any bytes are a valid value, shared and never unmapped.
    unsafe { core::slice::from_raw_parts(base.cast(), ARENA_SOCKS) }
}

/// The arena for this process's new sockets; made at first use.
pub fn own() -> Option<&'static [Sock]> {
    SOCKS.own().map(socks)
}

/// Places of [`own`] to try.
pub fn places() -> impl Iterator<Item = usize> {
    PLACES.candidates()
}

/// Index of the arena that `sock` is in, and its place there.
pub fn locate(sock: &Sock) -> Option<(usize, u32)> {
    let (index, offset) = SOCKS.locate(core::ptr::from_ref(sock) as usize)?;
    Some((index, u32::try_from(offset / size_of::<Sock>()).ok()?))
}

/// The socket at a place of an arena.
pub fn at(index: usize, place: u32) -> Option<&'static Sock> {
    SOCKS.base(index).map(socks)?.get(place as usize)
}
