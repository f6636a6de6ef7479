//! An ordinary user, without hugepages, without root.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::census::{self, Census};
use harness::child::{Guarded, alive, run_ok, wait_for};
use harness::counters::Report;
use harness::instance::fresh_socket;
use harness::redis::Server;
use harness::scratch::Scratch;
use harness::{Outcome, bins, ensure, fail, net};
use rustix::process::{Signal, getuid};

const BOUND: Duration = Duration::from_secs(60);
/// `nobody` and `nogroup` of Debian.
const NOBODY: u32 = 65_534;

/// redis under `ipc-direct run` as an ordinary user. When the test itself runs as an ordinary user, as that one.
pub fn ordinary_user() -> Outcome {
    let before = Census::take();
    let scratch = Scratch::new()?;
    let dir = scratch.path();
    let switch = getuid().is_root();
    // Copies, since an ordinary user need not be able to read the build directory.
    for name in ["ipc-direct", "nic-coordinator", "libipc_direct.so"] {
        fs::copy(bins::product_dir()?.join(name), dir.join(name))?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    if switch {
        chown(dir, Some(NOBODY), Some(NOBODY))?;
    }
    let socket = fresh_socket();
    let command = |program: &str| -> Outcome<Command> {
        let program = if program == "ipc-direct" { dir.join(program) } else { bins::program(program)? };
        let mut command = Command::new(&program);
        if switch {
            command = Command::new(bins::program("setpriv")?);
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(program);
        }
        command.env("IPC_DIRECT_SOCKET", &socket).env("HOME", dir).current_dir(dir).stdin(Stdio::null());
        Ok(command)
    };
    let shimmed = |program: &str| -> Outcome<Command> {
        let mut command = command("ipc-direct")?;
        command.args(["run", "--require-agent", "--"]).arg(bins::program(program)?);
        Ok(command)
    };
    let report = || -> Outcome<Report> {
        Ok(serde_json::from_str(&run_ok(command("ipc-direct")?.args(["ps", "--json"]), BOUND)?)?)
    };

    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, net::free_port()?));
    let mut server = shimmed("redis-server")?;
    server.args(Server::options(addr, dir)).stdout(Stdio::null());
    let mut server = Guarded::spawn(&mut server)?;
    let up = wait_for(BOUND, || Ok(report().ok().filter(|r| r.listens(addr))))?;
    let Some(start) = up else { return fail("the server of an ordinary user does not listen in user space") };
    census::belongs(start.agent.pid);
    let mut load = shimmed("redis-benchmark")?;
    load.args([
        "-h",
        "127.0.0.1",
        "-p",
        &addr.port().to_string(),
        "-c",
        "20",
        "-n",
        "10000",
        "-t",
        "set,get",
        "-q",
    ]);
    run_ok(&mut load, BOUND)?;
    let moved = report()?.totals - start.totals;
    ensure(moved.user.tx_bytes > 500_000 && moved.kernel.tx_bytes == 0, || {
        format!("the traffic of an ordinary user is not in user space: {moved:?}")
    })?;
    server.signal(Signal::TERM);
    server.wait(BOUND)?;
    let gone = wait_for(BOUND, || Ok((!alive(start.agent.pid)).then_some(())))?;
    ensure(gone.is_some(), || "the agent stayed when its last client had left".to_owned())?;
    drop(scratch);
    before.compare()
}
