//! Two processes that measure each other: the program `bench-worker`, natively or under the shim.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path as FilePath, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use harness::child::{Guarded, run_ok};
use harness::instance::Instance;
use harness::redis::command;
use harness::{Failure, Outcome, fail};

use crate::job::{Figures, Job, Over};

/// Beyond the time of the measurement itself.
const BOUND: Duration = Duration::from_secs(60);

/// The load program beside this one.
///
/// # Errors
/// When it was not built.
pub fn program() -> Outcome<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("bench-worker");
    let missing = || Failure(format!("{} is missing: build it with `make bench-build`", path.display()));
    path.exists().then_some(path.clone()).ok_or_else(missing)
}

/// What client and server found.
#[derive(Clone, Copy, Debug)]
pub struct Both {
    /// The one that connected, or the parent.
    pub client: Figures,
    /// The one that listened.
    pub server: Figures,
}

/// One worker whose output is read line by line.
#[derive(Debug)]
struct Worker {
    process: Guarded,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Worker {
    fn start(command: &mut Command) -> Outcome<Worker> {
        let mut process = Guarded::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        match (process.stdin(), process.stdout()) {
            (Some(input), Some(output)) => Ok(Worker { process, input, output: BufReader::new(output) }),
            _ => fail("bench-worker's input and output are not piped"),
        }
    }

    fn line(&mut self) -> Outcome<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// What it found, when it has ended. All that it writes fits in a pipe.
    fn figures(&mut self, bound: Duration) -> Outcome<Figures> {
        let status = self.process.wait(bound)?;
        let line = self.line()?;
        if status.success() { parse(&line) } else { fail(format!("bench-worker ended with {status}")) }
    }
}

/// A running server and client.
#[derive(Debug)]
pub struct Pair {
    server: Worker,
    client: Worker,
    bound: Duration,
}

impl Pair {
    /// Starts both: TCP on 127.0.0.1, or an AF_UNIX socket if `unix`; under the shim if `instance` is given.
    ///
    /// # Errors
    /// When one of the two does not start.
    pub fn start(program: &FilePath, instance: Option<&Instance>, unix: bool, job: &Job) -> Outcome<Pair> {
        let job_text = serde_json::to_string(job)?;
        let listen = if unix { "unix" } else { "tcp" };
        let start = |role: [&str; 2]| Worker::start(command(instance, program).args(role).arg(&job_text));
        let mut server = start(["serve", listen])?;
        let address = server.line()?;
        let client = start(["load", &address])?;
        Ok(Pair { server, client, bound: BOUND + Duration::from_secs_f64(job.seconds) })
    }

    /// Process ids of both.
    #[must_use]
    pub fn pids(&self) -> [u32; 2] {
        [self.server.process.pid(), self.client.process.pid()]
    }

    /// Waits until the client has done a step of its work.
    ///
    /// # Errors
    /// When it ends before.
    pub fn client_is(&mut self, word: &str) -> Outcome {
        let said = self.client.line()?;
        if said == word { Ok(()) } else { fail(format!("the client said {said:?} instead of {word:?}")) }
    }

    /// Lets the client go on to its next step.
    ///
    /// # Errors
    /// When it is gone.
    pub fn go_on(&mut self) -> Outcome {
        Ok(self.client.input.write_all(b"\n")?)
    }

    /// Waits until both have ended.
    ///
    /// # Errors
    /// When one fails.
    pub fn finish(mut self) -> Outcome<Both> {
        Ok(Both { client: self.client.figures(self.bound)?, server: self.server.figures(self.bound)? })
    }
}

/// A server under the shim that nobody connects to. Dropped, it ends.
#[derive(Debug)]
pub struct Waiting {
    _server: Worker,
}

impl Waiting {
    /// Starts it, and waits until it listens.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(program: &FilePath, instance: &Instance, job: &Job) -> Outcome<Waiting> {
        let job_text = serde_json::to_string(job)?;
        let mut server = Worker::start(command(Some(instance), program).args(["serve", "tcp", &job_text]))?;
        let address = server.line()?;
        if address.is_empty() {
            fail("a server did not say where it listens")
        } else {
            Ok(Waiting { _server: server })
        }
    }
}

/// Measures between a server and a client of it.
///
/// # Errors
/// When one of the two processes fails.
pub fn two(program: &FilePath, instance: Option<&Instance>, unix: bool, job: &Job) -> Outcome<Both> {
    Pair::start(program, instance, unix, job)?.finish()
}

/// Measures between a process and its child.
///
/// # Errors
/// When they fail, or the machine does not have this way.
pub fn family(program: &FilePath, instance: Option<&Instance>, over: Over, job: &Job) -> Outcome<Both> {
    let over = match over {
        Over::Pipe => "pipe",
        Over::Socketpair => "socketpair",
        Over::Sockmap => "sockmap",
        Over::Ring => "ring",
    };
    let mut command = command(instance, program);
    command.args(["pair", over]).arg(serde_json::to_string(job)?);
    let text = run_ok(&mut command, BOUND + Duration::from_secs_f64(job.seconds))?;
    Ok(Both { client: parse(&text)?, server: Figures::default() })
}

fn parse(text: &str) -> Outcome<Figures> {
    serde_json::from_str(text).map_err(|e| Failure(format!("bench-worker wrote {text:?}: {e}")))
}
