//! Messages about one connection between two hosts (SPEC 13.9 to 13.12).

use super::{BadDatagram, Reader, Writer};
use crate::msg::{Addr, Status};

/// Bytes that the two data paths tell each other; what they mean is theirs.
pub const PATH_BYTES: usize = 64;

/// What one host's data path tells the other's about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path(pub [u8; PATH_BYTES]);

impl Default for Path {
    fn default() -> Self {
        Path([0; PATH_BYTES])
    }
}

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Role {
    /// The client's host.
    Caller = 0,
    /// The server's.
    Callee = 1,
}

impl Role {
    fn from_wire(v: u16) -> Result<Role, BadDatagram> {
        [Role::Caller, Role::Callee].into_iter().find(|role| *role as u16 == v).ok_or(BadDatagram)
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Role {
        match self {
            Role::Caller => Role::Callee,
            Role::Callee => Role::Caller,
        }
    }
}

/// How one end of a connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Ending {
    /// The stream says so itself.
    Marked = 0,
    /// It was given up.
    Unmarked = 1,
    /// Nobody ever accepted it.
    Refused = 2,
}

impl Ending {
    fn from_wire(v: u16) -> Result<Ending, BadDatagram> {
        let all = [Ending::Marked, Ending::Unmarked, Ending::Refused];
        all.into_iter().find(|ending| *ending as u16 == v).ok_or(BadDatagram)
    }
}

/// What is said about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// Caller: I want this connection.
    Connect {
        /// Where to.
        dst: Addr,
        /// Who the client is.
        src: Addr,
        /// Of the caller's data path.
        path: Path,
    },
    /// Callee: it is made.
    Accepted {
        /// Of the callee's data path.
        path: Path,
    },
    /// Callee: it is not.
    Refused {
        /// Why.
        status: Status,
    },
    /// The end of the sender is closed.
    Close {
        /// Which end that is.
        role: Role,
        /// How.
        ending: Ending,
    },
    /// I know that your end is closed.
    Closed {
        /// Which end the *receiver* is.
        role: Role,
        /// There is nothing of it here.
        over: bool,
    },
}

/// A message about one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallMsg {
    /// The caller's number for it, never used again in its run.
    pub number: u64,
    /// The sender will not speak again of calls of its own to the receiver that have lower numbers.
    pub settled: u64,
    /// What is said.
    pub kind: CallKind,
}

/// Bytes of the longest one.
pub(super) const CALL_BYTES_MAX: usize = 16 + 40 + PATH_BYTES;

impl CallMsg {
    /// Which number the message has.
    pub(super) fn kind_number(&self) -> u16 {
        match self.kind {
            CallKind::Connect { .. } => 3,
            CallKind::Accepted { .. } => 4,
            CallKind::Refused { .. } => 5,
            CallKind::Close { .. } => 6,
            CallKind::Closed { .. } => 7,
        }
    }

    pub(super) fn put(&self, out: &mut Writer<'_>) {
        out.put(&self.number.to_le_bytes());
        out.put(&self.settled.to_le_bytes());
        match &self.kind {
            CallKind::Connect { dst, src, path } => {
                for addr in [dst, src] {
                    out.put(&addr.ip);
                    out.put(&u32::from(addr.port).to_le_bytes());
                }
                out.put(&path.0);
            }
            CallKind::Accepted { path } => out.put(&path.0),
            CallKind::Refused { status } => out.put(&(*status as u64).to_le_bytes()),
            CallKind::Close { role, ending } => put_pair(out, *role as u16, *ending as u16),
            CallKind::Closed { role, over } => put_pair(out, *role as u16, u16::from(*over)),
        }
    }

    pub(super) fn take(kind: u16, rest: &mut Reader<'_>) -> Result<CallMsg, BadDatagram> {
        let (number, settled) = (u64::from_le_bytes(rest.array()?), u64::from_le_bytes(rest.array()?));
        let kind = match kind {
            3 => {
                let (dst, src) = (take_addr(rest)?, take_addr(rest)?);
                CallKind::Connect { dst, src, path: Path(rest.array()?) }
            }
            4 => CallKind::Accepted { path: Path(rest.array()?) },
            5 => {
                let status =
                    u16::try_from(u64::from_le_bytes(rest.array()?)).ok().and_then(Status::from_wire);
                let status = status.filter(|status| *status != Status::Ok).ok_or(BadDatagram)?;
                CallKind::Refused { status }
            }
            6 => {
                let (role, ending) = take_pair(rest)?;
                CallKind::Close { role: Role::from_wire(role)?, ending: Ending::from_wire(ending)? }
            }
            7 => {
                let (role, over) = take_pair(rest)?;
                CallKind::Closed { role: Role::from_wire(role)?, over: flag(over)? }
            }
            _ => return Err(BadDatagram),
        };
        if number == 0 {
            return Err(BadDatagram);
        }
        Ok(CallMsg { number, settled, kind })
    }
}

fn flag(v: u16) -> Result<bool, BadDatagram> {
    match v {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(BadDatagram),
    }
}

/// Two numbers and four bytes of zero.
fn put_pair(out: &mut Writer<'_>, first: u16, second: u16) {
    out.put(&first.to_le_bytes());
    out.put(&second.to_le_bytes());
    out.put(&[0; 4]);
}

fn take_pair(rest: &mut Reader<'_>) -> Result<(u16, u16), BadDatagram> {
    let (first, second) = (u16::from_le_bytes(rest.array()?), u16::from_le_bytes(rest.array()?));
    if rest.array()? != [0; 4] {
        return Err(BadDatagram);
    }
    Ok((first, second))
}

fn take_addr(rest: &mut Reader<'_>) -> Result<Addr, BadDatagram> {
    let (ip, port) = (rest.array()?, u32::from_le_bytes(rest.array()?));
    Ok(Addr { ip, port: u16::try_from(port).map_err(|_| BadDatagram)? })
}
