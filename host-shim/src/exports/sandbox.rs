//! Programs that give up system calls (seccomp(2)): what we need some for is done before. (`syscall` is in [`super::raw`].)
#![allow(unsafe_code, clippy::missing_safety_doc, missing_docs)]

use libc::{c_int, c_ulong};

use crate::{process, real, sys};

/// Before a filter is set: who has put off attaching could not do it later.
pub fn entering() {
    if process::is_announced() {
        let saved = sys::errno();
        process::is_known();
        sys::set_errno(saved);
    }
}

/// The variable arguments are fixed here: on x86-64 and aarch64 Linux both are passed alike, and there are four at most.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int {
    if option == libc::PR_SET_SECCOMP {
        entering();
    }
    // SAFETY: the application's arguments, unchanged.
    unsafe { real::prctl(option, a, b, c, d) }
}
