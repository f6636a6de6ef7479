//! Relays: for a connection that a program without the shim has inherited, a process with the shim that copies between
//! it and a kernel socket. The agent starts it, as the connection's user; the rest is inheritance (SPEC 10.4).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use emulator::packet;
use ring::attach::{RELAY_FDS, Reply, Text};
use rustix::net::sockopt;

use crate::address::SOCKET_VARIABLE;
use crate::run::LIBRARY;
use crate::serve::Agent;

/// Relays of one agent at a time.
const RELAYS_MAX: usize = 1024;
/// First of the descriptor numbers that a relay finds its things at.
const FIRST_FD: i32 = 3;

/// Relays, and who waits for them to be attached.
#[derive(Debug, Default)]
pub struct Relays {
    running: Vec<Child>,
    /// Client that asked, by the relay's process id.
    waiting: BTreeMap<u32, u32>,
}

impl Relays {
    fn reap(&mut self) {
        // An error means that there is no such child (any more).
        self.running.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let Relays { running, waiting } = self;
        waiting.retain(|pid, _| running.iter().any(|child| child.id() == *pid));
    }
}

impl Agent {
    /// `Relay`: starts one. The client is answered when it is attached.
    pub(crate) fn start_relay(&mut self, id: u32, fds: Vec<OwnedFd>) {
        self.relays.reap();
        let started = if fds.len() != RELAY_FDS {
            Err("a relay needs four descriptors".to_owned())
        } else if self.relays.running.len() >= RELAYS_MAX {
            Err("too many relays are running".to_owned())
        } else {
            self.spawn(id, fds).map_err(|e| format!("the relay could not be started: {e}"))
        };
        match started {
            Ok(child) => {
                self.relays.waiting.insert(child.id(), id);
                self.relays.running.push(child);
            }
            Err(why) => {
                tracing::error!("client {id}: {why}");
                if let Some(client) = self.clients.get(id) {
                    let _ = packet::send(&client.socket, &Reply::Refused(Text::new(&why)).to_wire(), &[]);
                }
            }
        }
    }

    fn spawn(&self, id: u32, fds: Vec<OwnedFd>) -> std::io::Result<Child> {
        let client = self.clients.get(id).ok_or(std::io::ErrorKind::NotFound)?;
        let owner = sockopt::socket_peercred(&client.socket)?;
        let program = std::env::current_exe()?;
        let mut command = Command::new(&program);
        command.arg("pump").env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.env("LD_PRELOAD", program.with_file_name(LIBRARY));
        command.env(SOCKET_VARIABLE, self.address.to_string());
        // The image is the third of its descriptors.
        command.env("IPC_DIRECT_STATE", (FIRST_FD + 2).to_string());
        if self.own_uid == 0 && !owner.uid.is_root() {
            command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw());
        }
        let numbered = (FIRST_FD..).zip(fds).map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd });
        command.fd_mappings(numbered.collect()).map_err(std::io::Error::other)?;
        command.spawn()
    }

    /// A process is attached: if it is a relay, somebody waits for that.
    pub(crate) fn relay_attached(&mut self, pid: u32) {
        if let Some(id) = self.relays.waiting.remove(&pid) {
            self.reply(id, &Reply::Relayed, &[]);
        }
    }

    /// A process is gone: it may have been a relay.
    pub(crate) fn reap_relays(&mut self) {
        self.relays.reap();
    }
}
