//! In a program that was just executed: takes over what the one before left ([`crate::leave`]).
//!
//! `unsafe` is allowed here: the environment's list.
#![allow(unsafe_code)]

use core::sync::atomic::Ordering;

use ring::image::{ARENAS_MAX, ENTRY_WORDS, Entry, EntryKind, HEAD_WORDS, Head, NO_FD, Watch};
use rustix::fs::SealFlags;
use rustix::io::FdFlags;

use crate::config::{self, Log, log};
use crate::handle::{self, Kind};
use crate::{arenas, epoll, epoll_wait, fds, leave, listener, overlay, process, socket, sys, table};

/// Takes over what the environment names, once. Called when the library is loaded.
pub fn run() {
    let number = config::variable(c"IPC_DIRECT_STATE").and_then(config::number);
    let Some(state) = number.and_then(|n| i32::try_from(n).ok()) else { return };
    forget_variable();
    let Some(head) = read_head(state) else {
        log(Log::Error, &["IPC_DIRECT_STATE does not name an image; inherited connections are lost"]);
        return;
    };
    let [agent, mark] = [head.agent, head.mark].map(|fd| i32::try_from(fd).unwrap_or(-1));
    for fd in [state, agent, mark] {
        // No number, no entry.
        table::set_internal(fd);
    }
    // Without a function there is nothing that the coordinator knows of.
    if head.function == 0 || process::attach(head.function, head.nonce) {
        take_over(state, &head);
    } else {
        log(Log::Error, &["inherited connections are lost"]);
    }
    // Only now the function of the program before us may end: everything it held is held by ours.
    for fd in [agent, state, mark] {
        fds::discard(fd);
    }
}

/// The variable names this start, and no later one.
fn forget_variable() {
    unsafe extern "C" {
        static mut environ: *mut *mut libc::c_char;
    }
    // SAFETY: libc's list of C strings, ended by a null pointer; the process has one thread while its libraries load.
    unsafe {
        let mut from = environ;
        let mut to = environ;
        while !from.is_null() && !(*from).is_null() {
            let ours = core::ffi::CStr::from_ptr(*from).to_bytes().starts_with(leave::VARIABLE);
            if !ours {
                *to = *from;
                to = to.add(1);
            }
            from = from.add(1);
        }
        if !to.is_null() {
            *to = core::ptr::null_mut();
        }
    }
}

fn read_words<const N: usize>(fd: i32, at: u64) -> Option<[u64; N]> {
    let mut words = [0; N];
    for (i, word) in (0u64..).zip(&mut words) {
        let mut bytes = [0u8; 8];
        if rustix::io::pread(sys::borrow(fd), &mut bytes, at + 8 * i).ok()? != bytes.len() {
            return None;
        }
        *word = u64::from_ne_bytes(bytes);
    }
    Some(words)
}

/// Only a memfd that nobody can change any more is an image.
fn read_head(fd: i32) -> Option<Head> {
    let seals = rustix::fs::fcntl_get_seals(sys::borrow(fd)).ok()?;
    if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::SEAL) {
        return None;
    }
    Head::from_words(&read_words::<HEAD_WORDS>(fd, 0)?).ok()
}

fn take_over(state: i32, head: &Head) {
    let mut places = [None; ARENAS_MAX];
    for (place, left) in places.iter_mut().zip(head.arenas).filter(|(_, a)| a.inode != 0) {
        *place = arenas::SOCKS.inherit(left).or_else(|| overlay::inherit_arena(left));
        if let (Some(_), Ok(fd)) = (&place, i32::try_from(left.fd)) {
            let _ = rustix::io::fcntl_setfd(sys::borrow(fd), FdFlags::CLOEXEC);
        }
    }
    // Entered by inode first, then found by the descriptors.
    for i in 0..head.entries {
        let at = 8 * (HEAD_WORDS + ENTRY_WORDS * i as usize) as u64;
        let entry = read_words::<ENTRY_WORDS>(state, at).and_then(|words| Entry::from_words(&words).ok());
        if entry.is_none_or(|entry| adopt(&entry, &places).is_none()) {
            log(Log::Error, &["an inherited connection could not be taken over"]);
        }
    }
    fds::each_open(enter);
    if head.mark != NO_FD {
        epoll_wait::inherit_cookie(head.cookie);
    }
    let sets = epoll::Inherited::find(head);
    for i in head.entries..head.entries.saturating_add(head.watches) {
        let at = 8 * (HEAD_WORDS + ENTRY_WORDS * i as usize) as u64;
        if let Some(watch) = read_words(state, at).and_then(|words| Watch::from_words(&words).ok()) {
            let _ = sets.adopt(&watch);
        }
    }
    // Each was adopted with one reference, as if by a descriptor: what has none was closed on exec.
    for h in handle::all().filter(|h| h.inode.load(Ordering::Relaxed) != 0) {
        socket::release(h);
    }
}

fn adopt(entry: &Entry, places: &[Option<usize>; ARENAS_MAX]) -> Option<()> {
    let arena = (*places.get(entry.arena as usize)?)?;
    if entry.kind == EntryKind::Overlay {
        return overlay::adopt(entry, arena);
    }
    let sock = arenas::at(arena, entry.sock)?;
    let (domain, ty) = ((entry.family_type & 0xffff).cast_signed(), (entry.family_type >> 16).cast_signed());
    let h = handle::allocate(Kind::Kernel, -1, domain, ty)?;
    h.inode.store(entry.inode, Ordering::Relaxed);
    let adopted = match entry.kind {
        EntryKind::Stream => socket::rejoin(h, sock, entry.conn, entry.side),
        EntryKind::Listener => {
            listener::adopt(h, sock, u32::try_from(entry.conn.0).unwrap_or(0));
            Some(())
        }
        EntryKind::Overlay => None,
    };
    if adopted.is_none() {
        h.inode.store(0, Ordering::Relaxed);
        socket::release(h);
    }
    adopted
}

/// `fd` belongs to the handle whose inode it has.
fn enter(fd: i32) {
    if let Some(h) = leave::by_inode(fd).filter(|h| h.retain()) {
        if table::set(fd, h) {
            crate::stats::set_fd(h.index(), fd);
        } else {
            socket::release(h);
        }
    }
}
