//! The ways to leave a call of ours for good: cancelling its thread, and jumping out of a signal handler that interrupted it.
//! (`longjmp` and its relatives never return; Rust need not know.)
#![allow(unsafe_code, clippy::missing_safety_doc, missing_docs)]

use libc::{c_int, pthread_t};

use crate::{cancel, holds, real};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_cancel(thread: pthread_t) -> c_int {
    cancel::requested();
    // SAFETY: the application's arguments, unchanged; so in every pass-through below.
    unsafe { real::pthread_cancel(thread) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn longjmp(target: *mut u64, value: c_int) {
    // SAFETY: as above; setjmp(3) has filled it in.
    unsafe {
        holds::jumping(target);
        real::longjmp(target, value);
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn _longjmp(target: *mut u64, value: c_int) {
    // SAFETY: as above.
    unsafe {
        holds::jumping(target);
        real::_longjmp(target, value);
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn siglongjmp(target: *mut u64, value: c_int) {
    // SAFETY: as above.
    unsafe {
        holds::jumping(target);
        real::siglongjmp(target, value);
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn __longjmp_chk(target: *mut u64, value: c_int) {
    // SAFETY: as above.
    unsafe {
        holds::jumping(target);
        real::__longjmp_chk(target, value);
    }
}
