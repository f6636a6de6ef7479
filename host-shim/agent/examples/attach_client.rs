//! The smallest client: attaches to an agent and does what standard input says, one line each. The
//! integration tests kill it; people can try the protocol by hand with it.
//!
//! `attach_client SOCKET`, then `listen PORT`, `connect PORT`, `accept LISTENER`, `segment N SIDE`,
//! `hangup`, `gone`, `notice`. Each line is answered by one line. Waits are bounded.

use std::io::{BufRead, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use emulator::memory::Mapping;
use emulator::{AgentRing, FunctionMemory};
use ipc_direct_agent::address::Address;
use ipc_direct_agent::dial::Agent;
use ring::atomic::Ordering;
use ring::attach::{Call, Reply};
use ring::msg::{Addr, Completion, ConnId, Request};
use ring::window::{HOST_BYTES, HostMemory};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const PATIENCE: Duration = Duration::from_secs(10);

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

struct Client {
    agent: Agent,
    ring: AgentRing,
    host: Mapping,
    wire: Option<OwnedFd>,
    token: u32,
}

impl Client {
    fn attach(socket: &str) -> Outcome<(Client, String)> {
        let agent = Agent::connect(&Address::parse(socket))?;
        let (reply, fds) = agent.call(&Call::Hello { parent: 0, nonce: 0 })?;
        let Reply::Welcome { function, group, .. } = reply else { return Err("no welcome".into()) };
        let mut fds = fds.into_iter();
        let [window, host, _stats, doorbell, answers, events] =
            [(); 6].map(|()| fds.next()).map(|fd| fd.ok_or("not six descriptors"));
        let (window, host, doorbell, answers, events) = (window?, host?, doorbell?, answers?, events?);
        let common = fds.next();
        let mapped = Mapping::new(&host, HOST_BYTES)?;
        let memory = FunctionMemory { window, host, interrupts: [answers, events] };
        let ring = AgentRing::new(function, &memory, common.as_ref().map(AsFd::as_fd), doorbell)?;
        let client = Client { agent, ring, host: mapped, wire: None, token: 0 };
        Ok((client, format!("attached {function} {group}")))
    }

    /// Takes completions until `wanted` finds what it wants.
    fn until<T>(&mut self, mut wanted: impl FnMut(u32, Completion) -> Option<T>) -> Outcome<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            while let Some((token, completion)) = self.ring.take()? {
                if let Some(found) = wanted(token, completion) {
                    return Ok(found);
                }
            }
            if self.ring.rearm() && !readable(self.ring.interrupt(), PollFlags::IN, deadline) {
                return Err("nothing came".into());
            }
        }
    }

    fn ask(&mut self, request: Request) -> Outcome<Completion> {
        self.token += 1;
        let mine = self.token;
        self.ring.post(mine, request);
        self.until(|token, completion| (token == mine).then_some(completion))
    }

    fn obey(&mut self, line: &str) -> Outcome<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let here = |port: &str| Ok::<_, Box<dyn std::error::Error>>(Addr::v4([127, 0, 0, 1], port.parse()?));
        Ok(match words.as_slice() {
            ["listen", port] => {
                match self.ask(Request::Listen { addr: here(port)?, backlog: 16, flags: 0 })? {
                    Completion::Done { status, value } => format!("{status:?} {value}"),
                    other => format!("{other:?}"),
                }
            }
            ["connect", port] => {
                match self.ask(Request::Connect { dst: here(port)?, src: here("40000")? })? {
                    Completion::Connected { status, conn, .. } => format!("{status:?} {}", parts(conn)),
                    other => format!("{other:?}"),
                }
            }
            ["accept", listener] => {
                let flags = ring::msg::ACCEPT_WAIT;
                match self.ask(Request::Accept { listener: listener.parse()?, flags })? {
                    Completion::Accepted { status, conn, .. } => format!("{status:?} {}", parts(conn)),
                    other => format!("{other:?}"),
                }
            }
            ["segment", segment, side] => {
                let call = Call::Segment { segment: segment.parse()?, side: side.parse()? };
                let (reply, mut fds) = self.agent.call(&call)?;
                self.wire = fds.pop();
                format!("{reply:?}")
            }
            ["hangup"] => {
                let wire = self.wire.as_ref().ok_or("no wire")?;
                let hung_up = readable(wire.as_fd(), PollFlags::RDHUP, Instant::now() + PATIENCE);
                if hung_up { "hung up".into() } else { "still there".into() }
            }
            ["gone"] => self.until(|_, c| match c {
                Completion::PeerGone { conn, .. } => Some(format!("gone {}", parts(conn))),
                _ => None,
            })?,
            ["notice"] => {
                let view = HostMemory::over(self.host.region()).ok_or("no host memory")?;
                view.header.notice.load(Ordering::Acquire).to_string()
            }
            _ => return Err("unknown line".into()),
        })
    }
}

fn parts(conn: ConnId) -> String {
    format!("{} {} {}", conn.segment(), conn.slot(), conn.generation())
}

fn readable(fd: impl AsFd, flags: PollFlags, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let mut fds = [PollFd::new(&fd, flags)];
    matches!(poll(&mut fds, Timespec::try_from(left).ok().as_ref()), Ok(1))
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}").and_then(|()| std::io::stdout().flush());
}

fn main() {
    let socket = std::env::args().nth(1).unwrap_or_default();
    let mut client = match Client::attach(&socket) {
        Ok((client, line)) => {
            say(&line);
            client
        }
        Err(e) => return say(&format!("error: {e}")),
    };
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        say(&client.obey(&line).unwrap_or_else(|e| format!("error: {e}")));
    }
}
