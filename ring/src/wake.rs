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

//!
//! A receiver that sleeps again and again would run a heavy barrier each time. So an announcement also asks the wakers for
//! full fences of their own ([`FENCED`]); once a heavy barrier has passed since, all wakers are known to see that, and
//! from then on sleepers fence as cheaply. A reader that does not sleep any more takes the request back ([`SleepWord::relax`]). A
//! connection that ends leaves the request to the next one in its place ([`SleepWord::retire`]), whose wakers come after it.
//!
//! `unsafe` is allowed here for the `Shared` marker only.
#![allow(unsafe_code)]

use crate::atomic::{
    AtomicU8, AtomicU32, AtomicU64, Heavy, Ordering, fence, light_barrier, store_against_rmw,
};
use crate::shared::Shared;

/// A sleeper waits on the word itself with futex(2): wake all waiters of the word.
pub const FUTEX: u32 = 1;
/// A sleeper waits in poll(2) or epoll(7): ring the bell in the word, or the segment's wire if it is [`EVERYBODY`].
pub const WIRE: u32 = 2;
/// Wakers: run a full fence between publishing and reading this word.
pub const FENCED: u32 = 4;
/// A heavy barrier has passed since [`FENCED`] was set: no waker can miss it.
pub const SETTLED: u32 = 8;
/// Both.
const ASKED: u32 = FENCED | SETTLED;
/// From here on, below [`ROUND`]: how often the fences were taken back, so that nobody settles a later request for them.
const RELAXED: u32 = 16;
/// The other bits count the claims, so that a futex sleeper's value is not mistaken for a later one (SPEC 6.3).
const ROUND: u32 = 1 << 18;

/// The bell of several sleepers, or of one that has none: the wire, which all of a side hear.
pub const EVERYBODY: u32 = 0;

/// In front of the number, in a bell's name.
const BELL: [u8; 16] = *b"ipc-direct/bell/";

/// The abstract name of the datagram socket that is bell `number` (SPEC 6.8): the number in digits from `a` to `p`.
#[must_use]
pub fn bell_name(number: u32) -> [u8; BELL.len() + 8] {
    let mut name = [0; BELL.len() + 8];
    let digits = (0..8).map(|i| b'a' + u8::try_from(number >> (28 - 4 * i) & 0xf).unwrap_or(0));
    for (to, from) in name.iter_mut().zip(BELL.into_iter().chain(digits)) {
        *to = from;
    }
    name
}

/// A sleep word (SPEC 6.3): in the upper half the bits above, and a count; in the lower half the bell of who waits in poll(2)
/// or epoll(7). A futex sleeper waits on the upper half.
#[repr(transparent)]
pub struct SleepWord(AtomicU64);
// SAFETY: an atomic, repr(transparent), any bit pattern valid.
unsafe impl Shared for SleepWord {}

/// Bytes from a sleep word's address to that of its upper half.
pub const FUTEX_OFFSET: usize = if cfg!(target_endian = "little") { 4 } else { 0 };

/// A sleep word's value after an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced(u64);

/// What a waker has claimed: whom it must wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimed(u64);

#[allow(clippy::cast_possible_truncation)] // halves of a word
const fn halves(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

const fn word_of(bits: u32, bell: u32) -> u64 {
    (bits as u64) << 32 | bell as u64
}

impl Announced {
    /// Wakers are known to fence: so may the sleeper, instead of the heavy barrier.
    #[must_use]
    pub fn is_settled(self) -> bool {
        halves(self.0).0 & SETTLED != 0
    }

    /// What a futex sleeper finds in the upper half as long as nobody has claimed anything.
    #[must_use]
    pub fn futex_value(self) -> u32 {
        halves(self.0).0
    }
}

impl Claimed {
    /// Nobody.
    pub const NONE: Claimed = Claimed(0);

    /// [`FUTEX`] and [`WIRE`], as far as they were announced.
    #[must_use]
    pub fn how(self) -> u32 {
        halves(self.0).0 & (FUTEX | WIRE)
    }

    /// The bell to be rung, if any; [`EVERYBODY`]: the wire.
    #[must_use]
    pub fn bell(self) -> Option<u32> {
        let (bits, bell) = halves(self.0);
        (bits & WIRE != 0).then_some(bell)
    }
}

impl SleepWord {
    /// Nobody sleeps.
    #[must_use]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        SleepWord(AtomicU64::new(0))
    }

    /// As another connection left it: nobody of this one sleeps. If its wakers were fencing, so do those of this one, who can't have
    /// seen the word without [`FENCED`].
    pub fn reset(&self) {
        // Relaxed: a waker that reads it before or after does the same.
        self.change(Ordering::Relaxed, |bits, _| {
            Some((if bits & ASKED == ASKED { ASKED } else { 0 }, EVERYBODY))
        });
    }

    /// The sleeper's side of a connection is done with it: the next one's wakers, who hear of their connection later, fence from the beginning.
    pub fn retire(&self) {
        // Relaxed: ordered by what tells the others that the place is free.
        self.0.store(word_of(ASKED, EVERYBODY), Ordering::Relaxed);
    }

    /// [`FUTEX`] and [`WIRE`], as far as they are announced: for people, and for models of futex(2).
    #[must_use]
    pub fn bits(&self) -> u32 {
        halves(self.0.load(Ordering::SeqCst)).0
    }

    /// Where the upper half is: what a futex sleeper waits on.
    #[must_use]
    pub fn futex_address(&self) -> *const u32 {
        core::ptr::from_ref(self).cast::<u8>().wrapping_add(FUTEX_OFFSET).cast()
    }

    /// Changes the word by `change`; the new value. `None` from it leaves the word alone.
    fn change(&self, order: Ordering, change: impl Fn(u32, u32) -> Option<(u32, u32)>) -> Option<u64> {
        let mut before = self.0.load(Ordering::Relaxed);
        loop {
            let (bits, bell) = halves(before);
            let (bits, bell) = change(bits, bell)?;
            let after = word_of(bits, bell);
            match self.0.compare_exchange(before, after, order, Ordering::Relaxed) {
                Ok(_) => return Some(after),
                Err(now) => before = now,
            }
        }
    }

    /// Sleeper, before its barrier: announces how it sleeps ([`FUTEX`], [`WIRE`]); `bell`: its own, for the latter.
    pub fn announce(&self, how: u32, bell: u32) -> Announced {
        // Relaxed: ordered against the second look by the barrier that follows.
        let after = self.change(Ordering::Relaxed, |bits, others| {
            let bell = match (how & WIRE != 0, bits & WIRE != 0) {
                (false, _) => others,
                (true, false) => bell,
                (true, true) if others == bell => bell,
                (true, true) => EVERYBODY,
            };
            Some((bits | how | FENCED, bell))
        });
        Announced(after.unwrap_or_default())
    }

    /// Sleeper, after a heavy barrier that followed the announcement: later ones need none. What a futex sleeper waits for.
    pub fn settle(&self, announced: Announced) -> Announced {
        let before = announced.futex_value();
        // The same count: nobody has taken the request for fences back since, so it is the one that the barrier made known.
        let same = |bits: u32| bits & FENCED != 0 && bits % ROUND / RELAXED == before % ROUND / RELAXED;
        // Release: who reads the bit is behind the barrier, too.
        let settled =
            self.change(Ordering::Release, |bits, bell| same(bits).then_some((bits | SETTLED, bell)));
        // Claimed since: what was announced must not be found any more.
        settled.map(Announced).filter(|now| now.futex_value() / ROUND == before / ROUND).unwrap_or(announced)
    }

    /// Sleeper with one word: announces, and runs the barrier that is due. After it, the caller looks again.
    pub fn announce_and_fence(&self, how: u32, bell: u32, heavy: &impl Heavy) -> Announced {
        let announced = self.announce(how, bell);
        if announced.is_settled() {
            // Acquire: behind the barrier of who has settled it. SeqCst: pairs with the waker's fence in `claim_announced`.
            fence(Ordering::SeqCst);
            announced
        } else {
            heavy.heavy_barrier();
            self.settle(announced)
        }
    }

    /// Sleeper's side, after it has set a watch beside this word: if wakers fence before they look at that, so does this, and no barrier
    /// is needed (SPEC 6.7.5). False: a heavy barrier is. After it, the caller looks at the slot.
    #[must_use]
    pub fn fence_if_settled(&self) -> bool {
        // Release, with a store: pairs with the Acquire of a waker who finds the fences taken back, which stands behind this in the word: so
        // it finds the watch. Acquire: behind the barrier of who has settled it.
        let (bits, _) = halves(self.0.fetch_or(0, Ordering::AcqRel));
        if bits & ASKED != ASKED {
            return false;
        }
        // SeqCst: pairs with the waker's in `claim_announced`, behind which it reads the watch.
        fence(Ordering::SeqCst);
        true
    }

    /// Waker, after publishing and a [`light_barrier`]: might somebody sleep? For looking at several words of one line first. If so, the
    /// watch is to be read (again) after [`SleepWord::sleepers`].
    #[inline(always)]
    #[must_use]
    pub fn is_announced(&self) -> bool {
        // The read is ordered after the publication by the barrier pair. Acquire: pairs with the Release in `fence_if_settled`.
        halves(self.0.load(Ordering::Acquire)).0 & (FUTEX | WIRE | FENCED) != 0
    }

    /// Somebody has announced that it sleeps.
    #[must_use]
    pub fn is_sleeping(&self) -> bool {
        halves(self.0.load(Ordering::Relaxed)).0 & (FUTEX | WIRE) != 0
    }

    /// Wakers are asked for fences.
    #[inline(always)]
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        // Acquire: as in `is_announced`.
        halves(self.0.load(Ordering::Acquire)).0 & FENCED != 0
    }

    /// Waker, after publishing: whom to wake. Of several wakers exactly one is told of an announcement, and must wake.
    #[inline(always)]
    #[must_use]
    pub fn sleepers(&self) -> Claimed {
        light_barrier();
        if self.is_announced() { self.claim_announced() } else { Claimed::NONE }
    }

    /// [`SleepWord::sleepers`] without the light barrier: right where the word is known to be settled.
    #[cold]
    #[must_use]
    pub fn claim_announced(&self) -> Claimed {
        if self.is_fenced() {
            // SeqCst: the publication is before, the next read behind it; a sleeper that knows of this has its announcement
            // before its own fence and its second look behind that.
            fence(Ordering::SeqCst);
        }
        if !self.is_sleeping() {
            return Claimed::NONE;
        }
        // Two steps, in this order: a futex sleeper that looked before the publication holds a value with the old count,
        // and does not fall asleep even if somebody else announces again after the second step. Who announces between
        // the two looks afterwards, and finds the publication.
        // AcqRel: a sleeper that reads the new count sees the publication; the wake-up itself stays after both.
        self.0.fetch_add(word_of(ROUND, 0), Ordering::AcqRel);
        Claimed(self.0.fetch_and(!word_of(FUTEX | WIRE, 0), Ordering::AcqRel))
    }

    /// Sleeper's side, awake for some time: wakers need not fence any more, unless somebody else sleeps.
    #[cold]
    pub fn relax(&self) {
        // Counted, so that nobody settles what was taken back. Relaxed: a waker that reads the word without the request, and so
        // does not fence, reads every announcement that counted on it, because that came earlier in the same word.
        self.change(Ordering::Relaxed, |bits, bell| {
            let asleep = bits & (FUTEX | WIRE) != 0 || bits & FENCED == 0;
            let count = bits.wrapping_add(RELAXED) & (ROUND - RELAXED);
            (!asleep).then_some((bits & !(ROUND - 1) | count, bell))
        });
    }
}

/// In a watch word, beside the lane: ring the wire for each publication, whoever sleeps (SPEC 6.4).
pub const RING_EACH: u32 = 1 << 31;
/// In `rx_watch`: ring the wire with an urgent byte for each urgent record.
pub const RING_URGENT: u32 = 1 << 30;
/// In `rx_watch`: leave the time of each publication in [`crate::segment::Direction::sent_at_ns`].
pub const STAMP: u32 = 1 << 29;
const WISHES: u32 = RING_EACH | RING_URGENT | STAMP;

/// The lane in a watch word, plus one; 0: none.
#[must_use]
pub fn lane(watch: u32) -> u32 {
    watch & !WISHES
}

/// Changes the lane in a watch word (plus one; 0: none) and leaves the rest. Returns the lane that was there.
pub fn set_lane(watch: &AtomicU32, lane_plus_one: u32) -> u32 {
    let mut before = watch.load(Ordering::Relaxed);
    // AcqRel: as the swap of a word that the other side may take.
    while let Err(now) =
        watch.compare_exchange(before, before & WISHES | lane_plus_one, Ordering::AcqRel, Ordering::Relaxed)
    {
        before = now;
    }
    lane(before)
}

/// Waker of a lane (SPEC 6.4): after publishing, tells the receiver that a slot has news. Returns who sleeps on
/// the lane, as [`SleepWord::sleepers`] does. `stamp`, not 0, is the news' place in the order of arrival ([`stamp`]).
///
/// The byte is stored even if it is set already: what is read there could be older than the receiver's look.
#[inline(always)]
#[must_use]
pub fn post(news: &AtomicU8, stamp: u8, sleeping: &SleepWord) -> Claimed {
    // Release: pairs with the Acquire in `collect`: who takes the news sees the publication before it.
    store_against_rmw(news, stamp, Ordering::Release);
    sleeping.sleepers()
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
