//! One part of a suite on one side: a process group with a bound on its time, its output in a file.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use harness::Outcome;
use harness::child::{self, Guarded, wait_for};
use harness::instance::Instance;
use harness::scratch::Scratch;
use rustix::process::{Pid, Signal, kill_process_group};

/// Where a part runs.
#[derive(Clone, Copy, Debug)]
pub enum Side<'a> {
    /// As its authors run it.
    Kernel,
    /// Under the shim, with this agent.
    Shim(&'a Instance),
}

impl Side<'_> {
    /// `program` on this side, to be completed with arguments.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        match self {
            Side::Kernel => Command::new(program),
            Side::Shim(instance) => instance.shimmed(program),
        }
    }
}

impl fmt::Display for Side<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Kernel => "on the kernel",
            Side::Shim(_) => "under the shim",
        })
    }
}

/// How a part ended.
#[derive(Debug)]
pub struct Ended {
    /// `None`: it came to a standstill and was killed.
    pub status: Option<ExitStatus>,
    /// What it wrote.
    pub said: String,
}

/// Bounds on a part's time.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Longest silence in the watched file.
    pub silence: Duration,
    /// Longest time at all.
    pub all: Duration,
}

/// Runs `command` to its end. `progress`: the file that grows as it gets on; without one, its output.
/// At a standstill, what all its parties are doing is shown and its process group is killed.
///
/// # Errors
/// When it can't be started.
pub fn run(side: Side<'_>, command: &mut Command, progress: Option<&Path>, bounds: Bounds) -> Outcome<Ended> {
    let scratch = Scratch::new()?;
    let output = scratch.path().join("output");
    let file = File::create(&output)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
    let mut process = Guarded::spawn(command)?;
    let progress = progress.unwrap_or(&output);
    let size = || fs::metadata(progress).map_or(0, |file| file.len());
    let (begun, mut grew, mut grown) = (Instant::now(), Instant::now(), size());
    let status = wait_for(bounds.all, || {
        if size() != grown {
            (grew, grown) = (Instant::now(), size());
        }
        let silent = grew.elapsed() > bounds.silence;
        Ok(process.ended()?.map(Some).or(silent.then_some(None)))
    })?
    .flatten();
    if status.is_none() {
        println!("{command:?} {side} has come to a standstill, after {:?}", begun.elapsed());
        if let Side::Shim(instance) = side {
            println!("{}", instance.describe());
        }
        println!("{}", child::describe(process.pid()));
        if let Some(group) = i32::try_from(process.pid()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
    let said = String::from_utf8_lossy(&fs::read(&output)?).into_owned();
    Ok(Ended { status, said })
}
