//! Hosts on virtual time, on a network that loses, repeats, reorders and cuts, and whose hosts, coordinators and processes end at any moment. All
//! follows from one number.

use std::collections::{BTreeMap, BTreeSet};

use nic_coordinator::hosts::calls::{CONNECT_US_MAX, Limits, REMEMBER_US};
use nic_coordinator::hosts::{ANNOUNCE_EVERY_US, Destination, LOST_AFTER_US, RETRY_US};
use nic_coordinator::logic::Out;
use ring::hosts::{BODY_BYTES_MIN, HEAD_BYTES, TAG_BYTES};

use crate::host::{AGENT_US_MAX, BACKLOG, Host, Plan, card, number};
use crate::oracle::Oracle;
use crate::random::Random;

/// How bad the network is, and how slow.
#[derive(Clone, Copy)]
pub struct Network {
    pub loss_percent: u64,
    pub duplicate_percent: u64,
    pub delay_us: (u64, u64),
}

pub const GOOD: Network = Network { loss_percent: 0, duplicate_percent: 0, delay_us: (20, 60) };
const BAD: Network = Network { loss_percent: 10, duplicate_percent: 5, delay_us: (10, 30_000) };

/// A `Hello` with one address, as all hosts here have.
const GREETING_BYTES: usize = HEAD_BYTES + BODY_BYTES_MIN + 16 + TAG_BYTES;

enum Event {
    Arrives { to: usize, from: usize, datagram: Vec<u8> },
    Wakes { host: usize },
    Acts { host: usize },
    Made { host: usize, run: u64, segment: u32 },
    Restarts { host: usize },
    Gone { host: usize },
    Back { host: usize },
    Cuts,
    Heals,
}

pub struct World {
    pub random: Random,
    pub now_us: u64,
    pub hosts: Vec<Host>,
    pub oracle: Oracle,
    pub network: Network,
    pub datagrams: u64,
    pub bytes: u64,
    /// Datagrams about connections: those that are longer than a greeting with one address, or shorter.
    pub of_calls: u64,
    pub events_done: u64,
    events: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    sides: Vec<u64>,
    gone: BTreeSet<usize>,
    neighbours: Vec<Vec<usize>>,
    plan: Plan,
    /// Processes act.
    lively: bool,
    act_every_us: u64,
}

impl World {
    /// `mesh`: everybody knows everybody, by announcing; otherwise a ring and some chords, by settings.
    pub fn new(seed: u64, count: usize, mesh: bool, failing: u64, limits: Limits) -> World {
        let mut random = Random(seed);
        let neighbours = (0..count).map(|host| {
            let mut some =
                BTreeSet::from([(host + 1) % count, (host + count - 1) % count, random.index(count)]);
            some.remove(&host);
            if mesh { Vec::new() } else { some.into_iter().collect() }
        });
        let mut world = World {
            neighbours: neighbours.collect(),
            random: Random(seed ^ 0x5555),
            now_us: 0,
            hosts: Vec::new(),
            oracle: Oracle::default(),
            network: GOOD,
            datagrams: 0,
            bytes: 0,
            of_calls: 0,
            events_done: 0,
            events: BTreeMap::new(),
            scheduled: 0,
            sides: vec![0; count],
            gone: BTreeSet::new(),
            plan: Plan { announce: mesh, failing, limits },
            lively: false,
            act_every_us: 0,
        };
        for host in 0..count {
            let peers = world.neighbours[host].clone();
            let booted = Host::boot(&mut world.random, world.plan, host, &peers, 1, 0, 1024);
            world.hosts.push(booted);
            let at_us = world.random.below(100_000);
            world.schedule(at_us, Event::Wakes { host });
        }
        world
    }

    fn schedule(&mut self, at_us: u64, event: Event) {
        self.scheduled += 1;
        self.events.insert((at_us, self.scheduled), event);
    }

    /// Lets processes act from now on, `each_s` times a second on each host.
    pub fn enliven(&mut self, each_s: u64) {
        (self.lively, self.act_every_us) = (true, 1_000_000 / each_s);
        for host in 0..self.hosts.len() {
            let at_us = self.now_us + self.random.below(self.act_every_us);
            self.schedule(at_us, Event::Acts { host });
        }
    }

    /// Faults of every kind, at random moments of the next `trouble_us`.
    fn plan_trouble(&mut self, trouble_us: u64, every_us: u64) {
        self.network = BAD;
        for _ in 0..trouble_us / every_us {
            let at_us = self.now_us + self.random.below(trouble_us);
            let host = self.random.index(self.hosts.len());
            let event = match self.random.below(12) {
                0..=3 => Event::Restarts { host },
                4..=5 => Event::Gone { host },
                6..=7 => Event::Cuts,
                _ => Event::Heals,
            };
            if let Event::Gone { .. } = event {
                let back_us = at_us + self.random.below(8_000_000);
                self.schedule(back_us, Event::Back { host });
            }
            self.schedule(at_us, event);
        }
    }

    /// Runs until `end_us`.
    pub fn run(&mut self, end_us: u64) {
        while let Some(entry) = self.events.first_entry()
            && entry.key().0 <= end_us
        {
            let ((now_us, _), event) = entry.remove_entry();
            self.now_us = now_us;
            self.events_done += 1;
            self.happen(event);
        }
        self.now_us = end_us;
    }

    fn happen(&mut self, event: Event) {
        let now_us = self.now_us;
        match event {
            Event::Arrives { to, from, datagram } => {
                if !self.gone.contains(&to) {
                    self.hosts[to].hosts.receive(now_us, card(from), &datagram);
                    self.settle(to, Vec::new());
                }
            }
            Event::Wakes { host } => {
                if !self.gone.contains(&host) {
                    self.settle(host, Vec::new());
                }
            }
            Event::Acts { host } => self.acts(host),
            Event::Made { host, run, segment } => {
                if self.hosts[host].run == run && !self.gone.contains(&host) {
                    let mut out = Vec::new();
                    let ok = self.network.loss_percent == 0 || !self.random.percent(3);
                    self.hosts[host].made(now_us, segment, ok, &mut out);
                    self.settle(host, out);
                }
            }
            Event::Restarts { host } => {
                if !self.gone.contains(&host) {
                    if self.random.percent(50) {
                        for (to, datagram) in self.hosts[host].hosts.farewell() {
                            self.transmit(host, number(to), &datagram);
                        }
                    }
                    self.boot(host);
                }
            }
            Event::Gone { host } => {
                self.gone.insert(host);
            }
            Event::Back { host } => {
                if self.gone.remove(&host) {
                    self.boot(host);
                }
            }
            Event::Cuts => {
                for side in &mut self.sides {
                    *side = self.random.below(2);
                }
            }
            Event::Heals => self.sides.fill(0),
        }
    }

    fn boot(&mut self, host: usize) {
        let old = &self.hosts[host];
        self.oracle.forget(&old.data);
        let (run, port) = (old.run + 1, old.next_port());
        let peers = self.neighbours[host].clone();
        self.hosts[host] = Host::boot(&mut self.random, self.plan, host, &peers, run, self.now_us, port);
        self.settle(host, Vec::new());
    }

    fn acts(&mut self, host: usize) {
        if !self.lively {
            return;
        }
        let mut out = Vec::new();
        if !self.gone.contains(&host) {
            let known = (self.hosts.len(), self.neighbours[host].as_slice());
            let (acting, random, oracle) = (&mut self.hosts[host], &mut self.random, &mut self.oracle);
            while acting.processes() < 3 {
                acting.spawn(self.now_us, random.percent(30), &mut out);
            }
            acting.act(self.now_us, random, known, oracle, &mut out);
            self.settle(host, out);
        }
        let at_us = self.now_us + 1 + self.random.below(2 * self.act_every_us);
        self.schedule(at_us, Event::Acts { host });
    }

    /// Everything that follows at once from what a host was told.
    pub fn settle(&mut self, host: usize, mut out: Vec<Out>) {
        loop {
            self.exchange(host, &mut out);
            out.clear();
            self.send(host);
            // What came to its end while datagrams were made.
            self.exchange(host, &mut out);
            out.clear();
            if !self.hosts[host].close_gone(self.now_us, &mut out) {
                break;
            }
        }
        let run = self.hosts[host].run;
        for segment in std::mem::take(&mut self.hosts[host].to_make) {
            let at_us = self.now_us + 100 + self.random.below(AGENT_US_MAX - 100);
            self.schedule(at_us, Event::Made { host, run, segment });
        }
        self.hosts[host].check(self.now_us);
        self.set_alarm(host);
    }

    fn exchange(&mut self, host: usize, out: &mut Vec<Out>) {
        let Host { logic, hosts, exchange, data, .. } = &mut self.hosts[host];
        data.begin(&self.oracle);
        exchange.turn(self.now_us, (logic, hosts), data, out);
        data.settle(logic, &mut self.oracle);
        self.hosts[host].hear(self.now_us, out, &mut self.oracle);
    }

    fn send(&mut self, host: usize) {
        while let Some((destination, datagram)) = self.hosts[host].hosts.poll(self.now_us) {
            match destination {
                Destination::Peer(to) => self.transmit(host, number(to), &datagram),
                Destination::Everybody => {
                    (0..self.hosts.len()).for_each(|to| self.transmit(host, to, &datagram));
                }
            }
        }
    }

    fn set_alarm(&mut self, host: usize) {
        let now_us = self.now_us;
        let woken = &mut self.hosts[host];
        // What the last turn has added is sent in the next one.
        let next_us = woken.hosts.next_us().map_or(u64::MAX, |at| at.max(now_us + 1));
        if woken.wakes_us.is_none_or(|at| at > next_us || at <= now_us) && next_us < u64::MAX {
            woken.wakes_us = Some(next_us);
            self.schedule(next_us, Event::Wakes { host });
        }
    }

    fn transmit(&mut self, from: usize, to: usize, datagram: &[u8]) {
        self.datagrams += 1;
        self.bytes += datagram.len() as u64;
        self.of_calls += u64::from(datagram.len() != GREETING_BYTES);
        let Network { loss_percent, duplicate_percent, delay_us: (least, most) } = self.network;
        // Nobody has this address.
        if to >= self.hosts.len() || from == to || self.sides[from] != self.sides[to] {
            return;
        }
        let copies = if loss_percent > 0 && self.random.percent(loss_percent) {
            0
        } else if duplicate_percent > 0 && self.random.percent(duplicate_percent) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let at_us = self.now_us + least + self.random.below(most - least);
            self.schedule(at_us, Event::Arrives { to, from, datagram: datagram.to_vec() });
        }
    }

    /// Faults for a while, then peace, then all processes end: what must be true then.
    pub fn live(&mut self, trouble_us: u64, acts_each_s: u64) {
        self.run(500_000);
        self.enliven(acts_each_s);
        self.plan_trouble(trouble_us, 400_000);
        self.run(self.now_us + trouble_us);
        self.network = GOOD;
        self.sides.fill(0);
        for host in std::mem::take(&mut self.gone) {
            self.boot(host);
        }
        // They do as before while hosts find each other again.
        self.run(self.now_us + LOST_AFTER_US);
        self.lively = false;
        self.run(self.now_us + 2 * RETRY_US.1 + ANNOUNCE_EVERY_US + LOST_AFTER_US + CONNECT_US_MAX);
        for _ in 0..=BACKLOG {
            for host in 0..self.hosts.len() {
                let mut out = Vec::new();
                self.hosts[host].accept_all(self.now_us, &mut out);
                self.settle(host, out);
            }
            self.run(self.now_us + 10_000);
        }
        for host in &self.hosts {
            for (conn, id) in &host.data.of_conn {
                let Some(open) = host.logic.segments().get(*conn) else { panic!("{conn:?} is nobody's") };
                let Some((_, far)) = open.remote else { panic!("{open:?} is at home") };
                // One whose other end is closed is this process's affair.
                if open.ends[far].is_none() {
                    self.oracle.check_pair(*id, || format!("h{}: {open:?}", host.number));
                }
            }
        }
        for host in 0..self.hosts.len() {
            let mut out = Vec::new();
            self.hosts[host].exit_all(self.now_us, &mut out);
            self.settle(host, out);
        }
        self.run(self.now_us + REMEMBER_US + CONNECT_US_MAX + LOST_AFTER_US);
        for host in &self.hosts {
            let name = host.number;
            assert!(host.logic.is_empty(), "h{name}: the logic keeps something: {:?}", host.logic);
            assert!(host.exchange.is_empty(), "h{name}: a call is between two answers: {:?}", host.exchange);
            assert!(host.hosts.calls().is_empty(), "h{name}: calls stay: {:?}", host.hosts.calls());
            assert!(host.data.of_conn.is_empty(), "h{name}: memory stays reachable");
        }
        assert_eq!(self.oracle.registered(), 0, "memory stays reachable");
    }
}
