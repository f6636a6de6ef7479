//! Connections with other hosts. One end is held by processes, as ever, the other one by a *call*: what the coordinators agree on between them
//! ([`crate::hosts::calls`]) comes in as [`RemoteIn`], and goes out as [`RemoteOut`].

use std::collections::{BTreeMap, BTreeSet};

use ring::bus::CARD_GROUP;
use ring::msg::{Addr, Completion, ConnId, Status};

use super::connect::refuse;
use super::functions::{CLIENT, Holder, SERVER, Side};
use super::segments::{Asker, Conn, End, Lingers, Waiting, Wanted};
use super::{Logic, Out, policy, reply};
use crate::hosts::calls::CallId;

/// Addresses that are known not to be reachable, at most: with more, all are forgotten.
const UNREACHABLE_MAX: usize = 4096;

/// What makes a host reachable.
#[derive(Clone, Debug, Default)]
pub struct RemoteSettings {
    /// The host's own network namespace: no other one is on its network.
    pub netns: u64,
    /// Addresses that reach it.
    pub addresses: BTreeSet<[u8; 16]>,
}

impl RemoteSettings {
    /// Whether `dst`, seen from a namespace, is on another host.
    fn is_elsewhere(&self, netns: u64, dst: &Addr) -> bool {
        netns == self.netns && !dst.is_loopback() && !dst.is_wildcard() && !self.addresses.contains(&dst.ip)
    }
}

/// What other hosts want, or have answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteIn {
    /// Somebody there wants a connection. Answered by one [`RemoteOut::Answer`].
    Connect {
        /// Never used before.
        id: CallId,
        /// Where to.
        dst: Addr,
        /// Who the client is: the caller's host has checked that he may say so.
        src: Addr,
    },
    /// The answer to [`RemoteOut::Connect`].
    Answered {
        /// Which.
        id: CallId,
        /// Why not.
        answer: Result<(), Status>,
    },
    /// The other host's end is closed.
    Closed {
        /// Which.
        id: CallId,
        /// How.
        end: End,
    },
    /// Nobody touches the memory of a released connection any more.
    Over {
        /// Which.
        conn: ConnId,
    },
    /// Whether it is known that nobody can be called at an address.
    Reachable {
        /// Which.
        address: [u8; 16],
        /// False: it is.
        reachable: bool,
    },
}

/// What other hosts are asked for, or answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteOut {
    /// A process here wants a connection, and its memory is there.
    Connect {
        /// Never used before.
        id: CallId,
        /// Its end.
        conn: ConnId,
        /// Where to.
        dst: Addr,
        /// Who the client is.
        src: Addr,
    },
    /// The answer to [`RemoteIn::Connect`].
    Answer {
        /// Which.
        id: CallId,
        /// The server's end, which is in its listener's queue, or why not.
        answer: Result<ConnId, Status>,
    },
    /// Our end is closed.
    Close {
        /// Which.
        id: CallId,
        /// Our end.
        conn: ConnId,
        /// How.
        end: End,
    },
    /// Nobody has this connection any more. Answered by [`RemoteIn::Over`]: then its slot is used again.
    Release {
        /// Which.
        conn: ConnId,
    },
    /// Nobody has this segment any more.
    Drop {
        /// Which.
        segment: u32,
    },
}

/// A process that waits for another host's answer.
#[derive(Clone, Copy, Debug)]
struct Asking {
    function: u32,
    token: u32,
    conn: ConnId,
}

/// All calls.
#[derive(Debug, Default)]
pub struct Remote {
    /// None: there are no other hosts.
    settings: Option<RemoteSettings>,
    /// Which side of which connection a call holds.
    conns: BTreeMap<CallId, (ConnId, Side)>,
    asking: BTreeMap<CallId, Asking>,
    /// Other hosts' clients that wait for a segment.
    waiting: BTreeSet<CallId>,
    /// Where nobody can be called.
    unreachable: BTreeSet<[u8; 16]>,
    last_out: u64,
    out: Vec<RemoteOut>,
}

impl Remote {
    /// Calls that hold a connection.
    #[must_use]
    pub fn len(&self) -> usize {
        self.conns.len()
    }

    /// True if there is something to be told to other hosts.
    #[must_use]
    pub fn has_words(&self) -> bool {
        !self.out.is_empty()
    }

    /// The connection that a call holds.
    #[must_use]
    pub fn conn(&self, id: CallId) -> Option<ConnId> {
        self.conns.get(&id).map(|(conn, _)| *conn)
    }

    /// True when nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.conns.is_empty() && self.asking.is_empty() && self.waiting.is_empty()
    }
}

impl Logic {
    /// From now on there are other hosts.
    pub fn meet_hosts(&mut self, settings: RemoteSettings) {
        self.remote.settings = Some(settings);
    }

    /// The calls.
    #[must_use]
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// What is to be told to other hosts, in order.
    pub fn take_remote(&mut self) -> Vec<RemoteOut> {
        std::mem::take(&mut self.remote.out)
    }

    /// Decides on what comes from another host, and appends what is to be told to whom here.
    pub fn handle_remote(&mut self, input: RemoteIn, out: &mut Vec<Out>) {
        match input {
            RemoteIn::Connect { id, dst, src } => {
                if let Err(status) = self.remote_connect(id, dst, src, out) {
                    self.remote_refused(id, status);
                }
            }
            RemoteIn::Answered { id, answer } => self.remote_answered(id, answer, out),
            RemoteIn::Closed { id, end } => {
                if let Some((conn, side)) = self.remote.conns.remove(&id) {
                    self.release_conn(Holder::Remote(id), conn, side, end, out);
                } else if self.remote.waiting.remove(&id) {
                    self.segments.forget_waiting(|asker| *asker == Asker::Remote(id));
                    self.remote_refused(id, Status::NoListener);
                }
            }
            RemoteIn::Over { conn } => {
                if let Some(released) = self.segments.get_mut(conn) {
                    released.lingers = Lingers::No;
                }
                self.free_if_closed(conn, out);
            }
            RemoteIn::Reachable { address, reachable: true } => {
                self.remote.unreachable.remove(&address);
            }
            RemoteIn::Reachable { address, reachable: false } => {
                if self.remote.unreachable.len() >= UNREACHABLE_MAX {
                    self.remote.unreachable.clear();
                }
                self.remote.unreachable.insert(address);
            }
        }
    }

    fn remote_connect(&mut self, id: CallId, dst: Addr, src: Addr, out: &mut Vec<Out>) -> Result<(), Status> {
        let settings = self.remote.settings.as_ref().ok_or(Status::NoListener)?;
        policy::may_be_called(&dst, &src, &settings.addresses)?;
        let listener = self.listeners.find(settings.netns, &dst)?;
        let group = self.listeners.get(listener).map(|l| l.group).ok_or(Status::NoListener)?;
        let wanted = Wanted::Connect { listener, client: src, server: dst };
        let waiting = Waiting { asker: Asker::Remote(id), wanted };
        self.find_room([CARD_GROUP, group], waiting, out)
    }

    /// Another host's client waits for a segment, or does so no more.
    pub(super) fn remote_waits(&mut self, id: CallId, waits: bool) {
        if waits {
            self.remote.waiting.insert(id);
        } else {
            self.remote.waiting.remove(&id);
        }
    }

    /// Another host's client gets none.
    pub(super) fn remote_refused(&mut self, id: CallId, status: Status) {
        self.remote.out.push(RemoteOut::Answer { id, answer: Err(status) });
    }

    /// The other host is told that our end is closed.
    pub(super) fn remote_told(&mut self, id: CallId, conn: ConnId, end: End) {
        self.remote.out.push(RemoteOut::Close { id, conn, end });
    }

    /// Nobody has a connection any more that had an end on another host.
    pub(super) fn remote_released(&mut self, conn: ConnId) {
        self.remote.out.push(RemoteOut::Release { conn });
    }

    /// A segment is gone in which the other side was the card's.
    pub(super) fn remote_dropped(&mut self, segment: u32) {
        self.remote.out.push(RemoteOut::Drop { segment });
    }

    /// Another host's client has its connection.
    pub(super) fn remote_holds(&mut self, id: CallId, conn: ConnId) {
        self.remote.conns.insert(id, (conn, CLIENT));
        self.remote.out.push(RemoteOut::Answer { id, answer: Ok(conn) });
    }

    pub(super) fn is_elsewhere(&self, netns: u64, dst: &Addr) -> bool {
        self.remote.settings.as_ref().is_some_and(|settings| settings.is_elsewhere(netns, dst))
    }

    /// A process wants a connection to another host.
    pub(super) fn try_call(
        &mut self,
        f: u32,
        token: u32,
        dst: Addr,
        src: Addr,
        out: &mut Vec<Out>,
    ) -> Result<(), Status> {
        let identity = self.functions.get(f).ok_or(Status::BadRequest)?.identity;
        let settings = self.remote.settings.as_ref().ok_or(Status::NoListener)?;
        policy::may_call(&identity, &dst, &src, &settings.addresses)?;
        if self.remote.unreachable.contains(&dst.ip) {
            return Err(Status::NoHost);
        }
        if !self.may_hold_more(f) {
            return Err(Status::Quota);
        }
        let wanted = Wanted::Call { client: src, server: dst };
        let waiting = Waiting { asker: Asker::Process { function: f, token }, wanted };
        self.find_room([identity.group, CARD_GROUP], waiting, out)
    }

    /// Opens the process's end, and asks the other host. The process holds it once that has said yes.
    pub(super) fn call(&mut self, segment: u32, waiting: Waiting) -> Result<(), Status> {
        let Waiting { asker: Asker::Process { function, token }, wanted: Wanted::Call { client, server } } =
            waiting
        else {
            return Err(Status::BadRequest);
        };
        let id = CallId::Out(self.remote.last_out + 1);
        let holders = [vec![Holder::Function(function)], vec![Holder::Remote(id)]];
        let (listener, queued, ends, remote) = (0, false, [None; 2], Some((id, SERVER)));
        let lingers = Lingers::Yes;
        let conn = Conn { holders, client, server, listener, queued, ends, remote, lingers };
        let conn = self.segments.open(segment, conn).ok_or(Status::Quota)?;
        self.remote.last_out += 1;
        self.remote.conns.insert(id, (conn, SERVER));
        self.remote.asking.insert(id, Asking { function, token, conn });
        if let Some(function) = self.functions.get_mut(function) {
            function.connecting += 1;
        }
        self.remote.out.push(RemoteOut::Connect { id, conn, dst: server, src: client });
        Ok(())
    }

    fn remote_answered(&mut self, id: CallId, answer: Result<(), Status>, out: &mut Vec<Out>) {
        let asking = self.remote.asking.remove(&id);
        if let Some(Asking { function: f, token, conn }) = asking
            && let Some(function) = self.functions.get_mut(f)
        {
            function.connecting -= 1;
            match answer {
                Ok(()) => {
                    function.holdings.conns.insert((conn, CLIENT));
                    reply(out, f, token, Completion::Connected { status: Status::Ok, conn });
                }
                Err(status) => refuse(out, f, token, status),
            }
        }
        if answer.is_err()
            && let Some((conn, _)) = self.remote.conns.remove(&id)
        {
            if let Some(open) = self.segments.get_mut(conn) {
                open.holders = [Vec::new(), Vec::new()];
            }
            self.free_if_closed(conn, out);
        }
    }

    /// Process `f` is gone: nobody here waits for what it asked other hosts for.
    pub(super) fn forget_asking(&mut self, f: u32, out: &mut Vec<Out>) {
        let of_f = |(_, asking): &(&CallId, &Asking)| asking.function == f;
        let gone: Vec<CallId> = self.remote.asking.iter().filter(of_f).map(|(id, _)| *id).collect();
        for id in gone {
            if let Some(asking) = self.remote.asking.remove(&id) {
                self.release_conn(Holder::Function(f), asking.conn, CLIENT, End::Unmarked, out);
            }
        }
    }
}
