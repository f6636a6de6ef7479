//! One direction of a pipe or socket pair: a byte ring that stands in for the kernel's object while both sides are at work.
//!
//! The kernel's object is the truth, and everything that sleeps, sleeps there. While the mode is [`RING`] the object is
//! empty and nobody is in a call on it: all bytes under way are in the ring. The mode changes under both locks:
//!
//! * to [`RING`] only when every process that holds an end has agreed ([`Channel::all_agree`]), the object is empty, and nobody is
//!   in a call on it (`busy`);
//! * back to [`KERNEL`] at any time: what is in the ring moves into the object, which is empty and has as much room.
//!
//! So the bytes stay in order without marks in either place, and end of file, hang-up, `EPIPE`, signals, timeouts and cancellation are
//! the kernel's own: whoever would have to wait for long goes back to the kernel first.
//!
//! `unsafe` is allowed here: copies between the ring and the application's buffers.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::biased::Biased;
use crate::buffers::{Buffers, Cursor};
use crate::overlay::arena;
use crate::sys;

/// Bytes of the ring: what a pipe takes before it is full (pipe(7)).
pub const CAPACITY: usize = 65_536;
/// Writes up to this are all or nothing (pipe(7), `PIPE_BUF`).
pub const ATOMIC_BYTES: usize = 4096;
/// A pipe's room comes back in pages.
const PAGE: u64 = 4096;

/// [`Channel::mode`]: everything goes through the kernel, for now.
pub const KERNEL: u32 = 0;
/// [`Channel::mode`]: everything goes through the ring.
pub const RING: u32 = 1;
/// [`Channel::mode`]: everything goes through the kernel, for ever.
pub const NEVER: u32 = 2;

/// Reads through the kernel before the ring is tried (again): at first, and at most.
const PATIENCE_MIN: u32 = 16;
const PATIENCE_MAX: u32 = 1 << 20;
/// Calls that make a stay in the ring worth its while.
const WORTH_CALLS: u32 = 256;
/// A writer makes sure that somebody still reads this often, in [`sys::ticks`]: every 10 to 20 µs.
const LOOK_TICKS: u64 = 40_000;

/// Longest time that a reader stays away from what writers tell, in pauses of the processor (34 ns each on the machine of FACTS.md).
const PACE_MAX: u32 = 64;

/// A writer that has not written for so long, in [`sys::ticks`], looks how far readers have come: one to two microseconds.
const PAUSE_TICKS: u64 = 4_000;
/// Messages that a look should find.
const FEW: usize = 8;

/// Which end of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Role {
    /// Takes bytes out.
    Reader = 0,
    /// Puts bytes in.
    Writer = 1,
}

impl Role {
    /// One process in a word that counts both roles' processes.
    const fn unit(self) -> u32 {
        match self {
            Role::Reader => 1,
            Role::Writer => 1 << 16,
        }
    }
}

/// What the processes of a family share about one direction. Zero is the fresh state.
///
/// A pair of cache lines, since processors fetch them so, for each use: what only writers touch, what they tell readers, the same of
/// readers, and what rarely changes. A stream costs a line for what is told, and that only when what was seen before is used up.
#[repr(C, align(128))]
pub struct Channel {
    /// Held while writing to the ring, and while the mode changes.
    tx: Biased,
    /// Writers in a call on the kernel's object.
    busy_writers: AtomicU32,
    pad0: AtomicU32,
    /// When a writer last saw a reader, in ticks. Under `tx`.
    looked: AtomicU64,
    /// `head` and `emptied` as a writer last saw them. Under `tx`.
    head_seen: AtomicU64,
    origin: AtomicU64,
    /// When a writer last wrote, in ticks. Under `tx`.
    wrote: AtomicU64,
    pad1: [AtomicU64; 8],
    /// Bytes ever written to the ring. Under `tx`.
    tail: AtomicU64,
    pad2: [AtomicU64; 15],
    /// Held while reading from the ring, and (after `tx`) while the mode changes.
    rx: Biased,
    /// Readers in a call on the kernel's object.
    busy_readers: AtomicU32,
    /// Reads through the kernel since the ring was left.
    score: AtomicU32,
    /// Calls served by the ring since it was entered.
    served: AtomicU32,
    pad3: AtomicU32,
    /// `tail` as a reader last saw it: not before `head`. Under `rx`.
    tail_seen: AtomicU64,
    /// How long a reader stays away from `tail` when it has seen to its end, in pauses of the processor. Under `rx`.
    pace: AtomicU32,
    /// `served` at the last long wait of either side.
    waited_at: AtomicU32,
    pad4: [AtomicU32; 18],
    /// Bytes ever read from the ring. Under `rx`.
    head: AtomicU64,
    /// Where pages begin: `head` when a reader last saw the ring empty, as a pipe's next write begins a page then. Under `rx`.
    emptied: AtomicU64,
    pad5: [AtomicU64; 14],
    /// Changes under `tx` and `rx`.
    mode: AtomicU32,
    /// Processes that hold an end: readers in the low half, writers in the high half.
    holders: AtomicU32,
    /// Those of `holders` that have agreed to use the ring; never more.
    agreed: AtomicU32,
    /// `score` from which readers want the ring.
    patience: AtomicU32,
    /// Non-zero: a reader wants the ring, and waits a moment for a writer that comes.
    wanted: AtomicU32,
    /// Changes each time the place is used anew.
    generation: AtomicU32,
    used: AtomicU32,
    /// Its place in the arena.
    index: AtomicU32,
    pad6: [AtomicU64; 12],
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Channel>() == 640);
    assert!(offset_of!(Channel, tail) == 128 && offset_of!(Channel, rx) == 256);
    assert!(offset_of!(Channel, head) == 384 && offset_of!(Channel, mode) == 512);
};

/// A call on the kernel's object is under way, until dropped: the mode does not become [`RING`].
pub struct Busy {
    word: &'static AtomicU32,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.word.fetch_sub(1, Ordering::Release);
    }
}

/// How a ring write went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// All of it is in the ring.
    All,
    /// The ring is full.
    Full,
    /// Not possible now: the mode is another, or nobody reads any more.
    Kernel,
}

impl Channel {
    /// Claims the place for a new object with one reading and one writing process. False: it is in use.
    pub fn claim(&self, index: u32) -> bool {
        // Acquire: pairs with the Release in `let_go`.
        if self.used.load(Ordering::Relaxed) != 0
            || self.used.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            return false;
        }
        self.tx.reset();
        self.rx.reset();
        for word in [&self.tail, &self.head, &self.looked, &self.wrote] {
            word.store(0, Ordering::Relaxed);
        }
        self.is_emptied_at(0);
        for word in [
            &self.busy_readers,
            &self.busy_writers,
            &self.score,
            &self.served,
            &self.agreed,
            &self.wanted,
            &self.pace,
        ] {
            word.store(0, Ordering::Relaxed);
        }
        self.index.store(index, Ordering::Relaxed);
        self.patience.store(PATIENCE_MIN, Ordering::Relaxed);
        self.holders.store(Role::Reader.unit() + Role::Writer.unit(), Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Relaxed);
        self.mode.store(KERNEL, Ordering::Release);
        true
    }

    /// Its place in the arena.
    pub fn index(&self) -> u32 {
        self.index.load(Ordering::Relaxed)
    }

    /// Which use of the place this is.
    #[inline(always)]
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    /// [`KERNEL`], [`RING`] or [`NEVER`]. Anything but [`NEVER`] is a hint without a lock or [`Busy`].
    #[inline(always)]
    pub fn mode(&self) -> u32 {
        self.mode.load(Ordering::Relaxed)
    }

    /// One more process holds an end.
    pub fn hold(&self, role: Role) {
        self.holders.fetch_add(role.unit(), Ordering::AcqRel);
    }

    /// One process less. True: that was the last of all, and the place is free again.
    pub fn let_go(&self, role: Role) -> bool {
        // AcqRel: who frees sees what the others did.
        if self.holders.fetch_sub(role.unit(), Ordering::AcqRel) != role.unit() {
            return false;
        }
        let was_used = self.tail.load(Ordering::Relaxed) != 0;
        self.generation.fetch_add(1, Ordering::Relaxed);
        self.mode.store(NEVER, Ordering::Relaxed);
        if was_used {
            arena::give_back(self);
        }
        self.used.store(0, Ordering::Release);
        true
    }

    /// No process of the family that we know of holds that end. A hint: the kernel knows.
    #[inline(always)]
    pub fn is_deserted(&self, role: Role) -> bool {
        let holders = self.holders.load(Ordering::Relaxed);
        match role {
            Role::Reader => holders & 0xffff == 0,
            Role::Writer => holders >> 16 == 0,
        }
    }

    /// A process that holds an end agrees: it reads or writes with our calls only.
    pub fn agree(&self, role: Role) {
        self.agreed.fetch_add(role.unit(), Ordering::AcqRel);
    }

    /// It does not any more. Before it lets go, so that there are never more agreed than held.
    pub fn disagree(&self, role: Role) {
        self.agreed.fetch_sub(role.unit(), Ordering::AcqRel);
    }

    /// Every process that holds an end has agreed.
    pub fn all_agree(&self) -> bool {
        self.agreed.load(Ordering::Acquire) == self.holders.load(Ordering::Acquire)
    }

    /// Enters a call on the kernel's object. `None`: the bytes are in the ring.
    #[inline(always)]
    pub fn enter_kernel(&'static self, role: Role) -> Option<Busy> {
        let word = match role {
            Role::Reader => &self.busy_readers,
            Role::Writer => &self.busy_writers,
        };
        // SeqCst, all four: we count ourselves and then look at the mode; `enter_ring` sets the mode and then looks at the
        // count. One of the two sees the other.
        word.fetch_add(1, Ordering::SeqCst);
        let busy = Busy { word };
        (self.mode.load(Ordering::SeqCst) != RING).then_some(busy)
    }

    fn is_busy(&self) -> bool {
        self.busy_readers.load(Ordering::SeqCst) != 0 || self.busy_writers.load(Ordering::SeqCst) != 0
    }

    /// A reader is in a call on the kernel's object.
    pub fn reader_is_in_kernel(&self) -> bool {
        self.busy_readers.load(Ordering::Relaxed) != 0
    }

    /// A read went through the kernel. True: it is time to try the ring.
    #[inline(always)]
    pub fn is_due(&self) -> bool {
        let score = self.score.load(Ordering::Relaxed).saturating_add(1);
        self.score.store(score, Ordering::Relaxed);
        score >= self.patience.load(Ordering::Relaxed) && self.all_agree()
    }

    /// A reader wants the ring: writers wait a moment for it.
    pub fn want(&self) {
        self.wanted.store(1, Ordering::Relaxed);
    }

    /// See [`Channel::want`].
    #[inline(always)]
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) != 0
    }

    /// The ring was not worth it, or could not be had: later.
    pub fn postpone(&self) {
        self.wanted.store(0, Ordering::Relaxed);
        self.score.store(0, Ordering::Relaxed);
        let patience = self.patience.load(Ordering::Relaxed);
        self.patience.store((patience * 2).min(PATIENCE_MAX), Ordering::Relaxed);
    }

    /// Changes to the ring, if that is possible now. `is_empty`: whether the kernel's object is. True: the mode is [`RING`].
    pub fn enter_ring(&self, is_empty: impl FnOnce() -> bool) -> bool {
        if self.is_busy() || !self.all_agree() {
            return false;
        }
        let _no_signals = sys::NoSignals::new();
        let (Some(_tx), Some(_rx)) = (self.tx.take(), self.rx.take()) else { return false };
        if self.mode.load(Ordering::Relaxed) != KERNEL {
            return self.mode.load(Ordering::Relaxed) == RING;
        }
        self.mode.store(RING, Ordering::SeqCst);
        // Pairs with `enter_kernel`. Who agreed is looked at after the mode is set, too: who stops agreeing leaves the ring afterwards.
        if self.is_busy() || !self.all_agree() || !is_empty() {
            self.mode.store(KERNEL, Ordering::SeqCst);
            return false;
        }
        self.is_emptied_at(self.tail.load(Ordering::Relaxed));
        self.served.store(0, Ordering::Relaxed);
        self.waited_at.store(0, Ordering::Relaxed);
        self.wanted.store(0, Ordering::Relaxed);
        true
    }

    /// May a wait for the other side be a long one? If many calls were served since the last.
    pub fn deserves_patience(&self) -> bool {
        let served = self.served.load(Ordering::Relaxed);
        let before = self.waited_at.swap(served, Ordering::Relaxed);
        served.saturating_sub(before) >= WORTH_CALLS
    }

    /// Nothing is in the ring, and both sides know it. Under both locks.
    fn is_emptied_at(&self, position: u64) {
        for word in [&self.head_seen, &self.origin, &self.tail_seen, &self.emptied] {
            word.store(position, Ordering::Relaxed);
        }
    }

    /// Changes from the ring to `mode`. `carry` puts what is left in the ring (one or two pieces, in order) into the kernel's object, all
    /// or nothing. False: it could not, and the mode is still [`RING`].
    pub fn leave_ring(&self, mode: u32, carry: impl FnOnce(&[libc::iovec]) -> bool) -> bool {
        let _no_signals = sys::NoSignals::new();
        let (Some(_tx), Some(_rx)) = (self.tx.take(), self.rx.take()) else { return false };
        if self.mode.load(Ordering::Relaxed) != RING {
            if mode == NEVER {
                self.mode.store(NEVER, Ordering::SeqCst);
            }
            return true;
        }
        let (head, tail) = (self.head.load(Ordering::Relaxed), self.tail.load(Ordering::Relaxed));
        if head != tail {
            let Some(pieces) = self.pieces(head, tail) else { return false };
            if !carry(&pieces) {
                return false;
            }
            self.head.store(tail, Ordering::Release);
        }
        self.is_emptied_at(tail);
        let patience = self.patience.load(Ordering::Relaxed);
        let next =
            if self.served.load(Ordering::Relaxed) >= WORTH_CALLS { patience / 2 } else { patience * 2 };
        self.patience.store(next.clamp(PATIENCE_MIN, PATIENCE_MAX), Ordering::Relaxed);
        self.score.store(0, Ordering::Relaxed);
        self.mode.store(mode, Ordering::SeqCst);
        true
    }

    /// The bytes from `head` to `tail`.
    fn pieces(&self, head: u64, tail: u64) -> Option<[libc::iovec; 2]> {
        let data = arena::data(self)?;
        let (at, n) = (offset(head), used(head, tail));
        let first = n.min(CAPACITY - at);
        // SAFETY: `at` is inside the ring.
        let start = unsafe { data.add(at) };
        Some([
            libc::iovec { iov_base: start.cast(), iov_len: first },
            libc::iovec { iov_base: data.cast(), iov_len: n - first },
        ])
    }

    /// Bytes in the ring, as far as one can see without a lock.
    #[inline(always)]
    pub fn available(&self) -> usize {
        used(self.head.load(Ordering::Relaxed), self.tail.load(Ordering::Acquire))
    }

    /// Takes bytes out of the ring. `None`: the mode is another. `Some(0)`: it is empty.
    #[inline(always)]
    pub fn read(&self, to: &Buffers<'_>, at: &mut Cursor) -> Option<usize> {
        let _rx = self.rx.take()?;
        // Relaxed: the mode changes under `rx` as well.
        if self.mode.load(Ordering::Relaxed) != RING {
            return None;
        }
        let head = self.head.load(Ordering::Relaxed);
        let mut n = used(head, self.tail_seen.load(Ordering::Relaxed));
        if n < to.total() {
            self.keep_pace();
            n = used(head, self.see_tail());
            self.learn_pace(n, to.total());
        }
        if n == 0 {
            self.emptied.store(head, Ordering::Relaxed);
            return Some(0);
        }
        let data = arena::data(self)?;
        let mut from = head;
        let got = to.pieces(at, n, |buffer, len| {
            let (start, first) = (offset(from), len.min(CAPACITY - offset(from)));
            // SAFETY: both pieces are inside the ring (it has at least `len` bytes in it); the application's buffer has `len`.
            unsafe {
                copy(data.add(start), buffer, first);
                copy(data, buffer.add(first), len - first);
            }
            from = from.wrapping_add(len as u64);
        });
        let head = head.wrapping_add(got as u64);
        if got == n && self.pace.load(Ordering::Relaxed) == 0 && self.see_tail() == head {
            self.emptied.store(head, Ordering::Relaxed);
        }
        // Release: pairs with the Acquire in `write`: we are done with that part.
        self.head.store(head, Ordering::Release);
        let served = self.served.load(Ordering::Relaxed);
        self.served.store(served.saturating_add(1), Ordering::Relaxed);
        Some(got)
    }

    /// Where each look finds one message, the line that tells of them changes hands for each. A reader that looks less often finds
    /// several, and lets the writer go on meanwhile.
    #[inline(always)]
    fn keep_pace(&self) {
        for _ in 0..self.pace.load(Ordering::Relaxed).min(PACE_MAX) {
            core::hint::spin_loop();
        }
    }

    /// A look has found `n` bytes, for a read of so many: nothing if who writes is slow, a few messages if one should look later.
    #[inline(always)]
    fn learn_pace(&self, n: usize, wanted: usize) {
        let pace = self.pace.load(Ordering::Relaxed);
        let next = match n {
            0 => pace / 2,
            _ if n / FEW < wanted => pace * 2 + 1,
            _ => pace,
        };
        self.pace.store(next.min(PACE_MAX), Ordering::Relaxed);
    }

    /// Looks how far writers have come. Under `rx`.
    #[inline(always)]
    fn see_tail(&self) -> u64 {
        // Acquire: pairs with the Release in `write`: the bytes are there.
        let tail = self.tail.load(Ordering::Acquire);
        self.tail_seen.store(tail, Ordering::Relaxed);
        tail
    }

    /// Puts bytes into the ring: as many as there is room for, all of a small write or none. `reads`: whether anybody still does.
    #[inline(always)]
    pub fn write(&self, from: &Buffers<'_>, at: &mut Cursor, reads: impl FnOnce() -> bool) -> Wrote {
        let Some(_tx) = self.tx.take() else { return Wrote::Kernel };
        // Relaxed: the mode changes under `tx` as well.
        if self.mode.load(Ordering::Relaxed) != RING || self.is_deserted(Role::Reader) {
            return Wrote::Kernel;
        }
        let now = sys::ticks();
        if now.wrapping_sub(self.looked.load(Ordering::Relaxed)) > LOOK_TICKS {
            self.looked.store(now, Ordering::Relaxed);
            if !reads() {
                return Wrote::Kernel;
            }
        }
        let left = from.total() - at.done;
        let tail = self.tail.load(Ordering::Relaxed);
        let seen = (self.head_seen.load(Ordering::Relaxed), self.origin.load(Ordering::Relaxed));
        let mut room = room(seen.0, tail, seen.1);
        let before = self.wrote.load(Ordering::Relaxed);
        self.wrote.store(now, Ordering::Relaxed);
        // A reader that keeps pace does not say when it leaves the ring empty; after a pause, we see it.
        if room < left || now.wrapping_sub(before) > PAUSE_TICKS {
            room = self.see_room(tail);
        }
        if room == 0 || (left <= ATOMIC_BYTES && room < left) {
            return Wrote::Full;
        }
        let Some(data) = arena::data(self) else { return Wrote::Kernel };
        let mut to = tail;
        let n = from.pieces(at, room, |buffer, len| {
            let (start, first) = (offset(to), len.min(CAPACITY - offset(to)));
            // SAFETY: both pieces are inside the ring, in the part that the reader has given back; the application's buffer has `len`.
            unsafe {
                copy(buffer, data.add(start), first);
                copy(buffer.add(first), data, len - first);
            }
            to = to.wrapping_add(len as u64);
        });
        // Release: pairs with the Acquire in `read`.
        self.tail.store(tail.wrapping_add(n as u64), Ordering::Release);
        if n == left { Wrote::All } else { Wrote::Full }
    }

    /// Looks how far readers have come: the room there is. Under `tx`.
    fn see_room(&self, tail: u64) -> usize {
        // Acquire: pairs with the Release in `read`: they are done with that part, and `emptied` is of then or later.
        let head = self.head.load(Ordering::Acquire);
        let emptied = self.emptied.load(Ordering::Relaxed);
        let origin = if head == tail { tail } else { emptied.max(self.origin.load(Ordering::Relaxed)) };
        self.head_seen.store(head, Ordering::Relaxed);
        self.origin.store(origin, Ordering::Relaxed);
        room(head, tail, origin)
    }

    /// A write of `want` bytes would find room, as far as one can see without a lock.
    pub fn has_room(&self, want: usize) -> bool {
        let position = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let room = room(position(&self.head), position(&self.tail), position(&self.emptied));
        room >= want.clamp(1, ATOMIC_BYTES)
    }
}

/// Bytes between two positions; never more than the ring holds, whatever stands there.
#[inline(always)]
fn used(head: u64, tail: u64) -> usize {
    usize::try_from(tail.wrapping_sub(head)).unwrap_or(0).min(CAPACITY)
}

/// Where a position is in the ring.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)] // below CAPACITY
fn offset(position: u64) -> usize {
    (position % CAPACITY as u64) as usize
}

/// Bytes that may be written: a page that is not read to its end is still in use, as in a pipe.
#[inline(always)]
fn room(head: u64, tail: u64, origin: u64) -> usize {
    if head == tail {
        return CAPACITY;
    }
    let page = head.wrapping_sub(head.wrapping_sub(origin) % PAGE);
    CAPACITY.saturating_sub(usize::try_from(tail.wrapping_sub(page)).unwrap_or(CAPACITY))
}

/// memcpy with the smallest size inline.
///
/// # Safety
/// As for `core::ptr::copy_nonoverlapping`.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    if len == 8 {
        // SAFETY: 8 bytes are readable and writable (contract); unaligned access is asked for.
        unsafe { to.cast::<u64>().write_unaligned(from.cast::<u64>().read_unaligned()) }
    } else if len != 0 {
        // SAFETY: contract.
        unsafe { core::ptr::copy_nonoverlapping(from, to, len) }
    }
}
