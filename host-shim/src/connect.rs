//! connect(2): user space if a shimmed process of this host listens there, else the kernel.
//!
//! `unsafe` is allowed here: calls to libc's originals and the caller's address.
#![allow(unsafe_code)]

use core::sync::atomic::Ordering;

use ring::msg::{Addr, Completion, Request, Status};
use ring::stats::{Reason, SocketState};

use crate::handle::{Handle, Kind, Stream, touched};
use crate::ports::{self, Port};
use crate::sys::{Errno, NoSignals, Result};
use crate::{
    arrivals, coordinator, faces, fds, fresh, granted, listener, options, poll, process, relay, socket,
    source, stats, sys, table, unix,
};

/// What connect(2) should do next.
pub enum Path {
    /// Connected in user space; the result for the application.
    User(Result<()>),
    /// Ask the kernel.
    Kernel,
}

/// Tries to connect `fd` in user space.
pub fn connect(fd: i32, addr: *const libc::sockaddr, len: libc::socklen_t) -> Path {
    let Some(h) = table::get(fd) else { return Path::Kernel };
    if h.is_unix() {
        return Path::Kernel;
    }
    if options::read_family(addr, len) == Some(libc::AF_UNSPEC) {
        return disconnect(fd, h);
    }
    match h.kind() {
        Kind::Stream => return Path::User(again(h)),
        Kind::Kernel if h.is_tcp() && !h.was(touched::CONNECTED) && process::ensure_attached() => {}
        _ => return Path::Kernel,
    }
    if let Some(reason) = h.kernel_only() {
        stats::set_reason(h.index(), reason);
        return Path::Kernel;
    }
    let Some(dst) = options::read_addr(addr, len) else { return Path::Kernel };
    let dst = source::real_destination(dst);
    // One with a face is: a process that may change its namespace has none.
    if !h.was(touched::COMMON) && !process::is_home(fd) {
        stats::set_reason(h.index(), Reason::Namespace);
        return Path::Kernel;
    }
    let signals = NoSignals::briefly();
    let Some(from) = source::towards(dst).filter(|_| dst.port != 0) else {
        stats::set_reason(h.index(), Reason::Remote);
        return Path::Kernel;
    };
    // Another thread may close it meanwhile.
    let Some(_pinned) = h.pin() else { return Path::Kernel };
    h.touch(touched::CONNECTING);
    let connected = through_coordinator(&signals, fd, h, (dst, from));
    // Release: pairs with the Acquire in `settled`: who waited sees the connection.
    h.touched.fetch_and(!touched::CONNECTING, Ordering::Release);
    match connected {
        Ok(nonblocking) => Path::User(if nonblocking { Err(Errno(libc::EINPROGRESS)) } else { Ok(()) }),
        Err(reason) => {
            stats::set_reason(h.index(), reason);
            Path::Kernel
        }
    }
}

/// Waits for another thread that connects `h`: the other side may have accepted, and even sent, before the connection is in
/// place here. The coordinator answers in bounded time; a handler of a signal can't have interrupted the connecting thread.
pub fn settled(h: &Handle) {
    while h.touched.load(Ordering::Acquire) & touched::CONNECTING != 0 {
        rustix::thread::sched_yield();
    }
}

/// connect(2) of a connected socket: a non-blocking connect is asked about, or it is an error. If the connection that came of it
/// is broken already, the socket is as new.
fn again(h: &Handle) -> Result<()> {
    let s = h.stream().ok_or(Errno(libc::EINVAL))?;
    if s.sock.fresh_connect.swap(0, Ordering::AcqRel) == 0 {
        return Err(Errno(libc::EISCONN));
    }
    if !poll::is_dead(h, &s) {
        return Ok(());
    }
    let error = s.take_error(h).unwrap_or(Errno(libc::ECONNABORTED));
    let _no_signals = NoSignals::new();
    socket::dissolve(h, &s);
    Err(error)
}

/// connect(2) to `AF_UNSPEC`: the socket is as new, its connection reset, its listening ended. The kernel does the same to
/// the descriptor, afterwards.
fn disconnect(fd: i32, h: &'static Handle) -> Path {
    match h.kind() {
        Kind::Stream => {
            let Some(s) = h.stream() else { return Path::User(Err(Errno(libc::EBADF))) };
            let _no_signals = NoSignals::new();
            if faces::refused(fd).is_some() {
                return Path::User(Err(sys::errno()));
            }
            if is_error_left(h, &s) && leave_error(fd, h, &s).is_some() {
                h.touch(touched::ERROR);
            }
            socket::dissolve(h, &s);
        }
        Kind::Listener => listener::leave_to_kernel(fd, h, SocketState::Idle, Reason::None),
        _ => {}
    }
    Path::Kernel
}

/// Linux (tcp_disconnect) leaves a reset behind as pending error, unless both directions had ended.
fn is_error_left(h: &Handle, s: &Stream) -> bool {
    s.pending_error(h).map_or(!poll::is_dead(h, s), |e| e.0 == libc::ECONNRESET)
}

/// A pending error of a kernel socket only the kernel can leave: it connects our descriptor to a listener that nobody knows,
/// and the call that this is for disconnects it from there.
fn leave_error(fd: i32, h: &Handle, s: &Stream) -> Option<()> {
    let numbering = fds::numbering().take();
    let (_listener, at) = relay::loopback_listener(h.family().0)?;
    options::set_kernel_nonblocking(fd);
    let connected = rustix::net::connect(sys::borrow(fd), &at);
    if !s.sock.is_nonblocking() {
        options::set_kernel_blocking(fd);
    }
    drop(numbering);
    (connected.is_ok() || connected == Err(rustix::io::Errno::INPROGRESS)).then_some(())
}

/// The connection, made. True if the socket is non-blocking.
fn through_coordinator(
    signals: &NoSignals,
    fd: i32,
    h: &'static Handle,
    (dst, from): (Addr, Addr),
) -> core::result::Result<bool, Reason> {
    let (domain, _) = h.family();
    if (domain == libc::AF_INET) != dst.is_v4() && domain == libc::AF_INET {
        return Err(Reason::Remote);
    }
    if h.was(touched::ERROR) {
        // As in Linux, a new attempt forgets how the last connection ended.
        h.touched.fetch_and(!touched::ERROR, Ordering::Relaxed);
        let _forgotten = options::kernel_number(fd, libc::SOL_SOCKET, libc::SO_ERROR);
    }
    let (mut src, port) = source_of(fd, h)?;
    if src.is_wildcard() {
        src.ip = from.ip;
    }
    let sock = socket::new_sock().ok_or(Reason::TooMany)?;
    // The port of an address that was bound may be too low for us, or not ours alone: the coordinator says.
    let conn = match port.as_ref().and_then(|_| granted::take(signals, h, dst)) {
        Some(conn) => coordinator::post(Request::Open { conn, src })
            .map(|()| Completion::Connected { status: Status::Ok, conn }),
        None => coordinator::call_undisturbed(signals, None, Request::Connect { dst, src }),
    };
    let conn = match conn {
        Ok(Completion::Connected { status: Status::Ok, conn }) => conn,
        other => {
            sock.free();
            return Err(match other {
                Ok(Completion::Connected { status, .. }) => match status {
                    Status::NoListener => Reason::NoListener,
                    Status::NoHost => Reason::Remote,
                    Status::BacklogFull => Reason::BacklogFull,
                    Status::Quota => Reason::Quota,
                    Status::NoSegment => Reason::NoSegment,
                    _ => Reason::Denied,
                },
                _ => Reason::CoordinatorGone,
            });
        }
    };
    fresh::hit(h);
    if let Some(port) = port {
        port.keep(h);
    }
    sock.set_addrs(src, dst);
    options::take_over(fd, h, sock);
    if socket::join(h, sock, conn, 0).is_none() {
        let _ = coordinator::post(Request::Close { conn, side: 0, finished: false });
        sock.free();
        ports::leave(h, conn, false);
        return Err(Reason::NoSegment);
    }
    if h.was(touched::SIGNALS) {
        arrivals::follow(fd, h);
    }
    let nonblocking = sock.is_nonblocking();
    sock.fresh_connect.store(u32::from(nonblocking), Ordering::Relaxed);
    Ok(nonblocking)
}

/// The address to connect from, as far as it is decided, and its port, if that is one of [`ports`].
fn source_of(fd: i32, h: &Handle) -> core::result::Result<(Addr, Option<Port>), Reason> {
    if h.was(touched::BOUND) {
        return Ok((options::kernel_name(fd, true), None));
    }
    let (domain, _) = h.family();
    if h.was(touched::COMMON)
        && let Some(port) = ports::take(domain)
    {
        return Ok((Addr { port: port.number, ..options::wildcard(domain) }, Some(port)));
    }
    if !faces::apart(fd) {
        return Err(Reason::Source);
    }
    // The kernel reserves the port, as for any connection of its own. The address stays open: if this becomes the
    // kernel's connection after all, choosing it is its business.
    let name = options::reserve_port(fd, domain).map_err(|_| Reason::Source)?;
    h.touch(touched::BOUND);
    Ok((name, None))
}

/// After the kernel's connect(2): what came of it, for `ps`.
pub fn kernel_connected(fd: i32, family: Option<i32>, result: i32) {
    let Some(h) = table::get(fd) else { return };
    if family == Some(libc::AF_UNSPEC) {
        if result == 0 && h.is_tcp() {
            // Unbound, too, unless the application chose the port.
            let bound = options::kernel_name(fd, true).port != 0;
            let gone = if bound { touched::CONNECTED } else { touched::CONNECTED | touched::BOUND };
            h.touched.fetch_and(!gone, Ordering::Relaxed);
        }
        return;
    }
    let in_progress = result < 0 && sys::errno().0 == libc::EINPROGRESS;
    if h.kind() == Kind::Kernel && (result == 0 || in_progress) {
        let (domain, ty) = h.family();
        if h.is_unix() && result == 0 {
            return unix::connected(h, false);
        }
        let reason = match (stats::passed_through(domain, ty), process::is_attached()) {
            (Reason::None, false) => Reason::NoAgent,
            (Reason::None, true) => stats::reason(h.index()),
            (family, _) => family,
        };
        let saved = sys::errno();
        socket::went_to_kernel(fd, h, reason);
        sys::set_errno(saved);
    }
}
