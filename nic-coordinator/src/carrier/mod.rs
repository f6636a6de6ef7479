//! The data path between hosts, as connection set-up sees it ([`DataPath`]): segments, links, and a bridge that moves the bytes.
//!
//! | module | what |
//! |---|---|
//! | `links` | links to other hosts' bridges |
//! | `here` | waking processes of this machine |

mod here;
mod links;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use fabric::errno::FiError;
use fabric::listener::ListenError;
use fabric::memory::Remote;
use fabric::provider::{Fabric, OpenError};
use ring::bus::SEGMENT_FDS;
use ring::hosts::{Ending, Path, Role};
use ring::link::{Contact, Token};
use ring::msg::{ConnId, Status};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::bridge::{Bridge, Far, LinkId, Local, Over, SegmentMemory, Speaker};
use crate::exchange::{DataPath, Reach};
use crate::logic::segments::End;
use crate::mapping::MapError;
use crate::sleep::NoMembarrier;
use here::Here;
use links::{Asker, Links, News, Party, State};

/// Why there is no data path.
#[derive(Debug, thiserror::Error)]
pub enum CarrierError {
    /// The provider.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Nobody could connect.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// libfabric refused.
    #[error("libfabric refused the data path between hosts: {0}")]
    Fabric(FiError),
    /// No barrier.
    #[error(transparent)]
    Barrier(#[from] NoMembarrier),
    /// The kernel refused.
    #[error("the kernel refused the data path between hosts: {0}")]
    Kernel(Errno),
}

/// What an event is about: what libfabric waits for. Else it is a segment's wire, by the segment's number.
const FABRIC: u64 = u64::MAX;
/// Events that are taken at once; there may be more.
const EVENTS_MAX: usize = 64;
/// More rings than a wire has room for.
const RINGS_MAX: usize = 4096;

/// Our end of one connection, from its preparation on.
struct Held {
    number: u32,
    ours: Role,
    joined: bool,
    /// Nobody touches its memory any more.
    over: bool,
    /// The logic has no use for it any more.
    released: bool,
}

/// See the module.
pub struct Carrier {
    bridge: Bridge,
    here: Here,
    links: Links,
    segments: BTreeMap<u32, Arc<SegmentMemory>>,
    ends: BTreeMap<ConnId, Held>,
    by_number: BTreeMap<u32, ConnId>,
    /// Connections whose link is being set up.
    joining: Vec<(ConnId, Contact)>,
    /// Connections that both processes have closed, and those whose memory nobody touches any more.
    ended: VecDeque<ConnId>,
    over: VecDeque<ConnId>,
    /// What a sleeper waits on: wires, by their edges, and what libfabric has.
    watched: OwnedFd,
}

impl Carrier {
    /// Opens libfabric's `provider` at `address` of this machine. `card`: the address of our port, by which the other hosts' coordinators
    /// know us. `token`: random.
    ///
    /// # Errors
    /// [`CarrierError`], a sentence.
    pub fn open(
        provider: &str,
        address: IpAddr,
        card: Ipv4Addr,
        token: [u8; 16],
    ) -> Result<Carrier, CarrierError> {
        let links = Links::new(Fabric::open(provider, address)?, card, Token(token))?;
        let watched = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(CarrierError::Kernel)?;
        let here = Here::new()?;
        let (bridge, segments, ends, by_number, joining, ended, over) = Default::default();
        let carrier =
            Carrier { bridge, here, links, segments, ends, by_number, joining, ended, over, watched };
        carrier.links.wait_fd().into_iter().for_each(|fd| carrier.watch(fd, FABRIC, epoll::EventFlags::IN));
        Ok(carrier)
    }

    /// A segment from the agent: its memory, and our end of its wire.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn add_segment(&mut self, number: u32, fds: Vec<OwnedFd>) -> Result<(), MapError> {
        let fds: [OwnedFd; SEGMENT_FDS] =
            fds.try_into().map_err(|_| MapError::Header("set of descriptors"))?;
        let [memory, wire] = fds;
        let memory = SegmentMemory::map(&memory)?;
        if memory.number() != number || self.segments.contains_key(&number) {
            return Err(MapError::Header("segment"));
        }
        // By edges: one that is hung up would be readable for ever.
        self.watch(wire.as_fd(), number.into(), epoll::EventFlags::IN | epoll::EventFlags::ET);
        self.segments.insert(number, memory);
        self.here.wires.insert(number, wire);
        Ok(())
    }

    fn watch(&self, fd: BorrowedFd<'_>, what: u64, events: epoll::EventFlags) {
        match epoll::add(&self.watched, fd, epoll::EventData::new_u64(what), events) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => tracing::error!("a descriptor can't be watched: {error}"),
        }
    }

    /// One round: links that come and go, and bytes. True: something was done, or waits for the next round.
    pub fn turn(&mut self, now_us: u64) -> bool {
        let mut news = Vec::new();
        self.links.turn(now_us, &mut self.bridge, |word| news.push(word));
        let mut active = !news.is_empty();
        self.hear(news);
        active |= self.bridge.poll(now_us, &mut self.here);
        while let Some((link, end)) = self.bridge.next_down() {
            tracing::warn!("a link to another host's bridge has ended: {end}");
            self.links.lost(link);
            active = true;
        }
        while let Some((number, how)) = self.bridge.next_over() {
            if let Some(conn) = self.by_number.get(&number).copied() {
                self.ended.extend((how == Over::Closed).then_some(conn));
                self.is_over(conn);
            }
            active = true;
        }
        active
    }

    /// True: the logic has to hear something.
    #[must_use]
    pub fn has_news(&self) -> bool {
        !self.over.is_empty() || !self.ended.is_empty()
    }

    /// When [`Carrier::turn`] is due, even if nothing happens.
    #[must_use]
    pub fn due_us(&self, now_us: u64) -> Option<u64> {
        self.bridge.due_us().into_iter().chain(self.links.due_us(now_us)).min()
    }

    /// Announces that the caller will sleep. True: it may, on [`Carrier::watched`], and until [`Carrier::due_us`].
    pub fn may_sleep(&mut self) -> bool {
        self.links.may_sleep() && self.bridge.may_sleep(&mut self.here)
    }

    /// Readable when there is something to do. [`Carrier::woken`] has to follow.
    #[must_use]
    pub fn watched(&self) -> BorrowedFd<'_> {
        self.watched.as_fd()
    }

    /// After a sleep: takes what has ended it, so that it does not end the next one, and does not fill the wires.
    pub fn woken(&mut self) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let room = rustix::buffer::spare_capacity(&mut events);
        let _ = epoll::wait(&self.watched, room, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        for event in events {
            let wire = u32::try_from(event.data.u64()).ok().and_then(|number| self.here.wires.get(&number));
            // Nobody else listens at our end: it may be emptied. Who rings again makes another edge.
            if let Some(wire) = wire {
                let _ = recv(wire, &mut [0; RINGS_MAX], RecvFlags::DONTWAIT);
            }
        }
    }

    /// How much there is: names and values.
    #[must_use]
    pub fn read(&self) -> Vec<(&'static str, u64)> {
        let counts = self.bridge.counts;
        vec![
            ("links", self.links.len() as u64),
            ("connections", self.ends.len() as u64),
            ("segments", self.segments.len() as u64),
            ("violations", counts.violations),
            ("strays", counts.strays),
        ]
    }

    /// What has become of links.
    fn hear(&mut self, news: Vec<News>) {
        for word in news {
            let (Party { asker, token, .. }, link) = match word {
                News::Up(party, link) => (party, Some(link)),
                News::Failed(party) => (party, None),
            };
            if link.is_some() {
                self.bridge.wait_fds().for_each(|fd| self.watch(fd, FABRIC, epoll::EventFlags::IN));
            }
            let ends = &self.ends;
            let waits = |(conn, contact): &mut (ConnId, Contact)| {
                contact.token == token && ends.get(conn).is_some_and(|held| asker_of(held.ours) == asker)
            };
            for (conn, contact) in self.joining.extract_if(.., waits).collect::<Vec<_>>() {
                self.join_over(conn, &contact, link);
            }
        }
    }

    /// The link is there, or will not be.
    fn join_over(&mut self, conn: ConnId, contact: &Contact, link: Option<LinkId>) {
        let Some(held) = self.ends.get_mut(&conn) else { return };
        let Some(segment) = self.segments.get(&conn.segment()) else { return };
        let (address, key) = contact.rings;
        // As many as here.
        let rings = Remote { address, key, len: 2 * segment.ring_bytes() as u64 };
        let far = Far { connection: contact.connection, rings };
        let speaker = if held.ours == Role::Caller { Speaker::Us } else { Speaker::Them };
        held.joined = link.is_some_and(|link| self.bridge.join(held.number, link, far, speaker));
        if !held.joined {
            self.give_up(conn);
        }
    }

    /// Nothing comes of a connection that the other end has not joined: a reset at ours.
    fn give_up(&mut self, conn: ConnId) {
        let Some(held) = self.ends.get(&conn).filter(|held| !held.over) else { return };
        self.bridge.forget(held.number, &mut self.here);
        self.is_over(conn);
    }

    fn is_over(&mut self, conn: ConnId) {
        self.joining.retain(|(waits, _)| *waits != conn);
        let Some(held) = self.ends.get_mut(&conn) else { return };
        held.over = true;
        self.by_number.remove(&held.number);
        if held.released {
            self.ends.remove(&conn);
            self.over.push_back(conn);
        }
    }
}

/// Who has asked for the link that a connection goes over: its callee's host.
fn asker_of(ours: Role) -> Asker {
    if ours == Role::Callee { Asker::Us } else { Asker::Them }
}

impl DataPath for Carrier {
    fn reach(&mut self, now_us: u64, caller: &Path) -> Reach {
        match Contact::from_path(caller) {
            Ok(contact) => self.links.reach(now_us, &contact),
            Err(_) => Reach::Never,
        }
    }

    fn prepare(&mut self, conn: ConnId, ours: Role) -> Result<Path, Status> {
        let segment = Arc::clone(self.segments.get(&conn.segment()).ok_or(Status::NoSegment)?);
        let rings = segment.register(&self.links.fabric, conn.slot()).map_err(|error| {
            tracing::error!("a connection to another host has no memory: {error}");
            Status::NoSegment
        })?;
        let Remote { address, key, .. } = rings.remote();
        // The client's side is the first one.
        let side = if ours == Role::Caller { 0 } else { 1 };
        let local = Local { segment, slot: conn.slot(), side, generation: conn.generation(), rings };
        let number = self.bridge.open(local).map_err(|error| {
            tracing::error!("a connection to another host is not carried: {error}");
            Status::Quota
        })?;
        self.ends.insert(conn, Held { number, ours, joined: false, over: false, released: false });
        self.by_number.insert(number, conn);
        Ok(self.links.contact(number, (address, key)).to_path())
    }

    fn join(&mut self, conn: ConnId, theirs: &Path) {
        let Some(held) = self.ends.get(&conn) else { return };
        let Ok(contact) = Contact::from_path(theirs) else { return self.give_up(conn) };
        match self.links.state(asker_of(held.ours), contact.token) {
            State::Up(link) => self.join_over(conn, &contact, Some(link)),
            State::Opening => self.joining.push((conn, contact)),
            State::None => self.give_up(conn),
        }
    }

    fn our_end(&mut self, conn: ConnId, end: End) {
        let Some(held) = self.ends.get(&conn) else { return };
        match end {
            End::Marked => {}
            End::Unmarked => self.bridge.process_is_gone(held.number),
            End::Refused => self.bridge.reset(held.number, &mut self.here),
        }
    }

    fn their_end(&mut self, conn: ConnId, ending: Ending) {
        let refused = |held: &&Held| held.ours == Role::Callee && ending == Ending::Refused;
        if self.ends.get(&conn).filter(refused).is_some() {
            self.give_up(conn);
        }
    }

    fn lost(&mut self, card: Ipv4Addr) {
        let mut failed = Vec::new();
        for link in self.links.of_card(card, |news| failed.push(news)) {
            self.bridge.remove_link(link, &mut self.here);
        }
        self.hear(failed);
    }

    fn release(&mut self, conn: ConnId) {
        // One that was never prepared.
        let Some(held) = self.ends.get_mut(&conn) else { return self.over.push_back(conn) };
        held.released = true;
        let (number, joined, over) = (held.number, held.joined, held.over);
        if over {
            self.is_over(conn);
        } else if joined || self.joining.iter().any(|(waits, _)| *waits == conn) {
            // Whatever it has left to say is marked: nobody else will.
            self.bridge.process_is_gone(number);
        } else {
            self.give_up(conn);
        }
    }

    fn next_ended(&mut self) -> Option<ConnId> {
        self.ended.pop_front()
    }

    fn next_over(&mut self) -> Option<ConnId> {
        self.over.pop_front()
    }

    fn drop_segment(&mut self, segment: u32) {
        self.segments.remove(&segment);
        self.here.wires.remove(&segment);
    }
}
