//! UDP over IPv4 on the Ethernet port: smoltcp, with a socket that receives and several that send.
//!
//! The stack keeps a datagram whose next hop has not said its Ethernet address, and with it everything behind it in the same socket. So
//! each socket that sends has one datagram at most, and one that can't leave is given up, as lost: a host that is gone stops nobody.

use std::net::Ipv4Addr;

use nic_coordinator::counters::Counters;
use ring::hosts::{DATAGRAM_BYTES_MAX, UDP_PORT};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::udp::{PacketBuffer, PacketMetadata, Socket};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Cidr};

use crate::ethernet::Ethernet;

/// Datagrams that wait to be read, at most.
const RECEIVED_MAX: usize = 256;
/// Datagrams on their way to the wire, at most.
const SENDERS: usize = 32;
/// How long a datagram may wait for the Ethernet address of its next hop.
const RESOLVE_US: u64 = 200_000;
/// The stack's clock runs so many times as fast as ours. It asks for one Ethernet address each of its seconds, whosever it is, and
/// forgets one that is not heard of for a minute: a tenth of both is right for hosts that greet each other each second.
const HASTE: u64 = 10;
/// How soon the stack is asked again while an Ethernet address is missing.
const AGAIN_US: u64 = 1_000;

/// A socket that sends, and what it has.
#[derive(Clone, Copy, Debug)]
struct Sender {
    socket: SocketHandle,
    /// Where its datagram goes, and since when.
    waits: Option<(Ipv4Addr, u64)>,
}

/// The stack.
pub struct Udp {
    interface: Interface,
    sockets: SocketSet<'static>,
    receiver: SocketHandle,
    senders: Vec<Sender>,
}

impl Udp {
    /// With this address, and routers for what is beyond its network.
    ///
    /// # Errors
    /// A sentence.
    pub fn new(
        ethernet: &mut Ethernet<'_>,
        address: Ipv4Cidr,
        gateway: Option<Ipv4Addr>,
        seed: u64,
    ) -> Result<Udp, String> {
        let hardware = HardwareAddress::Ethernet(EthernetAddress(ethernet.mac().0));
        let mut config = Config::new(hardware);
        config.random_seed = seed;
        let mut interface = Interface::new(config, ethernet, Instant::ZERO);
        interface.update_ip_addrs(|list| {
            // There is room for one.
            let _ = list.push(IpCidr::Ipv4(address));
        });
        if let Some(gateway) = gateway {
            let added = interface.routes_mut().add_default_ipv4_route(gateway);
            added.map_err(|e| format!("--gateway {gateway}: {e}"))?;
        }
        let mut sockets = SocketSet::new(Vec::new());
        // The first one of a port receives.
        let receiver = sockets.add(socket(RECEIVED_MAX, 1)?);
        let mut senders = Vec::with_capacity(SENDERS);
        for _ in 0..SENDERS {
            senders.push(Sender { socket: sockets.add(socket(1, 1)?), waits: None });
        }
        Ok(Udp { interface, sockets, receiver, senders })
    }

    /// Takes what the port has, and gives it what can leave.
    pub fn turn(&mut self, now_us: u64, ethernet: &mut Ethernet<'_>, counters: &Counters) {
        let now = Instant::from_micros(i64::try_from(now_us.saturating_mul(HASTE)).unwrap_or(i64::MAX));
        self.interface.poll(now, ethernet, &mut self.sockets);
        ethernet.flush(counters);
        for sender in &mut self.senders {
            let Some((_, since_us)) = sender.waits else { continue };
            let late = now_us.saturating_sub(since_us) >= RESOLVE_US;
            if self.sockets.get::<Socket<'_>>(sender.socket).send_queue() == 0 {
                sender.waits = None;
            } else if late && let Ok(fresh) = socket(1, 1) {
                // A new one: the stack remembers for whom the old one waits.
                self.sockets.remove(sender.socket);
                *sender = Sender { socket: self.sockets.add(fresh), waits: None };
            }
        }
    }

    /// The next datagram that has come, and who sent it.
    pub fn receive(&mut self) -> Option<(Ipv4Addr, &[u8])> {
        let (datagram, from) = self.sockets.get_mut::<Socket<'_>>(self.receiver).recv().ok()?;
        let IpAddress::Ipv4(from) = from.endpoint.addr;
        Some((from, datagram))
    }

    /// Whether one more datagram can be sent before the next turn.
    pub fn can_send(&self) -> bool {
        self.senders.iter().any(|sender| sender.waits.is_none())
    }

    /// Sends in the next turn. Behind one that waits for the same host's address it is lost.
    pub fn send(&mut self, now_us: u64, to: Ipv4Addr, datagram: &[u8]) {
        if self
            .senders
            .iter()
            .any(|s| s.waits.is_some_and(|(other, since_us)| other == to && since_us < now_us))
        {
            return;
        }
        let Some(sender) = self.senders.iter_mut().find(|sender| sender.waits.is_none()) else { return };
        let socket = self.sockets.get_mut::<Socket<'_>>(sender.socket);
        // Fails for datagrams that are longer than any of ours, and for addresses that are none.
        if socket.send_slice(datagram, (IpAddress::Ipv4(to), UDP_PORT)).is_ok() {
            sender.waits = Some((to, now_us));
        }
    }

    /// When [`Udp::turn`] has something to do that does not come over the port.
    pub fn next_us(&self, now_us: u64) -> Option<u64> {
        self.senders.iter().any(|sender| sender.waits.is_some()).then_some(now_us + AGAIN_US)
    }
}

fn socket(received: usize, sent: usize) -> Result<Socket<'static>, String> {
    let buffer = |datagrams| {
        PacketBuffer::new(vec![PacketMetadata::EMPTY; datagrams], vec![0; datagrams * DATAGRAM_BYTES_MAX])
    };
    let mut socket = Socket::new(buffer(received), buffer(sent));
    socket.bind(UDP_PORT).map_err(|e| format!("UDP port {UDP_PORT} can't be bound: {e}"))?;
    Ok(socket)
}
