//! Threads, signals, fork: what a case does to the worker itself.
//!
//! `unsafe` is allowed here: signal set-up, `pthread_kill`, `fork` and `_exit` have no safe form.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::mem::zeroed;
use std::os::fd::{IntoRawFd as _, OwnedFd};
use std::os::unix::thread::JoinHandleExt as _;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicI64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use harness::wire::{Op, Out};

use crate::calls::{self, answer};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};

/// How long a signal waits for its thread to sleep.
const ASLEEP_BOUND: Duration = Duration::from_secs(2);

/// First descriptor number that the worker uses for itself.
const OWN_FDS_FROM: i32 = 700;

/// How often a bounded wait for a thread looks.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// How often each signal came.
static COUNTS: [AtomicI64; 65] = [const { AtomicI64::new(0) }; 65];

extern "C" fn count(signal: i32) {
    if let Some(counter) = usize::try_from(signal).ok().and_then(|s| COUNTS.get(s)) {
        // Relaxed: a counter that the driver asks for after the call that was interrupted has returned.
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The connection to the driver. It is made and used by raw system calls, so that the shim does not see it and its
/// bytes are in no counter.
pub struct Driver(OwnedFd);

impl Driver {
    /// Connects to the socket called `name`, at a descriptor number that no case uses.
    pub fn connect(name: &str) -> io::Result<Driver> {
        let low = socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
        connect(&low, &SocketAddrUnix::new(name)?)?;
        Ok(Driver(fcntl_dupfd_cloexec(&low, OWN_FDS_FROM)?))
    }

    /// Gives the descriptor up without closing it: a call of the case closes it.
    pub fn leave(self) {
        let _ = self.0.into_raw_fd();
    }
}

impl Read for Driver {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, room)?)
    }
}

impl Write for Driver {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.0, data)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sets what a signal does.
pub fn signal(signal: i32, what: i32, flags: i32) -> Out {
    // SAFETY: all-zero is a valid sigaction: default action, empty mask.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_flags = flags;
    action.sa_sigaction = match what {
        0 => libc::SIG_DFL,
        1 => libc::SIG_IGN,
        _ => count as *const () as usize,
    };
    // SAFETY: the action lives across the call; `count` only touches an atomic.
    answer(unsafe { libc::sigaction(signal, &raw const action, null_mut()) })
}

/// How often a counted signal came.
pub fn signals(signal: i32) -> Out {
    let count = usize::try_from(signal).ok().and_then(|s| COUNTS.get(s)).map(|c| c.load(Ordering::Relaxed));
    Out { ret: count.unwrap_or(-1), ..Out::default() }
}

/// A call that runs in a thread of its own.
struct Running {
    thread: JoinHandle<Out>,
    /// Kernel id of the thread, once it runs.
    tid: Arc<AtomicI32>,
}

/// Calls that run in threads of their own.
#[derive(Default)]
pub struct Threads {
    next: i64,
    running: BTreeMap<i64, Running>,
}

impl Running {
    /// Waits, a bounded time, until the thread sleeps in its call: a signal that came before would not interrupt it.
    fn wait_asleep(&self) {
        let end = Instant::now() + ASLEEP_BOUND;
        let mut calm = 0;
        while calm < 3 && Instant::now() < end && !self.thread.is_finished() {
            let name = format!("/proc/self/task/{}/stat", self.tid.load(Ordering::Acquire));
            let asleep = std::fs::read_to_string(name).is_ok_and(|s| s.contains(") S "));
            calm = if asleep { calm + 1 } else { 0 };
            thread::sleep(LOOK_EVERY);
        }
    }
}

impl Threads {
    pub fn start(&mut self, op: Op) -> Out {
        let tid = Arc::new(AtomicI32::new(0));
        let told = Arc::clone(&tid);
        let call = move || {
            told.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Release);
            calls::make(&op)
        };
        match thread::Builder::new().spawn(call) {
            Ok(thread) => {
                self.next += 1;
                self.running.insert(self.next, Running { thread, tid });
                Out { ret: self.next, ..Out::default() }
            }
            Err(e) => Out { ret: -1, errno: e.raw_os_error().unwrap_or(0), ..Out::default() },
        }
    }

    pub fn join(&mut self, ticket: i64) -> Out {
        let none = Out { ret: -1, errno: libc::ESRCH, ..Out::default() };
        self.running.remove(&ticket).and_then(|t| t.thread.join().ok()).unwrap_or(none)
    }

    pub fn join_within(&mut self, ticket: i64, ms: u64) -> Out {
        let end = Instant::now() + Duration::from_millis(ms);
        while self.running.get(&ticket).is_some_and(|t| !t.thread.is_finished()) {
            if Instant::now() >= end {
                return Out { ret: -1, errno: libc::EBUSY, ..Out::default() };
            }
            thread::sleep(LOOK_EVERY);
        }
        self.join(ticket)
    }

    pub fn interrupt(&self, ticket: i64, signal: i32) -> Out {
        match self.running.get(&ticket) {
            Some(t) => {
                t.wait_asleep();
                // SAFETY: the thread has not been joined, so its id is valid.
                answer(unsafe { libc::pthread_kill(t.thread.as_pthread_t(), signal) })
            }
            None => Out { ret: -1, errno: libc::ESRCH, ..Out::default() },
        }
    }
}

/// Forks; `true` in the child.
pub fn fork() -> (Out, bool) {
    // SAFETY: only the calling thread goes on in the child; other threads are at most inside one socket call, so
    // they hold none of the locks that the child needs.
    let pid = unsafe { libc::fork() };
    // The pid is not part of a transcript.
    (answer(pid.min(1)), pid == 0)
}

/// Closes everything from `first` on, the connection to the driver (which must be [`Driver::leave`]d before) included.
pub fn closefrom(first: i32) -> Out {
    unsafe extern "C" {
        #[link_name = "closefrom"]
        safe fn close_from(first: libc::c_int);
    }
    close_from(first);
    Out::default()
}

/// `daemon(3)` with its standard streams on /dev/null; returns in the child only.
pub fn daemon() -> Out {
    // SAFETY: no pointers; as for `fork`.
    answer(unsafe { libc::daemon(1, 0) })
}

/// Ends the process at once.
pub fn exit_now() -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(0) }
}
