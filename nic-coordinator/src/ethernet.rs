//! The Ethernet port as smoltcp wants it: frames out of bursts and into them.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use dpdk::eal::Eal;
use dpdk::ethdev::{MacAddr, Port, PortConfig, PortError, RxQueue, TxQueue};
use dpdk::mbuf::{Mbuf, PktPool};
use nic_coordinator::counters::Counters;
use smoltcp::phy::{self, Checksum, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use rustix::net::{RecvFlags, recv};

use crate::os;
use crate::run::RunError;

/// Packets that one turn takes from the port.
const RX_BURST: u16 = 32;
/// The port that is polled if none is named.
const DEFAULT_PORT: &str = "net_null0";
/// Packet buffers: the descriptors of both directions, a burst, and some air.
const POOL_BUFFERS: u32 = 2047;
const POOL_CACHE: u32 = 32;
const BUFFER_BYTES: u16 = 2048;
/// Ethernet's longest frame without its check sum.
const FRAME_BYTES_MAX: usize = 1514;

/// A started port.
pub struct Ethernet<'eal> {
    _port: Port<'eal>,
    mac: MacAddr,
    pool: PktPool<'eal>,
    receive: RxQueue<'eal>,
    send: TxQueue<'eal>,
    burst: Vec<Mbuf<'eal>>,
    arrived: VecDeque<Mbuf<'eal>>,
    leaving: Vec<Mbuf<'eal>>,
    scratch: Vec<u8>,
    /// Readable when a frame has come, if that can be known: most ports have to be looked at.
    bell: Option<OwnedFd>,
}

impl<'eal> Ethernet<'eal> {
    /// The port called `name`, or the default one if there is one.
    ///
    /// # Errors
    /// DPDK's.
    pub fn open(eal: &'eal Eal, name: Option<&str>) -> Result<Option<Self>, RunError> {
        let mut port = match Port::by_name(eal, name.unwrap_or(DEFAULT_PORT)) {
            Err(PortError::NotFound(_)) if name.is_none() => return Ok(None),
            port => port?,
        };
        let pool = PktPool::new(eal, "packets", POOL_BUFFERS, POOL_CACHE, BUFFER_BYTES)?;
        let (receive, send) = port.start(&PortConfig::default(), pool)?;
        let mac = port.mac()?;
        let (Some(receive), Some(send)) = (receive.into_iter().next(), send.into_iter().next()) else {
            return Ok(None);
        };
        // A link of the kernel's tells us, too. If it can't, we look.
        let bell = port.if_index()?.and_then(|link| os::frames_of(link).ok());
        os::keep_tcp_out();
        Ok(Some(Ethernet {
            _port: port,
            mac,
            pool,
            receive,
            send,
            burst: Vec::with_capacity(usize::from(RX_BURST)),
            arrived: VecDeque::with_capacity(usize::from(RX_BURST)),
            leaving: Vec::with_capacity(usize::from(RX_BURST)),
            scratch: Vec::with_capacity(FRAME_BYTES_MAX),
            bell,
        }))
    }

    /// Readable when a frame has come. `None`: only a look tells.
    pub fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_ref().map(AsFd::as_fd)
    }

    /// Before a look: what has rung so far is heard.
    pub fn silence(&self) {
        let Some(bell) = &self.bell else { return };
        for _ in 0..RX_BURST {
            if recv(bell, &mut [0; 0], RecvFlags::DONTWAIT | RecvFlags::TRUNC).is_err() {
                break;
            }
        }
    }

    /// Its own address.
    pub fn mac(&self) -> MacAddr {
        self.mac
    }

    /// Takes what has come; true if anything has. What came before and nobody wanted is dropped.
    pub fn take(&mut self, counters: &Counters) -> bool {
        self.arrived.clear();
        let count = self.receive.burst(&mut self.burst, RX_BURST);
        counters.port_rx.add(count as u64);
        self.arrived.extend(self.burst.drain(..));
        count > 0
    }

    /// Hands everything to the driver. What it does not take is lost, as on a wire.
    pub fn flush(&mut self, counters: &Counters) {
        let count = if self.leaving.is_empty() { 0 } else { self.send.burst(&mut self.leaving) };
        counters.port_tx.add(count as u64);
        self.leaving.clear();
    }
}

/// One frame that has come.
pub struct Arrived<'eal>(Mbuf<'eal>);

impl phy::RxToken for Arrived<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0.data())
    }
}

/// Leave for one frame.
pub struct Leaving<'a, 'eal> {
    pool: PktPool<'eal>,
    frames: &'a mut Vec<Mbuf<'eal>>,
    scratch: &'a mut Vec<u8>,
}

impl phy::TxToken for Leaving<'_, '_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.scratch.clear();
        self.scratch.resize(len, 0);
        let result = f(self.scratch);
        // Without a buffer, or room in one, the frame is lost.
        if let Ok(mut frame) = self.pool.alloc()
            && frame.append(self.scratch).is_ok()
        {
            self.frames.push(frame);
        }
        result
    }
}

impl<'eal> Device for Ethernet<'eal> {
    type RxToken<'a>
        = Arrived<'eal>
    where
        Self: 'a;
    type TxToken<'a>
        = Leaving<'a, 'eal>
    where
        Self: 'a;

    fn receive(&mut self, now: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let frame = self.arrived.pop_front()?;
        self.transmit(now).map(|leaving| (Arrived(frame), leaving))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        let Ethernet { pool, leaving, scratch, .. } = self;
        Some(Leaving { pool: *pool, frames: leaving, scratch })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_BYTES_MAX;
        capabilities.max_burst_size = Some(usize::from(RX_BURST));
        // A datagram is sealed; and what comes from a host on the same machine may be on its way without a check sum.
        capabilities.checksum.udp = Checksum::Tx;
        capabilities
    }
}
