//! A process that has attached as it should: its rings, what it is told, and the memory that it shares with others.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::thread;
use std::time::{Duration, Instant};

use memmap2::{MmapOptions, MmapRaw};
use ring::atomic::{AtomicU64, Ordering};
use ring::attach::{BYTES, Call, Reply, WELCOME_FDS};
use ring::msg::{Completion, ConnId, Request};
use ring::queue::{COMMON_BYTES, CommonMemory, Requests};
use ring::segment::{RING_BYTES, RINGS_OFFSET, SEGMENT_BYTES, SLOTS_OFFSET};
use ring::shared::Region;
use ring::window::{Consumer, HOST_BYTES, HostMemory, Raw, WINDOW_BYTES, Window};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketType, connect, recvmsg, send, socket,
};

use crate::Outcome;

/// How long an answer may take.
const ANSWER_BOUND: Duration = Duration::from_secs(10);
/// Bytes of a segment that one connection's slot 0 uses, counted from the start: everything before the rings, and two rings.
const SCRIBBLE_BYTES: usize = RINGS_OFFSET + 2 * RING_BYTES;

/// xorshift64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    #[allow(clippy::cast_possible_truncation)] // the remainder is below `bound`
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// A mapping, and the file behind it.
pub struct Mapped {
    memory: MmapRaw,
}

impl Mapped {
    fn new(file: &OwnedFd, len: usize) -> Outcome<Mapped> {
        Ok(Mapped { memory: MmapOptions::new().len(len).map_raw(file)? })
    }

    pub fn region(&self) -> Outcome<Region> {
        let base = NonNull::new(self.memory.as_mut_ptr()).ok_or("an empty mapping")?;
        // SAFETY: the mapping is readable and writable, page-aligned, and lives until the process ends.
        Ok(unsafe { Region::new(base, self.memory.len()) })
    }
}

/// What the agent gave us.
pub struct Attached {
    /// Its number.
    pub function: u32,
    /// Incarnation of the coordinator.
    pub epoch: u32,
    agent: OwnedFd,
    window: Mapped,
    host: Mapped,
    /// What all functions share, unless their rings are private. Kept for `requests`.
    _common: Option<Mapped>,
    requests: Requests<'static>,
    doorbell: OwnedFd,
    /// Completions taken so far.
    taken: u64,
    /// Announcements among them that nobody asked for yet.
    news: VecDeque<Completion>,
}

impl Attached {
    pub fn new(name: &str) -> Outcome<Attached> {
        let agent = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
        connect(&agent, &SocketAddrUnix::new_abstract_name(name.trim_start_matches('@').as_bytes())?)?;
        let (reply, fds) = call(&agent, Call::Hello { parent: 0, nonce: 0 })?;
        let Reply::Welcome { function, epoch, .. } = reply else {
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
        let requests = Requests::over(function, &view.far(), &memory, shared).ok_or("no way to the card")?;
        let news = VecDeque::new();
        Ok(Attached {
            function,
            epoch,
            agent,
            window,
            host,
            _common: common,
            requests,
            doorbell,
            taken: 0,
            news,
        })
    }

    fn ring_doorbell(&self) -> Outcome {
        rustix::io::write(&self.doorbell, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    /// Entries of every kind with random content, and random bytes over the ring itself.
    pub fn random_requests(&mut self, random: &mut Random, end: Instant) -> Outcome {
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

    /// Makes a request that has no answer.
    pub fn post(&mut self, request: Request) -> Outcome {
        self.requests.push(&request.to_raw(1), 0).map_err(|_| "the request ring is full")?;
        self.ring_doorbell()
    }

    /// Makes a request and takes its answer.
    pub fn ask(&mut self, request: Request) -> Outcome<Completion> {
        self.post(request)?;
        let bound = Instant::now() + ANSWER_BOUND;
        while Instant::now() < bound {
            match self.take()? {
                Some(answer) => return Ok(answer),
                None => thread::sleep(Duration::from_millis(1)),
            }
        }
        Err("the request was not answered".into())
    }

    /// The next announcement, if there is one.
    pub fn news(&mut self) -> Outcome<Option<Completion>> {
        if self.take()?.is_some() {
            return Err("an answer to nothing".into());
        }
        Ok(self.news.pop_front())
    }

    /// Takes completions up to an answer; announcements, whose token is 0, are kept.
    fn take(&mut self) -> Outcome<Option<Completion>> {
        let host = HostMemory::over(self.host.region()?).ok_or("the host memory is too small")?;
        let mut completions = Consumer::new(host.completions, self.taken);
        loop {
            let entry = completions.pop().map_err(|v| format!("a completion of version {}", v.0))?;
            self.taken = completions.consumed();
            let Some((raw, credit)) = entry else { return Ok(None) };
            let _ = self.requests.take_credit(credit);
            let completion = Completion::from_raw(&raw).map_err(|e| format!("{e:?}"))?;
            if raw.token != 0 {
                return Ok(Some(completion));
            }
            self.news.push_back(completion);
        }
    }

    /// The memory of a connection, and our end of its wire.
    pub fn segment(&self, conn: ConnId, side: u32) -> Outcome<(Mapped, OwnedFd)> {
        let (reply, fds) = call(&self.agent, Call::Segment { segment: conn.segment(), side })?;
        let mut fds = fds.into_iter();
        let (Some(memory), Some(wire)) = (fds.next(), fds.next()) else {
            return Err(format!("no segment: {reply:?}").into());
        };
        Ok((Mapped::new(&memory, SEGMENT_BYTES)?, wire))
    }

    /// Random words over everything that is shared with the peer.
    pub fn scribble(&mut self, conn: ConnId, side: u32, random: &mut Random, end: Instant) -> Outcome {
        let (mapped, wire) = self.segment(conn, side)?;
        let region = mapped.region()?;
        let spots =
            [64..4096, 4096..SLOTS_OFFSET, SLOTS_OFFSET..SLOTS_OFFSET + 1024, RINGS_OFFSET..SCRIBBLE_BYTES];
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
            if send(&wire, b"!", SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_err() {
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
