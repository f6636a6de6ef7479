//! Reading and writing a connection the way recv(2) and send(2) do: blocking or not, with timeouts, signals, and
//! every way a connection can end.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use core::time::Duration;

use ring::wake::SleepWord;

use crate::ancillary::Wanted;
use crate::buffers::{Buffers, Cursor};
use crate::dual::{self, Got};
use crate::handle::{Handle, Pinned, Stream};
use crate::quick::{self, Read};
use crate::sock::{modes, shut};
use crate::stream::{End, ReadHow};
use crate::sys::{Errno, Result};
use crate::wait::{self, Spin};
use crate::{arrivals, coordinator, epoll, pending, sys, urgent, zerocopy};

/// recv(2) into one buffer. Returns the number of bytes.
///
/// # Errors
/// As recv(2).
#[inline(always)]
pub fn receive_one(h: &Handle, s: &Stream, base: *mut u8, n: usize, flags: i32) -> Result<usize> {
    if flags & UNUSUAL_READ == 0 && reads_are_plain(s) {
        match quick::read(h, s, base, n) {
            Read::Some(got) => return Ok(got),
            Read::GoesOn(got) => return Ok(receive_more(h, s, base, n, got)),
            Read::Nothing => return receive_soon(h, s, base, n, flags),
            Read::Otherwise => {}
        }
    }
    receive_general(h, s, base, n, flags)
}

/// Flags with which it is not enough to read once what is there.
const NOT_AT_ONCE: i32 = libc::MSG_WAITALL | libc::MSG_OOB | libc::MSG_ERRQUEUE;
/// Or not in the usual way.
const UNUSUAL_READ: i32 = libc::MSG_PEEK | libc::MSG_TRUNC | NOT_AT_ONCE;

#[inline(always)]
fn reads_are_plain(s: &Stream) -> bool {
    s.sock.shut.load(Ordering::Relaxed) & shut::READ == 0
        && s.sock.modes.load(Ordering::Relaxed) & modes::SPECIAL == 0
}

/// Nothing is there yet: what comes in the next moment is read as if it had been. Then a wait begins, for which more has to be done.
#[inline(never)]
fn receive_soon(h: &Handle, s: &Stream, base: *mut u8, n: usize, flags: i32) -> Result<usize> {
    let blocks = flags & libc::MSG_DONTWAIT == 0 && !s.sock.is_nonblocking();
    for _ in 0..if blocks { wait::looks() } else { 0 } {
        core::hint::spin_loop();
        match quick::read(h, s, base, n) {
            Read::Some(got) => return Ok(got),
            Read::GoesOn(got) => return Ok(receive_more(h, s, base, n, got)),
            Read::Nothing => {}
            Read::Otherwise => break,
        }
    }
    receive_general(h, s, base, n, flags)
}

#[inline(never)]
fn receive_general(h: &Handle, s: &Stream, base: *mut u8, n: usize, flags: i32) -> Result<usize> {
    receive(h, s, &Buffers::one(base, n), flags)
}

/// Some of the buffer is full: what else is there. The number of bytes in all.
#[inline(never)]
fn receive_more(h: &Handle, s: &Stream, base: *mut u8, n: usize, done: usize) -> usize {
    let mut at = Cursor { offset: done, done, ..Cursor::default() };
    // What goes wrong behind the first bytes, the next call is told.
    let _ = h.try_read(s, &Buffers::one(base, n), &mut at, ReadHow::default());
    at.done
}

/// recv(2) and all its forms. Returns the number of bytes.
///
/// # Errors
/// As recv(2).
#[inline(always)]
pub fn receive(h: &Handle, s: &Stream, to: &Buffers<'_>, flags: i32) -> Result<usize> {
    receive_with(h, s, to, flags, None)
}

/// [`receive`], with a place for ancillary data.
///
/// # Errors
/// As recvmsg(2).
#[inline(always)]
pub fn receive_with(
    h: &Handle,
    s: &Stream,
    to: &Buffers<'_>,
    flags: i32,
    ancillary: Option<NonNull<Wanted>>,
) -> Result<usize> {
    let how = ReadHow { peek: flags & libc::MSG_PEEK != 0, discard: flags & libc::MSG_TRUNC != 0, ancillary };
    let mut at = Cursor::default();
    if reads_are_plain(s) && flags & NOT_AT_ONCE == 0 && h.try_read(s, to, &mut at, how)? {
        return Ok(at.done);
    }
    receive_slow(h, s, to, flags, how)
}

#[cold]
fn receive_slow(h: &Handle, s: &Stream, to: &Buffers<'_>, flags: i32, how: ReadHow) -> Result<usize> {
    let pinned = pin(h, s)?;
    let _noted = pinned.note();
    // A reset comes before the end that shutdown(2) has made.
    coordinator::pump();
    if flags & libc::MSG_ERRQUEUE != 0 {
        // No bytes, and by this call no ancillary data either.
        return zerocopy::take(s).map(|_| 0);
    }
    if flags & libc::MSG_OOB != 0 {
        if s.is_from_kernel() {
            return dual::read(h, s, to, &mut Cursor::default(), how, flags).map(|_| to.total().min(1));
        }
        return urgent::receive(h, s, to, flags);
    }
    if s.sock.modes.load(Ordering::Relaxed) & modes::ASYNC != 0 {
        arrivals::make_room(h);
    }
    let room = to.total();
    let lowat = s.sock.lowat.load(Ordering::Relaxed).max(1) as usize;
    let target = if flags & libc::MSG_WAITALL != 0 { room } else { lowat.min(room) };
    let nonblocking = flags & libc::MSG_DONTWAIT != 0 || s.sock.is_nonblocking();
    let timeout = timeout_of(s.sock.rx_timeout_us.load(Ordering::Relaxed));
    let start = timeout.map(|_| sys::now());
    let mut at = Cursor::default();
    loop {
        if how.peek {
            at = Cursor::default();
        }
        if s.is_from_kernel() {
            match dual::read(h, s, to, &mut at, how, flags)? {
                Got::All => return Ok(at.done),
                Got::Some if at.done >= target => return Ok(at.done),
                Got::Some if nonblocking && at.done > 0 => return Ok(at.done),
                Got::Some if nonblocking => return Err(Errno(libc::EAGAIN)),
                Got::Some => {
                    let left =
                        timeout.zip(start).map(|(timeout, start)| timeout.saturating_sub(sys::now() - start));
                    match dual::wait_for_input(h, s, left) {
                        Err(_) if at.done > 0 => return Ok(at.done),
                        other => other?,
                    }
                    continue;
                }
                Got::Ring => {}
            }
        }
        h.try_read(s, to, &mut at, how)?;
        // Linux waits for data even to read none of it.
        let satisfied = if room == 0 { s.has_data() } else { at.done >= target };
        if satisfied || at.barrier || (at.done > 0 && s.at_mark()) {
            return Ok(at.done);
        }
        match s.end(h) {
            End::Open => {}
            _ if at.done > 0 => return Ok(at.done),
            End::Eof => return Ok(0),
            End::Unconnected => return Err(Errno(libc::ENOTCONN)),
            End::Reset => {
                s.sock.shut.fetch_or(shut::ERROR_SEEN | shut::BROKEN, Ordering::Relaxed);
                return Err(Errno(libc::ECONNRESET));
            }
        }
        if nonblocking {
            // The end of a peer that was killed is news from the coordinator.
            if coordinator::pump() {
                continue;
            }
            return if at.done > 0 { Ok(at.done) } else { Err(Errno(libc::EAGAIN)) };
        }
        let peeked = if how.peek { at.done } else { 0 };
        let more = || s.input_ended() || if peeked > 0 { s.available() > peeked } else { s.has_data() };
        match wait_for(&s.in_dir.rx_wait, &more, timeout.zip(start)) {
            Ok(()) => {}
            Err(_) if at.done > 0 => return Ok(at.done),
            Err(e) => return Err(e),
        }
    }
}

/// [`Handle::try_write`], and then what handlers of signals wrote that came in the middle of it.
#[inline(always)]
fn write(h: &Handle, s: &Stream, from: &Buffers<'_>, at: &mut Cursor) -> Result<bool> {
    let written = h.try_write(s, from, at);
    if pending::is_any() { after_handlers(h, s, written, at) } else { written }
}

#[cold]
fn after_handlers(h: &Handle, s: &Stream, written: Result<bool>, at: &Cursor) -> Result<bool> {
    match (pending::deliver(h, s), written) {
        // As Linux: a call that a signal interrupts does not go on behind what the handler sent.
        (true, Ok(false)) if at.done > 0 => Err(Errno(libc::EINTR)),
        (_, written) => written,
    }
}

/// send(2) from one buffer. Returns the number of bytes; raises SIGPIPE as Linux does.
///
/// # Errors
/// As send(2).
#[inline(always)]
pub fn send_one(h: &Handle, s: &Stream, base: *mut u8, n: usize, flags: i32) -> Result<usize> {
    // One look: who only sends has no other way to hear that its peer was killed.
    coordinator::pump();
    if flags & UNUSUAL_WRITE == 0 && quick::write(h, s, base, n) {
        if pending::is_any() {
            pending::deliver(h, s);
        }
        return Ok(n);
    }
    send_general(h, s, base, n, flags)
}

/// Flags that ask for more than to write.
const UNUSUAL_WRITE: i32 = libc::MSG_OOB | libc::MSG_FASTOPEN | libc::MSG_ZEROCOPY;

#[inline(never)]
fn send_general(h: &Handle, s: &Stream, base: *mut u8, n: usize, flags: i32) -> Result<usize> {
    send(h, s, &Buffers::one(base, n), flags)
}

/// send(2) and all its forms. Returns the number of bytes; raises SIGPIPE as Linux does.
///
/// # Errors
/// As send(2).
#[inline(always)]
pub fn send(h: &Handle, s: &Stream, from: &Buffers<'_>, flags: i32) -> Result<usize> {
    if flags & UNUSUAL_WRITE != 0 {
        return send_specially(h, s, from, flags);
    }
    coordinator::pump();
    send_rest(h, s, from, flags, Cursor::default())
}

#[cold]
fn send_specially(h: &Handle, s: &Stream, from: &Buffers<'_>, flags: i32) -> Result<usize> {
    if flags & libc::MSG_FASTOPEN != 0 {
        // It is open already.
        return Err(Errno(libc::EISCONN));
    }
    if flags & libc::MSG_OOB != 0 {
        return urgent::send(h, s, from, flags);
    }
    let sent = send(h, s, from, flags & !libc::MSG_ZEROCOPY)?;
    if sent > 0 {
        zerocopy::sent(h, s);
    }
    Ok(sent)
}

/// [`send`], from where `at` is.
///
/// # Errors
/// As send(2).
#[inline(always)]
pub fn send_rest(h: &Handle, s: &Stream, from: &Buffers<'_>, flags: i32, mut at: Cursor) -> Result<usize> {
    match write(h, s, from, &mut at) {
        Ok(true) => Ok(at.done),
        other => send_slow(h, s, from, flags, at, other.map(|_| ())),
    }
}

/// Waits until something can be written, or says that it would.
///
/// # Errors
/// `EAGAIN`, `EINTR`.
pub fn wait_for_space(h: &Handle, s: &Stream, flags: i32) -> Result<()> {
    let pinned = pin(h, s)?;
    let _noted = pinned.note();
    if flags & libc::MSG_DONTWAIT != 0 || s.sock.is_nonblocking() {
        epoll::wants_space(h);
        return Err(Errno(libc::EAGAIN));
    }
    let timeout = timeout_of(s.sock.tx_timeout_us.load(Ordering::Relaxed));
    wait_for(&s.out_dir.tx_wait, &|| s.writable(), timeout.zip(Some(sys::now())))
}

#[cold]
fn send_slow(
    h: &Handle,
    s: &Stream,
    from: &Buffers<'_>,
    flags: i32,
    mut at: Cursor,
    mut last: Result<()>,
) -> Result<usize> {
    let pinned = pin(h, s)?;
    let _noted = pinned.note();
    let nonblocking = flags & libc::MSG_DONTWAIT != 0 || s.sock.is_nonblocking();
    let timeout = timeout_of(s.sock.tx_timeout_us.load(Ordering::Relaxed));
    let start = timeout.map(|_| sys::now());
    loop {
        match last {
            Ok(()) => {}
            Err(_) if at.done > 0 => return Ok(at.done),
            Err(Errno(libc::EPIPE)) => {
                if flags & libc::MSG_NOSIGNAL == 0 {
                    sys::raise_sigpipe();
                }
                return Err(Errno(libc::EPIPE));
            }
            Err(e) => return Err(e),
        }
        if nonblocking && !arrivals::room_came(h, s) {
            epoll::wants_space(h);
            return if at.done > 0 { Ok(at.done) } else { Err(Errno(libc::EAGAIN)) };
        }
        match wait_for(&s.out_dir.tx_wait, &|| s.writable(), timeout.zip(start)) {
            Ok(()) => {}
            Err(_) if at.done > 0 => return Ok(at.done),
            Err(e) => return Err(e),
        }
        last = match write(h, s, from, &mut at) {
            Ok(true) => return Ok(at.done),
            Ok(false) => Ok(()),
            Err(e) => Err(e),
        };
    }
}

/// sendfile(2) into a connection: from the page cache straight into the ring.
///
/// # Errors
/// As sendfile(2).
pub fn send_file(
    h: &Handle,
    s: &Stream,
    input: i32,
    offset: Option<&mut libc::off_t>,
    n: usize,
) -> Result<usize> {
    // Only what never blocks is read under the connection's lock; Linux wants a file, too.
    let kind =
        rustix::fs::fstat(sys::borrow(input)).map(|f| rustix::fs::FileType::from_raw_mode(f.st_mode))?;
    if kind != rustix::fs::FileType::RegularFile && kind != rustix::fs::FileType::BlockDevice {
        return Err(Errno(libc::EINVAL));
    }
    let start = offset.as_deref().map(|o| u64::try_from(*o)).transpose().map_err(|_| Errno(libc::EINVAL))?;
    let file = sys::borrow(input);
    let done = send_with(h, s, n, |room, done| {
        Ok(match start {
            Some(at) => rustix::io::pread(file, room, at + done as u64)?,
            None => rustix::io::read(file, room)?,
        })
    })?;
    if let Some(o) = offset {
        *o += libc::off_t::try_from(done).unwrap_or(0);
    }
    Ok(done)
}

/// Sends up to `n` bytes that `fill` puts into the ring, given how many have been sent; it must not block. Ends when `fill` has
/// no more (0), or after its first error.
///
/// # Errors
/// As sendfile(2), and the first error of `fill`.
pub fn send_with(
    h: &Handle,
    s: &Stream,
    n: usize,
    fill: impl Fn(&mut [u8], usize) -> Result<usize>,
) -> Result<usize> {
    let pinned = pin(h, s)?;
    let _noted = pinned.note();
    let timeout = timeout_of(s.sock.tx_timeout_us.load(Ordering::Relaxed));
    let start = timeout.map(|_| sys::now());
    let mut done = 0;
    while done < n {
        let written = h.try_write_with(s, n - done, |room| fill(room, done));
        if pending::is_any() {
            pending::deliver(h, s);
        }
        match written {
            Ok(Some(0)) => break,
            Ok(Some(got)) => done += got,
            Ok(None) if s.sock.is_nonblocking() => {
                epoll::wants_space(h);
                return if done > 0 { Ok(done) } else { Err(Errno(libc::EAGAIN)) };
            }
            Ok(None) => match wait_for(&s.out_dir.tx_wait, &|| s.writable(), timeout.zip(start)) {
                Ok(()) => {}
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            },
            Err(_) if done > 0 => break,
            Err(e) => {
                if e.0 == libc::EPIPE {
                    sys::raise_sigpipe();
                }
                return Err(e);
            }
        }
    }
    Ok(done)
}

fn timeout_of(us: u64) -> Option<Duration> {
    (us != 0).then(|| Duration::from_micros(us))
}

/// Keeps the connection while a call works on it, as the kernel keeps a file.
fn pin<'a>(h: &'a Handle, s: &Stream) -> Result<Pinned<'a>> {
    h.pin().filter(|_| s.current(h)).ok_or(Errno(libc::EBADF))
}

/// Blocks until `ready`.
fn wait_for(word: &SleepWord, ready: &dyn Fn() -> bool, limit: Option<(Duration, Duration)>) -> Result<()> {
    let mut spin = Spin::new();
    loop {
        if ready() {
            return Ok(());
        }
        if !spin.turn() {
            break;
        }
    }
    loop {
        coordinator::pump();
        if ready() {
            return Ok(());
        }
        let left = match limit {
            None => None,
            Some((timeout, start)) => {
                let left = timeout.saturating_sub(sys::now() - start);
                if left.is_zero() {
                    return Err(Errno(libc::EAGAIN));
                }
                Some(left)
            }
        };
        match left {
            None => wait::sleep_on_word(word, ready)?,
            // With a timeout no signal restarts the call, whatever its handler says: so in Linux, and so in poll(2).
            Some(_) => {
                wait::sleep_with(None, Some(word), ready, left)?;
            }
        }
    }
}
