//! Registrations, instances and their ready lists: the data behind [`super`], without opinions about what is ready.

use core::sync::atomic::Ordering;

use super::shared::Set;
use crate::handle::{self, Handle};

pub(super) const INSTANCES_MAX: usize = 256;
const REGS_MAX: usize = 65_536;

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
pub(super) struct Reg {
    pub(super) used: bool,
    /// Taken out while in a ready list: freed when met there.
    pub(super) dead: bool,
    pub(super) queued: bool,
    /// Queued for being looked at, without news: its turn is after those that have some.
    pub(super) idle: bool,
    /// The watch was set after the last barrier: look at the connection itself.
    pub(super) fresh: bool,
    /// That watch is for input.
    pub(super) fresh_input: bool,
    /// One-shot, and shot.
    pub(super) off: bool,
    /// The kernel serves it (so far): the connection is not in user space.
    pub(super) in_kernel: bool,
    /// A connection in both places ([`crate::dual`]): what the kernel was told to tell of it; `u32::MAX`: something else than is due.
    pub(super) kernel_events: Option<u32>,
    /// Edge-triggered: added or changed, and not looked at since.
    pub(super) armed: bool,
    /// Edge-triggered: what the connection was ready for, and how far its input had come, at the last look.
    pub(super) last: u32,
    pub(super) seen: u64,
    pub(super) handle: u32,
    pub(super) incarnation: u32,
    pub(super) instance: u32,
    pub(super) fd: i32,
    pub(super) ep: i32,
    pub(super) interest: Interest,
    /// Its place in the set that relatives share plus one, and how it was there ([`super::shared`]).
    pub(super) member: u32,
    pub(super) version: u32,
    pub(super) next_of_handle: u32,
    pub(super) next_ready: u32,
}

pub(super) const NO_REG: Reg = Reg {
    used: false,
    dead: false,
    queued: false,
    idle: false,
    fresh: false,
    fresh_input: false,
    off: false,
    in_kernel: false,
    kernel_events: None,
    armed: false,
    last: 0,
    seen: 0,
    handle: 0,
    incarnation: 0,
    instance: 0,
    fd: 0,
    ep: 0,
    interest: Interest { events: 0, data: 0 },
    member: 0,
    version: 0,
    next_of_handle: 0,
    next_ready: 0,
};

#[derive(Clone, Copy)]
pub(super) struct Instance {
    /// Handle index plus one; 0: free.
    pub(super) handle: u32,
    pub(super) regs: u32,
    pub(super) fresh: u32,
    pub(super) fresh_inputs: u32,
    pub(super) ready_head: u32,
    pub(super) ready_tail: u32,
    pub(super) ready_len: u32,
    pub(super) asleep: u32,
    /// Registrations that the kernel must be asked about; sticky, since closed descriptors leave unseen.
    pub(super) kernel: bool,
    pub(super) listeners: bool,
    /// Other instances are in the set.
    pub(super) nested: bool,
    /// Kept sleeper plus one.
    pub(super) sleeper: u32,
    /// The sleeper's set is inside the application's.
    pub(super) inside: bool,
    /// How many of those asleep count on that.
    pub(super) asleep_inside: u32,
    /// A descriptor of it.
    pub(super) ep: i32,
    /// What forked relatives share of it, and how many of their changes were done here.
    pub(super) shared: Option<&'static Set>,
    pub(super) changes: u32,
}

pub(super) const NO_INSTANCE: Instance = Instance {
    handle: 0,
    regs: 0,
    fresh: 0,
    fresh_inputs: 0,
    ready_head: 0,
    ready_tail: 0,
    ready_len: 0,
    asleep: 0,
    kernel: false,
    listeners: false,
    nested: false,
    sleeper: 0,
    inside: false,
    asleep_inside: 0,
    ep: -1,
    shared: None,
    changes: 0,
};

pub(super) struct State {
    pub(super) instances: [Instance; INSTANCES_MAX],
    pub(super) regs: [Reg; REGS_MAX],
    /// Unused registrations: the first, plus one; each names the next as if in a ready list.
    free: u32,
    /// Registrations from here on were never used: their memory is untouched.
    untouched: usize,
    pub(super) shared_lane: bool,
    /// Looks that found news.
    pub(super) found: u32,
    /// A registration of a sleeping instance got ready: others must be kicked.
    pub(super) kick: bool,
}

impl State {
    pub(super) fn handle_of(&self, reg: usize) -> Option<&'static Handle> {
        let r = self.regs.get(reg)?;
        handle::by_index(r.handle).filter(|h| h.incarnation.load(Ordering::Relaxed) == r.incarnation)
    }

    /// Registrations of a handle, by index.
    pub(super) fn of_handle(&self, h: &Handle) -> impl Iterator<Item = usize> + use<'_> {
        let mut next = h.regs.load(Ordering::Relaxed);
        core::iter::from_fn(move || {
            let index = (next as usize).checked_sub(1)?;
            next = self.regs.get(index)?.next_of_handle;
            Some(index)
        })
    }

    /// Does something to every registration of a handle, which may change or requeue it, but not take it out.
    pub(super) fn each(&mut self, h: &Handle, mut act: impl FnMut(&mut State, usize)) {
        let mut next = h.regs.load(Ordering::Relaxed);
        while let Some(index) = (next as usize).checked_sub(1) {
            next = self.regs.get(index).map_or(0, |r| r.next_of_handle);
            act(self, index);
        }
    }

    pub(super) fn find(&self, h: &Handle, instance: u32, fd: i32) -> Option<usize> {
        self.of_handle(h).find(|i| self.regs.get(*i).is_some_and(|r| r.instance == instance && r.fd == fd))
    }

    pub(super) fn add(&mut self, h: &Handle, new: Reg) -> Option<usize> {
        let index = self.take_place()?;
        let first = h.regs.load(Ordering::Relaxed);
        *self.regs.get_mut(index)? = Reg { used: true, next_of_handle: first, ..new };
        h.regs.store(link(index), Ordering::Relaxed);
        self.count_reg(new.instance, 1);
        Some(index)
    }

    fn take_place(&mut self) -> Option<usize> {
        let Some(index) = (self.free as usize).checked_sub(1) else {
            let index = self.untouched;
            self.untouched += usize::from(index < self.regs.len());
            return (index < self.regs.len()).then_some(index);
        };
        self.free = self.regs.get(index)?.next_ready;
        Some(index)
    }

    /// Takes no part in anything any more.
    pub(super) fn give_place(&mut self, index: usize) {
        if let Some(r) = self.regs.get_mut(index) {
            *r = Reg { next_ready: self.free, ..NO_REG };
            self.free = link(index);
        }
    }

    /// Takes a registration out of its handle's list.
    pub(super) fn unlink(&mut self, index: usize) {
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

    pub(super) fn remove(&mut self, index: usize) {
        self.unlink(index);
        self.set_fresh(index, false);
        let Some(r) = self.regs.get_mut(index) else { return };
        let (instance, queued) = (r.instance, r.queued);
        if queued {
            r.dead = true;
        } else {
            self.give_place(index);
        }
        self.count_reg(instance, -1);
    }

    /// Does something with each registration of an instance.
    pub(super) fn each_of(&mut self, instance: u32, mut act: impl FnMut(&mut State, usize)) {
        let mut left = self.instances.get(instance as usize).map_or(0, |i| i.regs);
        for index in 0..self.untouched {
            if left == 0 {
                break;
            }
            if self.regs.get(index).is_some_and(|r| r.used && !r.dead && r.instance == instance) {
                left -= 1;
                act(self, index);
            }
        }
    }

    /// Keeps count of an instance's registrations, in its handle, too.
    pub(super) fn count_reg(&mut self, instance: u32, by: i32) {
        let Some(inst) = self.instances.get_mut(instance as usize) else { return };
        inst.regs = inst.regs.saturating_add_signed(by);
        if let Some(e) = inst.handle.checked_sub(1).and_then(handle::by_index) {
            e.ready.store(inst.regs, Ordering::Relaxed);
        }
    }

    /// Puts a registration into its instance's ready list: it will be looked at, by one who sleeps there if need be.
    pub(super) fn queue(&mut self, index: usize) {
        if self.put_back(index) {
            let instance = self.regs.get(index).map_or(0, |r| r.instance as usize);
            self.kick |= self.instances.get(instance).is_some_and(|i| i.asleep > 0);
        }
    }

    /// Puts a registration into its instance's ready list. False: it is there, or is not ours to look at.
    pub(super) fn put_back(&mut self, index: usize) -> bool {
        let Some(r) = self.regs.get_mut(index) else { return false };
        if r.queued || r.off || r.in_kernel {
            return false;
        }
        r.queued = true;
        r.next_ready = 0;
        let instance = r.instance as usize;
        let Some(inst) = self.instances.get_mut(instance) else { return false };
        let tail = inst.ready_tail;
        inst.ready_tail = link(index);
        inst.ready_len += 1;
        match (tail as usize).checked_sub(1) {
            None => inst.ready_head = link(index),
            Some(t) => {
                if let Some(last) = self.regs.get_mut(t) {
                    last.next_ready = link(index);
                }
            }
        }
        true
    }

    pub(super) fn pop_ready(&mut self, instance: usize) -> Option<usize> {
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

    pub(super) fn set_fresh(&mut self, index: usize, fresh: bool) {
        let Some(r) = self.regs.get_mut(index) else { return };
        if r.fresh == fresh {
            return;
        }
        let input = core::mem::take(&mut r.fresh_input);
        r.fresh = fresh;
        if let Some(inst) = self.instances.get_mut(r.instance as usize) {
            inst.fresh = if fresh { inst.fresh + 1 } else { inst.fresh.saturating_sub(1) };
            inst.fresh_inputs = inst.fresh_inputs.saturating_sub(u32::from(input));
        }
    }

    /// A watch for input is fresh.
    pub(super) fn set_fresh_input(&mut self, index: usize) {
        self.set_fresh(index, true);
        let Some(r) = self.regs.get_mut(index).filter(|r| !r.fresh_input) else { return };
        r.fresh_input = true;
        if let Some(inst) = self.instances.get_mut(r.instance as usize) {
            inst.fresh_inputs += 1;
        }
    }
}

pub(super) fn link(index: usize) -> u32 {
    u32::try_from(index + 1).unwrap_or(0)
}

impl State {
    /// Nothing is registered.
    pub(super) const EMPTY: State = State {
        instances: [NO_INSTANCE; INSTANCES_MAX],
        regs: [NO_REG; REGS_MAX],
        free: 0,
        untouched: 0,
        shared_lane: false,
        found: 0,
        kick: false,
    };
}
