//! Agent and coordinator die and come again: what is connected goes on, what is new is accelerated again.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{ChildStdin, ChildStdout, Stdio};

use harness::child::{Guarded, alive, signal_pid, wait_for};
use harness::instance::Instance;
use harness::redis::Server;
use harness::transfer::BOUND;
use harness::{Failure, Outcome, bins, ensure, fail, net};
use rustix::process::Signal;

use crate::unix_pair::Pair;
use crate::with_instance;

/// `hold PORT`: connects, and for every line on its standard input sends PING and says what comes back; for the line `again`
/// it connects anew before.
/// `serve PORT WORKERS`: WORKERS forked processes (0: none) accept in blocking calls and answer every line with `+PONG`.
const PROGRAM: &str = r#"
import ctypes, os, signal, socket, sys
def hold(port):
    s = socket.create_connection(("127.0.0.1", int(port)), 20)
    f = s.makefile("rb")
    print("connected", flush=True)
    for line in sys.stdin:
        if line == "again\n":
            s = socket.create_connection(("127.0.0.1", int(port)), 20)
            f = s.makefile("rb")
        s.sendall(b"PING\r\n")
        print(f.readline().decode().strip(), flush=True)
def serve(port, workers):
    l = socket.create_server(("127.0.0.1", int(port)))
    for _ in range(int(workers)):
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            break
    else:
        if int(workers):
            os.wait()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        c, _ = l.accept()
        if os.fork():
            c.close()
            continue
        l.close()
        for line in c.makefile("rb"): c.sendall(b"+PONG\r\n")
        os._exit(0)
globals()[sys.argv[1]](*sys.argv[2:])
"#;

/// A process that holds one connection.
pub struct Holder {
    _process: Guarded,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Holder {
    pub fn start(instance: &Instance, addr: SocketAddr) -> Outcome<Holder> {
        let mut command = instance.shimmed(bins::program("python3")?);
        command.args(["-c", PROGRAM, "hold", &addr.port().to_string()]);
        let mut process = Guarded::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let pipes = process.stdin().zip(process.stdout());
        let (to, from) = pipes.ok_or_else(|| Failure("it has no pipes".into()))?;
        let mut holder = Holder { _process: process, to, from: BufReader::new(from) };
        holder.expect("connected")?;
        Ok(holder)
    }

    fn expect(&mut self, what: &str) -> Outcome {
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        ensure(line.trim() == what, || format!("the holder said {line:?}, not {what}"))
    }

    /// Something goes over the connection and comes back.
    pub fn ping(&mut self) -> Outcome {
        self.to.write_all(b"\n")?;
        self.expect("+PONG")
    }

    /// The same over a new connection.
    pub fn ping_anew(&mut self) -> Outcome {
        self.to.write_all(b"again\n")?;
        self.expect("+PONG")
    }
}

/// A server, listening. `workers`: how many processes of it accept, or 0: its only one.
pub fn server(instance: &Instance, workers: &str) -> Outcome<(Guarded, SocketAddr)> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, net::free_port()?));
    let mut command = instance.shimmed(bins::program("python3")?);
    command.args(["-c", PROGRAM, "serve", &addr.port().to_string(), workers]);
    let server = Guarded::spawn(command.stdin(Stdio::null()))?;
    instance.wait_listening(addr)?;
    Ok((server, addr))
}

/// kill -9 of both, and others in their place.
fn restart(instance: &mut Instance) -> Outcome {
    let coordinator = instance.coordinator_pid()?;
    signal_pid(instance.agent_pid(), Signal::KILL);
    signal_pid(coordinator, Signal::KILL);
    instance.wait_gone(BOUND)?;
    let gone = wait_for(BOUND, || Ok((!alive(coordinator)).then_some(())))?;
    ensure(gone.is_some(), || "the coordinator stays".to_owned())?;
    instance.start_again()
}

/// New connections to `addr`, one after the other, until one has both ends in user space.
pub fn until_accelerated(instance: &Instance, addr: SocketAddr) -> Outcome<Holder> {
    let accelerated = wait_for(BOUND, || {
        let before = instance.totals()?;
        let mut holder = Holder::start(instance, addr)?;
        holder.ping()?;
        let moved = instance.totals()? - before;
        Ok((moved.user.connections == 2).then_some(holder))
    })?;
    accelerated.map_or_else(|| fail("new connections still use the kernel"), Ok)
}

pub fn redis() -> Outcome {
    with_instance(|instance| {
        let server = Server::start(Some(instance))?;
        let mut old = Holder::start(instance, server.addr())?;
        for _ in 0..2 {
            old.ping()?;
            restart(instance)?;
            old.ping()?;
            let mut new = until_accelerated(instance, server.addr())?;
            old.ping()?;
            new.ping()?;
            drop(new);
            // Ends of connections that different coordinators named are not taken for one another.
            old.ping()?;
        }
        server.stop()
    })
}

pub fn blocked_accept() -> Outcome {
    with_instance(|instance| {
        let (_server, addr) = server(instance, "0")?;
        let mut old = Holder::start(instance, addr)?;
        // Accepted: what still waits in the coordinator's queue dies with it.
        old.ping()?;
        restart(instance)?;
        old.ping()?;
        until_accelerated(instance, addr)?.ping()?;
        old.ping()
    })
}

/// Each worker that accepts announces the listener they share; a parent that only waits does not.
pub fn workers() -> Outcome {
    with_instance(|instance| {
        let (_server, addr) = server(instance, "3")?;
        let mut old = Holder::start(instance, addr)?;
        // Accepted: what still waits in the coordinator's queue dies with it.
        old.ping()?;
        restart(instance)?;
        old.ping()?;
        let mut held = Vec::new();
        for _ in 0..10 {
            held.push(until_accelerated(instance, addr)?);
        }
        held.iter_mut().try_for_each(Holder::ping)?;
        old.ping()
    })
}

/// The process that has called listen(2), which clients see, only waits for its child, and never attaches again.
pub fn unix_worker() -> Outcome {
    with_instance(|instance| {
        let pair = Pair::new(instance)?.fork_server()?;
        let mut conns = vec![pair.until_accelerated()?];
        for _ in 0..2 {
            restart(pair.instance)?;
            conns.iter().try_for_each(|conn| pair.exchange(conn, 3))?;
            conns.push(pair.until_accelerated()?);
        }
        conns.iter().try_for_each(|conn| pair.exchange(conn, 3))
    })
}

/// A coordinator that does not answer is asked again later, by the same processes.
pub fn silent_coordinator() -> Outcome {
    with_instance(|instance| {
        let (_server, addr) = server(instance, "0")?;
        let mut old = Holder::start(instance, addr)?;
        old.ping()?;
        let coordinator = instance.coordinator_pid()?;
        signal_pid(coordinator, Signal::STOP);
        let before = instance.totals()?;
        old.ping_anew()?;
        let moved = instance.totals()? - before;
        signal_pid(coordinator, Signal::CONT);
        ensure(moved.kernel.connections == 2 && moved.user.connections == 0, || format!("{moved:?}"))?;
        let again = wait_for(BOUND, || {
            let before = instance.totals()?;
            old.ping_anew()?;
            Ok(((instance.totals()? - before).user.connections == 2).then_some(()))
        })?;
        ensure(again.is_some(), || "the coordinator is not asked any more".to_owned())
    })
}
