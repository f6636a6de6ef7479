//! Listening and accepting: late binding of connections to whoever asks first.

use std::collections::{BTreeSet, VecDeque};

use ring::msg::{ACCEPT_WAIT, Addr, Completion, ConnId, LISTEN_V6ONLY, Status};

use super::functions::{CLIENT, Holder, SERVER};
use super::listeners::{BACKLOG_MAX, Listener, Waiter};
use super::segments::End;
use super::{Logic, Out, announce, policy, tell_accept, tell_ready};

impl Logic {
    pub(super) fn listen(
        &mut self,
        f: u32,
        addr: Addr,
        backlog: u32,
        flags: u32,
        out: &mut Vec<Out>,
    ) -> Result<u32, Status> {
        let function = self.functions.get_mut(f).ok_or(Status::BadRequest)?;
        let who = function.identity;
        if flags & !LISTEN_V6ONLY != 0 {
            return Err(Status::BadRequest);
        }
        policy::may_listen(&who, &addr)?;
        let v6only = flags & LISTEN_V6ONLY != 0;
        if self.listeners.taken_by_other(who.netns, &addr, v6only, who.uid) {
            return Err(Status::Denied);
        }
        if function.holdings.listeners.len() >= self.limits.listeners_per_function {
            return Err(Status::Quota);
        }
        self.take_back_all(who.netns, addr.port, out);
        let function = self.functions.get_mut(f).ok_or(Status::BadRequest)?;
        let id = self.listeners.insert(Listener {
            netns: who.netns,
            addr,
            v6only,
            uid: who.uid,
            group: who.group,
            backlog: backlog.min(BACKLOG_MAX),
            holders: BTreeSet::from([Holder::Function(f)]),
            queue: VecDeque::new(),
            waiters: VecDeque::new(),
            granted: BTreeSet::new(),
        });
        function.holdings.listeners.insert(id);
        Ok(id)
    }

    pub(super) fn unlisten(&mut self, f: u32, id: u32, out: &mut Vec<Out>) {
        let Some(function) = self.functions.get_mut(f) else { return };
        if !function.holdings.listeners.remove(&id) {
            return;
        }
        if let Some(listener) = self.listeners.get_mut(id) {
            for waiter in listener.take_waiters_of(f) {
                not_accepted(out, f, waiter.token, id, Status::BadRequest);
            }
        }
        self.release_listener(Holder::Function(f), id, out);
    }

    /// New clients use the kernel; what waits already is still accepted.
    pub(super) fn withdraw(&mut self, f: u32, id: u32, out: &mut Vec<Out>) {
        if self.listeners.get(id).is_some_and(|l| l.held_by(Holder::Function(f))) {
            self.listeners.hide(id);
            self.take_back(id, out);
        }
    }

    pub(super) fn accept(&mut self, f: u32, token: u32, id: u32, flags: u32, out: &mut Vec<Out>) {
        if let Err(status) = self.try_accept(f, token, id, flags, out) {
            not_accepted(out, f, token, id, status);
        }
    }

    fn try_accept(
        &mut self,
        f: u32,
        token: u32,
        id: u32,
        flags: u32,
        out: &mut Vec<Out>,
    ) -> Result<(), Status> {
        let listener = self.listeners.get_mut(id).ok_or(Status::BadRequest)?;
        if !listener.held_by(Holder::Function(f)) || flags & !ACCEPT_WAIT != 0 {
            return Err(Status::BadRequest);
        }
        if let Some(conn) = listener.queue.front().copied() {
            if !self.may_hold_more(f) {
                return Err(Status::Quota);
            }
            if let Some(listener) = self.listeners.get_mut(id) {
                listener.queue.pop_front();
            }
            self.deliver(conn, Waiter { function: f, token }, out);
            self.tell_others_if_empty(id, f, out);
            return Ok(());
        }
        if flags & ACCEPT_WAIT == 0 {
            return Err(Status::Empty);
        }
        if listener.waiters.len() >= self.limits.waiters_per_listener {
            return Err(Status::Quota);
        }
        listener.waiters.push_back(Waiter { function: f, token });
        Ok(())
    }

    pub(super) fn cancel_accept(&mut self, f: u32, token: u32, id: u32, out: &mut Vec<Out>) {
        let Some(listener) = self.listeners.get_mut(id) else { return };
        let waiter = Waiter { function: f, token };
        if let Some(index) = listener.waiters.iter().position(|w| *w == waiter) {
            listener.waiters.remove(index);
            not_accepted(out, f, token, id, Status::Empty);
        }
    }

    /// Brings a connection to a listener: to the first who waits, or into the queue.
    pub(super) fn offer(&mut self, id: u32, conn: ConnId, first: bool, out: &mut Vec<Out>) {
        while let Some(waiter) = self.listeners.get_mut(id).and_then(|l| l.waiters.pop_front()) {
            if self.may_hold_more(waiter.function) {
                self.deliver(conn, waiter, out);
                return;
            }
            not_accepted(out, waiter.function, waiter.token, id, Status::Quota);
        }
        let Some(listener) = self.listeners.get_mut(id) else { return };
        if first {
            listener.queue.push_front(conn);
        } else {
            listener.queue.push_back(conn);
        }
        for function in listener.functions() {
            tell_ready(out, function, id, true);
        }
    }

    /// `acceptor` took a connection out of the queue, and knows what is left. All others heard of each arrival, and
    /// now that nothing is left, of that.
    fn tell_others_if_empty(&self, id: u32, acceptor: u32, out: &mut Vec<Out>) {
        let Some(listener) = self.listeners.get(id).filter(|l| l.queue.is_empty()) else { return };
        for function in listener.functions().filter(|f| *f != acceptor) {
            tell_ready(out, function, id, false);
        }
    }

    /// Gives a connection that is in no queue to whom accepts it.
    fn deliver(&mut self, id: ConnId, to: Waiter, out: &mut Vec<Out>) {
        let Some(conn) = self.segments.get_mut(id) else { return };
        let Some(function) = self.functions.get_mut(to.function) else { return };
        conn.queued = false;
        if let Some(holders) = conn.holders.get_mut(SERVER) {
            holders.push(Holder::Function(to.function));
        }
        function.holdings.conns.insert((id, SERVER));
        let (peer, local, listener) = (conn.client, conn.server, conn.listener);
        let more = self.listeners.get(listener).is_some_and(|l| !l.queue.is_empty());
        let accepted = Completion::Accepted { status: Status::Ok, conn: id, peer, local, more };
        tell_accept(out, to.function, to.token, listener, accepted);
        if let Some(news) = conn.news_of(CLIENT, id) {
            announce(out, to.function, news);
        }
    }

    /// Puts an accepted connection back in front of the queue it came from. If the listener is gone, or others hold
    /// the connection as well, this holder lets go of it instead.
    pub(super) fn requeue(&mut self, f: u32, id: ConnId, out: &mut Vec<Out>) {
        let me = Holder::Function(f);
        let Some(function) = self.functions.get_mut(f) else { return };
        if !function.holdings.conns.remove(&(id, SERVER)) {
            return;
        }
        if let Some(conn) = self.segments.get_mut(id)
            && self.listeners.get(conn.listener).is_some_and(|l| l.held_by(me))
            && let [_, holders] = &mut conn.holders
            && holders.as_slice() == [me]
        {
            holders.clear();
            conn.queued = true;
            let listener = conn.listener;
            self.offer(listener, id, true, out);
            return;
        }
        self.release_conn(me, id, SERVER, End::Refused, out);
    }

    pub(super) fn may_hold_more(&self, f: u32) -> bool {
        self.functions.get(f).is_some_and(|f| f.conns() < self.limits.conns_per_function)
    }
}

fn not_accepted(out: &mut Vec<Out>, function: u32, token: u32, listener: u32, status: Status) {
    let none = Addr::default();
    let answer = Completion::Accepted { status, conn: ConnId(0), peer: none, local: none, more: false };
    tell_accept(out, function, token, listener, answer);
}
