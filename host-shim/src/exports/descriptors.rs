//! Descriptors: closed, duplicated, and their flags.
#![allow(unsafe_code, clippy::missing_safety_doc, missing_docs)]

use core::ffi::c_ulong;

use libc::{c_int, c_uint};

use super::{fail, number};
use crate::sys::{self, Errno, keep_errno};
use crate::{faces, options, overlay, real, socket, table};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    if table::is_internal(fd) {
        // The application never got this number: as for any other that is not open.
        return fail(Errno(libc::EBADF));
    }
    keep_errno(|| {
        socket::closing(fd);
        // SAFETY: the application's arguments, unchanged; so in every pass-through below.
        unsafe { real::close(fd) }
    })
}

/// The highest descriptor number.
const LAST: c_uint = c_uint::MAX >> 1;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    if first > last {
        return fail(Errno(libc::EINVAL));
    }
    let end = last.min(table::used().cast_unsigned());
    let mut from = first;
    for n in first..=end {
        let fd = n.cast_signed();
        if table::is_internal(fd) {
            // Around our own descriptors.
            if n > from {
                // SAFETY: as above.
                let r = unsafe { real::close_range(from, n - 1, flags) };
                if r != 0 {
                    return r;
                }
            }
            from = n + 1;
        } else if flags & libc::CLOSE_RANGE_CLOEXEC.cast_signed() == 0 {
            socket::closing(fd);
        }
    }
    if from > last {
        return 0;
    }
    // SAFETY: as above.
    unsafe { real::close_range(from, last, flags) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn closefrom(first: c_int) {
    // SAFETY: as above.
    unsafe { close_range(first.max(0).cast_unsigned(), LAST, 0) };
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup(fd: c_int) -> c_int {
    if let Some(refused) = faces::refused(fd) {
        return refused;
    }
    // SAFETY: as above.
    let new = unsafe { real::dup(fd) };
    if new >= 0 {
        socket::duplicated(fd, new);
    }
    new
}

/// dup2(2) and dup3(2): `to` is closed only if the duplication will succeed.
fn duplicate_onto(fd: c_int, to: c_int, call: impl FnOnce() -> c_int) -> c_int {
    if table::is_internal(to) {
        return fail(Errno(libc::EBUSY));
    }
    keep_errno(|| {
        if fd != to && sys::is_open(fd) {
            if let Some(refused) = faces::refused(fd) {
                return refused;
            }
            socket::closing(to);
        }
        let new = call();
        if new >= 0 && fd != to {
            socket::duplicated(fd, new);
        }
        new
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup2(fd: c_int, to: c_int) -> c_int {
    // SAFETY: as above.
    duplicate_onto(fd, to, || unsafe { real::dup2(fd, to) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup3(fd: c_int, to: c_int, flags: c_int) -> c_int {
    // SAFETY: as above.
    duplicate_onto(fd, to, || unsafe { real::dup3(fd, to, flags) })
}

/// fcntl(2), as the libc crate does not have them.
const F_SETSIG: c_int = 10;
const F_SETOWN_EX: c_int = 15;
/// Flags of a pipe that the ring does not honour: packets, and signals for readiness.
const KERNEL_FLAGS: c_ulong = (libc::O_DIRECT | libc::O_ASYNC).cast_unsigned() as c_ulong;

/// The variadic argument is fixed here: on x86-64 and aarch64 Linux both are passed alike.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fcntl(fd: c_int, cmd: c_int, arg: c_ulong) -> c_int {
    if let Some(answer) = table::get(fd).and_then(|h| options::fcntl(fd, h, cmd, arg)) {
        return answer;
    }
    match cmd {
        libc::F_SETPIPE_SZ | libc::F_SETOWN | F_SETSIG | F_SETOWN_EX => overlay::never(fd),
        libc::F_SETFL if arg & KERNEL_FLAGS != 0 => overlay::never(fd),
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => {
            if let Some(refused) = faces::refused(fd) {
                return refused;
            }
        }
        _ => {}
    }
    // SAFETY: as above.
    let r = unsafe { real::fcntl(fd, cmd, arg) };
    if r >= 0 && (cmd == libc::F_DUPFD || cmd == libc::F_DUPFD_CLOEXEC) {
        socket::duplicated(fd, r);
    }
    r
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fcntl64(fd: c_int, cmd: c_int, arg: c_ulong) -> c_int {
    // SAFETY: as above; off_t has 64 bits on every target of ours, so both are one function.
    unsafe { fcntl(fd, cmd, arg) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, arg: c_ulong) -> c_int {
    match table::get(fd).and_then(|h| options::ioctl(fd, h, request, arg)) {
        Some(answer) => number(answer),
        None => {
            if request == libc::FIOASYNC {
                overlay::never(fd);
            } else {
                overlay::settle(fd);
            }
            // SAFETY: as above.
            unsafe { real::ioctl(fd, request, arg) }
        }
    }
}
