//! Sleeping on a set: who sleeps is announced in the words of the set's lanes, and has a sleeper that peers wake.
//!
//! The sleeper's descriptor is *inside* the application's set, so that one call waits for both worlds. Of a set that forked
//! relatives share it is beside it ([`super::shared`]).

use core::sync::atomic::Ordering;

use ring::wake::{self, SleepWord};

use super::set::Instance;
use super::shared::Set;
use super::{SHARED_LANE, STATE};
use crate::handle::{self, Handle};
use crate::holds::{self, Noted};
use crate::segments::{self, LANES, Lane};
use crate::{epoll_wait, wait};

/// Yields for threads that a fork has woken: more than they need to begin another sleep.
const YIELDS_MAX: u32 = 1000;

/// How a sleep on an instance was announced.
#[derive(Clone, Copy, Default)]
pub struct SleepOn {
    /// Its sleeper, if there is one.
    pub sleeper: Option<u32>,
    /// The sleeper's set is inside the application's.
    pub inside: bool,
    /// A heavy barrier has passed: watches that were new are not any more.
    pub settled: bool,
}

/// Before a sleep: from now on, news for this instance wakes its sleeper. What came before is found by the next look.
pub fn announce_sleep(e: &Handle, ep: i32) -> SleepOn {
    let index = e.place.load(Ordering::Relaxed);
    let Some(mut st) = STATE.take() else { return SleepOn::default() };
    let inside = !st.is_shared_set(index);
    let joined = st.join(index as usize);
    let shared = st.shared_lane;
    let Some(inst) = st.instances.get_mut(index as usize) else { return SleepOn::default() };
    inst.asleep += 1;
    inst.asleep_inside += u32::from(inside);
    inst.install_sleeper(ep, inside);
    let sleeper = inst.sleeper.checked_sub(1);
    if let Some(s) = sleeper {
        wait::Sleeper::kept(s).sync();
    }
    if let Some(joined) = joined {
        joined.hang(inst.bell());
    }
    let mut announced = wait::Announcements::new(inst.bell());
    let each = |act: &mut dyn FnMut(&SleepWord)| {
        if inst.nested {
            (0..LANES).for_each(|lane| each_word(Lane::number(lane), act));
        } else {
            each_word(Lane::of(index), act);
            if shared {
                each_word(SHARED_LANE, act);
            }
        }
    };
    each(&mut |word| announced.announce(word));
    let settled = announced.fence(inst.fresh > 0 || inst.nested);
    if settled {
        each(&mut |word| announced.settle(word));
    }
    SleepOn { sleeper, inside, settled }
}

/// The word of a lane in each segment. Under the lock, which keeps them mapped.
fn each_word(lane: Lane, act: &mut dyn FnMut(&SleepWord)) {
    for (_, m) in segments::all() {
        if let Some(l) = m.ours().and_then(|side| side.lanes.get(lane.of_segment(m))) {
            act(&l.sleeping);
        }
    }
}

/// Awake again.
pub fn end_sleep(e: &Handle, inside: bool) {
    let index = e.place.load(Ordering::Relaxed) as usize;
    if let Some(mut st) = STATE.take()
        && let Some(inst) = st.instances.get_mut(index)
    {
        inst.asleep = inst.asleep.saturating_sub(1);
        inst.asleep_inside = inst.asleep_inside.saturating_sub(u32::from(inside));
    }
}

/// For a call that is going to sleep on an instance.
pub fn note_sleep(e: &Handle, inside: bool) -> Noted {
    let give_back = |index: usize, inside: usize| {
        if let Some(e) = u32::try_from(index).ok().and_then(handle::by_index) {
            end_sleep(e, inside != 0);
        }
    };
    holds::note(give_back, [e.index() as usize, usize::from(inside)])
}

/// For a poll(2) that is about to sleep on an instance: the words of its lanes.
pub fn each_word_of(e: &Handle, act: &mut dyn FnMut(&SleepWord)) {
    let Some(_no_scans) = STATE.take() else { return };
    each_word(Lane::of(e.place.load(Ordering::Relaxed)), act);
    each_word(SHARED_LANE, act);
}

/// An edge for the instance's sleeper was taken: what it tells of is noticed now.
pub fn drain_sleeper(e: &Handle) {
    let index = e.place.load(Ordering::Relaxed) as usize;
    let sleeper = STATE.take().and_then(|st| st.instances.get(index)?.sleeper.checked_sub(1));
    if let Some(s) = sleeper {
        wait::Sleeper::kept(s).drain();
    }
}

/// The kernel has found an instance readable: what only its sleeper has there is taken back. True: it is worth asking again.
pub fn take_back_edges(e: &Handle) -> bool {
    let index = e.place.load(Ordering::Relaxed) as usize;
    let idle_sleeper = || {
        let st = STATE.take()?;
        st.instances.get(index).filter(|inst| inst.inside && inst.asleep == 0)?.sleeper.checked_sub(1)
    };
    let Some(s) = idle_sleeper() else { return false };
    wait::Sleeper::kept(s).drain();
    // Whoever began to sleep there meanwhile may have lost an edge by that. Who begins later looks later.
    if idle_sleeper().is_none() {
        wait::kick_others();
    }
    true
}

/// Before a sleep in the kernel alone, since nothing of ours is in the set (yet). False: something is.
pub fn begin_kernel_sleep(e: &Handle) -> bool {
    let Some(mut st) = STATE.take() else { return true };
    let index = e.place.load(Ordering::Relaxed) as usize;
    // A relative may have added something.
    drop(st.join(index));
    match st.instances.get_mut(index) {
        Some(inst) if inst.regs == 0 => {
            inst.asleep += 1;
            inst.asleep_inside += 1;
            true
        }
        _ => false,
    }
}

/// Has a relative added something to a set in which nothing of ours was?
pub fn has_gained(e: &Handle) -> bool {
    let Some(mut st) = STATE.take() else { return false };
    let index = e.place.load(Ordering::Relaxed) as usize;
    drop(st.join(index));
    st.instances.get(index).is_some_and(|i| i.regs != 0)
}

/// A segment may have been mapped since the instance's sleeper was made; or threads sleep that had none.
pub(super) fn sync_sleeper(instance: u32, ep: i32) {
    let Some(mut st) = STATE.take() else { return };
    let Some(inst) = st.instances.get_mut(instance as usize) else { return };
    if inst.asleep > 0 {
        inst.install_sleeper(ep, inst.asleep_inside > 0);
        // Who sleeps is kicked, and runs the barrier.
        let bell = inst.bell();
        each_word(Lane::of(instance), &mut |word| {
            word.announce(wake::WIRE, bell);
        });
    }
    if let Some(s) = inst.sleeper.checked_sub(1) {
        wait::Sleeper::kept(s).sync();
    }
}

/// After fork, in the child: the parent's sleepers are not ours.
pub fn forget_sleepers() {
    let Some(mut st) = STATE.take() else { return };
    // Those alone that are in use: what is written to here, the kernel copies.
    for inst in st.instances.iter_mut().filter(|i| i.handle != 0) {
        inst.sleeper = 0;
        inst.inside = false;
        inst.asleep = 0;
        inst.asleep_inside = 0;
        if let Some(set) = inst.shared {
            set.be_born();
        }
    }
}

/// Before fork: sets are shared from now on, so no sleeper may stay inside. Threads that count on one are woken, to sleep anew.
pub(super) fn take_sleepers_out() {
    let Some(mut st) = STATE.take() else { return };
    for inst in st.instances.iter_mut().filter(|i| i.handle != 0 && i.shared.is_none()) {
        inst.shared = Set::allocate();
        inst.changes = 0;
    }
    drop(st);
    for round in 0..YIELDS_MAX {
        let count_on_it = |i: &Instance| i.shared.is_some() && i.inside && i.asleep_inside > 0;
        if STATE.take().is_none_or(|st| !st.instances.iter().any(count_on_it)) {
            break;
        }
        if round.is_multiple_of(64) {
            wait::kick_others();
        }
        rustix::thread::sched_yield();
    }
    let Some(mut st) = STATE.take() else { return };
    for inst in st.instances.iter_mut().filter(|i| i.shared.is_some() && i.asleep_inside == 0) {
        inst.remove_sleeper();
    }
}

impl Instance {
    /// Its sleeper's.
    fn bell(&self) -> u32 {
        self.sleeper.checked_sub(1).map_or(wake::EVERYBODY, |s| wait::Sleeper::kept(s).bell())
    }

    /// Sees to it that there is a sleeper; inside the application's set, where threads that sleep in the kernel can be woken.
    fn install_sleeper(&mut self, ep: i32, inside: bool) {
        if self.sleeper == 0
            && let Some(s) = wait::Sleeper::acquire()
        {
            self.sleeper = s.keep() + 1;
        }
        if let Some(s) = self.sleeper.checked_sub(1)
            && inside
            && !self.inside
        {
            self.inside = epoll_wait::kernel_add_sleeper(ep, wait::Sleeper::kept(s).fd());
            if !self.inside {
                self.give_sleeper_back();
            }
        }
    }

    /// Out of the application's set.
    fn remove_sleeper(&mut self) {
        if let Some(s) = self.sleeper.checked_sub(1)
            && core::mem::take(&mut self.inside)
        {
            epoll_wait::kernel_delete(self.ep, wait::Sleeper::kept(s).fd());
        }
    }

    pub(super) fn give_sleeper_back(&mut self) {
        if let Some(s) = core::mem::take(&mut self.sleeper).checked_sub(1) {
            drop(core::mem::ManuallyDrop::into_inner(wait::Sleeper::kept(s)));
        }
    }
}
