//! One polling turn over all mapped functions, with bounded work: requests in, completions and interrupts out.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ring::bus::{AGENT_FUNCTION, FUNCTIONS_MAX, MAP_FDS};
use ring::msg::{Completion, Malformed, Request};
use ring::queue::shared::{Found, Sealed};
use ring::queue::{Kind, SHARED_ENTRIES};
use ring::window::{ENTRIES, IrqGate, Raw};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionbio;

use crate::counters::Shown;
use crate::intake::{GAP_US, Intake};
use crate::logic::{Impostor, Logic, Out};
use crate::mapping::{Broken, FunctionMemory, MapError};
use crate::outbox::Outbox;

/// Requests of one function that one turn takes.
pub const REQUESTS_PER_TURN: usize = 16;
/// Entries of the shared ring that one turn takes.
pub const SHARED_PER_TURN: usize = 256;
/// A function with so many completions waiting for credit is not read from until it takes some. What can still come
/// for it then is bounded by what it holds.
pub const OUTBOX_MAX: usize = 1024;
/// A credit goes out by itself when so many requests are consumed and nothing else told the host.
pub const CREDIT_AFTER: u64 = ENTRIES as u64 / 4;

/// Why a function is dropped.
#[derive(Debug, thiserror::Error)]
enum Offence {
    #[error(transparent)]
    Ring(#[from] Broken),
    #[error("it posted a malformed request")]
    Malformed,
    #[error("it posted more requests than it has credit for")]
    Credit,
    #[error(transparent)]
    Impostor(#[from] Impostor),
}

impl From<Malformed> for Offence {
    fn from(_: Malformed) -> Self {
        Offence::Malformed
    }
}

/// A mapped function.
#[derive(Debug)]
struct Port {
    memory: FunctionMemory,
    /// Requests that were taken out of the shared ring and are not decided.
    held: VecDeque<Raw>,
    /// Its requests come by the shared ring.
    shared: bool,
    /// Vectors 0 (answers) and 1 (events); a host that looks for itself has none (SPEC 12.7).
    irqs: Option<[OwnedFd; 2]>,
    gate: IrqGate,
    /// Completions that wait for credit.
    outbox: Outbox,
    /// An event was queued or pushed since the last interrupt on vector 1.
    event_due: bool,
    /// It broke the rules: not looked at any more.
    dropped: bool,
}

/// All mapped functions, and the logic behind them.
#[derive(Debug)]
pub struct Poller {
    logic: Logic,
    /// By function number.
    ports: Vec<Option<Port>>,
    /// The numbers that are mapped.
    mapped: Vec<u32>,
    shown: Arc<Shown>,
    epoch: u32,
    out: Vec<Out>,
    intake: Intake,
    /// Whom this turn looks at.
    due: Vec<u32>,
    /// Who had more than the last turn took.
    again: Vec<u32>,
    /// Whose entries were taken out of the shared ring.
    touched: Vec<u32>,
    /// Functions that broke the rules and have yet to be detached.
    offenders: Vec<(u32, Offence)>,
}

impl Poller {
    /// Polls nothing yet. `epoch`: which incarnation of the coordinator this is.
    #[must_use]
    pub fn new(logic: Logic, shown: Arc<Shown>, epoch: u32, intake: Intake) -> Self {
        Poller {
            logic,
            ports: Vec::new(),
            mapped: Vec::new(),
            shown,
            epoch,
            out: Vec::new(),
            intake,
            due: Vec::new(),
            again: Vec::new(),
            touched: Vec::new(),
            offenders: Vec::new(),
        }
    }

    /// The decisions' state.
    #[must_use]
    pub fn logic(&self) -> &Logic {
        &self.logic
    }

    /// Maps function `number` from the descriptors that the bus brought: window, host memory, vectors 0 and 1.
    ///
    /// # Errors
    /// [`MapError`]; a number that is mapped already is a bad header.
    pub fn map(&mut self, number: u32, fds: Vec<OwnedFd>) -> Result<(), MapError> {
        let fds: [OwnedFd; MAP_FDS] = fds.try_into().map_err(|_| MapError::Header("set of descriptors"))?;
        let [window, host, irq0, irq1] = fds;
        let memory = FunctionMemory::map(number, window.as_fd(), host.as_fd())?;
        for irq in [&irq0, &irq1] {
            ioctl_fionbio(irq, true).map_err(|e| MapError::Kernel("interrupt", e.into()))?;
        }
        self.add(number, memory, Some([irq0, irq1]))
    }

    /// Polls a function from now on, over memory that is mapped already. `irqs`: its vectors, if it has any.
    ///
    /// # Errors
    /// A number that is mapped already, or too high.
    pub fn add(
        &mut self,
        number: u32,
        memory: FunctionMemory,
        irqs: Option<[OwnedFd; 2]>,
    ) -> Result<(), MapError> {
        if number >= FUNCTIONS_MAX || self.port(number).is_some() {
            return Err(MapError::Header("number of the function"));
        }
        memory.set_epoch(self.epoch);
        let index = number as usize;
        if self.ports.len() <= index {
            self.ports.resize_with(index + 1, || None);
        }
        if let Some(place) = self.ports.get_mut(index) {
            *place = Some(Port {
                memory,
                held: VecDeque::new(),
                shared: self.intake.kind() == Kind::Shared && number != AGENT_FUNCTION,
                irqs,
                gate: IrqGate::default(),
                outbox: Outbox::default(),
                event_due: false,
                dropped: false,
            });
            self.mapped.push(number);
        }
        Ok(())
    }

    /// Unmaps a function, whose process is gone. Its holdings go at once: the number may be mapped again before the
    /// agent's `Detach` is read.
    pub fn unmap(&mut self, number: u32, now_us: u64) {
        self.finish(number, now_us);
        if let Some(place) = self.ports.get_mut(number as usize) {
            *place = None;
        }
        self.mapped.retain(|n| *n != number);
        self.again.retain(|n| *n != number);
        self.logic.detach(number, &mut self.out);
        self.route();
        self.expel();
    }

    /// True when the agent's own function broke the rules: without an agent there is no coordinator.
    #[must_use]
    pub fn agent_dropped(&self) -> bool {
        self.port(AGENT_FUNCTION).is_some_and(|port| port.dropped)
    }

    /// One turn: takes what is in the shared ring, and looks at the functions that the chosen queue says to look at. True if there
    /// was anything to do.
    pub fn turn(&mut self, now_us: u64) -> bool {
        let all = self.intake.scan_due(now_us);
        self.visit(all, now_us)
    }

    /// A turn that looks at every function, whatever the hints say: before sleeping.
    pub fn scan(&mut self, now_us: u64) -> bool {
        self.visit(true, now_us)
    }

    fn visit(&mut self, all: bool, now_us: u64) -> bool {
        let mut worked = self.take_shared(now_us, GAP_US);
        let mut due = std::mem::take(&mut self.due);
        if all {
            due.extend(&self.mapped);
            self.again.clear();
        } else {
            due.push(AGENT_FUNCTION);
            due.append(&mut self.again);
            let before = due.len();
            self.intake.hints(&mut due);
            self.shown.counters.hints.add((due.len() - before) as u64);
        }
        for number in due.drain(..) {
            worked |= self.serve(number, now_us);
        }
        self.due = due;
        if self.logic.next_deadline_us().is_some_and(|deadline_us| deadline_us <= now_us) {
            self.logic.tick(now_us, &mut self.out);
            self.route();
            worked = true;
        }
        self.expel();
        worked
    }

    /// The earliest time at which there is something to do without being called.
    #[must_use]
    pub fn next_deadline_us(&self) -> Option<u64> {
        self.logic.next_deadline_us().into_iter().chain(self.intake.next_deadline_us()).min()
    }

    /// Announces in all functions' host memory whether the card sleeps and wants a doorbell.
    pub fn set_doorbell_wanted(&self, wanted: bool) {
        for port in self.ports.iter().flatten() {
            port.memory.set_doorbell_wanted(wanted);
        }
    }

    fn port(&self, number: u32) -> Option<&Port> {
        self.ports.get(number as usize)?.as_ref()
    }

    fn port_mut(&mut self, number: u32) -> Option<&mut Port> {
        self.ports.get_mut(number as usize)?.as_mut()
    }

    fn serve(&mut self, number: u32, now_us: u64) -> bool {
        let taken = match self.take_requests(number, now_us) {
            Ok(taken) => taken,
            Err(offence) => {
                self.offends(number, offence);
                // What its good requests before that said to others.
                self.route();
                return true;
            }
        };
        if taken > 0 {
            self.shown.counters.requests.add(taken);
            self.route();
        }
        // Also without requests: the host may have given credit or asked for an interrupt.
        self.settle(number);
        let left = self.intake.kind() != Kind::PerProcess && self.port(number).is_some_and(Port::has_request);
        if left && !self.again.contains(&number) {
            self.again.push(number);
        }
        taken > 0
    }

    /// Empties the shared ring, within bounds, and does what stands there. True if there was anything.
    fn take_shared(&mut self, now_us: u64, patience_us: u64) -> bool {
        if self.intake.kind() != Kind::Shared {
            return false;
        }
        let mut touched = std::mem::take(&mut self.touched);
        for _ in 0..SHARED_PER_TURN {
            match self.intake.take(now_us, patience_us) {
                Found::Entry(entry) => touched.extend(self.hold(&entry)),
                Found::Gap(ticket) => {
                    self.shown.counters.gaps.add(1);
                    let pushing = self.mapped.iter().filter_map(|n| Some((*n, self.pushing(*n)?)));
                    let suspects = pushing.filter(|(_, pushing)| pushing % 2 == 1).collect();
                    self.intake.lost(ticket, suspects);
                }
                Found::Nothing => break,
            }
        }
        self.intake.tell();
        let (mut late, ports) = (Vec::new(), &self.ports);
        let pushing = |n: u32| Some(ports.get(n as usize)?.as_ref()?.memory.pushing());
        self.intake.resolve(now_us, pushing, &mut late);
        touched.extend(late.iter().filter_map(|entry| self.hold(entry)));
        let worked = !touched.is_empty();
        for number in touched.drain(..) {
            self.serve(number, now_us);
        }
        self.touched = touched;
        worked
    }

    /// Finds out whose an entry of the shared ring is, and keeps it for [`Poller::serve`]: in the order of the ring, as its own
    /// ring would.
    fn hold(&mut self, entry: &Sealed) -> Option<u32> {
        let number = entry.function();
        // An entry of nobody: of a process that is gone, for the most part.
        let port = self.port_mut(number).filter(|port| port.shared && !port.dropped)?;
        let offence = match port.memory.open(entry) {
            Ok(Some(_)) if port.held.len() >= ENTRIES as usize => Offence::Credit,
            Ok(Some(raw)) => {
                port.held.push_back(raw);
                self.shown.counters.requests_shared.add(1);
                return Some(number);
            }
            // Who made it can't be told; whom it names has nothing to do with it.
            Ok(None) => {
                self.shown.counters.forged.add(1);
                return None;
            }
            Err(broken) => broken.into(),
        };
        self.offends(number, offence);
        None
    }

    fn pushing(&self, number: u32) -> Option<u64> {
        Some(self.port(number)?.memory.pushing())
    }

    fn take_requests(&mut self, number: u32, now_us: u64) -> Result<u64, Offence> {
        let mut taken = 0;
        if self.port(number).is_none_or(|port| port.dropped || port.outbox.len() >= OUTBOX_MAX) {
            return Ok(0);
        }
        for _ in 0..REQUESTS_PER_TURN {
            let Some(port) = self.port_mut(number) else { break };
            let Some(raw) = port.next_request()? else { break };
            taken += 1;
            let request = Request::from_raw(&raw)?;
            // The agent's word comes after what the process that it is about asked for before.
            match (number, request) {
                (AGENT_FUNCTION, Request::Detach { function }) => self.finish(function, now_us),
                (AGENT_FUNCTION, Request::Attach { parent, .. }) => self.finish(parent, now_us),
                _ => {}
            }
            self.logic.handle(number, raw.token, request, now_us, &mut self.out)?;
        }
        Ok(taken)
    }

    /// Does what a process asked for so far. One that forks has announced its child before the child attaches, and before it
    /// ends itself, as daemons do.
    fn finish(&mut self, number: u32, now_us: u64) {
        // What it published stands in the shared ring by now, perhaps behind somebody's gap.
        for _ in 0..=SHARED_ENTRIES / SHARED_PER_TURN {
            if !self.take_shared(now_us, 0) {
                break;
            }
        }
        // Not for ever: a child of the process still has the ring mapped, too.
        for _ in 0..=ENTRIES as usize / REQUESTS_PER_TURN {
            if number == AGENT_FUNCTION || !self.serve(number, now_us) {
                break;
            }
        }
    }

    /// Brings what the logic said to the functions' outboxes and on from there.
    fn route(&mut self) {
        let mut out = std::mem::take(&mut self.out);
        for news in &out {
            if let Some(port) = self.port_mut(news.function).filter(|port| !port.dropped) {
                port.event_due |= news.completion.is_event();
                port.outbox.push(news);
            }
        }
        // News for one function mostly come in a row.
        for to_one in out.chunk_by(|a, b| a.function == b.function) {
            if let [Out { function, .. }, ..] = to_one {
                self.settle(*function);
            }
        }
        out.clear();
        self.out = out;
    }

    /// Pushes what credit allows, tells our own credit, and interrupts the host if it asked for it.
    fn settle(&mut self, number: u32) {
        let shown = Arc::clone(&self.shown);
        let Some(port) = self.port_mut(number).filter(|port| !port.dropped) else { return };
        if let Err(broken) = port.settle(&shown) {
            self.offends(number, broken.into());
        }
    }

    /// Looks no more at a function; [`Poller::expel`] does the rest.
    fn offends(&mut self, number: u32, offence: Offence) {
        if let Some(port) = self.port_mut(number) {
            port.dropped = true;
            port.outbox = Outbox::default();
            port.held.clear();
            self.offenders.push((number, offence));
        }
    }

    /// Detaches the offenders, as if their processes were gone. The news of that may reveal more of them.
    fn expel(&mut self) {
        while let Some((number, offence)) = self.offenders.pop() {
            let pid = self.logic.functions().get(number).map_or(0, |f| f.identity.pid);
            tracing::error!("function {number} (process {pid}) is dropped: {offence}");
            self.shown.counters.functions_dropped.add(1);
            self.logic.detach(number, &mut self.out);
            self.route();
        }
    }
}

impl Port {
    /// The next request, from wherever this function's come.
    fn next_request(&mut self) -> Result<Option<Raw>, Broken> {
        if !self.shared {
            return self.memory.next_request();
        }
        let held = self.held.pop_front();
        if held.is_some() {
            self.memory.count_shared();
        }
        Ok(held)
    }

    fn has_request(&self) -> bool {
        !self.dropped && if self.shared { !self.held.is_empty() } else { self.memory.has_request() }
    }

    fn settle(&mut self, shown: &Shown) -> Result<(), Broken> {
        let armed = self.memory.read_armed()?;
        while let Some((token, completion)) = self.outbox.front() {
            if self.memory.push(&completion.to_raw(token)).is_err() {
                break;
            }
            self.outbox.pop();
            self.event_due |= completion.is_event();
            shown.counters.count(&completion);
        }
        if self.memory.untold() >= CREDIT_AFTER && self.memory.push(&Completion::Credit.to_raw(0)).is_ok() {
            shown.counters.count(&Completion::Credit);
        }
        let Some([answers, events]) = &self.irqs else { return Ok(()) };
        if self.gate.should_fire(armed, self.memory.pushed()) {
            interrupt(answers);
            shown.counters.irqs.add(1);
        }
        // An event that found no space counts, too: its process may sleep on data, and has to be made to read.
        if std::mem::take(&mut self.event_due) {
            interrupt(events);
            shown.counters.irqs.add(1);
        }
        Ok(())
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
