//! Options that outlive the socket that they were set on: Linux makes an accepted socket a copy of its listener, so what the
//! application set there is repeated on the descriptor that we make. And options whose effect only the kernel has.
//!
//! `unsafe` is allowed here: libc's originals.
#![allow(unsafe_code)]

use core::sync::atomic::Ordering;

use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET};

use super::socklen;
use crate::sock::Sock;
use crate::{real, stamps};

/// Each is a bit of [`Sock::options`] and of [`crate::handle::Handle::options`], set when the application sets the option.
const INHERITED: [(i32, i32); 48] = [
    (SOL_SOCKET, libc::SO_REUSEADDR),
    (SOL_SOCKET, libc::SO_REUSEPORT),
    (SOL_SOCKET, libc::SO_KEEPALIVE),
    (SOL_SOCKET, libc::SO_OOBINLINE),
    (SOL_SOCKET, libc::SO_DONTROUTE),
    (SOL_SOCKET, libc::SO_BROADCAST),
    (SOL_SOCKET, libc::SO_SNDBUF),
    (SOL_SOCKET, libc::SO_RCVBUF),
    (SOL_SOCKET, libc::SO_RCVLOWAT),
    (SOL_SOCKET, libc::SO_RCVTIMEO),
    (SOL_SOCKET, libc::SO_SNDTIMEO),
    (SOL_SOCKET, libc::SO_LINGER),
    (SOL_SOCKET, libc::SO_MARK),
    (SOL_SOCKET, libc::SO_TIMESTAMP),
    (SOL_SOCKET, libc::SO_TIMESTAMPNS),
    (SOL_SOCKET, stamps::SO_TIMESTAMP_NEW),
    (SOL_SOCKET, stamps::SO_TIMESTAMPNS_NEW),
    (SOL_SOCKET, libc::SO_TIMESTAMPING),
    (SOL_SOCKET, libc::SO_BUSY_POLL),
    (SOL_SOCKET, libc::SO_MAX_PACING_RATE),
    (SOL_SOCKET, libc::SO_ZEROCOPY),
    (IPPROTO_TCP, libc::TCP_NODELAY),
    (IPPROTO_TCP, libc::TCP_MAXSEG),
    (IPPROTO_TCP, libc::TCP_CORK),
    (IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (IPPROTO_TCP, libc::TCP_KEEPCNT),
    (IPPROTO_TCP, libc::TCP_SYNCNT),
    (IPPROTO_TCP, libc::TCP_LINGER2),
    (IPPROTO_TCP, libc::TCP_WINDOW_CLAMP),
    (IPPROTO_TCP, libc::TCP_CONGESTION),
    (IPPROTO_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS),
    (IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT),
    (IPPROTO_IP, libc::IP_TOS),
    (IPPROTO_IP, libc::IP_TTL),
    (IPPROTO_IP, libc::IP_PKTINFO),
    (IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (IPPROTO_IP, libc::IP_RECVERR),
    (IPPROTO_IP, libc::IP_RECVTTL),
    (IPPROTO_IP, libc::IP_RECVTOS),
    (IPPROTO_IP, libc::IP_FREEBIND),
    (IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (IPPROTO_IPV6, libc::IPV6_TCLASS),
    (IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    (IPPROTO_IPV6, libc::IPV6_RECVERR),
    (IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
];

/// `SO_RCVTIMEO` with 64-bit times on every architecture (`SO_RCVTIMEO_NEW`).
pub const RCVTIMEO_NEW: i32 = 66;
/// `SO_SNDTIMEO_NEW`.
pub const SNDTIMEO_NEW: i32 = 67;

/// The option's bit; 0 if it is not inherited (or not known).
pub fn bit(level: i32, name: i32) -> u64 {
    let name = match (level, name) {
        (SOL_SOCKET, RCVTIMEO_NEW) => libc::SO_RCVTIMEO,
        (SOL_SOCKET, SNDTIMEO_NEW) => libc::SO_SNDTIMEO,
        (SOL_SOCKET, libc::SO_RCVBUFFORCE) => libc::SO_RCVBUF,
        (SOL_SOCKET, libc::SO_SNDBUFFORCE) => libc::SO_SNDBUF,
        _ => name,
    };
    INHERITED.iter().position(|o| *o == (level, name)).map_or(0, |i| 1 << i)
}

/// Options of which a socket has nothing but the value that was set last, and that [`copy`] copies whole.
const PLAIN: [(i32, i32); 13] = [
    (SOL_SOCKET, libc::SO_REUSEADDR),
    (SOL_SOCKET, libc::SO_KEEPALIVE),
    (SOL_SOCKET, libc::SO_RCVTIMEO),
    (SOL_SOCKET, libc::SO_SNDTIMEO),
    (SOL_SOCKET, libc::SO_SNDBUF),
    (SOL_SOCKET, libc::SO_RCVBUF),
    (IPPROTO_TCP, libc::TCP_NODELAY),
    (IPPROTO_TCP, libc::TCP_CORK),
    (IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (IPPROTO_TCP, libc::TCP_KEEPCNT),
    (IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (IPPROTO_IP, libc::IP_TOS),
];

/// Is the option one of these?
pub fn is_plain(level: i32, name: i32) -> bool {
    PLAIN.contains(&(level, name))
}

/// An accepted connection gets what its listener has.
pub fn inherit(parent: &Sock, sock: &Sock) {
    for (to, from) in
        [(&sock.rx_timeout_us, &parent.rx_timeout_us), (&sock.tx_timeout_us, &parent.tx_timeout_us)]
    {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    for (to, from) in [
        (&sock.linger_reset, &parent.linger_reset),
        (&sock.lowat, &parent.lowat),
        (&sock.stamps, &parent.stamps),
        (&sock.modes, &parent.modes),
    ] {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// The options whose bits are set, in the kernel.
pub fn copy(from: i32, to: i32, mut bits: u64) {
    while let Some((level, name)) = INHERITED.get(bits.trailing_zeros() as usize) {
        bits &= bits - 1;
        copy_one(from, to, *level, *name);
    }
}

fn copy_one(from: i32, to: i32, level: i32, name: i32) {
    let mut value = [0u32; 8];
    let mut len = socklen::<[u32; 8]>();
    // SAFETY: room of that length.
    let r = unsafe {
        real::getsockopt(from, level, name, (&raw mut value).cast(), core::ptr::from_mut(&mut len))
    };
    // One that is not set any more would take its successor away.
    if r != 0 || (stamps::is_option(level, name) && value.starts_with(&[0])) {
        return;
    }
    if level == SOL_SOCKET && (name == libc::SO_SNDBUF || name == libc::SO_RCVBUF) {
        // The kernel doubles what is set, and says so when asked.
        let [bytes, ..] = &mut value;
        *bytes /= 2;
    }
    // SAFETY: `len` bytes that the kernel has just filled in.
    unsafe { real::setsockopt(to, level, name, (&raw const value).cast(), len) };
}

/// `to` gets what was set on `from`, which is where that differs from `fresh`, a socket that nothing was set on.
pub fn repeat(from: i32, fresh: i32, to: i32) {
    for (level, name) in INHERITED {
        let value = |fd| super::kernel_option::<[u32; 8]>(fd, level, name);
        if value(from) != value(fresh) {
            copy_one(from, to, level, name);
        }
    }
}

/// A socket with this set is left to the kernel: filters, devices, signatures and the like work on packets.
pub fn is_for_kernel_only(level: i32, name: i32) -> bool {
    const TCP_AO_ADD_KEY: i32 = 38;
    const SO_PASSPIDFD: i32 = 76;
    const SO_INQ: i32 = 84;
    match level {
        _ if super::sees_packets(level, name) => true,
        SOL_SOCKET => matches!(
            name,
            libc::SO_BINDTODEVICE
                | libc::SO_BINDTOIFINDEX
                | libc::SO_ATTACH_REUSEPORT_CBPF
                | libc::SO_ATTACH_REUSEPORT_EBPF
                | libc::SO_PASSSEC
                | libc::SO_PEEK_OFF
                | SO_PASSPIDFD
                | SO_INQ
        ),
        IPPROTO_TCP => matches!(
            name,
            libc::TCP_MD5SIG | libc::TCP_MD5SIG_EXT | libc::TCP_REPAIR | libc::TCP_ULP | TCP_AO_ADD_KEY
        ),
        IPPROTO_IP => matches!(name, libc::IP_OPTIONS | libc::IP_TRANSPARENT),
        IPPROTO_IPV6 => name == libc::IPV6_TRANSPARENT,
        _ => false,
    }
}
