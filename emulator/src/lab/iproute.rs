//! `ip` of iproute2, for links and addresses.

use std::io::{self, Write as _};
use std::process::{Command, Output, Stdio};

/// Runs the commands of `batch`, one a line, in this process' network namespace.
///
/// # Errors
/// A sentence: iproute2 is missing, or what it said.
pub(crate) fn ip(batch: &str) -> Result<(), String> {
    let output = run(batch).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => "the program `ip` is missing: install iproute2 (make setup)".to_owned(),
        _ => format!("the program `ip` could not be run: {e}"),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().next().unwrap_or("nothing");
    Err(format!("a link of the lab could not be set up: `ip` said: {first}"))
}

fn run(batch: &str) -> io::Result<Output> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).env_remove("LD_PRELOAD");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // What it thinks of half a batch is in its status.
        let _ = stdin.write_all(batch.as_bytes());
    }
    child.wait_with_output()
}
