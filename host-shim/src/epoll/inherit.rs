//! Sets that an executed program inherits: what is registered in them of ours is left for it, and taken over there.
//!
//! File actions and vfork children move descriptors, and all sets have one inode. So each set is told by a *mark*: a descriptor
//! that the image names is registered in it, for no event, with a data word that says which set it is. The mark is gone
//! from the sets when both programs have closed it.
//!
//! `unsafe` is allowed here: kcmp(2).
#![allow(unsafe_code)]

use core::ffi::c_ulong;
use core::sync::atomic::Ordering;

use ring::image::{Head, Watch, watch};
use rustix::fs::FileType;

use super::set::{INSTANCES_MAX, Instance, Interest, NO_INSTANCE, NO_REG, Reg, State};
use super::{STATE, kernel};
use crate::handle::{self, Handle, Kind};
use crate::leave::note_inode;
use crate::{epoll_wait, fds, process, real, socket, sys, table};

/// kcmp(2): do two descriptors name one open file?
const KCMP_FILE: c_ulong = 0;

/// Puts `mark` into the set `e`, and says to `each` what is registered there.
pub fn leave(e: &Handle, mark: i32, each: &mut dyn FnMut(Watch)) {
    let Some(ep) = own_descriptor(e) else { return };
    let set = e.place.load(Ordering::Relaxed);
    let data = Head::mark_of(epoll_wait::cookie(), set);
    epoll_wait::kernel_add(ep, mark, Interest { events: 0, data });
    let Some(st) = STATE.take() else { return };
    let may_be_member = |h: &&Handle| h.kind() == Kind::Epoll || (h.is_in_user_space() && h.is_current());
    for h in handle::all().filter(may_be_member) {
        let (member, nested) = match h.kind() {
            Kind::Epoll => (h.place.load(Ordering::Relaxed).into(), watch::SET),
            _ => (note_inode(h), 0),
        };
        for r in st.of_handle(h).filter_map(|index| st.regs.get(index)).filter(|r| r.instance == set) {
            let news = if r.queued { watch::NEWS } else { 0 };
            let off = if r.off { watch::OFF } else { 0 };
            let Interest { events, data } = r.interest;
            let fd = r.fd.unsigned_abs();
            each(Watch { set, member, fd, events, data, state: nested | news | off });
        }
    }
}

/// A descriptor of the set in this process. The table is right, but for a vfork child, which has its parent's.
fn own_descriptor(e: &Handle) -> Option<i32> {
    let known = table::find(e)?;
    if !process::is_borrowed() {
        return Some(known);
    }
    let is_it = |fd: i32| is_parents(fd, known);
    let mut found = Some(known).filter(|fd| is_it(*fd));
    if found.is_none() {
        fds::each_open(|fd| found = found.or_else(|| Some(fd).filter(|fd| is_it(*fd))));
    }
    found
}

/// `fd` is the open file that `theirs` is in our parent.
fn is_parents(fd: i32, theirs: i32) -> bool {
    let Some(parent) = rustix::process::getppid() else { return false };
    let pids = [i64::from(sys::getpid()), parent.as_raw_nonzero().get().into()];
    let [ours, parent, fd, theirs] = [pids[0], pids[1], fd.into(), theirs.into()].map(i64::cast_unsigned);
    // SAFETY: kcmp(2) takes numbers only.
    unsafe { real::syscall(libc::SYS_kcmp, ours, parent, KCMP_FILE, fd, theirs, 0) == 0 }
}

/// The sets that this program has of the one before it: a descriptor of each, by their numbers.
pub struct Inherited([i32; INSTANCES_MAX]);

impl Inherited {
    /// Enters all descriptors of sets that have the image's mark.
    pub fn find(head: &Head) -> Inherited {
        let mut sets = Inherited([-1; INSTANCES_MAX]);
        let Ok(mark) = i32::try_from(head.mark) else { return sets };
        let end = u32::try_from(INSTANCES_MAX).unwrap_or(0);
        fds::each_open(|fd| {
            let kind = rustix::fs::fstat(sys::borrow(fd)).map(|s| FileType::from_raw_mode(s.st_mode));
            // Most descriptors are none of a set: the kernel is asked about few.
            if matches!(kind, Ok(FileType::Socket | FileType::Fifo | FileType::RegularFile) | Err(_)) {
                return;
            }
            let set = kernel::find_mark(fd, mark, end, |set| Head::mark_of(head.cookie, set));
            let place = set.and_then(|set| sets.0.get_mut(set as usize));
            if let (Some(set), Some(place)) = (set, place)
                && enter(fd, set).is_some()
            {
                *place = fd;
            }
        });
        sets
    }

    /// Takes over a registration. `None`: there is no such set or member any more.
    pub fn adopt(&self, w: &Watch) -> Option<()> {
        let ep = *self.0.get(w.set as usize)?;
        let e = table::get(ep).filter(|e| e.kind() == Kind::Epoll)?;
        let h = if w.state & watch::SET != 0 {
            table::get(*self.0.get(usize::try_from(w.member).ok()?)?).filter(|h| h.kind() == Kind::Epoll)?
        } else {
            let is_member = |h: &&Handle| h.is_in_user_space() && h.inode.load(Ordering::Relaxed) == w.member;
            handle::all().find(is_member)?
        };
        let new = Reg {
            handle: h.index(),
            incarnation: h.incarnation.load(Ordering::Relaxed),
            instance: e.place.load(Ordering::Relaxed),
            fd: i32::try_from(w.fd).ok()?,
            ep,
            interest: Interest { events: w.events, data: w.data },
            off: w.state & watch::OFF != 0,
            // What the kernel's set has of it, if anything, is found out at the first look.
            kernel_events: (h.kind() == Kind::Stream && h.is_unix()).then_some(u32::MAX),
            ..NO_REG
        };
        let mut st = STATE.take()?;
        let index = st.add(h, new)?;
        if let Some(inst) = st.instances.get_mut(new.instance as usize) {
            inst.listeners |= matches!(h.kind(), Kind::Listener | Kind::Epoll);
            inst.nested |= h.kind() == Kind::Epoll;
        }
        st.watch_inherited(index, w.state & watch::NEWS != 0);
        st.finish();
        Some(())
    }
}

/// `ep` is a descriptor of the set that the program before us had under the number `set`.
fn enter(ep: i32, set: u32) -> Option<()> {
    let known = {
        let mut st = STATE.take()?;
        let inst = st.instances.get_mut(set as usize)?;
        match inst.handle.checked_sub(1) {
            Some(index) => Some(handle::by_index(index).filter(|e| e.retain())?),
            None => None,
        }
    };
    let e = match known {
        Some(e) => e,
        None => {
            let e = handle::allocate(Kind::Epoll, ep, 0, 0)?;
            e.place.store(set, Ordering::Relaxed);
            let mut st = STATE.take()?;
            // What else is registered, nobody has told us.
            *st.instances.get_mut(set as usize)? =
                Instance { handle: e.index() + 1, kernel: true, ep, ..NO_INSTANCE };
            e
        }
    };
    if !table::set(ep, e) {
        socket::release(e);
        return None;
    }
    Some(())
}

impl State {
    /// As [`State::watch`], for a registration of the program before us: what it has told is not told again.
    fn watch_inherited(&mut self, index: usize, news: bool) {
        // News may be in either lane, as the connection was shared before or not.
        self.shared_lane = true;
        let edge = self.regs.get(index).is_some_and(|r| r.interest.events & super::ready::ET != 0);
        if news || !edge {
            self.watch(index);
        } else {
            self.set_watch(index);
            self.note_edge(index);
        }
    }
}
