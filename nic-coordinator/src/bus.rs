//! Where functions come from: the emulated bus (SPEC 8), a socket over which the agent's process maps them for us, or a
//! card's (SPEC 12, [`crate::card`]).

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::card::CardBus;
use crate::mapping::MapError;
use ring::bus::{BYTES, BusMsg, MAP_FDS};
use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendFlags,
    recvmsg, sendmsg,
};

/// How long the agent may take for its first message on the emulated bus.
const HELLO_WITHIN_S: i64 = 10;
/// How often a card without a host looks for one.
const HOST_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// The bus is unusable.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The other end is closed: the host is gone.
    #[error("the host has hung up the emulated bus")]
    HungUp,
    /// The kernel refused.
    #[error("the emulated bus failed: {0}")]
    Kernel(#[source] Errno),
    /// Something else than the agent of this release is at the other end.
    #[error("the bus carries messages of another version: use files of one release")]
    NotOurs,
    /// The agent says nothing.
    #[error("the agent sent no greeting on the emulated bus: use files of one release")]
    NoHello,
    /// The agent has more under way than the bus holds.
    #[error("the agent reads no answers on the card's bus: use files of one release")]
    Full,
    /// A memory of the card or the host is not there.
    #[error(transparent)]
    Memory(#[from] MapError),
}

/// What comes with a message.
#[derive(Debug)]
pub enum Payload {
    /// Descriptors, on the emulated bus.
    Descriptors(Vec<OwnedFd>),
    /// A bus address, on a card's.
    Address(u64),
}

/// A message and what came with it.
#[derive(Debug)]
pub struct Incoming {
    /// What it says.
    pub message: BusMsg,
    /// What it brings.
    pub payload: Payload,
}

/// What a host that has come offers.
#[derive(Debug)]
pub enum Host {
    /// It rings when we sleep.
    WithDoorbell {
        /// What it rings.
        doorbell: OwnedFd,
        /// The memory that all functions share, if their requests need it.
        common: Option<OwnedFd>,
    },
    /// It has none: we have to look.
    Polled,
    /// The end came first.
    None,
}

/// A bus.
#[derive(Debug)]
pub enum Bus {
    /// The emulated one.
    Emulated(EmulatedBus),
    /// A card's.
    Card(Box<CardBus>),
}

impl Bus {
    /// Waits for the agent. `end`: readable when we are to end.
    ///
    /// # Errors
    /// [`BusError`].
    pub fn greet(&mut self, end: &OwnedFd) -> Result<Host, BusError> {
        match self {
            Bus::Emulated(bus) => bus.greet(),
            Bus::Card(card) => loop {
                if card.greet()? {
                    return Ok(Host::Polled);
                }
                let mut fds = [PollFd::new(end, PollFlags::IN)];
                if poll(&mut fds, Some(&HOST_EVERY)) == Ok(1) {
                    return Ok(Host::None);
                }
            },
        }
    }

    /// Takes the next message, if there is one; does not wait.
    ///
    /// # Errors
    /// [`BusError`]: nothing more will come from this host.
    pub fn receive(&mut self) -> Result<Option<Incoming>, BusError> {
        match self {
            Bus::Emulated(bus) => bus.receive(),
            Bus::Card(card) => card.receive(),
        }
    }

    /// Sends a message. Waits if the host does not read, which it does.
    ///
    /// # Errors
    /// [`BusError`]: nothing more can be sent.
    pub fn send(&mut self, message: BusMsg) -> Result<(), BusError> {
        match self {
            Bus::Emulated(bus) => bus.send(message),
            Bus::Card(card) => card.send(message, 0),
        }
    }

    /// What to watch for messages; `None`: a card's bus has to be looked at.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Bus::Emulated(bus) => Some(bus.socket.as_fd()),
            Bus::Card(_) => None,
        }
    }
}

/// Our end of the emulated bus.
#[derive(Debug)]
pub struct EmulatedBus {
    socket: OwnedFd,
}

impl EmulatedBus {
    /// Speaks over `socket`, a connected `SOCK_SEQPACKET` socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        EmulatedBus { socket }
    }

    /// Waits for the agent's first message, which brings the doorbell and, unless all rings are private, the common memory.
    fn greet(&self) -> Result<Host, BusError> {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: HELLO_WITHIN_S, tv_nsec: 0 })).map_err(BusError::Kernel)?;
        match self.receive()? {
            Some(Incoming { message: BusMsg::Hello, payload: Payload::Descriptors(fds) }) => {
                let mut fds = fds.into_iter();
                let doorbell = fds.next().ok_or(BusError::NoHello)?;
                Ok(Host::WithDoorbell { doorbell, common: fds.next() })
            }
            _ => Err(BusError::NoHello),
        }
    }

    fn receive(&self) -> Result<Option<Incoming>, BusError> {
        let mut bytes = [0; BYTES + 1];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAP_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::CONNRESET) => return Err(BusError::HungUp),
                Err(error) => return Err(BusError::Kernel(error)),
            }
        };
        let fds = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        if received.bytes == 0 {
            return Err(BusError::HungUp);
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(BusError::NotOurs);
        }
        let datagram = bytes.get(..received.bytes).unwrap_or_default();
        let message = BusMsg::from_wire(datagram).map_err(|_| BusError::NotOurs)?;
        Ok(Some(Incoming { message, payload: Payload::Descriptors(fds) }))
    }

    fn send(&self, message: BusMsg) -> Result<(), BusError> {
        let wire = message.to_wire();
        let mut control = SendAncillaryBuffer::default();
        loop {
            match sendmsg(&self.socket, &[IoSlice::new(&wire)], &mut control, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(BusError::HungUp),
                Err(error) => return Err(BusError::Kernel(error)),
            }
        }
    }
}
