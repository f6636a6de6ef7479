//! `ps --verbose`: where the rings are and who sleeps.

use std::process::{Command, Stdio};
use std::time::Duration;

use harness::child::{Guarded, run_ok, wait_for};
use harness::instance::Instance;
use harness::{Outcome, bins, ensure, fail};
use serde_json::Value;

use crate::with_instance;

const BOUND: Duration = Duration::from_secs(60);

/// A server that accepts and never reads, a client that writes until it sleeps.
const PROGRAM: &str = "
import socket, sys, threading
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
accepted, _ = server.accept()
if sys.argv[1] == 'write':
    client.sendall(b'x' * 10_000_000)
else:
    client.recv(1)
";

/// What both cases look at: the only process's sleepers, and the directions of the only connection.
fn state(instance: &Instance) -> Outcome<Value> {
    let json = run_ok(instance.command().args(["ps", "--verbose", "--json"]), BOUND)?;
    Ok(serde_json::from_str(&json)?)
}

fn python(instance: &Instance, what: &str) -> Outcome<Guarded> {
    let mut command: Command = instance.shimmed(bins::program("python3")?);
    Guarded::spawn(command.args(["-c", PROGRAM, what]).stdin(Stdio::null()))
}

pub fn rings_and_sleepers() -> Outcome {
    with_instance(|instance| {
        for (what, sleeper, fill_min) in [("write", "writer_sleeps", 250_000), ("read", "reader_sleeps", 0)] {
            let process = python(instance, what)?;
            let seen = wait_for(BOUND, || {
                let all = state(instance)?;
                let directions = &all["segments"][0]["connections"][0]["directions"];
                let direction = &directions[usize::from(what == "read")];
                let sleeps = direction[sleeper] == "futex"
                    && all["processes"][0]["rings"]["sleepers"][0]["sleeps_on"] == "stream"
                    && all["processes"][0]["rings"]["sleepers"][0]["tid"] == process.pid();
                Ok(sleeps.then(|| direction["fill"].as_u64()))
            })?;
            let Some(fill) = seen else { return fail(format!("nobody is seen to sleep in {what}")) };
            ensure(fill.is_some_and(|n| n >= fill_min && n <= 262_144), || format!("{what}: fill {fill:?}"))?;
        }
        let text = run_ok(instance.command().args(["ps", "--verbose"]), BOUND)?;
        ensure(text.contains("user-space"), || text)
    })
}
