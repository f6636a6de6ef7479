//! What the coordinator is to do, kept in the simplest way: who holds what, and what each completion must say.

use std::collections::{BTreeMap, BTreeSet};

use nic_coordinator::logic::forks::{ATTACH_LATER_US_MAX, ATTACH_US_MAX};
use nic_coordinator::logic::{Limits, Logic, Out};
use ring::msg::{Addr, Completion, ConnId, Request, Status};

/// Who holds something, in the model: a function, or a fork by parent and nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    Function(u32),
    Fork(u32, u64),
}

#[derive(Clone, Copy, Debug)]
pub struct Process {
    pub group: u32,
    pub uid: u32,
    pub pid: u32,
    pub netns: u64,
}

#[derive(Debug)]
pub struct ModelListener {
    holders: BTreeSet<Who>,
    netns: u64,
    addr: Addr,
}

impl ModelListener {
    fn is_served(&self) -> bool {
        self.holders.iter().any(|who| matches!(who, Who::Function(_)))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Marked,
    Unmarked,
    Refused,
}

#[derive(Debug)]
pub struct ModelConn {
    holders: [BTreeSet<Who>; 2],
    listener: u32,
    queued: bool,
    /// How each side was closed, if it is.
    ends: [Option<End>; 2],
    dst: Addr,
    netns: u64,
}

impl ModelConn {
    fn closed(&self, side: usize) -> bool {
        self.holders[side].is_empty() && !(side == 1 && self.queued)
    }

    /// `who` lets go of a side; `end` is what it amounts to if that closes it.
    fn let_go(&mut self, side: usize, who: Who, end: End) {
        if self.holders[side].remove(&who) && self.closed(side) {
            self.ends[side] = Some(end);
        }
    }
}

/// Process and user that have called listen(2), and the listener's name.
pub type Stand = (u32, u32, u64);
/// Listeners of others that a process may stand for.
const STANDS_MAX: usize = 64;

/// Sides of connections, or offers, of one process.
const CONNS_MAX: usize = 8;

#[derive(Default)]
pub struct Model {
    pub logic: Logic,
    pub now_us: u64,
    pub token: u32,
    pub processes: BTreeMap<u32, Process>,
    pub forks: BTreeMap<(u32, u64), (u32, u64)>, // to group and deadline
    pub watched: BTreeSet<(u32, u64)>,           // of the forks
    pub listeners: BTreeMap<u32, ModelListener>,
    pub conns: BTreeMap<ConnId, ModelConn>,
    /// Requests that must be answered once: what they asked for.
    pub open: BTreeMap<(u32, u32), Request>,
    pub making: Vec<u32>,
    /// Ends of connections that may be claimed, by function and its number for them: who the peer is.
    pub offers: BTreeMap<(u32, u32), Stand>,
    /// Which functions accept on others' listeners.
    pub stands: BTreeSet<(u32, Stand)>,
    /// Claims by those who were meant, of what those have offered who they know to be their peers.
    pub honest: BTreeSet<(u32, u32)>,
    /// Who has claimed what in this step.
    pub paired: Option<(u32, u32, ConnId)>,
    /// Segments, by the functions (which are groups here) that asked and that listened, while both live.
    pub pairs: BTreeMap<u32, [u32; 2]>,
    /// Who heard that the other side is gone.
    pub told_gone: BTreeSet<(u32, ConnId)>,
    /// Who believes what about a listener: that something waits.
    pub waits: BTreeMap<(Who, u32), bool>,
    /// What came into a queue by the present request.
    pub arrived: BTreeSet<ConnId>,
    /// Everything that was ever named, for picking.
    pub listener_ids: Vec<u32>,
    pub conn_ids: Vec<ConnId>,
}

impl Model {
    pub fn new() -> Self {
        let limits = Limits {
            listeners_per_function: 4,
            conns_per_function: CONNS_MAX,
            waiters_per_listener: 3,
            segments_per_pair: 2,
            segments: 12,
            ..Limits::default()
        };
        Model { logic: Logic::new(limits), ..Model::default() }
    }

    fn release(&mut self, who: Who) {
        for listener in self.listeners.values_mut() {
            listener.holders.remove(&who);
        }
        for conn in self.conns.values_mut() {
            (0..2).for_each(|side| conn.let_go(side, who, End::Unmarked));
        }
        self.waits.retain(|(believer, _), _| *believer != who);
    }

    /// A child's time gets short when somebody may wait for it.
    fn hasten(&mut self) {
        let unserved = self.listeners.values().filter(|l| !l.is_served());
        let waited_for: BTreeSet<Who> = unserved.flat_map(|l| l.holders.iter().copied()).collect();
        for ((parent, nonce), (_, deadline_us)) in &mut self.forks {
            if !self.processes.contains_key(parent) || waited_for.contains(&Who::Fork(*parent, *nonce)) {
                *deadline_us = (*deadline_us).min(self.now_us + ATTACH_US_MAX);
            }
        }
    }

    /// Removes what nobody holds any more.
    fn sweep(&mut self) {
        self.hasten();
        self.listeners.retain(|_, listener| !listener.holders.is_empty());
        for conn in self.conns.values_mut() {
            if conn.queued && !self.listeners.contains_key(&conn.listener) {
                conn.queued = false;
                conn.ends[1] = Some(End::Refused);
            }
        }
        self.conns.retain(|_, conn| !(conn.closed(0) && conn.closed(1)));
        let lives = |g: u32| {
            self.processes.values().any(|p| p.group == g) || self.forks.values().any(|(group, _)| *group == g)
        };
        self.pairs.retain(|_, groups| groups.iter().all(|g| lives(*g)));
    }

    fn inherit(&mut self, from: Who, to: Who) {
        for holders in self
            .listeners
            .values_mut()
            .map(|l| &mut l.holders)
            .chain(self.conns.values_mut().flat_map(|c| c.holders.iter_mut()))
        {
            if holders.contains(&from) {
                holders.insert(to);
            }
        }
        let beliefs: Vec<_> = self.waits.iter().filter(|((who, _), _)| *who == from).collect();
        let beliefs: Vec<_> = beliefs.into_iter().map(|((_, id), waits)| ((to, *id), *waits)).collect();
        self.waits.extend(beliefs);
    }

    fn queued(&self, listener: u32) -> bool {
        self.conns.values().any(|c| c.queued && c.listener == listener)
    }

    /// The part of a request's effect that needs no answer.
    fn before(&mut self, f: u32, token: u32, request: Request) {
        let alive = self.processes.contains_key(&f);
        let me = Who::Function(f);
        match request {
            Request::Detach { function } => {
                self.processes.remove(&function);
                self.offers.retain(|(owner, _), _| *owner != function);
                self.stands.retain(|(holder, _)| *holder != function);
                self.release(Who::Function(function));
                self.open.retain(|(owner, _), _| *owner != function);
            }
            Request::Child { parent, nonce, lives: true } => {
                if let Some((_, deadline_us)) = self.forks.get_mut(&(parent, nonce))
                    && self.watched.insert((parent, nonce))
                {
                    *deadline_us = u64::MAX;
                }
            }
            Request::Child { parent, nonce, lives: false }
                if self.forks.remove(&(parent, nonce)).is_some() =>
            {
                self.watched.remove(&(parent, nonce));
                self.release(Who::Fork(parent, nonce));
            }
            Request::SegmentMade { segment, .. } => self.making.retain(|s| *s != segment),
            Request::Attach { .. } => {
                self.open.insert((f, token), request);
            }
            Request::StandsFor { function, pid, uid, name }
                if self.processes.contains_key(&function)
                    && self.stands.iter().filter(|(f, _)| *f == function).count() < STANDS_MAX =>
            {
                self.stands.insert((function, (pid, uid, name)));
            }
            _ if !alive => {}
            Request::Retract { serial } => drop(self.offers.remove(&(f, serial))),
            Request::Claim { function, serial, pid, uid } => {
                if self.is_honest(f, (function, serial), (pid, uid)) {
                    self.honest.insert((f, token));
                }
                self.open.insert((f, token), request);
            }
            Request::Listen { .. }
            | Request::Connect { .. }
            | Request::Accept { .. }
            | Request::Offer { .. } => {
                self.open.insert((f, token), request);
            }
            Request::Unlisten { listener } => {
                self.open.insert((f, token), request);
                if let Some(l) = self.listeners.get_mut(&listener) {
                    l.holders.remove(&me);
                }
            }
            Request::Close { conn, side, finished } => {
                if let Some(c) = self.conns.get_mut(&conn) {
                    c.let_go(side as usize, me, if finished { End::Marked } else { End::Unmarked });
                }
            }
            Request::Requeue { conn } => {
                if let Some(c) = self.conns.get_mut(&conn) {
                    let listens = self.listeners.get(&c.listener).is_some_and(|l| l.holders.contains(&me));
                    if listens && c.holders[1] == BTreeSet::from([me]) {
                        c.holders[1].clear();
                        c.queued = true;
                        self.arrived.insert(conn);
                    } else {
                        c.let_go(1, me, End::Refused);
                    }
                }
            }
            Request::Fork { nonce } => {
                if let std::collections::btree_map::Entry::Vacant(entry) = self.forks.entry((f, nonce)) {
                    let connected = self.conns.values().any(|c| c.holders.iter().any(|h| h.contains(&me)));
                    let time_us = if connected { ATTACH_US_MAX } else { ATTACH_LATER_US_MAX };
                    entry.insert((self.processes[&f].group, self.now_us + time_us));
                    self.inherit(me, Who::Fork(f, nonce));
                }
            }
            Request::Lend { nonce, conn, side } if !self.forks.contains_key(&(f, nonce)) => {
                if let Some(holders) = self.conns.get_mut(&conn).map(|c| &mut c.holders[side as usize])
                    && holders.contains(&me)
                {
                    holders.insert(Who::Fork(f, nonce));
                    self.forks.insert((f, nonce), (self.processes[&f].group, self.now_us + ATTACH_US_MAX));
                }
            }
            Request::ForkFailed { nonce } if self.forks.remove(&(f, nonce)).is_some() => {
                self.watched.remove(&(f, nonce));
                self.release(Who::Fork(f, nonce));
            }
            _ => {}
        }
        self.sweep();
    }

    pub fn ask(&mut self, f: u32, request: Request) {
        self.token += 1;
        let token = self.token;
        if request.agent_only() && f != 0 {
            let mut out = Vec::new();
            assert!(self.logic.handle(f, token, request, self.now_us, &mut out).is_err());
            assert!(out.is_empty());
            return;
        }
        self.before(f, token, request);
        let mut out = Vec::new();
        self.logic.handle(f, token, request, self.now_us, &mut out).unwrap();
        self.hear(&out);
        self.check();
    }

    pub fn tick(&mut self, us: u64) {
        self.now_us += us;
        let now_us = self.now_us;
        for key in self.forks.keys().copied().collect::<Vec<_>>() {
            if self.forks[&key].1 > now_us {
                continue;
            }
            if self.watched.contains(&key) {
                for listener in self.listeners.values_mut() {
                    listener.holders.remove(&Who::Fork(key.0, key.1));
                }
                self.waits.retain(|(believer, _), _| *believer != Who::Fork(key.0, key.1));
                self.forks.get_mut(&key).unwrap().1 = u64::MAX;
            } else {
                self.forks.remove(&key);
                self.release(Who::Fork(key.0, key.1));
            }
        }
        self.sweep();
        let mut out = Vec::new();
        self.logic.tick(now_us, &mut out);
        self.hear(&out);
        self.check();
    }

    /// Checks every completion against the model, and learns from it.
    fn hear(&mut self, out: &[Out]) {
        // A connection is brought to its listener before its client is told: it is the client's answer that the model learns of it from.
        let is_made = |o: &Out| matches!(o.completion, Completion::Connected { status: Status::Ok, .. });
        let in_order = out.split_inclusive(is_made).flat_map(|said| {
            let (others, made) = said.split_at(said.len() - usize::from(said.last().is_some_and(is_made)));
            made.iter().chain(others)
        });
        for o in in_order {
            let f = o.function;
            assert!(f == 0 || self.processes.contains_key(&f) || o.token == 0, "{o:?} to nobody");
            let asked = match o.completion {
                Completion::Done { .. }
                | Completion::Connected { .. }
                | Completion::Accepted { .. }
                | Completion::Claimed { .. } => {
                    Some(self.open.remove(&(f, o.token)).unwrap_or_else(|| panic!("{o:?}: nobody asked")))
                }
                _ => None,
            };
            match (o.completion, asked) {
                (Completion::Done { status, value }, Some(request)) => self.done(f, status, value, request),
                (Completion::Connected { status, conn }, Some(Request::Connect { dst, src })) => {
                    if status == Status::Ok {
                        self.connected(f, conn, dst, src);
                    }
                }
                (
                    Completion::Accepted { status, conn, local, more, .. },
                    Some(Request::Accept { listener, .. }),
                ) => {
                    assert_eq!(o.listener, Some(listener));
                    if status == Status::Ok {
                        self.accepted(f, conn, local, listener);
                        assert_eq!(more, self.queued(listener));
                        self.waits.insert((Who::Function(f), listener), more);
                    } else {
                        assert!(!more && (status != Status::Empty || !self.queued(listener)));
                    }
                }
                (
                    Completion::Claimed { status, conn },
                    Some(Request::Claim { function, serial, pid, uid }),
                ) => {
                    if status == Status::Ok {
                        assert!(self.honest.contains(&(f, o.token)), "{pid} {uid} not the kernel's peer");
                        self.claimed(f, conn, (function, serial));
                    }
                }
                (Completion::Paired { serial, conn }, None) => {
                    assert_eq!(self.paired.take(), Some((f, serial, conn)), "the claimer is told first");
                }
                (Completion::Ready { listener, waiting }, _) => {
                    assert_eq!(o.listener, Some(listener));
                    assert!(self.listeners[&listener].holders.contains(&Who::Function(f)));
                    assert_eq!(waiting, self.queued(listener));
                    self.waits.insert((Who::Function(f), listener), waiting);
                }
                (Completion::PeerGone { conn, reset }, _) => {
                    let c = &self.conns[&conn];
                    let end = if reset { End::Refused } else { End::Unmarked };
                    let told = (0..2)
                        .any(|s| c.holders[s].contains(&Who::Function(f)) && c.ends[1 - s] == Some(end));
                    assert!(told, "{o:?} but {c:?}");
                    self.told_gone.insert((f, conn));
                }
                (Completion::MakeSegment { segment, client_group, server_group }, _) => {
                    assert!(f == 0 && !self.making.contains(&segment));
                    self.pairs.insert(segment, [client_group, server_group]);
                    self.making.push(segment);
                }
                (Completion::DropSegment { segment }, _) => {
                    assert_eq!(f, 0);
                    assert!(self.conns.keys().all(|c| c.segment() != segment), "dropped in use");
                }
                (completion, request) => panic!("{completion:?} answers {request:?}"),
            }
        }
        assert_eq!(self.paired, None, "the offerer is told, too");
        self.check_arrivals(out);
    }

    fn done(&mut self, f: u32, status: Status, value: u32, request: Request) {
        match request {
            Request::Attach { function, group, parent, nonce, uid, pid, netns } => {
                let fork = self.forks.get(&(parent, nonce)).is_some_and(|(g, _)| *g == group);
                let expected = function != 0
                    && function < 4096
                    && !self.processes.contains_key(&function)
                    && (parent == 0 || fork);
                assert_eq!(status == Status::Ok, expected, "{request:?}");
                if expected {
                    self.processes.insert(function, Process { group, uid, pid, netns });
                    if parent != 0 {
                        self.forks.remove(&(parent, nonce));
                        self.watched.remove(&(parent, nonce));
                        self.inherit(Who::Fork(parent, nonce), Who::Function(function));
                        self.release(Who::Fork(parent, nonce));
                    }
                }
            }
            Request::Listen { addr, .. } if status == Status::Ok => {
                let me = self.processes[&f];
                assert!(addr.port >= 1024 || me.uid == 0, "a privileged port");
                assert!(!self.listeners.contains_key(&value), "the number is in use");
                let holders = BTreeSet::from([Who::Function(f)]);
                self.listeners.insert(value, ModelListener { holders, netns: me.netns, addr });
                self.listener_ids.push(value);
            }
            Request::Listen { .. } => assert_eq!(value, 0),
            Request::Offer { serial, pid, uid, name } => {
                let offer = (pid, uid, name);
                let known = self.family_of((pid, uid)).is_some() || self.groups_for(offer).next().is_some();
                let full = self.offers.keys().filter(|(owner, _)| *owner == f).count() >= CONNS_MAX;
                assert_eq!((status == Status::Ok, status == Status::NoListener), (known && !full, !known));
                if status == Status::Ok {
                    self.offers.insert((f, serial), offer);
                }
            }
            Request::Unlisten { .. } => assert_eq!((status, value), (Status::Ok, 0)),
            _ => assert_eq!((f, status), (0, Status::BadRequest)),
        }
    }

    fn connected(&mut self, f: u32, conn: ConnId, dst: Addr, src: Addr) {
        let me = self.processes[&f];
        assert!(src.port >= 1024 || (me.uid == 0 && src.port != 0), "a privileged port");
        assert!(src.ip == dst.ip || (src.is_loopback() && dst.is_loopback()), "a claimed address");
        self.is_fresh(conn);
        let listener = self.logic.segments().get(conn).expect("open").listener;
        let server_group = self.logic.listeners().get(listener).expect("open").group;
        assert_eq!(self.pairs.get(&conn.segment()), Some(&[me.group, server_group]), "others' memory");
        let l = &self.listeners[&listener];
        assert_eq!(l.netns, me.netns, "another namespace");
        assert!(l.is_served(), "nobody is there");
        assert!(l.addr.port == dst.port && (l.addr.ip == dst.ip || l.addr.is_wildcard()));
        let holders = [BTreeSet::from([Who::Function(f)]), BTreeSet::new()];
        self.conns.insert(
            conn,
            ModelConn { holders, listener, queued: true, ends: [None; 2], dst, netns: me.netns },
        );
        self.conn_ids.push(conn);
        self.arrived.insert(conn);
    }

    /// A slot that nobody uses, and an id that nobody has had.
    fn is_fresh(&self, conn: ConnId) {
        let twice = self.conns.keys().any(|c| (c.segment(), c.slot()) == (conn.segment(), conn.slot()));
        assert!(!twice, "slot of {conn:?} is in use");
        assert!(!self.conn_ids.contains(&conn), "{conn:?} has been before");
        assert!(!self.making.contains(&conn.segment()), "not made yet");
    }

    /// Both ends name a process of the other's family.
    fn is_honest(&self, f: u32, offer: (u32, u32), peer: (u32, u32)) -> bool {
        let Some((offered, other)) = self.offers.get(&offer).zip(self.processes.get(&offer.0)) else {
            return false;
        };
        let me = self.processes[&f];
        let meant = self.family_of((offered.0, offered.1)) == Some(me.group)
            || self.groups_for(*offered).any(|group| group == me.group);
        me.netns == other.netns && meant && self.family_of(peer) == Some(other.group)
    }

    /// Groups of those who accept on that listener.
    fn groups_for(&self, stand: Stand) -> impl Iterator<Item = u32> {
        let holders = self.stands.iter().filter(move |(_, of)| *of == stand);
        holders.filter_map(|(f, _)| self.processes.get(f)).map(|p| p.group)
    }

    /// Whose process it is: of that user, or of one that was root.
    fn family_of(&self, (pid, uid): (u32, u32)) -> Option<u32> {
        let of = |uid| self.processes.values().find(|p| (p.pid, p.uid) == (pid, uid)).map(|p| p.group);
        of(uid).or_else(|| of(0))
    }

    fn claimed(&mut self, f: u32, conn: ConnId, (offerer, serial): (u32, u32)) {
        let (me, other) = (self.processes[&f], self.processes[&offerer]);
        self.offers.remove(&(offerer, serial)).expect("an offer that stands");
        self.is_fresh(conn);
        assert_eq!(self.pairs.get(&conn.segment()), Some(&[other.group, me.group]), "others' memory");
        let holders = [BTreeSet::from([Who::Function(offerer)]), BTreeSet::from([Who::Function(f)])];
        let (dst, netns) = (Addr::default(), me.netns);
        self.conns
            .insert(conn, ModelConn { holders, listener: 0, queued: false, ends: [None; 2], dst, netns });
        self.conn_ids.push(conn);
        self.paired = Some((offerer, serial, conn));
    }

    fn accepted(&mut self, f: u32, conn: ConnId, local: Addr, listener: u32) {
        let l = &self.listeners[&listener];
        assert!(l.holders.contains(&Who::Function(f)), "not a holder of the listener");
        let c = self.conns.get_mut(&conn).expect("open");
        assert!(c.queued && c.listener == listener, "accepted twice, or from another listener");
        assert_eq!((c.dst, c.netns), (local, l.netns));
        c.queued = false;
        c.holders[1].insert(Who::Function(f));
        self.arrived.remove(&conn);
    }

    /// Every holder heard of each connection that came into a queue and stayed there.
    fn check_arrivals(&mut self, out: &[Out]) {
        let mut arrived: BTreeMap<u32, usize> = BTreeMap::new();
        for id in std::mem::take(&mut self.arrived) {
            *arrived.entry(self.conns[&id].listener).or_default() += 1;
        }
        for (listener, count) in arrived {
            let news = Completion::Ready { listener, waiting: true };
            for who in &self.listeners[&listener].holders {
                let Who::Function(f) = *who else { continue };
                let heard = out.iter().filter(|o| o.function == f && o.completion == news).count();
                assert_eq!(heard, count, "{f} of {listener}");
            }
        }
    }

    /// The logic's tables say what the model says.
    fn check(&self) {
        assert_eq!(self.logic.functions().len(), self.processes.len());
        for (number, function) in self.logic.functions().iter() {
            let me = Who::Function(number);
            let listeners: BTreeSet<u32> =
                self.listeners.iter().filter(|(_, l)| l.holders.contains(&me)).map(|(id, _)| *id).collect();
            assert_eq!(function.holdings.listeners, listeners);
            let conns: BTreeSet<(ConnId, usize)> = self
                .conns
                .iter()
                .flat_map(|(id, c)| [(*id, 0, c), (*id, 1, c)])
                .filter(|(_, side, c)| c.holders[*side].contains(&me))
                .map(|(id, side, _)| (id, side))
                .collect();
            assert_eq!(function.holdings.conns, conns);
        }
        assert_eq!(self.logic.forks().len(), self.forks.len());
        assert_eq!(self.logic.segments().conns(), self.conns.len());
        assert_eq!(self.logic.listeners().iter().count(), self.listeners.len());
        for (id, listener) in self.logic.listeners().iter() {
            assert!(listener.queue.is_empty() || listener.waiters.is_empty());
            let queued = self.conns.values().filter(|c| c.queued && c.listener == id).count();
            assert_eq!(listener.queue.len(), queued);
            for f in listener.functions() {
                let belief = self.waits.get(&(Who::Function(f), id)).copied().unwrap_or(false);
                assert_eq!(belief, queued > 0, "{f} is wrong about {id}");
            }
        }
        for (id, conn) in &self.conns {
            for side in (0..2).filter(|side| conn.closed(1 - side)) {
                assert!(conn.ends[1 - side].is_some());
                if conn.ends[1 - side] == Some(End::Marked) {
                    continue;
                }
                for who in &conn.holders[side] {
                    let Who::Function(f) = *who else { continue };
                    assert!(self.told_gone.contains(&(f, *id)), "{f} does not know that {id:?} is over");
                }
            }
        }
        // Whatever is unanswered waits for something.
        for ((f, _), request) in &self.open {
            match request {
                Request::Connect { .. } | Request::Claim { .. } => {
                    assert!(!self.making.is_empty(), "{f} waits for no segment")
                }
                Request::Accept { .. } => {}
                other => panic!("{other:?} of {f} is not answered"),
            }
        }
        let parked: usize = self.logic.listeners().iter().map(|(_, l)| l.waiters.len()).sum();
        let accepts = self.open.values().filter(|r| matches!(r, Request::Accept { .. })).count();
        assert_eq!(parked, accepts);
    }

    /// The agent's work is done, everybody leaves, time passes: nothing is left.
    pub fn end(mut self) {
        for segment in self.making.clone() {
            self.ask(0, Request::SegmentMade { segment, ok: true });
        }
        assert!(self.open.values().all(|r| matches!(r, Request::Accept { .. })));
        for function in self.processes.keys().copied().collect::<Vec<_>>() {
            self.ask(0, Request::Detach { function });
        }
        for (parent, nonce) in self.watched.clone() {
            self.ask(0, Request::Child { parent, nonce, lives: false });
        }
        self.tick(ATTACH_US_MAX);
        assert!(self.logic.is_empty(), "{:?}", self.logic);
    }
}
