//! The time that a real bus takes, added to the emulated one (`--pcie-profile`): a request is acted on when it is so old as it would be
//! on its arrival, a completion is held back, an interrupt follows. No time is spent waiting: the loop goes on with what is due.

use std::collections::VecDeque;
use std::time::Instant;

use ring::profile::Profile;
use ring::queue::Kind;

/// Reads of host memory, one after the other, that bring a request by the hint or out of the shared ring: who has work, or how far the
/// ring is drawn; then the mark, or the entry.
pub const READS: u64 = 2;

/// The bus of all functions.
#[derive(Debug)]
pub struct Latency {
    profile: Profile,
    started: Instant,
    random: u64,
}

/// A queue whose entries become due, in their order.
#[derive(Debug)]
pub struct Delayed<T> {
    waiting: VecDeque<(u64, T)>,
    last_ns: u64,
}

impl<T> Default for Delayed<T> {
    fn default() -> Self {
        Delayed { waiting: VecDeque::new(), last_ns: 0 }
    }
}

impl<T> Delayed<T> {
    /// Adds one that is due at `due_ns`, or when the one before it is.
    pub fn push(&mut self, due_ns: u64, what: T) {
        self.last_ns = self.last_ns.max(due_ns);
        self.waiting.push_back((self.last_ns, what));
    }

    /// The first one, if it is due.
    #[must_use]
    pub fn front(&self, now_ns: u64) -> Option<&T> {
        self.waiting.front().filter(|(due_ns, _)| *due_ns <= now_ns).map(|(_, what)| what)
    }

    /// One that waits, by its place behind the first.
    pub fn get_mut(&mut self, place: usize) -> Option<&mut T> {
        self.waiting.get_mut(place).map(|(_, what)| what)
    }

    /// Takes the first one, if it is due.
    pub fn pop(&mut self, now_ns: u64) -> Option<T> {
        self.front(now_ns)?;
        self.waiting.pop_front().map(|(_, what)| what)
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// True when none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// All that wait are due.
    pub fn hurry(&mut self) {
        self.waiting.iter_mut().for_each(|(due_ns, _)| *due_ns = 0);
        self.last_ns = 0;
    }
}

impl Latency {
    /// Of this bus, from now on.
    #[must_use]
    pub fn new(profile: Profile) -> Latency {
        Latency { profile, started: Instant::now(), random: u64::from(profile.seed) }
    }

    /// Nothing takes time.
    #[must_use]
    #[inline]
    pub fn is_none(&self) -> bool {
        self.profile.is_none()
    }

    /// The time, as far as it is asked for.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        if self.is_none() { 0 } else { u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX) }
    }

    /// When something is there that starts now and takes `ns`, and some jitter.
    fn after(&mut self, now_ns: u64, ns: u64) -> u64 {
        // xorshift*, never 0 by the first line.
        self.random |= 1 << 63;
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let share = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        let jitter = ns * u64::from(self.profile.jitter_percent) * share / (100 << 32);
        now_ns + ns + jitter
    }

    /// When a request is with the card that the host has just posted by `queue`.
    pub fn request(&mut self, now_ns: u64, queue: Kind) -> u64 {
        let (posted, read) = (self.profile.posted_write_ns, self.profile.dma_read_ns);
        let ns = if queue == Kind::PerProcess { posted.into() } else { READS * u64::from(read) };
        self.after(now_ns, ns)
    }

    /// The same for `armed`.
    pub fn posted(&mut self, now_ns: u64) -> u64 {
        self.after(now_ns, self.profile.posted_write_ns.into())
    }

    /// When the host sees a completion that is made now.
    pub fn completion(&mut self) -> u64 {
        if self.is_none() { 0 } else { self.after(self.now_ns(), self.profile.dma_write_ns.into()) }
    }

    /// When an interrupt is with the host.
    pub fn interrupt(&mut self, now_ns: u64) -> u64 {
        self.after(now_ns, self.profile.interrupt_ns.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_delayed_stays_in_order() {
        let mut delayed = Delayed::default();
        for (due_ns, what) in [(30, 'a'), (10, 'b'), (40, 'c')] {
            delayed.push(due_ns, what);
        }
        assert_eq!(
            [delayed.pop(29), delayed.pop(30), delayed.pop(30), delayed.pop(39)],
            [None, Some('a'), Some('b'), None]
        );
        delayed.hurry();
        assert_eq!((delayed.pop(0), delayed.is_empty()), (Some('c'), true));
    }

    #[test]
    fn jitter_is_bounded_and_the_seeds_own() {
        let times = |seed: &str| {
            let text = format!("custom,posted-write-ns=1000,jitter-percent=50,seed={seed}");
            let mut bus = Latency::new(text.parse().unwrap());
            (0..100).map(|_| bus.request(5, Kind::PerProcess)).collect::<Vec<_>>()
        };
        assert_eq!(times("3"), times("3"));
        assert_ne!(times("3"), times("4"));
        assert!(times("3").iter().all(|ns| (1005..1505).contains(ns)));
    }
}
