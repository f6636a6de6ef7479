//! Redis servers of one's own.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::child::{Guarded, run_ok};
use crate::instance::Instance;
use crate::scratch::Scratch;
use crate::{Outcome, bins, net};

/// Bound on one redis-cli command.
const CLI_BOUND: Duration = Duration::from_secs(60);

/// A program under the shim of `instance`, or plain.
#[must_use]
pub fn command(instance: Option<&Instance>, program: impl AsRef<OsStr>) -> Command {
    instance.map_or_else(|| Command::new(program.as_ref()), |i| i.shimmed(program.as_ref()))
}

/// A server without persistence on a free port, with its files in a directory of its own.
#[derive(Debug)]
pub struct Server {
    process: Guarded,
    addr: SocketAddr,
    scratch: Scratch,
}

impl Server {
    /// Starts one on 127.0.0.1, under the shim if `instance` is given, and waits until it answers.
    ///
    /// # Errors
    /// When redis is missing or does not come up.
    pub fn start(instance: Option<&Instance>) -> Outcome<Server> {
        Server::start_at(instance, IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// As [`Server::start`], on another address.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_at(instance: Option<&Instance>, ip: IpAddr) -> Outcome<Server> {
        let scratch = Scratch::new()?;
        let addr = SocketAddr::from((ip, net::free_port()?));
        let mut command = command(instance, bins::program("redis-server")?);
        command.args(Server::options(addr, scratch.path()));
        let process = Guarded::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
        match instance {
            Some(instance) => instance.wait_listening(addr)?,
            None => net::wait_listening(addr)?,
        }
        Ok(Server { process, addr, scratch })
    }

    /// Options of a server on `addr` that keeps its files in `dir`, with a unix socket there.
    #[must_use]
    pub fn options(addr: SocketAddr, dir: &Path) -> Vec<String> {
        let (ip, port, dir) = (addr.ip().to_string(), addr.port().to_string(), dir.display().to_string());
        let socket = format!("{dir}/redis.sock");
        [
            "--save",
            "",
            "--appendonly",
            "no",
            "--bind",
            &ip,
            "--port",
            &port,
            "--dir",
            &dir,
            "--unixsocket",
            &socket,
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its unix socket.
    #[must_use]
    pub fn unix_socket(&self) -> PathBuf {
        self.scratch.path().join("redis.sock")
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// `redis-cli` or `redis-benchmark` towards this server, to be completed with arguments.
    ///
    /// # Errors
    /// When the program is missing.
    pub fn client(&self, instance: Option<&Instance>, program: &str) -> Outcome<Command> {
        let mut command = command(instance, bins::program(program)?);
        command.args(["-h", &self.addr.ip().to_string(), "-p", &self.addr.port().to_string()]);
        Ok(command)
    }

    /// Runs one redis command and returns the answer without its newline.
    ///
    /// # Errors
    /// When redis-cli fails.
    pub fn cli(&self, instance: Option<&Instance>, words: &[&str]) -> Outcome<String> {
        let answer = run_ok(self.client(instance, "redis-cli")?.args(words), CLI_BOUND)?;
        Ok(answer.trim_end().to_owned())
    }

    /// Ends it as its operator would.
    ///
    /// # Errors
    /// When it stays.
    pub fn stop(mut self) -> Outcome {
        self.process.signal(Signal::TERM);
        self.process.wait(Duration::from_secs(10)).map(drop)
    }
}
