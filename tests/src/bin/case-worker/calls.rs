//! The calls that make, name, set up and end sockets and descriptors; and the dispatch of all calls.
//!
//! `unsafe` is allowed here: each function is one libc call on values that live on its stack.
#![allow(unsafe_code)]

use std::io;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use harness::wire::{Addr, Bytes, Op, Out};

use crate::address::Sockaddr;
use crate::{control, data, messages, objects, programs, ready};

/// How long `Knock` knocks.
const KNOCK_BOUND: Duration = Duration::from_secs(10);

/// The answer for a C return value; `errno` is read at once, before anything else can change it.
pub fn answer(ret: impl Into<i64>) -> Out {
    let ret = ret.into();
    let errno = if ret < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 };
    Out { ret, errno, ..Out::default() }
}

/// Makes one call.
pub fn make(op: &Op) -> Out {
    match op {
        Op::Socket { domain, ty, protocol } => {
            // SAFETY: no pointers.
            answer(unsafe { libc::socket(*domain, *ty, *protocol) })
        }
        Op::Bind { fd, addr } => {
            let c = Sockaddr::from_text(addr);
            // SAFETY: the address lives across the call and its length is right.
            answer(unsafe { libc::bind(*fd, c.as_ptr(), c.len) })
        }
        Op::Listen { fd, backlog } => {
            // SAFETY: no pointers.
            answer(unsafe { libc::listen(*fd, *backlog) })
        }
        Op::Connect { fd, addr } => {
            let c = Sockaddr::from_text(addr);
            // SAFETY: the address lives across the call and its length is right.
            answer(unsafe { libc::connect(*fd, c.as_ptr(), c.len) })
        }
        Op::Knock { fd, addr } => knock(*fd, addr),
        Op::Accept { fd, flags } => named(|addr, len| match flags {
            // SAFETY: `named` gives an address buffer and its length.
            None => unsafe { libc::accept(*fd, addr, len) },
            // SAFETY: as above.
            Some(flags) => unsafe { libc::accept4(*fd, addr, len, *flags) },
        }),
        // SAFETY: `named` gives an address buffer and its length.
        Op::Getsockname { fd } => named(|addr, len| unsafe { libc::getsockname(*fd, addr, len) }),
        // SAFETY: as above.
        Op::Getpeername { fd } => named(|addr, len| unsafe { libc::getpeername(*fd, addr, len) }),
        Op::Shutdown { fd, how } => {
            // SAFETY: no pointers.
            answer(unsafe { libc::shutdown(*fd, *how) })
        }
        Op::Close { fd } => {
            // SAFETY: no pointers; the worker's own descriptors are far above those that cases use.
            answer(unsafe { libc::close(*fd) })
        }
        Op::Dup { fd } => {
            // SAFETY: no pointers.
            answer(unsafe { libc::dup(*fd) })
        }
        Op::Dup2 { fd, to } => {
            // SAFETY: no pointers.
            answer(unsafe { libc::dup2(*fd, *to) })
        }
        Op::Dup3 { fd, to, flags } => {
            // SAFETY: no pointers.
            answer(unsafe { libc::dup3(*fd, *to, *flags) })
        }
        Op::Fcntl { fd, cmd, arg } => {
            // SAFETY: the cases use only commands whose argument is an integer.
            answer(unsafe { libc::fcntl(*fd, *cmd, *arg) })
        }
        Op::Ioctl { fd, request, value } => ioctl(*fd, *request, *value),
        Op::Getsockopt { fd, level, name, len } => getsockopt(*fd, *level, *name, *len),
        Op::Setsockopt { fd, level, name, data } => {
            let len = data.0.len() as libc::socklen_t;
            // SAFETY: the buffer is as long as `len` says.
            answer(unsafe { libc::setsockopt(*fd, *level, *name, data.0.as_ptr().cast(), len) })
        }
        Op::AttachFilter { fd, verdict } => attach_filter(*fd, *verdict),
        Op::Send { .. }
        | Op::Fill { .. }
        | Op::Recv { .. }
        | Op::Pump { .. }
        | Op::Drain { .. }
        | Op::Sendfile { .. } => data::make(op),
        Op::Poll { .. }
        | Op::EpollCreate { .. }
        | Op::EpollCtl { .. }
        | Op::EpollWait { .. }
        | Op::EpollPwait { .. } => ready::make(op),
        Op::Eventfd { .. } | Op::Timerfd { .. } => ready::make_source(op),
        Op::Pipe
        | Op::Pipe2 { .. }
        | Op::Socketpair { .. }
        | Op::CloseRange { .. }
        | Op::Mkfifo { .. }
        | Op::Open { .. }
        | Op::Unlink { .. }
        | Op::Chmod { .. }
        | Op::Fstat { .. }
        | Op::Lseek { .. }
        | Op::Seteuid { .. } => objects::make(op),
        Op::SendTo { .. } | Op::SendMessage { .. } | Op::RecvMessage { .. } | Op::Peercred { .. } => {
            messages::make(op)
        }
        Op::Exec { .. } | Op::Spawn { .. } | Op::Dlopen { .. } | Op::Reap => programs::make(op),
        Op::Signal { signal, what, flags } => control::signal(*signal, *what, *flags),
        Op::Signals { signal } => control::signals(*signal),
        Op::Start { .. }
        | Op::Join { .. }
        | Op::JoinWithin { .. }
        | Op::Interrupt { .. }
        | Op::Fork { .. }
        | Op::Closefrom { .. }
        | Op::Daemon { .. }
        | Op::Exit => Out { ret: -1, errno: libc::ENOSYS, ..Out::default() },
    }
}

/// Connects as soon as somebody listens: the answer of the first `connect` that is not refused.
fn knock(fd: i32, addr: &Addr) -> Out {
    let end = Instant::now() + KNOCK_BOUND;
    loop {
        let out = make(&Op::Connect { fd, addr: addr.clone() });
        if out.errno != libc::ECONNREFUSED || Instant::now() > end {
            return out;
        }
    }
}

fn attach_filter(fd: i32, verdict: u32) -> Out {
    const RETURN_CONSTANT: u16 = 6;
    let mut code = libc::sock_filter { code: RETURN_CONSTANT, jt: 0, jf: 0, k: verdict };
    let program = libc::sock_fprog { len: 1, filter: &raw mut code };
    let (place, len) = ((&raw const program).cast(), size_of_val(&program) as libc::socklen_t);
    // SAFETY: a program of one instruction, which lives across the call.
    answer(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, place, len) })
}

/// A call that fills in an address.
fn named(call: impl FnOnce(*mut libc::sockaddr, *mut libc::socklen_t) -> i32) -> Out {
    let mut room = Sockaddr::room();
    let mut len = room.len;
    let mut out = answer(call(room.as_mut_ptr(), &raw mut len));
    if out.ret >= 0 {
        room.len = len;
        out.addr = room.to_text();
        out.value = i64::from(len);
    }
    out
}

fn ioctl(fd: i32, request: u64, value: i32) -> Out {
    let mut value = value;
    // SAFETY: FIONREAD and FIONBIO take a pointer to an int.
    let mut out = answer(unsafe { libc::ioctl(fd, request, &raw mut value) });
    out.value = i64::from(value);
    out
}

fn getsockopt(fd: i32, level: i32, name: i32, len: usize) -> Out {
    let mut room = vec![0_u8; len];
    let mut got = len as libc::socklen_t;
    // SAFETY: the buffer is as long as `got` says.
    let mut out = answer(unsafe {
        if len == 0 {
            libc::getsockopt(fd, level, name, null_mut(), &raw mut got)
        } else {
            libc::getsockopt(fd, level, name, room.as_mut_ptr().cast(), &raw mut got)
        }
    });
    if out.ret == 0 {
        room.truncate(got as usize);
        out.data = Bytes(room);
    }
    out
}
