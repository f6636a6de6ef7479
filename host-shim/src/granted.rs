//! Connections granted ahead (SPEC 3.11): who connects to one place again and again has some that it may open without waiting for the coordinator.
//!
//! Only while the coordinator was heard of lately. One that is gone or hangs would never bring such a connection to its server; who waits for
//! an answer notices, and uses the kernel. And not by a process that has the listener itself: it may look into its queue right after it has
//! connected, when the coordinator has not brought the connection there.

use core::sync::atomic::{AtomicUsize, Ordering};

use ring::msg::{Addr, ConnId, Request};

use crate::handle::Handle;
use crate::lock::{Guarded, Lock};
use crate::sys::NoSignals;
use crate::{coordinator, listener, process, sys, unaccepted};

/// Places that this process may connect to so, at a time.
const STOCKS_MAX: usize = 4;
/// Asked for at a time: what a server accepts while its client has the processor.
const ASKED: usize = 8;
/// In a stock, at most.
const STOCK_MAX: usize = ASKED + ASKED / 2;
/// Connections to one place before any are asked for. And after as many more, those that were asked for will not come.
const CONNECTS_MIN: u32 = 4;
const CONNECTS_IN_VAIN: u32 = 64;
/// How lately.
const HEARD_WITHIN_US: u64 = 10_000;

#[derive(Clone, Copy)]
struct Stock {
    /// Where to. Port 0: nowhere.
    dst: Addr,
    conns: [ConnId; STOCK_MAX],
    len: usize,
    /// How many were asked for that have not come.
    asked: usize,
    /// Connections since that.
    connects: u32,
    /// When it was last used, in connections of this process.
    used: u32,
}

struct Stocks {
    all: [Stock; STOCKS_MAX],
    connects: u32,
}

const NONE: Stock = Stock {
    dst: Addr { ip: [0; 16], port: 0 },
    conns: [ConnId(0); STOCK_MAX],
    len: 0,
    asked: 0,
    connects: 0,
    used: 0,
};

static STOCKS: Guarded<Stocks> = Guarded::new(Stocks { all: [NONE; STOCKS_MAX], connects: 0 });
/// Connections in all of them.
static GRANTED: AtomicUsize = AtomicUsize::new(0);

/// For the fork handlers.
pub fn lock() -> &'static Lock {
    STOCKS.lock()
}

impl Stock {
    fn push(&mut self, conn: ConnId) -> bool {
        let Some(place) = self.conns.get_mut(self.len) else { return false };
        *place = conn;
        self.len += 1;
        self.asked = self.asked.saturating_sub(1);
        GRANTED.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// The one that was given up last: its memory is touched already.
    fn pop(&mut self) -> Option<ConnId> {
        let last = self.len.checked_sub(1)?;
        self.len = last;
        GRANTED.fetch_sub(1, Ordering::Relaxed);
        self.conns.get(last).copied()
    }

    fn remove(&mut self, conn: ConnId) -> bool {
        let held = self.conns.get_mut(..self.len).unwrap_or_default();
        let Some(at) = held.iter().position(|c| *c == conn) else { return false };
        held.get_mut(at..).unwrap_or_default().rotate_left(1);
        self.len -= 1;
        GRANTED.fetch_sub(1, Ordering::Relaxed);
        true
    }

    /// One more connection: are more to be asked for?
    fn wants_more(&mut self) -> bool {
        self.connects = self.connects.saturating_add(1);
        if self.asked != 0 && self.connects >= CONNECTS_IN_VAIN {
            self.asked = 0;
        }
        let wants = self.connects > CONNECTS_MIN && self.len + self.asked <= ASKED / 2;
        if wants {
            self.asked += ASKED;
            self.connects = CONNECTS_MIN;
        }
        wants
    }
}

impl Stocks {
    /// The stock for `dst`, and the one that was there before, if that had to go.
    fn of(&mut self, dst: Addr) -> (Option<&mut Stock>, Stock) {
        self.connects = self.connects.wrapping_add(1);
        let now = self.connects;
        let age = |s: &Stock| if s.dst.port == 0 { u32::MAX } else { now.wrapping_sub(s.used) };
        let known = self.all.iter().position(|s| s.dst == dst);
        let oldest = || self.all.iter().enumerate().max_by_key(|(_, s)| age(s)).map(|(at, _)| at);
        let Some(stock) = known.or_else(oldest).and_then(|at| self.all.get_mut(at)) else {
            return (None, NONE);
        };
        let gone = if known.is_some() { NONE } else { core::mem::replace(stock, Stock { dst, ..NONE }) };
        stock.used = now;
        (Some(stock), gone)
    }
}

/// One to `dst` that may be opened as `h`, if there is one. Asks for more.
pub fn take(signals: &NoSignals, h: &Handle, dst: Addr) -> Option<ConnId> {
    if listener::has_port(dst.port) {
        return None;
    }
    // What was taken back, as far as one can know.
    coordinator::pump_undisturbed(signals);
    let now_us = sys::now_us();
    let lost = process::has_lost(process::epoch());
    let lives = !lost && coordinator::was_heard_within(HEARD_WITHIN_US, now_us);
    let (taken, wants, mut gone) = {
        let mut stocks = STOCKS.take()?;
        let (stock, gone) = stocks.of(dst);
        let stock = stock?;
        let taken = if lives { stock.pop() } else { None };
        (taken, stock.wants_more(), gone)
    };
    if wants {
        let count = u32::try_from(ASKED).unwrap_or(0);
        let _ = coordinator::post_quietly(Request::Ahead { dst, count });
    }
    while let Some(conn) = gone.pop() {
        let _ = coordinator::post_quietly(gives_up(conn));
    }
    if taken.is_some() {
        unaccepted::opened(h, now_us);
    }
    taken
}

/// The coordinator has granted one. False: nobody here wants it any more.
pub fn add(conn: ConnId, dst: Addr) -> bool {
    let Some(mut stocks) = STOCKS.take() else { return false };
    stocks.all.iter_mut().find(|s| s.dst == dst).is_some_and(|s| s.push(conn))
}

/// Its other side is gone: it must not be opened any more. False: it is none of these, or has been taken.
pub fn is_taken_back(conn: ConnId) -> bool {
    if GRANTED.load(Ordering::Relaxed) == 0 {
        return false;
    }
    STOCKS.take().is_some_and(|mut stocks| stocks.all.iter_mut().any(|s| s.remove(conn)))
}

/// What to tell the coordinator of one that will not be opened.
pub fn gives_up(conn: ConnId) -> Request {
    Request::Close { conn, side: 0, finished: false }
}

/// They are the parent's, or another coordinator's.
pub fn forget_all() {
    if let Some(mut stocks) = STOCKS.take() {
        stocks.all = [NONE; STOCKS_MAX];
        GRANTED.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(port: u16) -> Addr {
        Addr::v4([127, 0, 0, 1], port)
    }

    #[test]
    fn a_stock_gives_the_last_one_first_and_loses_what_is_taken_back() {
        let mut stock = Stock { dst: to(1), ..NONE };
        assert!((1..=STOCK_MAX as u64).all(|n| stock.push(ConnId(n))) && !stock.push(ConnId(99)));
        assert!(stock.remove(ConnId(2)) && !stock.remove(ConnId(2)));
        let rest: Vec<u64> = core::iter::from_fn(|| stock.pop()).map(|c| c.0).collect();
        let expected: Vec<u64> = (1..=STOCK_MAX as u64).rev().filter(|n| *n != 2).collect();
        assert_eq!(rest, expected);
    }

    #[test]
    fn more_are_asked_for_when_half_are_used_and_again_when_none_came() {
        let mut stock = Stock { dst: to(1), ..NONE };
        let asks = |stock: &mut Stock| (0..2000).position(|_| stock.wants_more());
        assert_eq!(asks(&mut stock), Some(CONNECTS_MIN as usize));
        assert_eq!(asks(&mut stock), Some((CONNECTS_IN_VAIN - CONNECTS_MIN) as usize - 1));
        for n in 1..=ASKED as u64 {
            assert!(stock.push(ConnId(n)));
        }
        assert_eq!(stock.asked, 0);
        assert!((0..100).all(|_| !stock.wants_more()));
        while stock.len > ASKED / 2 {
            stock.pop();
        }
        assert!(stock.wants_more());
    }

    #[test]
    fn the_place_that_was_not_connected_to_for_longest_goes() {
        let mut stocks = Stocks { all: [NONE; STOCKS_MAX], connects: 0 };
        for port in [1, 2, 3, 4, 1] {
            let (stock, gone) = stocks.of(to(port));
            assert!(stock.is_some_and(|s| s.dst == to(port)) && gone.dst.port == 0);
        }
        let (stock, gone) = stocks.of(to(5));
        assert_eq!((stock.map(|s| s.dst), gone.dst), (Some(to(5)), to(2)));
    }
}
