//! Sleeping when there is nothing to do (SPEC 2.6): for the emulated card, which takes its core from the host.
//!
//! The card announces in every function's host memory that it wants a doorbell, runs a full fence, looks at everything once more, and
//! only then sleeps. A host posts its request, runs a full fence, too, then reads the announcement. Of the two fences one is the first: if
//! it is the host's, our second look sees the post, else the host sees the announcement. The same argument covers `armed`, whose
//! host looks at its completion ring after posting it.
//!
//! Shards on other lcores sleep when the logic's lcore does. It asks them to; each announces, looks once more, says what it has
//! found, then that it sleeps, and waits for its bell. So once all have said so, and nothing else, nothing is under way, and the logic's
//! lcore sleeps on the one doorbell. Whatever wakes it, it rings all bells.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ring::atomic::{Heavy, Ordering, fence};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, IoSliceMut, ReadWriteFlags, ioctl_fionbio, preadv2};
use rustix::thread::{MembarrierCommand, membarrier, membarrier_query};

use crate::carrier::Carrier;
use crate::counters::Counters;
use crate::poll::Poller;

/// The kernel's expedited barrier over all registered processes: for sleeps on what processes publish without a fence.
#[derive(Debug)]
pub struct Membarrier(());

/// The kernel has no `MEMBARRIER_CMD_GLOBAL_EXPEDITED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this kernel has no membarrier(2) with GLOBAL_EXPEDITED: use Linux 4.16 or newer")]
pub struct NoMembarrier;

impl Membarrier {
    /// Finds out whether the kernel can do it.
    ///
    /// # Errors
    /// [`NoMembarrier`].
    pub fn new() -> Result<Self, NoMembarrier> {
        if membarrier_query().contains_command(MembarrierCommand::GlobalExpedited) {
            Ok(Membarrier(()))
        } else {
            Err(NoMembarrier)
        }
    }
}

impl Heavy for Membarrier {
    fn heavy_barrier(&self) {
        // Cannot fail once the kernel has said that it knows the command.
        let _ = membarrier(MembarrierCommand::GlobalExpedited);
    }
}

/// The offset that makes preadv2(2) a plain read.
const NO_OFFSET: u64 = u64::MAX;

/// What ended a sleep, or kept it from starting. Several may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Woken {
    /// The bus has a message or was hung up.
    pub bus: bool,
    /// The descriptor for ending the program is readable.
    pub end: bool,
    /// A frame has come, or is about to be seen in the port.
    pub port: bool,
    /// The second look found work: there was no sleep.
    pub worked: bool,
}

/// Sleeps until something happens, also on the bus, the descriptor for ending the program, or one more (`others`), or `timeout_us` have passed (`None`: however long it takes).
pub fn sleep(
    poller: &mut Poller,
    mut carrier: Option<&mut Carrier>,
    doorbell: &OwnedFd,
    others: [BorrowedFd<'_>; 3],
    (now_us, timeout_us): (u64, Option<u64>),
    counters: &Counters,
) -> Woken {
    poller.set_doorbell_wanted(true);
    // SeqCst: pairs with the fence of who posts (SPEC 2.6.3).
    fence(Ordering::SeqCst);
    let mut worked = poller.scan(now_us);
    while !poller.shards_sleep() {
        worked |= poller.turn(now_us);
        rustix::thread::sched_yield();
    }
    worked |=
        poller.logic().remote().has_words() || carrier.as_mut().is_some_and(|carrier| !carrier.may_sleep());
    let woken = if worked {
        Woken { worked: true, ..Woken::default() }
    } else {
        counters.sleeps.add(1);
        let [bus, end, port] = others;
        let far = carrier.as_ref().map_or(end, |carrier| carrier.watched());
        wait(doorbell, [bus, end, port, far], timeout_us, counters)
    };
    if let Some(carrier) = carrier {
        carrier.woken();
    }
    poller.set_doorbell_wanted(false);
    woken
}

fn wait(
    doorbell: &OwnedFd,
    [bus, end, port, far]: [BorrowedFd<'_>; 4],
    timeout_us: Option<u64>,
    counters: &Counters,
) -> Woken {
    let mut fds =
        [doorbell.as_fd(), bus, end, port, far].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let timeout = timeout_us.and_then(|us| {
        let tv_nsec = i64::try_from(us % 1_000_000).ok()? * 1000;
        Some(Timespec { tv_sec: i64::try_from(us / 1_000_000).ok()?, tv_nsec })
    });
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        // Cannot happen with valid descriptors; turning without sleep is right in any case.
        Err(error) => tracing::error!("poll failed: {error}"),
    }
    let [rang, bus, end, port, _] = fds.map(|fd| !fd.revents().is_empty());
    if rang {
        clear(doorbell);
        counters.doorbells.add(1);
    }
    Woken { bus, end, port, worked: false }
}

/// Takes what is in the doorbell. Processes hold it, too, and may have emptied it or made it blocking.
fn clear(doorbell: &OwnedFd) {
    let mut value = [0; 8];
    // NOWAIT does not depend on them.
    let read = preadv2(doorbell, &mut [IoSliceMut::new(&mut value)], NO_OFFSET, ReadWriteFlags::NOWAIT);
    if read == Err(Errno::NOSYS) {
        // qemu-user 7.2 has no preadv2. Then one that empties it and makes it blocking, between the two calls, could keep
        // us waiting: for tests of another architecture's program only.
        let _ = ioctl_fionbio(doorbell, true).and_then(|()| rustix::io::read(doorbell, &mut value));
    }
}
