//! What a thread's blocked calls hold, written down, so that it can be given back when such a call never returns: when
//! pthread_cancel(3) ends the thread in the middle of it, or a signal handler leaves it by siglongjmp(3). Both happen
//! while the call sleeps in the kernel; it holds no locks then, but it keeps its connection open ([`crate::handle::Handle::pin`]), is
//! parked at the coordinator, and counts as asleep. No destructor of ours runs.
//!
//! `unsafe` is allowed here: the thread key, and the jump's target inside a `jmp_buf`.
#![allow(unsafe_code)]

use core::cell::Cell;
use core::ffi::c_void;
use core::ptr::without_provenance;
use core::sync::atomic::{AtomicI64, Ordering};

/// Nested as deep as calls can be: a call, a handler that interrupted it, and a handler of that.
const HOLDS_MAX: usize = 16;

#[derive(Clone, Copy)]
struct Hold {
    /// Where the stack was.
    stack: usize,
    give_back: fn(usize, usize),
    words: [usize; 2],
}

struct Holds {
    n: Cell<usize>,
    list: [Cell<Option<Hold>>; HOLDS_MAX],
    /// This thread's end will be noticed.
    watched: Cell<bool>,
}

std::thread_local! {
    static HOLDS: Holds = const {
        Holds { n: Cell::new(0), list: [const { Cell::new(None) }; HOLDS_MAX], watched: Cell::new(false) }
    };
}

/// Key whose destructor notices a thread's end; -1: none.
static KEY: AtomicI64 = AtomicI64::new(-1);

/// Makes the key. Called when the library is loaded: libc has room for early keys in every thread, without allocation.
pub fn install() {
    let mut key = 0;
    // SAFETY: writes one key; the destructor lives as long as the process.
    if unsafe { libc::pthread_key_create(&raw mut key, Some(thread_ends)) } == 0 {
        KEY.store(key.into(), Ordering::Relaxed);
    }
}

extern "C" fn thread_ends(_: *mut c_void) {
    give_back_below(usize::MAX);
}

fn watch_end() {
    if let Ok(key) = libc::pthread_key_t::try_from(KEY.load(Ordering::Relaxed)) {
        // SAFETY: a key of ours; the value only needs to be other than null.
        unsafe { libc::pthread_setspecific(key, without_provenance(1)) };
    }
}

/// Written down until dropped. To be dropped before what it stands for is given back in the usual way, which is what happens
/// to a variable that is declared after it.
pub struct Noted {
    before: usize,
}

/// The caller holds something that `give_back`, called with `words`, would give back.
#[must_use]
pub fn note(give_back: fn(usize, usize), words: [usize; 2]) -> Noted {
    let here = 0u8;
    let stack = (&raw const here).addr();
    HOLDS.with(|h| {
        if !h.watched.replace(true) {
            watch_end();
        }
        let before = h.n.get();
        if let Some(place) = h.list.get(before) {
            place.set(Some(Hold { stack, give_back, words }));
        }
        h.n.set(before + 1);
        Noted { before }
    })
}

impl Drop for Noted {
    fn drop(&mut self) {
        HOLDS.with(|h| h.n.set(self.before));
    }
}

/// Gives back what calls hold whose frames are below `stack`: those calls are gone.
fn give_back_below(stack: usize) {
    HOLDS.with(|h| {
        while let Some(last) = h.n.get().checked_sub(1) {
            let hold = h.list.get(last).and_then(Cell::get);
            if hold.is_some_and(|hold| hold.stack >= stack) {
                break;
            }
            h.n.set(last);
            if let Some(Hold { give_back, words: [a, b], .. }) = hold {
                give_back(a, b);
                crate::stats::awake();
            }
        }
    });
}

/// Before longjmp(3) to `target`.
///
/// # Safety
/// `target` is a `jmp_buf` that setjmp(3) has filled in.
pub unsafe fn jumping(target: *const u64) {
    if HOLDS.with(|h| h.n.get()) > 0 {
        let saved = crate::sys::errno();
        // SAFETY: contract.
        give_back_below(unsafe { stack_of(target) });
        crate::sys::set_errno(saved);
    }
}

/// The stack pointer in a `jmp_buf` of glibc's: the seventh word, disguised with a secret of the thread's
/// (`PTR_MANGLE` in glibc's sysdeps/unix/sysv/linux/x86_64).
///
/// # Safety
/// As for [`jumping`].
#[cfg(target_arch = "x86_64")]
unsafe fn stack_of(target: *const u64) -> usize {
    let secret: u64;
    // SAFETY: reads a word that every thread has there by the ABI between compilers and glibc (tcbhead_t).
    unsafe {
        core::arch::asm!("mov {}, fs:[0x30]", out(reg) secret, options(nostack, readonly, preserves_flags));
    }
    // SAFETY: contract.
    let disguised = unsafe { *target.add(6) };
    usize::try_from(disguised.rotate_right(17) ^ secret).unwrap_or(usize::MAX)
}

/// Elsewhere the secret is out of reach. A jump that leaves a blocked call leaves all of them, but for handlers that jump inside
/// themselves.
///
/// # Safety
/// None needed.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn stack_of(_: *const u64) -> usize {
    usize::MAX
}
