//! Free ports, and waiting until somebody listens.

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
