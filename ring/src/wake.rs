//! Sleeping and waking (SPEC 6): sleepers pay, senders only read a flag.
//!
//! The sleeper sets a bit in a word, runs the heavy barrier, looks again, and only then sleeps. The waker
//! publishes, then reads the word. Without a barrier both could read the old value (the store buffers
//! of both cores delay the stores): the waker sees no sleeper, the sleeper no news. The sleeper's
//! [`Heavy`] barrier rules that out for both: it forces a full fence on every core that runs a waker. Either
//! the waker's publication came before that fence, then the sleeper's second look sees it; or the
//! waker's read of the word comes after it, then it reads the bit set.
//!
//! Nobody takes an announcement back (SPEC 6.3): other threads and processes may sleep on the same word,
//! and only a waker, who then wakes all of them, clears it. A sleeper that gave up costs one wake-up in vain.

use crate::atomic::{AtomicU8, AtomicU32, Heavy, Ordering, light_barrier, store_against_rmw};

/// A sleeper waits on the word itself with futex(2): wake all waiters of the word.
pub const FUTEX: u32 = 1;
/// A sleeper waits in poll(2) or epoll(7): ring the segment's wire.
pub const WIRE: u32 = 2;
/// The other bits count the claims, so that a futex sleeper's value is not mistaken for a later one (SPEC 6.3).
const ROUND: u32 = 4;

/// In a watch word, beside the lane: ring the wire for each publication, whoever sleeps (SPEC 6.4).
pub const RING_EACH: u32 = 1 << 31;
/// In `rx_watch`: ring the wire with an urgent byte for each urgent record.
pub const RING_URGENT: u32 = 1 << 30;

/// The lane in a watch word, plus one; 0: none.
#[must_use]
pub fn lane(watch: u32) -> u32 {
    watch & !(RING_EACH | RING_URGENT)
}

/// Changes the lane in a watch word (plus one; 0: none) and leaves the rest. Returns the lane that was there.
pub fn set_lane(watch: &AtomicU32, lane_plus_one: u32) -> u32 {
    let mut before = watch.load(Ordering::Relaxed);
    // AcqRel: as the swap of a word that the other side may take.
    while let Err(now) = watch.compare_exchange(
        before,
        before & (RING_EACH | RING_URGENT) | lane_plus_one,
        Ordering::AcqRel,
        Ordering::Relaxed,
    ) {
        before = now;
    }
    lane(before)
}

/// Sleeper, before the heavy barrier: announces in `word` how it sleeps ([`FUTEX`], [`WIRE`]). Returns the
/// word's new value, which a futex sleeper waits on.
pub fn announce(word: &AtomicU32, how: u32) -> u32 {
    // Relaxed: ordered against the second look by the heavy barrier that follows. Read-modify-write
    // because several sleepers of different kinds may announce at once.
    word.fetch_or(how, Ordering::Relaxed) | how
}

/// Sleeper with one word: announces, and runs the barrier. After it, the caller looks again.
pub fn announce_and_fence(word: &AtomicU32, how: u32, heavy: &impl Heavy) -> u32 {
    let value = announce(word, how);
    heavy.heavy_barrier();
    value
}

/// Waker, after publishing and a [`light_barrier`]: might somebody sleep? For looking at several words of one line first.
#[inline(always)]
#[must_use]
pub fn announced(word: &AtomicU32) -> bool {
    // Relaxed: the read is ordered after the publication by the barrier pair.
    word.load(Ordering::Relaxed) & (FUTEX | WIRE) != 0
}

/// Waker, after publishing: who sleeps, as a set of [`FUTEX`] and [`WIRE`]. Of several wakers exactly one is
/// told of an announcement, and must wake.
#[inline(always)]
#[must_use]
pub fn sleepers(word: &AtomicU32) -> u32 {
    light_barrier();
    if announced(word) { claim(word) } else { 0 }
}

/// Takes the announcements and counts the claim in the same word.
#[cold]
fn claim(word: &AtomicU32) -> u32 {
    // Two steps, in this order: a futex sleeper that looked before the publication holds a value with the old count,
    // and does not fall asleep even if somebody else announces again after the second step. Who announces between
    // the two looks afterwards, and finds the publication.
    // AcqRel: a sleeper that reads the new count sees the publication; the wake-up itself stays after both.
    word.fetch_add(ROUND, Ordering::AcqRel);
    word.fetch_and(!(FUTEX | WIRE), Ordering::AcqRel) & (FUTEX | WIRE)
}

/// Waker of a lane (SPEC 6.4): after publishing, tells the receiver that a slot has news. Returns who sleeps on
/// the lane, as [`sleepers`] does. `stamp`, not 0, is the news' place in the order of arrival ([`stamp`]).
///
/// The byte is stored even if it is set already: what is read there could be older than the receiver's look.
#[inline(always)]
#[must_use]
pub fn post(news: &AtomicU8, stamp: u8, sleeping: &AtomicU32) -> u32 {
    // Release: pairs with the Acquire in `collect`: who takes the news sees the publication before it.
    store_against_rmw(news, stamp, Ordering::Release);
    sleepers(sleeping)
}

/// Waker of a lane: the next stamp of `order`, which is the lane's.
#[inline(always)]
#[must_use]
pub fn stamp(order: &AtomicU32) -> u8 {
    let [low, ..] = order.load(Ordering::Relaxed).wrapping_add(1).to_le_bytes();
    let stamp = low.max(1);
    // Relaxed, and no locked instruction: two threads that do this at once get one stamp, and are in no order. The store
    // is before that of the news (Release), so who collects those reads no older `order`.
    order.store(stamp.into(), Ordering::Relaxed);
    stamp
}

/// Receiver of a lane: how long ago the news with `stamp` came, by an `order` read after they were collected. Right
/// among the 254 latest news of a lane: a scan seldom finds more, and the order is all that is lost then.
#[inline(always)]
#[must_use]
pub fn age(order: u32, stamp: u8) -> u8 {
    let [newest, ..] = order.to_le_bytes();
    newest.wrapping_sub(stamp)
}

/// Receiver of a lane (SPEC 6.4): takes the news of one slot: their stamp, or 0. If not 0, look at the slot *after* this
/// returns.
#[inline(always)]
#[must_use]
pub fn collect(news: &AtomicU8) -> u8 {
    // Relaxed: a plain read keeps a scan of quiet slots free of locked instructions.
    // AcqRel: Acquire pairs with the Release in `post`. The swap stores before the look that follows it loads, so a
    // publication that this look misses is posted after the swap and sets the byte again.
    if news.load(Ordering::Relaxed) == 0 { 0 } else { news.swap(0, Ordering::AcqRel) }
}
