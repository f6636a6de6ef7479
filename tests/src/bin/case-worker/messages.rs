//! Messages with addresses and control data: descriptors and credentials.
//!
//! `unsafe` is allowed here: libc calls on headers and buffers that live on the stack, and the CMSG macros.
#![allow(unsafe_code)]

use std::mem::{size_of, zeroed};
use std::ptr::{null_mut, read_unaligned, write_unaligned};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use harness::wire::{Addr, Bytes, Cred, FRESH, OLD, Op, Out};

use crate::address::Sockaddr;
use crate::calls::answer;

/// Makes one of this module's calls.
pub fn make(op: &Op) -> Out {
    match op {
        Op::SendTo { fd, data, to, flags } => {
            let to = Sockaddr::from_text(to);
            let (at, len) = (data.0.as_ptr().cast(), data.0.len());
            // SAFETY: buffer and address live across the call, and their lengths are right.
            answer(unsafe { libc::sendto(*fd, at, len, *flags, to.as_ptr(), to.len) } as i64)
        }
        Op::SendMessage { fd, data, to, rights, credentials, flags } => {
            send(*fd, &data.0, to.as_ref(), &control(rights, *credentials), *flags)
        }
        Op::RecvMessage { fd, len, control_len, flags } => receive(*fd, *len, *control_len, *flags),
        Op::Peercred { fd } => peercred(*fd),
        _ => Out { ret: -1, errno: libc::ENOSYS, ..Out::default() },
    }
}

/// Control data as the kernel takes it, aligned as its headers must be.
struct Control {
    words: Vec<u64>,
    len: usize,
}

impl Control {
    fn room(len: usize) -> Control {
        Control { words: vec![0; len.div_ceil(size_of::<u64>())], len }
    }
}

fn control(rights: &[i32], credentials: Option<Cred>) -> Control {
    let mut parts: Vec<(i32, Vec<u8>)> = Vec::new();
    if !rights.is_empty() {
        parts.push((libc::SCM_RIGHTS, rights.iter().flat_map(|fd| fd.to_ne_bytes()).collect()));
    }
    if let Some(Cred { pid, uid, gid }) = credentials {
        let pid = if pid == 0 { std::process::id() } else { pid.cast_unsigned() };
        parts.push((libc::SCM_CREDENTIALS, [pid, uid, gid].iter().flat_map(|w| w.to_ne_bytes()).collect()));
    }
    // SAFETY: only arithmetic.
    let space = |data: &Vec<u8>| unsafe { libc::CMSG_SPACE(data.len() as u32) } as usize;
    let mut control = Control::room(parts.iter().map(|(_, data)| space(data)).sum());
    let mut at: *mut u8 = control.words.as_mut_ptr().cast();
    for (kind, data) in &parts {
        let header: *mut libc::cmsghdr = at.cast();
        // SAFETY: the room holds every part with its padding; `at` goes from part to part.
        unsafe {
            let len = libc::CMSG_LEN(data.len() as u32) as usize;
            let value = libc::cmsghdr { cmsg_len: len, cmsg_level: libc::SOL_SOCKET, cmsg_type: *kind };
            write_unaligned(header, value);
            libc::CMSG_DATA(header).copy_from_nonoverlapping(data.as_ptr(), data.len());
            at = at.add(space(data));
        }
    }
    control
}

fn send(fd: i32, data: &[u8], to: Option<&Addr>, control: &Control, flags: i32) -> Out {
    let mut vector = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let mut to = to.map(Sockaddr::from_text);
    // SAFETY: all-zero is a valid msghdr.
    let mut msg: libc::msghdr = unsafe { zeroed() };
    msg.msg_iov = &raw mut vector;
    msg.msg_iovlen = 1;
    if let Some(to) = to.as_mut() {
        msg.msg_name = to.as_mut_ptr().cast();
        msg.msg_namelen = to.len;
    }
    if control.len > 0 {
        msg.msg_control = control.words.as_ptr().cast_mut().cast();
        msg.msg_controllen = control.len;
    }
    // SAFETY: everything that the header points to lives across the call.
    answer(unsafe { libc::sendmsg(fd, &raw const msg, flags) } as i64)
}

fn receive(fd: i32, len: usize, control_len: usize, flags: i32) -> Out {
    let mut room = vec![0_u8; len];
    let mut vector = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: len };
    let mut control = Control::room(control_len);
    let mut from = Sockaddr::room();
    // SAFETY: all-zero is a valid msghdr.
    let mut msg: libc::msghdr = unsafe { zeroed() };
    msg.msg_iov = &raw mut vector;
    msg.msg_iovlen = 1;
    msg.msg_name = from.as_mut_ptr().cast();
    msg.msg_namelen = from.len;
    msg.msg_control = if control_len > 0 { control.words.as_mut_ptr().cast() } else { null_mut() };
    msg.msg_controllen = control_len;
    // SAFETY: everything that the header points to lives across the call.
    let mut out = answer(unsafe { libc::recvmsg(fd, &raw mut msg, flags) } as i64);
    if out.ret >= 0 {
        from.len = msg.msg_namelen;
        out.addr = from.to_text();
        out.value = i64::from(msg.msg_flags);
        room.truncate(out.ret as usize);
        out.data = Bytes(room);
        take_control(&msg, &mut out);
    }
    out
}

/// Puts descriptors and credentials of `msg` into `out`.
fn take_control(msg: &libc::msghdr, out: &mut Out) {
    // SAFETY: the kernel (or the shim) filled in the header that describes our control buffer; the macros walk it.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(msg) };
    while !header.is_null() {
        // SAFETY: the macros gave a header inside the buffer.
        let (head, data) = unsafe { (read_unaligned(header), libc::CMSG_DATA(header)) };
        // SAFETY: only arithmetic.
        let len = head.cmsg_len.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
        let words = (0..len / 4).map(|i| {
            // SAFETY: inside the data of this header.
            unsafe { read_unaligned(data.cast::<i32>().add(i)) }
        });
        match (head.cmsg_type, words.collect::<Vec<i32>>().as_slice()) {
            (libc::SCM_RIGHTS, fds) => {
                // SAFETY: no pointers.
                out.events
                    .extend(fds.iter().map(|fd| (*fd, unsafe { libc::fcntl(*fd, libc::F_GETFD) } as u32)));
            }
            (libc::SCM_CREDENTIALS, [pid, uid, gid]) => {
                out.credentials =
                    Some(Cred { pid: *pid, uid: uid.cast_unsigned(), gid: gid.cast_unsigned() });
            }
            (kind, _) if head.cmsg_level == libc::SOL_SOCKET && TIMES.contains(&kind) => {
                // SAFETY: what there is of it lies inside the buffer; the rest is zero, as the buffer was.
                let bytes = unsafe { core::slice::from_raw_parts(data, len.min(16)) };
                out.events.push((kind, len as u32 | age(kind, bytes)));
            }
            // An entry of the error queue: shown in place of data, of which it has none.
            (libc::IP_RECVERR | libc::IPV6_RECVERR, words) if head.cmsg_level != libc::SOL_SOCKET => {
                out.data.0.extend(words.iter().flat_map(|w| w.to_ne_bytes()));
            }
            _ => {}
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        header = unsafe { libc::CMSG_NXTHDR(msg, header) };
    }
}

/// Types of control messages with a time: microseconds, nanoseconds, both once more; several times.
const TIMES: [i32; 5] = [libc::SO_TIMESTAMP, libc::SO_TIMESTAMPNS, 63, 64, libc::SO_TIMESTAMPING];

/// How old a time is, if it is a whole one.
fn age(kind: i32, bytes: &[u8]) -> u32 {
    let Ok(words) = <[u8; 16]>::try_from(bytes) else { return 0 };
    let word = |at: usize| words[at..at + 8].iter().rev().fold(0u64, |all, b| all << 8 | u64::from(*b));
    let unit = if kind == libc::SO_TIMESTAMP || kind == 63 { 1000 } else { 1 };
    let at = Duration::new(word(0), (word(8) * unit) as u32);
    let age = SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|now| now.checked_sub(at));
    match age.map(|age| age.as_secs()) {
        Some(0) => FRESH,
        Some(1..60) => OLD,
        _ => 0,
    }
}

fn peercred(fd: i32) -> Out {
    let mut cred = libc::ucred { pid: -1, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let place = (&raw mut cred).cast();
    // SAFETY: the structure is as long as `len` says.
    let mut out =
        answer(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, place, &raw mut len) });
    if out.ret == 0 {
        out.credentials = Some(Cred { pid: cred.pid, uid: cred.uid, gid: cred.gid });
    }
    out
}
