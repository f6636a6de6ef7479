//! Real servers that share their sockets between processes, under their usual load programs, on the kernel or under the shim.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::child::{Guarded, run_ok, wait_for};
use harness::instance::Instance;
use harness::scratch::Scratch;
use harness::{Failure, Outcome, bins, ensure, net};
use rustix::process::{Signal, getuid};

/// How long a server may take to start or to end, and a load beyond its time.
const BOUND: Duration = Duration::from_secs(60);

/// One line of the table: a load, and the server that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// What the table calls it.
    pub name: &'static str,
    /// Whose.
    pub server: Kind,
    load: Load,
}

/// A server, or two behind each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A process for each connection, forked.
    Postgres,
    /// Two workers, before an nginx with two workers.
    Nginx,
    /// Three workers, a request at a time each.
    GunicornSync,
    /// Three workers with four threads each.
    GunicornThreads,
    /// Four threads.
    Memcached,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    /// pgbench with these options.
    Pgbench(&'static [&'static str]),
    /// wrk on this path: connections; each request on a connection of its own.
    Wrk(&'static str, u32, bool),
    /// memcaslap, with two threads: connections.
    Memcaslap(u32),
}

/// All rows.
pub const ROWS: [Row; 13] = [
    row("pgbench, read only, 1 client", Kind::Postgres, Load::Pgbench(&["-S", "-c1"])),
    row("pgbench, read only, 8 clients", Kind::Postgres, Load::Pgbench(&["-S", "-c8", "-j2"])),
    row("pgbench, read and write, 8 clients", Kind::Postgres, Load::Pgbench(&["-c8", "-j2"])),
    row("pgbench, a connection each, 4 clients", Kind::Postgres, Load::Pgbench(&["-S", "-C", "-c4", "-j2"])),
    row("nginx, 1 connection", Kind::Nginx, Load::Wrk("1k", 1, false)),
    row("nginx, 32 connections", Kind::Nginx, Load::Wrk("1k", 32, false)),
    row("nginx, a connection each", Kind::Nginx, Load::Wrk("1k", 32, true)),
    row("nginx proxy, 32 connections", Kind::Nginx, Load::Wrk("proxied/1k", 32, false)),
    row("nginx proxy, a connection each", Kind::Nginx, Load::Wrk("proxied/1k", 32, true)),
    row("gunicorn sync, 8 clients", Kind::GunicornSync, Load::Wrk("", 8, false)),
    row("gunicorn threads, 8 clients", Kind::GunicornThreads, Load::Wrk("", 8, false)),
    row("gunicorn threads, a connection each", Kind::GunicornThreads, Load::Wrk("", 8, true)),
    row("memcached, 32 connections", Kind::Memcached, Load::Memcaslap(32)),
];

const fn row(name: &'static str, server: Kind, load: Load) -> Row {
    Row { name, server, load }
}

/// A running server with its files.
#[derive(Debug)]
pub struct Server<'a> {
    instance: Option<&'a Instance>,
    scratch: Scratch,
    port: u16,
    /// The one that listens on `port` last, and the signal that ends each.
    processes: Vec<(Guarded, Signal)>,
}

impl<'a> Server<'a> {
    /// Starts one, under the shim if `instance` is given, and waits until it listens.
    ///
    /// # Errors
    /// When it is not installed or does not come up.
    pub fn start(kind: Kind, instance: Option<&'a Instance>) -> Outcome<Server<'a>> {
        let scratch = Scratch::new()?;
        // Servers that give up their privileges read it, too.
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755))?;
        let mut server = Server { instance, scratch, port: net::free_port()?, processes: Vec::new() };
        match kind {
            Kind::Postgres => server.postgres()?,
            Kind::Nginx => {
                let back = net::free_port()?;
                server.nginx("back", back, "")?;
                server.nginx("front", server.port, &format!(
                    "location /proxied/ {{ proxy_pass http://pool/; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}
                     upstream pool {{ server 127.0.0.1:{back}; keepalive 16;"
                ))?;
            }
            Kind::GunicornSync => server.gunicorn(&["-k", "sync"])?,
            Kind::GunicornThreads => server.gunicorn(&["-k", "gthread", "--threads", "4"])?,
            Kind::Memcached => server.memcached()?,
        }
        Ok(server)
    }

    fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// A program, under the shim if the server is.
    fn at(&self, program: &Path) -> Command {
        let mut command = self.instance.map_or_else(|| Command::new(program), |i| i.shimmed(program));
        command.current_dir(self.dir()).stdin(Stdio::null());
        command
    }

    fn serve(&mut self, command: &mut Command, port: u16, end: Signal) -> Outcome {
        let log = fs::File::create(self.dir().join(format!("{port}.log")))?;
        command.stdout(log.try_clone()?).stderr(log);
        self.processes.push((Guarded::spawn(command)?, end));
        match self.instance {
            Some(instance) => instance.wait_listening(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            None => net::wait_bound(port),
        }
    }

    fn postgres(&mut self) -> Outcome {
        let bin = bins::postgres()?;
        let data = self.dir().join("data");
        fs::create_dir(&data)?;
        // PostgreSQL does not run as root.
        let root = getuid().is_root();
        if root {
            let id = |what| -> Outcome<u32> {
                let text = run_ok(Command::new(bins::program("id")?).args([what, "postgres"]), BOUND)?;
                Ok(text.trim().parse()?)
            };
            chown(&data, Some(id("-u")?), Some(id("-g")?))?;
        }
        let as_postgres = |server: &Server<'_>, program: &str| -> Outcome<Command> {
            if !root {
                return Ok(server.at(&bin.join(program)));
            }
            let mut command = server.at(&bins::program("setpriv")?);
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]);
            command.arg(bin.join(program));
            Ok(command)
        };
        let mut initdb = as_postgres(self, "initdb")?;
        run_ok(initdb.args(["--no-sync", "-A", "trust", "-U", "postgres", "-D"]).arg(&data), BOUND)?;
        let mut command = as_postgres(self, "postgres")?;
        command.arg("-D").arg(&data).args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]);
        command.arg("-c").arg(format!("unix_socket_directories={}", data.display()));
        self.serve(command.args(["-p", &self.port.to_string()]), self.port, Signal::INT)?;
        let ready = wait_for(BOUND, || {
            Ok(run_ok(self.client(&bin, "pgbench").args(["-i", "-q", "postgres"]), BOUND).ok())
        })?;
        ensure(ready.is_some(), || "PostgreSQL does not come up".to_owned())
    }

    fn client(&self, bin: &Path, program: &str) -> Command {
        let mut command = self.at(&bin.join(program));
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres"]);
        command
    }

    /// `location` may close the server's block and open another one.
    fn nginx(&mut self, name: &str, port: u16, location: &str) -> Outcome {
        let at = self.dir().join(name);
        fs::create_dir(&at)?;
        fs::write(self.dir().join("1k"), [b'x'; 1024])?;
        let (root, at) = (self.dir().display(), at.display());
        let user = if getuid().is_root() { "user nobody nogroup;" } else { "" };
        let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary: String = kinds.map(|kind| format!("{kind}_temp_path {at}/{kind};\n")).concat();
        let config = format!(
            "worker_processes 2; daemon off; pid {at}/pid; error_log {at}/log warn; {user}
             events {{ worker_connections 512; }}
             http {{
               access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; {temporary}
               server {{ listen 127.0.0.1:{port} backlog=1024; root {root}; {location} }}
             }}"
        );
        let file = self.dir().join(format!("{name}.conf"));
        fs::write(&file, config)?;
        let mut command = self.at(&bins::program("nginx")?);
        self.serve(command.arg("-c").arg(file), port, Signal::QUIT)
    }

    fn gunicorn(&mut self, kind: &[&str]) -> Outcome {
        let app = "def app(request, start):
    start('200 OK', [('Content-Length', '3')])
    return [b'ok\\n']
";
        fs::write(self.dir().join("app.py"), app)?;
        let mut command = self.at(&bins::program("gunicorn")?);
        command.args(["-w", "3", "--backlog", "1024", "-b", &format!("127.0.0.1:{}", self.port)]);
        command.args(kind).arg("app:app").env("PYTHONDONTWRITEBYTECODE", "1");
        self.serve(&mut command, self.port, Signal::TERM)
    }

    fn memcached(&mut self) -> Outcome {
        let mut command = self.at(&bins::program("memcached")?);
        command.args(["-t", "4", "-l", "127.0.0.1", "-U", "0", "-p", &self.port.to_string()]);
        if getuid().is_root() {
            command.args(["-u", "nobody"]);
        }
        self.serve(&mut command, self.port, Signal::TERM)
    }

    /// One measurement of about `seconds`: what the load program counts each second.
    ///
    /// # Errors
    /// When it fails, or says no number.
    pub fn measure(&self, row: &Row, seconds: u32) -> Outcome<f64> {
        let seconds_text = seconds.to_string();
        let (mut command, mark) = match row.load {
            Load::Pgbench(options) => {
                let mut command = self.client(&bins::postgres()?, "pgbench");
                command.args(options).args(["-n", "-T", &seconds_text, "postgres"]);
                (command, "tps = ")
            }
            Load::Wrk(path, connections, close) => {
                let mut command = self.at(&bins::program("wrk")?);
                command.args(["-t", "1", "-d", &seconds_text, "-c", &connections.to_string()]);
                if close {
                    command.args(["-H", "Connection: close"]);
                }
                command.arg(format!("http://127.0.0.1:{}/{path}", self.port));
                (command, "Requests/sec:")
            }
            Load::Memcaslap(connections) => {
                let mut command = self.at(&bins::program("memcaslap")?);
                command.args(["-T", "2", "-c", &connections.to_string(), "-t", &format!("{seconds}s")]);
                command.args(["-s", &format!("127.0.0.1:{}", self.port)]);
                (command, "TPS:")
            }
        };
        let said = run_ok(&mut command, BOUND)?;
        let number = said.split_once(mark).and_then(|(_, rest)| rest.split_whitespace().next());
        number
            .and_then(|n| n.parse().ok())
            .ok_or_else(|| Failure(format!("{command:?}: no number after {mark:?}:\n{said}")))
    }

    /// Ends it in good order.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(mut self) -> Outcome {
        while let Some((mut process, end)) = self.processes.pop() {
            process.signal(end);
            process.wait(BOUND)?;
        }
        Ok(())
    }
}
