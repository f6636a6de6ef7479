//! Files: the calls that give out a descriptor which is none of ours. A number that we still have in use shows that ours was
//! closed by a system call that we did not see; from then on the number is the file's.
#![allow(unsafe_code, clippy::missing_safety_doc, missing_docs)]

use libc::{c_char, c_int, c_uint, sigset_t};

use crate::{real, socket};

/// The mode of open(2), a variadic argument, is fixed here: on x86-64 and aarch64 Linux both are passed alike.
macro_rules! given_out {
    ($($name:ident($($arg:ident: $ty:ty),*);)*) => {
        $(
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $ty),*) -> c_int {
                // SAFETY: the application's arguments, unchanged.
                socket::appeared(unsafe { real::$name($($arg),*) })
            }
        )*
    };
}

given_out! {
    open(path: *const c_char, flags: c_int, mode: c_uint);
    open64(path: *const c_char, flags: c_int, mode: c_uint);
    openat(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint);
    openat64(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint);
    __open_2(path: *const c_char, flags: c_int);
    __open64_2(path: *const c_char, flags: c_int);
    __openat_2(dir: c_int, path: *const c_char, flags: c_int);
    __openat64_2(dir: c_int, path: *const c_char, flags: c_int);
    creat(path: *const c_char, mode: c_uint);
    creat64(path: *const c_char, mode: c_uint);
    eventfd(value: c_uint, flags: c_int);
    timerfd_create(clock: c_int, flags: c_int);
    inotify_init();
    inotify_init1(flags: c_int);
    memfd_create(name: *const c_char, flags: c_uint);
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn signalfd(fd: c_int, mask: *const sigset_t, flags: c_int) -> c_int {
    // SAFETY: the application's arguments, unchanged.
    let new = unsafe { real::signalfd(fd, mask, flags) };
    // With a descriptor it changes that one.
    if fd < 0 { socket::appeared(new) } else { new }
}
