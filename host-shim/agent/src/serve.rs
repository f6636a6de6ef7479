//! The agent: one thread, one epoll set, asleep unless a process comes, asks or goes, or the card
//! says something.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use emulator::{BootError, BootOptions, Card, CardEvent, CardGone};
use ring::attach::Fault;
use ring::msg::Completion;
use rustix::event::{Timespec, epoll};

use crate::address::{Address, BindError, Bound};
use crate::clients::Clients;
use crate::death::Departed;
use crate::function::Function;
use crate::groups::Groups;
use crate::relay::Relays;
use crate::report::Totals;

/// Events taken from the kernel at once.
const EVENTS_PER_TURN: usize = 128;

/// How an agent serves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it listens.
    pub address: Address,
    /// End after this long without processes and leases.
    pub idle_exit: Option<Duration>,
    /// The card.
    pub boot: BootOptions,
}

/// Why an agent did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The card.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The event loop.
    #[error("the agent could not set up its event loop: {0}")]
    Io(#[from] io::Error),
}

/// Why an agent ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// Fate sharing: without coordinator there is nothing to serve.
    #[error("{0}; existing connections go on, new ones use the kernel")]
    Card(#[from] CardGone),
    /// It writes nonsense.
    #[error(transparent)]
    Ring(#[from] emulator::agent_ring::RingFault),
    /// The event loop failed.
    #[error("the agent's event loop failed: {0}")]
    Io(#[from] io::Error),
}

/// How serving ended, as it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// For good.
    Ended,
    /// The card was reset: [`Agent::reset`] goes on.
    Reset,
}

/// What an epoll event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    /// Somebody connects.
    Listener,
    /// SIGTERM, SIGINT or SIGHUP came.
    Signal,
    /// The card has bus messages.
    Bus,
    /// The coordinator has ended.
    CardDeath,
    /// The coordinator said something on stderr.
    Voice,
    /// Completions for function 0.
    Answers,
    /// A client socket.
    Client(u32),
    /// The process of a function has ended.
    Death(u32),
    /// Interrupt vector 1 of a function.
    Events(u32),
}

impl Watch {
    fn data(self) -> epoll::EventData {
        let (kind, id) = match self {
            Watch::Listener => (0u64, 0),
            Watch::Signal => (1, 0),
            Watch::Bus => (2, 0),
            Watch::CardDeath => (3, 0),
            Watch::Voice => (4, 0),
            Watch::Answers => (5, 0),
            Watch::Client(id) => (6, id),
            Watch::Death(f) => (7, f),
            Watch::Events(f) => (8, f),
        };
        epoll::EventData::new_u64(kind << 32 | u64::from(id))
    }

    #[allow(clippy::cast_possible_truncation)] // the low half, as packed above
    fn from_data(data: epoll::EventData) -> Option<Watch> {
        let id = data.u64() as u32;
        Some(match data.u64() >> 32 {
            0 => Watch::Listener,
            1 => Watch::Signal,
            2 => Watch::Bus,
            3 => Watch::CardDeath,
            4 => Watch::Voice,
            5 => Watch::Answers,
            6 => Watch::Client(id),
            7 => Watch::Death(id),
            8 => Watch::Events(id),
            _ => return None,
        })
    }
}

/// The epoll set.
#[derive(Debug)]
pub(crate) struct Poller(OwnedFd);

impl Poller {
    fn new() -> io::Result<Poller> {
        Ok(Poller(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Level-triggered.
    pub(crate) fn watch(&self, fd: BorrowedFd<'_>, watch: Watch) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, watch.data(), epoll::EventFlags::IN)?)
    }

    /// Each write to an eventfd is reported once; nothing is read from it.
    pub(crate) fn watch_edges(&self, fd: BorrowedFd<'_>, watch: Watch) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, watch.data(), epoll::EventFlags::IN | epoll::EventFlags::ET)?)
    }

    /// Needed before closing a descriptor that other processes hold as well: the kernel would go on
    /// reporting it.
    pub(crate) fn forget(&self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.0, fd);
    }

    fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<Watch>> {
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        // Rounded up, so that a deadline has passed when the wait is over.
        let timeout = timeout.and_then(|t| Timespec::try_from(t + Duration::from_millis(1)).ok());
        match epoll::wait(&self.0, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        }
        Ok(events.iter().filter_map(|e| Watch::from_data(e.data)).collect())
    }
}

/// A serving agent.
pub struct Agent {
    pub(crate) poller: Poller,
    pub(crate) address: Address,
    pub(crate) listener: Bound,
    pub(crate) card: Card,
    pub(crate) clients: Clients,
    pub(crate) functions: BTreeMap<u32, Function>,
    pub(crate) last_function: u32,
    pub(crate) groups: Groups,
    pub(crate) departed: Departed,
    pub(crate) relays: Relays,
    /// Counters of ended processes by user.
    pub(crate) retired: BTreeMap<u32, Totals>,
    pub(crate) up_since: Instant,
    pub(crate) own_uid: u32,
    /// The card is to fail.
    pub(crate) fault: Option<Fault>,
    /// Until when it does nothing.
    stuck_until: Option<Instant>,
    /// Kept for the poller, which watches it.
    _signals: UnixStream,
    idle_exit: Option<Duration>,
    idle_since: Option<Instant>,
}

impl Agent {
    /// Takes the address, boots the card. Clients may connect from the first moment; they are served
    /// by [`Agent::serve`].
    ///
    /// # Errors
    /// [`StartError`], one sentence.
    pub fn start(settings: &Settings) -> Result<Agent, StartError> {
        let listener = settings.address.bind()?;
        let signals = watch_signals()?;
        raise_descriptor_limit();
        let mut card = Card::boot(&settings.boot)?;
        let poller = Poller::new()?;
        poller.watch(listener.socket.as_fd(), Watch::Listener)?;
        poller.watch(signals.as_fd(), Watch::Signal)?;
        poller.watch(card.bus(), Watch::Bus)?;
        poller.watch(card.death(), Watch::CardDeath)?;
        if let Some(voice) = card.voice() {
            poller.watch(voice.fd(), Watch::Voice)?;
        }
        poller.watch(card.ring().interrupt(), Watch::Answers)?;
        card.ring().rearm();
        Ok(Agent {
            poller,
            address: settings.address.clone(),
            listener,
            card,
            clients: Clients::new()?,
            functions: BTreeMap::new(),
            last_function: 0,
            groups: Groups::new(settings.boot.far_ring_bytes()),
            departed: Departed::default(),
            relays: Relays::default(),
            retired: BTreeMap::new(),
            up_since: Instant::now(),
            own_uid: rustix::process::geteuid().as_raw(),
            fault: None,
            stuck_until: None,
            _signals: signals,
            idle_exit: settings.idle_exit,
            idle_since: None,
        })
    }

    /// Another agent with a fresh card at the same place, for the programs that this one's leases belong to. They attach to it by
    /// themselves.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn reset(mut self, settings: &Settings) -> Result<Agent, StartError> {
        let leases = self.clients.take_leases();
        drop(self);
        let mut agent = Agent::start(settings)?;
        for (socket, uid) in leases {
            agent.keep_lease(socket, uid);
        }
        Ok(agent)
    }

    /// The card.
    #[must_use]
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Serves until a signal asks to end, or nobody has needed the agent for long enough. Dropping the
    /// agent afterwards ends the coordinator and leaves nothing behind.
    ///
    /// # Errors
    /// [`Ended`]: the coordinator is gone.
    pub fn serve(&mut self) -> Result<Served, Ended> {
        self.take_answers()?;
        loop {
            let now = Instant::now();
            self.expire(now);
            if self.idle_deadline(now).is_some_and(|deadline| deadline <= now) {
                tracing::info!("nobody has needed the card for a while: ending");
                return Ok(Served::Ended);
            }
            match self.fault.take() {
                Some(Fault::LinkLoss) => return Err(CardGone::LinkLost.into()),
                Some(Fault::Reset) => return Ok(Served::Reset),
                Some(Fault::Stuck { ms }) => {
                    self.card.stop(true);
                    self.stuck_until = Some(now + Duration::from_millis(ms.into()));
                }
                None if self.stuck_until.is_some_and(|until| until <= now) => {
                    self.stuck_until = None;
                    self.card.stop(false);
                }
                None => {}
            }
            let deadlines = [self.clients.next_deadline(), self.idle_deadline(now), self.stuck_until];
            let deadline = deadlines.into_iter().flatten().min();
            for watch in self.poller.wait(deadline.map(|d| d.saturating_duration_since(now)))? {
                match watch {
                    Watch::Signal => {
                        tracing::info!("asked to end");
                        return Ok(Served::Ended);
                    }
                    Watch::CardDeath => return Err(CardGone::HungUp.into()),
                    Watch::Listener => self.accept(),
                    Watch::Bus => self.take_bus()?,
                    Watch::Voice => self.listen_to_coordinator(),
                    Watch::Answers => self.take_answers()?,
                    Watch::Client(id) => self.client_readable(id),
                    Watch::Death(number) => self.process_ended(number),
                    Watch::Events(number) => {
                        if let Some(function) = self.functions.get(&number) {
                            function.notice();
                        }
                    }
                }
            }
        }
    }

    /// When to end for lack of users; starts the clock if it does not run yet.
    fn idle_deadline(&mut self, now: Instant) -> Option<Instant> {
        let idle_exit = self.idle_exit?;
        if !self.functions.is_empty() || self.clients.needed() {
            self.idle_since = None;
            return None;
        }
        Some(*self.idle_since.get_or_insert(now) + idle_exit)
    }

    fn take_bus(&mut self) -> Result<(), Ended> {
        while let Some(event) = self.card.next_event()? {
            match event {
                CardEvent::Mapped(number) => self.function_mapped(number),
                CardEvent::MapFailed(number) => {
                    self.refuse_function(number, "the coordinator could not map another function");
                }
                CardEvent::Segment(segment, ok) => self.segment_made(segment, ok),
            }
        }
        Ok(())
    }

    /// Everything in the completion ring, until the next interrupt is asked for.
    fn take_answers(&mut self) -> Result<(), Ended> {
        loop {
            while let Some((token, completion)) = self.card.ring().take()? {
                match completion {
                    Completion::Done { status, .. } => self.function_answered(token, status),
                    Completion::MakeSegment { segment, client_group, server_group } => {
                        self.make_segment(segment, client_group, server_group);
                    }
                    Completion::DropSegment { segment } => self.groups.drop_segment(segment),
                    other => tracing::error!("the coordinator sent {other:?} to the agent: ignored"),
                }
            }
            if self.card.ring().rearm() {
                return Ok(());
            }
        }
    }

    fn listen_to_coordinator(&mut self) {
        let Some(voice) = self.card.voice() else { return };
        for line in voice.lines() {
            tracing::info!("coordinator: {line}");
        }
        if !voice.is_open() {
            self.poller.forget(voice.fd());
        }
    }

    /// Wakes every process that shares a segment with `group`.
    pub(crate) fn notice_neighbours(&self, group: u32) {
        let neighbours: BTreeSet<u32> = self.groups.neighbours(group);
        for function in self.functions.values().filter(|f| neighbours.contains(&f.group)) {
            function.notice();
        }
    }
}

/// Turns SIGTERM, SIGINT and SIGHUP into readability of a socket.
pub(crate) fn watch_signals() -> io::Result<UnixStream> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let (read, write) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}

/// Each process costs a few descriptors, each segment three.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_event_is_about_survives_the_kernel() {
        let all =
            [Watch::Listener, Watch::Signal, Watch::Bus, Watch::CardDeath, Watch::Voice, Watch::Answers];
        let numbered = [Watch::Client(u32::MAX), Watch::Death(7), Watch::Events(4095)];
        for watch in all.into_iter().chain(numbered) {
            assert_eq!(Watch::from_data(watch.data()), Some(watch));
        }
    }
}
