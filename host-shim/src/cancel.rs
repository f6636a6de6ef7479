//! pthread_cancel(3): the calls that libc makes cancellation points are such when they are ours, too (pthreads(7)).
//!
//! A thread is cancelled at the start of a call, where nothing is held, or in its sleep, where what is held is written down
//! ([`crate::holds`]); never in between, so that no ring is left half written. Sleeps that libc's own calls make
//! (ppoll, epoll_pwait) are cancellation points by themselves.
//!
//! The frames that libc unwinds then are ours from the exported function to the sleep: this library is built with `panic = "abort"`, so
//! they have unwind tables, but nothing to run.
//!
//! `unsafe` is allowed here: calls to libc.
#![allow(unsafe_code)]

use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, Ordering};

const DISABLE: c_int = 1;
const ASYNCHRONOUS: c_int = 1;

unsafe extern "C" {
    fn pthread_testcancel();
    fn pthread_setcanceltype(kind: c_int, old: *mut c_int) -> c_int;
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
}

/// Some thread was cancelled in this process: only then anybody asks libc.
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// pthread_cancel(3) is about to be called.
pub fn requested() {
    // Relaxed: a thread that learns of it a little later is cancelled by a later call, or in its sleep.
    REQUESTED.store(true, Ordering::Relaxed);
}

/// At the start of a call that is a cancellation point.
#[inline(always)]
pub fn point() {
    if REQUESTED.load(Ordering::Relaxed) {
        // SAFETY: nothing of ours is held.
        unsafe { pthread_testcancel() }
    }
}

/// Runs a sleep in the kernel, in which the thread may be cancelled. Nothing but the system call belongs in there.
pub fn asleep<T>(sleep: impl FnOnce() -> T) -> T {
    let mut kind = 0;
    // SAFETY: only changes this thread's own state, and may end it: what is held is written down.
    unsafe { pthread_setcanceltype(ASYNCHRONOUS, &raw mut kind) };
    let result = sleep();
    // SAFETY: as above.
    unsafe { pthread_setcanceltype(kind, core::ptr::null_mut()) };
    result
}

/// Runs a call that is no cancellation point, though its parts are.
pub fn disabled<T>(call: impl FnOnce() -> T) -> T {
    let mut state = 0;
    // SAFETY: only changes this thread's own state.
    unsafe { pthread_setcancelstate(DISABLE, &raw mut state) };
    let result = call();
    // SAFETY: as above.
    unsafe { pthread_setcancelstate(state, core::ptr::null_mut()) };
    result
}
