//! fork(2): the child shares its parent's connections and listeners, and attaches as a process of its own.
//!
//! The parent announces the fork to the coordinator before it happens, so that whatever it closes afterwards
//! does not end what the child holds. These are pthread_atfork(3) handlers, so libc's own forks (daemon(3)) come here, too.
//!
//! `unsafe` is allowed here: registering the handlers.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use ring::msg::Request;

use crate::lock::Lock;
use crate::{
    agent, ahead, arenas, coordinator, epoll, faces, fds, granted, listener, me, overlay, pending, ports,
    process, reserved, segments, socket, source, sys, unix, wait,
};

/// Held from before a fork until the parent has gone on.
static FORKING: Lock = Lock::new();
static NONCE: AtomicU64 = AtomicU64::new(0);
static PARENT: AtomicU32 = AtomicU32::new(0);
/// The child attaches when it needs to ([`may_wait`]).
static LATER: AtomicBool = AtomicBool::new(false);
/// It has connections: until it attaches, the agent has to watch it.
static WATCHED: AtomicBool = AtomicBool::new(false);
/// The parent ends as soon as it has forked.
static PARENT_ENDS: AtomicBool = AtomicBool::new(false);
/// The thread that forks.
static FORKER: AtomicU32 = AtomicU32::new(0);

/// Registers the handlers. Called when the library is loaded.
pub fn install() {
    // SAFETY: plain functions of ours, for the life of the process (the library is never unloaded).
    unsafe { libc::pthread_atfork(Some(before), Some(after_in_parent), Some(after_in_child)) };
}

/// Private locks, in the order in which they are ever nested.
fn locks() -> [&'static Lock; 13] {
    let [dispatch, rings] = coordinator::locks();
    let [v4, v6] = ports::locks();
    [
        ahead::lock(),
        source::lock(),
        process::lock(),
        dispatch,
        v4,
        v6,
        segments::lock(),
        agent::lock(),
        epoll::lock(),
        granted::lock(),
        rings,
        faces::lock(),
        fds::numbering(),
    ]
}

extern "C" fn before() {
    if process::is_borrowed() {
        return;
    }
    // Two threads that fork at once are two forks, one after the other. Given back as the locks below.
    core::mem::forget(FORKING.take());
    FORKER.store(me::tid(), Ordering::Relaxed);
    core::mem::forget(unix::lock().take());
    NONCE.store(0, Ordering::Relaxed);
    LATER.store(false, Ordering::Relaxed);
    WATCHED.store(false, Ordering::Relaxed);
    if socket::has_shared() && process::is_known() {
        listener::share_all();
        announce(may_wait());
        WATCHED.store(socket::has_connections(), Ordering::Relaxed);
        epoll::before_fork();
        socket::count_child();
    } else if unix::is_inherited() {
        // It may have something to say to the coordinator some day: then it shall be known whose child it is.
        announce(may_wait() || !unix::listens());
    }
    unix::count_child();
    faces::before_fork();
    socket::leave_unconnected_to_kernel();
    overlay::count_child();
    // No other thread is inside a private section while memory is copied. Given back by `unlock` or, in the child, reset.
    for lock in locks() {
        core::mem::forget(lock.take());
    }
}

/// Tells the coordinator of a child, which attaches at once, or `later`.
fn announce(later: bool) {
    let nonce = sys::random() | 1;
    if coordinator::post_quietly(Request::Fork { nonce }).is_ok() {
        NONCE.store(nonce, Ordering::Relaxed);
    }
    PARENT.store(process::function(), Ordering::Relaxed);
    LATER.store(later, Ordering::Relaxed);
}

/// daemon(3): the child goes on alone with what its parent has, and with the clients that come meanwhile.
pub fn as_daemon(daemon: impl FnOnce() -> i32) -> i32 {
    PARENT_ENDS.store(true, Ordering::Relaxed);
    let r = daemon();
    PARENT_ENDS.store(false, Ordering::Relaxed);
    r
}

/// May the child attach when it has something to ask for? Many, like those that serve a connection that stays in the kernel, never
/// have. One with a connection of ours, whose other side is to hear at once of the child's end, has the agent watch it. Not if it may soon
/// be another user, whom the agent does not take for our child.
fn may_wait() -> bool {
    !PARENT_ENDS.load(Ordering::Relaxed) && !rustix::process::geteuid().is_root()
}

extern "C" fn after_in_parent() {
    if process::is_borrowed() {
        return;
    }
    for lock in locks().iter().rev() {
        lock.give_back();
    }
    unix::lock().give_back();
    FORKING.give_back();
    epoll::look_at_shared();
}

extern "C" fn after_in_child() {
    me::forget();
    for lock in locks().into_iter().chain([unix::lock(), &FORKING]) {
        lock.reset();
    }
    let (parent, nonce) = (PARENT.load(Ordering::Relaxed), NONCE.load(Ordering::Relaxed));
    agent::end_lifeline();
    let later = nonce != 0 && LATER.load(Ordering::Relaxed);
    let watched = later && WATCHED.load(Ordering::Relaxed);
    let later = later && (!watched || agent::born(parent, nonce));
    process::detach_child();
    wait::forget_sleepers();
    epoll::forget_sleepers();
    arenas::SOCKS.leave_own();
    epoll::shared::SETS.leave_own();
    overlay::leave_arena();
    // What it holds must have a holder before the parent can let go of it for good.
    if later {
        process::attach_later(parent, nonce, watched);
    } else if nonce != 0 {
        process::attach(parent, nonce);
    }
    socket::forget_calls();
    pending::forget();
    unix::forget_calls();
    reserved::forget_others(FORKER.load(Ordering::Relaxed));
    epoll::look_at_shared();
}
