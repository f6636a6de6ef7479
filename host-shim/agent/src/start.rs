//! Starting an agent that belongs to nobody: in a session of its own, no child of the program that
//! `run` becomes, with one line on a pipe that says how it went.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use emulator::Lcores;
use ring::profile::Profile;
use ring::queue::Kind;
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::address::Address;
use crate::cli::LogLevel;

/// First words of the line that an agent prints when it is up.
pub const READY: &str = "ipc-direct is up";
/// How long an agent may take to come up; the card has its own, shorter limit.
const PATIENCE: Duration = Duration::from_secs(15);
/// An agent that `run` started ends after this long without users.
const IDLE_EXIT_MS: u32 = 1000;

/// How to start it.
#[derive(Clone, Debug)]
pub struct Background<'a> {
    /// Where it listens.
    pub address: &'a Address,
    /// See `--hugepages`.
    pub hugepages: bool,
    /// See `--request-queue`.
    pub request_queue: Kind,
    /// See `--lcores`.
    pub lcores: Lcores,
    /// See `--pcie-profile`.
    pub pcie_profile: Profile,
    /// Its log level and file; without a file there is no log.
    pub log: Option<(LogLevel, &'a Path)>,
}

/// Starts an agent in the background and waits until it is up. When another one is faster, both
/// callers end up with that one.
///
/// # Errors
/// One sentence, from the agent itself if it said one.
pub fn start(how: &Background<'_>) -> Result<(), String> {
    let own = own_program().map_err(|e| e.to_string())?;
    let mut command = Command::new(own);
    command.args(["agent", "--detach", "--idle-exit-ms", &IDLE_EXIT_MS.to_string()]);
    command.args(["--socket", &how.address.to_string()]);
    command.args(["--request-queue", how.request_queue.name()]);
    command.args(["--lcores", &how.lcores.to_string()]);
    command.args(["--pcie-profile", &how.pcie_profile.to_string()]);
    if how.hugepages {
        command.arg("--hugepages");
    }
    if let Some((level, file)) = how.log {
        command.args(["--log", level.name(), "--log-file"]).arg(file);
    }
    // The agent must not run under the shim that it serves.
    command.env_remove("LD_PRELOAD");
    let mut starter = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("the agent could not be started: {e}"))?;
    let pipe = starter.stdout.take();
    let _ = starter.wait();
    let line = pipe.map(|mut p| read_line(&mut p, PATIENCE)).unwrap_or_default();
    match line.trim() {
        ready if ready.starts_with(READY) => Ok(()),
        "" => Err(format!("the agent did not come up within {PATIENCE:?}")),
        sentence => Err(sentence.to_owned()),
    }
}

/// Up to the first newline, the end, or the time limit.
fn read_line<R: Read + AsFd>(pipe: &mut R, patience: Duration) -> String {
    let deadline = Instant::now() + patience;
    let mut text = Vec::new();
    while !text.contains(&b'\n') {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        let mut fds = [PollFd::new(&*pipe, PollFlags::IN)];
        if left.is_zero() || rustix::event::poll(&mut fds, timeout.as_ref()) == Ok(0) {
            break;
        }
        let mut buffer = [0; 1024];
        match pipe.read(&mut buffer) {
            Ok(n) if n > 0 => text.extend(buffer.iter().take(n)),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// This program's file, which children of it are started from.
///
/// # Errors
/// /proc is not mounted.
pub fn own_program() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// `agent --detach`: starts the same command line again with `--detached` and does not wait, so that
/// the agent gets init as its parent once this process has ended.
///
/// # Errors
/// The program or the log file can't be opened.
pub fn respawn_detached(log_file: Option<&Path>) -> io::Result<()> {
    let arguments =
        std::env::args_os().skip(1).map(|a| if a == "--detach" { "--detached".into() } else { a });
    let mut command = Command::new(own_program()?);
    command.args(arguments);
    if let Some(file) = log_file {
        command.stderr(OpenOptions::new().append(true).create(true).open(file)?);
    }
    command.spawn().map(drop)
}

/// A session of its own (no terminal, no signals from one), and no directory kept busy.
pub fn leave_session() {
    let _ = rustix::process::setsid();
    let _ = std::env::set_current_dir("/");
}

/// Lets go of the pipe or terminal that the ready line went to.
pub fn close_stdout() {
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}
