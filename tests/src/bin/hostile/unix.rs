//! Lies about connections of `AF_UNIX` (SPEC 3.10, 4.9): told to the coordinator, by a socket's name, and in the memory that both
//! sides share.
//!
//! Those that begin with `server-` listen at the path, print a line when they do, and take one client; the others connect there.
//! As long as the kernel still carries the connection, what is sent must come back: a client checks that, a server does it.

use std::io::{ErrorKind, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use ring::atomic::Ordering;
use ring::msg::{Completion, ConnId, Request, Status};
use ring::segment::Segment;
use ring::stream::{self, Writer};
use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, bind, send, sendmsg, sockopt,
};

use crate::Outcome;
use crate::attached::{Attached, Random};

/// How long the other side may take for anything.
const BOUND: Duration = Duration::from_secs(10);
/// How long a server waits for something to give back.
const LISTEN: Duration = Duration::from_millis(5);
/// Exchanges in which the other side looks at our name twice.
const SEEN: u32 = 30;
/// Our number for the one thing that we offer.
const SERIAL: u32 = 7;

/// Tells the lie `kind` until `end`.
pub fn tell(kind: &str, path: &str, attached: &mut Attached, random: &mut Random, end: Instant) -> Outcome {
    let serves = kind.starts_with("server-");
    let talk = if serves { Talk::serve(path)? } else { Talk::connect(path)? };
    let mut liar = Liar { attached, talk };
    match kind {
        "silent" => {
            liar.offer(SERIAL)?;
            liar.until_paired()?;
        }
        "retracts" => {
            liar.offer(SERIAL)?;
            liar.attached.post(Request::Retract { serial: SERIAL })?;
            liar.talk.exchange(SEEN)?;
        }
        "offers-to-others" => liar.offer_to_others()?,
        "forges-names" => return liar.forge_names(path, end),
        "dies-after-its-offer" => {
            liar.offer(SERIAL)?;
            return liar.talk.exchange(3);
        }
        "dies-after-the-claim" => {
            liar.offer(SERIAL)?;
            return liar.until_paired().map(drop);
        }
        "scribbles" => {
            liar.offer(SERIAL)?;
            let conn = liar.until_paired()?;
            return liar.scribble(conn, 0, random, end);
        }
        "betrays" => {
            liar.offer(SERIAL)?;
            let conn = liar.until_paired()?;
            return liar.betray(conn, 0, random, end);
        }
        "server-steals" => liar.steal()?,
        "server-claims-twice" => {
            let (function, serial) = liar.until_offered()?;
            let (pid, uid) = liar.talk.peer()?;
            liar.claim(function, serial, pid, uid)?.ok_or("the claim was refused")?;
            liar.must_not_get(function, serial, pid, uid)?;
        }
        "server-dies-after-its-claim" => return liar.claim_own().map(drop),
        "server-scribbles" => {
            let conn = liar.claim_own()?;
            return liar.scribble(conn, 1, random, end);
        }
        "server-betrays" => {
            let conn = liar.claim_own()?;
            return liar.betray(conn, 1, random, end);
        }
        _ => return Err(format!("no such lie: {kind}").into()),
    }
    liar.talk_until(end, matches!(kind, "retracts" | "offers-to-others"))
}

/// A connection through the kernel.
struct Talk {
    stream: UnixStream,
    serves: bool,
    /// Messages so far.
    sent: u64,
}

impl Talk {
    fn connect(path: &str) -> Outcome<Talk> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(BOUND))?;
        Ok(Talk { stream, serves: false, sent: 0 })
    }

    fn serve(path: &str) -> Outcome<Talk> {
        let listener = UnixListener::bind(path)?;
        println!("listening");
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(LISTEN))?;
        Ok(Talk { stream, serves: true, sent: 0 })
    }

    /// A client: sends a message and gets it back. A server: gives back what has come.
    fn once(&mut self) -> Outcome {
        if self.serves {
            let mut room = [0; 4096];
            return match self.stream.read(&mut room) {
                Ok(0) => Err("the victim has hung up".into()),
                Ok(n) => Ok(self.stream.write_all(&room[..n])?),
                Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(()),
                Err(e) => Err(e.into()),
            };
        }
        self.sent += 1;
        let message = self.sent.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes().repeat(4);
        self.stream.write_all(&message)?;
        let mut back = [0; 32];
        self.stream.read_exact(&mut back)?;
        if message == back { Ok(()) } else { Err("other bytes came back".into()) }
    }

    fn exchange(&mut self, times: u32) -> Outcome {
        (0..times).try_for_each(|_| self.once())
    }

    /// Whom the kernel shows at the other end.
    fn peer(&self) -> Outcome<(u32, u32)> {
        let who = sockopt::socket_peercred(&self.stream)?;
        Ok((who.pid.as_raw_pid().unsigned_abs(), who.uid.as_raw()))
    }
}

/// The name of an offer.
fn name(text: &str) -> Outcome<SocketAddrUnix> {
    Ok(SocketAddrUnix::new_abstract_name(text.as_bytes())?)
}

/// Function and serial in the rest of such a name, behind the epoch.
fn numbers(rest: &str) -> Option<(u32, u32)> {
    let (function, serial) = rest.split_once(':')?;
    Some((u32::from_str_radix(function, 16).ok()?, u32::from_str_radix(serial, 16).ok()?))
}

struct Liar<'a> {
    attached: &'a mut Attached,
    talk: Talk,
}

impl Liar<'_> {
    /// Truth so far: offers our end to whom the kernel shows at the other one.
    fn offer(&mut self, serial: u32) -> Outcome {
        let (pid, uid) = self.talk.peer()?;
        let done = self.attached.ask(Request::Offer { serial, pid, uid, name: 0 })?;
        if !matches!(done, Completion::Done { status: Status::Ok, .. }) {
            return Err(format!("the offer was answered by {done:?}").into());
        }
        let (epoch, function) = (self.attached.epoch, self.attached.function);
        Ok(bind(&self.talk.stream, &name(&format!("ipc-direct:{epoch:08x}:{function:08x}:{serial:08x}"))?)?)
    }

    fn paired(&mut self) -> Outcome<Option<ConnId>> {
        while let Some(news) = self.attached.news()? {
            if let Completion::Paired { conn, .. } = news {
                return Ok(Some(conn));
            }
        }
        Ok(None)
    }

    /// Talks until the other side has claimed what we offer.
    fn until_paired(&mut self) -> Outcome<ConnId> {
        let bound = Instant::now() + BOUND;
        while Instant::now() < bound {
            if let Some(conn) = self.paired()? {
                return Ok(conn);
            }
            self.talk.once()?;
        }
        Err("the victim does not claim".into())
    }

    /// The kernel carries everything as before. `alone`: and nobody has claimed anything of ours.
    fn talk_until(&mut self, end: Instant, alone: bool) -> Outcome {
        while Instant::now() < end {
            self.talk.once()?;
        }
        match self.paired()? {
            Some(conn) if alone => Err(format!("{conn:?} was claimed").into()),
            _ => Ok(()),
        }
    }

    /// To nobody, which is refused; and to ourselves, who are not at the other end.
    fn offer_to_others(&mut self) -> Outcome {
        let (_, uid) = self.talk.peer()?;
        let done = self.attached.ask(Request::Offer { serial: 1, pid: 1, uid, name: 0 })?;
        if !matches!(done, Completion::Done { status: Status::NoListener, .. }) {
            return Err(format!("an offer to who is not attached was answered by {done:?}").into());
        }
        let (serial, pid) = (SERIAL, std::process::id());
        self.attached.ask(Request::Offer { serial, pid, uid, name: 0 })?;
        let (epoch, function) = (self.attached.epoch, self.attached.function);
        bind(&self.talk.stream, &name(&format!("ipc-direct:{epoch:08x}:{function:08x}:{serial:08x}"))?)?;
        self.talk.exchange(SEEN)
    }

    /// Offers of other processes, by the kernel's table of sockets.
    fn others(&self) -> Outcome<Vec<(u32, u32)>> {
        let prefix = format!("@ipc-direct:{:08x}:", self.attached.epoch);
        let table = std::fs::read_to_string("/proc/net/unix")?;
        let all = table.lines().filter_map(|line| numbers(line.split_once(&prefix)?.1));
        let others: Vec<_> = all.filter(|(function, _)| *function != self.attached.function).collect();
        if others.is_empty() { Err("nobody has offered anything".into()) } else { Ok(others) }
    }

    /// Connections whose names are others' offers (in capitals, which is another name and the same numbers), or nobody's.
    fn forge_names(&mut self, path: &str, end: Instant) -> Outcome {
        let (epoch, own) = (self.attached.epoch, self.attached.function);
        let mut talks = Vec::new();
        for (function, serial) in self.others()? {
            for (f, s) in [(function, serial), (function, serial + 1), (function + 1, serial), (own, serial)]
            {
                let talk = Talk::connect(path)?;
                // It is taken if it has no letters.
                if bind(&talk.stream, &name(&format!("ipc-direct:{epoch:08X}:{f:08X}:{s:08X}"))?).is_ok() {
                    talks.push(talk);
                }
            }
        }
        talks.iter_mut().try_for_each(|talk| talk.exchange(SEEN))?;
        while Instant::now() < end {
            talks.iter_mut().try_for_each(Talk::once)?;
        }
        Ok(())
    }

    /// Gives back what comes until the client has offered its end: function and serial.
    fn until_offered(&mut self) -> Outcome<(u32, u32)> {
        let prefix = format!("ipc-direct:{:08x}:", self.attached.epoch);
        let bound = Instant::now() + BOUND;
        while Instant::now() < bound {
            let peer = self.talk.stream.peer_addr()?;
            let text = String::from_utf8_lossy(peer.as_abstract_name().unwrap_or_default()).into_owned();
            if let Some(found) = text.strip_prefix(&prefix).and_then(numbers) {
                return Ok(found);
            }
            self.talk.once()?;
        }
        Err("the victim offers nothing".into())
    }

    fn claim(&mut self, function: u32, serial: u32, pid: u32, uid: u32) -> Outcome<Option<ConnId>> {
        // The name may be there before the offer is.
        let bound = Instant::now() + Duration::from_millis(100);
        loop {
            match self.attached.ask(Request::Claim { function, serial, pid, uid })? {
                Completion::Claimed { status: Status::Ok, conn } => return Ok(Some(conn)),
                Completion::Claimed { status: Status::Empty, .. } if Instant::now() < bound => {
                    thread::sleep(Duration::from_millis(10));
                }
                Completion::Claimed { .. } => return Ok(None),
                other => return Err(format!("a claim was answered by {other:?}").into()),
            }
        }
    }

    /// What the client has offered to us.
    fn claim_own(&mut self) -> Outcome<ConnId> {
        let (function, serial) = self.until_offered()?;
        let (pid, uid) = self.talk.peer()?;
        Ok(self.claim(function, serial, pid, uid)?.ok_or("the claim was refused")?)
    }

    fn must_not_get(&mut self, function: u32, serial: u32, pid: u32, uid: u32) -> Outcome {
        match self.claim(function, serial, pid, uid)? {
            Some(conn) => Err(format!("got {conn:?} of {function}:{serial} as the peer of {pid}").into()),
            None => Ok(()),
        }
    }

    /// Claims others' offers, our own one as somebody else's peer; then that as it is right, and gives it up.
    fn steal(&mut self) -> Outcome {
        let (function, serial) = self.until_offered()?;
        let (pid, uid) = self.talk.peer()?;
        let own = std::process::id();
        let others: Vec<_> = self.others()?.into_iter().filter(|it| *it != (function, serial)).collect();
        if others.is_empty() {
            return Err("nobody else has offered anything".into());
        }
        for (f, s) in others {
            for p in [pid, own, 1] {
                self.must_not_get(f, s, p, uid)?;
            }
        }
        for (s, p) in [(serial + 1, pid), (serial, own), (serial, 1)] {
            self.must_not_get(function, s, p, uid)?;
        }
        self.must_not_get(self.attached.function, serial, pid, uid)?;
        self.must_not_get(0, serial, pid, uid)?;
        let conn = self.claim(function, serial, pid, uid)?.ok_or("the claim was refused")?;
        self.attached.post(Request::Close { conn, side: 1, finished: false })
    }

    /// Random words over all that is shared, and random bytes through the kernel.
    fn scribble(&mut self, conn: ConnId, side: u32, random: &mut Random, end: Instant) -> Outcome {
        let mut stream = self.talk.stream.try_clone()?;
        stream.set_nonblocking(true)?;
        let mut other = Random(random.next() | 1);
        let noise = thread::spawn(move || {
            while Instant::now() < end {
                let _ = stream.write(&other.next().to_le_bytes());
                let _ = stream.read(&mut [0; 4096]);
                thread::sleep(Duration::from_millis(1));
            }
        });
        self.attached.scribble(conn, side, random, end)?;
        noise.join().map_err(|_| "the noise has ended".into())
    }

    /// Joins, and then does each thing that a side may do, in an order that it may not.
    fn betray(&mut self, conn: ConnId, side: u32, random: &mut Random, end: Instant) -> Outcome {
        let (mapped, wire) = self.attached.segment(conn, side)?;
        let segment = Segment::over(mapped.region()?).ok_or("the segment is too small")?;
        let slot = segment.slots.get(usize::from(conn.slot())).ok_or("no such slot")?;
        let [to, from] = if side == 0 { [0, 1] } else { [1, 0] };
        let (out, back) = (&slot.directions[to], &slot.directions[from]);
        let ring = segment.ring(conn.slot(), side).ok_or("no ring")?;
        let mut stream = self.talk.stream.try_clone()?;
        stream.set_nonblocking(true)?;
        let mut w = Writer::default();
        stream::open(ring, out, conn.generation());
        while Instant::now() < end {
            let small = u32::try_from(random.below(5))?;
            match random.below(14) {
                0 => {
                    stream::open(ring, out, conn.generation());
                    w = Writer::default();
                }
                1 => out.generation.store(small, Ordering::Release),
                2 => out.state.store(small, Ordering::Release),
                3 => back.reader_closed.store(conn.generation() * (small & 1), Ordering::Release),
                4 => back.consumed.store(random.next() % 4096, Ordering::Release),
                kind @ 5..8 => {
                    if let Ok(Some(span)) = stream::reserve(ring, out, &mut w, 1 + random.below(64)) {
                        let published = match kind {
                            7 => stream::commit_ancillary(ring, &mut w, span.len),
                            _ => stream::commit(ring, &mut w, span.len),
                        };
                        published.map_err(|_| "the ring is unusable")?;
                    }
                }
                8 => {
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                    let mut control = SendAncillaryBuffer::new(&mut space);
                    let given = [self.talk.stream.as_fd()];
                    control.push(SendAncillaryMessage::ScmRights(&given));
                    let byte = [IoSlice::new(b"!")];
                    let _ = sendmsg(
                        &self.talk.stream,
                        &byte,
                        &mut control,
                        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
                    );
                }
                9 | 10 => drop(stream.write(&random.next().to_le_bytes())),
                _ => drop(stream.read(&mut [0; 4096])),
            }
            let _ = send(&wire, b"!", SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            thread::sleep(Duration::from_micros(300));
        }
        Ok(())
    }
}
