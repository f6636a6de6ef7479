//! `AF_UNIX` stream sockets with names (unix(7)).
//!
//! The kernel really connects and accepts them, so names, permissions, the accept queue and who the other side is are its
//! own; only bytes go another way. A client asks the coordinator beforehand whether a process with the shim listens there,
//! and gets a connection that it names its socket after; the server reads that name off what it has accepted, and claims the
//! connection. Nobody believes anybody: each side compares the process that the coordinator speaks of with the one that
//! the kernel shows (`SO_PEERCRED`). The application sees sockets without a name, as they would be.
//!
//! `unsafe` is allowed here: calls to libc's originals and the C structures of the socket interface.
#![allow(unsafe_code)]

use core::ffi::CStr;
use core::sync::atomic::Ordering;

use libc::{sockaddr, socklen_t};
use ring::msg::{Addr, Completion, ConnId, Request, Status};
use ring::stats::Reason;

use crate::connect::{self, Path};
use crate::handle::{self, Handle, Kind, touched};
use crate::listener::{self, PeerOut};
use crate::segments::Mapped;
use crate::sock::{Sock, modes};
use crate::sys::{Errno, NoSignals};
use crate::{arrivals, coordinator, holds, options, process, real, segments, socket, stats, sys, table};

/// Bytes of an address before its path.
const FAMILY_BYTES: usize = size_of::<libc::sa_family_t>();
/// Bytes of a path or abstract name.
const PATH_BYTES: usize = size_of::<libc::sockaddr_un>() - FAMILY_BYTES;

/// The name of an address of the application: a path as it stands there, or an abstract name with its zero byte.
fn name_in(addr: *const sockaddr, len: socklen_t) -> Option<([u8; PATH_BYTES + 1], usize)> {
    let n = (len as usize).checked_sub(FAMILY_BYTES).filter(|n| (1..=PATH_BYTES).contains(n))?;
    if options::read_family(addr, len)? != libc::AF_UNIX {
        return None;
    }
    let mut name = [0; PATH_BYTES + 1];
    // SAFETY: the application's address has `len` bytes, of which `n` follow the family.
    unsafe { core::ptr::copy_nonoverlapping(addr.cast::<u8>().add(FAMILY_BYTES), name.as_mut_ptr(), n) };
    Some((name, n))
}

/// What the coordinator knows a name by: the file of a path, a digest of an abstract name. Just a hint: a wrong one leads
/// to a listener whose process is not the one that the kernel shows.
fn key_of(addr: *const sockaddr, len: socklen_t) -> Option<Addr> {
    let (name, n) = name_in(addr, len)?;
    let name = name.get(..n + 1)?;
    if name.first() == Some(&0) {
        return Some(Addr::unix(digest(name.get(1..n)?)));
    }
    let stat = rustix::fs::stat(CStr::from_bytes_until_nul(name).ok()?).ok()?;
    let is_socket = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Socket;
    let mut key = [0; 16];
    for (to, from) in
        key.iter_mut().zip(stat.st_dev.to_le_bytes().into_iter().chain(stat.st_ino.to_le_bytes()))
    {
        *to = from;
    }
    is_socket.then_some(Addr::unix(key))
}

/// FNV-1a, 128 bits.
fn digest(bytes: &[u8]) -> [u8; 16] {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME)).to_le_bytes()
}

/// The kernel's name of a socket (`local`) or of its peer, as an address.
fn kernel_name(fd: i32, local: bool) -> Option<(libc::sockaddr_un, socklen_t)> {
    // SAFETY: all zero is a valid address.
    let mut name: libc::sockaddr_un = unsafe { core::mem::zeroed() };
    let mut len = socklen_t::try_from(size_of::<libc::sockaddr_un>()).ok()?;
    let call = if local { real::getsockname } else { real::getpeername };
    // SAFETY: room for `len` bytes.
    let r = unsafe { call(fd, (&raw mut name).cast(), &raw mut len) };
    (r == 0).then_some((name, len))
}

/// The key of what a listening socket is bound to.
pub fn key_of_bound(fd: i32) -> Option<Addr> {
    let (name, len) = kernel_name(fd, true)?;
    key_of((&raw const name).cast(), len)
}

/// The names that clients take: abstract, `ipc-direct:` epoch `:` connection, in hexadecimal.
const TOKEN_PREFIX: &[u8] = b"\0ipc-direct:";
const TOKEN_BYTES: usize = TOKEN_PREFIX.len() + 8 + 1 + 16;

fn hex(value: u64, out: &mut [u8]) {
    for (i, to) in out.iter_mut().rev().enumerate() {
        *to = b"0123456789abcdef".get((value >> (4 * i) & 15) as usize).copied().unwrap_or(0);
    }
}

fn unhex(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0, |value, c| Some(value << 4 | u64::from(char::from(*c).to_digit(16)?)))
}

/// Names the socket after its connection.
fn bind_token(fd: i32, conn: ConnId) -> bool {
    // SAFETY: all zero is a valid address.
    let mut name: libc::sockaddr_un = unsafe { core::mem::zeroed() };
    name.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or(0);
    let mut text = [0u8; TOKEN_BYTES];
    let (prefix, rest) = text.split_at_mut(TOKEN_PREFIX.len());
    prefix.copy_from_slice(TOKEN_PREFIX);
    let (epoch, rest) = rest.split_at_mut(8);
    hex(process::epoch().into(), epoch);
    if let Some((colon, conn_text)) = rest.split_first_mut() {
        *colon = b':';
        hex(conn.0, conn_text);
    }
    for (to, from) in name.sun_path.iter_mut().zip(text) {
        *to = from.cast_signed();
    }
    let len = socklen_t::try_from(FAMILY_BYTES + TOKEN_BYTES).unwrap_or(0);
    // SAFETY: an address of that length.
    unsafe { real::bind(fd, (&raw const name).cast(), len) == 0 }
}

/// Epoch and connection, if an address is such a name.
fn token_in(addr: *const sockaddr, len: socklen_t) -> Option<(u32, ConnId)> {
    let (name, n) = name_in(addr, len)?;
    let text = name.get(..n)?.strip_prefix(TOKEN_PREFIX)?;
    let (epoch, rest) = text.split_at_checked(8)?;
    let conn = rest.strip_prefix(b":").filter(|c| c.len() == 16)?;
    Some((u32::try_from(unhex(epoch)?).ok()?, ConnId(unhex(conn)?)))
}

/// After the kernel wrote a name for the application: one of ours is none.
pub fn hide_token(addr: *mut sockaddr, len: *mut socklen_t, room: socklen_t) {
    if addr.is_null() || len.is_null() {
        return;
    }
    // SAFETY: the application's pointers, which the kernel has just written to.
    unsafe {
        if *len as usize == FAMILY_BYTES + TOKEN_BYTES && token_in(addr, (*len).min(room)).is_some() {
            *len = socklen_t::try_from(FAMILY_BYTES).unwrap_or(0);
        }
    }
}

/// getsockname(2) or getpeername(2) of any `AF_UNIX` socket that we know.
///
/// # Safety
/// The application's arguments.
pub unsafe fn name(fd: i32, local: bool, addr: *mut sockaddr, len: *mut socklen_t) -> i32 {
    let call = if local { real::getsockname } else { real::getpeername };
    // SAFETY: by contract.
    unsafe {
        let room = if len.is_null() { 0 } else { *len };
        let r = call(fd, addr, len);
        if r == 0 {
            hide_token(addr, len, room);
        }
        r
    }
}

/// The process at the other end, by the kernel; for a listener's client, the one that called listen(2).
fn kernel_peer(fd: i32) -> Option<u32> {
    options::kernel_peer_credentials(fd).map(|[pid, ..]| pid)
}

/// What a connect has before the kernel is asked.
struct Prepared {
    conn: ConnId,
    pid: u32,
    sock: &'static Sock,
    segment: (u32, &'static Mapped),
}

/// connect(2) to a name.
pub fn connect(fd: i32, h: &'static Handle, addr: *const sockaddr, len: socklen_t) -> Path {
    let prepared = match prepare(fd, h, addr, len) {
        Ok(prepared) => prepared,
        Err(reason) => {
            stats::set_reason(h.index(), reason);
            return Path::Kernel;
        }
    };
    let noted = holds::note(abandon, [usize::try_from(prepared.conn.0).unwrap_or(0), 0]);
    // SAFETY: the application's arguments. Blocks while the listener's queue is full.
    let r = unsafe { real::connect(fd, addr, len) };
    drop(noted);
    let error = sys::errno();
    let _no_signals = NoSignals::new();
    if r != 0 || kernel_peer(fd) != Some(prepared.pid) {
        prepared.give_up();
        sys::set_errno(error);
        connect::kernel_connected(fd, Some(libc::AF_UNIX), r);
        return Path::User(if r == 0 { Ok(()) } else { Err(error) });
    }
    options::take_over(fd, h, prepared.sock);
    prepared.sock.modes.fetch_or(modes::UNIX, Ordering::Relaxed);
    let joined = socket::join_mapped(h, prepared.sock, prepared.conn, 0, true, prepared.segment);
    if joined.is_none() {
        prepared.give_up();
        return Path::User(Err(Errno(libc::ECONNREFUSED)));
    }
    if h.was(touched::SIGNALS) {
        arrivals::follow(fd, h);
    }
    Path::User(Ok(()))
}

/// For a connect that never returned.
fn abandon(conn: usize, _: usize) {
    let conn = ConnId(conn as u64);
    if let Some((_, mapped)) = segments::find(conn.segment(), 0) {
        mapped.leave(conn.slot());
    }
    let _ = coordinator::post(Request::Close { conn, side: 0, finished: false });
}

impl Prepared {
    fn give_up(&self) {
        self.segment.1.leave(self.conn.slot());
        let _ = coordinator::post(Request::Close { conn: self.conn, side: 0, finished: false });
        self.sock.free();
    }
}

/// A connection for the socket, if a process with the shim listens at the name.
fn prepare(fd: i32, h: &'static Handle, addr: *const sockaddr, len: socklen_t) -> Result<Prepared, Reason> {
    let dst = key_of(addr, len).ok_or(Reason::NoListener)?;
    if !process::ensure_attached() {
        return Err(Reason::NoAgent);
    }
    if let Some(reason) = h.kernel_only() {
        return Err(reason);
    }
    if h.was(touched::BOUND) {
        return Err(Reason::Source);
    }
    if !process::is_home(fd) || !process::is_seen_as_itself() {
        return Err(Reason::Namespace);
    }
    let _no_signals = NoSignals::new();
    let sock = socket::new_sock().ok_or(Reason::TooMany)?;
    let (conn, pid) = connect::ask(dst, Addr::default()).inspect_err(|_| sock.free())?;
    let segment = segments::map(conn.segment(), 0);
    let Some(segment) = segment.filter(|s| {
        bind_token(fd, conn) || {
            s.1.leave(conn.slot());
            false
        }
    }) else {
        let _ = coordinator::post(Request::Close { conn, side: 0, finished: false });
        sock.free();
        return Err(if segment.is_none() { Reason::NoSegment } else { Reason::Source });
    };
    // It has a name now, and can't have another.
    h.touched.fetch_or(touched::BOUND, Ordering::Relaxed);
    Ok(Prepared { conn, pid, sock, segment })
}

/// accept4(2) of a listener with a name: the kernel's, and then the connection that belongs to it.
///
/// # Safety
/// The application's arguments.
pub unsafe fn accept(fd: i32, h: &'static Handle, out: PeerOut, flags: i32) -> i32 {
    listener::renew_if_lost(fd, h);
    let number = listener::number_of(h);
    let (domain, ty) = h.family();
    // SAFETY: by contract.
    let (new, room) = unsafe {
        let room = if out.len.is_null() { 0 } else { *out.len };
        (real::accept4(fd, out.addr, out.len, flags), room)
    };
    if new < 0 {
        return new;
    }
    let token = kernel_name(new, false).and_then(|(name, len)| token_in((&raw const name).cast(), len));
    hide_token(out.addr, out.len, room);
    let _no_signals = NoSignals::new();
    if let (Some((epoch, conn)), Some(listener)) = (token, number)
        && epoch == process::epoch()
    {
        let claimed = coordinator::call(Request::Claim { listener, conn });
        if let Ok(Completion::Accepted { status: Status::Ok, peer, .. }) = claimed {
            let passes =
                h.sock().is_some_and(|s| s.modes.load(Ordering::Relaxed) & modes::PASS_CREDENTIALS != 0);
            return install(new, (domain, ty), conn, peer, flags, passes);
        }
        // Nothing of that name: the client has let go of it, and uses the kernel.
        if !matches!(claimed, Ok(Completion::Accepted { status: Status::Empty, .. })) {
            sys::close(new);
            sys::set_errno(Errno(libc::ECONNABORTED));
            return -1;
        }
    }
    socket::made(new, domain, ty);
    if let Some(n) = table::get(new) {
        socket::went_to_kernel(new, n, Reason::ClientUnshimmed);
    }
    new
}

/// What the kernel has accepted is this connection.
fn install(fd: i32, (domain, ty): (i32, i32), conn: ConnId, peer: Addr, flags: i32, passes: bool) -> i32 {
    let made = match kernel_peer(fd) {
        Some(pid) if pid == peer.process() => handle::allocate(Kind::Kernel, fd, domain, ty),
        _ => None,
    };
    if let Some((h, sock)) = made.zip(socket::new_sock()) {
        sock.nonblock.store(u32::from(flags & libc::SOCK_NONBLOCK != 0), Ordering::Relaxed);
        // Newer kernels let it inherit that.
        let passes = passes && options::kernel_flag(fd, libc::SOL_SOCKET, libc::SO_PASSCRED);
        let pass = if passes { modes::PASS_CREDENTIALS } else { 0 };
        sock.modes.store(modes::UNIX | pass, Ordering::Relaxed);
        if socket::join(h, sock, conn, 1).is_some() {
            if table::set(fd, h) {
                return fd;
            }
        } else {
            sock.free();
        }
        socket::release(h);
    } else if let Some(h) = made {
        socket::release(h);
    }
    let _ = coordinator::post(Request::Close { conn, side: 1, finished: false });
    sys::close(fd);
    sys::set_errno(Errno(libc::ECONNABORTED));
    -1
}

/// After listen(2) of what is a listener already: if another process called it before, the kernel shows us from now on, and
/// the coordinator the other one. So clients use the kernel.
pub fn listened_again(h: &'static Handle) {
    if h.turns.load(Ordering::Relaxed) != sys::getpid() {
        crate::relay::withdraw(h);
    }
}
