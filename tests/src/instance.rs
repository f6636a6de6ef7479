//! An IPC-Direct of one's own: `ipc-direct up` on an address that nobody else knows.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::census::Census;
use crate::child::{self, Guarded, wait_for};
use crate::counters::{Report, Totals};
use crate::{Failure, Outcome, bins, census, ensure, fail, watchdog};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// How long an agent may take to come up (DPDK's start takes 0.2 s on an idle machine).
const START_BOUND: Duration = Duration::from_secs(20);

/// A running agent with its emulated card.
#[derive(Debug)]
pub struct Instance {
    dir: PathBuf,
    socket: String,
    /// What its card is told beside the environment: its request queue, its bus.
    options: Vec<String>,
    agent: Option<Guarded>,
}

/// A fresh abstract address for an agent.
#[must_use]
pub fn fresh_socket() -> String {
    // Relaxed: only uniqueness matters.
    format!("@ipc-direct-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Instance {
    /// Starts agent and card and waits for the line that says they are ready.
    ///
    /// # Errors
    /// When they are not up in time, with what they wrote.
    pub fn start() -> Outcome<Instance> {
        Instance::start_in(bins::product_dir()?)
    }

    /// As [`Instance::start`], with the binaries of `dir`.
    ///
    /// # Errors
    /// As [`Instance::start`].
    pub fn start_in(dir: PathBuf) -> Outcome<Instance> {
        Instance::start_with(dir, fresh_socket(), Vec::new())
    }

    /// As [`Instance::start`], at an address of the caller's.
    ///
    /// # Errors
    /// As [`Instance::start`].
    pub fn start_at(socket: &str) -> Outcome<Instance> {
        Instance::start_with(bins::product_dir()?, socket.to_owned(), Vec::new())
    }

    fn start_with(dir: PathBuf, socket: String, options: Vec<String>) -> Outcome<Instance> {
        let agent = Some(start_agent(&dir, &socket, &options)?);
        watchdog::agent_up(&socket, &dir);
        Ok(Instance { dir, socket, options, agent })
    }

    /// Another agent and card at the same address, after the first ones have ended.
    ///
    /// # Errors
    /// As [`Instance::start`].
    pub fn start_again(&mut self) -> Outcome {
        self.agent = Some(start_agent(&self.dir, &self.socket, &self.options)?);
        Ok(())
    }

    /// An address where no agent is: programs run through it are on the kernel, or start their own agent.
    ///
    /// # Errors
    /// When the binaries are missing.
    pub fn absent() -> Outcome<Instance> {
        Ok(Instance { dir: bins::product_dir()?, socket: fresh_socket(), options: Vec::new(), agent: None })
    }

    /// The agent's address, as `--socket` takes it.
    #[must_use]
    pub fn socket(&self) -> &str {
        &self.socket
    }

    /// Process id of the agent; 0 when none was started here.
    #[must_use]
    pub fn agent_pid(&self) -> u32 {
        self.agent.as_ref().map_or(0, Guarded::pid)
    }

    /// Process id of the coordinator: the agent's only child.
    ///
    /// # Errors
    /// When there is none.
    pub fn coordinator_pid(&self) -> Outcome<u32> {
        let agent = self.agent_pid();
        let children = std::fs::read_to_string(format!("/proc/{agent}/task/{agent}/children"))?;
        children
            .split_whitespace()
            .find_map(|pid| pid.parse().ok())
            .ok_or_else(|| Failure("the agent has no coordinator".to_owned()))
    }

    /// Waits until agent and coordinator have ended by themselves.
    ///
    /// # Errors
    /// When they still run after `bound`.
    pub fn wait_gone(&mut self, bound: Duration) -> Outcome {
        match self.agent.as_mut() {
            Some(agent) => agent.wait(bound).map(drop),
            None => Ok(()),
        }
    }

    /// `ipc-direct run -- program`, to be completed with arguments.
    #[must_use]
    pub fn shimmed(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(self.dir.join("ipc-direct"));
        command.args(["run", "--require-agent", "--socket", &self.socket, "--"]).arg(program);
        command
    }

    /// `ipc-direct` itself with this instance's address in the environment.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.dir.join("ipc-direct"));
        command.env("IPC_DIRECT_SOCKET", &self.socket);
        command
    }

    /// Where the binaries are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What `ipc-direct ps --json` says now.
    ///
    /// # Errors
    /// When the agent does not answer or the schema is another one.
    pub fn report(&self) -> Outcome<Report> {
        let text = child::run_ok(self.command().args(["ps", "--json"]), Duration::from_secs(10))?;
        let report: Report = serde_json::from_str(&text).map_err(|e| {
            Failure(format!("`ipc-direct ps --json` is not what docs/ps-json.md says: {e}\n{text}"))
        })?;
        census::belongs(report.agent.pid);
        ensure(report.version == 1, || format!("ps schema version {}", report.version))?;
        Ok(report)
    }

    /// Waits until a shimmed server listens on `addr`, in user space as well. Makes no connection, so that the
    /// counters show the test's only.
    ///
    /// # Errors
    /// When none does within 20 s.
    pub fn wait_listening(&self, addr: SocketAddr) -> Outcome {
        // No answer is no failure: the server may be what starts the agent.
        let up = wait_for(START_BOUND, || Ok(self.report().ok().filter(|r| r.listens(addr))))?;
        ensure(up.is_some(), || format!("no shimmed server listens on {addr}"))
    }

    /// Sums over all processes so far.
    ///
    /// # Errors
    /// As [`Instance::report`].
    pub fn totals(&self) -> Outcome<Totals> {
        Ok(self.report()?.totals)
    }

    /// What a stuck or failed test prints: the state of all rings and waiters (`ipc-direct ps --verbose`), and where in
    /// the kernel agent, coordinator and every attached process are. Never waits long; what can't be had is said.
    #[must_use]
    pub fn describe(&self) -> String {
        let rings = watchdog::rings(&self.socket, &self.dir);
        let attached = self.report().map(|r| r.processes).unwrap_or_default();
        let trusted = [Some(self.agent_pid()).filter(|pid| *pid != 0), self.coordinator_pid().ok()];
        let pids = trusted.into_iter().flatten().chain(attached.into_iter().map(|p| p.pid));
        pids.fold(rings, |text, pid| text + &child::describe(pid))
    }

    /// Ends it as Ctrl-C does and waits until agent and coordinator are gone.
    ///
    /// # Errors
    /// When one of them stays.
    pub fn stop(mut self) -> Outcome {
        let coordinator = self.coordinator_pid().ok();
        if let Some(mut agent) = self.agent.take() {
            agent.signal(Signal::TERM);
            agent.wait(Duration::from_secs(10))?;
        }
        if let Some(pid) = coordinator {
            let gone = child::wait_for(Duration::from_secs(10), || Ok((!child::alive(pid)).then_some(())))?;
            ensure(gone.is_some(), || format!("the coordinator stayed\n{}", child::describe(pid)))?;
        }
        Ok(())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        watchdog::agent_down(&self.socket);
        if let Some(mut agent) = self.agent.take() {
            agent.signal(Signal::TERM);
            let _ = agent.wait(Duration::from_secs(5));
        }
    }
}

/// `ipc-direct up`, ready.
fn start_agent(dir: &Path, socket: &str, options: &[String]) -> Outcome<Guarded> {
    let mut agent = Guarded::spawn(
        Command::new(dir.join("ipc-direct"))
            .args(["up", "--socket", socket])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit()),
    )?;
    let Some(out) = agent.stdout() else { return fail("the agent's output is not piped") };
    let (tell, told) = mpsc::channel();
    // Reads to the end, so that the agent never meets a closed or full pipe.
    thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            let _ = tell.send(line);
        }
    });
    match told.recv_timeout(START_BOUND) {
        Ok(_) => Ok(agent),
        Err(_) => fail(format!("`ipc-direct up` was not ready\n{}", child::describe(agent.pid()))),
    }
}

/// Runs `body` with an instance of its own; afterwards nothing may be left, whatever was killed.
///
/// # Errors
/// Those of `body`, with the state of the instance; or what was left behind.
pub fn with_instance(body: impl FnOnce(&mut Instance) -> Outcome) -> Outcome {
    run_with(Vec::new(), body)
}

/// As [`with_instance`], with this request queue, whatever the environment (`IPC_DIRECT_REQUEST_QUEUE`) says.
///
/// # Errors
/// As [`with_instance`].
pub fn with_instance_over(queue: &str, body: impl FnOnce(&mut Instance) -> Outcome) -> Outcome {
    run_with(vec![format!("--request-queue={queue}")], body)
}

/// As [`with_instance`], with a card behind such a bus (`--pcie-profile`).
///
/// # Errors
/// As [`with_instance`].
pub fn with_instance_behind(bus: &str, body: impl FnOnce(&mut Instance) -> Outcome) -> Outcome {
    run_with(vec![format!("--pcie-profile={bus}")], body)
}

fn run_with(options: Vec<String>, body: impl FnOnce(&mut Instance) -> Outcome) -> Outcome {
    let before = Census::take();
    let mut instance = Instance::start_with(bins::product_dir()?, fresh_socket(), options)?;
    if let Err(e) = body(&mut instance) {
        return fail(format!("{}\n{}", e.0, instance.describe()));
    }
    instance.stop()?;
    before.compare()
}
