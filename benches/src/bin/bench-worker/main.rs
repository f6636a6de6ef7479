//! The load program of all small rows: the same unmodified program over the kernel and under the shim.
//!
//! `bench-worker serve tcp JOB` prints where it listens and serves one client, `bench-worker load ADDRESS
//! JOB` is that client; `serve 10.0.0.1` listens there instead of on the loopback, `serve unix` picks an abstract AF_UNIX socket. `pair` does both sides in a process and its
//! child, `stage` is one process of a pipeline. JOB and what each prints are JSON ([`measure::job`]).
//! All I/O is libc's `send`, `recv`, `read`, `write`, `poll`, `epoll_wait`, `connect`, `accept4`, `close`.

#![allow(unsafe_code)] // libc calls and shared memory; see each SAFETY line

mod crowd;
mod guarded;
mod link;
mod raw_ring;
mod shapes;
mod sockmap;
mod stage;

use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::ExitCode;

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use clap::{Parser, Subcommand};
use measure::clock;
use measure::job::{Figures, Job, Over, Shape};

use crate::link::{Channel, Fds, check};
use crate::raw_ring::RawRing;

/// Two processes that measure each other
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Listen, and serve one client
    Serve {
        /// `tcp`, an IPv4 address of this host, or `unix`
        listen: String,
        /// What to do
        job: String,
    },
    /// Connect, and measure
    Load {
        /// Where the server listens, as it printed it
        connect: String,
        /// What to do
        job: String,
    },
    /// Both sides, in a process and its child
    Pair {
        /// How they reach each other
        #[arg(value_enum)]
        over: Over,
        /// What to do
        job: String,
    },
    /// Make the calls whose instructions are counted
    Guarded,
    /// Say what those calls cost, in ns
    Costs,
    /// One process of a pipeline of 64-byte records
    Stage {
        /// Its place
        #[arg(value_enum)]
        place: stage::Place,
        /// How long the first one writes, in seconds
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench-worker: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(role: Role) -> io::Result<()> {
    match role {
        Role::Serve { listen, job } => serve(&listen, &parse(&job)?),
        Role::Load { connect, job } => load(&connect, &parse(&job)?),
        Role::Pair { over, job } => pair(over, &parse(&job)?),
        Role::Guarded => guarded::run(),
        Role::Costs => guarded::costs(),
        Role::Stage { place, seconds } => stage::run(place, seconds),
    }
}

fn parse(job: &str) -> io::Result<Job> {
    let job: Job = serde_json::from_str(job)?;
    raise_limit();
    Ok(job)
}

/// As many descriptors as this user may have.
fn raise_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: room for one limit, which is read back unchanged but for its soft part.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// What is connected to, and how.
#[derive(Debug)]
pub enum Address {
    /// `127.0.0.1:PORT`.
    Tcp(std::net::SocketAddr),
    /// An abstract name.
    Unix(SocketAddr),
}

impl Address {
    fn parse(text: &str) -> io::Result<Address> {
        match text.strip_prefix("unix:") {
            Some(name) => Ok(Address::Unix(SocketAddr::from_abstract_name(name)?)),
            None => text.parse().map(Address::Tcp).map_err(io::Error::other),
        }
    }

    /// A new connection, as latency-sensitive programs make it.
    pub fn connect(&self) -> io::Result<OwnedFd> {
        match self {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Ok(stream.into())
            }
            Address::Unix(name) => Ok(UnixStream::connect_addr(name)?.into()),
        }
    }
}

/// What is accepted from.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    tcp: bool,
}

impl Listener {
    /// Listens, and prints where.
    fn new(listen: &str) -> io::Result<Listener> {
        if listen == "unix" {
            let name = format!("ipc-direct-bench-{}", std::process::id());
            let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
            println!("unix:{name}");
            return Ok(Listener { fd: listener.into(), tcp: false });
        }
        let address = if listen == "tcp" { Ok(Ipv4Addr::LOCALHOST) } else { listen.parse() };
        let listener = tcp_listener(address.map_err(io::Error::other)?)?;
        println!("{}", listener.local_addr()?);
        Ok(Listener { fd: listener.into(), tcp: true })
    }

    /// The next client.
    pub fn accept(&self) -> io::Result<OwnedFd> {
        let fd = self.fd.as_raw_fd();
        // SAFETY: no address is asked for; the new descriptor is ours.
        let client = unsafe {
            let new = libc::accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC);
            check(new as isize)?;
            <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(new)
        };
        if self.tcp {
            no_delay(client.as_raw_fd())?;
        }
        Ok(client)
    }
}

/// Listens on a free port of `ip`, with a longer queue than std's: clients may connect faster than we accept.
fn tcp_listener(ip: Ipv4Addr) -> io::Result<TcpListener> {
    let address = libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(0),
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
        sin_zero: [0; 8],
    };
    let len = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
    // SAFETY: the descriptor is ours, the address readable for its length.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        check(fd as isize)?;
        let listener = <TcpListener as std::os::fd::FromRawFd>::from_raw_fd(fd);
        check(libc::bind(fd, (&raw const address).cast(), len) as isize)?;
        check(libc::listen(fd, 4096) as isize)?;
        Ok(listener)
    }
}

fn no_delay(fd: RawFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    let len = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or(0);
    // SAFETY: an int is read.
    let set =
        unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, (&raw const on).cast(), len) };
    check(set as isize).map(drop)
}

fn serve(listen: &str, job: &Job) -> io::Result<()> {
    clock::pin(job.cpus.map(|[server, _]| server))?;
    let listener = Listener::new(listen)?;
    let start_s = clock::cpu_s();
    match job.shape {
        Shape::Connect { exchange } => shapes::accept_all(&listener, exchange)?,
        Shape::Crowd { connections, .. } => crowd::serve(&listener, connections)?,
        Shape::Keep { connections, exchange } => crowd::keep(&listener, connections + 1, exchange)?,
        shape => {
            let mut all = Vec::new();
            for _ in 0..shape.connections() {
                all.push(listener.accept()?);
            }
            shapes::answer(&mut link::of(&all, &shape)?, &shape)?;
        }
    }
    say(&Figures { cpu_s: clock::cpu_s() - start_s, ..Figures::default() })
}

fn load(connect: &str, job: &Job) -> io::Result<()> {
    clock::pin(job.cpus.map(|[_, client]| client))?;
    let address = Address::parse(connect)?;
    say(&match job.shape {
        Shape::Connect { exchange } => shapes::connect_all(&address, exchange, job)?,
        Shape::Crowd { connections, active } => crowd::load(&address, connections, active, job)?,
        Shape::Keep { connections, exchange } => crowd::open(&address, connections, exchange)?,
        shape => {
            let all: Vec<OwnedFd> =
                (0..shape.connections()).map(|_| address.connect()).collect::<io::Result<_>>()?;
            shapes::ask(&mut link::of(&all, &shape)?, job)?
        }
    })
}

/// Parent and child; the child serves.
fn pair(over: Over, job: &Job) -> io::Result<()> {
    match over {
        Over::Ring => {
            let [mut parent, mut child] = RawRing::pair(&job.shape)?;
            forked(&mut parent, &mut child, job)
        }
        Over::Pipe => {
            let (up, down) = (link::pipe()?, link::pipe()?);
            let [mut parent, mut child] = [Fds::pipes(&down.0, &up.1), Fds::pipes(&up.0, &down.1)];
            forked_and_closed(&mut parent, &mut child, [[&down.0, &up.1], [&up.0, &down.1]], job)
        }
        Over::Socketpair => {
            let (a, b) = UnixStream::pair()?;
            let (a, b): (OwnedFd, OwnedFd) = (a.into(), b.into());
            let (mut parent, mut child) =
                (Fds::socket(&a, &job.shape, &[])?, Fds::socket(&b, &job.shape, &[])?);
            forked_and_closed(&mut parent, &mut child, [[&a, &a], [&b, &b]], job)
        }
        Over::Sockmap => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let a = TcpStream::connect(listener.local_addr()?)?;
            let (b, _) = listener.accept()?;
            a.set_nodelay(true)?;
            b.set_nodelay(true)?;
            let (a, b): (OwnedFd, OwnedFd) = (a.into(), b.into());
            let _maps = sockmap::join(&a, &b)?;
            let (mut parent, mut child) =
                (Fds::socket(&a, &job.shape, &[])?, Fds::socket(&b, &job.shape, &[])?);
            forked_and_closed(&mut parent, &mut child, [[&a, &a], [&b, &b]], job)
        }
    }
}

fn forked<C: Channel>(parent: &mut C, child: &mut C, job: &Job) -> io::Result<()> {
    forked_and_closed(parent, child, [[&NONE; 2]; 2], job)
}

/// A descriptor that nobody has.
static NONE: RawFd = -1;

/// Forks; each side closes the other one's descriptors.
fn forked_and_closed<C: Channel, F: std::os::fd::AsRawFd>(
    parent: &mut C,
    child: &mut C,
    [parents, childs]: [[&F; 2]; 2],
    job: &Job,
) -> io::Result<()> {
    let close = |fds: [&F; 2]| {
        for fd in fds {
            // SAFETY: a descriptor of ours that this side does not use; a second close of the same number fails.
            unsafe { libc::close(fd.as_raw_fd()) };
        }
    };
    io::stdout().flush()?;
    // SAFETY: there are no other threads.
    let pid = unsafe { libc::fork() };
    check(pid as isize)?;
    if pid == 0 {
        close(parents);
        let done =
            clock::pin(job.cpus.map(|[server, _]| server)).and_then(|()| shapes::answer(child, &job.shape));
        // SAFETY: ends the child without running the parent's destructors.
        unsafe { libc::_exit(i32::from(done.is_err())) }
    }
    close(childs);
    clock::pin(job.cpus.map(|[_, client]| client))?;
    let figures = shapes::ask(parent, job);
    parent.end();
    close(parents);
    let mut status = 0;
    // SAFETY: our child, and room for its status.
    check(unsafe { libc::waitpid(pid, &raw mut status, 0) } as isize)?;
    say(&figures?)?;
    // The parent's descriptors are closed already.
    std::process::exit(i32::from(status != 0))
}

fn say(figures: &Figures) -> io::Result<()> {
    println!("{}", serde_json::to_string(figures)?);
    io::stdout().flush()
}
