//! A process becomes a function: asked, mapped by the card, known to the coordinator, welcomed. Each
//! step waits in the event loop, never in a call.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use emulator::packet;
use ring::attach::Reply;
use ring::bus::AGENT_FUNCTION;
use ring::msg::{Request, Status};

use crate::clients::{ANSWER_MAX, Role};
use crate::function::Function;
use crate::identity::Identity;
use crate::peer;
use crate::serve::{Agent, Watch};

/// Of the functions that may be in use, the part that a user may have who is not the agent's own: a quarter, and at least
/// these.
const PER_UID_MIN: usize = 4;

impl Agent {
    /// `Hello`: checks who it is, and makes a function appear on the bus.
    pub(crate) fn hello(&mut self, id: u32, parent: u32, nonce: u64) {
        let Some(client) = self.clients.get(id) else { return };
        let identity = match Identity::of_peer(&client.socket) {
            Ok(identity) => identity,
            Err(e) => return self.refuse(id, &format!("the agent can't see your process: {e}")),
        };
        let of_uid = self.functions.values().filter(|f| f.identity.uid == identity.uid).count();
        let capacity = self.card.capacity();
        let quota = if identity.uid == self.own_uid { capacity } else { (capacity / 4).max(PER_UID_MIN) };
        if self.functions.len() >= capacity || of_uid >= quota {
            return self.refuse(id, "too many processes are attached");
        }
        let group = match parent {
            0 => self.groups.fresh(),
            parent => match self.family_of(parent, nonce, identity.uid) {
                Some(group) => group,
                None => return self.refuse(id, "the parent process is not known here"),
            },
        };
        let Some(number) = self.next_function() else {
            return self
                .refuse(id, "all of the card's functions are taken, or mapped by left-over processes");
        };
        let function = self
            .card
            .map_function(number)
            .and_then(|memory| Function::new(identity, group, id, (parent, nonce), memory));
        let function = match function {
            Ok(function) => function,
            Err(e) => {
                // If it was mapped: nobody will use it.
                let _ = self.card.unmap_function(number);
                return self.refuse(id, &format!("the agent could not make a function: {e}"));
            }
        };
        self.groups.hold(group);
        self.functions.insert(number, function);
        self.clients.set(id, Role::Attaching(number), Some(Instant::now() + ANSWER_MAX));
    }

    /// The group of a child that is watched, or of a parent that is attached, or was a moment ago (it forked and ended at once).
    fn family_of(&mut self, parent: u32, nonce: u64, uid: u32) -> Option<u32> {
        if let Some((_, birth)) = self.clients.born(parent, nonce, uid) {
            return Some(birth.group);
        }
        match self.functions.get(&parent) {
            Some(function) if function.identity.uid == uid => Some(function.group),
            Some(_) => None,
            None => self.departed.group_of(parent, uid, Instant::now()),
        }
    }

    /// `Vouch`: who has a listener may accept there, whoever has called listen(2).
    pub(crate) fn vouch(&mut self, id: u32, number: u32, fds: &[OwnedFd]) {
        let netns = self.functions.get(&number).map(|f| f.identity.netns);
        let listener = fds.first().and_then(|fd| peer::listener(fd, netns?));
        if let Some((pid, uid, name)) = listener {
            self.card.ring().post(0, Request::StandsFor { function: number, pid, uid, name });
        }
        self.reply(id, &Reply::Vouched, &[]);
    }

    fn next_function(&mut self) -> Option<u32> {
        let numbers = self.card.functions();
        let mut after = (1..=numbers).map(|step| (self.last_function + step) % numbers);
        let free = after
            .find(|n| *n != AGENT_FUNCTION && !self.functions.contains_key(n) && self.card.is_free(*n))?;
        self.last_function = free;
        Some(free)
    }

    /// The card has mapped it: tells the coordinator who it is.
    pub(crate) fn function_mapped(&mut self, number: u32) {
        let Some(function) = self.functions.get(&number) else { return };
        let (parent, nonce) = function.parent;
        let attach = Request::Attach {
            function: number,
            group: function.group,
            parent,
            nonce,
            uid: function.identity.uid,
            pid: function.identity.pid,
            netns: function.identity.netns,
        };
        // The function's number is the token: one Attach at a time is under way for a number.
        self.card.ring().post(number, attach);
    }

    /// The coordinator has answered `Attach`.
    pub(crate) fn function_answered(&mut self, number: u32, status: Status) {
        match status {
            Status::Ok => self.welcome(number),
            Status::Quota => self.refuse_function(number, "the coordinator's tables are full"),
            Status::BadRequest => {
                self.refuse_function(number, "the coordinator does not expect this fork (any more)");
            }
            status => self.refuse_function(number, &format!("the coordinator refused: {status:?}")),
        }
    }

    fn welcome(&mut self, number: u32) {
        let epoch = self.card.epoch();
        let Some(function) = self.functions.get_mut(&number).filter(|f| !f.is_live()) else { return };
        let (id, group, pid) = (function.client, function.group, function.identity.pid);
        let watched = self
            .poller
            .watch(function.identity.pidfd.as_fd(), Watch::Death(number))
            .and_then(|()| self.poller.watch_edges(function.events(), Watch::Events(number)));
        if let Err(e) = watched {
            return self.refuse(id, &format!("the agent can't watch your process: {e}"));
        }
        let hosts = self.card.meets_hosts();
        let welcome = Reply::Welcome { function: number, group, epoch, pid, hosts };
        let sent = match (self.clients.get(id), function.welcome_fds(&self.card)) {
            (Some(client), Some(fds)) => packet::send(&client.socket, &welcome.to_wire(), &fds).is_ok(),
            _ => false,
        };
        if !sent {
            return self.close_client(id);
        }
        function.welcomed();
        let identity = &function.identity;
        tracing::info!("pid {} ({}) attached as function {number}", identity.pid, identity.command);
        let (pid, (parent, nonce), uid) = (identity.pid, function.parent, identity.uid);
        self.clients.set(id, Role::Attached(number), None);
        self.child_attached(parent, nonce, uid);
        self.relay_attached(pid);
    }

    /// An attach failed half-way.
    pub(crate) fn refuse_function(&mut self, number: u32, why: &str) {
        if let Some(function) = self.functions.get(&number).filter(|f| !f.is_live()) {
            let client = function.client;
            self.refuse(client, why);
        }
    }
}
