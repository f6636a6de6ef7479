//! The C functions that we define in libc's place: here errno is chosen, and the application's pointers come in.
//!
//! Each looks whether the descriptor is one of ours; if not, libc's original gets the call, unchanged. They are grouped like
//! the list in [`crate::real`]: sockets, data, descriptors, files, readiness, stdio; and `syscall`, which is all of them.
//!
//! `unsafe` is allowed here and in the modules below: exported symbols, and raw pointers by contract with C.
#![allow(unsafe_code, clippy::missing_safety_doc, missing_docs)]

mod data;
mod descriptors;
mod exec;
mod files;
mod leaving;
mod moves;
mod pipes;
mod raw;
pub(crate) mod ready;
mod sandbox;
mod signals;
mod sockets;
mod stdio;
mod variadic;

pub(crate) use data::{read, write};
pub(crate) use descriptors::close;
use libc::{c_int, ssize_t};

use crate::sys::{self, Errno, Result};
use crate::{adopt, config, epoll_wait, file, fork, holds, process, real};

/// Runs when the library is loaded, before main and, with LD_PRELOAD, before other libraries' first sockets.
#[used]
#[unsafe(link_section = ".init_array")]
static ON_LOAD: extern "C" fn() = on_load;

extern "C" fn on_load() {
    let saved = sys::errno();
    real::resolve();
    config::load();
    process::set_pid();
    epoll_wait::choose_cookie();
    fork::install();
    holds::install();
    config::adopt_lease();
    adopt::run();
    if config::is_required() {
        process::require();
    }
    file::adopt_standard_streams();
    sys::set_errno(saved);
}

fn fail(e: Errno) -> c_int {
    sys::set_errno(e);
    -1
}

fn status(r: Result<()>) -> c_int {
    match r {
        Ok(()) => 0,
        Err(e) => fail(e),
    }
}

fn number(r: Result<i32>) -> c_int {
    match r {
        Ok(n) => n,
        Err(e) => fail(e),
    }
}

#[inline(always)]
fn length(r: Result<usize>) -> ssize_t {
    match r {
        Ok(n) => n.cast_signed(),
        Err(e) => fail(e) as ssize_t,
    }
}
