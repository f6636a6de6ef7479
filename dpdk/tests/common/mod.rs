//! Runs `dpdk-check` in processes of its own, each with its own place for files, every wait bounded.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType, connect, recv, send, socket,
};

/// No process here needs a second; a machine under load may make it many.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// The options for a machine without a card and without huge pages.
pub const PLAIN: &[&str] = &["--no-pci", "--no-huge", "-m", "64", "--no-shconf"];

/// nobody:nogroup on Debian.
const NOBODY: u32 = 65534;

/// A place for one test: a directory that everybody may enter, with the program, and a DPDK file prefix.
pub struct Place {
    dir: PathBuf,
    pub prefix: String,
}

impl Place {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Relaxed: only the numbers' being different matters.
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("ipcd-dpdk-test-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(&prefix);
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        // A copy, since an ordinary user may be unable to reach the build directory.
        fs::copy(env!("CARGO_BIN_EXE_dpdk-check"), dir.join("dpdk-check")).unwrap();
        let place = Self { dir, prefix };
        fs::create_dir(place.user_runtime()).unwrap();
        if is_root() {
            chown(place.user_runtime(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        place
    }

    fn user_runtime(&self) -> PathBuf {
        self.dir.join("runtime")
    }

    /// `dpdk-check` with these options, its files in this place.
    pub fn check(&self, eal: &[&str], what: &[&str]) -> Command {
        let mut command = Command::new(self.dir.join("dpdk-check"));
        command.env("XDG_RUNTIME_DIR", self.user_runtime());
        command.args(eal).arg(format!("--file-prefix={}", self.prefix)).arg("--").args(what);
        command
    }

    /// The same by an ordinary user: nobody when the test runs as root.
    pub fn check_as_user(&self, eal: &[&str], what: &[&str]) -> Command {
        let check = self.check(eal, what);
        if !is_root() {
            return check;
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]);
        command.env("XDG_RUNTIME_DIR", self.user_runtime());
        command.arg(check.get_program()).args(check.get_args());
        command
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
        let _ = fs::remove_dir_all(Path::new("/var/run/dpdk").join(&self.prefix));
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A running `dpdk-check`; killed if the test fails before it has ended.
pub struct Running {
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

/// What `dpdk-check` has said and how it ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Another test's child may still have the program open for writing, between its fork and its exec.
        let mut attempts = 0..100;
        let spawned = loop {
            match command.spawn() {
                Err(e) if e.kind() == ErrorKind::ExecutableFileBusy && attempts.next().is_some() => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                other => break other,
            }
        };
        let mut child = spawned.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let stdout = lines(child.stdout.take().unwrap());
        let stderr = lines(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    /// The runtime directory that `serve` names when it is ready.
    pub fn serving(&mut self) -> PathBuf {
        let line = self.stdout.recv_timeout(WAIT_MAX).unwrap_or_default();
        match line.strip_prefix("serving ") {
            Some(dir) => PathBuf::from(dir.trim_end()),
            None => panic!("dpdk-check does not serve: {line:?}, {:?}", self.wait()),
        }
    }

    /// Closes its stdin and waits for its end.
    pub fn wait(&mut self) -> Ended {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + WAIT_MAX;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "dpdk-check does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        // The pipes are closed by its end, and so are the channels, soon.
        let rest = |lines: &Receiver<String>| lines.iter().collect();
        Ended { status, stdout: rest(&self.stdout), stderr: rest(&self.stderr) }
    }
}

/// The lines of a pipe as they come.
fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            // Fails when the test has ended and nobody wants to know any more.
            let _ = sender.send(line + "\n");
        }
    });
    receiver
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs to the end.
pub fn run(command: Command) -> Ended {
    Running::start(command).wait()
}

/// Runs to a successful end and returns its stdout.
pub fn succeed(command: Command) -> String {
    let ended = run(command);
    assert!(ended.status.success(), "{ended:?}");
    ended.stdout
}

/// The value in the line `name value`.
pub fn value<'a>(stdout: &'a str, name: &str) -> &'a str {
    let found = stdout.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no line {name:?} in {stdout:?}"))
}

/// A client of a telemetry socket.
pub struct Telemetry(rustix::fd::OwnedFd);

impl Telemetry {
    /// Connects and takes DPDK's greeting.
    pub fn connect(path: &Path) -> Self {
        let fd = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        set_socket_timeout(&fd, Timeout::Recv, Some(WAIT_MAX)).unwrap();
        let address = SocketAddrUnix::new(path).unwrap();
        connect(&fd, &address).unwrap_or_else(|error| panic!("cannot connect to {path:?}: {error}"));
        let client = Self(fd);
        let greeting = client.receive();
        assert!(greeting.starts_with("{\"version\":\"DPDK "), "{greeting}");
        client
    }

    /// The JSON that answers a command.
    pub fn ask(&self, command: &str) -> String {
        send(&self.0, command.as_bytes(), SendFlags::NOSIGNAL).unwrap();
        self.receive()
    }

    fn receive(&self) -> String {
        let mut buffer = vec![0; 1 << 16];
        let (length, _) = recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty()).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }
}
