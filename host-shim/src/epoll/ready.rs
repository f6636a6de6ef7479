//! What is ready: the events of a registration, and the harvest of an instance.

use core::sync::atomic::Ordering;

use ring::wake::{self, SleepWord};

use super::set::State;
use super::shared::Joined;
use super::{barrier, is_shared};
use crate::handle::{self, Handle, Kind};
use crate::segments::{self, LANES, Lane};
use crate::{listener, poll};

/// The lane that all instances share, for connections that are in several sets.
pub(super) const SHARED_LANE: Lane = Lane::number(0);
/// In watch words.
const SHARED_WATCH: u32 = 1;
/// Sets within sets, as deep as the kernel allows them.
pub(super) const NESTING_MAX: u32 = 4;

pub(super) const ET: u32 = libc::EPOLLET.cast_unsigned();
pub(super) const ONESHOT: u32 = libc::EPOLLONESHOT.cast_unsigned();
/// Bits that are not events.
const OPTIONS: u32 = ET | ONESHOT | libc::EPOLLWAKEUP.cast_unsigned() | libc::EPOLLEXCLUSIVE.cast_unsigned();
/// Those that are.
pub(super) const EVENTS: u32 = !OPTIONS;
impl State {
    /// Which lane a connection's news goes to, as in watch words: its set's, or the shared one if it is in several, or a forked
    /// relative has it, too: one word says the lane for all of them.
    fn watch_for(&mut self, h: &Handle, instance: u32) -> u32 {
        let elsewhere = is_shared(h)
            || self.of_handle(h).any(|i| self.regs.get(i).is_some_and(|r| r.instance != instance));
        self.shared_lane |= elsewhere;
        let own =
            || segments::by_index(h.place.load(Ordering::Relaxed)).map(|m| Lane::of(instance).of_segment(m));
        let lane = if elsewhere { None } else { own() };
        lane.and_then(|lane| u32::try_from(lane + 1).ok()).unwrap_or(SHARED_WATCH)
    }

    /// A registration of a connection or listener in user space starts (again) to be watched.
    pub(super) fn watch(&mut self, index: usize) {
        self.set_watch(index);
        if let Some(r) = self.regs.get_mut(index) {
            r.armed = true;
        }
        self.queue(index);
    }

    /// The peer tells our sets of news from now on.
    pub(super) fn set_watch(&mut self, index: usize) {
        let Some(h) = self.handle_of(index) else { return };
        let Some((instance, events)) = self.regs.get(index).map(|r| (r.instance, r.interest.events)) else {
            return;
        };
        if let Some(s) = h.stream() {
            let value = self.watch_for(h, instance);
            let before = wake::set_lane(&s.in_dir.rx_watch, value);
            // A set that sleeps on the lane from before must announce itself on this one.
            self.kick |= before != 0 && before != value;
            if before != value && !makes_known(&s.in_dir.rx_wait, events) {
                self.set_fresh_input(index);
            }
        }
    }

    /// After fork, in both: the news of a connection that is watched goes to the shared lane. True if it did not before.
    pub(super) fn watch_shared(&mut self, h: &Handle) -> bool {
        let Some(s) = h.stream() else { return false };
        self.shared_lane = true;
        let value = SHARED_WATCH;
        let mut changed = false;
        for watch in [&s.in_dir.rx_watch, &s.out_dir.tx_watch] {
            if ![0, value].contains(&watch.load(Ordering::Relaxed)) {
                wake::set_lane(watch, value);
                changed = true;
            }
        }
        self.kick |= changed;
        changed
    }

    /// Something came in at `h`: its registrations are looked at, and those of the sets that they are in.
    pub(super) fn queue_all(&mut self, h: &Handle) {
        self.queue_outward(h, NESTING_MAX);
    }

    fn queue_outward(&mut self, h: &Handle, depth: u32) {
        self.each(h, |st, index| {
            st.queue(index);
            let set = st.regs.get(index).and_then(|r| st.instances.get(r.instance as usize));
            let set = set.and_then(|i| i.handle.checked_sub(1)).and_then(handle::by_index);
            if let Some(set) = set.filter(|e| depth > 0 && e.regs.load(Ordering::Relaxed) != 0) {
                st.queue_outward(set, depth - 1);
            }
        });
    }

    /// Current events of a registration, `EPOLLERR` and `EPOLLHUP` included unasked.
    pub(super) fn events(&mut self, index: usize) -> u32 {
        self.look_at(index).0
    }

    /// [`State::events`], and what else a connection is ready for.
    fn look_at(&mut self, index: usize) -> (u32, u32) {
        let Some(h) = self.handle_of(index) else { return (0, 0) };
        let Some((interest, instance)) = self.regs.get(index).map(|r| (r.interest.events, r.instance)) else {
            return (0, 0);
        };
        let mask = (interest & !OPTIONS) | poll::ALWAYS;
        match h.kind() {
            Kind::Listener if listener::ready_in_user(h) => (poll::IN & mask, 0),
            Kind::Epoll if self.is_ready(h, NESTING_MAX) => (poll::IN & mask, 0),
            Kind::Stream => {
                let Some(s) = h.stream() else { return (0, 0) };
                self.sync_kernel(index, h);
                let mut all = poll::events(h, &s);
                if interest & poll::OUT != 0 && all & poll::OUT == 0 {
                    let value = self.watch_for(h, instance);
                    if wake::set_lane(&s.out_dir.tx_watch, value) != value {
                        if makes_known(&s.out_dir.tx_wait, interest) {
                            all = poll::events(h, &s);
                        } else {
                            self.set_fresh(index, true);
                        }
                    }
                }
                (all & mask, all)
            }
            _ => (0, 0),
        }
    }

    /// Is there something new for an edge-triggered registration of a connection that is ready for `all`? As in Linux: whatever it
    /// was not ready for at the last look, and input that arrived since, for those who ask for input.
    fn is_edge(&self, index: usize, all: u32) -> (bool, u64) {
        let Some((r, h)) = self.regs.get(index).zip(self.handle_of(index)) else { return (false, 0) };
        let Some(s) = h.stream() else { return (true, 0) };
        let input = r.interest.events & poll::IN != 0;
        // Looked at without news, or news that a forked relative may have taken: the input itself must tell.
        let arrived = if input && (r.idle || is_shared(h)) { Some(s.arrived()) } else { None };
        let anew = all & !r.last & if input { u32::MAX } else { !poll::IN };
        // Input below a low-water mark is no news.
        let enough = all & poll::IN != 0 || !s.has_lowat();
        let more = input && enough && arrived.is_none_or(|at| at != r.seen);
        (r.armed || anew != 0 || more, arrived.unwrap_or(0))
    }

    /// Before a connection gets shared: what its registrations were not told of yet stays so in both processes.
    pub(super) fn note_edge(&mut self, index: usize) {
        let s = self.handle_of(index).and_then(|h| Some((h, h.stream()?)));
        let (Some((h, s)), Some(r)) = (s, self.regs.get_mut(index)) else { return };
        if r.queued {
            r.armed |= !r.idle;
        } else {
            (r.last, r.seen) = (poll::events(h, &s), s.arrived());
        }
    }

    /// Would epoll_wait(2) of this instance find something of ours? Nothing is taken.
    pub(super) fn is_ready(&mut self, e: &Handle, depth: u32) -> bool {
        let instance = e.place.load(Ordering::Relaxed);
        let joined = self.join(instance as usize);
        self.scan(Lane::of(instance));
        self.scan(SHARED_LANE);
        let mut next = self.instances.get(instance as usize).map_or(0, |i| i.ready_head);
        while let Some(index) = (next as usize).checked_sub(1) {
            let Some(r) = self.regs.get(index).copied() else { break };
            next = r.next_ready;
            let nested = self.handle_of(index).is_some_and(|h| h.kind() == Kind::Epoll);
            if r.dead || (nested && depth == 0) {
                continue;
            }
            if let (Some(joined), Some(r)) = (&joined, self.regs.get_mut(index)) {
                joined.recall(r);
                if r.off {
                    continue;
                }
            }
            let (events, all) = self.look_at(index);
            if events != 0 && (r.interest.events & ET == 0 || self.is_edge(index, all).0) {
                return true;
            }
        }
        false
    }

    /// Moves ready events to `out`. `settled`: a heavy barrier has passed since the last watch was set.
    pub(super) fn harvest(&mut self, instance: usize, out: &mut [libc::epoll_event], settled: bool) -> usize {
        let joined = self.join(instance);
        if self.instances.get(instance).is_some_and(|i| i.nested) {
            (0..LANES).for_each(|lane| self.scan(Lane::number(lane)));
        } else {
            self.scan(Lane::of(u32::try_from(instance).unwrap_or(0)));
            if self.shared_lane {
                self.scan(SHARED_LANE);
            }
        }
        let mut n = 0;
        if self.turn(instance, (out, &mut n), settled, false, joined.as_ref()) {
            self.turn(instance, (out, &mut n), settled, true, joined.as_ref());
        }
        n
    }

    /// One turn over the ready list, for the idle registrations or for all others. True: some were left to the other turn.
    fn turn(
        &mut self,
        instance: usize,
        (out, n): (&mut [libc::epoll_event], &mut usize),
        settled: bool,
        idle: bool,
        joined: Option<&Joined>,
    ) -> bool {
        let mut left = false;
        for _ in 0..self.instances.get(instance).map_or(0, |i| i.ready_len) {
            let Some(place) = out.get_mut(*n) else {
                // More than this call can take: another thread that sleeps on the instance may have it.
                self.kick |= self.instances.get(instance).is_some_and(|i| i.asleep > 0);
                return false;
            };
            let Some(index) = self.pop_ready(instance) else { break };
            let Some(r) = self.regs.get_mut(index) else { continue };
            if r.dead {
                self.give_place(index);
                continue;
            }
            if r.idle != idle {
                left = true;
                self.put_back(index);
                continue;
            }
            if let Some(joined) = joined {
                joined.recall(r);
                if r.off {
                    continue;
                }
            }
            if settled {
                self.set_fresh(index, false);
            }
            let (events, all) = self.look_at(index);
            let level = self.regs.get(index).is_some_and(|r| r.interest.events & ET == 0);
            let (edge, seen) = if level { (true, 0) } else { self.is_edge(index, all) };
            let Some(r) = self.regs.get_mut(index) else { continue };
            (r.armed, r.last, r.seen) = (false, all, seen);
            if events != 0 && edge {
                *place = libc::epoll_event { events, u64: r.interest.data };
                *n += 1;
                if r.interest.events & ONESHOT != 0 {
                    r.off = true;
                    r.idle = false;
                    joined.inspect(|joined| joined.note(r));
                    continue;
                }
            }
            if let Some(joined) = joined {
                joined.note(r);
            }
            let (fresh, h) = (r.fresh, self.handle_of(index));
            let ready = level && (events != 0 || fresh);
            let looked_at = !ready && h.is_some_and(needs_looking);
            if let Some(r) = self.regs.get_mut(index) {
                r.idle = looked_at;
            }
            if ready {
                self.queue(index);
            } else if looked_at {
                // It is looked at each time, but it is nothing to wake anybody for.
                self.put_back(index);
            }
        }
        left
    }
}

/// A watch was set beside `word`. The peer may not see it yet, unless it fences. Edge-triggered: has a barrier now, since looking twice would
/// make an edge of it. Level-triggered: false, look directly until a barrier has passed.
fn makes_known(word: &SleepWord, events: u32) -> bool {
    if word.fence_if_settled() {
        return true;
    }
    let edge = events & ET != 0;
    if edge {
        barrier();
    }
    edge
}

/// No news may come of it: look at it each time. A forked relative has it, too, and may take its news.
fn needs_looking(h: &Handle) -> bool {
    is_shared(h)
}
