//! Where channels live: a memfd of this process, which children inherit mapped.
//!
//! ```text
//! 0        Channel[1024]
//! 196608   rings: 64 KiB for each
//! ```
//! It is sparse: a ring that was never used costs nothing, and one whose channel is gone is given back.
//!
//! `unsafe` is allowed here: the mapping.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicPtr, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::channel::{CAPACITY, Channel};
use crate::places::Places;

/// Pipes that one process makes and that are open at the same time.
const CHANNELS: usize = 1024;
const RINGS_OFFSET: usize = CHANNELS * size_of::<Channel>();
const BYTES: usize = RINGS_OFFSET + CHANNELS * CAPACITY;
/// The first rings keep their memory for the next channel in their place.
const KEPT: u32 = 8;

const _: () = assert!(RINGS_OFFSET.is_multiple_of(65_536));

static OWN: AtomicPtr<Channel> = AtomicPtr::new(core::ptr::null_mut());
static PLACES: Places = Places::new(CHANNELS);

fn own() -> Option<*mut Channel> {
    let base = OWN.load(Ordering::Acquire);
    if base.is_null() { make() } else { Some(base) }
}

fn make() -> Option<*mut Channel> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create(c"ipc-direct-pipes", flags).ok()?;
    rustix::fs::ftruncate(&fd, BYTES as u64).ok()?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).ok()?;
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::SHARED | MapFlags::NORESERVE;
    // SAFETY: a fresh mapping at an address of the kernel's choice, of a file that cannot shrink.
    let new = unsafe { rustix::mm::mmap(core::ptr::null_mut(), BYTES, prot, flags, &fd, 0) }.ok()?.cast();
    match OWN.compare_exchange(core::ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Some(new),
        Err(other) => {
            // SAFETY: our own mapping, which nobody has seen.
            let _ = unsafe { rustix::mm::munmap(new.cast(), BYTES) };
            Some(other)
        }
    }
}

/// After fork, in the child: new channels go to an arena of its own. Inherited ones stay where they are.
pub fn leave() {
    OWN.store(core::ptr::null_mut(), Ordering::Release);
}

/// A fresh channel, or `None` if all are in use.
pub fn allocate() -> Option<&'static Channel> {
    let base = own()?;
    PLACES.candidates().find_map(|at| {
        // SAFETY: `at` is below CHANNELS; any bytes are a valid Channel, shared and never unmapped.
        let channel = unsafe { base.add(at).as_ref() }?;
        channel.claim(u32::try_from(at).ok()?).then_some(channel)
    })
}

/// First byte of a channel's ring.
#[inline(always)]
pub fn data(channel: &Channel) -> Option<*mut u8> {
    let index = channel.index() as usize;
    if index >= CHANNELS {
        return None;
    }
    // SAFETY: the channel stands at `index` of its arena, so the ring is in the same mapping.
    unsafe {
        let base = core::ptr::from_ref(channel).sub(index).cast::<u8>().cast_mut();
        Some(base.add(RINGS_OFFSET + index * CAPACITY))
    }
}

/// Gives the memory of a channel's ring back.
pub fn give_back(channel: &Channel) {
    if channel.index() < KEPT {
        return;
    }
    if let Some(data) = data(channel) {
        // SAFETY: the ring of a channel that nobody uses any more, whole pages.
        let _ = unsafe { rustix::mm::madvise(data.cast(), CAPACITY, Advice::LinuxRemove) };
    }
}
