//! Meeting other hosts' coordinators: [`Hosts`] on the Ethernet port.

use std::net::{IpAddr, Ipv4Addr};

use nic_coordinator::counters::{Counters, HostsShown, PeerShown, Shown};
use nic_coordinator::hosts::calls::{Limits, News};
use nic_coordinator::hosts::{Destination, Hosts, Settings};
use ring::hosts::{ADDRESSES_MAX, Addresses, Incarnation};
use ring::msg::Status;
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
        let (incarnation, seed) = random()?;
        let settings = Settings {
            card: cidr.address(),
            incarnation,
            epoch,
            key: key::read(key)?,
            addresses: addresses(&options.host_address)?,
            peers: options.peer.iter().copied().filter(|p| *p != cidr.address()).collect(),
            announce: true,
            limits: Limits::default(),
        };
        let udp = Udp::new(ethernet, cidr, options.gateway, seed)?;
        Ok(Some(Meeting { udp, hosts: Hosts::new(settings, 0), due_us: 0, shown_us: None }))
    }

    /// One turn. `arrived`: the port has frames.
    pub fn turn(
        &mut self,
        now_us: u64,
        arrived: bool,
        ethernet: &mut Ethernet<'_>,
        (shown, counters): (&Shown, &Counters),
    ) {
        if !arrived && now_us < self.due_us {
            return;
        }
        self.udp.turn(now_us, ethernet, counters);
        while let Some((from, datagram)) = self.udp.receive() {
            self.hosts.receive(now_us, from, datagram);
        }
        // No data path is there yet: other hosts' clients use the kernel.
        while let Some(news) = self.hosts.next_news(now_us) {
            if let News::Connect { id, .. } = news {
                self.hosts.answer(now_us, id, Err(Status::NoListener));
            }
        }
        self.send(now_us, ethernet, counters);
        self.due_us =
            self.hosts.next_us().into_iter().chain(self.udp.next_us(now_us)).min().unwrap_or(u64::MAX);
        if self.shown_us.is_none_or(|at| now_us >= at + SHOW_EVERY_US) {
            self.shown_us = Some(now_us);
            shown.publish_hosts(self.picture(now_us));
        }
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

    /// When a sleeper should look again.
    pub fn wake_at_us(&self, now_us: u64) -> u64 {
        self.due_us.min(now_us + LOOK_EVERY_US)
    }

    fn picture(&self, now_us: u64) -> HostsShown {
        let peers = self.hosts.peers().map(|(card, peer)| PeerShown {
            card,
            state: peer.state().name(),
            epoch: peer.epoch(),
            heard_ms_ago: peer.heard_us().map(|at| now_us.saturating_sub(at) / 1000),
            addresses: peer.addresses().as_slice().iter().map(|a| (*a).into()).collect(),
        });
        HostsShown { peers: peers.collect(), datagrams: self.hosts.counters().read() }
    }
}

/// An incarnation, and a seed for the stack.
fn random() -> Result<(Incarnation, u64), String> {
    let (mut incarnation, mut seed) = ([0; 16], [0; 8]);
    for bytes in [&mut incarnation[..], &mut seed[..]] {
        rustix::rand::getrandom(bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| format!("no random numbers: {e}"))?;
    }
    Ok((Incarnation(incarnation), u64::from_le_bytes(seed)))
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
