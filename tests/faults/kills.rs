//! kill -9 of each party during a transfer.

use std::process::Stdio;
use std::time::Duration;

use harness::child::{Guarded, signal_pid, wait_for};
use harness::instance::Instance;
use harness::redis::Server;
use harness::scratch::Scratch;
use harness::{Outcome, ensure, fail};
use rustix::process::Signal;

use crate::with_instance;
pub use harness::transfer::BOUND;
use harness::transfer::{Transfer, now_ns};

/// The program that transfers.
const PROGRAM: &str = env!("CARGO_BIN_EXE_transfer");
/// A survivor must know within this time.
const NOTICE_BOUND_NS: i128 = 100_000_000;
/// A machine may be busy with something else at the wrong moment; once in so many is proof that it can be kept.
const ATTEMPTS: usize = 3;
/// How long the transfer runs before the blow.
const BEFORE: Duration = Duration::from_millis(300);

/// Kills one side of a transfer; the other must see the end, quickly.
fn kill_one_side(kind: &str, kill_client: bool) -> Outcome {
    kill_one_side_of(kind, kill_client, false)
}

/// The same over TCP, or over a unix socket.
fn kill_one_side_of(kind: &str, kill_client: bool, unix: bool) -> Outcome {
    let mut measured = Vec::new();
    for _ in 0..ATTEMPTS {
        let mut after = 0;
        with_instance(|instance| {
            let scratch = Scratch::new()?;
            let path = scratch.path().join("socket").display().to_string();
            let words = if unix { vec!["server", &path] } else { vec!["server"] };
            let server = Transfer::start(PROGRAM, Some(instance), &words)?;
            let port = server.expect("port")?;
            let client = Transfer::start(PROGRAM, Some(instance), &["client", &port, kind, "60"])?;
            client.expect("connected")?;
            server.expect("accepted")?;
            std::thread::sleep(BEFORE);
            let (victim, survivor) = if kill_client { (&client, &server) } else { (&server, &client) };
            let killed = now_ns();
            victim.process.signal(Signal::KILL);
            let (how, ns) = survivor.ended_after(killed)?;
            ensure(["eof", "reset", "pipe"].contains(&how.as_str()), || format!("it ended {how}"))?;
            after = ns;
            if kill_client { serves_another(instance, &server, &port) } else { Ok(()) }
        })?;
        println!(
            "kill -9 of a {kind} {}: noticed after {:.2} ms",
            if kill_client { "client" } else { "server" },
            std::time::Duration::from_nanos(u64::try_from(after).unwrap_or(0)).as_secs_f64() * 1000.0
        );
        if after < NOTICE_BOUND_NS {
            return Ok(());
        }
        measured.push(after);
    }
    fail(format!("the survivor noticed after {measured:?} ns, each time later than promised"))
}

/// The server is as good as before.
fn serves_another(instance: &Instance, server: &Transfer, port: &str) -> Outcome {
    let before = instance.totals()?;
    let client = Transfer::start(PROGRAM, Some(instance), &["client", port, "busy", "0.2"])?;
    client.expect("done")?;
    server.expect("ended")?;
    let moved = instance.totals()? - before;
    // An AF_UNIX connection begins in the kernel.
    let begins = if port.starts_with('/') { moved.user.tx_bytes / 2 } else { 0 };
    ensure(moved.user.tx_bytes > 0 && moved.kernel.tx_bytes <= begins, || {
        format!("not in user space: {moved:?}")
    })
}

pub fn busy_client() -> Outcome {
    kill_one_side("busy", true)
}

pub fn busy_server() -> Outcome {
    kill_one_side("busy", false)
}

pub fn busy_unix_client() -> Outcome {
    kill_one_side_of("busy", true, true)
}

pub fn busy_unix_server() -> Outcome {
    kill_one_side_of("busy", false, true)
}

pub fn idle_client() -> Outcome {
    kill_one_side("idle", true)
}

pub fn idle_server() -> Outcome {
    kill_one_side("idle", false)
}

pub fn agent() -> Outcome {
    kill_trusted(|instance| Ok(instance.agent_pid()))
}

pub fn coordinator() -> Outcome {
    kill_trusted(Instance::coordinator_pid)
}

/// Kills agent or coordinator: the other one ends too, connections go on, new ones use the kernel.
fn kill_trusted(victim: fn(&Instance) -> Outcome<u32>) -> Outcome {
    with_instance(|instance| {
        let (server, port) = Transfer::server(PROGRAM, instance)?;
        let client = Transfer::start(PROGRAM, Some(instance), &["client", &port, "busy", "1.5"])?;
        client.expect("progress")?;
        let moved = instance.totals()?;
        ensure(moved.user.connections == 2, || format!("not in user space: {moved:?}"))?;
        kill_and_wait(instance, victim)?;
        client.expect("progress")?;
        client.expect("done")?;
        let ended = server.expect("ended")?;
        ensure(ended.starts_with("eof"), || format!("the connection should go on, and ended {ended}"))?;
        let late = Transfer::start(PROGRAM, None, &["client", &port, "busy", "0.2"])?;
        late.expect("done")?;
        server.expect("ended")?;
        // `run` starts another agent, which knows nothing of this server: the kernel connects them.
        let newcomer = Transfer::start(PROGRAM, Some(instance), &["client", &port, "busy", "0.2"])?;
        newcomer.expect("done")?;
        server.expect("ended").map(drop)
    })
}

/// Kills one of the two trusted processes and waits until both are gone.
pub fn kill_and_wait(instance: &mut Instance, victim: fn(&Instance) -> Outcome<u32>) -> Outcome {
    let coordinator = instance.coordinator_pid()?;
    signal_pid(victim(instance)?, Signal::KILL);
    instance.wait_gone(BOUND)?;
    let gone = wait_for(BOUND, || Ok((!harness::child::alive(coordinator)).then_some(())))?;
    ensure(gone.is_some(), || "the coordinator outlives the agent".to_owned())
}

/// A load that runs until it is killed or done.
fn load(instance: &Instance, server: &Server, requests: &str) -> Outcome<Guarded> {
    let mut command = server.client(Some(instance), "redis-benchmark")?;
    command.args(["-c", "50", "-n", requests, "-t", "set,get", "-q", "-d", "200"]);
    Guarded::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
}

pub fn redis_clients() -> Outcome {
    with_instance(|instance| {
        let server = Server::start(Some(instance))?;
        for round in 0..10 {
            let mut client = load(instance, &server, "100000000")?;
            std::thread::sleep(Duration::from_millis(40 * round));
            client.signal(Signal::KILL);
            client.wait(BOUND)?;
            let answer = server.cli(Some(instance), &["ping"])?;
            ensure(answer == "PONG", || format!("after a kill, PING said {answer}"))?;
        }
        let left = wait_for(BOUND, || {
            let info = server.cli(Some(instance), &["info", "clients"])?;
            Ok(info.lines().any(|l| l.trim() == "connected_clients:1").then_some(()))
        })?;
        ensure(left.is_some(), || "the server still holds connections of killed clients".to_owned())?;
        server.stop()
    })
}

pub fn redis_server() -> Outcome {
    with_instance(|instance| {
        for _ in 0..3 {
            let server = Server::start(Some(instance))?;
            let mut client = load(instance, &server, "100000000")?;
            std::thread::sleep(BEFORE);
            signal_pid(server.pid(), Signal::KILL);
            client.wait(BOUND)?;
        }
        Ok(())
    })
}

pub fn agent_under_redis() -> Outcome {
    trusted_under_redis(|instance| Ok(instance.agent_pid()))
}

pub fn coordinator_under_redis() -> Outcome {
    trusted_under_redis(Instance::coordinator_pid)
}

fn trusted_under_redis(victim: fn(&Instance) -> Outcome<u32>) -> Outcome {
    with_instance(|instance| {
        let server = Server::start(Some(instance))?;
        let mut client = load(instance, &server, "300000")?;
        std::thread::sleep(BEFORE);
        kill_and_wait(instance, victim)?;
        let status = client.wait(Duration::from_secs(60))?;
        ensure(status.success(), || format!("the load ended with {status}"))?;
        let answer = server.cli(None, &["ping"])?;
        ensure(answer == "PONG", || format!("a plain client's PING said {answer}"))?;
        let answer = server.cli(Some(instance), &["ping"])?;
        ensure(answer == "PONG", || format!("a shimmed client's PING said {answer}"))?;
        server.stop()
    })
}
