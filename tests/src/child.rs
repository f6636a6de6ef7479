//! Processes with a bound on every wait. A dropped one is killed by its pid, and reaped.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Failure, Outcome, census, fail};

/// How often a bounded wait looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A child process that does not outlive this value.
#[derive(Debug)]
pub struct Guarded {
    child: Child,
    name: String,
}

impl Guarded {
    /// Starts `command`.
    ///
    /// # Errors
    /// When the program can't be started.
    pub fn spawn(command: &mut Command) -> Outcome<Guarded> {
        let name = Path::new(command.get_program())
            .file_name()
            .map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        command.env(census::RUN, census::run());
        let child = command.spawn().map_err(|e| Failure(format!("cannot start {command:?}: {e}")))?;
        census::belongs(child.id());
        Ok(Guarded { child, name })
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal` to exactly this process.
    pub fn signal(&self, signal: Signal) {
        signal_pid(self.pid(), signal);
    }

    /// Its standard input, if it was piped.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Its standard output, if it was piped.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its standard error, if it was piped.
    pub fn stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Status if it has ended.
    ///
    /// # Errors
    /// When the child cannot be waited for.
    pub fn ended(&mut self) -> Outcome<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// After `bound`, with a description of what it is doing.
    pub fn wait(&mut self, bound: Duration) -> Outcome<ExitStatus> {
        let pid = self.pid();
        let name = self.name.clone();
        wait_for(bound, || Ok(self.child.try_wait()?))?
            .ok_or_else(|| Failure(format!("{name} did not end within {bound:?}\n{}", describe(pid))))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// Sends `signal` to `pid`; a process that is gone is not an error.
pub fn signal_pid(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// True while a thread of `pid` is not a zombie: the last one that ends closes what the process had open.
#[must_use]
pub fn alive(pid: u32) -> bool {
    thread_states(pid).any(|state| !matches!(state, 'Z' | 'X'))
}

/// True if every thread of `pid` sleeps.
#[must_use]
pub fn sleeps(pid: u32) -> bool {
    thread_states(pid).all(|state| state == 'S')
}

/// The state letter of each thread, as proc(5) has it; of no threads when the process is gone.
fn thread_states(pid: u32) -> impl Iterator<Item = char> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    stats.filter_map(|stat| stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()))
}

/// Looks until `look` yields something, for at most `bound`.
///
/// # Errors
/// Those of `look`.
pub fn wait_for<T>(bound: Duration, mut look: impl FnMut() -> Outcome<Option<T>>) -> Outcome<Option<T>> {
    let end = Instant::now() + bound;
    loop {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        if Instant::now() > end {
            return Ok(None);
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Runs `command` to its end and returns what it wrote.
///
/// # Errors
/// When it can't be started or runs longer than `bound` (it is killed then).
pub fn run(command: &mut Command, bound: Duration) -> Outcome<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Guarded::spawn(command)?;
    let out = child.stdout().map(read_all);
    let err = child.stderr().map(read_all);
    let status = child.wait(bound);
    drop(child);
    let collect =
        |reader: Option<thread::JoinHandle<Vec<u8>>>| reader.and_then(|r| r.join().ok()).unwrap_or_default();
    // A grandchild may hold the pipe open; only a finished command's output is collected.
    match status {
        Ok(status) => Ok(Output { status, stdout: collect(out), stderr: collect(err) }),
        Err(e) => fail(format!("{command:?}: {}", e.0)),
    }
}

/// Runs `command` and returns its standard output.
///
/// # Errors
/// As [`run`], and when it ends with another status than 0.
pub fn run_ok(command: &mut Command, bound: Duration) -> Outcome<String> {
    let out = run(command, bound)?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if out.status.success() {
        return Ok(text);
    }
    fail(format!("{command:?} ended with {}\n{text}{}", out.status, String::from_utf8_lossy(&out.stderr)))
}

fn read_all(mut from: impl std::io::Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        all
    })
}

/// What a process is doing, for a failure report: state, threads, where each waits.
#[must_use]
pub fn describe(pid: u32) -> String {
    let mut text = format!("--- process {pid}\n");
    let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
    text.push_str(&format!("command: {command}\n"));
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        text.push_str("it is gone\n");
        return text;
    };
    for task in tasks.flatten() {
        let read = |what: &str| {
            fs::File::open(task.path().join(what))
                .and_then(|mut f| {
                    let mut s = String::new();
                    f.read_to_string(&mut s).map(|_| s)
                })
                .unwrap_or_default()
        };
        let state = read("status").lines().find(|l| l.starts_with("State")).unwrap_or("").to_owned();
        text.push_str(&format!(
            "thread {:?}: {state}, wchan {}, syscall {}\n{}",
            task.file_name(),
            read("wchan"),
            read("syscall").trim(),
            read("stack")
        ));
    }
    text
}
