//! The driver's side of the `transfer` program.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::child::{self, Guarded};
use crate::instance::Instance;
use crate::{Failure, Outcome, fail};

/// How long a line may be in coming.
pub const BOUND: Duration = Duration::from_secs(20);

/// A running `transfer`, and what it prints.
#[derive(Debug)]
pub struct Transfer {
    /// The process.
    pub process: Guarded,
    lines: Receiver<String>,
}

/// The monotonic clock in ns.
#[must_use]
pub fn now_ns() -> i128 {
    let now = clock_gettime(ClockId::Monotonic);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

impl Transfer {
    /// Starts `program` (the `transfer` binary) under the shim of `instance`, or plain.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(program: &str, instance: Option<&Instance>, words: &[&str]) -> Outcome<Transfer> {
        let mut command = instance.map_or_else(|| Command::new(program), |i| i.shimmed(program));
        let mut process = Guarded::spawn(command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()))?;
        let out = process.stdout().ok_or_else(|| Failure("the output is not piped".to_owned()))?;
        let (tell, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        Ok(Transfer { process, lines })
    }

    /// A shimmed server and its port.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn server(program: &str, instance: &Instance) -> Outcome<(Transfer, String)> {
        let server = Transfer::start(program, Some(instance), &["server"])?;
        let port = server.expect("port")?;
        Ok((server, port))
    }

    /// The rest of the next line that begins with `word`; lines before it are dropped.
    ///
    /// # Errors
    /// When none comes within [`BOUND`].
    pub fn expect(&self, word: &str) -> Outcome<String> {
        let end = Instant::now() + BOUND;
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if let Some(rest) = line.strip_prefix(word) {
                return Ok(rest.trim().to_owned());
            }
        }
        fail(format!("no line {word:?} came\n{}", child::describe(self.process.pid())))
    }

    /// Waits for the end of the connection: how it ended, and how many ns after `killed_ns`.
    ///
    /// # Errors
    /// As [`Transfer::expect`].
    pub fn ended_after(&self, killed_ns: i128) -> Outcome<(String, i128)> {
        let line = self.expect("ended")?;
        let (how, at) = line.split_once(' ').ok_or_else(|| Failure(format!("a strange line: {line}")))?;
        Ok((how.to_owned(), at.parse::<i128>()? - killed_ns))
    }
}
