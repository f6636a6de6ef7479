//! No test hangs: one that takes too long ends the run, after the state of all rings, waiters and processes was printed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::{census, child};

/// Agents of this run that are up: their address, and where their binaries are.
static AGENTS: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());

/// An agent is up.
pub fn agent_up(socket: &str, dir: &Path) {
    if let Ok(mut agents) = AGENTS.lock() {
        agents.insert(socket.to_owned(), dir.to_owned());
    }
}

/// An agent was told to end.
pub fn agent_down(socket: &str) {
    if let Ok(mut agents) = AGENTS.lock() {
        agents.remove(socket);
    }
}

/// Rings and waiters as `ipc-direct ps --verbose` shows them.
#[must_use]
pub fn rings(socket: &str, dir: &Path) -> String {
    let mut ps = Command::new(dir.join("ipc-direct"));
    ps.env("IPC_DIRECT_SOCKET", socket).args(["ps", "--verbose", "--all"]);
    child::run(&mut ps, Duration::from_secs(5)).map_or_else(
        |e| e.0,
        |o| format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr)),
    )
}

/// Watches a test until it is dropped.
#[derive(Debug)]
pub struct Watch {
    _ended: Sender<()>,
}

/// Starts to watch the test `name`. After `limit` it prints what there is to know, kills what this run has started,
/// and ends the run as failed: the thread of a test that hangs cannot be ended.
#[must_use]
pub fn watch(name: &str, limit: Duration) -> Watch {
    let (ended, wait) = channel::<()>();
    let name = name.to_owned();
    thread::spawn(move || {
        if wait.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            eprintln!("{name} has not ended within {limit:?}\n{}", state());
            for pid in census::processes() {
                child::signal_pid(pid, Signal::KILL);
            }
            exit(1);
        }
    });
    Watch { _ended: ended }
}

/// The state of all agents and processes of this run.
fn state() -> String {
    let agents = AGENTS.lock().map(|agents| agents.clone()).unwrap_or_default();
    let rings = agents.iter().map(|(socket, dir)| rings(socket, dir));
    rings.chain(census::processes().into_iter().map(child::describe)).collect()
}
