//! Memory whose registration is gone, and that a write which had begun may still reach.
//!
//! The `tcp` provider looks a key up when a write begins to arrive, and then receives into the memory, however long that takes.
//! What arrives at one endpoint arrives in order. So a message that has arrived after the registration was closed is behind
//! every write that had begun before; and of the messages that were there already there are at most as many as receives.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::memory::Memory;

/// How far an endpoint has come.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Messages received and handed out.
    received: AtomicU64,
    /// Receives that are posted at most.
    receives: u64,
    closed: AtomicBool,
}

impl Progress {
    pub(crate) fn count(&self) {
        // Relaxed: the numbers are compared by whoever holds the lock; too old a number keeps memory a while longer.
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn close(&self) {
        // Release: the endpoint is closed before anybody takes it for that.
        self.closed.store(true, Ordering::Release);
    }

    fn is_past(&self, number: u64) -> bool {
        // Acquire: pairs with `close`.
        self.closed.load(Ordering::Acquire) || self.received.load(Ordering::Relaxed) > number
    }
}

struct Grave {
    _memory: Arc<dyn Memory>,
    until: Vec<(Arc<Progress>, u64)>,
}

#[derive(Default)]
struct Inner {
    endpoints: Vec<Weak<Progress>>,
    graves: Vec<Grave>,
}

/// What waits in one domain.
#[derive(Default)]
pub(crate) struct Graves(Mutex<Inner>);

impl Graves {
    /// A new endpoint, with at most so many receives posted.
    pub(crate) fn endpoint(&self, receives: usize) -> Arc<Progress> {
        let progress = Arc::new(Progress {
            received: AtomicU64::new(0),
            receives: receives as u64,
            closed: AtomicBool::new(false),
        });
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.endpoints.retain(|endpoint| endpoint.strong_count() > 0);
        inner.endpoints.push(Arc::downgrade(&progress));
        progress
    }

    /// Keeps `memory` as long as it may be written, and lets go of what nobody writes any more.
    pub(crate) fn bury(&self, memory: Arc<dyn Memory>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let until: Vec<_> = inner
            .endpoints
            .iter()
            .filter_map(Weak::upgrade)
            .map(|endpoint| {
                let number = endpoint.received.load(Ordering::Relaxed) + endpoint.receives;
                (endpoint, number)
            })
            .collect();
        inner.graves.push(Grave { _memory: memory, until });
        drop(inner);
        self.sweep();
    }

    /// Lets go of what nobody writes any more.
    pub(crate) fn sweep(&self) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let done = |grave: &mut Grave| grave.until.iter().all(|(endpoint, number)| endpoint.is_past(*number));
        let over: Vec<Grave> = inner.graves.extract_if(.., done).collect();
        // What goes with the memory may come back here.
        drop(inner);
        drop(over);
    }
}
