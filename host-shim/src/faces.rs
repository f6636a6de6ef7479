//! Faces: placeholders that connections have in common. A socket of the kernel's takes microseconds to make and to close, and more
//! memory than all that a quiet connection has of ours. But the placeholder of a connection was never connected, so whatever has
//! the same options looks the same, and can be the same: one file, of which each connection has a descriptor.
//!
//! What a listener's connections begin with is one face ([`open`]), and what socket(2) makes is another ([`fresh`]). An option that one of
//! them sets makes another of it, which the next one that looks the same is given, too ([`change`]). Whatever needs a file that is its own gets it before ([`apart`]), for good: one that is
//! duplicated, inherited by a program, passed on, signal-driven, in a set that we don't know, asked for its cookie.
//!
//! `unsafe` is allowed here: libc's originals.
#![allow(unsafe_code)]

use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::handle::{Handle, Kind, touched};
use crate::lazy::Copied;
use crate::lock::{Guarded, Held, Lock};
use crate::sys::{self, Errno, NoSignals, Result};
use crate::{fds, fresh, lazy, options, ports, process, real, segments, table};

/// Kept at a time: what the connections of a few listeners look like.
const FACES_MAX: usize = 32;
/// One that was of use among the last so many looks stays: values that are other ones each time shall not drive it out.
const RESTS: u32 = 1024;
/// As many connections get files of their own before a fork. More would keep the fork waiting, so that an option which one of the two
/// sets afterwards, the other does not see.
const APART_FOR_FORK_MAX: usize = 64;
/// Longest value of an option that is compared.
const VALUE_BYTES: usize = 16;
/// Options of a face that are its own, and its flags.
const TRAITS_MAX: usize = 8;

/// An option that the application has set, or the flags.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Trait {
    level: i32,
    name: i32,
    len: u32,
    value: [u8; VALUE_BYTES],
}

/// No level of an option: flags, of accept4(2) or by fcntl(2).
const FLAGS: i32 = -1;

impl Trait {
    const NONE: Trait = Trait { level: i32::MAX, name: 0, len: 0, value: [0; VALUE_BYTES] };

    fn flags(nonblocking: bool) -> Trait {
        let mut value = [0; VALUE_BYTES];
        let [flag, ..] = &mut value;
        *flag = u8::from(nonblocking);
        Trait { level: FLAGS, name: libc::O_NONBLOCK, len: 1, value }
    }

    /// An option, if its value is all that it depends on.
    fn option(level: i32, name: i32, value: *const c_void, len: u32) -> Option<Trait> {
        let fits = len as usize <= VALUE_BYTES && !crate::buffers::is_nowhere(value);
        if !fits || !options::is_plain(level, name) {
            return None;
        }
        let mut new = Trait { level, name, len, ..Trait::NONE };
        // SAFETY: the application's `len` bytes, which have room there (checked).
        unsafe { core::ptr::copy_nonoverlapping(value.cast(), new.value.as_mut_ptr(), len as usize) };
        Some(new)
    }
}

/// What a face looks like, beside the options that its listener had: in the order of levels and names, [`Trait::NONE`] last.
type Look = [Trait; TRAITS_MAX];

/// What connections of a listener begin with.
fn first_look(nonblocking: bool) -> Look {
    let mut look = [Trait::NONE; TRAITS_MAX];
    let [flags, ..] = &mut look;
    *flags = Trait::flags(nonblocking);
    look
}

/// `look` with that option. `None`: those are too many.
fn with(mut look: Look, new: Trait) -> Option<Look> {
    let same = |t: &Trait| (t.level, t.name) == (new.level, new.name);
    let place = look.iter().position(same).or_else(|| look.iter().position(|t| *t == Trait::NONE))?;
    *look.get_mut(place)? = new;
    look.sort_unstable_by_key(|t| (t.level, t.name));
    Some(look)
}

#[derive(Clone, Copy)]
struct Face {
    /// A descriptor of ours; below 0: none.
    fd: i32,
    /// No other ever has the same. 0: none.
    id: u32,
    /// What it is for: see [`key`] and [`FRESH`].
    of: u64,
    look: Look,
    /// When it was last of use, in [`Faces::looks`].
    used: u32,
}

struct Faces {
    places: [Face; FACES_MAX],
    last: u32,
    looks: u32,
}

const NONE: Face = Face { fd: -1, id: 0, of: 0, look: [Trait::NONE; TRAITS_MAX], used: 0 };

static FACES: Guarded<Faces> = Guarded::new(Faces { places: [NONE; FACES_MAX], last: 0, looks: 0 });

/// The program gives up system calls, or the namespace it is in: from now on each connection has a socket, as in Linux.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// For the fork handlers.
pub fn lock() -> &'static Lock {
    FACES.lock()
}

/// With a family: sockets that are not connected yet. No listener's number.
const FRESH: u64 = 0xffff_ff00;

/// A listener, as its connections know it.
fn key(listener: &Handle) -> u64 {
    u64::from(listener.incarnation.load(Ordering::Relaxed)) << 32 | u64::from(listener.index() + 1)
}

impl Faces {
    /// The face that looks like that: descriptor and number.
    fn find(&mut self, of: u64, look: &Look) -> Option<(i32, u32)> {
        self.looks = self.looks.wrapping_add(1);
        let is_it = |f: &&mut Face| f.id != 0 && f.of == of && f.look == *look;
        let found = self.places.iter_mut().find(is_it)?;
        found.used = self.looks;
        Some((found.fd, found.id))
    }

    /// Keeps the file of `fd` as a face. 0: there is no place.
    fn enter(&mut self, fd: i32, of: u64, look: &Look) -> u32 {
        let now = self.looks;
        let age = |f: &Face| if f.id == 0 { u32::MAX } else { now.wrapping_sub(f.used) };
        let oldest = self.places.iter_mut().max_by_key(|f| age(f));
        let Some(place) = oldest.filter(|f| age(f) > RESTS) else { return 0 };
        let Some(kept) = fds::duplicate(fd) else { return 0 };
        fds::discard(place.fd);
        self.last = self.last.wrapping_add(1).max(1);
        *place = Face { fd: kept, id: self.last, of, look: *look, used: now };
        self.last
    }

    /// Those of which that is true are forgotten, and closed.
    fn drop_if(&mut self, is_it: impl Fn(&Face) -> bool) {
        for f in self.places.iter_mut().filter(|f| f.id != 0 && is_it(f)) {
            fds::discard(f.fd);
            *f = NONE;
        }
    }

    fn by_id(&self, id: u32) -> Option<&Face> {
        self.places.iter().find(|f| f.id == id)
    }
}

/// A placeholder under the lowest free number, for a connection of the listener `h`, whose descriptor is `listener`; `flags` as of
/// accept4(2). With it comes its face; 0: it has none.
///
/// # Errors
/// As socket(2).
pub fn open(listener: i32, h: &Handle, flags: i32) -> Result<(i32, u32)> {
    open_as(key(h), h.family(), flags, |new| options::copy(listener, new, options_of(h)))
}

/// A socket of that family that nothing was done to, under the lowest free number, as [`open`]; `flags` as of socket(2).
///
/// # Errors
/// As socket(2).
pub fn fresh(family: (i32, i32), flags: i32) -> Result<(i32, u32)> {
    open_as(FRESH | u64::from(family.0.unsigned_abs()), family, flags, |_| {})
}

fn open_as(key: u64, (domain, ty): (i32, i32), flags: i32, make: impl FnOnce(i32)) -> Result<(i32, u32)> {
    let look = first_look(flags & libc::SOCK_NONBLOCK != 0);
    let _no_signals = NoSignals::briefly();
    // Not while another thread maps a segment or makes a descriptor of ours: they are low ones for a moment, and this is to be the
    // lowest free one.
    let _mapping = segments::lock().take();
    let mut faces = if GIVEN_UP.load(Ordering::Relaxed) { None } else { FACES.take() };
    let _numbering = fds::numbering().take();
    if let Some((kept, face)) = faces.as_mut().and_then(|f| f.find(key, &look)) {
        let command = if flags & libc::SOCK_CLOEXEC != 0 { libc::F_DUPFD_CLOEXEC } else { libc::F_DUPFD };
        // SAFETY: no pointers.
        let fd = unsafe { real::fcntl(kept, command, 0) };
        return if fd < 0 { Err(sys::errno()) } else { Ok((fd, face)) };
    }
    // SAFETY: no pointers.
    let fd = unsafe { real::socket(domain, ty | flags, libc::IPPROTO_TCP) };
    if fd < 0 {
        return Err(sys::errno());
    }
    make(fd);
    Ok((fd, faces.map_or(0, |mut f| f.enter(fd, key, &look))))
}

/// Options that were set on a listener, whose copies its connections have.
fn options_of(listener: &Handle) -> u64 {
    listener.sock().map_or(0, |s| s.options.load(Ordering::Relaxed))
}

/// `fd`, which [`open`] has made with that face, waited for its connection, and the listener may have got other options meanwhile. The
/// face that it has then.
pub fn renew(fd: i32, face: u32, listener: i32, h: &Handle, flags: i32) -> u32 {
    if face == 0 {
        options::copy(listener, fd, options_of(h));
        return 0;
    }
    if FACES.take().is_none_or(|f| f.by_id(face).is_some()) {
        return face;
    }
    // If there is no room for another one, it keeps the file of a face that is forgotten.
    let Ok((new, id)) = open(listener, h, flags | libc::SOCK_CLOEXEC) else { return face };
    let renewed = sys::duplicate_onto(new, fd);
    sys::close(new);
    if renewed { id } else { face }
}

/// The new connection `h` was accepted there, and its placeholder has that face.
pub fn accepted(h: &Handle, listener: &Handle, face: u32) {
    h.options.store(options_of(listener), Ordering::Relaxed);
    given(h, face);
}

/// The placeholder of `h` has that face.
pub fn given(h: &Handle, face: u32) {
    h.turns.store(face, Ordering::Relaxed);
    if face != 0 {
        h.touch(touched::COMMON);
    }
}

/// setsockopt(2) on the placeholder of `h`. `None`: it has a file of its own, on which the call is to be made.
pub fn set_option(
    fd: i32,
    h: &Handle,
    (level, name): (i32, i32),
    value: *const c_void,
    len: u32,
) -> Option<i32> {
    if !h.was(touched::COMMON) {
        return None;
    }
    if lazy::set(fd, h, (level, name), value, len) {
        return Some(0);
    }
    let Some(option) = Trait::option(level, name, value, len) else { return refused(fd) };
    // SAFETY: the application's own arguments.
    change(fd, h, option, |new| unsafe { real::setsockopt(new, level, name, value, len) })
}

/// Gives `h` a face that looks like its own, but for `new`: one that is there, or one that `make` makes of a copy.
fn change(fd: i32, h: &Handle, new: Trait, make: impl FnOnce(i32) -> i32) -> Option<i32> {
    let _no_signals = NoSignals::new();
    let Some(mut faces) = FACES.take() else { return refused(fd) };
    if !stands_for(fd, h) {
        return None;
    }
    // Of one that is forgotten, what it looks like is not known.
    let own = faces.by_id(h.turns.load(Ordering::Relaxed)).map(|f| (f.of, f.look));
    let wanted = own.and_then(|(of, look)| Some((of, with(look, new)?)));
    let found = wanted.as_ref().and_then(|(of, look)| faces.find(*of, look));
    let face = match found {
        Some((kept, _)) if !sys::replace(kept, fd) => return no_room(),
        Some((_, face)) => face,
        None => {
            let _numbering = fds::numbering().take();
            let Some(twin) = Twin::of(h, fd, &mut faces) else { return no_room() };
            let made = make(twin.0);
            if made < 0 {
                return Some(made);
            }
            if !sys::replace(twin.0, fd) {
                return no_room();
            }
            wanted.map_or(0, |(of, look)| faces.enter(twin.0, of, &look))
        }
    };
    h.turns.store(face, Ordering::Relaxed);
    if face == 0 {
        alone(fd, h, Copied::NOTHING);
    }
    // Under the lock, so that whoever copies it next knows of the option.
    h.options.fetch_or(options::bit(new.level, new.name), Ordering::Relaxed);
    Some(0)
}

/// Does `fd` stand for `h`, and has a face? Asked under the lock, where [`removing`] keeps who closes it out meanwhile, or while pinned.
pub fn stands_for(fd: i32, h: &Handle) -> bool {
    h.was(touched::COMMON) && table::get(fd).is_some_and(|other| core::ptr::eq(other, h))
}

/// A new socket as the placeholder of a connection is, but for what [`lazy::copy`] sets; closed when dropped.
struct Twin(i32);

impl Twin {
    fn of(h: &Handle, fd: i32, faces: &mut Faces) -> Option<Twin> {
        let (domain, ty) = h.family();
        // SAFETY: no pointers.
        let socket = || unsafe { real::socket(domain, ty | libc::SOCK_CLOEXEC, libc::IPPROTO_TCP) };
        let mut new = socket();
        if new < 0 {
            // No number is free: ours are the ones to go.
            faces.drop_if(|_| true);
            new = socket();
        }
        if new < 0 {
            return None;
        }
        options::copy(fd, new, h.options.load(Ordering::Relaxed));
        Some(Twin(new))
    }

    /// The socket that is bound to the port of `h`, if there is one.
    fn bound(h: &Handle, fd: i32) -> Option<Twin> {
        let bound = ports::give_away(h)?;
        options::copy(fd, bound, h.options.load(Ordering::Relaxed));
        Some(Twin(bound))
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        fds::discard(self.0);
    }
}

/// Gives the socket `fd` a file of its own, if it is one of ours and has none. False: there is no room for it.
pub fn apart(fd: i32) -> bool {
    part(fd) || (make_room() && part(fd))
}

fn part(fd: i32) -> bool {
    let Some(h) = table::get(fd).filter(|h| h.was(touched::COMMON)) else { return true };
    if process::is_borrowed() {
        // Another thread accepted it after the vfork: here the number is something else.
        return true;
    }
    let _no_signals = NoSignals::new();
    let Some(mut faces) = FACES.take() else { return false };
    if !stands_for(fd, h) {
        return true;
    }
    let _numbering = fds::numbering().take();
    let Some(twin) = Twin::bound(h, fd).or_else(|| Twin::of(h, fd, &mut faces)) else { return false };
    let copied = lazy::copy(h, twin.0, Copied::NOTHING);
    let moved = sys::replace(twin.0, fd);
    if moved {
        alone(fd, h, copied);
    }
    moved
}

/// `fd` has a file of its own by now, with these of the options that were still to be set.
fn alone(fd: i32, h: &Handle, copied: Copied) {
    // SeqCst: pairs with the load in `lazy::put`: who sets an option from now on asks the file, or we see here that it was set.
    h.touched.fetch_and(!touched::COMMON, Ordering::SeqCst);
    lazy::copy(h, fd, copied);
}

/// [`apart`], for a call on the file: `None` if it can be made, or what it returns.
pub fn refused(fd: i32) -> Option<i32> {
    if table::get(fd).is_some_and(fresh::is_one) {
        fresh::missed();
    }
    if apart(fd) { None } else { no_room() }
}

/// What a call returns whose socket can't be made.
fn no_room() -> Option<i32> {
    sys::set_errno(Errno(libc::ENOMEM));
    Some(-1)
}

/// The descriptors that have a face.
fn common() -> impl Iterator<Item = (i32, &'static Handle)> {
    let known = (0..table::used()).filter_map(|fd| Some((fd, table::get(fd)?)));
    known.filter(|(_, h)| h.was(touched::COMMON))
}

/// Of sockets that are not connected, nobody else tells anybody apart: before they are inherited.
pub fn unconnected_apart() {
    for (fd, _) in common().filter(|(_, h)| h.kind() == Kind::Kernel) {
        apart(fd);
    }
}

/// The process has no descriptor left: gives back those of ports, of which a connection that has one makes its placeholder. Were there any?
pub fn make_room() -> bool {
    let _no_signals = NoSignals::new();
    let with_port = common().filter(|(_, h)| h.kept.load(Ordering::Relaxed) != 0);
    let moved = with_port.filter(|(fd, _)| part(*fd)).count();
    ports::forget_all() || moved != 0
}

/// Before a program or a vfork child gets descriptors under numbers that we may not know: files tell them apart.
pub fn all_apart() {
    for (fd, _) in common() {
        apart(fd);
    }
}

/// Before fork(2): what parent or child does to a file, the other one sees.
pub fn before_fork() {
    unconnected_apart();
    if common().take(APART_FOR_FORK_MAX + 1).count() <= APART_FOR_FORK_MAX {
        all_apart();
    }
}

/// Before a filter of system calls, and before a thread's sockets are of another namespace.
pub fn give_up() {
    GIVEN_UP.store(true, Ordering::Relaxed);
    all_apart();
    forget_all();
}

/// While the number of `h` leaves the table: nobody changes the file under a number that may be another's a moment later.
pub fn removing(h: &Handle) -> Option<Held<'static>> {
    if h.was(touched::COMMON) { lock().take() } else { None }
}

fn drop_if(is_it: impl Fn(&Face) -> bool) {
    if let Some(mut faces) = FACES.take() {
        faces.drop_if(is_it);
    }
}

/// A listener is gone, or not as it was: its faces are of no use to those who come.
pub fn forget(listener: &Handle) {
    let gone = key(listener);
    drop_if(|f| f.of == gone);
}

/// `fd` was one, and is the application's now.
pub fn lost(fd: i32) {
    if let Some(mut faces) = FACES.take() {
        for f in faces.places.iter_mut().filter(|f| f.fd == fd) {
            *f = NONE;
        }
    }
}

/// After fork, in the child: they are the parent's.
pub fn forget_all() {
    drop_if(|_| true);
    ports::forget_all();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(name: i32, value: u8) -> Trait {
        let bytes = [value, 0, 0, 0];
        Trait::option(libc::IPPROTO_TCP, name, bytes.as_ptr().cast(), 4).expect("a plain option")
    }

    fn after(steps: &[Trait]) -> Option<Look> {
        steps.iter().try_fold(first_look(false), |look, step| with(look, *step))
    }

    #[test]
    fn what_was_set_last_counts_and_in_which_order_does_not() {
        let [on, off] = [1, 0].map(|value| option(libc::TCP_CORK, value));
        let nodelay = option(libc::TCP_NODELAY, 1);
        assert!(after(&[on, off, on]) == after(&[on]));
        assert!(after(&[on, nodelay]) == after(&[nodelay, on]));
        assert!(after(&[on]) != after(&[off]));
    }

    #[test]
    fn no_look_has_more_options_than_there_is_room_for() {
        let names = [libc::TCP_NODELAY, libc::TCP_CORK, libc::TCP_KEEPIDLE, libc::TCP_KEEPINTVL];
        let more = [libc::TCP_KEEPCNT, libc::TCP_USER_TIMEOUT];
        let mut look =
            names.iter().chain(&more).try_fold(first_look(false), |look, name| with(look, option(*name, 1)));
        let keepalive = [1u8, 0, 0, 0];
        for (name, fits) in [(libc::SO_KEEPALIVE, true), (libc::SO_REUSEADDR, false)] {
            let last =
                Trait::option(libc::SOL_SOCKET, name, keepalive.as_ptr().cast(), 4).expect("a plain option");
            look = look.and_then(|look| with(look, last));
            assert_eq!(look.is_some(), fits);
        }
    }

    #[test]
    fn only_what_a_value_says_all_about_is_an_option_of_a_face() {
        let value = [1u8; 64];
        let of = |level, name, len| Trait::option(level, name, value.as_ptr().cast(), len).is_some();
        assert!(of(libc::SOL_SOCKET, libc::SO_RCVTIMEO, 16));
        assert!(!of(libc::SOL_SOCKET, libc::SO_RCVTIMEO, 17));
        assert!(!of(libc::SOL_SOCKET, libc::SO_LINGER, 8) && !of(libc::IPPROTO_TCP, libc::TCP_QUICKACK, 4));
        assert!(Trait::option(libc::SOL_SOCKET, libc::SO_KEEPALIVE, core::ptr::null(), 4).is_none());
    }
}
