//! Source packages from Debian, unpacked below `target/suites` and kept there for the next run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::child::run_ok;
use harness::{Outcome, bins};

/// Bound on fetching, and on building.
const BOUND: Duration = Duration::from_secs(600);

/// The unpacked source of `package`.
///
/// # Errors
/// When it cannot be fetched; the text is apt's.
pub fn fetched(package: &str) -> Outcome<PathBuf> {
    // Beside `release`, wherever the target directory is.
    let directory = bins::product_dir()?.join("../suites");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/fetch-source");
    run_ok(Command::new(script).arg(package).arg(&directory), BOUND)?;
    Ok(directory.join(package).canonicalize()?)
}

/// As [`fetched`], and `commands` (for the shell) done in it unless `product` is there already.
///
/// # Errors
/// As [`fetched`], and when a command fails.
pub fn built(package: &str, product: &str, commands: &str) -> Outcome<PathBuf> {
    let directory = fetched(package)?;
    if !directory.join(product).exists() {
        run_ok(Command::new("sh").args(["-ec", commands]).current_dir(&directory), BOUND)?;
    }
    Ok(directory)
}
