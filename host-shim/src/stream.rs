//! One connection in user space: moving bytes between a caller's buffers and the rings, telling the peer, and how it ends.
//! Nothing here waits.
//!
//! `unsafe` is allowed here: the caller's buffers, as the application passed them.
#![allow(unsafe_code)]

use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};

use ring::segment::{Direction, READER_SHUT, state};
use ring::stream::{self, Memory as _, Reader, Writer};
use ring::urgent;
use ring::wake::{self, Claimed, SleepWord};

use crate::ancillary::Wanted;
use crate::buffers::{Buffers, Cursor};
use crate::handle::{Handle, Stream};
use crate::sock::{DEAD_RESET, modes, shut};
use crate::sys::{Errno, Result};
use crate::urgent::Met;
use crate::{pending, segments, stamps, stats, sys};

/// The part of a ring that is free when a connection counts as writable, as Linux wants a third of the buffer.
const WRITABLE_PART: u64 = 4;

/// Bytes between two times that a reader, or a writer, takes the other side's fences back: if it sleeps again, it asks again.
const RELAX_BYTES: [u64; 2] = [64 * 1024, 1024 * 1024];
/// A call that moves more does not: the other side's fences are nothing beside its copying, and a sleep's heavy barrier is more.
const RELAX_CALL_MAX: u64 = 4096;

/// Positions before and after a call of few bytes lie in different spans of `every` bytes.
fn passes(before: u64, after: u64, every: u64) -> bool {
    before / every != after / every && after.wrapping_sub(before) <= RELAX_CALL_MAX
}

/// How reading ends when there is nothing to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Not at all: more may come.
    Open,
    /// End of file.
    Eof,
    /// `ECONNRESET`.
    Reset,
    /// `ENOTCONN`: it is no connection any more.
    Unconnected,
}

/// Options of a read.
#[derive(Clone, Copy, Default)]
pub struct ReadHow {
    /// `MSG_PEEK`.
    pub peek: bool,
    /// `MSG_TRUNC`: count, don't copy.
    pub discard: bool,
    /// Where ancillary data goes, if the call wants any.
    pub ancillary: Option<NonNull<Wanted>>,
}

impl Handle {
    /// Writes as much as fits. `Ok(true)`: everything is out. `EPIPE` and `ECONNRESET` as in Linux; `EBADF`: closed meanwhile.
    ///
    /// # Errors
    /// As above; those of [`pending::keep`] from a signal handler that interrupted a write to this very connection.
    #[inline(always)]
    pub fn try_write(&self, s: &Stream, from: &Buffers<'_>, at: &mut Cursor) -> Result<bool> {
        let Some(tx) = s.sock.tx.take() else { return pending::keep(s, from, at) };
        if !s.current(self) {
            return Err(Errno(libc::EBADF));
        }
        if s.writes_are_over() {
            drop(tx);
            return self.write_to_nobody(s, from, at);
        }
        let mut w = s.sock.writer();
        let start = w.tail;
        let before = at.done;
        let mut full = false;
        let total = from.total();
        while at.done < total {
            let Ok(span) = stream::reserve(s.out_ring(), s.out_dir, &mut w, total - at.done) else {
                return Err(s.violated());
            };
            let Some(span) = span else {
                s.sock.set_writer(w);
                full = true;
                break;
            };
            let filled = from.fill(&s.out_ring(), &span, at);
            if filled == 0 {
                s.sock.set_writer(w);
                return Err(Errno(libc::EFAULT));
            }
            let published = match from.single {
                Some(b) if from.urgent => {
                    // SAFETY: the application's byte, as above.
                    urgent::announce(s.out_dir, &w, unsafe { *b.base });
                    stream::commit_urgent(s.out_ring(), &mut w)
                }
                _ => stream::commit(s.out_ring(), &mut w, filled),
            };
            if published.is_err() {
                return Err(s.violated());
            }
            // With each record: a process that is killed in here leaves a relative who goes on at the right place.
            s.sock.set_writer(w);
            at.done += filled;
            if wake_is_due(s.out_dir) {
                self.tell_reader(s);
            }
            if from.urgent && s.out_dir.rx_watch.load(Ordering::Relaxed) & wake::RING_URGENT != 0 {
                self.ring_urgent();
            }
        }
        if s.out_dir.tx_wait.is_fenced() && passes(start, w.tail, RELAX_BYTES[1]) {
            s.out_dir.tx_wait.relax();
        }
        if at.done > before {
            stats::sent_to(self.index(), at.done - before, w.tail);
        }
        Ok(!full)
    }

    /// Lets `fill` put up to `n` bytes straight into the ring, which must not block. `None`: full. 0: `fill` is at its end.
    ///
    /// # Errors
    /// As sendfile(2), and those of `fill`.
    pub fn try_write_with(
        &self,
        s: &Stream,
        n: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize>,
    ) -> Result<Option<usize>> {
        let Some(_tx) = s.sock.tx.take() else { return Err(Errno(libc::EAGAIN)) };
        if !s.current(self) {
            return Err(Errno(libc::EBADF));
        }
        if s.writes_are_over() {
            return Err(Errno(libc::EPIPE));
        }
        let mut w = s.sock.writer();
        let Ok(span) = stream::reserve(s.out_ring(), s.out_dir, &mut w, n) else { return Err(s.violated()) };
        s.sock.set_writer(w);
        let Some(span) = span else { return Ok(None) };
        let Some(place) = s.out_ring().at(span.at, span.len) else { return Err(s.violated()) };
        // SAFETY: the span lies in the mapped ring and is ours to fill until the commit.
        let room = unsafe { core::slice::from_raw_parts_mut(place, span.len) };
        let got = fill(room)?;
        if got > 0 {
            let before = w.tail;
            if stream::commit(s.out_ring(), &mut w, got).is_err() {
                return Err(s.violated());
            }
            self.has_written(s, before, got, w);
        }
        Ok(Some(got))
    }

    /// Writes a first record that ancillary data belongs to, which `carry` brings to the kernel. False: full.
    ///
    /// # Errors
    /// As sendmsg(2), and those of `carry`.
    pub fn try_write_ancillary(
        &self,
        s: &Stream,
        from: &Buffers<'_>,
        at: &mut Cursor,
        carry: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        let Some(_tx) = s.sock.tx.take() else { return Err(Errno(libc::EAGAIN)) };
        if !s.current(self) {
            return Err(Errno(libc::EBADF));
        }
        if s.writes_are_over() {
            return Err(Errno(libc::EPIPE));
        }
        let mut w = s.sock.writer();
        let span = stream::reserve(s.out_ring(), s.out_dir, &mut w, from.total());
        s.sock.set_writer(w);
        let Ok(span) = span else { return Err(s.violated()) };
        let Some(span) = span else { return Ok(false) };
        let before = *at;
        let filled = from.fill(&s.out_ring(), &span, at);
        if filled == 0 {
            return Err(Errno(libc::EFAULT));
        }
        // The reader finds it at the kernel when it comes to the record.
        carry().inspect_err(|_| *at = before)?;
        let start = w.tail;
        if stream::commit_ancillary(s.out_ring(), &mut w, filled).is_err() {
            return Err(s.violated());
        }
        at.done += filled;
        self.has_written(s, start, filled, w);
        Ok(true)
    }

    /// A record of `n` bytes is published, from `before` on: keeps the writer's position, counts, and tells the reader.
    #[inline(always)]
    pub fn has_written(&self, s: &Stream, before: u64, n: usize, w: Writer) {
        s.sock.set_writer(w);
        stats::sent_to(self.index(), n, w.tail);
        if wake_is_due(s.out_dir) {
            self.tell_reader(s);
        }
        if s.out_dir.tx_wait.is_fenced() && passes(before, w.tail, RELAX_BYTES[1]) {
            s.out_dir.tx_wait.relax();
        }
    }

    /// The peer will not read. The first write after its close is swallowed (Linux: it goes out, and the reset comes back);
    /// from then on `EPIPE`.
    #[cold]
    fn write_to_nobody(&self, s: &Stream, from: &Buffers<'_>, at: &mut Cursor) -> Result<bool> {
        let bits = s.sock.shut.load(Ordering::Relaxed);
        if s.is_unix() {
            return if from.total() == 0 && bits & shut::WRITE == 0 {
                Ok(true)
            } else {
                Err(Errno(libc::EPIPE))
            };
        }
        if let Some(e) = s.take_error(self) {
            return Err(e);
        }
        if bits & (shut::WRITE | shut::BROKEN) != 0 {
            return Err(Errno(libc::EPIPE));
        }
        at.done = from.total();
        if at.done > 0 {
            s.sock.shut.fetch_or(shut::BROKEN, Ordering::Relaxed);
            // A peer that has shut down both directions and not closed meets that reset itself.
            s.out_dir.state.store(state::RST, Ordering::Release);
            self.notify_reader(s);
            // The reset comes back, which is an event of its own.
            crate::epoll::handle_changed(self);
        }
        Ok(true)
    }

    /// The peer's process died with bytes of ours unread: the kernel would have sent a reset.
    fn unread_at_death(&self, s: &Stream) -> bool {
        s.sock.dead.load(Ordering::Acquire) != 0
            && s.in_dir.state.load(Ordering::Acquire) == state::OPEN
            && !stream::drained(s.out_dir, &s.sock.writer())
    }

    /// Reads what is there, at most the buffers' length. `Ok(false)`: nothing was there.
    ///
    /// # Errors
    /// `EBADF`: closed meanwhile; `EAGAIN` from a signal handler that interrupted a read of this very connection;
    /// `ECONNRESET` when the peer broke the ring.
    #[inline(always)]
    pub fn try_read(&self, s: &Stream, to: &Buffers<'_>, at: &mut Cursor, how: ReadHow) -> Result<bool> {
        let Some(_rx) = s.sock.rx.take() else { return Err(Errno(libc::EAGAIN)) };
        if !s.current(self) {
            return Err(Errno(libc::EBADF));
        }
        let start = s.sock.reader();
        if start.pos == 0 && !stream::is_open(s.in_dir, s.conn.generation()) {
            return Ok(false);
        }
        let mut r = start;
        let before = at.done;
        let mut passed = false;
        while let Some(b) = to.get(at.index) {
            let left = b.len - at.offset;
            if left == 0 {
                at.index += 1;
                at.offset = 0;
                continue;
            }
            if b.is_nowhere() && !how.discard {
                if at.done == before && s.has_data() {
                    return Err(Errno(libc::EFAULT));
                }
                break;
            }
            let Ok(span) = stream::next(s.in_ring(), &mut r) else { return Err(s.violated()) };
            let Some(span) = span else { break };
            if span.urgent {
                match s.meets_urgent(&r, at.done > 0) {
                    Met::Data => {}
                    Met::Mark => {
                        // Stay before it.
                        (r.left, r.len) = (0, 0);
                        break;
                    }
                    Met::Hole if r.pos - start.pos > s.in_ring().size() => return Err(s.violated()),
                    Met::Hole => {
                        stream::take(&mut r, 1);
                        passed = true;
                        continue;
                    }
                }
            }
            if span.ancillary {
                crate::ancillary::fetch(self, how);
                at.barrier = true;
            }
            let n = span.len.min(left);
            if !how.discard {
                // SAFETY: the application's buffer, at least `n` bytes from `offset`.
                unsafe { s.in_ring().copy_out(span.at, b.base.add(at.offset), n) };
            }
            stream::take(&mut r, n);
            at.offset += n;
            at.done += n;
            if !how.peek && r.left == 0 {
                stream::release(s.in_dir, &r);
            }
            if at.barrier {
                break;
            }
        }
        let got = at.done - before;
        if how.peek || (got == 0 && !passed) {
            return Ok(got > 0);
        }
        self.has_read(s, start.pos, got, r);
        Ok(got > 0)
    }

    /// `n` bytes were taken, from `before` on: keeps the reader's position, counts, and tells the writer of the room.
    #[inline(always)]
    pub fn has_read(&self, s: &Stream, before: u64, n: usize, r: Reader) {
        s.sock.set_reader(r);
        let consumed = stream::release(s.in_dir, &r);
        ring::atomic::light_barrier();
        // Relaxed: ordered after the release of space by the barrier pair (SPEC 6.2).
        if s.in_dir.tx_wait.is_announced() || s.in_dir.tx_watch.load(Ordering::Relaxed) != 0 {
            self.notify_writer(s, consumed);
        }
        if s.in_dir.rx_wait.is_fenced() && passes(before, r.pos, RELAX_BYTES[0]) {
            s.in_dir.rx_wait.relax();
        }
        stats::received(self.index(), n);
    }

    /// After a publication: leaves its time if the other side wants that, and [`Handle::notify_reader`].
    #[inline(always)]
    fn tell_reader(&self, s: &Stream) {
        if s.out_dir.rx_watch.load(Ordering::Relaxed) & wake::STAMP != 0 {
            stamps::leave(s);
        }
        self.notify_reader(s);
    }

    /// Tells whoever sleeps or watches for data on the other side.
    #[cold]
    pub fn notify_reader(&self, s: &Stream) {
        self.notify(&s.out_dir.rx_wait, || s.out_dir.rx_watch.load(Ordering::Relaxed), s.conn.slot());
    }

    /// Tells whoever sleeps or watches for space on the other side, once there is as much as they want.
    #[cold]
    fn notify_writer(&self, s: &Stream, consumed: u64) {
        if s.in_dir.tx_wait.is_fenced() {
            // SeqCst: as in `claim_announced`, for the word below.
            fence(Ordering::SeqCst);
        }
        if consumed >= s.in_dir.tx_wake_at.load(Ordering::Relaxed) {
            self.notify_every_writer(s);
        }
    }

    /// Wakes the sleepers of `wait`, and leaves news for the lane (plus one; 0: none) that `watch` reads.
    fn notify(&self, wait: &SleepWord, watch: impl FnOnce() -> u32, slot: u16) {
        let Some(m) = segments::by_index(self.place.load(Ordering::Relaxed)) else { return };
        let here = wait.sleepers();
        // After the word: behind the fence that it may ask for (SPEC 6.7.5).
        let watch = watch();
        let mut there = Claimed::NONE;
        let each = watch & wake::RING_EACH != 0;
        let watch = wake::lane(watch);
        if here.how() & wake::FUTEX != 0 {
            sys::futex_wake_all(wait);
            stats::woke();
        }
        if watch != 0
            && let Some(theirs) = m.theirs()
        {
            there = theirs.leave_news(watch, slot);
        }
        if each {
            m.ring();
        } else {
            here.bell().into_iter().for_each(|bell| m.ring_bell(bell));
            there
                .bell()
                .filter(|bell| here.bell() != Some(*bell))
                .into_iter()
                .for_each(|bell| m.ring_bell(bell));
        }
    }

    /// Both directions changed (close): everybody on the other side looks again.
    pub fn notify_all(&self, s: &Stream) {
        self.notify_reader(s);
        self.notify_every_writer(s);
    }

    /// Tells who waits for space on the other side, however much they want, that none will come.
    pub fn notify_every_writer(&self, s: &Stream) {
        // A watch for space is for one time: the writer sets it again when it finds the ring full again.
        self.notify(&s.in_dir.tx_wait, || s.in_dir.tx_watch.swap(0, Ordering::AcqRel), s.conn.slot());
    }
}

/// One line to look at after each message: does anybody sleep or watch?
#[inline(always)]
fn wake_is_due(dir: &Direction) -> bool {
    ring::atomic::light_barrier();
    // Relaxed: ordered after the publication by the barrier pair (SPEC 6.2).
    dir.rx_wait.is_announced() || dir.rx_watch.load(Ordering::Relaxed) != 0
}

impl Stream {
    /// Nobody will ever read what we write from now on.
    #[inline(always)]
    #[must_use]
    pub fn reader_is_gone(&self) -> bool {
        self.out_dir.reader_closed.load(Ordering::Relaxed) & !READER_SHUT == self.conn.generation()
            || self.sock.dead.load(Ordering::Relaxed) != 0
    }

    /// We may not write any more, or nobody would read it.
    #[inline(always)]
    #[must_use]
    pub fn writes_are_over(&self) -> bool {
        self.sock.shut.load(Ordering::Relaxed) & (shut::WRITE | shut::BROKEN) != 0 || self.reader_is_gone()
    }

    /// Nobody will ever read what we have written, either.
    fn reader_has_closed(&self) -> bool {
        self.out_dir.reader_closed.load(Ordering::Relaxed) == self.conn.generation()
            || self.sock.dead.load(Ordering::Relaxed) != 0
    }

    /// The peer broke the rules of the ring: this connection is over, nothing else is.
    #[cold]
    fn violated(&self) -> Errno {
        self.sock.dead.store(1, Ordering::Release);
        self.sock.shut.fetch_or(shut::BROKEN, Ordering::Relaxed);
        self.out_dir.state.store(state::RST, Ordering::Release);
        Errno(libc::ECONNRESET)
    }

    /// Bytes wait.
    #[inline(always)]
    #[must_use]
    pub fn has_data(&self) -> bool {
        let mut r = self.sock.reader();
        if r.pos == 0 && !stream::is_open(self.in_dir, self.conn.generation()) {
            return false;
        }
        match stream::next(self.in_ring(), &mut r) {
            Ok(None) => false,
            Ok(Some(span)) if span.urgent => self.more_than_urgent(r),
            // A violation counts as readable: the read reports it.
            _ => true,
        }
    }

    /// Nothing has come, ended or failed: no event, but for room to write. False says nothing.
    #[inline(always)]
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let plain = self.sock.modes.load(Ordering::Relaxed) & !(modes::UNIX | modes::OOB_INLINE) == 0;
        plain
            && self.sock.shut.load(Ordering::Relaxed) == 0
            && self.sock.dead.load(Ordering::Relaxed) == 0
            && self.in_dir.state.load(Ordering::Acquire) == state::OPEN
            && self.in_dir.urgent.load(Ordering::Relaxed) == 0
            && !self.has_data()
    }

    /// Enough bytes wait for poll(2), or the room for more is used up.
    #[inline(always)]
    #[must_use]
    pub fn readable(&self) -> bool {
        if self.has_lowat() { self.reaches_lowat() } else { self.has_data() }
    }

    /// `SO_RCVLOWAT` is more than one byte.
    #[inline(always)]
    #[must_use]
    pub fn has_lowat(&self) -> bool {
        self.sock.modes.load(Ordering::Relaxed) & modes::LOWAT != 0
    }

    #[cold]
    fn reaches_lowat(&self) -> bool {
        let r = self.sock.reader();
        if r.pos == 0 && !stream::is_open(self.in_dir, self.conn.generation()) {
            return false;
        }
        let Ok(there) = stream::unread(self.in_ring(), &r) else { return true };
        let wanted = self.sock.lowat.load(Ordering::Relaxed) as usize + usize::from(self.mark_hides_a_byte());
        there.bytes >= wanted || there.ring_bytes > self.in_ring().size() / 8 * 7
    }

    /// No more bytes will come than are there now.
    #[inline(always)]
    #[must_use]
    pub fn input_ended(&self) -> bool {
        self.sock.dead.load(Ordering::Acquire) != 0
            || self.sock.shut.load(Ordering::Relaxed) & shut::READ != 0
            || self.input_state() != state::OPEN
    }

    /// After a look at the ring (so the direction is open, SPEC 5.5): neither side has ended it, and nobody has died.
    #[inline(always)]
    #[must_use]
    pub fn is_open_to_read(&self) -> bool {
        self.in_dir.state.load(Ordering::Relaxed) == state::OPEN
            && self.sock.dead.load(Ordering::Relaxed) == 0
    }

    /// How the peer has ended the stream, as far as we can see it.
    #[must_use]
    pub fn input_state(&self) -> u32 {
        if !stream::is_open(self.in_dir, self.conn.generation()) {
            return state::OPEN;
        }
        match self.in_dir.state.load(Ordering::Acquire) {
            state::FIN if self.died_with_unread() => state::FIN_RST,
            ended => ended,
        }
    }

    /// The peer's process died with bytes of ours unread, while we had not finished: the kernel would have sent a reset.
    fn died_with_unread(&self) -> bool {
        self.sock.dead.load(Ordering::Acquire) != 0
            && self.out_dir.state.load(Ordering::Relaxed) == state::OPEN
            && !stream::drained(self.out_dir, &self.sock.writer())
    }

    /// How reading ends, asked when nothing was there. `Open` also if bytes came in between: read again.
    #[must_use]
    pub fn end(&self, h: &Handle) -> End {
        if !self.input_ended() || self.has_data() {
            return End::Open;
        }
        let bits = self.sock.shut.load(Ordering::Relaxed);
        if bits & shut::DISSOLVED != 0 {
            End::Unconnected
        } else if self.end_is_reset(h) && bits & shut::ERROR_SEEN == 0 {
            End::Reset
        } else {
            End::Eof
        }
    }

    /// The input has ended: by a reset?
    #[must_use]
    pub fn end_is_reset(&self, h: &Handle) -> bool {
        match self.input_state() {
            state::RST => true,
            state::OPEN if self.sock.dead.load(Ordering::Relaxed) == DEAD_RESET => true,
            state::OPEN => h.unread_at_death(self),
            _ => false,
        }
    }

    /// The error that is pending: told once, by whatever asks first. A reset after the end of the stream is `EPIPE`.
    #[must_use]
    pub fn pending_error(&self, h: &Handle) -> Option<Errno> {
        let bits = self.sock.shut.load(Ordering::Relaxed);
        if bits & shut::ERROR_SEEN != 0 {
            None
        } else if self.end_is_reset(h) {
            Some(Errno(libc::ECONNRESET))
        } else if bits & shut::BROKEN != 0 || self.input_state() == state::FIN_RST {
            Some(Errno(libc::EPIPE))
        } else {
            None
        }
    }

    /// Tells the pending error.
    pub fn take_error(&self, h: &Handle) -> Option<Errno> {
        let error = self.pending_error(h);
        if error.is_some() {
            self.sock.shut.fetch_or(shut::ERROR_SEEN | shut::BROKEN, Ordering::Relaxed);
        }
        error
    }

    /// A write would take at least something worth the while, or fail at once. If not, the reader knows from now on
    /// when to tell (if a sleeper or watch is announced, too).
    #[must_use]
    pub fn writable(&self) -> bool {
        let bits = self.sock.shut.load(Ordering::Relaxed);
        if bits & shut::TO_KERNEL != 0 {
            // The kernel says so.
            return false;
        }
        if bits & (shut::WRITE | shut::BROKEN) != 0
            || self.reader_has_closed()
            || (self.is_unix() && self.reader_is_gone())
        {
            return true;
        }
        let mut w = self.sock.writer();
        let ring = self.out_ring();
        let writable_bytes = ring.size() / WRITABLE_PART;
        let room = stream::has_room(ring, self.out_dir, &mut w, writable_bytes).unwrap_or(true);
        if !room {
            // Relaxed: before the announcement, which the heavy barrier orders.
            self.out_dir.tx_wake_at.store(stream::room_at(ring, &w, writable_bytes), Ordering::Relaxed);
        }
        room
    }

    /// Bytes that the peer's half of the buffer does not hold (`SIOCOUTQ`): in Linux they would wait to be acknowledged.
    #[must_use]
    pub fn unacknowledged(&self) -> u64 {
        let unread = self.sock.writer().tail.saturating_sub(self.out_dir.consumed.load(Ordering::Relaxed));
        let size = self.out_ring().size();
        unread.min(size).saturating_sub(size / 2)
    }

    /// Where the records end that have come so far: more arrived if that changes.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        let r = self.sock.reader();
        if r.pos == 0 && !stream::is_open(self.in_dir, self.conn.generation()) {
            return 0;
        }
        // What a relative reads at this moment may look like anything: one look in vain comes of it.
        stream::unread(self.in_ring(), &r).map_or(u64::MAX, |there| r.pos + there.ring_bytes)
    }

    /// Payload bytes that can be read now (`FIONREAD`).
    #[must_use]
    pub fn available(&self) -> usize {
        let r = self.sock.reader();
        if r.pos == 0 && !stream::is_open(self.in_dir, self.conn.generation()) {
            return 0;
        }
        self.before_mark(&r).or_else(|_| stream::unread(self.in_ring(), &r).map(|u| u.bytes)).unwrap_or(0)
    }
}
