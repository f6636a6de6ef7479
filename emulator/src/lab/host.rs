//! A host as its lab sees it: its first process, what that says, and its agent.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::namespaces::in_own_pids;

/// Where the hosts are: `10.99.0.0/16`.
const NET: [u8; 2] = [10, 99];

/// What a host is called.
#[must_use]
pub fn name_of(number: u32) -> String {
    format!("h{number}")
}

/// The addresses of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Of the kernel, on `eth0`.
    pub v4: String,
    /// Of the kernel, on `eth0`.
    pub v6: String,
    /// Of the card, on `card0`, in the same network.
    pub card: String,
}

impl Addresses {
    /// Of host `number`, from 1.
    #[must_use]
    pub fn of(number: u32) -> Addresses {
        let [a, b] = NET;
        Addresses {
            v4: format!("{a}.{b}.0.{number}"),
            v6: format!("fd99::{number:x}"),
            card: format!("{a}.{b}.1.{number}"),
        }
    }

    pub(crate) fn etc_hosts(&self, number: u32) -> String {
        let name = name_of(number);
        format!("{} {name}\n{} {name}\n", self.v4, self.v6)
    }
}

/// The key that the cards of a lab share, as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(u128, u128);

impl Key {
    pub(crate) fn random() -> io::Result<Key> {
        let mut bytes = [0; 32];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        let [a, b] =
            [&bytes[..16], &bytes[16..]].map(|half| u128::from_le_bytes(half.try_into().unwrap_or_default()));
        Ok(Key(a, b))
    }

    fn from_digits(text: &str) -> Option<Key> {
        let (a, b) = text.split_at_checked(32)?;
        Some(Key(u128::from_str_radix(a, 16).ok()?, u128::from_str_radix(b, 16).ok()?))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}{:032x}", self.0, self.1)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// What the lab tells a host's first process, one line each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The links are there: give them addresses. The cards' key comes along.
    Links(Key),
    /// Start the agent.
    Agent,
}

impl Order {
    fn line(self) -> String {
        match self {
            Order::Links(key) => format!("links {key}\n"),
            Order::Agent => "agent\n".into(),
        }
    }

    pub(crate) fn from_line(line: &str) -> Option<Order> {
        match line.split_once(' ') {
            None => (line == "agent").then_some(Order::Agent),
            Some(("links", key)) => Key::from_digits(key).map(Order::Links),
            Some(_) => None,
        }
    }
}

/// What a host's first process says, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// It has namespaces of its own.
    Apart,
    /// The links have their addresses.
    Linked,
    /// The agent is up.
    Up,
    /// An order, or its own start, failed.
    Failed(String),
    /// The agent is gone.
    AgentEnded,
}

impl Word {
    pub(crate) fn to_line(&self) -> String {
        match self {
            Word::Apart => "apart\n".into(),
            Word::Linked => "linked\n".into(),
            Word::Up => "up\n".into(),
            Word::Failed(why) => format!("failed {}\n", why.replace('\n', " ")),
            Word::AgentEnded => "agent-ended\n".into(),
        }
    }

    fn from_line(line: &str) -> Option<Word> {
        Some(match line {
            "apart" => Word::Apart,
            "linked" => Word::Linked,
            "up" => Word::Up,
            "agent-ended" => Word::AgentEnded,
            _ => Word::Failed(line.strip_prefix("failed ")?.to_owned()),
        })
    }
}

/// Which process of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Agent,
    Coordinator,
}

/// A running host. Dropping it ends every process in it, and waits for that.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) number: u32,
    first: Child,
    pidfd: OwnedFd,
    words: ChildStdout,
    partial: Vec<u8>,
}

impl Host {
    /// Starts `command`, which is to end up in [`super::init::init`], as the first process of a new host.
    pub(crate) fn start(number: u32, command: &[&Path]) -> Result<Host, String> {
        let spawn = || {
            let [program, arguments @ ..] = command else { return Err(io::ErrorKind::InvalidInput.into()) };
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
            // Ctrl-C in the terminal is for the lab.
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
            command.spawn()
        };
        let failed = |e: io::Error| format!("{} could not be started: {e}", name_of(number));
        let mut first = in_own_pids(spawn).map_err(failed)?;
        let pid = i32::try_from(first.id()).ok().and_then(Pid::from_raw);
        let pidfd = pid.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        match (pidfd, first.stdout.take()) {
            (Some(pidfd), Some(words)) => Ok(Host { number, first, pidfd, words, partial: Vec::new() }),
            _ => {
                let _ = first.kill().and_then(|()| first.wait());
                Err(failed(io::ErrorKind::NotFound.into()))
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.first.id()
    }

    /// Names the host, whatever its number is used for later.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Readable when it says something, or is gone.
    pub(crate) fn words_fd(&self) -> BorrowedFd<'_> {
        self.words.as_fd()
    }

    pub(crate) fn order(&mut self, order: Order) {
        // A host that is gone does not answer, which is noticed there.
        if let Some(stdin) = self.first.stdin.as_mut() {
            let _ = stdin.write_all(order.line().as_bytes());
        }
    }

    /// Waits for `wanted`, at most until `deadline`, unless `stop` becomes readable.
    pub(crate) fn expect(
        &mut self,
        wanted: &Word,
        deadline: Instant,
        stop: BorrowedFd<'_>,
    ) -> Result<(), String> {
        let name = name_of(self.number);
        loop {
            match self.next_word() {
                Some(word) if word == *wanted => return Ok(()),
                Some(Word::Failed(why)) => return Err(why),
                Some(_) => continue,
                None => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).ok();
            let mut fds = [self.words.as_fd(), stop].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return Err(format!("{name} did not come up in time")),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(format!("{name}: {e}")),
            }
            let [said, stopped] = fds.map(|fd| !fd.revents().is_empty());
            if stopped {
                return Err("asked to end while starting".into());
            }
            if said && !self.listen() {
                return Err(format!("{name} has ended while starting"));
            }
        }
    }

    /// Reads what is there. False: nobody is left to say anything.
    pub(crate) fn listen(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match rustix::io::read(&self.words, &mut buffer) {
            Ok(n) => {
                self.partial.extend(buffer.iter().take(n));
                n > 0
            }
            Err(e) => e == rustix::io::Errno::INTR,
        }
    }

    /// A word that has been heard.
    pub(crate) fn next_word(&mut self) -> Option<Word> {
        loop {
            let end = self.partial.iter().position(|b| *b == b'\n')?;
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            if let Some(word) = Word::from_line(String::from_utf8_lossy(&line).trim()) {
                return Some(word);
            }
        }
    }

    /// The process id of a part, if it runs: the agent is a child of the first process, the coordinator of the agent.
    pub(crate) fn part(&self, part: Part) -> Option<u32> {
        let agent = child_named(self.pid(), "ipc-direct")?;
        match part {
            Part::Agent => Some(agent),
            Part::Coordinator => child_named(agent, "nic-coordinator"),
        }
    }

    /// kill -9 of a part, and waits until it is gone. False: it does not run.
    pub(crate) fn kill(&self, part: Part) -> io::Result<bool> {
        let pid = self.part(part).and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { return Ok(false) };
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        rustix::process::pidfd_send_signal(&pidfd, Signal::KILL)?;
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        let timeout = Timespec::try_from(Duration::from_secs(10)).ok();
        poll(&mut fds, timeout.as_ref())?;
        Ok(true)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Once the first process is reaped, the kernel has ended all others of its pid namespace.
        let _ = self.first.kill();
        let _ = self.first.wait();
    }
}

/// The first child of `pid` whose command has this name.
fn child_named(pid: u32, name: &str) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().filter_map(|child| child.parse().ok()).find(|child: &u32| {
        let comm = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
        // As the kernel cuts it.
        comm.trim() == name.get(..15).unwrap_or(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_orders_come_as_they_went() {
        let words = [Word::Apart, Word::Linked, Word::Up, Word::AgentEnded, Word::Failed("a b".into())];
        for word in words {
            assert_eq!(Word::from_line(word.to_line().trim()), Some(word));
        }
        assert_eq!(Word::from_line("nonsense"), None);
        assert_eq!(Word::Failed("a\nb".into()).to_line(), "failed a b\n");
        for order in [Order::Links(Key(7, u128::MAX)), Order::Agent] {
            assert_eq!(Order::from_line(order.line().trim()), Some(order));
        }
    }

    #[test]
    fn hosts_have_names_and_addresses() {
        let addresses = Addresses::of(2);
        assert_eq!(addresses.etc_hosts(2), "10.99.0.2 h2\nfd99::2 h2\n");
        assert_eq!(addresses.card, "10.99.1.2");
    }
}
