//! Free ports, and waiting until somebody listens.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::child::wait_for;
use crate::{Outcome, ensure};

/// A TCP port that nobody uses right now, over IPv4 and IPv6.
///
/// # Errors
/// When no socket can be bound.
pub fn free_port() -> Outcome<u16> {
    loop {
        let four = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = four.local_addr()?.port();
        if TcpListener::bind((Ipv6Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
}

/// Waits until a connection to `addr` succeeds: for plain servers (see `Instance::wait_listening` for shimmed ones).
///
/// # Errors
/// When nobody listens within 20 s.
pub fn wait_listening(addr: SocketAddr) -> Outcome {
    let up = wait_for(Duration::from_secs(20), || {
        Ok(TcpStream::connect_timeout(&addr, Duration::from_secs(1)).ok())
    })?;
    ensure(up.is_some(), || format!("nobody listens on {addr} after 20 s"))
}

/// True while somebody listens on TCP `port`. Makes no connection, which a server for one client would take.
///
/// # Errors
/// When the kernel's tables can't be read.
pub fn is_bound(port: u16) -> Outcome<bool> {
    /// `TCP_LISTEN` of the kernel's `include/net/tcp_states.h`.
    const LISTEN: &str = "0A";
    let mark = format!(":{port:04X}");
    let listens = |line: &str| {
        let mut words = line.split_whitespace();
        words.nth(1).is_some_and(|local| local.ends_with(&mark)) && words.nth(1) == Some(LISTEN)
    };
    let tables = fs::read_to_string("/proc/net/tcp")? + &fs::read_to_string("/proc/net/tcp6")?;
    Ok(tables.lines().any(listens))
}

/// Waits until [`is_bound`].
///
/// # Errors
/// When nobody listens within 20 s.
pub fn wait_bound(port: u16) -> Outcome {
    let up = wait_for(Duration::from_secs(20), || Ok(is_bound(port)?.then_some(())))?;
    ensure(up.is_some(), || format!("nobody listens on port {port} after 20 s"))
}
