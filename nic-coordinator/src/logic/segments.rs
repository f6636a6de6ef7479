//! Segments (memory that two groups share), their slots, and the connections in the slots.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ring::msg::{Addr, Completion, ConnId};
use ring::segment::SLOTS;

use super::functions::{CLIENT, Holder, SERVER, Side};
use crate::hosts::calls::CallId;

/// How a side was closed, and so what the other one is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The end is marked in the stream: nothing.
    Marked,
    /// Without a mark: gone.
    Unmarked,
    /// Nobody ever accepted: gone, as a reset.
    Refused,
}

/// A connection: occupies one slot until both sides are closed.
#[derive(Debug)]
pub struct Conn {
    /// Who holds each side.
    pub holders: [Vec<Holder>; 2],
    /// The client's address.
    pub client: Addr,
    /// The address it connected to.
    pub server: Addr,
    /// The listener it came to; 0: none.
    pub listener: u32,
    /// It is in that listener's queue: the server's side is not closed although nobody holds it.
    pub queued: bool,
    /// How each side was closed, if it is.
    pub ends: [Option<End>; 2],
    /// The end that is on another host, if one is, and what it is called.
    pub remote: Option<(CallId, Side)>,
    /// Whether its memory is in use beyond its two ends.
    pub lingers: Lingers,
}

/// How a connection's memory is in use beyond its ends: by what moves the bytes to and from another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lingers {
    /// It is not.
    No,
    /// It is.
    Yes,
    /// It is, and will not be soon: that was asked for.
    Ending,
}

impl Conn {
    /// True if nobody holds this side any more, nor ever will.
    #[must_use]
    pub fn closed(&self, side: Side) -> bool {
        self.holders.get(side).is_none_or(Vec::is_empty) && !(side == SERVER && self.queued)
    }

    /// True if nobody holds it any more.
    #[must_use]
    pub fn is_released(&self) -> bool {
        self.closed(CLIENT) && self.closed(SERVER)
    }

    /// What the holders of the other side have to be told of this side's end. `id` is this connection's.
    #[must_use]
    pub fn news_of(&self, side: Side, id: ConnId) -> Option<Completion> {
        match self.ends.get(side).copied().flatten()? {
            End::Marked => None,
            End::Unmarked => Some(Completion::PeerGone { conn: id, reset: false }),
            End::Refused => Some(Completion::PeerGone { conn: id, reset: true }),
        }
    }

    /// The functions that hold this side.
    pub fn functions(&self, side: Side) -> impl Iterator<Item = u32> {
        self.holders.get(side).into_iter().flatten().filter_map(Holder::function)
    }
}

/// Who asks for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A process.
    Process {
        /// Which.
        function: u32,
        /// Token of its request.
        token: u32,
    },
    /// Another host.
    Remote(CallId),
}

/// A `Connect` or `Claim` that waits for its segment to be made.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Whose.
    pub asker: Asker,
    /// What for.
    pub wanted: Wanted,
}

/// What a process waits for.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    /// A connection to another host.
    Call {
        /// The client's address.
        client: Addr,
        /// Where to.
        server: Addr,
    },
    /// A connection to a listener.
    Connect {
        /// The listener that was found.
        listener: u32,
        /// The client's address.
        client: Addr,
        /// Where to.
        server: Addr,
    },
    /// One that was offered.
    Claim {
        /// By whom.
        offerer: u32,
        /// Under which number.
        serial: u32,
        /// [`super::claims::Offer::id`].
        id: u64,
    },
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    conn: Option<Conn>,
}

/// One segment.
#[derive(Debug)]
struct Segment {
    groups: [u32; 2],
    /// `Some` until the agent has made the memory. No longer than there are slots.
    waiting: Option<VecDeque<Waiting>>,
    slots: Vec<Slot>,
    /// Slots that were used and are free: the last one freed comes first, its memory is touched already.
    free: Vec<u16>,
    used: u16,
    /// One of its groups is gone: no new connections, and it goes with the last one.
    orphaned: bool,
}

impl Segment {
    fn has_space(&self) -> bool {
        self.waiting.as_ref().map_or(usize::from(self.used), VecDeque::len) < usize::from(SLOTS)
    }
}

/// All segments.
#[derive(Debug, Default)]
pub struct Segments {
    by_id: BTreeMap<u32, Segment>,
    by_groups: BTreeMap<[u32; 2], Vec<u32>>,
    by_group: BTreeMap<u32, BTreeSet<u32>>,
    /// Those that the agent still makes.
    making: BTreeSet<u32>,
    last_id: u32,
    conns: usize,
}

/// Where a new connection of two groups can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// A segment with a free slot.
    Ready(u32),
    /// A segment that is being made and has a free slot.
    Making(u32),
    /// Nowhere; so many segments of the two groups are full.
    Full(usize),
}

impl Segments {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// True when there are none, and nothing refers to any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
            && self.by_groups.is_empty()
            && self.by_group.is_empty()
            && self.making.is_empty()
            && self.conns == 0
    }

    /// How many connections there are.
    #[must_use]
    pub fn conns(&self) -> usize {
        self.conns
    }

    /// Looks for a free slot for a connection from `client` to `server` (groups).
    #[must_use]
    pub fn room(&self, client: u32, server: u32) -> Room {
        let Some(ids) = self.by_groups.get(&[client, server]) else { return Room::Full(0) };
        for id in ids {
            match self.by_id.get(id) {
                Some(segment) if segment.has_space() && segment.waiting.is_none() => return Room::Ready(*id),
                Some(segment) if segment.has_space() => return Room::Making(*id),
                _ => {}
            }
        }
        Room::Full(ids.len())
    }

    /// Enters a segment that the agent is to make, and returns its number: never 0, and not used again before all
    /// other numbers were, so that nobody takes old memory for it.
    pub fn make(&mut self, client: u32, server: u32) -> u32 {
        loop {
            self.last_id = (self.last_id + 1) & ConnId::SEGMENT_MAX;
            if self.last_id != 0 && !self.by_id.contains_key(&self.last_id) {
                break;
            }
        }
        let id = self.last_id;
        let segment = Segment {
            groups: [client, server],
            waiting: Some(VecDeque::new()),
            slots: Vec::new(),
            free: Vec::new(),
            used: 0,
            orphaned: false,
        };
        self.by_id.insert(id, segment);
        self.by_groups.entry([client, server]).or_default().push(id);
        for group in [client, server] {
            self.by_group.entry(group).or_default().insert(id);
        }
        self.making.insert(id);
        id
    }

    /// Lets a connect wait for a segment that is being made. False if it is not, or has no space.
    pub fn wait(&mut self, id: u32, waiting: Waiting) -> bool {
        match self.by_id.get_mut(&id) {
            Some(Segment { waiting: Some(queue), .. }) if queue.len() < usize::from(SLOTS) => {
                queue.push_back(waiting);
                true
            }
            _ => false,
        }
    }

    /// The segment is made: who waited for it. `None` if nobody asked for it.
    pub fn made(&mut self, id: u32) -> Option<VecDeque<Waiting>> {
        let waiting = self.by_id.get_mut(&id)?.waiting.take()?;
        self.making.remove(&id);
        Some(waiting)
    }

    /// Removes what some asker waits for.
    pub fn forget_waiting(&mut self, is_gone: impl Fn(&Asker) -> bool) {
        for id in &self.making {
            if let Some(Segment { waiting: Some(queue), .. }) = self.by_id.get_mut(id) {
                queue.retain(|w| !is_gone(&w.asker));
            }
        }
    }

    /// Puts a connection into a free slot. `None` if the segment has none.
    pub fn open(&mut self, id: u32, conn: Conn) -> Option<ConnId> {
        let segment = self.by_id.get_mut(&id)?;
        if segment.waiting.is_some() {
            return None;
        }
        let number = match segment.free.pop() {
            Some(number) => number,
            None => {
                let number = u16::try_from(segment.slots.len()).ok().filter(|n| *n < SLOTS)?;
                segment.slots.push(Slot::default());
                number
            }
        };
        let slot = segment.slots.get_mut(usize::from(number))?;
        // 24 bits, and never 0: a reader takes an untouched slot for one of no generation.
        slot.generation = match (slot.generation + 1) & 0xff_ffff {
            0 => 1,
            generation => generation,
        };
        slot.conn = Some(conn);
        segment.used += 1;
        self.conns += 1;
        Some(ConnId::new(id, number, slot.generation))
    }

    fn slot_mut(&mut self, conn: ConnId) -> Option<&mut Slot> {
        let slot = self.by_id.get_mut(&conn.segment())?.slots.get_mut(usize::from(conn.slot()))?;
        (slot.generation == conn.generation()).then_some(slot)
    }

    /// The connection, if this very one is open.
    #[must_use]
    pub fn get(&self, conn: ConnId) -> Option<&Conn> {
        let slot = self.by_id.get(&conn.segment())?.slots.get(usize::from(conn.slot()))?;
        slot.conn.as_ref().filter(|_| slot.generation == conn.generation())
    }

    /// As [`Segments::get`], to change it.
    pub fn get_mut(&mut self, conn: ConnId) -> Option<&mut Conn> {
        self.slot_mut(conn)?.conn.as_mut()
    }

    /// The connections in a segment.
    pub fn in_segment(&self, id: u32) -> impl Iterator<Item = (ConnId, &Conn)> {
        let slots = self.by_id.get(&id).into_iter().flat_map(|segment| &segment.slots);
        (0..).zip(slots).filter_map(move |(number, slot)| {
            Some((ConnId::new(id, number, slot.generation), slot.conn.as_ref()?))
        })
    }

    /// Frees the slot of a connection whose sides are both closed, and returns what was in it.
    pub fn free_if_closed(&mut self, conn: ConnId) -> Option<Conn> {
        let slot = self.slot_mut(conn)?;
        let freed = slot.conn.take_if(|c| c.is_released() && c.lingers == Lingers::No)?;
        if let Some(segment) = self.by_id.get_mut(&conn.segment()) {
            segment.free.push(conn.slot());
            segment.used -= 1;
            self.conns -= 1;
        }
        Some(freed)
    }

    /// A group is gone: its segments get no more connections, not even if the number of the group is used again.
    /// Returns them.
    pub fn orphan(&mut self, group: u32) -> Vec<u32> {
        let ids: Vec<u32> = self.by_group.remove(&group).into_iter().flatten().collect();
        for id in &ids {
            if let Some(segment) = self.by_id.get_mut(id) {
                segment.orphaned = true;
                let groups = segment.groups;
                self.unlist(*id, groups);
            }
        }
        ids
    }

    /// True for a segment that has lost a group and its last connection, and that the agent does not still make.
    #[must_use]
    pub fn droppable(&self, id: u32) -> bool {
        self.by_id.get(&id).is_some_and(|s| s.orphaned && s.used == 0 && s.waiting.is_none())
    }

    fn unlist(&mut self, id: u32, groups: [u32; 2]) {
        if let Some(ids) = self.by_groups.get_mut(&groups) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_groups.remove(&groups);
            }
        }
    }

    /// Takes a segment out of all tables. Returns its groups.
    pub fn remove(&mut self, id: u32) -> Option<[u32; 2]> {
        let segment = self.by_id.remove(&id)?;
        self.making.remove(&id);
        self.conns -= usize::from(segment.used);
        self.unlist(id, segment.groups);
        for group in segment.groups {
            if let Some(ids) = self.by_group.get_mut(&group) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_group.remove(&group);
                }
            }
        }
        Some(segment.groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conn() -> Conn {
        Conn {
            holders: [vec![Holder::Function(1)], vec![]],
            client: Addr::default(),
            server: Addr::default(),
            listener: 1,
            queued: false,
            ends: [None; 2],
            remote: None,
            lingers: Lingers::No,
        }
    }

    #[test]
    fn a_slot_comes_back_with_another_generation() {
        let mut all = Segments::default();
        let id = all.make(1, 2);
        assert_eq!((all.room(1, 2), all.room(2, 1)), (Room::Making(id), Room::Full(0)));
        assert!(all.open(id, conn()).is_none(), "not made yet");
        assert!(all.made(id).is_some() && all.made(id).is_none());
        let first = all.open(id, conn()).unwrap();
        assert_eq!(all.get(first).map(|c| c.closed(CLIENT)), Some(false));
        all.free_if_closed(first);
        assert!(all.get(first).is_some(), "still held");
        all.get_mut(first).unwrap().holders[CLIENT].clear();
        all.free_if_closed(first);
        assert!(all.get(first).is_none());
        let second = all.open(id, conn()).unwrap();
        assert_eq!((second.segment(), second.slot()), (first.segment(), first.slot()));
        assert_ne!(second.generation(), first.generation());
        assert!(all.get(first).is_none() && all.get_mut(first).is_none());
    }

    #[test]
    fn the_generation_skips_0_when_it_wraps() {
        let mut all = Segments::default();
        let id = all.make(1, 2);
        all.made(id);
        let first = all.open(id, conn()).unwrap();
        let slot = all.slot_mut(first).unwrap();
        slot.generation = 0xff_ffff;
        slot.conn.as_mut().unwrap().holders[CLIENT].clear();
        all.free_if_closed(ConnId::new(id, first.slot(), 0xff_ffff));
        assert_eq!(all.open(id, conn()).unwrap().generation(), 1);
    }

    #[test]
    fn a_segment_has_so_many_slots_and_all_differ() {
        let mut all = Segments::default();
        let id = all.make(1, 2);
        all.made(id);
        let ids: BTreeSet<_> = std::iter::from_fn(|| all.open(id, conn())).collect();
        assert_eq!(ids.len(), usize::from(SLOTS));
        assert_eq!(all.room(1, 2), Room::Full(1));
        all.remove(id);
        assert!(all.is_empty());
    }
}
