//! Listening in both worlds: one accept queue for clients that come through the coordinator and clients that come
//! through the kernel.
//!
//! The kernel's listening descriptor is made non-blocking, so that taking from its queue never blocks us; what the
//! application asked for is kept in the shared state.
//!
//! `unsafe` is allowed here: calls to libc's originals.
#![allow(unsafe_code)]

use core::ptr;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use core::time::Duration;

use ring::msg::{ACCEPT_WAIT, Addr, Completion, LISTEN_V6ONLY, Request, Status};
use ring::stats::{Reason, SocketState};
use rustix::event::{PollFd, PollFlags};

use crate::ahead::Accepted;
use crate::coordinator::Ticket;
use crate::handle::{self, Handle, Kind, touched};
use crate::reserved::Reserved;
use crate::sock::Sock;
use crate::sys::{Errno, NoSignals, Result};
use crate::wait::{self, Spin};
use crate::{
    ahead, arrivals, coordinator, early, faces, fds, holds, options, process, real, socket, stats, sys, table,
};

/// Every so many accepts the kernel's queue goes first, so that neither starves.
const KERNEL_TURN: u32 = 8;
/// Rounds of a busy wait between two looks at the kernel's queue, which are a system call each.
const SPIN_TURN: u32 = 32;
/// Longest sleep of a blocked accept before it looks at the kernel's queue by itself.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Listeners of this process: as many as the coordinator allows one.
static LISTENERS: [AtomicU32; 1024] = [const { AtomicU32::new(0) }; 1024];

/// Places of [`LISTENERS`] that were ever used.
static LISTENERS_USED: AtomicUsize = AtomicUsize::new(0);

/// Enters a listener into the list of them.
fn note(h: &Handle) {
    let value = h.index() + 1;
    let free = |l: &AtomicU32| l.compare_exchange(0, value, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    if let Some(at) = LISTENERS.iter().position(free) {
        LISTENERS_USED.fetch_max(at + 1, Ordering::AcqRel);
    }
}

/// Takes it out again.
pub fn forget(h: &Handle) {
    faces::forget(h);
    let value = h.index() + 1;
    let _ =
        LISTENERS.iter().any(|l| l.compare_exchange(value, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok());
}

/// Every listener of this process.
pub fn all() -> impl Iterator<Item = &'static Handle> {
    let used = LISTENERS.iter().take(LISTENERS_USED.load(Ordering::Acquire));
    let entered = used.filter_map(|l| l.load(Ordering::Acquire).checked_sub(1));
    entered.filter_map(handle::by_index).filter(|h| h.kind() == Kind::Listener)
}

/// Does this process have one on that port?
pub fn has_port(port: u16) -> bool {
    all().any(|h| h.sock().is_some_and(|sock| sock.addrs().0.port == port))
}

/// About to attach as a process that holds nothing: what it has of listeners the coordinator does not know to be its own.
pub fn disown_all() {
    for h in all() {
        // No coordinator's.
        h.epoch.store(0, Ordering::Relaxed);
    }
}

/// Before a call that may wait for clients, or as good a sign of work to come. A forked child that has not attached closes the listeners
/// first that it is not going to serve: who still has one attaches now.
#[inline(always)]
pub fn serving() {
    if process::is_announced() {
        attach_to_serve();
    }
}

#[cold]
fn attach_to_serve() {
    if all().next().is_some() {
        let saved = sys::errno();
        process::is_known();
        sys::set_errno(saved);
    }
}

/// After a successful listen(2): announce it to the coordinator.
pub fn listening(fd: i32, backlog: i32) {
    let Some(h) = table::get(fd) else { return };
    if h.kind() != Kind::Kernel || !h.is_tcp() || !process::is_attached() {
        return;
    }
    let signals = || arrivals::is_async(fd).then_some(Reason::Option);
    if let Some(reason) = h.kernel_only().or_else(signals) {
        stats::set_reason(h.index(), reason);
        return;
    }
    let local = options::kernel_name(fd, true);
    if !process::is_home(fd) {
        let addrs = Some((local, Addr::default()));
        return stats::set_state(h.index(), SocketState::Listening, Reason::Namespace, addrs);
    }
    let _no_signals = NoSignals::new();
    let Some(sock) = socket::new_sock() else {
        stats::set_reason(h.index(), Reason::TooMany);
        return;
    };
    match announce(fd, local, backlog) {
        Ok(number) => {
            sock.set_addrs(local, Addr::default());
            options::take_over_listener(fd, h, sock);
            options::set_kernel_nonblocking(fd);
            h.set_sock(sock);
            enter(h, number);
            stats::set_state(h.index(), SocketState::Listening, Reason::None, Some((local, Addr::default())));
            crate::epoll::became_listener(h);
        }
        Err(reason) => {
            stats::set_state(h.index(), SocketState::Listening, reason, Some((local, Addr::default())));
            sock.free();
        }
    }
}

/// Tells the coordinator of a listener. Its number there.
fn announce(fd: i32, addr: Addr, backlog: i32) -> core::result::Result<u32, Reason> {
    let limit = somaxconn();
    let backlog = u32::try_from(backlog).unwrap_or(limit).min(limit);
    let v6only = options::kernel_flag(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
    let flags = if v6only { LISTEN_V6ONLY } else { 0 };
    match coordinator::call(Request::Listen { addr, backlog, flags }) {
        Ok(Completion::Done { status: Status::Ok, value }) => Ok(value),
        Ok(Completion::Done { status: Status::Denied, .. }) => Err(Reason::Denied),
        Ok(_) => Err(Reason::Quota),
        Err(_) => Err(Reason::CoordinatorGone),
    }
}

/// The handle is a listener that the coordinator knows by `number`.
fn enter(h: &Handle, number: u32) {
    h.place.store(number, Ordering::Relaxed);
    h.epoch.store(process::epoch(), Ordering::Relaxed);
    h.set_kind(Kind::Listener);
    note(h);
    if early::ready(number) {
        coordinator::wait_at_coordinator(h, true);
    }
}

/// Before an accept, when the coordinator that knew the listener is gone: tells the new one, if there is one. Only who
/// accepts does this, so that no connection waits at a process that never will.
#[cold]
fn renew(fd: i32, h: &'static Handle, sock: &Sock) {
    // Whatever the old one had queued ended with it.
    ahead::forget(h);
    h.ready.store(0, Ordering::Release);
    if h.was(touched::WITHDRAWN) || !process::ensure_attached() || h.is_current() {
        return;
    }
    let _no_signals = NoSignals::new();
    let (local, _) = sock.addrs();
    let announced = match process::is_home(fd) {
        true => announce(fd, local, options::kernel_backlog(fd)),
        false => Err(Reason::Namespace),
    };
    let (number, reason) = match announced {
        Ok(number) => (number, Reason::None),
        // The next accept tries again.
        Err(Reason::CoordinatorGone) => return,
        // It is the kernel's, until there is another coordinator.
        Err(reason) => (0, reason),
    };
    forget(h);
    enter(h, number);
    stats::set_state(h.index(), SocketState::Listening, reason, Some((local, Addr::default())));
    crate::epoll::handle_changed(h);
}

/// The coordinator's number for a listener, if it knows it.
fn number_of(h: &Handle) -> Option<u32> {
    let number = h.place.load(Ordering::Relaxed);
    (number != 0 && h.is_current()).then_some(number)
}

/// This process holds the listener no more, and `h` has no part in it. If no relative holds it either, the coordinator has let go of
/// it when this returns: as in Linux, who connects from now on is refused, and who was not accepted is reset.
pub fn let_go(h: &Handle) {
    let Some(sock) = h.sock() else { return };
    ahead::give_back(h);
    // Acquire: pairs with the Release below of relatives, who have told the coordinator before.
    let shared = sock.processes.load(Ordering::Acquire) > 1;
    unlisten(h, !shared);
    if sock.processes.fetch_sub(1, Ordering::AcqRel) == 1 {
        if shared {
            // The last relative has let go in between: its word and ours are to be heard.
            unlisten(h, true);
        }
        sock.free();
    }
}

/// The coordinator may forget that this process holds the listener, and, if `heard`, has when this returns.
fn unlisten(h: &Handle, heard: bool) {
    let Some(listener) = number_of(h) else { return };
    let request = Request::Unlisten { listener };
    if heard {
        coordinator::done(request);
    } else {
        let _ = coordinator::post(request);
    }
}

/// Before others get a part in the listeners of this process.
pub fn share_all() {
    for h in all() {
        ahead::give_back(h);
    }
}

/// A listener that this process inherited; `number`: the coordinator's for it.
pub fn adopt(h: &Handle, sock: &'static Sock, number: u32) {
    h.set_sock(sock);
    enter(h, number);
    stats::set_state(h.index(), SocketState::Listening, Reason::None, Some(sock.addrs()));
}

fn somaxconn() -> u32 {
    let mut text = [0u8; 16];
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(c"/proc/sys/net/core/somaxconn", flags, rustix::fs::Mode::empty()) else {
        return 4096;
    };
    let fd = rustix::fd::IntoRawFd::into_raw_fd(file);
    let n = rustix::io::read(sys::borrow(fd), &mut text).unwrap_or(0);
    sys::close(fd);
    let digits = text.get(..n).and_then(|t| core::str::from_utf8(t).ok()).map(str::trim);
    digits.and_then(|d| d.parse().ok()).unwrap_or(4096)
}

/// Where accept(2) leaves the client's address.
#[derive(Clone, Copy)]
pub struct PeerOut {
    /// May be null.
    pub addr: *mut libc::sockaddr,
    /// May be null.
    pub len: *mut libc::socklen_t,
}

/// accept4(2) of a listener. The new descriptor.
///
/// # Errors
/// As accept4(2).
pub fn accept(fd: i32, h: &'static Handle, out: PeerOut, flags: i32) -> Result<i32> {
    let Some(sock) = h.sock() else { return Err(Errno(libc::EINVAL)) };
    if flags & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) != 0 {
        return Err(Errno(libc::EINVAL));
    }
    // As they are when the call begins: another thread's changes are for later calls.
    let nonblocking = sock.is_nonblocking();
    let limit = match sock.rx_timeout_us.load(Ordering::Relaxed) {
        0 => None,
        us => Some(Duration::from_micros(us)),
    };
    if !h.is_current() || !process::is_attached() {
        renew(fd, h, sock);
    }
    let mut call = Call { fd, h, sock, out, flags, reserved: None };
    if let Some(new) = call.try_accept(nonblocking)? {
        return Ok(new);
    }
    if nonblocking {
        return Err(Errno(libc::EAGAIN));
    }
    // As in Linux, the call keeps the listening socket, whoever closes it meanwhile.
    let pinned = h.pin().ok_or(Errno(libc::EBADF))?;
    let noted = pinned.note();
    call.reserved = Some(Reserved::waiting(call.listener(), h, flags)?);
    let result = call.wait(limit);
    drop((call, noted, pinned));
    result
}

/// accept4(2) under way.
struct Call {
    fd: i32,
    h: &'static Handle,
    sock: &'static Sock,
    out: PeerOut,
    flags: i32,
    /// The number that it will return, once it has to wait.
    reserved: Option<Reserved>,
}

impl Call {
    fn wait(&mut self, limit: Option<Duration>) -> Result<i32> {
        let start = sys::now();
        loop {
            let timeout = limit.map(|l| l.saturating_sub(sys::now() - start));
            if timeout.is_some_and(|t| t.is_zero()) {
                return Err(Errno(libc::EAGAIN));
            }
            if let Some(new) = self.block(timeout)? {
                return Ok(new);
            }
            if let Some(new) = self.try_accept(false)? {
                return Ok(new);
            }
        }
    }

    /// A busy wait for the answer. False: the time is over, or the kernel has somebody, whom the sleep that follows sees at once.
    fn spin(&self, ticket: Ticket) -> bool {
        let mut spin = Spin::new();
        let mut turn = 0u32;
        while !ticket.is_answered() {
            coordinator::pump();
            turn = turn.wrapping_add(1);
            if !spin.turn() || (turn.is_multiple_of(SPIN_TURN) && is_readable(self.listener())) {
                return ticket.is_answered();
            }
        }
        true
    }

    /// A descriptor of the listening socket: the one that the call was given, unless another thread has closed that.
    fn listener(&self) -> i32 {
        socket::descriptor(self.fd, self.h)
    }

    /// Whatever waits in either queue, without waiting for it. `asks`: the kernel, even if nobody waits there, for it may have an error to
    /// tell; accept(2) in vain costs more than twice as much as a look.
    fn try_accept(&mut self, asks: bool) -> Result<Option<i32>> {
        let turn = self.h.turns.fetch_add(1, Ordering::Relaxed);
        let kernel_first = turn % KERNEL_TURN == KERNEL_TURN - 1;
        if kernel_first
            && is_readable(self.listener())
            && let Some(new) = self.take_from_kernel()?
        {
            return Ok(Some(new));
        }
        if coordinator::has_news() || ahead::is_any() || coordinator::more_wait(self.h) {
            // Once for all of it.
            let signals = NoSignals::briefly();
            coordinator::pump_undisturbed(&signals);
            let ahead = ahead::take(&signals, self.h);
            if let Some(new) = ahead.or_else(|| self.take_from_coordinator(&signals)) {
                return self.install(&signals, &new).map(Some);
            }
        }
        if !asks && !is_readable(self.listener()) {
            return Ok(None);
        }
        self.take_from_kernel()
    }

    fn take_from_kernel(&mut self) -> Result<Option<i32>> {
        let flags = self.flags | if self.reserved.is_some() { libc::SOCK_CLOEXEC } else { 0 };
        // The kernel takes a number before it looks whether anybody is there.
        let numbering = fds::numbering().take();
        // SAFETY: the application's own arguments.
        let mut new = unsafe { real::accept4(self.listener(), self.out.addr, self.out.len, flags) };
        if new < 0 {
            let e = sys::errno();
            return if e.0 == libc::EAGAIN { Ok(None) } else { Err(e) };
        }
        if let Some(reserved) = self.reserved.take() {
            let moved = sys::duplicate_onto(new, reserved.fd());
            sys::close(new);
            if !moved {
                return Err(Errno(libc::ECONNABORTED));
            }
            new = reserved.keep();
        }
        drop(numbering);
        let (domain, ty) = self.h.family();
        socket::made(new, domain, ty);
        if let Some(n) = table::get(new) {
            socket::went_to_kernel(new, n, Reason::ClientUnshimmed);
        }
        // Why does it come this way? A server that only takes what the kernel tells it of would never know.
        if process::is_attached() && !wait::agent_alive() {
            process::become_inert(process::epoch());
        }
        Ok(Some(new))
    }

    fn take_from_coordinator(&self, signals: &NoSignals) -> Option<Accepted> {
        let listener = number_of(self.h).filter(|_| coordinator::more_wait(self.h))?;
        let request = Request::Accept { listener, flags: 0 };
        coordinator::call_undisturbed(signals, Some(self.h), request).ok().and_then(Accepted::of)
    }

    /// Makes a descriptor for a connection that the coordinator gave us.
    fn install(&mut self, _signals: &NoSignals, new: &Accepted) -> Result<i32> {
        if coordinator::more_wait(self.h)
            && self.sock.processes.load(Ordering::Relaxed) == 1
            && let Some(listener) = number_of(self.h)
        {
            ahead::ask(self.h, listener);
        }
        let (domain, ty) = self.h.family();
        let reserved = match self.reserved.take() {
            Some(reserved) => reserved.renewed(self.listener(), self.h, self.flags),
            None => Reserved::now(self.listener(), self.h, self.flags).inspect_err(|_| {
                ahead::give_back(self.h);
                let _ = coordinator::post(Request::Requeue { conn: new.conn });
            })?,
        };
        let fd = reserved.fd();
        let refuse = || coordinator::post(Request::Close { conn: new.conn, side: 1, finished: false });
        let made = handle::allocate(Kind::Kernel, fd, domain, ty).zip(socket::new_sock());
        let Some((n, sock)) = made else {
            let _ = refuse();
            return Err(Errno(libc::ENOMEM));
        };
        sock.set_addrs(new.local, new.peer);
        sock.nonblock.store(u32::from(self.flags & libc::SOCK_NONBLOCK != 0), Ordering::Relaxed);
        options::inherit(self.sock, sock);
        // The table knows it only when it is complete: another thread can't have the number yet.
        if socket::join(n, sock, new.conn, 1).is_none() {
            socket::release(n);
            sock.free();
            let _ = refuse();
            return Err(Errno(libc::ECONNABORTED));
        }
        faces::accepted(n, self.h, reserved.face());
        if !table::set(fd, n) {
            socket::release(n);
            return Err(Errno(libc::EMFILE));
        }
        options::write_addr(new.peer, domain, self.out.addr, self.out.len);
        Ok(reserved.keep())
    }

    /// Parks at the coordinator, which hands the next connection to the first parked, and waits, busy and then asleep, until that or a
    /// kernel connection comes.
    fn block(&mut self, timeout: Option<Duration>) -> Result<Option<i32>> {
        let h = self.h;
        let epoch = process::epoch();
        let parked = number_of(h).and_then(|listener| {
            let request = Request::Accept { listener, flags: ACCEPT_WAIT };
            Some((listener, coordinator::start(Some(h), request).ok()?))
        });
        let Some((listener, ticket)) = parked else {
            block_in_kernel(self.listener(), timeout)?;
            if !h.is_current() || !process::is_attached() {
                renew(self.listener(), h, self.sock);
            }
            return Ok(None);
        };
        let noted = holds::note(leave_queue, [listener as usize, ticket.packed()]);
        let limit = timeout.map_or(LOOK_AGAIN, |t| t.min(LOOK_AGAIN));
        let slept = if self.spin(ticket) {
            Ok(())
        } else {
            wait::sleep_with(Some(self.listener()), None, &|| ticket.is_answered(), Some(limit))
        };
        drop(noted);
        coordinator::pump();
        let answer = ticket.finish().or_else(|| unpark(listener, ticket));
        if let Some(new) = answer.and_then(Accepted::of) {
            return self.install(&NoSignals::briefly(), &new).map(Some);
        }
        if !wait::agent_alive() {
            process::become_inert(epoch);
        }
        match slept {
            Err(Errno(libc::EINTR)) if timeout.is_none() && sys::handlers_restart() => Ok(None),
            Err(e) => Err(e),
            Ok(()) => Ok(None),
        }
    }
}

/// Takes back the parked accept of a call that never returned; what came to it in between goes to somebody else.
fn leave_queue(listener: usize, ticket: usize) {
    let _no_signals = NoSignals::new();
    let listener = u32::try_from(listener).unwrap_or(0);
    coordinator::pump();
    let ticket = Ticket::unpacked(ticket);
    if let Some(new) = ticket.finish().or_else(|| unpark(listener, ticket)).and_then(Accepted::of) {
        let _ = coordinator::post(Request::Requeue { conn: new.conn });
    }
}

/// Takes the parked accept back; a connection that was already on its way is taken.
fn unpark(listener: u32, ticket: Ticket) -> Option<Completion> {
    let token = ticket.token;
    if coordinator::post(Request::CancelAccept { listener, token }).is_err() {
        ticket.abandon();
        return None;
    }
    let start = sys::now();
    let mut spin = Spin::new();
    while !ticket.is_answered() {
        coordinator::pump();
        if spin.turn() {
            continue;
        }
        if sys::now() - start > Duration::from_secs(2) || !wait::agent_alive() {
            ticket.abandon();
            return None;
        }
        wait::sleep_for_completions(&|| ticket.is_answered(), Duration::from_millis(100));
    }
    ticket.finish()
}

/// Somebody waits in the kernel's queue.
fn is_readable(fd: i32) -> bool {
    let mut set = [PollFd::from_borrowed_fd(sys::borrow(fd), PollFlags::IN)];
    rustix::event::poll(&mut set, Some(&sys::timespec(Duration::ZERO))) == Ok(1)
}

/// Without a coordinator only the kernel's queue is left, until there is one again; with too many accepts parked there, the
/// others wait for their turn.
fn block_in_kernel(fd: i32, timeout: Option<Duration>) -> Result<()> {
    let ms = timeout
        .into_iter()
        .chain([LOOK_AGAIN])
        .min()
        .map_or(-1, |t| i32::try_from(t.as_millis().max(1)).unwrap_or(i32::MAX));
    let mut set = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd of ours.
    if unsafe { real::poll(ptr::from_mut(&mut set), 1, ms) } < 0 {
        let e = sys::errno();
        if timeout.is_none() && sys::handlers_restart() {
            return Ok(());
        }
        return Err(e);
    }
    Ok(())
}

/// shutdown(2) of a listening socket ends the listening, in Linux: so here.
pub fn shut_down(fd: i32) {
    let Some(h) = table::get(fd) else { return };
    if h.kind() == Kind::Listener && !process::is_borrowed() {
        leave_to_kernel(fd, h, SocketState::Idle, Reason::None);
    }
}

/// From now on only the kernel serves this listener (or ended it).
pub fn leave_to_kernel(fd: i32, h: &Handle, state: SocketState, reason: Reason) {
    let _no_signals = NoSignals::new();
    let Some(sock) = h.sock() else { return };
    forget(h);
    h.set_kind(Kind::Kernel);
    stats::set_state(h.index(), state, reason, None);
    let nonblocking = sock.is_nonblocking();
    let_go(h);
    if !nonblocking {
        options::set_kernel_blocking(fd);
    }
    wait::kick_others();
}

/// Something waits in either queue, as far as one can see without a system call to the kernel's.
pub fn ready_in_user(h: &Handle) -> bool {
    h.ready.load(Ordering::Acquire) != 0
}
