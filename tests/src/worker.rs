//! A `case-worker` process as its driver sees it: started, met, told what to call.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::child::{Guarded, wait_for};
use crate::instance::{Instance, fresh_socket};
use crate::wire::{Op, Out, get, put};
use crate::{Failure, Outcome, fail};

/// Bound on every call and start.
pub const CALL_BOUND: Duration = Duration::from_secs(10);

/// A worker process.
#[derive(Debug)]
pub struct Worker {
    pid: Cell<u32>,
    link: RefCell<UnixStream>,
}

impl Worker {
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.pid.get()
    }

    /// Waits for the worker to report at `listener` after a call that took its link away, and goes on with it there.
    ///
    /// # Errors
    /// When it does not come within [`CALL_BOUND`].
    pub fn meet_again(&self, listener: &UnixListener) -> Outcome {
        let again = meet(listener, || Ok(()))?;
        self.pid.set(again.pid());
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

/// A fresh abstract name, and the listener where one worker will report.
///
/// # Errors
/// When there can be no socket.
pub fn meeting_point() -> Outcome<(String, UnixListener)> {
    let name = fresh_socket().trim_start_matches('@').replace("ipc-direct-test", "case-driver");
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    listener.set_nonblocking(true)?;
    Ok((name, listener))
}

/// Waits for a worker to report; `check` fails when there is no use in waiting.
///
/// # Errors
/// When it does not come within [`CALL_BOUND`].
pub fn meet(listener: &UnixListener, mut check: impl FnMut() -> Outcome) -> Outcome<Worker> {
    let stream = wait_for(CALL_BOUND, || {
        check()?;
        Ok(listener.accept().ok())
    })?;
    let Some((mut stream, _)) = stream else { return fail("the worker did not report for duty") };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(CALL_BOUND))?;
    let pid = get(&mut stream)?;
    Ok(Worker { pid: Cell::new(pid), link: RefCell::new(stream) })
}

/// Starts a worker, under the shim if there is an `instance`.
///
/// # Errors
/// When it can't be started, or ends at once.
pub fn hire(program: &Path, instance: Option<&Instance>) -> Outcome<(Worker, Guarded)> {
    let (name, listener) = meeting_point()?;
    let mut command = instance.map_or_else(|| Command::new(program), |i| i.shimmed(program));
    let mut process = Guarded::spawn(command.arg(&name).stdin(Stdio::null()))?;
    let worker = meet(&listener, || match process.ended()? {
        Some(status) => fail(format!("the worker ended at once: {status}")),
        None => Ok(()),
    })?;
    Ok((worker, process))
}
