//! This process as a function of the card: attach once, at the first TCP socket.
//!
//! `unsafe` is allowed here: mapping what the agent hands out.
#![allow(unsafe_code)]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use ring::attach::{Call, Reply};
use ring::shared::Region;
use ring::stats::STATS_BYTES;
use ring::window::{HOST_BYTES, HostMemory, WINDOW_BYTES, Window};
use rustix::mm::{MapFlags, ProtFlags};

use crate::agent::{self, AgentError};
use crate::config::{self, Log, log};
use crate::lock::Guarded;
use crate::sys::NoSignals;
use crate::{coordinator, fds, options, stats, sys};

const UNTRIED: u32 = 0;
const ATTACHED: u32 = 1;
const INERT: u32 = 2;

static STATE: AtomicU32 = AtomicU32::new(UNTRIED);
static ATTACHING: Guarded<()> = Guarded::new(());
static PID: AtomicU32 = AtomicU32::new(0);
static FUNCTION: AtomicU32 = AtomicU32::new(0);
static UID: AtomicU32 = AtomicU32::new(0);
/// Network namespace that the agent saw us in, by its cookie.
static HOME: AtomicU64 = AtomicU64::new(0);
static IRQ: [AtomicI32; 2] = [const { AtomicI32::new(-1) }; 2];
static DOORBELL: AtomicI32 = AtomicI32::new(-1);

/// Remembers whose memory this is. Called when the library is loaded, and in a forked child.
pub fn set_pid() {
    PID.store(sys::getpid(), Ordering::Relaxed);
}

/// True if the process runs as another user than when it attached: what it leaves can't be taken over by that one.
pub fn identity_changed() -> bool {
    UID.load(Ordering::Relaxed) != rustix::process::geteuid().as_raw()
}

/// True in a vfork child: it runs in its parent's memory, and must leave the parent's tables alone.
/// Asked on the slow calls that such a child makes between vfork and exec.
pub fn is_borrowed() -> bool {
    PID.load(Ordering::Relaxed) != sys::getpid()
}

/// Attached now, without trying.
pub fn is_attached() -> bool {
    STATE.load(Ordering::Acquire) == ATTACHED
}

/// Tried to attach in vain, or the coordinator is gone.
pub fn is_inert() -> bool {
    STATE.load(Ordering::Acquire) == INERT
}

/// Our function number, 0 before attach.
pub fn function() -> u32 {
    FUNCTION.load(Ordering::Relaxed)
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

/// Attaches if that was not tried yet. True: requests may be posted.
pub fn ensure_attached() -> bool {
    match STATE.load(Ordering::Acquire) {
        ATTACHED => true,
        INERT => false,
        _ => {
            let _no_signals = NoSignals::new();
            attach(0, 0)
        }
    }
}

/// The agent or the coordinator is gone: from now on everything new goes to the kernel.
pub fn become_inert() {
    if STATE.swap(INERT, Ordering::AcqRel) == ATTACHED {
        log(Log::Info, &["the coordinator is gone; new connections use the kernel"]);
    }
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
    match STATE.load(Ordering::Acquire) {
        ATTACHED => return Ok(()),
        INERT => return Err(Why::Inert),
        _ => {}
    }
    let attached = try_attach(parent, nonce);
    if attached.is_ok() {
        STATE.store(ATTACHED, Ordering::Release);
        log(Log::Info, &["attached"]);
    } else {
        agent::close();
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
    Inert,
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
            Why::Inert => "the agent is gone",
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
    let Reply::Welcome { function, .. } = answer.reply else { return Err(Why::Answer) };
    let [window, host, counters, doorbell, irq0, irq1] = answer.fds;
    let maps = (map(window, WINDOW_BYTES), map(host, HOST_BYTES), map(counters, STATS_BYTES));
    for fd in [window, host, counters] {
        sys::close(fd);
    }
    let (Some(window), Some(host), Some(counters)) = maps else {
        for fd in [doorbell, irq0, irq1] {
            sys::close(fd);
        }
        return Err(Why::Memory);
    };
    DOORBELL.store(fds::adopt(doorbell), Ordering::Relaxed);
    let [v0, v1] = &IRQ;
    v0.store(fds::adopt(irq0), Ordering::Relaxed);
    v1.store(fds::adopt(irq1), Ordering::Relaxed);
    let (Some(w), Some(h)) = (Window::over(window), HostMemory::over(host)) else { return Err(Why::Memory) };
    if !w.valid() || !h.valid() {
        return Err(Why::Memory);
    }
    FUNCTION.store(function, Ordering::Relaxed);
    UID.store(rustix::process::geteuid().as_raw(), Ordering::Relaxed);
    coordinator::install(w, h);
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
    agent::close();
    for fd in [&DOORBELL].into_iter().chain(&IRQ) {
        fds::discard(fd.swap(-1, Ordering::AcqRel));
    }
    coordinator::uninstall();
    stats::uninstall();
    FUNCTION.store(0, Ordering::Relaxed);
    if STATE.load(Ordering::Relaxed) == ATTACHED {
        STATE.store(UNTRIED, Ordering::Release);
    }
}

/// `fd` was one of ours and is the application's now: nothing of ours may touch it any more.
pub fn lost(fd: i32) {
    let owners = [&DOORBELL].into_iter().chain(&IRQ);
    let mine =
        |owner: &AtomicI32| owner.compare_exchange(fd, -1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    if agent::lost(fd) | owners.map(mine).fold(false, |a, b| a | b) {
        become_inert();
    }
}

/// For the fork handlers.
pub fn lock() -> &'static crate::lock::Lock {
    ATTACHING.lock()
}
