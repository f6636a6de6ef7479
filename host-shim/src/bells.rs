//! Bells: what wakes exactly one sleeper among the processes and threads that share a wire (SPEC 6.8).
//!
//! A bell is a datagram socket with an abstract name that only says "bell" and a random number. The number stands in the
//! words that the sleeper announces itself in, so whoever wakes it needs neither a descriptor of it nor the agent. A bell that
//! can't be rung (its process is dead, in another namespace, or its queue full) is no loss: then the wire is rung.

use core::sync::atomic::{AtomicI32, Ordering};

use ring::wake::{self, EVERYBODY};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::{fds, process, sys};

/// Numbers tried for a new bell: a taken one is one in 2^32.
const TRIES: u32 = 4;

/// What this process rings bells with.
static RINGER: AtomicI32 = AtomicI32::new(-1);

/// Our socket of that kind, among our high descriptors. `None`: no descriptor, or it would be in another network namespace than
/// our peers.
fn socket() -> Option<i32> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let new = || rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None);
    let fd = fds::made(new).ok()?;
    if process::is_home(fd) {
        return Some(fd);
    }
    fds::discard(fd);
    None
}

fn address(number: u32) -> Option<SocketAddrUnix> {
    SocketAddrUnix::new_abstract_name(&wake::bell_name(number)).ok()
}

/// A bell of our own: its descriptor and number. (-1, [`EVERYBODY`]) without: its sleeper hears the wires only.
pub fn hang() -> (i32, u32) {
    const NONE: (i32, u32) = (-1, EVERYBODY);
    let Some(fd) = socket() else { return NONE };
    for _ in 0..TRIES {
        let [a, b, c, d, ..] = sys::random().to_ne_bytes();
        let number = u32::from_ne_bytes([a, b, c, d]);
        if number != EVERYBODY
            && address(number).is_some_and(|name| rustix::net::bind(sys::borrow(fd), &name).is_ok())
        {
            return (fd, number);
        }
    }
    fds::discard(fd);
    NONE
}

/// Rings a bell that a peer has named. False: the wire must do.
pub fn ring(number: u32) -> bool {
    let mut ringer = RINGER.load(Ordering::Relaxed);
    if ringer < 0 {
        let Some(new) = socket() else { return false };
        if RINGER.compare_exchange(-1, new, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            fds::discard(new);
        }
        ringer = RINGER.load(Ordering::Relaxed);
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    address(number).is_some_and(|name| rustix::net::sendto(sys::borrow(ringer), &[1], flags, &name).is_ok())
}

/// Takes a ring out of a bell of ours; false: there was none. One that stays in there wakes nobody again. A bell that has
/// filled up with those makes its peers ring the wire, and who hears that takes all of them.
pub fn silence(fd: i32) -> bool {
    rustix::net::recv(sys::borrow(fd), &mut [0u8; 1], RecvFlags::DONTWAIT).is_ok()
}

/// `fd` was what we ring with, and is the application's now.
pub fn lost(fd: i32) {
    let _ = RINGER.compare_exchange(fd, -1, Ordering::AcqRel, Ordering::Relaxed);
}
