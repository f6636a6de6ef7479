//! Functions that install a signal's handler: libc's are given ours in its place (see [`handlers`]).
#![allow(unsafe_code, clippy::missing_safety_doc, missing_docs)]

use core::sync::atomic::{AtomicU64, Ordering};

use libc::{c_int, sighandler_t};

use crate::sys::{Errno, set_errno};
use crate::{handlers, real};

/// Signals whose handlers, by signal(2), interrupt system calls (siginterrupt(3)): a bit each, from 1 on.
static INTERRUPTS: AtomicU64 = AtomicU64::new(0);

fn bit(signal: c_int) -> Option<u64> {
    1u64.checked_shl(signal.cast_unsigned().wrapping_sub(1))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigaction(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    // SAFETY: the application's arguments, unchanged.
    unsafe { handlers::change(signal, new, old) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn __sigaction(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    // SAFETY: as above.
    unsafe { handlers::change(signal, new, old) }
}

/// BSD's, as libc's (signal(2)).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn signal(signal: c_int, handler: sighandler_t) -> sighandler_t {
    let Some(bit) = bit(signal).filter(|_| handler != libc::SIG_ERR) else {
        set_errno(Errno(libc::EINVAL));
        return libc::SIG_ERR;
    };
    let restarts = INTERRUPTS.load(Ordering::Relaxed) & bit == 0;
    // SAFETY: all zero is a valid action; both are ours, and so is the set.
    unsafe {
        let (mut new, mut old): (libc::sigaction, libc::sigaction) = core::mem::zeroed();
        new.sa_sigaction = handler;
        new.sa_flags = if restarts { libc::SA_RESTART } else { 0 };
        libc::sigaddset(&raw mut new.sa_mask, signal);
        if handlers::change(signal, &raw const new, &raw mut old) == 0 {
            old.sa_sigaction
        } else {
            libc::SIG_ERR
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn bsd_signal(number: c_int, handler: sighandler_t) -> sighandler_t {
    // SAFETY: as above.
    unsafe { signal(number, handler) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ssignal(number: c_int, handler: sighandler_t) -> sighandler_t {
    // SAFETY: as above.
    unsafe { signal(number, handler) }
}

/// What `install` says; the handler that it installs is the kernel's to call.
fn direct(signal: c_int, install: impl FnOnce() -> sighandler_t) -> sighandler_t {
    handlers::kernel_calls();
    handlers::shown(signal, install())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sysv_signal(signal: c_int, handler: sighandler_t) -> sighandler_t {
    // SAFETY: as above.
    direct(signal, || unsafe { real::sysv_signal(signal, handler) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn __sysv_signal(signal: c_int, handler: sighandler_t) -> sighandler_t {
    // SAFETY: as above.
    direct(signal, || unsafe { real::__sysv_signal(signal, handler) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigset(signal: c_int, handler: sighandler_t) -> sighandler_t {
    // SAFETY: as above.
    direct(signal, || unsafe { real::sigset(signal, handler) })
}

/// It also changes the handler that is there, by its flags alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn siginterrupt(signal: c_int, interrupts: c_int) -> c_int {
    // SAFETY: as above.
    let result = unsafe { real::siginterrupt(signal, interrupts) };
    if let Some(bit) = bit(signal).filter(|_| result == 0) {
        if interrupts != 0 {
            INTERRUPTS.fetch_or(bit, Ordering::Relaxed);
        } else {
            INTERRUPTS.fetch_and(!bit, Ordering::Relaxed);
        }
    }
    result
}
