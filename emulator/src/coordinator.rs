//! The coordinator's process: its stderr, its last words, its end.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, ChildStderr};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::launch::BootError;

/// How long the process may take to end after the bus hung up, before it is killed.
const END_GRACE: Duration = Duration::from_secs(2);
/// Lines of stderr that an error quotes.
const TAIL_LINES: usize = 6;
/// A line of stderr is cut here, in bytes.
const LINE_BYTES_MAX: usize = 400;

/// A running coordinator. Dropping it waits for its end (which the closing of the bus asks for, so
/// close that first), kills it if it does not come, and reaps it.
#[derive(Debug)]
pub(crate) struct Coordinator {
    child: Child,
    pidfd: OwnedFd,
    pub(crate) voice: Voice,
}

impl Coordinator {
    /// Takes charge of a process just spawned with piped stderr.
    pub(crate) fn new(mut child: Child) -> io::Result<Coordinator> {
        let set_up = |child: &mut Child| -> io::Result<(OwnedFd, Voice)> {
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            let (Some(pid), Some(pipe)) = (pid, child.stderr.take()) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            Ok((rustix::process::pidfd_open(pid, PidfdFlags::empty())?, Voice::new(pipe)?))
        };
        match set_up(&mut child) {
            Ok((pidfd, voice)) => Ok(Coordinator { child, pidfd, voice }),
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(e)
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Stops the process where it is, or has it go on.
    pub(crate) fn stop(&self, stop: bool) {
        let signal = if stop { Signal::STOP } else { Signal::CONT };
        // One that has ended is noticed elsewhere.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
    }

    /// True if the process ends within `patience`.
    fn ends_within(&self, patience: Duration) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let timeout = Timespec::try_from(patience).ok();
        matches!(rustix::event::poll(&mut fds, timeout.as_ref()), Ok(1))
    }

    /// The bus hung up before the card was up: says why.
    pub(crate) fn why_ended(&mut self) -> BootError {
        let status = if self.ends_within(END_GRACE) { self.child.wait().ok() } else { None };
        let words = self.voice.last_words();
        match status {
            Some(_) if words.contains("loading shared libraries") => BootError::NoDpdk(words),
            Some(_) if words.contains("Cannot get hugepage information") => BootError::NoHugepages(words),
            Some(status) => BootError::Ended(status, words),
            None => BootError::Late(END_GRACE, words),
        }
    }

    /// Sleeps until `bus` is readable, the process ends or `deadline` comes, listening to stderr.
    /// False: the deadline has come.
    pub(crate) fn wait(&mut self, bus: &OwnedFd, deadline: Instant) -> io::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let mut fds = vec![PollFd::new(bus, PollFlags::IN), PollFd::new(&self.pidfd, PollFlags::IN)];
        if self.voice.open {
            fds.push(PollFd::new(&self.voice.pipe, PollFlags::IN));
        }
        let timeout = Timespec::try_from(left).ok();
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        self.voice.lines();
        Ok(true)
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        if !self.ends_within(END_GRACE) {
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// The coordinator's stderr, cut into lines without ever blocking; remembers the last few.
#[derive(Debug)]
pub struct Voice {
    pipe: ChildStderr,
    open: bool,
    partial: Vec<u8>,
    tail: VecDeque<String>,
}

impl Voice {
    fn new(pipe: ChildStderr) -> io::Result<Voice> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Voice { pipe, open: true, partial: Vec::new(), tail: VecDeque::new() })
    }

    /// Readable when there is something to hear.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// False once nobody can say anything any more; the descriptor then stays readable for ever.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Lines that were completed since the last call.
    pub fn lines(&mut self) -> Vec<String> {
        let mut buffer = [0; 4096];
        match self.pipe.read(&mut buffer) {
            Ok(0) => self.open = false,
            Ok(n) => self.partial.extend(buffer.iter().take(n)),
            Err(e) => {
                self.open = matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            }
        }
        let mut lines = Vec::new();
        while let Some(end) = self.partial.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
        if self.partial.len() > LINE_BYTES_MAX || (!self.open && !self.partial.is_empty()) {
            lines.push(String::from_utf8_lossy(&std::mem::take(&mut self.partial)).into_owned());
        }
        self.tail.extend(lines.iter().cloned());
        self.tail.drain(..self.tail.len().saturating_sub(TAIL_LINES));
        lines
    }

    /// The last lines, for an error message.
    pub(crate) fn last_words(&mut self) -> String {
        // Bounded: a pipe holds 64 KiB, `lines` takes 4 KiB.
        for _ in 0..16 {
            self.lines();
        }
        if self.tail.is_empty() { "(none)".into() } else { self.tail.make_contiguous().join(" | ") }
    }
}
