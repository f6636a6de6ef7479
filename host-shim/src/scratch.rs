//! Room for a poll array of any length without the application's allocator: small ones on the stack, large ones mapped.
//!
//! `unsafe` is allowed here: the mapping.
#![allow(unsafe_code)]

use rustix::mm::{MapFlags, ProtFlags};

const ON_STACK: usize = 256;
const EMPTY: libc::pollfd = libc::pollfd { fd: -1, events: 0, revents: 0 };

/// See the module.
pub struct Scratch {
    small: [libc::pollfd; ON_STACK],
    large: *mut libc::pollfd,
    n: usize,
}

impl Scratch {
    /// Room for `n` elements; `None`: no memory.
    #[must_use]
    pub fn new(n: usize) -> Option<Self> {
        let mut s = Scratch { small: [EMPTY; ON_STACK], large: core::ptr::null_mut(), n };
        if n > ON_STACK {
            let bytes = n.checked_mul(size_of::<libc::pollfd>())?;
            // SAFETY: a fresh private mapping at an address of the kernel's choice.
            let new = unsafe {
                rustix::mm::mmap_anonymous(
                    core::ptr::null_mut(),
                    bytes,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::PRIVATE,
                )
            };
            s.large = new.ok()?.cast();
        }
        Some(s)
    }

    /// The elements.
    pub fn get(&mut self) -> &mut [libc::pollfd] {
        if self.large.is_null() {
            return self.small.get_mut(..self.n).unwrap_or(&mut []);
        }
        // SAFETY: mapped for `n` elements; zeroed memory is a valid pollfd.
        unsafe { core::slice::from_raw_parts_mut(self.large, self.n) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.large.is_null() {
            // SAFETY: our own mapping of that size, not used any more.
            let _ = unsafe { rustix::mm::munmap(self.large.cast(), self.n * size_of::<libc::pollfd>()) };
        }
    }
}
