//! Options that a placeholder with a face ([`crate::faces`]) does not have yet. A connection in user space has no use for them, and to give
//! its descriptor another file takes system calls; so they are a word of the handle, until a file of its own is made.
//!
//! These are switches: on or off is all there is to them, whatever order they are set in. A word of a handle that has no face means nothing.
//!
//! `unsafe` is allowed here: the application's values.
#![allow(unsafe_code)]

use core::ffi::c_void;
use core::sync::atomic::Ordering;

use libc::{IPPROTO_TCP, SOL_SOCKET};

use crate::buffers::is_nowhere;
use crate::handle::{Handle, Kind, touched};
use crate::sock::Sock;
use crate::{faces, options};

/// Bit `n` of the word: the switch was set. Bit `n + 16`: to on.
const SWITCHES: [(i32, i32); 4] = [
    (IPPROTO_TCP, libc::TCP_NODELAY),
    (IPPROTO_TCP, libc::TCP_CORK),
    (SOL_SOCKET, libc::SO_KEEPALIVE),
    (SOL_SOCKET, libc::SO_REUSEADDR),
];
/// The bit of `O_NONBLOCK`. Of a connection, [`Sock::nonblock`] is what counts.
const NONBLOCKING: u32 = 4;
const ON: u32 = 16;

fn place(level: i32, name: i32) -> Option<u32> {
    let at = SWITCHES.iter().position(|switch| *switch == (level, name))?;
    u32::try_from(at).ok()
}

/// What the word says of a switch.
fn read(word: u32, place: u32) -> Option<bool> {
    (word >> place & 1 != 0).then_some(word >> (place + ON) & 1 != 0)
}

fn with(word: u32, place: u32, on: bool) -> u32 {
    let others = word & !(1 << (place + ON));
    others | 1 << place | u32::from(on) << (place + ON)
}

/// False: the handle has no face, or not any more; its file is to be asked.
fn put(fd: i32, h: &Handle, place: u32, on: bool) -> bool {
    if !h.was(touched::COMMON) {
        return false;
    }
    // Another thread may close it meanwhile, and the handle be another socket's.
    let Some(_pinned) = h.pin().filter(|_| faces::stands_for(fd, h)) else { return false };
    let _ = h.lazy.fetch_update(Ordering::SeqCst, Ordering::Relaxed, |word| Some(with(word, place, on)));
    // SeqCst, both: pairs with `faces::alone`: it sees the switch, or we see here that there is a file.
    h.touched.load(Ordering::SeqCst) & touched::COMMON != 0
}

/// setsockopt(2). False: it is nothing for us.
pub fn set(fd: i32, h: &Handle, (level, name): (i32, i32), value: *const c_void, len: u32) -> bool {
    let Some(place) = place(level, name) else { return false };
    if (len as usize) < size_of::<i32>() || is_nowhere(value) {
        return false;
    }
    // SAFETY: the application's value, of at least that length (checked).
    let on = unsafe { value.cast::<i32>().read_unaligned() } != 0;
    put(fd, h, place, on)
}

/// `F_SETFL` (fcntl(2)), of which `O_NONBLOCK` is all that changes. False: it is nothing for us.
pub fn set_nonblocking(fd: i32, h: &Handle, on: bool) -> bool {
    if let Some(sock) = connection(h) {
        // First: who makes a file for it looks here after it has seen that something was set.
        sock.nonblock.store(u32::from(on), Ordering::Relaxed);
    }
    put(fd, h, NONBLOCKING, on)
}

/// What it is as a connection. One that was disconnected has been another's since.
fn connection(h: &Handle) -> Option<&'static Sock> {
    h.sock().filter(|_| h.kind() == Kind::Stream)
}

/// A switch that is set, but not in the file.
pub fn get(h: &Handle, level: i32, name: i32) -> Option<bool> {
    let known = || read(h.lazy.load(Ordering::SeqCst), place(level, name)?);
    h.was(touched::COMMON).then(known).flatten()
}

/// Whether a socket that has a face is non-blocking; `None`: its file says that.
pub fn is_nonblocking(h: &Handle) -> Option<bool> {
    h.was(touched::COMMON).then(|| nonblocking(h, h.lazy.load(Ordering::SeqCst))).flatten()
}

/// The same, when the word was that.
fn nonblocking(h: &Handle, word: u32) -> Option<bool> {
    connection(h).map(Sock::is_nonblocking).or_else(|| read(word, NONBLOCKING))
}

/// The socket `h`, which nobody else has yet, was opened with these flags of socket(2).
pub fn begin(h: &Handle, flags: i32) {
    h.lazy.store(with(0, NONBLOCKING, flags & libc::SOCK_NONBLOCK != 0), Ordering::Relaxed);
}

/// What was set on a file for a handle.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    word: u32,
    nonblocking: Option<bool>,
}

impl Copied {
    /// Of a new file, which looks like the face.
    pub const NOTHING: Copied = Copied { word: 0, nonblocking: None };
}

/// Sets all that is set of `h` on `to`, but for what is `copied`. What is now.
pub fn copy(h: &Handle, to: i32, copied: Copied) -> Copied {
    let word = h.lazy.load(Ordering::SeqCst);
    let now = Copied { word, nonblocking: nonblocking(h, word) };
    for (place, (level, name)) in (0..).zip(SWITCHES) {
        if let Some(on) = read(now.word, place).filter(|on| read(copied.word, place) != Some(*on)) {
            options::set_kernel_flag(to, level, name, on);
        }
    }
    match now.nonblocking.filter(|_| now.nonblocking != copied.nonblocking) {
        Some(true) => options::set_kernel_nonblocking(to),
        Some(false) => options::set_kernel_blocking(to),
        None => {}
    }
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_is_what_it_was_set_to_last() {
        let last = NONBLOCKING;
        assert_eq!(SWITCHES.len(), last as usize, "each has a bit of its own");
        for place in 0..=last {
            let on = with(0, place, true);
            assert_eq!((read(0, place), read(on, place)), (None, Some(true)));
            assert_eq!(read(with(on, place, false), place), Some(false));
            for other in (0..=last).filter(|other| *other != place) {
                assert_eq!(read(on, other), None);
                assert_eq!(read(with(with(on, other, true), place, false), other), Some(true));
            }
        }
    }
}
