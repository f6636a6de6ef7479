//! A process is gone: noticed by its pidfd or by the hangup of its socket, whichever comes first.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ring::msg::Request;

use crate::clients::{ORPHAN_MAX, Role};
use crate::report::Totals;
use crate::serve::Agent;
use std::os::fd::AsFd;

/// How long a forked child may name a parent that has ended.
const REMEMBERED: Duration = Duration::from_secs(5);
/// Ended processes that are remembered.
const REMEMBERED_MAX: usize = 1024;

/// Which group recently ended functions belonged to, for the forks that they left behind.
#[derive(Debug, Default)]
pub struct Departed {
    recent: VecDeque<(Instant, u32, u32, u32)>,
}

impl Departed {
    /// Remembers a function.
    pub fn note(&mut self, function: u32, group: u32, uid: u32, now: Instant) {
        self.forget_old(now);
        if self.recent.len() >= REMEMBERED_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((now, function, group, uid));
    }

    /// The group of `function`, if it was `uid`'s and ended recently.
    pub fn group_of(&mut self, function: u32, uid: u32, now: Instant) -> Option<u32> {
        self.forget_old(now);
        let matches = |(_, f, _, u): &&(Instant, u32, u32, u32)| *f == function && *u == uid;
        self.recent.iter().rev().find(matches).map(|(_, _, group, _)| *group)
    }

    fn forget_old(&mut self, now: Instant) {
        while self.recent.front().is_some_and(|(at, ..)| *at + REMEMBERED < now) {
            self.recent.pop_front();
        }
    }
}

impl Agent {
    /// The pidfd of a function is readable.
    pub(crate) fn process_ended(&mut self, number: u32) {
        let Some(function) = self.functions.get(&number) else { return };
        let (id, group) = (function.client, function.group);
        self.hear_of_children(id);
        if self.clients.get(id).is_none_or(crate::clients::Client::hung_up) {
            // Closing the client loses the function, too.
            self.close_client(id);
        } else {
            // A fork holds the socket: it may be about to attach and to go on with the family's
            // connections, so the family does not end yet.
            self.groups.hold(group);
            self.clients.set(id, Role::Orphan(group), Some(Instant::now() + ORPHAN_MAX));
        }
        self.lose_function(number);
    }

    /// Forgets a function, everywhere: on the bus, at the coordinator, in its family; and lets everybody
    /// who shares memory with it look.
    pub(crate) fn lose_function(&mut self, number: u32) {
        let Some(function) = self.functions.remove(&number) else { return };
        let (uid, group) = (function.identity.uid, function.group);
        self.poller.forget(function.identity.pidfd.as_fd());
        self.poller.forget(function.events());
        if let Err(e) = self.card.unmap_function(number) {
            tracing::error!("function {number} could not be unmapped: {e}");
        }
        self.card.ring().post(0, Request::Detach { function: number });
        *self.retired.entry(uid).or_default() += Totals::of(function.stats());
        self.departed.note(number, group, uid, Instant::now());
        self.groups.release(group);
        self.notice_neighbours(group);
        self.reap_relays();
        tracing::info!(
            "pid {} ({}), function {number}, is gone",
            function.identity.pid,
            function.identity.command
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_remembered_for_a_while_and_for_its_user_only() {
        let mut departed = Departed::default();
        let now = Instant::now();
        departed.note(5, 50, 1000, now);
        assert_eq!(departed.group_of(5, 1000, now), Some(50));
        assert_eq!(departed.group_of(5, 0, now), None);
        assert_eq!(departed.group_of(6, 1000, now), None);
        assert_eq!(departed.group_of(5, 1000, now + REMEMBERED * 2), None);
        for n in 0..2 * u32::try_from(REMEMBERED_MAX).unwrap() {
            departed.note(n, n, 0, now);
        }
        assert_eq!(departed.recent.len(), REMEMBERED_MAX);
    }
}
