//! The few system calls that we make ourselves, straight to the kernel: libc's symbols may be our own.
//!
//! `unsafe` is allowed here: errno's location, wake-ups on foreign words, and descriptors by number.
#![allow(unsafe_code)]

use core::sync::atomic::AtomicU32;
use core::time::Duration;

use ring::atomic::Heavy;
use ring::wake::SleepWord;
use rustix::fd::{BorrowedFd, FromRawFd};
use rustix::io::{DupFlags, Errno as RustixErrno, FdFlags};
use rustix::thread::futex;

use crate::handlers::PutOff;
use crate::real;

/// An errno value, positive. Chosen at the C boundary only from what the layers below report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl From<RustixErrno> for Errno {
    fn from(e: RustixErrno) -> Self {
        Errno(e.raw_os_error())
    }
}

/// Runs a call that may disturb errno on its way to success: as in libc, errno changes only when the call fails.
pub fn keep_errno(call: impl FnOnce() -> i32) -> i32 {
    let saved = errno();
    let result = call();
    if result >= 0 {
        set_errno(saved);
    }
    result
}

/// What our calls return inside.
pub type Result<T> = core::result::Result<T, Errno>;

/// Sets the calling thread's errno.
pub fn set_errno(e: Errno) {
    // SAFETY: libc gives every thread a valid, writable location.
    unsafe { *libc::__errno_location() = e.0 }
}

/// The calling thread's errno.
#[must_use]
pub fn errno() -> Errno {
    // SAFETY: as in `set_errno`.
    Errno(unsafe { *libc::__errno_location() })
}

/// Ends the process as _exit(2): no handler of the program's runs.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no conditions; it is not a symbol of ours.
    unsafe { libc::_exit(status) }
}

/// Process id, asked afresh (a vfork child runs in our memory).
#[must_use]
pub fn getpid() -> u32 {
    rustix::process::getpid().as_raw_nonzero().get().cast_unsigned()
}

/// A descriptor number as rustix wants it.
#[must_use]
pub fn borrow(fd: i32) -> BorrowedFd<'static> {
    // rustix forbids -1 only; any other number is checked by the kernel.
    let fd = if fd < 0 { i32::MAX } else { fd };
    // SAFETY: a wrong number is answered with EBADF; the numbers used here are our own descriptors, which
    // stay open as long as the tables that hold them say so.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// close(2) of a number that is ours alone.
pub fn close(fd: i32) {
    if fd >= 0 {
        // SAFETY: the caller owns the descriptor; nothing of Rust's holds it.
        unsafe { rustix::io::close(fd) }
    }
}

/// dup3(2), close-on-exec. False: it failed.
pub fn duplicate_onto(fd: i32, to: i32) -> bool {
    dup3(fd, to, DupFlags::CLOEXEC)
}

/// The same, but `to` is closed on exec only if it was before.
pub fn replace(fd: i32, to: i32) -> bool {
    let Ok(flags) = rustix::io::fcntl_getfd(borrow(to)) else { return false };
    dup3(fd, to, if flags.contains(FdFlags::CLOEXEC) { DupFlags::CLOEXEC } else { DupFlags::empty() })
}

fn dup3(fd: i32, to: i32, flags: DupFlags) -> bool {
    // SAFETY: the owner of the number gives what it was up; `forget` below leaves it open.
    let mut target = core::mem::ManuallyDrop::new(unsafe { rustix::fd::OwnedFd::from_raw_fd(to) });
    rustix::io::dup3(borrow(fd), &mut target, flags).is_ok()
}

/// A random word.
#[must_use]
pub fn random() -> u64 {
    let mut bytes = [0u8; 8];
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK);
    u64::from_ne_bytes(bytes)
}

/// A number in decimal digits, at the end of `digits`.
#[must_use]
pub fn decimal(number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut rest = number;
    let mut first = digits.len();
    while first > 0 {
        first -= 1;
        if let Some(d) = digits.get_mut(first) {
            *d = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        }
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    digits.get(first..).unwrap_or(&[])
}

/// True if the number is an open descriptor.
#[must_use]
pub fn is_open(fd: i32) -> bool {
    fd >= 0 && rustix::io::fcntl_getfd(borrow(fd)).is_ok()
}

/// The heavy half of the asymmetric barrier, by membarrier(2).
pub struct Membarrier;

impl Heavy for Membarrier {
    fn heavy_barrier(&self) {
        use rustix::thread::{MembarrierCommand, membarrier};
        // Cannot fail once `register_membarrier` succeeded, and no socket is accelerated before it did.
        let _ = membarrier(MembarrierCommand::GlobalExpedited);
    }
}

/// Joins the processes that [`Membarrier`] reaches. False: the kernel can't (Linux before 4.16, or a seccomp filter).
#[must_use]
pub fn register_membarrier() -> bool {
    use rustix::thread::{MembarrierCommand, membarrier};
    membarrier(MembarrierCommand::RegisterGlobalExpedited).is_ok()
}

/// What a futex sleeper waits on.
fn futex_half(word: &SleepWord) -> &AtomicU32 {
    // SAFETY: the upper half of the word, aligned and as long-lived. The kernel alone looks at it through this.
    unsafe { &*word.futex_address().cast() }
}

/// Wakes everybody who sleeps on `word`, in any process.
pub fn futex_wake_all(word: &SleepWord) {
    let _ = futex::wake(futex_half(word), futex::Flags::empty(), i32::MAX.cast_unsigned());
}

/// Sleeps while every word holds its value, at most `timeout`. A signal handler that ran is `EINTR`, unless it was installed
/// with `SA_RESTART`: then the kernel goes on waiting, as it does for recv(2) without a timeout.
///
/// # Errors
/// `EINTR`; a changed word or the end of the time is `Ok`.
pub fn futex_wait2(a: (&SleepWord, u32), b: (&AtomicU32, u32), timeout: Duration) -> Result<()> {
    let a = (futex_half(a.0), a.1);
    let deadline = now() + timeout;
    let end = timespec(deadline);
    let flags = futex::WaitFlags::SIZE_U32;
    let one = |(word, value): (&AtomicU32, u32)| {
        let mut w = futex::Wait::new();
        w.val = u64::from(value);
        w.uaddr = futex::WaitPtr::new(core::ptr::from_ref(word).cast_mut().cast());
        w.flags = flags;
        w
    };
    let waiters = [one(a), one(b)];
    match futex::waitv(&waiters, futex::WaitvFlags::empty(), Some(&end), futex::ClockId::Monotonic) {
        Err(RustixErrno::INTR) => Err(Errno(libc::EINTR)),
        Err(RustixErrno::NOSYS) => wait_one(a.0, a.1, timeout),
        _ => Ok(()),
    }
}

/// Linux before 5.16 has no futex_waitv: short sleeps on the data word alone.
fn wait_one(word: &AtomicU32, value: u32, timeout: Duration) -> Result<()> {
    let slice = timespec(timeout.min(Duration::from_millis(20)));
    match futex::wait(word, futex::Flags::empty(), value, Some(&slice)) {
        Err(RustixErrno::INTR) => Err(Errno(libc::EINTR)),
        _ => Ok(()),
    }
}

/// As the kernel's timespec; far-away times are cut.
#[must_use]
pub fn timespec(d: Duration) -> rustix::time::Timespec {
    rustix::time::Timespec {
        tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX >> 1),
        tv_nsec: i64::from(d.subsec_nanos()),
    }
}

/// The same in microseconds.
#[must_use]
pub fn now_us() -> u64 {
    u64::try_from(now().as_micros()).unwrap_or(u64::MAX)
}

/// CLOCK_MONOTONIC.
#[must_use]
pub fn now() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(t.tv_sec.unsigned_abs(), u32::try_from(t.tv_nsec).unwrap_or(0))
}

/// A cheap counter that grows steadily (about 1 to 4 a nanosecond on x86; coarser on ARM). For rates, not for times.
#[inline(always)]
#[must_use]
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 processor has the instruction.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        u64::try_from(now().as_nanos()).unwrap_or(0)
    }
}

/// Signals of what a program did wrong, in the middle of it.
pub const FAULTS: [i32; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGABRT, libc::SIGSYS];

/// True if every signal handler that the process has installed asks for `SA_RESTART`, so that the one which just
/// interrupted us did, too. (Handlers of faults don't count: those don't interrupt a sleep.) For calls that cannot sleep in a system call which the kernel restarts itself.
#[must_use]
pub fn handlers_restart() -> bool {
    let mut any = false;
    for signal in (1..=64).filter(|s| !FAULTS.contains(s)) {
        let Some(flags) = handler_flags(signal) else { continue };
        any = true;
        if flags & libc::SA_RESTART == 0 {
            return false;
        }
    }
    any
}

/// `sa_flags` of a signal that has a handler.
fn handler_flags(signal: i32) -> Option<i32> {
    // SAFETY: all zero is a valid sigaction.
    let mut old: libc::sigaction = unsafe { core::mem::zeroed() };
    // SAFETY: asks only; `old` is writable.
    if unsafe { real::sigaction(signal, core::ptr::null(), &raw mut old) } != 0 {
        return None;
    }
    (old.sa_sigaction != libc::SIG_DFL && old.sa_sigaction != libc::SIG_IGN).then_some(old.sa_flags)
}

/// Raises SIGPIPE in the calling thread, as send(2) does.
pub fn raise_sigpipe() {
    let pid = rustix::process::getpid();
    let tid = rustix::thread::gettid();
    // SAFETY: tgkill to ourselves has no memory effects; glibc's wrapper is not a symbol of ours.
    unsafe { libc::tgkill(pid.as_raw_nonzero().get(), tid.as_raw_nonzero().get(), libc::SIGPIPE) };
}

/// Signals that the calling thread blocks from now on, a bit each, from 1 on; those that it blocked before.
pub fn block_signals(mask: u64) -> u64 {
    // SAFETY: all zero is a valid set, whose first 64 bits are what the kernel knows; the call only writes to a set of ours.
    unsafe {
        let (mut new, mut old): (libc::sigset_t, libc::sigset_t) = core::mem::zeroed();
        (&raw mut new).cast::<u64>().write(mask);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const new, &raw mut old);
        (&raw const old).cast::<u64>().read()
    }
}

/// Keeps signal handlers out of a section that holds the process's own locks, until dropped.
pub enum NoSignals {
    /// All signals are blocked for the calling thread, which blocked these before.
    Blocked(u64),
    /// Handlers are put off.
    PutOff { _until_dropped: PutOff },
}

impl NoSignals {
    /// Blocks all signals.
    #[must_use]
    pub fn new() -> Self {
        NoSignals::Blocked(block_signals(u64::MAX))
    }

    /// Without a system call, if the program's handlers can be put off: for what is short, or whose system calls may be interrupted once.
    #[must_use]
    #[inline]
    pub fn briefly() -> Self {
        PutOff::begin().map_or_else(NoSignals::new, |_until_dropped| NoSignals::PutOff { _until_dropped })
    }
}

impl Drop for NoSignals {
    #[inline]
    fn drop(&mut self) {
        if let NoSignals::Blocked(before) = self {
            block_signals(*before);
        }
    }
}
