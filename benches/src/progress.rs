//! Tells on standard error what is being measured: on a terminal one line that changes, else line by line.

use std::io::{IsTerminal as _, Write as _, stderr};

/// Steps done and to do.
#[derive(Debug)]
pub struct Progress {
    done: usize,
    total: usize,
    terminal: bool,
}

impl Progress {
    /// Nothing done yet.
    #[must_use]
    pub fn new(total: usize) -> Progress {
        Progress { done: 0, total, terminal: stderr().is_terminal() }
    }

    /// The next step begins.
    pub fn step(&mut self, what: &str) {
        self.done += 1;
        let mut out = stderr();
        // A terminal that went away is no reason to stop measuring.
        let _ = if self.terminal {
            write!(out, "\r\x1b[K[{}/{}] {what}", self.done, self.total)
        } else {
            writeln!(out, "[{}/{}] {what}", self.done, self.total)
        };
        let _ = out.flush();
    }

    /// Makes room for what comes next.
    pub fn finish(&self) {
        if self.terminal {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}
