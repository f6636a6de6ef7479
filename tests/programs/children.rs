//! Children that serve a connection and have not attached, of an ordinary user: the agent watches them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::child::{Guarded, wait_for};
use harness::instance::Instance;
use harness::redis::command;
use harness::{Failure, Outcome, bins, ensure};
use rustix::process::{Signal, getuid};

use crate::with_instance;

const BOUND: Duration = Duration::from_secs(60);

/// What the client hears of children that compute, are killed, become another program or start one, or wait; on the kernel and under the shim.
pub fn of_connections() -> Outcome {
    let kernel = hear(None)?;
    with_instance(|instance| {
        let before = instance.totals()?;
        let shim = hear(Some(instance))?;
        ensure(shim == kernel, || format!("on the kernel: {kernel:?}, under the shim: {shim:?}"))?;
        let moved = instance.totals()? - before;
        ensure(moved.user.rx_bytes > 0 && moved.kernel.connections == 0, || {
            format!("not in user space: {moved:?}")
        })
    })
}

fn hear(instance: Option<&Instance>) -> Outcome<Vec<String>> {
    let mut server = python(instance, getuid().is_root())?;
    let mut server = Guarded::spawn(server.arg("server").stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let port = line(server.stdout())?.1;
    let mut heard = Vec::new();
    for what in ["computes", "is killed", "executes", "runs cat", "waits"] {
        heard.push(talk(instance, &port, what)?);
    }
    server.signal(Signal::TERM);
    server.wait(BOUND)?;
    Ok(heard)
}

/// What the client of one child says.
fn talk(instance: Option<&Instance>, port: &str, what: &str) -> Outcome<String> {
    let mut client = python(instance, false)?;
    client.args(["client", port, what]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut client = Guarded::spawn(&mut client)?;
    let (mut out, pid) = line(client.stdout())?;
    if let Some(instance) = instance {
        let pid: u32 = pid.parse()?;
        let attached = || Ok(instance.report()?.processes.iter().any(|p| p.pid == pid).then_some(()));
        if what == "waits" {
            ensure(wait_for(BOUND, attached)?.is_some(), || "a child that waits does not attach".to_owned())?;
        } else if what != "runs cat" {
            ensure(attached()?.is_none(), || format!("a child that {what} has attached"))?;
        }
    }
    let input = client.stdin();
    input.ok_or_else(|| Failure("the client's input is not piped".to_owned()))?.write_all(b"\n")?;
    let status = client.wait(BOUND)?;
    let mut said = String::new();
    while out.read_line(&mut said)? != 0 {}
    ensure(status.success(), || format!("the client of one that {what} ended with {status}: {said}"))?;
    Ok(format!("{what}: {said}"))
}

/// The script; as `nobody`, whose children attach late, if that is asked for.
fn python(instance: Option<&Instance>, switch: bool) -> Outcome<Command> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/children.py");
    let mut python = if switch {
        let mut switched = command(instance, bins::program("setpriv")?);
        switched.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
        switched.arg(bins::program("python3")?);
        switched
    } else {
        command(instance, bins::program("python3")?)
    };
    // The user need not be able to read the build directory.
    python.arg("-c").arg(std::fs::read_to_string(script)?);
    Ok(python)
}

fn line(
    output: Option<std::process::ChildStdout>,
) -> Outcome<(BufReader<std::process::ChildStdout>, String)> {
    let output = output.ok_or_else(|| Failure("the output is not piped".to_owned()))?;
    let (mut reader, mut line) = (BufReader::new(output), String::new());
    reader.read_line(&mut line)?;
    Ok((reader, line.trim().to_owned()))
}
