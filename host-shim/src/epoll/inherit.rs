//! Sets that an executed program inherits: what is registered in them of ours is left for it, and taken over there.

use core::sync::atomic::Ordering;

use ring::image::{Watch, watch};

use super::STATE;
use super::set::{Instance, Interest, NO_INSTANCE, NO_REG, Reg, State};
use crate::handle::{self, Handle, Kind};
use crate::leave::note_inode;
use crate::{fds, socket, table};

/// Where /proc leads from an epoll descriptor.
const EPOLL_NAME: &[u8] = b"anon_inode:[eventpoll]";

/// Says to `each` that `ep` is a descriptor of the set `e`, and, if asked for, what is registered there.
pub fn leave(e: &Handle, ep: i32, with_members: bool, each: &mut dyn FnMut(Watch)) {
    let set = e.place.load(Ordering::Relaxed);
    let Some(st) = STATE.take() else { return };
    let Ok(ep) = u32::try_from(ep) else { return };
    let named = Watch { set, ep, inode: 0, fd: 0, events: 0, data: 0, state: 0 };
    each(named);
    for h in handle::all().filter(|h| with_members && h.is_in_user_space() && h.is_current()) {
        for r in st.of_handle(h).filter_map(|index| st.regs.get(index)).filter(|r| r.instance == set) {
            let news = if r.queued { watch::NEWS } else { 0 };
            let off = if r.off { watch::OFF } else { 0 };
            let Interest { events, data } = r.interest;
            let fd = r.fd.unsigned_abs();
            each(Watch { inode: note_inode(h), fd, events, data, state: news | off, ..named });
        }
    }
}

/// Takes over what another program said of a set. `None`: its descriptor is none of a set, or there is no such member any more.
pub fn adopt(w: &Watch) -> Option<()> {
    let ep = i32::try_from(w.ep).ok()?;
    let e = match table::get(ep) {
        Some(e) => e,
        None => enter(ep, w.set)?,
    };
    if w.inode == 0 {
        return Some(());
    }
    let is_member = |h: &&Handle| h.is_in_user_space() && h.inode.load(Ordering::Relaxed) == w.inode;
    let h = handle::all().find(is_member)?;
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
        inst.listeners |= h.kind() == Kind::Listener;
    }
    st.watch_inherited(index, w.state & watch::NEWS != 0);
    st.finish();
    Some(())
}

/// `ep` is a descriptor of the set that the program before us had under the number `set`.
fn enter(ep: i32, set: u32) -> Option<&'static Handle> {
    let (mut name, mut target) = ([0; 32], [0; EPOLL_NAME.len() + 1]);
    let path = fds::path(ep, &mut name)?;
    let length = rustix::fs::readlinkat_raw(rustix::fs::CWD, path, &mut target[..]).ok()?;
    if target.get(..length) != Some(EPOLL_NAME) {
        return None;
    }
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
    Some(e)
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
