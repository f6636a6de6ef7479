//! `syscall`: programs that make system calls by number, through libc's function. Numbers of calls that we define are handed to
//! those when they concern one of our descriptors; all other calls go to the kernel. (Programs with system call instructions of their own
//! never come here.)
#![allow(unsafe_code, clippy::missing_safety_doc, missing_docs)]

use core::ffi::{c_int, c_long, c_uint, c_ulong};
use core::ptr::null_mut;

use libc::{sigset_t, timespec};

use super::{data, descriptors, exec, fail, moves, pipes, ready, sandbox, sockets};
use crate::{cancel, handlers, process, real, socket, stats, table};

/// An argument, before it is known what it is.
#[derive(Clone, Copy)]
struct Word(c_ulong);

impl Word {
    /// An `int` is the low half of its register.
    #[allow(clippy::cast_possible_truncation)]
    fn int(self) -> c_int {
        (self.0 as c_uint).cast_signed()
    }

    fn uint(self) -> c_uint {
        self.int().cast_unsigned()
    }

    #[allow(clippy::cast_possible_truncation)] // a size_t is as wide as a long on every target of ours
    fn size(self) -> usize {
        self.0 as usize
    }

    fn pointer<T>(self) -> *mut T {
        core::ptr::with_exposed_provenance_mut(self.size())
    }

    /// A descriptor that means something to us.
    fn is_known(self) -> bool {
        table::get(self.int()).is_some() || table::is_internal(self.int())
    }
}

/// The variable arguments are fixed here: on x86-64 and aarch64 Linux both are passed alike, and a system call has six at most.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: c_ulong,
    b: c_ulong,
    c: c_ulong,
    d: c_ulong,
    e: c_ulong,
    f: c_ulong,
) -> c_long {
    // SAFETY: the application's arguments, as the kernel takes them.
    match unsafe { ours(number, [a, b, c, d, e, f].map(Word)) } {
        Some(result) => result,
        None => {
            // SAFETY: the application's arguments, unchanged.
            let result = unsafe { real::syscall(number, a, b, c, d, e, f) };
            if makes_descriptor(number) {
                socket::appeared(Word(result.cast_unsigned()).int());
            }
            result
        }
    }
}

/// Calls of other kinds whose result may be a number that we believe to be ours still.
fn makes_descriptor(number: c_long) -> bool {
    matches!(
        number,
        libc::SYS_openat
            | libc::SYS_openat2
            | libc::SYS_eventfd2
            | libc::SYS_timerfd_create
            | libc::SYS_signalfd4
            | libc::SYS_memfd_create
            | libc::SYS_inotify_init1
            | libc::SYS_pidfd_open
    )
}

/// The result of a call that is ours; `None`: the kernel's.
///
/// # Safety
/// Arguments as the kernel takes them for that number.
unsafe fn ours(number: c_long, words: [Word; 6]) -> Option<c_long> {
    // SAFETY: contract.
    unsafe {
        match number {
            libc::SYS_io_uring_setup => return refuse_io_uring(),
            libc::SYS_clone | libc::SYS_clone3 => {
                process::lends();
                return None;
            }
            libc::SYS_rt_sigaction => {
                handlers::kernel_calls();
                return None;
            }
            libc::SYS_seccomp => {
                sandbox::entering();
                return None;
            }
            libc::SYS_prctl if words.first().is_some_and(|w| w.int() == libc::PR_SET_SECCOMP) => {
                sandbox::entering();
                return None;
            }
            libc::SYS_setns | libc::SYS_unshare => {
                let [a, b, ..] = words;
                return Some(c_long::from(if number == libc::SYS_setns {
                    sandbox::setns(a.int(), b.int())
                } else {
                    sandbox::unshare(a.int())
                }));
            }
            libc::SYS_socket | libc::SYS_socketpair | libc::SYS_close_range | libc::SYS_epoll_create1 => {
                return Some(makes_or_closes(number, words));
            }
            libc::SYS_ppoll | libc::SYS_pselect6 => return cancel::disabled(|| waits(number, words)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_poll | libc::SYS_select | libc::SYS_epoll_create => {
                return cancel::disabled(|| old(number, words));
            }
            libc::SYS_execve | libc::SYS_execveat => return Some(executes(number, words)),
            libc::SYS_dup3 if words.iter().take(2).any(|w| w.is_known()) => {}
            #[cfg(target_arch = "x86_64")]
            libc::SYS_dup2 if words.iter().take(2).any(|w| w.is_known()) => {
                return cancel::disabled(|| old(number, words));
            }
            libc::SYS_splice | libc::SYS_tee if words.iter().take(3).any(|w| w.is_known()) => {}
            _ if !words.first().is_some_and(|w| w.is_known()) => return None,
            _ => {}
        }
        // A system call is no cancellation point; our functions are.
        cancel::disabled(|| on_descriptor(number, words))
    }
}

/// The kernel would see the descriptors in its queues, and not what stands behind them: the program is to take system calls, as on
/// a kernel that has no io_uring.
fn refuse_io_uring() -> Option<c_long> {
    if process::is_inert() {
        return None;
    }
    stats::io_uring_refused();
    Some(fail(crate::sys::Errno(libc::ENOSYS)).into())
}

unsafe fn executes(number: c_long, [a, b, c, d, e, _]: [Word; 6]) -> c_long {
    // SAFETY: arguments as the kernel takes them, which are libc's for these calls.
    c_long::from(unsafe {
        if number == libc::SYS_execve {
            exec::execve(a.pointer(), b.pointer(), c.pointer())
        } else {
            exec::execveat(a.int(), b.pointer(), c.pointer(), d.pointer(), e.int())
        }
    })
}

unsafe fn makes_or_closes(number: c_long, [a, b, c, d, ..]: [Word; 6]) -> c_long {
    // SAFETY: as above.
    c_long::from(unsafe {
        match number {
            libc::SYS_socket => sockets::socket(a.int(), b.int(), c.int()),
            libc::SYS_socketpair => sockets::socketpair(a.int(), b.int(), c.int(), d.pointer()),
            libc::SYS_close_range => descriptors::close_range(a.uint(), b.uint(), c.int()),
            _ => ready::epoll_create1(a.int()),
        }
    })
}

/// poll and select: their arguments name many descriptors.
unsafe fn waits(number: c_long, [a, b, c, d, e, f]: [Word; 6]) -> Option<c_long> {
    /// What pselect6 takes as its sixth argument.
    #[repr(C)]
    struct Mask {
        set: *const sigset_t,
        bytes: usize,
    }
    // SAFETY: arguments as the kernel takes them.
    let result = unsafe {
        if number == libc::SYS_ppoll {
            let (fds, n, limit) = (a.pointer(), b.0, c.pointer::<timespec>());
            if !ready::poll_concerns_us(fds, n) {
                return None;
            }
            ready::ppoll(fds, n, limit, d.pointer())
        } else {
            let (n, sets, limit) = (a.int(), [b, c, d].map(Word::pointer), e.pointer::<timespec>());
            ready::select_sets(n, sets)?;
            let [r, w, x] = sets;
            let mask = f.pointer::<Mask>().as_ref().map_or(null_mut(), |m| m.set.cast_mut());
            ready::pselect(n, r, w, x, limit, mask)
        }
    };
    Some(result.into())
}

/// Calls that newer architectures have in their newer forms only.
#[cfg(target_arch = "x86_64")]
unsafe fn old(number: c_long, [a, b, c, d, e, _]: [Word; 6]) -> Option<c_long> {
    // SAFETY: arguments as the kernel takes them.
    let result = unsafe {
        match number {
            libc::SYS_poll if ready::poll_concerns_us(a.pointer(), b.0) => {
                ready::poll(a.pointer(), b.0, c.int())
            }
            libc::SYS_select => {
                let sets = [b, c, d].map(Word::pointer);
                ready::select_sets(a.int(), sets)?;
                let [r, w, x] = sets;
                ready::select(a.int(), r, w, x, e.pointer())
            }
            libc::SYS_epoll_create => ready::epoll_create(a.int()),
            libc::SYS_dup2 => descriptors::dup2(a.int(), b.int()),
            _ => return None,
        }
    };
    Some(result.into())
}

/// Calls whose first argument is a descriptor that we know.
unsafe fn on_descriptor(number: c_long, [fd, b, c, d, e, f]: [Word; 6]) -> Option<c_long> {
    let n = fd.int();
    // SAFETY: arguments as the kernel takes them, which are libc's for these calls.
    let result = unsafe {
        match number {
            libc::SYS_read => return Some(data::read(n, b.pointer(), c.size()) as c_long),
            libc::SYS_write => return Some(data::write(n, b.pointer(), c.size()) as c_long),
            libc::SYS_readv => return Some(data::readv(n, b.pointer(), c.int()) as c_long),
            libc::SYS_writev => return Some(data::writev(n, b.pointer(), c.int()) as c_long),
            libc::SYS_recvfrom => {
                let (addr, len) = (e.pointer(), f.pointer());
                return Some(data::recvfrom(n, b.pointer(), c.size(), d.int(), addr, len) as c_long);
            }
            libc::SYS_sendto => {
                let addr = e.pointer();
                return Some(data::sendto(n, b.pointer(), c.size(), d.int(), addr, f.uint()) as c_long);
            }
            libc::SYS_recvmsg => return Some(data::recvmsg(n, b.pointer(), c.int()) as c_long),
            libc::SYS_sendmsg => return Some(data::sendmsg(n, b.pointer(), c.int()) as c_long),
            libc::SYS_sendfile => {
                return Some(moves::sendfile(n, b.int(), c.pointer(), d.size()) as c_long);
            }
            libc::SYS_splice => {
                let (input_offset, out, output_offset) = (b.pointer(), c.int(), d.pointer());
                return Some(moves::splice(n, input_offset, out, output_offset, e.size(), f.uint()) as c_long);
            }
            libc::SYS_tee => return Some(pipes::tee(n, b.int(), c.size(), d.uint()) as c_long),
            libc::SYS_vmsplice => {
                return Some(pipes::vmsplice(n, b.pointer(), c.size(), d.uint()) as c_long);
            }
            libc::SYS_recvmmsg => data::recvmmsg(n, b.pointer(), c.uint(), d.int(), e.pointer()),
            libc::SYS_sendmmsg => data::sendmmsg(n, b.pointer(), c.uint(), d.int()),
            libc::SYS_bind => sockets::bind(n, b.pointer(), c.uint()),
            libc::SYS_listen => sockets::listen(n, b.int()),
            libc::SYS_accept => sockets::accept(n, b.pointer(), c.pointer()),
            libc::SYS_accept4 => sockets::accept4(n, b.pointer(), c.pointer(), d.int()),
            libc::SYS_connect => sockets::connect(n, b.pointer(), c.uint()),
            libc::SYS_shutdown => sockets::shutdown(n, b.int()),
            libc::SYS_getsockname => sockets::getsockname(n, b.pointer(), c.pointer()),
            libc::SYS_getpeername => sockets::getpeername(n, b.pointer(), c.pointer()),
            libc::SYS_getsockopt => sockets::getsockopt(n, b.int(), c.int(), d.pointer(), e.pointer()),
            libc::SYS_setsockopt => sockets::setsockopt(n, b.int(), c.int(), d.pointer(), e.uint()),
            libc::SYS_close => descriptors::close(n),
            libc::SYS_dup => descriptors::dup(n),
            libc::SYS_dup3 => descriptors::dup3(n, b.int(), c.int()),
            libc::SYS_fcntl => descriptors::fcntl(n, b.int(), c.0),
            libc::SYS_ioctl => descriptors::ioctl(n, b.0, c.0),
            libc::SYS_epoll_ctl => ready::epoll_ctl(n, b.int(), c.int(), d.pointer()),
            libc::SYS_epoll_pwait => ready::epoll_pwait(n, b.pointer(), c.int(), d.int(), e.pointer()),
            libc::SYS_epoll_pwait2 => ready::epoll_pwait2(n, b.pointer(), c.int(), d.pointer(), e.pointer()),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_epoll_wait => ready::epoll_wait(n, b.pointer(), c.int(), d.int()),
            _ => return None,
        }
    };
    Some(result.into())
}
