//! Requests to the coordinator and its completions.
//!
//! Any thread takes completions for all: answers go to the place that the asking thread left, announcements to the
//! handle they concern. A thread that took something while others sleep kicks them through the
//! process's own interrupt descriptor.
//!
//! `unsafe` is allowed here: one look at the next completion without the lock.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use core::time::Duration;

use ring::msg::{Completion, ConnId, Request, Status};
use ring::queue::Requests;
use ring::window::{FarWindow, HostEnd, HostMemory, Raw};

use crate::handle::{self, Handle};
use crate::lock::{Guarded, Lock};
use crate::sys::NoSignals;
use crate::wait::{self, Spin};
use crate::{early, granted, process, segments, sock, socket, sys, unaccepted};

/// Longest wait for an answer that the coordinator gives at once.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Answers that threads of this process wait for at the same time.
const PENDING_MAX: usize = 256;
/// Requests in a row that the coordinator is not woken for (SPEC 2.6.6).
const QUIET_MAX: u32 = 32;
/// Completions taken at once under the lock.
const BATCH: usize = 16;

struct Rings {
    end: HostEnd<'static>,
    /// Requests since the doorbell was last looked at ([`post_quietly`]).
    quiet: u32,
    notice: &'static AtomicU32,
}

static RINGS: Guarded<Option<Rings>> = Guarded::new(None);
/// Held while completions are taken and acted on.
static DISPATCH: Lock = Lock::new();
static NEXT_TOKEN: AtomicU32 = AtomicU32::new(1);

/// Header of the completion that comes next, and what it will be: kept up to date under the lock.
static NEXT_HEADER: AtomicPtr<AtomicU64> = AtomicPtr::new(core::ptr::null_mut());
static NEXT_SEQUENCE: AtomicU32 = AtomicU32::new(0);

/// Where an answer is left: `state` says what the rest is.
struct Pending {
    token: AtomicU32,
    state: AtomicU32,
    /// Index plus one of the listener that an `Accept` is for; and [`AHEAD`].
    listener: AtomicU32,
    words: [AtomicU64; 7],
}

/// See [`start_ahead`].
const AHEAD: u32 = 1 << 31;
/// In [`Handle::ready`] of a listener: connections wait at the coordinator.
const AT_COORDINATOR: u32 = 1;
/// As many above that wait here.
const HERE: u32 = 2;

const FREE: u32 = 0;
const WAITING: u32 = 1;
const ANSWERED: u32 = 2;

static PENDING: [Pending; PENDING_MAX] = [const {
    Pending {
        token: AtomicU32::new(0),
        state: AtomicU32::new(FREE),
        listener: AtomicU32::new(0),
        words: [const { AtomicU64::new(0) }; 7],
    }
}; PENDING_MAX];

/// Places of [`PENDING`] that were ever used.
static PENDING_USED: AtomicUsize = AtomicUsize::new(0);

/// A request was not answered: the coordinator is gone, silent, or too busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoAnswer;

/// A request on its way. Must be ended with [`Ticket::finish`] or [`Ticket::abandon`].
#[derive(Clone, Copy)]
pub struct Ticket {
    place: usize,
    /// Repeated in the answer.
    pub token: u32,
}

/// Uses newly mapped rings.
pub fn install(requests: Requests<'static>, window: &FarWindow<'static>, host: &HostMemory<'static>) {
    // What a former coordinator sent is acted on before, or never.
    let _in_order = DISPATCH.take();
    early::forget_all();
    granted::forget_all();
    SILENT_UNTIL_S.store(0, Ordering::Relaxed);
    if let Some(mut rings) = RINGS.take() {
        let end = HostEnd::new(requests, window, &host.near());
        show_next(&end);
        *rings = Some(Rings { end, quiet: 0, notice: &host.header.notice });
    }
}

/// After fork, in the child: these rings are the parent's. (Its mappings stay; they are small.)
pub fn uninstall() {
    granted::forget_all();
    if let Some(mut rings) = RINGS.take() {
        *rings = None;
        NEXT_HEADER.store(core::ptr::null_mut(), Ordering::Relaxed);
    }
    // Those alone that are in use: what is written to here, the kernel copies.
    let used = PENDING.iter().take(PENDING_USED.load(Ordering::Relaxed));
    for p in used.filter(|p| p.state.load(Ordering::Relaxed) != FREE) {
        p.state.store(FREE, Ordering::Relaxed);
    }
}

fn show_next(end: &HostEnd<'static>) {
    if let Some((header, sequence)) = end.completions().next_header() {
        NEXT_SEQUENCE.store(sequence, Ordering::Relaxed);
        NEXT_HEADER.store(core::ptr::from_ref(header.get()).cast_mut(), Ordering::Release);
    }
}

/// Something waits to be taken. A hint: another thread may be taking it right now.
#[inline(always)]
pub fn has_news() -> bool {
    // SAFETY: null, or a header in host memory of this process, which is mapped for good.
    let header = unsafe { NEXT_HEADER.load(Ordering::Acquire).as_ref() };
    header.is_some_and(|h| {
        h.load(Ordering::Relaxed) & 0xffff_ffff == u64::from(NEXT_SEQUENCE.load(Ordering::Relaxed))
    })
}

/// For the fork handlers: what is held while completions are acted on, and what guards the rings.
pub fn locks() -> [&'static Lock; 2] {
    [&DISPATCH, RINGS.lock()]
}

/// Posts a request that is not answered, or whose answer is awaited with a ticket.
fn push(request: Request, token: u32) -> Result<(), NoAnswer> {
    push_as(request, token, false)
}

/// `quiet`: nobody is woken for it, unless many have gathered.
fn push_as(request: Request, token: u32, mut quiet: bool) -> Result<(), NoAnswer> {
    let raw = request.to_raw(token);
    let (start, epoch) = (sys::now(), process::epoch());
    loop {
        {
            let mut guard = RINGS.take().ok_or(NoAnswer)?;
            let rings = guard.as_mut().ok_or(NoAnswer)?;
            if quiet && rings.quiet < QUIET_MAX && rings.end.post_quietly(&raw).is_ok() {
                rings.quiet += 1;
                return Ok(());
            }
            let posted = rings.end.post(&raw);
            rings.quiet = 0;
            // SeqCst: pairs with the fence of the card that goes to sleep (SPEC 2.6.3): we see the word, or it sees the request.
            if rings.end.doorbell_wanted(|| fence(Ordering::SeqCst)) {
                ring_doorbell();
            }
            if posted.is_ok() {
                return Ok(());
            }
        }
        quiet = false;
        pump();
        if is_silent() || sys::now() - start > ANSWER_MAX {
            return Err(unanswered(epoch));
        }
        rustix::thread::sched_yield();
    }
}

/// When it last said anything.
static HEARD_AT_US: AtomicU64 = AtomicU64::new(0);

/// Has the coordinator said something in the time before `now_us`? Then it lives, as far as one can know without asking.
pub fn was_heard_within(time_us: u64, now_us: u64) -> bool {
    !is_silent() && now_us.saturating_sub(HEARD_AT_US.load(Ordering::Relaxed)) <= time_us
}

/// Until when the coordinator is not asked anything, in seconds of the clock; 0: it answers.
static SILENT_UNTIL_S: AtomicU64 = AtomicU64::new(0);
/// How long it is left alone after it did not answer: one who waits for nothing this often hardly notices.
const SILENCE: Duration = Duration::from_secs(5);

fn is_silent() -> bool {
    let until = SILENT_UNTIL_S.load(Ordering::Relaxed);
    until != 0 && sys::now().as_secs() < until
}

/// No answer in time from the coordinator of `epoch`: it is gone, or too busy, and what is new uses the kernel for a while.
fn unanswered(epoch: u32) -> NoAnswer {
    if !wait::agent_alive() {
        process::become_inert(epoch);
        unaccepted::end();
    } else if !is_silent() {
        SILENT_UNTIL_S.store((sys::now() + SILENCE).as_secs(), Ordering::Relaxed);
    }
    NoAnswer
}

fn ring_doorbell() {
    let _ = rustix::io::write(sys::borrow(process::doorbell()), &1u64.to_ne_bytes());
}

/// Posts a request that is not answered.
///
/// # Errors
/// [`NoAnswer`]: not attached, or the coordinator is gone.
pub fn post(request: Request) -> Result<(), NoAnswer> {
    if !process::is_attached() {
        return Err(NoAnswer);
    }
    push(request, 0)
}

/// Posts a request that is not answered, and that nobody waits for: a coordinator that sleeps does it when something else wakes it
/// (SPEC 2.6.6).
///
/// # Errors
/// As [`post`].
pub fn post_quietly(request: Request) -> Result<(), NoAnswer> {
    if !process::is_attached() {
        return Err(NoAnswer);
    }
    push_as(request, 0, true)
}

/// Posts a request and returns at once. `listener`: what an `Accept` is for; its readiness follows from the answer, in
/// order with announcements.
///
/// # Errors
/// [`NoAnswer`]: not attached, the coordinator is gone, or too many requests are under way.
pub fn start(listener: Option<&Handle>, request: Request) -> Result<Ticket, NoAnswer> {
    start_as(listener.map_or(0, |h| h.index() + 1), request)
}

/// [`start`], of an `Accept` that nobody waits for yet: a connection in its answer counts in [`Handle::ready`], until it is [`taken`].
///
/// # Errors
/// As [`start`].
pub fn start_ahead(listener: &Handle, request: Request) -> Result<Ticket, NoAnswer> {
    start_as((listener.index() + 1) | AHEAD, request)
}

fn start_as(listener: u32, request: Request) -> Result<Ticket, NoAnswer> {
    if !process::is_attached() || is_silent() {
        return Err(NoAnswer);
    }
    let claimed = PENDING.iter().position(|p| {
        p.state.load(Ordering::Relaxed) == FREE
            && p.state.compare_exchange(FREE, WAITING, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    });
    let place = claimed.ok_or(NoAnswer)?;
    if place >= PENDING_USED.load(Ordering::Relaxed) {
        PENDING_USED.fetch_max(place + 1, Ordering::Relaxed);
    }
    let mut token = NEXT_TOKEN.fetch_add(1, Ordering::Relaxed);
    if token == 0 {
        token = NEXT_TOKEN.fetch_add(1, Ordering::Relaxed);
    }
    let ticket = Ticket { place, token };
    let pending = ticket.pending().ok_or(NoAnswer)?;
    pending.listener.store(listener, Ordering::Relaxed);
    pending.token.store(token, Ordering::Release);
    push(request, token).inspect_err(|_| ticket.abandon())?;
    Ok(ticket)
}

/// Posts a request and waits for its answer, a bounded time.
///
/// # Errors
/// [`NoAnswer`]; the coordinator is not asked for a while then.
pub fn call(request: Request) -> Result<Completion, NoAnswer> {
    let epoch = process::epoch();
    answer(start(None, request)?, epoch)
}

/// [`call`] of who has blocked signals, which is not done again; with the listener that an `Accept` is for.
///
/// # Errors
/// As [`call`].
pub fn call_undisturbed(
    signals: &NoSignals,
    listener: Option<&Handle>,
    request: Request,
) -> Result<Completion, NoAnswer> {
    let epoch = process::epoch();
    answer_undisturbed(signals, start(listener, request)?, epoch)
}

/// Who acts on completions can't wait for one.
pub fn may_wait() -> bool {
    !DISPATCH.is_own()
}

/// Posts a request of which nothing but its being done is of interest, and waits for that where one can.
pub fn done(request: Request) {
    let epoch = process::epoch();
    match if may_wait() { start(None, request) } else { Err(NoAnswer) } {
        Ok(ticket) => drop(answer(ticket, epoch)),
        Err(NoAnswer) => drop(post(request)),
    }
}

/// The answer to a request to the coordinator of `epoch`, waited for a bounded time.
///
/// # Errors
/// As [`call`].
pub fn answer(ticket: Ticket, epoch: u32) -> Result<Completion, NoAnswer> {
    answer_by(ticket, epoch, pump)
}

/// [`answer`], of who has blocked signals.
///
/// # Errors
/// As [`call`].
pub fn answer_undisturbed(signals: &NoSignals, ticket: Ticket, epoch: u32) -> Result<Completion, NoAnswer> {
    answer_by(ticket, epoch, || pump_undisturbed(signals))
}

fn answer_by(ticket: Ticket, epoch: u32, pump: impl Fn() -> bool) -> Result<Completion, NoAnswer> {
    let start = sys::now();
    let mut spin = Spin::new();
    loop {
        pump();
        if let Some(answer) = ticket.finish() {
            return Ok(answer);
        }
        if !await_news(ticket, &mut spin, start, epoch) {
            ticket.abandon();
            return Err(unanswered(epoch));
        }
    }
}

/// Waits until there is something to take, or looks for it are due. False: the time since `start` is over, or the coordinator of `epoch` gone.
/// A function of its own, so that `make guard` can leave out how long an answer took.
#[inline(never)]
fn await_news(ticket: Ticket, spin: &mut Spin, start: Duration, epoch: u32) -> bool {
    while spin.turn() {
        if has_news() || ticket.is_answered() {
            return true;
        }
    }
    let left = ANSWER_MAX.saturating_sub(sys::now() - start);
    if left.is_zero() || !wait::agent_alive() || process::epoch() != epoch {
        return false;
    }
    wait::sleep_for_completions(&|| ticket.is_answered(), left);
    true
}

impl Ticket {
    /// Of no request.
    pub const NONE: Ticket = Ticket { place: usize::MAX, token: 0 };

    /// As one word, for [`crate::holds`].
    pub fn packed(self) -> usize {
        self.place << 32 | self.token as usize
    }

    /// What [`Ticket::packed`] gave.
    #[allow(clippy::cast_possible_truncation)] // the low half
    pub fn unpacked(word: usize) -> Ticket {
        Ticket { place: word >> 32, token: word as u32 }
    }

    fn pending(self) -> Option<&'static Pending> {
        PENDING.get(self.place)
    }

    /// The answer is there.
    pub fn is_answered(self) -> bool {
        // Acquire: pairs with the Release in `deliver`.
        self.pending().is_some_and(|p| p.state.load(Ordering::Acquire) == ANSWERED)
    }

    /// Takes the answer, if it is there; the ticket is used up then.
    pub fn finish(self) -> Option<Completion> {
        if !self.is_answered() {
            return None;
        }
        let p = self.pending()?;
        let [head, body @ ..] = &p.words;
        let mut raw = Raw { token: self.token, ..Raw::default() };
        let word = head.load(Ordering::Relaxed);
        raw.kind = u8::try_from(word & 0xff).unwrap_or(0);
        raw.status = u16::try_from(word >> 8 & 0xffff).unwrap_or(0);
        for (to, from) in raw.body.iter_mut().zip(body) {
            *to = from.load(Ordering::Relaxed);
        }
        self.abandon();
        Completion::from_raw(&raw).ok()
    }

    /// Gives up: a later answer is dropped.
    pub fn abandon(self) {
        if let Some(p) = self.pending() {
            p.token.store(0, Ordering::Relaxed);
            p.state.store(FREE, Ordering::Release);
        }
    }
}

/// Leaves an answer for its thread. True if somebody waits for it.
fn deliver(raw: &Raw) -> bool {
    let found = PENDING
        .iter()
        .find(|p| p.state.load(Ordering::Acquire) == WAITING && p.token.load(Ordering::Relaxed) == raw.token);
    let Some(p) = found else { return false };
    let [head, body @ ..] = &p.words;
    head.store(u64::from(raw.kind) | u64::from(raw.status) << 8, Ordering::Relaxed);
    for (to, from) in body.iter().zip(raw.body) {
        to.store(from, Ordering::Relaxed);
    }
    let listener = p.listener.load(Ordering::Relaxed);
    if let (Some(h), Ok(Completion::Accepted { status, more, .. })) =
        ((listener & !AHEAD).checked_sub(1).and_then(handle::by_index), Completion::from_raw(raw))
    {
        // First what is here: who looks in between must not see that there is nobody. Whoever watches has heard of it when it came.
        if listener & AHEAD != 0 && status == Status::Ok {
            h.ready.fetch_add(HERE, Ordering::Release);
        }
        wait_at_coordinator(h, more);
    }
    // Release: pairs with the Acquire in `is_answered`.
    p.state.store(ANSWERED, Ordering::Release);
    true
}

/// Connections wait for the listener `h` at the coordinator, or don't.
pub fn wait_at_coordinator(h: &Handle, any: bool) {
    let change = |ready| Some(ready & !AT_COORDINATOR | if any { AT_COORDINATOR } else { 0 });
    let _ = h.ready.fetch_update(Ordering::Release, Ordering::Relaxed, change);
}

/// Does one wait there?
pub fn more_wait(h: &Handle) -> bool {
    h.ready.load(Ordering::Acquire) & AT_COORDINATOR != 0
}

/// A connection of the listener `h` that was asked for ahead has found somebody who accepts it.
pub fn taken(h: &Handle) {
    h.ready.fetch_sub(HERE, Ordering::AcqRel);
}

/// Takes what the coordinator has sent. Cheap when there is nothing. True if there was something.
#[inline(always)]
pub fn pump() -> bool {
    has_news() && take_all()
}

/// [`pump`], of who has blocked signals.
pub fn pump_undisturbed(signals: &NoSignals) -> bool {
    has_news() && take_batches(signals)
}

#[cold]
fn take_all() -> bool {
    take_batches(&NoSignals::briefly())
}

/// A handler that ran in the middle of this could not get its own answers. A function of its own for `make guard`, too.
#[inline(never)]
fn take_batches(_signals: &NoSignals) -> bool {
    let mut any = false;
    loop {
        let mut refused = [const { None }; BATCH];
        if !take_batch(&mut refused) {
            return any;
        }
        any = true;
        for request in refused.into_iter().flatten() {
            let _ = push(request, 0);
        }
        wait::kick_others();
    }
}

/// Takes up to [`BATCH`] completions, and acts on them in their order: what is said of a listener last must stay the
/// last word (SPEC 3.8). False: there were none.
fn take_batch(refused: &mut [Option<Request>; BATCH]) -> bool {
    let Some(_in_order) = DISPATCH.take() else { return false };
    let mut batch = [Raw::default(); BATCH];
    let mut n = 0;
    {
        let Some(mut guard) = RINGS.take() else { return false };
        let Some(rings) = guard.as_mut() else { return false };
        for place in &mut batch {
            match rings.end.take() {
                Ok(Some(raw)) => {
                    *place = raw;
                    n += 1;
                }
                Ok(None) => break,
                Err(_) => {
                    process::become_inert(process::epoch());
                    break;
                }
            }
        }
        show_next(&rings.end);
    }
    for (raw, refused) in batch.iter().take(n).zip(refused) {
        *refused = dispatch(raw);
    }
    if n > 0 {
        HEARD_AT_US.store(sys::now_us(), Ordering::Relaxed);
    }
    n > 0
}

/// Returns what to tell the coordinator, if something came that nobody here waits for any more.
fn dispatch(raw: &Raw) -> Option<Request> {
    match Completion::from_raw(raw) {
        Ok(Completion::Ready { listener, waiting }) => {
            if !tell_ready(listener, waiting) {
                early::note(early::listener_key(listener), u32::from(waiting));
                tell_ready(listener, waiting);
            }
        }
        Ok(Completion::Granted { conn, dst }) => {
            if !granted::add(conn, dst) {
                return Some(granted::gives_up(conn));
            }
        }
        Ok(Completion::PeerGone { conn, reset }) => {
            if granted::is_taken_back(conn) {
                return Some(granted::gives_up(conn));
            }
            let how = if reset { sock::DEAD_RESET } else { sock::DEAD };
            if !tell_gone(conn, how) {
                early::note(conn.0, how);
                tell_gone(conn, how);
            }
        }
        Ok(Completion::Shut { conn, side }) => {
            if let Some(h) = segments::find_connection(conn, side) {
                crate::epoll::handle_changed(h);
                crate::wait::kick_others();
            }
        }
        Ok(Completion::Paired { serial, conn }) => {
            if !crate::unix::paired(serial, conn) {
                return Some(Request::Close { conn, side: 0, finished: false });
            }
        }
        Ok(Completion::Credit | Completion::MakeSegment { .. } | Completion::DropSegment { .. }) | Err(_) => {
        }
        Ok(answer) => {
            if !deliver(raw) {
                return match answer {
                    Completion::Accepted { status: Status::Ok, conn, .. } => Some(Request::Requeue { conn }),
                    Completion::Connected { status: Status::Ok, conn } => {
                        Some(Request::Close { conn, side: 0, finished: false })
                    }
                    Completion::Claimed { status: Status::Ok, conn } => {
                        Some(Request::Close { conn, side: 1, finished: false })
                    }
                    Completion::Done { status: Status::Ok, value } => {
                        Some(Request::Unlisten { listener: value })
                    }
                    _ => None,
                };
            }
        }
    }
    None
}

/// The other side of a connection is gone: everybody here who waits for it looks at that.
pub fn peer_gone(h: &'static Handle, how: u32) {
    let Some(_pinned) = h.pin() else { return };
    let Some(s) = h.stream() else { return };
    if s.is_unix() && crate::dual::is_kernels_end(&s) {
        return;
    }
    s.sock.dead.store(how, Ordering::Release);
    socket::wake_own_side(h, &s);
    crate::epoll::handle_changed(h);
}

/// False: this process does not have the connection (yet).
fn tell_gone(conn: ConnId, how: u32) -> bool {
    let mut found = false;
    for h in (0..2).filter_map(|side| segments::find_connection(conn, side)) {
        peer_gone(h, how);
        found = true;
    }
    found
}

/// False: this process does not have the listener (yet).
fn tell_ready(listener: u32, waiting: bool) -> bool {
    let mut found = false;
    for h in listeners(listener) {
        wait_at_coordinator(h, waiting);
        crate::epoll::handle_changed(h);
        found = true;
    }
    found
}

fn listeners(number: u32) -> impl Iterator<Item = &'static Handle> {
    crate::listener::all().filter(move |h| h.is_current() && h.place.load(Ordering::Relaxed) == number)
}

/// Asks for an interrupt when the coordinator sends the next completion. True: something is already there.
pub fn arm() -> bool {
    let Some(mut guard) = RINGS.take() else { return true };
    let Some(rings) = guard.as_mut() else { return false };
    // SeqCst: as there (SPEC 2.5.3): we see the completion, or the card sees `armed`.
    let armed = rings.end.arm(|| fence(Ordering::SeqCst));
    if armed.ring {
        ring_doorbell();
    }
    armed.ready
}

/// The word that the agent bumps when a thread that sleeps on a futex should look around, if attached.
pub fn notice() -> Option<&'static core::sync::atomic::AtomicU32> {
    RINGS.take()?.as_ref().map(|r| r.notice)
}
