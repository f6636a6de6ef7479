//! Settings: the `IPC_DIRECT_*` variables, read once when the library is loaded.
//!
//! `unsafe` is allowed here: reading the environment as C strings.
#![allow(unsafe_code)]

use core::ffi::CStr;
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};

/// How much the shim says on standard error: nothing, errors, or also one line when it attaches or stays out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum Log {
    /// Nothing (default).
    Off,
    /// What went wrong.
    Error,
    /// Also attach, and why not.
    Info,
}

static LOG: AtomicU32 = AtomicU32::new(0);
static LEASE: AtomicI32 = AtomicI32::new(-1);
static SPIN_US_MAX: AtomicU32 = AtomicU32::new(SPIN_US_DEFAULT);
/// Longest busy wait before a thread sleeps, in microseconds.
const SPIN_US_DEFAULT: u32 = 50;
const SPIN_US_LIMIT: u32 = 10_000;

/// A variable's value, while it is not changed (only at start).
pub fn variable(name: &CStr) -> Option<&'static [u8]> {
    // SAFETY: `name` is a C string; the result is null or a C string of the environment, which is used at once.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: not null, so a C string.
    Some(unsafe { CStr::from_ptr(value) }.to_bytes())
}

/// A decimal number.
pub fn number(bytes: &[u8]) -> Option<u32> {
    core::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Reads the environment. What can't be understood keeps its default and is said if logging is on.
pub fn load() {
    let level = match variable(c"IPC_DIRECT_LOG") {
        Some(b"error") => 1,
        Some(b"info") => 2,
        _ => 0,
    };
    LOG.store(level, Ordering::Relaxed);
    if let Some(text) = variable(c"IPC_DIRECT_SPIN_US") {
        match number(text) {
            Some(n) => SPIN_US_MAX.store(n.min(SPIN_US_LIMIT), Ordering::Relaxed),
            None => log(Log::Error, &["IPC_DIRECT_SPIN_US is not a number; using the default"]),
        }
    }
}

/// `ipc-direct run --require`: rather not start than run unaccelerated.
pub fn is_required() -> bool {
    variable(c"IPC_DIRECT_REQUIRE") == Some(b"1")
}

/// The descriptor that `ipc-direct run` left open to keep the card alive is ours, not the application's.
pub fn adopt_lease() {
    let Some(fd) = variable(c"IPC_DIRECT_LEASE_FD").and_then(number).and_then(|n| i32::try_from(n).ok())
    else {
        return;
    };
    let is_socket = rustix::fs::fstat(crate::sys::borrow(fd))
        .is_ok_and(|s| rustix::fs::FileType::from_raw_mode(s.st_mode) == rustix::fs::FileType::Socket);
    if is_socket {
        crate::table::set_internal(fd);
        LEASE.store(fd, Ordering::Relaxed);
    }
}

/// The lease's descriptor, or -1.
pub fn lease() -> i32 {
    LEASE.load(Ordering::Relaxed)
}

/// `fd` is the application's now: if it was the lease, there is none any more.
pub fn lost(fd: i32) {
    let _ = LEASE.compare_exchange(fd, -1, Ordering::AcqRel, Ordering::Relaxed);
}

/// Longest busy wait in microseconds; 0: sleep at once.
pub fn spin_us_max() -> u32 {
    SPIN_US_MAX.load(Ordering::Relaxed)
}

/// One line on standard error, if the level asks for it; errno is preserved because rustix does not touch it.
pub fn log(level: Log, parts: &[&str]) {
    let on = match LOG.load(Ordering::Relaxed) {
        0 => Log::Off,
        1 => Log::Error,
        _ => Log::Info,
    };
    if level == Log::Off || level > on {
        return;
    }
    say(parts);
}

/// One line on standard error, whatever the level.
pub fn say(parts: &[&str]) {
    let mut line = [0u8; 256];
    let text = parts.iter().flat_map(|p| p.as_bytes()).take(240);
    let mut n = 0;
    for b in b"ipc-direct: ".iter().chain(text).chain(b"\n") {
        if let Some(place) = line.get_mut(n) {
            *place = *b;
            n += 1;
        }
    }
    let _ = rustix::io::write(crate::sys::borrow(2), line.get(..n).unwrap_or(b""));
}
