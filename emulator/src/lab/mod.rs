//! A lab: several hosts on one machine, each with an agent and a card of its own, joined by a switch.
//!
//! ```text
//!            the lab's process: its own network namespace
//!        ┌───────────────── br0 ─────────────────┐
//!       e1        c1                    e2        c2      one end of a veth pair each
//!  ┌─────┴─────────┴─────┐         ┌─────┴─────────┴─────┐
//!  │   eth0      card0   │ h1      │   eth0      card0   │ h2
//!  │  kernel     DPDK    │         │                     │
//!  └─────────────────────┘         └─────────────────────┘
//! ```
//!
//! A host is a set of namespaces (pid, network, mount, hostname, SysV memory) that nothing but its first process keeps alive.
//! That process ends when the lab's does, whatever ends that one, and the kernel then removes the host with all
//! processes, links, mounts and files in it. So nothing has a name that could stay behind, and nothing needs cleaning up.
//!
//! | module | what it holds |
//! |---|---|
//! | `host` | a host from outside: start, orders, kill |
//! | [`init`] | and from inside: its first process |
//! | [`namespaces`] | entering and leaving them |
//! | [`switch`] | bridges, links, partitions |
//! | [`wire`] | loss, delay, reordering, duplicates, on virtual time |
//! | [`splice`], `packet_socket` | the process that does it to frames |
//! | `iproute` | `ip` |

pub mod host;
pub mod init;
mod iproute;
pub mod namespaces;
mod packet_socket;
pub mod splice;
pub mod switch;
pub mod wire;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use host::{Addresses, Host, Key, Order, Part, Word, name_of};
use switch::{Port, Switch};
use wire::Badness;

/// Most hosts of a lab.
pub const HOSTS_MAX: u32 = 64;
/// How long a host may take until its agent is up.
const UP_TIMEOUT: Duration = Duration::from_secs(30);

/// What a lab starts: command lines of programs that call [`init::init`] and [`splice::splice`].
#[derive(Clone, Debug)]
pub struct Commands {
    /// To be completed with the host's number and how many there are.
    pub init: Vec<PathBuf>,
    /// To be completed with two links and a [`Badness`] as JSON.
    pub splice: Vec<PathBuf>,
}

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The agent; the coordinator ends with it.
    Agent,
    /// The coordinator; the agent ends with it.
    Coordinator,
    /// Everything.
    Host,
}

/// How far up a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// With agent and card.
    Up,
    /// Without them: only the kernel.
    NoAgent,
    /// Not there.
    Gone,
}

/// One host, for people and scripts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// `h1` and so on.
    pub name: String,
    /// How far up it is.
    pub state: State,
    /// IPv4 address.
    pub address: String,
    /// IPv6 address.
    pub address_v6: String,
    /// The card's IPv4 address.
    pub card_address: String,
    /// Process id of the first process, 0 when there is none.
    pub init_pid: u32,
    /// Process id of the agent, 0 when there is none.
    pub agent_pid: u32,
    /// Process id of the coordinator, 0 when there is none.
    pub coordinator_pid: u32,
    /// Side of the partition that it is on; 0 for all when there is none.
    pub side: u32,
    /// What is bad about `eth0`.
    pub kernel_link: Badness,
    /// What is bad about `card0`.
    pub card_link: Badness,
}

/// A running lab. Dropping it ends all hosts; its switch goes with the process.
#[derive(Debug)]
pub struct Lab {
    commands: Commands,
    hosts: BTreeMap<u32, Option<Host>>,
    switch: Switch,
    key: Key,
}

impl Lab {
    /// Takes the calling process, which must have one thread, into a network namespace of its own, and starts `hosts`
    /// hosts. Gives up when `stop` becomes readable.
    ///
    /// # Errors
    /// A sentence.
    pub fn start(hosts: u32, commands: Commands, stop: BorrowedFd<'_>) -> Result<Lab, String> {
        if !(1..=HOSTS_MAX).contains(&hosts) {
            return Err(format!("a lab has from 1 to {HOSTS_MAX} hosts, not {hosts}"));
        }
        namespaces::own_network().map_err(|e| match e.kind() {
            io::ErrorKind::PermissionDenied => {
                "a lab is made of namespaces, which only root may make: run it as root".to_owned()
            }
            _ => format!("a network namespace could not be made: {e}"),
        })?;
        let switch = Switch::new(commands.splice.clone())?;
        let key = Key::random().map_err(|e| format!("no random numbers for a key: {e}"))?;
        let mut lab = Lab { key, commands, hosts: (1..=hosts).map(|n| (n, None)).collect(), switch };
        lab.start_missing(&(1..=hosts).collect::<Vec<_>>(), stop)?;
        Ok(lab)
    }

    /// Starts those of `numbers` that are gone, side by side, and their agents.
    fn start_missing(&mut self, numbers: &[u32], stop: BorrowedFd<'_>) -> Result<(), String> {
        let deadline = Instant::now() + UP_TIMEOUT;
        let count = self.hosts.len().to_string();
        let mut started = Vec::new();
        for number in numbers {
            let last = [PathBuf::from(number.to_string()), PathBuf::from(&count)];
            let command: Vec<_> = self.commands.init.iter().chain(&last).map(PathBuf::as_path).collect();
            started.push(Host::start(*number, &command)?);
        }
        for host in &mut started {
            host.expect(&Word::Apart, deadline, stop)?;
            self.switch.plug(host.number, host.pid())?;
            host.order(Order::Links(self.key));
        }
        for host in &mut started {
            host.expect(&Word::Linked, deadline, stop)?;
            host.order(Order::Agent);
        }
        for host in &mut started {
            host.expect(&Word::Up, deadline, stop)?;
        }
        self.hosts.extend(started.into_iter().map(|host| (host.number, Some(host))));
        Ok(())
    }

    /// The numbers of hosts by their names.
    ///
    /// # Errors
    /// A sentence: there is no such host.
    pub fn number(&self, name: &str) -> Result<u32, String> {
        let number = self.hosts.keys().find(|n| name_of(**n) == name);
        number.copied().ok_or_else(|| {
            format!("there is no host {name}: the lab has {} to {}", name_of(1), name_of(self.count()))
        })
    }

    fn count(&self) -> u32 {
        self.hosts.keys().last().copied().unwrap_or_default()
    }

    fn host(&self, name: &str) -> Result<&Host, String> {
        let host = self.hosts.get(&self.number(name)?).and_then(Option::as_ref);
        host.ok_or_else(|| format!("{name} was killed: start it again (ipc-direct lab start {name})"))
    }

    /// What [`namespaces::enter`] takes, and whether the host has an agent.
    ///
    /// # Errors
    /// A sentence: no such host, or it is gone.
    pub fn entrance(&self, name: &str) -> Result<BorrowedFd<'_>, String> {
        Ok(self.host(name)?.pidfd())
    }

    /// Starts a host again that was killed, or its agent.
    ///
    /// # Errors
    /// A sentence.
    pub fn restart(&mut self, name: &str, stop: BorrowedFd<'_>) -> Result<(), String> {
        let number = self.number(name)?;
        let Some(host) = self.hosts.get_mut(&number).and_then(Option::as_mut) else {
            return self.start_missing(&[number], stop);
        };
        if host.part(Part::Agent).is_some() {
            return Ok(());
        }
        host.order(Order::Agent);
        host.expect(&Word::Up, Instant::now() + UP_TIMEOUT, stop)
    }

    /// kill -9, at once.
    ///
    /// # Errors
    /// A sentence: it does not run.
    pub fn kill(&mut self, name: &str, target: Target) -> Result<(), String> {
        let host = self.host(name)?;
        let part = match target {
            Target::Agent => Part::Agent,
            Target::Coordinator => Part::Coordinator,
            Target::Host => {
                let number = host.number;
                self.hosts.insert(number, None);
                self.switch.unplug(number);
                return Ok(());
            }
        };
        match host.kill(part) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("{name} has no agent: start it again (ipc-direct lab start {name})")),
            Err(e) => Err(format!("{name}: {e}")),
        }
    }

    /// Makes links of a host as bad as that.
    ///
    /// # Errors
    /// A sentence.
    pub fn set_badness(&mut self, name: &str, ports: &[Port], badness: Badness) -> Result<(), String> {
        badness.check()?;
        let number = self.host(name)?.number;
        for port in ports {
            self.switch.set_badness(number, *port, badness)?;
        }
        Ok(())
    }

    /// Cuts the network: each of `sides` hears only itself; hosts that are not named are one more side.
    ///
    /// # Errors
    /// A sentence.
    pub fn partition(&mut self, sides: &[Vec<String>]) -> Result<(), String> {
        let mut side_of = BTreeMap::new();
        for (side, names) in (1u32..).zip(sides) {
            for name in names {
                if side_of.insert(self.number(name)?, side).is_some() {
                    return Err(format!("{name} can't be on two sides"));
                }
            }
        }
        self.switch.partition(|host| side_of.get(&host).copied().unwrap_or(0))
    }

    /// All links are good, and all hosts hear each other.
    ///
    /// # Errors
    /// A sentence.
    pub fn heal(&mut self) -> Result<(), String> {
        self.switch.partition(|_| 0)?;
        for number in 1..=self.count() {
            for port in Port::ALL {
                self.switch.set_badness(number, port, Badness::default())?;
            }
        }
        Ok(())
    }

    /// How things are.
    #[must_use]
    pub fn status(&self) -> Vec<HostStatus> {
        self.hosts.iter().map(|(number, host)| self.host_status(*number, host.as_ref())).collect()
    }

    fn host_status(&self, number: u32, host: Option<&Host>) -> HostStatus {
        let Addresses { v4, v6, card } = Addresses::of(number);
        let agent = host.and_then(|h| h.part(Part::Agent));
        let coordinator = host.and_then(|h| h.part(Part::Coordinator));
        let state = match (host, agent, coordinator) {
            (None, ..) => State::Gone,
            (_, Some(_), Some(_)) => State::Up,
            _ => State::NoAgent,
        };
        HostStatus {
            name: name_of(number),
            state,
            address: v4,
            address_v6: v6,
            card_address: card,
            init_pid: host.map_or(0, Host::pid),
            agent_pid: agent.unwrap_or(0),
            coordinator_pid: coordinator.unwrap_or(0),
            side: self.switch.side(number),
            kernel_link: self.switch.badness(number, Port::Kernel),
            card_link: self.switch.badness(number, Port::Card),
        }
    }

    /// What becomes readable when a host has something to say; then [`Lab::listen`].
    #[must_use]
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.hosts.values().flatten().map(|host| host.words_fd()).collect()
    }

    /// Hears what hosts say, and notices those that are gone.
    pub fn listen(&mut self) {
        let ready: Vec<u32> =
            self.hosts.values().flatten().filter(|h| readable(h.words_fd())).map(|h| h.number).collect();
        for number in ready {
            let Some(host) = self.hosts.get_mut(&number).and_then(Option::as_mut) else { continue };
            let alive = host.listen();
            // Agents come and go: `status` looks at the processes themselves.
            while host.next_word().is_some() {}
            if !alive {
                self.hosts.insert(number, None);
                self.switch.unplug(number);
            }
        }
    }
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1))
}
