//! The card: a coordinator process behind the emulated bus, or one behind PCI.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ring::bus::{AGENT_FUNCTION, BYTES, BusMsg, FUNCTIONS_MAX};
use ring::profile::Profile;
use ring::queue::Kind;
use rustix::net::SocketType;

use crate::agent_ring::AgentRing;
use crate::coordinator::{Coordinator, Voice};
use crate::function::{FunctionMemory, common_memory, eventfd};
use crate::launch::{self, BootError, BootOptions};
use crate::packet;
use crate::pci::{Booted, PciLink};
use crate::runtime_dir::RuntimeDir;

/// What the card says about functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CardEvent {
    /// The function is mapped and polled.
    Mapped(u32),
    /// The function could not be mapped.
    MapFailed(u32),
    /// The segment is mapped, or could not be.
    Segment(u32, bool),
}

/// The coordinator is gone, or no longer makes sense.
#[derive(Debug, thiserror::Error)]
pub enum CardGone {
    /// It closed the bus.
    #[error("the coordinator is gone")]
    HungUp,
    /// It is not to be reached any more.
    #[error("the link to the card is lost")]
    LinkLost,
    /// It sent something that is not a bus message of this version.
    #[error("the coordinator sent a bus message that makes no sense")]
    Nonsense,
    /// The socket failed.
    #[error("the bus to the coordinator failed: {0}")]
    Io(#[from] io::Error),
}

/// The coordinator and what ties us to it. The order of the fields is the order of the end: the bus
/// hangs up, which ends the process, and then nobody uses the directory any more.
#[derive(Debug)]
struct Emulated {
    bus: OwnedFd,
    coordinator: Coordinator,
    runtime: RuntimeDir,
}

enum Link {
    Emulated(Emulated),
    Pci(PciLink),
}

/// A booted card. Dropping it ends the coordinator, if it is a process of ours, and removes what DPDK left.
pub struct Card {
    epoch: u32,
    doorbell: OwnedFd,
    common: Option<OwnedFd>,
    queue: Kind,
    profile: Profile,
    meets_hosts: bool,
    ring: AgentRing,
    link: Link,
}

impl Card {
    /// Starts the coordinator (or finds it on the card), waits until it is up and maps the agent's own function. Blocks for as
    /// long as that takes (about 0.2 s), at most `options.up_timeout`.
    ///
    /// # Errors
    /// [`BootError`]: one sentence with the coordinator's last words.
    pub fn boot(options: &BootOptions) -> Result<Card, BootError> {
        if let Some(id) = options.pci {
            let Booted { link, epoch, memory } = PciLink::boot(id, options.up_timeout)?;
            // Nobody waits for it: the card polls (SPEC 12.7).
            let doorbell = eventfd()?;
            let ring = AgentRing::new(AGENT_FUNCTION, &memory, None, doorbell.try_clone()?)?;
            // The only one that a card's bus carries (SPEC 12.9).
            let queue = Kind::PerProcess;
            let (profile, link) = (Profile::NONE, Link::Pci(link));
            let (common, meets_hosts) = (None, false);
            return Ok(Card { epoch, doorbell, common, queue, profile, meets_hosts, ring, link });
        }
        let program = launch::find_coordinator(options.coordinator.as_deref())?;
        let deadline = Instant::now() + options.up_timeout;
        let doorbell = eventfd()?;
        let common = common_memory(options.request_queue)?;
        let (bus, card_end) = packet::pair(SocketType::SEQPACKET)?;
        let runtime = RuntimeDir::claim();
        let child = launch::spawn(&program, options, &runtime, card_end)?;
        let mut link = Emulated { bus, coordinator: Coordinator::new(child)?, runtime };

        // A coordinator that ended already is noticed by `expect`, which can say why.
        let shared: Vec<_> =
            [Some(&doorbell), common.as_ref()].into_iter().flatten().map(AsFd::as_fd).collect();
        let _ = packet::send(&link.bus, &BusMsg::Hello.to_wire(), &shared);
        let BusMsg::Up { epoch } = link.expect(deadline, options.up_timeout)? else {
            return Err(BootError::Version);
        };
        let memory = FunctionMemory::new(AGENT_FUNCTION, Kind::PerProcess)?;
        packet::send(&link.bus, &BusMsg::Map { function: AGENT_FUNCTION }.to_wire(), &memory.bus_fds())?;
        let BusMsg::Mapped { function: AGENT_FUNCTION } = link.expect(deadline, options.up_timeout)? else {
            return Err(BootError::NoFunction(link.coordinator.voice.last_words()));
        };
        let ring = AgentRing::new(AGENT_FUNCTION, &memory, None, doorbell.try_clone()?)?;
        let (queue, profile) = (options.request_queue, options.pcie_profile);
        let meets_hosts = options.uplink.as_ref().is_some_and(|uplink| uplink.fabric.is_some());
        let link = Link::Emulated(link);
        Ok(Card { epoch, doorbell, common, queue, profile, meets_hosts, ring, link })
    }

    /// Incarnation of the coordinator.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The coordinator's process, if it is one of this machine.
    #[must_use]
    pub fn coordinator_pid(&self) -> Option<u32> {
        match &self.link {
            Link::Emulated(link) => Some(link.coordinator.pid()),
            Link::Pci(_) => None,
        }
    }

    /// For `dpdk-telemetry.py -f`, on this machine.
    #[must_use]
    pub fn telemetry_prefix(&self) -> Option<&str> {
        match &self.link {
            Link::Emulated(link) => Some(link.runtime.prefix()),
            Link::Pci(_) => None,
        }
    }

    /// How many functions there are, the agent's included.
    #[must_use]
    pub fn functions(&self) -> u32 {
        match &self.link {
            Link::Emulated(_) => FUNCTIONS_MAX,
            Link::Pci(link) => link.numbers(),
        }
    }

    /// How many may be in use at once: of the emulated ones half, so that a number rests for a long while before it is
    /// used again, and late news of its former owner can't meet the new one. A real card's windows are given away again
    /// only when nobody is left who maps them.
    #[must_use]
    pub fn capacity(&self) -> usize {
        match &self.link {
            Link::Emulated(_) => FUNCTIONS_MAX as usize / 2,
            Link::Pci(link) => link.numbers() as usize - 1,
        }
    }

    /// False while somebody may still have something to do with function `number`, which is mapped no more.
    #[must_use]
    pub fn is_free(&self, number: u32) -> bool {
        match &self.link {
            Link::Emulated(_) => true,
            Link::Pci(link) => link.is_free(number),
        }
    }

    /// The doorbell that all functions share.
    #[must_use]
    pub fn doorbell(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }

    /// The memory that all functions share, if their requests need it.
    #[must_use]
    pub fn common(&self) -> Option<BorrowedFd<'_>> {
        self.common.as_ref().map(AsFd::as_fd)
    }

    /// How processes' requests go to the card.
    #[must_use]
    pub fn request_queue(&self) -> Kind {
        self.queue
    }

    /// How slow a bus the card imitates, if it is an emulated one.
    #[must_use]
    pub fn pcie_profile(&self) -> Profile {
        self.profile
    }

    /// Whether connections to other hosts are worth asking it for.
    #[must_use]
    pub fn meets_hosts(&self) -> bool {
        self.meets_hosts
    }

    /// Readable when the coordinator has ended.
    #[must_use]
    pub fn death(&self) -> BorrowedFd<'_> {
        match &self.link {
            Link::Emulated(link) => link.coordinator.pidfd(),
            Link::Pci(link) => link.death(),
        }
    }

    /// Readable when [`Card::next_event`] has something to say.
    #[must_use]
    pub fn bus(&self) -> BorrowedFd<'_> {
        match &self.link {
            Link::Emulated(link) => link.bus.as_fd(),
            Link::Pci(link) => link.bus(),
        }
    }

    /// The coordinator's stderr, if it is a process of ours.
    pub fn voice(&mut self) -> Option<&mut Voice> {
        match &mut self.link {
            Link::Emulated(link) => Some(&mut link.coordinator.voice),
            Link::Pci(_) => None,
        }
    }

    /// Stops an emulated card where it is, or has it go on.
    pub fn stop(&self, stop: bool) {
        if let Link::Emulated(link) = &self.link {
            link.coordinator.stop(stop);
        }
    }

    /// The agent's own function.
    pub fn ring(&mut self) -> &mut AgentRing {
        &mut self.ring
    }

    /// Makes function `number` (1 and up) appear on the bus. The card answers by
    /// [`CardEvent::Mapped`] or [`CardEvent::MapFailed`].
    ///
    /// # Errors
    /// Out of descriptors or memory, or the bus is full or gone.
    pub fn map_function(&mut self, number: u32) -> io::Result<FunctionMemory> {
        match &mut self.link {
            Link::Emulated(link) => {
                let memory = FunctionMemory::new(number, self.queue)?;
                packet::send(&link.bus, &BusMsg::Map { function: number }.to_wire(), &memory.bus_fds())?;
                Ok(memory)
            }
            Link::Pci(link) => link.map_function(number),
        }
    }

    /// Function `number` is gone from the bus.
    ///
    /// # Errors
    /// The bus is full or gone.
    pub fn unmap_function(&mut self, number: u32) -> io::Result<()> {
        match &mut self.link {
            Link::Emulated(link) => {
                packet::send(&link.bus, &BusMsg::Unmap { function: number }.to_wire(), &[])
            }
            Link::Pci(link) => link.unmap_function(number),
        }
    }

    /// Gives the card its side of a segment: the memory, and its end of the wire. It answers by [`CardEvent::Segment`].
    ///
    /// # Errors
    /// The bus is full or gone, or it is a real card's, which can't.
    pub fn give_segment(&mut self, number: u32, memory: BorrowedFd<'_>, wire: OwnedFd) -> io::Result<()> {
        let Link::Emulated(link) = &mut self.link else { return Err(io::ErrorKind::Unsupported.into()) };
        packet::send(&link.bus, &BusMsg::Segment { segment: number }.to_wire(), &[memory, wire.as_fd()])
    }

    /// What the card says next; `None`: nothing for now. Never blocks.
    ///
    /// # Errors
    /// [`CardGone`]: no coordinator any more.
    pub fn next_event(&mut self) -> Result<Option<CardEvent>, CardGone> {
        let bus = match &mut self.link {
            Link::Emulated(link) => link.bus.as_fd(),
            Link::Pci(link) => return link.next_event(),
        };
        match receive(bus)? {
            None => Ok(None),
            Some(BusMsg::Mapped { function }) => Ok(Some(CardEvent::Mapped(function))),
            Some(BusMsg::MapFailed { function }) => Ok(Some(CardEvent::MapFailed(function))),
            Some(BusMsg::SegmentMapped { segment }) => Ok(Some(CardEvent::Segment(segment, true))),
            Some(BusMsg::SegmentFailed { segment }) => Ok(Some(CardEvent::Segment(segment, false))),
            Some(_) => Err(CardGone::Nonsense),
        }
    }
}

impl Emulated {
    /// The next bus message, within the deadline.
    fn expect(&mut self, deadline: Instant, up_timeout: Duration) -> Result<BusMsg, BootError> {
        loop {
            match receive(self.bus.as_fd()) {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(CardGone::Nonsense) => return Err(BootError::Version),
                Err(CardGone::HungUp | CardGone::LinkLost | CardGone::Io(_)) => {
                    return Err(self.coordinator.why_ended());
                }
            }
            if !self.coordinator.wait(&self.bus, deadline)? {
                return Err(BootError::Late(up_timeout, self.coordinator.voice.last_words()));
            }
        }
    }
}

/// One message from the bus; `None` when there is none.
fn receive(bus: BorrowedFd<'_>) -> Result<Option<BusMsg>, CardGone> {
    // One byte more than a message, so that a longer one is seen to be wrong.
    let mut buffer = [0; BYTES + 1];
    match packet::receive(bus, &mut buffer) {
        Ok((0, _)) => Err(CardGone::HungUp),
        Ok((n, _)) => {
            BusMsg::from_wire(buffer.get(..n).unwrap_or(&[])).map(Some).map_err(|_| CardGone::Nonsense)
        }
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Err(CardGone::HungUp),
        Err(e) => Err(e.into()),
    }
}
