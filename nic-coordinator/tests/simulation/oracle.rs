//! What is true, beside what the coordinators believe: every connection that was ever asked for, and all memory that is reachable from other
//! hosts. What must never happen is refused here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use nic_coordinator::exchange::{DataPath, Reach};
use nic_coordinator::logic::Logic;
use nic_coordinator::logic::segments::End;
use ring::hosts::{Ending, Path, Role};
use ring::msg::{Addr, ConnId, Status};

/// A connection that a process has asked for. No two have the same client's address.
#[derive(Debug)]
pub struct Attempt {
    pub dst: Addr,
    pub legal: bool,
    pub accepted: u32,
}

/// Memory that is reachable from other hosts, for one connection.
#[derive(Debug)]
struct Registration {
    /// Client and server.
    ends: Option<(Addr, Addr)>,
    joined: Option<u64>,
    /// Its process has closed.
    closed: bool,
    released: bool,
}

#[derive(Default)]
pub struct Oracle {
    attempts: BTreeMap<([u8; 16], u16), Attempt>,
    registrations: Vec<Registration>,
    pub connected: u64,
    pub accepted: u64,
    pub refused: u64,
    /// How long those took that were connected, in microseconds.
    pub latencies_us: Vec<u64>,
}

impl Oracle {
    pub fn asks(&mut self, src: Addr, dst: Addr, legal: bool) {
        let before = self.attempts.insert((src.ip, src.port), Attempt { dst, legal, accepted: 0 });
        assert!(before.is_none() || !legal, "a client's address is used twice");
    }

    fn attempt(&mut self, src: Addr) -> &mut Attempt {
        self.attempts.get_mut(&(src.ip, src.port)).unwrap_or_else(|| panic!("nobody is {src}"))
    }

    pub fn connected(&mut self, src: Addr, since_us: u64, now_us: u64) {
        let attempt = self.attempt(src);
        assert!(attempt.legal, "{src} is connected against the rules to {}", attempt.dst);
        self.connected += 1;
        self.latencies_us.push(now_us - since_us);
    }

    /// Somebody has accepted a connection of `src` to `dst`.
    pub fn accepts(&mut self, src: Addr, dst: Addr) {
        let attempt = self.attempt(src);
        assert!(attempt.legal, "{src} is accepted against the rules at {dst}");
        assert_eq!(attempt.dst, dst, "{src} is accepted where it did not want to go");
        attempt.accepted += 1;
        assert_eq!(attempt.accepted, 1, "{src} is accepted twice");
        self.accepted += 1;
    }

    fn join(&mut self, ours: u64, theirs: u64) {
        let at = |id: u64| usize::try_from(id).unwrap();
        let (own, other) = (&self.registrations[at(ours)], &self.registrations[at(theirs)]);
        assert!(own.joined.is_none(), "memory is joined twice");
        assert!(other.ends.is_some() && own.ends == other.ends, "the wrong pair: {own:?} and {other:?}");
        assert!(other.joined.is_none_or(|id| id == ours), "a third one joins: {other:?}");
        self.registrations[at(ours)].joined = Some(theirs);
    }

    /// Memory that a run of a coordinator that has ended left: its host takes it back.
    pub fn forget(&mut self, data: &Data) {
        for id in data.of_conn.values() {
            self.registrations[usize::try_from(*id).unwrap()].released = true;
        }
    }

    /// Both ends of what is joined are closed.
    fn are_closed(&self, id: u64) -> bool {
        let at = |id: u64| &self.registrations[usize::try_from(id).unwrap()];
        at(id).closed && at(id).joined.is_some_and(|other| at(other).closed && at(other).joined == Some(id))
    }

    pub fn registered(&self) -> usize {
        self.registrations.iter().filter(|r| !r.released).count()
    }
}

/// One run's data path: keeps account, and moves nothing.
#[derive(Default)]
pub struct Data {
    pub of_conn: BTreeMap<ConnId, u64>,
    next: u64,
    prepared: Vec<(ConnId, u64)>,
    joins: Vec<(ConnId, u64)>,
    released: Vec<u64>,
    /// Ours that processes have closed in this turn, and those of which both ends are.
    closed: Vec<ConnId>,
    ended: VecDeque<ConnId>,
    /// Connections whose other end was given up: a process that reads finds that out.
    broken: BTreeSet<ConnId>,
    /// With whose card.
    joined_with: BTreeMap<ConnId, Ipv4Addr>,
    /// Released connections that something still writes to, until the next turn, and those that are over.
    lingering: Vec<ConnId>,
    over: VecDeque<ConnId>,
    /// Callers that were asked for once.
    reached: BTreeSet<u64>,
    /// Our card's address.
    card: Option<Ipv4Addr>,
    /// Of 1000 preparations so many fail.
    failing: u64,
    count: u64,
}

/// What a path says in this world: the registration, and the card.
fn read(path: &Path) -> (u64, Ipv4Addr) {
    let card: [u8; 4] = path.0[8..12].try_into().unwrap();
    (u64::from_le_bytes(path.0[..8].try_into().unwrap()), card.into())
}

impl DataPath for Data {
    fn reach(&mut self, _: u64, caller: &Path) -> Reach {
        let (id, _) = read(caller);
        if self.failing > 0 && id % 100 == 99 {
            return Reach::Never;
        }
        // Some take a while.
        if id % 3 == 0 && self.reached.insert(id) { Reach::Pending } else { Reach::Ready }
    }

    fn prepare(&mut self, conn: ConnId, _: Role) -> Result<Path, Status> {
        self.count += 1;
        if self.failing > 0 && self.count.is_multiple_of(1000 / self.failing) {
            return Err(Status::NoSegment);
        }
        let id = self.next;
        self.next += 1;
        assert!(self.of_conn.insert(conn, id).is_none(), "{conn:?} is prepared twice");
        self.prepared.push((conn, id));
        let mut path = Path::default();
        path.0[..8].copy_from_slice(&id.to_le_bytes());
        path.0[8..12].copy_from_slice(&self.card.expect("a card has an address").octets());
        Ok(path)
    }

    fn join(&mut self, conn: ConnId, theirs: &Path) {
        let (id, card) = read(theirs);
        self.joins.push((conn, id));
        self.joined_with.insert(conn, card);
    }

    fn our_end(&mut self, conn: ConnId, end: End) {
        if end != End::Refused {
            self.closed.push(conn);
        }
    }

    fn their_end(&mut self, conn: ConnId, ending: Ending) {
        if ending != Ending::Marked {
            self.broken.insert(conn);
        }
    }

    fn lost(&mut self, card: Ipv4Addr) {
        self.broken.extend(self.joined_with.iter().filter(|(_, with)| **with == card).map(|(conn, _)| *conn));
    }

    fn release(&mut self, conn: ConnId) {
        // One whose preparation failed has none.
        self.released.extend(self.of_conn.remove(&conn));
        self.broken.remove(&conn);
        self.joined_with.remove(&conn);
        if conn.slot().is_multiple_of(2) { self.over.push_back(conn) } else { self.lingering.push(conn) }
    }

    fn next_ended(&mut self) -> Option<ConnId> {
        self.ended.pop_front()
    }

    fn next_over(&mut self) -> Option<ConnId> {
        self.over.pop_front()
    }

    fn drop_segment(&mut self, segment: u32) {
        assert!(
            self.of_conn.keys().all(|conn| conn.segment() != segment),
            "a segment is dropped that is in use"
        );
    }
}

impl Data {
    pub fn new(failing: u64, card: Ipv4Addr) -> Data {
        Data { failing, card: Some(card), ..Data::default() }
    }

    /// A turn begins. From where on numbers are free.
    pub fn begin(&mut self, oracle: &Oracle) {
        self.over.extend(self.lingering.drain(..));
        self.next = oracle.registrations.len() as u64;
        // Some links are slow: then hosts tell each other.
        let fast = self.of_conn.iter().filter(|(_, id)| **id % 4 != 3 && oracle.are_closed(**id));
        self.ended.extend(fast.map(|(conn, _)| *conn));
    }

    /// Whether a process that reads finds the end.
    pub fn has_ended(&self, conn: ConnId) -> bool {
        self.broken.contains(&conn)
    }

    /// Enters what has happened in one turn.
    pub fn settle(&mut self, logic: &Logic, oracle: &mut Oracle) {
        for (conn, id) in self.prepared.drain(..) {
            assert_eq!(id, oracle.registrations.len() as u64);
            let ends = logic.segments().get(conn).map(|open| (open.client, open.server));
            oracle.registrations.push(Registration { ends, joined: None, closed: false, released: false });
        }
        for conn in self.closed.drain(..) {
            if let Some(ours) = self.of_conn.get(&conn) {
                oracle.registrations[usize::try_from(*ours).unwrap()].closed = true;
            }
        }
        for (conn, theirs) in self.joins.drain(..) {
            if let Some(ours) = self.of_conn.get(&conn) {
                oracle.join(*ours, theirs);
            }
        }
        for id in self.released.drain(..) {
            oracle.registrations[usize::try_from(id).unwrap()].released = true;
        }
    }
}

impl Oracle {
    /// In peace, whatever is reachable has its other end, which is reachable, too.
    pub fn check_pair(&self, id: u64, about: impl Fn() -> String) {
        let own = &self.registrations[usize::try_from(id).unwrap()];
        let other = own.joined.and_then(|other| self.registrations.get(usize::try_from(other).unwrap()));
        let whole = other.is_some_and(|o| !o.released && o.joined == Some(id));
        assert!(whole, "half a connection stays: {own:?}, other end {other:?}, {}", about());
    }
}
