//! What the processes of a fork family share about one connection or listener: positions, locks, flags.
//!
//! It lives in memory that the peer cannot touch: an arena ([`crate::arenas`]) that only children and executed programs
//! inherit. Each process makes new ones in an arena of its own; inherited ones stay valid where the parent made them.
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ring::msg::Addr;
use ring::stream::{Reader, Writer};

use crate::arenas;
use crate::biased::Biased;

/// Bits of [`Sock::shut`].
pub mod shut {
    /// `shutdown(SHUT_RD)` was called here.
    pub const READ: u32 = 1;
    /// `shutdown(SHUT_WR)` was called here, or the writing side has failed.
    pub const WRITE: u32 = 2;
    /// A send after the peer was gone has been swallowed: the next one fails, and until somebody was told, an error is pending.
    pub const BROKEN: u32 = 4;
    /// The pending error, a reset or that of [`BROKEN`], was told.
    pub const ERROR_SEEN: u32 = 8;
    /// Writes go to the kernel so far ([`crate::dual`]).
    pub const TO_KERNEL: u32 = 16;
    /// And always will: an urgent byte went there.
    pub const URGENT: u32 = 32;
    /// The other side of an `AF_UNIX` connection is gone, by the coordinator.
    pub const GONE: u32 = 64;
    /// A relative has made the socket a new one, by connect(2) to `AF_UNSPEC` or after a failed connect.
    pub const DISSOLVED: u32 = 128;
}

/// Bits of [`Sock::modes`]: what makes reading other than plain.
pub mod modes {
    /// `SO_RCVLOWAT` is above 1.
    pub const LOWAT: u32 = 1;
    /// `SO_OOBINLINE`: the urgent byte is read as any other.
    pub const OOB_INLINE: u32 = 2;
    /// `O_ASYNC`: each arrival is a signal.
    pub const ASYNC: u32 = 4;
    /// `SO_ZEROCOPY`: sends with `MSG_ZEROCOPY` are told of.
    pub const ZEROCOPY: u32 = 8;
    /// A connection of `AF_UNIX`.
    pub const UNIX: u32 = 16;
    /// `SO_PASSCRED`: reads tell who has sent.
    pub const PASS_CREDENTIALS: u32 = 32;
    /// The kernel may have bytes of it ([`crate::dual`]).
    pub const FROM_KERNEL: u32 = 64;
    /// Reads that are not plain.
    pub const SPECIAL: u32 = LOWAT | ASYNC | FROM_KERNEL;
}

/// [`Sock::dead`]: the peer's side is gone.
pub const DEAD: u32 = 1;
/// [`Sock::dead`]: the listener was closed before it accepted us, which is a reset.
pub const DEAD_RESET: u32 = 2;

/// Shared state of one connection or listener. Zero is the fresh state.
#[repr(C, align(64))]
pub struct Sock {
    /// Held while writing to the outgoing stream.
    pub tx: Biased,
    /// Writes that are with the kernel ([`crate::dual`]).
    pub kernel_writers: AtomicU32,
    pad1: AtomicU32,
    tail: AtomicU64,
    limit: AtomicU64,
    /// Sends with `MSG_ZEROCOPY` so far, and those that were told of ([`crate::zerocopy`]).
    pub zerocopy_sent: AtomicU32,
    /// See there.
    pub zerocopy_told: AtomicU32,
    pad2: AtomicU64,
    /// Held while reading from the incoming stream.
    pub rx: Biased,
    /// `SO_RCVLOWAT`, if it is above 1; else 0.
    pub lowat: AtomicU32,
    pad3: AtomicU32,
    pos: AtomicU64,
    /// `left` in the low half, `len` in the high half.
    record: AtomicU64,
    /// Position of the urgent byte that `recv(MSG_OOB)` took, plus one.
    pub urgent_taken: AtomicU64,
    /// When the input came that recvmsg(2) last told of, and how far it had come then ([`crate::stamps`]).
    pub stamp_ns: AtomicU64,
    /// Connection id; for a listener, 0. Changes whenever the place is used anew.
    pub conn: AtomicU64,
    used: AtomicU32,
    /// Processes that hold descriptors of it.
    pub processes: AtomicU32,
    /// Non-zero: `O_NONBLOCK`.
    pub nonblock: AtomicU32,
    /// [`shut`] bits.
    pub shut: AtomicU32,
    /// [`DEAD`] or [`DEAD_RESET`]: the coordinator or the wire says that the peer's side is gone.
    pub dead: AtomicU32,
    /// [`modes`] bits.
    pub modes: AtomicU32,
    /// `SO_RCVTIMEO` in microseconds, 0: none.
    pub rx_timeout_us: AtomicU64,
    /// `SO_SNDTIMEO` in microseconds, 0: none.
    pub tx_timeout_us: AtomicU64,
    /// Non-zero: `SO_LINGER` with time 0: close resets.
    pub linger_reset: AtomicU32,
    /// `SO_TIMESTAMP` or a relative of it, whichever is set, or 0.
    pub stamps: AtomicU32,
    local_ip: [AtomicU64; 2],
    peer_ip: [AtomicU64; 2],
    ports: AtomicU32,
    /// Non-zero: a `connect` that has succeeded but was not asked about yet.
    pub fresh_connect: AtomicU32,
    /// Listener: options that accepted sockets inherit, a bit each ([`crate::options::inherit`]).
    pub options: AtomicU64,
    /// See [`Sock::stamp_ns`].
    pub stamped_upto: AtomicU64,
}

const _: () = {
    assert!(core::mem::size_of::<Sock>() == 256);
    assert!(core::mem::offset_of!(Sock, rx) == 64);
    assert!(core::mem::offset_of!(Sock, conn) == 128);
};

/// A fresh one with one process, or `None` if the arena is full.
pub fn allocate() -> Option<&'static Sock> {
    let arena = arenas::own()?;
    for at in arenas::places() {
        let sock = arena.get(at)?;
        // Acquire: pairs with the Release in `free`: the last user's stores are behind us.
        if sock.used.load(Ordering::Relaxed) == 0
            && sock.used.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
        {
            sock.clear();
            return Some(sock);
        }
    }
    None
}

impl Sock {
    fn clear(&self) {
        self.tx.reset();
        self.rx.reset();
        self.set_writer(Writer::default());
        self.set_reader(Reader::default());
        for word in [
            &self.conn,
            &self.rx_timeout_us,
            &self.tx_timeout_us,
            &self.urgent_taken,
            &self.stamp_ns,
            &self.stamped_upto,
            &self.options,
        ] {
            word.store(0, Ordering::Relaxed);
        }
        for word in [
            &self.nonblock,
            &self.shut,
            &self.dead,
            &self.lowat,
            &self.modes,
            &self.zerocopy_sent,
            &self.zerocopy_told,
            &self.linger_reset,
            &self.stamps,
            &self.fresh_connect,
            &self.kernel_writers,
        ] {
            word.store(0, Ordering::Relaxed);
        }
        self.processes.store(1, Ordering::Relaxed);
    }

    /// The last process gives it back.
    pub fn free(&self) {
        self.conn.store(0, Ordering::Relaxed);
        // Release: pairs with the Acquire in `allocate`.
        self.used.store(0, Ordering::Release);
    }

    /// Under `tx`: our position in the outgoing stream. Relaxed: the lock orders.
    #[inline(always)]
    pub fn writer(&self) -> Writer {
        Writer { tail: self.tail.load(Ordering::Relaxed), limit: self.limit.load(Ordering::Relaxed) }
    }

    /// Under `tx`.
    #[inline(always)]
    pub fn set_writer(&self, w: Writer) {
        self.tail.store(w.tail, Ordering::Relaxed);
        self.limit.store(w.limit, Ordering::Relaxed);
    }

    /// Under `rx`: our position in the incoming stream. Without the lock a hint, which may take a taken record for a new one, and
    /// never a new one for a taken one.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)] // halves of a word
    pub fn reader(&self) -> Reader {
        // Acquire: pairs with the Release in `set_reader`: never the end of a record with an older position, where a header
        // may be overwritten by now.
        let record = self.record.load(Ordering::Acquire);
        Reader { pos: self.pos.load(Ordering::Relaxed), left: record as u32, len: (record >> 32) as u32 }
    }

    /// Under `rx`.
    #[inline(always)]
    pub fn set_reader(&self, r: Reader) {
        self.pos.store(r.pos, Ordering::Relaxed);
        self.record.store(u64::from(r.left) | u64::from(r.len) << 32, Ordering::Release);
    }

    /// Both addresses, once, before anybody else sees the socket.
    pub fn set_addrs(&self, local: Addr, peer: Addr) {
        for (words, addr) in [(&self.local_ip, local), (&self.peer_ip, peer)] {
            for (word, value) in words.iter().zip(addr.words()) {
                word.store(value, Ordering::Relaxed);
            }
        }
        self.ports.store(u32::from(local.port) | u32::from(peer.port) << 16, Ordering::Relaxed);
    }

    /// Local and peer address.
    #[allow(clippy::cast_possible_truncation)] // halves of a word
    pub fn addrs(&self) -> (Addr, Addr) {
        let ports = self.ports.load(Ordering::Relaxed);
        let load = |[lo, hi]: &[AtomicU64; 2], port| {
            Addr::from_words(lo.load(Ordering::Relaxed), hi.load(Ordering::Relaxed), port)
        };
        (load(&self.local_ip, ports as u16), load(&self.peer_ip, (ports >> 16) as u16))
    }

    /// `O_NONBLOCK` is set.
    #[inline(always)]
    pub fn is_nonblocking(&self) -> bool {
        self.nonblock.load(Ordering::Relaxed) != 0
    }
}
