//! Programs of ours that say what they do, a line at a time.

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader};
use std::process::{ChildStdout, Command, Stdio};

use crate::child::Guarded;
use crate::{Failure, Outcome};

/// A process that says lines.
pub struct Voice {
    /// It.
    pub process: Guarded,
    lines: RefCell<BufReader<ChildStdout>>,
}

impl Voice {
    /// Starts `command`.
    ///
    /// # Errors
    /// As [`Guarded::spawn`].
    pub fn of(mut command: Command) -> Outcome<Voice> {
        let mut process = Guarded::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
        let out = process.stdout().ok_or_else(|| Failure("its output is not piped".into()))?;
        Ok(Voice { process, lines: BufReader::new(out).into() })
    }

    /// The next line. Bounded, because the programs' own waits are.
    ///
    /// # Errors
    /// When nothing can be read.
    pub fn line(&self) -> Outcome<String> {
        let mut line = String::new();
        self.lines.borrow_mut().read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// The port of the line `listening PORT`.
    ///
    /// # Errors
    /// When it says something else.
    pub fn listening(&self) -> Outcome<String> {
        let line = self.line()?;
        let port = line.strip_prefix("listening").map(|p| p.trim().to_owned());
        port.ok_or_else(|| Failure(format!("the server said {line:?}")))
    }
}
