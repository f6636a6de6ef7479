//! Between the lcore that decides and a shard on another one: words over two rings, one each way, and a bell for a shard that
//! sleeps. Nothing else is shared by the two.
//!
//! Nobody waits for room with words in hand: an [`Outlet`] keeps what the ring does not take yet. What bounds that, and why it
//! can't deadlock: a shard takes no requests from processes while its outlet is full, but reads whatever the logic says in
//! every turn; the logic reads no shard's words while an outlet of its own is full, and that one empties without the logic.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use dpdk::eal::Eal;
use dpdk::ring::{Receiver, RingError, Sender, ring};
use ring::msg::Request;
use ring::queue::shared::Sealed;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::logic::Out;
use crate::shard::{Offence, Port};

/// Words that go into a ring, or come out of it, at once.
pub const BURST: usize = 32;
/// Words that each ring holds: a few hundred microseconds' worth, so that the two lcores need not be in step.
pub const RING_WORDS: u32 = 1023;

/// What a shard says to the logic.
#[derive(Debug)]
pub enum ToLogic {
    /// A process asks for something; well-formed, and not more than it has credit for.
    Request {
        /// Whose.
        function: u32,
        /// For the answer.
        token: u32,
        /// What.
        request: Request,
    },
    /// It broke the rules of the rings, and is not looked at any more.
    Offends {
        /// Who.
        function: u32,
        /// How.
        offence: Offence,
    },
    /// The answer to [`ToShard::Drain`]: all that it had asked for has been said.
    Drained {
        /// Who.
        function: u32,
    },
    /// The answer to [`ToShard::Unmap`]: likewise, and its memory is not touched any more.
    Unmapped {
        /// Who.
        function: u32,
    },
    /// The answer to [`ToShard::Sleep`]: nothing more is said before the bell.
    Asleep,
    /// The shard's core is shared with programs that compute: who only yields does not get it back in time.
    Crowded,
}

/// What the logic says to a shard.
#[derive(Debug)]
pub enum ToShard {
    /// A completion for one of its functions.
    Out(Out),
    /// An entry of the shared ring that says it is of one of its functions.
    Held(Sealed),
    /// A function to look at from now on, with its number.
    Map(u32, Box<Port>),
    /// The function is gone, once all that it had asked for is said.
    Unmap(u32),
    /// Say all that this function has asked for so far.
    Drain(u32),
    /// The function broke the rules of the logic: do not look at it any more.
    Drop(u32),
    /// Announce that the card wants its doorbell, look once more, and sleep.
    Sleep,
}

/// The sending end of a ring, and what waits for room in it.
#[derive(Debug)]
pub struct Outlet<'r, T: Send> {
    ring: Sender<'r, T>,
    /// The next burst.
    next: Vec<T>,
    /// What comes after that.
    waiting: VecDeque<T>,
}

impl<'r, T: Send> Outlet<'r, T> {
    fn new(ring: Sender<'r, T>) -> Self {
        Outlet { ring, next: Vec::with_capacity(BURST), waiting: VecDeque::new() }
    }

    /// Sends a word, with the next [`Outlet::flush`] at the latest.
    #[inline]
    pub fn push(&mut self, word: T) {
        if !self.waiting.is_empty() || self.next.len() == BURST {
            self.waiting.push_back(word);
            return;
        }
        self.next.push(word);
        if self.next.len() == BURST {
            self.ring.burst(&mut self.next);
        }
    }

    /// Sends what the ring takes. True if nothing is left.
    pub fn flush(&mut self) -> bool {
        loop {
            if self.next.is_empty() {
                self.next.extend(self.waiting.drain(..self.waiting.len().min(BURST)));
            }
            if self.next.is_empty() {
                return true;
            }
            self.ring.burst(&mut self.next);
            if !self.next.is_empty() {
                return false;
            }
        }
    }

    /// True while a burst or more waits for room: time to make no more words.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.next.len() == BURST || !self.waiting.is_empty()
    }
}

/// The logic's end.
#[derive(Debug)]
pub struct ShardEnd<'r> {
    // In this order: a shard that the bell wakes sees that we are gone.
    pub(crate) to: Outlet<'r, ToShard>,
    pub(crate) from: Receiver<'r, ToLogic>,
    pub(crate) bell: Bell,
}

/// The shard's end.
#[derive(Debug)]
pub struct LogicEnd<'r> {
    pub(crate) to: Outlet<'r, ToLogic>,
    pub(crate) from: Receiver<'r, ToShard>,
    /// What [`Bell`] rings.
    bell: OwnedFd,
}

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Its rings.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// Its bell.
    #[error("no eventfd for a shard's bell: {0}")]
    Bell(#[from] Errno),
}

/// A link to shard `index`, whose rings hold `words` each ([`RING_WORDS`]).
///
/// # Errors
/// [`LinkError`]; nothing is left behind.
pub fn link(eal: &Eal, index: usize, words: u32) -> Result<(ShardEnd<'_>, LogicEnd<'_>), LinkError> {
    let (to_shard, from_logic) = ring(eal, &format!("to_shard{index}"), words)?;
    let (to_logic, from_shard) = ring(eal, &format!("to_logic{index}"), words)?;
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE)?;
    let same = rustix::io::fcntl_dupfd_cloexec(&bell, 0)?;
    let logic = LogicEnd { to: Outlet::new(to_logic), from: from_logic, bell };
    Ok((ShardEnd { to: Outlet::new(to_shard), from: from_shard, bell: Bell(same) }, logic))
}

/// Wakes a shard: once for each [`ToShard::Sleep`], whichever of the two comes first. Also rung when the logic's end is dropped.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    pub(crate) fn ring(&self) {
        // Cannot fail: nobody else has this eventfd, and it is rung once for each sleep.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.ring();
    }
}

impl LogicEnd<'_> {
    /// Sleeps until the bell.
    pub(crate) fn wait_for_bell(&self) {
        while rustix::io::read(&self.bell, &mut [0; 8]) == Err(Errno::INTR) {}
    }
}
