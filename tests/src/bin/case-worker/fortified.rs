//! What a program built with `_FORTIFY_SOURCE` calls instead of `read`, `recv`, `poll`, ...: the last argument but
//! the flags is the size of the buffer.
#![allow(unsafe_code)] // foreign declarations

use libc::{c_int, c_long, c_void, nfds_t, pollfd, sigset_t, size_t, sockaddr, socklen_t, ssize_t, timespec};

unsafe extern "C" {
    pub fn __read_chk(fd: c_int, buf: *mut c_void, n: size_t, size: size_t) -> ssize_t;
    pub fn __recv_chk(fd: c_int, buf: *mut c_void, n: size_t, size: size_t, flags: c_int) -> ssize_t;
    pub fn __recvfrom_chk(
        fd: c_int,
        buf: *mut c_void,
        n: size_t,
        size: size_t,
        flags: c_int,
        addr: *mut sockaddr,
        len: *mut socklen_t,
    ) -> ssize_t;
    pub fn __poll_chk(fds: *mut pollfd, n: nfds_t, timeout: c_int, size: size_t) -> c_int;
    pub fn __ppoll_chk(
        fds: *mut pollfd,
        n: nfds_t,
        timeout: *const timespec,
        mask: *const sigset_t,
        size: size_t,
    ) -> c_int;
    pub fn __fdelt_chk(fd: c_long) -> c_long;
}
