//! Meeting other hosts' coordinators: [`Hosts`] behind UDP/IP on the Ethernet port.

use std::net::Ipv4Addr;
use std::path::Path;

use nic_coordinator::counters::{PeerShown, Shown};
use nic_coordinator::hosts::{Destination, Hosts, Settings};
use ring::hosts::{Addresses, DATAGRAM_BYTES_MAX, Incarnation, KEY_BYTES, UDP_PORT};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::udp::{PacketBuffer, PacketMetadata, Socket};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Cidr};

use crate::cli::Options;
use crate::ethernet::Ethernet;

/// Datagrams that wait in each direction at most.
const QUEUE: usize = 64;
/// How often a sleeping coordinator looks at the port, which can't wake it.
pub const LOOK_EVERY_US: u64 = 10_000;
/// How often what telemetry shows is brought up to date.
const SHOW_EVERY_US: u64 = 200_000;

/// The stack, and who was met.
pub struct Meeting {
    interface: Interface,
    sockets: SocketSet<'static>,
    udp: SocketHandle,
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
        let (Some(address), Some(key)) = (&options.wire_address, &options.wire_key) else { return Ok(None) };
        let cidr: Ipv4Cidr =
            address.parse().map_err(|()| format!("--wire-address {address}: say it as in 10.0.0.1/24"))?;
        let mut random = [0; 24];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| format!("no random numbers: {e}"))?;
        let (incarnation, seed) = random.split_at(16);
        let mut addresses = Addresses::NONE;
        for host in &options.host_address {
            let mapped = match host {
                std::net::IpAddr::V4(four) => four.to_ipv6_mapped(),
                std::net::IpAddr::V6(six) => *six,
            };
            if !addresses.push(mapped.octets()) {
                return Err("too many --host-address: at most 16".into());
            }
        }
        let settings = Settings {
            card: cidr.address(),
            incarnation: Incarnation(incarnation.try_into().unwrap_or_default()),
            epoch,
            key: read_key(key)?,
            addresses,
            peers: options.peer.iter().copied().filter(|p| *p != cidr.address()).collect(),
            announce: true,
        };
        let hardware = HardwareAddress::Ethernet(EthernetAddress(ethernet.mac().0));
        let mut config = Config::new(hardware);
        config.random_seed = u64::from_le_bytes(seed.try_into().unwrap_or_default());
        let mut interface = Interface::new(config, ethernet, Instant::ZERO);
        interface.update_ip_addrs(|list| {
            // There is room for one.
            let _ = list.push(IpCidr::Ipv4(cidr));
        });
        let buffer =
            || PacketBuffer::new(vec![PacketMetadata::EMPTY; QUEUE], vec![0; QUEUE * DATAGRAM_BYTES_MAX]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.bind(UDP_PORT).map_err(|e| format!("UDP port {UDP_PORT} can't be bound: {e}"))?;
        let mut sockets = SocketSet::new(Vec::new());
        let udp = sockets.add(socket);
        Ok(Some(Meeting {
            interface,
            sockets,
            udp,
            hosts: Hosts::new(settings, 0),
            due_us: 0,
            shown_us: None,
        }))
    }

    /// One turn. `arrived`: the port has frames.
    pub fn turn(&mut self, now_us: u64, arrived: bool, ethernet: &mut Ethernet<'_>, shown: &Shown) {
        if !arrived && now_us < self.due_us {
            return;
        }
        let now = Instant::from_micros(i64::try_from(now_us).unwrap_or(i64::MAX));
        self.interface.poll(now, ethernet, &mut self.sockets);
        self.receive(now_us);
        self.send(now_us);
        self.interface.poll(now, ethernet, &mut self.sockets);
        ethernet.flush(&shown.counters);
        let stack = self.interface.poll_at(now, &self.sockets);
        let stack_us = stack.and_then(|at| u64::try_from(at.total_micros()).ok());
        // The stack may ask for "now" while it waits for an address to be resolved: not in a busy loop.
        let stack_us = stack_us.map(|at| at.max(now_us + 1000));
        self.due_us = self.hosts.next_us().into_iter().chain(stack_us).min().unwrap_or(u64::MAX);
        if self.shown_us.is_none_or(|at| now_us >= at + SHOW_EVERY_US) {
            self.shown_us = Some(now_us);
            shown.show_peers(self.picture(now_us));
        }
    }

    /// Tells the peers that this coordinator ends.
    pub fn farewell(&mut self, now_us: u64, ethernet: &mut Ethernet<'_>, shown: &Shown) {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.udp);
        for (to, datagram) in self.hosts.farewell() {
            // Who does not hear it finds out by silence.
            let _ = socket.send_slice(&datagram, (IpAddress::Ipv4(to), UDP_PORT));
        }
        let now = Instant::from_micros(i64::try_from(now_us).unwrap_or(i64::MAX));
        self.interface.poll(now, ethernet, &mut self.sockets);
        ethernet.flush(&shown.counters);
    }

    /// When a sleeper should look again.
    pub fn wake_at_us(&self, now_us: u64) -> u64 {
        self.due_us.min(now_us + LOOK_EVERY_US)
    }

    fn receive(&mut self, now_us: u64) {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.udp);
        while let Ok((datagram, from)) = socket.recv() {
            let IpAddress::Ipv4(from) = from.endpoint.addr;
            self.hosts.receive(now_us, from, datagram);
        }
    }

    fn send(&mut self, now_us: u64) {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.udp);
        while socket.can_send()
            && let Some((destination, datagram)) = self.hosts.poll(now_us)
        {
            let to = match destination {
                Destination::Peer(address) => address,
                Destination::Everybody => Ipv4Addr::BROADCAST,
            };
            // What does not fit is lost, as on the wire.
            let _ = socket.send_slice(&datagram, (IpAddress::Ipv4(to), UDP_PORT));
        }
    }

    fn picture(&self, now_us: u64) -> (Vec<PeerShown>, Vec<(&'static str, u64)>) {
        let peers = self.hosts.peers().map(|(card, peer)| PeerShown {
            card,
            state: peer.state().name(),
            epoch: peer.epoch(),
            heard_ms_ago: peer.heard_us().map(|at| now_us.saturating_sub(at) / 1000),
            addresses: peer.addresses().as_slice().iter().map(|a| (*a).into()).collect(),
        });
        let c = self.hosts.counters();
        let counters = vec![
            ("sent", c.sent),
            ("heard", c.heard),
            ("asked", c.asked),
            ("malformed", c.malformed),
            ("forged", c.forged),
            ("replayed", c.replayed),
            ("own", c.own),
            ("refused", c.refused),
        ];
        (peers.collect(), counters)
    }
}

/// 64 hexadecimal digits in a file.
fn read_key(file: &Path) -> Result<[u8; KEY_BYTES], String> {
    let wrong = |why: String| format!("--wire-key {}: {why}", file.display());
    let text = std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))?;
    parse_key(text.trim()).ok_or_else(|| wrong("a key is 64 hexadecimal digits".into()))
}

fn parse_key(text: &str) -> Option<[u8; KEY_BYTES]> {
    let mut key = [0; KEY_BYTES];
    let digits = text.as_bytes().chunks(2);
    if text.len() != 2 * KEY_BYTES || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in key.iter_mut().zip(digits) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_64_digits() {
        assert_eq!(parse_key(&"0f".repeat(32)), Some([15; KEY_BYTES]));
        assert_eq!(parse_key(&"0f".repeat(31)), None);
        assert_eq!(parse_key(&"+f".repeat(32)), None);
        assert_eq!(parse_key(&"é".repeat(32)), None);
    }
}
