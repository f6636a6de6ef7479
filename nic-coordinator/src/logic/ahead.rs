//! Connections granted ahead: a client that comes to a listener again and again may open the next ones without an answer, so that it does not
//! wait for one. A grant is a connection in a slot, whose client's side is held, and which is in no queue. It can be taken back at any time, and
//! is when the listener may not be whom the next client gets: the client hears that the other side is gone, as one whose connection waits in
//! the queue of a listener that is closed. Its slot is in use until it says that it has heard that.

use ring::msg::{Addr, Completion, ConnId};

use super::functions::{CLIENT, Holder, SERVER};
use super::segments::{Conn, End, Lingers, Room};
use super::{Logic, Out, announce, policy};

/// As many are granted for one request.
const GRANTS_MAX: u32 = 16;

impl Logic {
    /// Grants `f` as many connections to `dst` as it asks for, or as there is room for.
    pub(super) fn grant(&mut self, f: u32, dst: Addr, count: u32, out: &mut Vec<Out>) {
        let Some(identity) = self.functions.get(f).map(|function| function.identity) else { return };
        if self.is_elsewhere(identity.netns, &dst) {
            return;
        }
        let Some(listener) = self.listeners.alone(identity.netns, &dst) else { return };
        for _ in 0..count.min(GRANTS_MAX) {
            if self.grant_one(f, identity.group, listener, dst, out).is_none() {
                return;
            }
        }
    }

    fn grant_one(&mut self, f: u32, group: u32, id: u32, dst: Addr, out: &mut Vec<Out>) -> Option<()> {
        let server_group = self.listeners.get(id).filter(|l| l.may_grant())?.group;
        let Room::Ready(segment) = self.segments.room(group, server_group) else { return None };
        if !self.may_hold_more(f) {
            return None;
        }
        let conn = Conn {
            holders: [vec![Holder::Function(f)], Vec::new()],
            client: Addr::default(),
            server: dst,
            listener: id,
            queued: false,
            ends: [None; 2],
            remote: None,
            lingers: Lingers::No,
        };
        let conn = self.segments.open(segment, conn)?;
        self.functions.get_mut(f)?.granted.insert(conn);
        self.listeners.get_mut(id)?.granted.insert(conn);
        announce(out, f, Completion::Granted { conn, dst });
        Some(())
    }

    /// `f` has opened a connection. If it was taken back meanwhile, `f` was told.
    pub(super) fn open_granted(&mut self, f: u32, id: ConnId, src: Addr, out: &mut Vec<Out>) {
        let Some(function) = self.functions.get_mut(f) else { return };
        if !function.granted.remove(&id) {
            return;
        }
        function.holdings.conns.insert((id, CLIENT));
        let identity = function.identity;
        let Some(conn) = self.segments.get_mut(id) else { return };
        conn.client = src;
        let listener = conn.listener;
        if !self.listeners.get_mut(listener).is_some_and(|l| l.granted.remove(&id)) {
            return;
        }
        if policy::may_connect(&identity, &conn.server, &src).is_err() {
            return self.side_closed(id, SERVER, End::Refused, out);
        }
        conn.queued = true;
        self.offer(listener, id, false, out);
    }

    /// What is granted to clients of this listener is taken back.
    pub(super) fn take_back(&mut self, listener: u32, out: &mut Vec<Out>) {
        let granted = self.listeners.get_mut(listener).map(|l| std::mem::take(&mut l.granted));
        for id in granted.into_iter().flatten() {
            self.side_closed(id, SERVER, End::Refused, out);
        }
    }

    /// The same of all listeners on a port: there is going to be another one.
    pub(super) fn take_back_all(&mut self, netns: u64, port: u16, out: &mut Vec<Out>) {
        for listener in self.listeners.granting(netns, port) {
            self.take_back(listener, out);
        }
    }

    /// The client gives up a connection that was granted, or is gone.
    pub(super) fn drop_granted(&mut self, id: ConnId, out: &mut Vec<Out>) {
        let Some(conn) = self.segments.get_mut(id) else { return };
        if let Some(holders) = conn.holders.get_mut(CLIENT) {
            holders.clear();
        }
        let listener = conn.listener;
        if let Some(listener) = self.listeners.get_mut(listener) {
            listener.granted.remove(&id);
        }
        self.free_if_closed(id, out);
    }

    /// No connection will ever begin in that segment: its slots need not wait for clients that take no notice.
    pub(super) fn drop_granted_in(&mut self, segment: u32, out: &mut Vec<Out>) {
        let held = self.segments.in_segment(segment);
        let held: Vec<_> = held.filter_map(|(id, conn)| Some((id, conn.functions(CLIENT).next()?))).collect();
        for (id, f) in held {
            if self.functions.get_mut(f).is_some_and(|function| function.granted.remove(&id)) {
                self.drop_granted(id, out);
            }
        }
    }
}
