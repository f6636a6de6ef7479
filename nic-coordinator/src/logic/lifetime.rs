//! Attach, fork, detach, and what happens when the last holder of a thing lets go of it.

use ring::bus::{AGENT_FUNCTION, FUNCTIONS_MAX};
use ring::msg::{Completion, ConnId, Status};

use super::forks::{ATTACH_LATER_US_MAX, ATTACH_US_MAX, Fork};
use super::functions::{CLIENT, Holder, Identity, SERVER, Side};
use super::segments::{Asker, End};
use super::{Holdings, Limits, Logic, Out, announce, reply, tell_ready};

impl Logic {
    /// A process appears. With a fork's parent and nonce it takes over what the fork holds, and hears what happened
    /// to that since.
    pub(super) fn attach(
        &mut self,
        token: u32,
        f: u32,
        identity: Identity,
        (parent, nonce): (u32, u64),
        out: &mut Vec<Out>,
    ) {
        let fork = if parent == 0 { Ok(None) } else { self.child_of(parent, nonce, &identity).map(Some) };
        let fork = match fork {
            Ok(fork) if f != AGENT_FUNCTION && f < FUNCTIONS_MAX && self.functions.get(f).is_none() => fork,
            _ => return reply(out, AGENT_FUNCTION, token, done(Status::BadRequest)),
        };
        reply(out, AGENT_FUNCTION, token, done(Status::Ok));
        let inherited = fork.and_then(|id| Some((id, self.forks.remove(id)?)));
        let Some((id, fork)) = inherited else {
            self.functions.insert(f, identity, Holdings::default());
            return;
        };
        self.hand_over(Holder::Fork(id), f, &fork.holdings, out);
        self.functions.insert(f, identity, fork.holdings);
        self.functions.leave(fork.group);
    }

    /// The fork that a child with this identity came from.
    fn child_of(&self, parent: u32, nonce: u64, identity: &Identity) -> Result<u64, Status> {
        let id = self.forks.find(parent, nonce).ok_or(Status::BadRequest)?;
        let same_group = self.forks.get(id).is_some_and(|fork| fork.group == identity.group);
        if same_group { Ok(id) } else { Err(Status::BadRequest) }
    }

    /// `f` holds everything that `from` held, and is told what it missed meanwhile.
    fn hand_over(&mut self, from: Holder, f: u32, holdings: &Holdings, out: &mut Vec<Out>) {
        for id in &holdings.listeners {
            let Some(listener) = self.listeners.get_mut(*id) else { continue };
            listener.holders.remove(&from);
            listener.holders.insert(Holder::Function(f));
            // What it knows is what its parent knew at the fork.
            tell_ready(out, f, *id, !listener.queue.is_empty());
        }
        for (id, side) in &holdings.conns {
            let Some(conn) = self.segments.get_mut(*id) else { continue };
            for holder in conn.holders.iter_mut().skip(*side).take(1).flatten().filter(|h| **h == from) {
                *holder = Holder::Function(f);
            }
            if let Some(news) = conn.news_of(other(*side), *id) {
                announce(out, f, news);
            }
        }
    }

    /// Everything that `f` holds, or `only` that of it, gets the future child as one more holder.
    pub(super) fn fork(
        &mut self,
        f: u32,
        nonce: u64,
        only: Option<(ConnId, Side)>,
        now_us: u64,
        out: &mut Vec<Out>,
    ) {
        let Some(function) = self.functions.get(f) else { return };
        let group = function.identity.group;
        let holdings = match only {
            None => function.holdings.clone(),
            Some(one) if function.holdings.conns.contains(&one) => {
                Holdings { conns: [one].into(), ..Holdings::default() }
            }
            Some(_) => return,
        };
        let time_us = if holdings.conns.is_empty() { ATTACH_LATER_US_MAX } else { ATTACH_US_MAX };
        let deadline_us = now_us.saturating_add(time_us);
        let fork = Fork { parent: f, nonce, group, deadline_us, holdings, watched: false };
        let Some(id) = self.forks.insert(fork) else { return };
        self.functions.join(group);
        let child = Holder::Fork(id);
        if let Some(fork) = self.forks.get(id) {
            for listener in &fork.holdings.listeners {
                if let Some(listener) = self.listeners.get_mut(*listener) {
                    listener.holders.insert(child);
                }
            }
            for (conn, side) in &fork.holdings.conns {
                if let Some(holders) = self.segments.get_mut(*conn).and_then(|c| c.holders.get_mut(*side)) {
                    holders.push(child);
                }
            }
        }
        let Limits { forks_per_function, fork_holdings_per_function, .. } = self.limits;
        while let Some(oldest) = self.forks.excess(f, forks_per_function, fork_holdings_per_function) {
            self.drop_fork(oldest, out);
        }
    }

    pub(super) fn fork_failed(&mut self, f: u32, nonce: u64, out: &mut Vec<Out>) {
        if let Some(id) = self.forks.find(f, nonce) {
            self.drop_fork(id, out);
        }
    }

    /// The child is known to live, as an attached process is: what it holds, it holds until the agent says otherwise.
    pub(super) fn watch_fork(&mut self, parent: u32, nonce: u64) {
        let Some(id) = self.forks.find(parent, nonce) else { return };
        self.forks.watch(id);
        let unserved = |id: &u32| self.listeners.get(*id).is_some_and(|l| !l.is_served());
        let waited_for = self.forks.get(id).is_some_and(|f| f.holdings.listeners.iter().any(unserved));
        if waited_for || self.functions.get(parent).is_none() {
            self.hasten(vec![id]);
        }
    }

    /// It has not attached in time. A watched one keeps its connections, which it may use; not its listeners, which it can't serve.
    pub(super) fn fork_is_late(&mut self, id: u64, out: &mut Vec<Out>) {
        let Some(listeners) = self.forks.take_listeners(id) else { return self.drop_fork(id, out) };
        for listener in listeners {
            self.release_listener(Holder::Fork(id), listener, out);
        }
    }

    pub(super) fn drop_fork(&mut self, id: u64, out: &mut Vec<Out>) {
        if let Some(fork) = self.forks.remove(id) {
            self.release_all(Holder::Fork(id), &fork.holdings, out);
            self.leave_group(fork.group, out);
        }
    }

    /// The process is gone, or is to be treated so: everything it held or waited for is let go of. Its children that
    /// have not attached yet keep what they inherited.
    pub fn detach(&mut self, f: u32, out: &mut Vec<Out>) {
        let Some(function) = self.functions.remove(f) else { return };
        self.hasten(self.forks.of(f).collect());
        for listener in &function.holdings.listeners {
            if let Some(listener) = self.listeners.get_mut(*listener) {
                listener.take_waiters_of(f);
            }
        }
        if function.connecting > 0 {
            let of_f = |asker: &Asker| matches!(asker, Asker::Process { function, .. } if *function == f);
            self.segments.forget_waiting(of_f);
            self.forget_asking(f, out);
        }
        for conn in function.granted {
            self.drop_granted(conn, out);
        }
        self.release_all(Holder::Function(f), &function.holdings, out);
        self.leave_group(function.identity.group, out);
    }

    fn release_all(&mut self, holder: Holder, holdings: &Holdings, out: &mut Vec<Out>) {
        for listener in &holdings.listeners {
            self.release_listener(holder, *listener, out);
        }
        for (conn, side) in &holdings.conns {
            self.release_conn(holder, *conn, *side, End::Unmarked, out);
        }
    }

    /// One holder less. Without holders the listener is closed, and what waits in its queue with it.
    pub(super) fn release_listener(&mut self, holder: Holder, id: u32, out: &mut Vec<Out>) {
        let Some(listener) = self.listeners.get_mut(id) else { return };
        listener.holders.remove(&holder);
        if !listener.holders.is_empty() {
            if !listener.is_served() {
                // Clients may wait in its queue.
                let forks = listener.forks().collect();
                self.hasten(forks);
                self.take_back(id, out);
            }
            return;
        }
        self.take_back(id, out);
        let Some(listener) = self.listeners.remove(id) else { return };
        for id in listener.queue {
            if let Some(conn) = self.segments.get_mut(id) {
                conn.queued = false;
            }
            self.side_closed(id, SERVER, End::Refused, out);
        }
    }

    /// One holder less on one side of a connection. `end`: how the side is closed, if this was the last one.
    pub(super) fn release_conn(
        &mut self,
        holder: Holder,
        id: ConnId,
        side: Side,
        end: End,
        out: &mut Vec<Out>,
    ) {
        let Some(conn) = self.segments.get_mut(id) else { return };
        let Some(holders) = conn.holders.get_mut(side) else { return };
        if let Some(index) = holders.iter().position(|h| *h == holder) {
            holders.swap_remove(index);
        }
        if conn.closed(side) {
            self.side_closed(id, side, end, out);
        }
    }

    /// Others who hold that side hear that `f` has shut down a direction: what its family shares says which.
    pub(super) fn shut(&mut self, f: u32, id: ConnId, side: u32, out: &mut Vec<Out>) {
        let at = side as usize;
        let holds = self.functions.get(f).is_some_and(|f| f.holdings.conns.contains(&(id, at)));
        let Some(conn) = self.segments.get_mut(id).filter(|_| holds) else { return };
        for function in conn.functions(at).filter(|other| *other != f) {
            announce(out, function, Completion::Shut { conn: id, side });
        }
    }

    /// This side has just been closed: tells the other one, and frees the slot when that is closed, too.
    pub(super) fn side_closed(&mut self, id: ConnId, side: Side, end: End, out: &mut Vec<Out>) {
        let Some(conn) = self.segments.get_mut(id) else { return };
        if let Some(place) = conn.ends.get_mut(side) {
            *place = Some(end);
        }
        let far = conn.remote.filter(|(_, far)| *far != side);
        if let Some(news) = conn.news_of(side, id) {
            // A function that is being detached is not in the table any more and hears nothing.
            for function in conn.functions(other(side)).filter(|f| self.functions.get(*f).is_some()) {
                announce(out, function, news);
            }
        }
        if let Some((call, _)) = far {
            self.remote_told(call, id, end);
        }
        self.free_if_closed(id, out);
    }

    /// Somebody waits for these children, or for their end.
    fn hasten(&mut self, forks: Vec<u64>) {
        let deadline_us = self.now_us.saturating_add(ATTACH_US_MAX);
        for id in forks {
            self.forks.hasten(id, deadline_us);
        }
    }

    fn leave_group(&mut self, group: u32, out: &mut Vec<Out>) {
        if self.functions.leave(group) {
            for segment in self.segments.orphan(group) {
                self.drop_granted_in(segment, out);
                self.drop_segment_if_orphaned(segment, out);
            }
        }
    }
}

fn other(side: Side) -> Side {
    if side == CLIENT { SERVER } else { CLIENT }
}

fn done(status: Status) -> Completion {
    Completion::Done { status, value: 0 }
}
