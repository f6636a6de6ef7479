//! One scenario with real programs, run twice: on the kernel, then under the shim. Linux is the judge of what programs
//! say: a complaint that is heard only under the shim is a failure.
//!
//! Figures (requests per second and the like) are printed side by side and never judged: other work on the machine moves
//! them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use harness::child::{Guarded, run, wait_for};
use harness::instance::Instance;
use harness::scratch::Scratch;
use harness::wire::Pattern;
use harness::{Outcome, bins, ensure, fail, net};
use rustix::process::Signal;

use crate::{in_user_space, mostly_in_user_space, with_instance};

/// Longest a client program may run.
pub const BOUND: Duration = Duration::from_secs(60);
/// Longest a server may take to end once it is told to.
const END_BOUND: Duration = Duration::from_secs(20);

/// Which way the traffic must go under the shim.
#[derive(Clone, Copy)]
pub enum Way {
    /// At least so many bytes sent and received in user space, and nothing through the kernel.
    UserSpace(u64),
    /// At least so many bytes in user space, and fewer through the kernel (a resolver's datagrams, say).
    Mostly(u64),
    /// At least so many bytes in user space, and 20 times what goes through the kernel, where `AF_UNIX` connections begin.
    Grown(u64),
    /// At least so many bytes each way: those of `AF_UNIX` connections that are over before they leave the kernel, and of the
    /// TCP connections before them.
    Both(u64),
    /// Nothing in user space.
    Kernel,
}

/// Runs `body` on the kernel and under the shim, and compares what it heard.
pub fn compare(way: Way, body: fn(&mut Side) -> Outcome) -> Outcome {
    let mut kernel = Side::new(None)?;
    body(&mut kernel).map_err(|e| harness::Failure(format!("on the kernel: {}\n{}", e.0, kernel.logs())))?;
    kernel.read_logs()?;
    with_instance(|instance| {
        let mut shim = Side::new(Some(instance))?;
        let outcome = match way {
            Way::UserSpace(bytes) => in_user_space(instance, bytes, || body(&mut shim)),
            Way::Grown(bytes) => mostly_in_user_space(instance, bytes, || body(&mut shim)),
            Way::Mostly(_) | Way::Both(_) | Way::Kernel => mostly(instance, way, || body(&mut shim)),
        };
        outcome.map_err(|e| harness::Failure(format!("{}\n{}", e.0, shim.logs())))?;
        shim.read_logs()?;
        let news: Vec<&String> = shim.complaints.difference(&kernel.complaints).collect();
        ensure(news.is_empty(), || format!("complaints that the kernel's run did not have: {news:#?}"))?;
        for ((name, with), (_, without)) in shim.figures.iter().zip(&kernel.figures) {
            println!("{name}: {with:.0}, on the kernel {without:.0}: {:.2} times", with / without);
        }
        Ok(())
    })
}

fn mostly(instance: &Instance, way: Way, go: impl FnOnce() -> Outcome) -> Outcome {
    let before = instance.totals()?;
    go()?;
    let moved = instance.totals()? - before;
    let (sent, received) = (moved.user.tx_bytes, moved.user.rx_bytes);
    ensure(
        match way {
            Way::Mostly(bytes) | Way::UserSpace(bytes) | Way::Grown(bytes) => {
                sent >= bytes && received >= bytes && moved.kernel.tx_bytes < bytes
            }
            Way::Both(bytes) => {
                [sent, received, moved.kernel.tx_bytes, moved.kernel.rx_bytes].iter().all(|n| *n >= bytes)
            }
            Way::Kernel => moved.user.connections == 0,
        },
        || format!("not the way that it should have gone: {moved:?}"),
    )
}

/// A scenario under way.
pub struct Side<'a> {
    instance: Option<&'a Instance>,
    scratch: Scratch,
    complaints: BTreeSet<String>,
    figures: Vec<(String, f64)>,
}

impl<'a> Side<'a> {
    fn new(instance: Option<&'a Instance>) -> Outcome<Side<'a>> {
        let scratch = Scratch::new()?;
        // Servers that give up their privileges read it, too.
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(scratch.path(), everybody)?;
        Ok(Side { instance, scratch, complaints: BTreeSet::new(), figures: Vec::new() })
    }

    /// A directory for this run alone.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// A system program, under the shim on that side.
    pub fn program(&self, name: &str) -> Outcome<Command> {
        Ok(self.at(&bins::program(name)?))
    }

    /// As [`Side::program`], of a program at `path`.
    pub fn at(&self, path: &Path) -> Command {
        let mut command = self.instance.map_or_else(|| Command::new(path), |i| i.shimmed(path));
        command.current_dir(self.dir());
        command
    }

    /// Runs a client to its end, which must be a good one. Its standard output.
    pub fn run(&mut self, command: &mut Command) -> Outcome<Vec<u8>> {
        let out = run(command, BOUND)?;
        let said = String::from_utf8_lossy(&out.stderr);
        if !out.status.success() {
            let text = String::from_utf8_lossy(&out.stdout);
            return fail(format!("{command:?} ended with {}\n{text}{said}", out.status));
        }
        self.listen_to(&said);
        Ok(out.stdout)
    }

    /// Starts a server; what it says goes into `NAME.log`. `end` is the signal that ends it in good order.
    pub fn serve(&self, name: &str, command: &mut Command, end: Signal) -> Outcome<Service> {
        let log = File::create(self.dir().join(format!("{name}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Service { process: Guarded::spawn(command)?, end })
    }

    /// Waits until somebody listens on 127.0.0.1:`port`, in user space as well on that side.
    pub fn wait_listening(&self, port: u16) -> Outcome {
        match self.instance {
            Some(instance) => instance.wait_listening(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            None => net::wait_bound(port),
        }
    }

    /// Waits until somebody listens on the unix socket `name` of this run's directory.
    pub fn wait_socket(&self, name: &str) -> Outcome {
        let path = self.dir().join(name).display().to_string();
        // `SO_ACCEPTCON` in the fourth column (proc(5)): no connection is made, which would count.
        let listens =
            |line: &str| line.ends_with(&path) && line.split_whitespace().nth(3) == Some("00010000");
        let up =
            wait_for(BOUND, || Ok(fs::read_to_string("/proc/net/unix")?.lines().any(listens).then_some(())))?;
        ensure(up.is_some(), || format!("nobody listens on {path}"))
    }

    /// Waits until the server `name` has said `words`.
    pub fn wait_said(&self, name: &str, words: &str) -> Outcome {
        let log = self.dir().join(format!("{name}.log"));
        let said = wait_for(BOUND, || {
            let text = fs::read(&log)?;
            Ok(String::from_utf8_lossy(&text).contains(words).then_some(()))
        })?;
        ensure(said.is_some(), || format!("{name} does not say {words:?}"))
    }

    /// A file of `len` bytes in the scratch directory, and what is in it.
    pub fn file(&self, name: &str, len: usize) -> Outcome<Vec<u8>> {
        let pattern = Pattern::default();
        let mut content = Vec::with_capacity(len);
        while content.len() < len {
            content.extend_from_slice(pattern.at(content.len() as u64, len - content.len()));
        }
        fs::write(self.dir().join(name), &content)?;
        Ok(content)
    }

    /// curl for `url`, to be completed.
    pub fn curl(&self, url: &str) -> Outcome<Command> {
        let mut command = self.program("curl")?;
        command.args(["--silent", "--show-error", "--fail", "--max-time", "50", "--noproxy", "*", url]);
        Ok(command)
    }

    /// Fetches `url` and compares.
    pub fn expect(&mut self, url: &str, content: &[u8]) -> Outcome {
        let got = self.run(&mut self.curl(url)?)?;
        ensure(got == content, || format!("{url}: got {} bytes that differ from the file", got.len()))
    }

    /// One second of wrk on `url`, with `connections` at once; each request on a connection of its own if `close`.
    pub fn wrk(&mut self, url: &str, connections: u32, close: bool) -> Outcome {
        let mut command = self.program("wrk")?;
        command.args(["-t", "1", "-d", "1", "-c", &connections.to_string()]);
        if close {
            command.args(["-H", "Connection: close"]);
        }
        let said = String::from_utf8(self.run(command.arg(url))?)?;
        self.listen_to(&said);
        let path = url.splitn(4, '/').last().unwrap_or_default();
        let kept = if close { "closed" } else { "kept" };
        let name = format!("/{path}, {connections} connections, {kept}, requests/s");
        self.figure(name, &said, "Requests/sec:")
    }

    /// Notes the number after `mark` in what a program said.
    pub fn figure(&mut self, name: String, said: &str, mark: &str) -> Outcome {
        let number = said.split_once(mark).and_then(|(_, rest)| rest.split_whitespace().next());
        match number.and_then(|n| n.parse().ok()) {
            Some(value) => self.figures.push((name, value)),
            None => return fail(format!("no number after {mark:?}:\n{said}")),
        }
        Ok(())
    }

    fn listen_to(&mut self, text: &str) {
        self.complaints.extend(text.lines().filter(|line| is_complaint(line)).map(without_numbers));
    }

    fn read_logs(&mut self) -> Outcome {
        for path in self.log_files() {
            let text = fs::read(path)?;
            self.listen_to(&String::from_utf8_lossy(&text));
        }
        Ok(())
    }

    fn log_files(&self) -> Vec<std::path::PathBuf> {
        let files = fs::read_dir(self.dir()).into_iter().flatten().flatten().map(|entry| entry.path());
        files.filter(|path| path.extension().is_some_and(|e| e == "log")).collect()
    }

    /// The ends of all logs, for a failure report.
    fn logs(&self) -> String {
        let mut text = String::new();
        for path in self.log_files() {
            let log = fs::read(&path).unwrap_or_default();
            let log = String::from_utf8_lossy(&log).into_owned();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n");
            text.push_str(&format!("--- {}\n{end}\n", path.display()));
        }
        text
    }
}

/// Does somebody complain in `line`?
fn is_complaint(line: &str) -> bool {
    const WORDS: [&str; 22] = [
        "error",
        "warn",
        "fail",
        "fatal",
        "panic",
        "crit",
        "alert",
        "emerg",
        "exception",
        "traceback",
        "refused",
        "reset",
        "broken",
        "timed out",
        "timeout",
        "denied",
        "invalid",
        "bad ",
        "unexpected",
        "cannot",
        "abort",
        "corrupt",
    ];
    let line = line.to_lowercase();
    WORDS.iter().any(|word| line.contains(word))
}

/// `line` with every word that has a digit in it (times, process ids, ports, counts) made the same.
fn without_numbers(line: &str) -> String {
    let words = line.split_whitespace();
    let words = words.map(|w| if w.contains(|c: char| c.is_ascii_digit()) { "#" } else { w });
    words.collect::<Vec<_>>().join(" ")
}

/// A server process. Dropped, it is ended in good order, so that a failed test leaves no workers of it behind.
pub struct Service {
    process: Guarded,
    end: Signal,
}

impl Service {
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Sends it `signal`.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits until it ends by itself.
    pub fn wait(mut self) -> Outcome<ExitStatus> {
        self.process.wait(END_BOUND)
    }

    /// Ends it, which it must do with status 0.
    pub fn stop(self) -> Outcome {
        self.signal(self.end);
        let status = self.wait()?;
        ensure(status.success(), || format!("a server ended with {status}"))
    }

    /// Ends a server that has no good order: the signal's death is as good as status 0. The signal is repeated, since one
    /// that comes just before a blocking call is lost on many a server.
    pub fn kill(mut self) -> Outcome {
        let ended = wait_for(END_BOUND, || {
            self.signal(self.end);
            let ended = self.process.ended()?;
            std::thread::sleep(Duration::from_millis(100));
            Ok(ended)
        })?;
        ensure(ended.is_some(), || format!("a server did not end on {:?}", self.end))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if matches!(self.process.ended(), Ok(None)) {
            self.signal(self.end);
            let _ = self.process.wait(END_BOUND);
        }
    }
}
