//! A host: the shipped logic, a model of its agent, and processes that do what they like.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use nic_coordinator::exchange::Exchange;
use nic_coordinator::hosts::calls::{self, CONNECT_US_MAX};
use nic_coordinator::hosts::finder::SEEK_US;
use nic_coordinator::hosts::{Hosts, Settings};
use nic_coordinator::logic::remote::RemoteSettings;
use nic_coordinator::logic::{Limits, Logic, Out};
use ring::bus::AGENT_FUNCTION;
use ring::hosts::{Addresses, Incarnation, KEY_BYTES};
use ring::msg::{ACCEPT_WAIT, Addr, Completion, ConnId, Request, Status};

use crate::oracle::{Data, Oracle};
use crate::random::Random;

pub const NETNS: u64 = 7;
/// Longest time that the agent takes to make a segment.
pub const AGENT_US_MAX: u64 = 5_000;
/// Every answer has come by then.
const ANSWER_US_MAX: u64 = CONNECT_US_MAX + SEEK_US + 2 * AGENT_US_MAX + 1_000;
const PORTS: std::ops::Range<u16> = 2000..2004;
/// Of listeners.
pub const BACKLOG: u32 = 3;
const CONNS_MAX: usize = 20;

pub fn card(host: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0A63_0000 + u32::try_from(host).unwrap() + 1)
}

pub fn number(card: Ipv4Addr) -> usize {
    usize::try_from(u32::from(card) - 0x0A63_0001).unwrap()
}

pub fn address(host: usize) -> [u8; 16] {
    Addr::v4((0x0B00_0001 + u32::try_from(host).unwrap()).to_be_bytes(), 0).ip
}

#[derive(Clone, Copy)]
enum Asked {
    Listen(Addr),
    Connect { src: Addr, since_us: u64 },
    Accept(u32),
}

#[derive(Default)]
struct Process {
    uid: u32,
    listeners: Vec<(u32, Addr)>,
    conns: Vec<(ConnId, u32)>,
    asked: BTreeMap<u32, Asked>,
}

pub struct Host {
    pub number: usize,
    pub logic: Logic,
    pub hosts: Hosts,
    pub exchange: Exchange,
    pub data: Data,
    /// How often it has started.
    pub run: u64,
    pub wakes_us: Option<u64>,
    processes: BTreeMap<u32, Process>,
    last_function: u32,
    last_token: u32,
    next_port: u16,
    /// Segments to be made, that the world has not seen.
    pub to_make: Vec<u32>,
    /// Connections whose other end was given up, by their functions.
    gone: Vec<(u32, ConnId)>,
}

/// How a world's hosts begin.
#[derive(Clone, Copy)]
pub struct Plan {
    pub announce: bool,
    pub failing: u64,
    pub limits: calls::Limits,
}

impl Host {
    pub fn boot(
        random: &mut Random,
        plan: Plan,
        number: usize,
        peers: &[usize],
        run: u64,
        now_us: u64,
        next_port: u16,
    ) -> Host {
        let bytes = u128::from(random.next()) << 64 | u128::from(random.next() | 1);
        let mut addresses = Addresses::NONE;
        addresses.push(address(number));
        let settings = Settings {
            card: card(number),
            incarnation: Incarnation(bytes.to_le_bytes()),
            epoch: u32::try_from(run).unwrap(),
            key: [9; KEY_BYTES],
            addresses,
            peers: peers.iter().map(|peer| card(*peer)).collect(),
            announce: plan.announce,
            limits: plan.limits,
        };
        let mut logic = Logic::new(Limits::default());
        logic.meet_hosts(RemoteSettings { netns: NETNS, addresses: [address(number)].into() });
        Host {
            number,
            logic,
            hosts: Hosts::new(settings, now_us),
            exchange: Exchange::default(),
            data: Data::new(plan.failing, card(number)),
            run,
            wakes_us: None,
            processes: BTreeMap::new(),
            last_function: AGENT_FUNCTION,
            last_token: 0,
            next_port,
            to_make: Vec::new(),
            gone: Vec::new(),
        }
    }

    pub fn next_port(&self) -> u16 {
        self.next_port
    }

    pub fn processes(&self) -> usize {
        self.processes.len()
    }

    fn ask(&mut self, now_us: u64, function: u32, request: Request, out: &mut Vec<Out>) -> u32 {
        self.last_token += 1;
        self.logic.handle(function, self.last_token, request, now_us, out).unwrap();
        self.last_token
    }

    /// A process appears, in a family of its own.
    pub fn spawn(&mut self, now_us: u64, root: bool, out: &mut Vec<Out>) {
        self.last_function += 1;
        let function = self.last_function;
        let uid = if root { 0 } else { 1000 };
        let (group, pid) = (function, function);
        let attach = Request::Attach { function, group, parent: 0, nonce: 0, uid, pid, netns: NETNS };
        self.processes.insert(function, Process { uid, ..Process::default() });
        self.ask(now_us, AGENT_FUNCTION, attach, out);
    }

    /// A process ends, in the middle of whatever it did.
    fn exit(&mut self, now_us: u64, function: u32, out: &mut Vec<Out>) {
        self.processes.remove(&function);
        self.ask(now_us, AGENT_FUNCTION, Request::Detach { function }, out);
    }

    pub fn exit_all(&mut self, now_us: u64, out: &mut Vec<Out>) {
        for function in self.processes.keys().copied().collect::<Vec<_>>() {
            self.exit(now_us, function, out);
        }
    }

    /// The agent has made a segment, or could not.
    pub fn made(&mut self, now_us: u64, segment: u32, ok: bool, out: &mut Vec<Out>) {
        self.ask(now_us, AGENT_FUNCTION, Request::SegmentMade { segment, ok }, out);
    }

    /// A process listens at each port of the set.
    pub fn listen_all(&mut self, now_us: u64, out: &mut Vec<Out>) {
        for function in self.processes.keys().copied().collect::<Vec<_>>() {
            for port in PORTS {
                self.listen(now_us, function, Addr { ip: address(self.number), port }, 1000, out);
            }
        }
    }

    fn listen(&mut self, now_us: u64, f: u32, addr: Addr, backlog: u32, out: &mut Vec<Out>) {
        let token = self.ask(now_us, f, Request::Listen { addr, backlog, flags: 0 }, out);
        self.processes.get_mut(&f).unwrap().asked.insert(token, Asked::Listen(addr));
    }

    /// One of its processes does something. `known`: how many hosts there are, and whom this one's coordinator looks for.
    pub fn act(
        &mut self,
        now_us: u64,
        random: &mut Random,
        known: (usize, &[usize]),
        oracle: &mut Oracle,
        out: &mut Vec<Out>,
    ) {
        let Some(f) = self.processes.keys().nth(random.index(self.processes.len().max(1))).copied() else {
            return;
        };
        let process = &self.processes[&f];
        match random.below(100) {
            0..=9 if process.listeners.len() < 3 => {
                let ip = if random.percent(30) { Addr::V4_ANY } else { address(self.number) };
                let port = PORTS.start + u16::try_from(random.below(4)).unwrap();
                self.listen(now_us, f, Addr { ip, port }, BACKLOG, out);
            }
            10..=44 if process.conns.len() + process.asked.len() < CONNS_MAX => {
                self.connect_somewhere(now_us, f, random, known, oracle, out);
            }
            45..=74 if !process.listeners.is_empty() && process.asked.len() < CONNS_MAX => {
                let listener = process.listeners[random.index(process.listeners.len())].0;
                let flags = if random.percent(50) { ACCEPT_WAIT } else { 0 };
                let token = self.ask(now_us, f, Request::Accept { listener, flags }, out);
                self.processes.get_mut(&f).unwrap().asked.insert(token, Asked::Accept(listener));
            }
            75..=93 if !process.conns.is_empty() => {
                let at = random.index(process.conns.len());
                let (conn, side) = self.processes.get_mut(&f).unwrap().conns.swap_remove(at);
                self.ask(now_us, f, Request::Close { conn, side, finished: random.percent(70) }, out);
            }
            94..=95 if !process.listeners.is_empty() => {
                let listener = self.processes.get_mut(&f).unwrap().listeners.swap_remove(0).0;
                self.ask(now_us, f, Request::Unlisten { listener }, out);
            }
            96..=97 => self.exit(now_us, f, out),
            _ => self.spawn(now_us, random.percent(30), out),
        }
    }

    fn connect_somewhere(
        &mut self,
        now_us: u64,
        f: u32,
        random: &mut Random,
        known: (usize, &[usize]),
        oracle: &mut Oracle,
        out: &mut Vec<Out>,
    ) {
        let port = PORTS.start + u16::try_from(random.below(4)).unwrap();
        let (world, neighbours) = known;
        // Mostly to who is known, if not everybody is.
        let other = match neighbours {
            [_, ..] if random.percent(80) => neighbours[random.index(neighbours.len())],
            _ => random.index(world),
        };
        // Somebody without a coordinator, now and then.
        let ip = if random.percent(5) { address(world + 5) } else { address(other) };
        let lie = random.below(20);
        let root = self.processes[&f].uid == 0;
        if self.next_port == 0 {
            return;
        }
        let own = address(self.number);
        let (src, legal) = match lie {
            0 => (Addr { ip: address((self.number + 1) % (world + 1)), port: 60_000 }, false),
            1 if !root => (Addr { ip: own, port: 80 }, false),
            _ => (Addr { ip: own, port: self.next_port }, true),
        };
        self.connect(now_us, f, Addr { ip, port }, (src, legal), oracle, out);
    }

    fn connect(
        &mut self,
        now_us: u64,
        f: u32,
        dst: Addr,
        (src, legal): (Addr, bool),
        oracle: &mut Oracle,
        out: &mut Vec<Out>,
    ) {
        if legal {
            // None is used twice: 0 once there are no more.
            self.next_port = if self.next_port >= 59_999 { 0 } else { self.next_port + 1 };
        }
        oracle.asks(src, dst, legal);
        let token = self.ask(now_us, f, Request::Connect { dst, src }, out);
        let asked = Asked::Connect { src, since_us: now_us };
        self.processes.get_mut(&f).unwrap().asked.insert(token, asked);
    }

    /// The first process connects to a port of a host that listens at all of them.
    pub fn connect_to(&mut self, now_us: u64, host: usize, oracle: &mut Oracle, out: &mut Vec<Out>) {
        let Some(f) = self.processes.keys().next().copied() else { return };
        let port = PORTS.start + self.next_port % 4;
        let src = Addr { ip: address(self.number), port: self.next_port };
        self.connect(now_us, f, Addr { ip: address(host), port }, (src, true), oracle, out);
    }

    /// What the logic says to functions here.
    pub fn hear(&mut self, now_us: u64, out: &[Out], oracle: &mut Oracle) {
        for Out { function, token, completion, .. } in out.iter().copied() {
            if let Completion::MakeSegment { segment, .. } = completion {
                assert_eq!(function, AGENT_FUNCTION);
                self.to_make.push(segment);
            }
            // Who is gone hears nothing.
            let Some(process) = self.processes.get_mut(&function) else { continue };
            let asked = process.asked.remove(&token);
            match (completion, asked) {
                (Completion::Done { status: Status::Ok, value }, Some(Asked::Listen(addr))) => {
                    process.listeners.push((value, addr));
                }
                (
                    Completion::Connected { status: Status::Ok, conn },
                    Some(Asked::Connect { src, since_us }),
                ) => {
                    process.conns.push((conn, 0));
                    oracle.connected(src, since_us, now_us);
                }
                (Completion::Connected { .. }, Some(Asked::Connect { .. })) => oracle.refused += 1,
                (
                    Completion::Accepted { status: Status::Ok, conn, peer, local, .. },
                    Some(Asked::Accept(id)),
                ) => {
                    let listens = process.listeners.iter().any(|(listener, addr)| {
                        *listener == id
                            && addr.port == local.port
                            && (addr.is_wildcard() || addr.ip == local.ip)
                    });
                    // What waited when the listener was closed by another holder is another test's affair: here each has one.
                    assert!(listens, "{local} is accepted by who does not listen there");
                    assert_eq!(local.ip, address(self.number), "accepted at the wrong host");
                    process.conns.push((conn, 1));
                    oracle.accepts(peer, local);
                }
                (Completion::PeerGone { conn, .. }, _) => self.gone.push((function, conn)),
                (Completion::Connected { .. }, None) => panic!("a connection that nobody asked for"),
                _ => {}
            }
        }
    }

    /// Every process takes what waits for it.
    pub fn accept_all(&mut self, now_us: u64, out: &mut Vec<Out>) {
        for f in self.processes.keys().copied().collect::<Vec<_>>() {
            for (listener, _) in self.processes[&f].listeners.clone() {
                let token = self.ask(now_us, f, Request::Accept { listener, flags: 0 }, out);
                self.processes.get_mut(&f).unwrap().asked.insert(token, Asked::Accept(listener));
            }
        }
    }

    /// A process whose peer is gone closes its own end, too. True if one did.
    pub fn close_gone(&mut self, now_us: u64, out: &mut Vec<Out>) -> bool {
        let mut gone = std::mem::take(&mut self.gone);
        for (f, process) in &self.processes {
            let ended = process.conns.iter().filter(|(conn, _)| self.data.has_ended(*conn));
            gone.extend(ended.map(|(conn, _)| (*f, *conn)));
        }
        for (f, conn) in &gone {
            let Some(process) = self.processes.get_mut(f) else { continue };
            if let Some(at) = process.conns.iter().position(|(held, _)| held == conn) {
                let (conn, side) = process.conns.swap_remove(at);
                self.ask(now_us, *f, Request::Close { conn, side, finished: false }, out);
            }
        }
        !gone.is_empty()
    }

    /// Nobody waits too long.
    pub fn check(&self, now_us: u64) {
        for (f, process) in &self.processes {
            for asked in process.asked.values() {
                if let Asked::Connect { src, since_us } = asked {
                    let late = now_us > since_us + ANSWER_US_MAX;
                    assert!(!late, "process {f} of h{} has no answer for {src}", self.number);
                }
            }
        }
    }
}
