//! From a running EAL to the end: the main lcore's loop, which polls bus, rings and port, and decides, with bounded work per turn.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use dpdk::eal::{Eal, EalError};
use dpdk::ethdev::PortError;
use dpdk::lcore::LaunchError;
use dpdk::mbuf::PoolError;
use dpdk::telemetry::RegisterError;
use nic_coordinator::bus::{Bus, BusError, Host, Incoming, Payload};
use nic_coordinator::carrier::Carrier;
use nic_coordinator::counters::{Counters, Shown};
use nic_coordinator::intake::Intake;
use nic_coordinator::link::LinkError;
use nic_coordinator::logic::{Limits, Logic};
use nic_coordinator::mapping::MapError;
use nic_coordinator::poll::Poller;
use nic_coordinator::sleep::{Woken, sleep};
use ring::bus::BusMsg;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::cli::{Idle, Options};
use crate::ethernet::Ethernet;
use crate::lcores::{self, Rhythm};
use crate::meeting::Meeting;
use crate::pace::Pace;
use crate::{os, telemetry};

/// How often the bus and the signals are looked at while there is work.
const BUS_EVERY_US: u64 = 20;
/// How much later between two turns that have work: the look is a system call.
const BUS_LATE_US: u64 = 200;
/// How much longer to look where bytes go to other hosts: an answer passes two more threads that may sleep. With less, each would wait
/// longer than it looks because all the others sleep, and none would begin to look.
const FAR_SPINS: u64 = 4;
/// How long `--idle nap` does not look.
pub const NAP: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000 };
/// How old the tables that telemetry shows may be.
const SNAPSHOT_EVERY_US: u64 = 100_000;
const NO_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// A yield that took longer was more than one time slice of programs that compute: who sleeps gets the core from them when work
/// comes, who yields does not.
pub const SLICES_US: u64 = 4_000;
/// Sleeps without a look for more work before them, after such a yield.
const SLEEPY_TURNS: u32 = 256;

/// Why the coordinator ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Eal(#[from] EalError),
    #[error(transparent)]
    Port(#[from] PortError),
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    Telemetry(#[from] RegisterError),
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Common(#[from] MapError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("the kernel refused {0}: {1}")]
    Kernel(&'static str, #[source] std::io::Error),
    #[error("{0}")]
    Uplink(String),
    #[error("the agent's own function broke the rules of the rings: use files of one release")]
    AgentBroken,
}

impl RunError {
    /// True when the command line is to blame.
    pub fn is_usage(&self) -> bool {
        match self {
            RunError::Port(PortError::NotFound(_)) | RunError::Uplink(_) => true,
            RunError::Eal(EalError::Refused(error)) => {
                error.code() == rustix::io::Errno::INVAL.raw_os_error()
            }
            _ => false,
        }
    }
}

/// Why the loop ended, other than by an error.
enum End {
    Signal,
    HungUp,
}

/// Runs until the host hangs up the bus or a signal asks for the end.
pub fn run(eal_args: Vec<String>, options: &Options, mut bus: Bus) -> Result<(), RunError> {
    // Before the EAL starts its threads, which are to inherit the blocked signals.
    let end = os::end_signals().map_err(|e| RunError::Kernel("signalfd", e))?;
    let shown = Arc::new(Shown::default());
    telemetry::offer(&shown)?;

    // Before the EAL registers the same for the files in there: what is registered last is done first.
    os::remove_at_exit().map_err(|e| RunError::Kernel("atexit", e))?;
    let (eal, _) = Eal::init(eal_args)?;
    os::set_dir_to_remove(&eal.runtime_dir());
    let ended = with_eal(&eal, options, &mut bus, &end, &shown);
    drop(eal);
    match ended {
        Ok(End::Signal) => tracing::info!("ending: asked by a signal"),
        Ok(End::HungUp) | Err(RunError::Bus(BusError::HungUp)) => tracing::info!("ending: the host is gone"),
        Err(error) => return Err(error),
    }
    Ok(())
}

fn with_eal(
    eal: &Eal,
    options: &Options,
    bus: &mut Bus,
    end: &OwnedFd,
    shown: &Arc<Shown>,
) -> Result<End, RunError> {
    if options.idle != Idle::Poll {
        // The EAL has pinned us to one core, which the host's programs want as well.
        let everywhere = eal.original_affinity();
        everywhere.apply_to_this_thread().map_err(|e| RunError::Kernel("CPU affinity", e))?;
    }
    let mut ethernet = Ethernet::open(eal, options.port.as_deref())?;
    if bus.fd().is_none() {
        tracing::info!("waiting for an agent, runtime directory {}", eal.runtime_dir().display());
    }
    loop {
        let ended = with_host(eal, options, bus, end, shown, ethernet.as_mut());
        match (bus.fd(), ended) {
            // A card outlives its hosts' agents.
            (None, Ok(End::HungUp) | Err(RunError::Bus(BusError::HungUp))) => {
                tracing::info!("the agent is gone: waiting for another");
            }
            (None, Err(error @ (RunError::AgentBroken | RunError::Bus(_)))) => {
                tracing::error!("{error}; waiting for another agent");
            }
            (_, ended) => return ended,
        }
    }
}

/// Serves one agent, from its coming to its end.
fn with_host(
    eal: &Eal,
    options: &Options,
    bus: &mut Bus,
    end: &OwnedFd,
    shown: &Arc<Shown>,
    ethernet: Option<&mut Ethernet<'_>>,
) -> Result<End, RunError> {
    let host = bus.greet(end)?;
    let mut epoch = [0; 4];
    rustix::rand::getrandom(&mut epoch, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| RunError::Kernel("random numbers", e.into()))?;
    let epoch = u32::from_ne_bytes(epoch);
    let counters = shown.lcore(0);
    let mut net = match ethernet {
        Some(ethernet) => {
            let meeting = Meeting::new(options, ethernet, epoch).map_err(RunError::Uplink)?;
            Some(Net { ethernet, meeting })
        }
        None => None,
    };
    let (doorbell, common) = match host {
        Host::WithDoorbell { doorbell, common } => (Some(doorbell), common),
        Host::Polled => (None, None),
        Host::None => return Ok(End::Signal),
    };
    // What does not poll for ever leaves its core to the host's programs.
    let everywhere = (options.idle != Idle::Poll).then(|| eal.original_affinity());
    let rhythm = Rhythm { idle: options.idle, spin_us: options.spin_us, started: Instant::now(), everywhere };
    let (shards, workers) = lcores::shards(eal, options, common.as_ref(), shown)?;
    let intake = Intake::new(options.request_queue, common)?;
    let mut logic = Logic::new(Limits::default());
    if let Some(reachable) = net.as_mut().and_then(|net| net.meeting.as_mut()?.take_reachable()) {
        logic.meet_hosts(reachable);
    }
    eal.lcore_scope(|scope| {
        // Ours, so that the shards end with this block, whatever ends it.
        let poller = Poller::new(logic, shown, epoch, intake, shards);
        let poller = poller.with_profile(options.pcie_profile);
        lcores::launch(scope, workers, rhythm)?;
        bus.send(BusMsg::Up { epoch })?;
        tracing::info!("up: epoch {epoch:08x}, {} lcores", eal.lcores().len());
        let mut card = Card {
            poller,
            bus,
            end,
            shown,
            counters: Arc::clone(&counters),
            snapshot_us: None,
            changed: true,
            rhythm,
        };
        let ended = match (doorbell, options.idle) {
            (Some(doorbell), Idle::Sleep) => card.poll_and_sleep(net.as_mut(), &doorbell),
            (_, Idle::Nap) => card.poll(net.as_mut(), Some(options.spin_us)),
            _ => card.poll(net.as_mut(), None),
        };
        if let Some(Net { ethernet, meeting: Some(meeting) }) = &mut net {
            meeting.farewell(rhythm.now_us(), ethernet, &counters);
        }
        ended
    })
}

/// The Ethernet port, and who is met there.
struct Net<'a, 'eal> {
    ethernet: &'a mut Ethernet<'eal>,
    meeting: Option<Meeting>,
}

impl Net<'_, '_> {
    /// True: there was something to do for connections with other hosts.
    fn turn(&mut self, now_us: u64, poller: &mut Poller<'_>, shown: &Shown, counters: &Counters) -> bool {
        let arrived = self.ethernet.take(counters);
        let meeting = self.meeting.as_mut();
        meeting.is_some_and(|m| m.turn(now_us, arrived, self.ethernet, poller, (shown, counters)))
    }

    /// What a sleeper sleeps with: the data path, and the port's bell.
    fn sleepers(&mut self) -> (Option<&mut Carrier>, Option<BorrowedFd<'_>>) {
        // Nobody takes frames for anything but meeting.
        let carrier = self.meeting.as_mut().map(|meeting| meeting.carrier.as_mut());
        let bell = carrier.is_some().then(|| self.ethernet.bell()).flatten();
        (carrier.flatten(), bell)
    }

    fn carrier(&mut self) -> Option<&mut Carrier> {
        self.meeting.as_mut()?.carrier.as_mut()
    }

    /// When a sleeper should look at the port again.
    fn wake_at_us(&self, now_us: u64) -> Option<u64> {
        let called = self.ethernet.bell().is_some();
        self.meeting.as_ref().map(|meeting| meeting.wake_at_us(now_us, called))
    }
}

/// The loop's state.
struct Card<'a> {
    poller: Poller<'a>,
    bus: &'a mut Bus,
    end: &'a OwnedFd,
    shown: &'a Shown,
    counters: Arc<Counters>,
    /// When the tables were last shown.
    snapshot_us: Option<u64>,
    /// Whether they may have changed since.
    changed: bool,
    rhythm: Rhythm,
}

impl Card<'_> {
    /// A card's loop: never sleeps, or, with `nap_after_us`, naps when there was no work for so long.
    fn poll(
        &mut self,
        mut net: Option<&mut Net<'_, '_>>,
        nap_after_us: Option<u64>,
    ) -> Result<End, RunError> {
        let (mut bus_due_us, mut worked_us) = (0, 0);
        loop {
            let now_us = self.rhythm.now_us();
            if self.turn(now_us, &mut net)? {
                worked_us = now_us;
            }
            let idle = nap_after_us.is_some_and(|us| now_us.saturating_sub(worked_us) >= us);
            if idle || now_us >= bus_due_us {
                bus_due_us = now_us + BUS_EVERY_US;
                let woken = peek(self.bus, self.end, if idle { NAP } else { NO_TIME });
                if let Some(end) = self.bus_turn(woken, &mut net)? {
                    return Ok(end);
                }
            }
            self.show(now_us);
        }
    }

    /// The emulated card's loop: looks for work for `spin_us` after the last work, leaving the core to others in
    /// between, then sleeps. Packets of the port are taken while awake, but are no reason to stay so.
    fn poll_and_sleep(
        &mut self,
        mut net: Option<&mut Net<'_, '_>>,
        doorbell: &OwnedFd,
    ) -> Result<End, RunError> {
        let mut bus_due_us = 0;
        let carries = net.as_mut().is_some_and(|net| net.carrier().is_some());
        let mut pace = Pace::new(self.rhythm.spin_us * if carries { FAR_SPINS } else { 1 });
        let mut sleepy: u32 = 0;
        loop {
            let now_us = self.rhythm.now_us();
            let worked = self.turn(now_us, &mut net)?;
            if worked {
                pace.worked(now_us);
            }
            if self.poller.was_crowded() {
                sleepy = SLEEPY_TURNS;
            }
            let mut woken = Woken::default();
            if sleepy != 0 || pace.is_over(now_us) {
                sleepy = sleepy.saturating_sub(1);
                let until_us = self.wake_at_us(now_us, net.as_deref()).map(|at| at.saturating_sub(now_us));
                let (far, port) = net.as_deref_mut().map(Net::sleepers).unwrap_or_default();
                let end = self.end.as_fd();
                let fds = [self.bus.fd().unwrap_or(end), end, port.unwrap_or(end)];
                let times = (now_us, until_us);
                woken = sleep(&mut self.poller, far, doorbell, fds, times, &self.counters);
                if let Some(net) = net.as_deref() {
                    net.ethernet.silence();
                }
                if woken.port {
                    pace.expect(self.rhythm.now_us());
                }
                if woken.worked {
                    pace.worked(now_us);
                    self.changed = true;
                } else {
                    pace.slept();
                }
            } else {
                // First of all: after work, whoever it was for has something to do.
                rustix::thread::sched_yield();
                if self.rhythm.now_us() - now_us > SLICES_US {
                    sleepy = SLEEPY_TURNS;
                }
                if now_us >= bus_due_us + if worked { BUS_LATE_US } else { 0 } {
                    bus_due_us = now_us + BUS_EVERY_US;
                    woken = peek(self.bus, self.end, NO_TIME);
                }
            }
            if let Some(end) = self.bus_turn(woken, &mut net)? {
                return Ok(end);
            }
            self.show(now_us);
        }
    }

    fn turn(&mut self, now_us: u64, net: &mut Option<&mut Net<'_, '_>>) -> Result<bool, RunError> {
        let mut worked = self.poller.turn(now_us);
        if let Some(net) = net {
            worked |= net.turn(now_us, &mut self.poller, self.shown, &self.counters);
        }
        self.changed |= worked;
        self.tell_unmapped()?;
        if self.poller.agent_dropped() { Err(RunError::AgentBroken) } else { Ok(worked) }
    }

    /// The earliest time at which there is something to do without being called.
    fn wake_at_us(&self, now_us: u64, net: Option<&Net<'_, '_>>) -> Option<u64> {
        let snapshot = self.changed.then(|| self.snapshot_us.map_or(now_us, |at| at + SNAPSHOT_EVERY_US));
        let net = net.and_then(|net| net.wake_at_us(now_us));
        self.poller.next_deadline_us().into_iter().chain(snapshot).chain(net).min()
    }

    /// Leaves a picture of the tables for telemetry, now and then.
    fn show(&mut self, now_us: u64) {
        let due = self.snapshot_us.is_none_or(|at| now_us.saturating_sub(at) >= SNAPSHOT_EVERY_US);
        if self.changed && due && self.shown.publish(self.poller.logic()) {
            self.changed = false;
            self.snapshot_us = Some(now_us);
        }
    }

    fn bus_turn(
        &mut self,
        woken: Woken,
        net: &mut Option<&mut Net<'_, '_>>,
    ) -> Result<Option<End>, RunError> {
        if woken.end {
            return Ok(Some(End::Signal));
        }
        // What comes next may be about a function that a shard has yet to let go of.
        while woken.bus && !self.poller.is_unmapping() {
            let incoming = match self.bus.receive() {
                Err(BusError::HungUp) => return Ok(Some(End::HungUp)),
                received => received?,
            };
            let Some(incoming) = incoming else { break };
            self.changed = true;
            match incoming.message {
                BusMsg::Map { function } => {
                    let answer = match self.map(function, incoming) {
                        Ok(()) => BusMsg::Mapped { function },
                        Err(error) => {
                            tracing::error!("function {function} is not mapped: {error}");
                            BusMsg::MapFailed { function }
                        }
                    };
                    self.bus.send(answer)?;
                }
                BusMsg::Unmap { function } => {
                    let now_us = self.rhythm.now_us();
                    self.poller.unmap(function, now_us);
                    self.tell_unmapped()?;
                }
                BusMsg::Segment { segment } => {
                    let carrier = net.as_mut().and_then(|net| net.carrier());
                    let answer = match add_segment(carrier, segment, incoming.payload) {
                        Ok(()) => BusMsg::SegmentMapped { segment },
                        Err(error) => {
                            tracing::error!("segment {segment} is not mapped: {error}");
                            BusMsg::SegmentFailed { segment }
                        }
                    };
                    self.bus.send(answer)?;
                }
                // Not from an agent: both are of one release.
                other => tracing::warn!("unexpected message on the bus: {other:?}"),
            }
        }
        Ok(None)
    }

    /// Tells a card's bus which functions are not touched any more.
    fn tell_unmapped(&mut self) -> Result<(), RunError> {
        while let Some(function) = self.poller.next_unmapped() {
            if matches!(self.bus, Bus::Card(_)) {
                self.bus.send(BusMsg::Unmapped { function })?;
            }
        }
        Ok(())
    }

    fn map(&mut self, number: u32, incoming: Incoming) -> Result<(), MapError> {
        match (incoming.payload, &*self.bus) {
            (Payload::Descriptors(fds), _) => self.poller.map(number, fds),
            (Payload::Address(address), Bus::Card(card)) => {
                self.poller.add(number, card.function(number, address)?, None)
            }
            (Payload::Address(address), Bus::Emulated(_)) => {
                Err(MapError::Outside { what: "host memory", address })
            }
        }
    }
}

/// A segment for connections with other hosts.
fn add_segment(carrier: Option<&mut Carrier>, number: u32, payload: Payload) -> Result<(), MapError> {
    match (carrier, payload) {
        (Some(carrier), Payload::Descriptors(fds)) => carrier.add_segment(number, fds),
        _ => Err(MapError::Header("segment")),
    }
}

/// Whether bus or signals have something, and a wait for that. A bus without descriptor may always have.
fn peek(bus: &Bus, end: &OwnedFd, wait: Timespec) -> Woken {
    let watched = bus.fd();
    let mut fds = [
        PollFd::new(end, PollFlags::IN),
        PollFd::from_borrowed_fd(watched.unwrap_or(end.as_fd()), PollFlags::IN),
    ];
    // An error leaves the answers empty; the next look comes soon.
    let _ = poll(&mut fds, Some(&wait));
    let [end, bus] = fds.map(|fd| !fd.revents().is_empty());
    Woken { bus: bus || watched.is_none(), end, ..Woken::default() }
}
