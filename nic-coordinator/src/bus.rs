//! The card's side of the emulated bus (SPEC 8): the socket over which the agent's process maps functions for us.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ring::bus::{BYTES, BusMsg, MAP_FDS};
use rustix::cmsg_space;
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendFlags,
    recvmsg, sendmsg,
};

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
    #[error("the emulated bus carries messages of another version: use files of one release")]
    NotOurs,
}

/// A message and the descriptors that came with it.
#[derive(Debug)]
pub struct Incoming {
    /// What it says.
    pub message: BusMsg,
    /// What it brings.
    pub fds: Vec<OwnedFd>,
}

/// Our end of the bus.
#[derive(Debug)]
pub struct Bus {
    socket: OwnedFd,
}

impl Bus {
    /// Speaks over `socket`, a connected `SOCK_SEQPACKET` socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Bus { socket }
    }

    /// Takes the next message, if there is one; does not wait.
    ///
    /// # Errors
    /// [`BusError`]: nothing more will come.
    pub fn receive(&self) -> Result<Option<Incoming>, BusError> {
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
        Ok(Some(Incoming { message, fds }))
    }

    /// Sends a message. Waits if the host does not read, which it does.
    ///
    /// # Errors
    /// [`BusError`]: nothing more can be sent.
    pub fn send(&self, message: BusMsg) -> Result<(), BusError> {
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

impl AsFd for Bus {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
