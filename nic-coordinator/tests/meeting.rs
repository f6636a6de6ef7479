//! Hundreds of coordinators on virtual time, on a network that loses, repeats, reorders and cuts, with restarts, and with
//! somebody who replays and forges what he has recorded. Everything follows from one number, which a failure prints.
//!
//! What must hold is checked after each event; what must come true again once the network is whole, at the end.

#[path = "common/random.rs"]
#[allow(dead_code)] // Every test file uses its part of it.
mod random;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::Ipv4Addr;

use nic_coordinator::hosts::calls::Limits;
use nic_coordinator::hosts::{
    ANNOUNCE_EVERY_US, Destination, Hosts, KEEPALIVE_US, LOST_AFTER_US, Outcome, Peer, RETRY_US, Settings,
    State,
};
use random::{Random, seed};
use ring::hosts::{Addresses, Incarnation, KEY_BYTES};

/// Longest way of a datagram that is not replayed.
const DELAY_US_MAX: u64 = 30_000;
/// Datagrams that the enemy keeps.
const RECORDED_MAX: usize = 512;

/// What happens at some time.
#[derive(Clone, Debug)]
enum Event {
    Arrives { to: usize, from: usize, datagram: Vec<u8>, honest: bool },
    Wakes { host: usize },
    Restarts { host: usize },
    Cuts,
    Heals,
    Meddles,
}

struct Machine {
    hosts: Hosts,
    incarnation: Incarnation,
    epoch: u32,
    started_us: u64,
    /// Each run of this host: when it ended.
    ended_us: BTreeMap<Incarnation, u64>,
    /// Datagrams that this run has taken as news, by their bytes' nonce.
    taken: HashSet<Vec<u8>>,
    wakes_us: Option<u64>,
}

struct World {
    random: Random,
    now_us: u64,
    events: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    machines: Vec<Machine>,
    sides: Vec<u64>,
    faults: bool,
    recorded: Vec<(usize, Vec<u8>)>,
    /// Peers of each host by the settings.
    neighbours: Vec<Vec<usize>>,
    announce: bool,
}

fn card(host: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0A63_0100 + u32::try_from(host).unwrap())
}

fn number(card: Ipv4Addr) -> usize {
    usize::try_from(u32::from(card) - 0x0A63_0100).unwrap()
}

fn address(host: usize) -> [u8; 16] {
    u128::try_from(host + 1).unwrap().to_be_bytes()
}

impl World {
    fn new(seed: u64, hosts: usize) -> World {
        let mut random = Random(seed);
        // Small labs find each other by announcing, large ones by settings: a ring and some chords.
        let announce = hosts <= 16;
        let neighbours = (0..hosts)
            .map(|h| {
                if announce {
                    return Vec::new();
                }
                let mut some: BTreeSet<usize> = [(h + 1) % hosts, (h + hosts - 1) % hosts].into();
                some.insert(usize::try_from(random.below(hosts as u64)).unwrap());
                some.remove(&h);
                some.into_iter().collect()
            })
            .collect();
        let mut world = World {
            random,
            now_us: 0,
            events: BTreeMap::new(),
            scheduled: 0,
            machines: Vec::new(),
            sides: vec![0; hosts],
            faults: true,
            recorded: Vec::new(),
            neighbours,
            announce,
        };
        for host in 0..hosts {
            let machine = world.boot(host, 1);
            world.machines.push(machine);
            let at_us = world.random.below(100_000);
            world.schedule(at_us, Event::Wakes { host });
        }
        world
    }

    fn boot(&mut self, host: usize, epoch: u32) -> Machine {
        let bytes = u128::from(self.random.next()) << 64 | u128::from(self.random.next() | 1);
        let incarnation = Incarnation(bytes.to_le_bytes());
        let mut addresses = Addresses::NONE;
        addresses.push(address(host));
        let settings = Settings {
            card: card(host),
            incarnation,
            epoch,
            key: [9; KEY_BYTES],
            addresses,
            peers: self.neighbours[host].iter().map(|n| card(*n)).collect(),
            announce: self.announce,
            limits: Limits::default(),
        };
        let hosts = Hosts::new(settings, self.now_us);
        let (ended_us, taken) = (BTreeMap::new(), HashSet::new());
        Machine { hosts, incarnation, epoch, started_us: self.now_us, ended_us, taken, wakes_us: None }
    }

    fn schedule(&mut self, at_us: u64, event: Event) {
        self.scheduled += 1;
        self.events.insert((at_us, self.scheduled), event);
    }

    /// Sends over the network as it is now.
    fn transmit(&mut self, from: usize, to: usize, datagram: &[u8]) {
        if from == to || self.sides[from] != self.sides[to] || self.faults && self.random.percent(10) {
            return;
        }
        let copies = if self.faults && self.random.percent(5) { 2 } else { 1 };
        for _ in 0..copies {
            let at_us = self.now_us + 10 + self.random.below(DELAY_US_MAX - 10);
            self.schedule(at_us, Event::Arrives { to, from, datagram: datagram.to_vec(), honest: true });
        }
        if self.recorded.len() < RECORDED_MAX {
            self.recorded.push((from, datagram.to_vec()));
        } else {
            let place = usize::try_from(self.random.below(RECORDED_MAX as u64)).unwrap();
            self.recorded[place] = (from, datagram.to_vec());
        }
    }

    /// Lets a host send what it wants to, and sets its clock.
    fn drain(&mut self, host: usize) {
        while let Some((destination, datagram)) = self.machines[host].hosts.poll(self.now_us) {
            match destination {
                Destination::Peer(to) => self.transmit(host, number(to), &datagram),
                Destination::Everybody => {
                    (0..self.machines.len()).for_each(|to| self.transmit(host, to, &datagram));
                }
            }
        }
        let next_us = self.machines[host].hosts.next_us();
        assert!(next_us.is_none_or(|at| at > self.now_us), "h{host} is never done");
        let machine = &mut self.machines[host];
        if let Some(at) = next_us.filter(|at| machine.wakes_us.is_none_or(|w| w > *at || w <= self.now_us)) {
            machine.wakes_us = Some(at);
            self.schedule(at, Event::Wakes { host });
        }
    }

    /// One event. False: none is left before `end_us`.
    fn step(&mut self, end_us: u64) -> bool {
        let Some(entry) = self.events.first_entry() else { return false };
        if entry.key().0 > end_us {
            return false;
        }
        let ((now_us, _), event) = entry.remove_entry();
        self.now_us = now_us;
        let touched = match event {
            Event::Arrives { to, from, datagram, honest } => {
                self.arrives(to, from, &datagram, honest);
                Some(to)
            }
            Event::Wakes { host } => Some(host),
            Event::Restarts { host } => {
                if self.random.percent(50) {
                    for (to, datagram) in self.machines[host].hosts.farewell() {
                        self.transmit(host, number(to), &datagram);
                    }
                }
                let (incarnation, epoch) = (self.machines[host].incarnation, self.machines[host].epoch);
                let mut ended_us = std::mem::take(&mut self.machines[host].ended_us);
                ended_us.insert(incarnation, now_us);
                self.machines[host] = self.boot(host, epoch + 1);
                self.machines[host].ended_us = ended_us;
                Some(host)
            }
            Event::Cuts => {
                for side in &mut self.sides {
                    *side = self.random.below(2);
                }
                None
            }
            Event::Heals => {
                self.sides.fill(0);
                None
            }
            Event::Meddles => {
                self.meddle();
                None
            }
        };
        if let Some(host) = touched {
            self.drain(host);
            self.check(host);
        }
        true
    }

    fn arrives(&mut self, to: usize, from: usize, datagram: &[u8], honest: bool) {
        let now_us = self.now_us;
        let machine = &mut self.machines[to];
        let outcome = machine.hosts.receive(now_us, card(from), datagram);
        let nonce = datagram.get(8..32).unwrap_or_default().to_vec();
        if outcome == Outcome::Heard {
            assert!(machine.taken.insert(nonce), "h{to} takes a datagram of h{from} twice");
            let known = honest || self.recorded.iter().any(|r| r.0 == from && r.1 == datagram);
            assert!(known, "h{to} believes what h{from} never sent");
            let sender = Incarnation(datagram[8..24].try_into().unwrap());
            let by = self
                .machines
                .iter()
                .position(|m| m.incarnation == sender || m.ended_us.contains_key(&sender));
            assert_eq!(by, Some(from), "h{to} takes it for h{from}'s");
            let by = from;
            // Whoever wrote it has heard this very run of the receiver, and not before that began.
            let ended = self.machines[by].ended_us.get(&sender).copied();
            assert!(
                ended.is_none_or(|at| at >= self.machines[to].started_us),
                "h{to} hears a dead run of h{by}"
            );
        }
    }

    /// The enemy repeats, changes, or redirects something.
    fn meddle(&mut self) {
        if self.recorded.is_empty() {
            return;
        }
        let pick = usize::try_from(self.random.below(self.recorded.len() as u64)).unwrap();
        let (from, mut datagram) = self.recorded[pick].clone();
        if self.random.percent(30) {
            let bit = usize::try_from(self.random.below(datagram.len() as u64 * 8)).unwrap();
            datagram[bit / 8] ^= 1 << (bit % 8);
        }
        let mut anybody = || usize::try_from(self.random.below(self.machines.len() as u64)).unwrap();
        let to = anybody();
        // With a false address, now and then.
        let from = if anybody() == 0 { anybody() } else { from };
        let at_us = self.now_us + self.random.below(1000);
        self.schedule(at_us, Event::Arrives { to, from, datagram, honest: false });
    }

    /// What a host believes at this moment may be old, but not older than it should be.
    fn check(&self, host: usize) {
        for (peer_card, peer) in self.machines[host].hosts.peers() {
            if peer.state() != State::Up {
                continue;
            }
            let other = &self.machines[number(peer_card)];
            let incarnation = peer.incarnation().expect("one that is up has one");
            let heard_us = peer.heard_us().expect("one that is up was heard");
            let late = self.now_us.saturating_sub(heard_us) > LOST_AFTER_US;
            assert!(!late, "h{host} keeps a silent peer up");
            if incarnation == other.incarnation {
                assert_eq!(peer.epoch(), Some(other.epoch), "h{host} has a wrong epoch");
            } else {
                let ended = other.ended_us.get(&incarnation).expect("that was never a run of it");
                assert!(self.now_us <= ended + LOST_AFTER_US + DELAY_US_MAX, "h{host} keeps a dead run up");
            }
            assert_eq!(peer.addresses().as_slice(), [address(number(peer_card))], "a wrong owner");
        }
    }

    /// Once the network is whole and nobody restarts, everybody knows who is there.
    fn check_all(&self) {
        for (host, machine) in self.machines.iter().enumerate() {
            let others: Vec<usize> = if self.announce {
                (0..self.machines.len()).filter(|o| *o != host).collect()
            } else {
                self.neighbours[host].clone()
            };
            for other in others {
                let peer = machine.hosts.peers().find(|(c, _)| *c == card(other)).map(|(_, p)| p);
                let incarnation = peer.filter(|p| p.state() == State::Up).and_then(Peer::incarnation);
                assert_eq!(
                    incarnation,
                    Some(self.machines[other].incarnation),
                    "h{host} does not know h{other}"
                );
                assert_eq!(machine.hosts.owner_of(address(other)), Some(card(other)));
            }
        }
    }
}

/// A life of `hosts` hosts: faults for a while, then peace.
fn live(seed: u64, hosts: usize, trouble_us: u64) -> usize {
    let mut world = World::new(seed, hosts);
    for _ in 0..trouble_us / 100_000 {
        let at_us = world.random.below(trouble_us);
        let host = usize::try_from(world.random.below(hosts as u64)).unwrap();
        let event = match world.random.below(20) {
            0..=2 => Event::Restarts { host },
            3 => Event::Cuts,
            4..=5 => Event::Heals,
            _ => Event::Meddles,
        };
        world.schedule(at_us, event);
    }
    let mut steps = 0;
    while world.step(trouble_us) {
        steps += 1;
    }
    world.sides.fill(0);
    world.faults = false;
    let peace_us = trouble_us + 2 * RETRY_US.1 + ANNOUNCE_EVERY_US + LOST_AFTER_US + KEEPALIVE_US;
    while world.step(peace_us) {
        steps += 1;
    }
    world.check_all();
    steps
}

#[test]
fn hosts_find_each_other_whatever_happens() {
    let seed = seed("HOSTS_SEED");
    println!("HOSTS_SEED={seed}");
    for (life, hosts) in (0..).zip([2, 2, 3, 3, 5, 8, 16]) {
        live(seed.wrapping_add(life), hosts, 40_000_000);
    }
}

#[test]
fn a_hundred_hosts_with_settings() {
    let seed = seed("HOSTS_SEED");
    println!("HOSTS_SEED={seed}");
    assert!(live(seed, 100, 10_000_000) > 10_000);
}

/// The same number is the same life.
#[test]
fn a_seed_repeats_a_life() {
    assert_eq!(live(5, 8, 20_000_000), live(5, 8, 20_000_000));
}
