//! `lab exec`: a program in a host. This process goes into the host's namespaces, starts one in its pid namespace, and waits
//! for that; the program ends with it.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitCode, ExitStatus};

use clap::Args;
use emulator::lab::namespaces;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::call::{Ask, Lab};
use super::{own_command, say};
use crate::address::{Address, SOCKET_VARIABLE};
use crate::dial::Agent;
use crate::run::{self, RunArgs};

/// Status when `exec` itself fails, as with env(1) and timeout(1).
const STATUS_FAILED: u8 = 125;

#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// Which host
    host: String,
    /// Without the shim
    #[arg(long)]
    plain: bool,
    /// Program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(super) struct InsideArgs {
    #[arg(long)]
    plain: bool,
    #[arg(required = true, trailing_var_arg = true)]
    program: Vec<OsString>,
}

/// Where a host's agent listens. An abstract name is its network namespace's own.
pub(super) fn agent_address() -> Address {
    Address::Abstract("ipc-direct/host".into())
}

pub(super) fn exec(name: &str, arguments: &ExecArgs) -> ExitCode {
    match run_in(name, arguments) {
        Ok(status) => ExitCode::from(status),
        Err(sentence) => {
            say(&sentence);
            ExitCode::from(STATUS_FAILED)
        }
    }
}

fn run_in(name: &str, arguments: &ExecArgs) -> Result<u8, String> {
    let host = &arguments.host;
    let (_, fds) = Lab::find(name)?.call(&Ask::Enter { host: host.clone() })?;
    let entrance = fds.into_iter().next().ok_or("the lab opened no way into the host")?;
    // While /proc still shows this process.
    let own = own_command("inside", name)?;
    let directory = std::env::current_dir();
    let failed = |e: io::Error| format!("the program can't be run in {host}: {e}");
    let signals = watch_signals().map_err(failed)?;
    namespaces::enter(entrance.as_fd()).map_err(failed)?;
    // What is under /run is another directory there.
    let _ = directory.and_then(std::env::set_current_dir);
    let [program, rest @ ..] = own.as_slice() else { return Err("no program to start".into()) };
    let mut command = Command::new(program);
    command.args(rest).args(arguments.plain.then_some("--plain")).arg("--").args(&arguments.program);
    let child = command.spawn().map_err(failed)?;
    wait(child, &signals).map_err(failed)
}

/// Ctrl-C reaches the program by the terminal; whoever ends this process by a signal means the program.
fn watch_signals() -> io::Result<UnixStream> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    use signal_hook::flag;
    let (read, write) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGHUP] {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    for signal in [SIGINT, SIGQUIT] {
        flag::register(signal, std::sync::Arc::default())?;
    }
    Ok(read)
}

fn wait(mut child: Child, signals: &UnixStream) -> io::Result<u8> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd: OwnedFd = match pid {
        Some(pid) => rustix::process::pidfd_open(pid, PidfdFlags::empty())?,
        None => return Err(io::ErrorKind::NotFound.into()),
    };
    let mut asked = false;
    loop {
        // Asked once, it need not be asked again: only the end matters then.
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
        if !asked {
            fds.push(PollFd::new(signals, PollFlags::IN));
        }
        if poll(&mut fds, None).is_err() {
            continue;
        }
        if fds.first().is_some_and(|fd| !fd.revents().is_empty()) {
            return Ok(code(child.wait()?));
        }
        asked = true;
        let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::TERM);
    }
}

/// As shells have it.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(STATUS_FAILED)
}

/// The process in the host's pid namespace: becomes the program.
pub(super) fn inside(arguments: &InsideArgs) -> ExitCode {
    // `exec` can't end without its program, not even by kill -9.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let address = agent_address();
    let agent = !arguments.plain && {
        let there = Agent::connect(&address);
        if let Err(e) = &there {
            say(&format!("{e}; running over the kernel"));
        }
        there.is_ok()
    };
    if agent {
        return run::run(&RunArgs::at(&address, arguments.program.clone()));
    }
    let [program, rest @ ..] = arguments.program.as_slice() else { return ExitCode::from(2) };
    // For `ipc-direct ps` there.
    let e = Command::new(program).args(rest).env(SOCKET_VARIABLE, address.to_string()).exec();
    run::not_run(program, &e)
}
