//! The counters that `ipc-direct ps` shows: written here, in memory that the agent reads.
//!
//! `unsafe` is allowed here: the pointer to that memory.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use ring::msg::Addr;
use ring::shared::Region;
use ring::stats::{Reason, STATS_BYTES, SocketState, SocketStats, Stats, StatsHeader, Traffic, add};

use crate::handle::{Handle, Kind};

static BASE: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

fn stats() -> Option<Stats<'static>> {
    let base = core::ptr::NonNull::new(BASE.load(Ordering::Acquire))?;
    // SAFETY: mapped for STATS_BYTES when it was set, and never unmapped.
    Stats::over(unsafe { Region::new(base, STATS_BYTES) })
}

/// Uses newly mapped stats memory from now on; `region` stays mapped for ever.
pub fn install(region: Region) {
    BASE.store(region.base().as_ptr(), Ordering::Release);
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
        Kind::Epoll | Kind::Free => return,
    };
    let reason = if h.kind() == Kind::Kernel && !h.is_tcp() { Reason::Family } else { Reason::None };
    let fd = crate::table::find(h).unwrap_or(-1);
    show(h.index(), fd, h.family_type.load(Ordering::Relaxed), state, reason);
    if let (Some(sock), Some(e)) = (h.sock(), entry(h.index())) {
        let (local, peer) = sock.addrs();
        e.set_addrs(local, peer);
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

/// Bytes received in one call.
#[inline(always)]
pub fn received(index: u32, bytes: usize) {
    if let Some(e) = entry(index) {
        add(&e.traffic.rx_bytes, bytes as u64);
        add(&e.traffic.rx_ops, 1);
    }
}

fn count(which: fn(&StatsHeader) -> &AtomicU64) {
    if let Some(s) = stats() {
        add(which(s.header), 1);
    }
}

/// A thread goes to sleep.
pub fn slept() {
    count(|h| &h.sleeps);
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
