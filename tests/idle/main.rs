//! An idle system uses no CPU: agent, emulated coordinator and two connected idle processes together.

use std::fs;
use std::process::{ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use harness::census::sockets;
use harness::child::{Guarded, run_ok, wait_for};
use harness::instance::{Instance, with_instance};
use harness::redis::Server;
use harness::suite::{self, Test};
use harness::transfer::Transfer;
use harness::{Failure, Outcome, bins, ensure, fail};

const TESTS: &[Test] = &[
    ("idle::pair_that_blocks_in_recv", blocking_pair),
    ("idle::redis_and_a_subscriber", redis_pair),
    ("idle::connections_of_a_server_have_few_sockets", few_sockets),
    ("idle::sockets_of_a_client_share_a_file", shared_file),
];

/// Clients that redis has and hears nothing of.
const CLIENTS: usize = 100;
/// Its listeners, the agent's, and a file for each step of options that a connection of it gets.
const SOCKETS_MAX: usize = 24;

/// A client whose sockets, after the first, have one file; whose connections use few ports, again and again; and the sockets that it makes
/// when those have turned out to be for something else.
const CLIENT: &str = r#"
import os, socket
server = socket.create_server(("127.0.0.1", 0))
def connected():
    client = socket.create_connection(server.getsockname())
    return client, server.accept()[0]
def files(sockets):
    return len({os.fstat(s.fileno()).st_ino for s in sockets})
first = connected()
fresh = [socket.socket() for _ in range(10)]
print("files", files(fresh))
ports = set()
for _ in range(1000):
    client, accepted = connected()
    ports.add(client.getsockname())
    client.close()
    accepted.close()
print("ports", len(ports))
fresh[0].bind(("127.0.0.1", 0))
print("files", files(fresh), files([socket.socket() for _ in range(10)]))
"#;
/// As many as [`CLIENT`]'s connections have at most, and some that others had in between.
const PORTS_MAX: usize = 70;

/// How long nothing happens.
const WATCH: Duration = Duration::from_secs(10);
/// Share of one core that all four together may use.
const SHARE_MAX: f64 = 0.01;
/// `utime` and `stime` count hundredths of a second on every Linux (`USER_HZ`).
const TICKS_PER_S: f64 = 100.0;
/// Other work on the machine does not count, but one-off work of the four (a late page fault) may fall into the watch.
const ATTEMPTS: usize = 3;

fn main() -> ExitCode {
    suite::main(TESTS)
}

/// Processor time in ticks that a process has used.
fn ticks(pid: u32) -> Outcome<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit(')').next().unwrap_or("");
    let times: Vec<u64> = fields.split_whitespace().skip(11).take(2).filter_map(|t| t.parse().ok()).collect();
    if times.len() == 2 { Ok(times.iter().sum()) } else { Err(Failure(format!("/proc/{pid}/stat: {stat}"))) }
}

/// Both ends wait in `recv`.
fn blocking_pair() -> Outcome {
    with_instance(|instance| {
        let program = env!("CARGO_BIN_EXE_transfer");
        let (server, port) = Transfer::server(program, instance)?;
        let client = Transfer::start(program, Some(instance), &["client", &port, "idle", "60"])?;
        server.expect("accepted")?;
        client.expect("connected")?;
        watch(instance, server.process.pid(), client.process.pid())
    })
}

/// The server waits in `epoll_wait` with a time-out of its own, ten times a second.
fn redis_pair() -> Outcome {
    with_instance(|instance| {
        let server = Server::start(Some(instance))?;
        let mut command = server.client(Some(instance), "redis-cli")?;
        let command = command.args(["subscribe", "x"]).stdin(Stdio::null()).stdout(Stdio::null());
        let client = Guarded::spawn(command)?;
        let subscribed = wait_for(Duration::from_secs(10), || {
            Ok((server.cli(Some(instance), &["pubsub", "numsub", "x"])? == "x\n1").then_some(()))
        })?;
        ensure(subscribed.is_some(), || "the subscriber did not subscribe".to_owned())?;
        // From now on its connections have been shared with a child.
        let saved = wait_for(Duration::from_secs(10), || {
            let started = server.cli(Some(instance), &["bgsave"])?;
            Ok(started.starts_with("Background saving started").then_some(()))
        })?;
        ensure(saved.is_some(), || "redis did not fork".to_owned())?;
        watch(instance, server.pid(), client.pid())?;
        drop(client);
        server.stop()
    })
}

/// What a hundred connections look like to the kernel, which would have a socket for each.
fn few_sockets() -> Outcome {
    with_instance(|instance| {
        let server = Server::start(Some(instance))?;
        let mut command = server.client(Some(instance), "redis-benchmark")?;
        let command = command.args(["-I", "-c", &CLIENTS.to_string()]);
        let clients = Guarded::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
        let connected = wait_for(Duration::from_secs(20), || {
            let files: Vec<_> = sockets(server.pid()).collect();
            Ok((files.len() >= CLIENTS).then_some(files))
        })?;
        let Some(mut files) = connected else { return fail("the clients did not connect") };
        files.sort();
        files.dedup();
        println!("idle: {CLIENTS} connections and {} sockets", files.len());
        ensure(files.len() <= SOCKETS_MAX, || format!("{files:?}"))?;
        drop(clients);
        server.stop()
    })
}

fn shared_file() -> Outcome {
    with_instance(|instance| {
        let mut command = instance.shimmed(bins::program("python3")?);
        let said = run_ok(command.args(["-c", CLIENT]), Duration::from_secs(60))?;
        let lines: Vec<_> = said.lines().collect();
        let ports = lines.get(1).and_then(|l| l.strip_prefix("ports ")?.parse().ok());
        let few = ports.is_some_and(|n: usize| n <= PORTS_MAX);
        ensure(lines.first() == Some(&"files 1") && few && lines.get(2) == Some(&"files 2 10"), || {
            said.clone()
        })
    })
}

/// The four together stay below the limit for [`WATCH`].
fn watch(instance: &Instance, server: u32, client: u32) -> Outcome {
    let pids = [instance.agent_pid(), instance.coordinator_pid()?, server, client];
    let moved = instance.totals()?;
    ensure(moved.user.connections >= 2, || format!("the pair is not in user space: {moved:?}"))?;
    let mut measured = Vec::new();
    for _ in 0..ATTEMPTS {
        let each = || pids.iter().map(|pid| ticks(*pid)).collect::<Outcome<Vec<u64>>>();
        let start = each()?;
        thread::sleep(WATCH);
        let used: Vec<u64> = each()?.iter().zip(&start).map(|(after, before)| after - before).collect();
        #[allow(clippy::cast_precision_loss)] // a few ticks
        let share = used.iter().sum::<u64>() as f64 / TICKS_PER_S / WATCH.as_secs_f64();
        println!(
            "idle: {:.2}% of one core; ticks of agent, coordinator, server, client: {used:?}",
            share * 100.0
        );
        if share < SHARE_MAX {
            return Ok(());
        }
        measured.push(share);
    }
    fail(format!("shares of one core: {measured:?}"))
}
