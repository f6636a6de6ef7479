//! Descriptors of ours that are sent over an AF_UNIX socket (unix(7), `SCM_RIGHTS`).
//!
//! The receiver may be anybody, with or without the shim, so what is sent is a kernel socket: a connection's relay
//! ([`crate::relay`]); a listener is withdrawn to the kernel's queue and sent as it is; a pipe leaves its ring for good.
//!
//! `unsafe` is allowed here: the application's control messages.
#![allow(unsafe_code)]

use core::ptr;

use libc::{cmsghdr, msghdr};
use rustix::fd::{AsRawFd, OwnedFd};

use ring::stats::Reason;

use crate::handle::{Handle, Kind};
use crate::sys::{Errno, NoSignals, Result};
use crate::{fresh, overlay, process, relay, table, unix};

/// As the kernel: no message carries more (`SCM_MAX_FD`).
const FDS_MAX: usize = 253;
/// Room for a copy of the control messages that carry so many.
const CONTROL_BYTES: usize = 2048;
/// Connections of ours in one message.
const RELAYS_MAX: usize = 16;

/// A message whose descriptors of ours are replaced by kernel sockets, open until this is dropped.
pub struct Substitute {
    control: Control,
    length: usize,
    relays: [Option<OwnedFd>; RELAYS_MAX],
}

#[repr(C, align(16))]
struct Control([u8; CONTROL_BYTES]);

/// The descriptor at `p`, if it is a connection or listener in user space.
unsafe fn ours(p: *const i32) -> Option<&'static Handle> {
    // SAFETY: the caller's pointer into a control message.
    let fd = unsafe { p.read_unaligned() };
    table::get(fd).filter(|h| h.is_in_user_space())
}

/// Calls `each` for every descriptor in the control messages at `control`.
unsafe fn each_right(control: *mut u8, length: usize, mut each: impl FnMut(*mut i32)) {
    // SAFETY: all zero is a valid msghdr.
    let mut walk: msghdr = unsafe { core::mem::zeroed() };
    walk.msg_control = control.cast();
    walk.msg_controllen = length;
    // SAFETY: `control` is readable for `length` bytes; the macros stay inside, and an entry that claims more than is
    // there ends the walk.
    unsafe {
        let mut at: *mut cmsghdr = libc::CMSG_FIRSTHDR(&raw const walk);
        while !at.is_null() {
            let data = libc::CMSG_DATA(at);
            let head = data.offset_from(at.cast()).unsigned_abs();
            let left = length - at.cast::<u8>().offset_from(control).unsigned_abs();
            if (*at).cmsg_len < head || (*at).cmsg_len > left {
                return;
            }
            if (*at).cmsg_level == libc::SOL_SOCKET && (*at).cmsg_type == libc::SCM_RIGHTS {
                let n = ((*at).cmsg_len - head) / size_of::<i32>();
                for i in 0..n.min(FDS_MAX) {
                    each(data.cast::<i32>().add(i));
                }
            }
            at = libc::CMSG_NXTHDR(&raw const walk, at);
        }
    }
}

/// `None`: the message carries nothing of ours, and can be sent as it is.
///
/// # Errors
/// `ETOOMANYREFS`: more connections of ours than can be relayed at once; `ENOBUFS`: a relay could not be started.
///
/// # Safety
/// `msg` is the application's argument of sendmsg(2).
pub unsafe fn substitute(msg: *const msghdr) -> Result<Option<Substitute>> {
    if msg.is_null() {
        return Ok(None);
    }
    // SAFETY: by contract with C.
    let (control, length) = unsafe { ((*msg).msg_control.cast::<u8>(), (*msg).msg_controllen) };
    if control.is_null() || length == 0 || length > CONTROL_BYTES {
        return Ok(None);
    }
    let (mut any, mut room) = (false, true);
    // SAFETY: as above.
    unsafe {
        each_right(control, length, |p| {
            overlay::never(p.read_unaligned());
            unix::stays(p.read_unaligned(), Reason::Relayed);
            room &= fresh::refused(p.read_unaligned()).is_none();
            any |= ours(p).is_some();
        });
    }
    if !room {
        return Err(Errno(libc::ENOBUFS));
    }
    if !any || !process::is_known() {
        return Ok(None);
    }
    let mut new = Substitute { control: Control([0; CONTROL_BYTES]), length, relays: Default::default() };
    // SAFETY: both have room for `length` bytes.
    unsafe { ptr::copy_nonoverlapping(control, new.control.0.as_mut_ptr(), length) };
    let _no_signals = NoSignals::new();
    let mut outcome = Ok(());
    let Substitute { control, relays, .. } = &mut new;
    let mut places = relays.iter_mut();
    // SAFETY: our own copy.
    unsafe {
        each_right(control.0.as_mut_ptr(), length, |p| {
            let Some(h) = ours(p) else { return };
            if h.kind() == Kind::Listener {
                return relay::withdraw(h);
            }
            let Some(place) = places.next() else {
                outcome = Err(Errno(libc::ETOOMANYREFS));
                return;
            };
            match relay::open(h) {
                Some(kernel) => p.write_unaligned(place.insert(kernel).as_raw_fd()),
                None => outcome = Err(Errno(libc::ENOBUFS)),
            }
        });
    }
    outcome.map(|()| Some(new))
}

impl Substitute {
    /// The message to send instead: as `msg`, with other descriptors.
    ///
    /// # Safety
    /// `msg` is the message that this was made for.
    pub unsafe fn message(&mut self, msg: *const msghdr) -> msghdr {
        // SAFETY: by contract.
        let mut new = unsafe { ptr::read(msg) };
        new.msg_control = self.control.0.as_mut_ptr().cast();
        new.msg_controllen = self.length;
        new
    }
}
