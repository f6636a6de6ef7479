//! Who the calling thread is: its id in the kernel, and a name that no other thread of any process has.
//!
//! Both are kept by the thread, with its other local variables. These a child has from its parent, even one of whose fork libc did not
//! tell us; so what a name is made of lies in a page that a child finds empty (madvise(2), `MADV_WIPEONFORK`).
//!
//! `unsafe` is allowed here: that page.
#![allow(unsafe_code)]

use core::cell::Cell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ring::owner::NAME_MIN;
use rustix::mm::{Advice, madvise};

use crate::handlers::Section;
use crate::sys;

/// Thread ids are below this (proc_sys_kernel(5), `pid_max`).
const TIDS: u64 = 1 << 22;

#[repr(C, align(4096))]
struct Page {
    /// What thread ids are added to; 0: nothing yet.
    names: AtomicU64,
    /// [`YES`] or [`NO`]: other processes' barriers reach us.
    reachable: AtomicU32,
    /// [`YES`] since [`begin`].
    begun: AtomicU32,
}

static PAGE: Page = Page { names: AtomicU64::new(0), reachable: AtomicU32::new(0), begun: AtomicU32::new(0) };
/// [`YES`] or [`NO`]: children find the page empty.
static WIPED: AtomicU32 = AtomicU32::new(0);
const YES: u32 = 1;
const NO: u32 = 2;

/// What a thread keeps for itself: in one place, so that it is looked for once.
struct Thread {
    /// What was found out, 0: nothing yet.
    name: Cell<u64>,
    section: Section,
}

std::thread_local! {
    static THREAD: Thread = const { Thread { name: Cell::new(0), section: Section::new() } };
}

/// The section that the calling thread is in, or not. It stays where it is as long as the thread lives.
#[inline(always)]
#[must_use]
pub fn section() -> *const Section {
    THREAD.with(|t| core::ptr::from_ref(&t.section))
}

/// A thread.
#[derive(Clone, Copy, Debug)]
pub struct Me {
    /// As the kernel calls it, never 0.
    pub tid: u32,
    /// As nobody else is called, here or in another process; below [`NAME_MIN`] where the kernel does not allow that.
    pub name: u64,
}

/// The calling thread.
#[inline(always)]
#[must_use]
#[allow(clippy::cast_possible_truncation)] // below TIDS
pub fn me() -> Me {
    let name = THREAD.with(|t| t.name.get());
    let tid = name.wrapping_sub(PAGE.names.load(Ordering::Relaxed));
    // With an empty page, or another one's name, it is none.
    if tid.wrapping_sub(1) < TIDS { Me { tid: tid as u32, name } } else { find_out() }
}

/// The calling thread's id.
#[inline(always)]
#[must_use]
pub fn tid() -> u32 {
    me().tid
}

#[cold]
fn find_out() -> Me {
    let tid = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
    if PAGE.names.load(Ordering::Relaxed) == 0 && is_wiped() {
        // Random in 60 bits, with one above, and room for the thread ids below the next.
        let names = NAME_MIN | (sys::random() & (NAME_MIN / 2 - 1));
        let _ = PAGE.names.compare_exchange(0, names, Ordering::Relaxed, Ordering::Relaxed);
    }
    let name = PAGE.names.load(Ordering::Relaxed) + u64::from(tid);
    THREAD.with(|t| t.name.set(name));
    Me { tid, name }
}

fn is_wiped() -> bool {
    if WIPED.load(Ordering::Relaxed) == 0 {
        let page = core::ptr::from_ref(&PAGE).cast_mut().cast();
        // SAFETY: a page of ours, aligned and long enough; what it changes is what a child finds in it, which is what it is for.
        let wiped = unsafe { madvise(page, size_of::<Page>(), Advice::LinuxWipeOnFork) }.is_ok();
        WIPED.store(if wiped { YES } else { NO }, Ordering::Relaxed);
    }
    WIPED.load(Ordering::Relaxed) == YES
}

/// This memory is of a process of its own from now on.
pub fn begin() {
    if is_wiped() {
        PAGE.begun.store(YES, Ordering::Relaxed);
    }
}

/// Nobody has forked since [`begin`], or this is the parent. False: not known.
#[inline(always)]
pub fn has_not_forked() -> bool {
    PAGE.begun.load(Ordering::Relaxed) == YES
}

/// Its name, if who takes an ownership away from it would be sure that it has noticed; else 0.
pub fn owners_name() -> u64 {
    if PAGE.reachable.load(Ordering::Relaxed) == 0 {
        let reachable = sys::register_membarrier();
        PAGE.reachable.store(if reachable { YES } else { NO }, Ordering::Relaxed);
    }
    if PAGE.reachable.load(Ordering::Relaxed) == YES { me().name } else { 0 }
}

/// After fork, in the child, where the page could not be had: what is kept is the parent's.
pub fn forget() {
    THREAD.with(|t| t.name.set(0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_have_names_of_their_own() {
        let mine = me();
        assert_eq!(mine.tid, me().tid);
        assert!(mine.name >= NAME_MIN && mine.name == me().name);
        let others = std::thread::spawn(me).join().unwrap();
        assert!(mine.tid != others.tid && mine.name != others.name);
    }

    /// Without what fork(2) of libc's does: its exit status says what it found.
    #[test]
    fn a_child_has_a_name_of_its_own() {
        let mine = me();
        // SAFETY: the child ends at once; it uses nothing that another thread could have left locked.
        let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        if pid == 0 {
            let own = me();
            let right = own.tid == sys::getpid() && own.name != mine.name && own.name >= NAME_MIN;
            sys::exit_now(i32::from(!right));
        }
        let mut status = 0;
        // SAFETY: `status` is writable.
        unsafe { libc::waitpid(i32::try_from(pid).unwrap(), &raw mut status, 0) };
        assert_eq!(status, 0);
    }
}
