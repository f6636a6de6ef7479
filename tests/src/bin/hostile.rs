//! A process that attaches as it should, and then lies.
//!
//! `hostile requests SOCKET SECONDS SEED` fills its request ring with random entries;
//! `hostile client SOCKET SECONDS SEED PORT` connects to the server on 127.0.0.1:PORT and scribbles over everything
//! that it shares with it: control lines, lanes, news, rings;
//! `hostile server SOCKET SECONDS SEED PORT` listens there in user space only, prints a line when it does, takes one
//! client and does the same to it. All end with status 0 when their time is over, whatever was done to them.

#![allow(unsafe_code)] // mappings are made into `Region`s; see the SAFETY lines

use std::error::Error;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::ptr::NonNull;
use std::thread;
use std::time::{Duration, Instant};

use memmap2::{MmapOptions, MmapRaw};
use ring::atomic::{AtomicU64, Ordering};
use ring::attach::{BYTES, Call, Reply, WELCOME_FDS};
use ring::msg::{ACCEPT_WAIT, Addr, Completion, ConnId, Request, Status};
use ring::queue::{COMMON_BYTES, CommonMemory, Requests};
use ring::segment::{RING_BYTES, RINGS_OFFSET, SEGMENT_BYTES, SLOTS_OFFSET};
use ring::shared::Region;
use ring::window::{Consumer, HOST_BYTES, HostMemory, Raw, WINDOW_BYTES, Window};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketType, connect, recvmsg, send, socket,
};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// How long an answer may take.
const ANSWER_BOUND: Duration = Duration::from_secs(10);
/// Bytes of a segment that one connection's slot 0 uses, counted from the start: everything before the rings, and two rings.
const SCRIBBLE_BYTES: usize = RINGS_OFFSET + 2 * RING_BYTES;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["requests", socket, seconds, seed] => lie(&Lie::Requests, socket, seconds, seed),
        ["client", socket, seconds, seed, port] => {
            port.parse().map_err(Into::into).and_then(|port| lie(&Lie::Client(port), socket, seconds, seed))
        }
        ["server", socket, seconds, seed, port] => {
            port.parse().map_err(Into::into).and_then(|port| lie(&Lie::Server(port), socket, seconds, seed))
        }
        _ => Err("usage: hostile requests|client|server SOCKET SECONDS SEED [PORT]".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("hostile: {e}");
            ExitCode::FAILURE
        }
    }
}

/// What to lie about; with the port to connect to or to listen on.
enum Lie {
    Requests,
    Client(u16),
    Server(u16),
}

fn lie(lie: &Lie, socket: &str, seconds: &str, seed: &str) -> Outcome {
    let mut random = Random(seed.parse::<u64>()? | 1);
    let time = Duration::from_secs_f64(seconds.parse()?);
    let mut attached = Attached::new(socket)?;
    match lie {
        Lie::Requests => attached.random_requests(&mut random, Instant::now() + time),
        Lie::Client(port) => {
            let request = Request::Connect { dst: localhost(*port), src: localhost(40_000) };
            let Completion::Connected { status: Status::Ok, conn, .. } = attached.ask(request)? else {
                return Err("not connected".into());
            };
            attached.scribble(conn, 0, &mut random, Instant::now() + time)
        }
        Lie::Server(port) => {
            let request = Request::Listen { addr: localhost(*port), backlog: 16, flags: 0 };
            let Completion::Done { status: Status::Ok, value: listener } = attached.ask(request)? else {
                return Err("not listening".into());
            };
            println!("listening");
            let request = Request::Accept { listener, flags: ACCEPT_WAIT };
            let Completion::Accepted { status: Status::Ok, conn, .. } = attached.ask(request)? else {
                return Err("not accepted".into());
            };
            attached.scribble(conn, 1, &mut random, Instant::now() + time)
        }
    }
}

fn localhost(port: u16) -> Addr {
    Addr::v4([127, 0, 0, 1], port)
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    #[allow(clippy::cast_possible_truncation)] // the remainder is below `bound`
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// A mapping, and the file behind it.
struct Mapped {
    memory: MmapRaw,
}

impl Mapped {
    fn new(file: &OwnedFd, len: usize) -> Outcome<Mapped> {
        Ok(Mapped { memory: MmapOptions::new().len(len).map_raw(file)? })
    }

    fn region(&self) -> Outcome<Region> {
        let base = NonNull::new(self.memory.as_mut_ptr()).ok_or("an empty mapping")?;
        // SAFETY: the mapping is readable and writable, page-aligned, and lives until the process ends.
        Ok(unsafe { Region::new(base, self.memory.len()) })
    }
}

/// What the agent gave us.
struct Attached {
    agent: OwnedFd,
    window: Mapped,
    host: Mapped,
    /// What all functions share, unless their rings are private. Kept for `requests`.
    _common: Option<Mapped>,
    requests: Requests<'static>,
    doorbell: OwnedFd,
    /// Completions taken so far.
    taken: u64,
}

impl Attached {
    fn new(name: &str) -> Outcome<Attached> {
        let agent = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
        connect(&agent, &SocketAddrUnix::new_abstract_name(name.trim_start_matches('@').as_bytes())?)?;
        let (reply, fds) = call(&agent, Call::Hello { parent: 0, nonce: 0 })?;
        let Reply::Welcome { function, .. } = reply else {
            return Err(format!("not welcome: {reply:?}").into());
        };
        let mut fds = fds.into_iter();
        let (Some(window), Some(host), Some(_), Some(doorbell)) =
            (fds.next(), fds.next(), fds.next(), fds.next())
        else {
            return Err("descriptors are missing".into());
        };
        let window = Mapped::new(&window, WINDOW_BYTES)?;
        let host = Mapped::new(&host, HOST_BYTES)?;
        // Behind the doorbell: two interrupt vectors.
        let common = fds.nth(2).map(|fd| Mapped::new(&fd, COMMON_BYTES)).transpose()?;
        let shared = common.as_ref().map(Mapped::region).transpose()?.and_then(CommonMemory::over);
        let view = Window::over(window.region()?).ok_or("the window is too small")?;
        let memory = HostMemory::over(host.region()?).ok_or("the host memory is too small")?;
        let requests = Requests::over(function, &view, &memory, shared).ok_or("no way to the card")?;
        Ok(Attached { agent, window, host, _common: common, requests, doorbell, taken: 0 })
    }

    fn ring_doorbell(&self) -> Outcome {
        rustix::io::write(&self.doorbell, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    /// Entries of every kind with random content, and random bytes over the ring itself.
    fn random_requests(&mut self, random: &mut Random, end: Instant) -> Outcome {
        let region = self.window.region()?;
        while Instant::now() < end {
            for _ in 0..64 {
                let kind = u8::try_from(random.below(256))?;
                let mut body = [0; 6];
                for word in &mut body {
                    // Small numbers hit what exists, large ones what does not.
                    *word = if random.next().is_multiple_of(2) { random.next() % 8 } else { random.next() };
                }
                let raw = Raw { kind, status: 0, token: 7, body };
                let pushed = u32::try_from(self.requests.pushed() & 0xffff_ffff)?;
                if self.requests.push(&raw, pushed & 0xffff).is_err() {
                    // Goes on as if all were taken.
                    let _ = self.requests.take_credit(pushed);
                }
            }
            let at = random.below(WINDOW_BYTES / 8) * 8;
            region.get::<AtomicU64>(at).ok_or("outside")?.store(random.next(), Ordering::Relaxed);
            self.ring_doorbell()?;
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Makes a request and takes its answer.
    fn ask(&mut self, request: Request) -> Outcome<Completion> {
        let host = HostMemory::over(self.host.region()?).ok_or("the host memory is too small")?;
        self.requests.push(&request.to_raw(1), 0).map_err(|_| "the request ring is full")?;
        self.ring_doorbell()?;
        let mut completions = Consumer::new(host.completions, self.taken);
        let bound = Instant::now() + ANSWER_BOUND;
        while Instant::now() < bound {
            let entry = completions.pop().map_err(|v| format!("a completion of version {}", v.0))?;
            self.taken = completions.consumed();
            match entry {
                // Token 0: an announcement.
                Some((raw, _)) if raw.token != 0 => {
                    return Completion::from_raw(&raw).map_err(|e| format!("{e:?}").into());
                }
                Some(_) => {}
                None => thread::sleep(Duration::from_millis(1)),
            }
        }
        Err("the request was not answered".into())
    }

    /// Random words over everything that is shared with the peer.
    fn scribble(&mut self, conn: ConnId, side: u32, random: &mut Random, end: Instant) -> Outcome {
        let (reply, fds) = call(&self.agent, Call::Segment { segment: conn.segment(), side })?;
        let [memory, wire] = fds.as_slice() else { return Err(format!("no segment: {reply:?}").into()) };
        let mapped = Mapped::new(memory, SEGMENT_BYTES)?;
        let region = mapped.region()?;
        let spots =
            [64..4096, 4096..SLOTS_OFFSET, SLOTS_OFFSET..SLOTS_OFFSET + 512, RINGS_OFFSET..SCRIBBLE_BYTES];
        while Instant::now() < end {
            for _ in 0..1000 {
                for spot in &spots {
                    let at = spot.start + random.below(spot.len() / 8) * 8;
                    let value =
                        if random.next().is_multiple_of(2) { random.next() } else { random.next() % 4 };
                    region.get::<AtomicU64>(at).ok_or("outside")?.store(value, Ordering::Relaxed);
                }
            }
            // Wake the peer, so that it looks. A wire that it has hung up is what a liar deserves.
            if send(wire, b"!", SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_err() {
                thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }
}

/// One call to the agent, and its answer.
fn call(agent: &OwnedFd, call: Call) -> Outcome<(Reply, Vec<OwnedFd>)> {
    send(agent, &call.to_wire(), SendFlags::NOSIGNAL)?;
    let mut room = [0; BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(WELCOME_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(agent, &mut [IoSliceMut::new(&mut room)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let reply = Reply::from_wire(room.get(..got.bytes).unwrap_or(&[])).map_err(|e| e.to_string())?;
    Ok((reply, fds))
}
