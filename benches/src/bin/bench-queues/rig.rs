//! The coordinator's own polling loop on a thread, and the host's side of any number of functions beside it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use harness::{Failure, Outcome};
use nic_coordinator::counters::Shown;
use nic_coordinator::intake::Intake;
use nic_coordinator::logic::{Limits, Logic};
use nic_coordinator::mapping::CardMemory;
use nic_coordinator::poll::Poller;
use ring::bus::AGENT_FUNCTION;
use ring::msg::{Completion, Request};
use ring::queue::{COMMON_BYTES, CommonMemory, Key, Kind, Requests};
use ring::window::{Consumer, HOST_BYTES, HostMemory, WINDOW_BYTES, Window};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

/// Where the card and where the clients run, if there are two processors.
pub const CARD_CPU: usize = 1;
pub const CLIENT_CPU: usize = 0;

/// Keeps the calling thread on one processor; on a machine without it, nowhere in particular.
pub fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

/// Leaves the calling thread to the scheduler again.
pub fn unpin() {
    let mut set = rustix::thread::CpuSet::new();
    (0..rustix::thread::CpuSet::MAX_CPU).for_each(|cpu| set.set(cpu));
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

fn memory(bytes: usize) -> Outcome<(OwnedFd, CardMemory)> {
    let fd = memfd_create("ipcd-bench", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&fd, bytes as u64)?;
    fcntl_add_seals(&fd, SealFlags::SHRINK)?;
    let map = CardMemory::map(&fd, 0, bytes, "memory")?;
    Ok((fd, map))
}

/// One function, as its process has it.
pub struct Client {
    requests: Requests<'static>,
    completions: Consumer<'static>,
    token: u32,
    /// What the two above look at.
    _maps: [Arc<CardMemory>; 3],
}

impl Client {
    /// Posts a request; there is always room, since nobody has more than a few under way.
    #[inline]
    pub fn ask(&mut self, request: Request) {
        self.token = self.token.wrapping_add(1);
        let credit = self.completions.credit();
        while self.requests.push(&request.to_raw(self.token), credit).is_err() {
            thread::yield_now();
        }
    }

    /// The next completion that is not credit alone.
    #[inline]
    pub fn take(&mut self) -> Option<Completion> {
        let (raw, credit) = self.completions.pop().ok().flatten()?;
        let _ = self.requests.take_credit(credit);
        Completion::from_raw(&raw).ok().filter(|completion| *completion != Completion::Credit)
    }

    /// Waits for it, leaving the processor to others now and then.
    pub fn wait(&mut self) -> Completion {
        loop {
            for _ in 0..200 {
                if let Some(completion) = self.take() {
                    return completion;
                }
                std::hint::spin_loop();
            }
            thread::yield_now();
        }
    }
}

/// A request that changes nothing, and is answered.
pub fn no_op() -> Request {
    Request::Accept { listener: u32::MAX, flags: 0 }
}

/// The card's side.
pub struct Rig {
    pub poller: Poller,
    agent: Client,
    common: Option<(Arc<CardMemory>, &'static CommonMemory)>,
    kind: Kind,
    started: Instant,
}

impl Rig {
    /// A card with `processes` functions, of which each is a family of its own.
    pub fn new(kind: Kind, processes: u32) -> Outcome<(Rig, Vec<Client>)> {
        let broken = || Failure("a memory is too small".to_owned());
        let common = match kind {
            Kind::PerProcess => None,
            _ => Some(memory(COMMON_BYTES)?),
        };
        let (fd, map) = common.unzip();
        let common = match map.map(Arc::new) {
            None => None,
            Some(map) => {
                let view = CommonMemory::over(map.region()).ok_or_else(broken)?;
                view.format();
                Some((map, view))
            }
        };
        let mut poller =
            Poller::new(Logic::new(Limits::default()), Arc::new(Shown::default()), 1, Intake::new(kind, fd)?);
        let agent = client(&mut poller, AGENT_FUNCTION, Kind::PerProcess, common.as_ref())?;
        let mut rig = Rig { poller, agent, common, kind, started: Instant::now() };
        let clients = (1..=processes).map(|n| rig.attach(n, 0, 0)).collect::<Outcome<_>>()?;
        Ok((rig, clients))
    }

    /// A process comes: a child of `parent` that was announced with `nonce`, or of nobody (0).
    pub fn attach(&mut self, function: u32, parent: u32, nonce: u64) -> Outcome<Client> {
        let client = client(&mut self.poller, function, self.kind, self.common.as_ref())?;
        let group = if parent == 0 { function } else { parent };
        self.agent.ask(Request::Attach { function, group, parent, nonce, uid: 0, pid: function, netns: 1 });
        self.poller.turn(self.now_us());
        Ok(client)
    }

    pub fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(0)
    }

    /// One turn, and what the agent does.
    pub fn turn(&mut self) -> bool {
        let worked = self.poller.turn(self.now_us());
        while let Some(completion) = self.agent.take() {
            if let Completion::MakeSegment { segment, .. } = completion {
                self.agent.ask(Request::SegmentMade { segment, ok: true });
            }
        }
        worked
    }

    /// Polls on another processor while `body` runs. Also: how many turns there were, and how many found work.
    pub fn beside<T>(&mut self, body: impl FnOnce() -> T) -> (T, [u64; 2]) {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let card = scope.spawn(|| {
                pin(CARD_CPU);
                let mut turns = [0; 2];
                // Relaxed: nothing but the end is told by it.
                while !stop.load(Ordering::Relaxed) {
                    turns[0] += 1;
                    turns[1] += u64::from(self.turn());
                }
                turns
            });
            pin(CLIENT_CPU);
            let result = body();
            stop.store(true, Ordering::Relaxed);
            (result, card.join().unwrap_or_default())
        })
    }
}

fn client(
    poller: &mut Poller,
    number: u32,
    kind: Kind,
    common: Option<&(Arc<CardMemory>, &'static CommonMemory)>,
) -> Outcome<Client> {
    let broken = || Failure("a memory is too small".to_owned());
    let ((window_fd, window_map), (host_fd, host_map)) = (memory(WINDOW_BYTES)?, memory(HOST_BYTES)?);
    let (window_map, host_map) = (Arc::new(window_map), Arc::new(host_map));
    let window = Window::over(window_map.region()).ok_or_else(broken)?;
    let host = HostMemory::over(host_map.region()).ok_or_else(broken)?;
    window.format(number);
    host.format(kind, Key([number.into(), 1]));
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let fds = [window_fd, host_fd].into_iter().map(Ok).chain([(); 2].map(|()| eventfd(0, flags)));
    poller.map(number, fds.collect::<Result<_, _>>()?)?;
    let requests = Requests::over(number, &window, &host, common.map(|(_, view)| *view));
    let shared = common.map_or_else(|| Arc::clone(&host_map), |(map, _)| Arc::clone(map));
    Ok(Client {
        requests: requests.ok_or_else(broken)?,
        completions: Consumer::new(host.completions, 0),
        token: 0,
        _maps: [window_map, host_map, shared],
    })
}
