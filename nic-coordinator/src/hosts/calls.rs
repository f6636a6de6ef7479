//! Connections between hosts: set up, refused and closed by messages that may be lost, repeated and overtaken (SPEC 13.9 to 13.12).
//!
//! What asks for a connection here, and what answers there, is the coordinators' logic. This keeps asking until there is an answer or
//! no time left, gives one answer however often it is asked, and tells each end of the other one's end until that is known there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use ring::hosts::{CallKind, CallMsg, Ending, Path, Role};
use ring::msg::Status;

pub use super::call::{
    CLOSE_LATER_US, CLOSES_MAX, CONNECT_US_MAX, CallId, HALF_EVERY_US, Limits, News, REMEMBER_US, REPEAT_US,
    Wanted,
};
use super::call::{Call, Key, Party, Stage};

/// All of them.
#[derive(Debug, Default)]
pub struct Calls {
    limits: Limits,
    parties: BTreeMap<Ipv4Addr, Party>,
    /// Where the calls are that have names here.
    names: BTreeMap<CallId, Key>,
    due: BTreeSet<(u64, Key)>,
    /// Callers without a credit, in their order.
    waiting: BTreeSet<(u64, Ipv4Addr)>,
    /// Callers and callees that have a credit.
    asking: usize,
    granting: usize,
    last_in: u64,
    last_out: u64,
    news: VecDeque<News>,
    outbox: VecDeque<(Ipv4Addr, CallMsg)>,
}

impl Calls {
    /// None yet.
    #[must_use]
    pub fn new(limits: Limits) -> Calls {
        Calls { limits, ..Calls::default() }
    }

    /// How many there are, in whatever state.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parties.values().map(|p| p.out.len() + p.incoming.len()).sum()
    }

    /// True when nothing is left, not even a number.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.names.is_empty() && self.due.is_empty() && self.setups() == 0
    }

    /// Credits in use.
    #[must_use]
    pub fn setups(&self) -> usize {
        self.asking + self.granting
    }

    /// What has happened, in order.
    pub fn next_news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    /// What is to be sent, and to whom.
    pub fn next_message(&mut self) -> Option<(Ipv4Addr, CallMsg)> {
        self.outbox.pop_front()
    }

    /// Whether something is to be sent.
    #[must_use]
    pub fn has_message(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// When [`Calls::pass`] has something to do.
    #[must_use]
    pub fn next_us(&self) -> Option<u64> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Asks `peer` for a connection, which is called `id` here and by nothing else before.
    pub fn connect(&mut self, now_us: u64, id: u64, peer: Ipv4Addr, wanted: Wanted) {
        let id = CallId::Out(id);
        let full = self.parties.get(&peer).is_some_and(|p| p.out.len() >= self.limits.of_peer);
        let waits = self.asking >= self.limits.setups;
        if full || waits && self.waiting.len() >= self.limits.waiting {
            self.news.push_back(News::Answered { id, answer: Err(Status::Quota) });
            return;
        }
        self.last_out += 1;
        let number = self.last_out;
        let key = (peer, Role::Caller, number);
        let call = Call::new(id, Stage::Waits(wanted), now_us + CONNECT_US_MAX);
        self.parties.entry(peer).or_default().out.insert(number, call);
        self.names.insert(id, key);
        self.waiting.insert((number, peer));
        self.set_due(key, Some(now_us + CONNECT_US_MAX));
        self.use_credits(now_us);
    }

    /// The answer to [`News::Connect`].
    pub fn answer(&mut self, now_us: u64, id: CallId, answer: Result<Path, Status>) {
        let Some(key) = self.names.get(&id).copied() else { return };
        let Some(call) = self.call_mut(key).filter(|c| c.stage == Stage::Setup) else { return };
        call.stage = match answer {
            Ok(path) => Stage::Open(path),
            Err(status) => Stage::Refused(status),
        };
        let given_up = call.other;
        self.granting -= 1;
        if answer.is_err() {
            self.names.remove(&id);
            self.set_due(key, Some(now_us + REMEMBER_US));
        }
        if !given_up {
            self.answer_again(key);
        }
    }

    /// Our end of a connection is closed, or, of one that has no answer yet, not wanted any more.
    pub fn close(&mut self, now_us: u64, id: CallId, ending: Ending) {
        let Some(key) = self.names.get(&id).copied() else { return };
        let Some(call) = self.call_mut(key).filter(|c| c.own.is_none()) else { return };
        call.own = Some(ending);
        match call.stage {
            Stage::Waits(_) => {
                self.settle_answer(key, Err(Status::NoListener));
                self.forget(key);
            }
            Stage::Asks(_) => {
                // It may be made there, or be about to: only the other host can say that it is over.
                call.own = Some(Ending::Refused);
                self.settle_answer(key, Err(Status::NoListener));
                self.say_close(now_us, key);
                self.use_credits(now_us);
            }
            Stage::Open(_) if ending == Ending::Marked && !call.own_known => {
                self.set_due(key, Some(now_us + CLOSE_LATER_US));
            }
            _ => {
                self.say_close(now_us, key);
                self.end_if_over(now_us, key);
            }
        }
    }

    /// The data path says that both ends of a connection are closed, and that the other host's data path knows: nothing more is said about
    /// it. That ours is closed may not have been heard here yet.
    pub fn end(&mut self, now_us: u64, id: CallId) {
        let Some(key) = self.names.get(&id).copied() else { return };
        if self.call_mut(key).is_some_and(|call| matches!(call.stage, Stage::Open(_))) {
            self.other_is_closed(key, Ending::Marked);
            self.own_is_known(now_us, key);
        }
    }

    /// A message of `peer`, which is news (13.4).
    pub fn hear(&mut self, now_us: u64, peer: Ipv4Addr, message: CallMsg) {
        let CallMsg { number, settled, kind } = message;
        self.settle(now_us, peer, settled);
        let caller = (peer, Role::Caller, number);
        match kind {
            CallKind::Connect { dst, src, path } => {
                self.hear_connect(peer, number, Wanted { dst, src, path });
            }
            CallKind::Accepted { path } => self.hear_answer(now_us, caller, Ok(path)),
            CallKind::Refused { status } => self.hear_answer(now_us, caller, Err(status)),
            CallKind::Close { role, ending } => {
                self.hear_close(now_us, (peer, role.other(), number), ending);
            }
            CallKind::Closed { role, over } => self.hear_closed(now_us, (peer, role, number), over),
        }
    }

    /// Nothing that was agreed on with `peer` counts any more: it is lost or another run, or, if it is still `there`, has lost us (13.12).
    pub fn part(&mut self, now_us: u64, peer: Ipv4Addr, there: bool) {
        self.news.push_back(News::Lost { card: peer });
        let Some(party) = self.parties.get(&peer) else { return };
        let of = |role: Role| party.of(role).keys().map(move |number| (peer, role, *number));
        let keys: Vec<Key> = of(Role::Caller).chain(of(Role::Callee)).collect();
        for key in keys {
            match self.call_mut(key).map(|call| call.stage) {
                Some(Stage::Asks(_)) if there => {
                    // What it was asked before does not count there.
                    self.set_due(key, Some(now_us));
                    continue;
                }
                Some(Stage::Waits(_)) if there => continue,
                _ => {}
            }
            self.settle_answer(key, Err(Status::NoListener));
            if let Some(call) = self.call_mut(key)
                && !call.other
                && matches!(call.stage, Stage::Open(_) | Stage::Setup)
            {
                let id = call.id;
                self.news.push_back(News::Closed { id, ending: Ending::Unmarked });
            }
            self.forget(key);
        }
        if let Some(Party { out, .. }) = self.parties.remove(&peer)
            && !out.is_empty()
        {
            self.parties.insert(peer, Party { out, ..Party::default() });
        }
        self.use_credits(now_us);
    }

    /// Repeats what is due, and gives up what has taken too long.
    pub fn pass(&mut self, now_us: u64) {
        while let Some((_, key)) = self.due.first().copied().filter(|(at, _)| *at <= now_us) {
            self.set_due(key, None);
            let Some(call) = self.call_mut(key) else { continue };
            let (stage, late) = (call.stage, call.deadline_us <= now_us);
            match stage {
                Stage::Waits(_) if late => {
                    self.settle_answer(key, Err(Status::NoListener));
                    self.forget(key);
                }
                Stage::Asks(_) if late => {
                    call.own = Some(Ending::Refused);
                    self.settle_answer(key, Err(Status::NoListener));
                    self.say_close(now_us, key);
                    self.use_credits(now_us);
                }
                Stage::Asks(wanted) => self.ask(now_us, key, wanted),
                Stage::Refused(_) => self.forget(key),
                Stage::Over if key.1 == Role::Callee => self.forget(key),
                _ => {
                    // A known one is said again: the answer says whether the other end is still there.
                    if std::mem::replace(&mut call.own_known, false) {
                        call.repeat_us = REPEAT_US.0;
                    }
                    self.say_close(now_us, key);
                }
            }
        }
    }

    fn hear_connect(&mut self, peer: Ipv4Addr, number: u64, wanted: Wanted) {
        let key = (peer, Role::Callee, number);
        if self.call_mut(key).is_some() {
            return self.answer_again(key);
        }
        let full = |p: &Party| number < p.settled || p.incoming.len() >= 2 * self.limits.of_peer;
        // Without a credit it is asked again, soon.
        if self.granting >= self.limits.setups || self.parties.get(&peer).is_some_and(full) {
            return;
        }
        self.last_in += 1;
        let id = CallId::In(self.last_in);
        self.parties.entry(peer).or_default().incoming.insert(number, Call::new(id, Stage::Setup, 0));
        self.names.insert(id, key);
        self.granting += 1;
        self.news.push_back(News::Connect { id, peer, wanted });
    }

    fn hear_answer(&mut self, now_us: u64, key: Key, answer: Result<Path, Status>) {
        if !self.call_mut(key).is_some_and(|call| matches!(call.stage, Stage::Asks(_))) {
            return;
        }
        self.settle_answer(key, answer);
        match answer {
            Ok(_) => self.set_due(key, None),
            Err(_) => self.forget(key),
        }
        self.use_credits(now_us);
    }

    /// The other end of `key` is closed.
    fn hear_close(&mut self, now_us: u64, key: Key, ending: Ending) {
        let (peer, role, number) = key;
        if self.call_mut(key).is_some_and(|call| matches!(call.stage, Stage::Asks(_))) {
            // Made and closed, and the answer is lost: it comes again, and so does this.
            return;
        }
        let fresh = role == Role::Callee && self.parties.get(&peer).is_none_or(|p| number >= p.settled);
        if fresh && self.call_mut(key).is_none() {
            // Overtook its own request, which must not be granted any more.
            let call = Call::new(CallId::In(0), Stage::Over, 0);
            self.parties.entry(peer).or_default().incoming.insert(number, call);
            self.set_due(key, Some(now_us + REMEMBER_US));
        }
        let over = !self.other_is_closed(key, ending);
        self.say(key, CallKind::Closed { role: role.other(), over });
        self.end_if_over(now_us, key);
    }

    /// Whether there is anything of `key` here; who has it is told once of the other end's end.
    fn other_is_closed(&mut self, key: Key, ending: Ending) -> bool {
        let Some(call) = self.call_mut(key) else { return false };
        let (id, lives) = (call.id, matches!(call.stage, Stage::Open(_) | Stage::Setup));
        if !std::mem::replace(&mut call.other, true) && lives {
            self.news.push_back(News::Closed { id, ending });
        }
        lives
    }

    /// The other host knows that our end is closed.
    fn hear_closed(&mut self, now_us: u64, key: Key, over: bool) {
        let Some(call) = self.call_mut(key).filter(|call| call.own.is_some()) else { return };
        let (id, stage) = (call.id, call.stage);
        if over && !std::mem::replace(&mut call.other, true) && matches!(stage, Stage::Open(_)) {
            self.news.push_back(News::Closed { id, ending: Ending::Unmarked });
        }
        // One that was never answered may still be made there: it is asked about until that is over.
        if !over && stage == Stage::Over {
            return;
        }
        self.own_is_known(now_us, key);
    }

    /// The other host knows that our end is closed, or does not have to be told.
    fn own_is_known(&mut self, now_us: u64, key: Key) {
        let (peer, role, number) = key;
        let Some(call) = self.call_mut(key) else { return };
        let half = !call.other;
        if !std::mem::replace(&mut call.own_known, true) {
            self.set_due(key, half.then_some(now_us + HALF_EVERY_US));
            self.parties.entry(peer).or_default().closing.remove(&(role, number));
        }
        self.end_if_over(now_us, key);
        self.next_closes(now_us, peer);
    }

    /// `peer` does not speak of its calls below `settled` any more.
    fn settle(&mut self, now_us: u64, peer: Ipv4Addr, settled: u64) {
        let Some(party) = self.parties.get_mut(&peer).filter(|p| p.settled < settled) else { return };
        party.settled = settled;
        let gone: Vec<(u64, Call)> = party.incoming.range(..settled).map(|(n, c)| (*n, *c)).collect();
        for (number, call) in gone {
            if !call.other && matches!(call.stage, Stage::Open(_) | Stage::Setup) {
                self.news.push_back(News::Closed { id: call.id, ending: Ending::Unmarked });
            }
            self.forget((peer, Role::Callee, number));
        }
        self.use_credits(now_us);
        self.next_closes(now_us, peer);
    }

    fn call_mut(&mut self, (peer, role, number): Key) -> Option<&mut Call> {
        self.parties.get_mut(&peer)?.of_mut(role).get_mut(&number)
    }

    /// A caller's answer, if it has not had one. Gives its credit back.
    fn settle_answer(&mut self, key: Key, answer: Result<Path, Status>) {
        let (peer, _, number) = key;
        let Some(call) = self.call_mut(key) else { return };
        let asked = match call.stage {
            Stage::Waits(_) => false,
            Stage::Asks(_) => true,
            _ => return,
        };
        call.stage = answer.map_or(Stage::Over, Stage::Open);
        let id = call.id;
        if asked {
            self.asking -= 1;
        } else {
            self.waiting.remove(&(number, peer));
        }
        self.news.push_back(News::Answered { id, answer });
    }

    /// Gives credits to who waits.
    fn use_credits(&mut self, now_us: u64) {
        while self.asking < self.limits.setups
            && let Some((number, peer)) = self.waiting.pop_first()
        {
            let key = (peer, Role::Caller, number);
            if let Some(call) = self.call_mut(key)
                && let Stage::Waits(wanted) = call.stage
            {
                call.stage = Stage::Asks(wanted);
                self.asking += 1;
                self.ask(now_us, key, wanted);
            }
        }
    }

    fn ask(&mut self, now_us: u64, key: Key, Wanted { dst, src, path }: Wanted) {
        self.say(key, CallKind::Connect { dst, src, path });
        self.repeat(now_us, key);
    }

    fn say_close(&mut self, now_us: u64, key: Key) {
        let Some(call) = self.call_mut(key) else { return };
        let Some(ending) = call.own.filter(|_| !call.own_known) else { return };
        let (peer, role, number) = key;
        let Some(party) = self.parties.get_mut(&peer) else { return };
        if party.closing.len() >= CLOSES_MAX && !party.closing.contains(&(role, number)) {
            party.closes.push_back((role, number));
            return self.set_due(key, None);
        }
        party.closing.insert((role, number));
        self.say(key, CallKind::Close { role: key.1, ending });
        self.repeat(now_us, key);
    }

    /// Lets closes go on that have waited for others to be known.
    fn next_closes(&mut self, now_us: u64, peer: Ipv4Addr) {
        while let Some(party) = self.parties.get_mut(&peer)
            && party.closing.len() < CLOSES_MAX
            && let Some((role, number)) = party.closes.pop_front()
        {
            self.say_close(now_us, (peer, role, number));
        }
    }

    fn answer_again(&mut self, key: Key) {
        let kind = match self.call_mut(key).map(|call| call.stage) {
            Some(Stage::Open(path)) => CallKind::Accepted { path },
            Some(Stage::Refused(status)) => CallKind::Refused { status },
            _ => return,
        };
        self.say(key, kind);
    }

    fn say(&mut self, (peer, _, number): Key, kind: CallKind) {
        let lowest = self.parties.get(&peer).and_then(|party| party.out.keys().next().copied());
        let settled = lowest.unwrap_or(self.last_out + 1);
        self.outbox.push_back((peer, CallMsg { number, settled, kind }));
    }

    /// Comes back to `key` later, and later each time.
    fn repeat(&mut self, now_us: u64, key: Key) {
        let Some(call) = self.call_mut(key) else { return };
        let at_us = now_us + call.repeat_us;
        let at_us = if call.own.is_none() { at_us.min(call.deadline_us) } else { at_us };
        call.repeat_us = (call.repeat_us * 2).min(REPEAT_US.1);
        self.set_due(key, Some(at_us));
    }

    fn set_due(&mut self, key: Key, at_us: Option<u64>) {
        let Some(call) = self.call_mut(key) else { return };
        let before = std::mem::replace(&mut call.due_us, at_us);
        if let Some(at_us) = before {
            self.due.remove(&(at_us, key));
        }
        if let Some(at_us) = at_us {
            self.due.insert((at_us, key));
        }
    }

    /// Both ends are closed, and the other host knows it of ours: a caller forgets the call, a callee remembers its number.
    fn end_if_over(&mut self, now_us: u64, key: Key) {
        let is_over = |call: &&mut Call| call.other && call.own_known && call.own.is_some();
        let Some(call) = self.call_mut(key).filter(is_over) else { return };
        if key.1 == Role::Caller {
            return self.forget(key);
        }
        if !matches!(call.stage, Stage::Open(_)) {
            return;
        }
        call.stage = Stage::Over;
        let id = call.id;
        self.names.remove(&id);
        self.set_due(key, Some(now_us + REMEMBER_US));
    }

    fn forget(&mut self, key: Key) {
        self.set_due(key, None);
        let (peer, role, number) = key;
        let Some(party) = self.parties.get_mut(&peer) else { return };
        party.closing.remove(&(role, number));
        let Some(call) = party.of_mut(role).remove(&number) else { return };
        match call.stage {
            Stage::Asks(_) => self.asking -= 1,
            Stage::Setup => self.granting -= 1,
            _ => {}
        }
        self.waiting.remove(&(number, peer));
        if self.names.get(&call.id) == Some(&key) {
            self.names.remove(&call.id);
        }
    }
}
