//! The coordinator's own polling loop, and the host's side of any number of functions: what a card without a
//! bus does.
//!
//! Nobody waits for a card that does not run. Either a body runs beside a thread that polls
//! ([`Rig::beside`]), and may wait; or the
//! card's turns are made by hand ([`Rig::work`]), and then answers are there or it is an error.

use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Failure, Outcome, fail};
use nic_coordinator::counters::{Counters, Shown};
use nic_coordinator::intake::Intake;
use nic_coordinator::logic::{Limits, Logic};
use nic_coordinator::mapping::CardMemory;
use nic_coordinator::poll::Poller;
use ring::bus::AGENT_FUNCTION;
use ring::msg::{Completion, Request};
use ring::queue::{COMMON_BYTES, CommonMemory, Key, Kind, Requests};
use ring::window::{HOST_BYTES, HostEnd, HostMemory, WINDOW_BYTES, Window};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::stats::median;

/// Where the card and where the clients run, if there are two processors.
pub const CARD_CPU: usize = 1;
/// See [`CARD_CPU`].
pub const CLIENT_CPU: usize = 0;

/// A wait that takes longer is a fault, also on a machine with a load of 30.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// Looks before a wait leaves the processor to others.
const SPINS: u32 = 200;
/// Calls that are timed together.
const BURST: u32 = 16;
/// More turns in a row that find work, with nobody posting, are a fault.
const TURNS_MAX: usize = 1 << 20;

/// Keeps the calling thread, and those that it starts, on one processor; on a machine without it, nowhere in
/// particular.
pub fn pin(cpu: usize) {
    let _ = crate::clock::pin(Some(cpu));
}

/// Allows as many descriptors as the system lets us have: a function needs two.
pub fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn memory(bytes: usize) -> Outcome<(OwnedFd, CardMemory)> {
    let fd = memfd_create("ipcd-bench", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&fd, bytes as u64)?;
    fcntl_add_seals(&fd, SealFlags::SHRINK)?;
    let map = CardMemory::map(&fd, 0, bytes, "memory")?;
    Ok((fd, map))
}

/// One function, as its process has it.
#[derive(Debug)]
pub struct Client {
    end: HostEnd<'static>,
    token: u32,
    /// What that looks at.
    _maps: [Arc<CardMemory>; 3],
}

impl Client {
    /// Posts a request.
    ///
    /// # Errors
    /// When there is no room for 20 s.
    #[inline]
    pub fn ask(&mut self, request: Request) -> Outcome {
        self.token = self.token.wrapping_add(1);
        let raw = request.to_raw(self.token);
        if self.end.post(&raw).is_ok() {
            return Ok(());
        }
        let since = Instant::now();
        while self.end.post(&raw).is_err() {
            if since.elapsed() > WAIT_MAX {
                return fail("there was no room for a request for 20 s");
            }
            thread::yield_now();
        }
        Ok(())
    }

    /// The next completion that is not credit alone.
    #[inline]
    pub fn take(&mut self) -> Option<Completion> {
        let raw = self.end.take().ok().flatten()?;
        Completion::from_raw(&raw).ok().filter(|completion| *completion != Completion::Credit)
    }

    /// Waits for it beside a card that polls, leaving the processor to others now and then, or at once if
    /// `crowded`: then others
    /// have to run there before an answer can come.
    ///
    /// # Errors
    /// When none comes within 20 s.
    #[inline]
    pub fn wait(&mut self, crowded: bool) -> Outcome<Completion> {
        let stop = AtomicBool::new(false);
        match self.wait_unless(&stop, crowded)? {
            Some(completion) => Ok(completion),
            None => fail("a wait ended without an answer"),
        }
    }

    /// As [`Client::wait`]; `None` once `stop` is set.
    ///
    /// # Errors
    /// As [`Client::wait`].
    #[inline]
    pub fn wait_unless(&mut self, stop: &AtomicBool, crowded: bool) -> Outcome<Option<Completion>> {
        let mut since = None;
        loop {
            for _ in 0..if crowded { 1 } else { SPINS } {
                if let Some(completion) = self.take() {
                    return Ok(Some(completion));
                }
                std::hint::spin_loop();
            }
            // Relaxed: nothing but the end is told by it.
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            if since.get_or_insert_with(Instant::now).elapsed() > WAIT_MAX {
                return fail("the card did not answer for 20 s");
            }
            thread::yield_now();
        }
    }
}

/// A request that changes nothing, and is answered.
#[must_use]
pub fn no_op() -> Request {
    Request::Accept { listener: u32::MAX, flags: 0 }
}

/// Whom a new process descends from, and who it is.
#[derive(Clone, Copy, Debug)]
pub struct Kin {
    /// Function of the parent; 0: nobody.
    pub parent: u32,
    /// What its `Fork` said.
    pub nonce: u64,
    /// Its user.
    pub uid: u32,
}

/// What the card did meanwhile.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turns {
    /// Turns of the polling loop.
    pub all: u64,
    /// Of those, turns that found work.
    pub worked: u64,
    /// Requests taken.
    pub requests: u64,
    /// Completions stored, those with credit alone among them.
    pub completions: u64,
}

/// The card's side.
pub struct Rig {
    poller: Poller<'static>,
    counters: Arc<Counters>,
    agent: Client,
    common: Option<(Arc<CardMemory>, &'static CommonMemory)>,
    kind: Kind,
    started: Instant,
}

impl Rig {
    /// A card with `processes` functions, each a family of its own and of a user of its own.
    ///
    /// # Errors
    /// When the system refuses memory.
    pub fn new(kind: Kind, processes: u32) -> Outcome<(Rig, Vec<Client>)> {
        let common = match kind {
            Kind::PerProcess => None,
            Kind::Shared | Kind::Hybrid => Some(memory(COMMON_BYTES)?),
        };
        let (fd, map) = common.unzip();
        let common = match map.map(Arc::new) {
            None => None,
            Some(map) => {
                let view = CommonMemory::over(map.region()).ok_or_else(small)?;
                view.format();
                Some((map, view))
            }
        };
        // One lcore, as on an emulated card.
        let (shown, intake) = (Shown::default(), Intake::new(kind, fd)?);
        let mut poller = Poller::new(Logic::new(Limits::default()), &shown, 1, intake, Vec::new());
        let counters = shown.lcore(0);
        let agent = map_function(&mut poller, AGENT_FUNCTION, Kind::PerProcess, common.as_ref())?;
        let mut rig = Rig { poller, counters, agent, common, kind, started: Instant::now() };
        let own = |uid| Kin { parent: 0, nonce: 0, uid };
        let clients = (1..=processes).map(|n| rig.attach(n, own(n))).collect::<Outcome<_>>()?;
        Ok((rig, clients))
    }

    /// A process comes.
    ///
    /// # Errors
    /// When the system refuses memory, or the card does not take the request.
    pub fn attach(&mut self, function: u32, kin: Kin) -> Outcome<Client> {
        let client = map_function(&mut self.poller, function, self.kind, self.common.as_ref())?;
        let Kin { parent, nonce, uid } = kin;
        let group = if parent == 0 { function } else { parent };
        self.agent.ask(Request::Attach { function, group, parent, nonce, uid, pid: function, netns: 1 })?;
        self.work()?;
        Ok(client)
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(0)
    }

    /// One turn, and what the agent does. True if there was work.
    fn turn(&mut self) -> Outcome<bool> {
        let worked = self.poller.turn(self.now_us());
        // The agent hears only what a turn had to say.
        while worked && let Some(completion) = self.agent.take() {
            if let Completion::MakeSegment { segment, .. } = completion {
                self.agent.ask(Request::SegmentMade { segment, ok: true })?;
            }
        }
        Ok(worked)
    }

    /// Turns by hand, until one finds nothing.
    ///
    /// # Errors
    /// When that does not happen.
    pub fn work(&mut self) -> Outcome {
        for _ in 0..TURNS_MAX {
            if !self.turn()? {
                return Ok(());
            }
        }
        fail("the card finds work without end")
    }

    /// Polls on another processor while `body` runs on its own.
    ///
    /// # Errors
    /// Those of `body`, and of the card's turns.
    pub fn beside<T: Send>(&mut self, body: impl FnOnce() -> Outcome<T> + Send) -> Outcome<(T, Turns)> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let card = scope.spawn(|| {
                pin(CARD_CPU);
                let before = self.counted();
                let mut turns = Turns::default();
                // Relaxed: nothing but the end is told by it.
                while !stop.load(Ordering::Relaxed) {
                    turns.all += 1;
                    turns.worked += u64::from(self.turn()?);
                }
                let after = self.counted();
                turns.requests = after.requests - before.requests;
                turns.completions = after.completions - before.completions;
                Outcome::Ok(turns)
            });
            let clients = scope.spawn(|| {
                pin(CLIENT_CPU);
                let result = body();
                stop.store(true, Ordering::Relaxed);
                result
            });
            let result = clients.join().map_err(|_| Failure("a client panicked".to_owned()))?;
            let turns = card.join().map_err(|_| Failure("the card panicked".to_owned()))?;
            Ok((result?, turns?))
        })
    }

    fn counted(&self) -> Turns {
        let counters = &self.counters;
        let (requests, completions) = (counters.requests.get(), counters.completions.get());
        Turns { requests, completions, ..Turns::default() }
    }

    /// A turn that finds nothing, in ns. The clock is read, as before each turn, and ignored, so that no look
    /// at everybody is due.
    #[must_use]
    pub fn idle_turn_ns(&mut self, time: Duration) -> f64 {
        let now_us = self.now_us();
        repeat_ns(time, || {
            black_box(self.now_us());
            self.poller.turn(now_us)
        })
    }

    /// A look at all functions that finds nothing, in ns.
    #[must_use]
    pub fn scan_ns(&mut self, time: Duration) -> f64 {
        let now_us = self.now_us();
        repeat_ns(time, || self.poller.scan(now_us))
    }
}

/// What one call takes, in ns: the median of bursts, since others may take the processor in some.
fn repeat_ns(time: Duration, mut call: impl FnMut() -> bool) -> f64 {
    call();
    let (start, mut bursts) = (Instant::now(), Vec::new());
    while start.elapsed() < time {
        let since = Instant::now();
        for _ in 0..BURST {
            call();
        }
        bursts.push(since.elapsed().as_secs_f64() * 1e9 / f64::from(BURST));
    }
    median(bursts)
}

fn small() -> Failure {
    Failure("a memory is too small".to_owned())
}

fn map_function(
    poller: &mut Poller<'_>,
    number: u32,
    kind: Kind,
    common: Option<&(Arc<CardMemory>, &'static CommonMemory)>,
) -> Outcome<Client> {
    let ((window_fd, window_map), (host_fd, host_map)) = (memory(WINDOW_BYTES)?, memory(HOST_BYTES)?);
    let (window_map, host_map) = (Arc::new(window_map), Arc::new(host_map));
    let window = Window::over(window_map.region()).ok_or_else(small)?;
    let host = HostMemory::over(host_map.region()).ok_or_else(small)?;
    window.format(number);
    host.format(kind, Key([number.into(), 1]));
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let fds = [window_fd, host_fd].into_iter().map(Ok).chain([(); 2].map(|()| eventfd(0, flags)));
    poller.map(number, fds.collect::<Result<_, _>>()?)?;
    let requests =
        Requests::over(number, &window.far(), &host, common.map(|(_, view)| *view)).ok_or_else(small)?;
    let shared = common.map_or_else(|| Arc::clone(&host_map), |(map, _)| Arc::clone(map));
    Ok(Client {
        end: HostEnd::new(requests, &window.far(), &host.near()),
        token: 0,
        _maps: [window_map, host_map, shared],
    })
}
