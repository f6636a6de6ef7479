//! One polling turn of the lcore that decides, with bounded work: requests in, decisions, completions out.
//!
//! Without shards on other lcores this lcore polls all functions itself. With them, function 0, the agent's, stays here, and every
//! other one belongs to the shard that its number says.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ring::bus::{AGENT_FUNCTION, FUNCTIONS_MAX, MAP_FDS};
use ring::msg::Request;
use ring::profile::Profile;
use ring::queue::shared::Sealed;
use ring::queue::{Kind, SHARED_ENTRIES};
use rustix::io::ioctl_fionbio;

use crate::counters::{Counters, Shown};
use crate::intake::{GAP_US, Intake, SHARED_PER_TURN};
use crate::link::{BURST, ShardEnd, ToLogic, ToShard};
use crate::logic::{Logic, Out};
use crate::mapping::{FunctionMemory, MapError};
use crate::shard::{Offence, Port, Shard};

/// Which of a card's shards, beside the logic's own, a function belongs to. The agent gives numbers in turn, so that processes are spread.
fn shard_of(function: u32, shards: usize) -> Option<usize> {
    if function == AGENT_FUNCTION { None } else { (function as usize).checked_rem(shards) }
}

/// The functions of this lcore, the links to the others, and the logic behind them.
#[derive(Debug)]
pub struct Poller<'r> {
    logic: Logic,
    local: Shard,
    shards: Vec<ShardEnd<'r>>,
    /// Shards that were asked to sleep and have not said that they do.
    awake: usize,
    /// The numbers that are mapped, on whatever lcore, and whether they are dropped for what they did.
    functions: BTreeMap<u32, bool>,
    counters: Arc<Counters>,
    epoch: u32,
    out: Vec<Out>,
    /// What was taken here, or heard from others, and is not decided.
    said: Vec<ToLogic>,
    /// What was taken out of the shared ring.
    found: Vec<Sealed>,
    /// Whose entries those are.
    touched: Vec<u32>,
    /// What the agent has asked for and is not decided, in its order.
    agent: VecDeque<(u32, Request)>,
    /// The first of that waits for a shard to say all that this function has asked for.
    draining: Option<u32>,
    /// Unmapped functions that the bus does not know of.
    unmapped: Vec<u32>,
    /// Functions that a shard is asked to let go of.
    unmapping: usize,
    /// Which shard is heard first.
    first: usize,
    /// A shard said so.
    crowded: bool,
    /// The bus that is imitated.
    profile: Profile,
}

impl<'r> Poller<'r> {
    /// Polls nothing yet. `epoch`: which incarnation of the coordinator this is. `shards`: links to other lcores.
    #[must_use]
    pub fn new(logic: Logic, shown: &Shown, epoch: u32, intake: Intake, shards: Vec<ShardEnd<'r>>) -> Self {
        let counters = shown.lcore(0);
        Poller {
            logic,
            local: Shard::new(intake, Arc::clone(&counters)),
            shards,
            awake: 0,
            functions: BTreeMap::new(),
            counters,
            epoch,
            out: Vec::new(),
            said: Vec::new(),
            found: Vec::new(),
            touched: Vec::new(),
            agent: VecDeque::new(),
            draining: None,
            unmapped: Vec::new(),
            unmapping: 0,
            first: 0,
            crowded: false,
            profile: Profile::NONE,
        }
    }

    /// The same, with functions that are behind a bus as slow as `profile`.
    #[must_use]
    pub fn with_profile(self, profile: Profile) -> Self {
        Poller { profile, ..self }
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
        if number >= FUNCTIONS_MAX || self.functions.contains_key(&number) {
            return Err(MapError::Header("number of the function"));
        }
        memory.set_epoch(self.epoch);
        let queue = if number == AGENT_FUNCTION { Kind::PerProcess } else { self.local.intake.kind() };
        if queue == Kind::Shared {
            self.local.intake.watch(number, memory.pushing());
        }
        self.functions.insert(number, false);
        let bus = self.profile.with_seed(self.profile.seed.wrapping_add(number));
        let port = Box::new(Port::new(memory, queue, irqs, bus));
        match self.shard_of(number) {
            Some(shard) => shard.to.push(ToShard::Map(number, port)),
            None => self.local.map(number, port),
        }
        Ok(())
    }

    /// Unmaps a function, whose process is gone, and its holdings go: the number may be mapped again before the agent's `Detach` is
    /// read. [`Poller::next_unmapped`] says when that is done; nothing else may be mapped before.
    pub fn unmap(&mut self, number: u32, now_us: u64) {
        self.take_all_shared(now_us);
        match self.shard_of(number) {
            Some(shard) => {
                shard.to.push(ToShard::Unmap(number));
                self.unmapping += 1;
            }
            None => {
                self.finish(number, now_us);
                self.local.unmap(number);
                self.let_go(number);
                self.route_and_hear(now_us);
            }
        }
        self.flush();
    }

    /// The next function that is unmapped for good.
    pub fn next_unmapped(&mut self) -> Option<u32> {
        self.unmapped.pop()
    }

    /// True while a shard is asked to let go of a function.
    #[must_use]
    pub fn is_unmapping(&self) -> bool {
        self.unmapping > 0
    }

    /// True when the agent's own function broke the rules: without an agent there is no coordinator.
    #[must_use]
    pub fn agent_dropped(&self) -> bool {
        self.functions.get(&AGENT_FUNCTION) == Some(&true)
    }

    /// One turn: takes what is in the shared ring, looks at the functions that the chosen queue says to look at, and hears the other
    /// shards. True if there was anything to do.
    pub fn turn(&mut self, now_us: u64) -> bool {
        self.visit(false, now_us)
    }

    /// A turn that looks at every function of this lcore, whatever the hints say: before sleeping.
    pub fn scan(&mut self, now_us: u64) -> bool {
        self.visit(true, now_us)
    }

    fn visit(&mut self, all: bool, now_us: u64) -> bool {
        let mut worked = self.has_room() && self.take_shared(now_us, GAP_US);
        let due = self.local.due(all, now_us);
        for &number in &due {
            worked |= self.serve(number, now_us);
        }
        self.local.looked(due, None);
        worked |= self.hear_shards(now_us);
        if self.logic.next_deadline_us().is_some_and(|deadline_us| deadline_us <= now_us) {
            self.logic.tick(now_us, &mut self.out);
            self.route_and_hear(now_us);
            worked = true;
        }
        self.flush();
        worked || self.local.is_under_way()
    }

    /// Lets `talk` bring the logic words of other hosts, and take what it has for them. What it says to functions here goes on its way.
    pub fn exchange(&mut self, now_us: u64, talk: impl FnOnce(&mut Logic, &mut Vec<Out>)) {
        talk(&mut self.logic, &mut self.out);
        self.route_and_hear(now_us);
        self.flush();
    }

    /// The earliest time at which there is something to do without being called.
    #[must_use]
    pub fn next_deadline_us(&self) -> Option<u64> {
        self.logic.next_deadline_us().into_iter().chain(self.local.intake.next_deadline_us()).min()
    }

    /// Announces in the host memory of this lcore's functions whether the card sleeps and wants a doorbell, and sends the other
    /// shards to sleep, or wakes them.
    pub fn set_doorbell_wanted(&mut self, wanted: bool) {
        self.local.set_doorbell_wanted(wanted);
        for shard in &mut self.shards {
            if wanted {
                shard.to.push(ToShard::Sleep);
            } else {
                shard.bell.ring();
            }
        }
        if wanted {
            self.awake = self.shards.len();
            self.flush();
        }
    }

    /// True once every other shard that was sent to sleep has said that it does.
    #[must_use]
    pub fn shards_sleep(&self) -> bool {
        self.awake == 0
    }

    /// Whether a shard found since the last call that its core is not its own.
    pub fn was_crowded(&mut self) -> bool {
        std::mem::take(&mut self.crowded)
    }

    /// The other lcore that `function` belongs to, if it is not this one.
    fn shard_of(&mut self, function: u32) -> Option<&mut ShardEnd<'r>> {
        let index = shard_of(function, self.shards.len())?;
        self.shards.get_mut(index)
    }

    /// What a function of this lcore asks for, decided, and what it is told.
    fn serve(&mut self, number: u32, now_us: u64) -> bool {
        let mut said = std::mem::take(&mut self.said);
        // The agent's next word comes after the one that waits.
        let waits = number == AGENT_FUNCTION && self.draining.is_some();
        let taken = !waits && self.local.take(number, &mut said);
        self.hear_all(&mut said, now_us);
        self.local.settle_due(number, &mut said);
        self.hear_all(&mut said, now_us);
        self.said = said;
        taken
    }

    /// What the shards on other lcores say. True if it was about a function.
    fn hear_shards(&mut self, now_us: u64) -> bool {
        let (mut worked, count) = (false, self.shards.len());
        let mut said = std::mem::take(&mut self.said);
        // Another one first in each turn: there may not be room for all.
        self.first = (self.first + 1).checked_rem(count).unwrap_or(0);
        for index in (self.first..count).chain(0..self.first) {
            if !self.has_room() {
                break;
            }
            let Some(shard) = self.shards.get_mut(index) else { break };
            if shard.from.burst(&mut said, BURST) > 0 {
                worked |= said.iter().any(|word| !matches!(word, ToLogic::Asleep | ToLogic::Crowded));
                self.hear_all(&mut said, now_us);
                self.flush();
            }
        }
        self.said = said;
        worked
    }

    /// Whether what the next words cause can be sent. (What they cause at once is kept in any case.)
    fn has_room(&self) -> bool {
        !self.shards.iter().any(|shard| shard.to.is_full())
    }

    fn flush(&mut self) {
        for shard in &mut self.shards {
            shard.to.flush();
        }
    }

    /// Decides on all of `said`, and on what comes of that.
    fn hear_all(&mut self, said: &mut Vec<ToLogic>, now_us: u64) {
        while !said.is_empty() {
            for word in said.drain(..) {
                self.hear(word, now_us);
            }
            self.route(said);
        }
    }

    fn hear(&mut self, word: ToLogic, now_us: u64) {
        match word {
            ToLogic::Request { function: AGENT_FUNCTION, token, request } => {
                self.agent.push_back((token, request));
                self.serve_agent(now_us);
            }
            ToLogic::Request { function, token, request } => self.decide(function, token, request, now_us),
            ToLogic::Offends { function, offence } => self.expel(function, &offence),
            ToLogic::Drained { function } if self.draining == Some(function) => {
                self.draining = None;
                if let Some((token, request)) = self.agent.pop_front() {
                    self.decide(AGENT_FUNCTION, token, request, now_us);
                }
                self.serve_agent(now_us);
            }
            ToLogic::Drained { .. } => {}
            ToLogic::Unmapped { function } => {
                self.unmapping -= 1;
                self.let_go(function);
            }
            ToLogic::Asleep => self.awake -= 1,
            ToLogic::Crowded => self.crowded = true,
        }
    }

    /// Does what the agent asks for. Its word comes after what the process that it is about asked for before: one that forks has
    /// announced its child before the child attaches, and before it ends itself, as daemons do.
    fn serve_agent(&mut self, now_us: u64) {
        while self.draining.is_none() {
            let Some(&(token, request)) = self.agent.front() else { break };
            if let Some(process) = about(&request).filter(|process| self.functions.contains_key(process)) {
                self.take_all_shared(now_us);
                if let Some(shard) = self.shard_of(process) {
                    shard.to.push(ToShard::Drain(process));
                    self.draining = Some(process);
                    break;
                }
                self.finish(process, now_us);
            }
            self.agent.pop_front();
            self.decide(AGENT_FUNCTION, token, request, now_us);
        }
    }

    fn decide(&mut self, function: u32, token: u32, request: Request, now_us: u64) {
        if matches!(request, Request::Open { .. }) {
            self.counters.connects.add(1);
            self.counters.connects_ahead.add(1);
        }
        if let Err(impostor) = self.logic.handle(function, token, request, now_us, &mut self.out) {
            self.expel(function, &impostor.into());
            match self.shard_of(function) {
                Some(shard) => shard.to.push(ToShard::Drop(function)),
                None => self.local.drop_function(function),
            }
        }
    }

    /// Detaches an offender, as if its process were gone.
    fn expel(&mut self, number: u32, offence: &Offence) {
        // Once: what it said before it was dropped may offend again.
        let Some(dropped @ false) = self.functions.get_mut(&number) else { return };
        *dropped = true;
        let pid = self.logic.functions().get(number).map_or(0, |f| f.identity.pid);
        tracing::error!("function {number} (process {pid}) is dropped: {offence}");
        self.counters.functions_dropped.add(1);
        self.logic.detach(number, &mut self.out);
    }

    /// Nobody looks at the function any more.
    fn let_go(&mut self, number: u32) {
        self.functions.remove(&number);
        self.local.intake.forget(number);
        self.logic.detach(number, &mut self.out);
        self.unmapped.push(number);
    }

    /// Brings what the logic said on its way. `said`: who turns out to break the rules.
    fn route(&mut self, said: &mut Vec<ToLogic>) {
        let mut out = std::mem::take(&mut self.out);
        if self.shards.is_empty() {
            self.local.route(&out, said);
        } else {
            for news in &out {
                match self.shard_of(news.function) {
                    Some(shard) => shard.to.push(ToShard::Out(*news)),
                    None => self.local.route(std::slice::from_ref(news), said),
                }
            }
        }
        out.clear();
        self.out = out;
    }

    /// As [`Poller::route`], where nobody has said anything before.
    fn route_and_hear(&mut self, now_us: u64) {
        let mut said = std::mem::take(&mut self.said);
        self.route(&mut said);
        self.hear_all(&mut said, now_us);
        self.said = said;
    }

    /// Empties the shared ring, within bounds, and does what stands there, or gives it to whose it is. True if there was anything.
    fn take_shared(&mut self, now_us: u64, patience_us: u64) -> bool {
        let mut found = std::mem::take(&mut self.found);
        let gaps = self.local.intake.take(now_us, patience_us, &mut found);
        self.counters.gaps.add(gaps);
        let worked = !found.is_empty();
        self.counters.batches_shared.add(u64::from(worked));
        let mut said = std::mem::take(&mut self.said);
        let mut touched = std::mem::take(&mut self.touched);
        for entry in found.drain(..) {
            match self.shard_of(entry.function()) {
                Some(shard) => shard.to.push(ToShard::Held(entry)),
                None => touched.extend(self.local.hold(&entry, &mut said)),
            }
        }
        self.found = found;
        self.hear_all(&mut said, now_us);
        self.said = said;
        for number in touched.drain(..) {
            self.serve(number, now_us);
        }
        self.touched = touched;
        worked
    }

    /// Takes all that stands in the shared ring by now, perhaps behind somebody's gap.
    fn take_all_shared(&mut self, now_us: u64) {
        for _ in 0..=SHARED_ENTRIES / SHARED_PER_TURN {
            if !self.take_shared(now_us, 0) {
                break;
            }
        }
    }

    /// Decides on all that a function of this lcore has asked for.
    fn finish(&mut self, number: u32, now_us: u64) {
        if number == AGENT_FUNCTION {
            return;
        }
        let mut said = std::mem::take(&mut self.said);
        self.local.finish(number, &mut said);
        self.hear_all(&mut said, now_us);
        self.said = said;
    }
}

/// Whose requests so far an agent's request has to follow.
fn about(request: &Request) -> Option<u32> {
    match *request {
        Request::Detach { function } | Request::StandsFor { function, .. } => Some(function),
        Request::Attach { parent, .. } | Request::Child { parent, .. } => Some(parent),
        _ => None,
    }
}
