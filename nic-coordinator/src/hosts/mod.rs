//! Which other coordinators there are, and what is agreed on with them (SPEC 13): a state machine on somebody else's clock. Datagrams go in, datagrams come out;
//! nothing here reads a clock, waits, or draws a random number.
//!
//! | module | what |
//! |---|---|
//! | [`seal`] | what is believed: the key, and what was there already |
//! | `peer` | one other coordinator |
//! | `roster` | all of them, by the time when something is due |
//! | `call` | one connection between its host and ours, at this end |
//! | [`calls`] | all of them: messages that are lost, repeated and overtaken |
//! | [`finder`] | which coordinator an address belongs to, if any |

mod call;
pub mod calls;
pub mod finder;
mod peer;
mod roster;
pub mod seal;

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use ring::hosts::{Addresses, HostMsg, Incarnation, KEY_BYTES, Label, Path};
use ring::msg::Status;

use calls::{CallId, Calls, News, Wanted};
use finder::{Finder, Found, Waiting};
pub use peer::{Peer, State};
use ring::hosts::Ending;
use roster::Roster;
use seal::{Seal, Unbelieved};

/// Peers that are remembered at most. More are not answered.
pub const PEERS_MAX: usize = 4096;
/// How often peers hear a sign of life.
pub const KEEPALIVE_US: u64 = 1_000_000;
/// How long a peer may be silent before it is lost: three signs of life, and air.
pub const LOST_AFTER_US: u64 = 3_500_000;
/// First and longest wait between attempts to reach a peer.
pub const RETRY_US: (u64, u64) = (250_000, 4_000_000);
/// How long a lost peer that nobody has configured is tried and remembered.
pub const FORGOTTEN_AFTER_US: u64 = 60_000_000;
/// How often one peer is answered that has not shown that it is not a replay.
pub const ANSWER_EVERY_US: u64 = 50_000;
/// How often everybody on the local network is greeted.
pub const ANNOUNCE_EVERY_US: u64 = 5_000_000;

/// Who we are.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The card's address.
    pub card: Ipv4Addr,
    /// Random, another one for each start.
    pub incarnation: Incarnation,
    /// Of the coordinator.
    pub epoch: u32,
    /// Shared by all hosts.
    pub key: [u8; KEY_BYTES],
    /// Addresses that reach this host.
    pub addresses: Addresses,
    /// Peers that are looked for.
    pub peers: Vec<Ipv4Addr>,
    /// Whether peers are looked for on the local network.
    pub announce: bool,
    /// Of connections.
    pub limits: calls::Limits,
}

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To one coordinator.
    Peer(Ipv4Addr),
    /// To all on the local network.
    Everybody,
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is news from a peer that lives.
    Heard,
    /// It may be old: answered, so that the sender can show that it is not, and believed in nothing.
    Asked,
    /// Dropped: it makes no sense.
    Malformed,
    /// Dropped: wrong key, or changed.
    Forged,
    /// Dropped: was there already, or too old to know.
    Replayed,
    /// Dropped: our own, from the local network.
    Own,
    /// Dropped: a greeting to everybody from who is up already.
    Known,
    /// Dropped: as many peers as there may be, or asked again too soon.
    Refused,
}

/// How many datagrams had which outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sent.
    pub sent: u64,
    /// [`Outcome::Heard`].
    pub heard: u64,
    /// [`Outcome::Asked`].
    pub asked: u64,
    /// [`Outcome::Malformed`].
    pub malformed: u64,
    /// [`Outcome::Forged`].
    pub forged: u64,
    /// [`Outcome::Replayed`].
    pub replayed: u64,
    /// [`Outcome::Own`].
    pub own: u64,
    /// [`Outcome::Known`].
    pub known: u64,
    /// [`Outcome::Refused`].
    pub refused: u64,
}

impl Counters {
    /// Names and values.
    #[must_use]
    pub fn read(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("sent", self.sent),
            ("heard", self.heard),
            ("asked", self.asked),
            ("malformed", self.malformed),
            ("forged", self.forged),
            ("replayed", self.replayed),
            ("own", self.own),
            ("known", self.known),
            ("refused", self.refused),
        ]
    }
}

/// All other coordinators that we know of.
pub struct Hosts {
    settings: Settings,
    seal: Seal,
    /// Datagrams sealed.
    counter: u64,
    /// Tickets given. None is given twice.
    tickets: u64,
    peers: Roster,
    announce_us: Option<u64>,
    calls: Calls,
    finder: Finder,
    /// Answers that no peer gave.
    answers: VecDeque<News>,
    outbox: VecDeque<(Destination, Vec<u8>)>,
    counters: Counters,
}

impl Hosts {
    /// Knows nobody yet; looks for `settings.peers` from `now_us` on.
    #[must_use]
    pub fn new(settings: Settings, now_us: u64) -> Hosts {
        let seal = Seal::new(&settings.key);
        let (mut tickets, mut peers) = (0, Roster::default());
        for address in &settings.peers {
            tickets += 1;
            peers.insert(*address, Peer::configured(now_us, tickets));
        }
        let announce_us = settings.announce.then_some(now_us);
        let calls = Calls::new(settings.limits);
        let (finder, answers, outbox, counters) = Default::default();
        Hosts {
            settings,
            seal,
            counter: 0,
            tickets,
            peers,
            announce_us,
            calls,
            finder,
            answers,
            outbox,
            counters,
        }
    }

    /// The peers, by the address of their card.
    pub fn peers(&self) -> impl Iterator<Item = (Ipv4Addr, &Peer)> {
        self.peers.iter()
    }

    /// What has been counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Which peer's host `address` reaches, if it is up. Of two that say so, the one with the lower address of its card.
    #[must_use]
    pub fn owner_of(&self, address: [u8; 16]) -> Option<Ipv4Addr> {
        self.finder.owner(address)
    }

    /// The connections.
    #[must_use]
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// The addresses.
    #[must_use]
    pub fn finder(&self) -> &Finder {
        &self.finder
    }

    /// Asks whoever has the address for a connection, which is called `id` here and nothing was before. Answered by [`News::Answered`]:
    /// at once, if it is known that nobody has it.
    pub fn connect(&mut self, now_us: u64, id: u64, wanted: Wanted) {
        let waits = match self.finder.look(wanted.dst.ip) {
            Found::Peer(card) => return self.calls.connect(now_us, id, card, wanted),
            Found::Nobody => false,
            Found::Sought => true,
            Found::Unknown => {
                self.seek(now_us);
                true
            }
        };
        if !waits || !self.finder.wait(now_us, wanted.dst.ip, Waiting { id, wanted }) {
            self.refuse(id);
        }
    }

    /// The answer to [`News::Connect`].
    pub fn answer(&mut self, now_us: u64, id: CallId, answer: Result<Path, Status>) {
        self.calls.answer(now_us, id, answer);
    }

    /// Our end of a connection is closed.
    pub fn close(&mut self, now_us: u64, id: CallId, ending: Ending) {
        if let CallId::Out(out) = id
            && self.finder.forget(out)
        {
            return self.refuse(out);
        }
        self.calls.close(now_us, id, ending);
    }

    /// The data path says that both ends are closed, and that the other host's knows.
    pub fn end(&mut self, now_us: u64, id: CallId) {
        self.calls.end(now_us, id);
    }

    /// What has happened to connections, in order.
    pub fn next_news(&mut self, now_us: u64) -> Option<News> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        while let Some(news) = self.calls.next_news() {
            match news {
                // No host speaks for another one's addresses.
                News::Connect { id, peer, wanted } if self.finder.owner(wanted.src.ip) != Some(peer) => {
                    self.calls.answer(now_us, id, Err(Status::Denied));
                }
                news => return Some(news),
            }
        }
        None
    }

    fn refuse(&mut self, id: u64) {
        let answer = Err(Status::NoHost);
        self.answers.push_back(News::Answered { id: CallId::Out(id), answer });
    }

    /// Greets everybody who is not up, soon.
    fn seek(&mut self, now_us: u64) {
        if let Some(at_us) = &mut self.announce_us {
            *at_us = now_us;
        }
        self.peers.change_all(|peer| peer.seek(now_us));
    }

    /// Peer `from` is up, or not, with other addresses than it had.
    fn set_addresses(&mut self, now_us: u64, from: Ipv4Addr, before: &Addresses) {
        let now = self.peers.get(from).map_or(Addresses::NONE, Peer::addresses_if_up);
        if now == *before {
            return;
        }
        self.answers.extend(now.as_slice().iter().map(|address| News::Somebody { address: *address }));
        for (card, Waiting { id, wanted }) in self.finder.set(from, before, &now) {
            self.calls.connect(now_us, id, card, wanted);
        }
    }

    /// A datagram has come.
    pub fn receive(&mut self, now_us: u64, from: Ipv4Addr, datagram: &[u8]) -> Outcome {
        let outcome = self.take(now_us, from, datagram);
        self.peers.file(from);
        let counters = &mut self.counters;
        let counter = match outcome {
            Outcome::Heard => &mut counters.heard,
            Outcome::Asked => &mut counters.asked,
            Outcome::Malformed => &mut counters.malformed,
            Outcome::Forged => &mut counters.forged,
            Outcome::Replayed => &mut counters.replayed,
            Outcome::Own => &mut counters.own,
            Outcome::Known => &mut counters.known,
            Outcome::Refused => &mut counters.refused,
        };
        *counter += 1;
        outcome
    }

    fn take(&mut self, now_us: u64, from: Ipv4Addr, datagram: &[u8]) -> Outcome {
        let (sender, counter, message) = match self.seal.open(from, datagram) {
            Ok(opened) => opened,
            Err(Unbelieved::Malformed) => return Outcome::Malformed,
            Err(Unbelieved::Forged) => return Outcome::Forged,
        };
        if sender == self.settings.incarnation {
            return Outcome::Own;
        }
        let (HostMsg::Hello { label, .. } | HostMsg::Bye { label, .. } | HostMsg::Call { label, .. }) =
            message;
        // One that has lost us asks us alone.
        let up = |peer: &Peer| peer.state() == State::Up && !peer.is_another_run(sender);
        if label.to == Incarnation::NOBODY && self.peers.get(from).is_some_and(up) {
            return Outcome::Known;
        }
        if self.peers.get(from).is_none() {
            if self.peers.len() >= PEERS_MAX || !matches!(message, HostMsg::Hello { .. }) {
                return Outcome::Refused;
            }
            self.tickets += 1;
            self.peers.insert(from, Peer::met(now_us, self.tickets));
        }
        let Some(peer) = self.peers.get_mut(from) else { return Outcome::Refused };
        // Only who has heard us in this run, and since we know of its own run, can quote both.
        let for_us = label.to == self.settings.incarnation;
        if !for_us || label.quote != peer.ticket() {
            if !peer.may_be_asked(now_us) {
                return Outcome::Refused;
            }
            let answer = Label { to: sender, quote: label.ticket, ticket: peer.ticket() };
            self.send(Destination::Peer(from), answer);
            return Outcome::Asked;
        }
        let before = peer.addresses_if_up();
        if peer.is_another_run(sender) {
            self.tickets += 1;
            peer.begin(sender, self.tickets);
            self.calls.part(now_us, from, false);
        }
        if !peer.is_new(counter) {
            return Outcome::Replayed;
        }
        // Who has lost us, or was not known, does not know our ticket.
        let mut answers = peer.has_lost_us(counter, label.ticket);
        if answers {
            self.calls.part(now_us, from, true);
        }
        match message {
            HostMsg::Hello { epoch, addresses, .. } => {
                answers |= peer.heard(now_us, counter, label.ticket, (epoch, addresses));
            }
            HostMsg::Call { call, epoch, .. } => {
                let said = (epoch, peer.addresses());
                if peer.state() == State::Up {
                    peer.heard(now_us, counter, label.ticket, said);
                }
                if peer.agrees(label.ticket) {
                    self.calls.hear(now_us, from, call);
                }
            }
            HostMsg::Bye { .. } => {
                self.tickets += 1;
                peer.lose(now_us, self.tickets);
                self.calls.part(now_us, from, false);
                answers = false;
            }
        }
        if answers {
            let answer = peer.label();
            self.send(Destination::Peer(from), answer);
        }
        self.set_addresses(now_us, from, &before);
        Outcome::Heard
    }

    /// Lets time pass: what is due goes into the outbox, silent peers are lost.
    fn pass(&mut self, now_us: u64) {
        if self.announce_us.is_some_and(|at| at <= now_us) {
            self.announce_us = Some(now_us + ANNOUNCE_EVERY_US);
            let label = Label { to: Incarnation::NOBODY, quote: 0, ticket: 0 };
            self.send(Destination::Everybody, label);
        }
        let (mut due, mut lost) = (Vec::new(), Vec::new());
        for address in self.peers.due(now_us) {
            let Some(peer) = self.peers.get_mut(address) else { continue };
            if peer.is_forgotten(now_us) {
                self.peers.remove(address);
                continue;
            }
            if peer.is_silent(now_us) {
                lost.push((address, peer.addresses_if_up()));
                self.tickets += 1;
                peer.lose(now_us, self.tickets);
            }
            if peer.is_due(now_us) {
                due.push((address, peer.label()));
            }
            self.peers.file(address);
        }
        for (address, before) in lost {
            self.calls.part(now_us, address, false);
            self.set_addresses(now_us, address, &before);
        }
        for Waiting { id, wanted } in self.finder.pass(now_us) {
            self.refuse(id);
            self.answers.push_back(News::Nobody { address: wanted.dst.ip });
        }
        self.calls.pass(now_us);
        for (address, label) in due {
            self.send(Destination::Peer(address), label);
        }
    }

    /// Seals what is to be said about connections.
    fn send_calls(&mut self) {
        let Settings { card, incarnation, epoch, .. } = self.settings;
        while let Some((to, call)) = self.calls.next_message() {
            let Some(peer) = self.peers.get(to).filter(|peer| peer.state() == State::Up) else { continue };
            self.counter += 1;
            let message = HostMsg::Call { label: peer.label(), epoch, call };
            let datagram = self.seal.seal(card, incarnation, self.counter, &message);
            self.outbox.push_back((Destination::Peer(to), datagram));
            self.counters.sent += 1;
        }
    }

    fn send(&mut self, destination: Destination, label: Label) {
        let Settings { card, incarnation, epoch, addresses, .. } = self.settings;
        self.counter += 1;
        let message = HostMsg::Hello { label, epoch, addresses };
        self.outbox.push_back((destination, self.seal.seal(card, incarnation, self.counter, &message)));
        self.counters.sent += 1;
    }

    /// The next datagram to send by now.
    pub fn poll(&mut self, now_us: u64) -> Option<(Destination, Vec<u8>)> {
        if self.outbox.is_empty() {
            self.pass(now_us);
            self.send_calls();
        }
        self.outbox.pop_front()
    }

    /// Datagrams to those who know us: this coordinator ends.
    #[must_use]
    pub fn farewell(&mut self) -> Vec<(Ipv4Addr, Vec<u8>)> {
        let Settings { card, incarnation, epoch, .. } = self.settings;
        let known = self.peers.iter().filter(|(_, peer)| peer.state() == State::Up);
        let known: Vec<_> = known.map(|(address, peer)| (address, peer.label())).collect();
        let (seal, counter) = (&self.seal, &mut self.counter);
        let bye = |(address, label)| {
            *counter += 1;
            (address, seal.seal(card, incarnation, *counter, &HostMsg::Bye { label, epoch }))
        };
        known.into_iter().map(bye).collect()
    }

    /// When [`Hosts::poll`] has something to do without being given a datagram.
    #[must_use]
    pub fn next_us(&self) -> Option<u64> {
        if !self.outbox.is_empty() || self.calls.has_message() {
            return Some(0);
        }
        [self.peers.next_us(), self.announce_us, self.calls.next_us(), self.finder.next_us()]
            .into_iter()
            .flatten()
            .min()
    }
}
