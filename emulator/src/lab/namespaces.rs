//! Entering and leaving namespaces.
//!
//! `unsafe` is allowed here for unshare(2).
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, unshare_unsafe};

/// Names of this process' own pid namespace, which its next children may not be in.
const OWN_PIDS: &str = "/proc/self/ns/pid";
/// What a host has of its own.
const OF_A_HOST: UnshareFlags =
    UnshareFlags::NEWNET.union(UnshareFlags::NEWNS).union(UnshareFlags::NEWUTS).union(UnshareFlags::NEWIPC);

fn leave(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: only FILES is dangerous, and no caller in this module passes it.
    Ok(unsafe { unshare_unsafe(flags) }?)
}

/// Puts the calling thread into a network namespace of its own.
///
/// # Errors
/// `EPERM` for others than root.
pub(crate) fn own_network() -> io::Result<()> {
    leave(UnshareFlags::NEWNET)
}

/// Runs `start` such that the process it starts is the first of a new pid namespace. When that process ends, the kernel
/// kills all others in it.
///
/// # Errors
/// Those of `start`, and the kernel's.
pub(crate) fn in_own_pids<T>(start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let own = File::open(OWN_PIDS)?;
    leave(UnshareFlags::NEWPID)?;
    let started = start();
    rustix::thread::move_into_link_name_space(own.as_fd(), None)?;
    started
}

/// Makes the calling process a host: network, hostname, SysV memory, mounts of its own, with `/proc` and `/sys` that show
/// it, and with `/run` and `/dev/shm` that end with it. `hosts` is what its `/etc/hosts` says.
///
/// # Errors
/// A sentence.
pub(crate) fn become_host(name: &str, hosts: &str) -> Result<(), String> {
    let step = |what: &'static str| move |e: io::Error| format!("{name}: cannot {what}: {e}");
    leave(OF_A_HOST).map_err(step("leave the namespaces of this machine"))?;
    rustix::system::sethostname(name.as_bytes()).map_err(|e| step("set the host name")(e.into()))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(|e| step("make its mounts private")(e.into()))?;
    let quiet = MountFlags::NOSUID | MountFlags::NODEV;
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run"), ("tmpfs", "/dev/shm")] {
        mount("ipc-direct-lab", place, kind, quiet, None)
            .map_err(|e| step("mount its own file systems")(e.into()))?;
    }
    fs::write("/run/hosts", hosts).map_err(step("write its /run/hosts"))?;
    mount_bind("/run/hosts", "/etc/hosts").map_err(|e| step("replace its /etc/hosts")(e.into()))
}

/// Makes the calling thread, and children of it, part of the host whose first process `pidfd` names.
///
/// # Errors
/// `ESRCH` when the host is gone; the kernel's.
pub fn enter(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let all = ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::PROCESS_ID;
    Ok(rustix::thread::move_into_thread_name_spaces(pidfd, all)?)
}
