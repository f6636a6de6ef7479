//! `SO_ZEROCOPY` and `MSG_ZEROCOPY` (Documentation/networking/msg_zerocopy.rst): who sends so waits for the word that the
//! buffer may be used again. On loopback Linux copies, and says that it did; here the copy is made before send(2)
//! returns, so the word is there at once.
//!
//! `unsafe` is allowed here: the application's buffer for ancillary data.
#![allow(unsafe_code)]

use core::sync::atomic::Ordering;

use crate::buffers::is_nowhere;
use crate::handle::{Handle, Stream};
use crate::sock::modes;
use crate::sys::{Errno, Result};
use crate::{epoll, wait};

/// `SO_EE_ORIGIN_ZEROCOPY` (include/uapi/linux/errqueue.h).
const ORIGIN: u8 = 5;
/// `SO_EE_CODE_ZEROCOPY_COPIED`.
const COPIED: u8 = 1;
/// `struct cmsghdr`.
const HEADER_BYTES: usize = 16;

/// A send with `MSG_ZEROCOPY` has succeeded.
pub fn sent(h: &Handle, s: &Stream) {
    if s.sock.modes.load(Ordering::Relaxed) & modes::ZEROCOPY == 0 {
        return;
    }
    s.sock.zerocopy_sent.fetch_add(1, Ordering::Release);
    // `POLLERR`, for those who wait in this process.
    epoll::handle_changed(h);
    wait::kick_others();
}

/// Sends that were not told of yet: the error queue is not empty.
#[inline(always)]
pub fn is_pending(s: &Stream) -> bool {
    s.sock.modes.load(Ordering::Relaxed) & modes::ZEROCOPY != 0
        && s.sock.zerocopy_sent.load(Ordering::Acquire) != s.sock.zerocopy_told.load(Ordering::Relaxed)
}

/// Takes what there is to tell: numbers of the first and the last send.
///
/// # Errors
/// `EAGAIN`: nothing.
pub fn take(s: &Stream) -> Result<(u32, u32)> {
    let end = s.sock.zerocopy_sent.load(Ordering::Acquire);
    let first = s.sock.zerocopy_told.swap(end, Ordering::AcqRel);
    if first == end { Err(Errno(libc::EAGAIN)) } else { Ok((first, end.wrapping_sub(1))) }
}

/// recvmsg(2) with `MSG_ERRQUEUE`.
///
/// # Errors
/// `EAGAIN`: the queue is empty.
pub fn receive(h: &Handle, s: &Stream, m: &mut libc::msghdr) -> Result<usize> {
    let (first, last) = take(s)?;
    let (domain, _) = h.family();
    let (level, kind, offender_words) = if domain == libc::AF_INET {
        (libc::SOL_IP, libc::IP_RECVERR, 4)
    } else {
        (libc::SOL_IPV6, libc::IPV6_RECVERR, 7)
    };
    // struct sock_extended_err, and behind it the address of the offender: nobody.
    let mut words = [0u32; 11];
    let [_, origin, info, data, ..] = &mut words;
    // Origin, type, code, padding.
    *origin = u32::from_ne_bytes([ORIGIN, 0, COPIED, 0]);
    (*info, *data) = (first, last);
    let used = words.get(..4 + offender_words).unwrap_or(&words);
    m.msg_flags = libc::MSG_ERRQUEUE | put(m, level, kind, used);
    if !m.msg_name.is_null() {
        m.msg_namelen = 0;
    }
    Ok(0)
}

/// Ancillary data of one message, cut to the room that there is; `MSG_CTRUNC` if it was cut.
fn put(m: &mut libc::msghdr, level: i32, kind: i32, words: &[u32]) -> i32 {
    let room = if is_nowhere(m.msg_control) { 0 } else { m.msg_controllen };
    if room < HEADER_BYTES {
        m.msg_controllen = 0;
        return libc::MSG_CTRUNC;
    }
    let full = HEADER_BYTES + size_of_val(words);
    let len = full.min(room);
    let header = libc::cmsghdr { cmsg_len: len, cmsg_level: level, cmsg_type: kind };
    // SAFETY: the application's buffer of `room` bytes, of which at most that many are written, header first.
    unsafe {
        m.msg_control.cast::<libc::cmsghdr>().write_unaligned(header);
        let data = m.msg_control.cast::<u8>().add(HEADER_BYTES);
        core::ptr::copy_nonoverlapping(words.as_ptr().cast(), data, len - HEADER_BYTES);
    }
    m.msg_controllen = full.next_multiple_of(size_of::<usize>()).min(room);
    if len < full { libc::MSG_CTRUNC } else { 0 }
}

const _: () = assert!(size_of::<libc::cmsghdr>() == HEADER_BYTES);
