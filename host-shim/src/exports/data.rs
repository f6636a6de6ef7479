//! Data: every form of reading and writing.
#![allow(unsafe_code, clippy::missing_safety_doc, missing_docs)]

use core::slice;

use libc::{c_int, c_uint, c_void, iovec, mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t, timespec};

use super::{fail, length};
use crate::buffers::{Buffers, is_nowhere};
use crate::connect::{self, Path};
use crate::handle::{Handle, Stream, touched};
use crate::sys::{Errno, Result};
use crate::unix::{Busy, Way};
use crate::{
    ancillary, cancel, dual, fresh, io, overlay, real, rights, stamps, stats, sys, table, unix, zerocopy,
};

/// Who reads `fd`. With the kernel, something may have to be held meanwhile.
#[inline(always)]
pub(super) fn ours(fd: c_int) -> Way {
    let Some(h) = table::get(fd) else { return Err(None) };
    cancel::point();
    match h.stream() {
        Some(s) => Ok((h, s)),
        None if h.was(touched::MOVES) => match moving(fd, h) {
            Some(busy) => Err(Some(busy)),
            None => h.stream().map(|s| (h, s)).ok_or(None),
        },
        None => Err(None),
    }
}

/// `None`: it moves no more.
#[cold]
fn moving(fd: c_int, h: &'static Handle) -> Option<Busy> {
    connect::settled(h);
    if h.was(touched::YOUNG) { unix::decide(fd, h) } else { None }
}

/// Who writes to `fd`.
#[inline(always)]
pub(super) fn ours_to_write(fd: c_int) -> Way {
    match ours(fd) {
        Ok((h, s)) if s.is_to_kernel() => dual::before_write(h, s, false).map(|()| (h, s)),
        way => way,
    }
}

/// Who sends a message over `fd`.
#[inline(always)]
fn ours_to_send(fd: c_int, msg: *const msghdr) -> Way {
    match ours(fd) {
        Ok((h, s)) if s.is_to_kernel() => {
            // SAFETY: the application's message header.
            let ancillary = !is_nowhere(msg) && unsafe { (*msg).msg_controllen } > 0;
            dual::before_write(h, s, ancillary).map(|()| (h, s))
        }
        way => way,
    }
}

/// A kernel socket whose bytes are counted: not one of a pair.
fn counted(fd: c_int) -> Option<&'static Handle> {
    table::get(fd).filter(|h| !h.was(touched::PAIR))
}

/// Counts a successful read of a kernel socket that we know.
fn read_by_kernel(fd: c_int, r: ssize_t) -> ssize_t {
    if let (Ok(n), Some(h)) = (usize::try_from(r), counted(fd)) {
        stats::received(h.index(), n);
    }
    r
}

/// Counts a successful write to a kernel socket that we know.
pub(super) fn written_by_kernel(fd: c_int, r: ssize_t) -> ssize_t {
    if let (Ok(n), Some(h)) = (usize::try_from(r), counted(fd)) {
        stats::sent(h.index(), n);
    }
    r
}

/// What is about to be sent through the kernel may be something that keeps a connection there.
fn before_kernel(fd: c_int, flags: c_int) {
    if flags & libc::MSG_OOB != 0 {
        dual::urgent(fd);
    }
}

/// After a read by the kernel, which may have named the sender: by a name of ours, it has none.
unsafe fn hide_sender(fd: c_int, r: ssize_t, addr: *mut sockaddr, len: *mut socklen_t) {
    if r >= 0 && !addr.is_null() && !len.is_null() && table::get(fd).is_some_and(Handle::is_unix) {
        // SAFETY: by contract with C. The whole name is there: there is room for it, or it was longer.
        unsafe {
            unix::token::hide(addr, len, *len);
            if *len as usize <= size_of::<libc::sa_family_t>() {
                *len = 0;
            }
        }
    }
}

fn vector<'a>(iov: *const iovec, n: c_int) -> Result<&'a [iovec]> {
    match usize::try_from(n) {
        Ok(0) => Ok(&[]),
        Ok(n) if n > 1024 => Err(Errno(libc::EINVAL)),
        Ok(_) if is_nowhere(iov) => Err(Errno(libc::EFAULT)),
        Ok(n) => {
            // SAFETY: the application's array of `n` elements.
            let list = unsafe { slice::from_raw_parts(iov, n) };
            let negative = list.iter().any(|v| v.iov_len > isize::MAX.cast_unsigned());
            if negative { Err(Errno(libc::EINVAL)) } else { Ok(list) }
        }
        Err(_) => Err(Errno(libc::EINVAL)),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn read(fd: c_int, buf: *mut c_void, n: size_t) -> ssize_t {
    match ours(fd) {
        // read(2) of no bytes is no read at all; recv(2) of none is one.
        Ok(_) if n == 0 => 0,
        Ok((h, s)) => length(io::receive_one(h, &s, buf.cast(), n, 0)),
        Err(_busy) => {
            // SAFETY: the application's arguments, unchanged; so in every pass-through below.
            let native = || unsafe { real::read(fd, buf, n) };
            match overlay::of(fd) {
                Some(h) => overlay::read(fd, h, &Buffers::one(buf.cast(), n), &native),
                None => read_by_kernel(fd, native()),
            }
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, buf: *const c_void, n: size_t) -> ssize_t {
    match ours_to_write(fd) {
        Ok((h, s)) => length(io::send_one(h, &s, buf.cast_mut().cast(), n, 0)),
        Err(_busy) => {
            // SAFETY: as above.
            let native = || unsafe { real::write(fd, buf, n) };
            match overlay::of(fd) {
                Some(h) => overlay::write(fd, h, &Buffers::one(buf.cast_mut().cast(), n), &native),
                None => written_by_kernel(fd, native()),
            }
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn recv(fd: c_int, buf: *mut c_void, n: size_t, flags: c_int) -> ssize_t {
    match ours(fd) {
        Ok((h, s)) => length(io::receive_one(h, &s, buf.cast(), n, flags)),
        // SAFETY: as above.
        Err(_busy) => read_by_kernel(fd, unsafe { real::recv(fd, buf, n, flags) }),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn send(fd: c_int, buf: *const c_void, n: size_t, flags: c_int) -> ssize_t {
    match ours_to_write(fd) {
        Ok((h, s)) => length(io::send_one(h, &s, buf.cast_mut().cast(), n, flags)),
        Err(_busy) => {
            before_kernel(fd, flags);
            // SAFETY: as above.
            written_by_kernel(fd, unsafe { real::send(fd, buf, n, flags) })
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvfrom(
    fd: c_int,
    buf: *mut c_void,
    n: size_t,
    flags: c_int,
    addr: *mut sockaddr,
    len: *mut socklen_t,
) -> ssize_t {
    match ours(fd) {
        Ok((h, s)) => {
            let r = io::receive_one(h, &s, buf.cast(), n, flags);
            if r.is_ok() && !addr.is_null() && !len.is_null() {
                // SAFETY: the application's pointers.
                unsafe { name_sender(fd, &s, addr, len) };
            }
            length(r)
        }
        Err(_busy) => {
            // SAFETY: as above.
            let r = unsafe { real::recvfrom(fd, buf, n, flags, addr, len) };
            // SAFETY: as above.
            unsafe { hide_sender(fd, r, addr, len) };
            read_by_kernel(fd, r)
        }
    }
}

/// Where recvfrom(2) names the sender: a connected TCP socket names none, and one of `AF_UNIX` its peer if that has a name.
unsafe fn name_sender(fd: c_int, s: &Stream, addr: *mut sockaddr, len: *mut socklen_t) {
    // SAFETY: by contract with C.
    unsafe {
        let named = s.is_unix() && sys::keep_errno(|| unix::name(fd, false, addr, len)) == 0;
        if !named || *len as usize <= size_of::<libc::sa_family_t>() {
            *len = 0;
        }
    }
}

/// What came of a connect that a send with `MSG_FASTOPEN` asked for.
enum Fast {
    /// Connected in user space.
    Open(&'static Handle, Stream),
    /// Not connected, or not yet: `EINPROGRESS` of a non-blocking socket.
    Failed(Errno),
    /// The kernel's.
    Kernel,
}

#[cold]
fn open_fast(fd: c_int, addr: *const sockaddr, len: socklen_t) -> Fast {
    match connect::connect(fd, addr, len) {
        Path::User(Ok(())) => ours(fd).map_or(Fast::Failed(Errno(libc::EBADF)), |(h, s)| Fast::Open(h, s)),
        Path::User(Err(e)) => Fast::Failed(e),
        Path::Kernel if fresh::refused(fd).is_some() => Fast::Failed(sys::errno()),
        Path::Kernel => Fast::Kernel,
    }
}

fn fast_opened_by_kernel(fd: c_int, r: ssize_t) -> ssize_t {
    if table::get(fd).is_some_and(Handle::is_tcp) {
        connect::kernel_connected(fd, None, if r < 0 { -1 } else { 0 });
    }
    written_by_kernel(fd, r)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendto(
    fd: c_int,
    buf: *const c_void,
    n: size_t,
    flags: c_int,
    addr: *const sockaddr,
    len: socklen_t,
) -> ssize_t {
    match ours_to_write(fd) {
        // As the kernel: TCP does not look at the address.
        Ok((_, s)) if len > 0 && s.is_unix() => fail(Errno(libc::EISCONN)) as ssize_t,
        Ok((h, s)) => length(io::send_one(h, &s, buf.cast_mut().cast(), n, flags)),
        Err(_) if flags & libc::MSG_FASTOPEN != 0 => match open_fast(fd, addr, len) {
            Fast::Open(h, s) => {
                length(io::send_one(h, &s, buf.cast_mut().cast(), n, flags & !libc::MSG_FASTOPEN))
            }
            Fast::Failed(e) => length(Err(e)),
            Fast::Kernel => {
                // SAFETY: as above.
                let r = unsafe { real::sendto(fd, buf, n, flags, addr, len) };
                fast_opened_by_kernel(fd, r)
            }
        },
        Err(_busy) => {
            before_kernel(fd, flags);
            // SAFETY: as above.
            written_by_kernel(fd, unsafe { real::sendto(fd, buf, n, flags, addr, len) })
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn readv(fd: c_int, iov: *const iovec, n: c_int) -> ssize_t {
    match ours(fd) {
        Ok((h, s)) => length(vector(iov, n).map(Buffers::many).and_then(|to| match to.total() {
            0 => Ok(0),
            _ => io::receive(h, &s, &to, 0),
        })),
        Err(_busy) => {
            // SAFETY: as above.
            let native = || unsafe { real::readv(fd, iov, n) };
            match (overlay::of(fd), vector(iov, n)) {
                (Some(h), Ok(to)) => overlay::read(fd, h, &Buffers::many(to), &native),
                _ => read_by_kernel(fd, native()),
            }
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(fd: c_int, iov: *const iovec, n: c_int) -> ssize_t {
    match ours_to_write(fd) {
        // Of no bytes it is no write at all, on a broken connection, too.
        Ok((h, s)) => length(vector(iov, n).map(Buffers::many).and_then(|from| match from.total() {
            0 => Ok(0),
            _ => io::send(h, &s, &from, 0),
        })),
        Err(_busy) => {
            // SAFETY: as above.
            let native = || unsafe { real::writev(fd, iov, n) };
            match (overlay::of(fd), vector(iov, n)) {
                (Some(h), Ok(from)) => overlay::write(fd, h, &Buffers::many(from), &native),
                _ => written_by_kernel(fd, native()),
            }
        }
    }
}

fn message_vector<'a>(iov: *const iovec, n: size_t) -> Result<&'a [iovec]> {
    vector(iov, c_int::try_from(n).map_err(|_| Errno(libc::EMSGSIZE))?)
        .map_err(|e| if e.0 == libc::EINVAL { Errno(libc::EMSGSIZE) } else { e })
}

/// recvmsg(2) of a connection.
///
/// # Safety
/// `msg` is the application's message header.
unsafe fn receive_message(h: &Handle, s: &Stream, msg: *mut msghdr, flags: c_int) -> Result<usize> {
    if is_nowhere(msg) {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: contract.
    let m = unsafe { &mut *msg };
    let v = message_vector(m.msg_iov, m.msg_iovlen)?;
    if flags & libc::MSG_ERRQUEUE != 0 {
        return zerocopy::receive(h, s, m);
    }
    if s.is_unix() {
        // SAFETY: contract.
        let n = unsafe { ancillary::receive(h, s, m, &Buffers::many(v), flags) }?;
        if let (false, Some(fd)) = (m.msg_name.is_null(), table::find(h)) {
            // SAFETY: contract.
            unsafe { name_sender(fd, s, m.msg_name.cast(), &raw mut m.msg_namelen) };
        }
        return Ok(n);
    }
    let n = io::receive(h, s, &Buffers::many(v), flags)?;
    if !m.msg_name.is_null() {
        m.msg_namelen = 0;
    }
    let (told, cut) = match n {
        0 => (0, 0),
        _ if flags & libc::MSG_OOB != 0 => (0, 0),
        // SAFETY: contract.
        _ => unsafe { stamps::tell(s, m) },
    };
    m.msg_controllen = told;
    // The urgent byte says that it is one, and whether there was room for it.
    let no_room = if n == 0 { libc::MSG_TRUNC } else { 0 };
    let urgent = if flags & libc::MSG_OOB != 0 { libc::MSG_OOB | no_room } else { 0 };
    m.msg_flags = flags & libc::MSG_CMSG_CLOEXEC | urgent | cut;
    Ok(n)
}

/// sendmsg(2) of a connection. TCP takes no ancillary data.
///
/// # Safety
/// `msg` is the application's message header.
unsafe fn send_message(h: &Handle, s: &Stream, msg: *const msghdr, flags: c_int) -> Result<usize> {
    if is_nowhere(msg) {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: contract.
    let m = unsafe { &*msg };
    if s.is_unix() && m.msg_namelen > 0 {
        return Err(Errno(libc::EISCONN));
    }
    if s.is_unix() && m.msg_controllen > 0 {
        let from = Buffers::many(message_vector(m.msg_iov, m.msg_iovlen)?);
        // SAFETY: contract.
        return unsafe { ancillary::send(h, s, m, &from, flags) };
    }
    io::send(h, s, &Buffers::many(message_vector(m.msg_iov, m.msg_iovlen)?), flags)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvmsg(fd: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t {
    match ours(fd) {
        // SAFETY: as above.
        Ok((h, s)) => length(unsafe { receive_message(h, &s, msg, flags) }),
        Err(_busy) => {
            // SAFETY: as above.
            let r = unsafe { real::recvmsg(fd, msg, flags) };
            if r >= 0 {
                // SAFETY: as above.
                unsafe { hide_sender(fd, r, (*msg).msg_name.cast(), &raw mut (*msg).msg_namelen) };
            }
            read_by_kernel(fd, r)
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(fd: c_int, msg: *const msghdr, flags: c_int) -> ssize_t {
    match ours_to_send(fd, msg) {
        // SAFETY: as above.
        Ok((h, s)) => length(unsafe { send_message(h, &s, msg, flags) }),
        Err(_) if flags & libc::MSG_FASTOPEN != 0 && !is_nowhere(msg) => {
            // SAFETY: as above.
            let m = unsafe { &*msg };
            match open_fast(fd, m.msg_name.cast(), m.msg_namelen) {
                // SAFETY: as above.
                Fast::Open(h, s) => length(unsafe { send_message(h, &s, msg, flags & !libc::MSG_FASTOPEN) }),
                Fast::Failed(e) => length(Err(e)),
                Fast::Kernel => {
                    // SAFETY: as above.
                    let r = unsafe { real::sendmsg(fd, msg, flags) };
                    fast_opened_by_kernel(fd, r)
                }
            }
        }
        Err(_busy) => {
            before_kernel(fd, flags);
            // SAFETY: as above.
            written_by_kernel(fd, unsafe { send_by_kernel(fd, msg, flags) })
        }
    }
}

/// sendmsg(2), with descriptors that anybody can use.
unsafe fn send_by_kernel(fd: c_int, msg: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the application's message, by contract with C.
    unsafe {
        match rights::substitute(msg) {
            Ok(None) => real::sendmsg(fd, msg, flags),
            Ok(Some(mut other)) => {
                let message = other.message(msg);
                real::sendmsg(fd, &raw const message, flags)
            }
            Err(e) => fail(e) as ssize_t,
        }
    }
}

/// One message after another, while they succeed and `one` says that there may be more: the number of messages, or the first
/// one's error. Linux takes at most 1024.
fn each(n: c_uint, mut one: impl FnMut(usize) -> Result<bool>) -> c_int {
    let mut done = 0;
    for i in 0..n.min(1024) as usize {
        match one(i) {
            Ok(more) => {
                done += 1;
                if !more {
                    break;
                }
            }
            Err(e) if done == 0 => return fail(e),
            Err(_) => break,
        }
    }
    done
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvmmsg(
    fd: c_int,
    msgs: *mut mmsghdr,
    n: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    let (h, s) = match ours(fd) {
        Ok(ours) => ours,
        // SAFETY: as above.
        Err(_busy) => return unsafe { real::recvmmsg(fd, msgs, n, flags, timeout) },
    };
    // SAFETY: the application's pointer, null or to a timespec.
    let mut limit = unsafe { timeout.as_mut() };
    if limit.as_ref().is_some_and(|t| t.tv_sec < 0 || !(0..1_000_000_000).contains(&t.tv_nsec)) {
        return fail(Errno(libc::EINVAL));
    }
    let end = limit.as_ref().map(|t| sys::now() + crate::exports::ready::duration(t));
    let mut once = flags & !libc::MSG_WAITFORONE;
    each(n, |i| {
        // SAFETY: the application's array of `n` elements.
        let (header, len) = unsafe {
            let m = msgs.add(i);
            (&raw mut (*m).msg_hdr, &raw mut (*m).msg_len)
        };
        // SAFETY: as above.
        let got = unsafe { receive_message(h, &s, header, once) }?;
        // SAFETY: as above.
        unsafe { *len = c_uint::try_from(got).unwrap_or(c_uint::MAX) };
        if flags & libc::MSG_WAITFORONE != 0 {
            once |= libc::MSG_DONTWAIT;
        }
        // The time is looked at after each message only: the first is waited for as long as it takes.
        let Some((limit, end)) = limit.as_deref_mut().zip(end) else { return Ok(flags & libc::MSG_OOB == 0) };
        let left = end.saturating_sub(sys::now());
        limit.tv_sec = libc::time_t::try_from(left.as_secs()).unwrap_or(0);
        limit.tv_nsec = left.subsec_nanos().into();
        Ok(!left.is_zero() && flags & libc::MSG_OOB == 0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmmsg(fd: c_int, msgs: *mut mmsghdr, n: c_uint, flags: c_int) -> c_int {
    let (h, s) = match ours_to_write(fd) {
        Ok(ours) => ours,
        // SAFETY: as above.
        Err(_busy) => return unsafe { send_many_by_kernel(fd, msgs, n, flags) },
    };
    each(n, |i| {
        // SAFETY: the application's array of `n` elements.
        unsafe {
            let m = msgs.add(i);
            let sent = send_message(h, &s, &raw const (*m).msg_hdr, flags)?;
            (*m).msg_len = c_uint::try_from(sent).unwrap_or(c_uint::MAX);
            let v = message_vector((*m).msg_hdr.msg_iov, (*m).msg_hdr.msg_iovlen)?;
            Ok(sent == Buffers::many(v).total())
        }
    })
}

/// sendmmsg(2); one message at a time if any carries something of ours.
unsafe fn send_many_by_kernel(fd: c_int, msgs: *mut mmsghdr, n: c_uint, flags: c_int) -> c_int {
    if flags & libc::MSG_FASTOPEN != 0
        && let Some(refused) = fresh::refused(fd)
    {
        return refused;
    }
    let bare = |i: usize| {
        // SAFETY: the application's array of `n` elements.
        msgs.is_null() || unsafe { (*msgs.add(i)).msg_hdr.msg_controllen == 0 }
    };
    if (0..n as usize).all(bare) {
        // SAFETY: as above.
        return unsafe { real::sendmmsg(fd, msgs, n, flags) };
    }
    each(n, |i| {
        // SAFETY: as above.
        unsafe {
            let m = msgs.add(i);
            let sent = send_by_kernel(fd, &raw const (*m).msg_hdr, flags);
            if sent < 0 {
                return Err(sys::errno());
            }
            (*m).msg_len = c_uint::try_from(sent).unwrap_or(c_uint::MAX);
        }
        Ok(true)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn __read_chk(fd: c_int, buf: *mut c_void, n: size_t, size: size_t) -> ssize_t {
    match ours(fd) {
        // A length beyond the buffer is the original's to punish.
        // SAFETY: as above.
        Ok(_) if n <= size => unsafe { read(fd, buf, n) },
        // SAFETY: as above.
        Err(_) if n <= size && overlay::of(fd).is_some() => unsafe { read(fd, buf, n) },
        // SAFETY: as above.
        _ => unsafe { real::__read_chk(fd, buf, n, size) },
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn __recv_chk(
    fd: c_int,
    buf: *mut c_void,
    n: size_t,
    size: size_t,
    flags: c_int,
) -> ssize_t {
    match ours(fd) {
        // SAFETY: as above.
        Ok(_) if n <= size => unsafe { recv(fd, buf, n, flags) },
        // SAFETY: as above.
        _ => unsafe { real::__recv_chk(fd, buf, n, size, flags) },
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn __recvfrom_chk(
    fd: c_int,
    buf: *mut c_void,
    n: size_t,
    size: size_t,
    flags: c_int,
    addr: *mut sockaddr,
    len: *mut socklen_t,
) -> ssize_t {
    match ours(fd) {
        // SAFETY: as above.
        Ok(_) if n <= size => unsafe { recvfrom(fd, buf, n, flags, addr, len) },
        // SAFETY: as above.
        _ => unsafe { real::__recvfrom_chk(fd, buf, n, size, flags, addr, len) },
    }
}
