//! The coordinator's decisions: who listens, who may connect to whom, who gets a connection, who still holds it.
//!
//! A deterministic state machine without clock, I/O or DPDK: requests and the time go in, completions come out.
//!
//! | module | what it decides |
//! |---|---|
//! | [`functions`] | attached processes, what they hold, their groups |
//! | [`policy`] | who may listen where and connect from where |
//! | [`listeners`] | which listener a destination means; accept queues |
//! | [`segments`] | slots for connections in the memory that two groups share |
//! | [`forks`] | what a child inherits before it has attached |
//! | [`remote`] | connections with other hosts |
//! | `connect`, `ahead`, `accept`, `claims`, `lifetime` | the requests, in terms of those tables |

mod accept;
mod ahead;
pub mod claims;
mod connect;
pub mod forks;
pub mod functions;
mod lifetime;
pub mod listeners;
pub mod policy;
pub mod remote;
pub mod segments;

use ring::bus::AGENT_FUNCTION;
use ring::msg::{Completion, Request};

use claims::Peer;
use forks::Forks;
use functions::{Functions, Holder, Holdings};
use listeners::Listeners;
use remote::Remote;
use segments::{End, Segments};

/// Upper bounds, so that no process can take more than its share.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Listeners that a process may hold.
    pub listeners_per_function: usize,
    /// Sides of connections that a process may hold or have under way.
    pub conns_per_function: usize,
    /// Parked accepts on a listener.
    pub waiters_per_listener: usize,
    /// Segments from one group to another.
    pub segments_per_pair: usize,
    /// Segments altogether.
    pub segments: usize,
    /// Children of a process that have not attached yet; more push out the oldest.
    pub forks_per_function: usize,
    /// What those children may hold together; more pushes out the oldest.
    pub fork_holdings_per_function: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            listeners_per_function: 1024,
            conns_per_function: 65_536,
            waiters_per_listener: 4096,
            segments_per_pair: 256,
            segments: 65_536,
            forks_per_function: 256,
            fork_holdings_per_function: 1 << 20,
        }
    }
}

/// A completion on its way to a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Out {
    /// To whom.
    pub function: u32,
    /// Token of the request that it answers, or 0.
    pub token: u32,
    /// What it says.
    pub completion: Completion,
    /// The listener whose queue it tells about (an answer to `Accept` does not name it).
    pub listener: Option<u32>,
}

/// A request that only the agent may make came from somebody else: that function has to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it made a request that only the agent may make")]
pub struct Impostor;

/// All that the coordinator knows.
#[derive(Debug, Default)]
pub struct Logic {
    limits: Limits,
    functions: Functions,
    forks: Forks,
    listeners: Listeners,
    segments: Segments,
    remote: Remote,
    /// Number of the next offer.
    offers_ever: u64,
    /// What time it was when somebody last said so.
    now_us: u64,
}

impl Logic {
    /// Knows nobody yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Logic { limits, ..Logic::default() }
    }

    /// Decides on one request of `function`, and appends what is to be told to whom.
    ///
    /// Requests of a function that is not attached have no effect: they are what a dead process left in its ring.
    /// `now_us` is any clock in microseconds that never goes back.
    ///
    /// # Errors
    /// [`Impostor`]: the request was ignored.
    pub fn handle(
        &mut self,
        function: u32,
        token: u32,
        request: Request,
        now_us: u64,
        out: &mut Vec<Out>,
    ) -> Result<(), Impostor> {
        self.now_us = now_us;
        if request.agent_only() {
            if function != AGENT_FUNCTION {
                return Err(Impostor);
            }
            self.handle_agent(token, request, out);
        } else if self.functions.get(function).is_some() {
            self.handle_process(function, token, request, now_us, out);
        }
        Ok(())
    }

    fn handle_agent(&mut self, token: u32, request: Request, out: &mut Vec<Out>) {
        match request {
            Request::Attach { function, group, parent, nonce, uid, pid, netns } => {
                let identity = functions::Identity { group, uid, pid, netns };
                self.attach(token, function, identity, (parent, nonce), out);
            }
            Request::Detach { function } => self.detach(function, out),
            Request::SegmentMade { segment, ok } => self.segment_made(segment, ok, out),
            Request::StandsFor { function, pid, uid, name } => {
                self.functions.stand_for(function, (pid, uid, name));
            }
            Request::Child { parent, nonce, lives: true } => self.watch_fork(parent, nonce),
            Request::Child { parent, nonce, lives: false } => self.fork_failed(parent, nonce, out),
            _ => {}
        }
    }

    fn handle_process(&mut self, f: u32, token: u32, request: Request, now_us: u64, out: &mut Vec<Out>) {
        match request {
            Request::Listen { addr, backlog, flags } => {
                let (status, value) = match self.listen(f, addr, backlog, flags, out) {
                    Ok(listener) => (ring::msg::Status::Ok, listener),
                    Err(status) => (status, 0),
                };
                reply(out, f, token, Completion::Done { status, value });
            }
            Request::Unlisten { listener } => {
                self.unlisten(f, listener, out);
                if token != 0 {
                    reply(out, f, token, Completion::Done { status: ring::msg::Status::Ok, value: 0 });
                }
            }
            Request::Connect { dst, src } => self.connect(f, token, dst, src, out),
            Request::Ahead { dst, count } => self.grant(f, dst, count, out),
            Request::Open { conn, src } => self.open_granted(f, conn, src, out),
            Request::Offer { serial, pid, uid, name } => {
                self.note_offer(f, token, serial, (Peer { pid, uid }, name), out);
            }
            Request::Retract { serial } => self.retract(f, serial),
            Request::Claim { function, serial, pid, uid } => {
                self.claim(f, token, (function, serial), Peer { pid, uid }, out);
            }
            Request::Accept { listener, flags } => self.accept(f, token, listener, flags, out),
            Request::CancelAccept { listener, token } => self.cancel_accept(f, token, listener, out),
            Request::Close { conn, side, finished } => {
                let side = side as usize;
                let end = if finished { End::Marked } else { End::Unmarked };
                let Some(function) = self.functions.get_mut(f) else { return };
                if function.holdings.conns.remove(&(conn, side)) {
                    self.release_conn(Holder::Function(f), conn, side, end, out);
                } else if side == functions::CLIENT && function.granted.remove(&conn) {
                    self.drop_granted(conn, out);
                }
            }
            Request::Shut { conn, side } => self.shut(f, conn, side, out),
            Request::Requeue { conn } => self.requeue(f, conn, out),
            Request::Fork { nonce } => self.fork(f, nonce, None, now_us, out),
            Request::Lend { nonce, conn, side } => {
                self.fork(f, nonce, Some((conn, side as usize)), now_us, out);
            }
            Request::Withdraw { listener } => self.withdraw(f, listener, out),
            Request::ForkFailed { nonce } => self.fork_failed(f, nonce, out),
            Request::Attach { .. }
            | Request::Detach { .. }
            | Request::SegmentMade { .. }
            | Request::StandsFor { .. }
            | Request::Child { .. } => {}
        }
    }

    /// Gives up on children that did not attach in time.
    pub fn tick(&mut self, now_us: u64, out: &mut Vec<Out>) {
        self.now_us = now_us;
        while let Some((id, _)) = self.forks.next_deadline().filter(|(_, deadline_us)| *deadline_us <= now_us)
        {
            self.fork_is_late(id, out);
        }
    }

    /// When [`Logic::tick`] has something to do next, if nothing else happens.
    #[must_use]
    pub fn next_deadline_us(&self) -> Option<u64> {
        self.forks.next_deadline().map(|(_, deadline_us)| deadline_us)
    }

    /// The attached functions.
    #[must_use]
    pub fn functions(&self) -> &Functions {
        &self.functions
    }

    /// The listeners.
    #[must_use]
    pub fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// The segments and connections.
    #[must_use]
    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    /// The forks whose children have not attached.
    #[must_use]
    pub fn forks(&self) -> &Forks {
        &self.forks
    }

    /// True when every table is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.functions.is_empty()
            && self.functions.groups() == 0
            && self.forks.is_empty()
            && self.listeners.is_empty()
            && self.segments.is_empty()
            && self.remote.is_empty()
    }
}

fn reply(out: &mut Vec<Out>, function: u32, token: u32, completion: Completion) {
    out.push(Out { function, token, completion, listener: None });
}

/// An answer to `Accept`.
fn tell_accept(out: &mut Vec<Out>, function: u32, token: u32, listener: u32, completion: Completion) {
    out.push(Out { function, token, completion, listener: Some(listener) });
}

/// Whether something waits in a listener's queue.
fn tell_ready(out: &mut Vec<Out>, function: u32, listener: u32, waiting: bool) {
    out.push(Out {
        function,
        token: 0,
        completion: Completion::Ready { listener, waiting },
        listener: Some(listener),
    });
}

/// News that nobody asked for.
fn announce(out: &mut Vec<Out>, function: u32, completion: Completion) {
    reply(out, function, 0, completion);
}
