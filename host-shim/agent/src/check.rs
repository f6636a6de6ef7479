//! `ipc-direct check`: says beforehand what of a program will be accelerated and what not, and why.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use ring::attach::Call;
use serde::Serialize;

use crate::address::Address;
use crate::cli::fail;
use crate::dial::{Agent, DialError};
use crate::program::Program;
use crate::run;

/// `ipc-direct check [--json] PROGRAM ARGS`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Socket of the agent: @NAME (abstract) or a path; default $IPC_DIRECT_SOCKET or @ipc-direct/UID
    #[arg(long, value_name = "S")]
    socket: Option<String>,
    /// Program and its arguments, which only scripts and env(1) make a difference to
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

/// What will come of it; ordered from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// What IPC-Direct can accelerate, it will.
    Accelerated,
    /// Some of it goes past the library.
    Partly,
    /// Everything goes through the kernel.
    Not,
}

/// One thing that was found.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What it does to the verdict.
    pub effect: Verdict,
    /// For scripts.
    pub code: &'static str,
    /// One sentence.
    pub text: String,
}

/// The answer.
#[derive(Debug, Serialize)]
pub struct Check {
    /// The worst effect.
    pub verdict: Verdict,
    /// The files that would be executed: the one named first, the ELF file that runs last.
    pub files: Vec<PathBuf>,
    /// Why.
    pub findings: Vec<Finding>,
}

impl Check {
    /// Looks at a command line. What keeps it from being executed at all is a finding, too.
    #[must_use]
    pub fn of_program(arguments: &[OsString]) -> Check {
        let mut check = Check { verdict: Verdict::Accelerated, files: Vec::new(), findings: Vec::new() };
        match Program::find(arguments) {
            Ok(program) => {
                for obstacle in &program.obstacles {
                    check.add(Verdict::Not, obstacle.code(), obstacle.text());
                }
                for gap in &program.gaps {
                    check.add(Verdict::Partly, gap.code(), gap.text().into());
                }
                check.files = program.chain;
            }
            Err(e) => check.add(Verdict::Not, "program", e.to_string()),
        }
        check
    }

    fn add(&mut self, effect: Verdict, code: &'static str, text: String) {
        self.verdict = self.verdict.max(effect);
        self.findings.push(Finding { effect, code, text });
    }

    /// The library beside this program, and the agent.
    fn add_installation(&mut self, address: &Address) {
        if let Err(sentence) = run::library() {
            self.add(Verdict::Not, "library", sentence);
        }
        match Agent::connect(address).and_then(|agent| agent.call(&Call::Report { verbose: false })) {
            Ok(_) => self.add(Verdict::Accelerated, "agent", format!("an agent answers at {address}")),
            Err(DialError::NotRunning(_)) => {
                let text = format!("no agent is running at {address}; `ipc-direct run` starts one");
                self.add(Verdict::Accelerated, "no-agent", text);
            }
            Err(e) => self.add(Verdict::Not, "agent", e.to_string()),
        }
    }

    /// What keeps the program from being accelerated, as one sentence.
    #[must_use]
    pub fn obstacle(&self) -> Option<&str> {
        self.findings.iter().find(|f| f.effect == Verdict::Not).map(|f| f.text.as_str())
    }

    fn render(&self) -> String {
        let files: Vec<_> = self.files.iter().map(|f| f.display().to_string()).collect();
        let mut text = match self.verdict {
            Verdict::Accelerated => "will be accelerated".to_owned(),
            Verdict::Partly => "will be accelerated in part".to_owned(),
            Verdict::Not => "will not be accelerated".to_owned(),
        };
        if !files.is_empty() {
            text = format!("{}: {text}", files.join(" -> "));
        }
        for finding in &self.findings {
            text += &format!("\n  {}: {}", finding.code, finding.text);
        }
        text + "\n"
    }
}

/// Status 0: accelerated, 1: in part, 2: not.
#[must_use]
pub fn check(arguments: &CheckArgs) -> ExitCode {
    let mut check = Check::of_program(&arguments.program);
    check.add_installation(&Address::choose(arguments.socket.as_deref()));
    let text = if arguments.json {
        match serde_json::to_string_pretty(&check) {
            Ok(json) => json + "\n",
            Err(e) => return fail(&format!("the answer can't be printed: {e}")),
        }
    } else {
        check.render()
    };
    // A reader that has seen enough is no error.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::from(match check.verdict {
        Verdict::Accelerated => 0,
        Verdict::Partly => 1,
        Verdict::Not => 2,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_decides() {
        let mut check = Check::of_program(&[std::env::current_exe().unwrap().into()]);
        assert_eq!((check.verdict, check.obstacle()), (Verdict::Accelerated, None));
        check.add(Verdict::Not, "static", "no".into());
        check.add(Verdict::Partly, "io-uring", "some".into());
        assert_eq!((check.verdict, check.obstacle()), (Verdict::Not, Some("no")));
        assert!(check.render().contains("will not be accelerated\n  static: no\n  io-uring: some\n"));
    }
}
