//! The program's signal handlers: one that comes while a short section of ours holds locks is put off until the section's end. Blocking signals
//! around it would do the same with two system calls.
//!
//! So the kernel knows a handler of ours, which calls the program's. Inside a section it queues the signal again, to this thread and with all
//! that came with it (rt_sigqueueinfo(2)), and has the kernel return to a thread that blocks signals; the section's end takes that back.
//! sigaction(2) and its like tell of the program's handlers, as if they were the kernel's.
//!
//! Where this can't be, [`PutOff::begin`] says so, and signals are blocked. That is: in memory that is lent (the child of a vfork could die inside, and
//! its parent would be inside for ever), and from the first handler on that the kernel calls itself: installed by a system call or by one of
//! the oldest functions, or one that is called once (`SA_RESETHAND`). Handlers of faults are the kernel's, too, but don't count: what they
//! interrupt does not go on.
//!
//! `unsafe` is allowed here: the program's handlers, and what the kernel gives them.
#![allow(unsafe_code)]

use core::ffi::{c_int, c_void};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence};

use libc::{sighandler_t, siginfo_t};

use crate::{me, process, real, sys};

/// Signals, and one more (signal(7)).
const SIGNALS: usize = 65;
/// In [`HANDLERS`]: the program did not ask for `SA_SIGINFO`. (No address has this bit: the kernel keeps that half.)
const PLAIN: usize = 1 << 63;
/// All but those that libc keeps for itself, 32 and 33.
const ALL: u64 = !(0b11 << 31);

/// The program's handler of each signal, 0: it never had one. What the kernel was told says whether it has one now.
static HANDLERS: [AtomicUsize; SIGNALS] = [const { AtomicUsize::new(0) }; SIGNALS];
/// The kernel may call a handler itself.
static DIRECT: AtomicBool = AtomicBool::new(false);
/// That, or this memory may be lent: see [`can`].
static IN_DOUBT: AtomicBool = AtomicBool::new(false);

/// Where a thread is. Its own handlers alone look at it besides, so the compiler's order is all that counts.
pub struct Section {
    /// How deep.
    depth: AtomicU32,
    /// A signal was put off: all are blocked until the end, where `mask` is what is blocked again.
    has_put_off: AtomicBool,
    mask: AtomicU64,
}

impl Section {
    /// Outside.
    pub const fn new() -> Section {
        Section {
            depth: AtomicU32::new(0),
            has_put_off: AtomicBool::new(false),
            mask: AtomicU64::new(u64::MAX),
        }
    }
}

/// The calling thread's.
#[inline(always)]
fn section<'a>() -> &'a Section {
    // SAFETY: it lives as long as the thread, whose own stack is what holds the reference.
    unsafe { &*me::section() }
}

/// Inside a section: handlers are put off until it is dropped.
pub struct PutOff(NonNull<Section>);

impl PutOff {
    /// From here on. `None`: they can't be.
    #[inline(always)]
    #[must_use]
    pub fn begin() -> Option<PutOff> {
        if (IN_DOUBT.load(Ordering::Relaxed) || !me::has_not_forked()) && !can() {
            return None;
        }
        let s = section();
        s.depth.store(s.depth.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        // What is done inside comes after.
        compiler_fence(Ordering::SeqCst);
        Some(PutOff(NonNull::from(s)))
    }
}

#[cold]
fn can() -> bool {
    !DIRECT.load(Ordering::Relaxed) && !process::is_borrowed()
}

/// This memory may be lent from now on.
pub fn doubt() {
    IN_DOUBT.store(true, Ordering::Relaxed);
}

impl Drop for PutOff {
    #[inline(always)]
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        // SAFETY: this thread's, for a pointer does not go to another one.
        let s = unsafe { self.0.as_ref() };
        let depth = s.depth.load(Ordering::Relaxed).saturating_sub(1);
        s.depth.store(depth, Ordering::Relaxed);
        // A handler that comes before this look runs at once; after one that was put off none comes.
        compiler_fence(Ordering::SeqCst);
        if depth == 0 && s.has_put_off.load(Ordering::Relaxed) {
            resume(s);
        }
    }
}

#[cold]
fn resume(s: &Section) {
    s.has_put_off.store(false, Ordering::Relaxed);
    let mask = s.mask.swap(u64::MAX, Ordering::Relaxed);
    sys::block_signals(mask);
}

/// What the kernel calls.
extern "C" fn handle(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let s = section();
    // SAFETY: both are of this signal's, from the kernel.
    if s.depth.load(Ordering::Relaxed) != 0 && unsafe { put_off(s, signal, info, context) } {
        return;
    }
    let Some(address) = handler(signal).map(|h| h & !PLAIN) else { return };
    // SAFETY: the program gave it for this signal. Who takes the first argument only does not mind the others.
    unsafe {
        let run: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = core::mem::transmute(address);
        run(signal, info, context);
    }
}

/// The program's handler, as it is kept.
fn handler(signal: c_int) -> Option<usize> {
    let kept = HANDLERS.get(usize::try_from(signal).ok()?)?.load(Ordering::Relaxed);
    (kept != 0).then_some(kept)
}

/// False: it can't be.
///
/// # Safety
/// What the kernel gave the handler.
#[cold]
unsafe fn put_off(s: &Section, signal: c_int, info: *mut siginfo_t, context: *mut c_void) -> bool {
    let saved = sys::errno();
    // Another handler may interrupt us up to here: it is put off as well, and what we interrupted blocks less than what it did.
    let inside = sys::block_signals(ALL);
    // SAFETY: the kernel's context, of which its set of signals is 64 bits long, and the rest of libc's is something else (sigreturn(2)).
    let interrupted = unsafe {
        let context: *mut libc::ucontext_t = context.cast();
        (&raw mut (*context).uc_sigmask).cast::<u64>()
    };
    // SAFETY: as above.
    unsafe { s.mask.fetch_and(interrupted.read(), Ordering::Relaxed) };
    s.has_put_off.store(true, Ordering::Relaxed);
    // SAFETY: `info` is the signal's own.
    let queued = unsafe { queue_again(signal, info) };
    if queued {
        // SAFETY: as above.
        unsafe { interrupted.write(ALL) };
    } else {
        // (The end of the section takes back what was not done.)
        sys::block_signals(inside);
    }
    sys::set_errno(saved);
    queued
}

/// # Safety
/// `info` is valid.
unsafe fn queue_again(signal: c_int, info: *mut siginfo_t) -> bool {
    let pid = libc::c_ulong::from(sys::getpid());
    let tid = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned().into();
    let (call, info) = (libc::SYS_rt_tgsigqueueinfo, info.expose_provenance() as libc::c_ulong);
    // SAFETY: sends a signal to this thread; `info` by contract.
    unsafe { real::syscall(call, pid, tid, signal.cast_unsigned().into(), info, 0, 0) == 0 }
}

/// sigaction(2) of the program's.
///
/// # Safety
/// As sigaction(2)'s.
pub unsafe fn change(signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int {
    let place = usize::try_from(signal).ok().and_then(|s| HANDLERS.get(s));
    let before = handler(signal).unwrap_or(0);
    // SAFETY: null, or the program's; libc reads it as well.
    let mut wanted = unsafe { new.as_ref() }.copied();
    if let (Some(wanted), Some(place)) = (&mut wanted, place)
        && is_handler(wanted.sa_sigaction)
        && !sys::FAULTS.contains(&signal)
        // The child of a vfork has handlers of its own, and this memory is its parent's.
        && !process::is_borrowed()
    {
        if wanted.sa_flags & libc::SA_RESETHAND != 0 {
            kernel_calls();
        } else {
            place.store(kept(wanted, before), Ordering::Relaxed);
            wanted.sa_sigaction = ours();
            wanted.sa_flags |= libc::SA_SIGINFO;
        }
    }
    let wanted = wanted.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
    // SAFETY: a copy of the program's action or null; its place for the old one.
    let result = unsafe { real::sigaction(signal, wanted, old) };
    if let Some(place) = place.filter(|_| result != 0) {
        place.store(before, Ordering::Relaxed);
    }
    // SAFETY: null, or written by libc if it said so.
    if let Some(old) = unsafe { old.as_mut() }.filter(|_| result == 0) {
        show(old, before);
    }
    result
}

fn ours() -> sighandler_t {
    handle as *const () as sighandler_t
}

fn is_handler(action: sighandler_t) -> bool {
    !matches!(action, libc::SIG_DFL | libc::SIG_IGN | libc::SIG_ERR)
}

/// What is kept of an action. Who found ours some other way, and gives it back, means the one that is there.
fn kept(action: &libc::sigaction, before: usize) -> usize {
    if action.sa_sigaction == ours() {
        return before;
    }
    action.sa_sigaction | if action.sa_flags & libc::SA_SIGINFO == 0 { PLAIN } else { 0 }
}

/// An action as the program gave it, with the handler that was kept.
fn show(action: &mut libc::sigaction, kept: usize) {
    if action.sa_sigaction == ours() {
        action.sa_sigaction = kept & !PLAIN;
        if kept & PLAIN != 0 {
            action.sa_flags &= !libc::SA_SIGINFO;
        }
    }
}

/// A handler as the program gave it.
pub fn shown(signal: c_int, action: sighandler_t) -> sighandler_t {
    if action == ours() { handler(signal).unwrap_or(0) & !PLAIN } else { action }
}

/// The program has a handler that the kernel calls: sections block signals from now on.
pub fn kernel_calls() {
    DIRECT.store(true, Ordering::Relaxed);
    doubt();
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicI32;

    use super::*;

    /// Of two signals: how many a test caught, and the value of the last.
    static CAUGHT: [(AtomicU32, AtomicI32); 2] = [const { (AtomicU32::new(0), AtomicI32::new(0)) }; 2];

    extern "C" fn catch(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
        // SAFETY: the kernel's information about a signal that came with a value.
        let value = unsafe { (*info).si_value() }.sival_ptr.addr();
        let (times, last) = &CAUGHT[usize::from(signal == libc::SIGUSR2)];
        last.store(i32::try_from(value).unwrap(), Ordering::Relaxed);
        times.fetch_add(1, Ordering::Relaxed);
    }

    fn install(signal: c_int) {
        // SAFETY: all zero is a valid action, and the handler one with information.
        unsafe {
            let mut action: libc::sigaction = core::mem::zeroed();
            action.sa_sigaction = catch as *const () as sighandler_t;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(change(signal, &raw const action, core::ptr::null_mut()), 0);
        }
    }

    /// To this very thread.
    fn send(signal: c_int, value: usize) {
        let value = libc::sigval { sival_ptr: core::ptr::without_provenance_mut(value) };
        // SAFETY: a signal that has a handler.
        assert_eq!(unsafe { libc::pthread_sigqueue(libc::pthread_self(), signal, value) }, 0);
    }

    fn caught() -> [(u32, i32); 2] {
        [0, 1].map(|i| (CAUGHT[i].0.load(Ordering::Relaxed), CAUGHT[i].1.load(Ordering::Relaxed)))
    }

    #[test]
    fn they_wait_for_the_end_of_the_outermost_section() {
        install(libc::SIGUSR1);
        install(libc::SIGUSR2);
        let before = sys::block_signals(0);
        let (outer, inner) = (PutOff::begin().unwrap(), PutOff::begin().unwrap());
        send(libc::SIGUSR1, 7);
        // From here on the kernel keeps all of them.
        send(libc::SIGUSR2, 8);
        send(libc::SIGUSR1, 9);
        drop(inner);
        assert_eq!(caught(), [(0, 0); 2]);
        drop(outer);
        assert_eq!(caught(), [(1, 7), (1, 8)], "while one is pending, another one of its kind is the same");
        send(libc::SIGUSR1, 10);
        assert_eq!(caught(), [(2, 10), (1, 8)]);
        assert_eq!(sys::block_signals(before), 0, "nothing is blocked that was not");
    }
}
