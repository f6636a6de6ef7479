//! A shard on an lcore of its own, at the far end of a [`link`](crate::link).

use ring::atomic::{Ordering, fence};

use crate::link::{BURST, LogicEnd, ToLogic, ToShard};
use crate::logic::Out;
use crate::shard::Shard;

/// Words that one turn does.
const HEARD_PER_TURN: usize = 4 * BURST;

/// A shard and its way to the logic.
#[derive(Debug)]
pub struct Worker<'r> {
    shard: Shard,
    logic: LogicEnd<'r>,
    /// What one burst has brought.
    heard: Vec<ToShard>,
    /// Completions of it that come in a row.
    out: Vec<Out>,
    sleep_asked: bool,
    over: bool,
}

impl<'r> Worker<'r> {
    /// `shard` has no functions yet: the logic says which.
    #[must_use]
    pub fn new(shard: Shard, logic: LogicEnd<'r>) -> Self {
        let (heard, out) = (Vec::with_capacity(HEARD_PER_TURN), Vec::with_capacity(HEARD_PER_TURN));
        Worker { shard, logic, heard, out, sleep_asked: false, over: false }
    }

    /// One turn: what the logic says, and a look at the functions that the chosen queue says to look at. True if there was anything
    /// to do.
    pub fn turn(&mut self, now_us: u64) -> bool {
        let heard = self.hear();
        let worked = self.visit(false, now_us);
        self.logic.to.flush();
        heard || worked
    }

    /// True when the logic's end is gone.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Tells the logic that yielding is not enough to get this core back.
    pub fn is_crowded(&mut self) {
        self.logic.to.push(ToLogic::Crowded);
    }

    /// Sleeps until the bell, if the logic has asked for it (SPEC 2.6). True if it did.
    pub fn sleep_if_asked(&mut self, now_us: u64) -> bool {
        if !std::mem::take(&mut self.sleep_asked) {
            return false;
        }
        self.shard.set_doorbell_wanted(true);
        // SeqCst: pairs with the fence of who posts (SPEC 2.6.3).
        fence(Ordering::SeqCst);
        let worked = self.visit(true, now_us);
        if self.shard.is_under_way() {
            // That comes without a doorbell.
            self.shard.set_doorbell_wanted(false);
            self.sleep_asked = true;
            return false;
        }
        if !worked {
            self.shard.counters().sleeps.add(1);
        }
        // What the look has found stands before this word: the logic rings the bell at once, then.
        self.logic.to.push(ToLogic::Asleep);
        while !self.logic.to.flush() && !self.over {
            self.hear();
            rustix::thread::sched_yield();
        }
        self.logic.wait_for_bell();
        self.shard.set_doorbell_wanted(false);
        true
    }

    fn visit(&mut self, all: bool, now_us: u64) -> bool {
        let (mut worked, mut starved) = (false, None);
        let due = self.shard.due(all, now_us);
        for &number in &due {
            if !self.logic.to.is_full() {
                worked |= self.shard.take(number, &mut self.logic.to);
            } else if starved.is_none() && self.shard.has_request(number) {
                starved = Some(number);
            }
            self.shard.settle_due(number, &mut self.logic.to);
        }
        self.shard.looked(due, starved);
        worked || self.shard.is_under_way()
    }

    /// Does all that the logic says, whether or not the outlet has room for what follows from it.
    fn hear(&mut self) -> bool {
        let mut heard = std::mem::take(&mut self.heard);
        let over = self.logic.from.is_closed();
        let some = self.logic.from.burst(&mut heard, HEARD_PER_TURN) > 0;
        self.over = over && !some;
        for word in heard.drain(..) {
            match word {
                ToShard::Out(out) => self.out.push(out),
                word => {
                    self.route();
                    self.obey(word);
                }
            }
        }
        self.route();
        self.heard = heard;
        some
    }

    fn route(&mut self) {
        self.shard.route(&self.out, &mut self.logic.to);
        self.out.clear();
    }

    fn obey(&mut self, word: ToShard) {
        let (shard, to) = (&mut self.shard, &mut self.logic.to);
        match word {
            ToShard::Out(out) => shard.route(&[out], to),
            ToShard::Held(entry) => {
                if let Some(number) = shard.hold(&entry, to) {
                    // Without room it waits for the next turn.
                    if !to.is_full() {
                        shard.take(number, to);
                    }
                    shard.settle_due(number, to);
                }
            }
            ToShard::Map(number, port) => shard.map(number, port),
            ToShard::Unmap(number) => {
                shard.finish(number, to);
                shard.unmap(number);
                to.push(ToLogic::Unmapped { function: number });
            }
            ToShard::Drain(number) => {
                shard.finish(number, to);
                to.push(ToLogic::Drained { function: number });
            }
            ToShard::Drop(number) => shard.drop_function(number),
            ToShard::Sleep => self.sleep_asked = true,
        }
    }
}
