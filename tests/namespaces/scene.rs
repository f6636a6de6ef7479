//! Two network namespaces joined by a veth pair, and the programs that talk in and between them.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use harness::census::Census;
use harness::child::run_ok;
use harness::counters::Totals;
use harness::instance::Instance;
use harness::voice::Voice;
use harness::{Outcome, bins, ensure, fail};

pub const BOUND: Duration = Duration::from_secs(60);

/// Says `listening PORT`, then what every client says to it; a client says `reached GREETING` or the error.
const PROGRAM: &str = r#"
import ctypes, errno, os, socket, sys
def address(text):
    if text.startswith("@"):
        return socket.AF_UNIX, "\0" + text[1:]
    host, port = text.rsplit(":", 1)
    return socket.AF_INET, (host, int(port))
def serve(text, greeting):
    family, where = address(text)
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind(where)
    listener.listen()
    name = listener.getsockname()
    print("listening", name[1] if family == socket.AF_INET else "", flush=True)
    while True:
        client, _ = listener.accept()
        client.sendall(greeting.encode())
        client.recv(1)
        client.close()
def reach(text, client=None):
    family, where = address(text)
    client = client or socket.socket(family, socket.SOCK_STREAM)
    client.settimeout(20)
    try:
        client.connect(where)
        print("reached", client.recv(100).decode(), flush=True)
    except OSError as e:
        print(errno.errorcode.get(e.errno, str(e)), flush=True)
    client.close()
def enter(name):
    fd = os.open("/run/netns/" + name, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000): raise OSError(ctypes.get_errno(), "setns")
    os.close(fd)
def move(name, text, port):
    old = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reach(text)
    young = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    enter(name)
    reach(text)
    reach(text, old)
    reach(text, young)
    serve("127.0.0.1:" + port, "moved")
def leave(text):
    reach(text)
    reach(text)
    young = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(2)]
    unshare = {"x86_64": 272, "aarch64": 97}[os.uname().machine]
    if ctypes.CDLL(None, use_errno=True).syscall(unshare, 0x40000000): raise OSError(ctypes.get_errno(), "unshare")
    reach(text)
    for client in young: reach(text, client)
def leave_root(text, directory):
    os.chdir(directory)
    os.chroot(".")
    reach(text)
globals()[sys.argv[1]](*sys.argv[2:])
"#;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs a scene twice, on the kernel and under the shim: what is said must be the same. `paths` gets the counters of the
/// second run.
pub fn compare(
    scene: impl Fn(&Scene<'_>) -> Outcome<Vec<String>>,
    expected: &[&str],
    paths: impl Fn(Totals) -> Outcome,
) -> Outcome {
    let before = Census::take();
    let instance = Instance::start()?;
    let result = run_both(&instance, scene, expected, paths);
    if let Err(e) = result {
        return fail(format!("{}\n{}", e.0, instance.describe()));
    }
    instance.stop()?;
    before.compare()
}

fn run_both(
    instance: &Instance,
    scene: impl Fn(&Scene<'_>) -> Outcome<Vec<String>>,
    expected: &[&str],
    paths: impl Fn(Totals) -> Outcome,
) -> Outcome {
    for shim in [None, Some(instance)] {
        let said = scene(&Scene::new(shim)?)?;
        let which = if shim.is_some() { "under the shim" } else { "on the kernel" };
        ensure(said == expected, || format!("{which}: {said:?}, not {expected:?}"))?;
    }
    paths(instance.totals()?)
}

/// All connections that were made went through user space: `n` of them.
pub fn all_in_user_space(n: u64) -> impl Fn(Totals) -> Outcome {
    move |totals| {
        ensure(totals.user.connections == 2 * n && totals.kernel.tx_bytes == 0, || format!("{totals:?}"))
    }
}

/// All connections that were made went through the kernel.
pub fn none_in_user_space(totals: Totals) -> Outcome {
    ensure(totals.user.connections == 0 && totals.kernel.tx_bytes > 0, || format!("{totals:?}"))
}

/// The namespaces `a` (10.213.7.1) and `b` (10.213.7.2); gone when dropped.
pub struct Scene<'a> {
    shim: Option<&'a Instance>,
    names: [String; 2],
}

/// A namespace of the scene, or none of them.
#[derive(Clone, Copy)]
pub enum At {
    Home,
    A,
    B,
}

/// Address of namespace `a` on the way to `b`.
pub const ADDRESS_A: &str = "10.213.7.1";

impl<'a> Scene<'a> {
    fn new(shim: Option<&'a Instance>) -> Outcome<Scene<'a>> {
        if !rustix::process::getuid().is_root() {
            return fail("network namespaces are made by root: run this suite as root");
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let names = ["a", "b"].map(|n| format!("t{}-{number}{n}", std::process::id()));
        let scene = Scene { shim, names };
        let [a, b] = &scene.names;
        for name in [a, b] {
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        ip(&["-n", a, "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", b])?;
        for (name, address) in [(a, "10.213.7.1/30"), (b, "10.213.7.2/30")] {
            ip(&["-n", name, "addr", "add", address, "dev", "veth0"])?;
            ip(&["-n", name, "link", "set", "veth0", "up"])?;
        }
        Ok(scene)
    }

    /// Name of a namespace.
    pub fn name(&self, at: At) -> &str {
        let [a, b] = &self.names;
        match at {
            At::Home => "",
            At::A => a,
            At::B => b,
        }
    }

    /// `program`, in a namespace, under the shim if that is what the scene is about.
    pub fn command(&self, at: At, program: impl AsRef<OsStr>) -> Outcome<Command> {
        let direct = || Command::new(program.as_ref());
        let shimmed =
            |program: &Path| self.shim.map_or_else(|| Command::new(program), |i| i.shimmed(program));
        if matches!(at, At::Home) {
            return Ok(self.shim.map_or_else(direct, |i| i.shimmed(program.as_ref())));
        }
        let mut command = shimmed(&bins::program("ip")?);
        command.args(["netns", "exec", self.name(at)]).arg(program.as_ref());
        Ok(command)
    }

    /// The scene's program.
    pub fn python(&self, at: At, arguments: &[&str]) -> Outcome<Command> {
        let mut command = self.command(at, bins::program("python3")?)?;
        command.args(["-c", PROGRAM]).args(arguments);
        Ok(command)
    }

    /// A server, and the port that it listens on.
    pub fn serve(&self, at: At, address: &str, greeting: &str) -> Outcome<(Voice, String)> {
        let server = Voice::of(self.python(at, &["serve", address, greeting])?)?;
        let port = server.listening()?;
        Ok((server, port))
    }

    /// What a client says.
    pub fn reach(&self, at: At, address: &str) -> Outcome<String> {
        let said = run_ok(&mut self.python(at, &["reach", address])?, BOUND)?;
        Ok(said.trim().to_owned())
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

fn ip(arguments: &[&str]) -> Outcome<String> {
    run_ok(Command::new(bins::program("ip")?).args(arguments), BOUND)
}
