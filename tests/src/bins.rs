//! Finds the product's binaries and the system's programs; a missing one is a failure that says what to do.

use std::path::{Path, PathBuf};

use crate::{Failure, Outcome, fail};

/// Directory with `ipc-direct`, `nic-coordinator` and `libipc_direct.so`: `IPC_DIRECT_BIN_DIR`, or the
/// workspace's `target/release`.
///
/// # Errors
/// When one of the three is missing.
pub fn product_dir() -> Outcome<PathBuf> {
    let dir = std::env::var_os("IPC_DIRECT_BIN_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release"), PathBuf::from);
    for name in ["ipc-direct", "nic-coordinator", "libipc_direct.so"] {
        if !dir.join(name).exists() {
            return fail(format!("{} is missing: run `make build` first", dir.join(name).display()));
        }
    }
    Ok(dir.canonicalize()?)
}

/// Absolute path of a system program. The directories are searched in Debian's order, so that a wrapper
/// script in somebody's `PATH` is not taken for the program.
///
/// # Errors
/// When it is not installed.
pub fn program(name: &str) -> Outcome<PathBuf> {
    for dir in ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"] {
        let path = Path::new(dir).join(name);
        if path.exists() {
            return Ok(path);
        }
    }
    fail(format!("{name} is not installed: run `make setup`"))
}

/// PostgreSQL's programs of the newest version that is installed.
///
/// # Errors
/// When there is none.
pub fn postgres() -> Outcome<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = |path: &Path| path.file_name().and_then(|n| n.to_str()?.parse::<u32>().ok());
    let newest = versions.map(|entry| entry.path()).max_by_key(|path| version(path));
    let bin = newest.map(|path| path.join("bin")).filter(|bin| bin.join("pgbench").exists());
    bin.ok_or_else(|| Failure("PostgreSQL is not installed: run `make setup`".to_owned()))
}
