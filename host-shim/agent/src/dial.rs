//! Talking to an agent: what `ps`, `run` and the tests do.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use emulator::packet;
use ring::attach::{BYTES, BadMessage, Call, Reply};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};

use crate::address::Address;
use crate::peer;

/// How long an agent may take to answer; it may be booting its card.
const PATIENCE: Duration = Duration::from_secs(12);

/// Why an agent did not answer.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody listens.
    #[error("no IPC-Direct agent is running at {0}; start one with: ipc-direct up")]
    NotRunning(Address),
    /// Somebody else listens there.
    #[error("the agent at {0} belongs to uid {1}, which is neither root nor you: not talking to it")]
    Stranger(Address, u32),
    /// It closed the connection without a word.
    #[error("the agent at {0} is shutting down")]
    Closed(Address),
    /// It said no.
    #[error("the agent refused: {0}")]
    Refused(String),
    /// It sent nonsense.
    #[error("the agent's answer makes no sense: {0}")]
    Bad(BadMessage),
    /// It took too long, or the socket failed.
    #[error("the agent at {0} did not answer: {1}")]
    Failed(Address, #[source] io::Error),
}

/// A connection to an agent, blocking with a time limit.
#[derive(Debug)]
pub struct Agent {
    socket: OwnedFd,
    address: Address,
}

impl Agent {
    /// Connects, and makes sure that the other end is root's or our own.
    ///
    /// # Errors
    /// [`DialError`].
    pub fn connect(address: &Address) -> Result<Agent, DialError> {
        let failed = |e: Errno| match e {
            Errno::CONNREFUSED | Errno::NOENT => DialError::NotRunning(address.clone()),
            e => DialError::Failed(address.clone(), e.into()),
        };
        let unix = address.to_unix().map_err(failed)?;
        let socket = Address::socket(false).map_err(failed)?;
        for direction in [Timeout::Recv, Timeout::Send] {
            sockopt::set_socket_timeout(&socket, direction, Some(PATIENCE)).map_err(failed)?;
        }
        rustix::net::connect(&socket, &unix).map_err(failed)?;
        let (_, owner) = peer::credentials(&socket).map_err(|e| DialError::Failed(address.clone(), e))?;
        if owner != 0 && owner != rustix::process::geteuid().as_raw() {
            return Err(DialError::Stranger(address.clone(), owner));
        }
        Ok(Agent { socket, address: address.clone() })
    }

    /// Asks, and waits for the answer with its descriptors.
    ///
    /// # Errors
    /// [`DialError`]; a refusal is one.
    pub fn call(&self, call: &Call) -> Result<(Reply, Vec<OwnedFd>), DialError> {
        match packet::send(&self.socket, &call.to_wire(), &[]) {
            Ok(()) => self.answer(),
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(DialError::Closed(self.address.clone())),
            Err(e) => Err(DialError::Failed(self.address.clone(), e)),
        }
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// [`DialError`]; a refusal is one.
    pub fn answer(&self) -> Result<(Reply, Vec<OwnedFd>), DialError> {
        let mut buffer = [0; BYTES + 1];
        let (n, fds) = loop {
            match packet::receive(&self.socket, &mut buffer) {
                Ok((0, _)) => return Err(DialError::Closed(self.address.clone())),
                Ok(got) => break got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(DialError::Closed(self.address.clone()));
                }
                Err(e) => return Err(DialError::Failed(self.address.clone(), e)),
            }
        };
        match Reply::from_wire(buffer.get(..n).unwrap_or(&[])) {
            Ok(Reply::Refused(text)) => Err(DialError::Refused(text.as_str().to_owned())),
            Ok(reply) => Ok((reply, fds)),
            Err(bad) => Err(DialError::Bad(bad)),
        }
    }

    /// The agent's process id as this process sees it.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        let (pid, _) = peer::credentials(&self.socket).ok()?;
        u32::try_from(pid).ok()
    }

    /// The socket itself, to keep (a lease) or to misuse (tests).
    #[must_use]
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }
}
