//! Pipes: made, and what only the kernel can do with them.
#![allow(unsafe_code, clippy::missing_safety_doc, missing_docs)]

use libc::{c_int, c_uint, iovec, size_t, ssize_t};

use crate::sys::keep_errno;
use crate::{overlay, real};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pipe(fds: *mut c_int) -> c_int {
    // SAFETY: the application's arguments, unchanged; so in every pass-through below.
    unsafe { pipe2(fds, 0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pipe2(fds: *mut c_int, flags: c_int) -> c_int {
    keep_errno(|| {
        // SAFETY: as above.
        let r = unsafe { real::pipe2(fds, flags) };
        if r == 0 {
            // SAFETY: the kernel has written both.
            overlay::pipe_made(unsafe { [*fds, *fds.add(1)] }, flags);
        }
        r
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn tee(input: c_int, out: c_int, n: size_t, flags: c_uint) -> ssize_t {
    overlay::never(input);
    overlay::never(out);
    // SAFETY: as above.
    unsafe { real::tee(input, out, n, flags) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsplice(fd: c_int, iov: *const iovec, n: size_t, flags: c_uint) -> ssize_t {
    overlay::never(fd);
    // SAFETY: as above.
    unsafe { real::vmsplice(fd, iov, n, flags) }
}
