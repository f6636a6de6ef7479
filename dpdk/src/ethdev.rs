//! Ethernet ports and their queues.
//!
//! A [`Port`] is found by its device name, which is how one learns that a device given to the EAL was really
//! probed. Starting it gives out its queues; each is an owned handle with `&mut self` bursts, so a queue is used by one
//! thread at a time, and all handles keep the port running. When port and queues are dropped, the port stops and can be
//! looked up again.
#![allow(unsafe_code)] // Calls the ethdev API and moves owned buffers to and from drivers.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::{CString, NulError};
use std::fmt;
use std::marker::PhantomData;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dpdk_sys as sys;
use thiserror::Error;

use crate::eal::Eal;
use crate::errno::RteError;
use crate::mbuf::{Mbuf, PktPool};

/// The ports that have a [`Port`] (or queues of it) in this process.
static CLAIMED: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

fn claimed() -> MutexGuard<'static, BTreeSet<u16>> {
    CLAIMED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What went wrong with a port.
#[derive(Debug, Error)]
pub enum PortError {
    /// The name holds a zero byte.
    #[error("a device name cannot contain a zero byte ({0})")]
    Name(#[from] NulError),
    /// No port of that name: the device was not given to the EAL, or its probe failed.
    #[error("there is no Ethernet port \"{0}\": give it to the EAL with --vdev or -a, and see its messages")]
    NotFound(String),
    /// The port has a handle already.
    #[error("Ethernet port \"{0}\" is in use: drop its Port and queues first")]
    InUse(String),
    /// `start` was called twice.
    #[error("Ethernet port {0} is started already: drop it and its queues to start it anew")]
    AlreadyStarted(u16),
    /// No queue at all was asked for.
    #[error("Ethernet port {0} needs at least one receive and one send queue")]
    NoQueues(u16),
    /// DPDK or the driver refused a step.
    #[error("Ethernet port {port}: cannot {step}: {error}")]
    Refused {
        /// The port's number.
        port: u16,
        /// What was tried.
        step: &'static str,
        /// DPDK's reason.
        error: RteError,
    },
}

/// How to start a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// Receive queues, at least 1. Packets are spread over them by the driver's default.
    pub rx_queues: u16,
    /// Send queues, at least 1: one for each thread that sends.
    pub tx_queues: u16,
    /// Entries of each receive queue. Adjusted to what the driver can do.
    pub rx_descriptors: u16,
    /// Entries of each send queue. Adjusted to what the driver can do.
    pub tx_descriptors: u16,
    /// Receive packets for all addresses, not just the port's own.
    pub promiscuous: bool,
}

impl Default for PortConfig {
    /// One queue each way with 512 entries, not promiscuous.
    fn default() -> Self {
        Self { rx_queues: 1, tx_queues: 1, rx_descriptors: 512, tx_descriptors: 512, promiscuous: false }
    }
}

/// A 48-bit Ethernet address in wire order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The state of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whether packets can go out.
    pub up: bool,
    /// In Mbit/s; `None` when the driver does not know.
    pub speed_mbps: Option<u32>,
    /// Whether both directions work at once.
    pub full_duplex: bool,
}

/// A port's counters since it was started or the driver last reset them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Received packets dropped because a queue was full.
    pub rx_missed: u64,
    /// Received packets with errors.
    pub rx_errors: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Received packets dropped because the pool was empty.
    pub rx_no_mbuf: u64,
}

/// The one claim on a port; given back on drop.
#[derive(Debug)]
struct Claim {
    id: u16,
}

impl Drop for Claim {
    fn drop(&mut self) {
        claimed().remove(&self.id);
    }
}

/// A started port; stopped on drop, before its claim goes.
#[derive(Debug)]
struct Running {
    claim: Arc<Claim>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // SAFETY: started by `Port::start`; the last handle goes, so no thread is in a burst.
        unsafe { sys::rte_eth_dev_stop(self.claim.id) };
    }
}

/// An Ethernet port: a card's, or a virtual device's. The only handle to it in the process.
#[derive(Debug)]
pub struct Port<'eal> {
    claim: Arc<Claim>,
    running: Option<Arc<Running>>,
    /// Not `Sync`: ethdev's control calls on one port come from one thread at a time.
    _eal: PhantomData<Cell<&'eal ()>>,
}

impl<'eal> Port<'eal> {
    /// Finds a port by its device name: `net_null0` for `--vdev=net_null0`, a PCI address for a card.
    ///
    /// # Errors
    /// [`PortError::NotFound`] when there is no such port, [`PortError::InUse`] when it has a handle.
    pub fn by_name(_eal: &'eal Eal, name: &str) -> Result<Self, PortError> {
        let c_name = CString::new(name)?;
        let mut id = 0;
        // SAFETY: the EAL runs; the name is terminated and `id` is written only.
        if unsafe { sys::rte_eth_dev_get_port_by_name(c_name.as_ptr(), &mut id) } != 0 {
            return Err(PortError::NotFound(name.to_owned()));
        }
        if !claimed().insert(id) {
            return Err(PortError::InUse(name.to_owned()));
        }
        Ok(Self { claim: Arc::new(Claim { id }), running: None, _eal: PhantomData })
    }

    /// DPDK's number for it.
    pub fn id(&self) -> u16 {
        self.claim.id
    }

    /// The NUMA node it is attached to, if it has one.
    pub fn numa_node(&self) -> Option<u32> {
        // SAFETY: the port exists while it is claimed.
        u32::try_from(unsafe { sys::rte_eth_dev_socket_id(self.id()) }).ok()
    }

    /// Its own address.
    ///
    /// # Errors
    /// [`PortError::Refused`] when the driver does not say.
    pub fn mac(&self) -> Result<MacAddr, PortError> {
        let mut mac = sys::rte_ether_addr { addr_bytes: [0; 6] };
        // SAFETY: the port exists while it is claimed; `mac` is written only.
        self.step("read its address", unsafe { sys::rte_eth_macaddr_get(self.id(), &mut mac) })?;
        Ok(MacAddr(mac.addr_bytes))
    }

    /// The wire's state, without waiting for a negotiation in progress. Meaningful after [`Port::start`].
    ///
    /// # Errors
    /// [`PortError::Refused`] when the driver does not say.
    pub fn link(&self) -> Result<Link, PortError> {
        let (mut speed, mut full_duplex, mut up) = (0, 0, 0);
        // SAFETY: the port exists while it is claimed; the three are written only.
        let ret = unsafe { sys::shim_eth_link(self.id(), &mut speed, &mut full_duplex, &mut up) };
        self.step("read its link state", ret)?;
        // RTE_ETH_SPEED_NUM_UNKNOWN is all ones, RTE_ETH_SPEED_NUM_NONE is 0.
        let speed_mbps = (speed != u32::MAX && speed != 0).then_some(speed);
        Ok(Link { up: up != 0, speed_mbps, full_duplex: full_duplex != 0 })
    }

    /// The kernel's number of the link that the port is, if it is one.
    ///
    /// # Errors
    /// [`PortError::Refused`] when the driver does not say.
    pub fn if_index(&self) -> Result<Option<u32>, PortError> {
        let mut index = 0;
        // SAFETY: the port exists while it is claimed; the number is written only.
        let ret = unsafe { sys::shim_eth_if_index(self.id(), &mut index) };
        self.step("read its link's number", ret)?;
        Ok((index != 0).then_some(index))
    }

    /// The counters now.
    ///
    /// # Errors
    /// [`PortError::Refused`] when the driver has none.
    pub fn stats(&self) -> Result<Stats, PortError> {
        // SAFETY: a struct of integers: all zeroes is valid.
        let mut raw = unsafe { zeroed::<sys::rte_eth_stats>() };
        // SAFETY: the port exists while it is claimed; the struct is written only.
        self.step("read its counters", unsafe { sys::rte_eth_stats_get(self.id(), &mut raw) })?;
        Ok(Stats {
            rx_packets: raw.ipackets,
            tx_packets: raw.opackets,
            rx_bytes: raw.ibytes,
            tx_bytes: raw.obytes,
            rx_missed: raw.imissed,
            rx_errors: raw.ierrors,
            tx_errors: raw.oerrors,
            rx_no_mbuf: raw.rx_nombuf,
        })
    }

    /// Configures and starts the port, with received packets in buffers of `pool`. Returns its receive queues and
    /// its send queues, in the order of their numbers.
    ///
    /// # Errors
    /// [`PortError`]; the port is not started then and `start` can be tried again.
    pub fn start(
        &mut self,
        config: &PortConfig,
        pool: PktPool<'eal>,
    ) -> Result<(Vec<RxQueue<'eal>>, Vec<TxQueue<'eal>>), PortError> {
        let id = self.id();
        if self.running.is_some() {
            return Err(PortError::AlreadyStarted(id));
        }
        if config.rx_queues == 0 || config.tx_queues == 0 {
            return Err(PortError::NoQueues(id));
        }
        self.configure(config)?;
        self.set_up_queues(config, pool)?;
        // SAFETY: the port is claimed, configured and has all its queues.
        self.step("start", unsafe { sys::rte_eth_dev_start(id) })?;
        let running = Arc::new(Running { claim: Arc::clone(&self.claim) });
        if config.promiscuous {
            // SAFETY: the port is claimed and started.
            self.step("become promiscuous", unsafe { sys::rte_eth_promiscuous_enable(id) })?;
        }
        let queue = |number| Queue { running: Arc::clone(&running), port: id, number, _eal: PhantomData };
        let rx = (0..config.rx_queues).map(|number| RxQueue(queue(number))).collect();
        let tx = (0..config.tx_queues).map(|number| TxQueue(queue(number))).collect();
        self.running = Some(running);
        Ok((rx, tx))
    }

    fn configure(&self, config: &PortConfig) -> Result<(), PortError> {
        // SAFETY: zeroes are this struct's defaults: no offloads, no RSS, the driver's own speed and MTU.
        let defaults = unsafe { zeroed::<sys::rte_eth_conf>() };
        // SAFETY: the port is claimed and stopped; the struct is read only.
        let ret =
            unsafe { sys::rte_eth_dev_configure(self.id(), config.rx_queues, config.tx_queues, &defaults) };
        self.step("configure its queues", ret)
    }

    fn set_up_queues(&self, config: &PortConfig, pool: PktPool<'eal>) -> Result<(), PortError> {
        let id = self.id();
        let (mut rx_entries, mut tx_entries) = (config.rx_descriptors, config.tx_descriptors);
        // SAFETY: the port is claimed and configured; both numbers are read and written.
        let ret = unsafe { sys::rte_eth_dev_adjust_nb_rx_tx_desc(id, &mut rx_entries, &mut tx_entries) };
        self.step("adjust its queue sizes", ret)?;
        // SAFETY: the port exists; -1 ("any node") is what the calls below expect, too, as an unsigned number.
        let node = unsafe { sys::rte_eth_dev_socket_id(id) }.cast_unsigned();
        for queue in 0..config.rx_queues {
            // SAFETY: the port is stopped and has this queue; a null configuration means the driver's defaults; the
            // pool lives as long as the EAL, and so longer than the queue.
            let ret = unsafe {
                sys::rte_eth_rx_queue_setup(id, queue, rx_entries, node, std::ptr::null(), pool.as_ptr())
            };
            self.step("set up a receive queue", ret)?;
        }
        for queue in 0..config.tx_queues {
            // SAFETY: as above.
            let ret = unsafe { sys::rte_eth_tx_queue_setup(id, queue, tx_entries, node, std::ptr::null()) };
            self.step("set up a send queue", ret)?;
        }
        Ok(())
    }

    fn step(&self, step: &'static str, ret: i32) -> Result<(), PortError> {
        match RteError::check(ret) {
            Ok(_) => Ok(()),
            Err(error) => Err(PortError::Refused { port: self.id(), step, error }),
        }
    }
}

/// One queue of a running port.
#[derive(Debug)]
struct Queue<'eal> {
    /// Keeps the port started.
    #[expect(dead_code, reason = "held for its Drop")]
    running: Arc<Running>,
    port: u16,
    number: u16,
    _eal: PhantomData<&'eal ()>,
}

/// A receive queue: the only handle to it.
#[derive(Debug)]
pub struct RxQueue<'eal>(Queue<'eal>);

impl<'eal> RxQueue<'eal> {
    /// Appends the packets that have arrived, at most `max`, to `packets` and returns how many those were. Never
    /// waits. Allocates only when `packets` has no room for `max` more. Many drivers want 32 as `max`, and may
    /// deliver nothing for less than 4 or 8.
    pub fn burst(&mut self, packets: &mut Vec<Mbuf<'eal>>, max: u16) -> usize {
        packets.reserve(usize::from(max));
        let room = packets.spare_capacity_mut().as_mut_ptr();
        // SAFETY: the port is started (see Queue::running), and `&mut self` of the only handle makes this the only
        // burst on the queue. The driver writes at most `max` pointers, for which there is room.
        let count = usize::from(unsafe {
            sys::shim_eth_rx_burst(self.0.port, self.0.number, as_pointers(room), max)
        });
        // SAFETY: the driver has initialised `count` more elements: each a non-null pointer to a buffer that is ours
        // now, which is what an Mbuf is.
        unsafe { packets.set_len(packets.len() + count) };
        count
    }

    /// Its number on the port.
    pub fn number(&self) -> u16 {
        self.0.number
    }
}

/// A send queue: the only handle to it.
#[derive(Debug)]
pub struct TxQueue<'eal>(Queue<'eal>);

impl<'eal> TxQueue<'eal> {
    /// Hands packets from the front of `packets` to the driver, as many as it takes now, and returns how many it
    /// took. The others stay in `packets` in their order: send them later, or drop them. Never waits.
    pub fn burst(&mut self, packets: &mut Vec<Mbuf<'eal>>) -> usize {
        let wanted = u16::try_from(packets.len()).unwrap_or(u16::MAX);
        let total = packets.len();
        let start = packets.as_mut_ptr();
        // SAFETY: the port is started and this is the only burst on the queue, as in RxQueue::burst. The driver reads
        // `wanted` pointers to buffers that we own, and owns those that it says it took, which are the first ones.
        let sent = usize::from(unsafe {
            sys::shim_eth_tx_burst(self.0.port, self.0.number, as_pointers(start.cast()), wanted)
        });
        // SAFETY: the first `sent` elements are moved out: the rest goes to the front and the length leaves them out.
        unsafe {
            std::ptr::copy(start.add(sent), start, total - sent);
            packets.set_len(total - sent);
        }
        sent
    }

    /// Its number on the port.
    pub fn number(&self) -> u16 {
        self.0.number
    }
}

/// An array of buffers is an array of pointers to them.
fn as_pointers(mbufs: *mut MaybeUninit<Mbuf<'_>>) -> *mut *mut sys::rte_mbuf {
    const {
        assert!(size_of::<Mbuf<'_>>() == size_of::<*mut sys::rte_mbuf>());
        assert!(align_of::<Mbuf<'_>>() == align_of::<*mut sys::rte_mbuf>());
    }
    mbufs.cast()
}

/// Closes every port of the EAL, so that drivers let go of their devices and buffers. Called when the EAL ends: no
/// handle is left and all ports are stopped.
pub(crate) fn close_all() {
    // SAFETY: the EAL still runs, on this thread; reads a table.
    let next = |from: u16| unsafe { sys::rte_eth_find_next(from) };
    // SAFETY: a constant of the library shim.
    let end = unsafe { sys::shim_max_ethports };
    let mut id = next(0);
    while u32::from(id) < end {
        // SAFETY: `id` is a valid port that is stopped, as its handles borrow from the EAL and are gone.
        unsafe { sys::rte_eth_dev_close(id) };
        id = next(id + 1);
    }
}
