//! A lab of one's own, and the programs that talk in it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde::Deserialize;

use crate::census::{self, Census};
use crate::child::{Guarded, run_ok, wait_for};
use crate::counters::Report;
use crate::hosts::Peer;
use crate::voice::Voice;
use crate::{Failure, Outcome, bins, ensure, fail};

/// Longest wait for anything in a lab.
pub const BOUND: Duration = Duration::from_secs(120);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// `serve ADDRESS GREETING` says `listening`, then greets every client; `reach ADDRESS` says what it was greeted with, or the
/// error. `count` and `send` do the same for numbered datagrams.
const PROGRAM: &str = r#"
import errno, socket, sys, time
def split(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)
def serve(text, greeting):
    host, port = split(text)
    six = ":" in host
    family = socket.AF_INET6 if six else socket.AF_INET
    listener = socket.create_server((host, port), family=family, dualstack_ipv6=six)
    print("listening", flush=True)
    while True:
        client, _ = listener.accept()
        client.sendall(greeting.encode())
        client.close()
def reach(text, seconds="20"):
    try:
        client = socket.create_connection(split(text), timeout=float(seconds))
        print("reached", client.recv(100).decode(), flush=True)
    except TimeoutError:
        print("TIMEOUT", flush=True)
    except OSError as e:
        print(errno.errorcode.get(e.errno, str(e)), flush=True)
def count(text):
    counter = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    counter.bind(split(text))
    print("listening", flush=True)
    seen = []
    while True:
        number = int(counter.recv(100))
        if number < 0: break
        seen.append(number)
        counter.settimeout(20)
    late = sum(1 for a, b in zip(seen, seen[1:]) if b < a)
    print(len(seen), len(set(seen)), late, flush=True)
def send(text, total):
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for number in range(int(total)):
        sender.sendto(str(number).encode(), split(text))
        time.sleep(0.0005)
    for _ in range(40):
        time.sleep(0.05)
        sender.sendto(b"-1", split(text))
globals()[sys.argv[1]](*sys.argv[2:])
"#;

/// What `lab status --json` says of a host, as far as it is looked at.
#[derive(Clone, Debug, Deserialize)]
pub struct Host {
    /// `h1`, ...
    pub name: String,
    /// `up`, `no-agent` or `gone`.
    pub state: String,
    /// IPv4.
    pub address: String,
    /// IPv6.
    pub address_v6: String,
    /// Its first process, as seen from here.
    pub init_pid: u32,
    /// 0: none.
    pub agent_pid: u32,
    /// 0: none.
    pub coordinator_pid: u32,
    /// What its card says of the others.
    pub peers: Vec<Peer>,
}

/// A running lab, which does not outlive the thread that started it.
#[derive(Debug)]
pub struct Lab {
    name: String,
    process: Guarded,
}

/// A name that no other lab has.
pub fn fresh_name() -> String {
    // Relaxed: only uniqueness matters.
    format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// `ipc-direct lab`, to be completed.
pub fn command(name: &str) -> Outcome<Command> {
    let mut command = Command::new(bins::product_dir()?.join("ipc-direct"));
    command.args(["lab", "--name", name]);
    Ok(command)
}

impl Lab {
    /// Starts one.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(hosts: u32) -> Outcome<Lab> {
        if !rustix::process::getuid().is_root() {
            return fail("network namespaces are made by root: run this suite as root");
        }
        let name = fresh_name();
        let own = command(&name)?;
        // However this process ends, the lab ends with it.
        let mut up = Command::new(bins::program("setpriv")?);
        up.args(["--pdeathsig", "TERM", "--"]).arg(own.get_program()).args(own.get_args());
        up.args(["up", "--hosts", &hosts.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = Guarded::spawn(&mut up)?;
        let line = process.stdout().map(line_of).transpose()?.unwrap_or_default();
        ensure(line.contains("is up"), || format!("`lab up` said {line:?}"))?;
        Ok(Lab { name, process })
    }

    /// What `--name` takes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends its process a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits until the lab's process has ended.
    pub fn ended(&mut self) -> Outcome<std::process::ExitStatus> {
        self.process.wait(BOUND)
    }

    /// A command of the lab that says nothing if all is well.
    pub fn tell(&self, words: &[&str]) -> Outcome {
        let said = run_ok(command(&self.name)?.args(words), BOUND)?;
        ensure(said.is_empty(), || said)
    }

    /// What `lab status --json` says.
    ///
    /// # Errors
    /// When the lab does not answer.
    pub fn hosts(&self) -> Outcome<Vec<Host>> {
        let json = run_ok(command(&self.name)?.args(["status", "--json"]), BOUND)?;
        serde_json::from_str(&json).map_err(|e| Failure(format!("{e}: {json}")))
    }

    /// One of them.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn host(&self, name: &str) -> Outcome<Host> {
        let found = self.hosts()?.into_iter().find(|h| h.name == name);
        found.ok_or_else(|| Failure(format!("no host {name}")))
    }

    /// Waits until `host` is in `state`.
    pub fn wait_state(&self, host: &str, state: &str) -> Outcome {
        let there = wait_for(BOUND, || Ok((self.host(host)?.state == state).then_some(())))?;
        ensure(there.is_some(), || format!("{host} does not get {state}: {:?}", self.hosts()))
    }

    /// `program` in `host`, under the shim.
    pub fn exec(&self, host: &str, program: &str) -> Outcome<Command> {
        self.in_host(host, true, &bins::program(program)?)
    }

    /// `program` in `host`, without the shim.
    pub fn plain(&self, host: &str, program: &str) -> Outcome<Command> {
        self.in_host(host, false, &bins::program(program)?)
    }

    /// The program at `path` in `host`, under the shim or not.
    ///
    /// # Errors
    /// When the product is missing.
    pub fn in_host(&self, host: &str, shim: bool, path: &Path) -> Outcome<Command> {
        let mut exec = command(&self.name)?;
        exec.arg("exec");
        if !shim {
            exec.arg("--plain");
        }
        exec.args([host, "--"]).arg(path);
        Ok(exec)
    }

    /// What `ipc-direct WORDS` says in `host`.
    ///
    /// # Errors
    /// When it fails.
    pub fn ask(&self, host: &str, words: &[&str]) -> Outcome<String> {
        let own = bins::product_dir()?.join("ipc-direct");
        run_ok(self.in_host(host, false, &own)?.args(words), BOUND)
    }

    /// The scene's program in `host`, under the shim or not.
    pub fn python(&self, shim: bool, host: &str, arguments: &[&str]) -> Outcome<Command> {
        let mut exec = if shim { self.exec(host, "python3")? } else { self.plain(host, "python3")? };
        exec.args(["-c", PROGRAM]).args(arguments);
        Ok(exec)
    }

    /// A server that listens.
    pub fn serve(&self, shim: bool, host: &str, address: &str, greeting: &str) -> Outcome<Voice> {
        let server = Voice::of(self.python(shim, host, &["serve", address, greeting])?)?;
        let said = server.line()?;
        ensure(said == "listening", || format!("the server said {said:?}"))?;
        Ok(server)
    }

    /// What a client says.
    pub fn reach(&self, shim: bool, host: &str, address: &str) -> Outcome<String> {
        Ok(run_ok(&mut self.python(shim, host, &["reach", address])?, BOUND)?.trim().to_owned())
    }

    /// As [`Lab::reach`] for one that is not expected to get anywhere.
    pub fn reach_in_vain(&self, host: &str, address: &str) -> Outcome<String> {
        let client = &mut self.python(true, host, &["reach", address, "1.5"])?;
        Ok(run_ok(client, BOUND)?.trim().to_owned())
    }

    /// What `ipc-direct ps --json` says in a host.
    pub fn report(&self, host: &str) -> Outcome<Report> {
        let json = self.ask(host, &["ps", "--json"])?;
        serde_json::from_str(&json).map_err(|e| Failure(format!("{e}: {json}")))
    }

    /// Waits until the cards of all hosts have met.
    ///
    /// # Errors
    /// When they don't.
    pub fn wait_met(&self) -> Outcome {
        let met = wait_for(BOUND, || {
            let hosts = self.hosts()?;
            let all =
                hosts.iter().all(|h| h.peers.iter().filter(|p| p.state == "up").count() + 1 == hosts.len());
            Ok(all.then_some(()))
        })?;
        ensure(met.is_some(), || format!("the cards don't meet: {:?}", self.hosts()))
    }

    /// What `ipc-direct ps --verbose` says in each host, for people.
    pub fn describe(&self) -> String {
        let hosts = self.hosts().unwrap_or_default();
        hosts.iter().filter_map(|host| self.ask(&host.name, &["ps", "--verbose"]).ok()).collect()
    }

    /// Ends it as its operator would.
    pub fn down(mut self) -> Outcome {
        self.tell(&["down"])?;
        let status = self.ended()?;
        ensure(status.success(), || format!("`lab up` ended with {status}"))
    }
}

/// Runs `body` with a lab; afterwards nothing may be left.
pub fn with_lab(hosts: u32, body: impl FnOnce(&Lab) -> Outcome) -> Outcome {
    let before = Machine::take()?;
    let lab = Lab::start(hosts)?;
    if let Err(e) = body(&lab) {
        return fail(format!("{}\n{:?}", e.0, lab.hosts()));
    }
    lab.down()?;
    before.compare()
}

/// What a lab could leave behind.
pub struct Machine {
    census: Census,
    links: String,
}

impl Machine {
    /// How it is now.
    ///
    /// # Errors
    /// When it can't be looked at.
    pub fn take() -> Outcome<Machine> {
        Ok(Machine { census: Census::take(), links: links()? })
    }

    /// Nothing is left: no process, no link, no mount, no file.
    pub fn compare(&self) -> Outcome {
        let gone = wait_for(BOUND, || Ok(census::processes().is_empty().then_some(())))?;
        ensure(gone.is_some(), || format!("processes stay: {:?}", census::processes()))?;
        let now = links()?;
        ensure(now == self.links, || format!("links were\n{}and are\n{now}", self.links))?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        ensure(!mounts.contains("ipc-direct-lab"), || mounts)?;
        self.census.compare()
    }
}

/// Links and named network namespaces here.
fn links() -> Outcome<String> {
    let ip = bins::program("ip")?;
    let mut names: Vec<_> = std::fs::read_dir("/sys/class/net")?
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let spaces = run_ok(Command::new(ip).args(["netns", "list"]), BOUND)?;
    // Those of other suites carry their process' number.
    let spaces = spaces.lines().filter(|l| !l.starts_with('t')).collect::<Vec<_>>();
    Ok(format!("{names:?}\n{spaces:?}\n"))
}

fn line_of(out: ChildStdout) -> Outcome<String> {
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    Ok(line)
}
