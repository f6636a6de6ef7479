//! The first process of a host: makes its namespaces, sets up its links, starts its agent, buries its dead. When it ends, or
//! the one who started it does, the kernel takes everything that the host was.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{WaitOptions, wait};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::host::{Addresses, Order, Word, name_of};
use super::iproute::ip;
use super::namespaces::become_host;
use crate::launch::allowed_cpus;

/// Links that only the card's program uses: the kernel stays silent there.
const QUIET: &str = "/proc/sys/net/ipv6/conf/card0/disable_ipv6";

/// The file with the key that the lab's cards share, in each host.
pub const KEY_FILE: &str = "/run/ipc-direct-key";

/// Lives as the first process of host `number` of `hosts`. `agent` is the command line that starts its agent, and `child_ended`
/// becomes readable at SIGCHLD.
pub fn init(number: u32, hosts: u32, agent: &[&Path], child_ended: UnixStream) {
    let all = (1..=hosts).map(|n| Addresses::of(n).etc_hosts(n)).collect::<String>();
    let loopback = "127.0.0.1 localhost\n::1 localhost\n";
    if let Err(sentence) = become_host(&name_of(number), &format!("{loopback}{all}")) {
        return say(&Word::Failed(sentence));
    }
    keep_to_own_processors(number, hosts);
    say(&Word::Apart);
    let mut host = Host { number, command: agent, agent: None };
    let stdin = io::stdin();
    let mut orders = BufReader::new(stdin.lock());
    let mut child_ended = child_ended;
    loop {
        let mut fds =
            [stdin.as_fd(), child_ended.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        if poll(&mut fds, None).is_err() {
            continue;
        }
        let [order, ended] = fds.map(|fd| !fd.revents().is_empty());
        if ended {
            let _ = child_ended.read(&mut [0; 64]);
            host.bury();
        }
        if order {
            let mut line = String::new();
            match orders.read_line(&mut line) {
                // The one who started us has ended: so does the host.
                Ok(0) | Err(_) => return,
                Ok(_) => host.obey(line.trim()),
            }
        }
    }
}

/// A card has processors of its own, so the machine's are divided among the hosts' agents and cards if there are enough. Left to the scheduler,
/// cards that send to each other end up on one, where they wait for each other. The programs of a host run anywhere.
fn keep_to_own_processors(number: u32, hosts: u32) {
    let cpus = allowed_cpus();
    let Some(share @ 1..) = cpus.len().checked_div(hosts as usize) else { return };
    let others = share * number.saturating_sub(1) as usize;
    let mut set = CpuSet::new();
    cpus.iter().skip(others).take(share).for_each(|cpu| set.set(*cpu));
    // Without it the host works as well.
    let _ = sched_setaffinity(None, &set);
}

struct Host<'a> {
    number: u32,
    command: &'a [&'a Path],
    agent: Option<u32>,
}

impl Host<'_> {
    fn obey(&mut self, order: &str) {
        let done = match Order::from_line(order) {
            Some(Order::Links(key)) => {
                self.links().and_then(|()| write_key(&key.to_string())).map(|()| Word::Linked)
            }
            Some(Order::Agent) => self.start_agent().map(|()| Word::Up),
            None => Err(format!("{}: no such order: {order}", name_of(self.number))),
        };
        say(&done.unwrap_or_else(Word::Failed));
    }

    fn links(&self) -> Result<(), String> {
        let Addresses { v4, v6, .. } = Addresses::of(self.number);
        // IPv6 may be off.
        let _ = fs::write(QUIET, "1");
        let six = if Path::new("/proc/net/if_inet6").exists() {
            format!("addr add {v6}/64 dev eth0 nodad\n")
        } else {
            String::new()
        };
        ip(&format!("link set lo up\naddr add {v4}/16 dev eth0\n{six}link set eth0 up\nlink set card0 up\n"))
    }

    /// Waits for the line by which the agent says that it is up, or why not.
    fn start_agent(&mut self) -> Result<(), String> {
        let name = name_of(self.number);
        let [program, arguments @ ..] = self.command else { return Err("no agent to start".into()) };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).env_remove("LD_PRELOAD");
        let mut child =
            command.spawn().map_err(|e| format!("{name}: the agent could not be started: {e}"))?;
        let line = child.stdout.take().map(first_line).unwrap_or_default();
        // The agent's words end with a closed pipe, whether it is up or has failed.
        if line.contains("is up") {
            self.agent = Some(child.id());
            return Ok(());
        }
        let _ = child.wait();
        Err(format!("{name}: {}", line.trim()))
    }

    /// Whoever has ended has no other parent left.
    fn bury(&mut self) {
        while let Ok(Some((pid, _))) = wait(WaitOptions::NOHANG) {
            if self.agent == Some(pid.as_raw_nonzero().get().unsigned_abs()) {
                self.agent = None;
                say(&Word::AgentEnded);
            }
        }
    }
}

/// For root only.
fn write_key(key: &str) -> Result<(), String> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(KEY_FILE);
    file.and_then(|mut file| file.write_all(key.as_bytes())).map_err(|e| format!("{KEY_FILE}: {e}"))
}

fn first_line(pipe: ChildStdout) -> String {
    let mut line = String::new();
    let _ = BufReader::new(pipe).read_line(&mut line);
    line
}

fn say(word: &Word) {
    let mut out = io::stdout();
    // Nobody listens: standard input says so, too.
    let _ = out.write_all(word.to_line().as_bytes()).and_then(|()| out.flush());
}
