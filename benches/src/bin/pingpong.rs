//! Ping-pong between two processes: the same unmodified program over the kernel and under the shim.
//!
//! `pingpong server --listen 127.0.0.1:0` prints where it listens and echoes one connection's messages;
//! `pingpong client --connect ADDRESS` sends, waits for the echo, and prints the round trips' percentiles as
//! JSON. `--listen unix` picks an abstract AF_UNIX socket. All I/O is `send`, `recv` and `epoll_wait` of libc.

#![allow(unsafe_code)] // libc calls on a descriptor and a buffer that outlive them; see each SAFETY line

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use measure::ping_pong::{RoundTrips, Wait};
use measure::stats::percentile;

/// Round trips between two processes
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Echo one connection's messages
    Server {
        /// Address, or `unix`
        #[arg(long)]
        listen: String,
        #[command(flatten)]
        message: Message,
    },
    /// Measure
    Client {
        /// Where the server listens, as it printed it
        #[arg(long)]
        connect: String,
        /// How long
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
        #[command(flatten)]
        message: Message,
    },
}

#[derive(Clone, Debug, Args)]
struct Message {
    /// How to wait for the next message
    #[arg(long, value_enum, default_value = "blocking")]
    wait: Wait,
    /// Message size in bytes
    #[arg(long, default_value_t = 8)]
    bytes: usize,
}

/// Most samples that are kept; more rounds than that are not needed for a percentile.
const SAMPLES_MAX: usize = 4_000_000;
/// Share of the time that is not measured: caches and the other side's habits settle.
const WARM_UP: f64 = 0.2;

fn main() -> ExitCode {
    let outcome = match Cli::parse().role {
        Role::Server { listen, message } => server(&listen, &message),
        Role::Client { connect, seconds, message } => client(&connect, seconds, &message),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("pingpong: {e}");
            ExitCode::FAILURE
        }
    }
}

fn server(listen: &str, message: &Message) -> io::Result<()> {
    let peer = if listen == "unix" {
        let name = format!("ipc-direct-pingpong-{}", std::process::id());
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        println!("unix:{name}");
        OwnedFd::from(listener.accept()?.0)
    } else {
        let listener = TcpListener::bind(listen)?;
        println!("{}", listener.local_addr()?);
        no_delay(listener.accept()?.0)?
    };
    let mut link = Link::new(&peer, message)?;
    while link.receive()? {
        link.send()?;
    }
    Ok(())
}

fn client(connect: &str, seconds: f64, message: &Message) -> io::Result<()> {
    let peer = match connect.strip_prefix("unix:") {
        Some(name) => OwnedFd::from(UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?),
        None => no_delay(TcpStream::connect(connect)?)?,
    };
    let mut link = Link::new(&peer, message)?;
    let start = Instant::now();
    let measured_from = start + Duration::from_secs_f64(seconds * WARM_UP);
    let end = start + Duration::from_secs_f64(seconds);
    let mut samples = Vec::with_capacity(SAMPLES_MAX);
    let (mut before, mut rounds) = (start, 0);
    while before < end {
        link.send()?;
        if !link.receive()? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let now = Instant::now();
        if before > measured_from && samples.len() < SAMPLES_MAX {
            samples.push(u32::try_from((now - before).as_nanos()).unwrap_or(u32::MAX));
        }
        before = now;
        rounds += 1;
    }
    samples.sort_unstable();
    let out = RoundTrips { p50_ns: percentile(&samples, 500), p99_ns: percentile(&samples, 990), rounds };
    println!("{}", serde_json::to_string(&out)?);
    Ok(())
}

fn no_delay(stream: TcpStream) -> io::Result<OwnedFd> {
    stream.set_nodelay(true)?;
    Ok(stream.into())
}

/// A connection with one message's buffer.
struct Link {
    fd: RawFd,
    set: Option<RawFd>,
    buffer: Vec<u8>,
}

fn check(ret: isize) -> io::Result<usize> {
    usize::try_from(ret).map_err(|_| io::Error::last_os_error())
}

impl Link {
    fn new(peer: &OwnedFd, message: &Message) -> io::Result<Link> {
        let fd = peer.as_raw_fd();
        let set = match message.wait {
            Wait::Blocking => None,
            Wait::Epoll => {
                // SAFETY: no pointers.
                let set = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
                check(set as isize)?;
                let mut event = libc::epoll_event { events: libc::EPOLLIN.cast_unsigned(), u64: 0 };
                // SAFETY: the event lives across the call.
                check(unsafe { libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, fd, &raw mut event) } as isize)?;
                Some(set)
            }
        };
        Ok(Link { fd, set, buffer: vec![b'p'; message.bytes.max(1)] })
    }

    fn send(&mut self) -> io::Result<()> {
        let mut left = self.buffer.as_slice();
        while !left.is_empty() {
            // SAFETY: `left` is readable for its length.
            let n =
                check(unsafe { libc::send(self.fd, left.as_ptr().cast(), left.len(), libc::MSG_NOSIGNAL) })?;
            left = left.get(n..).unwrap_or(&[]);
        }
        Ok(())
    }

    /// Receives one whole message; false at the end of the stream.
    fn receive(&mut self) -> io::Result<bool> {
        let mut left = self.buffer.as_mut_slice();
        while !left.is_empty() {
            if let Some(set) = self.set {
                let mut event = libc::epoll_event { events: 0, u64: 0 };
                // SAFETY: room for one event.
                check(unsafe { libc::epoll_wait(set, &raw mut event, 1, -1) } as isize)?;
            }
            // SAFETY: `left` is writable for its length.
            let n = check(unsafe { libc::recv(self.fd, left.as_mut_ptr().cast(), left.len(), 0) })?;
            if n == 0 {
                return Ok(false);
            }
            left = left.get_mut(n..).unwrap_or(&mut []);
        }
        Ok(true)
    }
}
