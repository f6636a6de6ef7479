//! The shim's own descriptors: moved to high numbers, so that the application gets the lowest free ones, and marked in
//! the table, so that it cannot close them by accident.

use rustix::fd::IntoRawFd;
use rustix::process::{Resource, getrlimit};

use crate::{sys, table};

/// Our descriptors start at three quarters of the soft limit.
fn base() -> i32 {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(1024).clamp(64, table::FDS_MAX as u64);
    i32::try_from(limit / 4 * 3).unwrap_or(768)
}

/// Moves the descriptor `low` up, close-on-exec, and marks it as ours. The number it has from now on.
pub fn adopt(low: i32) -> i32 {
    match rustix::io::fcntl_dupfd_cloexec(sys::borrow(low), base()) {
        Ok(high) => {
            let high = high.into_raw_fd();
            sys::close(low);
            table::set_internal(high);
            high
        }
        // No room up there: it stays where it is.
        Err(_) => {
            table::set_internal(low);
            low
        }
    }
}

/// Closes one of ours.
pub fn discard(fd: i32) {
    if fd >= 0 {
        table::remove_internal(fd);
        sys::close(fd);
    }
}
