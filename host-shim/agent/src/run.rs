//! `ipc-direct run`: makes sure that an agent runs, takes a lease, and becomes the program.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Args;
use ring::attach::{Call, Reply};

use crate::address::{Address, SOCKET_VARIABLE};
use crate::check::Check;
use crate::cli::{CardArgs, LogLevel};
use crate::dial::{Agent, DialError};
use crate::start::{Background, start};

/// Log level of the shim.
pub const LOG_VARIABLE: &str = "IPC_DIRECT_LOG";
/// Longest busy wait of the shim in microseconds.
pub const SPIN_VARIABLE: &str = "IPC_DIRECT_SPIN_US";
/// `1`: the shim ends a program before its main that it can't attach.
pub const REQUIRE_VARIABLE: &str = "IPC_DIRECT_REQUIRE";
/// The descriptor that keeps the card alive; the shim must not close it.
pub const LEASE_VARIABLE: &str = "IPC_DIRECT_LEASE_FD";
/// The preload library, beside this program.
pub const LIBRARY: &str = "libipc_direct.so";

/// Status when `run` itself fails, as with env(1) and timeout(1).
const STATUS_FAILED: u8 = 125;
/// The program exists but can't be executed, as in shells.
const STATUS_NOT_EXECUTABLE: u8 = 126;
/// No such program, as in shells.
const STATUS_NOT_FOUND: u8 = 127;
/// Attempts to get a lease: an agent may be on its way out just when it is asked.
const ATTEMPTS: u32 = 4;
/// The lease's descriptor number is just below this, or below the limit if that is lower: out of the
/// way of programs that rely on low numbers.
const LEASE_FD_BELOW: u64 = 4096;

/// `ipc-direct run [options] -- PROGRAM ARGS`
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    card: CardArgs,
    /// What the shim logs on the program's standard error [default: $IPC_DIRECT_LOG or off]
    #[arg(long, value_enum, value_name = "LEVEL")]
    log: Option<LogLevel>,
    /// Longest busy wait before a thread sleeps, in microseconds [default: $IPC_DIRECT_SPIN_US or the shim's]
    #[arg(long, value_name = "N")]
    spin_us: Option<u32>,
    /// Fail instead of running over the kernel when no agent can be started
    #[arg(long)]
    require_agent: bool,
    /// Fail to start (status 125) rather than run unaccelerated: when the shim can't get into the program, or can't attach
    #[arg(long)]
    require: bool,
    /// Let an agent that this command starts log to this file (level: info)
    #[arg(long, value_name = "FILE")]
    agent_log: Option<PathBuf>,
    /// Program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<OsString>,
}

impl RunArgs {
    /// `run --require-agent --socket ADDRESS -- PROGRAM`.
    pub(crate) fn at(address: &Address, program: Vec<OsString>) -> RunArgs {
        let (socket, hugepages, request_queue) = (Some(address.to_string()), false, None);
        let card = CardArgs { socket, hugepages, request_queue, lcores: None, pcie_profile: None };
        let (log, spin_us, agent_log) = (None, None, None);
        RunArgs { card, log, spin_us, require_agent: true, require: false, agent_log, program }
    }
}

/// What makes a program an accelerated one.
struct Acceleration {
    lease: OwnedFd,
    preload: OsString,
}

/// Runs the program; returns only if that fails.
#[must_use]
pub fn run(arguments: &RunArgs) -> ExitCode {
    let Some((program, rest)) = arguments.program.split_first() else { return ExitCode::from(2) };
    if arguments.require
        && let Some(why) = Check::of_program(&arguments.program).obstacle()
    {
        say(&format!("{} would not be accelerated: {why}", program.display()));
        return ExitCode::from(STATUS_FAILED);
    }
    let address = Address::choose(arguments.card.socket.as_deref());
    let card = &arguments.card;
    let chosen =
        card.choose_queue().and_then(|queue| Ok((queue, card.choose_lcores()?, card.choose_profile()?)));
    let (request_queue, lcores, pcie_profile) = match chosen {
        Ok(chosen) => chosen,
        Err(why) => {
            say(&why);
            return ExitCode::from(STATUS_FAILED);
        }
    };
    let mut command = Command::new(program);
    command.args(rest);
    let agent_log = arguments.agent_log.as_deref().and_then(|p| std::path::absolute(p).ok());
    let background = Background {
        address: &address,
        hugepages: card.hugepages,
        request_queue,
        lcores,
        pcie_profile,
        log: agent_log.as_deref().map(|p| (LogLevel::Info, p)),
    };
    // Lives until exec, which leaves its descriptor open for the program and its children.
    let _lease = match accelerate(&background) {
        Ok(Acceleration { lease, preload }) => {
            set_environment(&mut command, arguments, &address, &preload, &lease);
            Some(lease)
        }
        Err(why) if arguments.require_agent || arguments.require => {
            say(&why);
            return ExitCode::from(STATUS_FAILED);
        }
        Err(why) => {
            say(&format!("{why}; running {} over the kernel", program.display()));
            None
        }
    };
    not_run(program, &command.exec())
}

/// Says why `program` could not be executed, by words and status.
pub(crate) fn not_run(program: &OsStr, e: &io::Error) -> ExitCode {
    let status = match e.kind() {
        io::ErrorKind::NotFound => STATUS_NOT_FOUND,
        _ => STATUS_NOT_EXECUTABLE,
    };
    let what = if status == STATUS_NOT_FOUND { "no such program".to_owned() } else { e.to_string() };
    say(&format!("{} can't be run: {what}", program.display()));
    ExitCode::from(status)
}

fn accelerate(background: &Background<'_>) -> Result<Acceleration, String> {
    let library = library()?;
    let preload = preload(library.as_os_str(), std::env::var_os("LD_PRELOAD").as_deref())?;
    let lease = lease(background)?;
    Ok(Acceleration { lease, preload })
}

/// The preload library.
///
/// # Errors
/// A sentence: it is not there.
pub fn library() -> Result<PathBuf, String> {
    let library = std::env::current_exe().map_err(|e| e.to_string())?.with_file_name(LIBRARY);
    match library.is_file() {
        true => Ok(library),
        false => Err(format!("{} does not exist: build it (make build)", library.display())),
    }
}

/// A lease from the agent that runs, or from one that is started.
fn lease(background: &Background<'_>) -> Result<OwnedFd, String> {
    let mut trouble = String::new();
    for _ in 0..ATTEMPTS {
        let leased = Agent::connect(background.address).and_then(|agent| match agent.call(&Call::Lease)? {
            (Reply::Leased, _) => Ok(agent.into_socket()),
            _ => Err(DialError::Bad(ring::attach::BadMessage::Malformed)),
        });
        match leased {
            Ok(socket) => {
                return keep_across_exec(&socket).map_err(|e| format!("the lease can't be kept: {e}"));
            }
            Err(DialError::NotRunning(_)) => {
                // Taken in between by another `run`'s agent: the next attempt finds that one.
                trouble = start(background).err().unwrap_or_default();
            }
            Err(e @ DialError::Closed(_)) => trouble = e.to_string(),
            Err(e) => return Err(e.to_string()),
        }
    }
    Err(if trouble.is_empty() { "no agent stays up long enough to give a lease".into() } else { trouble })
}

/// A copy of the descriptor with a high number that stays open across exec.
fn keep_across_exec(socket: &OwnedFd) -> io::Result<OwnedFd> {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(LEASE_FD_BELOW).min(LEASE_FD_BELOW);
    let lowest = i32::try_from(limit.saturating_sub(8)).unwrap_or(0);
    let copy = rustix::io::fcntl_dupfd_cloexec(socket, lowest)?;
    rustix::io::fcntl_setfd(&copy, rustix::io::FdFlags::empty())?;
    Ok(copy)
}

/// `LD_PRELOAD` with the shim in front of what is there.
fn preload(library: &OsStr, existing: Option<&OsStr>) -> Result<OsString, String> {
    if library.as_bytes().iter().any(|b| b": \t".contains(b)) {
        return Err(format!(
            "LD_PRELOAD can't name {}: put the files in a place without blanks and colons",
            library.display()
        ));
    }
    let mut value = library.to_owned();
    let others = existing.unwrap_or_default().as_bytes().split(|b| b": ".contains(b));
    for other in others.filter(|o| !o.is_empty() && *o != library.as_bytes()) {
        value.push(":");
        value.push(OsStr::from_bytes(other));
    }
    Ok(value)
}

fn set_environment(
    command: &mut Command,
    arguments: &RunArgs,
    address: &Address,
    preload: &OsStr,
    lease: &OwnedFd,
) {
    command.env("LD_PRELOAD", preload);
    command.env(LEASE_VARIABLE, lease.as_raw_fd().to_string());
    command.env(SOCKET_VARIABLE, address.to_string());
    if arguments.require {
        command.env(REQUIRE_VARIABLE, "1");
    }
    if let Some(level) = arguments.log {
        command.env(LOG_VARIABLE, level.name());
    }
    if let Some(spin_us) = arguments.spin_us {
        command.env(SPIN_VARIABLE, spin_us.to_string());
    }
}

fn say(sentence: &str) {
    let _ = writeln!(io::stderr(), "ipc-direct: {sentence}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_preloads_are_kept_and_ours_comes_first_once() {
        let join = |old: Option<&str>| preload(OsStr::new("/x/l.so"), old.map(OsStr::new)).unwrap();
        assert_eq!(join(None), "/x/l.so");
        assert_eq!(join(Some("")), "/x/l.so");
        assert_eq!(join(Some("a.so b.so:/x/l.so")), "/x/l.so:a.so:b.so");
        assert!(preload(OsStr::new("/x y/l.so"), None).is_err());
    }
}
