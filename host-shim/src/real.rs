//! libc's originals of the symbols that we define. This list is the one list of what we intercept (with `accept`,
//! `closefrom`, `fcntl64`, `sendfile64`, `freopen64`, `dprintf`, `__dprintf_chk`, `execv`, `execvp`, `execl`, `execlp`, `execle`, `__sigaction`, `signal`,
//! `bsd_signal` and `ssignal`, which are other names or forms of functions in it, and [`vfork`] and [`clone`]): the test `exports` compares it with
//! the library's symbol table.
//!
//! All are looked up once, when the library is loaded. A call that comes earlier (another library's constructor) looks up its
//! own one; that is the same value whoever does it first, so no lock is needed.
//!
//! `unsafe` is allowed here: calling C through pointers that dlsym(3) gave.
#![allow(unsafe_code, clippy::missing_safety_doc)]
#![allow(missing_docs)] // each function is libc's of that name

use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};

use libc::{
    epoll_event, fd_set, iovec, mmsghdr, msghdr, nfds_t, off_t, pid_t, pollfd, posix_spawn_file_actions_t,
    posix_spawnattr_t, pthread_t, sighandler_t, sigset_t, size_t, sockaddr, socklen_t, ssize_t, timespec,
    timeval,
};

use crate::file::File;

struct Original {
    name: &'static CStr,
    address: AtomicPtr<c_void>,
}

impl Original {
    const fn new(name: &'static CStr) -> Self {
        Original { name, address: AtomicPtr::new(core::ptr::null_mut()) }
    }

    #[inline(always)]
    fn get(&self) -> *mut c_void {
        // Relaxed: the pointer is to code, mapped before we were.
        let p = self.address.load(Ordering::Relaxed);
        if p.is_null() { self.look_up() } else { p }
    }

    #[cold]
    fn look_up(&self) -> *mut c_void {
        // SAFETY: a C string and a pseudo-handle that is always valid.
        let p = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        let p = if p.is_null() { missing as *mut c_void } else { p };
        self.address.store(p, Ordering::Relaxed);
        p
    }
}

static VFORK: Original = Original::new(c"vfork");
static CLONE: Original = Original::new(c"clone");

/// Where vfork(2) is: what returns twice can't be called by a function that returns.
pub fn vfork() -> *mut c_void {
    VFORK.get()
}

/// Where clone(2) is: how many arguments it has, its flags say.
pub fn clone() -> *mut c_void {
    CLONE.get()
}

/// Stands in for a function that this libc does not have (`epoll_pwait2`, `closefrom`, `close_range` before glibc 2.34/2.35).
extern "C" fn missing() -> c_int {
    crate::sys::set_errno(crate::sys::Errno(libc::ENOSYS));
    -1
}

macro_rules! originals {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {
        #[allow(non_upper_case_globals)]
        mod table {
            use super::Original;
            $(pub(super) static $name: Original = Original::new(
                // The name with its NUL, checked when compiling.
                match core::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(s) => s,
                    Err(_) => panic!("a symbol name holds no NUL"),
                },
            );)*
        }
        $(
            #[inline(always)]
            pub unsafe fn $name($($arg: $ty),*) -> $ret {
                // SAFETY: the address is of libc's function with this name, whose C prototype the type spells out.
                let f: unsafe extern "C" fn($($ty),*) -> $ret = unsafe { core::mem::transmute(table::$name.get()) };
                // SAFETY: the caller passes what the application passed to that very function.
                unsafe { f($($arg),*) }
            }
        )*
        /// Looks all of them up. Called once, when the library is loaded.
        pub fn resolve() {
            $(let _ = table::$name.look_up();)*
        }
    };
}

originals! {
    // sockets
    socket(domain: c_int, ty: c_int, protocol: c_int) -> c_int;
    socketpair(domain: c_int, ty: c_int, protocol: c_int, pair: *mut c_int) -> c_int;
    bind(fd: c_int, addr: *const sockaddr, len: socklen_t) -> c_int;
    listen(fd: c_int, backlog: c_int) -> c_int;
    accept4(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int;
    connect(fd: c_int, addr: *const sockaddr, len: socklen_t) -> c_int;
    shutdown(fd: c_int, how: c_int) -> c_int;
    getsockname(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t) -> c_int;
    getpeername(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t) -> c_int;
    getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int;
    setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int;
    // data
    read(fd: c_int, buf: *mut c_void, n: size_t) -> ssize_t;
    write(fd: c_int, buf: *const c_void, n: size_t) -> ssize_t;
    readv(fd: c_int, iov: *const iovec, n: c_int) -> ssize_t;
    writev(fd: c_int, iov: *const iovec, n: c_int) -> ssize_t;
    recv(fd: c_int, buf: *mut c_void, n: size_t, flags: c_int) -> ssize_t;
    send(fd: c_int, buf: *const c_void, n: size_t, flags: c_int) -> ssize_t;
    recvfrom(fd: c_int, buf: *mut c_void, n: size_t, flags: c_int, addr: *mut sockaddr, len: *mut socklen_t) -> ssize_t;
    sendto(fd: c_int, buf: *const c_void, n: size_t, flags: c_int, addr: *const sockaddr, len: socklen_t) -> ssize_t;
    recvmsg(fd: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t;
    sendmsg(fd: c_int, msg: *const msghdr, flags: c_int) -> ssize_t;
    recvmmsg(fd: c_int, msgs: *mut mmsghdr, n: c_uint, flags: c_int, timeout: *mut timespec) -> c_int;
    sendmmsg(fd: c_int, msgs: *mut mmsghdr, n: c_uint, flags: c_int) -> c_int;
    sendfile(out: c_int, input: c_int, offset: *mut off_t, n: size_t) -> ssize_t;
    splice(input: c_int, input_offset: *mut off_t, out: c_int, output_offset: *mut off_t, n: size_t, flags: c_uint) -> ssize_t;
    __read_chk(fd: c_int, buf: *mut c_void, n: size_t, size: size_t) -> ssize_t;
    __recv_chk(fd: c_int, buf: *mut c_void, n: size_t, size: size_t, flags: c_int) -> ssize_t;
    __recvfrom_chk(fd: c_int, buf: *mut c_void, n: size_t, size: size_t, flags: c_int, addr: *mut sockaddr, len: *mut socklen_t) -> ssize_t;
    // descriptors
    close(fd: c_int) -> c_int;
    close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int;
    dup(fd: c_int) -> c_int;
    dup2(fd: c_int, to: c_int) -> c_int;
    dup3(fd: c_int, to: c_int, flags: c_int) -> c_int;
    fcntl(fd: c_int, cmd: c_int, arg: c_ulong) -> c_int;
    ioctl(fd: c_int, request: c_ulong, arg: c_ulong) -> c_int;
    // files: only to notice that a number of ours is given out again
    open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int;
    open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int;
    openat(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int;
    openat64(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int;
    __open_2(path: *const c_char, flags: c_int) -> c_int;
    __open64_2(path: *const c_char, flags: c_int) -> c_int;
    __openat_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int;
    __openat64_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int;
    creat(path: *const c_char, mode: c_uint) -> c_int;
    creat64(path: *const c_char, mode: c_uint) -> c_int;
    eventfd(value: c_uint, flags: c_int) -> c_int;
    timerfd_create(clock: c_int, flags: c_int) -> c_int;
    signalfd(fd: c_int, mask: *const sigset_t, flags: c_int) -> c_int;
    inotify_init() -> c_int;
    inotify_init1(flags: c_int) -> c_int;
    memfd_create(name: *const c_char, flags: c_uint) -> c_int;
    syscall(number: c_long, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong, e: c_ulong, f: c_ulong) -> c_long;
    // programs
    execve(path: *const c_char, argv: *const *mut c_char, envp: *const *mut c_char) -> c_int;
    execvpe(file: *const c_char, argv: *const *mut c_char, envp: *const *mut c_char) -> c_int;
    fexecve(fd: c_int, argv: *const *mut c_char, envp: *const *mut c_char) -> c_int;
    execveat(dir: c_int, path: *const c_char, argv: *const *mut c_char, envp: *const *mut c_char, flags: c_int) -> c_int;
    posix_spawn(pid: *mut pid_t, path: *const c_char, actions: *const posix_spawn_file_actions_t, attributes: *const posix_spawnattr_t, argv: *const *mut c_char, envp: *const *mut c_char) -> c_int;
    posix_spawnp(pid: *mut pid_t, file: *const c_char, actions: *const posix_spawn_file_actions_t, attributes: *const posix_spawnattr_t, argv: *const *mut c_char, envp: *const *mut c_char) -> c_int;
    posix_spawn_file_actions_adddup2(actions: *mut posix_spawn_file_actions_t, fd: c_int, to: c_int) -> c_int;
    popen(command: *const c_char, mode: *const c_char) -> *mut c_void;
    system(command: *const c_char) -> c_int;
    // giving up system calls, and namespaces
    prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int;
    setns(fd: c_int, kinds: c_int) -> c_int;
    unshare(flags: c_int) -> c_int;
    // pipes
    pipe2(fds: *mut c_int, flags: c_int) -> c_int;
    tee(input: c_int, out: c_int, n: size_t, flags: c_uint) -> ssize_t;
    vmsplice(fd: c_int, iov: *const iovec, n: size_t, flags: c_uint) -> ssize_t;
    // readiness
    poll(fds: *mut pollfd, n: nfds_t, timeout: c_int) -> c_int;
    ppoll(fds: *mut pollfd, n: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    __poll_chk(fds: *mut pollfd, n: nfds_t, timeout: c_int, size: size_t) -> c_int;
    __ppoll_chk(fds: *mut pollfd, n: nfds_t, timeout: *const timespec, mask: *const sigset_t, size: size_t) -> c_int;
    select(n: c_int, r: *mut fd_set, w: *mut fd_set, e: *mut fd_set, timeout: *mut timeval) -> c_int;
    pselect(n: c_int, r: *mut fd_set, w: *mut fd_set, e: *mut fd_set, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    epoll_create(size: c_int) -> c_int;
    epoll_create1(flags: c_int) -> c_int;
    epoll_ctl(ep: c_int, op: c_int, fd: c_int, event: *mut epoll_event) -> c_int;
    epoll_wait(ep: c_int, events: *mut epoll_event, max: c_int, timeout: c_int) -> c_int;
    epoll_pwait(ep: c_int, events: *mut epoll_event, max: c_int, timeout: c_int, mask: *const sigset_t) -> c_int;
    epoll_pwait2(ep: c_int, events: *mut epoll_event, max: c_int, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    // signal handlers
    sigaction(signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int;
    sysv_signal(signal: c_int, handler: sighandler_t) -> sighandler_t;
    __sysv_signal(signal: c_int, handler: sighandler_t) -> sighandler_t;
    sigset(signal: c_int, handler: sighandler_t) -> sighandler_t;
    siginterrupt(signal: c_int, interrupts: c_int) -> c_int;
    // leaving a call for good
    pthread_cancel(thread: pthread_t) -> c_int;
    longjmp(target: *mut u64, value: c_int) -> ();
    _longjmp(target: *mut u64, value: c_int) -> ();
    siglongjmp(target: *mut u64, value: c_int) -> ();
    __longjmp_chk(target: *mut u64, value: c_int) -> ();
    // stdio
    fdopen(fd: c_int, mode: *const c_char) -> *mut File;
    fclose(file: *mut File) -> c_int;
    freopen(path: *const c_char, mode: *const c_char, file: *mut File) -> *mut File;
    daemon(stay: c_int, keep_open: c_int) -> c_int;
    vdprintf(fd: c_int, format: *const c_char, list: *mut c_void) -> c_int;
    __vdprintf_chk(fd: c_int, flag: c_int, format: *const c_char, list: *mut c_void) -> c_int;
}
