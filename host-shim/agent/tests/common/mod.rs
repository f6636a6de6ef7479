//! An agent with a real coordinator for one test, client processes, and the search for leftovers.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ipc_direct_agent::address::Address;

/// How long anything in these tests may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for `what` to become true.
///
/// # Panics
/// If it does not in time.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn program() -> PathBuf {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_ipc-direct"));
    let coordinator = program.with_file_name("nic-coordinator");
    assert!(
        coordinator.is_file(),
        "{} is missing: run `cargo build -p nic-coordinator` with the same target directory and profile first",
        coordinator.display()
    );
    program
}

/// A socket name that no other test uses.
pub fn fresh_socket() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("@ipc-direct-test/{}/{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

pub fn process_exists(pid: u32) -> bool {
    // A zombie has ended; who started it has just not looked yet. But not while other threads of it are still ending:
    // they hold its sockets.
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    threads > 1
        || std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or("").starts_with('Z'))
}

pub fn kill9(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

pub fn terminate(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

/// An agent of the test's own.
pub struct TestAgent {
    pub child: Child,
    pub socket: String,
    pub pid: u32,
    pub coordinator: u32,
    pub runtime_dir: PathBuf,
    _stdout: BufReader<ChildStdout>,
}

impl TestAgent {
    pub fn start(options: &[&str]) -> TestAgent {
        Self::start_at(&fresh_socket(), options)
    }

    pub fn start_at(socket: &str, options: &[&str]) -> TestAgent {
        let mut child = Command::new(program())
            .args(["agent", "--log", "info", "--socket", socket])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert!(line.starts_with("ipc-direct is up"), "{line}");
        let report = ipc_direct_agent::ps::fetch(&Address::parse(socket), false).unwrap();
        let base = if rustix::process::getuid().is_root() {
            PathBuf::from("/var/run")
        } else {
            std::env::var_os("XDG_RUNTIME_DIR").map_or("/tmp".into(), PathBuf::from)
        };
        TestAgent {
            pid: child.id(),
            child,
            socket: socket.to_owned(),
            coordinator: report.agent.coordinator_pid,
            runtime_dir: base.join("dpdk").join(report.agent.telemetry_prefix),
            _stdout: stdout,
        }
    }

    pub fn address(&self) -> Address {
        Address::parse(&self.socket)
    }

    pub fn report(&self) -> ipc_direct_agent::report::Report {
        ipc_direct_agent::ps::fetch(&self.address(), false).unwrap()
    }

    /// Waits for the agent's end: its exit status.
    pub fn wait(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the agent ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.and_then(|s| s.code())
    }

    /// Agent and coordinator are gone, and so is everything that they made.
    pub fn assert_nothing_left(&self) {
        eventually("agent and coordinator are gone", || {
            !process_exists(self.pid) && !process_exists(self.coordinator)
        });
        eventually("the runtime directory is gone", || !self.runtime_dir.exists());
        let shm: Vec<_> = std::fs::read_dir("/dev/shm").unwrap().flatten().map(|e| e.file_name()).collect();
        assert!(!shm.iter().any(|n| n.to_string_lossy().contains("ipc-direct")), "{shm:?}");
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
        let open =
            sockets.lines().filter(|l| l.split_whitespace().last() == Some(self.socket.as_str())).count();
        assert_eq!(open, 0, "the socket {} is still there", self.socket);
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            terminate(self.pid);
            let deadline = Instant::now() + PATIENCE;
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// A process that attaches and obeys (examples/attach_client.rs).
pub struct TestClient {
    pub child: Child,
    pub function: u32,
    pub group: u32,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl TestClient {
    pub fn attach(agent: &TestAgent) -> TestClient {
        let program = program().with_file_name("examples").join("attach_client");
        assert!(
            program.is_file(),
            "{} is missing: run all of `cargo test -p ipc-direct`, or `cargo build -p ipc-direct --examples`",
            program.display()
        );
        let mut child = Command::new(program)
            .arg(&agent.socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut client = TestClient { child, function: 0, group: 0, input, output };
        let line = client.line();
        let words: Vec<&str> = line.split(' ').collect();
        let ["attached", function, group] = words.as_slice() else { panic!("{line}") };
        client.function = function.parse().unwrap();
        client.group = group.parse().unwrap();
        client
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Sends a line, without waiting for the answer.
    pub fn order(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// The answer to [`TestClient::order`].
    pub fn answer(&mut self) -> String {
        self.line()
    }

    pub fn ask(&mut self, line: &str) -> String {
        self.order(line);
        self.answer()
    }

    /// Asks, expects `Ok A B C ...`, returns the numbers.
    pub fn ask_ok(&mut self, line: &str) -> Vec<u32> {
        let answer = self.ask(line);
        let numbers = answer.strip_prefix("Ok ").unwrap_or_else(|| panic!("{line}: {answer}"));
        numbers.split(' ').map(|n| n.parse().unwrap()).collect()
    }
}

impl Drop for TestClient {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child that does not survive a failed test.
pub struct KilledOnDrop(pub Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory with the programs and a preload library that does nothing, as `make build` leaves them.
pub struct Installation {
    pub dir: PathBuf,
}

impl Installation {
    pub fn new(name: &str) -> Installation {
        let dir = std::env::temp_dir().join(format!("ipc-direct-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for file in ["ipc-direct", "nic-coordinator"] {
            std::fs::copy(program().with_file_name(file), dir.join(file)).unwrap();
        }
        let library = dir.join("libipc_direct.so");
        let cc = Command::new("cc")
            .args(["-shared", "-nostdlib", "-x", "c", "/dev/null", "-o"])
            .arg(&library)
            .status()
            .expect("cc is missing: install gcc");
        assert!(cc.success(), "cc could not make an empty library");
        Installation { dir }
    }

    pub fn command(&self, socket: &str) -> Command {
        let mut command = Command::new(self.dir.join("ipc-direct"));
        command.args(["run", "--socket", socket]).stdin(Stdio::null());
        for variable in ["LD_PRELOAD", "IPC_DIRECT_SOCKET", "IPC_DIRECT_LOG", "IPC_DIRECT_COORDINATOR"] {
            command.env_remove(variable);
        }
        command
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Processes that run the program `path`.
pub fn running(path: &Path) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str().and_then(|n| n.parse::<u32>().ok()));
    pids.filter(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == path)).collect()
}
