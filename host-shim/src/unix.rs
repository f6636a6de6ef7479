//! `AF_UNIX` stream sockets (unix(7)): the kernel connects and accepts them, and they begin on its sockets, so names, permissions,
//! the accept queue and who the other side is are its own. A connection that has carried some messages leaves it for a ring:
//!
//! 1. The client offers its end to the coordinator, and takes a name that says so (SPEC 3.10).
//! 2. The server reads that name off its end, now and then, and claims the connection. Both get memory that they share. Nobody
//!    believes anybody: each says whom the kernel shows at the other end (`SO_PEERCRED`), and the coordinator compares.
//! 3. Each side *joins*: it listens to both ways from now on ([`crate::dual`]), and shows that by opening its direction.
//! 4. Who finds the other side joined writes to the ring from then on.
//!
//! The ends of a socketpair(2) are client and server by their order. The kernel shows both of them the process that made the pair; those who
//! share it are of its family, so that does for the coordinator's comparison as long as it lives.
//!
//! Nobody waits for the other one, and whoever never joins stays where he is. Only a process that alone holds its end joins, and
//! not while a call of another thread is with the kernel: that would never hear of the ring.
//!
//! `unsafe` is allowed here: calls to libc's originals and the C structures of the socket interface.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering, fence};

use libc::{sockaddr, socklen_t};
use ring::attach::Call;
use ring::msg::{Completion, ConnId, Request, Status, name_hash};
use ring::stats::{Reason, SocketState};
use ring::switch;

use crate::handle::{self, HANDLES_MAX, Handle, Kind, Stream, touched};
use crate::lock::Lock;
use crate::sock::{Sock, modes, shut};
use crate::sys::NoSignals;
use crate::{agent, coordinator, epoll, options, process, real, socket, stats, sys, table, wait};

/// Calls on a connection before its client offers it; if that was not possible, again after twice as many, and so on.
const OFFER_AT: u32 = 16;
/// Calls before its server looks whether it was offered; likewise.
const CLAIM_AT: u32 = 20;
/// So often in all.
const CLAIMS_MAX: u32 = 12;

/// Held while a connection leaves the kernel, and across fork.
static LEAVING: Lock = Lock::new();

/// For the fork handlers.
pub fn lock() -> &'static Lock {
    &LEAVING
}

/// The kernel has connected this socket, or accepted it.
pub fn connected(h: &Handle, accepted: bool) {
    let role = if accepted { touched::ACCEPTED } else { 0 };
    h.touch(touched::CONNECTED | touched::YOUNG | role);
    if accepted && process::is_announced() && !h.was(touched::PAIR) {
        // A child that serves its parent's listener is a server, and shown as one.
        process::is_known();
    }
    let reason = if process::is_inert() { Reason::NoAgent } else { Reason::Few };
    // Pairs are all kinds of things, and counted when they leave.
    let state = if h.was(touched::PAIR) { SocketState::Idle } else { SocketState::Kernel };
    stats::set_state(h.index(), state, reason, None);
}

/// The kernel has made a pair. Which end is the client's is no matter.
pub fn paired_by_kernel(ends: [i32; 2], domain: i32, ty: i32) {
    for (fd, accepted) in ends.into_iter().zip([false, true]) {
        socket::made(fd, domain, ty);
        if let Some(h) = table::get(fd).filter(|h| h.is_unix()) {
            h.touch(touched::PAIR);
            connected(h, accepted);
        }
    }
}

/// A listener that we know nothing of (inherited by exec, or received) has accepted `new`, which may be of `AF_UNIX`.
pub fn accepted_unseen(listener: i32, new: i32) {
    let is = |name, value| options::kernel_number(new, libc::SOL_SOCKET, name) == Some(value);
    if !is(libc::SO_DOMAIN, libc::AF_UNIX) || !is(libc::SO_TYPE, libc::SOCK_STREAM) {
        return;
    }
    for (fd, what) in [(listener, listening as fn(&Handle)), (new, |h| connected(h, true))] {
        socket::made(fd, libc::AF_UNIX, libc::SOCK_STREAM);
        if let Some(h) = table::get(fd) {
            what(h);
        }
    }
    if let Some(l) = table::get(listener) {
        vouch(listener, l);
    }
}

/// After an accept(2): if another process has called listen(2), the coordinator must hear that this one accepts there. The agent
/// tells it, who sees by the listener that it is true. Once for each coordinator.
pub fn vouch(fd: i32, l: &Handle) {
    let epoch = process::epoch();
    if !process::is_attached() || l.epoch.swap(epoch, Ordering::Relaxed) == epoch {
        return;
    }
    let listens = options::kernel_peer_credentials(fd).map(|[pid, ..]| pid);
    if listens == Some(sys::getpid()) {
        return;
    }
    let _no_signals = NoSignals::new();
    let _ = agent::call_with(Call::Vouch, &[sys::borrow(fd)]);
}

/// After listen(2). Who accepts there may be a child, which the coordinator must know to be one.
pub fn listening(h: &Handle) {
    h.touch(touched::LISTENS);
    let reason = if process::ensure_attached() { Reason::None } else { Reason::NoAgent };
    h.epoch.store(0, Ordering::Relaxed);
    stats::set_state(h.index(), SocketState::Listening, reason, None);
}

/// [`Handle::ready`] of a young connection: it is just leaving. Below: calls that are with the kernel.
const LOCKED: u32 = 1 << 31;

/// A call is with the kernel, until this is dropped.
pub struct Busy {
    count: &'static AtomicU32,
    era: u32,
}

impl Busy {
    /// `None`: it has left.
    fn new(h: &'static Handle) -> Option<Busy> {
        loop {
            // Acquire: pairs with the Release of whoever unlocks: we see what it has become.
            if h.ready.fetch_add(1, Ordering::AcqRel) & LOCKED == 0 {
                let busy = Busy { count: &h.ready, era: handle::era() };
                return (h.kind() == Kind::Kernel).then_some(busy);
            }
            h.ready.fetch_sub(1, Ordering::AcqRel);
            rustix::thread::sched_yield();
        }
    }

    /// A write that goes through the kernel, of a connection that is joined.
    pub fn writer(sock: &'static Sock) -> Busy {
        switch::enter(&sock.kernel_writers);
        Busy { count: &sock.kernel_writers, era: handle::era() }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // In a child that was forked in the middle of a call (by a signal handler) it is not its own.
        if self.era == handle::era() {
            switch::leave(self.count);
        }
    }
}

/// What a call on a descriptor goes to.
pub type Way = Result<(&'static Handle, Stream), Option<Busy>>;

/// A read or write of a young connection: counts it, and lets it leave when that is due. `None`: it is not the kernel's any more.
#[cold]
pub fn decide(fd: i32, h: &'static Handle) -> Option<Busy> {
    let calls = h.turns.fetch_add(1, Ordering::Relaxed) + 1;
    if is_due(h, calls) {
        let errno = sys::errno();
        leave(fd, h);
        sys::set_errno(errno);
    }
    Busy::new(h)
}

fn is_due(h: &Handle, calls: u32) -> bool {
    if h.was(touched::OFFERED) {
        coordinator::pump();
        return h.conn.load(Ordering::Relaxed) != 0;
    }
    let at = if h.was(touched::ACCEPTED) { CLAIM_AT } else { OFFER_AT };
    calls.is_multiple_of(at) && (calls / at).is_power_of_two()
}

/// Why a connection does not leave.
enum Not {
    /// Not now.
    Yet,
    /// Never.
    Ever(Reason),
}

#[cold]
fn leave(fd: i32, h: &'static Handle) {
    // A handler of a signal must not come between: it could not use the connection.
    let _no_signals = NoSignals::new();
    let Some(_leaving) = LEAVING.take() else { return };
    if process::is_borrowed()
        || !h.was(touched::YOUNG)
        || h.ready.compare_exchange(0, LOCKED, Ordering::AcqRel, Ordering::Relaxed).is_err()
    {
        return;
    }
    let left = if h.was(touched::ACCEPTED) {
        claim(fd, h)
    } else if h.was(touched::OFFERED) {
        let conn = ConnId(h.conn.load(Ordering::Acquire));
        join(fd, h, conn, 0).map_err(Not::Ever)
    } else {
        offer(fd, h)
    };
    match left {
        Ok(()) | Err(Not::Yet) => {}
        Err(Not::Ever(reason)) => stay(h, reason),
    }
    h.ready.fetch_and(!LOCKED, Ordering::AcqRel);
}

/// It is the kernel's from now on.
pub fn stay(h: &Handle, reason: Reason) {
    h.touched.fetch_and(!touched::YOUNG, Ordering::AcqRel);
    give_up_offer(h);
    stats::set_reason(h.index(), reason);
}

/// [`stay`], if it is a young connection: something was done with it that only the kernel can do.
pub fn stays(fd: i32, reason: Reason) {
    if let Some(h) = table::get(fd).filter(|h| h.was(touched::YOUNG)) {
        let errno = sys::errno();
        let _no_signals = NoSignals::new();
        stay(h, reason);
        sys::set_errno(errno);
    }
}

/// Nobody shall claim it.
pub fn give_up_offer(h: &Handle) {
    if h.touched.fetch_and(!touched::OFFERED, Ordering::AcqRel) & touched::OFFERED == 0 {
        return;
    }
    let _ = coordinator::post(Request::Retract { serial: serial_of(h) });
    // Pairs with the fence in `paired`: it sees that there is no offer, or we see the connection.
    fence(Ordering::SeqCst);
    let conn = ConnId(h.conn.swap(0, Ordering::AcqRel));
    if conn.0 != 0 {
        let _ = coordinator::post(Request::Close { conn, side: 0, finished: false });
    }
}

/// The number of a handle's offer: no other one has it until the handle has been used a few thousand times again.
#[allow(clippy::cast_possible_truncation)] // handles are few
fn serial_of(h: &Handle) -> u32 {
    const N: u32 = HANDLES_MAX as u32;
    h.index() + N * (h.incarnation.load(Ordering::Relaxed) % (u32::MAX / N))
}

/// The coordinator says that an offer was claimed. False: there is none.
pub fn paired(serial: u32, conn: ConnId) -> bool {
    let found = handle::by_index(serial % u32::try_from(HANDLES_MAX).unwrap_or(u32::MAX));
    let offers = |h: &&Handle| h.was(touched::OFFERED) && serial_of(h) == serial;
    let Some(h) = found.filter(offers) else { return false };
    h.conn.store(conn.0, Ordering::Release);
    fence(Ordering::SeqCst);
    h.was(touched::OFFERED) || h.conn.swap(0, Ordering::AcqRel) != conn.0
}

/// Whom the kernel shows at the other end, if everything else allows to leave it, too.
fn peer(fd: i32, h: &Handle) -> Result<[u32; 2], Not> {
    if h.sock().is_some_and(|s| s.processes.load(Ordering::Acquire) > 1) {
        return Err(Not::Yet);
    }
    if !process::ensure_attached() {
        return Err(Not::Ever(Reason::NoAgent));
    }
    if let Some(reason) = h.kernel_only() {
        return Err(Not::Ever(reason));
    }
    if h.was(touched::SIGNALS) || epoll::has_oneshot(h) {
        return Err(Not::Ever(Reason::Option));
    }
    if !process::is_home(fd) || !process::is_seen_as_itself() {
        return Err(Not::Ever(Reason::Namespace));
    }
    match options::kernel_peer_credentials(fd) {
        Some([pid, uid, _]) if pid != 0 => Ok([pid, uid]),
        _ => Err(Not::Ever(Reason::Namespace)),
    }
}

/// The number of the peer's name.
fn peer_name(fd: i32) -> u64 {
    // SAFETY: all zero is a valid address.
    let mut name: libc::sockaddr_un = unsafe { core::mem::zeroed() };
    let mut len = socklen_t::try_from(size_of::<libc::sockaddr_un>()).unwrap_or(0);
    // SAFETY: room for `len` bytes.
    let r = unsafe { real::getpeername(fd, (&raw mut name).cast(), &raw mut len) };
    // SAFETY: plain bytes.
    let bytes = unsafe { core::slice::from_raw_parts((&raw const name).cast::<u8>(), size_of_val(&name)) };
    let path = bytes.get(size_of::<libc::sa_family_t>()..len as usize).filter(|_| r == 0);
    name_hash(path.unwrap_or(&[]))
}

fn offer(fd: i32, h: &'static Handle) -> Result<(), Not> {
    if h.was(touched::BOUND) {
        return Err(Not::Ever(Reason::Source));
    }
    let [pid, uid] = peer(fd, h)?;
    let (serial, name) = (serial_of(h), peer_name(fd));
    h.conn.store(0, Ordering::Relaxed);
    h.touched.fetch_or(touched::OFFERED, Ordering::AcqRel);
    match coordinator::call(Request::Offer { serial, pid, uid, name }) {
        Ok(Completion::Done { status: Status::Ok, .. }) => {}
        Ok(Completion::Done { status, .. }) => {
            h.touched.fetch_and(!touched::OFFERED, Ordering::AcqRel);
            return Err(Not::Ever(if status == Status::Quota { Reason::Quota } else { Reason::NoListener }));
        }
        _ => return Err(Not::Ever(Reason::CoordinatorGone)),
    }
    // It has a name then, and can't have another.
    h.touch(touched::BOUND);
    if token::bind(fd, process::function(), serial) { Ok(()) } else { Err(Not::Ever(Reason::Source)) }
}

fn claim(fd: i32, h: &'static Handle) -> Result<(), Not> {
    if h.turns.load(Ordering::Relaxed) >= CLAIM_AT << CLAIMS_MAX {
        return Err(Not::Ever(Reason::ClientUnshimmed));
    }
    let Some((epoch, function, serial)) = token::of_peer(fd) else {
        find_coordinator();
        return Err(Not::Yet);
    };
    let [pid, uid] = peer(fd, h)?;
    if epoch != process::epoch() {
        return Err(Not::Ever(Reason::CoordinatorGone));
    }
    match coordinator::call(Request::Claim { function, serial, pid, uid }) {
        Ok(Completion::Claimed { status: Status::Ok, conn }) => join(fd, h, conn, 1).map_err(Not::Ever),
        // Its name may be here before its offer is there.
        Ok(Completion::Claimed { status: Status::Empty, .. }) => Err(Not::Yet),
        Ok(Completion::Claimed { status, .. }) => Err(Not::Ever(match status {
            Status::Quota => Reason::Quota,
            Status::NoSegment => Reason::NoSegment,
            _ => Reason::Denied,
        })),
        _ => Err(Not::Ever(Reason::CoordinatorGone)),
    }
}

/// A client finds nobody to offer to when its server's coordinator is gone, and a server that only waits for offers would never
/// know that there is another one.
fn find_coordinator() {
    if process::is_attached() && !wait::agent_alive() {
        process::become_inert(process::epoch());
    }
    if process::is_inert() {
        process::ensure_attached();
    }
}

/// From now on it is in both worlds.
fn join(fd: i32, h: &'static Handle, conn: ConnId, side: u32) -> Result<(), Reason> {
    let close = || {
        let _ = coordinator::post(Request::Close { conn, side, finished: false });
    };
    // The claimer has let go of it, or a relative has got our end meanwhile.
    let alone = h.sock().is_none_or(|s| s.processes.load(Ordering::Acquire) == 1);
    let Some(sock) = h.sock().or_else(socket::new_sock).filter(|_| alone) else {
        close();
        h.touched.fetch_and(!touched::OFFERED, Ordering::AcqRel);
        return Err(if alone { Reason::TooMany } else { Reason::Shared });
    };
    h.set_sock(sock);
    options::take_over(fd, h, sock);
    sock.modes.fetch_or(modes::UNIX | modes::FROM_KERNEL, Ordering::Relaxed);
    sock.shut.store(shut::TO_KERNEL, Ordering::Relaxed);
    h.touched.fetch_and(!touched::OFFERED, Ordering::AcqRel);
    if socket::join(h, sock, conn, side).is_none() {
        close();
        return Err(Reason::NoSegment);
    }
    h.touched.fetch_and(!touched::YOUNG, Ordering::AcqRel);
    Ok(())
}

/// Has this process a listener?
pub fn listens() -> bool {
    handle::all().any(|h| h.kind() == Kind::Kernel && h.was(touched::LISTENS))
}

/// Connections that are in no other place than the kernel yet, and may leave it.
fn young() -> impl Iterator<Item = &'static Handle> {
    handle::all().filter(|h| h.kind() == Kind::Kernel && h.was(touched::YOUNG))
}

/// Is there something that a forked child could go on with, if the coordinator knows it to be one? A pair is mostly made for that, so
/// now is the time for the coordinator to get to know us.
pub fn is_inherited() -> bool {
    let kernels = || handle::all().filter(|h| h.kind() == Kind::Kernel);
    let any = || kernels().any(|h| h.was(touched::YOUNG | touched::LISTENS));
    let known = process::is_attached()
        || (process::is_announced() && any() && process::is_known())
        || (kernels().any(|h| h.was(touched::PAIR) && h.was(touched::YOUNG)) && process::ensure_attached());
    known && any()
}

/// Before fork: who alone holds an end, both will know. What is offered already stays.
pub fn count_child() {
    for h in young() {
        let sock = h.sock().or_else(socket::new_sock).filter(|_| !h.was(touched::OFFERED));
        let Some(sock) = sock else {
            stay(h, Reason::Shared);
            continue;
        };
        h.set_sock(sock);
        sock.processes.fetch_add(1, Ordering::AcqRel);
    }
}

/// After fork, in the child: calls of the parent's threads are not ours.
pub fn forget_calls() {
    for h in young() {
        h.ready.store(0, Ordering::Relaxed);
    }
}

/// The last descriptor of a kernel socket in this process is gone.
pub fn closed(h: &Handle) {
    give_up_offer(h);
    if let Some(sock) = h.sock()
        && sock.processes.fetch_sub(1, Ordering::AcqRel) == 1
    {
        sock.free();
    }
}

/// Before a child runs another program: what that inherits of young connections stays.
pub fn before_exec(who: crate::leave::Who) {
    if who == crate::leave::Who::Us {
        return;
    }
    for h in young() {
        let given = h.was(touched::SPAWNED | touched::MOVED);
        if given || table::find(h).is_none_or(|fd| !crate::leave::closes_on_exec(fd)) {
            stay(h, Reason::Shared);
        }
    }
}

/// Young connections in one poll(2) that may leave the kernel afterwards.
const POLLED_MAX: usize = 32;

/// Those of a poll(2) under way.
pub struct Polled {
    _busy: [Option<Busy>; POLLED_MAX],
}

/// Before poll(2), select(2) and the like sleep on these in the kernel. `None`: one has left it just now.
pub fn polled(fds: impl Iterator<Item = i32>) -> Option<Polled> {
    let mut busy = [const { None }; POLLED_MAX];
    let mut places = busy.iter_mut();
    for h in fds.filter_map(table::get).filter(|h| h.was(touched::YOUNG)) {
        match places.next() {
            Some(place) => *place = Some(Busy::new(h)?),
            None => stay(h, Reason::TooMany),
        }
    }
    Some(Polled { _busy: busy })
}

/// getsockname(2) or getpeername(2) of any `AF_UNIX` socket that we know.
///
/// # Safety
/// The application's arguments.
pub unsafe fn name(fd: i32, local: bool, addr: *mut sockaddr, len: *mut socklen_t) -> i32 {
    let call = if local { real::getsockname } else { real::getpeername };
    // SAFETY: by contract.
    unsafe {
        let room = if len.is_null() { 0 } else { *len };
        let r = call(fd, addr, len);
        if r == 0 {
            token::hide(addr, len, room);
        }
        r
    }
}

/// The names that clients take: abstract, `ipc-direct:` and three numbers in hexadecimal, epoch, function and serial.
pub mod token {
    use super::{process, real};
    use crate::options;
    use libc::{sockaddr, socklen_t};

    /// Bytes of an address before its path.
    const FAMILY_BYTES: usize = size_of::<libc::sa_family_t>();
    const PREFIX: &[u8] = b"\0ipc-direct:";
    const BYTES: usize = PREFIX.len() + 3 * 8 + 2;
    const LENGTH: usize = FAMILY_BYTES + BYTES;

    /// Names a socket.
    pub fn bind(fd: i32, function: u32, serial: u32) -> bool {
        // SAFETY: all zero is a valid address.
        let mut name: libc::sockaddr_un = unsafe { core::mem::zeroed() };
        name.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or(0);
        let mut text = [b':'; BYTES];
        let (prefix, rest) = text.split_at_mut(PREFIX.len());
        prefix.copy_from_slice(PREFIX);
        for (digits, value) in rest.chunks_mut(9).zip([process::epoch(), function, serial]) {
            for (i, to) in digits.iter_mut().take(8).rev().enumerate() {
                *to = b"0123456789abcdef".get((value >> (4 * i) & 15) as usize).copied().unwrap_or(0);
            }
        }
        for (to, from) in name.sun_path.iter_mut().zip(text) {
            *to = from.cast_signed();
        }
        let len = socklen_t::try_from(LENGTH).unwrap_or(0);
        // SAFETY: an address of that length.
        unsafe { real::bind(fd, (&raw const name).cast(), len) == 0 }
    }

    /// Epoch, function and serial, if the peer has such a name.
    pub fn of_peer(fd: i32) -> Option<(u32, u32, u32)> {
        // SAFETY: all zero is a valid address.
        let mut name: libc::sockaddr_un = unsafe { core::mem::zeroed() };
        let mut len = socklen_t::try_from(size_of::<libc::sockaddr_un>()).ok()?;
        // SAFETY: room for `len` bytes.
        let r = unsafe { real::getpeername(fd, (&raw mut name).cast(), &raw mut len) };
        if r != 0 { None } else { parse((&raw const name).cast(), len) }
    }

    fn parse(addr: *const sockaddr, len: socklen_t) -> Option<(u32, u32, u32)> {
        if len as usize != LENGTH || options::read_family(addr, len)? != libc::AF_UNIX {
            return None;
        }
        // SAFETY: the address has that length.
        let text = unsafe { core::slice::from_raw_parts(addr.cast::<u8>().add(FAMILY_BYTES), BYTES) };
        let mut numbers = text.strip_prefix(PREFIX)?.split(|c| *c == b':');
        let mut next = || {
            let digits = numbers.next().filter(|digits| digits.len() == 8)?;
            let digit = |value: u32, c: &u8| Some(value << 4 | char::from(*c).to_digit(16)?);
            digits.iter().try_fold(0, digit)
        };
        Some((next()?, next()?, next()?))
    }

    /// After the kernel wrote a name for the application: one of ours is none.
    ///
    /// # Safety
    /// The application's pointers, which the kernel has just written to; at first there was room for `room` bytes.
    pub unsafe fn hide(addr: *mut sockaddr, len: *mut socklen_t, room: socklen_t) {
        if addr.is_null() || len.is_null() {
            return;
        }
        // SAFETY: by contract.
        unsafe {
            if room as usize >= LENGTH && parse(addr, *len).is_some() {
                *len = socklen_t::try_from(FAMILY_BYTES).unwrap_or(0);
            }
        }
    }
}
