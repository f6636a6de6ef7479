//! Ports of connections that this process makes. A connection is known by its client's port, which the kernel reserves for us as long as a
//! socket is bound to it. Making and binding one takes longer than all the rest of a connection, so those of connections that are over are
//! used again: not before the other side has closed its end, too, and if there is a choice, after [`REST`], as Linux does on loopback
//! (`tcp_tw_reuse`).
//!
//! A connection whose placeholder is a socket of its own has its port there; this is for those with a face ([`crate::faces`]).
//!
//! `unsafe` is allowed here: libc's originals.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use core::time::Duration;

use ring::msg::ConnId;

use crate::handle::{self, Handle, Kind};
use crate::lock::{Guarded, Lock};
use crate::{fds, options, real, segments, sys};

/// In use and at rest, of each family, at most: see [`fds::share`]. More connections at a time have sockets of their own.
const PORTS_MAX: usize = 64;
/// How long a port rests, unless there are [`PORTS_MAX`].
const REST: Duration = Duration::from_secs(1);
/// See [`patience`].
const PATIENCE: Duration = Duration::from_micros(20);
/// Waits that are left out after one in vain.
const HURRIED: u32 = 256;
static HURRY: AtomicU32 = AtomicU32::new(0);
/// One that nobody wanted for so long (Linux's `TIME_WAIT`) is the kernel's again.
const UNUSED_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Resting {
    /// Bound to it: a descriptor of ours.
    fd: i32,
    number: u16,
    /// The last connection that had it.
    conn: ConnId,
    since: Duration,
}

/// What a connection to be gets.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Rested(Resting),
    /// There are as many as may be, and the next one's last connection is still open on the other side.
    Busy,
    /// One that the kernel chooses.
    Other,
    /// Nothing: there are enough connections that have one.
    None,
}

/// Ports of one family.
struct Pool {
    /// As many may be in use and at rest.
    most: usize,
    /// A queue: the one that rests for the longest time is at `first`.
    resting: [Resting; PORTS_MAX],
    first: usize,
    len: usize,
}

const NONE: Resting = Resting { fd: -1, number: 0, conn: ConnId(0), since: Duration::ZERO };

impl Pool {
    const NEW: Pool = Pool { most: PORTS_MAX, resting: [NONE; PORTS_MAX], first: 0, len: 0 };

    fn oldest(&self) -> Option<Resting> {
        self.resting.get(self.first).copied().filter(|_| self.len > 0)
    }

    fn pop(&mut self) -> Option<Resting> {
        let oldest = self.oldest()?;
        self.first = (self.first + 1) % PORTS_MAX;
        self.len -= 1;
        Some(oldest)
    }

    /// Gives it back if there is no room.
    fn push(&mut self, port: Resting) -> Option<Resting> {
        let room = self.len < self.most;
        let place = self.resting.get_mut((self.first + self.len) % PORTS_MAX).filter(|_| room);
        let Some(place) = place else { return Some(port) };
        *place = port;
        self.len += 1;
        None
    }

    fn is_full(&self, used: usize) -> bool {
        used + self.len >= self.most
    }

    /// The one that is next, if it has rested, and the last connection that had it `is_over`; `used`: by connections. What nobody wants is
    /// closed.
    fn next(&mut self, used: usize, now: Duration, is_over: impl Fn(ConnId) -> bool) -> Next {
        while let Some(oldest) = self.oldest() {
            let rested = now.saturating_sub(oldest.since);
            if rested <= UNUSED_MAX {
                let full = self.is_full(used);
                if (full || rested >= REST) && is_over(oldest.conn) {
                    return self.pop().map_or(Next::Other, Next::Rested);
                }
                return if full { Next::Busy } else { Next::Other };
            }
            fds::discard(oldest.fd);
            self.pop();
        }
        if self.is_full(used) { Next::None } else { Next::Other }
    }
}

static V4: Guarded<Pool> = Guarded::new(Pool::NEW);
static V6: Guarded<Pool> = Guarded::new(Pool::NEW);

/// Ports of connections, of either family. More of them come under the lock alone; who gives one up may hold other locks.
static USED: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

fn used_of(domain: i32) -> &'static AtomicUsize {
    let [v4, v6] = &USED;
    if domain == libc::AF_INET { v4 } else { v6 }
}

fn of(domain: i32) -> &'static Guarded<Pool> {
    if domain == libc::AF_INET { &V4 } else { &V6 }
}

/// As many may be in use and at rest.
fn most() -> usize {
    fds::share().min(PORTS_MAX)
}

/// As many connections as may have one have one. A hint, without the lock.
pub fn are_scarce(domain: i32) -> bool {
    used_of(domain).load(Ordering::Relaxed) >= most()
}

/// For the fork handlers.
pub fn locks() -> [&'static Lock; 2] {
    [V4.lock(), V6.lock()]
}

/// A port for a connection to be; given back when dropped.
pub struct Port {
    fd: i32,
    /// Its number.
    pub number: u16,
    domain: i32,
}

/// One of that family. `None`: there are too many, or the kernel has none. Signals are blocked: it takes a lock.
pub fn take(domain: i32) -> Option<Port> {
    let start = sys::now();
    let used = used_of(domain);
    loop {
        let mut pool = of(domain).take()?;
        pool.most = most();
        let now = sys::now();
        let port = match pool.next(used.load(Ordering::Relaxed), now, segments::is_over) {
            Next::Rested(rested) => Port { fd: rested.fd, number: rested.number, domain },
            Next::Other => bind(domain)?,
            Next::None => return None,
            Next::Busy if now - start > patience() => {
                // The kernel's again, as that of any socket that is closed, and another one in its place.
                fds::discard(pool.pop().map_or(-1, |p| p.fd));
                HURRY.store(HURRIED, Ordering::Relaxed);
                bind(domain)?
            }
            Next::Busy => {
                drop(pool);
                rustix::thread::sched_yield();
                continue;
            }
        };
        used.fetch_add(1, Ordering::Relaxed);
        return Some(port);
    }
}

/// How long to wait for the other side, which is that far behind: about as long as it takes to bind another one. A wait in vain is
/// the last one for a while.
fn patience() -> Duration {
    let hurry = HURRY.load(Ordering::Relaxed);
    if hurry == 0 {
        return PATIENCE;
    }
    HURRY.store(hurry - 1, Ordering::Relaxed);
    Duration::ZERO
}

fn bind(domain: i32) -> Option<Port> {
    let _numbering = fds::numbering().take();
    // SAFETY: no pointers.
    let fd = unsafe { real::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_TCP) };
    if fd < 0 {
        return None;
    }
    let Ok(name) = options::reserve_port(fd, domain) else {
        sys::close(fd);
        return None;
    };
    Some(Port { number: name.port, fd: fds::adopt(fd), domain })
}

impl Port {
    /// The connection `h` has it from now on.
    pub fn keep(self, h: &Handle) {
        h.kept.store(self.fd + 1, Ordering::Release);
        core::mem::forget(self);
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        rest(self.domain, self.fd, self.number, ConnId(0));
    }
}

fn rest(domain: i32, fd: i32, number: u16, conn: ConnId) {
    count_down(domain);
    let port = Resting { fd, number, conn, since: sys::now() };
    let left = of(domain).take().map_or(Some(port), |mut pool| pool.push(port));
    fds::discard(left.map_or(-1, |p| p.fd));
}

fn count_down(domain: i32) {
    let less = |used: usize| used.checked_sub(1);
    let _ = used_of(domain).fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
}

/// The connection `h` gives up the port that it has here, if any. `over`: no relative of ours has it either.
pub fn leave(h: &Handle, conn: ConnId, over: bool) {
    match h.sock().filter(|_| over) {
        Some(sock) => {
            if let Some(fd) = taken_from(h) {
                rest(h.family().0, fd, sock.addrs().0.port, conn);
            }
        }
        None => fds::discard(give_away(h).unwrap_or(-1)),
    }
}

/// The socket that is bound to the port of the connection `h`, if that is one of ours: the caller's to close from now on. Takes no lock.
pub fn give_away(h: &Handle) -> Option<i32> {
    let fd = taken_from(h)?;
    count_down(h.family().0);
    Some(fd)
}

fn taken_from(h: &Handle) -> Option<i32> {
    h.kept.swap(0, Ordering::AcqRel).checked_sub(1).filter(|fd| *fd >= 0)
}

/// Those at rest are the kernel's again: in a forked child they are the parent's. Were there any?
pub fn forget_all() -> bool {
    let mut any = false;
    for pool in [&V4, &V6] {
        if let Some(mut pool) = pool.take() {
            while let Some(port) = pool.pop() {
                fds::discard(port.fd);
                any = true;
            }
        }
    }
    any
}

/// `fd` was the socket of one, and is the application's now: nobody of ours may close it.
pub fn lost(fd: i32) {
    for pool in [&V4, &V6] {
        if let Some(mut pool) = pool.take() {
            for port in pool.resting.iter_mut().filter(|p| p.fd == fd) {
                // As one that nobody wanted for long.
                (port.fd, port.since) = (-1, Duration::ZERO);
            }
        }
    }
    for h in handle::all().filter(|h| h.kind() == Kind::Stream) {
        if h.kept.compare_exchange(fd + 1, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            count_down(h.family().0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVER: fn(ConnId) -> bool = |_| true;

    fn port(number: u16, since_s: u64) -> Resting {
        Resting { fd: -1, number, conn: ConnId(number.into()), since: Duration::from_secs(since_s) }
    }

    fn with(ports: impl IntoIterator<Item = Resting>) -> Pool {
        let mut pool = Pool::NEW;
        for port in ports {
            assert!(pool.push(port).is_none());
        }
        pool
    }

    fn number(next: Next) -> Option<u16> {
        if let Next::Rested(port) = next { Some(port.number) } else { None }
    }

    #[test]
    fn a_port_rests_while_there_may_be_others() {
        let mut pool = with([port(1, 100), port(2, 101)]);
        let at = Duration::from_secs;
        assert_eq!(pool.next(0, at(100), OVER), Next::Other);
        assert_eq!(number(pool.next(0, at(101), OVER)), Some(1));
        assert_eq!(pool.next(0, at(101), OVER), Next::Other);
        assert_eq!(number(pool.next(0, at(161), OVER)), Some(2));
        assert_eq!(pool.next(0, at(161), OVER), Next::Other);
    }

    #[test]
    fn in_need_the_one_that_rests_for_the_longest_time_is_next() {
        let mut pool = with((0..64).map(|n| port(n, 100)));
        let at = Duration::from_secs(100);
        assert!(pool.push(port(99, 100)).is_some(), "there is no room");
        assert_eq!(number(pool.next(0, at, OVER)), Some(0));
        assert_eq!(pool.next(0, at, OVER), Next::Other, "another one may be bound");
        assert_eq!([(); 3].map(|()| number(pool.next(1, at, OVER))), [Some(1), None, None]);
        assert!((2..64).all(|n| number(pool.next(64, at, OVER)) == Some(n)));
        assert_eq!((pool.len, pool.next(64, at, OVER)), (0, Next::None));
    }

    #[test]
    fn a_port_is_busy_until_its_connection_is_over() {
        let mut pool = with([port(1, 100), port(2, 100)]);
        let at = Duration::from_secs(102);
        let first_is_open: fn(ConnId) -> bool = |conn| conn.0 != 1;
        assert_eq!(pool.next(61, at, first_is_open), Next::Other, "there may be one more");
        assert_eq!(pool.next(62, at, first_is_open), Next::Busy);
        assert_eq!(number(pool.next(62, at, OVER)), Some(1));
        assert_eq!(number(pool.next(62, at, first_is_open)), Some(2));
    }

    #[test]
    fn what_nobody_wanted_for_long_is_the_kernels() {
        let mut pool = with([port(1, 100), port(2, 110)]);
        assert_eq!(number(pool.next(0, Duration::from_secs(165), OVER)), Some(2));
        assert_eq!(pool.len, 0);
    }
}
