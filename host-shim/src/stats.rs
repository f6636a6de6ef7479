//! The counters that `ipc-direct ps` shows: written here, in memory that the agent reads.
//!
//! `unsafe` is allowed here: the pointer to that memory.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use ring::msg::{Addr, ConnId};
use ring::shared::Region;
use ring::stats::{
    Reason, STATS_BYTES, Sleep, SleeperStats, SocketState, SocketStats, Stats, StatsHeader, Traffic, add,
};

use crate::handle::{Handle, Kind};
use crate::{me, sys};

static BASE: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

fn stats() -> Option<Stats<'static>> {
    let base = core::ptr::NonNull::new(BASE.load(Ordering::Acquire))?;
    // SAFETY: mapped for STATS_BYTES when it was set, and never unmapped.
    Stats::over(unsafe { Region::new(base, STATS_BYTES) })
}

/// Uses newly mapped stats memory from now on; `region` stays mapped for ever.
pub fn install(region: Region) {
    BASE.store(region.base().as_ptr(), Ordering::Release);
    show_io_urings();
    for h in crate::handle::all() {
        show_again(h);
    }
}

/// What existed before this process was attached: older sockets, or those inherited by a forked child.
fn show_again(h: &Handle) {
    let state = match h.kind() {
        Kind::Stream => SocketState::User,
        Kind::Listener => SocketState::Listening,
        Kind::Kernel => SocketState::Idle,
        Kind::Epoll | Kind::Overlay | Kind::Free => return,
    };
    let (domain, ty) = h.family();
    let reason = if h.kind() == Kind::Kernel { passed_through(domain, ty) } else { Reason::None };
    let fd = crate::table::find(h).unwrap_or(-1);
    show(h.index(), fd, h.family_type.load(Ordering::Relaxed), state, reason);
    if let (Some(sock), Some(e)) = (h.sock(), entry(h.index())) {
        let (local, peer) = sock.addrs();
        e.set_addrs(local, peer);
        e.conn.store(h.conn.load(Ordering::Relaxed), Ordering::Relaxed);
        e.side.store(h.side.load(Ordering::Relaxed), Ordering::Relaxed);
        e.tail.store(sock.writer().tail, Ordering::Relaxed);
    }
}

/// Why sockets of this family and type are the kernel's; [`Reason::None`] for those that need not be.
pub fn passed_through(domain: i32, ty: i32) -> Reason {
    match (domain, ty) {
        (libc::AF_INET | libc::AF_INET6 | libc::AF_UNIX, libc::SOCK_STREAM) => Reason::None,
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM) => Reason::Udp,
        (libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_SEQPACKET) => Reason::UnixMessage,
        _ => Reason::Family,
    }
}

/// Times that the program asked for an io_uring in vain; here, since most ask before this process is attached.
static IO_URINGS_REFUSED: AtomicU64 = AtomicU64::new(0);

/// The program asked for an io_uring in vain.
pub fn io_uring_refused() {
    IO_URINGS_REFUSED.fetch_add(1, Ordering::Relaxed);
    show_io_urings();
}

fn show_io_urings() {
    if let Some(s) = stats() {
        s.header.io_urings_refused.store(IO_URINGS_REFUSED.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// After fork, in the child: the parent's memory is not ours to write.
pub fn uninstall() {
    BASE.store(core::ptr::null_mut(), Ordering::Release);
}

#[inline(always)]
fn entry(index: u32) -> Option<&'static SocketStats> {
    stats()?.sockets.get(index as usize)
}

/// A new socket.
pub fn show(index: u32, fd: i32, family_type: u32, state: SocketState, reason: Reason) {
    let Some(s) = stats() else { return };
    let Some(e) = s.sockets.get(index as usize) else { return };
    e.fd.store(fd.cast_unsigned(), Ordering::Relaxed);
    e.family_type.store(family_type, Ordering::Relaxed);
    e.reason.store(reason as u32, Ordering::Relaxed);
    e.conn.store(0, Ordering::Relaxed);
    e.tail.store(0, Ordering::Relaxed);
    e.set_addrs(Addr::default(), Addr::default());
    // Release: a reader that sees the state sees a whole entry, for show.
    e.state.store(state as u32, Ordering::Release);
    s.header.used.fetch_max(index + 1, Ordering::Relaxed);
}

/// The socket changed path or addresses.
pub fn set_state(index: u32, state: SocketState, reason: Reason, addrs: Option<(Addr, Addr)>) {
    let Some(s) = stats() else { return };
    let Some(e) = s.sockets.get(index as usize) else { return };
    if let Some((local, peer)) = addrs {
        e.set_addrs(local, peer);
    }
    e.reason.store(reason as u32, Ordering::Relaxed);
    e.state.store(state as u32, Ordering::Release);
    match state {
        SocketState::User => add(&s.header.user_conns, 1),
        SocketState::Kernel => add(&s.header.kernel_conns, 1),
        _ => {}
    }
}

/// The socket is this connection in user space.
pub fn set_conn(index: u32, conn: ConnId, side: u32) {
    if let Some(e) = entry(index) {
        e.conn.store(conn.0, Ordering::Relaxed);
        e.side.store(side, Ordering::Relaxed);
    }
}

/// The descriptor, once it is known.
pub fn set_fd(index: u32, fd: i32) {
    if let Some(e) = entry(index) {
        e.fd.store(fd.cast_unsigned(), Ordering::Relaxed);
    }
}

/// Only why it is not accelerated.
pub fn set_reason(index: u32, reason: Reason) {
    if let Some(e) = entry(index) {
        e.reason.store(reason as u32, Ordering::Relaxed);
    }
}

/// The reason as last set.
pub fn reason(index: u32) -> Reason {
    entry(index).map_or(Reason::Unknown, |e| Reason::from_wire(e.reason.load(Ordering::Relaxed)))
}

/// Bytes sent in one call. Plain adds: the direction lock (or the kernel path's tolerance) makes it one writer.
#[inline(always)]
pub fn sent(index: u32, bytes: usize) {
    if let Some(e) = entry(index) {
        add(&e.traffic.tx_bytes, bytes as u64);
        add(&e.traffic.tx_ops, 1);
    }
}

/// [`sent`], into a stream, which is at `tail` now: on the line that was just written anyway.
#[inline(always)]
pub fn sent_to(index: u32, bytes: usize, tail: u64) {
    if let Some(e) = entry(index) {
        e.tail.store(tail, Ordering::Relaxed);
        add(&e.traffic.tx_bytes, bytes as u64);
        add(&e.traffic.tx_ops, 1);
    }
}

/// Bytes received in one call.
#[inline(always)]
pub fn received(index: u32, bytes: usize) {
    if let Some(e) = entry(index) {
        add(&e.traffic.rx_bytes, bytes as u64);
        add(&e.traffic.rx_ops, 1);
    }
}

/// What went through a socket of ours.
#[derive(Clone, Copy, Default)]
pub struct Moved {
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Calls that sent any.
    pub tx_ops: u32,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Calls that received any.
    pub rx_ops: u32,
}

/// What this process has counted for a socket so far.
#[must_use]
pub fn traffic(index: u32) -> Moved {
    let Some(e) = entry(index) else { return Moved::default() };
    let ops = |n: &AtomicU64| u32::try_from(n.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
    Moved {
        tx_bytes: e.traffic.tx_bytes.load(Ordering::Relaxed),
        tx_ops: ops(&e.traffic.tx_ops),
        rx_bytes: e.traffic.rx_bytes.load(Ordering::Relaxed),
        rx_ops: ops(&e.traffic.rx_ops),
    }
}

/// Bytes that a call on a pipe moved through the kernel: of an object that may go through user space at other times.
pub fn moved_by_kernel(out: bool, bytes: usize) {
    let Some(s) = stats() else { return };
    let t = &s.header.closed_kernel;
    let (total, calls) = if out { (&t.tx_bytes, &t.tx_ops) } else { (&t.rx_bytes, &t.rx_ops) };
    add(total, bytes as u64);
    add(calls, 1);
}

fn count(which: fn(&StatsHeader) -> &AtomicU64) {
    if let Some(s) = stats() {
        add(which(s.header), 1);
    }
}

/// A thread goes to sleep on `what`, and maybe on `fd`: shown until the guard is dropped.
#[must_use]
pub fn asleep(what: Sleep, fd: Option<i32>) -> Asleep {
    count(|h| &h.sleeps);
    let tid = me::tid();
    let free =
        |s: &&SleeperStats| s.tid.compare_exchange(0, tid, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    let place = stats().and_then(|s| s.sleepers.iter().find(free));
    if let Some(s) = place {
        s.what.store(what as u32, Ordering::Relaxed);
        s.fd.store(fd.unwrap_or(-1).cast_unsigned(), Ordering::Relaxed);
        s.since_ns.store(u64::try_from(sys::now().as_nanos()).unwrap_or(0), Ordering::Relaxed);
    }
    Asleep(place)
}

/// This thread does not sleep, whatever [`asleep`] has shown.
pub fn awake() {
    let tid = me::tid();
    for s in stats().iter().flat_map(|s| s.sleepers) {
        let _ = s.tid.compare_exchange(tid, 0, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// See [`asleep`].
pub struct Asleep(Option<&'static SleeperStats>);

impl Drop for Asleep {
    fn drop(&mut self) {
        if let Some(s) = self.0 {
            s.tid.store(0, Ordering::Release);
        }
    }
}

/// A descriptor of ours turned out to be another file's.
pub fn escaped() {
    count(|h| &h.escapes);
}

/// `fd` is no longer a descriptor of this socket, which has others: shows one of those.
pub fn moved(h: &Handle, fd: i32) {
    if let Some(e) = entry(h.index())
        && e.fd.load(Ordering::Relaxed) == fd.cast_unsigned()
    {
        let other = crate::table::find(h).unwrap_or(-1);
        e.fd.store(other.cast_unsigned(), Ordering::Relaxed);
    }
}

/// A wake-up was sent.
pub fn woke() {
    count(|h| &h.wakes);
}

/// The socket is closed: its traffic moves to the totals.
pub fn retire(index: u32) {
    let Some(s) = stats() else { return };
    let Some(e) = s.sockets.get(index as usize) else { return };
    let total = match SocketState::from_wire(e.state.load(Ordering::Relaxed)) {
        SocketState::User => &s.header.closed_user,
        _ => &s.header.closed_kernel,
    };
    e.state.store(SocketState::Unused as u32, Ordering::Release);
    let move_to = |pick: fn(&Traffic) -> &AtomicU64| {
        add(pick(total), pick(&e.traffic).swap(0, Ordering::Relaxed));
    };
    move_to(|t| &t.tx_bytes);
    move_to(|t| &t.rx_bytes);
    move_to(|t| &t.tx_ops);
    move_to(|t| &t.rx_ops);
}
