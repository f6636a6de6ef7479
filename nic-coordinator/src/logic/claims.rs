//! Connections to `AF_UNIX` names (SPEC 3.10): the kernel makes and accepts them, and whoever got one of them from the kernel
//! claims what belongs to it here, by name instead of by turn.

use ring::msg::{Addr, Completion, ConnId, Status};

use super::functions::{CLIENT, Holder, SERVER, Side};
use super::segments::End;
use super::{Logic, Out, announce, tell_accept};

impl Logic {
    /// It waits at the listener until the kernel's connection is accepted there.
    pub(super) fn await_claim(&mut self, listener: u32, conn: ConnId) {
        if let Some(listener) = self.listeners.get_mut(listener) {
            listener.queue.push_back(conn);
        }
    }

    pub(super) fn claim(&mut self, f: u32, token: u32, id: u32, conn: ConnId, out: &mut Vec<Out>) {
        let (status, pid) = match self.try_claim(f, id, conn) {
            Ok(pid) => (Status::Ok, pid),
            Err(status) => (status, 0),
        };
        let conn = if status == Status::Ok { conn } else { ConnId(0) };
        let (peer, local) = (Addr::of_process(pid), Addr::default());
        tell_accept(out, f, token, id, Completion::Accepted { status, conn, peer, local, more: false });
        if let Some(news) = self.segments.get(conn).and_then(|c| c.news_of(CLIENT, conn)) {
            announce(out, f, news);
        }
    }

    /// The client's process.
    fn try_claim(&mut self, f: u32, id: u32, conn: ConnId) -> Result<u32, Status> {
        let listener = self.listeners.get(id).ok_or(Status::BadRequest)?;
        if !listener.held_by(Holder::Function(f)) {
            return Err(Status::BadRequest);
        }
        if !listener.queue.contains(&conn) {
            return Err(Status::Empty);
        }
        if !self.may_hold_more(f) {
            return Err(Status::Quota);
        }
        self.unqueue(id, conn);
        let open = self.segments.get_mut(conn).ok_or(Status::Empty)?;
        if let Some(holders) = open.holders.get_mut(SERVER) {
            holders.push(Holder::Function(f));
        }
        let pid = open.client.process();
        if let Some(function) = self.functions.get_mut(f) {
            function.holdings.conns.insert((conn, SERVER));
        }
        Ok(pid)
    }

    fn unqueue(&mut self, listener: u32, conn: ConnId) {
        if let Some(listener) = self.listeners.get_mut(listener) {
            listener.queue.retain(|c| *c != conn);
        }
        if let Some(conn) = self.segments.get_mut(conn) {
            conn.queued = false;
        }
    }

    /// A client lets go of a connection that it never used: the kernel has refused it. Nobody will claim it.
    pub(super) fn never_connected(&mut self, id: ConnId, side: Side) {
        let Some(conn) = self.segments.get(id).filter(|c| c.queued && c.server.is_unix()) else { return };
        if side == CLIENT {
            self.unqueue(conn.listener, id);
            if let Some(place) = self.segments.get_mut(id).and_then(|c| c.ends.get_mut(SERVER)) {
                *place = Some(End::Marked);
            }
        }
    }

    /// Before a listener is found full: clients that died before the kernel had them left something that nobody claims.
    pub(super) fn forget_dead_claims(&mut self, netns: u64, dst: &Addr, out: &mut Vec<Out>) {
        if !dst.is_unix() || self.listeners.find(netns, dst) != Err(Status::BacklogFull) {
            return;
        }
        let Some(id) = self.listeners.newest(netns, dst) else { return };
        let queue = self.listeners.get(id).map(|l| l.queue.clone()).unwrap_or_default();
        let dead = |conn: &ConnId| self.segments.get(*conn).is_none_or(|c| c.closed(CLIENT));
        for conn in queue.into_iter().filter(dead).collect::<Vec<_>>() {
            self.unqueue(id, conn);
            self.side_closed(conn, SERVER, End::Refused, out);
        }
    }
}
