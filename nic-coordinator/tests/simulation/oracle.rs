//! What is true, beside what the coordinators believe: every connection that was ever asked for, and all memory that is reachable from other
//! hosts. What must never happen is refused here.

use std::collections::BTreeMap;

use nic_coordinator::exchange::DataPath;
use nic_coordinator::logic::Logic;
use ring::hosts::Path;
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
    /// Of 1000 preparations so many fail.
    failing: u64,
    count: u64,
}

impl DataPath for Data {
    fn prepare(&mut self, conn: ConnId) -> Result<Path, Status> {
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
        Ok(path)
    }

    fn join(&mut self, conn: ConnId, theirs: &Path) {
        self.joins.push((conn, u64::from_le_bytes(theirs.0[..8].try_into().unwrap())));
    }

    fn release(&mut self, conn: ConnId) {
        // One whose preparation failed has none.
        self.released.extend(self.of_conn.remove(&conn));
    }
}

impl Data {
    pub fn new(failing: u64) -> Data {
        Data { failing, ..Data::default() }
    }

    /// From where on numbers are free.
    pub fn begin(&mut self, oracle: &Oracle) {
        self.next = oracle.registrations.len() as u64;
    }

    /// Enters what has happened in one turn.
    pub fn settle(&mut self, logic: &Logic, oracle: &mut Oracle) {
        for (conn, id) in self.prepared.drain(..) {
            assert_eq!(id, oracle.registrations.len() as u64);
            let ends = logic.segments().get(conn).map(|open| (open.client, open.server));
            oracle.registrations.push(Registration { ends, joined: None, released: false });
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
