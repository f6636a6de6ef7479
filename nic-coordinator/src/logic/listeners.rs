//! Listeners: who holds them, how a destination finds one, and their accept queues.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ring::msg::{Addr, ConnId, Status};

use super::functions::Holder;

/// Longest accept queue, whatever backlog was asked for.
pub const BACKLOG_MAX: u32 = 65_535;

/// An `Accept` that waits for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// Whose.
    pub function: u32,
    /// Its token.
    pub token: u32,
}

/// One listening socket.
#[derive(Debug)]
pub struct Listener {
    /// Network namespace it is visible in.
    pub netns: u64,
    /// Bound address.
    pub addr: Addr,
    /// A `::` that does not take IPv4.
    pub v6only: bool,
    /// User of the process that made it.
    pub uid: u32,
    /// Fork family of the process that made it: all holders belong to it.
    pub group: u32,
    /// The queue holds one more than this, as in Linux.
    pub backlog: u32,
    /// Who holds it.
    pub holders: BTreeSet<Holder>,
    /// Connections that nobody has accepted yet. Empty while there are waiters.
    pub queue: VecDeque<ConnId>,
    /// Parked accepts, first come first served.
    pub waiters: VecDeque<Waiter>,
    /// Connections to it that clients may open ([`super::Logic::grant`]).
    pub granted: BTreeSet<ConnId>,
}

impl Listener {
    /// True if one more connection may come.
    #[must_use]
    pub fn has_space(&self) -> bool {
        !self.waiters.is_empty() || self.queue.len() <= self.backlog as usize
    }

    /// True if one more connection may be granted: if all of them are opened at once, the queue has room for them.
    #[must_use]
    pub fn may_grant(&self) -> bool {
        self.queue.len() + self.granted.len() <= self.backlog as usize
    }

    /// True if `holder` holds it.
    #[must_use]
    pub fn held_by(&self, holder: Holder) -> bool {
        self.holders.contains(&holder)
    }

    /// Removes and returns the waiters of one function.
    pub fn take_waiters_of(&mut self, function: u32) -> VecDeque<Waiter> {
        let (gone, kept) = self.waiters.drain(..).partition(|w| w.function == function);
        self.waiters = kept;
        gone
    }

    /// True while an attached process holds it. Of the children that hold it and have not attached only the kernel knows whether they are
    /// there, and have it open: so its clients are the kernel's.
    #[must_use]
    pub fn is_served(&self) -> bool {
        // Functions come first.
        matches!(self.holders.first(), Some(Holder::Function(_)))
    }

    /// The children that hold it and have not attached, by the numbers of their forks.
    pub fn forks(&self) -> impl Iterator<Item = u64> {
        self.holders.iter().filter_map(|holder| match holder {
            Holder::Fork(id) => Some(*id),
            Holder::Function(_) | Holder::Remote(_) => None,
        })
    }

    /// The functions that hold it.
    pub fn functions(&self) -> impl Iterator<Item = u32> {
        self.holders.iter().filter_map(Holder::function)
    }
}

/// Listeners on one address, and whose turn it is.
#[derive(Debug, Default)]
struct Place {
    ids: Vec<u32>,
    turn: usize,
}

/// Namespace, port, address: ordered so that all of one port stand together.
type Key = (u64, u16, [u8; 16]);

fn key(netns: u64, addr: &Addr) -> Key {
    (netns, addr.port, addr.ip)
}

/// All listeners, by number and by address.
#[derive(Debug, Default)]
pub struct Listeners {
    by_id: BTreeMap<u32, Listener>,
    places: BTreeMap<Key, Place>,
    last_id: u32,
}

impl Listeners {
    /// The listener `id`.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<&Listener> {
        self.by_id.get(&id)
    }

    /// As [`Listeners::get`], to change it.
    pub fn get_mut(&mut self, id: u32) -> Option<&mut Listener> {
        self.by_id.get_mut(&id)
    }

    /// All, by number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Listener)> {
        self.by_id.iter().map(|(id, listener)| (*id, listener))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty() && self.places.is_empty()
    }

    /// The listeners on a port, whatever their address.
    fn on_port(&self, netns: u64, port: u16) -> impl Iterator<Item = u32> {
        let keys = (netns, port, [0; 16])..=(netns, port, [0xff; 16]);
        self.places.range(keys).flat_map(|(_, place)| &place.ids).copied()
    }

    /// The listener that takes all connections to `dst`, if there is no other one on its port.
    #[must_use]
    pub fn alone(&self, netns: u64, dst: &Addr) -> Option<u32> {
        let mut all = self.on_port(netns, dst.port);
        let id = all.next().filter(|_| all.next().is_none())?;
        let listener = self.by_id.get(&id)?;
        let takes = listener.addr.ip == dst.ip || covers(&listener.addr, listener.v6only, dst);
        (takes && listener.is_served()).then_some(id)
    }

    /// Those on a port to which connections are granted.
    #[must_use]
    pub fn granting(&self, netns: u64, port: u16) -> Vec<u32> {
        let grants = |id: &u32| self.by_id.get(id).is_some_and(|l| !l.granted.is_empty());
        self.on_port(netns, port).filter(grants).collect()
    }

    /// True if another user listens on an address that overlaps: the kernel would not have let both.
    #[must_use]
    pub fn taken_by_other(&self, netns: u64, addr: &Addr, v6only: bool, uid: u32) -> bool {
        self.on_port(netns, addr.port).filter_map(|id| self.by_id.get(&id)).any(|other| {
            other.uid != uid
                && (other.addr.ip == addr.ip
                    || covers(&other.addr, other.v6only, addr)
                    || covers(addr, v6only, &other.addr))
        })
    }

    /// Adds a listener and returns its number, never 0 and not one in use.
    pub fn insert(&mut self, listener: Listener) -> u32 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if self.last_id != 0 && !self.by_id.contains_key(&self.last_id) {
                break;
            }
        }
        let id = self.last_id;
        self.places.entry(key(listener.netns, &listener.addr)).or_default().ids.push(id);
        self.by_id.insert(id, listener);
        id
    }

    /// Takes a listener out.
    pub fn remove(&mut self, id: u32) -> Option<Listener> {
        self.hide(id);
        self.by_id.remove(&id)
    }

    /// From now on no destination means this listener. What is in its queue stays.
    pub fn hide(&mut self, id: u32) {
        let Some(listener) = self.by_id.get(&id) else { return };
        let key = key(listener.netns, &listener.addr);
        if let Some(place) = self.places.get_mut(&key) {
            place.ids.retain(|other| *other != id);
            if place.ids.is_empty() {
                self.places.remove(&key);
            }
        }
    }

    /// The listener that takes a connection to `dst`: the most specific address that anybody listens on decides, and
    /// if several listen there they take turns, as far as they have space.
    ///
    /// # Errors
    /// [`Status::NoListener`], or [`Status::BacklogFull`] when all of them are full.
    pub fn find(&mut self, netns: u64, dst: &Addr) -> Result<u32, Status> {
        let any = |ip| Addr { ip, port: dst.port };
        let candidates: &[(Addr, bool)] = if dst.is_v4() {
            &[(*dst, false), (any(Addr::V4_ANY), false), (any(Addr::V6_ANY), true)]
        } else {
            &[(*dst, false), (any(Addr::V6_ANY), false)]
        };
        for (addr, dual_stack_only) in candidates {
            let Some(place) = self.places.get_mut(&key(netns, addr)) else { continue };
            let mut listens = false;
            for offset in 0..place.ids.len() {
                let index = (place.turn + offset) % place.ids.len();
                let Some(id) = place.ids.get(index).copied() else { continue };
                let Some(listener) = self.by_id.get(&id) else { continue };
                if (*dual_stack_only && listener.v6only) || !listener.is_served() {
                    continue;
                }
                listens = true;
                if listener.has_space() {
                    place.turn = index + 1;
                    return Ok(id);
                }
            }
            if listens {
                return Err(Status::BacklogFull);
            }
        }
        Err(Status::NoListener)
    }
}

/// True if `wild` is a wildcard that takes connections to `addr`, too.
fn covers(wild: &Addr, v6only: bool, addr: &Addr) -> bool {
    match wild.ip {
        Addr::V4_ANY => addr.is_v4(),
        Addr::V6_ANY => !addr.is_v4() || !v6only,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V6_LO: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

    fn add(all: &mut Listeners, netns: u64, addr: Addr, v6only: bool, uid: u32) -> u32 {
        all.insert(Listener {
            netns,
            addr,
            v6only,
            uid,
            group: 1,
            backlog: 1,
            holders: BTreeSet::from([Holder::Function(1)]),
            queue: VecDeque::new(),
            waiters: VecDeque::new(),
            granted: BTreeSet::new(),
        })
    }
    fn v4(last: u8) -> Addr {
        Addr::v4([127, 0, 0, last], 80)
    }
    fn v6(ip: [u8; 16]) -> Addr {
        Addr { ip, port: 80 }
    }

    #[test]
    fn the_most_specific_address_wins() {
        let mut all = Listeners::default();
        let dual = add(&mut all, 1, v6(Addr::V6_ANY), false, 0);
        assert_eq!(all.find(1, &v4(1)), Ok(dual));
        assert_eq!(all.find(1, &v6(V6_LO)), Ok(dual));
        let any = add(&mut all, 1, Addr::v4([0; 4], 80), false, 0);
        let exact = add(&mut all, 1, v4(1), false, 0);
        assert_eq!(all.find(1, &v4(1)), Ok(exact));
        assert_eq!(all.find(1, &v4(2)), Ok(any));
        assert_eq!(all.find(1, &v6(V6_LO)), Ok(dual));
        all.remove(exact);
        assert_eq!(all.find(1, &v4(1)), Ok(any));
    }

    #[test]
    fn v6only_takes_no_v4_and_namespaces_and_ports_are_apart() {
        let mut all = Listeners::default();
        let six = add(&mut all, 1, v6(Addr::V6_ANY), true, 0);
        assert_eq!(all.find(1, &v4(1)), Err(Status::NoListener));
        assert_eq!(all.find(1, &v6(V6_LO)), Ok(six));
        assert_eq!(all.find(2, &v6(V6_LO)), Err(Status::NoListener));
        assert_eq!(all.find(1, &Addr { ip: V6_LO, port: 81 }), Err(Status::NoListener));
    }

    #[test]
    fn several_on_one_address_take_turns_and_full_ones_are_passed_over() {
        let mut all = Listeners::default();
        let a = add(&mut all, 1, v4(1), false, 0);
        let b = add(&mut all, 1, v4(1), false, 0);
        assert_eq!([all.find(1, &v4(1)), all.find(1, &v4(1)), all.find(1, &v4(1))], [Ok(a), Ok(b), Ok(a)]);
        all.get_mut(b).unwrap().queue = [ConnId(1), ConnId(2)].into();
        assert_eq!([all.find(1, &v4(1)), all.find(1, &v4(1))], [Ok(a), Ok(a)]);
        all.get_mut(a).unwrap().queue = [ConnId(3), ConnId(4)].into();
        // Full is full: the wildcard behind it is not asked.
        add(&mut all, 1, Addr::v4([0; 4], 80), false, 0);
        assert_eq!(all.find(1, &v4(1)), Err(Status::BacklogFull));
    }

    #[test]
    fn another_user_may_not_overlap() {
        let mut all = Listeners::default();
        add(&mut all, 1, v4(1), false, 1000);
        assert!(all.taken_by_other(1, &v4(1), false, 1001));
        assert!(all.taken_by_other(1, &Addr::v4([0; 4], 80), false, 1001));
        assert!(all.taken_by_other(1, &v6(Addr::V6_ANY), false, 1001));
        assert!(!all.taken_by_other(1, &v6(Addr::V6_ANY), true, 1001));
        assert!(!all.taken_by_other(1, &v4(2), false, 1001));
        assert!(!all.taken_by_other(2, &v4(1), false, 1001));
        assert!(!all.taken_by_other(1, &v4(1), false, 1000));
        add(&mut all, 1, v6(Addr::V6_ANY), false, 1000);
        assert!(all.taken_by_other(1, &v4(2), false, 1001));
    }

    #[test]
    fn what_only_unattached_children_hold_is_the_kernels() {
        let mut all = Listeners::default();
        let id = add(&mut all, 1, v4(1), false, 0);
        all.get_mut(id).unwrap().holders = [Holder::Fork(7)].into();
        assert_eq!(all.find(1, &v4(1)), Err(Status::NoListener));
        let other = add(&mut all, 1, v4(1), false, 0);
        assert_eq!([all.find(1, &v4(1)), all.find(1, &v4(1))], [Ok(other), Ok(other)]);
        all.get_mut(id).unwrap().holders.insert(Holder::Function(2));
        assert_eq!(all.find(1, &v4(1)), Ok(id));
    }

    #[test]
    fn the_queue_holds_one_more_than_the_backlog() {
        let mut all = Listeners::default();
        let id = add(&mut all, 1, v4(1), false, 0);
        let listener = all.get_mut(id).unwrap();
        listener.queue.push_back(ConnId(1));
        assert!(listener.has_space());
        listener.queue.push_back(ConnId(2));
        assert!(!listener.has_space());
    }
}
