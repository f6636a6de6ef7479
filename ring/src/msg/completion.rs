//! What the card says to a host (SPEC 3).

use super::{Addr, ConnId, Malformed, Status, hi, lo, pair, port};
use crate::window::Raw;

/// Card to host. Answers repeat the request's token; the rest are announcements (token 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Carries nothing but the credit.
    Credit,
    /// Answer to `Listen`, `Offer` and `Attach`.
    Done {
        /// Outcome.
        status: Status,
        /// Listener number.
        value: u32,
    },
    /// Answer to `Connect`.
    Connected {
        /// Outcome; the rest counts only when `Ok`.
        status: Status,
        /// The client's side of it (side 0).
        conn: ConnId,
    },
    /// Answer to `Accept`.
    Accepted {
        /// `Ok`, `Empty`, or an error.
        status: Status,
        /// The server's side of it (side 1).
        conn: ConnId,
        /// The client.
        peer: Addr,
        /// The address that the client connected to.
        local: Addr,
        /// More wait in the queue.
        more: bool,
    },
    /// A connection arrived in a listener's queue, or (`waiting` false) others have emptied it.
    Ready {
        /// Which listener.
        listener: u32,
        /// Something is there to accept.
        waiting: bool,
    },
    /// All holders of the other side are gone, or the listener that should have accepted is.
    PeerGone {
        /// Which connection.
        conn: ConnId,
        /// As a reset, whatever was read (the listener was closed).
        reset: bool,
    },
    /// A relative has shut down a direction of a connection (`Shut`).
    Shut {
        /// Which connection.
        conn: ConnId,
        /// Which side of it, 0 or 1: a process may hold both.
        side: u32,
    },
    /// This process may open a connection (`Open`), until it is told that the other side is gone.
    Granted {
        /// Which.
        conn: ConnId,
        /// Where to.
        dst: Addr,
    },
    /// Answer to `Claim`.
    Claimed {
        /// `Ok`, `Empty` (not offered, or not yet), or why not.
        status: Status,
        /// The claimer's side of it (side 1).
        conn: ConnId,
    },
    /// An offer was claimed: the offerer holds side 0 of this connection now.
    Paired {
        /// Which offer.
        serial: u32,
        /// The connection.
        conn: ConnId,
    },
    /// Agent only: make the memory of a segment for two groups. Answered by `SegmentMade`.
    MakeSegment {
        /// Number to give it.
        segment: u32,
        /// Side 0, the clients.
        client_group: u32,
        /// Side 1, the servers.
        server_group: u32,
    },
    /// Agent only: no connection uses the segment and one of its groups is gone.
    DropSegment {
        /// Which.
        segment: u32,
    },
}

impl Completion {
    /// Encodes with the `token` of the request that it answers (0 for announcements).
    #[must_use]
    pub fn to_raw(self, token: u32) -> Raw {
        let (kind, status, body): (u8, Status, [u64; 6]) = match self {
            Completion::Credit => (64, Status::Ok, [0; 6]),
            Completion::Done { status, value } => (65, status, [u64::from(value), 0, 0, 0, 0, 0]),
            Completion::Connected { status, conn } => (66, status, [conn.0, 0, 0, 0, 0, 0]),
            Completion::Accepted { status, conn, peer, local, more } => {
                let ([a, b], [c, d]) = (peer.words(), local.words());
                let ports = u32::from(peer.port) | u32::from(local.port) << 16;
                (67, status, [conn.0, a, b, c, d, pair(ports, u32::from(more))])
            }
            Completion::Ready { listener, waiting } => {
                (68, Status::Ok, [pair(listener, u32::from(waiting)), 0, 0, 0, 0, 0])
            }
            Completion::PeerGone { conn, reset } => (69, Status::Ok, [conn.0, u64::from(reset), 0, 0, 0, 0]),
            Completion::Shut { conn, side } => (72, Status::Ok, [conn.0, u64::from(side), 0, 0, 0, 0]),
            Completion::Granted { conn, dst } => {
                let [a, b] = dst.words();
                (73, Status::Ok, [conn.0, a, b, u64::from(dst.port), 0, 0])
            }
            Completion::Claimed { status, conn } => (70, status, [conn.0, 0, 0, 0, 0, 0]),
            Completion::Paired { serial, conn } => (71, Status::Ok, [u64::from(serial), conn.0, 0, 0, 0, 0]),
            Completion::MakeSegment { segment, client_group, server_group } => {
                (96, Status::Ok, [u64::from(segment), pair(client_group, server_group), 0, 0, 0, 0])
            }
            Completion::DropSegment { segment } => (97, Status::Ok, [u64::from(segment), 0, 0, 0, 0, 0]),
        };
        Raw { kind, status: status as u16, token, body }
    }

    /// Validates the shape of an entry.
    ///
    /// # Errors
    /// [`Malformed`] for an unknown kind or a field out of range.
    pub fn from_raw(raw: &Raw) -> Result<Completion, Malformed> {
        let status = Status::from_wire(raw.status).ok_or(Malformed)?;
        let [a, b, c, d, e, f] = raw.body;
        Ok(match raw.kind {
            64 => Completion::Credit,
            65 => Completion::Done { status, value: u32::try_from(a).map_err(|_| Malformed)? },
            66 => Completion::Connected { status, conn: ConnId(a) },
            67 => Completion::Accepted {
                status,
                conn: ConnId(a),
                peer: Addr::from_words(b, c, port(f & 0xffff)?),
                local: Addr::from_words(d, e, port(f >> 16 & 0xffff)?),
                more: hi(f) != 0,
            },
            68 => Completion::Ready { listener: lo(a), waiting: hi(a) != 0 },
            69 => Completion::PeerGone { conn: ConnId(a), reset: b != 0 },
            70 => Completion::Claimed { status, conn: ConnId(a) },
            71 => Completion::Paired { serial: u32::try_from(a).map_err(|_| Malformed)?, conn: ConnId(b) },
            72 if b < 2 => Completion::Shut { conn: ConnId(a), side: lo(b) },
            73 => Completion::Granted { conn: ConnId(a), dst: Addr::from_words(b, c, port(d)?) },
            96 => Completion::MakeSegment {
                segment: u32::try_from(a).map_err(|_| Malformed)?,
                client_group: lo(b),
                server_group: hi(b),
            },
            97 => Completion::DropSegment { segment: u32::try_from(a).map_err(|_| Malformed)? },
            _ => return Err(Malformed),
        })
    }

    /// True for news that must reach a process whose threads all sleep on data (interrupt vector 1).
    #[must_use]
    pub fn is_event(&self) -> bool {
        matches!(self, Completion::PeerGone { .. })
    }
}
