//! One side with the shim, the other without: everything works, through the kernel, and `ps` says why.

use std::process::Stdio;
use std::time::Duration;

use harness::child::{Guarded, run_ok, wait_for};
use harness::instance::Instance;
use harness::redis::Server;
use harness::{Outcome, ensure};

use crate::with_instance;

const BOUND: Duration = Duration::from_secs(60);
const LOAD: [&str; 7] = ["-c", "20", "-n", "10000", "-t", "set,get", "-q"];

pub fn shimmed_client() -> Outcome {
    with_instance(|instance| {
        let server = Server::start(None)?;
        through_kernel(instance, &server, Some(instance), "redis-cli", "peer-unshimmed")?;
        server.stop()
    })
}

pub fn plain_client() -> Outcome {
    with_instance(|instance| {
        let server = Server::start(Some(instance))?;
        through_kernel(instance, &server, None, "redis-server", "client-unshimmed")?;
        server.stop()
    })
}

/// Loads `server` through the kernel, then holds one connection and looks at what `ps` says about it.
fn through_kernel(
    instance: &Instance,
    server: &Server,
    client: Option<&Instance>,
    attached: &str,
    reason: &str,
) -> Outcome {
    let before = instance.totals()?;
    run_ok(server.client(client, "redis-benchmark")?.args(LOAD), BOUND)?;
    let moved = instance.totals()? - before;
    ensure(moved.user.connections == 0 && moved.user.tx_bytes == 0, || format!("in user space? {moved:?}"))?;
    ensure(moved.kernel.connections >= 20 && moved.kernel.tx_bytes > 100_000, || {
        format!("the kernel's traffic is not counted: {moved:?}")
    })?;
    let mut subscriber = server.client(client, "redis-cli")?;
    let held =
        Guarded::spawn(subscriber.args(["subscribe", "x"]).stdin(Stdio::null()).stdout(Stdio::null()))?;
    let explained = wait_for(Duration::from_secs(10), || {
        let report = instance.report()?;
        let sockets = report.processes.iter().filter(|p| p.command == attached).flat_map(|p| &p.sockets);
        Ok(sockets.filter(|s| s.path.as_deref() == Some("kernel")).any(|s| s.reason == reason).then_some(()))
    })?;
    drop(held);
    ensure(explained.is_some(), || format!("`ps` does not give the reason {reason}"))
}

/// A listener serves both kinds in one accept queue.
pub fn mixed_clients() -> Outcome {
    with_instance(|instance| {
        let server = Server::start(Some(instance))?;
        let before = instance.totals()?;
        let start = |with: Option<&Instance>| -> Outcome<Guarded> {
            let mut command = server.client(with, "redis-benchmark")?;
            Guarded::spawn(command.args(LOAD).stdin(Stdio::null()).stdout(Stdio::null()))
        };
        let mut all = [start(Some(instance))?, start(None)?, start(Some(instance))?, start(None)?];
        for load in &mut all {
            let status = load.wait(BOUND)?;
            ensure(status.success(), || format!("redis-benchmark ended with {status}"))?;
        }
        let moved = instance.totals()? - before;
        ensure(moved.user.connections >= 80 && moved.kernel.connections >= 40, || {
            format!("both paths should have been used: {moved:?}")
        })?;
        server.stop()
    })
}
