//! The limit: two directions in shared memory and nothing else. No system call, no check, no sleep.
//!
//! A message of up to 56 bytes of a ping-pong is one cache line with its number; everything else goes through a byte
//! ring with cached indices of the other side, which is published every 16 KiB.

use std::cell::Cell;
use std::hint::spin_loop;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use measure::job::Shape;

use crate::link::Channel;

/// Bytes of one direction's ring: rings of 1 to 4 MiB stream fastest here.
const BYTES: usize = 1 << 20;
const RING_BYTES: u64 = BYTES as u64;
const CHUNK: u64 = 16 * 1024;
/// Looks before the processor is offered to others.
const SPINS: u32 = 64;
const LINES: usize = 64;
const ENDED: u64 = 1 << 63;

/// One message with its number.
#[repr(C, align(64))]
struct Line {
    number: AtomicU64,
    bytes: [Cell<u8>; 56],
}

#[repr(C, align(64))]
struct Index {
    at: AtomicU64,
}

/// One direction, shared by both processes.
#[repr(C, align(4096))]
struct Shared {
    written: Index,
    read: Index,
    lines: [Line; LINES],
    bytes: [Cell<u8>; BYTES],
}

/// One process's end.
#[derive(Debug)]
pub struct RawRing {
    to: Side,
    from: Side,
    lines: bool,
}

/// What a process knows of one direction: its own position, and the other's as last seen.
#[derive(Debug)]
struct Side {
    shared: NonNull<Shared>,
    mine: u64,
    seen: u64,
}

impl RawRing {
    /// Both ends, for the two sides of a fork.
    pub fn pair(shape: &Shape) -> io::Result<[RawRing; 2]> {
        let lines = matches!(shape, Shape::PingPong { bytes, .. } if *bytes <= 56);
        let new = || {
            // SAFETY: fresh memory, zeroed, which is a valid `Shared`; it stays until the process ends.
            let at = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    size_of::<Shared>(),
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                    -1,
                    0,
                )
            };
            if at == libc::MAP_FAILED { None } else { NonNull::new(at.cast::<Shared>()) }
        };
        let (Some(up), Some(down)) = (new(), new()) else { return Err(io::Error::last_os_error()) };
        let side = |shared| Side { shared, mine: 0, seen: 0 };
        Ok([
            RawRing { to: side(up), from: side(down), lines },
            RawRing { to: side(down), from: side(up), lines },
        ])
    }
}

impl Side {
    #[inline(always)]
    fn shared(&self) -> &Shared {
        // SAFETY: mapped for as long as the process lives; shared parts are atomics or, between two
        // publications, one side's.
        unsafe { self.shared.as_ref() }
    }
}

/// Looks until `ready` says something.
#[inline(always)]
fn until<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    let mut spins = 0;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        spins += 1;
        if spins < SPINS {
            spin_loop();
        } else {
            spins = 0;
            std::thread::yield_now();
        }
    }
}

impl Side {
    #[inline(always)]
    fn send_line(&mut self, data: &[u8]) {
        self.mine += 1;
        let at = usize::try_from(self.mine).unwrap_or(0) % LINES;
        let line = &self.shared().lines[at];
        // SAFETY: at most 56 bytes (see `pair`) into a line that the reader does not look at yet.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), line.bytes.as_ptr() as *mut u8, data.len()) };
        // Release: the bytes are there before the number.
        line.number.store(self.mine, Ordering::Release);
    }

    /// False at the end.
    #[inline(always)]
    fn receive_line(&mut self, room: &mut [u8]) -> bool {
        let next = self.mine + 1;
        let shared = self.shared();
        let line = &shared.lines[usize::try_from(next).unwrap_or(0) % LINES];
        // Acquire: pairs with the writer's release.
        let number =
            until(|| Some(line.number.load(Ordering::Acquire)).filter(|n| *n == next || *n == ENDED));
        if number == ENDED {
            return false;
        }
        // SAFETY: at most 56 bytes (see `pair`) that the writer leaves alone until it hears from us.
        unsafe {
            std::ptr::copy_nonoverlapping(line.bytes.as_ptr() as *const u8, room.as_mut_ptr(), room.len());
        }
        self.mine = next;
        true
    }

    #[inline(always)]
    fn write(&mut self, data: &[u8]) {
        let mut left = data;
        while !left.is_empty() {
            let shared = self.shared();
            if self.mine - self.seen >= RING_BYTES {
                let (mine, before) = (self.mine, self.seen);
                // Acquire: the reader is done with what it gave back.
                self.seen = until(|| {
                    Some(shared.read.at.load(Ordering::Acquire))
                        .filter(|r| *r != before && mine - r < RING_BYTES)
                });
            }
            let shared = self.shared();
            let at = self.mine % RING_BYTES;
            let n =
                (left.len() as u64).min(RING_BYTES - (self.mine - self.seen)).min(RING_BYTES - at).min(CHUNK);
            let len = usize::try_from(n).unwrap_or(0);
            // SAFETY: inside the ring, where the reader is not; `left` is at least so long.
            unsafe {
                let to = (shared.bytes.as_ptr() as *mut u8).add(usize::try_from(at).unwrap_or(0));
                std::ptr::copy_nonoverlapping(left.as_ptr(), to, len);
            }
            self.mine += n;
            // Release: the bytes are there before the index.
            self.shared().written.at.store(self.mine, Ordering::Release);
            left = left.get(len..).unwrap_or(&[]);
        }
    }

    /// 0 at the end.
    #[inline(always)]
    fn read(&mut self, room: &mut [u8]) -> usize {
        if self.seen == self.mine {
            let mine = self.mine;
            let shared = self.shared();
            shared.read.at.store(mine, Ordering::Release);
            // Acquire: pairs with the writer's release.
            self.seen = until(|| Some(shared.written.at.load(Ordering::Acquire)).filter(|w| *w != mine));
        }
        let available = (self.seen & !ENDED) - self.mine;
        let at = self.mine % RING_BYTES;
        let n = (room.len() as u64).min(available).min(RING_BYTES - at);
        let len = usize::try_from(n).unwrap_or(0);
        // SAFETY: inside the ring, published and not given back; `room` is at least so long.
        unsafe {
            let from = (self.shared().bytes.as_ptr() as *const u8).add(usize::try_from(at).unwrap_or(0));
            std::ptr::copy_nonoverlapping(from, room.as_mut_ptr(), len);
        }
        self.mine += n;
        // Given back in large pieces, so that the line with the index moves rarely.
        if self.mine % (RING_BYTES / 8) < n {
            // Release: we are done with the bytes.
            self.shared().read.at.store(self.mine, Ordering::Release);
        }
        len
    }
}

impl Channel for RawRing {
    #[inline(always)]
    fn send(&mut self, data: &[u8]) -> io::Result<()> {
        if self.lines {
            self.to.send_line(data);
        } else {
            self.to.write(data);
        }
        Ok(())
    }

    #[inline(always)]
    fn receive(&mut self, room: &mut [u8]) -> io::Result<usize> {
        Ok(match self.lines {
            true if self.from.receive_line(room) => room.len(),
            true => 0,
            false => self.from.read(room),
        })
    }

    fn end(&mut self) {
        let shared = self.to.shared();
        let next = usize::try_from(self.to.mine + 1).unwrap_or(0) % LINES;
        // Release: after everything that was sent.
        shared.lines[next].number.store(ENDED, Ordering::Release);
        shared.written.at.store(self.to.mine | ENDED, Ordering::Release);
    }
}
