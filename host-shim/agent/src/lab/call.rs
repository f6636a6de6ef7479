//! What the commands ask of the lab's process: one JSON message each way on an abstract unix socket of root's, which is
//! there as long as that process is, and is the lock on the lab's name.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use emulator::lab::switch::Port;
use emulator::lab::wire::Badness;
use emulator::lab::{HostStatus, Target};
use emulator::packet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use crate::address::Address;
use crate::peer;

/// Longest message, in bytes: what is known of 64 hosts takes half of it.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Longest wait for an answer: starting a host takes seconds on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    Status,
    /// The answer brings a descriptor that leads into the host.
    Enter {
        host: String,
    },
    Start {
        host: String,
    },
    Kill {
        host: String,
        target: Target,
    },
    Link {
        host: String,
        ports: Vec<Port>,
        badness: Badness,
    },
    Partition {
        sides: Vec<Vec<String>>,
    },
    Heal,
    Down,
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Done,
    Hosts(Vec<HostStatus>),
    Failed(String),
}

/// Where the process of lab `name` listens.
pub(super) fn address(name: &str) -> Address {
    Address::Abstract(format!("ipc-direct-lab/{name}"))
}

/// A connection to the lab's process.
#[derive(Debug)]
pub(super) struct Lab {
    socket: OwnedFd,
    process: i32,
}

impl Lab {
    /// Finds the lab's process, which must be root's or our own.
    pub(super) fn find(name: &str) -> Result<Lab, String> {
        let failed = |e: Errno| match e {
            Errno::CONNREFUSED | Errno::NOENT => {
                format!("there is no lab \"{name}\" here: make one with: ipc-direct lab up --name {name}")
            }
            e => format!("the lab \"{name}\" can't be reached: {e}"),
        };
        let unix = address(name).to_unix().map_err(failed)?;
        let socket = Address::socket(false).map_err(failed)?;
        for direction in [Timeout::Recv, Timeout::Send] {
            sockopt::set_socket_timeout(&socket, direction, Some(PATIENCE)).map_err(failed)?;
        }
        rustix::net::connect(&socket, &unix).map_err(failed)?;
        let (process, owner) = peer::credentials(&socket).map_err(|e| e.to_string())?;
        if owner != 0 && owner != rustix::process::geteuid().as_raw() {
            return Err(format!("the lab \"{name}\" belongs to uid {owner}: not talking to it"));
        }
        Ok(Lab { socket, process })
    }

    /// Asks, and waits for the answer with its descriptors.
    pub(super) fn call(&self, ask: &Ask) -> Result<(Answer, Vec<OwnedFd>), String> {
        let gone = |e: io::Error| format!("the lab did not answer: {e}");
        let message = serde_json::to_vec(ask).map_err(|e| gone(e.into()))?;
        packet::send(&self.socket, &message, &[]).map_err(gone)?;
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        let (n, fds) = packet::receive(&self.socket, &mut buffer).map_err(gone)?;
        if n == 0 {
            return Err("the lab has ended, or belongs to another user: be who made it".into());
        }
        match serde_json::from_slice(buffer.get(..n).unwrap_or_default()) {
            Ok(Answer::Failed(why)) => Err(why),
            Ok(answer) => Ok((answer, fds)),
            Err(e) => Err(format!("the lab's answer makes no sense ({e}): use files of one release")),
        }
    }

    /// Asks it to end, and waits until it has.
    pub(super) fn down(self) -> Result<(), String> {
        let failed = |e: Errno| format!("the lab's process can't be watched: {e}");
        let pid = Pid::from_raw(self.process).ok_or_else(|| failed(Errno::SRCH))?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(failed)?;
        self.call(&Ask::Down)?;
        let timeout = Timespec::try_from(PATIENCE).ok();
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) => Err(format!("the lab's process {} has not ended after {PATIENCE:?}", self.process)),
            Ok(_) => Ok(()),
            Err(e) => Err(failed(e)),
        }
    }
}
