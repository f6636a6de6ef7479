//! epoll over connections in user space and kernel descriptors, in one set.
//!
//! The application's epoll descriptor is real, and kernel descriptors are registered in it. Connections of ours
//! are registered here. A set costs in proportion to what is ready: peers leave news in our side of the segment, and only
//! connections with news, or still ready from last time, are looked at.
//!
//! All of it is under one lock: registrations, ready lists and the scan for news. Nobody sleeps with it.

use core::sync::atomic::{Ordering, fence};

use ring::wake;

use crate::handle::{self, Handle, Kind};
use crate::lock::Guarded;
use crate::segments;
use crate::sys::{Errno, Membarrier, Result};
use crate::{listener, poll, wait};

const INSTANCES_MAX: usize = 256;
const REGS_MAX: usize = 65_536;
/// Registrations that are polled directly until the next barrier, before one is made for them.
const FRESH_MAX: u32 = 32;
/// Sets within sets, as deep as the kernel allows them.
const NESTING_MAX: u32 = 4;
/// The lane that all instances share, for connections that are in several sets.
const SHARED_LANE: usize = 0;

const ET: u32 = libc::EPOLLET.cast_unsigned();
const ONESHOT: u32 = libc::EPOLLONESHOT.cast_unsigned();
/// Bits that are not events.
const OPTIONS: u32 = ET | ONESHOT | libc::EPOLLWAKEUP.cast_unsigned() | libc::EPOLLEXCLUSIVE.cast_unsigned();

/// What the application gave to epoll_ctl(2).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Interest {
    /// `EPOLL*` bits.
    pub events: u32,
    /// Returned with each event.
    pub data: u64,
}

/// One registration. Links are indexes plus one; 0 ends a list.
#[derive(Clone, Copy)]
struct Reg {
    used: bool,
    /// Taken out while in a ready list: freed when met there.
    dead: bool,
    queued: bool,
    /// The watch was set after the last barrier: look at the connection itself.
    fresh: bool,
    /// One-shot, and shot.
    off: bool,
    /// The kernel serves it (so far): the connection is not in user space.
    in_kernel: bool,
    handle: u32,
    incarnation: u32,
    instance: u32,
    fd: i32,
    ep: i32,
    interest: Interest,
    next_of_handle: u32,
    next_ready: u32,
}

const NO_REG: Reg = Reg {
    used: false,
    dead: false,
    queued: false,
    fresh: false,
    off: false,
    in_kernel: false,
    handle: 0,
    incarnation: 0,
    instance: 0,
    fd: 0,
    ep: 0,
    interest: Interest { events: 0, data: 0 },
    next_of_handle: 0,
    next_ready: 0,
};

#[derive(Clone, Copy)]
struct Instance {
    /// Handle index plus one; 0: free.
    handle: u32,
    regs: u32,
    fresh: u32,
    ready_head: u32,
    ready_tail: u32,
    ready_len: u32,
    asleep: u32,
    /// Registrations that the kernel must be asked about; sticky, since closed descriptors leave unseen.
    kernel: bool,
    listeners: bool,
    /// Other instances are in the set.
    nested: bool,
    /// Kept sleeper plus one; its set is inside the application's.
    sleeper: u32,
}

const NO_INSTANCE: Instance = Instance {
    handle: 0,
    regs: 0,
    fresh: 0,
    ready_head: 0,
    ready_tail: 0,
    ready_len: 0,
    asleep: 0,
    kernel: false,
    listeners: false,
    nested: false,
    sleeper: 0,
};

pub(crate) struct State {
    instances: [Instance; INSTANCES_MAX],
    regs: [Reg; REGS_MAX],
    cursor: usize,
    shared_lane: bool,
    /// A registration of a sleeping instance got ready: others must be kicked.
    kick: bool,
}

static STATE: Guarded<State> = Guarded::new(State {
    instances: [NO_INSTANCE; INSTANCES_MAX],
    regs: [NO_REG; REGS_MAX],
    cursor: 0,
    shared_lane: false,
    kick: false,
});

/// For the fork handlers.
pub fn lock() -> &'static crate::lock::Lock {
    STATE.lock()
}

/// Keeps scans and registrations out while held.
pub fn exclude() -> Option<impl Drop> {
    STATE.take().map(Excluded)
}

struct Excluded<'a>(#[allow(dead_code)] crate::lock::Guard<'a, State>);

impl Drop for Excluded<'_> {
    fn drop(&mut self) {}
}

/// A new epoll instance behind `h`. False: too many, the kernel alone serves it.
pub fn created(h: &Handle) -> bool {
    let Some(mut st) = STATE.take() else { return false };
    let Some((index, place)) = (0u32..).zip(st.instances.iter_mut()).find(|(_, i)| i.handle == 0) else {
        return false;
    };
    *place = Instance { handle: h.index() + 1, ..NO_INSTANCE };
    h.place.store(index, Ordering::Relaxed);
    true
}

/// The last descriptor of an epoll instance is gone.
pub fn closed(h: &Handle) {
    let index = h.place.load(Ordering::Relaxed);
    let Some(mut st) = STATE.take() else { return };
    for i in 0..st.regs.len() {
        if st.regs.get(i).is_some_and(|r| r.used && r.instance == index) {
            st.unlink(i);
            if let Some(r) = st.regs.get_mut(i) {
                *r = NO_REG;
            }
        }
    }
    if let Some(inst) = st.instances.get_mut(index as usize) {
        let sleeper = inst.sleeper;
        *inst = NO_INSTANCE;
        if sleeper != 0 {
            drop(core::mem::ManuallyDrop::into_inner(wait::Sleeper::kept(sleeper - 1)));
        }
    }
}

impl State {
    fn handle_of(&self, reg: usize) -> Option<&'static Handle> {
        let r = self.regs.get(reg)?;
        handle::by_index(r.handle).filter(|h| h.incarnation.load(Ordering::Relaxed) == r.incarnation)
    }

    /// Registrations of a handle, by index.
    fn of_handle(&self, h: &Handle) -> impl Iterator<Item = usize> + use<'_> {
        let mut next = h.regs.load(Ordering::Relaxed);
        core::iter::from_fn(move || {
            let index = (next as usize).checked_sub(1)?;
            next = self.regs.get(index)?.next_of_handle;
            Some(index)
        })
    }

    fn find(&self, h: &Handle, instance: u32, fd: i32) -> Option<usize> {
        self.of_handle(h).find(|i| self.regs.get(*i).is_some_and(|r| r.instance == instance && r.fd == fd))
    }

    fn add(&mut self, h: &Handle, new: Reg) -> Option<usize> {
        let n = self.regs.len();
        let index =
            (0..n).map(|k| (self.cursor + k) % n).find(|i| self.regs.get(*i).is_some_and(|r| !r.used))?;
        self.cursor = index + 1;
        let first = h.regs.load(Ordering::Relaxed);
        *self.regs.get_mut(index)? = Reg { used: true, next_of_handle: first, ..new };
        h.regs.store(link(index), Ordering::Relaxed);
        self.count_reg(new.instance, 1);
        Some(index)
    }

    /// Takes a registration out of its handle's list.
    fn unlink(&mut self, index: usize) {
        let Some(h) = self.regs.get(index).and_then(|r| handle::by_index(r.handle)) else { return };
        let next = self.regs.get(index).map_or(0, |r| r.next_of_handle);
        if h.regs.load(Ordering::Relaxed) == link(index) {
            h.regs.store(next, Ordering::Relaxed);
            return;
        }
        let before =
            self.of_handle(h).find(|i| self.regs.get(*i).is_some_and(|r| r.next_of_handle == link(index)));
        if let Some(r) = before.and_then(|b| self.regs.get_mut(b)) {
            r.next_of_handle = next;
        }
    }

    fn remove(&mut self, index: usize) {
        self.unlink(index);
        let Some(r) = self.regs.get_mut(index) else { return };
        let (instance, queued, fresh) = (r.instance, r.queued, r.fresh);
        if queued {
            r.dead = true;
        } else {
            *r = NO_REG;
        }
        self.count_reg(instance, -1);
        if let Some(inst) = self.instances.get_mut(instance as usize) {
            inst.fresh = inst.fresh.saturating_sub(u32::from(fresh));
        }
    }

    /// Keeps count of an instance's registrations, in its handle, too.
    fn count_reg(&mut self, instance: u32, by: i32) {
        let Some(inst) = self.instances.get_mut(instance as usize) else { return };
        inst.regs = inst.regs.saturating_add_signed(by);
        if let Some(e) = inst.handle.checked_sub(1).and_then(handle::by_index) {
            e.ready.store(inst.regs, Ordering::Relaxed);
        }
    }

    /// Puts a registration into its instance's ready list: it will be looked at.
    fn queue(&mut self, index: usize) {
        let Some(r) = self.regs.get_mut(index) else { return };
        if r.queued || r.off || r.in_kernel {
            return;
        }
        r.queued = true;
        r.next_ready = 0;
        let instance = r.instance as usize;
        let Some(inst) = self.instances.get_mut(instance) else { return };
        let tail = inst.ready_tail;
        inst.ready_tail = link(index);
        inst.ready_len += 1;
        self.kick |= inst.asleep > 0;
        match (tail as usize).checked_sub(1) {
            None => inst.ready_head = link(index),
            Some(t) => {
                if let Some(last) = self.regs.get_mut(t) {
                    last.next_ready = link(index);
                }
            }
        }
    }

    fn pop_ready(&mut self, instance: usize) -> Option<usize> {
        let inst = self.instances.get_mut(instance)?;
        let index = (inst.ready_head as usize).checked_sub(1)?;
        let r = self.regs.get_mut(index)?;
        inst.ready_head = r.next_ready;
        inst.ready_len = inst.ready_len.saturating_sub(1);
        if inst.ready_head == 0 {
            inst.ready_tail = 0;
        }
        r.queued = false;
        r.next_ready = 0;
        Some(index)
    }

    fn set_fresh(&mut self, index: usize, fresh: bool) {
        let Some(r) = self.regs.get_mut(index) else { return };
        if r.fresh == fresh {
            return;
        }
        r.fresh = fresh;
        if let Some(inst) = self.instances.get_mut(r.instance as usize) {
            inst.fresh = if fresh { inst.fresh + 1 } else { inst.fresh.saturating_sub(1) };
        }
    }

    /// Which lane a connection's news goes to: its set's, or the shared one if it is in several.
    fn lane_for(&mut self, h: &Handle, instance: u32) -> usize {
        let elsewhere = self.of_handle(h).any(|i| self.regs.get(i).is_some_and(|r| r.instance != instance));
        self.shared_lane |= elsewhere;
        if elsewhere { SHARED_LANE } else { segments::lane_of(instance) }
    }

    /// A registration of a connection or listener in user space starts (again) to be watched.
    fn watch(&mut self, index: usize) {
        let Some(h) = self.handle_of(index) else { return };
        let Some((instance, events)) = self.regs.get(index).map(|r| (r.instance, r.interest.events)) else {
            return;
        };
        if let Some(s) = h.stream() {
            let lane = self.lane_for(h, instance);
            let value = u32::try_from(lane + 1).unwrap_or(1);
            let before = s.in_dir.rx_watch.swap(value, Ordering::AcqRel);
            // A set that sleeps on the lane from before must announce itself on this one.
            self.kick |= before != 0 && before != value;
            if before != value {
                // The peer may not see the watch yet. Level-triggered: look directly until a barrier has passed.
                // Edge-triggered: have the barrier now, since looking twice would make an edge of it.
                if events & ET != 0 { barrier() } else { self.set_fresh(index, true) }
            }
        }
        self.queue(index);
    }

    /// Takes the news of one lane from all segments.
    fn scan(&mut self, lane: usize) {
        for (_, m) in segments::all() {
            let mut from = 0;
            while let Some(slot) = m.next_news(lane, from) {
                from = slot + 1;
                // A slot that is not ours belongs to a forked relative: its news are not ours to take.
                let Some(h) = m.owner(slot) else { continue };
                let flag = m.ours().and_then(|side| side.news.get(lane)?.get(slot));
                if flag.is_some_and(wake::collect) {
                    self.queue_all(h);
                }
            }
        }
    }

    fn queue_all(&mut self, h: &Handle) {
        let mut next = h.regs.load(Ordering::Relaxed);
        while let Some(index) = (next as usize).checked_sub(1) {
            self.queue(index);
            next = self.regs.get(index).map_or(0, |r| r.next_of_handle);
        }
    }

    /// Current events of a registration, `EPOLLERR` and `EPOLLHUP` included unasked.
    fn events(&mut self, index: usize) -> u32 {
        let Some(h) = self.handle_of(index) else { return 0 };
        let Some((interest, instance)) = self.regs.get(index).map(|r| (r.interest.events, r.instance)) else {
            return 0;
        };
        let mask = (interest & !OPTIONS) | poll::ALWAYS;
        match h.kind() {
            Kind::Listener if listener::ready_in_user(h) => poll::IN & mask,
            Kind::Epoll if self.is_ready(h, NESTING_MAX) => poll::IN & mask,
            Kind::Stream => {
                let Some(s) = h.stream() else { return 0 };
                let now = poll::events(h, &s) & mask;
                if interest & poll::OUT != 0 && now & poll::OUT == 0 {
                    let lane = self.lane_for(h, instance);
                    let value = u32::try_from(lane + 1).unwrap_or(1);
                    if s.out_dir.tx_watch.swap(value, Ordering::AcqRel) != value {
                        if interest & ET != 0 {
                            barrier();
                            return poll::events(h, &s) & mask;
                        }
                        self.set_fresh(index, true);
                    }
                }
                now
            }
            _ => 0,
        }
    }

    /// Would epoll_wait(2) of this instance find something of ours? Nothing is taken.
    fn is_ready(&mut self, e: &Handle, depth: u32) -> bool {
        let instance = e.place.load(Ordering::Relaxed);
        self.scan(segments::lane_of(instance));
        self.scan(SHARED_LANE);
        let mut next = self.instances.get(instance as usize).map_or(0, |i| i.ready_head);
        while let Some(index) = (next as usize).checked_sub(1) {
            let Some(r) = self.regs.get(index).copied() else { break };
            next = r.next_ready;
            let nested = self.handle_of(index).is_some_and(|h| h.kind() == Kind::Epoll);
            if !r.dead && (!nested || depth > 0) && self.events(index) != 0 {
                return true;
            }
        }
        false
    }

    /// Moves ready events to `out`. `settled`: a heavy barrier has passed since the last watch was set.
    fn harvest(&mut self, instance: usize, out: &mut [libc::epoll_event], settled: bool) -> usize {
        self.scan(segments::lane_of(u32::try_from(instance).unwrap_or(0)));
        if self.shared_lane {
            self.scan(SHARED_LANE);
        }
        let mut n = 0;
        let turns = self.instances.get(instance).map_or(0, |i| i.ready_len);
        for _ in 0..turns {
            let Some(place) = out.get_mut(n) else {
                // More than this call can take: another thread that sleeps on the instance may have it.
                self.kick |= self.instances.get(instance).is_some_and(|i| i.asleep > 0);
                break;
            };
            let Some(index) = self.pop_ready(instance) else { break };
            if let Some(r) = self.regs.get_mut(index).filter(|r| r.dead) {
                *r = NO_REG;
                continue;
            }
            if settled {
                self.set_fresh(index, false);
            }
            let events = self.events(index);
            let Some(r) = self.regs.get_mut(index) else { continue };
            if events != 0 {
                *place = libc::epoll_event { events, u64: r.interest.data };
                n += 1;
                if r.interest.events & ONESHOT != 0 {
                    r.off = true;
                    continue;
                }
            }
            let level = r.interest.events & ET == 0;
            let (fresh, h) = (r.fresh, self.handle_of(index));
            if level && (events != 0 || fresh || h.is_some_and(needs_looking)) {
                self.queue(index);
            }
        }
        n
    }
}

/// No news come of it: look at it each time. A forked relative has it, too, and may take its news; or it is another set.
fn needs_looking(h: &Handle) -> bool {
    h.kind() == Kind::Epoll || is_shared(h)
}

fn is_shared(h: &Handle) -> bool {
    h.kind() == Kind::Stream && h.sock().is_some_and(|s| s.processes.load(Ordering::Relaxed) > 1)
}

/// After fork, in both: what is shared now is looked at directly.
pub fn look_at_shared() {
    for h in handle::all().filter(|h| is_shared(h)) {
        handle_changed(h);
    }
}

fn link(index: usize) -> u32 {
    u32::try_from(index + 1).unwrap_or(0)
}

fn barrier() {
    use ring::atomic::Heavy;
    Membarrier.heavy_barrier();
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
    let known = |h: &&Handle| matches!(h.kind(), Kind::Stream | Kind::Listener | Kind::Epoll) || h.is_tcp();
    let Some(h) = h.filter(known) else {
        if let Some(inst) = st.instances.get_mut(instance as usize) {
            inst.kernel = true;
        }
        return Ok(Kernel::Yes);
    };
    let found = st.find(h, instance, fd);
    let in_user = h.kind() == Kind::Stream;
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
            if let Some(inst) = st.instances.get_mut(instance as usize) {
                inst.kernel |= !in_user;
                // The same event may come from both worlds.
                inst.listeners |= matches!(h.kind(), Kind::Listener | Kind::Epoll);
                inst.nested |= h.kind() == Kind::Epoll;
            }
            st.watch(index);
        }
        (libc::EPOLL_CTL_MOD, Some(index)) => {
            if let Some(r) = st.regs.get_mut(index) {
                r.interest = interest;
                r.off = false;
            }
            st.watch(index);
        }
        // The watch stays on: programs that register anew for each message shall not pay for it each time.
        (libc::EPOLL_CTL_DEL, Some(index)) => st.remove(index),
        (_, None) if in_user => return Err(Errno(libc::ENOENT)),
        (_, Some(_)) => return Err(Errno(libc::EINVAL)),
        _ => {}
    }
    let kick = core::mem::take(&mut st.kick);
    drop(st);
    sync_sleeper(instance, ep);
    if kick {
        wait::kick_others();
    }
    Ok(if in_user { Kernel::No } else { Kernel::Yes })
}

/// The kernel refused an addition that we had noted.
pub fn undo_add(e: &Handle, fd: i32, h: &Handle) {
    let instance = e.place.load(Ordering::Relaxed);
    let Some(mut st) = STATE.take() else { return };
    if let Some(index) = st.find(h, instance, fd) {
        st.remove(index);
    }
}

/// A kernel socket became a connection of ours: its registrations move here.
pub fn became_stream(h: &Handle) {
    let Some(mut st) = STATE.take() else { return };
    let mut next = h.regs.load(Ordering::Relaxed);
    while let Some(index) = (next as usize).checked_sub(1) {
        let Some(r) = st.regs.get_mut(index) else { break };
        next = r.next_of_handle;
        r.in_kernel = false;
        crate::epoll_wait::kernel_delete(r.ep, r.fd);
        st.watch(index);
    }
    st.finish();
}

/// A kernel socket became a listener in both worlds: its kernel registrations stay, and ours begin.
pub fn became_listener(h: &Handle) {
    let Some(mut st) = STATE.take() else { return };
    let mut next = h.regs.load(Ordering::Relaxed);
    while let Some(index) = (next as usize).checked_sub(1) {
        let Some(r) = st.regs.get_mut(index) else { break };
        next = r.next_of_handle;
        r.in_kernel = false;
        let instance = r.instance as usize;
        if let Some(inst) = st.instances.get_mut(instance) {
            inst.listeners = true;
        }
        st.queue(index);
    }
    st.finish();
}

/// A write found the ring full: sets that ask for `EPOLLOUT` hear when there is space again.
pub fn wants_space(h: &Handle) {
    if h.regs.load(Ordering::Relaxed) == 0 {
        return;
    }
    let Some(mut st) = STATE.take() else { return };
    let mut next = h.regs.load(Ordering::Relaxed);
    while let Some(index) = (next as usize).checked_sub(1) {
        let Some(r) = st.regs.get(index).copied() else { break };
        next = r.next_of_handle;
        if r.interest.events & poll::OUT != 0 && st.events(index) & poll::OUT != 0 {
            st.queue(index);
        }
    }
    st.finish();
}

/// A handle is torn down: its registrations go.
pub fn forget_handle(h: &Handle) {
    if h.regs.load(Ordering::Relaxed) == 0 {
        return;
    }
    let Some(mut st) = STATE.take() else { return };
    while let Some(index) = (h.regs.load(Ordering::Relaxed) as usize).checked_sub(1) {
        st.remove(index);
    }
}

/// Something about a connection or listener changed, other than by news: look at it.
pub fn handle_changed(h: &Handle) {
    // SeqCst: what changed was stored before this; who registers now looks at it afterwards (it holds the lock, a full fence,
    // in between). So either we see the registration, or it sees the change.
    fence(Ordering::SeqCst);
    if h.regs.load(Ordering::Relaxed) == 0 {
        return;
    }
    if let Some(mut st) = STATE.take() {
        st.queue_all(h);
        st.finish();
    }
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
    let inst = st.instances.get(instance).copied().unwrap_or(NO_INSTANCE);
    st.finish();
    if inst.fresh > FRESH_MAX {
        settle(instance);
    }
    Look { n, kernel: inst.kernel, listeners: inst.listeners }
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

/// Before a sleep: from the next heavy barrier on, news for this instance rings the wires. Returns the sleeper whose
/// set is inside the application's, if there is one.
pub fn announce_sleep(e: &Handle, ep: i32) -> Option<u32> {
    let index = e.place.load(Ordering::Relaxed);
    let mut st = STATE.take()?;
    let shared = st.shared_lane;
    let inst = st.instances.get_mut(index as usize)?;
    inst.asleep += 1;
    let nested = inst.nested;
    inst.install_sleeper(ep);
    let sleeper = inst.sleeper.checked_sub(1);
    for lane in 0..segments::LANES {
        if nested || lane == segments::lane_of(index) || (shared && lane == SHARED_LANE) {
            announce(lane);
        }
    }
    if let Some(s) = sleeper {
        wait::Sleeper::kept(s).sync();
    }
    sleeper
}

fn announce(lane: usize) {
    for (_, m) in segments::all() {
        if let Some(l) = m.ours().and_then(|side| side.lanes.get(lane)) {
            wake::announce(&l.sleeping, wake::WIRE);
        }
    }
}

/// Awake again.
pub fn end_sleep(e: &Handle) {
    let index = e.place.load(Ordering::Relaxed) as usize;
    if let Some(mut st) = STATE.take()
        && let Some(inst) = st.instances.get_mut(index)
    {
        inst.asleep = inst.asleep.saturating_sub(1);
    }
}

/// For a poll(2) that is about to sleep on an instance.
pub fn announce_for_poll(e: &Handle) {
    let Some(_no_scans) = STATE.take() else { return };
    announce(segments::lane_of(e.place.load(Ordering::Relaxed)));
    announce(SHARED_LANE);
}

/// Is an instance ready, as poll(2) of its descriptor asks? Only what is in user space.
pub fn is_ready(e: &Handle) -> bool {
    has_regs(e) && STATE.take().is_some_and(|mut st| st.is_ready(e, NESTING_MAX))
}

/// Before a sleep in the kernel alone, since nothing of ours is in the set (yet). False: something is.
pub fn begin_kernel_sleep(e: &Handle) -> bool {
    let Some(mut st) = STATE.take() else { return true };
    match st.instances.get_mut(e.place.load(Ordering::Relaxed) as usize) {
        Some(inst) if inst.regs == 0 => {
            inst.asleep += 1;
            true
        }
        _ => false,
    }
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

impl Instance {
    /// Puts a sleeper's set into the application's, so that threads which sleep in the kernel can be woken.
    fn install_sleeper(&mut self, ep: i32) {
        if self.sleeper == 0
            && let Some(s) = wait::Sleeper::acquire()
            && crate::epoll_wait::kernel_add_sleeper(ep, s.fd())
        {
            self.sleeper = s.keep() + 1;
        }
    }
}

/// A segment may have been mapped since the instance's sleeper was made; or threads sleep that had none.
fn sync_sleeper(instance: u32, ep: i32) {
    let Some(mut st) = STATE.take() else { return };
    let Some(inst) = st.instances.get_mut(instance as usize) else { return };
    if inst.asleep > 0 {
        inst.install_sleeper(ep);
        announce(segments::lane_of(instance));
    }
    if let Some(s) = inst.sleeper.checked_sub(1) {
        wait::Sleeper::kept(s).sync();
    }
}

/// After fork, in the child: the parent's sleepers are not ours.
pub fn forget_sleepers() {
    if let Some(mut st) = STATE.take() {
        for inst in &mut st.instances {
            inst.sleeper = 0;
            inst.asleep = 0;
        }
    }
}
