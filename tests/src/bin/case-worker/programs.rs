//! Other programs: exec, spawn in its kinds, and libraries loaded late.
//!
//! `unsafe` is allowed here: exec, fork, posix_spawn and dlopen have no safe form.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_void};
use std::iter::once;
use std::mem::zeroed;
use std::ptr::null;
use std::sync::atomic::{AtomicI32, Ordering};

use harness::wire::{ExecBy, Op, Out, SpawnBy};

use crate::calls::answer;

unsafe extern "C" {
    static environ: *const *const c_char;
    fn case_vfork_exec(
        path: *const c_char,
        argv: *const *const c_char,
        envp: *const *const c_char,
        moves: *const [i32; 2],
        count: i32,
    ) -> i32;
}

/// The program started last, for `Reap`.
static STARTED: AtomicI32 = AtomicI32::new(0);

/// Makes one of this module's calls.
pub fn make(op: &Op) -> Out {
    match op {
        Op::Exec { by, argv } => arguments(argv, |path, argv| exec(*by, path, argv)),
        Op::Spawn { by, argv, moves } => arguments(argv, |path, argv| spawn(*by, path, argv, moves)),
        Op::Dlopen { path, flags } => dlopen(path, *flags),
        Op::Reap => reap(),
        _ => Out { ret: -1, errno: libc::ENOSYS, ..Out::default() },
    }
}

/// `argv` as C takes it, and the program's path.
fn arguments(argv: &[String], call: impl FnOnce(*const c_char, *const *const c_char) -> Out) -> Out {
    let texts: Vec<CString> = argv.iter().filter_map(|a| CString::new(a.as_str()).ok()).collect();
    let argv: Vec<*const c_char> = texts.iter().map(|a| a.as_ptr()).chain(once(null())).collect();
    match argv.first() {
        Some(path) => call(*path, argv.as_ptr()),
        None => Out { ret: -1, errno: libc::EINVAL, ..Out::default() },
    }
}

/// Returns only when it fails.
fn exec(by: ExecBy, path: *const c_char, argv: *const *const c_char) -> Out {
    // SAFETY: path and arguments are C strings with a null behind the last; the environment is the process's.
    answer(unsafe {
        match by {
            ExecBy::Execve => libc::execve(path, argv, environ),
            ExecBy::Execv => libc::execv(path, argv),
            ExecBy::Execvp => libc::execvp(path, argv),
            ExecBy::Fexecve => {
                libc::fexecve(libc::open(path, libc::O_RDONLY | libc::O_CLOEXEC), argv, environ)
            }
        }
    })
}

fn spawn(by: SpawnBy, path: *const c_char, argv: *const *const c_char, moves: &[(i32, i32)]) -> Out {
    let pairs: Vec<[i32; 2]> = moves.iter().map(|(from, to)| [*from, *to]).collect();
    let pid = match by {
        SpawnBy::Fork => fork_exec(path, argv, &pairs),
        // SAFETY: as for `exec`; `pairs` has that many pairs.
        SpawnBy::Vfork => unsafe { case_vfork_exec(path, argv, environ, pairs.as_ptr(), pairs.len() as i32) },
        SpawnBy::PosixSpawn | SpawnBy::PosixSpawnp => return posix_spawn(by, path, argv, &pairs),
    };
    started(pid)
}

fn fork_exec(path: *const c_char, argv: *const *const c_char, moves: &[[i32; 2]]) -> i32 {
    // SAFETY: the child makes only calls that are safe after a fork, on memory made before it.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            for [from, to] in moves {
                libc::dup2(*from, *to);
            }
            libc::execve(path, argv, environ);
            libc::_exit(127);
        }
        pid
    }
}

fn posix_spawn(by: SpawnBy, path: *const c_char, argv: *const *const c_char, moves: &[[i32; 2]]) -> Out {
    let mut pid = 0;
    // SAFETY: the actions are initialised before use and destroyed after; the rest as for `exec`.
    let error = unsafe {
        let mut actions: libc::posix_spawn_file_actions_t = zeroed();
        libc::posix_spawn_file_actions_init(&raw mut actions);
        for [from, to] in moves {
            libc::posix_spawn_file_actions_adddup2(&raw mut actions, *from, *to);
        }
        let (argv, env) = (argv.cast::<*mut c_char>(), environ.cast::<*mut c_char>());
        let error = match by {
            SpawnBy::PosixSpawnp => {
                libc::posix_spawnp(&raw mut pid, path, &raw const actions, null(), argv, env)
            }
            _ => libc::posix_spawn(&raw mut pid, path, &raw const actions, null(), argv, env),
        };
        libc::posix_spawn_file_actions_destroy(&raw mut actions);
        error
    };
    if error == 0 { started(pid) } else { Out { ret: -1, errno: error, ..Out::default() } }
}

/// Keeps the process id for `Reap`; the answer does not have it.
fn started(pid: i32) -> Out {
    // Relaxed: the worker's only thread that starts and reaps.
    STARTED.store(pid, Ordering::Relaxed);
    answer(pid.min(1))
}

/// Waits for the program started last.
fn reap() -> Out {
    let mut status = 0;
    // SAFETY: the status lives across the call.
    let mut out =
        answer(unsafe { libc::waitpid(STARTED.load(Ordering::Relaxed), &raw mut status, 0) }.min(1));
    out.value = i64::from(status);
    out
}

/// Loads a library and asks for its `library_fds`.
fn dlopen(path: &str, flags: i32) -> Out {
    let failed = Out { ret: -1, errno: libc::ENOENT, ..Out::default() };
    let Ok(path) = CString::new(path) else { return failed };
    // SAFETY: C strings; the library has that symbol, an array of two ints.
    unsafe {
        let library = libc::dlopen(path.as_ptr(), flags);
        if library.is_null() {
            return failed;
        }
        let fds: *const c_void = libc::dlsym(library, c"library_fds".as_ptr());
        if fds.is_null() {
            return failed;
        }
        let [client, server] = *fds.cast::<[i32; 2]>();
        Out { events: vec![(client, 0), (server, 0)], ..Out::default() }
    }
}
