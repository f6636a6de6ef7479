//! The set of CPUs that a thread may run on.
//!
//! `rte_eal_init` pins the thread that calls it to the main lcore's CPU, and threads started from there inherit
//! that. [`Eal`](crate::eal::Eal) remembers how it was before:
//!
//! ```no_run
//! # let (eal, _) = dpdk::eal::Eal::init(["prog", "--no-pci"]).unwrap();
//! let everywhere = eal.original_affinity();
//! std::thread::spawn(move || everywhere.apply_to_this_thread());
//! ```
#![allow(unsafe_code)] // Two system calls on a plain C struct.

use std::io;
use std::mem::{size_of, zeroed};

/// A set of CPUs, as in sched_setaffinity(2). Up to 1024 CPUs.
#[derive(Clone, Copy)]
pub struct Affinity(libc::cpu_set_t);

impl Affinity {
    /// What the calling thread has now. Fails on a kernel built for more than 1024 CPUs (`EINVAL`).
    pub fn of_this_thread() -> io::Result<Self> {
        // SAFETY: cpu_set_t is an array of integers: all zeroes is the empty set.
        let mut set = unsafe { zeroed::<libc::cpu_set_t>() };
        // SAFETY: the kernel writes at most the given size to `set`; 0 is the calling thread.
        match unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } {
            0 => Ok(Self(set)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Makes the calling thread run on these CPUs (only). Fails with `EINVAL` when the process's cpuset has none of
    /// them any more.
    pub fn apply_to_this_thread(&self) -> io::Result<()> {
        // SAFETY: the kernel reads the given size from the set; 0 is the calling thread.
        match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &self.0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The CPU numbers in the set, ascending.
    pub fn cpus(&self) -> Vec<usize> {
        let bits = size_of::<libc::cpu_set_t>() * 8;
        // SAFETY: CPU_ISSET indexes the set's own array, and `cpu` is below the number of its bits.
        (0..bits).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &self.0) }).collect()
    }
}

impl std::fmt::Debug for Affinity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Affinity").field(&self.cpus()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_applied_is_what_is_read() {
        let before = Affinity::of_this_thread().unwrap();
        assert!(!before.cpus().is_empty());
        before.apply_to_this_thread().unwrap();
        assert_eq!(Affinity::of_this_thread().unwrap().cpus(), before.cpus());
    }
}
