//! What a process leaves for the program that it executes (SPEC 10): which of the inherited descriptors are ours.
//!
//! Written by the shim before execve(2) or posix_spawn(3) into a memfd that it seals and leaves open; read once by the shim
//! of the new program. Both run as the same user, but the reader validates all the same: any inherited descriptor can
//! be named by the environment.

use crate::VERSION;
use crate::msg::ConnId;

/// First word of an image.
pub const MAGIC: u64 = u64::from_le_bytes(*b"IPDIMAGE");
/// Arenas that an image can name.
pub const ARENAS_MAX: usize = 12;
/// Words of the head.
pub const HEAD_WORDS: usize = 32;
/// Words of an entry.
pub const ENTRY_WORDS: usize = 8;
/// Most entries.
pub const ENTRIES_MAX: usize = 1 << 16;
/// "No such descriptor".
pub const NO_FD: u32 = u32::MAX;

/// A memfd with sockets' shared state, left open for the new program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ArenaRef {
    /// Descriptor number.
    pub fd: u32,
    /// Its inode, so that another file in its place is noticed.
    pub inode: u64,
}

/// Start of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Function that announced the nonce to the coordinator; 0 if there was nothing to announce.
    pub function: u32,
    /// Nonce of its `Fork` request, or 0.
    pub nonce: u64,
    /// The leaver's socket to the agent, which keeps its function alive until the new program has taken over; or [`NO_FD`].
    pub agent: u32,
    /// Entries that follow.
    pub entries: u32,
    /// Watches that follow those.
    pub watches: u32,
    /// Data word by which the shim knows descriptors of its own in epoll sets.
    pub cookie: u64,
    /// A descriptor that is registered in each set of the leaver's, with [`Head::mark_of`] as its data word; or [`NO_FD`].
    pub mark: u32,
    /// Those with an inode of 0 are not there.
    pub arenas: [ArenaRef; ARENAS_MAX],
}

/// What kind of thing a descriptor stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EntryKind {
    /// A listener in both worlds.
    Listener = 2,
    /// A connection in user space.
    Stream = 3,
    /// A kernel pipe or socket pair that may be overlaid.
    Overlay = 5,
}

/// One thing that the leaver held, by the inode of its descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `st_ino` of the descriptor.
    pub inode: u64,
    /// The connection; of a listener, its number at the coordinator.
    pub conn: ConnId,
    /// What it is.
    pub kind: EntryKind,
    /// Our side of the connection, 0 or 1. For an [`EntryKind::Overlay`] on a pipe, whose ends have one inode: 0 reads, 1 writes.
    pub side: u32,
    /// `socket(2)` domain in the low half, type in the high half.
    pub family_type: u32,
    /// Index into [`Head::arenas`].
    pub arena: u32,
    /// Index of the shared state in its arena.
    pub sock: u32,
}

/// A registration in an epoll set that the leaver held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The leaver's number for the set, which is its lane's, too.
    pub set: u32,
    /// `st_ino` of the member; of one with [`watch::SET`], its number.
    pub member: u64,
    /// Number that the member was registered by.
    pub fd: u32,
    /// `EPOLL*` bits.
    pub events: u32,
    /// Returned with each event.
    pub data: u64,
    /// [`watch`] bits.
    pub state: u32,
}

/// Bits of [`Watch::state`].
pub mod watch {
    /// Something came that nobody was told of yet.
    pub const NEWS: u32 = 1;
    /// One-shot, and shot.
    pub const OFF: u32 = 2;
    /// The member is itself a set.
    pub const SET: u32 = 4;
}

/// Why an image is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadImage;

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}
fn hi(w: u64) -> u32 {
    (w >> 32) as u32
}
#[allow(clippy::cast_possible_truncation)] // the low half, on purpose
fn lo(w: u64) -> u32 {
    w as u32
}

impl Head {
    /// Encodes.
    #[must_use]
    pub fn to_words(self) -> [u64; HEAD_WORDS] {
        let mut words = [0; HEAD_WORDS];
        let fixed = [MAGIC, pair(VERSION, self.entries), pair(self.function, self.agent), self.nonce];
        let arenas = self.arenas.iter().flat_map(|a| [u64::from(a.fd), a.inode]);
        let last = [pair(self.watches, self.mark), self.cookie];
        for (to, from) in words.iter_mut().zip(fixed.into_iter().chain(arenas).chain(last)) {
            *to = from;
        }
        words
    }

    /// Validates.
    ///
    /// # Errors
    /// [`BadImage`]: not an image, or one of another version.
    pub fn from_words(words: &[u64; HEAD_WORDS]) -> Result<Head, BadImage> {
        let [magic, version, ids, nonce, rest @ ..] = words;
        if *magic != MAGIC || lo(*version) != VERSION || hi(*version) as usize > ENTRIES_MAX {
            return Err(BadImage);
        }
        let mut arenas = [ArenaRef::default(); ARENAS_MAX];
        for (arena, from) in arenas.iter_mut().zip(rest.chunks_exact(2)) {
            let [fd, inode] = from else { return Err(BadImage) };
            *arena = ArenaRef { fd: u32::try_from(*fd).map_err(|_| BadImage)?, inode: *inode };
        }
        let [watches, cookie, ..] = rest.get(2 * ARENAS_MAX..).unwrap_or(&[]) else { return Err(BadImage) };
        let (watches, mark, cookie) = (lo(*watches), hi(*watches), *cookie);
        if watches as usize > ENTRIES_MAX {
            return Err(BadImage);
        }
        let entries = hi(*version);
        Ok(Head {
            function: lo(*ids),
            nonce: *nonce,
            agent: hi(*ids),
            entries,
            watches,
            cookie,
            mark,
            arenas,
        })
    }

    /// The data word that [`Head::mark`] has in the set with this number.
    #[must_use]
    pub fn mark_of(cookie: u64, set: u32) -> u64 {
        cookie.wrapping_add(1 + u64::from(set))
    }
}

impl Entry {
    /// Encodes.
    #[must_use]
    pub fn to_words(self) -> [u64; ENTRY_WORDS] {
        [
            self.inode,
            self.conn.0,
            pair(self.kind as u32, self.side),
            pair(self.family_type, self.arena),
            u64::from(self.sock),
            0,
            0,
            0,
        ]
    }

    /// Validates; whether the arena and the place in it exist, the reader finds out.
    ///
    /// # Errors
    /// [`BadImage`] for an unknown kind or a field out of range.
    pub fn from_words(words: &[u64; ENTRY_WORDS]) -> Result<Entry, BadImage> {
        let [inode, conn, kind_side, family_arena, sock, ..] = *words;
        let kind = match lo(kind_side) {
            2 => EntryKind::Listener,
            3 => EntryKind::Stream,
            5 => EntryKind::Overlay,
            _ => return Err(BadImage),
        };
        if hi(kind_side) > 1 || inode == 0 || hi(family_arena) as usize >= ARENAS_MAX {
            return Err(BadImage);
        }
        Ok(Entry {
            inode,
            conn: ConnId(conn),
            kind,
            side: hi(kind_side),
            family_type: lo(family_arena),
            arena: hi(family_arena),
            sock: u32::try_from(sock).map_err(|_| BadImage)?,
        })
    }
}

impl Watch {
    /// Encodes.
    #[must_use]
    pub fn to_words(self) -> [u64; ENTRY_WORDS] {
        [self.member, self.data, pair(self.events, self.state), pair(self.set, self.fd), 0, 0, 0, 0]
    }

    /// Validates; whether the descriptors are what they are said to be, the reader finds out.
    ///
    /// # Errors
    /// [`BadImage`] for a field out of range.
    pub fn from_words(words: &[u64; ENTRY_WORDS]) -> Result<Watch, BadImage> {
        let [member, data, events_state, set_fd, ..] = *words;
        let state = hi(events_state);
        if state & !(watch::NEWS | watch::OFF | watch::SET) != 0 {
            return Err(BadImage);
        }
        Ok(Watch { set: lo(set_fd), member, fd: hi(set_fd), events: lo(events_state), data, state })
    }
}
