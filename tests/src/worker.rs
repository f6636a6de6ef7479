//! A `case-worker` process as its driver sees it: started, met, told what to call.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::child::{Guarded, wait_for};
use crate::instance::Instance;
use crate::wire::{Op, Out, get, put};
use crate::{Failure, Outcome, fail};

/// Bound on every call and start.
pub const CALL_BOUND: Duration = Duration::from_secs(10);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Where one worker will report: a file, which is reached from every network namespace.
#[derive(Debug)]
pub struct Meeting {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Meeting {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A worker process.
#[derive(Debug)]
pub struct Worker {
    pid: Cell<u32>,
    own_pid: Cell<u32>,
    link: RefCell<UnixStream>,
}

impl Worker {
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.pid.get()
    }

    /// Process id as the worker itself sees it: it may live in another pid namespace.
    pub fn own_pid(&self) -> u32 {
        self.own_pid.get()
    }

    /// Waits for the worker to report there after a call that took its link away, and goes on with it there.
    ///
    /// # Errors
    /// When it does not come within [`CALL_BOUND`].
    pub fn meet_again(&self, meeting: &Meeting) -> Outcome {
        let again = meet(meeting, || Ok(()))?;
        self.pid.set(again.pid());
        self.own_pid.set(again.own_pid());
        self.link.replace(again.link.into_inner());
        Ok(())
    }

    /// The answer to what was told.
    ///
    /// # Errors
    /// When there is no answer within [`CALL_BOUND`], or the worker is gone.
    pub fn answer(&self) -> Outcome<Out> {
        get(&mut *self.link.borrow_mut()).map_err(|e| match e.kind() {
            ErrorKind::WouldBlock => Failure(format!("no answer within {CALL_BOUND:?}")),
            _ => Failure(format!("the worker is gone: {e}")),
        })
    }

    /// Makes one call there.
    ///
    /// # Errors
    /// As [`Worker::answer`].
    pub fn exchange(&self, op: &Op) -> Outcome<Out> {
        self.tell(op)?;
        self.answer()
    }

    /// Says what to do, for what has no answer ([`Op::Exit`]).
    ///
    /// # Errors
    /// When the worker is gone.
    pub fn tell(&self, op: &Op) -> io::Result<()> {
        put(&mut *self.link.borrow_mut(), op)
    }
}

/// A fresh name for a worker to report at, and the place.
///
/// # Errors
/// When there can be no socket.
pub fn meeting_point() -> Outcome<(String, Meeting)> {
    // Relaxed: only uniqueness matters.
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("case-driver-{}-{number}", std::process::id()));
    let listener = UnixListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    Ok((path.display().to_string(), Meeting { listener, path }))
}

/// Waits for a worker to report; `check` fails when there is no use in waiting.
///
/// # Errors
/// When it does not come within [`CALL_BOUND`].
pub fn meet(meeting: &Meeting, mut check: impl FnMut() -> Outcome) -> Outcome<Worker> {
    let stream = wait_for(CALL_BOUND, || {
        check()?;
        Ok(meeting.listener.accept().ok())
    })?;
    let Some((mut stream, _)) = stream else { return fail("the worker did not report for duty") };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(CALL_BOUND))?;
    let own_pid = get(&mut stream)?;
    // As we see it.
    let peer = rustix::net::sockopt::socket_peercred(&stream)?;
    let pid = u32::try_from(peer.pid.as_raw_nonzero().get()).unwrap_or(own_pid);
    Ok(Worker { pid: Cell::new(pid), own_pid: Cell::new(own_pid), link: RefCell::new(stream) })
}

/// Starts a worker, under the shim if there is an `instance`.
///
/// # Errors
/// When it can't be started, or ends at once.
pub fn hire(program: &Path, instance: Option<&Instance>) -> Outcome<(Worker, Guarded)> {
    hire_by(instance.map_or_else(|| Command::new(program), |i| i.shimmed(program)))
}

/// Starts a worker by a command to which its argument is added.
///
/// # Errors
/// As [`hire`].
pub fn hire_by(mut command: Command) -> Outcome<(Worker, Guarded)> {
    let (name, meeting) = meeting_point()?;
    let mut process = Guarded::spawn(command.arg(&name).stdin(Stdio::null()))?;
    let worker = meet(&meeting, || match process.ended()? {
        Some(status) => fail(format!("the worker ended at once: {status}")),
        None => Ok(()),
    })?;
    Ok((worker, process))
}
