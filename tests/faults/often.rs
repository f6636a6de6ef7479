//! Clients that connect again and again, and open connections without an answer, when the coordinator is killed, or hangs, or is another one:
//! each connection is served or ends, and new ones are served again.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{ChildStdout, Stdio};
use std::thread::sleep;
use std::time::Duration;

use harness::child::{Guarded, signal_pid};
use harness::instance::{Instance, with_instance};
use harness::transfer::BOUND;
use harness::{Failure, Outcome, bins, ensure, net};
use rustix::process::Signal;

use crate::queues::telemetry;

/// `serve PORT`: answers what the first segment of a connection says, and ends it.
/// `often PORT SECONDS HOW`: asks on a connection of its own each time. After one that was not served it says so, and goes on for SECONDS: some
/// more have to be served in the end. HOW waits for the answer: in recv, or in select.
const PROGRAM: &str = r#"
import select, socket, sys, time
def serve(port):
    l = socket.create_server(("127.0.0.1", int(port)), backlog=128)
    while True:
        c, _ = l.accept()
        try:
            c.sendall(c.recv(16))
        except OSError:
            pass
        c.close()
def often(port, seconds, how):
    good = lost = served = 0
    end = None
    while end is None or time.monotonic() < end:
        s = socket.create_connection(("127.0.0.1", int(port)), 20)
        try:
            s.sendall(b"quest")
            if how == "select" and not select.select([s], [], [], 20)[0]:
                raise TimeoutError
            ok = s.recv(16) == b"quest"
        except TimeoutError:
            print("nothing happens", flush=True)
            sys.exit(1)
        except OSError:
            ok = False
        s.close()
        good += ok
        lost += not ok
        served = served + 1 if ok else 0
        if good == 300:
            print("often", flush=True)
        if end is None and (lost or sys.stdin in select.select([sys.stdin], [], [], 0)[0]):
            end = time.monotonic() + float(seconds)
    print("lost", lost, "then served", served > 100, flush=True)
globals()[sys.argv[1]](*sys.argv[2:])
"#;

/// A server, and a client that has connected to it some hundred times.
fn at_work(instance: &Instance, how: &str) -> Outcome<(Guarded, Guarded, BufReader<ChildStdout>)> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, net::free_port()?));
    let python = |arguments: &[&str]| -> Outcome<_> {
        let mut command = instance.shimmed(bins::program("python3")?);
        command.args(["-c", PROGRAM]).args(arguments);
        Ok(command)
    };
    let port = addr.port().to_string();
    let server = Guarded::spawn(python(&["serve", &port])?.stdin(Stdio::null()))?;
    instance.wait_listening(addr)?;
    let mut client = python(&["often", &port, "1.5", how])?;
    let mut client = Guarded::spawn(client.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
    let out = client.stdout().ok_or_else(|| Failure("it has no output".to_owned()))?;
    let mut out = BufReader::new(out);
    let mut line = String::new();
    out.read_line(&mut line)?;
    ensure(line.trim() == "often", || format!("the client said {line:?}"))?;
    let stats = telemetry(&instance.report()?.agent.telemetry_prefix, "/ipc_direct/stats")?;
    let ahead = stats["connects_ahead"].as_u64();
    ensure(ahead.is_some_and(|n| n > 100), || format!("connections opened without an answer: {ahead:?}"))?;
    Ok((server, client, out))
}

/// It goes on, for some time, and ends.
fn goes_on(mut client: Guarded, mut out: BufReader<ChildStdout>) -> Outcome {
    drop(client.stdin());
    let mut text = String::new();
    let status = client.wait(BOUND);
    out.read_to_string(&mut text)?;
    let status = status?;
    ensure(status.success() && text.ends_with("then served True\n"), || format!("{status}, {text:?}"))
}

fn with_client(how: &str, fault: fn(&mut Instance) -> Outcome) -> Outcome {
    with_instance(|instance| {
        let (server, client, out) = at_work(instance, how)?;
        fault(instance)?;
        goes_on(client, out)?;
        drop(server);
        Ok(())
    })
}

fn kill(instance: &mut Instance) -> Outcome {
    signal_pid(instance.coordinator_pid()?, Signal::KILL);
    instance.wait_gone(BOUND)
}

fn hang(instance: &mut Instance) -> Outcome {
    let coordinator = instance.coordinator_pid()?;
    signal_pid(coordinator, Signal::STOP);
    sleep(Duration::from_secs(4));
    signal_pid(coordinator, Signal::CONT);
    Ok(())
}

pub fn killed() -> Outcome {
    with_client("recv", kill)
}

pub fn killed_while_it_selects() -> Outcome {
    with_client("select", kill)
}

pub fn another_one() -> Outcome {
    with_client("recv", |instance| {
        kill(instance)?;
        instance.start_again()
    })
}

pub fn hangs() -> Outcome {
    with_client("recv", hang)
}

pub fn hangs_while_it_selects() -> Outcome {
    with_client("select", hang)
}
