//! What exists on the machine, listed before and after: a test leaves nothing behind.
//!
//! Others may run IPC-Direct on the same machine at the same time. So only what this test run started is looked
//! at: processes carry [`RUN`] in their environment, and files and sockets carry the number of one of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use crate::child::wait_for;
use crate::{Outcome, ensure};

/// Environment variable that marks every process of a test run; its value is [`run`].
pub const RUN: &str = "IPC_DIRECT_TEST_RUN";
/// Directories in which a party could leave files.
const DIRECTORIES: [&str; 6] = ["/dev/shm", "/tmp", "/run", "/run/dpdk", "/tmp/dpdk", "/dev/hugepages"];
/// Names of the product's processes, as `/proc/PID/comm` cuts them.
const PROCESSES: [&str; 2] = ["ipc-direct", "nic-coordinator"];

/// Kinds of things.
const PROCESS: &str = "process";
const FILE: &str = "file";
const SOCKET: &str = "unix socket";

/// Process ids that this run has had, the test's own included.
static PIDS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// This test run's number.
#[must_use]
pub fn run() -> String {
    std::process::id().to_string()
}

/// Says that `pid` belongs to this run, so that files with its number are this run's.
pub fn belongs(pid: u32) {
    if let Ok(mut pids) = PIDS.lock() {
        pids.insert(pid.to_string());
    }
}

/// Processes that carry this run's mark.
#[must_use]
pub fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| Some((e.path(), e.file_name().to_str()?.parse().ok()?)));
    pids.filter(|(dir, _)| is_marked(dir)).map(|(_, pid)| pid).collect()
}

fn is_marked(dir: &Path) -> bool {
    let environment = fs::read(dir.join("environ")).unwrap_or_default();
    let mark = format!("{RUN}={}", run());
    environment.split(|b| *b == 0).any(|variable| variable == mark.as_bytes())
}

/// A list of things: of what kind, and the name. Also others' files and sockets: whose they are shows by a number, and a number that
/// was somebody else's before may be given to a process of this run later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census(BTreeSet<(&'static str, String)>);

impl Census {
    /// Lists the product's processes and who holds memory of the product's, files in the places where one could
    /// leave them, and unix sockets.
    #[must_use]
    pub fn take() -> Census {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.parse::<u32>().is_ok() {
                process(&entry.path(), &name, &mut found);
            }
        }
        for entry in DIRECTORIES.iter().flat_map(fs::read_dir).flatten().flatten() {
            found.insert((FILE, entry.path().display().to_string()));
        }
        // Some names are drawn by lot: those count that a process of this run holds.
        let held = sockets_of_this_run();
        for line in fs::read_to_string("/proc/net/unix").unwrap_or_default().lines() {
            let mut words = line.split_whitespace().skip(6);
            let (inode, socket) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            if !is_drawn(socket) || held.contains(inode) {
                found.insert((SOCKET, socket.to_owned()));
            }
        }
        Census(found)
    }

    /// Checks that nothing is there that was not there at `self`.
    ///
    /// # Errors
    /// When something stays for 5 s; the text lists it.
    pub fn compare(&self) -> Outcome {
        let mut left = BTreeSet::new();
        wait_for(Duration::from_secs(5), || {
            let mine = PIDS.lock().map(|p| p.clone()).unwrap_or_default();
            let now = Census::take().0;
            left = now.difference(&self.0).filter(|thing| ours(thing, &mine)).cloned().collect();
            Ok(left.is_empty().then_some(()))
        })?;
        ensure(left.is_empty(), || {
            let list: Vec<_> = left.iter().map(|(kind, name)| format!("{kind} {name}")).collect();
            format!("left behind:\n{}", list.join("\n"))
        })
    }
}

/// A doorbell's name has no number that says whose it is.
fn is_drawn(socket: &str) -> bool {
    socket.starts_with("@ipc-direct/bell/")
}

/// Inode numbers of the sockets that this run's processes have open.
fn sockets_of_this_run() -> BTreeSet<String> {
    processes().into_iter().flat_map(sockets).collect()
}

/// Inode numbers of the sockets of a process, one for each descriptor; none of a process that is gone.
pub fn sockets(pid: u32) -> impl Iterator<Item = String> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let targets = open.filter_map(|fd| fs::read_link(fd.path()).ok());
    targets.filter_map(|t| Some(t.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
}

/// A process of this run, or a name with one of the product's words in it, whose first number, if it has any, is a process of this run.
fn ours((kind, name): &(&str, String), mine: &BTreeSet<String>) -> bool {
    if *kind == PROCESS {
        return true;
    }
    let ours =
        ["ipc-direct", "ipc_direct", "nic-coordinator", "rte_", "dpdk_"].iter().any(|w| name.contains(w));
    let first = name.split(|c: char| !c.is_ascii_digit()).find(|n| n.len() > 1);
    let own_number = first.is_none_or(|n| n == run() || mine.contains(n));
    ours && own_number
}

/// A process of this run is of interest if it is one of the product's own, or if it holds memory of the product's.
fn process(dir: &Path, pid: &str, found: &mut BTreeSet<(&'static str, String)>) {
    if !is_marked(dir) {
        return;
    }
    let comm = fs::read_to_string(dir.join("comm")).unwrap_or_default();
    if PROCESSES.contains(&comm.trim()) {
        found.insert((PROCESS, format!("{pid} {}", comm.trim())));
    }
    for line in fs::read_to_string(dir.join("maps")).unwrap_or_default().lines() {
        if let Some(name) = line.split_whitespace().nth(5).filter(|n| n.starts_with("/memfd:ipc-direct")) {
            found.insert((PROCESS, format!("{pid} with {name}")));
        }
    }
}
