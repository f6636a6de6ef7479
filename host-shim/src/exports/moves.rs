//! Data that goes from descriptor to descriptor: sendfile and splice.
#![allow(unsafe_code, clippy::missing_safety_doc, missing_docs)]

use libc::{c_int, c_uint, off_t, size_t, ssize_t};
use rustix::fs::OFlags;

use super::data::{ours, ours_to_write, written_by_kernel};
use super::length;
use crate::{cancel, io, overlay, real, splice};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile(out: c_int, input: c_int, offset: *mut off_t, n: size_t) -> ssize_t {
    overlay::never(out);
    // No cancellation point, unlike most.
    cancel::disabled(|| match (ours_to_write(out), ours(input)) {
        // SAFETY: the application's pointer, null or to an off_t.
        (Ok((h, s)), _) => length(io::send_file(h, &s, input, unsafe { offset.as_mut() }, n)),
        (Err(_), Ok((h, s))) if offset.is_null() && n > 0 && splice::is_pipe(out, OFlags::WRONLY) => {
            length(splice::to_pipe(h, &s, out, n, false))
        }
        // SAFETY: the application's arguments, unchanged.
        _ => written_by_kernel(out, unsafe { real::sendfile(out, input, offset, n) }),
    })
}

/// `SPLICE_F_MOVE`, `SPLICE_F_NONBLOCK`, `SPLICE_F_MORE`, `SPLICE_F_GIFT`.
const SPLICE_FLAGS: c_uint = 0xf;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn splice(
    input: c_int,
    input_offset: *mut off_t,
    out: c_int,
    output_offset: *mut off_t,
    n: size_t,
    flags: c_uint,
) -> ssize_t {
    let valid = n > 0 && input_offset.is_null() && output_offset.is_null() && flags & !SPLICE_FLAGS == 0;
    let nonblocking = flags & libc::SPLICE_F_NONBLOCK != 0;
    overlay::never(input);
    overlay::never(out);
    match (ours(input), ours_to_write(out)) {
        (Ok((h, s)), Err(_)) if valid && splice::is_pipe(out, OFlags::WRONLY) => {
            length(splice::to_pipe(h, &s, out, n, nonblocking))
        }
        (Err(_), Ok((h, s))) if valid && splice::is_pipe(input, OFlags::RDONLY) => {
            length(splice::from_pipe(h, &s, input, n, nonblocking))
        }
        // SAFETY: as above.
        _ => unsafe { real::splice(input, input_offset, out, output_offset, n, flags) },
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile64(out: c_int, input: c_int, offset: *mut off_t, n: size_t) -> ssize_t {
    // SAFETY: off_t has 64 bits on every target of ours.
    unsafe { sendfile(out, input, offset, n) }
}
