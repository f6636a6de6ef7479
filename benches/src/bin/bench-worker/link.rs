//! A connection with the way that its owner waits for news.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use measure::job::{Idle, Shape, Wait};

/// What both ends of every way between two processes can do.
pub trait Channel {
    /// Sends all of `data`.
    fn send(&mut self, data: &[u8]) -> io::Result<()>;
    /// Receives at least a byte and at most `room`, as one receive gives it; 0 at the end.
    fn receive(&mut self, room: &mut [u8]) -> io::Result<usize>;
    /// Nothing more will be sent.
    fn end(&mut self);

    /// Fills all of `room`; false at the end.
    fn receive_all(&mut self, room: &mut [u8]) -> io::Result<bool> {
        let mut filled = 0;
        while let Some(left) = room.get_mut(filled..).filter(|left| !left.is_empty()) {
            match self.receive(left)? {
                0 => return Ok(false),
                n => filled += n,
            }
        }
        Ok(true)
    }
}

/// The result of a system call.
pub fn check(ret: isize) -> io::Result<usize> {
    usize::try_from(ret).map_err(|_| io::Error::last_os_error())
}

/// Reading and writing end.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: room for two descriptors, which are ours then.
    unsafe {
        check(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) as isize)?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// How [`Fds`] waits before a receive.
#[derive(Debug)]
enum Waiter {
    None,
    Epoll(OwnedFd),
    Poll(Vec<libc::pollfd>),
}

/// A socket, or two pipes.
#[derive(Debug)]
pub struct Fds {
    input: RawFd,
    output: RawFd,
    socket: bool,
    waiter: Waiter,
    /// Only kept open.
    _idle: Vec<OwnedFd>,
}

/// The first of `all` is used, the others are idle.
pub fn of(all: &[OwnedFd], shape: &Shape) -> io::Result<Fds> {
    let [busy, idle @ ..] = all else { return Err(io::ErrorKind::NotConnected.into()) };
    Fds::socket(busy, shape, idle)
}

impl Fds {
    /// A socket, waited for as `shape` says; `idle` connections are in the same set.
    pub fn socket(fd: &OwnedFd, shape: &Shape, idle: &[OwnedFd]) -> io::Result<Fds> {
        let fd = fd.as_raw_fd();
        let Shape::PingPong { wait, idle: more, .. } = *shape else {
            return Ok(Fds { input: fd, output: fd, socket: true, waiter: Waiter::None, _idle: Vec::new() });
        };
        let mut quiet = Vec::new();
        if let Idle::Eventfds(n) = more {
            for _ in 0..n {
                // SAFETY: no pointers; the descriptor is ours.
                quiet.push(unsafe {
                    let new = libc::eventfd(0, libc::EFD_CLOEXEC);
                    check(new as isize)?;
                    OwnedFd::from_raw_fd(new)
                });
            }
        }
        let watched =
            || std::iter::once(fd).chain(idle.iter().chain(&quiet).map(std::os::fd::AsRawFd::as_raw_fd));
        let waiter = match wait {
            Wait::Blocking => Waiter::None,
            Wait::Epoll => Waiter::Epoll(epoll(watched())?),
            Wait::Poll => Waiter::Poll(
                watched().map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect(),
            ),
        };
        Ok(Fds { input: fd, output: fd, socket: true, waiter, _idle: quiet })
    }

    /// Standard input and output.
    pub fn standard() -> Fds {
        Fds { input: 0, output: 1, socket: false, waiter: Waiter::None, _idle: Vec::new() }
    }

    /// Two pipes.
    pub fn pipes(input: &OwnedFd, output: &OwnedFd) -> Fds {
        let (input, output) = (input.as_raw_fd(), output.as_raw_fd());
        Fds { input, output, socket: false, waiter: Waiter::None, _idle: Vec::new() }
    }
}

/// A new epoll set that watches `fds` for input; their numbers are the events' data.
pub fn epoll(fds: impl Iterator<Item = RawFd>) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is ours.
    let set = unsafe {
        let new = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        check(new as isize)?;
        OwnedFd::from_raw_fd(new)
    };
    for fd in fds {
        let data = u64::try_from(fd).unwrap_or(0);
        let mut event = libc::epoll_event { events: libc::EPOLLIN.cast_unsigned(), u64: data };
        // SAFETY: the event lives across the call.
        check(unsafe { libc::epoll_ctl(set.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) } as isize)?;
    }
    Ok(set)
}

impl Channel for Fds {
    fn send(&mut self, data: &[u8]) -> io::Result<()> {
        let mut left = data;
        while !left.is_empty() {
            // SAFETY: `left` is readable for its length.
            let sent = check(unsafe {
                if self.socket {
                    libc::send(self.output, left.as_ptr().cast(), left.len(), libc::MSG_NOSIGNAL)
                } else {
                    libc::write(self.output, left.as_ptr().cast(), left.len())
                }
            });
            match sent {
                Ok(n) => left = left.get(n..).unwrap_or(&[]),
                // A sockmap whose other side is full says so even to a blocking sender.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn receive(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match &mut self.waiter {
            Waiter::None => {}
            Waiter::Epoll(set) => {
                let mut event = libc::epoll_event { events: 0, u64: 0 };
                // SAFETY: room for one event.
                check(unsafe { libc::epoll_wait(set.as_raw_fd(), &raw mut event, 1, -1) } as isize)?;
            }
            Waiter::Poll(fds) => {
                // SAFETY: room for as many as are said.
                check(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) } as isize)?;
            }
        }
        // SAFETY: `room` is writable for its length.
        check(unsafe {
            if self.socket {
                libc::recv(self.input, room.as_mut_ptr().cast(), room.len(), 0)
            } else {
                libc::read(self.input, room.as_mut_ptr().cast(), room.len())
            }
        })
    }

    fn end(&mut self) {
        // SAFETY: no pointers. A connection that is gone already has ended, too; a pipe's writing end is not used again.
        unsafe {
            if self.socket {
                libc::shutdown(self.output, libc::SHUT_WR);
            } else {
                libc::close(self.output);
                self.output = -1;
            }
        }
    }
}
