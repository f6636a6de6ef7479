//! Two processes that measure each other: the program `bench-worker`, natively or under the shim.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path as FilePath, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use harness::child::{Guarded, run_ok};
use harness::instance::Instance;
use harness::redis::command;
use harness::{Failure, Outcome, fail};
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::job::{Figures, Job, Over, Shape, Wait};

/// Beyond the time of the measurement itself.
const BOUND: Duration = Duration::from_secs(60);
/// One look at how fast the machine is, in seconds.
const CALIBRATION_SECONDS: f64 = 0.05;

/// The load program.
///
/// # Errors
/// When it was not built.
pub fn program() -> Outcome<PathBuf> {
    beside("bench-worker")
}

/// A program beside this one.
///
/// # Errors
/// When it was not built.
pub fn beside(name: &str) -> Outcome<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
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
        let (mut server, mut client) = (command(instance, program), command(instance, program));
        server.args(["serve", if unix { "unix" } else { "tcp" }]);
        client.arg("load");
        Pair::of(&mut server, &mut client, job)
    }

    /// Starts both: the server's command is to be completed with the job, the client's with where the server listens, and the job.
    ///
    /// # Errors
    /// When one of the two does not start.
    pub fn of(server: &mut Command, client: &mut Command, job: &Job) -> Outcome<Pair> {
        let job_text = serde_json::to_string(job)?;
        let mut server = Worker::start(server.arg(&job_text))?;
        let address = server.line()?;
        let client = Worker::start(client.args([&address, &job_text]))?;
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

/// Median round trip of the raw ring in µs: how fast the machine is now.
///
/// # Errors
/// As [`family`].
pub fn calibrate(program: &FilePath, cpus: Option<[usize; 2]>) -> Outcome<f64> {
    let shape = Shape::ping_pong(8, Wait::Blocking);
    let job = Job { shape, seconds: CALIBRATION_SECONDS, cpus, start_ns: None };
    Ok(family(program, None, Over::Ring, &job)?.client.p50_ns / 1000.0)
}

/// Two processors that we may run on; none on a machine with one.
///
/// # Errors
/// The system's.
pub fn two_cpus() -> Outcome<Option<[usize; 2]>> {
    let allowed = sched_getaffinity(None)?;
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    Ok(cpus.next().zip(cpus.next()).map(|(a, b)| [a, b]))
}

fn parse(text: &str) -> Outcome<Figures> {
    serde_json::from_str(text).map_err(|e| Failure(format!("bench-worker wrote {text:?}: {e}")))
}
