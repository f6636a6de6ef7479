//! Registrations of connections that are in two places ([`crate::dual`]): the kernel's set has its part of them, which changes
//! when the connection leaves the kernel in one direction or the other.

use super::set::{Interest, State};
use crate::handle::Handle;
use crate::{dual, epoll_wait};

impl State {
    /// Makes the kernel tell these events of a registration, or none of it.
    pub(super) fn share_with_kernel(&mut self, index: usize, events: Option<u32>) {
        let Some(r) = self.regs.get_mut(index).filter(|r| r.kernel_events != events) else { return };
        r.kernel_events = events;
        match events {
            Some(events) => epoll_wait::kernel_set(r.ep, r.fd, Interest { events, ..r.interest }),
            None => epoll_wait::kernel_delete(r.ep, r.fd),
        }
    }

    /// The kernel tells what is its to tell. True: that is something.
    pub(super) fn sync_kernel(&mut self, index: usize, h: &Handle) -> bool {
        let Some(events) = self.regs.get(index).map(|r| r.interest.events) else { return false };
        let part = h.stream().and_then(|s| dual::kernel_part(&s, events));
        self.share_with_kernel(index, part);
        part.is_some()
    }
}
