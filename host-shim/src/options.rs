//! Addresses, socket options and descriptor flags: most live in the kernel's placeholder socket; those that decide what our
//! own code does are kept in the shared state, too.
//!
//! `unsafe` is allowed here: the C structures of the socket interface.
#![allow(unsafe_code)]

mod answers;
mod inherit;

use core::ptr;
use core::sync::atomic::Ordering;

use ring::msg::Addr;
use ring::stats::{Reason, SocketState};

use crate::handle::{Handle, Kind, Stream, touched};
use crate::sock::{Sock, modes};
use crate::sys::{Errno, Result};
use crate::{arrivals, dual, faces, fresh, lazy, listener, poll, real, stamps, sys};

pub use answers::{get, lazily, refused, sees_packets};
use inherit::{RCVTIMEO_NEW, SNDTIMEO_NEW};
pub use inherit::{bit, copy, inherit, is_plain, repeat};

/// Room for an IPv4 or IPv6 address as the kernel writes it.
fn empty_storage() -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all zero is a valid storage.
    let storage: libc::sockaddr_storage = unsafe { core::mem::zeroed() };
    (storage, socklen::<libc::sockaddr_storage>())
}

fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

/// The family in an address of the application, if it is long enough to have one.
pub fn read_family(addr: *const libc::sockaddr, len: libc::socklen_t) -> Option<i32> {
    if addr.is_null() || (len as usize) < size_of::<libc::sa_family_t>() {
        return None;
    }
    // SAFETY: not null, and long enough for the family (checked).
    Some(i32::from(unsafe { ptr::read_unaligned(addr.cast::<libc::sa_family_t>()) }))
}

/// An IPv4 or IPv6 address of the application.
pub fn read_addr(addr: *const libc::sockaddr, len: libc::socklen_t) -> Option<Addr> {
    let len = len as usize;
    match read_family(addr, libc::socklen_t::try_from(len).ok()?)? {
        libc::AF_INET if len >= size_of::<libc::sockaddr_in>() => {
            // SAFETY: long enough for the structure (checked).
            let a = unsafe { ptr::read_unaligned(addr.cast::<libc::sockaddr_in>()) };
            Some(Addr::v4(a.sin_addr.s_addr.to_ne_bytes(), u16::from_be(a.sin_port)))
        }
        libc::AF_INET6 if len >= size_of::<libc::sockaddr_in6>() => {
            // SAFETY: long enough for the structure (checked).
            let a = unsafe { ptr::read_unaligned(addr.cast::<libc::sockaddr_in6>()) };
            // Link-local addresses need their interface: the kernel's business.
            (a.sin6_scope_id == 0).then(|| Addr { ip: a.sin6_addr.s6_addr, port: u16::from_be(a.sin6_port) })
        }
        _ => None,
    }
}

/// `addr` as a socket of `domain` shows it: bytes and length.
fn encode(addr: Addr, domain: i32) -> (libc::sockaddr_storage, libc::socklen_t) {
    let (mut storage, _) = empty_storage();
    if domain == libc::AF_INET {
        let [.., a, b, c, d] = addr.ip;
        let v4 = libc::sockaddr_in {
            sin_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(0),
            sin_port: addr.port.to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([a, b, c, d]) },
            sin_zero: [0; 8],
        };
        // SAFETY: a storage is at least as large and as aligned as any address.
        unsafe { ptr::write(ptr::from_mut(&mut storage).cast(), v4) };
        (storage, socklen::<libc::sockaddr_in>())
    } else {
        let v6 = libc::sockaddr_in6 {
            sin6_family: libc::sa_family_t::try_from(libc::AF_INET6).unwrap_or(0),
            sin6_port: addr.port.to_be(),
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: addr.ip },
            sin6_scope_id: 0,
        };
        // SAFETY: as above.
        unsafe { ptr::write(ptr::from_mut(&mut storage).cast(), v6) };
        (storage, socklen::<libc::sockaddr_in6>())
    }
}

/// Writes an address where the application wants it: cut to its buffer, with the full length told.
pub fn write_addr(addr: Addr, domain: i32, out: *mut libc::sockaddr, len: *mut libc::socklen_t) {
    if out.is_null() || len.is_null() {
        return;
    }
    let (storage, full) = encode(addr, domain);
    // SAFETY: the application's pointers; at most its own length is written.
    unsafe {
        let room = (*len).min(full) as usize;
        ptr::copy_nonoverlapping(ptr::from_ref(&storage).cast::<u8>(), out.cast::<u8>(), room);
        *len = full;
    }
}

/// bind(2) of a descriptor in the kernel.
///
/// # Errors
/// As bind(2).
pub fn kernel_bind(fd: i32, domain: i32, addr: Addr) -> Result<()> {
    let (storage, len) = encode(addr, domain);
    // SAFETY: a valid address of that length.
    match unsafe { real::bind(fd, ptr::from_ref(&storage).cast(), len) } {
        0 => Ok(()),
        _ => Err(sys::errno()),
    }
}

/// Binds a descriptor in the kernel to a port of the kernel's choice. Its name.
///
/// # Errors
/// As bind(2).
pub fn reserve_port(fd: i32, domain: i32) -> Result<Addr> {
    kernel_bind(fd, domain, wildcard(domain))?;
    Ok(kernel_name(fd, true))
}

/// Any address and port.
pub fn wildcard(domain: i32) -> Addr {
    Addr { ip: if domain == libc::AF_INET { Addr::V4_ANY } else { Addr::V6_ANY }, port: 0 }
}

/// Connects the kernel socket.
///
/// # Errors
/// As connect(2).
pub fn kernel_connect(fd: i32, domain: i32, addr: Addr) -> Result<()> {
    let (storage, len) = encode(addr, domain);
    // SAFETY: a valid address of that length.
    match unsafe { real::connect(fd, ptr::from_ref(&storage).cast(), len) } {
        0 => Ok(()),
        _ => Err(sys::errno()),
    }
}

/// The kernel's own (`local`) or peer address of a descriptor; all zero if it has none.
pub fn kernel_name(fd: i32, local: bool) -> Addr {
    let (mut storage, mut len) = empty_storage();
    let out = ptr::from_mut(&mut storage).cast::<libc::sockaddr>();
    let call = if local { real::getsockname } else { real::getpeername };
    // SAFETY: a storage of that length.
    let result = unsafe { call(fd, out, ptr::from_mut(&mut len)) };
    if result != 0 { Addr::default() } else { read_addr(out, len).unwrap_or_default() }
}

fn kernel_option<T: Default>(fd: i32, level: i32, name: i32) -> Option<T> {
    let mut value = T::default();
    let mut len = socklen::<T>();
    // SAFETY: `value` has that length; T is plain data.
    let r = unsafe {
        real::getsockopt(fd, level, name, ptr::from_mut(&mut value).cast(), ptr::from_mut(&mut len))
    };
    (r == 0).then_some(value)
}

/// A boolean option of the kernel's socket.
pub fn kernel_flag(fd: i32, level: i32, name: i32) -> bool {
    kernel_option::<i32>(fd, level, name).unwrap_or(0) != 0
}

/// Sets one.
pub fn set_kernel_flag(fd: i32, level: i32, name: i32, on: bool) {
    let value = i32::from(on);
    // SAFETY: `value` has that length.
    unsafe { real::setsockopt(fd, level, name, ptr::from_ref(&value).cast(), socklen::<i32>()) };
}

/// A number that the kernel's socket has.
pub fn kernel_number(fd: i32, level: i32, name: i32) -> Option<i32> {
    kernel_option(fd, level, name)
}

/// Backlog of a listening TCP socket, as listen(2) was told (Linux shows it in `tcpi_sacked`, net/ipv4/tcp.c).
pub fn kernel_backlog(fd: i32) -> i32 {
    // state, five more bytes and two of flags, then words: rto, ato, snd_mss, rcv_mss, unacked, sacked (linux/tcp.h).
    let words = kernel_option::<[u32; 8]>(fd, libc::IPPROTO_TCP, libc::TCP_INFO).unwrap_or_default();
    words.get(7).and_then(|n| i32::try_from(*n).ok()).unwrap_or(libc::SOMAXCONN)
}

/// Process, user and group at the other end of a unix socket (`SO_PEERCRED`). Process 0: not visible here.
pub fn kernel_peer_credentials(fd: i32) -> Option<[u32; 3]> {
    kernel_option(fd, libc::SOL_SOCKET, libc::SO_PEERCRED)
}

/// The network namespace that a socket belongs to, by its cookie (Linux 5.14).
pub fn kernel_netns(fd: i32) -> Option<u64> {
    kernel_option(fd, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE)
}

/// Makes the kernel's descriptor non-blocking.
pub fn set_kernel_nonblocking(fd: i32) {
    let flags = kernel_flags(fd);
    // SAFETY: no pointers.
    unsafe { real::fcntl(fd, libc::F_SETFL, flag_word(flags | libc::O_NONBLOCK)) };
}

/// The kernel's descriptor is non-blocking.
pub fn is_kernel_nonblocking(fd: i32) -> bool {
    kernel_flags(fd) & libc::O_NONBLOCK != 0
}

/// Makes the kernel's descriptor blocking again.
pub fn set_kernel_blocking(fd: i32) {
    // SAFETY: no pointers.
    unsafe { real::fcntl(fd, libc::F_SETFL, flag_word(kernel_flags(fd) & !libc::O_NONBLOCK)) };
}

fn kernel_flags(fd: i32) -> i32 {
    // SAFETY: no pointers.
    unsafe { real::fcntl(fd, libc::F_GETFL, 0) }.max(0)
}

fn flag_word(flags: i32) -> core::ffi::c_ulong {
    core::ffi::c_ulong::from(flags.cast_unsigned())
}

/// Takes over what the application set on the kernel's socket before it became a connection.
pub fn take_over(fd: i32, h: &Handle, sock: &Sock) {
    let nonblocking = lazy::is_nonblocking(h).unwrap_or_else(|| {
        let flags = kernel_flags(fd);
        if flags & libc::O_ASYNC != 0 {
            h.touch(touched::SIGNALS);
        }
        flags & libc::O_NONBLOCK != 0
    });
    sock.nonblock.store(u32::from(nonblocking), Ordering::Relaxed);
    if h.was(touched::OPTIONS) {
        reload_all(fd, sock);
    }
}

/// The same for a listener, with what accepted sockets inherit.
pub fn take_over_listener(fd: i32, h: &Handle, sock: &Sock) {
    sock.nonblock.store(u32::from(is_kernel_nonblocking(fd)), Ordering::Relaxed);
    sock.options.store(h.options.load(Ordering::Relaxed), Ordering::Relaxed);
    if h.was(touched::OPTIONS) {
        reload_all(fd, sock);
    }
}

/// Timeouts, linger and what makes reading special, as the kernel has them.
fn reload(fd: i32, sock: &Sock) {
    let lowat = kernel_option::<u32>(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT).unwrap_or(1);
    let inline = kernel_flag(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE);
    let zerocopy = kernel_flag(fd, libc::SOL_SOCKET, libc::SO_ZEROCOPY);
    let pass = kernel_flag(fd, libc::SOL_SOCKET, libc::SO_PASSCRED);
    let bits = [(lowat > 1, modes::LOWAT), (inline, modes::OOB_INLINE), (zerocopy, modes::ZEROCOPY)];
    let bits = bits.into_iter().chain([(pass, modes::PASS_CREDENTIALS)]);
    sock.lowat.store(if lowat > 1 { lowat.min(LOWAT_MAX) } else { 0 }, Ordering::Relaxed);
    let new = bits.fold(0, |all, (on, bit)| if on { all | bit } else { all });
    let kept = modes::UNIX | modes::FROM_KERNEL;
    let _ = sock.modes.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |all| Some(all & kept | new));
    sock.rx_timeout_us.store(timeout_us(fd, libc::SO_RCVTIMEO), Ordering::Relaxed);
    sock.tx_timeout_us.store(timeout_us(fd, libc::SO_SNDTIMEO), Ordering::Relaxed);
    let [on, seconds] = kernel_option::<[i32; 2]>(fd, libc::SOL_SOCKET, libc::SO_LINGER).unwrap_or([0, 1]);
    sock.linger_reset.store(u32::from(on != 0 && seconds == 0), Ordering::Relaxed);
}

/// What of ours is set in the kernel.
fn reload_all(fd: i32, sock: &Sock) {
    reload(fd, sock);
    stamps::reload(fd, sock);
}

/// What [`concerns_us`] was set: no more is asked for than that may have changed.
fn reload_after(fd: i32, sock: &Sock, level: i32, name: i32) {
    if stamps::is_option(level, name) {
        stamps::reload(fd, sock);
    } else {
        reload(fd, sock);
    }
}

/// More than this can't be asked for: a stream of small messages fills the ring with less.
const LOWAT_MAX: u32 = 131_072;

fn timeout_us(fd: i32, name: i32) -> u64 {
    let [seconds, us] = kernel_option::<[i64; 2]>(fd, libc::SOL_SOCKET, name).unwrap_or([0, 0]);
    seconds.unsigned_abs().saturating_mul(1_000_000).saturating_add(us.unsigned_abs())
}

/// What [`reload_all`] loads: `SO_RCVTIMEO` and `SO_SNDTIMEO` under all their numbers, and the rest.
fn concerns_us(level: i32, name: i32) -> bool {
    stamps::is_option(level, name)
        || level == libc::SOL_SOCKET
            && matches!(
                name,
                libc::SO_RCVTIMEO
                    | libc::SO_SNDTIMEO
                    | RCVTIMEO_NEW
                    | SNDTIMEO_NEW
                    | libc::SO_LINGER
                    | libc::SO_RCVLOWAT
                    | libc::SO_OOBINLINE
                    | libc::SO_ZEROCOPY
                    | libc::SO_PASSCRED
            )
}

/// After a successful setsockopt(2) on a socket that we know.
pub fn option_set(fd: i32, h: &Handle, level: i32, name: i32) {
    let ours = concerns_us(level, name);
    match (h.kind(), h.sock()) {
        (Kind::Listener, Some(_)) if inherit::is_for_kernel_only(level, name) => {
            listener::leave_to_kernel(fd, h, SocketState::Listening, Reason::Option);
        }
        (Kind::Listener, Some(sock)) => {
            sock.options.fetch_or(bit(level, name), Ordering::Relaxed);
            faces::forget(h);
            if ours {
                reload_after(fd, sock, level, name);
            }
        }
        (Kind::Stream, Some(sock)) => {
            h.options.fetch_or(bit(level, name), Ordering::Relaxed);
            if !ours {
                return;
            }
            reload_after(fd, sock, level, name);
            if let Some(s) = h.stream().filter(|s| !s.is_unix()) {
                stamps::follow(&s);
            }
            // As in Linux (tcp_set_rcvlowat), any mark makes what is readable then news; no other option does.
            let is_news = |s: &Stream| s.readable() || s.input_ended();
            if level == libc::SOL_SOCKET
                && name == libc::SO_RCVLOWAT
                && h.stream().as_ref().is_some_and(is_news)
            {
                crate::epoll::handle_changed(h);
                crate::wait::kick_others();
            }
        }
        (Kind::Kernel, _) => {
            h.options.fetch_or(bit(level, name), Ordering::Relaxed);
            let alone = inherit::is_for_kernel_only(level, name);
            let bits = [(ours, touched::OPTIONS), (alone, touched::KERNEL_ONLY)];
            for (_, bit) in bits.iter().filter(|(on, _)| *on) {
                h.touch(*bit);
            }
        }
        _ => {}
    }
}

/// getsockname(2) and getpeername(2) of a connection.
///
/// # Errors
/// `ENOTCONN` for the peer of a connection that is over, as in Linux.
pub fn name(
    h: &Handle,
    s: &Stream,
    local: bool,
    out: *mut libc::sockaddr,
    len: *mut libc::socklen_t,
) -> Result<()> {
    let _pinned = h.pin().filter(|_| s.current(h)).ok_or(Errno(libc::EBADF))?;
    if !local && poll::is_dead(h, s) {
        return Err(Errno(libc::ENOTCONN));
    }
    let (own, peer) = s.sock.addrs();
    write_addr(if local { own } else { peer }, h.family().0, out, len);
    Ok(())
}

/// fcntl(2) that concerns our own state. `None`: the kernel's answer stands.
pub fn fcntl(fd: i32, h: &Handle, cmd: i32, arg: core::ffi::c_ulong) -> Option<i32> {
    if h.kind() == Kind::Kernel && cmd != libc::F_SETFL && arrivals::concerns(cmd) {
        h.touch(touched::SIGNALS);
    }
    if fresh::is_one(h) && arrivals::concerns(cmd) {
        return if cmd == libc::F_SETFL { set_flags_of_face(fd, h, arg) } else { faces::refused(fd) };
    }
    if cmd == libc::F_GETFL
        && let Some(nonblocking) = lazy::is_nonblocking(h).filter(|_| fresh::is_one(h))
    {
        return Some(flags_of_face(fd, nonblocking));
    }
    let sock = h.sock()?;
    match (h.kind(), cmd) {
        (Kind::Stream | Kind::Listener, libc::F_SETFL) => {
            let forced = if h.kind() == Kind::Listener { flag_word(libc::O_NONBLOCK) } else { 0 };
            // SAFETY: no pointers.
            let r = set_flags_of_face(fd, h, arg)
                .unwrap_or_else(|| unsafe { real::fcntl(fd, cmd, arg | forced) });
            if r == 0 {
                let nonblocking = arg & flag_word(libc::O_NONBLOCK) != 0;
                sock.nonblock.store(u32::from(nonblocking), Ordering::Relaxed);
                flags_set(fd, h, sock, arg & flag_word(libc::O_ASYNC) != 0);
            }
            Some(r)
        }
        (Kind::Listener, libc::F_GETFL) => {
            // SAFETY: no pointers.
            let r = unsafe { real::fcntl(fd, cmd, arg) };
            Some(if r < 0 || sock.is_nonblocking() { r } else { r & !libc::O_NONBLOCK })
        }
        (Kind::Stream, libc::F_GETFL) if h.was(touched::COMMON) => {
            Some(flags_of_face(fd, sock.is_nonblocking()))
        }
        (Kind::Stream, _) if arrivals::concerns(cmd) => {
            if let Some(refused) = faces::refused(fd) {
                return Some(refused);
            }
            // SAFETY: the application's own arguments.
            let r = unsafe { real::fcntl(fd, cmd, arg) };
            arrivals::follow(fd, h);
            Some(r)
        }
        _ => None,
    }
}

/// `F_SETFL`, if the placeholder has a face. `None`: it has none any more, or never had.
fn set_flags_of_face(fd: i32, h: &Handle, arg: core::ffi::c_ulong) -> Option<i32> {
    let alone = arg & !flag_word(libc::O_NONBLOCK | libc::O_ACCMODE | libc::O_LARGEFILE) != 0;
    if alone {
        return faces::refused(fd);
    }
    lazy::set_nonblocking(fd, h, arg & flag_word(libc::O_NONBLOCK) != 0).then_some(0)
}

/// `F_GETFL` of a placeholder that has a face: its file's flags, but for the one that is not in it.
fn flags_of_face(fd: i32, nonblocking: bool) -> i32 {
    kernel_flags(fd) & !libc::O_NONBLOCK | if nonblocking { libc::O_NONBLOCK } else { 0 }
}

/// After `O_ASYNC` may have changed.
fn flags_set(fd: i32, h: &Handle, sock: &Sock, is_async: bool) {
    match h.kind() {
        Kind::Stream if is_async || sock.modes.load(Ordering::Relaxed) & modes::ASYNC != 0 => {
            arrivals::follow(fd, h);
        }
        Kind::Listener if is_async => {
            listener::leave_to_kernel(fd, h, SocketState::Listening, Reason::Option);
        }
        _ => {}
    }
}

/// ioctl(2) that concerns our own state. `None`: the kernel's answer stands.
///
/// # Errors
/// `EFAULT` for a null pointer.
pub fn ioctl(
    fd: i32,
    h: &Handle,
    request: core::ffi::c_ulong,
    arg: core::ffi::c_ulong,
) -> Option<Result<i32>> {
    let kind = h.kind();
    let fresh = fresh::is_one(h);
    if kind != Kind::Stream && kind != Kind::Listener && !fresh {
        return None;
    }
    let out = arg as *mut i32;
    if request == libc::FIONBIO {
        if out.is_null() {
            return Some(Err(Errno(libc::EFAULT)));
        }
        // SAFETY: the application's int.
        let on = unsafe { *out } != 0;
        let flags = kernel_flags(fd);
        let wanted = if on { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
        return fcntl(fd, h, libc::F_SETFL, flag_word(wanted)).map(Ok);
    }
    if fresh {
        return faces::refused(fd).map(Ok);
    }
    if matches!(request, FIOASYNC | FIOSETOWN | SIOCSPGRP) {
        if faces::refused(fd).is_some() {
            return Some(Err(sys::errno()));
        }
        // SAFETY: the application's own arguments.
        let r = unsafe { real::ioctl(fd, request, arg) };
        if kind == Kind::Stream {
            arrivals::follow(fd, h);
        } else {
            flags_set(fd, h, h.sock()?, arrivals::is_async(fd));
        }
        return Some(if r < 0 { Err(sys::errno()) } else { Ok(r) });
    }
    let _pinned = h.pin()?;
    let s = h.stream()?;
    let in_kernel = match request {
        libc::FIONREAD if s.is_from_kernel() => dual::unread(fd),
        SIOCATMARK if s.is_from_kernel() => return None,
        libc::TIOCOUTQ | SIOCOUTQNSD if s.is_to_kernel() => return None,
        _ => 0,
    };
    let value = match request {
        libc::FIONREAD => i32::try_from(s.available() + in_kernel).unwrap_or(i32::MAX),
        SIOCATMARK => i32::from(s.at_mark()),
        libc::TIOCOUTQ | SIOCOUTQNSD => i32::try_from(s.unacknowledged()).unwrap_or(i32::MAX),
        _ => return None,
    };
    if out.is_null() {
        return Some(Err(Errno(libc::EFAULT)));
    }
    // SAFETY: the application's int.
    unsafe { *out = value };
    Some(Ok(0))
}

const FIOASYNC: core::ffi::c_ulong = 0x5452;
const FIOSETOWN: core::ffi::c_ulong = 0x8901;
const SIOCSPGRP: core::ffi::c_ulong = 0x8902;
const SIOCATMARK: core::ffi::c_ulong = 0x8905;
const SIOCOUTQNSD: core::ffi::c_ulong = 0x894b;
