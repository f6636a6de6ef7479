//! This process as a function of the card: attached at the first TCP socket, and again when agent and coordinator were
//! replaced.
//!
//! `unsafe` is allowed here: mapping what the agent hands out.
#![allow(unsafe_code)]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use ring::attach::{Call, Reply};
use ring::queue::{COMMON_BYTES, CommonMemory, Requests};
use ring::shared::Region;
use ring::stats::STATS_BYTES;
use ring::window::{HOST_BYTES, HostMemory, WINDOW_BYTES, Window};
use rustix::mm::{MapFlags, ProtFlags};

use crate::agent::{self, AgentError};
use crate::config::{self, Log, log};
use crate::lock::Guarded;
use crate::sys::NoSignals;
use crate::{ahead, coordinator, faces, fds, handlers, listener, me, options, stats, sys, unaccepted, wait};

const UNTRIED: u64 = 0;
const ATTACHED: u64 = 1;
const INERT: u64 = 2;

/// One of the above; above [`ATTACHED`], in the upper half, the epoch that this is true for.
static STATE: AtomicU64 = AtomicU64::new(UNTRIED);
static ATTACHING: Guarded<()> = Guarded::new(());
static PID: AtomicU32 = AtomicU32::new(0);
static FUNCTION: AtomicU32 = AtomicU32::new(0);
/// Our process id as the agent sees it.
static SEEN_PID: AtomicU32 = AtomicU32::new(0);
/// [`attach_later`]: as whose child, and by what nonce; 0: as a process of its own.
static PARENT: AtomicU32 = AtomicU32::new(0);
static NONCE: AtomicU64 = AtomicU64::new(0);
/// A child with connections that has not attached does so before a sleep after this time, in ns of the clock; 0: one without.
static PATIENT_UNTIL_NS: AtomicU64 = AtomicU64::new(0);
/// How long it has. What serves one request and ends needs less; who waits longer is to hear of its peers' ends.
const PATIENCE: Duration = Duration::from_millis(20);
static UID: AtomicU32 = AtomicU32::new(0);
/// Incarnation of the coordinator that we are attached to, or were last. Never 0 then.
static EPOCH: AtomicU32 = AtomicU32::new(0);
/// When another attach may be tried, in seconds of the clock, and how long to wait after that one.
static RETRY_AT_S: AtomicU64 = AtomicU64::new(0);
static RETRY_PAUSE_S: AtomicU64 = AtomicU64::new(1);
/// Longest pause between two attempts.
const RETRY_PAUSE_MAX_S: u64 = 64;
/// Network namespace that the agent saw us in, by its cookie.
static HOME: AtomicU64 = AtomicU64::new(0);
/// Non-zero: the card meets other hosts'.
static HOSTS: AtomicU32 = AtomicU32::new(0);
static IRQ: [AtomicI32; 2] = [const { AtomicI32::new(-1) }; 2];
static DOORBELL: AtomicI32 = AtomicI32::new(-1);
/// [`epoch`] of the coordinator that this process has lost last, 0: none.
static LOST: AtomicU32 = AtomicU32::new(0);
/// See [`lends`].
static LENT: AtomicBool = AtomicBool::new(false);

/// Remembers whose memory this is. Called when the library is loaded, and in a forked child.
pub fn set_pid() {
    PID.store(sys::getpid(), Ordering::Relaxed);
    me::begin();
}

/// Before a call that may make a child which has our memory: vfork(2), clone(2).
pub fn lends() {
    LENT.store(true, Ordering::Relaxed);
    handlers::doubt();
}

/// Whether connections to other hosts are worth asking the coordinator for.
pub fn meets_hosts() -> bool {
    HOSTS.load(Ordering::Relaxed) != 0
}

/// Whose memory this is, as [`set_pid`] found.
#[inline(always)]
pub fn id() -> u32 {
    PID.load(Ordering::Relaxed)
}

/// True if the process runs as another user than when it attached: what it leaves can't be taken over by that one.
pub fn identity_changed() -> bool {
    UID.load(Ordering::Relaxed) != rustix::process::geteuid().as_raw()
}

/// True in a vfork child: it runs in its parent's memory, and must leave the parent's tables alone.
/// True as well in a child whose fork libc did not see. The kernel is asked only after something that may have made one of them: a child
/// that has our memory can't be told from us by what is in it.
pub fn is_borrowed() -> bool {
    (LENT.load(Ordering::Relaxed) || !me::has_not_forked()) && PID.load(Ordering::Relaxed) != sys::getpid()
}

/// True if agent and kernel mean us by the same process id: we are in the agent's pid namespace.
pub fn is_seen_as_itself() -> bool {
    SEEN_PID.load(Ordering::Relaxed) == sys::getpid()
}

/// A forked child that the parent announced: it attaches as that when it attaches. `watched`: it has connections, and the agent watches it.
pub fn attach_later(parent: u32, nonce: u64, watched: bool) {
    let until = watched.then(|| u64::try_from((sys::now() + PATIENCE).as_nanos()).unwrap_or(1));
    PATIENT_UNTIL_NS.store(until.unwrap_or(0), Ordering::Relaxed);
    PARENT.store(parent, Ordering::Relaxed);
    NONCE.store(nonce, Ordering::Release);
}

/// Before a sleep of at most `timeout`: how long it may be, so that a child that has not attached does when it waits for long,
/// and a client asks for a coordinator that is silent.
pub fn patient(timeout: Option<Duration>) -> Option<Duration> {
    let timeout = unaccepted::patient(timeout);
    match PATIENT_UNTIL_NS.load(Ordering::Relaxed) {
        until_ns if until_ns != 0 && is_announced() => {
            let left = Duration::from_nanos(until_ns).saturating_sub(sys::now());
            if left.is_zero() && is_known() {
                return timeout;
            }
            let left = left.max(Duration::from_millis(1));
            Some(timeout.map_or(left, |t| t.min(left)))
        }
        _ => timeout,
    }
}

/// A child that will attach when it has something to ask for.
#[inline(always)]
pub fn is_announced() -> bool {
    NONCE.load(Ordering::Relaxed) != 0
}

/// Attached. A child that its parent announced is so when this returns.
pub fn is_known() -> bool {
    is_attached() || (is_announced() && !is_borrowed() && ensure_attached())
}

/// Attached now, without trying.
pub fn is_attached() -> bool {
    state() == ATTACHED
}

#[inline(always)]
fn state() -> u64 {
    STATE.load(Ordering::Acquire) & 0xffff_ffff
}

/// [`STATE`] while attached to the coordinator of `epoch`.
fn attached_to(epoch: u32) -> u64 {
    u64::from(epoch) << 32 | ATTACHED
}

/// Tried to attach in vain, or the coordinator is gone.
pub fn is_inert() -> bool {
    state() == INERT
}

/// Our function number, 0 before attach.
pub fn function() -> u32 {
    FUNCTION.load(Ordering::Relaxed)
}

/// Which coordinator the numbers of connections, listeners and segments come from.
#[inline(always)]
pub fn epoch() -> u32 {
    EPOCH.load(Ordering::Relaxed)
}

/// Is this socket in the network namespace that the coordinator takes us for? It is in that of the thread that made it, and
/// threads can change theirs (setns(2), unshare(2)).
pub fn is_home(fd: i32) -> bool {
    options::kernel_netns(fd) == Some(HOME.load(Ordering::Relaxed))
}

/// Interrupt vector 0 (answers) or 1 (events).
pub fn irq(vector: usize) -> i32 {
    IRQ.get(vector).map_or(-1, |v| v.load(Ordering::Relaxed))
}

/// What wakes a sleeping coordinator.
pub fn doorbell() -> i32 {
    DOORBELL.load(Ordering::Relaxed)
}

/// Attaches if that was not tried yet, or if it is time to try again. True: requests may be posted.
pub fn ensure_attached() -> bool {
    let may = match state() {
        ATTACHED => return true,
        INERT => is_time_to_retry(),
        _ => true,
    };
    let _no_signals = may.then(NoSignals::new);
    let nonce = if may { NONCE.swap(0, Ordering::AcqRel) } else { 0 };
    if nonce != 0 && attach(PARENT.load(Ordering::Relaxed), nonce) {
        return true;
    }
    // A child whose parent has forgotten it, or is gone, is a process like any other.
    may && {
        listener::disown_all();
        attach(0, 0)
    }
}

/// Of all threads that ask, one is told so.
fn is_time_to_retry() -> bool {
    let now = sys::now().as_secs();
    let at = RETRY_AT_S.load(Ordering::Relaxed);
    let pause = RETRY_PAUSE_S.load(Ordering::Relaxed);
    now >= at
        && !is_borrowed()
        && RETRY_AT_S.compare_exchange(at, now + pause, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// The agent or the coordinator of `epoch` is gone: everything new goes to the kernel, until there is one again.
pub fn become_inert(epoch: u32) {
    if STATE.compare_exchange(attached_to(epoch), INERT, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
        loses(epoch);
        RETRY_PAUSE_S.store(1, Ordering::Relaxed);
        RETRY_AT_S.store(0, Ordering::Relaxed);
        log(Log::Info, &["the coordinator is gone; new connections use the kernel"]);
    }
}

/// The coordinator of that epoch is gone. It stays what this process is attached to until somebody needs one: from then on it is
/// looked for, less and less often.
pub fn loses(epoch: u32) {
    LOST.store(epoch, Ordering::Release);
}

/// Did this process lose the coordinator of that epoch?
pub fn has_lost(epoch: u32) -> bool {
    epoch != 0 && LOST.load(Ordering::Acquire) == epoch
}

/// Attaches, as a fresh process (0, 0) or as the forked child that the parent announced.
pub fn attach(parent: u32, nonce: u64) -> bool {
    match attach_once(parent, nonce) {
        Ok(()) => true,
        Err(why) => {
            log(Log::Info, &[why.text(), "; all sockets use the kernel"]);
            false
        }
    }
}

fn attach_once(parent: u32, nonce: u64) -> Result<(), Why> {
    let _once = ATTACHING.take().ok_or(Why::Busy)?;
    if is_attached() {
        return Ok(());
    }
    agent::close();
    let attached = try_attach(parent, nonce);
    if attached.is_ok() {
        // Release: who sees this sees the rings, and the epoch that they are of.
        STATE.store(attached_to(epoch()), Ordering::Release);
        agent::end_lifeline();
        unaccepted::end();
        log(Log::Info, &["attached"]);
    } else {
        agent::close();
        let pause = RETRY_PAUSE_S.load(Ordering::Relaxed);
        RETRY_AT_S.store(sys::now().as_secs() + pause, Ordering::Relaxed);
        RETRY_PAUSE_S.store((pause * 2).min(RETRY_PAUSE_MAX_S), Ordering::Relaxed);
        STATE.store(INERT, Ordering::Release);
    }
    attached
}

/// Status of a program that was not to start unaccelerated, as `ipc-direct run` has it.
const STATUS_REQUIRED: i32 = 125;

/// For a user who asked for it (`IPC_DIRECT_REQUIRE`), before main: attaches now, or ends the process with one sentence.
/// Nothing of the program has run then that could be lost.
pub fn require() {
    if let Err(why) = attach_once(0, 0) {
        config::say(&["the program is not started, because IPC_DIRECT_REQUIRE is set and ", why.text()]);
        sys::exit_now(STATUS_REQUIRED);
    }
}

enum Why {
    Agent(AgentError),
    Answer,
    Memory,
    Kernel,
    Busy,
}

impl Why {
    fn text(&self) -> &str {
        match self {
            Why::Agent(AgentError::Absent) => "no agent answers",
            Why::Agent(AgentError::Untrusted) => "the agent runs as another user",
            Why::Agent(AgentError::Refused(why)) => why.as_str(),
            Why::Answer => "the agent's answer makes no sense",
            Why::Memory => "the agent's memory could not be mapped",
            Why::Kernel => "this kernel is older than Linux 5.16",
            Why::Busy => "a signal handler interrupted an attach",
        }
    }
}

fn try_attach(parent: u32, nonce: u64) -> Result<(), Why> {
    if !sys::register_membarrier() {
        return Err(Why::Kernel);
    }
    agent::open().map_err(Why::Agent)?;
    // The agent looks at the other end of this socket, and sees the same.
    HOME.store(options::kernel_netns(agent::fd()).ok_or(Why::Kernel)?, Ordering::Relaxed);
    let answer = agent::call(Call::Hello { parent, nonce }).map_err(Why::Agent)?;
    let Reply::Welcome { function, epoch, pid, hosts, .. } = answer.reply else { return Err(Why::Answer) };
    HOSTS.store(u32::from(hosts), Ordering::Relaxed);
    let [window, host, counters, doorbell, irq0, irq1, common] = answer.fds;
    let maps = (map(window, WINDOW_BYTES), map(host, HOST_BYTES), map(counters, STATS_BYTES));
    // There is none (-1) if the rings are private.
    let common = Some(common).filter(|fd| *fd >= 0).map(|fd| {
        let region = map(fd, COMMON_BYTES);
        sys::close(fd);
        region.and_then(CommonMemory::over)
    });
    for fd in [window, host, counters] {
        sys::close(fd);
    }
    let (Some(window), Some(host), Some(counters)) = maps else {
        for fd in [doorbell, irq0, irq1] {
            sys::close(fd);
        }
        return Err(Why::Memory);
    };
    for (place, fd) in [&DOORBELL].into_iter().chain(&IRQ).zip([doorbell, irq0, irq1]) {
        fds::put(place, fd);
    }
    let (Some(w), Some(h)) = (Window::over(window), HostMemory::over(host)) else { return Err(Why::Memory) };
    if !w.valid() || !h.valid() {
        return Err(Why::Memory);
    }
    // From here on, the window is stored to only.
    let w = w.far();
    let requests = Requests::over(function, &w, &h, common.flatten()).ok_or(Why::Memory)?;
    FUNCTION.store(function, Ordering::Relaxed);
    SEEN_PID.store(pid, Ordering::Relaxed);
    UID.store(rustix::process::geteuid().as_raw(), Ordering::Relaxed);
    EPOCH.store(epoch, Ordering::Relaxed);
    coordinator::install(requests, &w, &h);
    wait::watch_again();
    stats::install(counters);
    Ok(())
}

/// Maps `bytes` of `fd` for good.
fn map(fd: i32, bytes: usize) -> Option<Region> {
    let stat = rustix::fs::fstat(sys::borrow(fd)).ok()?;
    if usize::try_from(stat.st_size).ok()? < bytes {
        return None;
    }
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let base = unsafe {
        rustix::mm::mmap(
            core::ptr::null_mut(),
            bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            sys::borrow(fd),
            0,
        )
    }
    .ok()?;
    // SAFETY: mapped for `bytes`, page-aligned, and never unmapped.
    Some(unsafe { Region::new(NonNull::new(base.cast())?, bytes) })
}

/// After fork, in the child: the parent's attachment is not ours.
pub fn detach_child() {
    set_pid();
    NONCE.store(0, Ordering::Relaxed);
    LOST.store(0, Ordering::Relaxed);
    agent::close();
    for fd in [&DOORBELL].into_iter().chain(&IRQ) {
        fds::discard(fd.swap(-1, Ordering::AcqRel));
    }
    coordinator::uninstall();
    faces::forget_all();
    ahead::forget_all();
    stats::uninstall();
    FUNCTION.store(0, Ordering::Relaxed);
    if is_attached() {
        STATE.store(UNTRIED, Ordering::Release);
    }
}

/// `fd` was one of ours and is the application's now: nothing of ours may touch it any more.
pub fn lost(fd: i32) {
    let owners = [&DOORBELL].into_iter().chain(&IRQ);
    let mine =
        |owner: &AtomicI32| owner.compare_exchange(fd, -1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    if agent::lost(fd) | owners.map(mine).fold(false, |a, b| a | b) {
        become_inert(epoch());
    }
}

/// For the fork handlers.
pub fn lock() -> &'static crate::lock::Lock {
    ATTACHING.lock()
}
