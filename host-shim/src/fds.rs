//! The shim's own descriptors: moved to higher numbers than most programs use, so that the application gets the lowest free ones, and
//! marked in the table, so that it cannot close them by accident.

use core::ffi::CStr;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicI32, Ordering};

use rustix::fd::{IntoRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags, RawDir};
use rustix::process::{Resource, getrlimit};

use crate::lock::Lock;
use crate::{sys, table};

/// Held from where a descriptor is made to where it has its number, so that no other thread's takes the low one that one of ours
/// has for a moment. Nothing else is taken while this is.
static NUMBERING: Lock = Lock::new();

/// For the fork handlers, and for who makes a descriptor.
pub fn numbering() -> &'static Lock {
    &NUMBERING
}

/// A soft limit above this is not asked for: each fork(2) copies the kernel's table up to the highest number that is open.
const LIMIT_MAX: u64 = 1024;

/// What [`base`] was last; 0: not known, or no good any more.
static BASE: AtomicI32 = AtomicI32::new(0);

/// Our descriptors start at three quarters of the soft limit.
fn base() -> i32 {
    let known = BASE.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(LIMIT_MAX).clamp(64, LIMIT_MAX);
    let base = i32::try_from(limit / 4 * 3).unwrap_or(768);
    BASE.store(base, Ordering::Relaxed);
    base
}

/// As many of ours may be for one purpose: 64, or less if the soft limit is a low one.
pub fn share() -> usize {
    usize::try_from(base() / 12).unwrap_or(0)
}

/// A second descriptor of the file of `fd`, up there.
fn up(fd: i32) -> Option<i32> {
    let high = || rustix::io::fcntl_dupfd_cloexec(sys::borrow(fd), base()).ok();
    let retried = || {
        // The limit may be a lower one by now.
        BASE.store(0, Ordering::Relaxed);
        high()
    };
    high().or_else(retried).map(IntoRawFd::into_raw_fd)
}

/// What `make` makes, as one of ours.
///
/// # Errors
/// As `make`.
pub fn made<E>(make: impl FnOnce() -> Result<OwnedFd, E>) -> Result<i32, E> {
    let _numbering = NUMBERING.take();
    make().map(|fd| adopt(fd.into_raw_fd()))
}

/// Moves the descriptor `low` up, close-on-exec, and marks it as ours. The number it has from now on.
pub fn adopt(low: i32) -> i32 {
    let high = raise(low);
    table::set_internal(high);
    high
}

/// A second descriptor of the file of `fd`, one of ours. `None`: no room.
pub fn duplicate(fd: i32) -> Option<i32> {
    let high = up(fd)?;
    table::set_internal(high);
    Some(high)
}

/// As [`adopt`], unmarked: for what is closed in a moment, perhaps in a vfork child.
pub fn raise(low: i32) -> i32 {
    match up(low) {
        Some(high) => {
            sys::close(low);
            high
        }
        // No room up there: it stays where it is.
        None => low,
    }
}

/// Moves `low` to where `place` says that one of ours is, which is closed by that, or up if there is none. Another thread that
/// uses the number at this moment meets the old or the new one.
pub fn put(place: &AtomicI32, low: i32) {
    let old = place.load(Ordering::Relaxed);
    if old >= 0 && low >= 0 && sys::duplicate_onto(low, old) {
        sys::close(low);
    } else {
        place.store(adopt(low), Ordering::Relaxed);
    }
}

/// Closes one of ours.
pub fn discard(fd: i32) {
    if fd >= 0 {
        table::remove_internal(fd);
        sys::close(fd);
    }
}

/// `/proc/self/fd/<number>`, in `name`. `None`: it has no room for that.
pub fn path(fd: i32, name: &mut [u8]) -> Option<&CStr> {
    path_in(b"/proc/self/fd/", fd, name)
}

/// `/proc/self/fdinfo/<number>`, in `name`. `None`: it has no room for that.
pub fn info_path(fd: i32, name: &mut [u8]) -> Option<&CStr> {
    path_in(b"/proc/self/fdinfo/", fd, name)
}

fn path_in<'a>(directory: &[u8], fd: i32, name: &'a mut [u8]) -> Option<&'a CStr> {
    let mut digits = [0; 10];
    let number = sys::decimal(fd.unsigned_abs(), &mut digits);
    for (to, from) in name.iter_mut().zip(directory.iter().chain(number).chain(&[0])) {
        *to = *from;
    }
    CStr::from_bytes_until_nul(name).ok()
}

/// Every open descriptor that is not ours; the lowest numbers only, where /proc is not mounted.
pub fn each_open(mut found: impl FnMut(i32)) {
    let mut found = |fd| {
        if !table::is_internal(fd) {
            found(fd);
        }
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(dir) = rustix::fs::open(c"/proc/self/fd", flags, Mode::empty()) else {
        return (0..1024).for_each(found);
    };
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&dir, &mut buffer);
    while let Some(Ok(entry)) = entries.next() {
        let name = core::str::from_utf8(entry.file_name().to_bytes()).ok();
        if let Some(fd) = name.and_then(|n| n.parse().ok()) {
            found(fd);
        }
    }
}
