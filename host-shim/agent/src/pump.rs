//! `ipc-direct pump`: the relay's program. It knows nothing of IPC-Direct: one of its two sockets is in user space because it
//! runs with the shim, like any other program.
//!
//! `unsafe` is allowed here: taking over descriptors by their agreed numbers, and poll(2).
#![allow(unsafe_code)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::ExitCode;

/// The connection of ours, and the kernel's (SPEC 10.4).
const CONNECTION_FD: i32 = 3;
const KERNEL_FD: i32 = 4;
const BUFFER_BYTES: usize = 64 * 1024;

/// Copies both ways until both ends are over.
#[must_use]
pub fn pump() -> ExitCode {
    // SAFETY: the agent starts this program with these two descriptors, and nothing else in it uses them.
    let (ours, kernel) =
        unsafe { (TcpStream::from_raw_fd(CONNECTION_FD), TcpStream::from_raw_fd(KERNEL_FD)) };
    let ends = ours.try_clone().and_then(|o| Ok((o, kernel.try_clone()?)));
    let Ok((ours_too, kernel_too)) = ends else { return ExitCode::FAILURE };
    let outward = std::thread::spawn(move || copy(&ours_too, &kernel_too));
    let inward = copy(&kernel, &ours);
    if outward.join().unwrap_or(false) && inward {
        ExitCode::SUCCESS
    } else {
        reset(&ours);
        reset(&kernel);
        ExitCode::FAILURE
    }
}

/// Copies until the end, and passes the end on. False: one of the two broke; nothing more can come the other way either.
fn copy(mut from: &TcpStream, mut to: &TcpStream) -> bool {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let copied = match patiently(from, libc::POLLIN, || from.read(&mut buffer)) {
            Ok(0) => return to.shutdown(Shutdown::Write).is_ok(),
            Ok(n) => write_all(&mut to, buffer.get(..n).unwrap_or(&[])),
            Err(_) => false,
        };
        if !copied {
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            return false;
        }
    }
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
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(std::time::Duration::ZERO));
}
