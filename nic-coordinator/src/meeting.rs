//! Meeting other hosts' coordinators: [`Hosts`] on the Ethernet port, and connections with their hosts over libfabric.

use std::net::{IpAddr, Ipv4Addr};

use nic_coordinator::carrier::Carrier;
use nic_coordinator::counters::{Counters, HostsShown, PeerShown, Shown};
use nic_coordinator::exchange::{Exchange, Nowhere};
use nic_coordinator::hosts::calls::Limits;
use nic_coordinator::hosts::{Destination, Hosts, Settings};
use nic_coordinator::logic::remote::RemoteSettings;
use nic_coordinator::poll::Poller;
use ring::hosts::{ADDRESSES_MAX, Addresses, Incarnation};
use smoltcp::wire::Ipv4Cidr;

use crate::cli::Options;
use crate::ethernet::Ethernet;
use crate::key;
use crate::udp::Udp;

/// How often a sleeping coordinator looks at the port, which can't wake it.
pub const LOOK_EVERY_US: u64 = 10_000;
/// How often what telemetry shows is brought up to date.
const SHOW_EVERY_US: u64 = 200_000;

/// The stack, and who was met.
pub struct Meeting {
    udp: Udp,
    hosts: Hosts,
    exchange: Exchange,
    /// Without, other hosts' clients, and ours to them, use the kernel.
    pub carrier: Option<Carrier>,
    /// What makes our host reachable then.
    reachable: Option<RemoteSettings>,
    /// When there is something to do that does not come over the port.
    due_us: u64,
    shown_us: Option<u64>,
}

impl Meeting {
    /// If the options ask for it.
    ///
    /// # Errors
    /// A sentence.
    pub fn new(
        options: &Options,
        ethernet: &mut Ethernet<'_>,
        epoch: u32,
    ) -> Result<Option<Meeting>, String> {
        let (Some(address), Some(key)) = (&options.uplink_address, &options.hosts_key) else {
            return Ok(None);
        };
        let cidr: Ipv4Cidr =
            address.parse().map_err(|()| format!("--uplink-address {address}: say it as in 10.0.0.1/24"))?;
        check_hosts("--uplink-address", [cidr.address()])?;
        check_hosts("--peer", options.peer.iter().copied())?;
        check_hosts("--gateway", options.gateway)?;
        let (incarnation, seed): ([u8; 16], [u8; 8]) = (random()?, random()?);
        let addresses = addresses(&options.host_address)?;
        let carrier = match (&options.fabric, options.fabric_address) {
            (Some(provider), Some(at)) => {
                let opened = Carrier::open(provider, at, cidr.address(), random()?);
                Some(opened.map_err(|e| format!("--fabric {provider}: {e}"))?)
            }
            _ => None,
        };
        let reachable = options.host_netns.map(|netns| {
            let addresses = addresses.as_slice().iter().copied().collect();
            RemoteSettings { netns, addresses }
        });
        let settings = Settings {
            card: cidr.address(),
            incarnation: Incarnation(incarnation),
            epoch,
            key: key::read(key)?,
            addresses,
            peers: options.peer.iter().copied().filter(|p| *p != cidr.address()).collect(),
            announce: true,
            limits: Limits::default(),
        };
        let udp = Udp::new(ethernet, cidr, options.gateway, u64::from_le_bytes(seed))?;
        let (hosts, exchange, due_us, shown_us) = (Hosts::new(settings, 0), Exchange::default(), 0, None);
        Ok(Some(Meeting { udp, hosts, exchange, carrier, reachable, due_us, shown_us }))
    }

    /// What makes our host reachable for others, if anything does; once.
    pub fn take_reachable(&mut self) -> Option<RemoteSettings> {
        self.reachable.take()
    }

    /// One turn. `arrived`: the port has frames. True: there was something to do for connections.
    pub fn turn(
        &mut self,
        now_us: u64,
        arrived: bool,
        ethernet: &mut Ethernet<'_>,
        poller: &mut Poller<'_>,
        (shown, counters): (&Shown, &Counters),
    ) -> bool {
        let words = poller.logic().remote().has_words() || self.has_news();
        let talks = arrived || words || now_us >= self.due_us;
        if talks {
            self.talk(now_us, ethernet, poller, counters);
        }
        // Bytes come after what other hosts wait for.
        let carried = self.carrier.as_mut().is_some_and(|carrier| carrier.turn(now_us));
        if self.has_news() || carried && self.exchange.waits() {
            self.talk(now_us, ethernet, poller, counters);
        }
        let changed = talks || carried;
        if changed && self.shown_us.is_none_or(|at| now_us >= at + SHOW_EVERY_US) {
            self.shown_us = Some(now_us);
            shown.publish_hosts(self.picture(now_us));
        }
        words || carried
    }

    fn has_news(&self) -> bool {
        self.carrier.as_ref().is_some_and(Carrier::has_news)
    }

    /// Hears what came from other hosts, and says what there is to be said.
    fn talk(
        &mut self,
        now_us: u64,
        ethernet: &mut Ethernet<'_>,
        poller: &mut Poller<'_>,
        counters: &Counters,
    ) {
        self.udp.turn(now_us, ethernet, counters);
        while let Some((from, datagram)) = self.udp.receive() {
            self.hosts.receive(now_us, from, datagram);
        }
        poller.exchange(now_us, |logic, out| {
            let parties = (logic, &mut self.hosts);
            match &mut self.carrier {
                Some(carrier) => self.exchange.turn(now_us, parties, carrier, out),
                None => self.exchange.turn(now_us, parties, &mut Nowhere, out),
            }
            // Before the functions here hear of it: a process that is woken may take this core.
            self.send(now_us, ethernet, counters);
        });
        self.due_us = self
            .hosts
            .next_us()
            .into_iter()
            .chain(self.udp.next_us(now_us))
            .chain(self.exchange.due_us(now_us))
            .min()
            .unwrap_or(u64::MAX);
    }

    fn send(&mut self, now_us: u64, ethernet: &mut Ethernet<'_>, counters: &Counters) {
        loop {
            while self.udp.can_send()
                && let Some((destination, datagram)) = self.hosts.poll(now_us)
            {
                let to = match destination {
                    Destination::Peer(address) => address,
                    Destination::Everybody => Ipv4Addr::BROADCAST,
                };
                self.udp.send(now_us, to, &datagram);
            }
            let full = !self.udp.can_send();
            self.udp.turn(now_us, ethernet, counters);
            if !full || !self.udp.can_send() {
                break;
            }
        }
    }

    /// Tells the peers that this coordinator ends.
    pub fn farewell(&mut self, now_us: u64, ethernet: &mut Ethernet<'_>, counters: &Counters) {
        for (to, datagram) in self.hosts.farewell() {
            // Who does not hear it finds out by silence.
            self.udp.send(now_us, to, &datagram);
            self.udp.turn(now_us, ethernet, counters);
        }
    }

    /// When a sleeper should look again. `called`: the port calls when a frame comes.
    pub fn wake_at_us(&self, now_us: u64, called: bool) -> u64 {
        let carrier = self.carrier.as_ref().and_then(|carrier| carrier.due_us(now_us));
        let look = (!called).then_some(now_us + LOOK_EVERY_US);
        self.due_us.min(look.unwrap_or(u64::MAX)).min(carrier.unwrap_or(u64::MAX))
    }

    fn picture(&self, now_us: u64) -> HostsShown {
        let peers = self.hosts.peers().map(|(card, peer)| PeerShown {
            card,
            state: peer.state().name(),
            epoch: peer.epoch(),
            heard_ms_ago: peer.heard_us().map(|at| now_us.saturating_sub(at) / 1000),
            addresses: peer.addresses().as_slice().iter().map(|a| (*a).into()).collect(),
        });
        let carried = self.carrier.as_ref().map(Carrier::read).unwrap_or_default();
        HostsShown { peers: peers.collect(), datagrams: self.hosts.counters().read(), carried }
    }
}

fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| format!("no random numbers: {e}"))?;
    Ok(bytes)
}

/// The stack must not be given an address that no host can have.
fn check_hosts(option: &str, addresses: impl IntoIterator<Item = Ipv4Addr>) -> Result<(), String> {
    let nobody = |a: &Ipv4Addr| a.is_unspecified() || a.is_broadcast() || a.is_multicast() || a.is_loopback();
    match addresses.into_iter().find(nobody) {
        Some(address) => Err(format!("{option} {address}: no host can have that address")),
        None => Ok(()),
    }
}

/// As peers hear them.
fn addresses(host: &[IpAddr]) -> Result<Addresses, String> {
    let mut addresses = Addresses::NONE;
    for address in host {
        let mapped = match address {
            IpAddr::V4(four) => four.to_ipv6_mapped(),
            IpAddr::V6(six) => *six,
        };
        if !addresses.push(mapped.octets()) {
            return Err(format!("--host-address: at most {ADDRESSES_MAX} of them"));
        }
    }
    Ok(addresses)
}
