//! The functions that one lcore polls: everything that is per process. Requests in, checked; completions, credits and
//! interrupts out. What the requests mean is the logic's affair, on the same lcore or another one.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ring::bus::AGENT_FUNCTION;
use ring::msg::{Completion, Malformed, Request};
use ring::profile::Profile;
use ring::queue::Kind;
use ring::queue::shared::Sealed;
use ring::window::{Broken, ENTRIES, Raw};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::counters::Counters;
use crate::intake::Intake;
use crate::latency::{Delayed, Latency};
use crate::link::{Outlet, ToLogic};
use crate::logic::{Impostor, Out};
use crate::mapping::FunctionMemory;
use crate::outbox::Outbox;

/// Requests of one function that one turn takes.
pub const REQUESTS_PER_TURN: usize = 16;
/// A function with so many completions waiting for credit is not read from until it takes some. What can still come
/// for it then is bounded by what it holds, and what it has asked for already.
pub const OUTBOX_MAX: usize = 1024;
/// A credit goes out by itself when so many requests are consumed and nothing else told the host.
pub const CREDIT_AFTER: u64 = ENTRIES as u64 / 4;

/// Why a function is dropped.
#[derive(Debug, thiserror::Error)]
pub enum Offence {
    /// The rings.
    #[error(transparent)]
    Ring(#[from] Broken),
    /// A request.
    #[error("it posted a malformed request")]
    Malformed,
    /// The shared ring.
    #[error("it posted more requests than it has credit for")]
    Credit,
    /// It played the agent.
    #[error(transparent)]
    Impostor(#[from] Impostor),
}

impl From<Malformed> for Offence {
    fn from(_: Malformed) -> Self {
        Offence::Malformed
    }
}

/// Where a shard's words to the logic go.
pub trait Above {
    /// Adds one.
    fn say(&mut self, word: ToLogic);
}

/// To the logic on the same lcore, which reads them next.
impl Above for Vec<ToLogic> {
    #[inline]
    fn say(&mut self, word: ToLogic) {
        self.push(word);
    }
}

impl Above for Outlet<'_, ToLogic> {
    #[inline]
    fn say(&mut self, word: ToLogic) {
        self.push(word);
    }
}

/// A mapped function.
#[derive(Debug)]
pub struct Port {
    memory: FunctionMemory,
    /// Requests that were taken out of the shared ring and are not said to the logic.
    held: VecDeque<Raw>,
    /// How its requests come.
    queue: Kind,
    /// Vectors 0 (answers) and 1 (events); a host that looks for itself has none (SPEC 12.7).
    irqs: Option<[OwnedFd; 2]>,
    /// Completions that wait for credit.
    outbox: Outbox,
    /// An event was queued or pushed since the last interrupt on vector 1.
    event_due: bool,
    /// It broke the rules: not looked at any more.
    dropped: bool,
    way: Way,
}

/// The way to a function and back over a slow bus, and what is on it.
#[derive(Debug)]
struct Way {
    bus: Latency,
    requests: Delayed<Raw>,
    /// They are all there: somebody's word comes after them.
    hurried: bool,
    /// When `armed`, which has changed, is there.
    armed_ns: Option<u64>,
    /// Vectors.
    interrupts: Delayed<usize>,
}

/// Functions, by number, and whom to look at.
#[derive(Debug)]
pub struct Shard {
    ports: Vec<Option<Box<Port>>>,
    /// The numbers that are mapped here.
    mapped: Vec<u32>,
    counters: Arc<Counters>,
    pub(crate) intake: Intake,
    /// Whom this turn looks at; empty between turns.
    due: Vec<u32>,
    /// Who had more than the last turn took, or has something on its way.
    again: Vec<u32>,
    /// In this turn, something was on its way over a slow bus.
    under_way: bool,
}

impl Shard {
    /// Has no functions yet.
    #[must_use]
    pub fn new(intake: Intake, counters: Arc<Counters>) -> Self {
        let (ports, mapped, due, again) = Default::default();
        Shard { ports, mapped, counters, intake, due, again, under_way: false }
    }

    /// What this lcore counts.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Looks at a function from now on. The number must be free.
    pub fn map(&mut self, number: u32, port: Box<Port>) {
        let index = number as usize;
        if self.ports.len() <= index {
            self.ports.resize_with(index + 1, || None);
        }
        if let Some(place) = self.ports.get_mut(index) {
            *place = Some(port);
            self.mapped.push(number);
        }
    }

    /// Forgets a function.
    pub fn unmap(&mut self, number: u32) {
        if let Some(place) = self.ports.get_mut(number as usize) {
            *place = None;
        }
        self.mapped.retain(|n| *n != number);
        self.again.retain(|n| *n != number);
    }

    /// Whom to look at in this turn; to be given back by [`Shard::looked`]. `all`: everybody, whatever the hints say.
    pub fn due(&mut self, all: bool, now_us: u64) -> Vec<u32> {
        self.under_way = false;
        let mut due = std::mem::take(&mut self.due);
        if self.intake.scan_due(now_us) || all {
            due.extend(&self.mapped);
            self.again.clear();
        } else {
            due.push(AGENT_FUNCTION);
            due.append(&mut self.again);
            let (before, ports) = (due.len(), &self.ports);
            let ours = |number: u32| ports.get(number as usize).is_some_and(Option::is_some);
            self.intake.hints(|number| {
                if ours(number) {
                    due.push(number);
                }
            });
            self.counters.hints.add((due.len() - before) as u64);
        }
        due
    }

    /// The end of a turn over `due`. `first`: who comes first in the next one, because there was no room for its requests.
    pub fn looked(&mut self, mut due: Vec<u32>, first: Option<u32>) {
        due.clear();
        self.due = due;
        if let Some(at) = first.and_then(|first| self.mapped.iter().position(|n| *n == first)) {
            self.mapped.rotate_left(at);
        }
    }

    /// True if something was on its way in this turn: it will be there without anybody telling us.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// Announces in all functions' host memory whether the card sleeps and wants a doorbell.
    pub fn set_doorbell_wanted(&self, wanted: bool) {
        for port in self.ports.iter().flatten() {
            port.memory.set_doorbell_wanted(wanted);
        }
    }

    fn port(&self, number: u32) -> Option<&Port> {
        self.ports.get(number as usize)?.as_deref()
    }

    fn port_mut(&mut self, number: u32) -> Option<&mut Port> {
        self.ports.get_mut(number as usize)?.as_deref_mut()
    }

    /// Says what a function asks for, as much as one turn takes. True if there was anything.
    pub fn take(&mut self, number: u32, above: &mut impl Above) -> bool {
        let Some(port) = self.port_mut(number) else { return false };
        if port.dropped || port.outbox.len() >= OUTBOX_MAX {
            return false;
        }
        match port.take(number, above) {
            Ok(0) => return false,
            Ok(taken) => self.counters.requests.add(taken),
            Err(offence) => self.offends(number, offence, above),
        }
        true
    }

    /// Says all that a function has asked for.
    pub fn finish(&mut self, number: u32, above: &mut impl Above) {
        self.hurry(number, true);
        // Not for ever: a child of the process still has the ring mapped, too.
        for _ in 0..=ENTRIES as usize / REQUESTS_PER_TURN {
            if !self.take(number, above) {
                break;
            }
        }
        self.hurry(number, false);
    }

    fn hurry(&mut self, number: u32, hurried: bool) {
        if let Some(port) = self.port_mut(number) {
            port.way.hurried = hurried;
            port.way.requests.hurry();
        }
    }

    /// True when a request waits.
    #[must_use]
    pub fn has_request(&self, number: u32) -> bool {
        self.port(number).is_some_and(Port::has_request)
    }

    /// What is to be done for a function that was looked at, also without requests: the host may have given credit or asked for an
    /// interrupt.
    pub fn settle_due(&mut self, number: u32, above: &mut impl Above) {
        self.settle(number, above);
        if self.has_request(number) {
            self.look_again(number);
        }
    }

    /// In the next turn, whatever the hints say.
    fn look_again(&mut self, number: u32) {
        if self.intake.kind() != Kind::PerProcess && !self.again.contains(&number) {
            self.again.push(number);
        }
    }

    /// Finds out whose an entry of the shared ring is, and keeps it for [`Shard::take`]: in the order of the ring, as its own
    /// ring would.
    pub fn hold(&mut self, entry: &Sealed, above: &mut impl Above) -> Option<u32> {
        let number = entry.function();
        // An entry of nobody: of a process that is gone, for the most part.
        let port = self.port_mut(number).filter(|port| port.queue == Kind::Shared && !port.dropped)?;
        let offence = match port.memory.open(entry) {
            Ok(Some(_)) if port.held.len() >= ENTRIES as usize => Offence::Credit,
            Ok(Some(raw)) => {
                port.held.push_back(raw);
                self.counters.requests_shared.add(1);
                return Some(number);
            }
            // Who made it can't be told; whom it names has nothing to do with it.
            Ok(None) => {
                self.counters.forged.add(1);
                return None;
            }
            Err(broken) => broken.into(),
        };
        self.offends(number, offence, above);
        None
    }

    /// Brings what the logic said to the functions' outboxes and on from there.
    pub fn route(&mut self, out: &[Out], above: &mut impl Above) {
        for news in out {
            if let Some(port) = self.port_mut(news.function).filter(|port| !port.dropped) {
                let due_ns = port.way.bus.completion();
                // One that finds no room is told of at once.
                port.event_due |= news.completion.is_event() && (due_ns == 0 || !port.memory.has_room());
                port.outbox.push(news, due_ns);
            }
        }
        // News for one function mostly come in a row.
        for to_one in out.chunk_by(|a, b| a.function == b.function) {
            if let [Out { function, .. }, ..] = to_one {
                self.settle(*function, above);
            }
        }
    }

    /// Pushes what credit allows, tells our own credit, and interrupts the host if it asked for it.
    fn settle(&mut self, number: u32, above: &mut impl Above) {
        let Some(port) = self.ports.get_mut(number as usize).and_then(Option::as_deref_mut) else { return };
        if port.dropped {
            return;
        }
        match port.settle(&self.counters) {
            Ok(false) => {}
            Ok(true) => {
                self.under_way = true;
                self.look_again(number);
            }
            Err(broken) => self.offends(number, broken.into(), above),
        }
    }

    fn offends(&mut self, number: u32, offence: Offence, above: &mut impl Above) {
        self.drop_function(number);
        above.say(ToLogic::Offends { function: number, offence });
    }

    /// Looks no more at a function.
    pub fn drop_function(&mut self, number: u32) {
        if let Some(port) = self.port_mut(number) {
            port.dropped = true;
            port.outbox = Outbox::default();
            port.held.clear();
        }
    }
}

impl Port {
    /// Over a function's memory. `queue`: how its requests come. `irqs`: its vectors, if it has any. `bus`: how slow it is.
    #[must_use]
    pub fn new(memory: FunctionMemory, queue: Kind, irqs: Option<[OwnedFd; 2]>, bus: Profile) -> Self {
        let (held, outbox, requests, interrupts) = Default::default();
        let way = Way { bus: Latency::new(bus), requests, hurried: false, armed_ns: None, interrupts };
        Port { memory, held, queue, irqs, outbox, event_due: false, dropped: false, way }
    }

    fn take(&mut self, number: u32, above: &mut impl Above) -> Result<u64, Offence> {
        let mut taken = 0;
        for _ in 0..REQUESTS_PER_TURN {
            let Some(raw) = self.next_request()? else { break };
            taken += 1;
            let request = Request::from_raw(&raw)?;
            above.say(ToLogic::Request { function: number, token: raw.token, request });
        }
        Ok(taken)
    }

    /// The next request that is there.
    fn next_request(&mut self) -> Result<Option<Raw>, Broken> {
        if self.way.bus.is_none() {
            return self.posted_request();
        }
        let now_ns = self.way.bus.now_ns();
        while self.way.requests.len() < ENTRIES as usize
            && let Some(raw) = self.posted_request()?
        {
            let due_ns = if self.way.hurried { 0 } else { self.way.bus.request(now_ns, self.queue) };
            self.way.requests.push(due_ns, raw);
        }
        Ok(self.way.requests.pop(now_ns))
    }

    /// The next one that was posted, wherever this function's are.
    fn posted_request(&mut self) -> Result<Option<Raw>, Broken> {
        if self.queue != Kind::Shared {
            return self.memory.next_request();
        }
        let held = self.held.pop_front();
        if held.is_some() {
            self.memory.count_shared();
        }
        Ok(held)
    }

    fn has_request(&self) -> bool {
        let shared = self.queue == Kind::Shared;
        !self.dropped && if shared { !self.held.is_empty() } else { self.memory.has_request() }
    }

    /// True once `armed`, as it is now, has had its time to come here.
    fn armed_is_there(&mut self, now_ns: u64) -> bool {
        if self.way.bus.is_none() {
            return true;
        }
        if !self.memory.armed_changed() {
            return false;
        }
        let bus = &mut self.way.bus;
        let there = *self.way.armed_ns.get_or_insert_with(|| bus.posted(now_ns)) <= now_ns;
        if there {
            self.way.armed_ns = None;
        }
        there
    }

    /// True if something is on its way.
    fn settle(&mut self, counters: &Counters) -> Result<bool, Broken> {
        let now_ns = self.way.bus.now_ns();
        if self.armed_is_there(now_ns) && self.memory.look_at_armed()? {
            counters.armed.add(1);
        }
        while let Some((token, completion)) = self.outbox.front(now_ns) {
            if self.memory.push(&completion.to_raw(token)).is_err() {
                break;
            }
            self.outbox.pop();
            self.event_due |= completion.is_event();
            counters.count(&completion);
        }
        if self.memory.untold() >= CREDIT_AFTER && self.memory.push(&Completion::Credit.to_raw(0)).is_ok() {
            counters.count(&Completion::Credit);
        }
        self.interrupt(now_ns, counters);
        let way = &self.way;
        Ok(self.outbox.is_delayed(now_ns)
            || way.armed_ns.is_some()
            || !way.requests.is_empty()
            || !way.interrupts.is_empty())
    }

    /// Raises the vectors that are due, and those whose time on the bus is over.
    fn interrupt(&mut self, now_ns: u64, counters: &Counters) {
        let Some(vectors) = &self.irqs else { return };
        // An event that found no space counts, too: its process may sleep on data, and has to be made to read.
        let due = [self.memory.interrupt_due(), std::mem::take(&mut self.event_due)];
        for (vector, _) in due.into_iter().enumerate().filter(|(_, due)| *due) {
            self.way.interrupts.push(self.way.bus.interrupt(now_ns), vector);
            counters.irqs.add(1);
        }
        while let Some(vector) = self.way.interrupts.pop(now_ns) {
            vectors.get(vector).into_iter().for_each(interrupt);
        }
    }
}

/// Adds 1 to an eventfd. Not to one that is full: it is signalled, and must not be waited for. The process holds it,
/// too, so whether it blocks is asked first, whatever we set.
fn interrupt(eventfd: &OwnedFd) {
    let mut fds = [PollFd::new(eventfd, PollFlags::OUT)];
    if matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1)) {
        // An error means that nobody can be woken by it any more.
        let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
    }
}
