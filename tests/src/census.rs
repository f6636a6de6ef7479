//! What exists on the machine, listed before and after: a test leaves nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::child::wait_for;
use crate::{Outcome, ensure};

/// Names of the product's processes, as `/proc/PID/comm` cuts them.
const PROCESSES: [&str; 2] = ["ipc-direct", "nic-coordinator"];
/// Directories in which a party could leave files.
const DIRECTORIES: [&str; 5] = ["/dev/shm", "/tmp", "/run", "/var/run/dpdk", "/dev/hugepages"];

/// A list of things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census(BTreeSet<String>);

impl Census {
    /// Lists the product's processes and the memory files they hold, files in the places where one could leave
    /// them, and unix sockets with the product's name.
    #[must_use]
    pub fn take() -> Census {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.parse::<u32>().is_ok() {
                process(&entry.path(), &name, &mut found);
            }
        }
        for dir in DIRECTORIES {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                found.insert(format!("file {}", entry.path().display()));
            }
        }
        for line in fs::read_to_string("/proc/net/unix").unwrap_or_default().lines() {
            if let Some(name) = line.split_whitespace().nth(7).filter(|n| ours(n)) {
                found.insert(format!("unix socket {name}"));
            }
        }
        Census(found)
    }

    /// Checks that nothing of IPC-Direct is there that was not there at `self`. What other programs of this
    /// machine do to `/tmp` meanwhile is theirs: only names that contain ours or DPDK's count.
    ///
    /// # Errors
    /// When something stays for 5 s; the text lists it.
    pub fn compare(&self) -> Outcome {
        let mut left = BTreeSet::new();
        wait_for(Duration::from_secs(5), || {
            left = Census::take().0.difference(&self.0).filter(|n| ours(n)).cloned().collect();
            Ok(left.is_empty().then_some(()))
        })?;
        ensure(left.is_empty(), || {
            format!("left behind:\n{}", left.into_iter().collect::<Vec<_>>().join("\n"))
        })
    }
}

fn ours(name: &str) -> bool {
    ["ipc-direct", "ipc_direct", "nic-coordinator", "dpdk", "rte_"].iter().any(|part| name.contains(part))
}

/// A process is of interest if it is one of the product's own, or if it holds memory of the product's.
fn process(dir: &Path, pid: &str, found: &mut BTreeSet<String>) {
    let comm = fs::read_to_string(dir.join("comm")).unwrap_or_default();
    if PROCESSES.contains(&comm.trim()) {
        found.insert(format!("process {pid} {}", comm.trim()));
    }
    for line in fs::read_to_string(dir.join("maps")).unwrap_or_default().lines() {
        if let Some(name) = line.split_whitespace().nth(5).filter(|n| n.starts_with("/memfd:ipc-direct")) {
            found.insert(format!("memory of process {pid} {name}"));
        }
    }
}
