//! Accepts ahead: while more clients wait at the coordinator than one, the next accepts are asked for before the application makes them, so
//! that it waits for the coordinator once in several. For listeners that this process alone holds: what nobody has accepted when others are to
//! get a part in one, or when it is closed, goes back into its queue, in order.
//!
//! An answer that is here counts in [`Handle::ready`] as a client who waits at the coordinator does.

use core::sync::atomic::{AtomicUsize, Ordering};

use ring::msg::{Addr, Completion, ConnId, Request, Status};

use crate::coordinator::{self, Ticket};
use crate::handle::Handle;
use crate::lock::{Guarded, Lock};
use crate::process;
use crate::sys::NoSignals;

/// Asked for at a time, at most.
const DEPTH_MAX: usize = 8;
/// Listeners for which that is done at a time.
const QUEUES_MAX: usize = 8;

/// A connection that is to be accepted here.
pub struct Accepted {
    /// Which.
    pub conn: ConnId,
    /// The client.
    pub peer: Addr,
    /// Where it connected to.
    pub local: Addr,
}

impl Accepted {
    /// What an `Accept` was answered, if that is a connection.
    pub fn of(answer: Completion) -> Option<Accepted> {
        match answer {
            Completion::Accepted { status: Status::Ok, conn, peer, local, .. } => {
                Some(Accepted { conn, peer, local })
            }
            _ => None,
        }
    }
}

#[derive(Clone, Copy)]
struct Queue {
    /// Index of the listener's handle plus one; 0: free.
    listener: u32,
    /// Oldest first.
    tickets: [Ticket; DEPTH_MAX],
    len: usize,
    /// How many are asked for the next time.
    depth: usize,
}

const NONE: Queue = Queue { listener: 0, tickets: [Ticket::NONE; DEPTH_MAX], len: 0, depth: 1 };

static QUEUES: Guarded<[Queue; QUEUES_MAX]> = Guarded::new([NONE; QUEUES_MAX]);
/// Tickets in all of them: nearly always none.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// For the fork handlers.
pub fn lock() -> &'static Lock {
    QUEUES.lock()
}

impl Queue {
    fn push(&mut self, ticket: Ticket) {
        if let Some(place) = self.tickets.get_mut(self.len) {
            *place = ticket;
            self.len += 1;
            WAITING.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn pop(&mut self) -> Option<Ticket> {
        let first = self.tickets.first().copied().filter(|_| self.len > 0)?;
        self.tickets.copy_within(1.., 0);
        self.len -= 1;
        WAITING.fetch_sub(1, Ordering::Relaxed);
        Some(first)
    }
}

/// What is asked for the listener `h`.
fn of<'a>(queues: &'a mut [Queue], h: &Handle) -> Option<&'a mut Queue> {
    queues.iter_mut().find(|q| q.listener == h.index() + 1)
}

fn pop(h: &Handle) -> Option<Ticket> {
    of(&mut *QUEUES.take()?, h)?.pop()
}

/// Was anything asked for that is not taken yet?
pub fn is_any() -> bool {
    WAITING.load(Ordering::Relaxed) != 0
}

/// The next connection of the listener `h` that was asked for before.
pub fn take(signals: &NoSignals, h: &Handle) -> Option<Accepted> {
    if !is_any() {
        return None;
    }
    let epoch = process::epoch();
    while let Some(ticket) = pop(h) {
        match coordinator::answer_undisturbed(signals, ticket, epoch).map(Accepted::of) {
            Ok(Some(accepted)) => {
                coordinator::taken(h);
                return Some(accepted);
            }
            Ok(None) => asked_too_much(h),
            Err(_) => forget(h),
        }
    }
    None
}

fn asked_too_much(h: &Handle) {
    if let Some(mut queues) = QUEUES.take()
        && let Some(queue) = of(&mut *queues, h)
    {
        queue.depth = 1;
    }
}

/// A connection of the listener `h`, whose number is `listener`, has been accepted, and more wait: asks for the next ones. Signals are
/// blocked: it takes a lock.
pub fn ask(h: &Handle, listener: u32) {
    let Some(mut queues) = QUEUES.take() else { return };
    let own = queues.iter().position(|q| q.listener == h.index() + 1);
    let at = own.or_else(|| queues.iter().position(|q| q.len == 0));
    let Some(queue) = at.and_then(|at| queues.get_mut(at)) else { return };
    if own.is_none() {
        *queue = Queue { listener: h.index() + 1, ..NONE };
    }
    if queue.len > queue.depth / 2 {
        return;
    }
    while queue.len < queue.depth {
        match coordinator::start_ahead(h, Request::Accept { listener, flags: 0 }) {
            Ok(ticket) => queue.push(ticket),
            Err(_) => return,
        }
    }
    queue.depth = (queue.depth * 2).min(DEPTH_MAX);
}

/// What was asked for and is not accepted goes back into the queue of the listener `h`, from which others may get it.
pub fn give_back(h: &Handle) {
    if !coordinator::may_wait() {
        return forget(h);
    }
    let epoch = process::epoch();
    let mut left = [const { None }; DEPTH_MAX];
    for place in &mut left {
        if !is_any() {
            break;
        }
        let Some(ticket) = pop(h) else { break };
        if let Ok(Some(accepted)) = coordinator::answer(ticket, epoch).map(Accepted::of) {
            coordinator::taken(h);
            *place = Some(accepted.conn);
        }
    }
    for conn in left.into_iter().rev().flatten() {
        let _ = coordinator::post(Request::Requeue { conn });
    }
}

/// The coordinator does not answer, or can't be waited for: what it has given is its own again, and what comes late goes back by itself.
pub fn forget(h: &Handle) {
    while let Some(ticket) = pop(h) {
        match ticket.finish().and_then(Accepted::of) {
            Some(accepted) => {
                coordinator::taken(h);
                let _ = coordinator::post(Request::Requeue { conn: accepted.conn });
            }
            None => ticket.abandon(),
        }
    }
}

/// After fork, in the child: they are the parent's.
pub fn forget_all() {
    if let Some(mut queues) = QUEUES.take() {
        *queues = [NONE; QUEUES_MAX];
        WAITING.store(0, Ordering::Relaxed);
    }
}
