//! An attached process as the agent keeps it: who it is, its counters, its notice word.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use emulator::memory::{Mapping, sealed_memfd};
use emulator::{Card, FunctionMemory};
use ring::atomic::Ordering;
use ring::attach::WELCOME_FDS;
use ring::stats::{STATS_BYTES, Stats};
use ring::window::{HOST_BYTES, HostMemory, WINDOW_BYTES, Window};
use rustix::thread::futex;

use crate::identity::Identity;
use crate::inspect::ProcessRings;

/// What the process gets by `Welcome`; closed here once it has it.
#[derive(Debug)]
struct Gift {
    memory: FunctionMemory,
    stats: OwnedFd,
}

/// One function and the process behind it.
///
/// The `'static` references point into the mappings beside them; none leaves this struct for longer
/// than a borrow of it.
pub struct Function {
    /// Who.
    pub identity: Identity,
    /// Fork family.
    pub group: u32,
    /// The client socket that it attached by.
    pub client: u32,
    /// `Hello` fields, for the coordinator.
    pub parent: (u32, u64),
    /// Interrupt vector 1, watched edge-triggered and never read: reading it is the process's part.
    events: OwnedFd,
    stats: Stats<'static>,
    host: HostMemory<'static>,
    window: Window<'static>,
    gift: Option<Gift>,
    _mappings: [Mapping; 3],
}

impl Function {
    /// Over the memory that the card was just told of.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub fn new(
        identity: Identity,
        group: u32,
        client: u32,
        parent: (u32, u64),
        memory: FunctionMemory,
    ) -> io::Result<Function> {
        let stats = sealed_memfd("ipc-direct-stats", STATS_BYTES)?;
        let mappings = [
            Mapping::new(&stats, STATS_BYTES)?,
            Mapping::new(&memory.host, HOST_BYTES)?,
            Mapping::new(&memory.window, WINDOW_BYTES)?,
        ];
        let [counters, host, window] = mappings.each_ref().map(Mapping::region);
        let views = (Stats::over(counters), HostMemory::over(host), Window::over(window));
        let (Some(view), Some(host), Some(window)) = views else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        view.format();
        let events = memory.interrupts[1].try_clone()?;
        let gift = Some(Gift { memory, stats });
        Ok(Function {
            identity,
            group,
            client,
            parent,
            events,
            stats: view,
            host,
            window,
            gift,
            _mappings: mappings,
        })
    }

    /// Descriptors of `Welcome`, in the contract's order; `None` once they were dropped.
    #[must_use]
    pub fn welcome_fds<'a>(&'a self, card: &'a Card) -> Option<Vec<BorrowedFd<'a>>> {
        let Gift { memory, stats } = self.gift.as_ref()?;
        let [answers, events] = &memory.interrupts;
        let mut fds = Vec::with_capacity(WELCOME_FDS);
        fds.extend([memory.window.as_fd(), memory.host.as_fd(), stats.as_fd(), card.doorbell()]);
        fds.extend([answers.as_fd(), events.as_fd()]);
        fds.extend(card.common());
        Some(fds)
    }

    /// The process has its descriptors: closes ours.
    pub fn welcomed(&mut self) {
        self.gift = None;
    }

    /// True once the process was told that it is attached.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.gift.is_none()
    }

    /// Interrupt vector 1.
    #[must_use]
    pub fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// The process's counters: untrusted data.
    #[must_use]
    pub fn stats(&self) -> &Stats<'_> {
        &self.stats
    }

    /// Where its rings are, and who sleeps.
    #[must_use]
    pub fn rings(&self) -> ProcessRings {
        ProcessRings::of(&self.window, &self.host, &self.stats)
    }

    /// Wakes every thread of the process that sleeps on data, to look at its events (SPEC 6.5).
    pub fn notice(&self) {
        // Release: what happened before (a wire closed, a completion pushed) is visible to whoever
        // reads the new value with Acquire. A sleeper that read the old one is in the futex queue by
        // the time of the wake, or its futex call sees the new value and does not sleep.
        self.host.header.notice.fetch_add(1, Ordering::Release);
        // Shared, not private: the word is in another process's mapping, too. No waiter is no error.
        let _ = futex::wake(&self.host.header.notice, futex::Flags::empty(), i32::MAX.cast_unsigned());
    }
}
