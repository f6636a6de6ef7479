//! Sending and receiving, one call at a time and in bulk.
//!
//! `unsafe` is allowed here: libc calls on buffers that live on the stack of the function that makes them.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::Write as _;
use std::mem::zeroed;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::ptr::null_mut;

use harness::wire::{Bytes, Op, Out, Pattern, PollBy, RecvBy, SendBy};

use crate::address::Sockaddr;
use crate::calls::answer;
use crate::fortified;
use crate::ready::poll;

/// How long a bulk transfer waits for the other side, in milliseconds.
const STALL_MS: i32 = 10_000;

/// Makes one of this module's calls.
pub fn make(op: &Op) -> Out {
    match op {
        Op::Send { fd, data, by, flags } => send(*fd, &data.0, *by, *flags),
        Op::Recv { fd, len, by, flags } => receive(*fd, *len, *by, *flags),
        Op::Fill { fd, len, flags } => send(*fd, &vec![b'f'; *len], SendBy::Send, *flags),
        Op::Pump { fd, total, chunk, by } => pump(*fd, *total, *chunk, *by),
        Op::Drain { fd, total, chunk, by, flags } => drain(*fd, *total, *chunk, *by, *flags),
        Op::Sendfile { fd, size, offset, count } => sendfile(*fd, *size, *offset, *count),
        _ => Out { ret: -1, errno: libc::ENOSYS, ..Out::default() },
    }
}

fn vectors(data: &[u8], each: usize) -> Vec<libc::iovec> {
    data.chunks(each.max(1))
        .map(|c| libc::iovec { iov_base: c.as_ptr().cast_mut().cast(), iov_len: c.len() })
        .collect()
}

/// A message header over `vectors`.
fn header(vectors: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all-zero is a valid msghdr: no name, no vectors, no control data.
    let mut msg: libc::msghdr = unsafe { zeroed() };
    msg.msg_iov = vectors.as_mut_ptr();
    msg.msg_iovlen = vectors.len();
    msg
}

fn send(fd: i32, data: &[u8], by: SendBy, flags: i32) -> Out {
    let (at, len) = (data.as_ptr().cast(), data.len());
    match by {
        // SAFETY: the buffer is `len` long.
        SendBy::Write => answer(unsafe { libc::write(fd, at, len) } as i64),
        // SAFETY: as above.
        SendBy::Send => answer(unsafe { libc::send(fd, at, len, flags) } as i64),
        // SAFETY: as above; no address.
        SendBy::Sendto => answer(unsafe { libc::sendto(fd, at, len, flags, std::ptr::null(), 0) } as i64),
        SendBy::Writev(each) => {
            let v = vectors(data, each);
            // SAFETY: the vectors describe parts of `data`.
            answer(unsafe { libc::writev(fd, v.as_ptr(), v.len() as i32) } as i64)
        }
        SendBy::Sendmsg(each) => {
            let mut v = vectors(data, each);
            let msg = header(&mut v);
            // SAFETY: the header's vectors describe parts of `data`.
            answer(unsafe { libc::sendmsg(fd, &raw const msg, flags) } as i64)
        }
        SendBy::Sendmmsg(each) => {
            let mut v = vectors(data, each);
            let mut messages: Vec<libc::mmsghdr> =
                v.chunks_mut(1).map(|one| libc::mmsghdr { msg_hdr: header(one), msg_len: 0 }).collect();
            let count = messages.len() as u32;
            // SAFETY: `count` headers whose vectors describe parts of `data`.
            let mut out = answer(unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), count, flags) });
            out.value = messages.iter().map(|m| i64::from(m.msg_len)).sum();
            out
        }
    }
}

fn receive(fd: i32, len: usize, by: RecvBy, flags: i32) -> Out {
    let mut room = vec![0_u8; len];
    let at = room.as_mut_ptr().cast();
    let mut out = match by {
        // SAFETY: the buffer is `len` long.
        RecvBy::Read => answer(unsafe { libc::read(fd, at, len) } as i64),
        // SAFETY: as above.
        RecvBy::Recv => answer(unsafe { libc::recv(fd, at, len, flags) } as i64),
        // SAFETY: as above, and the buffer's size is `len`, too.
        RecvBy::ReadChk => answer(unsafe { fortified::__read_chk(fd, at, len, len) } as i64),
        // SAFETY: as above.
        RecvBy::RecvChk => answer(unsafe { fortified::__recv_chk(fd, at, len, len, flags) } as i64),
        RecvBy::Recvfrom | RecvBy::RecvfromChk => {
            let mut from = Sockaddr::room();
            let (name, name_len) = (from.as_mut_ptr(), &raw mut from.len);
            // SAFETY: as above; the address buffer is as long as its length says.
            let mut out = answer(unsafe {
                if by == RecvBy::Recvfrom {
                    libc::recvfrom(fd, at, len, flags, name, name_len)
                } else {
                    fortified::__recvfrom_chk(fd, at, len, len, flags, name, name_len)
                }
            } as i64);
            out.value = i64::from(from.len);
            out.addr = from.to_text();
            out
        }
        RecvBy::Readv(each) => {
            let v = vectors(&room, each);
            // SAFETY: the vectors describe parts of `room`, which nobody else uses.
            answer(unsafe { libc::readv(fd, v.as_ptr(), v.len() as i32) } as i64)
        }
        RecvBy::Recvmsg(each) => {
            let mut v = vectors(&room, each);
            let mut msg = header(&mut v);
            // SAFETY: the header's vectors describe parts of `room`.
            let mut out = answer(unsafe { libc::recvmsg(fd, &raw mut msg, flags) } as i64);
            out.value = i64::from(msg.msg_flags);
            out
        }
        RecvBy::Recvmmsg(each) => return receive_many(fd, &mut room, each, flags),
    };
    // With MSG_TRUNC the kernel counts bytes that it throws away; the buffer is untouched then.
    if out.ret > 0 {
        room.truncate(out.ret as usize);
        out.data = Bytes(room);
    }
    out
}

fn receive_many(fd: i32, room: &mut [u8], each: usize, flags: i32) -> Out {
    let mut v = vectors(room, each);
    let mut messages: Vec<libc::mmsghdr> =
        v.chunks_mut(1).map(|one| libc::mmsghdr { msg_hdr: header(one), msg_len: 0 }).collect();
    let count = messages.len() as u32;
    // SAFETY: `count` headers whose vectors describe parts of `room`; no timeout.
    let mut out = answer(unsafe { libc::recvmmsg(fd, messages.as_mut_ptr(), count, flags, null_mut()) });
    let filled = messages.iter().take(out.ret.max(0) as usize);
    let parts = room.chunks(each.max(1)).zip(filled);
    let data: Vec<u8> = parts.flat_map(|(part, m)| part.iter().take(m.msg_len as usize).copied()).collect();
    out.value = data.len() as i64;
    out.data = Bytes(data);
    out
}

/// Bytes that a sending or receiving call moved: its return value, or the sum for the `mmsg` calls.
fn moved(out: &Out, many: bool) -> u64 {
    (if many { out.value } else { out.ret }).max(0) as u64
}

fn would_block(out: &Out) -> bool {
    out.ret < 0 && out.errno == libc::EAGAIN
}

fn pump(fd: i32, total: u64, chunk: usize, by: SendBy) -> Out {
    let pattern = Pattern::default();
    let mut sent = 0;
    while sent < total {
        let want = chunk.min((total - sent) as usize).min(Pattern::LEN_MAX);
        let out = send(fd, pattern.at(sent, want), by, libc::MSG_NOSIGNAL);
        if would_block(&out) && poll(&[(fd, libc::POLLOUT)], STALL_MS, PollBy::Poll).ret == 1 {
            continue;
        }
        if out.ret <= 0 {
            return Out { value: sent as i64, ..out };
        }
        sent += moved(&out, matches!(by, SendBy::Sendmmsg(_)));
    }
    Out { ret: sent as i64, ..Out::default() }
}

fn drain(fd: i32, total: u64, chunk: usize, by: RecvBy, flags: i32) -> Out {
    let pattern = Pattern::default();
    let (mut got, mut right) = (0, true);
    while got < total {
        let want = chunk.min((total - got) as usize);
        let out = receive(fd, want, by, flags);
        if would_block(&out) && poll(&[(fd, libc::POLLIN)], STALL_MS, PollBy::Poll).ret == 1 {
            continue;
        }
        if out.ret < 0 {
            return Out { data: Bytes::default(), value: got as i64, ..out };
        }
        right &= pattern.check(got, &out.data.0);
        got += out.data.0.len() as u64;
        if out.data.0.is_empty() {
            break;
        }
    }
    Out { ret: got as i64, value: i64::from(right), ..Out::default() }
}

fn sendfile(fd: i32, size: u64, offset: Option<i64>, count: usize) -> Out {
    // SAFETY: a constant C string.
    let file = unsafe { libc::memfd_create(c"case".as_ptr(), libc::MFD_CLOEXEC) };
    if file < 0 {
        return answer(file);
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let mut file = unsafe { File::from_raw_fd(file) };
    let pattern = Pattern::default();
    let mut at = 0;
    while at < size {
        let part = pattern.at(at, (size - at).min(Pattern::LEN_MAX as u64) as usize);
        if let Err(e) = file.write_all(part) {
            return Out { ret: -1, errno: e.raw_os_error().unwrap_or(0), ..Out::default() };
        }
        at += part.len() as u64;
    }
    // SAFETY: no pointers.
    unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_SET) };
    let mut position = offset.unwrap_or(0);
    let place = if offset.is_some() { &raw mut position } else { null_mut() };
    // SAFETY: `place` is null or points to `position`.
    let mut out = answer(unsafe { libc::sendfile(fd, file.as_raw_fd(), place, count) } as i64);
    out.value = match offset {
        Some(_) => position,
        // SAFETY: no pointers.
        None => unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_CUR) },
    };
    out
}
