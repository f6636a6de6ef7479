//! What getsockopt(2) says of a connection in user space, where the kernel's unconnected descriptor would say something else;
//! and what setsockopt(2) refuses on one.
//!
//! Figures of a network (round trips, windows, segment sizes) are those of a Linux loopback connection that is at rest.
//!
//! `unsafe` is allowed here: the application's pointers.
#![allow(unsafe_code)]

use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::Ordering;

use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET};
use ring::segment::{RING_BYTES, state};

use super::{encode, kernel_option};
use crate::buffers::is_nowhere;
use crate::handle::{Handle, Stream};
use crate::sys::Errno;
use crate::{faces, lazy, poll, real, stats, sys};

/// Largest segment on loopback.
const MSS: u32 = 32_768;
/// What the kernel says of a socket without a connection.
const MSS_UNCONNECTED: u32 = 536;
/// The same of its buffer (the usual `net.ipv4.tcp_wmem`).
const SNDBUF_UNCONNECTED: u32 = 16_384;
/// An IPv4 path's limit; loopback's own is one byte more.
const MTU_V4: u32 = 65_535;
const MTU_V6: u32 = 65_536;
/// `include/uapi/linux/socket.h`.
const SO_PEERNAME: i32 = 28;

/// `SO_ERROR` of a connection: the pending error, once.
fn take_error(h: &Handle, s: &Stream) -> i32 {
    s.take_error(h).map_or(0, |e| e.0)
}

/// getsockopt(2) of a connection: what the placeholder can't know. `None`: ask the kernel.
pub fn get(
    fd: i32,
    h: &Handle,
    s: &Stream,
    level: i32,
    name: i32,
    value: *mut c_void,
    len: *mut libc::socklen_t,
) -> Option<i32> {
    // The kernel's descriptor is connected, too.
    if s.is_unix() && (level, name) != (SOL_SOCKET, libc::SO_ERROR) {
        return None;
    }
    let _pinned = h.pin().filter(|_| s.current(h))?;
    let number = match (level, name) {
        (SOL_SOCKET, libc::SO_ERROR) => take_error(h, s).cast_unsigned(),
        (SOL_SOCKET, libc::SO_SNDBUF) => match kernel_option::<u32>(fd, level, name)? {
            // The kernel's own tuning would have made it larger by now.
            SNDBUF_UNCONNECTED => u32::try_from(RING_BYTES).unwrap_or(0),
            set => set,
        },
        (SOL_SOCKET, libc::SO_INCOMING_CPU) => u32::try_from(rustix::thread::sched_getcpu()).unwrap_or(0),
        (IPPROTO_IP, libc::IP_MTU) => MTU_V4,
        (IPPROTO_IPV6, libc::IPV6_MTU) => MTU_V6,
        (IPPROTO_TCP, libc::TCP_MAXSEG) => match kernel_option::<u32>(fd, level, name)? {
            MSS_UNCONNECTED => MSS,
            set => set.min(MSS),
        },
        (IPPROTO_TCP, libc::TCP_WINDOW_CLAMP) => match kernel_option::<u32>(fd, level, name)? {
            0 => MTU_V6,
            set => set,
        },
        (SOL_SOCKET, libc::SO_COOKIE) => {
            // No other socket has it.
            return faces::refused(fd);
        }
        (IPPROTO_TCP, libc::TCP_INFO) => return Some(info(fd, h, s, value.cast(), len)),
        (SOL_SOCKET, SO_PEERNAME) => return Some(peer_name(h, s, value.cast(), len)),
        _ => return None,
    };
    Some(answer(&number.to_ne_bytes(), value.cast(), len))
}

/// getsockopt(2) of what the placeholder does not have yet ([`lazy`]). `None`: ask the kernel.
pub fn lazily(
    h: &Handle,
    level: i32,
    name: i32,
    value: *mut c_void,
    len: *mut libc::socklen_t,
) -> Option<i32> {
    let on = lazy::get(h, level, name)?;
    Some(answer(&i32::from(on).to_ne_bytes(), value.cast(), len))
}

/// Writes `bytes`, cut to the application's buffer, and how many that were.
fn answer(bytes: &[u8], value: *mut u8, len: *mut libc::socklen_t) -> i32 {
    if is_nowhere(value) || is_nowhere(len) {
        sys::set_errno(Errno(libc::EFAULT));
        return -1;
    }
    // SAFETY: the application's pointers; at most its own length is written.
    unsafe {
        let room = (*len).min(libc::socklen_t::try_from(bytes.len()).unwrap_or(0));
        if room.cast_signed() < 0 {
            sys::set_errno(Errno(libc::EINVAL));
            return -1;
        }
        ptr::copy_nonoverlapping(bytes.as_ptr(), value, room as usize);
        *len = room;
    }
    0
}

/// `SO_PEERNAME`: unlike getpeername(2), it wants a buffer that is not too long.
fn peer_name(h: &Handle, s: &Stream, value: *mut u8, len: *mut libc::socklen_t) -> i32 {
    let (_, peer) = s.sock.addrs();
    let (storage, full) = encode(peer, h.family().0);
    // SAFETY: the application's pointer, checked.
    let too_long = is_nowhere(len) || full < unsafe { *len };
    if too_long || poll::is_dead(h, s) {
        sys::set_errno(Errno(if too_long { libc::EINVAL } else { libc::ENOTCONN }));
        return -1;
    }
    // SAFETY: a storage has at least the bytes of any address in it.
    answer(unsafe { core::slice::from_raw_parts((&raw const storage).cast(), full as usize) }, value, len)
}

/// `tcpi_state`, as in include/net/tcp_states.h.
fn tcp_state(h: &Handle, s: &Stream) -> u8 {
    let ours = s.out_dir.state.load(Ordering::Relaxed);
    match (poll::is_dead(h, s), ours == state::OPEN, s.input_state() == state::OPEN) {
        (true, ..) => 7,
        (_, true, true) => 1,
        (_, false, _) => 5,
        (_, true, false) => 8,
    }
}

/// `TCP_INFO`: the kernel's answer for the placeholder (its options and limits), with the connection's own figures in it.
fn info(fd: i32, h: &Handle, s: &Stream, value: *mut u8, len: *mut libc::socklen_t) -> i32 {
    // SAFETY: the application's own arguments.
    let r = unsafe { real::getsockopt(fd, IPPROTO_TCP, libc::TCP_INFO, value.cast(), len) };
    if r != 0 || is_nowhere(value) {
        return r;
    }
    // SAFETY: the kernel has just written `*len` bytes there.
    let out = unsafe { core::slice::from_raw_parts_mut(value, *len as usize) };
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = out.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    // Offsets in struct tcp_info (include/uapi/linux/tcp.h): state, options (timestamps, SACK, window scaling), scale.
    put(0, &[tcp_state(h, s)]);
    put(5, &[0x07, 0xaa]);
    let traffic = stats::traffic(h.index());
    let unsent = u32::try_from(s.unacknowledged()).unwrap_or(u32::MAX);
    for (at, word) in [
        (8, 204_000),          // rto, µs
        (12, 40_000),          // ato, µs
        (16, MSS),             // snd_mss
        (20, 536),             // rcv_mss
        (60, MTU_V4),          // pmtu
        (64, MTU_V4),          // rcv_ssthresh
        (68, 20),              // rtt, µs
        (72, 10),              // rttvar, µs
        (80, 10),              // snd_cwnd, segments
        (84, 65_483),          // advmss
        (96, MTU_V4),          // rcv_space
        (136, traffic.tx_ops), // segs_out
        (140, traffic.rx_ops), // segs_in
        (144, unsent),         // notsent_bytes
        (148, 10),             // min_rtt, µs
        (152, traffic.rx_ops), // data_segs_in
        (156, traffic.tx_ops), // data_segs_out
        (192, traffic.tx_ops), // delivered
    ] {
        put(at, &u32::to_ne_bytes(word));
    }
    // bytes_acked, bytes_received, bytes_sent
    for (at, bytes) in [(120, traffic.tx_bytes), (128, traffic.rx_bytes), (200, traffic.tx_bytes)] {
        put(at, &bytes.to_ne_bytes());
    }
    0
}

/// What setsockopt(2) answers instead of the kernel, which takes our descriptor for unconnected. `None`: ask the kernel.
pub fn refused(level: i32, name: i32) -> Option<Errno> {
    const TCP_FASTOPEN_NO_COOKIE: i32 = 34;
    match (level, name) {
        (IPPROTO_TCP, libc::TCP_FASTOPEN | libc::TCP_FASTOPEN_CONNECT | TCP_FASTOPEN_NO_COOKIE) => {
            Some(Errno(libc::EINVAL))
        }
        // As a kernel without that protocol says: programs then do it themselves.
        (IPPROTO_TCP, libc::TCP_ULP) => Some(Errno(libc::ENOENT)),
        // There was no relay to be had. As a kernel without such options says.
        _ if sees_packets(level, name) => Some(Errno(libc::ENOPROTOOPT)),
        _ => None,
    }
}

/// Filters see packets, and times of transmission are theirs: only a connection of the kernel's has any.
pub fn sees_packets(level: i32, name: i32) -> bool {
    const SO_TIMESTAMPING_NEW: i32 = 65;
    level == SOL_SOCKET
        && matches!(
            name,
            libc::SO_ATTACH_FILTER | libc::SO_ATTACH_BPF | libc::SO_TIMESTAMPING | SO_TIMESTAMPING_NEW
        )
}
