//! The system's calls, through libc's symbols.

use std::io::Error;

/// pipe2(2): reading and writing end.
pub fn pipe(flags: i32) -> [i32; 2] {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::pipe2(fds.as_mut_ptr(), flags) }, 0, "pipe2: {}", Error::last_os_error());
    fds
}

/// read(2): the number of bytes, or minus errno.
pub fn read(fd: i32, to: &mut [u8]) -> isize {
    // SAFETY: a buffer of that length.
    outcome(unsafe { libc::read(fd, to.as_mut_ptr().cast(), to.len()) })
}

/// write(2): the number of bytes, or minus errno.
pub fn write(fd: i32, from: &[u8]) -> isize {
    // SAFETY: a buffer of that length.
    outcome(unsafe { libc::write(fd, from.as_ptr().cast(), from.len()) })
}

/// A result, or minus errno.
pub fn outcome(result: isize) -> isize {
    if result < 0 { -(Error::last_os_error().raw_os_error().unwrap_or(0) as isize) } else { result }
}

/// Reads until `to` is full; false at the end of the file.
pub fn read_all(fd: i32, to: &mut [u8]) -> bool {
    let mut done = 0;
    while done < to.len() {
        match read(fd, &mut to[done..]) {
            0 => return false,
            n if n > 0 => done += n as usize,
            e => panic!("read: {e}"),
        }
    }
    true
}

/// Writes all of it.
pub fn write_all(fd: i32, from: &[u8]) {
    let mut done = 0;
    while done < from.len() {
        match write(fd, &from[done..]) {
            n if n > 0 => done += n as usize,
            e => panic!("write: {e}"),
        }
    }
}

/// close(2).
pub fn close(fd: i32) {
    // SAFETY: no memory involved.
    assert_eq!(unsafe { libc::close(fd) }, 0, "close({fd}): {}", Error::last_os_error());
}

/// Runs `child` in a forked process, which ends with its result. The pid.
pub fn fork(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child uses what fork(2) copied and ends without running destructors of the parent's.
    match unsafe { libc::fork() } {
        0 => {
            let status = child();
            // SAFETY: ends the process, without what the parent would do at its end.
            unsafe { libc::_exit(status) }
        }
        pid => {
            assert!(pid > 0, "fork: {}", Error::last_os_error());
            pid
        }
    }
}

/// How a child ended: its status, or minus the signal.
pub fn wait(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: room for the status.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid, "waitpid: {}", Error::last_os_error());
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) }
}

/// SIGKILL.
pub fn kill(pid: i32) {
    // SAFETY: a child of ours that was not waited for.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// SIGPIPE does nothing.
pub fn ignore_sigpipe() {
    // SAFETY: no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Sets or clears `O_NONBLOCK`.
pub fn set_nonblocking(fd: i32, on: bool) {
    let flags = if on { libc::O_NONBLOCK } else { 0 };
    // SAFETY: no memory involved.
    assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFL, flags) }, 0, "fcntl: {}", Error::last_os_error());
}

/// poll(2) of one descriptor: what it is ready for.
pub fn poll(fd: i32, events: i16, timeout_ms: i32) -> i16 {
    let mut p = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one element.
    let n = unsafe { libc::poll(&raw mut p, 1, timeout_ms) };
    assert!(n >= 0, "poll: {}", Error::last_os_error());
    p.revents
}

/// `FIONREAD`.
pub fn waiting(fd: i32) -> i32 {
    let mut n = -1;
    // SAFETY: room for an int.
    let r = unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut n) };
    assert_eq!(r, 0, "ioctl: {}", Error::last_os_error());
    n
}

/// Byte `i` of a stream that repeats nowhere near.
pub fn pattern(i: u64) -> u8 {
    (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// The next `len` bytes from position `from`.
pub fn bytes(from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64).map(pattern).collect()
}

/// A small generator, for lengths that vary.
pub struct Lengths(pub u64);

impl Lengths {
    /// From 1 to `max`.
    pub fn next(&mut self, max: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        1 + (self.0 >> 33) as usize % max
    }
}
