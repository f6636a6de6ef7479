//! A connection of ours for a program without the shim: a relay process (`ipc-direct pump`, started by the agent) takes
//! it over and copies between it and a kernel socket, which the program gets.
//!
//! The program sees an ordinary connected TCP socket; its address and its peer's are loopback ones of the relay.

use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use core::sync::atomic::Ordering;
use core::time::Duration;

use ring::attach::{Call, Reply};
use ring::image::{ARENAS_MAX, ArenaRef, Head, NO_FD};
use ring::msg::Request;
use ring::stats::{Reason, SocketState};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::handle::{self, Handle, Kind, touched};
use crate::{
    agent, ahead, coordinator, epoll, fds, lazy, leave, options, process, socket, stats, sys, table,
};

/// Descriptor numbers that the relay finds things at (SPEC 10.4).
const ARENA_AT: u32 = 6;
/// Longest wait for the kernel's own loopback.
const PAIR_WAIT: Duration = Duration::from_secs(2);

/// The kernel socket that stands for the connection from now on; this process still holds the connection, too.
pub fn open(h: &'static Handle) -> Option<OwnedFd> {
    let s = h.stream()?;
    let mut placeholder = None;
    each_descriptor(h, |fd| placeholder = Some(fd));
    let placeholder = placeholder?;
    let (ours, theirs) = kernel_pair(h.family().0)?;
    let nonce = sys::random() | 1;
    let side = h.side.load(Ordering::Relaxed) & 1;
    coordinator::post(Request::Lend { nonce, conn: s.conn, side }).ok()?;
    s.sock.processes.fetch_add(1, Ordering::AcqRel);
    if ask(h, nonce, sys::borrow(placeholder), theirs.as_fd()).is_none() {
        let _ = coordinator::post(Request::ForkFailed { nonce });
        s.sock.processes.fetch_sub(1, Ordering::AcqRel);
        return None;
    }
    if h.is_tcp()
        && let Some(fresh) = loopback_socket(h.family().0)
    {
        options::repeat(placeholder, fresh.as_raw_fd(), ours.as_raw_fd());
        if h.was(touched::COMMON) {
            lazy::copy(h, ours.as_raw_fd(), lazy::Copied::NOTHING);
        }
    }
    if s.sock.is_nonblocking() {
        options::set_kernel_nonblocking(ours.as_raw_fd());
    }
    stats::set_reason(h.index(), Reason::Relayed);
    Some(ours)
}

fn ask(h: &Handle, nonce: u64, placeholder: BorrowedFd<'_>, kernel: BorrowedFd<'_>) -> Option<()> {
    let image = leave::new_image()?;
    let mut arenas = [ArenaRef::default(); ARENAS_MAX];
    let entry = leave::entry_of(h, &mut arenas)?;
    let [arena, ..] = &mut arenas;
    let memory = sys::borrow(i32::try_from(arena.fd).ok()?);
    arena.fd = ARENA_AT;
    let head = Head {
        function: process::function(),
        nonce,
        agent: NO_FD,
        entries: 1,
        watches: 0,
        cookie: 0,
        mark: NO_FD,
        arenas,
    };
    leave::add_record(image.as_fd(), 0, &entry.to_words())?;
    leave::complete_image(image.as_fd(), head)?;
    let answer = agent::call_with(Call::Relay, &[placeholder, kernel, image.as_fd(), memory]).ok()?;
    (answer.reply == Reply::Relayed).then_some(())
}

/// Two ends of a kernel connection of that family, for TCP on loopback, which nobody else can have got into.
fn kernel_pair(domain: i32) -> Option<(OwnedFd, OwnedFd)> {
    if domain == libc::AF_UNIX {
        let flags = SocketFlags::CLOEXEC;
        return rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok();
    }
    let (listener, at) = loopback_listener(domain)?;
    let ours = loopback_socket(domain)?;
    rustix::net::connect(&ours, &at).ok()?;
    let name = SocketAddr::try_from(rustix::net::getsockname(&ours).ok()?).ok()?;
    for _ in 0..8 {
        let mut ready = [PollFd::new(&listener, PollFlags::IN)];
        rustix::event::poll(&mut ready, Some(&sys::timespec(PAIR_WAIT))).ok()?;
        let (theirs, peer) = rustix::net::acceptfrom_with(&listener, SocketFlags::CLOEXEC).ok()?;
        // Anybody may connect to an address on loopback.
        if peer.and_then(|p| SocketAddr::try_from(p).ok()) == Some(name) {
            return Some((ours, theirs));
        }
    }
    None
}

fn loopback_socket(domain: i32) -> Option<OwnedFd> {
    let family = if domain == libc::AF_INET6 { AddressFamily::INET6 } else { AddressFamily::INET };
    rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).ok()
}

/// A listener of the kernel's, and where it is.
pub fn loopback_listener(domain: i32) -> Option<(OwnedFd, SocketAddr)> {
    let listener = loopback_socket(domain)?;
    let v6 = domain == libc::AF_INET6;
    let any: SocketAddr = if v6 { (Ipv6Addr::LOCALHOST, 0).into() } else { (Ipv4Addr::LOCALHOST, 0).into() };
    rustix::net::bind(&listener, &any).ok()?;
    rustix::net::listen(&listener, 8).ok()?;
    let at = SocketAddr::try_from(rustix::net::getsockname(&listener).ok()?).ok()?;
    Some((listener, at))
}

/// Every descriptor of `h` becomes the relay's kernel socket, which a foreign program can use as well. In a vfork child
/// only the child's descriptors change.
pub fn replace(h: &'static Handle) {
    let Some(kernel) = open(h) else { return };
    let (domain, ty) = h.family();
    let new = if process::is_borrowed() { None } else { handle::allocate(Kind::Kernel, -1, domain, ty) };
    each_descriptor(h, |fd| {
        if !sys::replace(kernel.as_raw_fd(), fd) {
            return;
        }
        let Some(new) = new else { return };
        epoll::given_to_kernel(h, fd);
        socket::closing(fd);
        if new.retain() && table::set(fd, new) {
            stats::set_fd(new.index(), fd);
            stats::set_state(new.index(), SocketState::Kernel, Reason::Relayed, None);
        }
    });
    if let Some(new) = new {
        socket::release(new);
    }
}

/// A listener that a foreign program will accept on: new clients come through the kernel.
pub fn withdraw(h: &'static Handle) {
    let Some(sock) = h.sock() else { return };
    h.touch(touched::WITHDRAWN);
    ahead::give_back(h);
    if h.is_current() {
        let listener = h.place.load(Ordering::Relaxed);
        let _ = coordinator::post(Request::Withdraw { listener });
    }
    if !sock.is_nonblocking() {
        each_descriptor(h, options::set_kernel_blocking);
    }
    stats::set_reason(h.index(), Reason::Relayed);
}

fn each_descriptor(h: &'static Handle, mut found: impl FnMut(i32)) {
    leave::note_inode(h);
    fds::each_open(|fd| {
        if leave::by_inode(fd).is_some_and(|other| core::ptr::eq(other, h)) {
            found(fd);
        }
    });
}
