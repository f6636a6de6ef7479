//! Connecting: listener, policy, slot, and the wait for a segment.

use ring::bus::{AGENT_FUNCTION, CARD_GROUP};
use ring::msg::{Addr, Completion, ConnId, Status};

use super::functions::{CLIENT, Holder};
use super::segments::{Asker, Conn, Lingers, Room, Waiting, Wanted};
use super::{Logic, Out, announce, claims, policy, reply};

impl Logic {
    pub(super) fn connect(&mut self, f: u32, token: u32, dst: Addr, src: Addr, out: &mut Vec<Out>) {
        if let Err(status) = self.try_connect(f, token, dst, src, out) {
            refuse(out, f, token, status);
        }
    }

    fn try_connect(
        &mut self,
        f: u32,
        token: u32,
        dst: Addr,
        src: Addr,
        out: &mut Vec<Out>,
    ) -> Result<(), Status> {
        let identity = self.functions.get(f).ok_or(Status::BadRequest)?.identity;
        if self.is_elsewhere(identity.netns, &dst) {
            return self.try_call(f, token, dst, src, out);
        }
        policy::may_connect(&identity, &dst, &src)?;
        if !self.may_hold_more(f) {
            return Err(Status::Quota);
        }
        let listener = self.listeners.find(identity.netns, &dst)?;
        let server_group = self.listeners.get(listener).map(|l| l.group).ok_or(Status::NoListener)?;
        let asker = Asker::Process { function: f, token };
        let waiting = Waiting { asker, wanted: Wanted::Connect { listener, client: src, server: dst } };
        self.find_room([identity.group, server_group], waiting, out)
    }

    /// Does what is wanted in a segment of the two groups, now or when there is one.
    pub(super) fn find_room(
        &mut self,
        groups: [u32; 2],
        waiting: Waiting,
        out: &mut Vec<Out>,
    ) -> Result<(), Status> {
        let [client, server] = groups;
        match self.segments.room(client, server) {
            Room::Ready(segment) => self.begin_in(segment, waiting, out),
            Room::Making(segment) => self.wait_for(segment, waiting),
            Room::Full(of_pair) => self.make_segment(groups, of_pair, waiting, out),
        }
    }

    fn begin_in(&mut self, segment: u32, waiting: Waiting, out: &mut Vec<Out>) -> Result<(), Status> {
        match waiting.wanted {
            Wanted::Claim { .. } => self.pair(segment, waiting, out),
            Wanted::Call { .. } => self.call(segment, waiting),
            Wanted::Connect { .. } => self.establish(segment, waiting, out),
        }
    }

    pub(super) fn wait_for(&mut self, segment: u32, waiting: Waiting) -> Result<(), Status> {
        if !self.segments.wait(segment, waiting) {
            return Err(Status::Quota);
        }
        match waiting.asker {
            Asker::Process { function, .. } => {
                if let Some(function) = self.functions.get_mut(function) {
                    function.connecting += 1;
                }
            }
            Asker::Remote(id) => self.remote_waits(id, true),
        }
        Ok(())
    }

    /// Opens the connection, brings it to the listener, and tells the client.
    fn establish(&mut self, segment: u32, waiting: Waiting, out: &mut Vec<Out>) -> Result<(), Status> {
        let Wanted::Connect { listener, client, server } = waiting.wanted else {
            return Err(Status::BadRequest);
        };
        let (holder, remote, lingers) = match waiting.asker {
            Asker::Process { function, .. } => (Holder::Function(function), None, Lingers::No),
            Asker::Remote(id) => (Holder::Remote(id), Some((id, CLIENT)), Lingers::Yes),
        };
        let (holders, queued, ends) = ([vec![holder], Vec::new()], true, [None; 2]);
        let conn = Conn { holders, client, server, listener, queued, ends, remote, lingers };
        let conn = self.segments.open(segment, conn).ok_or(Status::Quota)?;
        match waiting.asker {
            Asker::Process { function: f, .. } => {
                if let Some(function) = self.functions.get_mut(f) {
                    function.holdings.conns.insert((conn, CLIENT));
                }
            }
            Asker::Remote(id) => self.remote_holds(id, conn),
        }
        // First: who has connected may look into the queue at once, and is in it.
        self.offer(listener, conn, false, out);
        if let Asker::Process { function, token } = waiting.asker {
            reply(out, function, token, Completion::Connected { status: Status::Ok, conn });
        }
        Ok(())
    }

    /// The agent's answer to `MakeSegment`.
    pub(super) fn segment_made(&mut self, segment: u32, ok: bool, out: &mut Vec<Out>) {
        let Some(waiting) = self.segments.made(segment) else { return };
        for waiting in waiting {
            match waiting.asker {
                Asker::Process { function, .. } => {
                    if let Some(function) = self.functions.get_mut(function) {
                        function.connecting -= 1;
                    }
                }
                Asker::Remote(id) => self.remote_waits(id, false),
            }
            let outcome = if ok { self.may_still_begin(&waiting) } else { Err(Status::NoSegment) };
            let outcome = outcome.and_then(|()| self.begin_in(segment, waiting, out));
            let Err(status) = outcome else { continue };
            match (waiting.asker, waiting.wanted) {
                (Asker::Remote(id), _) => self.remote_refused(id, status),
                (Asker::Process { function, token }, Wanted::Claim { .. }) => {
                    claims::refuse(out, function, token, status);
                }
                (Asker::Process { function, token }, _) => refuse(out, function, token, status),
            }
        }
        if !ok {
            self.segments.remove(segment);
        } else {
            self.drop_segment_if_orphaned(segment, out);
        }
    }

    /// Time has passed: the listener may be gone, or left to children, or full.
    fn may_still_begin(&self, waiting: &Waiting) -> Result<(), Status> {
        let Wanted::Connect { listener, .. } = waiting.wanted else { return Ok(()) };
        let listener = self.listeners.get(listener).filter(|l| l.is_served()).ok_or(Status::NoListener)?;
        if listener.has_space() { Ok(()) } else { Err(Status::BacklogFull) }
    }

    /// Frees the slot of a connection that nobody holds any more.
    pub(super) fn free_if_closed(&mut self, conn: ConnId, out: &mut Vec<Out>) {
        let released = |open: &&mut Conn| open.lingers == Lingers::Yes && open.is_released();
        if let Some(released) = self.segments.get_mut(conn).filter(released) {
            released.lingers = Lingers::Ending;
            self.remote_released(conn);
        }
        self.segments.free_if_closed(conn);
        self.drop_segment_if_orphaned(conn.segment(), out);
    }

    /// Drops a segment without connections if one of its groups is gone.
    pub(super) fn drop_segment_if_orphaned(&mut self, segment: u32, out: &mut Vec<Out>) {
        if self.segments.droppable(segment) {
            if self.segments.remove(segment).is_some_and(|groups| groups.contains(&CARD_GROUP)) {
                self.remote_dropped(segment);
            }
            announce(out, AGENT_FUNCTION, Completion::DropSegment { segment });
        }
    }
}

pub(super) fn refuse(out: &mut Vec<Out>, function: u32, token: u32, status: Status) {
    reply(out, function, token, Completion::Connected { status, conn: ConnId(0) });
}
