//! Datagrams between the coordinators of different hosts (SPEC 13): UDP, sealed with a key that the hosts share.
//!
//! A datagram is an [`Envelope`], whose content is a sealed [`HostMsg`]. Sealing itself is not done here.

mod call;

pub use call::{CallKind, CallMsg, Ending, PATH_BYTES, Path, Role};

use crate::VERSION;

/// UDP port of every coordinator.
pub const UDP_PORT: u16 = 4796;
/// Bytes of an envelope in front of what is sealed. They are authenticated, but not secret.
pub const HEAD_BYTES: usize = 32;
/// Bytes that sealing adds (Poly1305's tag).
pub const TAG_BYTES: usize = 16;
/// Bytes of the key.
pub const KEY_BYTES: usize = 32;
/// Addresses in a message at most.
pub const ADDRESSES_MAX: usize = 16;
/// Bytes of a message without addresses.
pub const BODY_BYTES_MIN: usize = 40;
/// Bytes of the longest message.
pub const BODY_BYTES_MAX: usize = BODY_BYTES_MIN + 16 * ADDRESSES_MAX;
/// Bytes of the longest datagram: far below every MTU.
pub const DATAGRAM_BYTES_MAX: usize = HEAD_BYTES + BODY_BYTES_MAX + TAG_BYTES;

const _: () = assert!(DATAGRAM_BYTES_MAX <= 512 && BODY_BYTES_MIN + call::CALL_BYTES_MAX <= BODY_BYTES_MAX);
const MAGIC: [u8; 4] = *b"IPDH";
/// Where the nonce is in the head: incarnation and counter.
const NONCE_AT: usize = 8;

/// Random number of one run of a coordinator; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub [u8; 16]);

impl Incarnation {
    /// "I don't know who you are."
    pub const NOBODY: Incarnation = Incarnation([0; 16]);
}

/// What is authenticated besides the sealed message: the head, and the IPv4 address that the sender has, and that the
/// receiver sees.
#[must_use]
pub fn associated_data(head: &[u8; HEAD_BYTES], sender_address: [u8; 4]) -> [u8; HEAD_BYTES + 4] {
    let mut all = [0; HEAD_BYTES + 4];
    let mut out = Writer { bytes: &mut all, at: 0 };
    out.put(head);
    out.put(&sender_address);
    all
}

/// Not a datagram of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadDatagram;

/// What is readable of a datagram without the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Who sent it. Together with `counter` it is the nonce: no two datagrams under one key have the same.
    pub sender: Incarnation,
    /// The sender's datagrams, counted from 1.
    pub counter: u64,
    /// The message, sealed.
    pub sealed: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Validates.
    ///
    /// # Errors
    /// [`BadDatagram`]: length, magic or version are wrong, or sender or counter are 0.
    pub fn from_wire(bytes: &'a [u8]) -> Result<Envelope<'a>, BadDatagram> {
        let least = HEAD_BYTES + BODY_BYTES_MIN + TAG_BYTES;
        if !(least..=DATAGRAM_BYTES_MAX).contains(&bytes.len()) {
            return Err(BadDatagram);
        }
        let mut rest = Reader(bytes);
        let (magic, version) = (rest.array()?, u32::from_le_bytes(rest.array()?));
        let (sender, counter) = (Incarnation(rest.array()?), u64::from_le_bytes(rest.array()?));
        if magic != MAGIC || version != VERSION || sender == Incarnation::NOBODY || counter == 0 {
            return Err(BadDatagram);
        }
        Ok(Envelope { sender, counter, sealed: rest.0 })
    }

    /// The head of a datagram: what is sealed comes behind it.
    #[must_use]
    pub fn head(sender: Incarnation, counter: u64) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        let mut out = Writer { bytes: &mut head, at: 0 };
        out.put(&MAGIC);
        out.put(&VERSION.to_le_bytes());
        out.put(&sender.0);
        out.put(&counter.to_le_bytes());
        head
    }

    /// The nonce in a head.
    #[must_use]
    pub fn nonce(head: &[u8; HEAD_BYTES]) -> [u8; HEAD_BYTES - NONCE_AT] {
        let mut nonce = [0; HEAD_BYTES - NONCE_AT];
        for (to, from) in nonce.iter_mut().zip(head.iter().skip(NONCE_AT)) {
            *to = *from;
        }
        nonce
    }
}

/// IP addresses, IPv4 ones as `::ffff:a.b.c.d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    count: u16,
    list: [[u8; 16]; ADDRESSES_MAX],
}

impl Addresses {
    /// None.
    pub const NONE: Addresses = Addresses { count: 0, list: [[0; 16]; ADDRESSES_MAX] };

    /// Adds one. False: there is no room.
    pub fn push(&mut self, address: [u8; 16]) -> bool {
        match self.list.get_mut(usize::from(self.count)) {
            Some(place) => {
                *place = address;
                self.count += 1;
                true
            }
            None => false,
        }
    }

    /// All of them.
    #[must_use]
    pub fn as_slice(&self) -> &[[u8; 16]] {
        self.list.get(..usize::from(self.count)).unwrap_or_default()
    }
}

/// Whom a message is for. Only one that quotes the receiver's own incarnation and the ticket that it has given to this
/// sender says something new: any other may be old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// The receiver, as far as the sender knows.
    pub to: Incarnation,
    /// The ticket that the sender has of the receiver; 0 without.
    pub quote: u64,
    /// The ticket that the receiver is to quote.
    pub ticket: u64,
}

/// A message between two coordinators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // On the stack, and without memory to allocate.
pub enum HostMsg {
    /// "I am here": first contact, answer, and sign of life alike.
    Hello {
        /// Whom it is for.
        label: Label,
        /// Epoch of the sender's coordinator, as its processes see it.
        epoch: u32,
        /// Addresses that reach the sender's host.
        addresses: Addresses,
    },
    /// "I am going": connections to the sender's host have ended.
    Bye {
        /// Whom it is for.
        label: Label,
        /// As for `Hello`.
        epoch: u32,
    },
    /// About one connection.
    Call {
        /// Whom it is for.
        label: Label,
        /// As for `Hello`.
        epoch: u32,
        /// What.
        call: CallMsg,
    },
}

impl HostMsg {
    /// Encodes: the bytes and how many of them count.
    #[must_use]
    pub fn to_wire(self) -> ([u8; BODY_BYTES_MAX], usize) {
        let (kind, label, epoch, addresses) = match self {
            HostMsg::Hello { label, epoch, addresses } => (1u16, label, epoch, addresses),
            HostMsg::Bye { label, epoch } => (2, label, epoch, Addresses::NONE),
            HostMsg::Call { label, epoch, call } => (call.kind_number(), label, epoch, Addresses::NONE),
        };
        let mut bytes = [0; BODY_BYTES_MAX];
        let mut out = Writer { bytes: &mut bytes, at: 0 };
        out.put(&kind.to_le_bytes());
        out.put(&addresses.count.to_le_bytes());
        out.put(&epoch.to_le_bytes());
        out.put(&label.to.0);
        out.put(&label.quote.to_le_bytes());
        out.put(&label.ticket.to_le_bytes());
        for address in addresses.as_slice() {
            out.put(address);
        }
        if let HostMsg::Call { call, .. } = self {
            call.put(&mut out);
        }
        let length = out.at;
        (bytes, length)
    }

    /// Validates.
    ///
    /// # Errors
    /// [`BadDatagram`] for anything that `to_wire` does not make.
    pub fn from_wire(bytes: &[u8]) -> Result<HostMsg, BadDatagram> {
        let mut rest = Reader(bytes);
        let (kind, count) = (u16::from_le_bytes(rest.array()?), u16::from_le_bytes(rest.array()?));
        let (epoch, to) = (u32::from_le_bytes(rest.array()?), Incarnation(rest.array()?));
        let (quote, ticket) = (u64::from_le_bytes(rest.array()?), u64::from_le_bytes(rest.array()?));
        let label = Label { to, quote, ticket };
        if kind > 2 && count == 0 {
            let call = CallMsg::take(kind, &mut rest)?;
            return if rest.0.is_empty() {
                Ok(HostMsg::Call { label, epoch, call })
            } else {
                Err(BadDatagram)
            };
        }
        let mut addresses = Addresses::NONE;
        for _ in 0..count {
            if !addresses.push(rest.array()?) {
                return Err(BadDatagram);
            }
        }
        if !rest.0.is_empty() {
            return Err(BadDatagram);
        }
        match kind {
            1 => Ok(HostMsg::Hello { label, epoch, addresses }),
            2 if count == 0 => Ok(HostMsg::Bye { label, epoch }),
            _ => Err(BadDatagram),
        }
    }
}

/// Takes arrays off the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadDatagram> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or(BadDatagram)?;
        self.0 = rest;
        Ok(*first)
    }
}

/// Puts bytes behind each other; what does not fit is left out, which the sizes above exclude.
struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, more: &[u8]) {
        for byte in more {
            if let Some(place) = self.bytes.get_mut(self.at) {
                *place = *byte;
                self.at += 1;
            }
        }
    }
}
