//! The directory in which DPDK puts its telemetry socket, and who removes it.
//!
//! EAL makes `BASE/dpdk/PREFIX` and never removes it. The prefix of our cards names the process that
//! boots them (`ipc-direct-PID`), so each card cleans up behind itself when it is dropped, and the
//! next one to start also removes what a killed pair of agent and coordinator left.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// First part of our `--file-prefix`.
const PREFIX: &str = "ipc-direct-";
/// DPDK's telemetry socket.
const TELEMETRY: &str = "dpdk_telemetry.v2";

/// The telemetry socket of the card with this prefix.
#[must_use]
pub fn telemetry_of(prefix: &str) -> PathBuf {
    telemetry_in(&base().join("dpdk").join(prefix))
}

/// The telemetry socket of the card whose runtime directory this is.
#[must_use]
pub fn telemetry_in(directory: &Path) -> PathBuf {
    directory.join(TELEMETRY)
}

/// A runtime directory of our own; removed on drop.
#[derive(Debug)]
pub struct RuntimeDir {
    prefix: String,
    path: PathBuf,
}

/// Where EAL looks (DPDK 22.11, `eal_create_runtime_dir`).
fn base() -> PathBuf {
    let from_env = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    from_env("RUNTIME_DIRECTORY").unwrap_or_else(|| {
        if rustix::process::getuid().is_root() {
            PathBuf::from("/var/run")
        } else {
            from_env("XDG_RUNTIME_DIR").unwrap_or_else(|| PathBuf::from("/tmp"))
        }
    })
}

impl RuntimeDir {
    /// Picks a prefix that no other card uses and removes what dead ones left. EAL makes the directory.
    #[must_use]
    pub fn claim() -> RuntimeDir {
        static CARDS: AtomicU32 = AtomicU32::new(0);
        let parent = base().join("dpdk");
        sweep(&parent);
        // Relaxed: only the numbers matter. The first card of a process has the plain name.
        let prefix = match CARDS.fetch_add(1, Ordering::Relaxed) {
            0 => format!("{PREFIX}{}", std::process::id()),
            n => format!("{PREFIX}{}-{n}", std::process::id()),
        };
        let path = parent.join(&prefix);
        // Failure is EAL's to report: it goes on without a runtime directory.
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        RuntimeDir { prefix, path }
    }

    /// The `--file-prefix`, also for `dpdk-telemetry.py -f`.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// False when it could not be made (a `/tmp/dpdk` of another user, say): no telemetry then.
    #[must_use]
    pub fn usable(&self) -> bool {
        self.path.is_dir()
    }
}

impl Drop for RuntimeDir {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn remove(dir: &Path) {
    let _ = fs::remove_dir_all(dir);
    // Only when it is empty; others' directories keep it.
    if let Some(parent) = dir.parent() {
        let _ = fs::remove_dir(parent);
    }
}

/// Removes directories whose booting process and whose coordinator are both gone.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(|n| n.strip_prefix(PREFIX)) else { continue };
        let pid = owner.split('-').next().unwrap_or(owner);
        let known = pid.bytes().all(|b| b.is_ascii_digit()) && !pid.is_empty();
        if known && !Path::new("/proc").join(pid).exists() && !answers(&entry.path().join(TELEMETRY)) {
            remove(&entry.path());
        }
    }
}

/// True when somebody listens on the socket at `path`: a coordinator that is still shutting down, or
/// one of another pid namespace.
fn answers(path: &Path) -> bool {
    let Ok(address) = SocketAddrUnix::new(path) else { return false };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).is_ok_and(|s| {
        !matches!(
            rustix::net::connect(&s, &address),
            Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_directories_are_swept_and_others_kept() {
        let parent = std::env::temp_dir().join(format!("ipc-direct-sweep-{}", std::process::id()));
        // Beyond pid_max of every Linux.
        let dead = parent.join("ipc-direct-4194999");
        let alive = parent.join(format!("ipc-direct-{}-1", std::process::id()));
        let foreign = parent.join("rte");
        for dir in [&dead, &alive, &foreign] {
            fs::create_dir_all(dir).unwrap();
        }
        sweep(&parent);
        assert_eq!([&dead, &alive, &foreign].map(|d| d.exists()), [false, true, true]);
        fs::remove_dir_all(&parent).unwrap();
    }
}
