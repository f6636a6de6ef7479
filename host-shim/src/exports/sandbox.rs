//! Programs that give up system calls (seccomp(2)) or their network namespace (setns(2)), or whose child will have our memory and be another
//! process (vfork(2)): what is not possible then is done before. (`syscall` is in [`super::raw`].)
#![allow(unsafe_code, clippy::missing_safety_doc, missing_docs)]

use core::arch::naked_asm;
use core::ffi::c_void;

use libc::{c_int, c_ulong};

use crate::{faces, process, real, sys};

/// Before that.
pub fn entering() {
    faces::give_up();
    settle();
}

/// Who has put off attaching could not do it later.
fn settle() {
    if process::is_announced() {
        let saved = sys::errno();
        process::is_known();
        sys::set_errno(saved);
    }
}

/// The variable arguments are fixed here: on x86-64 and aarch64 Linux both are passed alike, and there are four at most.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int {
    if option == libc::PR_SET_SECCOMP {
        entering();
    }
    // SAFETY: the application's arguments, unchanged.
    unsafe { real::prctl(option, a, b, c, d) }
}

/// Is the network's namespace among those that `flags` name? Without any, a descriptor says which (setns(2)).
fn of_network(flags: c_int) -> bool {
    flags == 0 || flags & libc::CLONE_NEWNET != 0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn setns(fd: c_int, kinds: c_int) -> c_int {
    if of_network(kinds) {
        faces::give_up();
    }
    // SAFETY: as above.
    unsafe { real::setns(fd, kinds) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn unshare(flags: c_int) -> c_int {
    if flags & libc::CLONE_NEWNET != 0 {
        faces::give_up();
    }
    // SAFETY: as above.
    unsafe { real::unshare(flags) }
}

/// Libc's vfork, which returns to where this was called from, twice.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vfork() {
    #[cfg(target_arch = "x86_64")]
    naked_asm!("sub rsp, 8", "call {before}", "add rsp, 8", "jmp rax", before = sym before_vfork);
    #[cfg(target_arch = "aarch64")]
    naked_asm!(
        "stp x29, x30, [sp, #-16]!",
        "bl {before}",
        "ldp x29, x30, [sp], #16",
        "br x0",
        before = sym before_vfork
    );
}

extern "C" fn before_vfork() -> *mut c_void {
    process::lends();
    faces::all_apart();
    settle();
    real::vfork()
}

/// Libc's clone, with all its arguments where they are.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clone() {
    #[cfg(target_arch = "x86_64")]
    naked_asm!(
        "push rdi",
        "push rsi",
        "push rdx",
        "push rcx",
        "push r8",
        "push r9",
        "sub rsp, 8",
        "call {before}",
        "add rsp, 8",
        "pop r9",
        "pop r8",
        "pop rcx",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "jmp rax",
        before = sym before_clone
    );
    #[cfg(target_arch = "aarch64")]
    naked_asm!(
        "stp x29, x30, [sp, #-80]!",
        "stp x0, x1, [sp, #16]",
        "stp x2, x3, [sp, #32]",
        "stp x4, x5, [sp, #48]",
        "stp x6, x7, [sp, #64]",
        "bl {before}",
        "mov x9, x0",
        "ldp x6, x7, [sp, #64]",
        "ldp x4, x5, [sp, #48]",
        "ldp x2, x3, [sp, #32]",
        "ldp x0, x1, [sp, #16]",
        "ldp x29, x30, [sp], #80",
        "br x9",
        before = sym before_clone
    );
}

extern "C" fn before_clone() -> *mut c_void {
    process::lends();
    real::clone()
}
