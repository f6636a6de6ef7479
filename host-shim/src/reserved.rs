//! The number of the descriptor that accept(2) will return. Linux takes it when the call begins, so it does when the call has to
//! wait: what other threads open meanwhile gets other numbers, and who closes or replaces this one hears what the
//! kernel would say (`EBADF`, `EBUSY`).

use core::sync::atomic::{AtomicU64, Ordering};

use rustix::io::FdFlags;

use crate::handle::Handle;
use crate::holds::{self, Noted};
use crate::sys::{self, Result};
use crate::{faces, fds, me, table};

/// Calls that may wait at a time with their number known to a forked child; in the child of more, a number stays taken.
const WAITING_MAX: usize = 256;

/// Descriptors that a forked child has, but in Linux would not: each as [`entry`] says; 0: none.
static WAITING: [AtomicU64; WAITING_MAX] = [const { AtomicU64::new(0) }; WAITING_MAX];

/// A number plus one, and in the upper half the thread whose call waits.
fn entry(fd: i32) -> u64 {
    u64::from(me::tid()) << 32 | u64::from(fd.unsigned_abs() + 1)
}

/// A socket under the number to be: the placeholder of the connection that will come. Closed when dropped.
pub struct Reserved {
    fd: i32,
    /// See [`faces::open`].
    face: u32,
    /// It is to stay open across exec, but does not yet.
    inherited: bool,
    noted: Option<Noted>,
}

impl Reserved {
    /// For a connection of the listener `h` that is there already; `listener` is its descriptor, `flags` as of accept4(2).
    ///
    /// # Errors
    /// As socket(2).
    pub fn now(listener: i32, h: &Handle, flags: i32) -> Result<Reserved> {
        let (fd, face) = faces::open(listener, h, flags)?;
        Ok(Reserved { fd, face, inherited: false, noted: None })
    }

    /// For a call that is going to wait.
    ///
    /// # Errors
    /// As socket(2).
    pub fn waiting(listener: i32, h: &Handle, flags: i32) -> Result<Reserved> {
        let (fd, face) = faces::open(listener, h, flags | libc::SOCK_CLOEXEC)?;
        table::set_internal(fd);
        let free =
            |w: &AtomicU64| w.compare_exchange(0, entry(fd), Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let _entered = WAITING.iter().any(free);
        let noted = holds::note(give_back, [fd.unsigned_abs() as usize, 0]);
        Ok(Reserved { fd, face, inherited: flags & libc::SOCK_CLOEXEC == 0, noted: Some(noted) })
    }

    /// After it waited.
    pub fn renewed(mut self, listener: i32, h: &Handle, flags: i32) -> Reserved {
        self.face = faces::renew(self.fd, self.face, listener, h, flags);
        self
    }

    /// Its number.
    pub fn fd(&self) -> i32 {
        self.fd
    }

    /// See [`faces::accepted`].
    pub fn face(&self) -> u32 {
        self.face
    }

    /// The call returns it. The table must say by now what it is.
    pub fn keep(mut self) -> i32 {
        let fd = core::mem::replace(&mut self.fd, -1);
        if self.noted.is_some() {
            forget(fd);
        }
        if self.inherited {
            let _ = rustix::io::fcntl_setfd(sys::borrow(fd), FdFlags::empty());
        }
        fd
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.fd >= 0 {
            forget(self.fd);
            fds::discard(self.fd);
        }
    }
}

fn forget(fd: i32) {
    let is_it = |w: &&AtomicU64| number(w.load(Ordering::Acquire)) == Some(fd);
    if let Some(w) = WAITING.iter().find(is_it) {
        w.store(0, Ordering::Release);
    }
}

/// The number in an [`entry`].
#[allow(clippy::cast_possible_truncation)] // the low half
fn number(entry: u64) -> Option<i32> {
    i32::try_from((entry as u32).checked_sub(1)?).ok()
}

/// The call never returned.
fn give_back(fd: usize, _: usize) {
    if let Ok(fd) = i32::try_from(fd) {
        forget(fd);
        fds::discard(fd);
    }
}

/// After fork, in the child: the calls of the parent's other threads are not ours. One of `forker`, the thread that forked, is: a
/// signal handler forked in the middle of it.
pub fn forget_others(forker: u32) {
    for w in &WAITING {
        let entry = w.load(Ordering::Acquire);
        if entry != 0 && entry >> 32 != u64::from(forker) {
            w.store(0, Ordering::Release);
            fds::discard(number(entry).unwrap_or(-1));
        }
    }
}
