//! Makes up a program, one step at a time, while it runs on the kernel: the next step depends on what is there.

use std::collections::BTreeMap;

use harness::Outcome;
use harness::wire::{PollBy, RecvBy, SendBy};
use libc::{
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLET, EPOLLIN, EPOLLONESHOT, EPOLLOUT, EPOLLRDHUP,
    IPPROTO_TCP, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_PEEK, MSG_TRUNC, MSG_WAITALL, POLLIN, POLLOUT, POLLRDHUP,
    SHUT_RD, SHUT_RDWR, SHUT_WR, SO_ACCEPTCONN, SO_ERROR, SO_KEEPALIVE, SO_LINGER, SO_RCVTIMEO, SO_REUSEADDR,
    SO_SNDTIMEO, SO_TYPE, SOL_SOCKET, TCP_NODELAY,
};

use crate::program::{Act, Name, Program, ROOTS, Step};
use crate::runner::{Answer, RECV_BY, Record, Runner, SEND_BY};

/// Processes in one program, at most.
const PROCESSES_MAX: usize = 4;
/// Descriptors in one process, at most.
const NAMES_MAX: usize = 7;
/// Calls that may be blocked at a time in one process.
const BLOCKED_MAX: usize = 2;
/// Bytes that one thing is sent in all, so that nothing is full by chance: how much fits is nobody's promise.
const SENT_MAX: usize = 40_000;
/// Backlog of every listener: more than the connections of any program.
const BACKLOG: i32 = 32;
/// A time-out that passes within a step, in ms.
const SHORT_MS: i32 = 3;
/// Sizes of a send or receive, in bytes. How much of one greater send a reader that waits for it gets at once is nobody's promise,
/// so a send is one record of ours.
const SIZES: [usize; 10] = [0, 1, 2, 5, 10, 10, 100, 1000, 4096, 16_000];

/// Random numbers from a seed (splitmix64).
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T], otherwise: T) -> T {
        from.get(self.below(from.len())).copied().unwrap_or(otherwise)
    }
}

/// How far a thing has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Fresh,
    Bound,
    Listening,
    /// Connected, connecting or having been so; a pair's end.
    Stream,
    PipeRead,
    PipeWrite,
    Epoll,
}

/// What descriptors stand for; several may stand for one.
#[derive(Clone, Debug)]
struct Thing {
    kind: Kind,
    v6: bool,
    /// Where it is bound.
    place: u32,
    sent: usize,
    /// How much more fits is nobody's promise.
    full: bool,
    /// Several processes have it.
    inherited: bool,
    /// What an epoll set has had as members.
    members: Vec<usize>,
    /// A call waits there. Two that wait for one event are a race.
    awaited: bool,
}

/// What the generator knows.
pub struct Generator {
    random: Random,
    things: Vec<Thing>,
    /// Per process: what its descriptors stand for.
    names: BTreeMap<usize, BTreeMap<Name, usize>>,
    /// Per process: steps with calls that are blocked, and the things that they wait for.
    blocked: BTreeMap<usize, Vec<(usize, Vec<usize>)>>,
    next_name: Name,
    /// Address and family of each place where somebody listens or did.
    places: Vec<(String, bool)>,
    next_process: usize,
    program: Program,
}

impl Generator {
    /// For the program of one seed.
    pub fn new(seed: u64) -> Generator {
        Generator {
            random: Random(seed),
            things: Vec::new(),
            names: (0..ROOTS).map(|p| (p, BTreeMap::new())).collect(),
            blocked: BTreeMap::new(),
            next_name: 0,
            places: Vec::new(),
            next_process: ROOTS,
            program: Program::default(),
        }
    }

    /// Makes up a program of `steps` steps on `runner`, which must be fresh; and what each step gave.
    ///
    /// # Errors
    /// When the run breaks down.
    pub fn run(mut self, runner: &mut Runner, steps: usize) -> Outcome<(Program, Vec<Record>)> {
        let mut records = Vec::new();
        for step in self.opening() {
            records.push(self.make_step(runner, step)?);
        }
        while self.program.0.len() < steps {
            let living: Vec<usize> = self.names.keys().copied().filter(|p| runner.lives(*p)).collect();
            if living.is_empty() {
                break;
            }
            let p = self.random.pick(&living, 0);
            let Some(act) = self.choose(p, living.len()) else { continue };
            let races = act.may_block() && self.is_awaited(&self.waits_for(p, &act));
            if races || self.ends_full(p, &act) || !runner.is_determined(p, &act) {
                continue;
            }
            records.push(self.make_step(runner, Step { p, act })?);
        }
        Ok((self.program, records))
    }

    fn make_step(&mut self, runner: &mut Runner, step: Step) -> Outcome<Record> {
        let record = runner.step(&step, None)?;
        self.learn(&step, &record);
        self.program.0.push(step);
        Ok(record)
    }

    /// Most programs begin with connections, so that there is something to do.
    fn opening(&mut self) -> Vec<Step> {
        if self.random.chance(10) {
            return Vec::new();
        }
        let ip = self.random.pick(&["127.0.0.1", "127.0.0.1", "::1"], "::1").to_owned();
        let v6 = ip == "::1";
        let (s, place) = (self.name(), 1);
        self.places.push((ip.clone(), v6));
        let mut acts = vec![
            (0, Act::Socket { new: s, v6, nonblocking: false }),
            (0, Act::Bind { s, ip: ip.clone(), place }),
            (0, Act::Listen { s, backlog: BACKLOG }),
        ];
        for _ in 0..1 + self.random.below(2) {
            let client = self.name();
            acts.push((1, Act::Socket { new: client, v6, nonblocking: self.random.chance(20) }));
            acts.push((1, Act::Connect { s: client, ip: ip.clone(), place }));
            acts.push((0, Act::Accept { s, new: self.name(), nonblocking: self.random.chance(20) }));
        }
        acts.into_iter().map(|(p, act)| Step { p, act }).collect()
    }

    fn thing(&self, p: usize, name: Name) -> Option<&Thing> {
        self.things.get(*self.names.get(&p)?.get(&name)?)
    }

    fn name(&mut self) -> Name {
        self.next_name += 1;
        self.next_name
    }

    /// The next act of process `p`, if the dice fall on something possible.
    fn choose(&mut self, p: usize, living: usize) -> Option<Act> {
        let names: Vec<Name> = self.names.get(&p)?.keys().copied().collect();
        let room = names.len() < NAMES_MAX;
        let dice = self.random.below(100);
        if dice < 4 {
            return self.process_act(p, living);
        }
        if names.is_empty() || (room && dice < 14) {
            return room.then(|| self.make());
        }
        if dice < 24 && self.can_block(p) {
            return self.poll(p, &names);
        }
        if dice < 32 {
            return self.epoll(p, &names, room);
        }
        let s = self.random.pick(&names, 0);
        if dice < 42 {
            return self.any(p, s, &names, room);
        }
        let thing = self.thing(p, s)?.clone();
        match thing.kind {
            Kind::Fresh => self.fresh(s, &thing),
            Kind::Bound => Some(Act::Listen { s, backlog: BACKLOG }),
            Kind::Listening => (room && !thing.awaited && self.can_block(p)).then(|| {
                let nonblocking = self.random.chance(30);
                Act::Accept { s, new: self.name(), nonblocking }
            }),
            Kind::Stream => self.stream(p, s, &thing),
            Kind::PipeRead => self.receive(p, s, &thing, true),
            Kind::PipeWrite => self.send(s, &thing, true),
            Kind::Epoll => self.epoll(p, &names, room),
        }
    }

    fn can_block(&self, p: usize) -> bool {
        self.blocked.get(&p).is_none_or(|b| b.len() < BLOCKED_MAX)
    }

    fn process_act(&mut self, p: usize, living: usize) -> Option<Act> {
        match self.random.below(10) {
            0..5 if self.next_process < PROCESSES_MAX => {
                self.next_process += 1;
                Some(Act::Fork { child: self.next_process - 1 })
            }
            5 if living > 2 => Some(Act::Exit {}),
            6 if living > 2 => Some(Act::Killed {}),
            7.. if self.blocked.get(&p).is_none_or(Vec::is_empty) => Some(Act::Exec {}),
            _ => None,
        }
    }

    fn make(&mut self) -> Act {
        match self.random.below(20) {
            0 => Act::Socketpair { new: [self.name(), self.name()], ty: libc::SOCK_STREAM },
            1 => Act::Pipe { new: [self.name(), self.name()] },
            2 | 3 => Act::Epoll { new: self.name() },
            _ => {
                let (v6, nonblocking) = (self.random.chance(25), self.random.chance(25));
                Act::Socket { new: self.name(), v6, nonblocking }
            }
        }
    }

    fn fresh(&mut self, s: Name, thing: &Thing) -> Option<Act> {
        let listeners = self.things.iter().filter(|t| t.kind == Kind::Listening).count();
        if listeners == 0 || self.random.chance(15) {
            let ip = match thing.v6 {
                true => self.random.pick(&["::1", "::", "::1", "::ffff:127.0.0.1"], "::1"),
                false => self.random.pick(&["127.0.0.1", "0.0.0.0", "127.0.0.1", "127.0.0.2"], "127.0.0.1"),
            };
            self.places.push((ip.to_owned(), thing.v6));
            let place = u32::try_from(self.places.len()).unwrap_or(0);
            return Some(Act::Bind { s, ip: ip.to_owned(), place });
        }
        self.connect(s, thing)
    }

    fn connect(&mut self, s: Name, thing: &Thing) -> Option<Act> {
        let listening: Vec<u32> =
            self.things.iter().filter(|t| t.kind == Kind::Listening).map(|t| t.place).collect();
        // Now and then a place where nobody listens, or does no longer.
        let place = match self.random.chance(7) {
            true => self.random.below(self.places.len() + 2),
            false => usize::try_from(self.random.pick(&listening, 0)).ok()?,
        };
        let bound = place.checked_sub(1).and_then(|at| self.places.get(at));
        let ip = match (bound.map(|(ip, _)| ip.as_str()), thing.v6) {
            (Some("::1" | "::"), true) => "::1",
            (Some("127.0.0.2"), false) => "127.0.0.2",
            (Some("127.0.0.2"), true) => "::ffff:127.0.0.2",
            (_, true) => "::ffff:127.0.0.1",
            (_, false) => "127.0.0.1",
        };
        Some(Act::Connect { s, ip: ip.to_owned(), place: u32::try_from(place).ok()? })
    }

    fn stream(&mut self, p: usize, s: Name, thing: &Thing) -> Option<Act> {
        match self.random.below(100) {
            0..45 => self.send(s, thing, false),
            45..88 => self.receive(p, s, thing, false),
            // Known to differ: a relative that waits in poll(2) does not hear of it.
            88..93 if thing.inherited => None,
            88..93 => {
                let how = self.random.pick(&[SHUT_WR, SHUT_WR, SHUT_RD, SHUT_RDWR], SHUT_WR);
                Some(Act::Shutdown { s, how })
            }
            // An IPv6 socket that was refused over IPv4 stays on IPv4, which only the kernel knows.
            93 if !thing.v6 => self.connect(s, thing),
            94 => Some(Act::Getpeername { s }),
            95 => Some(Act::Getsockname { s }),
            96 => Some(Act::Fill { s }),
            97..100 if !thing.awaited => Some(Act::Empty { s }),
            _ => None,
        }
    }

    fn send(&mut self, s: Name, thing: &Thing, pipe: bool) -> Option<Act> {
        let len = self.random.pick(&SIZES, 1);
        if thing.full || thing.sent + len > SENT_MAX {
            return None;
        }
        let by = match pipe {
            true => SendBy::Write,
            false => self.random.pick(&SEND_BY, SEND_BY[0]),
        };
        let flags = self.random.pick(&[0, 0, MSG_NOSIGNAL, MSG_DONTWAIT], 0);
        Some(Act::Send { s, len, by, flags })
    }

    fn receive(&mut self, p: usize, s: Name, thing: &Thing, pipe: bool) -> Option<Act> {
        if thing.awaited || !self.can_block(p) {
            return None;
        }
        let len = self.random.pick(&SIZES, 1);
        let by = match pipe {
            true => RecvBy::Read,
            false => self.random.pick(&RECV_BY, RECV_BY[0]),
        };
        let all = [
            0,
            0,
            0,
            0,
            MSG_DONTWAIT,
            MSG_DONTWAIT,
            MSG_PEEK,
            MSG_WAITALL,
            MSG_TRUNC,
            MSG_PEEK | MSG_DONTWAIT,
        ];
        let mut flags = self.random.pick(&all, 0);
        if len == 0 {
            // A blocked one returns at whatever wakes it, be it nothing to do with it.
            flags |= MSG_DONTWAIT;
        }
        Some(Act::Recv {
            s,
            len,
            by: if flags & MSG_DONTWAIT == 0 || pipe { by } else { RecvBy::Recv },
            flags,
        })
    }

    /// What can be done with any descriptor.
    fn any(&mut self, p: usize, s: Name, names: &[Name], room: bool) -> Option<Act> {
        match self.random.below(24) {
            0..5 => Some(Act::Close { s }),
            5..8 if room => Some(Act::Dup { s, new: self.name() }),
            8..10 => Some(Act::Dup2 { s, to: self.random.pick(names, s) }),
            10..13 => Some(Act::Nonblocking { s, on: self.random.chance(50) }),
            13..15 if !self.things.iter().any(|t| t.full) => Some(Act::Fionread { s }),
            15..19 => {
                let (level, name, len) = self.random.pick(&ASKED, ASKED[0]);
                Some(Act::Getsockopt { s, level, name, len })
            }
            19..21 => {
                let (level, name) = self.random.pick(&SET, SET[0]);
                Some(Act::Setsockopt { s, level, name, value: vec![i32::from(self.random.chance(70))] })
            }
            21 => {
                let value = vec![i32::from(self.random.chance(70)), 0];
                Some(Act::Setsockopt { s, level: SOL_SOCKET, name: SO_LINGER, value })
            }
            22 => {
                let name = self.random.pick(&[SO_RCVTIMEO, SO_SNDTIMEO], SO_RCVTIMEO);
                Some(Act::SetTimeout { s, name, ms: i64::from(SHORT_MS) })
            }
            23 if self.thing(p, s).is_some_and(|t| t.kind == Kind::Listening) => {
                Some(Act::Listen { s, backlog: BACKLOG })
            }
            _ => None,
        }
    }

    fn poll(&mut self, p: usize, names: &[Name]) -> Option<Act> {
        let by =
            self.random.pick(&[PollBy::Poll, PollBy::Ppoll, PollBy::Select, PollBy::Pselect], PollBy::Poll);
        let count = 1 + self.random.below(3);
        let mut set = Vec::new();
        for _ in 0..count {
            let name = self.random.pick(names, 0);
            let events = match by {
                PollBy::Poll | PollBy::Ppoll => [POLLIN, POLLOUT, POLLIN | POLLOUT, POLLIN | POLLRDHUP],
                _ => [POLLIN, POLLOUT, POLLIN | POLLOUT, POLLIN],
            };
            // Known to differ: a set in which somebody has slept may look ready for nothing.
            let sound = self.thing(p, name).is_some_and(|t| t.kind != Kind::Epoll);
            if sound && set.iter().all(|(other, _)| *other != name) {
                set.push((name, self.random.pick(&events, POLLIN)));
            }
        }
        Some(Act::Poll { set, timeout_ms: self.timeout(), by })
    }

    fn timeout(&mut self) -> i32 {
        self.random.pick(&[0, 0, 0, SHORT_MS, -1], 0)
    }

    fn epoll(&mut self, p: usize, names: &[Name], room: bool) -> Option<Act> {
        let own = |n: &Name| self.thing(p, *n).is_some_and(|t| t.kind == Kind::Epoll && !t.inherited);
        let sets: Vec<Name> = names.iter().copied().filter(own).collect();
        if sets.is_empty() {
            return room.then(|| Act::Epoll { new: self.name() });
        }
        let s = self.random.pick(&sets, 0);
        if self.random.chance(50) {
            // Room for all: which of several come first is nobody's promise.
            let max = 16;
            return self.can_block(p).then(|| Act::EpollWait { s, max, timeout_ms: self.timeout() });
        }
        let member = self.random.pick(names, 0);
        let nested = self.thing(p, member).is_some_and(|t| t.kind == Kind::Epoll);
        if nested || [s, member].iter().any(|n| self.thing(p, *n).is_some_and(|t| t.awaited || t.inherited)) {
            return None;
        }
        let op =
            self.random.pick(&[EPOLL_CTL_ADD, EPOLL_CTL_ADD, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL], 1);
        let what = self.random.pick(&[EPOLLIN, EPOLLIN | EPOLLOUT, EPOLLOUT, EPOLLIN | EPOLLRDHUP], EPOLLIN);
        let how = self.random.pick(&[0, 0, EPOLLET, EPOLLET, EPOLLONESHOT, EPOLLET | EPOLLONESHOT], 0);
        Some(Act::EpollCtl { s, op, member, events: (what | how).cast_unsigned() })
    }

    /// Takes note of what a step did.
    fn learn(&mut self, step: &Step, record: &Record) {
        let p = step.p;
        if matches!(step.act, Act::Exit {} | Act::Killed {}) {
            self.names.remove(&p);
            for (_, things) in self.blocked.remove(&p).unwrap_or_default() {
                self.set_awaited(&things, false);
            }
        }
        let number = self.program.0.len();
        match &record.answer {
            Answer::Returned(out) if out.ret >= 0 => self.succeeded(p, &step.act),
            // A refused one has been tried; a filled one says EAGAIN.
            Answer::Returned(_) if matches!(step.act, Act::Connect { .. } | Act::Fill { .. }) => {
                self.succeeded(p, &step.act);
            }
            Answer::Blocked => {
                let things = self.waits_for(p, &step.act);
                self.set_awaited(&things, true);
                self.blocked.entry(p).or_default().push((number, things));
            }
            _ => {}
        }
        for (earlier, out) in &record.released {
            let Some(owner) = self.program.0.get(*earlier).cloned() else { continue };
            let list = self.blocked.entry(owner.p).or_default();
            if let Some(at) = list.iter().position(|(step, _)| step == earlier) {
                let (_, things) = list.remove(at);
                self.set_awaited(&things, false);
            }
            if out.ret >= 0 {
                self.succeeded(owner.p, &owner.act);
            }
        }
    }

    /// The things that a call may wait for.
    fn waits_for(&self, p: usize, act: &Act) -> Vec<usize> {
        let Some(names) = self.names.get(&p) else { return Vec::new() };
        let of = |name: &Name| names.get(name).copied();
        let mut things: Vec<usize> = match act {
            Act::Recv { s, .. } | Act::Accept { s, .. } | Act::EpollWait { s, .. } => {
                of(s).into_iter().collect()
            }
            Act::Poll { set, .. } => set.iter().filter_map(|(name, _)| of(name)).collect(),
            _ => Vec::new(),
        };
        let members = things.iter().filter_map(|t| self.things.get(*t)).flat_map(|t| t.members.clone());
        things.extend(members.collect::<Vec<_>>());
        things
    }

    /// True for what ends a stream that is full: when its end gets through is nobody's promise, nor when the reset comes back that
    /// answers what still waited to be sent to who reads no more.
    fn ends_full(&self, p: usize, act: &Act) -> bool {
        let full = |name: &Name| self.thing(p, *name).is_some_and(|t| t.full);
        match act {
            Act::Shutdown { how, .. } if *how != libc::SHUT_WR => self.things.iter().any(|t| t.full),
            Act::Shutdown { s, .. } | Act::Close { s } | Act::Dup2 { to: s, .. } => full(s),
            Act::Exit {} | Act::Killed {} => self.names.get(&p).is_some_and(|n| n.keys().any(full)),
            _ => false,
        }
    }

    fn is_awaited(&self, things: &[usize]) -> bool {
        things.iter().filter_map(|t| self.things.get(*t)).any(|t| t.awaited)
    }

    fn set_awaited(&mut self, things: &[usize], awaited: bool) {
        for thing in things {
            if let Some(thing) = self.things.get_mut(*thing) {
                thing.awaited = awaited;
            }
        }
    }

    fn add(&mut self, p: usize, name: Name, kind: Kind, v6: bool) {
        self.things.push(Thing {
            kind,
            v6,
            place: 0,
            sent: 0,
            full: false,
            inherited: false,
            members: Vec::new(),
            awaited: false,
        });
        self.names.entry(p).or_default().insert(name, self.things.len() - 1);
    }

    fn change(&mut self, p: usize, s: Name, change: impl FnOnce(&mut Thing)) {
        let thing = self.names.get(&p).and_then(|n| n.get(&s)).copied();
        if let Some(thing) = thing.and_then(|t| self.things.get_mut(t)) {
            change(thing);
        }
    }

    fn succeeded(&mut self, p: usize, act: &Act) {
        match act {
            Act::Socket { new, v6, .. } => self.add(p, *new, Kind::Fresh, *v6),
            Act::Accept { new, .. } => self.add(p, *new, Kind::Stream, false),
            Act::Epoll { new } => self.add(p, *new, Kind::Epoll, false),
            Act::Socketpair { new, .. } => new.iter().for_each(|n| self.add(p, *n, Kind::Stream, false)),
            Act::Pipe { new: [read, write] } => {
                self.add(p, *read, Kind::PipeRead, false);
                self.add(p, *write, Kind::PipeWrite, false);
            }
            Act::Bind { s, place, .. } => self.change(p, *s, |t| {
                t.kind = Kind::Bound;
                t.place = *place;
            }),
            Act::Listen { s, .. } => self.change(p, *s, |t| t.kind = Kind::Listening),
            Act::Connect { s, .. } => self.change(p, *s, |t| t.kind = Kind::Stream),
            Act::Send { s, len, .. } => self.change(p, *s, |t| t.sent += len),
            Act::Fill { s } => self.change(p, *s, |t| t.full = true),
            Act::EpollCtl { s, member, .. } => {
                let member = self.names.get(&p).and_then(|n| n.get(member)).copied();
                self.change(p, *s, |t| t.members.extend(member));
            }
            Act::Close { s } => {
                if let Some(names) = self.names.get_mut(&p) {
                    names.remove(s);
                }
            }
            Act::Dup { s, new: to } | Act::Dup2 { s, to } => {
                if let Some(names) = self.names.get_mut(&p)
                    && let Some(thing) = names.get(s).copied()
                {
                    names.insert(*to, thing);
                }
            }
            Act::Fork { child } => {
                let copy = self.names.get(&p).cloned().unwrap_or_default();
                for thing in copy.values() {
                    if let Some(thing) = self.things.get_mut(*thing) {
                        thing.inherited = true;
                    }
                }
                self.names.insert(*child, copy);
            }
            _ => {}
        }
    }
}

/// Options whose values are the same whatever carries the data.
const ASKED: [(i32, i32, usize); 8] = [
    (SOL_SOCKET, SO_ERROR, 4),
    (SOL_SOCKET, SO_ERROR, 4),
    (SOL_SOCKET, SO_TYPE, 4),
    (SOL_SOCKET, SO_ACCEPTCONN, 4),
    (SOL_SOCKET, SO_KEEPALIVE, 4),
    (SOL_SOCKET, SO_LINGER, 8),
    (SOL_SOCKET, SO_RCVTIMEO, 16),
    (IPPROTO_TCP, TCP_NODELAY, 4),
];

/// Options that are set to 0 or 1.
const SET: [(i32, i32); 3] =
    [(SOL_SOCKET, SO_KEEPALIVE), (SOL_SOCKET, SO_REUSEADDR), (IPPROTO_TCP, TCP_NODELAY)];
