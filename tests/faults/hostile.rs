//! Processes that attach properly and then lie (the `hostile` program): they harm nobody but themselves.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::child::{Guarded, run_ok, wait_for};
use harness::instance::Instance;
use harness::net::free_port;
use harness::redis::Server;
use harness::transfer::Transfer;
use harness::{Failure, Outcome, ensure};

use crate::with_instance;

/// The program that transfers.
const PROGRAM: &str = env!("CARGO_BIN_EXE_transfer");
const BOUND: Duration = Duration::from_secs(60);

fn hostile(instance: &Instance, words: &[&str]) -> Outcome<Guarded> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hostile"));
    let [kind, rest @ ..] = words else { return harness::fail("which kind of hostility?") };
    command.arg(kind).arg(instance.socket()).args(rest).stdin(Stdio::null());
    Guarded::spawn(&mut command)
}

/// Several liars while redis works; then redis must still work, in user space.
fn beside(seeds: &[&str], start: impl Fn(&Instance, &Server, &str) -> Outcome<Guarded>) -> Outcome {
    with_instance(|instance| {
        let server = Server::start(Some(instance))?;
        let work = || {
            let mut load = server.client(Some(instance), "redis-benchmark")?;
            run_ok(load.args(["-c", "20", "-n", "20000", "-t", "set,get", "-q"]), BOUND).map(drop)
        };
        for seed in seeds {
            let mut liar = start(instance, &server, seed)?;
            work()?;
            let status = liar.wait(BOUND)?;
            ensure(status.success(), || format!("the liar could not lie: {status}"))?;
        }
        let before = instance.totals()?;
        work()?;
        let moved = instance.totals()? - before;
        ensure(moved.user.tx_bytes > 500_000 && moved.kernel.tx_bytes == 0, || {
            format!("after the liars the traffic is not in user space: {moved:?}")
        })?;
        let dropped = wait_for(Duration::from_secs(10), || {
            let info = server.cli(Some(instance), &["info", "clients"])?;
            Ok(info.lines().any(|l| l.trim() == "connected_clients:1").then_some(()))
        })?;
        ensure(dropped.is_some(), || "the server still holds a liar's connection".to_owned())?;
        server.stop()
    })
}

pub fn request_ring() -> Outcome {
    beside(&["1", "2", "3"], |instance, _, seed| hostile(instance, &["requests", "1.5", seed]))
}

pub fn lying_client() -> Outcome {
    beside(&["1", "2", "3", "4"], |instance, server, seed| {
        hostile(instance, &["client", "1.5", seed, &server.addr().port().to_string()])
    })
}

/// Whatever a lying server does to a client, the client's call returns: with garbage, an error, or the end.
pub fn lying_server() -> Outcome {
    with_instance(|instance| {
        for seed in ["1", "2", "3", "4"] {
            for kind in ["busy", "idle"] {
                let port = free_port()?.to_string();
                let mut command = Command::new(env!("CARGO_BIN_EXE_hostile"));
                command.args(["server", instance.socket(), "1", seed, &port]).stdin(Stdio::null());
                let mut liar = Guarded::spawn(command.stdout(Stdio::piped()))?;
                let out = liar.stdout().ok_or_else(|| Failure("the output is not piped".to_owned()))?;
                BufReader::new(out).read_line(&mut String::new())?;
                let mut client = Transfer::start(PROGRAM, Some(instance), &["client", &port, kind, "30"])?;
                client.expect("connected")?;
                client.process.wait(BOUND)?;
                let status = liar.wait(BOUND)?;
                ensure(status.success(), || format!("the liar could not lie: {status}"))?;
            }
        }
        Ok(())
    })
}
