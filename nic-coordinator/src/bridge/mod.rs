//! The bytes of connections to other hosts: from a process's ring here into a process's ring there, and back (SPEC 4.10, 14).
//!
//! | module | what |
//! |---|---|
//! | [`segment`] | a process's segment, seen from the other side |
//! | `connection` | one connection: what is relayed, what is taken, how it ends |
//! | `writes` | which of a connection's bytes are still being sent |
//! | `link` | one endpoint: messages, gathering, room |
//!
//! On each host a process has an ordinary segment whose other side is the bridge. Slot and generation are the host's own; the
//! direction numbers, the size of the rings and the positions in them are the same on both, so bytes go to the same place of the ring
//! that the other process reads as soon as it has room there, and nothing is kept in between; room in the writer's ring is free again
//! once they are sent. The bytes go by an RMA write, or, if there are
//! few, inside of the message that would follow it; no processor but the applications' own copies more than those few.
//!
//! [`Bridge`] has no thread, never waits, and takes bounded time a [`Bridge::poll`]. All that it reads from a segment may be a lie
//! of its process, which garbles or resets that process's own connection. A link that ends resets its connections.
//!
//! # What it needs
//!
//! *From the agent:* a segment for each process group that has connections to other hosts, one for either side that the group is on,
//! made as any other (`ring::segment::format`, sealed), with the coordinator as the other side. It is mapped here with
//! [`SegmentMemory::map`], and each slot in use is registered ([`SegmentMemory::register`]).
//!
//! *From the shim:* nothing new. It leaves news in lane 0 of the bridge's side, and rings the segment's wire when that lane sleeps.
//! The coordinator therefore holds that end of the wire, adds it to what it sleeps on, and takes the rings out of it. It is
//! registered for membarrier(2), as every process that wakes others, and runs [`Outside`]'s calls: futexes and bells are in its own
//! machine with an emulated card; behind PCIe the agent has to do them, and the barrier, which knows processes of one machine only.
//!
//! *From connection set-up:* (1) [`Bridge::open`] on a host before that host's process is told of the connection: only then does the
//! process's first message see that somebody watches. (2) The number and [`fabric::memory::Region::remote`] go to the other
//! host; its own come back, and [`Bridge::join`] begins to relay. Who joins last speaks first ([`Speaker`]). (3) A process that died
//! is reported ([`Bridge::process_is_gone`], once its side has no holder), as `PeerGone` is to a local peer. (4) A slot is given to
//! another connection after [`Bridge::next_over`] said so, on this host, beside SPEC 5.4.
//!
//! *From the link's set-up:* a connected endpoint, and how many receives the other one posts ([`fabric::endpoint::Endpoint::receives`],
//! to be told in the private data). When [`Bridge::next_down`] names a link, its connections have been reset already.

mod connection;
mod link;
pub mod segment;
mod writes;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use fabric::endpoint::{Down, Endpoint};
use fabric::memory::Region;
use ring::atomic::{Ordering, fence};
use ring::link::{Item, Items, Malformed};

use connection::{Connection, Turn};
pub use connection::{Far, Speaker};
pub use link::GATHERED_BYTES;
use link::{Link, News, Received};
use segment::{Lane, View};
pub use segment::{Outside, SegmentMemory};

/// Connections that a bridge has at most.
pub const CONNECTIONS_MAX: usize = 1 << INDEX_BITS;
/// Bits of a connection's number that are its place; the rest counts the uses of that place.
const INDEX_BITS: u32 = 20;
/// Turns of connections in one poll, for each link.
const TURNS_MAX: usize = 256;
/// The look behind a heavy barrier, for all that wait for one, comes after this time.
const LATE_US: u64 = 1000;

/// Our end of a connection.
#[derive(Debug)]
pub struct Local {
    /// The process's segment.
    pub segment: Arc<SegmentMemory>,
    /// The connection's slot in it.
    pub slot: u16,
    /// The process's side.
    pub side: u32,
    /// The connection's generation in it.
    pub generation: u32,
    /// Both rings of the slot, registered.
    pub rings: Arc<Region>,
}

/// A link of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkId(usize);

/// Why a connection could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// [`CONNECTIONS_MAX`].
    #[error("the bridge has no room for more connections")]
    Full,
    /// No such slot or side.
    #[error("the segment has no such slot or side")]
    Place,
    /// Another connection is there, in this bridge's eyes.
    #[error("the slot has a connection that is not over")]
    Taken,
}

/// How a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Both processes have closed it, and the other bridge knows that, or will as long as the link lives.
    Closed,
    /// It was reset, or its link is over.
    Broken,
}

/// Why a link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkEnd {
    /// The endpoint.
    #[error(transparent)]
    Down(#[from] Down),
    /// The other bridge does not speak our language.
    #[error("the other host's bridge sends messages that are none: use one release on both hosts")]
    Malformed,
}

/// What has been counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that were reset because a process or another bridge broke the rules.
    pub violations: u64,
    /// Items about connections that there are not, or not on that link.
    pub strays: u64,
}

/// See the module.
#[derive(Default)]
pub struct Bridge {
    links: Vec<Option<Link>>,
    lanes: Vec<Lane>,
    places: Vec<Place>,
    free: Vec<u32>,
    /// Numbers of connections that get another look, behind a heavy barrier.
    later: Vec<u32>,
    later_at_us: u64,
    over: VecDeque<(u32, Over)>,
    down: VecDeque<(LinkId, LinkEnd)>,
    /// What was counted.
    pub counts: Counts,
}

#[derive(Default)]
struct Place {
    uses: u32,
    connection: Option<Connection>,
}

fn index_of(number: u32) -> usize {
    number as usize & (CONNECTIONS_MAX - 1)
}

/// The connection with that number.
fn find(places: &mut [Place], number: u32) -> Option<&mut Connection> {
    let place = places.get_mut(index_of(number)).filter(|place| place.uses == number >> INDEX_BITS)?;
    place.connection.as_mut()
}

impl Bridge {
    /// A bridge without links.
    #[must_use]
    pub fn new() -> Bridge {
        Bridge::default()
    }

    /// Adds a connected endpoint; the other one has posted `peer_receives` receives.
    pub fn add_link(&mut self, endpoint: Endpoint, peer_receives: u32) -> LinkId {
        let free = self.links.iter().position(Option::is_none);
        let id = free.unwrap_or(self.links.len());
        if free.is_none() {
            self.links.push(None);
        }
        self.links[id] = Some(Link::new(endpoint, peer_receives));
        LinkId(id)
    }

    /// Ends a link as if the other host were gone.
    pub fn remove_link(&mut self, id: LinkId, outside: &mut impl Outside) {
        self.end_link(id.0, LinkEnd::Down(Down::Ended), outside);
    }

    /// Opens our end of a connection, before our process is told of it. Its number, for the other host.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&mut self, local: Local) -> Result<u32, OpenError> {
        let Local { segment, slot, side, generation, rings } = local;
        let view = View::new(&segment, slot, side, generation).ok_or(OpenError::Place)?;
        let lane = self.lane(&segment, side).ok_or(OpenError::Place)?;
        if lane.connections.get(usize::from(slot)).is_none_or(Option::is_some) {
            return Err(OpenError::Taken);
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.places.len() < CONNECTIONS_MAX => {
                self.places.push(Place::default());
                u32::try_from(self.places.len() - 1).map_err(|_| OpenError::Full)?
            }
            None => return Err(OpenError::Full),
        };
        let place = self.places.get_mut(index as usize).ok_or(OpenError::Full)?;
        let number = place.uses << INDEX_BITS | index;
        place.connection = Some(Connection::new(number, view, rings));
        if let Some(lane) = self.lane(&segment, side) {
            lane.connections[usize::from(slot)] = Some(number);
        }
        Ok(number)
    }

    /// The lane of a segment's side, made if there is none.
    fn lane(&mut self, segment: &Arc<SegmentMemory>, side: u32) -> Option<&mut Lane> {
        let at = match self.lanes.iter().position(|lane| lane.is(segment, side)) {
            Some(at) => at,
            None => {
                self.lanes.push(Lane::new(segment, side)?);
                self.lanes.len() - 1
            }
        };
        self.lanes.get_mut(at)
    }

    /// Begins to relay: the other host's end is known. False: there is no such connection or link (any more), or it has joined.
    pub fn join(&mut self, number: u32, link: LinkId, far: Far, speaker: Speaker) -> bool {
        if self.links.get(link.0).is_none_or(Option::is_none) {
            return false;
        }
        let Some(connection) = find(&mut self.places, number).filter(|c| c.link.is_none()) else {
            return false;
        };
        connection.join(link.0, far, speaker);
        self.queue(number);
        true
    }

    /// Our process is dead, and nobody else of its side holds the connection.
    pub fn process_is_gone(&mut self, number: u32) {
        if let Some(connection) = find(&mut self.places, number) {
            connection.process_is_gone();
        }
        self.queue(number);
    }

    /// Ends a connection, as a reset at both ends.
    pub fn reset(&mut self, number: u32, outside: &mut impl Outside) {
        if let Some(connection) = find(&mut self.places, number) {
            connection.reset(outside);
        }
        self.queue(number);
    }

    /// Forgets a connection whose other end has never joined, as a reset at ours.
    pub fn forget(&mut self, number: u32, outside: &mut impl Outside) {
        if let Some(connection) = find(&mut self.places, number) {
            connection.reset(outside);
        }
        self.remove(number);
    }

    /// The next connection that is over, at both ends: its slot may be used again.
    pub fn next_over(&mut self) -> Option<(u32, Over)> {
        self.over.pop_front()
    }

    /// The next link that is over. Its connections were reset, and are over.
    pub fn next_down(&mut self) -> Option<(LinkId, LinkEnd)> {
        self.down.pop_front()
    }

    /// Connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// No connections.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One round: takes what has come from other hosts and what processes have published, and relays it. True: something was
    /// done, or is waiting for the next round. `now_us` counts from any time.
    pub fn poll(&mut self, now_us: u64, outside: &mut impl Outside) -> bool {
        let mut active = false;
        for id in 0..self.links.len() {
            active |= self.receive(id, outside);
        }
        active |= self.collect();
        if !self.later.is_empty() && now_us >= self.later_at_us {
            self.look_again(outside);
        }
        for id in 0..self.links.len() {
            active |= self.turns(id, now_us, outside);
        }
        active
    }

    /// When [`Bridge::poll`] is due, even if nothing happens.
    #[must_use]
    pub fn due_us(&self) -> Option<u64> {
        (!self.later.is_empty()).then_some(self.later_at_us)
    }

    /// Announces that the caller will sleep. True: it may, on the wires of all segments, on [`Bridge::wait_fds`], and until
    /// [`Bridge::due_us`]. False: poll.
    pub fn may_sleep(&mut self, outside: &mut impl Outside) -> bool {
        self.announce_sleep(outside);
        let mut quiet =
            !self.lanes.iter().any(Lane::has_news) && self.down.is_empty() && self.over.is_empty();
        for id in 0..self.links.len() {
            let Some(link) = self.links.get_mut(id).and_then(Option::as_mut) else { continue };
            // An event would keep the descriptor readable.
            if !matches!(link.endpoint().event(), Ok(None | Some(fabric::endpoint::Event::Connected(_)))) {
                self.end_link(id, LinkEnd::Down(Down::Ended), outside);
                quiet = false;
                continue;
            }
            quiet &= link.is_idle() && link.endpoint().may_sleep().unwrap_or(false);
        }
        quiet
    }

    /// Who leaves news from now on rings, or the next look finds them.
    fn announce_sleep(&self, outside: &mut impl Outside) {
        let announced: Vec<_> = self.lanes.iter().map(Lane::announce).collect();
        if announced.iter().flatten().all(|announced| announced.is_settled()) {
            // SeqCst: pairs with the fences of those who leave news (SPEC 6.7).
            return fence(Ordering::SeqCst);
        }
        outside.heavy_barrier();
        self.lanes.iter().zip(announced).for_each(|(lane, announced)| lane.settle(announced));
    }

    /// The links' descriptors.
    pub fn wait_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.links.iter().flatten().flat_map(Link::wait_fds)
    }

    fn receive(&mut self, id: usize, outside: &mut impl Outside) -> bool {
        let Bridge { links, places, counts, .. } = self;
        let Some(link) = links.get_mut(id).and_then(Option::as_mut) else { return false };
        let mut touched = Vec::new();
        let received = link.receive(|news| match news {
            News::Items(items) => take(items, id, places, counts, outside, &mut touched),
            News::Written(token) => {
                let (number, write) = writes::of_token(token);
                if let Some(connection) = find(places, number) {
                    connection.written(write, outside);
                    touched.extend(connection.wants_turn().then_some(number));
                }
                Ok(())
            }
        });
        for number in touched {
            self.queue(number);
        }
        match received {
            Received::Completions(count) => count > 0,
            Received::Malformed => {
                self.end_link(id, LinkEnd::Malformed, outside);
                true
            }
            Received::Down(down) => {
                self.end_link(id, LinkEnd::Down(down), outside);
                true
            }
        }
    }

    /// Gives a turn to connections whose processes have published something.
    fn collect(&mut self) -> bool {
        let Bridge { lanes, links, places, .. } = self;
        let mut any = false;
        for lane in lanes {
            lane.collect(|number| any |= queue(links, places, number));
        }
        any
    }

    fn look_again(&mut self, outside: &mut impl Outside) {
        outside.heavy_barrier();
        for number in std::mem::take(&mut self.later) {
            if let Some(connection) = find(&mut self.places, number) {
                connection.listed = false;
                self.queue(number);
            }
        }
    }

    fn turns(&mut self, id: usize, now_us: u64, outside: &mut impl Outside) -> bool {
        let mut turns = 0;
        while turns < TURNS_MAX {
            let Bridge { links, places, later, counts, .. } = self;
            let Some(link) = links.get_mut(id).and_then(Option::as_mut) else { return false };
            if link.has_written_enough() {
                break;
            }
            let Some(number) = link.ready.pop_front() else { break };
            let Some(connection) = find(places, number) else { continue };
            turns += 1;
            connection.queued = false;
            let broken = connection.broken;
            let (turn, look) = connection.turn(link, outside);
            counts.violations += u64::from(connection.broken && !broken);
            if look && !connection.listed {
                connection.listed = true;
                if later.is_empty() {
                    self.later_at_us = now_us + LATE_US;
                }
                later.push(number);
            }
            connection.queued = matches!(turn, Turn::More | Turn::Blocked);
            match turn {
                Turn::Idle if connection.is_over() => {
                    let how = if connection.broken { Over::Broken } else { Over::Closed };
                    self.end(number, how);
                }
                Turn::Idle | Turn::Waiting => {}
                Turn::More => link.ready.push_back(number),
                Turn::Blocked => {
                    link.ready.push_front(number);
                    break;
                }
            }
        }
        let Some(link) = self.links.get_mut(id).and_then(Option::as_mut) else { return false };
        link.end_turn();
        match link.down {
            Some(down) => self.end_link(id, LinkEnd::Down(down), outside),
            None => return turns > 0 || !link.is_idle(),
        }
        true
    }

    fn queue(&mut self, number: u32) {
        queue(&mut self.links, &mut self.places, number);
    }

    /// A connection is over: its number will not be used again soon, its slot may be.
    fn end(&mut self, number: u32, how: Over) {
        if self.remove(number) {
            self.over.push_back((number, how));
        }
    }

    fn remove(&mut self, number: u32) -> bool {
        let Some(connection) = find(&mut self.places, number) else { return false };
        for lane in &mut self.lanes {
            if let Some(slot) = connection.view.place_in(lane).and_then(|slot| lane.connections.get_mut(slot))
            {
                *slot = None;
            }
        }
        if let Some(place) = self.places.get_mut(index_of(number)) {
            place.connection = None;
            place.uses = (place.uses + 1) & (u32::MAX >> INDEX_BITS);
            self.free.push(number & (u32::MAX >> (32 - INDEX_BITS)));
        }
        self.lanes.retain(|lane| lane.connections.iter().any(Option::is_some));
        true
    }

    fn end_link(&mut self, id: usize, end: LinkEnd, outside: &mut impl Outside) {
        // Closed first: what it was writing has then arrived, or never will.
        if self.links.get_mut(id).and_then(Option::take).is_none() {
            return;
        }
        let mut numbers = Vec::new();
        for (index, place) in self.places.iter_mut().enumerate() {
            if let Some(connection) =
                place.connection.as_mut().filter(|connection| connection.link == Some(id))
            {
                connection.link_is_down(outside);
                numbers.extend(u32::try_from(index).map(|index| place.uses << INDEX_BITS | index));
            }
        }
        numbers.into_iter().for_each(|number| self.end(number, Over::Broken));
        self.down.push_back((LinkId(id), end));
    }
}

/// Puts a connection into the queue of its link, if it isn't there.
fn queue(links: &mut [Option<Link>], places: &mut [Place], number: u32) -> bool {
    let Some(connection) = find(places, number).filter(|connection| !connection.queued) else { return false };
    let Some(link) = connection.link.and_then(|id| links.get_mut(id)?.as_mut()) else { return false };
    connection.queued = true;
    link.ready.push_back(number);
    true
}

/// Takes the items of one message, and collects the connections that may have to answer.
fn take(
    items: Items<'_>,
    link: usize,
    places: &mut [Place],
    counts: &mut Counts,
    outside: &mut impl Outside,
    touched: &mut Vec<u32>,
) -> Result<(), Malformed> {
    for item in items {
        let Item { connection: number, body } = item?;
        let Some(connection) = find(places, number).filter(|connection| connection.link == Some(link)) else {
            counts.strays += 1;
            continue;
        };
        let wanted_turn = connection.wants_turn();
        if connection.take(&body, outside).is_err() {
            counts.violations += 1;
            connection.reset(outside);
        }
        if wanted_turn || connection.wants_turn() {
            touched.push(number);
        }
    }
    Ok(())
}
