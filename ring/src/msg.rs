//! What requests and completions say (SPEC 3): raw entry in, validated value out, and back.
//!
//! Nothing here is believed beyond its shape: who sent it is known from the ring it came in.

mod completion;

use crate::window::Raw;

pub use completion::Completion;

/// A connection: segment, slot in it, generation of the slot (SPEC 5.4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

impl ConnId {
    /// Largest segment number.
    pub const SEGMENT_MAX: u32 = 0xff_ffff;

    /// Packs the three parts; each is cut to its field (24, 16 and 24 bits).
    #[must_use]
    pub fn new(segment: u32, slot: u16, generation: u32) -> Self {
        ConnId(
            u64::from(segment & 0xff_ffff) << 40 | u64::from(slot) << 24 | u64::from(generation & 0xff_ffff),
        )
    }
    /// Segment number.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // a field cut out of a word
    pub fn segment(self) -> u32 {
        (self.0 >> 40) as u32
    }
    /// Slot in the segment.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // a field cut out of a word
    pub fn slot(self) -> u16 {
        (self.0 >> 24) as u16
    }
    /// Generation of the slot, never 0.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // a field cut out of a word
    pub fn generation(self) -> u32 {
        self.0 as u32 & 0xff_ffff
    }
}

impl core::fmt::Debug for ConnId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}.{}#{}", self.segment(), self.slot(), self.generation())
    }
}

/// An IP address and TCP port. IPv4 is carried IPv4-mapped (`::ffff:a.b.c.d`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Addr {
    /// Address, network order.
    pub ip: [u8; 16],
    /// Port, host order.
    pub port: u16,
}

impl Addr {
    /// `::ffff:0.0.0.0`, the IPv4 wildcard.
    pub const V4_ANY: [u8; 16] = Addr::v4([0; 4], 0).ip;
    /// `::`, the IPv6 wildcard.
    pub const V6_ANY: [u8; 16] = [0; 16];

    /// From IPv4 octets.
    #[must_use]
    pub const fn v4(o: [u8; 4], port: u16) -> Self {
        Addr { ip: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, o[0], o[1], o[2], o[3]], port }
    }
    /// True for an IPv4(-mapped) address.
    #[must_use]
    pub fn is_v4(&self) -> bool {
        self.ip[..12] == Addr::V4_ANY[..12]
    }
    /// True for `0.0.0.0` or `::`.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.ip == Addr::V4_ANY || self.ip == Addr::V6_ANY
    }
    /// True for 127.0.0.0/8 and `::1`.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        (self.is_v4() && self.ip[12] == 127) || self.ip == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    }
    /// The address as two words, for entries and shared memory.
    #[must_use]
    pub fn words(&self) -> [u64; 2] {
        let [a, b, c, d, e, f, g, h, rest @ ..] = self.ip;
        [u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes(rest)]
    }
    /// From [`Addr::words`] and a port.
    #[must_use]
    pub fn from_words(w0: u64, w1: u64, port: u16) -> Self {
        let mut ip = [0; 16];
        let (lo, hi) = ip.split_at_mut(8);
        lo.copy_from_slice(&w0.to_le_bytes());
        hi.copy_from_slice(&w1.to_le_bytes());
        Addr { ip, port }
    }
}

impl core::fmt::Debug for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{self}")
    }
}

impl core::fmt::Display for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let ip = core::net::Ipv6Addr::from(self.ip);
        match ip.to_ipv4_mapped() {
            Some(v4) => write!(f, "{v4}:{}", self.port),
            None => write!(f, "[{ip}]:{}", self.port),
        }
    }
}

/// Outcome in a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Nobody with the shim listens there: use the kernel.
    NoListener = 1,
    /// The listener's queue is full: use the kernel, whose queue decides.
    BacklogFull = 2,
    /// Policy, or an address that the client may not claim.
    Denied = 3,
    /// A quota or table is full.
    Quota = 4,
    /// Accept: nothing is waiting.
    Empty = 5,
    /// The request made no sense.
    BadRequest = 6,
    /// The agent could not make the segment.
    NoSegment = 7,
    /// The address is another host's, where no coordinator answers: use the kernel.
    NoHost = 8,
}

impl Status {
    /// Checks a status from the wire.
    #[must_use]
    pub fn from_wire(v: u16) -> Option<Status> {
        Some(match v {
            0 => Status::Ok,
            1 => Status::NoListener,
            2 => Status::BacklogFull,
            3 => Status::Denied,
            4 => Status::Quota,
            5 => Status::Empty,
            6 => Status::BadRequest,
            7 => Status::NoSegment,
            8 => Status::NoHost,
            _ => return None,
        })
    }
}

/// Listener: `::` accepts IPv6 only (`IPV6_V6ONLY`).
pub const LISTEN_V6ONLY: u32 = 1;
/// Accept: if nothing waits, answer later, when something does (a blocked `accept`).
pub const ACCEPT_WAIT: u32 = 1;

/// Host to card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A listening socket. The answer's value is the listener's number.
    Listen {
        /// Bound address.
        addr: Addr,
        /// `listen(2)` backlog, already clamped to somaxconn.
        backlog: u32,
        /// `LISTEN_*`.
        flags: u32,
    },
    /// This process closed its last descriptor of the listener. Answered by `Done` if it has a token (not 0).
    Unlisten {
        /// From the `Listen` answer.
        listener: u32,
    },
    /// Find a listener of this network namespace at `dst` and queue a connection from `src` there.
    Connect {
        /// Where to.
        dst: Addr,
        /// Local address and port (bound in the kernel).
        src: Addr,
    },
    /// Take the next waiting connection of a listener.
    Accept {
        /// Which listener.
        listener: u32,
        /// `ACCEPT_*`.
        flags: u32,
    },
    /// A waiting `Accept` gives up. It is answered (`Empty`) unless a connection was already on its way.
    CancelAccept {
        /// Which listener.
        listener: u32,
        /// Token of the `Accept`.
        token: u32,
    },
    /// This process holds no descriptor of the connection any more. No answer.
    Close {
        /// Which connection.
        conn: ConnId,
        /// Which side of it, 0 or 1: a process may hold both.
        side: u32,
        /// The end is marked in the stream: the other side need not be told.
        finished: bool,
    },
    /// This process has shut down a direction of a connection: others of its family who hold that side shall look. No answer.
    Shut {
        /// Which connection.
        conn: ConnId,
        /// Which side of it, 0 or 1.
        side: u32,
    },
    /// An accepted connection that nobody will take (its `accept` was interrupted): queue it again. No answer.
    Requeue {
        /// Which connection.
        conn: ConnId,
    },
    /// About to fork: everything this process holds gets a second holder, who will attach with `nonce`. No answer.
    Fork {
        /// Random.
        nonce: u64,
    },
    /// The fork failed, or nobody will come for what was lent. No answer.
    ForkFailed {
        /// As in `Fork` or `Lend`.
        nonce: u64,
    },
    /// As `Fork`, for one side of one connection: whoever attaches with `nonce` holds that, too. No answer.
    Lend {
        /// Random.
        nonce: u64,
        /// Which connection.
        conn: ConnId,
        /// Which side of it, 0 or 1.
        side: u32,
    },
    /// From now on the kernel alone serves new clients of this listener: a program without the shim has got it. No answer.
    Withdraw {
        /// From the `Listen` answer.
        listener: u32,
    },
    /// A connected `AF_UNIX` socket of this process, soon bound to a name that tells its function and `serial`, wants memory
    /// together with its peer (SPEC 3.10). The answer's value is 0; `Paired` says that there is some.
    Offer {
        /// This process's number for it.
        serial: u32,
        /// The peer by `SO_PEERCRED`: process id.
        pid: u32,
        /// Its user id.
        uid: u32,
        /// Its name ([`name_hash`]).
        name: u64,
    },
    /// The offer does not stand any more. No answer.
    Retract {
        /// Which.
        serial: u32,
    },
    /// This process has the other end of the socket that was offered. Answered by `Claimed`.
    Claim {
        /// Who offered it.
        function: u32,
        /// Under which number.
        serial: u32,
        /// The peer by `SO_PEERCRED`: process id.
        pid: u32,
        /// Its user id.
        uid: u32,
    },
    /// More connections to `dst` that this process may open without an answer (SPEC 3.11). No answer; what there is comes as `Granted`.
    Ahead {
        /// Where to.
        dst: Addr,
        /// How many.
        count: u32,
    },
    /// A connection that was granted is made. No answer.
    Open {
        /// Which.
        conn: ConnId,
        /// The client's address.
        src: Addr,
    },
    /// Agent only: a process is attached as `function`.
    Attach {
        /// New function number.
        function: u32,
        /// Fork family.
        group: u32,
        /// Function of the process it was forked from, or 0.
        parent: u32,
        /// The `Fork` nonce, or 0.
        nonce: u64,
        /// Real uid by the kernel.
        uid: u32,
        /// Process id by the kernel.
        pid: u32,
        /// Inode of the network namespace.
        netns: u64,
    },
    /// Agent only: the process is gone; everything it held is dropped.
    Detach {
        /// Which.
        function: u32,
    },
    /// Agent only: outcome of [`Completion::MakeSegment`].
    SegmentMade {
        /// Which.
        segment: u32,
        /// Made, and ready to be handed to its two sides.
        ok: bool,
    },
    /// Agent only: a forked child that has not attached is watched, or is gone. No answer.
    Child {
        /// Function of its parent.
        parent: u32,
        /// The `Fork` nonce.
        nonce: u64,
        /// It is watched: this, or its `Attach`, follows.
        lives: bool,
    },
    /// Agent only: a process has shown a listener of `AF_UNIX`, for which the kernel shows another one that has called
    /// listen(2). It may claim what is offered to that one under that name. No answer.
    StandsFor {
        /// Who has it.
        function: u32,
        /// Who called listen(2): process id.
        pid: u32,
        /// Its user id then.
        uid: u32,
        /// The listener's name ([`name_hash`]).
        name: u64,
    },
}

/// An entry that is not one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

fn hi(w: u64) -> u32 {
    (w >> 32) as u32
}
#[allow(clippy::cast_possible_truncation)] // the low half, on purpose
fn lo(w: u64) -> u32 {
    w as u32
}
/// The number by which an `AF_UNIX` name is told: FNV-1a over its bytes behind the family, as the kernel shows them.
#[must_use]
pub fn name_hash(name: &[u8]) -> u64 {
    let add = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    name.iter().fold(0xcbf2_9ce4_8422_2325, add)
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}
fn port(w: u64) -> Result<u16, Malformed> {
    u16::try_from(w).map_err(|_| Malformed)
}

impl Request {
    /// Encodes with the requester's `token`.
    #[must_use]
    pub fn to_raw(self, token: u32) -> Raw {
        let (kind, body): (u8, [u64; 6]) = match self {
            Request::Listen { addr, backlog, flags } => {
                let [a, b] = addr.words();
                (1, [a, b, u64::from(addr.port), pair(backlog, flags), 0, 0])
            }
            Request::Unlisten { listener } => (2, [u64::from(listener), 0, 0, 0, 0, 0]),
            Request::Connect { dst, src } => {
                let ([a, b], [c, d]) = (dst.words(), src.words());
                (3, [a, b, c, d, u64::from(dst.port) | u64::from(src.port) << 16, 0])
            }
            Request::Accept { listener, flags } => (4, [pair(listener, flags), 0, 0, 0, 0, 0]),
            Request::CancelAccept { listener, token } => (5, [pair(listener, token), 0, 0, 0, 0, 0]),
            Request::Close { conn, side, finished } => {
                (6, [conn.0, pair(side, u32::from(finished)), 0, 0, 0, 0])
            }
            Request::Requeue { conn } => (7, [conn.0, 0, 0, 0, 0, 0]),
            Request::Fork { nonce } => (8, [nonce, 0, 0, 0, 0, 0]),
            Request::ForkFailed { nonce } => (9, [nonce, 0, 0, 0, 0, 0]),
            Request::Lend { nonce, conn, side } => (10, [nonce, conn.0, u64::from(side), 0, 0, 0]),
            Request::Withdraw { listener } => (11, [u64::from(listener), 0, 0, 0, 0, 0]),
            Request::Offer { serial, pid, uid, name } => {
                (12, [u64::from(serial), pair(pid, uid), name, 0, 0, 0])
            }
            Request::Retract { serial } => (13, [u64::from(serial), 0, 0, 0, 0, 0]),
            Request::Shut { conn, side } => (15, [conn.0, u64::from(side), 0, 0, 0, 0]),
            Request::Ahead { dst, count } => {
                let [a, b] = dst.words();
                (16, [a, b, u64::from(dst.port), u64::from(count), 0, 0])
            }
            Request::Open { conn, src } => {
                let [a, b] = src.words();
                (17, [conn.0, a, b, u64::from(src.port), 0, 0])
            }
            Request::Claim { function, serial, pid, uid } => {
                (14, [pair(function, serial), pair(pid, uid), 0, 0, 0, 0])
            }
            Request::Attach { function, group, parent, nonce, uid, pid, netns } => {
                (32, [pair(function, group), pair(parent, uid), nonce, u64::from(pid), netns, 0])
            }
            Request::Detach { function } => (33, [u64::from(function), 0, 0, 0, 0, 0]),
            Request::StandsFor { function, pid, uid, name } => {
                (35, [u64::from(function), pair(pid, uid), name, 0, 0, 0])
            }
            Request::Child { parent, nonce, lives } => {
                (36, [pair(parent, u32::from(lives)), nonce, 0, 0, 0, 0])
            }
            Request::SegmentMade { segment, ok } => (34, [pair(segment, u32::from(ok)), 0, 0, 0, 0, 0]),
        };
        Raw { kind, status: 0, token, body }
    }

    /// Validates the shape of an entry.
    ///
    /// # Errors
    /// [`Malformed`] for an unknown kind or a field out of range.
    pub fn from_raw(raw: &Raw) -> Result<Request, Malformed> {
        // The last word is the seal's in the shared ring (SPEC 2.8).
        let [a, b, c, d, e, _] = raw.body;
        Ok(match raw.kind {
            1 => Request::Listen { addr: Addr::from_words(a, b, port(c)?), backlog: lo(d), flags: hi(d) },
            2 => Request::Unlisten { listener: u32::try_from(a).map_err(|_| Malformed)? },
            3 => Request::Connect {
                dst: Addr::from_words(a, b, port(e & 0xffff)?),
                src: Addr::from_words(c, d, port(e >> 16)?),
            },
            4 => Request::Accept { listener: lo(a), flags: hi(a) },
            5 => Request::CancelAccept { listener: lo(a), token: hi(a) },
            6 if lo(b) < 2 => Request::Close { conn: ConnId(a), side: lo(b), finished: hi(b) != 0 },
            7 => Request::Requeue { conn: ConnId(a) },
            8 => Request::Fork { nonce: a },
            9 => Request::ForkFailed { nonce: a },
            10 if c < 2 => Request::Lend { nonce: a, conn: ConnId(b), side: lo(c) },
            11 => Request::Withdraw { listener: u32::try_from(a).map_err(|_| Malformed)? },
            12 => Request::Offer {
                serial: u32::try_from(a).map_err(|_| Malformed)?,
                pid: lo(b),
                uid: hi(b),
                name: c,
            },
            13 => Request::Retract { serial: u32::try_from(a).map_err(|_| Malformed)? },
            14 => Request::Claim { function: lo(a), serial: hi(a), pid: lo(b), uid: hi(b) },
            15 if b < 2 => Request::Shut { conn: ConnId(a), side: lo(b) },
            16 => Request::Ahead {
                dst: Addr::from_words(a, b, port(c)?),
                count: u32::try_from(d).map_err(|_| Malformed)?,
            },
            17 => Request::Open { conn: ConnId(a), src: Addr::from_words(b, c, port(d)?) },
            32 => Request::Attach {
                function: lo(a),
                group: hi(a),
                parent: lo(b),
                uid: hi(b),
                nonce: c,
                pid: u32::try_from(d).map_err(|_| Malformed)?,
                netns: e,
            },
            33 => Request::Detach { function: u32::try_from(a).map_err(|_| Malformed)? },
            34 => Request::SegmentMade { segment: lo(a), ok: hi(a) != 0 },
            35 => Request::StandsFor {
                function: u32::try_from(a).map_err(|_| Malformed)?,
                pid: lo(b),
                uid: hi(b),
                name: c,
            },
            36 => Request::Child { parent: lo(a), nonce: b, lives: hi(a) != 0 },
            _ => return Err(Malformed),
        })
    }

    /// True for requests that only the agent's function may make.
    #[must_use]
    pub fn agent_only(&self) -> bool {
        matches!(
            self,
            Request::Attach { .. }
                | Request::Detach { .. }
                | Request::SegmentMade { .. }
                | Request::StandsFor { .. }
                | Request::Child { .. }
        )
    }
}
