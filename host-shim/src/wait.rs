//! Waiting: spin, then yield, then sleep.
//!
//! Three kinds of sleep:
//! * [`sleep_on_word`]: a blocking read or write of one connection sleeps on a futex in its direction;
//! * [`Sleeper`]: whoever waits for descriptors, too, sleeps in the kernel on them and on an epoll instance of ours that
//!   holds the interrupts and the wires, edge-triggered, so that no sleeper takes another's wake-up;
//! * an application's epoll instance holds such a sleeper's instance inside its own (see [`crate::epoll`]).
//!
//! `unsafe` is allowed here: poll(2) on an array of the caller's.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering, fence};
use core::time::Duration;

use ring::atomic::Heavy;
use ring::stats::Sleep;
use ring::wake::{self, Announced, SleepWord};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags};

use crate::handle::Handle;
use crate::holds::{self, Noted};
use crate::sys::{Errno, Membarrier, Result};
use crate::{
    agent, bells, cancel, config, coordinator, fds, handle, me, process, segments, stats, sys, unaccepted,
};

/// A thread that sleeps on data looks around this often, for a peer that died after the agent did.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Spin rounds before the first yield: about a microsecond.
const ROUNDS_BEFORE_YIELD: u32 = 40;
/// The same while cores are crowded: the one we wait for may need this very core. And before a sleep without any yield.
const ROUNDS_IF_SHORT: u32 = 2;
/// A yield that took longer than this many ticks let somebody else run (a switch there and back; alone it takes 0.2 to 0.8 µs).
const SWITCH_TICKS: u64 = 3_000;
/// Waits for which cores count as crowded after such a yield.
const CROWDED_WAITS: u32 = 16;

/// A yield that took longer than this was more than one time slice of those who compute. The scheduler lets who wakes from a sleep
/// run before them, but not who only yields.
const SLICES: Duration = Duration::from_millis(4);
/// Waits that sleep at once after such a yield.
const SLEEPY_WAITS: u32 = 256;

/// Waits left that sleep at once.
static SLEEPY: AtomicU32 = AtomicU32::new(0);
/// Waits left for which cores count as crowded.
static CROWDED: AtomicU32 = AtomicU32::new(0);
/// Current length of the busy wait, in microseconds: learns from how long waits were.
static SPIN_US: AtomicU32 = AtomicU32::new(u32::MAX);

fn spin_us() -> u32 {
    SPIN_US.load(Ordering::Relaxed).min(config::spin_us_max())
}

/// How often who waits for data may look at once, before a [`Spin`]: not if cores are crowded, or waits were long.
#[must_use]
pub fn looks() -> u32 {
    let long = SLEEPY.load(Ordering::Relaxed) != 0 || spin_us() == 0;
    if long || CROWDED.load(Ordering::Relaxed) != 0 { 0 } else { ROUNDS_BEFORE_YIELD }
}

/// One busy wait.
pub struct Spin {
    round: u32,
    rounds_before_yield: u32,
    start: Option<Duration>,
    budget: Duration,
}

impl Spin {
    /// Starts now, with the current budget.
    #[must_use]
    pub fn new() -> Self {
        let sleepy = SLEEPY.load(Ordering::Relaxed);
        let us = if sleepy == 0 {
            spin_us()
        } else {
            SLEEPY.store(sleepy - 1, Ordering::Relaxed);
            0
        };
        let crowded = CROWDED.load(Ordering::Relaxed);
        if crowded != 0 {
            CROWDED.store(crowded - 1, Ordering::Relaxed);
        }
        let rounds_before_yield = if crowded == 0 && us != 0 { ROUNDS_BEFORE_YIELD } else { ROUNDS_IF_SHORT };
        Spin { round: 0, rounds_before_yield, start: None, budget: Duration::from_micros(u64::from(us)) }
    }

    /// One round. False: the time is over, sleep.
    #[inline(always)]
    pub fn turn(&mut self) -> bool {
        self.round += 1;
        if !self.round.is_multiple_of(self.rounds_before_yield) {
            core::hint::spin_loop();
            return true;
        }
        self.pause()
    }

    /// The slow turn: lets somebody else run on this core, and looks at the clock.
    #[cold]
    fn pause(&mut self) -> bool {
        let now = sys::now();
        let start = *self.start.get_or_insert(now);
        if now - start >= self.budget {
            return false;
        }
        let before = sys::ticks();
        rustix::thread::sched_yield();
        if sys::ticks().wrapping_sub(before) > SWITCH_TICKS {
            CROWDED.store(CROWDED_WAITS, Ordering::Relaxed);
            if sys::now() - now > SLICES {
                SLEEPY.store(SLEEPY_WAITS, Ordering::Relaxed);
                return false;
            }
        }
        true
    }

    /// The wait ended in a sleep that took `slept`: if spinning a little longer would have been enough, spin longer
    /// from now on, else shorter; after a few that were all long, not at all.
    pub fn learn(slept: Duration) {
        let max = config::spin_us_max();
        let next = if slept < Duration::from_micros(u64::from(max)) { max } else { spin_us() / 2 };
        SPIN_US.store(next, Ordering::Relaxed);
    }
}

impl Default for Spin {
    fn default() -> Self {
        Self::new()
    }
}

/// Sleeps on a data word until a waker clears it, or the process is told to look around.
/// `ready` is the second look, after the announcement.
///
/// # Errors
/// `EINTR`, if a handler without `SA_RESTART` ran: the kernel restarts this sleep as it restarts a recv(2) without timeout.
pub fn sleep_on_word(word: &SleepWord, ready: &dyn Fn() -> bool) -> Result<()> {
    // Detached, or not attached yet: nobody tells us anything but the peer.
    let alone = process::patient(Some(Duration::from_millis(50))).unwrap_or_default();
    let Some(notice) = coordinator::notice() else {
        static NEVER: AtomicU32 = AtomicU32::new(0);
        return sleep_on(word, &NEVER, ready, alone);
    };
    sleep_on(word, notice, ready, beat())
}

/// How long a thread may sleep on data, so that it looks around at most [`HEARTBEAT`] after the agent was seen last.
fn beat() -> Duration {
    /// When it was, in ms of the clock.
    static SEEN_AT_MS: AtomicU64 = AtomicU64::new(0);
    let now_ms = u64::try_from(sys::now().as_millis()).unwrap_or(u64::MAX);
    let ago = Duration::from_millis(now_ms.saturating_sub(SEEN_AT_MS.load(Ordering::Relaxed)));
    if ago < HEARTBEAT / 2 {
        return HEARTBEAT - ago;
    }
    if agent_alive() {
        SEEN_AT_MS.store(now_ms, Ordering::Relaxed);
        HEARTBEAT
    } else {
        unaccepted::end_if_alone();
        Duration::from_millis(50)
    }
}

fn sleep_on(word: &SleepWord, notice: &AtomicU32, ready: &dyn Fn() -> bool, beat: Duration) -> Result<()> {
    let seen = notice.load(Ordering::Acquire);
    // Who counts this notice as seen must look at what it told of (SPEC 6.5): completions, and, once for each, the wires.
    static LOOKED: AtomicU32 = AtomicU32::new(0);
    if LOOKED.swap(seen, Ordering::AcqRel) != seen {
        segments::check_wires();
    }
    coordinator::pump();
    let announced = word.announce_and_fence(wake::FUTEX, wake::EVERYBODY, &Membarrier);
    if ready() {
        return Ok(());
    }
    let shown = stats::asleep(Sleep::Stream, None);
    let start = sys::now();
    let result = cancel::asleep(|| sys::futex_wait2((word, announced.futex_value()), (notice, seen), beat));
    drop(shown);
    let slept = sys::now() - start;
    Spin::learn(slept);
    if slept >= beat {
        coordinator::pump();
        segments::check_wires();
    }
    result
}

/// Sleepers: as many as there are bits in [`segments::Mapped::watched_by`].
const SLEEPERS_MAX: usize = 64;

struct Place {
    taken: AtomicU32,
    epoll: AtomicI32,
    /// Descriptor and number of its bell: [`crate::bells`].
    bell: AtomicI32,
    number: AtomicU32,
    /// Indices, plus one, of the handles that the sleeper keeps open.
    open: [AtomicU32; OPEN_MAX],
}

/// Connections that a sleeper keeps open, as poll(2) does. Of one beyond these, a close by another thread takes effect at once.
const OPEN_MAX: usize = 32;

impl Place {
    const fn new() -> Self {
        Place {
            taken: AtomicU32::new(0),
            epoll: AtomicI32::new(-1),
            bell: AtomicI32::new(-1),
            number: AtomicU32::new(wake::EVERYBODY),
            open: [const { AtomicU32::new(0) }; OPEN_MAX],
        }
    }

    /// Takes up to `max` rings out of its bell.
    fn silence(&self, max: u32) {
        let bell = self.bell.load(Ordering::Relaxed);
        let _ = bell >= 0 && (0..max).all(|_| bells::silence(bell));
    }
}

static SLEEPERS: [Place; SLEEPERS_MAX] = [const { Place::new() }; SLEEPERS_MAX];
/// Sleeping threads, and changes that they should see.
static ASLEEP: AtomicU64 = AtomicU64::new(0);

/// The right to sleep on an epoll instance of ours. Given back when dropped.
pub struct Sleeper {
    index: usize,
    fd: i32,
}

/// Data word of interrupts and the agent's socket in a sleeper's set; wires have their segment's index.
const NOT_A_WIRE: u64 = u64::MAX;
/// Data word of the sleeper's bell.
const BELL: u64 = u64::MAX - 1;
/// Rings that are taken out of a full bell at once.
const RINGS_MAX: u32 = 64;

impl Sleeper {
    /// A free one, its set up to date. `None`: all are in use, or descriptors are.
    #[must_use]
    pub fn acquire() -> Option<Sleeper> {
        // A thread takes the one that it had before, if it can: what is left of its announcements names the same bell.
        let first = me::tid() as usize % SLEEPERS_MAX;
        let used = SLEEPERS.iter().enumerate();
        for (index, place) in used.clone().skip(first).chain(used.take(first)) {
            if place.taken.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            let mut fd = place.epoll.load(Ordering::Relaxed);
            if fd < 0 {
                let Some(new) = make_set(place) else {
                    place.taken.store(0, Ordering::Release);
                    return None;
                };
                fd = new;
                place.epoll.store(fd, Ordering::Relaxed);
            }
            let s = Sleeper { index, fd };
            s.sync();
            return Some(s);
        }
        None
    }

    /// Keeps it for good, by index (an application's epoll instance does).
    #[must_use]
    pub fn keep(self) -> u32 {
        let index = self.index;
        core::mem::forget(self);
        u32::try_from(index).unwrap_or(0)
    }

    /// A kept one.
    #[must_use]
    pub fn kept(index: u32) -> core::mem::ManuallyDrop<Sleeper> {
        let index = index as usize;
        let fd = SLEEPERS.get(index).map_or(-1, |p| p.epoll.load(Ordering::Relaxed));
        core::mem::ManuallyDrop::new(Sleeper { index, fd })
    }

    /// Our epoll instance, for putting it into another set.
    #[must_use]
    pub fn fd(&self) -> i32 {
        self.fd
    }

    /// The number of its bell, for announcements.
    #[must_use]
    pub fn bell(&self) -> u32 {
        SLEEPERS.get(self.index).map_or(wake::EVERYBODY, |p| p.number.load(Ordering::Relaxed))
    }

    /// Keeps connections open until the sleeper is given back.
    pub fn keep_open<'a>(&self, handles: impl Iterator<Item = &'a Handle>) {
        let Some(place) = SLEEPERS.get(self.index) else { return };
        for (open, h) in place.open.iter().zip(handles) {
            if let Some(pinned) = h.pin() {
                core::mem::forget(pinned);
                open.store(h.index() + 1, Ordering::Relaxed);
            }
        }
    }

    /// Adds the wires of segments that were mapped since.
    pub fn sync(&self) {
        let bit = 1u64 << self.index;
        for (index, m) in segments::all() {
            if m.watched_by.load(Ordering::Relaxed) & bit != 0 {
                continue;
            }
            let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
            let data = EventData::new_u64(u64::from(index));
            if epoll::add(sys::borrow(self.fd), sys::borrow(m.wire()), data, flags).is_ok() {
                m.watched_by.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    /// Forgets past edges: rings are taken from the wires, hang-ups noticed, completions taken.
    pub fn drain(&self) {
        let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 32];
        loop {
            let n = epoll::wait(sys::borrow(self.fd), &mut events[..], Some(&sys::timespec(Duration::ZERO)))
                .unwrap_or(0);
            for e in events.iter().take(n) {
                let (data, flags) = (e.data.u64(), e.flags);
                if data == NOT_A_WIRE && flags.intersects(EventFlags::HUP | EventFlags::RDHUP) {
                    unaccepted::end_if_alone();
                    continue;
                }
                if data == BELL {
                    if let Some(place) = SLEEPERS.get(self.index) {
                        place.silence(1);
                    }
                    continue;
                }
                let Some(m) = u32::try_from(data).ok().and_then(segments::by_index).filter(|m| m.wire() >= 0)
                else {
                    continue;
                };
                if flags.intersects(EventFlags::HUP | EventFlags::RDHUP) {
                    // Asked of the wire itself: the event may be of an earlier segment in this place, whose wire a forked
                    // relative still holds.
                    m.check();
                    m.unmap_if_unused();
                } else {
                    m.drain();
                    if let Some(place) = SLEEPERS.get(self.index) {
                        place.silence(RINGS_MAX);
                    }
                }
            }
            if n < events.len() {
                break;
            }
        }
        coordinator::pump();
    }

    /// Sleeps until an edge, one of `fds` (up to `extra`), or the timeout. `EINTR` whenever a handler ran.
    ///
    /// # Errors
    /// `EINTR`.
    fn sleep(&self, extra: Option<i32>, timeout: Option<Duration>, cancellable: bool) -> Result<()> {
        let own = PollFd::from_borrowed_fd(sys::borrow(self.fd), PollFlags::IN);
        let other = PollFd::from_borrowed_fd(sys::borrow(extra.unwrap_or(self.fd)), PollFlags::IN);
        let mut set = [own, other];
        let end = timeout.map(sys::timespec);
        let shown = stats::asleep(Sleep::Answer, extra);
        let start = sys::now();
        let result = if cancellable {
            cancel::asleep(|| rustix::event::poll(&mut set, end.as_ref()))
        } else {
            rustix::event::poll(&mut set, end.as_ref())
        };
        drop(shown);
        Spin::learn(sys::now() - start);
        self.drain();
        match result {
            Err(rustix::io::Errno::INTR) => Err(Errno(libc::EINTR)),
            _ => Ok(()),
        }
    }
}

/// Gives back a sleeper of a call that never returned.
fn give_back(index: usize, _: usize) {
    drop(Sleeper { index, fd: -1 });
}

impl Sleeper {
    /// For a call that is going to sleep.
    pub fn note(&self) -> Noted {
        holds::note(give_back, [self.index, 0])
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        if let Some(place) = SLEEPERS.get(self.index) {
            for open in &place.open {
                if let Some(index) = open.swap(0, Ordering::Relaxed).checked_sub(1) {
                    handle::unpin(index as usize, handle::era() as usize);
                }
            }
            place.taken.store(0, Ordering::Release);
        }
    }
}

fn make_set(place: &Place) -> Option<i32> {
    let fd = fds::made(|| epoll::create(CreateFlags::CLOEXEC)).ok()?;
    watch(fd);
    let (bell, mut number) = bells::hang();
    let flags = EventFlags::IN | EventFlags::ET;
    if bell >= 0 && epoll::add(sys::borrow(fd), sys::borrow(bell), EventData::new_u64(BELL), flags).is_err() {
        number = wake::EVERYBODY;
    }
    fds::discard(place.bell.swap(bell, Ordering::AcqRel));
    place.number.store(number, Ordering::Relaxed);
    Some(fd)
}

/// The interrupts and the agent's socket, whose end is news, too.
fn watch(set: i32) {
    let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
    for member in [process::irq(0), process::irq(1), agent::fd()] {
        if member >= 0 {
            let _ = epoll::add(sys::borrow(set), sys::borrow(member), EventData::new_u64(NOT_A_WIRE), flags);
        }
    }
}

/// Attached anew: sets that exist have lost the former interrupts.
pub fn watch_again() {
    for place in &SLEEPERS {
        let set = place.epoll.load(Ordering::Relaxed);
        if set >= 0 {
            watch(set);
        }
    }
}

/// What one sleeper has announced in several words, for the barrier that they share.
pub struct Announcements {
    bell: u32,
    /// Addresses of words that are not settled yet.
    unsettled: [(usize, Option<Announced>); UNSETTLED_MAX],
    count: usize,
}

/// Words that one barrier settles; more cost another barrier next time.
const UNSETTLED_MAX: usize = 64;

impl Announcements {
    /// None yet. `bell`: the sleeper's.
    #[must_use]
    pub fn new(bell: u32) -> Self {
        Announcements { bell, unsettled: [(0, None); UNSETTLED_MAX], count: 0 }
    }

    /// Announces the sleeper in `word`.
    pub fn announce(&mut self, word: &SleepWord) {
        let announced = word.announce(wake::WIRE, self.bell);
        if !announced.is_settled() {
            if let Some(place) = self.unsettled.get_mut(self.count) {
                *place = (core::ptr::from_ref(word) as usize, Some(announced));
            }
            self.count += 1;
        }
    }

    /// The barrier that is due now. True if it was the heavy one: then each word should be given to [`Announcements::settle`].
    #[must_use]
    pub fn fence(&self, heavy: bool) -> bool {
        let heavy = heavy || self.count > 0;
        if heavy {
            Membarrier.heavy_barrier();
        } else {
            // SeqCst: pairs with the wakers' fences (SPEC 6.7).
            fence(Ordering::SeqCst);
        }
        heavy
    }

    /// After a heavy barrier: the next sleeper on this word needs none.
    pub fn settle(&self, word: &SleepWord) {
        let address = core::ptr::from_ref(word) as usize;
        let found = self.unsettled.iter().take(self.count).find(|(at, _)| *at == address);
        if let Some(announced) = found.and_then(|(_, announced)| *announced) {
            word.settle(announced);
        }
    }
}

/// A thread is about to sleep, until the guard is dropped: [`kick_others`] knows.
pub struct Asleep;

impl Asleep {
    /// Counts it. The heavy barrier that follows orders this before the second look.
    #[must_use]
    pub fn announce() -> Self {
        ASLEEP.fetch_add(1, Ordering::AcqRel);
        Asleep
    }

    /// For a call that is going to sleep.
    pub fn note() -> Noted {
        holds::note(|_, _| drop(Asleep), [0; 2])
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        ASLEEP.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Wakes this process's other threads that sleep on a [`Sleeper`]: this thread took news that may be theirs.
pub fn kick_others() {
    // Pairs with the barrier of whoever goes to sleep: its second look sees what this thread did, or we see it asleep.
    // SeqCst: it may have fenced only.
    fence(Ordering::SeqCst);
    if ASLEEP.load(Ordering::Acquire) > 0 {
        let _ = rustix::io::write(sys::borrow(process::irq(0)), &1u64.to_ne_bytes());
    }
}

/// Sleeps until the coordinator sends something, or `timeout`; `ready` is the second look.
pub fn sleep_for_completions(ready: &dyn Fn() -> bool, timeout: Duration) {
    let _ = sleep_on_sleeper(None, None, ready, Some(timeout), false);
}

/// Sleeps for completions or, if given, for `extra` to become readable and for `word` to be claimed. `ready` is the second look.
/// A cancellation point.
///
/// # Errors
/// `EINTR`.
pub fn sleep_with(
    extra: Option<i32>,
    word: Option<&SleepWord>,
    ready: &dyn Fn() -> bool,
    timeout: Option<Duration>,
) -> Result<()> {
    sleep_on_sleeper(extra, word, ready, timeout, true)
}

fn sleep_on_sleeper(
    extra: Option<i32>,
    word: Option<&SleepWord>,
    ready: &dyn Fn() -> bool,
    timeout: Option<Duration>,
    cancellable: bool,
) -> Result<()> {
    let timeout = process::patient(timeout);
    let Some(sleeper) = Sleeper::acquire() else {
        // No descriptor for sleeping: look again a little later.
        rustix::thread::sched_yield();
        let _ = rustix::event::poll(&mut [], Some(&sys::timespec(Duration::from_millis(1))));
        coordinator::pump();
        return Ok(());
    };
    let _noted = sleeper.note();
    let _asleep = Asleep::announce();
    let _noted_asleep = Asleep::note();
    sleeper.drain();
    match word {
        Some(word) => {
            word.announce_and_fence(wake::WIRE, sleeper.bell(), &Membarrier);
        }
        // The coordinator's words need no barrier of ours (SPEC 2.5), and our own threads fence.
        None => fence(Ordering::SeqCst),
    }
    if coordinator::arm() || ready() {
        return Ok(());
    }
    sleeper.sleep(extra, timeout, cancellable)
}

/// False once the agent has closed its end.
pub fn agent_alive() -> bool {
    let fd = agent::fd();
    if fd < 0 {
        return false;
    }
    let mut set = [PollFd::from_borrowed_fd(sys::borrow(fd), PollFlags::RDHUP)];
    let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
    match rustix::event::poll(&mut set, Some(&sys::timespec(Duration::ZERO))) {
        Ok(n) if n > 0 => !set.iter().any(|p| p.revents().intersects(gone)),
        _ => true,
    }
}

/// `fd` was a set of ours and is the application's now: the next sleeper makes another one.
pub fn lost(fd: i32) {
    for place in &SLEEPERS {
        if place.epoll.compare_exchange(fd, -1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            segments::forget_sleepers();
        }
        if place.bell.compare_exchange(fd, -1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            place.number.store(wake::EVERYBODY, Ordering::Relaxed);
        }
    }
}

/// After fork, in the child: the sets are shared with the parent, so they are left alone, and new ones made.
pub fn forget_sleepers() {
    // Those alone that were ever used: what is written to here, the kernel copies.
    let is_used = |p: &&Place| {
        let made = p.epoll.load(Ordering::Relaxed).max(p.bell.load(Ordering::Relaxed)) >= 0;
        made || p.taken.load(Ordering::Relaxed) != 0
    };
    for place in SLEEPERS.iter().filter(is_used) {
        fds::discard(place.epoll.swap(-1, Ordering::AcqRel));
        fds::discard(place.bell.swap(-1, Ordering::AcqRel));
        // Calls of the parent's: the pins are forgotten with the handles'.
        place.open.iter().for_each(|open| open.store(0, Ordering::Relaxed));
        place.taken.store(0, Ordering::Release);
    }
    ASLEEP.store(0, Ordering::Relaxed);
    segments::forget_sleepers();
}
