//! Where channels live: arenas ([`crate::arenas`]) with their rings.
//!
//! ```text
//! 0        Channel[1024]
//! 196608   rings: 64 KiB for each
//! ```
//! It is sparse: a ring that was never used costs nothing, and one whose channel is gone is given back.
//!
//! `unsafe` is allowed here: views of what is mapped.
#![allow(unsafe_code)]

use rustix::mm::Advice;

use super::channel::{CAPACITY, Channel};
use crate::arenas::Arenas;
use crate::places::Places;

/// Pipes that one process makes and that are open at the same time.
const CHANNELS_MAX: usize = 1024;
const RINGS_OFFSET: usize = CHANNELS_MAX * size_of::<Channel>();
const BYTES: usize = RINGS_OFFSET + CHANNELS_MAX * CAPACITY;
/// The first rings keep their memory for the next channel in their place.
const KEPT: u32 = 8;

const _: () = assert!(RINGS_OFFSET.is_multiple_of(65_536));

/// Where channels live.
pub static CHANNELS: Arenas = Arenas::new(c"ipc-direct-pipes", BYTES);
static PLACES: Places = Places::new(CHANNELS_MAX);

/// A fresh channel, or `None` if all are in use.
pub fn allocate() -> Option<&'static Channel> {
    let base = CHANNELS.own()?;
    PLACES.candidates().find_map(|at| {
        let at = u32::try_from(at).ok()?;
        place(base, at).filter(|channel| channel.claim(at))
    })
}

fn place(base: *mut u8, at: u32) -> Option<&'static Channel> {
    if at as usize >= CHANNELS_MAX {
        return None;
    }
    // SAFETY: inside the arena; any bytes are a valid Channel, shared and never unmapped.
    unsafe { base.cast::<Channel>().add(at as usize).as_ref() }
}

/// The channel at a place of an arena.
pub fn at(index: usize, at: u32) -> Option<&'static Channel> {
    place(CHANNELS.base(index)?, at).filter(|channel| channel.index() == at)
}

/// First byte of a channel's ring.
#[inline(always)]
pub fn data(channel: &Channel) -> Option<*mut u8> {
    let index = channel.index() as usize;
    if index >= CHANNELS_MAX {
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
