//! Before execve(2) and posix_spawn(3): what the program inherits of ours.
//!
//! If it will load the shim, too, it gets an image ([`ring::image`]) that says which of its descriptors are which
//! connections; a `Fork` request has given everything a second holder before. If it is foreign, what it inherits is
//! turned into kernel sockets ([`crate::relay`]).

use core::sync::atomic::Ordering;

use ring::image::{ARENAS_MAX, ArenaRef, ENTRY_WORDS, Entry, EntryKind, HEAD_WORDS, Head, NO_FD, Watch};
use ring::msg::{ConnId, Request};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{BorrowedFd, IntoRawFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::FdFlags;

use crate::handle::{self, Handle, Kind, touched};
use crate::{
    agent, arenas, coordinator, epoll, epoll_wait, faces, fds, listener, overlay, process, relay, socket,
    sys, table,
};

/// Prefix of the variable that names the image.
pub const VARIABLE: &[u8] = b"IPC_DIRECT_STATE=";

/// Who will run the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// This process becomes it.
    Us,
    /// A child that shares nothing with us yet (posix_spawn), or that borrows our memory (vfork).
    Child,
}

/// Something was left for the program; [`Left::end`] says how it went.
pub struct Left {
    who: Who,
    nonce: u64,
    state: i32,
    mark: i32,
    arenas: [ArenaRef; ARENAS_MAX],
    variable: [u8; 40],
}

/// Is there anything that a program could inherit?
pub fn is_needed(who: Who) -> bool {
    let survives = |h: &&Handle| {
        who == Who::Child || h.was(touched::MOVED) || descriptors(h).any(|fd| !closes_on_exec(fd))
    };
    (ours().any(|h| survives(&h)) && process::is_known())
        || sets().next().is_some()
        || overlay::is_inherited()
}

/// The sets that a program may inherit. What it adds to one, it must know to be one.
fn sets() -> impl Iterator<Item = &'static Handle> {
    let survives =
        |h: &Handle| h.was(touched::SPAWNED | touched::MOVED) || descriptors(h).any(|fd| !closes_on_exec(fd));
    handle::all().filter(move |h| h.kind() == Kind::Epoll && survives(h))
}

/// Connections and listeners of this process. What a former coordinator knew can't be taken over.
fn ours() -> impl Iterator<Item = &'static Handle> {
    handle::all().filter(|h| h.is_in_user_space() && h.is_current())
}

/// The descriptors of a handle, by the table: in a vfork child, its parent's.
fn descriptors(h: &Handle) -> impl Iterator<Item = i32> {
    let index = h.index();
    (0..table::used()).filter(move |fd| table::get(*fd).is_some_and(|other| other.index() == index))
}

pub fn closes_on_exec(fd: i32) -> bool {
    rustix::io::fcntl_getfd(sys::borrow(fd)).is_ok_and(|flags| flags.contains(FdFlags::CLOEXEC))
}

/// A vfork child is about to close or has duplicated a descriptor of `h`: the next program may find it under any number.
pub fn moves(h: &Handle) {
    note_inode(h);
    h.touch(touched::MOVED);
}

/// Inode of a handle's descriptors, remembered: a vfork child may turn numbers around later.
pub fn note_inode(h: &Handle) -> u64 {
    let known = h.inode.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let fd = table::find(h).filter(|fd| faces::apart(*fd) && !h.was(touched::COMMON));
    let stat = fd.and_then(|fd| rustix::fs::fstat(sys::borrow(fd)).ok());
    let inode = stat.map_or(0, |s| s.st_ino);
    h.inode.store(inode, Ordering::Relaxed);
    inode
}

/// Prepares for a program that loads the shim. `None`: nothing could be left; it will see dead sockets.
pub fn prepare(who: Who) -> Option<Left> {
    let attached = process::is_attached() && ours().next().is_some();
    let nonce = if attached { sys::random() | 1 } else { 0 };
    if attached {
        listener::share_all();
        coordinator::post(Request::Fork { nonce }).ok()?;
    }
    if who == Who::Child && attached {
        socket::count_child();
    }
    let mut left = Left {
        who,
        nonce,
        state: -1,
        mark: -1,
        arenas: [ArenaRef::default(); ARENAS_MAX],
        variable: [0; 40],
    };
    if left.write_image().is_none() {
        left.end(false);
        return None;
    }
    left.set_inheritable(true);
    Some(left)
}

impl Left {
    /// `IPC_DIRECT_STATE=<number>`, as a C string.
    pub fn variable(&self) -> &[u8] {
        &self.variable
    }

    fn write_image(&mut self) -> Option<()> {
        self.state = fds::raise(new_image()?.into_raw_fd());
        let file = sys::borrow(self.state);
        let mut entries = 0;
        for h in ours().chain(handle::all().filter(|h| h.kind() == Kind::Overlay)) {
            let Some(entry) = entry_of(h, &mut self.arenas) else { continue };
            add_record(file, entries, &entry.to_words())?;
            entries += 1;
        }
        let mut watches = 0;
        let mut add = |watch: Watch| {
            let added = add_record(file, entries + watches, &watch.to_words());
            watches += u32::from(added.is_some());
        };
        for set in sets() {
            if self.mark < 0 {
                // Without one, the sets are the kernel's there.
                self.mark = eventfd(0, EventfdFlags::CLOEXEC).map_or(-1, |fd| fds::raise(fd.into_raw_fd()));
            }
            epoll::leave(set, self.mark, &mut add);
        }
        let head = Head {
            function: if self.nonce == 0 { 0 } else { process::function() },
            nonce: self.nonce,
            agent: u32::try_from(agent::fd()).unwrap_or(NO_FD),
            entries,
            watches,
            cookie: epoll_wait::cookie(),
            mark: u32::try_from(self.mark).unwrap_or(NO_FD),
            arenas: self.arenas,
        };
        complete_image(file, head)?;
        let mut digits = [0u8; 10];
        let number = sys::decimal(self.state.unsigned_abs(), &mut digits);
        for (to, from) in self.variable.iter_mut().zip(VARIABLE.iter().chain(number)) {
            *to = *from;
        }
        Some(())
    }

    /// The descriptors that the program needs stay open across its start, or don't any more.
    fn set_inheritable(&self, inheritable: bool) {
        let flags = if inheritable { FdFlags::empty() } else { FdFlags::CLOEXEC };
        let arenas = self.arenas.iter().filter(|a| a.inode != 0).filter_map(|a| i32::try_from(a.fd).ok());
        for fd in arenas.chain([self.state, self.mark, agent::fd()]).filter(|fd| *fd >= 0) {
            let _ = rustix::io::fcntl_setfd(sys::borrow(fd), flags);
        }
    }

    /// The program was started, or could not be: then everything is as before.
    pub fn end(self, started: bool) {
        self.set_inheritable(false);
        sys::close(self.state);
        sys::close(self.mark);
        if !started {
            if self.nonce == 0 {
                return;
            }
            let _ = coordinator::post(Request::ForkFailed { nonce: self.nonce });
            if self.who == Who::Child {
                socket::uncount_child();
            }
        }
    }
}

/// What a handle is, for an image; its arena is entered among `used`.
pub fn entry_of(h: &Handle, used: &mut [ArenaRef; ARENAS_MAX]) -> Option<Entry> {
    let kind = match h.kind() {
        Kind::Stream => EntryKind::Stream,
        Kind::Listener => EntryKind::Listener,
        Kind::Overlay => return overlay::entry_of(h, used),
        _ => return None,
    };
    let (arena, sock) = arenas::locate(h.sock()?)?;
    let arena = arenas::SOCKS.reference(arena)?;
    let place = used.iter().position(|a| *a == arena || a.inode == 0)?;
    *used.get_mut(place)? = arena;
    let inode = note_inode(h);
    (inode != 0).then_some(Entry {
        inode,
        conn: match kind {
            EntryKind::Listener => ConnId(h.place.load(Ordering::Relaxed).into()),
            _ => ConnId(h.conn.load(Ordering::Relaxed)),
        },
        kind,
        side: h.side.load(Ordering::Relaxed) & 1,
        family_type: h.family_type.load(Ordering::Relaxed),
        arena: u32::try_from(place).ok()?,
        sock,
    })
}

/// Writes words at a byte offset, in the machine's order: the reader is on the same machine.
fn write_words(file: BorrowedFd<'_>, words: &[u64], at: u64) -> Option<()> {
    for (i, word) in (0u64..).zip(words) {
        let bytes = word.to_ne_bytes();
        if rustix::io::pwrite(file, &bytes, at + 8 * i).ok()? != bytes.len() {
            return None;
        }
    }
    Some(())
}

/// Where an image is written.
pub fn new_image() -> Option<OwnedFd> {
    rustix::fs::memfd_create(c"ipc-direct-image", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).ok()
}

/// Entry or watch number `index`.
pub fn add_record(file: BorrowedFd<'_>, index: u32, words: &[u64; ENTRY_WORDS]) -> Option<()> {
    write_words(file, words, 8 * (HEAD_WORDS + ENTRY_WORDS * index as usize) as u64)
}

/// The entries are there: nobody changes the image any more.
pub fn complete_image(file: BorrowedFd<'_>, head: Head) -> Option<()> {
    write_words(file, &head.to_words(), 0)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(file, seals).ok()
}

/// The handle whose inode `fd` has, once inodes were noted.
pub fn by_inode(fd: i32) -> Option<&'static Handle> {
    let stat = rustix::fs::fstat(sys::borrow(fd)).ok()?;
    let is_socket = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Socket;
    handle::all().filter(|h| h.inode.load(Ordering::Relaxed) == stat.st_ino).find(|h| match h.kind() {
        Kind::Overlay => overlay::is_end(h, fd),
        _ => is_socket,
    })
}

/// The program is foreign: what it inherits becomes a kernel socket, for us, too.
pub fn give_to_kernel() {
    for h in ours() {
        note_inode(h);
    }
    fds::each_open(|fd| {
        let h = if closes_on_exec(fd) {
            table::get(fd).filter(|h| h.was(touched::SPAWNED))
        } else {
            by_inode(fd)
        };
        if let Some(h) = h {
            h.touch(touched::LEAVES);
        }
    });
    for h in ours().filter(|h| h.was(touched::LEAVES)) {
        h.touched.fetch_and(!touched::LEAVES, Ordering::Relaxed);
        match h.kind() {
            Kind::Listener => relay::withdraw(h),
            _ => relay::replace(h),
        }
    }
}
