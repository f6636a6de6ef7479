//! epoll over connections in user space and kernel descriptors, in one set.
//!
//! The application's epoll descriptor is real, and kernel descriptors are registered in it. Connections of ours
//! are registered here. A set costs in proportion to what is ready: peers leave news in our side of the segment, and only
//! connections with news, or still ready from last time, are looked at.
//!
//! All of it is under one lock: registrations, ready lists and the scan for news. Nobody sleeps with it.

mod both;
mod inherit;
mod kernel;
mod news;
mod ready;
mod set;
pub mod shared;
mod sleep;

use core::sync::atomic::{Ordering, fence};

use crate::handle::{self, Handle, Kind, touched};
use crate::lock::Guarded;
use crate::segments::{self, Lane};
use crate::sys::{Errno, Membarrier, Result};
use crate::{poll, process, wait};

pub use inherit::{Inherited, leave};
use ready::{NESTING_MAX, SHARED_LANE};
pub use set::Interest;
use set::{Instance, NO_INSTANCE, NO_REG, Reg, State};
pub use sleep::{
    SleepOn, announce_sleep, begin_kernel_sleep, drain_sleeper, each_word_of, end_sleep, forget_sleepers,
    has_gained, note_sleep, take_back_edges,
};

/// Registrations that are polled directly until the next barrier, before one is made for them.
const FRESH_MAX: u32 = 32;
/// The same of those for input. Two that are looked at one after the other show no order of arrival, and a client that sends on one
/// connection, then on another, counts on it.
const FRESH_INPUTS_MAX: u32 = 1;
static STATE: Guarded<State> = Guarded::new(State::EMPTY);

/// For the fork handlers.
pub fn lock() -> &'static crate::lock::Lock {
    STATE.lock()
}

/// Keeps scans and registrations out while held.
pub fn exclude() -> Option<impl Sized> {
    STATE.take()
}

/// A new epoll instance behind `h`. False: too many, the kernel alone serves it.
pub fn created(ep: i32, h: &Handle) -> bool {
    let Some(mut st) = STATE.take() else { return false };
    let Some((index, place)) = (0u32..).zip(st.instances.iter_mut()).find(|(_, i)| i.handle == 0) else {
        return false;
    };
    *place = Instance { handle: h.index() + 1, ep, ..NO_INSTANCE };
    h.place.store(index, Ordering::Relaxed);
    true
}

/// The last descriptor of an epoll instance is gone.
pub fn closed(h: &Handle) {
    let index = h.place.load(Ordering::Relaxed);
    let Some(mut st) = STATE.take() else { return };
    // First those in the ready list: some are dead, and counted nowhere else.
    while let Some(i) = st.pop_ready(index as usize) {
        if st.regs.get(i).is_some_and(|r| r.dead) {
            st.give_place(i);
        }
    }
    st.each_of(index, |st, i| {
        st.unlink(i);
        st.give_place(i);
    });
    if let Some(inst) = st.instances.get_mut(index as usize) {
        inst.give_sleeper_back();
        if let Some(set) = inst.shared {
            set.let_go(process::id());
        }
        *inst = NO_INSTANCE;
    }
}

/// The application has closed its last descriptor of an instance, for which calls wait; `kept` is one of ours.
pub fn moved(h: &Handle, kept: i32) {
    if h.kind() != Kind::Epoll {
        return;
    }
    let index = h.place.load(Ordering::Relaxed);
    let Some(mut st) = STATE.take() else { return };
    st.each_of(index, |st, i| {
        if let Some(r) = st.regs.get_mut(i) {
            r.ep = kept;
        }
    });
    if let Some(inst) = st.instances.get_mut(index as usize) {
        inst.ep = kept;
    }
}

fn is_shared(h: &Handle) -> bool {
    h.kind() == Kind::Stream && shared::has_relatives(h)
}

fn barrier() {
    use ring::atomic::Heavy;
    Membarrier.heavy_barrier();
}

/// Before fork: news that came until now are collected, so that they are news in both processes.
pub fn before_fork() {
    sleep::take_sleepers_out();
    let Some(mut st) = STATE.take() else { return };
    (0..segments::LANES).for_each(|lane| st.scan(Lane::number(lane)));
    for h in handle::all().filter(|h| h.kind() == Kind::Stream && h.regs.load(Ordering::Relaxed) != 0) {
        st.each(h, State::note_edge);
    }
    (0..).take(st.instances.len()).for_each(|instance| st.share(instance));
    st.finish();
}

/// After fork, in both: what is shared now is watched in the shared lane, and looked at directly.
pub fn look_at_shared() {
    let watched = |h: &&Handle| is_shared(h) && h.regs.load(Ordering::Relaxed) != 0;
    let Some(mut st) = STATE.take() else { return };
    let mut changed = false;
    for h in handle::all().filter(watched) {
        changed |= st.watch_shared(h);
    }
    if changed {
        barrier();
    }
    for h in handle::all().filter(watched) {
        st.queue_all(h);
    }
    st.finish();
}

/// What epoll_ctl(2) should do in the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Nothing: done here.
    No,
    /// The same call.
    Yes,
}

/// epoll_ctl(2), the part in user space. `ep`: the instance's handle; `h`: what `fd` is, if it is one of ours.
///
/// # Errors
/// As epoll_ctl(2), for connections in user space.
pub fn control(
    ep: i32,
    e: &Handle,
    op: i32,
    fd: i32,
    h: Option<&Handle>,
    interest: Interest,
) -> Result<Kernel> {
    let instance = e.place.load(Ordering::Relaxed);
    let Some(mut st) = STATE.take() else { return Err(Errno(libc::EINTR)) };
    // What listens on AF_UNIX stays in the kernel.
    let may_become = |h: &Handle| h.is_candidate() && !h.was(touched::LISTENS);
    let known = |h: &&Handle| {
        matches!(h.kind(), Kind::Stream | Kind::Listener | Kind::Epoll)
            || may_become(h)
            || h.regs.load(Ordering::Relaxed) != 0
    };
    let Some(h) = h.filter(known) else {
        if let Some(inst) = st.instances.get_mut(instance as usize) {
            inst.kernel = true;
        }
        return Ok(Kernel::Yes);
    };
    let joined = st.join(instance as usize);
    let found = st.find(h, instance, fd);
    let in_user = h.kind() == Kind::Stream;
    let before = found.and_then(|index| st.regs.get(index)).map_or(0, |r| r.interest.events);
    if refused_by_exclusive(op, interest.events, before, h.kind()) {
        return Err(Errno(libc::EINVAL));
    }
    match (op, found) {
        (libc::EPOLL_CTL_ADD, Some(_)) => return Err(Errno(libc::EEXIST)),
        (libc::EPOLL_CTL_ADD, None) => {
            let new = Reg {
                handle: h.index(),
                incarnation: h.incarnation.load(Ordering::Relaxed),
                in_kernel: h.kind() == Kind::Kernel,
                instance,
                fd,
                ep,
                interest,
                ..NO_REG
            };
            let index = st.add(h, new).ok_or(Errno(libc::ENOSPC))?;
            let shared = st.sync_kernel(index, h);
            if let Some(inst) = st.instances.get_mut(instance as usize) {
                inst.kernel |= !in_user || shared;
                // The same event may come from both worlds.
                inst.listeners |= matches!(h.kind(), Kind::Listener | Kind::Epoll) || shared;
                inst.nested |= h.kind() == Kind::Epoll;
            }
            st.watch(index);
            st.publish(index, joined.as_ref());
        }
        (libc::EPOLL_CTL_MOD, Some(index)) => {
            if let Some(r) = st.regs.get_mut(index) {
                r.interest = interest;
                r.off = false;
                // The kernel's part changes with it, and is armed again.
                r.kernel_events = r.kernel_events.map(|_| u32::MAX);
            }
            st.sync_kernel(index, h);
            st.watch(index);
            st.publish(index, joined.as_ref());
        }
        // The watch stays on: programs that register anew for each message shall not pay for it each time.
        (libc::EPOLL_CTL_DEL, Some(index)) => {
            st.share_with_kernel(index, None);
            st.withdraw(index, joined.as_ref());
            st.remove(index);
        }
        (_, None) if in_user => return Err(Errno(libc::ENOENT)),
        (_, Some(_)) => return Err(Errno(libc::EINVAL)),
        _ => {}
    }
    let kick = core::mem::take(&mut st.kick);
    if let Some(joined) = joined.filter(|_| op != libc::EPOLL_CTL_DEL) {
        joined.tell();
    }
    drop(st);
    sleep::sync_sleeper(instance, ep);
    if kick {
        wait::kick_others();
    }
    Ok(if in_user { Kernel::No } else { Kernel::Yes })
}

/// `EPOLLEXCLUSIVE` goes with few other bits and with no other set, and what was added with it is never changed:
/// epoll_ctl(2), EINVAL.
fn refused_by_exclusive(op: i32, events: u32, before: u32, kind: Kind) -> bool {
    const EXCLUSIVE: u32 = libc::EPOLLEXCLUSIVE.cast_unsigned();
    const WITH_IT: i32 = libc::EPOLLIN
        | libc::EPOLLOUT
        | libc::EPOLLERR
        | libc::EPOLLHUP
        | libc::EPOLLWAKEUP
        | libc::EPOLLET
        | libc::EPOLLEXCLUSIVE;
    match op {
        libc::EPOLL_CTL_ADD => {
            events & EXCLUSIVE != 0 && (kind == Kind::Epoll || events & !WITH_IT.cast_unsigned() != 0)
        }
        libc::EPOLL_CTL_MOD => (events | before) & EXCLUSIVE != 0,
        _ => false,
    }
}

/// The kernel refused an addition that we had noted.
pub fn undo_add(e: &Handle, fd: i32, h: &Handle) {
    let instance = e.place.load(Ordering::Relaxed);
    let Some(mut st) = STATE.take() else { return };
    if let Some(index) = st.find(h, instance, fd) {
        let joined = st.join(instance as usize);
        st.withdraw(index, joined.as_ref());
        st.remove(index);
    }
}

/// A one-shot registration that the kernel has reported already: a socket that does nothing yet is ready for an event.
fn was_shot(r: &Reg) -> bool {
    r.interest.events & ready::ONESHOT != 0 && kernel::has_shot(r.ep, r.fd)
}

/// Has it a registration that is for one time, or for one sleeper? In two places at once it could not be.
pub fn has_oneshot(h: &Handle) -> bool {
    const ONCE: u32 = ready::ONESHOT | libc::EPOLLEXCLUSIVE.cast_unsigned();
    let Some(st) = STATE.take() else { return true };
    st.of_handle(h).any(|i| st.regs.get(i).is_some_and(|r| r.interest.events & ONCE != 0))
}

/// A kernel socket became a connection of ours: its registrations move here.
pub fn became_stream(h: &Handle) {
    let Some(mut st) = STATE.take() else { return };
    st.each(h, |st, index| {
        let Some(r) = st.regs.get_mut(index) else { return };
        r.in_kernel = false;
        r.off = was_shot(r);
        // What the kernel's set has of it now.
        r.kernel_events = Some(r.interest.events);
        let instance = r.instance as usize;
        if st.sync_kernel(index, h)
            && let Some(inst) = st.instances.get_mut(instance)
        {
            // The same event may come from both worlds.
            inst.listeners = true;
        }
        st.watch(index);
    });
    st.finish();
}

/// A connection became a kernel socket again: its registrations move there.
pub fn left_user_space(h: &Handle) {
    let Some(mut st) = STATE.take() else { return };
    st.each(h, |st, index| {
        let Some(r) = st.regs.get_mut(index) else { return };
        r.in_kernel = true;
        let instance = r.instance as usize;
        crate::epoll_wait::kernel_add(r.ep, r.fd, r.interest);
        if let Some(inst) = st.instances.get_mut(instance) {
            inst.kernel = true;
        }
    });
    st.finish();
}

/// A kernel socket stands where `fd` was a connection: what is registered by that number is the kernel's from now on.
pub fn given_to_kernel(h: &Handle, fd: i32) {
    let Some(mut st) = STATE.take() else { return };
    st.each(h, |st, index| {
        let Some(r) = st.regs.get(index).copied().filter(|r| r.fd == fd && !r.in_kernel) else { return };
        let events = if r.off { r.interest.events & !ready::EVENTS } else { r.interest.events };
        crate::epoll_wait::kernel_set(r.ep, r.fd, Interest { events, ..r.interest });
        if let Some(inst) = st.instances.get_mut(r.instance as usize) {
            inst.kernel = true;
        }
    });
    st.finish();
}

/// A kernel socket became a listener in both worlds: its kernel registrations stay, and ours begin.
pub fn became_listener(h: &Handle) {
    let Some(mut st) = STATE.take() else { return };
    st.each(h, |st, index| {
        let Some(r) = st.regs.get_mut(index) else { return };
        r.in_kernel = false;
        r.off = was_shot(r);
        let instance = r.instance as usize;
        if let Some(inst) = st.instances.get_mut(instance) {
            inst.listeners = true;
        }
        st.queue(index);
    });
    st.finish();
}

/// A write found the ring full: sets that ask for `EPOLLOUT` hear when there is space again.
pub fn wants_space(h: &Handle) {
    if h.regs.load(Ordering::Relaxed) == 0 {
        return;
    }
    let Some(mut st) = STATE.take() else { return };
    st.each(h, |st, index| {
        let wanted = st.regs.get(index).is_some_and(|r| r.interest.events & poll::OUT != 0);
        if wanted && let Some(r) = st.regs.get_mut(index) {
            // Room that comes from now on is news.
            r.last &= !poll::OUT;
        }
        if wanted && st.events(index) & poll::OUT != 0 {
            st.queue(index);
        }
    });
    st.finish();
}

/// A handle is torn down: its registrations go.
pub fn forget_handle(h: &Handle) {
    if h.regs.load(Ordering::Relaxed) == 0 {
        return;
    }
    let Some(mut st) = STATE.take() else { return };
    while let Some(index) = (h.regs.load(Ordering::Relaxed) as usize).checked_sub(1) {
        st.withdraw_last(h, index);
        st.remove(index);
    }
}

/// Something about a connection or listener changed, other than by news: look at it.
pub fn handle_changed(h: &Handle) {
    changed(h, false);
}

/// As [`handle_changed`], by a call of our own that is an edge for whatever is watched: Linux (`sk_state_change`) says no event then.
pub fn state_changed(h: &Handle) {
    changed(h, true);
}

fn changed(h: &Handle, is_edge: bool) {
    // SeqCst: what changed was stored before this; who registers now looks at it afterwards (it holds the lock, a full fence,
    // in between). So either we see the registration, or it sees the change.
    fence(Ordering::SeqCst);
    if h.regs.load(Ordering::Relaxed) == 0 {
        return;
    }
    let Some(mut st) = STATE.take() else { return };
    if is_edge {
        st.each(h, |st, index| {
            if let Some(r) = st.regs.get_mut(index) {
                r.armed = true;
            }
        });
    }
    st.queue_all(h);
    st.finish();
}

/// Does the instance need us at all? If not, the kernel's epoll_wait(2) is all there is.
#[inline(always)]
pub fn has_regs(e: &Handle) -> bool {
    e.ready.load(Ordering::Relaxed) != 0
}

/// What a look at an instance found.
pub struct Look {
    /// Events written.
    pub n: usize,
    /// Kernel descriptors are in the set, too.
    pub kernel: bool,
    /// Listeners are: the same event may come from both worlds.
    pub listeners: bool,
}

/// Events of an instance that are ready in user space.
pub fn look(e: &Handle, out: &mut [libc::epoll_event], settled: bool) -> Look {
    crate::coordinator::pump();
    let instance = e.place.load(Ordering::Relaxed) as usize;
    let Some(mut st) = STATE.take() else { return Look { n: 0, kernel: true, listeners: true } };
    let n = st.harvest(instance, out, settled);
    let inst = st.instances.get(instance).unwrap_or(&NO_INSTANCE);
    let look = Look { n, kernel: inst.kernel, listeners: inst.listeners };
    let unsettled = inst.fresh > FRESH_MAX || inst.fresh_inputs > FRESH_INPUTS_MAX;
    st.finish();
    if unsettled {
        settle(instance);
    }
    look
}

/// Many new watches: one barrier for all of them, then each is looked at once more. Fresh ones are all in the ready list.
fn settle(instance: usize) {
    barrier();
    let Some(mut st) = STATE.take() else { return };
    let mut next = st.instances.get(instance).map_or(0, |i| i.ready_head);
    while let Some(index) = (next as usize).checked_sub(1) {
        st.set_fresh(index, false);
        next = st.regs.get(index).map_or(0, |r| r.next_ready);
    }
}

/// Is an instance ready, as poll(2) of its descriptor asks? Only what is in user space.
pub fn is_ready(e: &Handle) -> bool {
    has_regs(e) && STATE.take().is_some_and(|mut st| st.is_ready(e, NESTING_MAX))
}

impl crate::lock::Guard<'_, State> {
    /// Lets go of the lock, and wakes those who sleep on an instance that has got something to look at.
    fn finish(mut self) {
        let kick = core::mem::take(&mut self.kick);
        drop(self);
        if kick {
            wait::kick_others();
        }
    }
}
