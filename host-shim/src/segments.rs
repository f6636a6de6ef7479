//! The segments that this process has mapped, each with its end of the wire.
//!
//! A segment goes when the other group is gone (the wire hangs up) and no connection of ours uses it.
//!
//! `unsafe` is allowed here: mapping, unmapping, and views of what is mapped.
#![allow(unsafe_code)]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use ring::attach::{Call, Reply};
use ring::msg::ConnId;
pub use ring::segment::LANES;
use ring::segment::{SLOTS, Segment, Side, ring_bytes_of};
use ring::shared::Region;
use ring::stream;
use ring::wake::EVERYBODY;
use rustix::event::{PollFd, PollFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::handle::{self, Handle};
use crate::lock::Guarded;
use crate::{agent, bells, fds, process, stats, sys};

/// Rings that may wait in a wire; the kernel has room for more than 250.
const RINGS_KEPT: u64 = 64;
/// Within so long, a segment that has no connection any more is looked at once.
const LOOK_MS: u64 = 10;
/// Slots that are as well looked at one by one.
const FEW: usize = 32;
/// The side that connects.
const CLIENT: u32 = 0;
/// Segments that one process maps at a time.
pub const SEGMENTS_MAX: usize = 1024;

/// One mapped segment.
pub struct Mapped {
    /// See [`key_of`]; 0: free.
    key: AtomicU64,
    base: AtomicPtr<u8>,
    /// Bytes that are mapped there.
    bytes: AtomicUsize,
    ours: AtomicPtr<Side>,
    theirs: AtomicPtr<Side>,
    wire: AtomicI32,
    /// Connections of ours in it.
    live: AtomicU32,
    /// Non-zero: the other group is gone.
    hung_up: AtomicU32,
    /// When that was looked for last, in milliseconds of the clock.
    looked_ms: AtomicU64,
    /// One past the highest slot that we ever used: news scans end there.
    slots_used: AtomicU32,
    /// See [`Lane`].
    lanes_from: AtomicU32,
    /// Which sleepers (bit by index) have the wire in their epoll set.
    pub watched_by: AtomicU64,
    owners: [AtomicU32; SLOTS as usize],
}

static SEGMENTS: [Mapped; SEGMENTS_MAX] = [const { Mapped::new() }; SEGMENTS_MAX];
static USED: AtomicU32 = AtomicU32::new(0);
static MAPPING: Guarded<()> = Guarded::new(());

impl Mapped {
    const fn new() -> Self {
        Mapped {
            key: AtomicU64::new(0),
            base: AtomicPtr::new(core::ptr::null_mut()),
            bytes: AtomicUsize::new(0),
            ours: AtomicPtr::new(core::ptr::null_mut()),
            theirs: AtomicPtr::new(core::ptr::null_mut()),
            wire: AtomicI32::new(-1),
            live: AtomicU32::new(0),
            hung_up: AtomicU32::new(0),
            looked_ms: AtomicU64::new(0),
            slots_used: AtomicU32::new(0),
            lanes_from: AtomicU32::new(0),
            watched_by: AtomicU64::new(0),
            owners: [const { AtomicU32::new(0) }; SLOTS as usize],
        }
    }

    /// The memory, while mapped.
    pub fn segment(&self) -> Option<Segment<'static>> {
        let base = NonNull::new(self.base.load(Ordering::Acquire))?;
        // SAFETY: mapped for `bytes`, which were stored before the base; unmapped only when no connection uses it, by
        // `unmap_if_unused`, whose callers hold the locks that exclude scans.
        Segment::over(unsafe { Region::new(base, self.bytes.load(Ordering::Relaxed)) })
    }

    /// What we watch: the peer writes news there.
    #[inline(always)]
    pub fn ours(&self) -> Option<&'static Side> {
        // SAFETY: null, or inside the mapping, as `segment`.
        unsafe { self.ours.load(Ordering::Acquire).as_ref() }
    }

    /// What the peer watches: we write news there.
    #[inline(always)]
    pub fn theirs(&self) -> Option<&'static Side> {
        // SAFETY: null, or inside the mapping, as `segment`.
        unsafe { self.theirs.load(Ordering::Acquire).as_ref() }
    }

    /// None of our slots has news in `lane`, as [`Mapped::next_news`] sees it; for many slots in fewer steps. False says nothing.
    #[inline(always)]
    pub fn is_quiet(&self, lane: usize) -> bool {
        let used = self.slots_used();
        used > FEW
            && self.ours().and_then(|side| side.news.get(lane)).is_some_and(|news| none_set(news, used))
    }

    /// The first of our slots from `from` on that has news in `lane`, as far as a look without locked instructions
    /// can see: eight flags at a time.
    #[inline(always)]
    pub fn next_news(&self, lane: usize, from: usize) -> Option<usize> {
        let news = self.ours()?.news.get(lane)?;
        let used = self.slots_used();
        let mut slot = from;
        while slot < used {
            if slot.is_multiple_of(8) && slot + 8 <= news.len() {
                // SAFETY: eight flags from a multiple of 8 in an array that starts on a cache line. Other processes store
                // single bytes of it; a hint is all that this load is used for.
                let eight = unsafe { &*news.as_ptr().add(slot).cast::<AtomicU64>() }.load(Ordering::Relaxed);
                if eight == 0 {
                    slot += 8;
                    continue;
                }
            }
            if news.get(slot)?.load(Ordering::Relaxed) != 0 {
                return Some(slot);
            }
            slot += 1;
        }
        None
    }

    /// Our end of the wire.
    pub fn wire(&self) -> i32 {
        self.wire.load(Ordering::Relaxed)
    }

    /// The handle that uses `slot`, if it is this process's.
    pub fn owner(&self, slot: usize) -> Option<&'static Handle> {
        let owner = self.owners.get(slot)?.load(Ordering::Acquire);
        if owner == 0 { None } else { handle::by_index(owner - 1) }
    }

    /// Slots that a scan must look at.
    pub fn slots_used(&self) -> usize {
        self.slots_used.load(Ordering::Relaxed) as usize
    }

    /// Rings the wire: whoever sleeps on the other side in poll or epoll looks around.
    pub fn ring(&self) {
        let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
        // A full wire has unread bytes in it: the other side is awake or about to be. A broken one has nobody to wake.
        let _ = rustix::net::send(sys::borrow(self.wire()), &[1], flags);
        stats::woke();
    }

    /// Rings the bell of one sleeper on the other side; everybody's is the wire.
    pub fn ring_bell(&self, bell: u32) {
        if bell != EVERYBODY && bells::ring(bell) {
            stats::woke();
        } else {
            self.ring();
        }
    }

    /// Rings the wire with an urgent byte: the other side gets `SIGURG` if it asked the kernel for that.
    pub fn ring_urgent(&self) {
        let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
        // A kernel that has no urgent data on AF_UNIX (before 5.15) sends no signal.
        let _ = rustix::net::send(sys::borrow(self.wire()), &[1], flags | rustix::net::SendFlags::OOB);
    }

    /// Takes old rings out of the wire. Never all of them: an edge-triggered epoll set looks again when it reports an
    /// edge, so emptying the wire would take another sleeper's wake-up away (SPEC 6.6). A quarter at a time leaves some even
    /// if several processes do this at once.
    pub fn drain(&self) {
        let wire = sys::borrow(self.wire());
        let waiting = rustix::io::ioctl_fionread(wire).unwrap_or(0);
        if waiting > RINGS_KEPT {
            let mut bytes = [0u8; 256];
            let n = usize::try_from(waiting / 4).unwrap_or(0).min(bytes.len());
            let _ = rustix::net::recv(
                wire,
                bytes.get_mut(..n).unwrap_or(&mut []),
                rustix::net::RecvFlags::DONTWAIT,
            );
        }
    }

    /// Looks whether the other group is gone.
    pub fn check(&self) {
        let mut set = [PollFd::from_borrowed_fd(sys::borrow(self.wire()), PollFlags::RDHUP)];
        let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
        let ready = rustix::event::poll(&mut set, Some(&sys::timespec(core::time::Duration::ZERO)));
        if ready.is_ok_and(|n| n > 0) && set.iter().any(|p| p.revents().intersects(gone)) {
            self.hang_up();
        }
    }

    /// The other group is gone: so is the other side of every connection here.
    pub fn hang_up(&self) {
        if self.hung_up.swap(1, Ordering::AcqRel) != 0 {
            return;
        }
        for slot in 0..self.slots_used() {
            if let Some(h) = self.owner(slot) {
                crate::coordinator::peer_gone(h, crate::sock::DEAD);
            }
        }
        // Threads that were told of the hang-up, too, may have looked before all of that was stored.
        crate::wait::kick_others();
    }

    /// The connection that the segment was mapped for is in `slot`.
    pub fn enter(&self, slot: u16, handle: &Handle) {
        self.slots_used.fetch_max(u32::from(slot) + 1, Ordering::Relaxed);
        if let Some(owner) = self.owners.get(usize::from(slot)) {
            owner.store(handle.index() + 1, Ordering::Release);
        }
        if self.hung_up.load(Ordering::Acquire) != 0
            && let Some(sock) = handle.sock()
        {
            sock.dead.store(1, Ordering::Release);
        }
    }

    /// The connection in `slot` is gone, or did not come to be; so may be the segment.
    pub fn leave(&self, slot: u16) {
        if let Some(owner) = self.owners.get(usize::from(slot)) {
            owner.store(0, Ordering::Release);
        }
        if self.live.fetch_sub(1, Ordering::AcqRel) == 1 && self.is_due() {
            self.check();
            self.unmap_if_unused();
        }
    }

    /// It was not looked at for a while: who closes one connection after the other need not do that each time.
    fn is_due(&self) -> bool {
        let now_ms = u64::try_from(sys::now().as_millis()).unwrap_or(0);
        let is_due = now_ms.abs_diff(self.looked_ms.load(Ordering::Relaxed)) >= LOOK_MS;
        if is_due {
            self.looked_ms.store(now_ms, Ordering::Relaxed);
        }
        is_due || self.hung_up.load(Ordering::Relaxed) != 0
    }

    /// Gives the memory back once the other group is gone and nobody here uses it.
    pub fn unmap_if_unused(&self) {
        let Some(_mapping) = MAPPING.take() else { return };
        if self.hung_up.load(Ordering::Acquire) == 0 || self.live.load(Ordering::Acquire) != 0 {
            return;
        }
        let Some(_no_scans) = crate::epoll::exclude() else { return };
        if self.key.swap(0, Ordering::AcqRel) == 0 {
            return;
        }
        let base = self.base.swap(core::ptr::null_mut(), Ordering::AcqRel);
        self.ours.store(core::ptr::null_mut(), Ordering::Release);
        self.theirs.store(core::ptr::null_mut(), Ordering::Release);
        fds::discard(self.wire.swap(-1, Ordering::AcqRel));
        if !base.is_null() {
            // SAFETY: mapped by `map`, and nobody uses it: no connection (`live` is 0 under MAPPING) and no scan.
            let _ = unsafe { rustix::mm::munmap(base.cast(), self.bytes.load(Ordering::Relaxed)) };
        }
    }
}

/// All mapped segments with their indexes.
pub fn all() -> impl Iterator<Item = (u32, &'static Mapped)> {
    let used = USED.load(Ordering::Acquire) as usize;
    (0u32..).zip(SEGMENTS.iter().take(used)).filter(|(_, m)| m.key.load(Ordering::Acquire) != 0)
}

/// The mapped segment of that index.
#[inline(always)]
pub fn by_index(index: u32) -> Option<&'static Mapped> {
    SEGMENTS.get(index as usize)
}

/// Segment number times two plus side, plus one; above that the coordinator's incarnation: each counts segments anew.
fn key_of(number: u32, side: u32) -> u64 {
    u64::from(process::epoch()) << 32 | (u64::from(number) * 2 + u64::from(side) + 1)
}

/// The handle of a connection, on `side`, if this process has it.
pub fn find_connection(conn: ConnId, side: u32) -> Option<&'static Handle> {
    let (_, m) = find(conn.segment(), side)?;
    m.owner(usize::from(conn.slot())).filter(|h| h.conn.load(Ordering::Relaxed) == conn.0)
}

/// The other side of a connection that this process had made and has closed is closed, too, as far as the segment shows. A side whose
/// process was killed says nothing there.
pub fn is_over(conn: ConnId) -> bool {
    // Under this lock nobody unmaps it.
    let Some(_mapping) = MAPPING.take() else { return false };
    let slot = find(conn.segment(), CLIENT)
        .and_then(|(_, m)| m.segment())
        .and_then(|segment| segment.slots.get(usize::from(conn.slot())));
    slot.is_none_or(|slot| {
        let [dir, _] = &slot.directions;
        let generation = conn.generation();
        // Relaxed: nothing that the other side wrote before is looked at.
        !stream::is_open(dir, generation) || dir.reader_closed.load(Ordering::Relaxed) == generation
    })
}

/// The segment `number`, if it is mapped as `side`.
pub fn find(number: u32, side: u32) -> Option<(u32, &'static Mapped)> {
    let key = key_of(number, side);
    all().find(|(_, m)| m.key.load(Ordering::Acquire) == key)
}

/// Index of the segment `number`, mapped as `side`; asks the agent for it at first contact. It is kept for one more
/// connection of ours: the caller must [`Mapped::leave`] it.
pub fn map(number: u32, side: u32) -> Option<(u32, &'static Mapped)> {
    let key = key_of(number, side);
    // Under this lock nobody unmaps it before it is counted.
    let _mapping = MAPPING.take()?;
    let (index, mapped) = find(number, side).or_else(|| map_new(number, side, key))?;
    mapped.live.fetch_add(1, Ordering::AcqRel);
    Some((index, mapped))
}

/// Under the lock.
fn map_new(number: u32, side: u32, key: u64) -> Option<(u32, &'static Mapped)> {
    let (index, place) = (0u32..).zip(SEGMENTS.iter()).find(|(_, m)| m.key.load(Ordering::Relaxed) == 0)?;
    let answer = agent::call(Call::Segment { segment: number, side }).ok()?;
    let [memory, wire, rest @ ..] = answer.fds;
    rest.iter().for_each(|fd| sys::close(*fd));
    if answer.reply != (Reply::Segment { side }) || memory < 0 || wire < 0 {
        sys::close(memory);
        sys::close(wire);
        return None;
    }
    let mapped = map_memory(memory);
    sys::close(memory);
    let Some((base, bytes)) = mapped else {
        sys::close(wire);
        return None;
    };
    place.reset();
    place.bytes.store(bytes, Ordering::Relaxed);
    place.base.store(base.as_ptr(), Ordering::Release);
    let sides = place.segment().and_then(|s| s.side(side).zip(s.side(1 - side)));
    if let Some((ours, theirs)) = sides {
        place.ours.store(core::ptr::from_ref(ours).cast_mut(), Ordering::Release);
        place.theirs.store(core::ptr::from_ref(theirs).cast_mut(), Ordering::Release);
    }
    place.wire.store(fds::adopt(wire), Ordering::Release);
    // By the segment's number, which is the same for a program that takes over.
    place.lanes_from.store(number.wrapping_mul(5), Ordering::Relaxed);
    // Release: pairs with the Acquire of whoever finds the key.
    place.key.store(key, Ordering::Release);
    USED.fetch_max(index + 1, Ordering::AcqRel);
    Some((index, place))
}

impl Mapped {
    fn reset(&self) {
        self.live.store(0, Ordering::Relaxed);
        self.hung_up.store(0, Ordering::Relaxed);
        self.looked_ms.store(0, Ordering::Relaxed);
        self.slots_used.store(0, Ordering::Relaxed);
        self.watched_by.store(0, Ordering::Relaxed);
    }
}

/// A segment's memory, and its length.
fn map_memory(fd: i32) -> Option<(NonNull<u8>, usize)> {
    let stat = rustix::fs::fstat(sys::borrow(fd)).ok()?;
    let bytes = usize::try_from(stat.st_size).ok()?;
    ring_bytes_of(bytes)?;
    // SAFETY: a fresh mapping at an address of the kernel's choice; the file is sealed against shrinking by the agent.
    let base = unsafe {
        rustix::mm::mmap(
            core::ptr::null_mut(),
            bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED | MapFlags::NORESERVE,
            sys::borrow(fd),
            0,
        )
    }
    .ok()?;
    Some((NonNull::new(base.cast())?, bytes))
}

/// Checks every wire for a hang-up: for a thread that sleeps on a futex and was told to look around.
pub fn check_wires() {
    for (_, m) in all() {
        m.check();
    }
}

/// `fd` was a wire of ours and is the application's now: without it nobody could be woken, so its connections end.
pub fn lost(fd: i32) {
    for (_, m) in all() {
        if m.wire.compare_exchange(fd, -1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            m.hang_up();
        }
    }
}

/// After fork, in the child: no sleeper of this process watches the wires yet.
pub fn forget_sleepers() {
    for (_, m) in all() {
        m.watched_by.store(0, Ordering::Relaxed);
    }
}

/// For the fork handlers.
pub fn lock() -> &'static crate::lock::Lock {
    MAPPING.lock()
}

/// No flag of the first `used` is set: a line of them at a time.
fn none_set(news: &[AtomicU8; SLOTS as usize], used: usize) -> bool {
    const LINE: usize = 64;
    const _: () = assert!((SLOTS as usize).is_multiple_of(LINE));
    // SAFETY: the whole array, which starts on a cache line. Other processes store single bytes of it; a hint is all that these
    // loads are used for.
    let lines = unsafe { &*news.as_ptr().cast::<[[AtomicU64; LINE / 8]; SLOTS as usize / LINE]>() };
    let any =
        |line: &[AtomicU64; LINE / 8]| line.iter().fold(0, |set, word| set | word.load(Ordering::Relaxed));
    lines.iter().take(used.div_ceil(LINE)).all(|line| any(line) == 0)
}

/// Which lane of each segment is meant.
#[derive(Clone, Copy)]
pub struct Lane {
    first: usize,
    /// All bits: it is as many further as the segment says. Lines at one place of many pages would push each other out of the caches.
    spread: usize,
}

impl Lane {
    /// That of an epoll instance. Those of forked relatives, whose numbers follow each other, are different ones as far as
    /// possible, so that each is woken alone.
    pub fn of(instance: u32) -> Lane {
        Lane { first: process::id() as usize + 31 * instance as usize, spread: usize::MAX }
    }

    /// The same one in all.
    pub const fn number(lane: usize) -> Lane {
        Lane { first: lane, spread: 0 }
    }

    /// Its number in a segment.
    #[inline(always)]
    pub fn of_segment(self, m: &Mapped) -> usize {
        (self.first + (m.lanes_from.load(Ordering::Relaxed) as usize & self.spread)) % LANES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flag_is_seen_among_those_that_are_used() {
        #[repr(align(64))]
        struct News([AtomicU8; SLOTS as usize]);
        let News(news) = &News([const { AtomicU8::new(0) }; SLOTS as usize]);
        assert!(none_set(news, news.len()));
        for set in 0..news.len() {
            news[set].store(1, Ordering::Relaxed);
            for used in 0..=news.len() {
                assert!(set >= used || !none_set(news, used), "{set} of {used}");
            }
            news[set].store(0, Ordering::Relaxed);
        }
    }
}
