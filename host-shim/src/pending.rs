//! What a signal handler sends on the very connection whose `send` it interrupted. The interrupted call is in the middle of a
//! record and holds the lock, so the bytes wait here; it sends them as soon as its own are out. Linux has the same order: there
//! a handler runs before or after a call's work, never inside.
//!
//! `unsafe` is allowed here: the places' bytes, and the caller's buffers.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::buffers::{Buffers, Cursor};
use crate::handle::{Handle, Stream};
use crate::sys::{Errno, NoSignals, Result};
use crate::{io, me};

/// Threads that may be in such a situation at the same time.
const PLACES_MAX: usize = 8;
/// What one of them may leave here: as much as a pipe takes in one piece.
const BYTES_MAX: usize = 4096;

/// Used by one thread alone, and its handlers; these never run at the same time.
struct Place {
    /// Of the thread, 0: free.
    tid: AtomicU32,
    len: AtomicU32,
    conn: AtomicU64,
    bytes: UnsafeCell<[u8; BYTES_MAX]>,
}

// SAFETY: `bytes` is touched by the thread whose id the place has, only.
unsafe impl Sync for Place {}

impl Place {
    const fn new() -> Self {
        Place {
            tid: AtomicU32::new(0),
            len: AtomicU32::new(0),
            conn: AtomicU64::new(0),
            bytes: UnsafeCell::new([0; BYTES_MAX]),
        }
    }
}

static PLACES: [Place; PLACES_MAX] = [const { Place::new() }; PLACES_MAX];
/// Places in use: nearly always none.
static USED: AtomicU32 = AtomicU32::new(0);

/// Is there anything? Relaxed: a thread asks for what a handler of its own has left.
#[inline(always)]
pub fn is_any() -> bool {
    USED.load(Ordering::Relaxed) != 0
}

/// The place of this thread for that connection.
fn own(conn: u64) -> Option<&'static Place> {
    let tid = me::tid();
    PLACES.iter().find(|p| p.tid.load(Ordering::Relaxed) == tid && p.conn.load(Ordering::Relaxed) == conn)
}

fn claim(conn: u64) -> Option<&'static Place> {
    let tid = me::tid();
    let free = |p: &&Place| p.tid.compare_exchange(0, tid, Ordering::Acquire, Ordering::Relaxed).is_ok();
    let place = PLACES.iter().find(free)?;
    place.conn.store(conn, Ordering::Relaxed);
    place.len.store(0, Ordering::Relaxed);
    USED.fetch_add(1, Ordering::Relaxed);
    Some(place)
}

/// In a handler that interrupted a send on `s`. `Ok(true)`: all of it will be sent.
///
/// # Errors
/// `EAGAIN`: it can't be kept, or not all of it.
#[cold]
pub fn keep(s: &Stream, from: &Buffers<'_>, at: &mut Cursor) -> Result<bool> {
    let full = Errno(libc::EAGAIN);
    if from.urgent || s.sock.is_nonblocking() {
        return Err(full);
    }
    let place = own(s.conn.0).or_else(|| claim(s.conn.0)).ok_or(full)?;
    let start = place.len.load(Ordering::Relaxed) as usize;
    let mut len = start;
    from.pieces(at, BYTES_MAX - start, |base, n| {
        // SAFETY: `pieces` gives at most what is left in the place, which is this thread's.
        unsafe { core::ptr::copy_nonoverlapping(base, place.bytes.get().cast::<u8>().add(len), n) };
        len += n;
    });
    place.len.store(u32::try_from(len).unwrap_or(0), Ordering::Relaxed);
    if at.done < from.total() { Err(full) } else { Ok(true) }
}

/// After a write to `s`: sends what handlers of this thread left meanwhile. True if there was something.
#[cold]
pub fn deliver(h: &Handle, s: &Stream) -> bool {
    // Still in the handler.
    if s.sock.tx.is_own() {
        return false;
    }
    let mut any = false;
    let mut bytes = [0; BYTES_MAX];
    while let Some(len) = take(s.conn.0, &mut bytes) {
        any = true;
        let mut at = Cursor::default();
        let from = Buffers::one(bytes.as_mut_ptr(), len);
        loop {
            match io::send_rest(h, s, &from, libc::MSG_NOSIGNAL, at) {
                // A signal again, in the middle.
                Ok(done) if done < len => at = Cursor { offset: done, done, ..at },
                Err(Errno(libc::EINTR)) => {}
                // Where nobody reads any more it is lost, as on a network.
                _ => break,
            }
        }
    }
    any
}

/// Empties the place of this thread for that connection. The number of bytes.
fn take(conn: u64, bytes: &mut [u8; BYTES_MAX]) -> Option<usize> {
    let _no_signals = NoSignals::new();
    let place = own(conn)?;
    // SAFETY: this thread's, and no handler of it runs now.
    *bytes = unsafe { *place.bytes.get() };
    let len = place.len.load(Ordering::Relaxed) as usize;
    USED.fetch_sub(1, Ordering::Relaxed);
    // Release: pairs with the Acquire in `claim`: the bytes are read.
    place.tid.store(0, Ordering::Release);
    Some(len)
}

/// After fork, in the child: its parent sends what is left.
pub fn forget() {
    if USED.load(Ordering::Relaxed) == 0 {
        return;
    }
    for place in &PLACES {
        place.tid.store(0, Ordering::Relaxed);
    }
    USED.store(0, Ordering::Relaxed);
}
