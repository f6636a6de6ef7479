//! stdio: the few functions through which a stream gets its descriptor, or that go around streams. The rest of stdio comes to
//! us through the streams' callbacks (see [`crate::file`]).
#![allow(unsafe_code, clippy::missing_safety_doc, missing_docs)]

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr::null_mut;

use super::{fail, write};
use crate::file::{self, File};
use crate::{fork, real, socket, sys, table};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdopen(fd: c_int, mode: *const c_char) -> *mut File {
    if !file::concerns(fd) || mode.is_null() {
        // SAFETY: the application's arguments, unchanged; so in every pass-through below.
        return unsafe { real::fdopen(fd, mode) };
    }
    // SAFETY: the application's C string.
    match file::open(fd, unsafe { CStr::from_ptr(mode) }) {
        Ok(file) => file,
        Err(e) => {
            fail(e);
            null_mut()
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn freopen(path: *const c_char, mode: *const c_char, file: *mut File) -> *mut File {
    // SAFETY: as above.
    unsafe {
        file::reopening(file);
        real::freopen(path, mode, file)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn freopen64(path: *const c_char, mode: *const c_char, file: *mut File) -> *mut File {
    // SAFETY: as above; off_t has 64 bits on every target of ours, so both are one function.
    unsafe { freopen(path, mode, file) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fclose(file: *mut File) -> c_int {
    // SAFETY: as above.
    unsafe {
        file::closing(file);
        real::fclose(file)
    }
}

/// libc's puts /dev/null behind the standard descriptors by itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn daemon(stay: c_int, keep_open: c_int) -> c_int {
    // SAFETY: as above.
    let r = fork::as_daemon(|| unsafe { real::daemon(stay, keep_open) });
    if r == 0 && keep_open == 0 {
        for fd in 0..3 {
            socket::closing(fd);
        }
    }
    r
}

unsafe extern "C" {
    fn vasprintf(text: *mut *mut c_char, format: *const c_char, list: *mut c_void) -> c_int;
    fn __vasprintf_chk(
        text: *mut *mut c_char,
        flag: c_int,
        format: *const c_char,
        list: *mut c_void,
    ) -> c_int;
}

/// Writes what `print` makes of its argument's place to `fd`, and frees it.
fn print(fd: c_int, print: impl FnOnce(*mut *mut c_char) -> c_int) -> c_int {
    let mut text = null_mut();
    let n = print(&raw mut text);
    let Ok(len) = usize::try_from(n) else { return -1 };
    let mut done = 0;
    while done < len {
        // SAFETY: `len` bytes, of which `done` are written.
        let r = unsafe { write(fd, text.add(done).cast(), len - done) };
        match usize::try_from(r) {
            Ok(more) if more > 0 => done += more,
            _ => break,
        }
    }
    let saved = sys::errno();
    // SAFETY: vasprintf's own allocation.
    unsafe { libc::free(text.cast()) };
    sys::set_errno(saved);
    if done == len { n } else { -1 }
}

/// A `va_list` is passed as a pointer on x86-64 and aarch64 Linux.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdprintf(fd: c_int, format: *const c_char, list: *mut c_void) -> c_int {
    if table::get(fd).is_none() {
        // SAFETY: as above.
        return unsafe { real::vdprintf(fd, format, list) };
    }
    // SAFETY: as above.
    print(fd, |text| unsafe { vasprintf(text, format, list) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn __vdprintf_chk(
    fd: c_int,
    flag: c_int,
    format: *const c_char,
    list: *mut c_void,
) -> c_int {
    if table::get(fd).is_none() {
        // SAFETY: as above.
        return unsafe { real::__vdprintf_chk(fd, flag, format, list) };
    }
    // SAFETY: as above.
    print(fd, |text| unsafe { __vasprintf_chk(text, flag, format, list) })
}
