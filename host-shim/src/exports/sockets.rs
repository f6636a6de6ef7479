//! Sockets: made, named, connected, accepted.
#![allow(unsafe_code, clippy::missing_safety_doc, missing_docs)]

use libc::{c_int, c_void, sockaddr, socklen_t};

use ring::stats::Reason;

use super::{fail, number, status};
use crate::connect::{self, Path};
use crate::handle::{Handle, Kind, Stream, touched};
use crate::listener::{self, PeerOut};
use crate::sys::{self, Errno, NoSignals, keep_errno};
use crate::{cancel, dual, faces, fresh, options, real, relay, socket, stats, table, unix};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn socket(domain: c_int, ty: c_int, protocol: c_int) -> c_int {
    keep_errno(|| {
        if let Some(made) = fresh::open(domain, ty, protocol) {
            return number(made);
        }
        // SAFETY: the application's arguments, unchanged; so in every pass-through below.
        let socket = || unsafe { real::socket(domain, ty, protocol) };
        let mut fd = socket();
        if fd < 0 && sys::errno().0 == libc::EMFILE && faces::make_room() {
            fd = socket();
        }
        if fd >= 0 {
            socket::made(fd, domain, ty);
        }
        fd
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn socketpair(domain: c_int, ty: c_int, protocol: c_int, pair: *mut c_int) -> c_int {
    keep_errno(|| {
        // SAFETY: as above.
        let r = unsafe { real::socketpair(domain, ty, protocol, pair) };
        if r == 0 {
            // SAFETY: the kernel has written two numbers there.
            unix::paired_by_kernel(unsafe { [*pair, *pair.add(1)] }, domain, ty);
        }
        r
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn bind(fd: c_int, addr: *const sockaddr, len: socklen_t) -> c_int {
    if table::get(fd).is_some_and(|h| h.kind() == Kind::Stream && !h.is_unix()) {
        return fail(Errno(libc::EINVAL));
    }
    if let Some(refused) = fresh::refused(fd) {
        return refused;
    }
    // SAFETY: as above.
    let r = unsafe { real::bind(fd, addr, len) };
    if let (0, Some(h)) = (r, table::get(fd)) {
        h.touch(touched::BOUND);
    }
    r
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn listen(fd: c_int, backlog: c_int) -> c_int {
    if table::get(fd).is_some_and(|h| h.kind() == Kind::Stream) {
        return fail(Errno(libc::EINVAL));
    }
    if let Some(refused) = fresh::refused(fd) {
        return refused;
    }
    keep_errno(|| {
        // SAFETY: as above.
        let r = unsafe { real::listen(fd, backlog) };
        match table::get(fd).filter(|_| r == 0) {
            Some(h) if h.is_unix() => unix::listening(h),
            Some(_) => listener::listening(fd, backlog),
            None => {}
        }
        r
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t) -> c_int {
    // SAFETY: as above.
    unsafe { accept4(fd, addr, len, 0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept4(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int {
    cancel::point();
    keep_errno(|| match table::get(fd).map(|h| (h, h.kind())) {
        Some((h, Kind::Listener)) => number(listener::accept(fd, h, PeerOut { addr, len }, flags)),
        Some((_, Kind::Stream)) => fail(Errno(libc::EINVAL)),
        other => {
            // SAFETY: as above.
            let room = if len.is_null() { 0 } else { unsafe { *len } };
            // SAFETY: as above.
            let new = unsafe { real::accept4(fd, addr, len, flags) };
            if new >= 0 {
                match other {
                    Some((h, _)) => accepted_by_kernel(fd, new, h),
                    None => unix::accepted_unseen(fd, new),
                }
                if table::get(new).is_some_and(Handle::is_unix) {
                    // SAFETY: as above.
                    unsafe { unix::token::hide(addr, len, room) };
                }
            }
            new
        }
    })
}

/// A listener that only the kernel serves has accepted `new`: for the same reason, only the kernel serves that.
fn accepted_by_kernel(fd: c_int, new: c_int, listener: &Handle) {
    let (domain, ty) = listener.family();
    socket::made(new, domain, ty);
    let Some(h) = table::get(new) else { return };
    if h.is_unix() {
        unix::connected(h, true);
        unix::vouch(fd, listener);
    } else {
        socket::went_to_kernel(new, h, stats::reason(listener.index()));
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn connect(fd: c_int, addr: *const sockaddr, len: socklen_t) -> c_int {
    cancel::point();
    keep_errno(|| match connect::connect(fd, addr, len) {
        Path::User(result) => status(result),
        Path::Kernel => {
            if let Some(refused) = fresh::refused(fd) {
                return refused;
            }
            // SAFETY: as above.
            let r = unsafe { real::connect(fd, addr, len) };
            connect::kernel_connected(fd, options::read_family(addr, len), r);
            r
        }
    })
}

/// The connection in user space that `fd` is.
fn connection(fd: c_int) -> Option<(&'static Handle, Stream)> {
    let h = table::get(fd)?;
    connect::settled(h);
    Some((h, h.stream()?))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn shutdown(fd: c_int, how: c_int) -> c_int {
    match connection(fd) {
        Some((h, s)) => {
            dual::shutdown(fd, &s, how);
            status(socket::shutdown(h, &s, how))
        }
        None => {
            if let Some(refused) = fresh::refused(fd) {
                return refused;
            }
            keep_errno(|| {
                // SAFETY: as above.
                let r = unsafe { real::shutdown(fd, how) };
                if r == 0 {
                    unix::stays(fd, Reason::Operation);
                    listener::shut_down(fd);
                }
                r
            })
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockname(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t) -> c_int {
    if table::get(fd).is_some_and(Handle::is_unix) {
        // SAFETY: as above.
        return unsafe { unix::name(fd, true, addr, len) };
    }
    match connection(fd) {
        Some((h, s)) => status(options::name(h, &s, true, addr, len)),
        // SAFETY: as above.
        None => unsafe { real::getsockname(fd, addr, len) },
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn getpeername(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t) -> c_int {
    if table::get(fd).is_some_and(Handle::is_unix) {
        // SAFETY: as above.
        return unsafe { unix::name(fd, false, addr, len) };
    }
    match connection(fd) {
        Some((h, s)) => status(options::name(h, &s, false, addr, len)),
        // SAFETY: as above.
        None => unsafe { real::getpeername(fd, addr, len) },
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    let ours = match connection(fd) {
        Some((h, s)) => options::get(fd, h, &s, level, name, value, len),
        // No other socket has that.
        None if (level, name) == (libc::SOL_SOCKET, libc::SO_COOKIE) => fresh::refused(fd),
        None => None,
    };
    let ours = ours.or_else(|| options::lazily(table::get(fd)?, level, name, value, len));
    // SAFETY: as above.
    ours.unwrap_or_else(|| unsafe { real::getsockopt(fd, level, name, value, len) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    let in_user = || table::get(fd).filter(|h| h.kind() == Kind::Stream && !h.is_unix());
    keep_errno(|| {
        if let Some(h) = in_user().filter(|_| options::sees_packets(level, name)) {
            let _no_signals = NoSignals::new();
            relay::replace(h);
        }
        if let (Some(e), Some(_)) = (options::refused(level, name), in_user()) {
            return fail(e);
        }
        let common = table::get(fd).and_then(|h| faces::set_option(fd, h, (level, name), value, len));
        // SAFETY: as above.
        let r = common.unwrap_or_else(|| unsafe { real::setsockopt(fd, level, name, value, len) });
        if let (0, Some(h)) = (r, table::get(fd)) {
            options::option_set(fd, h, level, name);
        }
        r
    })
}
