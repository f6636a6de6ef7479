//! The calls whose instructions `make guard` counts, each alone in a function that callgrind knows by name.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::time::Instant;

use crate::link::{check, epoll};

/// Calls of each; the median counts, since a first call or an interrupt takes more.
const CALLS: usize = 160;
/// Connections in the epoll set, of which one has news.
const WATCHED: usize = 16;
/// The message.
const BYTES: usize = 8;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_send(fd: RawFd, data: &[u8; BYTES]) -> isize {
    // SAFETY: readable for its length.
    unsafe { libc::send(fd, data.as_ptr().cast(), BYTES, 0) }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_recv(fd: RawFd, room: &mut [u8; BYTES]) -> isize {
    // SAFETY: writable for its length.
    unsafe { libc::recv(fd, room.as_mut_ptr().cast(), BYTES, 0) }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_epoll_wait(set: RawFd, events: &mut [libc::epoll_event; WATCHED]) -> isize {
    // SAFETY: room for as many events as are said.
    unsafe { libc::epoll_wait(set, events.as_mut_ptr(), 16, -1) as isize }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_connect(fd: RawFd, address: &libc::sockaddr_in) -> isize {
    let len = libc::socklen_t::try_from(size_of_val(address)).unwrap_or(0);
    // SAFETY: the address is readable for its length.
    unsafe { libc::connect(fd, std::ptr::from_ref(address).cast(), len) as isize }
}

/// What [`peers`] makes.
struct Peers {
    listener: TcpListener,
    address: libc::sockaddr_in,
    pairs: Vec<(OwnedFd, OwnedFd)>,
}

/// Connections of this process with itself.
fn peers() -> io::Result<Peers> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let SocketAddr::V4(at) = listener.local_addr()? else { return Err(io::ErrorKind::Unsupported.into()) };
    let address = libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(0),
        sin_port: at.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(at.ip().octets()) },
        sin_zero: [0; 8],
    };
    let pair = || -> io::Result<(OwnedFd, OwnedFd)> {
        Ok((TcpStream::connect(at)?.into(), listener.accept()?.0.into()))
    };
    let pairs = (0..WATCHED).map(|_| pair()).collect::<io::Result<_>>()?;
    Ok(Peers { listener, address, pairs })
}

/// Every guarded call [`CALLS`] times, in a process that is its own peer and so never waits for data.
pub fn run() -> io::Result<()> {
    let Peers { listener, address, pairs } = peers()?;
    let set = epoll(pairs.iter().map(|(_, b)| b.as_raw_fd()))?;
    let Some((a, b)) = pairs.get(WATCHED / 2) else { return Ok(()) };
    let mut word = *b"8 bytes!";
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; WATCHED];
    for _ in 0..CALLS {
        check(guard_send(a.as_raw_fd(), &word))?;
        if check(guard_epoll_wait(set.as_raw_fd(), &mut events))? != 1 {
            return Err(io::Error::other("one connection should have news"));
        }
        check(guard_recv(b.as_raw_fd(), &mut word))?;

        // SAFETY: no pointers; the descriptor is ours.
        let client = unsafe {
            let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
            check(fd as isize)?;
            OwnedFd::from_raw_fd(fd)
        };
        check(guard_connect(client.as_raw_fd(), &address))?;
        drop(client);
        drop(listener.accept()?);
    }
    Ok(())
}

/// Calls that are timed together, and how often: the fastest batch counts.
const BATCH: u32 = 256;
const BATCHES: u32 = 2000;

/// What one call costs on a processor of its own, in ns: no line moves between cores, nobody waits.
pub fn costs() -> io::Result<()> {
    let Peers { pairs, .. } = peers()?;
    let Some((a, b)) = pairs.first() else { return Ok(()) };
    let (a, b) = (a.as_raw_fd(), b.as_raw_fd());
    let set = epoll(pairs.iter().map(|(_, b)| b.as_raw_fd()))?;
    let mut word = *b"8 bytes!";
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; WATCHED];
    let mut fastest = [f64::INFINITY; 5];
    for _ in 0..BATCHES {
        let mut timed = |at: usize, call: &mut dyn FnMut()| {
            let start = Instant::now();
            for _ in 0..BATCH {
                call();
            }
            let ns = start.elapsed().as_secs_f64() * 1e9 / f64::from(BATCH);
            if let Some(best) = fastest.get_mut(at) {
                *best = best.min(ns);
            }
        };
        timed(0, &mut || {
            guard_send(a, &word);
        });
        timed(1, &mut || {
            guard_epoll_wait(set.as_raw_fd(), &mut events);
        });
        timed(2, &mut || {
            guard_recv(b, &mut word);
        });
        timed(3, &mut || {
            // SAFETY: writable for its length.
            unsafe { libc::recv(b, word.as_mut_ptr().cast(), BYTES, libc::MSG_DONTWAIT) };
        });
        timed(4, &mut || {
            std::hint::black_box(&mut word);
        });
    }
    let [send, epoll_wait, recv, nothing_there, empty] = fastest;
    println!(
        "send {send:.1} ns, recv {recv:.1} ns, recv without data {nothing_there:.1} ns, epoll_wait with one ready {epoll_wait:.1} ns; an empty loop {empty:.1} ns"
    );
    Ok(())
}
