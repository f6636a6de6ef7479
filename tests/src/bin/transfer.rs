//! A transfer that runs until somebody dies, for the tests that kill.
//!
//! `transfer server [AT]` prints where it listens and echoes connections, one after the other: AT is a path, ADDRESS:PORT, or by default a port of the loopback, which is
//! printed without its address. `transfer client AT busy SECONDS` sends and checks echoes for that long; `... idle SECONDS` only waits for the end of the stream. Both print a line
//! when a connection ends: how, and when by the monotonic clock in ns; a busy client also prints its progress. `... stream BYTES` sends so many without waiting for
//! echoes, ends its half, and checks what comes up to the end of the other one.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use harness::wire::Pattern;
use rustix::time::{ClockId, clock_gettime};

/// Bytes of one message of a busy client.
const MESSAGE: usize = 50_000;
/// Between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["server"] => server(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        ["server", at] => at.parse().map_or_else(|_| unix_server(at), server),
        ["client", at, "stream", bytes] => match (tcp_address(at), bytes.parse()) {
            (Some(at), Ok(bytes)) => stream(at, bytes),
            _ => Err(io::Error::from(ErrorKind::InvalidInput)),
        },
        ["client", at, kind @ ("busy" | "idle"), seconds] => match seconds.parse() {
            Ok(seconds) => connect(at, *kind == "busy", Duration::from_secs_f64(seconds)),
            _ => Err(io::Error::from(ErrorKind::InvalidInput)),
        },
        _ => Err(io::Error::from(ErrorKind::InvalidInput)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("transfer: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Tells how and when a connection ended.
fn ended(how: &str) {
    let now = clock_gettime(ClockId::Monotonic);
    println!("ended {how} {}", i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec));
}

fn cause(e: &io::Error) -> &'static str {
    match e.kind() {
        ErrorKind::ConnectionReset => "reset",
        ErrorKind::BrokenPipe => "pipe",
        ErrorKind::UnexpectedEof => "eof",
        _ => "otherwise",
    }
}

fn server(at: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(at)?;
    let at = listener.local_addr()?;
    if at.ip() == Ipv4Addr::LOCALHOST {
        println!("port {}", at.port());
    } else {
        println!("port {at}");
    }
    loop {
        echo(listener.accept()?.0);
    }
}

fn unix_server(path: &str) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    println!("port {path}");
    loop {
        echo(listener.accept()?.0);
    }
}

fn echo(mut peer: impl Read + Write) {
    println!("accepted");
    let mut room = vec![0; 65_536];
    let how = loop {
        match peer.read(&mut room) {
            Ok(0) => break "eof",
            Ok(n) => match peer.write_all(room.get(..n).unwrap_or(&[])) {
                Ok(()) => {}
                Err(e) => break cause(&e),
            },
            Err(e) => break cause(&e),
        }
    };
    ended(how);
}

/// None: it is a path.
fn tcp_address(at: &str) -> Option<SocketAddr> {
    at.parse().map(|port: u16| (Ipv4Addr::LOCALHOST, port).into()).or_else(|_| at.parse()).ok()
}

fn connect(at: &str, busy: bool, time: Duration) -> io::Result<()> {
    let limit = (!busy).then_some(time);
    if let Some(at) = tcp_address(at) {
        let peer = TcpStream::connect(at)?;
        peer.set_read_timeout(limit)?;
        client(peer, busy, time)
    } else {
        let peer = UnixStream::connect(at)?;
        peer.set_read_timeout(limit)?;
        client(peer, busy, time)
    }
}

fn client(mut peer: impl Read + Write, busy: bool, time: Duration) -> io::Result<()> {
    println!("connected");
    let start = Instant::now();
    if !busy {
        match peer.read(&mut [0]) {
            Ok(_) => ended("eof"),
            Err(e) if e.kind() == ErrorKind::WouldBlock => println!("done 0"),
            Err(e) => ended(cause(&e)),
        }
        return Ok(());
    }
    let pattern = Pattern::default();
    let mut room = vec![0; MESSAGE];
    let (mut total, mut told) = (0, start);
    while start.elapsed() < time {
        let message = pattern.at(total, MESSAGE);
        if let Err(e) = peer.write_all(message).and_then(|()| peer.read_exact(&mut room)) {
            ended(cause(&e));
            return Ok(());
        }
        if !pattern.check(total, &room) {
            return Err(io::Error::new(ErrorKind::InvalidData, "the echo differs"));
        }
        total += MESSAGE as u64;
        if told.elapsed() > PROGRESS_EVERY {
            println!("progress {total}");
            told = Instant::now();
        }
    }
    println!("done {total}");
    Ok(())
}

fn stream(at: SocketAddr, bytes: u64) -> io::Result<()> {
    let mut peer = TcpStream::connect(at)?;
    println!("connected");
    let mut sends = peer.try_clone()?;
    let sender = thread::spawn(move || {
        let (pattern, mut total) = (Pattern::default(), 0);
        while total < bytes {
            let rest = usize::try_from(bytes - total).unwrap_or(MESSAGE);
            let message = pattern.at(total, rest.min(MESSAGE));
            sends.write_all(message)?;
            total += message.len() as u64;
        }
        sends.shutdown(Shutdown::Write)
    });
    let (pattern, mut room, mut total) = (Pattern::default(), vec![0; MESSAGE], 0);
    loop {
        let n = peer.read(&mut room)?;
        if n == 0 {
            break;
        }
        if !pattern.check(total, room.get(..n).unwrap_or(&[])) {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("the echo differs after {total} bytes"),
            ));
        }
        total += n as u64;
    }
    sender.join().map_err(|_| io::Error::other("the sender panicked"))??;
    if total != bytes {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, format!("{total} of {bytes} bytes came")));
    }
    println!("done {total}");
    Ok(())
}
