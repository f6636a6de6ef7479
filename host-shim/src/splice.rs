//! splice(2) between a connection and a pipe of the kernel's, and sendfile(2) into a pipe: copied, where the kernel moves
//! pages. (tee, vmsplice and copy_file_range take no sockets; the kernel says so itself.)
//!
//! `unsafe` is allowed here: libc's poll.
#![allow(unsafe_code)]

use rustix::fs::{FileType, OFlags};
use rustix::io::{Errno as RustixErrno, ReadWriteFlags};

use crate::buffers::Buffers;
use crate::handle::{Handle, Stream};
use crate::sys::{self, Errno, Result};
use crate::{io, real};

/// Bytes copied at a time.
const CHUNK_BYTES: usize = 16_384;
/// A pipe that polls as writable takes so many without blocking.
const SLOT_BYTES: usize = 4096;

/// What splice(2) would be asked of us: `fd` is a pipe, open for `access`. Anything else is the kernel's to refuse.
pub fn is_pipe(fd: i32, access: OFlags) -> bool {
    let fd = sys::borrow(fd);
    rustix::fs::fstat(fd).is_ok_and(|f| FileType::from_raw_mode(f.st_mode) == FileType::Fifo)
        && rustix::fs::fcntl_getfl(fd).is_ok_and(|fl| {
            let mode = fl & OFlags::RWMODE;
            mode == access || mode == OFlags::RDWR
        })
}

fn is_nonblocking(fd: i32) -> bool {
    rustix::fs::fcntl_getfl(sys::borrow(fd)).is_ok_and(|fl| fl.contains(OFlags::NONBLOCK))
}

/// Waits until the pipe has `events`, or is at its end.
fn wait_for_pipe(pipe: i32, events: i16, nonblocking: bool) -> Result<()> {
    loop {
        let mut set = libc::pollfd { fd: pipe, events, revents: 0 };
        // SAFETY: one pollfd of ours.
        match unsafe { real::poll(&raw mut set, 1, if nonblocking { 0 } else { -1 }) } {
            0 => return Err(Errno(libc::EAGAIN)),
            -1 => {
                let e = sys::errno();
                if e.0 != libc::EINTR || !sys::handlers_restart() {
                    return Err(e);
                }
            }
            _ if events == libc::POLLOUT && set.revents & libc::POLLERR != 0 => {
                sys::raise_sigpipe();
                return Err(Errno(libc::EPIPE));
            }
            _ => return Ok(()),
        }
    }
}

/// What a pipe takes for sure: bytes, in whole slots.
struct Room {
    pipe: i32,
    known: usize,
}

impl Room {
    fn of(pipe: i32) -> Room {
        let fd = sys::borrow(pipe);
        let empty = rustix::io::ioctl_fionread(fd).is_ok_and(|n| n == 0);
        let size = rustix::pipe::fcntl_getpipe_size(fd).unwrap_or(SLOT_BYTES);
        Room { pipe, known: if empty { size } else { 0 } }
    }

    /// Bytes that fit now; 0: the pipe is full.
    fn now(&mut self) -> usize {
        if self.known < SLOT_BYTES && wait_for_pipe(self.pipe, libc::POLLOUT, true).is_ok() {
            self.known = SLOT_BYTES;
        }
        self.known
    }

    fn used(&mut self, bytes: usize) {
        self.known = self.known.saturating_sub(bytes.next_multiple_of(SLOT_BYTES));
    }
}

/// splice(2) from a connection into a pipe. What is taken from the connection is what the pipe has room for, so nothing is lost if
/// two threads do it at once. The number of bytes; 0: the end of the stream.
///
/// # Errors
/// As splice(2).
pub fn to_pipe(h: &Handle, s: &Stream, pipe: i32, n: usize, nonblocking: bool) -> Result<usize> {
    wait_for_pipe(pipe, libc::POLLOUT, nonblocking || is_nonblocking(pipe))?;
    let mut first = 0u8;
    // Waits as the socket's flag and time limit say, and tells how the stream has ended.
    if io::receive(h, s, &Buffers::one(&raw mut first, 1), libc::MSG_PEEK)? == 0 {
        return Ok(0);
    }
    let mut room = Room::of(pipe);
    let mut bytes = [0u8; CHUNK_BYTES];
    let mut done = 0;
    while done < n {
        let fits = room.now().min(n - done).min(CHUNK_BYTES);
        if fits == 0 {
            break;
        }
        match io::receive(h, s, &Buffers::one(bytes.as_mut_ptr(), fits), libc::MSG_DONTWAIT) {
            Ok(0) => break,
            Ok(got) => {
                write_all(pipe, bytes.get(..got).unwrap_or(&[]))?;
                room.used(got);
                done += got;
            }
            Err(Errno(libc::EAGAIN)) => break,
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        }
    }
    if done > 0 { Ok(done) } else { Err(Errno(libc::EAGAIN)) }
}

/// Blocks only if another writer took the room that was there.
fn write_all(pipe: i32, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(sys::borrow(pipe), bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or(&[]),
            Err(RustixErrno::AGAIN) => wait_for_pipe(pipe, libc::POLLOUT, false)?,
            Err(RustixErrno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// splice(2) from a pipe into a connection: straight into the ring. The number of bytes; 0: the pipe is at its end.
///
/// # Errors
/// As splice(2).
pub fn from_pipe(h: &Handle, s: &Stream, pipe: i32, n: usize, nonblocking: bool) -> Result<usize> {
    let nonblocking = nonblocking || is_nonblocking(pipe);
    loop {
        wait_for_pipe(pipe, libc::POLLIN, nonblocking)?;
        match io::send_with(h, s, n, |room, _| read_now(pipe, room)) {
            // Another reader was faster.
            Err(Errno(libc::EAGAIN)) if !nonblocking && !s.sock.is_nonblocking() => {}
            result => return result,
        }
    }
}

/// Reads what is in the pipe, without waiting for more.
fn read_now(pipe: i32, room: &mut [u8]) -> Result<usize> {
    let fd = sys::borrow(pipe);
    let slices = &mut [std::io::IoSliceMut::new(room)];
    match rustix::io::preadv2(fd, slices, u64::MAX, ReadWriteFlags::NOWAIT) {
        // Pipes of older kernels can't be asked that way.
        Err(RustixErrno::OPNOTSUPP) => {
            wait_for_pipe(pipe, libc::POLLIN, true)?;
            Ok(rustix::io::readv(fd, slices)?)
        }
        result => Ok(result?),
    }
}
