//! Which descriptor is what: one word for each descriptor number.
//!
//! The table is private to the process (fork copies it, as it copies the kernel's own).

use core::sync::atomic::{AtomicU32, Ordering};

use crate::handle::{self, Handle};

/// Descriptors above this number are left to the kernel.
pub const FDS_MAX: usize = 1 << 20;

const NONE: u32 = 0;
/// The shim's own descriptor: invisible to the application.
const INTERNAL: u32 = u32::MAX;

static TABLE: [AtomicU32; FDS_MAX] = [const { AtomicU32::new(NONE) }; FDS_MAX];
/// One past the highest number ever entered, so that scans are short.
static USED: AtomicU32 = AtomicU32::new(0);

fn entry(fd: i32) -> Option<&'static AtomicU32> {
    TABLE.get(usize::try_from(fd).ok()?)
}

/// What `fd` is, if it is one of ours.
#[inline(always)]
pub fn get(fd: i32) -> Option<&'static Handle> {
    // Acquire: pairs with the Release in `set`: the handle's fields are there.
    let value = entry(fd)?.load(Ordering::Acquire);
    if value == NONE || value == INTERNAL {
        return None;
    }
    handle::by_index(value - 1)
}

/// True for a number that we have an entry for.
#[inline(always)]
pub fn is_ours(fd: i32) -> bool {
    entry(fd).is_some_and(|e| e.load(Ordering::Relaxed) != NONE)
}

/// True for the shim's own descriptors.
pub fn is_internal(fd: i32) -> bool {
    entry(fd).is_some_and(|e| e.load(Ordering::Relaxed) == INTERNAL)
}

fn store(fd: i32, value: u32) -> bool {
    let Some(e) = entry(fd) else { return false };
    e.store(value, Ordering::Release);
    if value != NONE {
        USED.fetch_max(fd.unsigned_abs() + 1, Ordering::Relaxed);
    }
    true
}

/// Enters `fd` as a descriptor of `handle`, which already counts it. False: the number is too high.
pub fn set(fd: i32, handle: &Handle) -> bool {
    store(fd, handle.index() + 1)
}

/// Marks `fd` as the shim's own.
pub fn set_internal(fd: i32) -> bool {
    store(fd, INTERNAL)
}

/// Takes `fd` out; what it was, once.
pub fn remove(fd: i32) -> Option<&'static Handle> {
    let e = entry(fd)?;
    let value = e.load(Ordering::Relaxed);
    if value == NONE || value == INTERNAL {
        return None;
    }
    // AcqRel: of two threads that close the same number, one gets the handle.
    if e.compare_exchange(value, NONE, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return None;
    }
    handle::by_index(value - 1)
}

/// Forgets one of the shim's own descriptors.
pub fn remove_internal(fd: i32) {
    if is_internal(fd) {
        store(fd, NONE);
    }
}

/// The lowest descriptor of a handle.
pub fn find(h: &Handle) -> Option<i32> {
    let value = h.index() + 1;
    (0..used()).find(|fd| entry(*fd).is_some_and(|e| e.load(Ordering::Relaxed) == value))
}

/// One past the highest number that may be entered.
pub fn used() -> i32 {
    i32::try_from(USED.load(Ordering::Relaxed)).unwrap_or(i32::MAX)
}
