//! One other coordinator, as far as it is known.

use ring::hosts::{Addresses, Incarnation, Label};

use super::seal::ReplayWindow;
use super::{ANSWER_EVERY_US, FORGOTTEN_AFTER_US, KEEPALIVE_US, LOST_AFTER_US, RETRY_US};

/// What is known of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Looked for.
    Sought,
    /// Heard of lately.
    Up,
    /// Silent for too long, or gone.
    Lost,
}

impl State {
    /// In a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Sought => "sought",
            State::Up => "up",
            State::Lost => "lost",
        }
    }
}

/// One run of a peer, which has shown that it is not a recording of itself.
#[derive(Clone, Copy, Debug)]
struct Run {
    incarnation: Incarnation,
    seen: ReplayWindow,
    /// What it wants to be quoted.
    ticket: u64,
    epoch: u32,
    addresses: Addresses,
    heard_us: u64,
}

/// A peer.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Named by the settings: never forgotten.
    configured: bool,
    /// What it has to quote.
    ticket: u64,
    run: Option<Run>,
    state: State,
    /// Since when it has not been up.
    down_us: u64,
    /// When the next message to it is due.
    send_us: u64,
    /// How long to wait after that, while it does not answer.
    retry_us: u64,
    /// When it was last answered without having shown anything.
    answered_us: Option<u64>,
}

impl Peer {
    /// One of the settings.
    pub(super) fn configured(now_us: u64, ticket: u64) -> Peer {
        Peer {
            configured: true,
            ticket,
            run: None,
            state: State::Sought,
            down_us: now_us,
            send_us: now_us,
            retry_us: RETRY_US.0,
            answered_us: None,
        }
    }

    /// One that has greeted us.
    pub(super) fn met(now_us: u64, ticket: u64) -> Peer {
        // It is answered at once, so the first attempt of our own can wait.
        Peer { configured: false, send_us: now_us + RETRY_US.0, ..Peer::configured(now_us, ticket) }
    }

    /// What is known of it.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Its last run that we know of.
    #[must_use]
    pub fn incarnation(&self) -> Option<Incarnation> {
        self.run.map(|run| run.incarnation)
    }

    /// Epoch of that.
    #[must_use]
    pub fn epoch(&self) -> Option<u32> {
        self.run.map(|run| run.epoch)
    }

    /// Addresses that reach its host.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.run.map_or(Addresses::NONE, |run| run.addresses)
    }

    /// The same, while it is up.
    pub(super) fn addresses_if_up(&self) -> Addresses {
        if self.state == State::Up { self.addresses() } else { Addresses::NONE }
    }

    /// When it was last heard.
    #[must_use]
    pub fn heard_us(&self) -> Option<u64> {
        self.run.map(|run| run.heard_us)
    }

    pub(super) fn ticket(&self) -> u64 {
        self.ticket
    }

    /// How a message to it begins.
    pub(super) fn label(&self) -> Label {
        let (to, quote) = self.run.map_or((Incarnation::NOBODY, 0), |run| (run.incarnation, run.ticket));
        Label { to, quote, ticket: self.ticket }
    }

    /// Whether a message that may be a recording is answered: now and then.
    pub(super) fn may_be_asked(&mut self, now_us: u64) -> bool {
        let due = self.answered_us.is_none_or(|at| now_us.saturating_sub(at) >= ANSWER_EVERY_US);
        if due {
            self.answered_us = Some(now_us);
        }
        due
    }

    pub(super) fn is_another_run(&self, sender: Incarnation) -> bool {
        self.incarnation() != Some(sender)
    }

    /// A new run of it, which has quoted our ticket. From now on it needs another one, so that nothing that an
    /// earlier run has sent counts any more.
    pub(super) fn begin(&mut self, incarnation: Incarnation, ticket: u64) {
        let (seen, addresses) = (ReplayWindow::default(), Addresses::NONE);
        self.run = Some(Run { incarnation, seen, ticket: 0, epoch: 0, addresses, heard_us: 0 });
        self.ticket = ticket;
        // Whatever was known is of a run that has ended.
        self.state = State::Sought;
    }

    /// True the first time that it is asked about datagram `counter` of its run.
    pub(super) fn is_new(&mut self, counter: u64) -> bool {
        self.run.as_mut().is_some_and(|run| run.seen.is_new(counter))
    }

    /// Whether a message with this ticket says that it has lost us since: it draws another ticket then.
    pub(super) fn has_lost_us(&self, counter: u64, ticket: u64) -> bool {
        let known = self.run.filter(|run| run.ticket != 0 && counter >= run.seen.newest());
        self.state == State::Up && known.is_some_and(|run| run.ticket != ticket)
    }

    /// Whether what is agreed on with it counts: it quotes our ticket, and we have its.
    pub(super) fn agrees(&self, ticket: u64) -> bool {
        self.state == State::Up && self.run.is_some_and(|run| run.ticket == ticket)
    }

    /// It lives. True when that is news, which it is told, so that it knows us, too.
    pub(super) fn heard(&mut self, now_us: u64, counter: u64, ticket: u64, said: (u32, Addresses)) -> bool {
        if let Some(run) = &mut self.run {
            run.heard_us = now_us;
            // One that was overtaken says nothing new otherwise.
            if counter >= run.seen.newest() {
                (run.ticket, (run.epoch, run.addresses)) = (ticket, said);
            }
        }
        self.retry_us = RETRY_US.0;
        let news = self.state != State::Up;
        self.state = State::Up;
        if news {
            self.send_us = now_us + KEEPALIVE_US;
        }
        news
    }

    /// It is gone. From now on it needs another ticket, by which it notices that we have lost it.
    pub(super) fn lose(&mut self, now_us: u64, ticket: u64) {
        if self.state == State::Up {
            self.state = State::Lost;
            self.ticket = ticket;
            self.down_us = now_us;
            self.send_us = now_us + self.retry_us;
        }
    }

    /// If it is not up, a message to it is due now.
    pub(super) fn seek(&mut self, now_us: u64) {
        if self.state != State::Up {
            self.send_us = self.send_us.min(now_us);
        }
    }

    pub(super) fn is_forgotten(&self, now_us: u64) -> bool {
        let gone = self.state != State::Up && now_us.saturating_sub(self.down_us) >= FORGOTTEN_AFTER_US;
        gone && !self.configured
    }

    /// Whether it is up only because nobody has looked.
    pub(super) fn is_silent(&self, now_us: u64) -> bool {
        self.state == State::Up && self.lost_at_us() <= now_us
    }

    /// Whether a message to it is due, which then counts as sent.
    pub(super) fn is_due(&mut self, now_us: u64) -> bool {
        if self.send_us > now_us {
            return false;
        }
        if self.state == State::Up {
            self.send_us = now_us + KEEPALIVE_US;
        } else {
            self.send_us = now_us + self.retry_us;
            self.retry_us = (self.retry_us * 2).min(RETRY_US.1);
        }
        true
    }

    fn lost_at_us(&self) -> u64 {
        self.heard_us().unwrap_or(0) + LOST_AFTER_US
    }

    pub(super) fn next_us(&self) -> u64 {
        match self.state {
            State::Up => self.send_us.min(self.lost_at_us()),
            State::Sought | State::Lost if self.configured => self.send_us,
            State::Sought | State::Lost => self.send_us.min(self.down_us + FORGOTTEN_AFTER_US),
        }
    }
}
