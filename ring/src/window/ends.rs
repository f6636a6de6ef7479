//! The two ends of a function: rings with their credits (SPEC 2.4), interrupts (2.5), doorbell (2.6).

use super::{Consumer, FarHost, FarWindow, Full, NearHost, NearWindow, Producer, Raw, WrongVersion};
use crate::atomic::Ordering;
use crate::queue::Requests;
use crate::side::{Far, InOrder, Memory, Near};

/// The other end broke the rules of the rings: nothing it says can be relied on any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// An entry of another version, or random bytes.
    Version(u8),
    /// It claims to have consumed what was never sent.
    Credit,
}

impl core::fmt::Display for Broken {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Broken::Version(version) => write!(f, "it posted an entry of version {version}"),
            Broken::Credit => f.write_str("it claims credit for entries that were never sent"),
        }
    }
}

impl core::error::Error for Broken {}

impl From<WrongVersion> for Broken {
    fn from(WrongVersion(version): WrongVersion) -> Self {
        Broken::Version(version)
    }
}

/// The host's end.
#[derive(Debug)]
pub struct HostEnd<'a, M: Memory = InOrder> {
    requests: Requests<'a, M>,
    completions: Consumer<'a, M>,
    armed: Far<'a, M::Word>,
    doorbell_wanted: Near<'a, M::Half>,
    /// Completions consumed, as the card knows or will when it is rung.
    heard: u64,
}

/// What [`HostEnd::arm`] finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Armed {
    /// Completions are there already: take them rather than sleep.
    pub ready: bool,
    /// Ring the doorbell.
    pub ring: bool,
}

impl<'a, M: Memory> HostEnd<'a, M> {
    /// Over fresh memory, to which `requests` leads.
    #[must_use]
    pub fn new(requests: Requests<'a, M>, window: &FarWindow<'a, M>, host: &NearHost<'a, M>) -> Self {
        HostEnd {
            requests,
            completions: Consumer::new(host.completions, 0),
            armed: window.armed,
            doorbell_wanted: host.doorbell_wanted,
            heard: 0,
        }
    }

    /// Posts a request, and the credit for completions in it. After one or more of them, and also if there was no room, the card may
    /// want to be rung.
    ///
    /// # Errors
    /// [`Full`]: completions have to be taken first.
    #[inline]
    pub fn post(&mut self, raw: &Raw) -> Result<(), Full> {
        let credit = self.completions.credit();
        let posted = self.requests.push(raw, credit);
        if posted.is_err() {
            self.tell();
        }
        self.heard = self.completions.consumed();
        posted
    }

    /// As [`HostEnd::post`], but the card is not going to be rung for it: it finds the request when it is awake anyhow (SPEC 2.6.6).
    ///
    /// # Errors
    /// [`Full`], as there.
    pub fn post_quietly(&mut self, raw: &Raw) -> Result<(), Full> {
        let heard = self.heard;
        let posted = self.post(raw);
        if posted.is_ok() {
            self.heard = heard;
        }
        posted
    }

    /// Gives credit without a request: the card may wait for that with the credit that we wait for (SPEC 2.4.4).
    #[cold]
    fn tell(&mut self) {
        if self.heard != self.completions.consumed() {
            self.armed.publish(self.completions.consumed() + 1);
            self.requests.armed();
        }
    }

    /// The card sleeps and wants its doorbell rung, for what was posted (SPEC 2.6.2). `fence`: a full one, between the two.
    #[inline]
    #[must_use]
    pub fn doorbell_wanted(&self, fence: impl FnOnce()) -> bool {
        fence();
        // Relaxed: nothing else is read on the strength of it.
        self.doorbell_wanted.load(Ordering::Relaxed) != 0
    }

    /// Takes the next completion, and the credit in it.
    ///
    /// # Errors
    /// [`Broken`]: the card is not to be used any more.
    #[inline]
    pub fn take(&mut self) -> Result<Option<Raw>, Broken> {
        match self.completions.pop()? {
            Some((raw, credit)) if self.requests.take_credit(credit) => Ok(Some(raw)),
            Some(_) => Err(Broken::Credit),
            None => Ok(None),
        }
    }

    /// Asks for an interrupt at the next completion (SPEC 2.5.1). `fence` as for [`HostEnd::doorbell_wanted`].
    pub fn arm(&mut self, fence: impl FnOnce()) -> Armed {
        let consumed = self.completions.consumed();
        // It carries credit, too: what it says is consumed was copied out before, and the card may write over it.
        self.armed.publish(consumed + 1);
        self.requests.armed();
        // A card that sleeps hears of credit only if it is rung, which it needs if it has none left (SPEC 2.6.5).
        let starved = consumed - self.heard >= self.completions.size();
        let ring = self.doorbell_wanted(fence) && starved;
        if starved {
            self.heard = consumed;
        }
        Armed { ready: self.completions.ready(), ring }
    }

    /// The completion ring.
    #[must_use]
    pub fn completions(&self) -> &Consumer<'a, M> {
        &self.completions
    }

    /// The way of the requests.
    #[must_use]
    pub fn requests(&self) -> &Requests<'a, M> {
        &self.requests
    }
}

/// The card's end.
#[derive(Debug)]
pub struct CardEnd<'a, M: Memory = InOrder> {
    requests: Consumer<'a, M>,
    completions: Producer<'a, M>,
    armed: Near<'a, M::Word>,
    doorbell_wanted: Far<'a, M::Half>,
    /// What `armed` said last.
    asked: u64,
    gate: IrqGate,
}

impl<'a, M: Memory> CardEnd<'a, M> {
    /// Over fresh memory.
    #[must_use]
    pub fn new(window: &NearWindow<'a, M>, host: &FarHost<'a, M>) -> Self {
        CardEnd {
            requests: Consumer::new(window.requests, 0),
            completions: Producer::new(host.completions, 0),
            armed: window.armed,
            doorbell_wanted: host.doorbell_wanted,
            asked: 0,
            gate: IrqGate::default(),
        }
    }

    /// Takes the next request of the private ring, and the credit in it.
    ///
    /// # Errors
    /// [`Broken`]: the function has to be dropped.
    #[inline]
    pub fn take(&mut self) -> Result<Option<Raw>, Broken> {
        match self.requests.pop()? {
            Some((raw, credit)) => self.take_credit(credit).map(|()| Some(raw)),
            None => Ok(None),
        }
    }

    /// Takes the credit that came with a request by the shared ring.
    ///
    /// # Errors
    /// [`Broken`]: the function has to be dropped.
    pub fn take_credit(&mut self, credit: u32) -> Result<(), Broken> {
        if self.completions.take_credit(credit) { Ok(()) } else { Err(Broken::Credit) }
    }

    /// Counts a request that came by the shared ring as consumed.
    pub fn count_shared(&mut self) {
        self.requests.count_shared();
    }

    /// True when a request waits in the private ring.
    #[must_use]
    pub fn has_request(&self) -> bool {
        self.requests.ready()
    }

    /// Looks whether the host asks for an interrupt (SPEC 2.5), and takes the credit in that. True: it has asked anew.
    ///
    /// # Errors
    /// [`Broken`]: the function has to be dropped.
    #[inline]
    pub fn look_at_armed(&mut self) -> Result<bool, Broken> {
        // Acquire: pairs with the host's `publish`. The entries that it says are consumed were read before; we may write over
        // them now.
        let before = core::mem::replace(&mut self.asked, self.armed.load(Ordering::Acquire));
        if self.completions.take_armed(self.asked) { Ok(self.asked != before) } else { Err(Broken::Credit) }
    }

    /// True if [`CardEnd::look_at_armed`] has something to see.
    #[must_use]
    pub fn armed_changed(&self) -> bool {
        self.armed.load(Ordering::Relaxed) != self.asked
    }

    /// True if a completion can be pushed.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.completions.space() != 0
    }

    /// True if the host has to be interrupted now, once for each time that it asked.
    #[inline]
    pub fn interrupt_due(&mut self) -> bool {
        self.gate.should_fire(self.asked, self.completions.pushed())
    }

    /// Writes a completion, and the credit for requests in it.
    ///
    /// # Errors
    /// [`Full`] until the host gives credit.
    #[inline]
    pub fn push(&mut self, raw: &Raw) -> Result<(), Full> {
        if !self.has_room() {
            return Err(Full);
        }
        // Counts as told, so only for an entry that is pushed (SPEC 2.4.5).
        let credit = self.requests.credit();
        self.completions.push(raw, credit)
    }

    /// Requests consumed that the host has not been told of.
    #[must_use]
    pub fn untold(&self) -> u64 {
        self.requests.untold()
    }

    /// Tells the host whether it has to ring the doorbell after a request (SPEC 2.6). Setting it is ordered before the second look at
    /// the rings by the full fence between the two; a host that reads the old 1 after the clearing rings in vain.
    pub fn set_doorbell_wanted(&self, wanted: bool) {
        self.doorbell_wanted.publish(u32::from(wanted));
    }
}

/// The card's view of [`WindowHeader::armed`] (SPEC 2.5): decides when to interrupt.
#[derive(Clone, Copy, Debug, Default)]
pub struct IrqGate {
    fired: u64,
}

impl IrqGate {
    /// `armed`: the word as just read; `pushed`: completions pushed so far. True: interrupt now.
    /// Fires once for each value of `armed`, as soon as a completion beyond it exists, in whatever
    /// order the posted write of `armed` and the completions became visible.
    pub fn should_fire(&mut self, armed: u64, pushed: u64) -> bool {
        if armed == 0 || armed == self.fired || pushed < armed {
            return false;
        }
        self.fired = armed;
        true
    }
}
