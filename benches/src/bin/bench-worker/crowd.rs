//! Many connections between two processes: in one epoll set on each side, or only kept.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use measure::clock::Meter;
use measure::job::{Figures, Job};

use crate::link::{check, epoll};
use crate::{Address, Listener};

/// Events that one call takes.
const EVENTS: usize = 256;
/// The message.
const WORD: [u8; 8] = *b"8 bytes!";

/// An epoll set with room for its events.
struct Set {
    fd: OwnedFd,
    events: [libc::epoll_event; EVENTS],
}

impl Set {
    fn of(all: &[OwnedFd]) -> io::Result<Set> {
        let fd = epoll(all.iter().map(OwnedFd::as_raw_fd))?;
        Ok(Set { fd, events: [libc::epoll_event { events: 0, u64: 0 }; EVENTS] })
    }

    /// Descriptors with news.
    fn wait(&mut self) -> io::Result<impl Iterator<Item = RawFd>> {
        let (events, len) = (self.events.as_mut_ptr(), i32::try_from(EVENTS).unwrap_or(0));
        // SAFETY: room for as many events as are said.
        let n = check(unsafe { libc::epoll_wait(self.fd.as_raw_fd(), events, len, -1) } as isize)?;
        Ok(self.events.iter().take(n).map(|event| i32::try_from(event.u64).unwrap_or(-1)))
    }
}

fn send(fd: RawFd, word: &[u8; 8]) -> io::Result<()> {
    // SAFETY: the word is readable for its length.
    let n = check(unsafe { libc::send(fd, word.as_ptr().cast(), word.len(), libc::MSG_NOSIGNAL) })?;
    if n == word.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// False at the end.
fn receive(fd: RawFd, word: &mut [u8; 8]) -> io::Result<bool> {
    // SAFETY: the word is writable for its length.
    let n = check(unsafe { libc::recv(fd, word.as_mut_ptr().cast(), word.len(), 0) })?;
    if n == word.len() || n == 0 { Ok(n != 0) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Echoes on all connections, until one of them ends.
pub fn serve(listener: &Listener, connections: usize) -> io::Result<()> {
    let all: Vec<OwnedFd> = (0..connections).map(|_| listener.accept()).collect::<io::Result<_>>()?;
    let mut set = Set::of(&all)?;
    let mut word = WORD;
    loop {
        for fd in set.wait()? {
            if !receive(fd, &mut word)? {
                return Ok(());
            }
            send(fd, &word)?;
        }
    }
}

/// Half of the time one message at a time on one active connection after the other (the latencies), the other half
/// a message on each active one at once (count and time).
pub fn load(address: &Address, connections: usize, active: usize, job: &Job) -> io::Result<Figures> {
    let all: Vec<OwnedFd> = (0..connections).map(|_| address.connect()).collect::<io::Result<_>>()?;
    let mut set = Set::of(&all)?;
    // Spread over all, as news come in life.
    let step = (connections / active.max(1)).max(1);
    let busy: Vec<RawFd> = all.iter().step_by(step).take(active).map(OwnedFd::as_raw_fd).collect();
    let mut word = WORD;

    let mut one = Meter::new(job.seconds / 2.0);
    for fd in busy.iter().cycle() {
        send(*fd, &word)?;
        for ready in set.wait()? {
            receive(ready, &mut word)?;
        }
        if !one.done(1) {
            break;
        }
    }
    let mut together = Meter::new(job.seconds / 2.0);
    loop {
        for fd in &busy {
            send(*fd, &word)?;
        }
        let mut left = busy.len();
        while left > 0 {
            for ready in set.wait()? {
                receive(ready, &mut word)?;
                left = left.saturating_sub(1);
            }
        }
        if !together.done(busy.len() as u64) {
            break;
        }
    }
    let (one, together) = (one.figures(), together.figures());
    Ok(Figures { p50_ns: one.p50_ns, p99_ns: one.p99_ns, ..together })
}

/// Accepts and keeps all, until the first one ends.
pub fn keep(listener: &Listener, connections: usize, exchange: bool) -> io::Result<()> {
    let mut all = Vec::with_capacity(connections);
    let mut word = WORD;
    for _ in 0..connections {
        let client = listener.accept()?;
        if exchange && receive(client.as_raw_fd(), &mut word)? {
            send(client.as_raw_fd(), &word)?;
        }
        all.push(client);
    }
    let Some(first) = all.first() else { return Ok(()) };
    while receive(first.as_raw_fd(), &mut word)? {}
    Ok(())
}

/// Opens one connection, waits for a line, opens the others, waits for a line: meanwhile the driver measures memory.
pub fn open(address: &Address, connections: usize, exchange: bool) -> io::Result<Figures> {
    let mut all = Vec::with_capacity(connections + 1);
    for more in [1, connections] {
        for _ in 0..more {
            let server = address.connect()?;
            if exchange {
                let mut word = WORD;
                send(server.as_raw_fd(), &word)?;
                receive(server.as_raw_fd(), &mut word)?;
            }
            all.push(server);
        }
        println!("open");
        io::stdout().flush()?;
        io::stdin().read_exact(&mut [0])?;
    }
    Ok(Figures { count: connections as u64, ..Figures::default() })
}
