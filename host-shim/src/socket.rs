//! The life of a descriptor: made, duplicated, shut down, closed.

use core::sync::atomic::Ordering;

use ring::msg::{ConnId, Request};
use ring::segment::{READER_SHUT, state};
use ring::stats::{Reason, SocketState};
use ring::{stream, wake};

use crate::handle::{self, Handle, Kind, NewStream, Stream, touched};
use crate::segments::{self, Mapped};
use crate::sock::{self, Sock, shut};
use crate::sys::NoSignals;
use crate::{
    bells, config, coordinator, early, epoll, faces, fds, file, lazy, leave, listener, overlay, ports,
    process, stamps, stats, sys, table, unix, wait,
};

/// A socket that the kernel has just made: from now on we know it. TCP sockets attach the process first.
pub fn made(fd: i32, domain: i32, ty: i32) {
    made_with(fd, domain, ty, 0);
}

/// [`made`], of one with that face ([`crate::fresh`]).
pub fn made_with(fd: i32, domain: i32, ty: i32, face: u32) {
    listener::serving();
    let kind = ty & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
    let tcp = (domain == libc::AF_INET || domain == libc::AF_INET6) && kind == libc::SOCK_STREAM;
    // A name decides whether an AF_UNIX socket needs an agent.
    let attached = if tcp { process::ensure_attached() } else { !process::is_inert() };
    forget(fd);
    let Some(h) = handle::allocate(Kind::Kernel, fd, domain, kind) else { return };
    faces::given(h, face);
    lazy::begin(h, ty);
    if !table::set(fd, h) {
        release(h);
        return;
    }
    let reason = match stats::passed_through(domain, kind) {
        Reason::None if !attached => Reason::NoAgent,
        reason => reason,
    };
    stats::set_reason(h.index(), reason);
}

/// The kernel gave `fd` out again behind our back (a close that we did not see): whatever we knew is history.
pub fn forget(fd: i32) {
    if let Some(old) = table::remove(fd) {
        stats::escaped();
        release(old);
    }
}

/// The kernel has given out `fd` (handed through) for something that is not ours. If we had that number in use, somebody has
/// closed ours by a system call that did not come through libc.
#[inline(always)]
pub fn appeared(fd: i32) -> i32 {
    if table::is_ours(fd) {
        return sys::keep_errno(|| {
            reappeared(fd);
            fd
        });
    }
    fd
}

#[cold]
fn reappeared(fd: i32) {
    if process::is_borrowed() {
        return;
    }
    let _no_signals = NoSignals::new();
    if table::is_internal(fd) {
        table::remove_internal(fd);
        stats::escaped();
        config::lost(fd);
        process::lost(fd);
        segments::lost(fd);
        wait::lost(fd);
        bells::lost(fd);
        faces::lost(fd);
        ports::lost(fd);
    } else {
        forget(fd);
    }
}

/// The kernel connected this socket, or accepted it.
pub fn went_to_kernel(fd: i32, h: &Handle, reason: Reason) {
    h.touch(touched::CONNECTED);
    let (local, peer) = (crate::options::kernel_name(fd, true), crate::options::kernel_name(fd, false));
    stats::set_state(h.index(), SocketState::Kernel, reason, Some((local, peer)));
}

/// Makes `h` a connection in user space. `None`: the segment can't be mapped; `h` and `sock` are unchanged.
pub fn join(h: &'static Handle, sock: &'static Sock, conn: ConnId, side: u32) -> Option<()> {
    take_up(h, sock, conn, side, true)
}

/// As [`join`], for a connection that this process inherited: its streams go on where they are.
pub fn rejoin(h: &'static Handle, sock: &'static Sock, conn: ConnId, side: u32) -> Option<()> {
    take_up(h, sock, conn, side, false)
}

fn take_up(h: &'static Handle, sock: &'static Sock, conn: ConnId, side: u32, fresh: bool) -> Option<()> {
    let (index, mapped) = segments::map(conn.segment(), side)?;
    let joined = join_mapped(h, sock, conn, side, fresh, (index, mapped));
    if joined.is_none() {
        mapped.leave(conn.slot());
    }
    joined
}

fn join_mapped(
    h: &'static Handle,
    sock: &'static Sock,
    conn: ConnId,
    side: u32,
    fresh: bool,
    (index, mapped): (u32, &'static segments::Mapped),
) -> Option<()> {
    let segment = mapped.segment()?;
    let slot = segment.slots.get(usize::from(conn.slot()))?;
    let [d0, d1] = &slot.directions;
    let (out_dir, in_dir) = if side == 0 { (d0, d1) } else { (d1, d0) };
    let rings = [segment.ring(conn.slot(), side)?, segment.ring(conn.slot(), 1 - side)?];
    sock.conn.store(conn.0, Ordering::Relaxed);
    h.become_stream(&NewStream { sock, conn, segment: index, side, dirs: [out_dir, in_dir], rings });
    if fresh {
        // What the last connection in this slot left behind of ours.
        in_dir.rx_wait.reset();
        out_dir.tx_wait.reset();
        for word in [&in_dir.rx_watch, &out_dir.tx_watch] {
            word.store(0, Ordering::Relaxed);
        }
        let s = h.stream()?;
        if !s.is_unix() {
            stamps::follow(&s);
        }
        stream::open(s.out_ring(), s.out_dir, conn.generation());
    }
    mapped.enter(conn.slot(), h);
    // Of AF_UNIX, the kernel tells the end of a peer that has never joined.
    if let Some(how) = early::gone(conn)
        && (!h.is_unix() || stream::is_open(in_dir, conn.generation()))
    {
        sock.dead.store(how, Ordering::Release);
    }
    stats::set_conn(h.index(), conn, side);
    stats::set_state(h.index(), SocketState::User, Reason::None, Some(sock.addrs()));
    epoll::became_stream(h);
    Some(())
}

/// One reference less: the last one tears down.
#[inline(always)]
pub fn release(h: &Handle) {
    if h.release() {
        tear_down(h);
    }
}

#[cold]
fn tear_down(h: &Handle) {
    epoll::forget_handle(h);
    match h.kind() {
        Kind::Stream => {
            if let Some(s) = h.stream() {
                close_stream(h, &s);
            }
        }
        Kind::Listener => {
            listener::forget(h);
            listener::let_go(h);
        }
        Kind::Epoll => epoll::closed(h),
        Kind::Overlay => overlay::closed(h),
        Kind::Kernel if h.is_unix() => unix::closed(h),
        Kind::Kernel | Kind::Free => {}
    }
    fds::discard(h.kept.load(Ordering::Acquire) - 1);
    h.free();
}

/// This process's last descriptor of a connection is gone. The last process of the family ends the stream.
fn close_stream(h: &Handle, s: &Stream) {
    let last = s.sock.processes.fetch_sub(1, Ordering::AcqRel) == 1;
    // Calls of other threads that hold a lock finish first; later ones see that the connection is no longer theirs.
    let tx = s.sock.tx.take();
    let rx = s.sock.rx.take();
    h.conn.store(0, Ordering::Relaxed);
    if last {
        end_stream(s);
    }
    drop((tx, rx));
    if last {
        h.notify_all(s);
        // The next connection in this slot begins when the coordinator has heard of this one's end.
        s.in_dir.rx_wait.retire();
    }
    let side = h.side.load(Ordering::Relaxed);
    // A child that has not attached does so to let go of it.
    if h.is_current() && process::is_known() {
        let request = Request::Close { conn: s.conn, side, finished: last };
        // What the peer is to know stands in the stream then. (A relative that was killed is still counted: the coordinator knows better.)
        let _ = if last { coordinator::post_quietly(request) } else { coordinator::post(request) };
    }
    if let Some(m) = segments::by_index(h.place.load(Ordering::Relaxed)) {
        m.leave(s.conn.slot());
    }
    ports::leave(h, s.conn, last);
    if last {
        s.sock.free();
    }
}

/// connect(2) to `AF_UNSPEC`: the connection is reset, for forked relatives that hold it, too, and `h` is a kernel socket again.
pub fn dissolve(h: &Handle, s: &Stream) {
    let tx = s.sock.tx.take();
    s.sock.linger_reset.store(1, Ordering::Relaxed);
    s.sock.shut.fetch_or(shut::READ | shut::WRITE | shut::BROKEN | shut::DISSOLVED, Ordering::Relaxed);
    end_stream(s);
    drop(tx);
    h.notify_all(s);
    wake_own_side(h, s);
    epoll::left_user_space(h);
    close_stream(h, s);
    h.set_kind(Kind::Kernel);
    stats::set_state(h.index(), SocketState::Idle, Reason::None, None);
}

/// As close(2) of the last descriptor: unread data, or a linger time of 0, makes it a reset.
fn end_stream(s: &Stream) {
    let reset = s.has_data() || (!s.is_unix() && s.sock.linger_reset.load(Ordering::Relaxed) != 0);
    // Relaxed: published by the state below; a writer that sees it late writes into the void, as on a network.
    s.in_dir.reader_closed.store(s.conn.generation(), Ordering::Relaxed);
    let end = match (s.out_dir.state.load(Ordering::Relaxed), reset) {
        (state::OPEN, false) => state::FIN,
        (state::OPEN, true) => state::RST,
        // Linux: when both ends have finished there is nothing left to reset.
        (state::FIN, true) if s.input_state() == state::OPEN => state::FIN_RST,
        (ended, _) => ended,
    };
    // Release: pairs with the reader's Acquire: it sees all records before the end.
    s.out_dir.state.store(end, Ordering::Release);
}

/// Who on our own side waits for the connection looks again, for a reason that is not in the ring. This process's threads in poll(2)
/// are woken by [`wait::kick_others`]; what they announced to the peer stays.
#[cold]
pub fn wake_own_side(h: &Handle, s: &Stream) {
    let has_relatives = s.sock.processes.load(Ordering::Relaxed) > 1;
    for word in [&s.in_dir.rx_wait, &s.out_dir.tx_wait] {
        let claimed = word.sleepers();
        if let Some(bell) = claimed.bell() {
            word.announce(wake::WIRE, bell);
            let _ = has_relatives && bells::ring(bell);
        }
        if claimed.how() & wake::FUTEX != 0 {
            sys::futex_wake_all(word);
        }
    }
    if !has_relatives {
        return;
    }
    let Some(ours) = segments::by_index(h.place.load(Ordering::Relaxed)).and_then(Mapped::ours) else {
        return;
    };
    for watch in [&s.in_dir.rx_watch, &s.out_dir.tx_watch] {
        let sleeper = ours.leave_news(wake::lane(watch.load(Ordering::Relaxed)), s.conn.slot());
        let _ = sleeper.bell().is_some_and(bells::ring);
    }
}

/// shutdown(2) of a connection.
///
/// # Errors
/// `EINVAL` for an unknown `how`, `ENOTCONN` after a reset.
pub fn shutdown(h: &Handle, s: &Stream, how: i32) -> crate::sys::Result<()> {
    let bits = match how {
        libc::SHUT_RD => shut::READ,
        libc::SHUT_WR => shut::WRITE,
        libc::SHUT_RDWR => shut::READ | shut::WRITE,
        _ => return Err(crate::sys::Errno(libc::EINVAL)),
    };
    let _pinned = h.pin().ok_or(crate::sys::Errno(libc::EBADF))?;
    if !s.current(h) {
        return Err(crate::sys::Errno(libc::EBADF));
    }
    if !s.is_unix() && crate::poll::is_dead(h, s) {
        // In Linux, too, this wakes whoever waits.
        epoll::state_changed(h);
        crate::wait::kick_others();
        return Err(crate::sys::Errno(libc::ENOTCONN));
    }
    let _no_signals = NoSignals::new();
    let tx = s.sock.tx.take();
    // In Linux, too, a later connect is not the one that asks how the first went.
    s.sock.fresh_connect.store(0, Ordering::Relaxed);
    let both = s.sock.shut.fetch_or(bits, Ordering::Relaxed) | bits;
    if both & shut::READ != 0 && (both & shut::WRITE != 0 || s.is_unix()) {
        // What comes from now on is answered with a reset (AF_UNIX: not sent). Relaxed: as in `end_stream`.
        s.in_dir.reader_closed.store(s.conn.generation() | READER_SHUT, Ordering::Relaxed);
    }
    let ends = bits & shut::WRITE != 0 && s.out_dir.state.load(Ordering::Relaxed) == state::OPEN;
    if ends {
        s.out_dir.state.store(state::FIN, Ordering::Release);
    }
    drop(tx);
    // The peer hears of its input's end, once; that we read no more only who waits for room does.
    if ends {
        h.notify_reader(s);
    }
    if bits & shut::READ != 0 {
        h.notify_every_writer(s);
    }
    // Our own threads that sleep on it look again, too; so do relatives, of whom the words in the segment name one.
    wake_own_side(h, s);
    if s.sock.processes.load(Ordering::Relaxed) > 1 && h.is_current() && process::is_known() {
        let side = h.side.load(Ordering::Relaxed);
        let _ = coordinator::post(Request::Shut { conn: s.conn, side });
    }
    epoll::state_changed(h);
    crate::wait::kick_others();
    Ok(())
}

/// Before close(2), dup2(2) onto it, and the like: `fd` stops being ours. The kernel's descriptor is still open.
pub fn closing(fd: i32) {
    let Some(h) = table::get(fd) else { return };
    if process::is_borrowed() {
        // A set is known by its mark.
        if h.kind() != Kind::Epoll {
            leave::moves(h);
        }
        return;
    }
    // Locks are taken only for these.
    let locks = !matches!(h.kind(), Kind::Kernel | Kind::Overlay)
        || h.regs.load(Ordering::Relaxed) != 0
        || h.was(touched::OFFERED);
    let is_stream = h.kind() == Kind::Stream;
    let _no_signals = locks.then(|| if is_stream { NoSignals::briefly() } else { NoSignals::new() });
    if matches!(h.kind(), Kind::Listener | Kind::Epoll) && h.is_held_by_calls_alone() {
        keep_for_calls(fd, h);
    }
    let removed = {
        let _unchanged = faces::removing(h);
        table::remove(fd)
    };
    let Some(h) = removed else { return };
    if h.has_others() {
        stats::moved(h, fd);
    }
    release(h);
}

/// Before close(2) of the last descriptor of a listener or a set: calls that wait on it go on, as in Linux.
fn keep_for_calls(fd: i32, h: &Handle) {
    if let Some(kept) = fds::duplicate(fd) {
        h.kept.store(kept + 1, Ordering::Release);
        epoll::moved(h, kept);
    }
}

/// A descriptor of what a call waits on: the one that it was given, unless another thread has closed that.
pub fn descriptor(fd: i32, h: &Handle) -> i32 {
    if table::get(fd).is_some_and(|other| core::ptr::eq(other, h)) {
        return fd;
    }
    let kept = h.kept.load(Ordering::Acquire).checked_sub(1).filter(|fd| *fd >= 0);
    kept.or_else(|| table::find(h)).unwrap_or(-1)
}

/// After dup(2) and the like: `new` is what `old` is.
pub fn duplicated(old: i32, new: i32) {
    if process::is_borrowed() {
        return table::get(old).map_or((), leave::moves);
    }
    let _no_signals = NoSignals::new();
    forget(new);
    let Some(h) = table::get(old).filter(|h| h.retain()) else { return };
    if !table::set(new, h) {
        release(h);
        return;
    }
    file::adopt(new);
    overlay::duplicated(new);
}

/// Before fork: everything that the child inherits gets one more process.
pub fn count_child() {
    for sock in shared() {
        sock.processes.fetch_add(1, Ordering::AcqRel);
    }
}

/// The child that was counted did not come to be.
pub fn uncount_child() {
    for sock in shared() {
        sock.processes.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a child shares with its parent.
fn shared() -> impl Iterator<Item = &'static Sock> {
    handle::all().filter(|h| h.is_in_user_space()).filter_map(Handle::sock)
}

/// Before fork: what parent or child does with a socket that neither listens nor is connected yet, the other must see. Only
/// the kernel can show it that.
pub fn leave_unconnected_to_kernel() {
    for h in handle::all().filter(|h| h.kind() == Kind::Kernel && h.is_tcp() && !h.was(touched::CONNECTED)) {
        h.touch(touched::SHARED);
    }
}

/// After fork, in the child: calls that the parent's other threads were in keep nothing open here.
pub fn forget_calls() {
    handle::next_era();
    for h in handle::all() {
        h.touched.fetch_and(!touched::CONNECTING, Ordering::Relaxed);
        if h.forget_pins() {
            tear_down(h);
        }
    }
}

/// Is there anything that a child would share?
pub fn has_shared() -> bool {
    handle::all().any(Handle::is_in_user_space)
}

/// Is a connection among that?
pub fn has_connections() -> bool {
    handle::all().any(|h| h.kind() == Kind::Stream)
}

/// A new shared state for a socket that is about to become a connection or listener.
pub fn new_sock() -> Option<&'static Sock> {
    sock::allocate()
}
