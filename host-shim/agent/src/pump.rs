//! `ipc-direct pump`: the relay's program. It knows nothing of IPC-Direct: one of its two sockets is in user space because it
//! runs with the shim, like any other program.
//!
//! `unsafe` is allowed here: taking over descriptors by their agreed numbers, poll(2), and messages with descriptors.
#![allow(unsafe_code)]

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

/// The connection of ours, and the kernel's (SPEC 10.4).
const CONNECTION_FD: i32 = 3;
const KERNEL_FD: i32 = 4;
const BUFFER_BYTES: usize = 64 * 1024;
/// Looks at who holds the kernel's other end, and the time before each.
const LOOKS: u32 = 3;
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Copies both ways until both ends are over.
#[must_use]
pub fn pump() -> ExitCode {
    // SAFETY: the agent starts this program with these two descriptors, and nothing else in it uses them.
    let (ours, kernel) =
        unsafe { (TcpStream::from_raw_fd(CONNECTION_FD), TcpStream::from_raw_fd(KERNEL_FD)) };
    let ends = ours.try_clone().and_then(|o| Ok((o, kernel.try_clone()?)));
    let Ok((ours_too, kernel_too)) = ends else { return ExitCode::FAILURE };
    let outward = std::thread::spawn(move || copy(&ours_too, &kernel_too, || false));
    // Whoever gave the connection away may go on with it: a program that has closed it ends nothing but this relay.
    let inward = copy(&kernel, &ours, || is_abandoned(&kernel));
    if outward.join().unwrap_or(false) && inward {
        ExitCode::SUCCESS
    } else {
        reset(&ours);
        reset(&kernel);
        ExitCode::FAILURE
    }
}

/// Copies until the end, and passes the end on; or ends this process there, which lets go of both, if that is due. False: one of the two broke; nothing more can come the other way either.
fn copy(from: &TcpStream, mut to: &TcpStream, is_over: impl Fn() -> bool) -> bool {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let mut beside = Beside::default();
        let copied = match patiently(from, libc::POLLIN, || beside.receive(from, &mut buffer)) {
            Ok(0) if is_over() => std::process::exit(0),
            Ok(0) => return to.shutdown(Shutdown::Write).is_ok(),
            Ok(n) => {
                let data = buffer.get(..n).unwrap_or(&[]);
                match beside.fds.is_empty() {
                    true => write_all(&mut to, data),
                    false => match patiently(to, libc::POLLOUT, || beside.send(to, data)) {
                        Ok(sent) => write_all(&mut to, data.get(sent..).unwrap_or(&[])),
                        Err(_) => false,
                    },
                }
            }
            Err(_) => false,
        };
        if !copied {
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            return false;
        }
    }
}

/// Nobody holds the other end of `socket`, a connection on loopback, any more: not only was it shut down.
fn is_abandoned(socket: &TcpStream) -> bool {
    let (Ok(own), Ok(other)) = (socket.local_addr(), socket.peer_addr()) else { return true };
    let table = if own.is_ipv4() { "/proc/self/net/tcp" } else { "/proc/self/net/tcp6" };
    // Linux lets the end of the stream out before it lets go of the socket: a later look is right.
    (0..LOOKS).any(|_| {
        std::thread::sleep(LOOK_EVERY);
        let Ok(table) = std::fs::read_to_string(table) else { return false };
        table.lines().filter(|line| is_between(line, other.port(), own.port())).all(|line| inode(line) == "0")
    })
}

/// A line of /proc/net/tcp (proc_pid_net(5)) about a socket with these ports.
fn is_between(line: &str, local: u16, remote: u16) -> bool {
    let port = |at| {
        let address: &str = line.split_whitespace().nth(at)?;
        u16::from_str_radix(address.rsplit(':').next()?, 16).ok()
    };
    port(1) == Some(local) && port(2) == Some(remote)
}

/// The inode in such a line; "0": no file stands for that socket any more.
fn inode(line: &str) -> &str {
    line.split_whitespace().nth(9).unwrap_or("0")
}

fn write_all(to: &mut &TcpStream, mut data: &[u8]) -> bool {
    while !data.is_empty() {
        let socket: &TcpStream = to;
        match patiently(socket, libc::POLLOUT, || to.write(data)) {
            Ok(n) => data = data.get(n..).unwrap_or(&[]),
            Err(_) => return false,
        }
    }
    true
}

/// Descriptors that came with bytes (`SCM_RIGHTS` of AF_UNIX; TCP has none). By libc's functions, which are the shim's here.
#[derive(Default)]
struct Beside {
    fds: Vec<OwnedFd>,
}

/// Room for as many descriptors as one message carries.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);
const CONTROL_BYTES: usize = 2048;

impl Beside {
    fn receive(&mut self, from: &TcpStream, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut control = Control([0; CONTROL_BYTES]);
        let mut data = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: all zero is a valid msghdr.
        let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
        (m.msg_iov, m.msg_iovlen) = (&raw mut data, 1);
        (m.msg_control, m.msg_controllen) = (control.0.as_mut_ptr().cast(), CONTROL_BYTES);
        // SAFETY: buffers of these lengths, which live as long as the call.
        let n = unsafe { libc::recvmsg(from.as_raw_fd(), &raw mut m, libc::MSG_CMSG_CLOEXEC) };
        let n = usize::try_from(n).map_err(|_| std::io::Error::last_os_error())?;
        // SAFETY: the control messages that the call has left there; the macros stay inside. Each descriptor is ours alone.
        unsafe {
            let mut at = libc::CMSG_FIRSTHDR(&raw const m);
            while !at.is_null() {
                if (*at).cmsg_level == libc::SOL_SOCKET && (*at).cmsg_type == libc::SCM_RIGHTS {
                    let first = libc::CMSG_DATA(at).cast::<i32>();
                    let bytes = (*at).cmsg_len - first.cast::<u8>().offset_from(at.cast()).unsigned_abs();
                    for i in 0..bytes / size_of::<i32>() {
                        self.fds.push(OwnedFd::from_raw_fd(first.add(i).read_unaligned()));
                    }
                }
                at = libc::CMSG_NXTHDR(&raw const m, at);
            }
        }
        Ok(n)
    }

    fn send(&self, to: &TcpStream, data: &[u8]) -> std::io::Result<usize> {
        let mut control = Control([0; CONTROL_BYTES]);
        let mut data = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
        let bytes = u32::try_from(self.fds.len() * size_of::<i32>()).map_err(std::io::Error::other)?;
        // SAFETY: all zero is a valid msghdr. The control message fits: no more came in one.
        let sent = unsafe {
            let mut m: libc::msghdr = std::mem::zeroed();
            (m.msg_iov, m.msg_iovlen) = (&raw mut data, 1);
            m.msg_control = control.0.as_mut_ptr().cast();
            m.msg_controllen = libc::CMSG_SPACE(bytes) as usize;
            let head = libc::CMSG_FIRSTHDR(&raw const m);
            ((*head).cmsg_level, (*head).cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
            (*head).cmsg_len = libc::CMSG_LEN(bytes) as usize;
            for (i, fd) in self.fds.iter().enumerate() {
                libc::CMSG_DATA(head).cast::<i32>().add(i).write_unaligned(fd.as_raw_fd());
            }
            libc::sendmsg(to.as_raw_fd(), &raw const m, libc::MSG_NOSIGNAL)
        };
        usize::try_from(sent).map_err(|_| std::io::Error::last_os_error())
    }
}

/// Tries until it does not block: whoever gave the connection away may have made it non-blocking, and goes on using it so.
fn patiently(
    socket: &TcpStream,
    events: libc::c_short,
    mut attempt: impl FnMut() -> std::io::Result<usize>,
) -> std::io::Result<usize> {
    loop {
        match attempt() {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let mut set = libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
                // SAFETY: one element, ours. libc's function, since the shim is in its place; the next attempt tells its outcome.
                unsafe { libc::poll(&raw mut set, 1, -1) };
            }
            outcome => return outcome,
        }
    }
}

/// What broke here ends as a reset there.
fn reset(socket: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::net::TcpListener;

    #[test]
    fn shut_down_is_not_abandoned() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (near, _) = listener.accept().unwrap();
        far.shutdown(Shutdown::Write).unwrap();
        assert_eq!((&near).read(&mut [0; 4]).unwrap(), 0);
        assert!(!is_abandoned(&near));
        drop(far);
        assert!(is_abandoned(&near));
    }
}
