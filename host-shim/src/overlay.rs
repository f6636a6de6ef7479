//! Pipes within a family of processes: the kernel's object stays, real and true, and a ring is laid over it
//! while both ends are at work.
//!
//! | module | what it does |
//! |---|---|
//! | [`channel`] | one direction: the ring, and when bytes go through it |
//! | [`turns`] | reading and writing an end: who agrees to use the ring, and who waits for whom |
//! | [`arena`] | the memory that relatives share |
//! | this one | descriptors: made, shared, inherited, closed, and what only the kernel can do |
//!
//! A process agrees once it has shown, by some reads or writes, that it uses our calls on that end. A process that never does
//! (libc's own stdio, raw system calls, a program without the shim) keeps the object in the kernel for everybody, and
//! nothing changes. Nobody ever sleeps outside the kernel: a reader or writer that has spun for its time leaves the ring and
//! makes the kernel's call, so end of file, `EPIPE`, signals, timeouts and cancellation need no code here.
//!
//! `unsafe` is allowed here: pointers to channels.
#![allow(unsafe_code)]

mod arena;
mod channel;
mod turns;

use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use ring::image::{ARENAS_MAX, ArenaRef, Entry, EntryKind};
use ring::msg::ConnId;
use ring::stats::Reason;
use rustix::fs::OFlags;

use crate::buffers::{Buffers, Cursor};
use crate::handle::{self, HANDLES_MAX, Handle, Kind};
use crate::leave::{self, Who};
use crate::{file, process, socket, stats, sys, table};
use channel::{Busy, Channel, KERNEL, NEVER, RING, Role, Wrote};

/// Ends in one poll(2) that may use the ring again afterwards; more never do.
const POLLED_MAX: usize = 8;

/// [`End::state`]: the process agreed as a reader, as a writer (1 << role).
const fn agreed(role: Role) -> u32 {
    1 << role as u32
}
/// [`End::state`]: the process cannot agree.
const REFUSED: u32 = 4;
/// [`End::state`]: bytes went through the ring, and `ps` shows it.
const SHOWN: u32 = 8;

/// [`End::state`]: a program that is being started holds it, too.
const LENT: u32 = 16;

/// What this process knows about one open end, beside its [`Handle`]. Fork copies it.
struct End {
    /// Where it reads from, and where it writes to, by [`Role`]; a pipe's end has one of them.
    channels: [AtomicPtr<Channel>; 2],
    generations: [AtomicU32; 2],
    calls: AtomicU32,
    state: AtomicU32,
}

static ENDS: [End; HANDLES_MAX] = [const {
    End {
        channels: [const { AtomicPtr::new(core::ptr::null_mut()) }; 2],
        generations: [const { AtomicU32::new(0) }; 2],
        calls: AtomicU32::new(0),
        state: AtomicU32::new(0),
    }
}; HANDLES_MAX];

const ROLES: [Role; 2] = [Role::Reader, Role::Writer];

impl End {
    fn of(h: &Handle) -> Option<&'static End> {
        ENDS.get(h.index() as usize)
    }

    fn reset(&self) {
        for channel in &self.channels {
            channel.store(core::ptr::null_mut(), Ordering::Relaxed);
        }
        self.calls.store(0, Ordering::Relaxed);
        self.state.store(0, Ordering::Relaxed);
    }

    fn attach(&self, role: Role, channel: &'static Channel) {
        if let (Some(to), Some(generation)) =
            (self.channels.get(role as usize), self.generations.get(role as usize))
        {
            generation.store(channel.generation(), Ordering::Relaxed);
            to.store(core::ptr::from_ref(channel).cast_mut(), Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn channel(&self, role: Role) -> Option<&'static Channel> {
        // SAFETY: null, or a place in an arena, which is never unmapped.
        let channel = unsafe { self.channels.get(role as usize)?.load(Ordering::Relaxed).as_ref() }?;
        let generation = self.generations.get(role as usize)?.load(Ordering::Relaxed);
        (channel.generation() == generation).then_some(channel)
    }

    #[inline(always)]
    fn has(&self, bits: u32) -> bool {
        self.state.load(Ordering::Relaxed) & bits != 0
    }
}

/// An end in one of its roles.
#[derive(Clone, Copy)]
struct View {
    fd: i32,
    h: &'static Handle,
    end: &'static End,
    channel: &'static Channel,
    role: Role,
}

/// The handle of `fd`, if it is an end that may be overlaid.
#[inline(always)]
pub fn of(fd: i32) -> Option<&'static Handle> {
    table::get(fd).filter(|h| h.kind() == Kind::Overlay)
}

#[inline(always)]
fn view(fd: i32, h: &'static Handle, role: Role) -> Option<View> {
    let end = End::of(h)?;
    Some(View { fd, h, end, channel: end.channel(role)?, role })
}

fn views(fd: i32, h: &'static Handle) -> impl Iterator<Item = View> {
    ROLES.into_iter().filter_map(move |role| view(fd, h, role))
}

/// The kernel has just made a pipe.
pub fn pipe_made([reads, writes]: [i32; 2], flags: i32) {
    socket::forget(reads);
    socket::forget(writes);
    if flags & !(libc::O_CLOEXEC | libc::O_NONBLOCK) != 0 || process::is_borrowed() {
        return;
    }
    let Some(channel) = arena::allocate() else { return };
    for (fd, role) in [(reads, Role::Reader), (writes, Role::Writer)] {
        if !enter(fd, &[(role, channel)]) {
            // Nobody here holds that end, as far as we know, and nobody agrees: it stays in the kernel.
            channel.leave_ring(NEVER, |_| true);
            channel.let_go(role);
        }
    }
}

/// Makes `fd` an end of these channels.
fn enter(fd: i32, channels: &[(Role, &'static Channel)]) -> bool {
    let Some(h) = handle::allocate(Kind::Overlay, fd, 0, 0) else { return false };
    let Some(end) = End::of(h) else { return false };
    end.reset();
    for (role, channel) in channels {
        end.attach(*role, channel);
    }
    if !table::set(fd, h) {
        end.reset();
        socket::release(h);
        return false;
    }
    true
}

/// This process's last descriptor of an end is gone.
pub fn closed(h: &Handle) {
    let Some(end) = End::of(h) else { return };
    for role in ROLES {
        let Some(channel) = end.channel(role) else { continue };
        if end.has(agreed(role)) {
            channel.disagree(role);
        }
        channel.let_go(role);
    }
    end.reset();
}

/// Before fork: the child holds what we hold, and agrees to what we agreed.
pub fn count_child() {
    for h in handle::all().filter(|h| h.kind() == Kind::Overlay) {
        let Some(end) = End::of(h) else { continue };
        for role in ROLES {
            let Some(channel) = end.channel(role) else { continue };
            channel.hold(role);
            if end.has(agreed(role)) {
                channel.agree(role);
            }
        }
    }
}

/// Before a program is executed: it will have to agree for itself, and a child that becomes it holds what we hold.
pub fn before_exec(who: Who) {
    for h in handle::all().filter(|h| h.kind() == Kind::Overlay) {
        let Some(fd) = table::find(h) else { continue };
        for v in views(fd, h) {
            match who {
                Who::Us => v.disagree(),
                Who::Child => {
                    v.end.state.fetch_or(LENT, Ordering::AcqRel);
                    v.channel.hold(v.role);
                }
            }
            v.leave_surely(KERNEL);
        }
    }
}

/// It was not executed: the child that should have become it holds nothing.
pub fn not_executed(who: Who) {
    if who == Who::Us {
        return;
    }
    for h in handle::all().filter(|h| h.kind() == Kind::Overlay) {
        let Some(end) = End::of(h).filter(|end| end.state.fetch_and(!LENT, Ordering::AcqRel) & LENT != 0)
        else {
            continue;
        };
        for role in ROLES {
            if let Some(channel) = end.channel(role) {
                channel.let_go(role);
            }
        }
    }
}

/// Something that a program could inherit.
pub fn is_inherited() -> bool {
    handle::all().any(|h| h.kind() == Kind::Overlay)
}

/// What an end is, for an image; its arena is entered among `used`.
pub fn entry_of(h: &Handle, used: &mut [ArenaRef; ARENAS_MAX]) -> Option<Entry> {
    let end = End::of(h)?;
    let (role, channel) = ROLES.into_iter().find_map(|role| Some((role, end.channel(role)?)))?;
    let (arena, _) = arena::CHANNELS.locate(core::ptr::from_ref(channel) as usize)?;
    let arena = arena::CHANNELS.reference(arena)?;
    let place = used.iter().position(|a| *a == arena || a.inode == 0)?;
    *used.get_mut(place)? = arena;
    let inode = leave::note_inode(h);
    (inode != 0).then_some(Entry {
        inode,
        conn: ConnId(channel.generation().into()),
        kind: EntryKind::Overlay,
        side: role as u32,
        family_type: 0,
        arena: u32::try_from(place).ok()?,
        sock: channel.index(),
    })
}

/// Takes over an arena that the program before us left open, if it is one of channels.
pub fn inherit_arena(left: ArenaRef) -> Option<usize> {
    arena::CHANNELS.inherit(left)
}

/// Takes over an end that the program before us held.
pub fn adopt(entry: &Entry, arena: usize) -> Option<()> {
    let channel = arena::at(arena, entry.sock)?;
    let role = if entry.side == 0 { Role::Reader } else { Role::Writer };
    if u64::from(channel.generation()) != entry.conn.0 {
        return None;
    }
    let h = handle::allocate(Kind::Overlay, -1, 0, 0)?;
    let end = End::of(h)?;
    end.reset();
    end.attach(role, channel);
    h.inode.store(entry.inode, Ordering::Relaxed);
    Some(())
}

/// `fd`, which has the inode of `h`, is that very end: both ends of a pipe have the same.
pub fn is_end(h: &Handle, fd: i32) -> bool {
    let Some(end) = End::of(h) else { return false };
    let Ok(flags) = rustix::fs::fcntl_getfl(sys::borrow(fd)) else { return false };
    match flags & OFlags::RWMODE {
        OFlags::RDONLY => end.channel(Role::Reader).is_some(),
        OFlags::WRONLY => end.channel(Role::Writer).is_some(),
        _ => false,
    }
}

/// After fork, in the child.
pub fn leave_arena() {
    arena::CHANNELS.leave_own();
}

/// Before anything that needs all bytes in the kernel, once: they are there when this returns.
pub fn settle(fd: i32) {
    if let Some(h) = of(fd) {
        views(fd, h).for_each(|v| v.leave_surely(KERNEL));
    }
}

/// Before something that the ring cannot do: from now on the object is the kernel's alone.
pub fn never(fd: i32) {
    let Some(h) = of(fd) else { return };
    views(fd, h).filter(|v| v.channel.mode() != NEVER).for_each(|v| v.leave_surely(NEVER));
    if End::of(h).is_some_and(|end| !end.has(SHOWN)) {
        stats::set_reason(h.index(), Reason::Operation);
    }
}

/// `fd` has become one more descriptor of an end: a standard stream that libc serves itself does not use our calls.
pub fn duplicated(fd: i32) {
    if is_libcs(fd) && of(fd).is_some() {
        withdraw(fd);
    }
}

/// A standard descriptor whose stream uses libc's own calls.
fn is_libcs(fd: i32) -> bool {
    (0..=2).contains(&fd) && !file::serves(fd)
}

/// This process does not agree any more.
fn withdraw(fd: i32) {
    let Some(h) = of(fd) else { return };
    for v in views(fd, h) {
        v.end.state.fetch_or(REFUSED, Ordering::AcqRel);
        v.disagree();
        v.leave_surely(KERNEL);
    }
}

/// This process has agreed to use the ring on that end.
pub fn may_use_ring(h: &Handle) -> bool {
    End::of(h).is_some_and(|end| end.has(agreed(Role::Reader) | agreed(Role::Writer)))
}

/// Ends in a poll(2) or select(2) under way: their bytes are in the kernel until this is dropped.
pub struct Polled {
    _busy: [Option<Busy>; POLLED_MAX],
}

/// Before poll(2), select(2) and the like: the kernel can answer for these descriptors.
pub fn polled(fds: impl Iterator<Item = i32>) -> Option<Polled> {
    let mut kept: Option<Polled> = None;
    let mut n = 0;
    for (fd, h) in fds.filter_map(|fd| Some((fd, of(fd)?))) {
        for v in views(fd, h).filter(|v| v.channel.mode() != NEVER) {
            let polled = kept.get_or_insert_with(|| Polled { _busy: [const { None }; POLLED_MAX] });
            let Some(place) = polled._busy.get_mut(n) else {
                v.leave_surely(NEVER);
                continue;
            };
            *place = Some(v.enter_kernel_surely());
            n += 1;
        }
    }
    kept
}

/// read(2) and readv(2). `native`: the original call.
#[inline(always)]
pub fn read(fd: i32, h: &'static Handle, to: &Buffers<'_>, native: &dyn Fn() -> isize) -> isize {
    let Some(v) = view(fd, h, Role::Reader).filter(|_| to.total() != 0) else { return native() };
    if v.channel.mode() == RING
        && v.end.has(SHOWN)
        && let Some(n @ 1..) = v.channel.read(to, &mut Cursor::default())
    {
        stats::received(h.index(), n);
        return n.cast_signed();
    }
    v.read_slow(to, native)
}

/// write(2) and writev(2). `native`: the original call.
#[inline(always)]
pub fn write(fd: i32, h: &'static Handle, from: &Buffers<'_>, native: &dyn Fn() -> isize) -> isize {
    let Some(v) = view(fd, h, Role::Writer).filter(|_| from.total() != 0) else { return native() };
    let mut at = Cursor::default();
    if v.channel.mode() == RING
        && v.end.has(SHOWN)
        && v.channel.write(from, &mut at, || v.somebody_reads()) == Wrote::All
    {
        stats::sent(h.index(), at.done);
        return at.done.cast_signed();
    }
    v.write_slow(from, at, native)
}
