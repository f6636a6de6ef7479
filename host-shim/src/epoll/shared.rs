//! Sets that forked relatives share. The kernel has one open set for all of them, with one list of members: who changes it,
//! changes it for everybody, and what one of them was told of once is not told another (epoll(7)).
//!
//! Here each relative has registrations of its own. What they must agree on is in memory that they share, a [`Set`]: who the
//! members are, and what was told of each. It is looked at under its lock, after that of [`super::State`].
//!
//! A sleeper of ours in the kernel's set would wake whoever waits there first. So in a shared set nobody has one: a
//! thread sleeps in poll(2) on the set and on its sleeper beside it, and others ring that sleeper's bell when they have changed the set.
//!
//! `unsafe` is allowed here: views of what is mapped.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ring::wake::EVERYBODY;
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::set::{Interest, NO_REG, Reg, State};
use crate::arenas::{self, Arenas, SOCKS};
use crate::handle::{self, Handle, Kind};
use crate::lock::{Held, Lock};
use crate::places::Places;
use crate::{bells, process, sys};

/// Shared sets that one process makes, at the same time.
const SETS_MAX: usize = 512;
/// Relatives that share one set; more share it without being told of changes.
const HOLDERS_MAX: usize = 32;
/// Members that relatives agree on; more are known to who added them only.
const MEMBERS_MAX: usize = 512;
/// A child that was not born yet; if it is not after this many seconds, its fork has failed.
const EXPECTED: u32 = u32::MAX;
const EXPECTED_S_MAX: u32 = 10;

/// Where they live.
pub static SETS: Arenas = Arenas::new(c"ipc-direct-sets", SETS_MAX * size_of::<Set>());
static PLACES: Places = Places::new(SETS_MAX);

/// What relatives share about one set. Zero is the fresh state. All of it but `claimed` is under the lock.
#[repr(C)]
pub(super) struct Set {
    lock: Lock,
    claimed: AtomicU32,
    /// Changes of members so far.
    changes: AtomicU32,
    _pad: u32,
    holders: [Holder; HOLDERS_MAX],
    members: [Member; MEMBERS_MAX],
}

/// A process that has the set.
#[repr(C)]
struct Holder {
    /// Its number; 0: none, [`EXPECTED`]: a child to be.
    pid: AtomicU32,
    /// The bell of its sleeper. Of a child to be: since when, in seconds of the clock.
    bell: AtomicU32,
}

#[repr(C)]
struct Member {
    /// Inode of the arena where its [`crate::sock::Sock`] lives; 0: no member.
    arena: AtomicU64,
    data: AtomicU64,
    seen: AtomicU64,
    place: AtomicU32,
    fd: AtomicU32,
    events: AtomicU32,
    last: AtomicU32,
    /// [`ARMED`], [`OFF`].
    state: AtomicU32,
    /// Changes when the registration does.
    version: AtomicU32,
}

const _: () = assert!(size_of::<Holder>() == 8 && size_of::<Member>() == 48);
const _: () = assert!(size_of::<Set>() == 16 + HOLDERS_MAX * 8 + MEMBERS_MAX * 48);

/// It was added or changed, and nobody has looked at it since ([`Reg::armed`]).
const ARMED: u32 = 1;
/// One-shot, and shot ([`Reg::off`]).
const OFF: u32 = 2;

/// Which socket a member is, in all processes.
type Key = (u64, u32);

fn key(h: &Handle) -> Option<Key> {
    let (index, place) = arenas::locate(h.sock()?)?;
    Some((SOCKS.inode(index)?, place))
}

/// Could another process have it, too?
pub(super) fn has_relatives(h: &Handle) -> bool {
    h.sock().is_some_and(|s| s.processes.load(Ordering::Relaxed) > 1)
}

/// The right to look at a set's members and to change them.
pub(super) struct Joined {
    set: &'static Set,
    _held: Held<'static>,
}

impl Set {
    /// A fresh one, or `None` if all are in use.
    pub(super) fn allocate() -> Option<&'static Set> {
        let base = SETS.own()?.cast::<Set>();
        PLACES.candidates().take(SETS_MAX).find_map(|at| {
            // SAFETY: `at` is below SETS_MAX; any bytes are a valid Set, shared and never unmapped.
            let set = unsafe { base.add(at).as_ref() }?;
            (set.claimed.load(Ordering::Relaxed) == 0 || !set.has_others(0)).then(|| set.clear())?;
            set.claimed.store(1, Ordering::Relaxed);
            Some(set)
        })
    }

    fn clear(&self) {
        self.holders.iter().for_each(|h| h.pid.store(0, Ordering::Relaxed));
        self.members.iter().for_each(|m| m.arena.store(0, Ordering::Relaxed));
    }

    /// Has a living process other than `pid` the set? Who is gone is taken out.
    pub(super) fn has_others(&self, pid: u32) -> bool {
        let mut others = false;
        for holder in &self.holders {
            let at = holder.pid.load(Ordering::Relaxed);
            if at == 0 || at == pid {
                continue;
            }
            let expected = || now_s().wrapping_sub(holder.bell.load(Ordering::Relaxed)) <= EXPECTED_S_MAX;
            if if at == EXPECTED { expected() } else { is_alive(at) } {
                others = true;
            } else {
                let _ = holder.pid.compare_exchange(at, 0, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
        others
    }

    fn holder_now(&self, pid: u32) -> Option<&Holder> {
        self.holders.iter().find(|h| h.pid.load(Ordering::Relaxed) == pid)
    }

    fn add_holder(&self, pid: u32, bell: u32) -> Option<&Holder> {
        let free = self.holder_now(0)?;
        free.bell.store(bell, Ordering::Relaxed);
        free.pid.store(pid, Ordering::Relaxed);
        Some(free)
    }

    /// The place of this process among the holders; it gets one if there is room.
    fn own_place(&self) -> Option<&Holder> {
        self.holder_now(process::id()).or_else(|| self.add_holder(process::id(), EVERYBODY))
    }

    /// A process lets go of it. The last one leaves it to whoever needs one.
    pub(super) fn let_go(&self, pid: u32) {
        if let Some(holder) = self.holder_now(pid) {
            holder.pid.store(0, Ordering::Relaxed);
        }
    }

    /// In a child: it is the one that was expected.
    pub(super) fn be_born(&self) {
        let Some(_held) = self.lock.take() else { return };
        match self.holder_now(EXPECTED) {
            Some(holder) => {
                holder.bell.store(EVERYBODY, Ordering::Relaxed);
                holder.pid.store(process::id(), Ordering::Relaxed);
            }
            None => drop(self.own_place()),
        }
    }

    fn member(&self, place: u32) -> Option<&Member> {
        self.members.get((place as usize).checked_sub(1)?)
    }
}

/// Seconds of the clock, as far as they fit.
fn now_s() -> u32 {
    u32::try_from(sys::now().as_secs() & u64::from(u32::MAX)).unwrap_or(0)
}

/// `EPERM` is an answer, too: it runs as somebody else.
fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

impl Member {
    fn key(&self) -> Option<Key> {
        let arena = self.arena.load(Ordering::Relaxed);
        (arena != 0).then(|| (arena, self.place.load(Ordering::Relaxed)))
    }

    fn interest(&self) -> Interest {
        Interest { events: self.events.load(Ordering::Relaxed), data: self.data.load(Ordering::Relaxed) }
    }

    /// What was told of it, into a registration.
    fn recall(&self, r: &mut Reg) {
        let state = self.state.load(Ordering::Relaxed);
        r.armed = state & ARMED != 0;
        r.off = state & OFF != 0;
        r.last = self.last.load(Ordering::Relaxed);
        r.seen = self.seen.load(Ordering::Relaxed);
    }

    fn note(&self, r: &Reg) {
        self.last.store(r.last, Ordering::Relaxed);
        self.seen.store(r.seen, Ordering::Relaxed);
        let state = if r.armed { ARMED } else { 0 } | if r.off { OFF } else { 0 };
        self.state.store(state, Ordering::Relaxed);
    }
}

impl Joined {
    /// What relatives were told of a registration meanwhile.
    pub(super) fn recall(&self, r: &mut Reg) {
        if let Some(m) = self.set.member(r.member) {
            m.recall(r);
        }
    }

    /// What we tell of it now.
    pub(super) fn note(&self, r: &Reg) {
        if let Some(m) = self.set.member(r.member) {
            m.note(r);
        }
    }

    /// From now on, changes ring this bell of ours.
    pub(super) fn hang(&self, bell: u32) {
        if let Some(holder) = self.set.own_place() {
            holder.bell.store(bell, Ordering::Relaxed);
        }
    }

    /// A child will have it, too.
    pub(super) fn expect_child(&self) {
        self.set.own_place();
        self.set.add_holder(EXPECTED, now_s());
    }

    /// The set has changed: others that sleep shall look.
    pub(super) fn tell(&self) {
        let own = process::id();
        for holder in &self.set.holders {
            let bell = holder.bell.load(Ordering::Relaxed);
            if ![0, own, EXPECTED].contains(&holder.pid.load(Ordering::Relaxed)) && bell != EVERYBODY {
                bells::ring(bell);
            }
        }
    }
}

impl State {
    /// If an instance is shared: its lock, and what others have changed is done here, too.
    #[inline(always)]
    pub(super) fn join(&mut self, instance: usize) -> Option<Joined> {
        let set = self.instances.get(instance)?.shared?;
        self.join_slow(instance, set)
    }

    #[cold]
    fn join_slow(&mut self, instance: usize, set: &'static Set) -> Option<Joined> {
        let joined = Joined { set, _held: set.lock.take()? };
        let changes = set.changes.load(Ordering::Relaxed);
        let inst = self.instances.get_mut(instance)?;
        if core::mem::replace(&mut inst.changes, changes) != changes {
            self.follow(u32::try_from(instance).ok()?, &joined);
        }
        Some(joined)
    }

    /// Does what others did to the members.
    fn follow(&mut self, instance: u32, joined: &Joined) {
        let mut known = [false; MEMBERS_MAX];
        self.each_of(instance, |st, index| {
            let key = st.handle_of(index).and_then(key);
            let Some(r) = st.regs.get_mut(index) else { return };
            let Some(m) = joined.set.member(r.member) else { return };
            if key.is_none() || m.key() != key || m.fd.load(Ordering::Relaxed) != r.fd.cast_unsigned() {
                // The kernel's part went with it.
                r.kernel_events = None;
                st.remove(index);
                return;
            }
            if let Some(known) = known.get_mut(r.member as usize - 1) {
                *known = true;
            }
            let version = m.version.load(Ordering::Relaxed);
            if core::mem::replace(&mut r.version, version) != version {
                r.interest = m.interest();
                m.recall(r);
                r.kernel_events = r.kernel_events.map(|_| u32::MAX);
                st.watch_shared_member(index);
            }
        });
        for ((m, place), known) in joined.set.members.iter().zip(1..).zip(known) {
            if let Some(key) = m.key().filter(|_| !known) {
                self.adopt(instance, m, place, key);
            }
        }
    }

    /// Another process has added something that we have, too.
    fn adopt(&mut self, instance: u32, m: &Member, place: u32, wanted: Key) {
        let is_it = |h: &&Handle| {
            matches!(h.kind(), Kind::Stream | Kind::Listener) && h.is_current() && key(h) == Some(wanted)
        };
        let Some(h) = handle::all().find(is_it) else { return };
        let Some(ep) = self.instances.get(instance as usize).map(|i| i.ep) else { return };
        let mut new = Reg {
            handle: h.index(),
            incarnation: h.incarnation.load(Ordering::Relaxed),
            instance,
            fd: m.fd.load(Ordering::Relaxed).cast_signed(),
            ep,
            interest: m.interest(),
            member: place,
            version: m.version.load(Ordering::Relaxed),
            ..NO_REG
        };
        m.recall(&mut new);
        let Some(index) = self.add(h, new) else { return };
        if let Some(inst) = self.instances.get_mut(instance as usize) {
            inst.listeners |= h.kind() == Kind::Listener;
        }
        self.watch_shared_member(index);
    }

    fn watch_shared_member(&mut self, index: usize) {
        self.set_watch(index);
        self.queue(index);
    }

    /// A registration was added or changed: others do the same.
    pub(super) fn publish(&mut self, index: usize, joined: Option<&Joined>) {
        let Some(joined) = joined else { return };
        let Some((h, r)) = self.handle_of(index).zip(self.regs.get_mut(index)) else { return };
        let Some((arena, place)) = key(h).filter(|_| matches!(h.kind(), Kind::Stream | Kind::Listener))
        else {
            return;
        };
        if r.member == 0 {
            let free = joined.set.members.iter().zip(1..).find(|(m, _)| m.key().is_none());
            let Some((_, at)) = free else { return };
            r.member = at;
        }
        let Some(m) = joined.set.member(r.member) else { return };
        m.place.store(place, Ordering::Relaxed);
        m.fd.store(r.fd.cast_unsigned(), Ordering::Relaxed);
        m.events.store(r.interest.events, Ordering::Relaxed);
        m.data.store(r.interest.data, Ordering::Relaxed);
        m.note(r);
        r.version = m.version.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        m.arena.store(arena, Ordering::Relaxed);
        self.changed(index, joined);
    }

    /// A registration is going to be taken out: by others, too.
    pub(super) fn withdraw(&mut self, index: usize, joined: Option<&Joined>) {
        let Some(joined) = joined else { return };
        let Some(m) = self.regs.get(index).and_then(|r| joined.set.member(r.member)) else { return };
        m.arena.store(0, Ordering::Relaxed);
        self.changed(index, joined);
    }

    /// We have made a change, and know of it.
    fn changed(&mut self, index: usize, joined: &Joined) {
        let instance = self.instance_of(index);
        let changes = joined.set.changes.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if let Some(inst) = self.instances.get_mut(instance) {
            inst.changes = changes;
        }
    }

    /// A handle of this process goes. Its registration stays with relatives that have the socket, as in Linux.
    pub(super) fn withdraw_last(&mut self, h: &Handle, index: usize) {
        let instance = self.instance_of(index);
        if !has_relatives(h) {
            let joined = self.join(instance);
            self.withdraw(index, joined.as_ref());
        }
    }

    /// Before a fork: the child will share this instance.
    pub(super) fn share(&mut self, instance: u32) {
        let Some(joined) = self.join(instance as usize) else { return };
        joined.expect_child();
        self.each_of(instance, |st, index| {
            if st.regs.get(index).is_some_and(|r| r.member == 0) {
                st.publish(index, Some(&joined));
            } else if let Some(r) = st.regs.get(index) {
                joined.note(r);
            }
        });
    }

    fn instance_of(&self, index: usize) -> usize {
        self.regs.get(index).map_or(0, |r| r.instance as usize)
    }

    /// Shared, and others that have it are alive. If they are not, it is ours alone from now on.
    pub(super) fn is_shared_set(&mut self, instance: u32) -> bool {
        let Some(inst) = self.instances.get_mut(instance as usize) else { return false };
        let Some(set) = inst.shared else { return false };
        if set.has_others(process::id()) {
            return true;
        }
        inst.shared = None;
        set.let_go(process::id());
        self.each_of(instance, |st, index| {
            if let Some(r) = st.regs.get_mut(index) {
                r.member = 0;
            }
        });
        false
    }
}
