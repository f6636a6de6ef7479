//! Programs executed and spawned: what they inherit of ours is left for them ([`crate::leave`]).
#![allow(unsafe_code, clippy::missing_safety_doc, missing_docs)]

use core::ffi::{CStr, c_char, c_void};
use core::ptr;

use libc::{c_int, pid_t, posix_spawn_file_actions_t, posix_spawnattr_t};

use crate::handle::touched;
use crate::leave::{self, Who};
use crate::sys::NoSignals;
use crate::target::{self, Target};
use crate::{faces, fds, overlay, process, real, table, unix};

type Strings = *const *mut c_char;

/// Variables of an environment that we can add one to; with more, inherited connections go through the kernel.
const VARIABLES_MAX: usize = 1022;
/// Where `execvp` looks without `PATH`, as in glibc.
const PATH_DEFAULT: &[u8] = b"/bin:/usr/bin";
const NAME_BYTES: usize = 4096;

unsafe extern "C" {
    static mut environ: *mut *mut c_char;
}

fn our_environment() -> Strings {
    // SAFETY: libc's own list; who changes it while another thread executes a program has that race natively, too.
    unsafe { environ.cast_const() }
}

/// The strings of a list that ends with a null pointer.
unsafe fn each<'a>(list: Strings) -> impl Iterator<Item = &'a CStr> {
    let mut at = list;
    core::iter::from_fn(move || {
        if at.is_null() {
            return None;
        }
        // SAFETY: the caller's list, by contract with C: C strings up to a null pointer.
        unsafe {
            let text = *at;
            if text.is_null() {
                return None;
            }
            at = at.add(1);
            Some(CStr::from_ptr(text))
        }
    })
}

/// Will the loader of a program with this environment load us?
unsafe fn loads_us(envp: Strings) -> bool {
    // SAFETY: as for the caller.
    let mut preloads = unsafe { each(envp) }.filter_map(|v| v.to_bytes().strip_prefix(b"LD_PRELOAD="));
    preloads.any(|libraries| libraries.windows(13).any(|w| w == b"libipc_direct"))
}

/// Where the program's file is.
#[derive(Clone, Copy)]
enum Program<'a> {
    File(&'a CStr),
    /// No such file: the call will fail, and nothing may change.
    Nowhere,
    /// Named in a way that we do not follow.
    Unknown,
}

/// Runs `start` with an environment and what the program needs around it. True from `went_well`: it was started.
unsafe fn leaving(
    who: Who,
    program: Program<'_>,
    envp: Strings,
    went_well: fn(c_int) -> bool,
    start: impl FnOnce(Strings) -> c_int,
) -> c_int {
    let borrowed = process::is_borrowed();
    let who = if borrowed { Who::Child } else { who };
    let no_signals = NoSignals::new();
    unix::before_exec(who);
    if !borrowed {
        faces::unconnected_apart();
    }
    if !leave::is_needed(who) {
        drop(no_signals);
        return start(envp);
    }
    // SAFETY: the application's list, by contract with C.
    let shimmed = unsafe { loads_us(envp) } && !process::identity_changed();
    let target = match program {
        Program::File(path) => target::look(path, shimmed),
        Program::Nowhere => Target::Missing,
        Program::Unknown => Target::Foreign,
    };
    let mut list = [ptr::null_mut::<c_char>(); VARIABLES_MAX + 2];
    let mut left = None;
    // SAFETY: as above.
    let fits = unsafe { each(envp) }.count() <= VARIABLES_MAX;
    match target {
        Target::Missing => {}
        Target::Ours if fits => {
            overlay::before_exec(who);
            left = leave::prepare(who);
        }
        Target::Ours | Target::Foreign => {
            overlay::before_exec(who);
            leave::give_to_kernel();
        }
    }
    let Some(left) = left else {
        drop(no_signals);
        let result = start(envp);
        if target != Target::Missing && !went_well(result) {
            overlay::not_executed(who);
        }
        return result;
    };
    let variable = left.variable();
    let stale = |v: &&CStr| !v.to_bytes().starts_with(leave::VARIABLE);
    // SAFETY: as above.
    let kept = unsafe { each(envp) }.filter(stale).map(|v| v.as_ptr().cast_mut());
    for (to, from) in list.iter_mut().zip(kept.chain([variable.as_ptr().cast_mut().cast()])) {
        *to = from;
    }
    // Handlers run as ever, and a program must not inherit our mask.
    drop(no_signals);
    let result = start(list.as_ptr());
    let errno = crate::sys::errno();
    {
        let _no_signals = NoSignals::new();
        if !went_well(result) {
            overlay::not_executed(who);
        }
        left.end(went_well(result));
    }
    crate::sys::set_errno(errno);
    result
}

/// execve(2) returns only when it failed.
fn never(_: c_int) -> bool {
    false
}
fn is_zero(result: c_int) -> bool {
    result == 0
}

/// The file that `execvp` would find, for a look at it.
unsafe fn search(file: *const c_char, name: &mut [u8; NAME_BYTES]) -> Program<'_> {
    if file.is_null() {
        return Program::Nowhere;
    }
    // SAFETY: the application's C string.
    let file = unsafe { CStr::from_ptr(file) }.to_bytes();
    let path = crate::config::variable(c"PATH").unwrap_or(PATH_DEFAULT);
    let direct = file.contains(&b'/').then_some(&b""[..]);
    let directories = path.split(|b| *b == b':').filter(|_| direct.is_none());
    let mut length = None;
    for directory in direct.into_iter().chain(directories) {
        let slash = if directory.is_empty() { &b""[..] } else { b"/" };
        let needed = directory.len() + slash.len() + file.len();
        let parts = directory.iter().chain(slash).chain(file).chain(&[0]);
        if needed >= NAME_BYTES {
            continue;
        }
        for (to, from) in name.iter_mut().zip(parts) {
            *to = *from;
        }
        let candidate = CStr::from_bytes_until_nul(&name[..]);
        if candidate.is_ok_and(|c| rustix::fs::access(c, rustix::fs::Access::EXEC_OK).is_ok()) {
            length = Some(needed);
            break;
        }
    }
    let found = length.and_then(|n| CStr::from_bytes_with_nul(name.get(..=n)?).ok());
    found.map_or(Program::Nowhere, Program::File)
}

unsafe fn direct<'a>(path: *const c_char) -> Program<'a> {
    if path.is_null() {
        return Program::Nowhere;
    }
    // SAFETY: the application's C string.
    Program::File(unsafe { CStr::from_ptr(path) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn execve(path: *const c_char, argv: Strings, envp: Strings) -> c_int {
    // SAFETY: the application's arguments, by contract with C; so in every function below.
    unsafe { leaving(Who::Us, direct(path), envp, never, |env| real::execve(path, argv, env)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn execv(path: *const c_char, argv: Strings) -> c_int {
    // SAFETY: as above.
    unsafe { execve(path, argv, our_environment()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn execvpe(file: *const c_char, argv: Strings, envp: Strings) -> c_int {
    let mut name = [0; NAME_BYTES];
    // SAFETY: as above.
    unsafe {
        let found = search(file, &mut name);
        leaving(Who::Us, found, envp, never, |env| real::execvpe(file, argv, env))
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn execvp(file: *const c_char, argv: Strings) -> c_int {
    // SAFETY: as above.
    unsafe { execvpe(file, argv, our_environment()) }
}

/// The program that is open there.
fn by_descriptor(fd: c_int, name: &mut [u8; NAME_BYTES]) -> Program<'_> {
    fds::path(fd, name).map_or(Program::Nowhere, Program::File)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fexecve(fd: c_int, argv: Strings, envp: Strings) -> c_int {
    let mut name = [0; NAME_BYTES];
    // SAFETY: as above.
    unsafe { leaving(Who::Us, by_descriptor(fd, &mut name), envp, never, |env| real::fexecve(fd, argv, env)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn execveat(
    dir: c_int,
    path: *const c_char,
    argv: Strings,
    envp: Strings,
    flags: c_int,
) -> c_int {
    let mut name = [0; NAME_BYTES];
    // SAFETY: as above.
    unsafe {
        let target = match direct(path) {
            Program::File(text) if text.is_empty() => by_descriptor(dir, &mut name),
            Program::File(text) if dir != libc::AT_FDCWD && !text.to_bytes().starts_with(b"/") => {
                Program::Unknown
            }
            direct => direct,
        };
        leaving(Who::Us, target, envp, never, |env| real::execveat(dir, path, argv, env, flags))
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_spawn(
    pid: *mut pid_t,
    path: *const c_char,
    actions: *const posix_spawn_file_actions_t,
    attributes: *const posix_spawnattr_t,
    argv: Strings,
    envp: Strings,
) -> c_int {
    // SAFETY: as above.
    unsafe {
        leaving(Who::Child, direct(path), envp, is_zero, |env| {
            real::posix_spawn(pid, path, actions, attributes, argv, env)
        })
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_spawnp(
    pid: *mut pid_t,
    file: *const c_char,
    actions: *const posix_spawn_file_actions_t,
    attributes: *const posix_spawnattr_t,
    argv: Strings,
    envp: Strings,
) -> c_int {
    let mut name = [0; NAME_BYTES];
    // SAFETY: as above.
    unsafe {
        let found = search(file, &mut name);
        leaving(Who::Child, found, envp, is_zero, |env| {
            real::posix_spawnp(pid, file, actions, attributes, argv, env)
        })
    }
}

/// A descriptor of ours that a file action gives to a child may be close-on-exec: remember that it will be inherited.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_spawn_file_actions_adddup2(
    actions: *mut posix_spawn_file_actions_t,
    fd: c_int,
    to: c_int,
) -> c_int {
    if let Some(h) = table::get(fd) {
        h.touched.fetch_or(touched::SPAWNED, core::sync::atomic::Ordering::Relaxed);
        unix::stays(fd, ring::stats::Reason::Shared);
    }
    // SAFETY: as above.
    unsafe { real::posix_spawn_file_actions_adddup2(actions, fd, to) }
}

/// Children that libc itself starts take the environment of the process.
unsafe fn with_our_environment(start: impl FnOnce() -> c_int, went_well: fn(c_int) -> bool) -> c_int {
    let before = our_environment();
    // SAFETY: libc's list is replaced by one with the same strings and one more, and put back: what another thread sets
    // meanwhile is lost, what it reads is right.
    unsafe {
        leaving(Who::Child, Program::File(c"/bin/sh"), before, went_well, |env| {
            environ = env.cast_mut();
            let result = start();
            environ = before.cast_mut();
            result
        })
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn popen(command: *const c_char, mode: *const c_char) -> *mut c_void {
    let mut file = ptr::null_mut();
    // SAFETY: as above.
    unsafe {
        with_our_environment(
            || {
                file = real::popen(command, mode);
                c_int::from(file.is_null())
            },
            is_zero,
        );
    }
    file
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn system(command: *const c_char) -> c_int {
    if command.is_null() {
        // SAFETY: as above.
        return unsafe { real::system(command) };
    }
    // SAFETY: as above.
    unsafe { with_our_environment(|| real::system(command), |status| status != -1) }
}
