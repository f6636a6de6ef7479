//! Pipes, socket pairs, FIFOs and files; ranges of descriptors; who we are.
//!
//! `unsafe` is allowed here: each function is one libc call on values that live on its stack.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::mem::zeroed;

use harness::wire::{Op, Out};

use crate::calls::answer;

/// Makes one of this module's calls.
pub fn make(op: &Op) -> Out {
    match op {
        // SAFETY: `two` gives room for two descriptors, here and below.
        Op::Pipe => two(|ends| unsafe { libc::pipe(ends) }),
        // SAFETY: as above.
        Op::Pipe2 { flags } => two(|ends| unsafe { libc::pipe2(ends, *flags) }),
        Op::Socketpair { domain, ty, protocol } => {
            // SAFETY: as above.
            two(|ends| unsafe { libc::socketpair(*domain, *ty, *protocol, ends) })
        }
        Op::CloseRange { first, last, flags } => {
            // SAFETY: no pointers; the worker's own descriptors are far above those that cases use.
            answer(unsafe { libc::close_range(*first, *last, *flags) })
        }
        // SAFETY: `at` gives a C string that lives across the call, here and below.
        Op::Mkfifo { path, mode } => at(path, |p| unsafe { libc::mkfifo(p, *mode) }),
        // SAFETY: as above.
        Op::Open { path, flags, mode } => at(path, |p| unsafe { libc::open(p, *flags, *mode) }),
        // SAFETY: as above.
        Op::Unlink { path } => at(path, |p| unsafe { libc::unlink(p) }),
        // SAFETY: as above.
        Op::Chmod { path, mode } => at(path, |p| unsafe { libc::chmod(p, *mode) }),
        Op::Fstat { fd } => {
            // SAFETY: all-zero is a valid stat, and it lives across the call.
            let mut stat: libc::stat = unsafe { zeroed() };
            // SAFETY: as above.
            let mut out = answer(unsafe { libc::fstat(*fd, &raw mut stat) });
            out.value = i64::from(stat.st_mode & libc::S_IFMT);
            out
        }
        // SAFETY: no pointers.
        Op::Lseek { fd, offset, whence } => answer(unsafe { libc::lseek(*fd, *offset, *whence) }),
        // SAFETY: no pointers.
        Op::Seteuid { uid } => answer(unsafe { libc::seteuid(*uid) }),
        _ => Out { ret: -1, errno: libc::ENOSYS, ..Out::default() },
    }
}

/// A call that makes two descriptors; they come back in `events`.
fn two(call: impl FnOnce(*mut i32) -> i32) -> Out {
    let mut ends = [-1; 2];
    let mut out = answer(call(ends.as_mut_ptr()));
    if out.ret == 0 {
        out.events = ends.iter().map(|fd| (*fd, 0)).collect();
    }
    out
}

/// A call on a path.
fn at(path: &str, call: impl FnOnce(*const libc::c_char) -> i32) -> Out {
    match CString::new(path) {
        Ok(path) => answer(call(path.as_ptr())),
        Err(_) => Out { ret: -1, errno: libc::EINVAL, ..Out::default() },
    }
}
