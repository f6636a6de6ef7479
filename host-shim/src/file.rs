//! stdio on descriptors of ours. libc's own `FILE` reads and writes with libc's internal functions, which we never see; a `FILE`
//! made by fopencookie(3) calls back, and its callbacks call our `read` and `write`.
//!
//! Two ways lead here: `fdopen`, and a standard stream whose descriptor becomes one of ours (inherited by exec, or put there
//! by `dup2` as inetd does): then the variable `stdin`, `stdout` or `stderr` gets a stream of this kind. The descriptor number
//! is all that such a stream knows: if something else stands behind the number later, our `read` and `write` pass it on.
//! They are streams of bytes: glibc has no wide characters (`fputws`) for streams with callbacks.
//!
//! `unsafe` is allowed here: libc's `FILE` is C's.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int, c_long, c_void};
use core::ptr::{self, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering};

use libc::{off64_t, size_t, ssize_t};
use rustix::fs::OFlags;

use crate::exports::{close, read, write};
use crate::handle::{Handle, Kind, touched};
use crate::sys::{self, Errno, Result};
use crate::{imports, table};

/// glibc's `struct _IO_FILE`, as its `<bits/types/struct_FILE.h>` publishes it (the layout is part of its ABI: old macros
/// such as `putc` reached into it).
#[repr(C)]
pub struct File {
    flags: c_int,
    read_ptr: *mut u8,
    read_end: *mut u8,
    read_base: *mut u8,
    write_base: *mut u8,
    write_ptr: *mut u8,
    write_end: *mut u8,
    other_buffers: [*mut c_char; 5],
    markers: *mut c_void,
    chain: *mut c_void,
    fileno: c_int,
    flags2: c_int,
    old_offset: c_long,
    column: u16,
    vtable_offset: i8,
    short_buffer: c_char,
    lock: *mut c_void,
    offset: i64,
    codecvt: *mut c_void,
    wide_data: *mut c_void,
    freeres: [*mut c_void; 2],
    pad: usize,
    /// Below 0: a stream of bytes; above: of wide characters; 0: not decided yet.
    mode: c_int,
    unused: [c_char; 20],
    /// Behind `struct _IO_FILE`: which functions serve the stream.
    functions: *const c_void,
}

const _: () = {
    assert!(core::mem::offset_of!(File, fileno) == 112);
    assert!(core::mem::offset_of!(File, wide_data) == 160);
    assert!(core::mem::offset_of!(File, mode) == 192);
    assert!(core::mem::offset_of!(File, functions) == 216);
};

/// Bits of [`File::flags`]: `_IO_UNBUFFERED`, `_IO_LINE_BUF`.
const UNBUFFERED: c_int = 0x2;
const LINE_BUFFERED: c_int = 0x200;

/// What glibc puts into [`File::wide_data`] of a stream that can't have any.
const NO_WIDE_DATA: *mut c_void = ptr::without_provenance_mut(usize::MAX);

/// `cookie_io_functions_t`.
#[repr(C)]
struct Functions {
    read: extern "C" fn(*mut c_void, *mut c_char, size_t) -> ssize_t,
    write: extern "C" fn(*mut c_void, *const c_char, size_t) -> ssize_t,
    seek: extern "C" fn(*mut c_void, *mut off64_t, c_int) -> c_int,
    close: extern "C" fn(*mut c_void) -> c_int,
}

unsafe extern "C" {
    fn fopencookie(cookie: *mut c_void, mode: *const c_char, functions: Functions) -> *mut File;
    fn fflush(file: *mut File) -> c_int;
    fn setvbuf(file: *mut File, buffer: *mut c_char, mode: c_int, size: size_t) -> c_int;
    fn fwrite(data: *const u8, size: size_t, n: size_t, file: *mut File) -> size_t;
    fn ungetc(c: c_int, file: *mut File) -> c_int;
    fn __fpurge(file: *mut File);

    static mut stdin: *mut File;
    static mut stdout: *mut File;
    static mut stderr: *mut File;
}

/// Set in the cookie of a stream that stands in for a standard one.
const STANDARD: usize = 1 << 32;

fn descriptor(cookie: *mut c_void) -> c_int {
    c_int::try_from(cookie.addr() & (STANDARD - 1)).unwrap_or(-1)
}

extern "C" fn read_some(cookie: *mut c_void, to: *mut c_char, n: size_t) -> ssize_t {
    // SAFETY: libc's buffer of `n` bytes.
    unsafe { read(descriptor(cookie), to.cast(), n) }
}

/// As libc's own stream: everything, or up to the first error.
extern "C" fn write_all(cookie: *mut c_void, from: *const c_char, n: size_t) -> ssize_t {
    let mut done = 0;
    while done < n {
        // SAFETY: libc's buffer of `n` bytes, of which `done` are written.
        let r = unsafe { write(descriptor(cookie), from.add(done).cast(), n - done) };
        match usize::try_from(r) {
            Ok(more) if more > 0 => done += more,
            _ => break,
        }
    }
    done.cast_signed()
}

extern "C" fn seek(cookie: *mut c_void, offset: *mut off64_t, whence: c_int) -> c_int {
    // Asked of the kernel: something that can seek may stand behind the number by now.
    // SAFETY: libc's own variable; lseek64 is not a symbol of ours.
    unsafe {
        *offset = libc::lseek64(descriptor(cookie), *offset, whence);
        if *offset < 0 { -1 } else { 0 }
    }
}

extern "C" fn close_stream(cookie: *mut c_void) -> c_int {
    let fd = descriptor(cookie);
    if cookie.addr() & STANDARD != 0 {
        give_back(fd);
    }
    // SAFETY: the stream's own descriptor.
    unsafe { close(fd) }
}

/// Must stdio on `fd` come to us? Yes for what is or may become ours.
pub fn concerns(fd: c_int) -> bool {
    table::get(fd).is_some_and(|h: &Handle| match h.kind() {
        Kind::Kernel => h.is_candidate() && (!h.was(touched::CONNECTED) || h.was(touched::YOUNG)),
        Kind::Free | Kind::Epoll => false,
        _ => true,
    })
}

/// fdopen(3) of a descriptor of ours.
///
/// # Errors
/// As fdopen(3): `EINVAL` for a mode that the descriptor does not allow.
pub fn open(fd: c_int, mode: &CStr) -> Result<*mut File> {
    let text = mode.to_bytes();
    let both = text.contains(&b'+');
    let access = rustix::fs::fcntl_getfl(sys::borrow(fd))? & OFlags::RWMODE;
    let wanted = match text.first() {
        Some(b'r' | b'w' | b'a') if both => OFlags::RDWR,
        Some(b'r') => OFlags::RDONLY,
        Some(b'w' | b'a') => OFlags::WRONLY,
        _ => return Err(Errno(libc::EINVAL)),
    };
    if access != OFlags::RDWR && access != wanted {
        return Err(Errno(libc::EINVAL));
    }
    make(fd, 0, mode)
}

fn make(fd: c_int, mark: usize, mode: &CStr) -> Result<*mut File> {
    let cookie = ptr::without_provenance_mut(usize::try_from(fd).unwrap_or(0) | mark);
    let functions = Functions { read: read_some, write: write_all, seek, close: close_stream };
    // SAFETY: a C string, and functions of ours that live as long as the process.
    let file = unsafe { fopencookie(cookie, mode.as_ptr(), functions) };
    // SAFETY: null, or a fresh stream that nobody else has.
    let Some(new) = (unsafe { file.as_mut() }) else { return Err(sys::errno()) };
    // fileno(3) is asked by everybody who mixes streams and descriptors.
    new.fileno = fd;
    WITH_CALLBACKS.store(new.functions.cast_mut(), Ordering::Relaxed);
    Ok(file)
}

/// [`File::functions`] of streams with callbacks, once there was one.
static WITH_CALLBACKS: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

/// Before fclose(3) of a stream: one of libc's own closes its descriptor without our `close`.
///
/// # Safety
/// `file` is a valid stream.
pub unsafe fn closing(file: *mut File) {
    // SAFETY: contract.
    let Some(f) = (unsafe { file.as_ref() }) else { return };
    let ours = f.functions == WITH_CALLBACKS.load(Ordering::Relaxed).cast_const();
    if !ours && table::get(f.fileno).is_some() {
        // SAFETY: contract.
        unsafe { fflush(file) };
        crate::socket::closing(f.fileno);
    }
}

/// A standard stream: the variable, and what it was before it became a stream of ours.
struct Standard {
    variable: *mut *mut File,
    mode: &'static CStr,
    adopted: &'static AtomicPtr<File>,
    original: &'static AtomicPtr<File>,
}

static ADOPTED: [AtomicPtr<File>; 3] = [const { AtomicPtr::new(null_mut()) }; 3];
static ORIGINAL: [AtomicPtr<File>; 3] = [const { AtomicPtr::new(null_mut()) }; 3];

fn standard(fd: c_int) -> Option<Standard> {
    let (variable, mode) = match fd {
        0 => (&raw mut stdin, c"r"),
        1 => (&raw mut stdout, c"w"),
        2 => (&raw mut stderr, c"w"),
        _ => return None,
    };
    let index = usize::try_from(fd).ok()?;
    Some(Standard { variable, mode, adopted: ADOPTED.get(index)?, original: ORIGINAL.get(index)? })
}

/// The standard stream of `fd` comes to us; so does every other stream that [`concerns`] says so of.
pub fn serves(fd: c_int) -> bool {
    // SAFETY: libc's variable, as in `adopt`.
    standard(fd).is_some_and(|std| unsafe { *std.variable } == std.adopted.load(Ordering::Relaxed))
}

/// Descriptors 0, 1 and 2 that are ours get streams of ours. Called when the library is loaded.
pub fn adopt_standard_streams() {
    for fd in 0..3 {
        adopt(fd);
    }
}

/// After `fd` became something else: if it is a standard descriptor and ours, its stream must come to us. What stands in the
/// old stream's buffer moves along, as it would have stayed there.
pub fn adopt(fd: c_int) {
    let Some(std) = standard(fd).filter(|_| concerns(fd)) else { return };
    // A pipe is as good in the kernel; what the program writes by wide characters has no other way there.
    if table::get(fd).is_some_and(|h| h.kind() == Kind::Overlay) && imports::wide_streams() {
        return;
    }
    // SAFETY: libc's variable, valid all the time; reading or changing it races with other threads that use it, as the
    // application's own dup2(2) onto its descriptor does.
    let old = unsafe { *std.variable };
    // SAFETY: libc's stream, or the application's in its place.
    let Some(was) = (unsafe { old.as_ref() }) else { return };
    if old == std.adopted.load(Ordering::Relaxed) || was.fileno != fd {
        return;
    }
    let Ok(new) = make(fd, STANDARD, std.mode) else { return };
    let buffering = match was.flags {
        f if f & UNBUFFERED != 0 => Some(libc::_IONBF),
        f if f & LINE_BUFFERED != 0 => Some(libc::_IOLBF),
        _ => None,
    };
    // SAFETY: two valid streams; the buffer's pointers are the old stream's own, in order.
    unsafe {
        if let Some(how) = buffering {
            setvbuf(new, null_mut(), how, 0);
        }
        take_over_buffer(was, new);
        __fpurge(old);
        *std.variable = new;
    }
    std.original.store(old, Ordering::Relaxed);
    std.adopted.store(new, Ordering::Relaxed);
}

/// Bytes that were printed and not written yet, or read and not taken yet.
///
/// # Safety
/// Both are valid streams.
unsafe fn take_over_buffer(was: &File, new: *mut File) {
    let bytes = |from: *mut u8, to: *mut u8| to.addr().saturating_sub(from.addr());
    // SAFETY: contract; the ranges are inside the old stream's buffer.
    unsafe {
        let unwritten = bytes(was.write_base, was.write_ptr);
        if unwritten > 0 {
            fwrite(was.write_base, 1, unwritten, new);
        }
        for back in 1..=bytes(was.read_ptr, was.read_end) {
            ungetc(c_int::from(*was.read_end.sub(back)), new);
        }
    }
}

/// A standard stream of ours is closed: the variable gets libc's own again, closed like any stream after fclose(3).
fn give_back(fd: c_int) {
    let Some(std) = standard(fd) else { return };
    let ours = std.adopted.swap(null_mut(), Ordering::Relaxed);
    let original = std.original.load(Ordering::Relaxed);
    // SAFETY: as in `adopt`; libc's own streams are never freed.
    unsafe {
        if let Some(original) = original.as_mut().filter(|_| *std.variable == ours) {
            original.fileno = -1;
            *std.variable = original;
        }
    }
}

/// Before freopen(3) puts a file behind `file`: libc replaces descriptor and callbacks by itself, so both stop being ours.
///
/// # Safety
/// `file` is a valid stream.
pub unsafe fn reopening(file: *mut File) {
    // SAFETY: contract.
    let Some(f) = (unsafe { file.as_mut() }) else { return };
    let fd = f.fileno;
    if f.wide_data == NO_WIDE_DATA {
        // freopen(3) would follow it (glibc 2.36 does so for every stream of fopencookie's).
        f.wide_data = null_mut();
    }
    if table::get(fd).is_none() {
        return;
    }
    // SAFETY: contract.
    unsafe { fflush(file) };
    crate::socket::closing(fd);
    if let Some(std) = standard(fd) {
        let _ = std.adopted.compare_exchange(file, null_mut(), Ordering::Relaxed, Ordering::Relaxed);
    }
}
