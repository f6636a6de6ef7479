//! What stands behind a descriptor, as this process sees it. Fork copies these, as it copies descriptors.
//!
//! `unsafe` is allowed here: pointers to mapped memory become references under the rule stated at [`Handle::stream`].
#![allow(unsafe_code)]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use ring::msg::ConnId;
use ring::segment::Direction;
use ring::stats::{Reason, SOCKETS_MAX, SocketState};
use ring::stream::RingBytes;

use crate::holds::{self, Noted};
use crate::places::Places;
use crate::sock::{Sock, modes};
use crate::{process, socket, stats};

/// Handles of one process.
pub const HANDLES_MAX: usize = SOCKETS_MAX;

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Not in use.
    Free = 0,
    /// A socket that only the kernel serves (so far).
    Kernel = 1,
    /// A listener, in both worlds.
    Listener = 2,
    /// A connection in user space.
    Stream = 3,
    /// An epoll instance.
    Epoll = 4,
    /// An end of a pipe that a ring may be laid over ([`crate::overlay`]).
    Overlay = 5,
}

/// See the module.
#[repr(C, align(64))]
pub struct Handle {
    kind: AtomicU32,
    /// Descriptors of this process, plus calls under way ([`Handle::pin`]).
    refs: AtomicU32,
    /// Changes each time the place is used anew.
    pub incarnation: AtomicU32,
    /// `socket(2)` domain in the low half, type in the high half.
    pub family_type: AtomicU32,
    sock: AtomicPtr<Sock>,
    out_dir: AtomicPtr<Direction>,
    in_dir: AtomicPtr<Direction>,
    out_ring: AtomicPtr<u8>,
    in_ring: AtomicPtr<u8>,
    /// Stream: its connection id. Kernel socket: that of the claimed offer, or 0.
    pub conn: AtomicU64,
    /// Stream: bytes of either ring.
    ring_bytes: AtomicUsize,
    /// Stream: index of the mapped segment in [`crate::segments`]. Listener: the coordinator's number for it, 0: none.
    /// Epoll: index of the instance.
    pub place: AtomicU32,
    /// Stream: our side, 0 or 1.
    pub side: AtomicU32,
    /// First epoll registration plus one. Under the lock of [`crate::epoll`].
    pub regs: AtomicU32,
    /// Listener: non-zero if connections may wait at the coordinator. Epoll: registrations of ours in it. Young: calls under way.
    pub ready: AtomicU32,
    /// Listener: accepts so far, so that the kernel's queue gets its turn. Young: calls so far. Of one that is
    /// [`touched::COMMON`]: its face.
    pub turns: AtomicU32,
    /// How many of `refs` are calls under way: a forked child has none of them.
    pins: AtomicU32,
    /// Kernel socket, stream: options that were set, as in [`Sock::options`].
    pub options: AtomicU64,
    /// [`touched`] bits: what the application did to a kernel socket, so that we need not ask the kernel.
    pub touched: AtomicU32,
    /// Stream, listener: [`process::epoch`] that it comes from. Of another one, its numbers mean nothing to the coordinator.
    pub epoch: AtomicU32,
    /// Inode of its descriptors, 0 while nobody has asked: see [`crate::leave`].
    pub inode: AtomicU64,
    /// A descriptor of ours plus one; 0: none. Listener, set: for calls that wait on it when the application has closed its own. Stream:
    /// bound to its port ([`crate::ports`]).
    pub kept: AtomicI32,
    /// Of one that is [`touched::COMMON`]: options that its file does not have yet ([`crate::lazy`]).
    pub lazy: AtomicU32,
}

/// Bits of [`Handle::touched`].
pub mod touched {
    /// An option was set that concerns us: see [`crate::options`].
    pub const OPTIONS: u32 = 1;
    /// It is bound.
    pub const BOUND: u32 = 2;
    /// The kernel connected it, or tries to.
    pub const CONNECTED: u32 = 4;
    /// An option was set that only the kernel can serve.
    pub const KERNEL_ONLY: u32 = 8;
    /// A future child gets it by a file action of posix_spawn(3).
    pub const SPAWNED: u32 = 16;
    /// A vfork child has closed or duplicated descriptors of it: the table does not say which it has.
    pub const MOVED: u32 = 32;
    /// A foreign program is about to inherit it.
    pub const LEAVES: u32 = 64;
    /// It was shared by fork before it was connected or listening.
    pub const SHARED: u32 = 128;
    /// Whom to signal was set, or `O_ASYNC`: see [`crate::arrivals`].
    pub const SIGNALS: u32 = 256;
    /// A listener that a foreign program accepts on, too.
    pub const WITHDRAWN: u32 = 512;
    /// A connection of `AF_UNIX` that may leave the kernel: see [`crate::unix`], also for what follows.
    pub const YOUNG: u32 = 1024;
    /// It was accepted.
    pub const ACCEPTED: u32 = 2048;
    /// It may be claimed.
    pub const OFFERED: u32 = 4096;
    /// `AF_UNIX`: it listens.
    pub const LISTENS: u32 = 8192;
    /// A thread is connecting it through the coordinator: see [`crate::connect::settled`].
    pub const CONNECTING: u32 = 16384;
    /// `AF_UNIX`: one end of a socketpair(2).
    pub const PAIR: u32 = 32768;
    /// A socket whose placeholder is others', too: see [`crate::faces`].
    pub const COMMON: u32 = 65536;
    /// Its descriptor in the kernel may have a pending error, of a connection that was disconnected.
    pub const ERROR: u32 = 131072;
    /// It was opened without an answer, and it is not known that the coordinator has heard of it: see [`crate::unaccepted`].
    pub const UNHEARD: u32 = 262_144;
    /// A kernel socket that may be another thing by the time the kernel is asked.
    pub const MOVES: u32 = YOUNG | CONNECTING;
}

static HANDLES: [Handle; HANDLES_MAX] = [const { Handle::new() }; HANDLES_MAX];
static PLACES: Places = Places::new(HANDLES_MAX);

const _: () = assert!(size_of::<Handle>() == 128);

/// A connection in user space, ready for use.
#[derive(Clone, Copy)]
pub struct Stream {
    /// Positions, locks, flags.
    pub sock: &'static Sock,
    /// We write.
    pub out_dir: &'static Direction,
    /// We read.
    pub in_dir: &'static Direction,
    out_ring: NonNull<u8>,
    in_ring: NonNull<u8>,
    /// Bytes of either ring.
    ring_bytes: usize,
    /// Which connection.
    pub conn: ConnId,
}

/// Everything that [`Handle::become_stream`] publishes.
pub struct NewStream {
    /// Shared state.
    pub sock: &'static Sock,
    /// Which connection.
    pub conn: ConnId,
    /// Index of the mapped segment.
    pub segment: u32,
    /// Ours.
    pub side: u32,
    /// Written by us, written by the peer.
    pub dirs: [&'static Direction; 2],
    /// Written by us, written by the peer.
    pub rings: [RingBytes; 2],
}

impl Handle {
    const fn new() -> Self {
        Handle {
            kind: AtomicU32::new(0),
            refs: AtomicU32::new(0),
            incarnation: AtomicU32::new(0),
            family_type: AtomicU32::new(0),
            sock: AtomicPtr::new(core::ptr::null_mut()),
            out_dir: AtomicPtr::new(core::ptr::null_mut()),
            in_dir: AtomicPtr::new(core::ptr::null_mut()),
            out_ring: AtomicPtr::new(core::ptr::null_mut()),
            in_ring: AtomicPtr::new(core::ptr::null_mut()),
            conn: AtomicU64::new(0),
            ring_bytes: AtomicUsize::new(0),
            place: AtomicU32::new(0),
            side: AtomicU32::new(0),
            regs: AtomicU32::new(0),
            ready: AtomicU32::new(0),
            turns: AtomicU32::new(0),
            pins: AtomicU32::new(0),
            options: AtomicU64::new(0),
            touched: AtomicU32::new(0),
            epoch: AtomicU32::new(0),
            inode: AtomicU64::new(0),
            kept: AtomicI32::new(0),
            lazy: AtomicU32::new(0),
        }
    }

    /// Its number: also the number of its entry in the stats memory.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // below HANDLES_MAX
    pub fn index(&self) -> u32 {
        let offset = core::ptr::from_ref(self) as usize - HANDLES.as_ptr() as usize;
        (offset / size_of::<Handle>()) as u32
    }

    /// What it is now.
    #[inline(always)]
    #[must_use]
    pub fn kind(&self) -> Kind {
        // Acquire: pairs with the Release in `set_kind`: the fields of that kind are there.
        match self.kind.load(Ordering::Acquire) {
            1 => Kind::Kernel,
            2 => Kind::Listener,
            3 => Kind::Stream,
            4 => Kind::Epoll,
            5 => Kind::Overlay,
            _ => Kind::Free,
        }
    }

    /// Changes what it is; the fields of the new kind are already in place.
    pub fn set_kind(&self, kind: Kind) {
        self.kind.store(kind as u32, Ordering::Release);
    }

    /// The shared state of a stream or listener.
    #[inline(always)]
    #[must_use]
    pub fn sock(&self) -> Option<&'static Sock> {
        // SAFETY: null, or a place in an arena, which is never unmapped.
        unsafe { self.sock.load(Ordering::Relaxed).as_ref() }
    }

    /// Known to the coordinator that we are attached to.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.epoch.load(Ordering::Relaxed) == process::epoch()
    }

    /// Attaches the shared state of a listener.
    pub fn set_sock(&self, sock: &'static Sock) {
        self.sock.store(core::ptr::from_ref(sock).cast_mut(), Ordering::Relaxed);
    }

    /// The connection, if it is one.
    ///
    /// Rule: the directions and rings may be touched only while the connection cannot be torn down: under `sock.tx` or
    /// `sock.rx` with [`Stream::current`] checked after taking it, under the lock of [`crate::epoll`] if asked for under it,
    /// or if asked for while pinned ([`Handle::pin`]).
    #[inline(always)]
    #[must_use]
    pub fn stream(&self) -> Option<Stream> {
        let conn = ConnId(self.conn.load(Ordering::Relaxed));
        if self.kind() != Kind::Stream || conn.0 == 0 {
            return None;
        }
        // SAFETY: set together before the kind became Stream; arenas are never unmapped, and segments stay mapped while
        // the rule above is kept.
        unsafe {
            Some(Stream {
                sock: self.sock.load(Ordering::Relaxed).as_ref()?,
                out_dir: self.out_dir.load(Ordering::Relaxed).as_ref()?,
                in_dir: self.in_dir.load(Ordering::Relaxed).as_ref()?,
                out_ring: NonNull::new(self.out_ring.load(Ordering::Relaxed))?,
                in_ring: NonNull::new(self.in_ring.load(Ordering::Relaxed))?,
                ring_bytes: self.ring_bytes.load(Ordering::Relaxed),
                conn,
            })
        }
    }

    /// Makes it a connection.
    pub fn become_stream(&self, new: &NewStream) {
        if !self.was(touched::COMMON) {
            self.turns.store(0, Ordering::Relaxed);
        }
        let [out_dir, in_dir] = new.dirs;
        let rings @ [out_ring, _] = new.rings.map(|ring| ring.ring());
        let ring_bytes = out_ring.len();
        let [out_ring, in_ring] = rings.map(|ring| ring.base().as_ptr());
        self.set_sock(new.sock);
        self.out_dir.store(core::ptr::from_ref(out_dir).cast_mut(), Ordering::Relaxed);
        self.in_dir.store(core::ptr::from_ref(in_dir).cast_mut(), Ordering::Relaxed);
        self.out_ring.store(out_ring, Ordering::Relaxed);
        self.in_ring.store(in_ring, Ordering::Relaxed);
        self.ring_bytes.store(ring_bytes, Ordering::Relaxed);
        self.conn.store(new.conn.0, Ordering::Relaxed);
        self.place.store(new.segment, Ordering::Relaxed);
        self.side.store(new.side, Ordering::Relaxed);
        self.epoch.store(process::epoch(), Ordering::Relaxed);
        self.set_kind(Kind::Stream);
    }

    /// One more descriptor or call, unless the last one is gone already: false then.
    #[must_use]
    pub fn retain(&self) -> bool {
        let more = |n: u32| if n == 0 { None } else { n.checked_add(1) };
        self.refs.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).is_ok()
    }

    /// Keeps it from being torn down while a call uses it, as the kernel keeps a file. `None`: too late.
    #[must_use]
    pub fn pin(&self) -> Option<Pinned<'_>> {
        if !self.retain() {
            return None;
        }
        // After `refs`, and before it in `drop`: a fork in between leaves one reference too many, never one too few.
        self.pins.fetch_add(1, Ordering::AcqRel);
        Some(Pinned { handle: self, era: ERA.load(Ordering::Relaxed) })
    }

    /// After fork, in the child: the calls of the parent's threads are not ours. True if they were all that was left.
    #[must_use]
    pub fn forget_pins(&self) -> bool {
        let pins = self.pins.swap(0, Ordering::AcqRel);
        pins != 0 && self.refs.fetch_sub(pins, Ordering::AcqRel) == pins
    }

    /// Calls are under way, and of the descriptors there is one left.
    pub fn is_held_by_calls_alone(&self) -> bool {
        let pins = self.pins.load(Ordering::Acquire);
        pins != 0 && self.refs.load(Ordering::Acquire) == pins + 1
    }

    /// More than one descriptor or call holds it.
    pub fn has_others(&self) -> bool {
        self.refs.load(Ordering::Relaxed) > 1
    }

    /// One less; true if that was the last and the caller must tear it down.
    #[must_use]
    pub fn release(&self) -> bool {
        // AcqRel: whoever tears down sees what the others did with it.
        self.refs.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Back to the pool, after tear-down.
    pub fn free(&self) {
        stats::retire(self.index());
        self.sock.store(core::ptr::null_mut(), Ordering::Relaxed);
        self.set_kind(Kind::Free);
    }

    /// Notes [`touched`] bits.
    pub fn touch(&self, bits: u32) {
        self.touched.fetch_or(bits, Ordering::Relaxed);
    }

    /// Has any of these [`touched`] bits been set?
    #[must_use]
    pub fn was(&self, bits: u32) -> bool {
        self.touched.load(Ordering::Relaxed) & bits != 0
    }

    /// True for a connection or listener that the coordinator knows.
    #[must_use]
    pub fn is_in_user_space(&self) -> bool {
        matches!(self.kind(), Kind::Stream | Kind::Listener)
    }

    /// Why a kernel socket must stay one, if it must.
    #[must_use]
    pub fn kernel_only(&self) -> Option<Reason> {
        if self.was(touched::KERNEL_ONLY) {
            Some(Reason::Option)
        } else if self.was(touched::SHARED) {
            Some(Reason::Shared)
        } else {
            None
        }
    }

    /// Domain and type of the socket.
    #[must_use]
    pub fn family(&self) -> (i32, i32) {
        let v = self.family_type.load(Ordering::Relaxed);
        ((v & 0xffff).cast_signed(), (v >> 16).cast_signed())
    }

    /// True for a stream socket of `AF_UNIX`.
    #[must_use]
    pub fn is_unix(&self) -> bool {
        self.family() == (libc::AF_UNIX, libc::SOCK_STREAM)
    }

    /// True for what may become a connection or listener in user space.
    #[must_use]
    pub fn is_candidate(&self) -> bool {
        self.is_tcp() || self.is_unix()
    }

    /// True for an IPv4 or IPv6 TCP socket.
    #[must_use]
    pub fn is_tcp(&self) -> bool {
        let (domain, ty) = self.family();
        (domain == libc::AF_INET || domain == libc::AF_INET6) && ty == libc::SOCK_STREAM
    }
}

impl Stream {
    /// Where we write.
    #[inline(always)]
    #[must_use]
    pub fn out_ring(&self) -> RingBytes {
        // SAFETY: set together, and mapped as the rule of `Handle::stream` says.
        unsafe { self.out_dir.memory(self.out_ring, self.ring_bytes) }
    }

    /// Where we read.
    #[inline(always)]
    #[must_use]
    pub fn in_ring(&self) -> RingBytes {
        // SAFETY: as above.
        unsafe { self.in_dir.memory(self.in_ring, self.ring_bytes) }
    }

    /// It is one of `AF_UNIX`, which ends in other ways than TCP.
    #[inline(always)]
    #[must_use]
    pub fn is_unix(&self) -> bool {
        self.sock.modes.load(Ordering::Relaxed) & modes::UNIX != 0
    }

    /// After taking one of the locks: is this still the connection that was looked up? Whoever tears it down says no under both.
    #[inline(always)]
    #[must_use]
    pub fn current(&self, h: &Handle) -> bool {
        h.conn.load(Ordering::Relaxed) == self.conn.0
    }
}

/// Counts the forks that led to this process: pins of the time before are forgotten ([`Handle::forget_pins`]).
static ERA: AtomicU32 = AtomicU32::new(0);

/// The present one.
pub fn era() -> u32 {
    ERA.load(Ordering::Relaxed)
}

/// After fork, in the child.
pub fn next_era() {
    ERA.fetch_add(1, Ordering::Relaxed);
}

/// Gives back a pin that was forgotten, or one of a call that never returned: index of its handle, and the era.
pub fn unpin(index: usize, era: usize) {
    if let Some(handle) = HANDLES.get(index) {
        drop(Pinned { handle, era: u32::try_from(era).unwrap_or(0) });
    }
}

/// See [`Handle::pin`].
pub struct Pinned<'a> {
    handle: &'a Handle,
    era: u32,
}

impl Pinned<'_> {
    /// For a call that is going to sleep.
    pub fn note(&self) -> Noted {
        holds::note(unpin, [self.handle.index() as usize, self.era as usize])
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        // In a child that was forked in the middle of a call (by a signal handler) this pin is forgotten already.
        if self.era == ERA.load(Ordering::Relaxed) {
            self.handle.pins.fetch_sub(1, Ordering::AcqRel);
            socket::release(self.handle);
        }
    }
}

/// The handle of that number.
#[inline(always)]
#[must_use]
pub fn by_index(index: u32) -> Option<&'static Handle> {
    HANDLES.get(index as usize)
}

/// Every handle that may be in use.
pub fn all() -> impl Iterator<Item = &'static Handle> {
    HANDLES.iter().take(PLACES.window()).filter(|h| h.kind() != Kind::Free)
}

/// A fresh handle of `kind` with one reference; `None` if all are in use.
pub fn allocate(kind: Kind, fd: i32, domain: i32, ty: i32) -> Option<&'static Handle> {
    for at in PLACES.candidates() {
        let h = HANDLES.get(at)?;
        if h.kind.load(Ordering::Relaxed) == 0
            && h.kind.compare_exchange(0, kind as u32, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            h.incarnation.fetch_add(1, Ordering::Relaxed);
            h.pins.store(0, Ordering::Relaxed);
            h.conn.store(0, Ordering::Relaxed);
            h.refs.store(1, Ordering::Relaxed);
            h.regs.store(0, Ordering::Relaxed);
            h.ready.store(0, Ordering::Relaxed);
            h.turns.store(0, Ordering::Relaxed);
            h.options.store(0, Ordering::Relaxed);
            h.lazy.store(0, Ordering::Relaxed);
            h.touched.store(0, Ordering::Relaxed);
            h.inode.store(0, Ordering::Relaxed);
            h.kept.store(0, Ordering::Relaxed);
            let packed = (domain.cast_unsigned() & 0xffff) | ty.cast_unsigned() << 16;
            h.family_type.store(packed, Ordering::Relaxed);
            if !matches!(kind, Kind::Epoll | Kind::Overlay) {
                stats::show(h.index(), fd, packed, SocketState::Idle, Reason::None);
            }
            return Some(h);
        }
    }
    None
}
