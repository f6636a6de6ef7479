//! Messages between a process and the host agent (SPEC 7): one `SOCK_SEQPACKET` datagram each,
//! file descriptors as `SCM_RIGHTS`. Identity comes from the kernel (`SO_PEERCRED`), never from here.

use crate::VERSION;

/// First four bytes of every message.
pub const MAGIC: [u8; 4] = *b"IPDA";
/// Length of every message in bytes.
pub const BYTES: usize = 128;
/// Longest text in a refusal, in bytes.
pub const TEXT_BYTES: usize = 96;

/// Descriptors with [`Reply::Welcome`], at most, in this order: window, host memory, stats, doorbell, interrupt vector 0 (answers),
/// interrupt vector 1 (events), and the common memory, unless the requests go by private rings alone.
pub const WELCOME_FDS: usize = 7;
/// Descriptors with [`Reply::Segment`]: the memory, this side's end of the wire.
pub const SEGMENT_FDS: usize = 2;
/// Descriptors with [`Reply::Report`]: a sealed memfd with JSON text.
pub const REPORT_FDS: usize = 1;

/// Descriptors with [`Call::Relay`]: the connection's placeholder, the kernel socket, the image, the arena. The relay finds
/// them at 3, 4, 5 and 6 (SPEC 10.4).
pub const RELAY_FDS: usize = 4;

/// How an emulated card fails, for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It does nothing for a while.
    Stuck {
        /// How long.
        ms: u32,
    },
    /// It is gone from the bus.
    LinkLoss,
    /// It starts anew and has forgotten everything.
    Reset,
}

/// Longest [`Fault::Stuck`].
pub const STUCK_MAX_MS: u32 = 600_000;

/// Process to agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Become a function. `parent`/`nonce`: as announced by the parent's `Fork` request, or 0.
    Hello {
        /// Function of the parent before the fork, or 0.
        parent: u32,
        /// Nonce of the `Fork` request, or 0.
        nonce: u64,
    },
    /// The memory of a segment that a completion named.
    Segment {
        /// Which.
        segment: u32,
        /// 0 (the client's) or 1 (the server's); a process that connects to itself maps both.
        side: u32,
    },
    /// What `ipc-direct ps` shows.
    Report {
        /// With the state of all rings and waiters.
        verbose: bool,
    },
    /// Keep the card alive while this socket is open (`ipc-direct run`).
    Lease,
    /// Start a relay between a connection and a kernel socket; [`RELAY_FDS`] descriptors follow.
    Relay,
    /// By a forked child, on its parent's socket: it holds what its parent announced, though it has not attached. One descriptor follows,
    /// the reading end of a pipe: nobody has the other end any more when the child is gone, or another program. Not answered.
    Born {
        /// Function of the parent.
        parent: u32,
        /// Nonce of the `Fork` request.
        nonce: u64,
    },
    /// One descriptor follows, a listener of `AF_UNIX` that this process accepts on, and another one has called listen(2) for.
    Vouch,
    /// By a lease: one descriptor follows, an end of a socketpair(2) that serves as a socket of its own from now on. For a
    /// process that inherited the lease and can't reach the agent's address (another network or mount namespace, a chroot).
    Admit,
    /// The emulated card is to fail (`ipc-direct fault`).
    Fault(Fault),
}

/// Agent to process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Attached; [`WELCOME_FDS`] descriptors follow.
    Welcome {
        /// Function number, never 0.
        function: u32,
        /// Fork family.
        group: u32,
        /// Incarnation of the coordinator.
        epoch: u32,
        /// Process id, as the agent sees it.
        pid: u32,
        /// The card meets other hosts': connections to them are worth asking it for.
        hosts: bool,
    },
    /// [`SEGMENT_FDS`] descriptors follow.
    Segment {
        /// 0 (clients) or 1 (servers).
        side: u32,
    },
    /// [`REPORT_FDS`] descriptor follows.
    Report,
    /// The lease is taken.
    Leased,
    /// The card is about to fail as asked.
    Failing,
    /// The relay is attached, and holds the connection.
    Relayed,
    /// The listener was looked at.
    Vouched,
    /// No; one sentence why.
    Refused(Text),
}

/// A short text, cut at [`TEXT_BYTES`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text {
    len: u8,
    bytes: [u8; TEXT_BYTES],
}

impl Text {
    /// Cuts at a character boundary.
    #[must_use]
    pub fn new(s: &str) -> Self {
        let mut end = s.len().min(TEXT_BYTES);
        while !s.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = [0; TEXT_BYTES];
        for (to, from) in bytes.iter_mut().zip(s.as_bytes().iter().take(end)) {
            *to = *from;
        }
        Text { len: u8::try_from(end).unwrap_or(0), bytes }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.bytes.get(..usize::from(self.len)).and_then(|b| core::str::from_utf8(b).ok()).unwrap_or("")
    }
}

impl core::fmt::Debug for Text {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.as_str().fmt(f)
    }
}

/// Why a message is not one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadMessage {
    /// Length or magic is wrong: not an IPC-Direct message.
    NotOurs,
    /// From another version.
    Version(u32),
    /// Unknown kind or impossible field.
    Malformed,
}

impl core::fmt::Display for BadMessage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            BadMessage::NotOurs => f.write_str("this is not an IPC-Direct message"),
            BadMessage::Version(v) => {
                write!(f, "the other side speaks version {v}, this one {VERSION}: use files of one release")
            }
            BadMessage::Malformed => f.write_str("the message is malformed"),
        }
    }
}

/// A message on the wire: magic, version, kind, then three words and a text.
pub type Wire = [u8; BYTES];

fn put(wire: &mut Wire, at: usize, bytes: &[u8]) {
    for (to, from) in wire.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

fn word32(wire: &[u8], at: usize) -> u32 {
    let mut b = [0; 4];
    for (to, from) in b.iter_mut().zip(wire.iter().skip(at)) {
        *to = *from;
    }
    u32::from_le_bytes(b)
}

fn frame(kind: u32, words: [u32; 3], nonce: u64, text: Option<&Text>) -> Wire {
    let mut w = [0; BYTES];
    put(&mut w, 0, &MAGIC);
    put(&mut w, 4, &VERSION.to_le_bytes());
    put(&mut w, 8, &kind.to_le_bytes());
    for (i, v) in words.iter().enumerate() {
        put(&mut w, 12 + 4 * i, &v.to_le_bytes());
    }
    put(&mut w, 24, &nonce.to_le_bytes());
    if let Some(t) = text {
        put(&mut w, 32, t.as_str().as_bytes());
    }
    w
}

/// Kind, words, nonce and text of a frame.
type Parts<'a> = (u32, [u32; 3], u64, &'a [u8]);

fn unframe(bytes: &[u8]) -> Result<Parts<'_>, BadMessage> {
    let (Some(magic), Some(text)) = (bytes.get(..4), bytes.get(32..BYTES)) else {
        return Err(BadMessage::NotOurs);
    };
    if bytes.len() != BYTES || magic != MAGIC {
        return Err(BadMessage::NotOurs);
    }
    let version = word32(bytes, 4);
    if version != VERSION {
        return Err(BadMessage::Version(version));
    }
    let nonce = u64::from(word32(bytes, 24)) | u64::from(word32(bytes, 28)) << 32;
    Ok((word32(bytes, 8), [word32(bytes, 12), word32(bytes, 16), word32(bytes, 20)], nonce, text))
}

impl Call {
    /// Encodes.
    #[must_use]
    pub fn to_wire(self) -> Wire {
        match self {
            Call::Hello { parent, nonce } => frame(1, [parent, 0, 0], nonce, None),
            Call::Segment { segment, side } => frame(2, [segment, side, 0], 0, None),
            Call::Report { verbose } => frame(3, [u32::from(verbose), 0, 0], 0, None),
            Call::Lease => frame(4, [0; 3], 0, None),
            Call::Relay => frame(16, [0; 3], 0, None),
            Call::Vouch => frame(17, [0; 3], 0, None),
            Call::Born { parent, nonce } => frame(18, [parent, 0, 0], nonce, None),
            Call::Admit => frame(5, [0; 3], 0, None),
            Call::Fault(Fault::Stuck { ms }) => frame(6, [0, ms, 0], 0, None),
            Call::Fault(Fault::LinkLoss) => frame(6, [1, 0, 0], 0, None),
            Call::Fault(Fault::Reset) => frame(6, [2, 0, 0], 0, None),
        }
    }

    /// Validates a datagram.
    ///
    /// # Errors
    /// [`BadMessage`] says what is wrong, in words for the refusal.
    pub fn from_wire(bytes: &[u8]) -> Result<Call, BadMessage> {
        let (kind, [a, b, _], nonce, _) = unframe(bytes)?;
        match kind {
            1 => Ok(Call::Hello { parent: a, nonce }),
            2 if b < 2 => Ok(Call::Segment { segment: a, side: b }),
            3 if a < 2 => Ok(Call::Report { verbose: a == 1 }),
            4 => Ok(Call::Lease),
            16 => Ok(Call::Relay),
            17 => Ok(Call::Vouch),
            18 => Ok(Call::Born { parent: a, nonce }),
            5 => Ok(Call::Admit),
            6 if a == 0 && b <= STUCK_MAX_MS => Ok(Call::Fault(Fault::Stuck { ms: b })),
            6 if a == 1 && b == 0 => Ok(Call::Fault(Fault::LinkLoss)),
            6 if a == 2 && b == 0 => Ok(Call::Fault(Fault::Reset)),
            _ => Err(BadMessage::Malformed),
        }
    }
}

impl Reply {
    /// Encodes.
    #[must_use]
    pub fn to_wire(self) -> Wire {
        match self {
            Reply::Welcome { function, group, epoch, pid, hosts } => {
                frame(65, [function, group, epoch], u64::from(pid) | u64::from(hosts) << 32, None)
            }
            Reply::Segment { side } => frame(66, [side, 0, 0], 0, None),
            Reply::Report => frame(67, [0; 3], 0, None),
            Reply::Leased => frame(68, [0; 3], 0, None),
            Reply::Failing => frame(70, [0; 3], 0, None),
            Reply::Relayed => frame(80, [0; 3], 0, None),
            Reply::Vouched => frame(81, [0; 3], 0, None),
            Reply::Refused(text) => frame(69, [0; 3], 0, Some(&text)),
        }
    }

    /// Validates a datagram.
    ///
    /// # Errors
    /// [`BadMessage`] says what is wrong.
    pub fn from_wire(bytes: &[u8]) -> Result<Reply, BadMessage> {
        let (kind, [a, b, c], nonce, text) = unframe(bytes)?;
        match kind {
            65 if a != 0 => {
                let pid = u32::try_from(nonce & u64::from(u32::MAX)).map_err(|_| BadMessage::Malformed)?;
                let hosts = match nonce >> 32 {
                    0 => false,
                    1 => true,
                    _ => return Err(BadMessage::Malformed),
                };
                Ok(Reply::Welcome { function: a, group: b, epoch: c, pid, hosts })
            }
            66 if a < 2 => Ok(Reply::Segment { side: a }),
            67 => Ok(Reply::Report),
            68 => Ok(Reply::Leased),
            70 => Ok(Reply::Failing),
            80 => Ok(Reply::Relayed),
            81 => Ok(Reply::Vouched),
            69 => {
                let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
                let words = text.get(..end).and_then(|t| core::str::from_utf8(t).ok()).unwrap_or("");
                Ok(Reply::Refused(Text::new(words)))
            }
            _ => Err(BadMessage::Malformed),
        }
    }
}
