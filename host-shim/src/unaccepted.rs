//! Connections that a coordinator which is gone, or hangs, has brought to nobody: their clients have connected, and no server will ever have
//! them. They are reset, as by a server that is gone.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use ring::msg::Request;

use crate::handle::{self, Handle, Kind, touched};
use crate::sys::NoSignals;
use crate::{coordinator, process, sock, sys, wait};

/// Who waits for as long after the last connection that was opened without an answer ([`crate::granted`]) asks whether the coordinator is there.
const PATIENCE: Duration = Duration::from_secs(1);

/// When the last one was, in µs of the clock; 0: that was asked.
static OPENED_AT_US: AtomicU64 = AtomicU64::new(0);

/// `h` is about to be opened so.
pub fn opened(h: &Handle, now_us: u64) {
    h.touch(touched::UNHEARD);
    OPENED_AT_US.store(now_us.max(1), Ordering::Relaxed);
}

/// Before a sleep of at most `timeout`: how long it may be.
pub fn patient(timeout: Option<Duration>) -> Option<Duration> {
    let at_us = OPENED_AT_US.load(Ordering::Relaxed);
    if at_us == 0 {
        return timeout;
    }
    let left = (Duration::from_micros(at_us) + PATIENCE).saturating_sub(sys::now());
    if left.is_zero() && coordinator::may_wait() {
        OPENED_AT_US.store(0, Ordering::Relaxed);
        ask();
        return timeout;
    }
    let left = left.max(Duration::from_millis(1));
    Some(timeout.map_or(left, |t| t.min(left)))
}

/// What was opened before the coordinator answers, it has seen.
fn ask() {
    let unheard = |h: &&'static Handle| h.was(touched::UNHEARD) && is_unaccepted(h);
    if !handle::all().any(|h| unheard(&h)) {
        return;
    }
    // It concerns nothing, and is answered.
    let lives = coordinator::call(Request::Unlisten { listener: 0 }).is_ok();
    let _no_signals = NoSignals::new();
    for h in handle::all().filter(unheard) {
        h.touched.fetch_and(!touched::UNHEARD, Ordering::Relaxed);
        if !lives {
            coordinator::peer_gone(h, sock::DEAD_RESET);
        }
    }
}

/// For who finds that the agent may be gone: who waits for such a server hears of it.
pub fn end_if_alone() {
    if process::is_attached() && !wait::agent_alive() {
        process::loses(process::epoch());
    }
    end();
}

/// Resets them, if this process has lost its coordinator. (A child that has not attached has lost none.)
pub fn end() {
    let _no_signals = NoSignals::new();
    let lost = |h: &&'static Handle| process::has_lost(h.epoch.load(Ordering::Relaxed)) && is_unaccepted(h);
    for h in handle::all().filter(lost) {
        coordinator::peer_gone(h, sock::DEAD_RESET);
    }
}

/// It is a client's connection, and no server has joined it.
fn is_unaccepted(h: &Handle) -> bool {
    if h.kind() != Kind::Stream || h.is_unix() || h.side.load(Ordering::Relaxed) != 0 {
        return false;
    }
    let Some(_pinned) = h.pin() else { return false };
    h.stream().is_some_and(|s| s.sock.dead.load(Ordering::Relaxed) == 0 && !s.is_joined())
}
