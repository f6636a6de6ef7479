//! Giving a child one descriptor beyond its standard three, without it leaking into children that
//! other threads start at the same moment.
//!
//! `unsafe` is allowed here for the hook that runs between fork and exec.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes children of `command` inherit `fd` under the number that is returned. The descriptor stays
/// close-on-exec in this process and is closed here together with `command`.
pub(crate) fn inherit(command: &mut Command, fd: OwnedFd) -> RawFd {
    let number = fd.as_raw_fd();
    let hook = move || {
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty())?;
        Ok(())
    };
    // SAFETY: between fork and exec the hook makes one raw system call: it neither allocates nor takes a lock.
    unsafe { command.pre_exec(hook) };
    number
}
