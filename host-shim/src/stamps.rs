//! `SO_TIMESTAMP` and its relatives (socket(7)): recvmsg(2) says when the latest of what it read has arrived.
//!
//! The writer is asked to leave the time of each publication (SPEC 6.4.12). It does so after the publication, so that who reads at once may
//! find an older time there: then the bytes have come just now. Neighbouring arrivals share a time in Linux, too (tcp_try_coalesce).
//!
//! `unsafe` is allowed here: the application's buffer for ancillary data.
#![allow(unsafe_code)]

use core::sync::atomic::Ordering;

use ring::wake;

use crate::ancillary;
use crate::handle::Stream;
use crate::options;
use crate::sock::Sock;

/// `SO_TIMESTAMP` with 64-bit times on every architecture, which all of ours have anyway.
pub const SO_TIMESTAMP_NEW: i32 = 63;
/// The same in nanoseconds.
pub const SO_TIMESTAMPNS_NEW: i32 = 64;
/// Each is the type of the control message, too. Of a "new" one the kernel shows both, so that of nanoseconds comes first.
const OPTIONS: [i32; 4] = [libc::SO_TIMESTAMPNS, SO_TIMESTAMPNS_NEW, SO_TIMESTAMP_NEW, libc::SO_TIMESTAMP];

/// Is it one of these?
pub fn is_option(level: i32, name: i32) -> bool {
    level == libc::SOL_SOCKET && OPTIONS.contains(&name)
}

/// Takes over what the kernel's descriptor has.
pub fn reload(fd: i32, sock: &Sock) {
    let set = OPTIONS.into_iter().find(|name| options::kernel_flag(fd, libc::SOL_SOCKET, *name));
    sock.stamps.store(set.unwrap_or(0).cast_unsigned(), Ordering::Relaxed);
}

/// Asks the peer for times, or no more, after the option has changed.
pub fn follow(s: &Stream) {
    if s.sock.stamps.load(Ordering::Relaxed) != 0 {
        s.in_dir.rx_watch.fetch_or(wake::STAMP, Ordering::AcqRel);
    } else {
        s.in_dir.rx_watch.fetch_and(!wake::STAMP, Ordering::AcqRel);
    }
}

/// Nanoseconds of the clock that people have.
fn now_ns() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    t.tv_sec.unsigned_abs().saturating_mul(1_000_000_000).saturating_add(t.tv_nsec.unsigned_abs())
}

/// After a publication that the peer wants the time of.
#[cold]
pub fn leave(s: &Stream) {
    // Relaxed: a hint beside the records, compared with the last one.
    s.out_dir.sent_at_ns.store(now_ns(), Ordering::Relaxed);
}

/// When the latest of the input came.
fn arrived_at_ns(s: &Stream) -> u64 {
    let (told_ns, upto) = (&s.sock.stamp_ns, s.arrived());
    let last_ns = told_ns.load(Ordering::Relaxed);
    if s.sock.stamped_upto.swap(upto, Ordering::Relaxed) == upto && last_ns != 0 {
        return last_ns;
    }
    let (left_ns, now_ns) = (s.in_dir.sent_at_ns.load(Ordering::Relaxed), now_ns());
    let at_ns = if left_ns > last_ns { left_ns.min(now_ns) } else { now_ns };
    told_ns.store(at_ns, Ordering::Relaxed);
    at_ns
}

/// The control message of a recvmsg(2) that has read something: bytes of control data, and flags.
///
/// # Safety
/// The application's message.
pub unsafe fn tell(s: &Stream, m: &libc::msghdr) -> (usize, i32) {
    let name = s.sock.stamps.load(Ordering::Relaxed).cast_signed();
    if name == 0 {
        return (0, 0);
    }
    let at_ns = arrived_at_ns(s);
    let in_ns = name == libc::SO_TIMESTAMPNS || name == SO_TIMESTAMPNS_NEW;
    let below_second = at_ns % 1_000_000_000 / if in_ns { 1 } else { 1000 };
    let [a, b] = [at_ns / 1_000_000_000, below_second].map(u64::to_ne_bytes);
    let mut time = [0u8; 16];
    for (to, from) in time.iter_mut().zip(a.into_iter().chain(b)) {
        *to = from;
    }
    let room = if m.msg_control.is_null() { 0 } else { m.msg_controllen };
    // SAFETY: by contract.
    unsafe { ancillary::put(m.msg_control, room, name, &time) }
}
