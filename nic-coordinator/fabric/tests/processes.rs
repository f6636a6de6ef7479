//! The two ends in two processes, one of which is killed in the middle. `FABRIC_CHECK` names the other program where it is not
//! where cargo has put it.

mod common;
#[path = "common/memory.rs"]
mod memory;
#[path = "common/peer.rs"]
mod peer;

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use common::{WAIT_MAX, address, open, provider, until};
use fabric::endpoint::{Down, Event, Settings};
use peer::{Failure, Peer};

struct Other {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Other {
    fn start(args: &[&str]) -> Other {
        let program =
            std::env::var("FABRIC_CHECK").unwrap_or_else(|_| env!("CARGO_BIN_EXE_fabric-check").into());
        let mut command = Command::new(program);
        command.arg(provider()).arg(address().to_string()).args(args).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Other { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other process connects to us.
fn connected_by(other_args: &[&str]) -> (Other, Peer) {
    let fabric = open();
    let mut listener = fabric.listen(0).unwrap();
    let at = listener.address().unwrap().to_string();
    let other = Other::start(&[&["connect", &at], other_args].concat());
    let incoming = until("the request", || listener.poll().unwrap());
    let mut endpoint = incoming.accept(&Settings::default(), b"welcome").unwrap();
    assert!(matches!(until("the connection", || endpoint.event().unwrap()), Event::Connected(_)));
    (other, Peer::new(&fabric, endpoint).unwrap())
}

#[test]
fn both_ends_write_and_check() {
    let (mut other, mut peer) = connected_by(&["40"]);
    assert_eq!(other.line(), "connected");
    // The other one ends when it has had its answers.
    let result = peer.run(u64::MAX);
    assert!(matches!(result, Err(Failure::Down(Down::Ended))), "{result:?}");
    assert!(peer.rounds > 0 && peer.bytes > 5 * 1024 * 1024, "{} rounds, {} bytes", peer.rounds, peer.bytes);
    assert!(other.line().starts_with("rounds 40 "));
    assert!(other.child.wait().unwrap().success());
}

#[test]
fn a_peer_is_killed_in_the_middle() {
    for round in 0..4 {
        let (mut other, mut peer) = connected_by(&[]);
        assert_eq!(other.line(), "connected");
        peer.run(5 + round).unwrap();
        other.child.kill().unwrap();
        let start = Instant::now();
        let result = peer.run(u64::MAX);
        assert!(matches!(result, Err(Failure::Down(_))), "{result:?}");
        assert!(start.elapsed() < WAIT_MAX);
    }
}

#[test]
fn a_listening_peer_is_killed() {
    let mut other = Other::start(&["serve", "0"]);
    let line = other.line();
    let at = line.strip_prefix("listening ").unwrap().parse().unwrap();
    let fabric = open();
    let mut endpoint = fabric.connect(at, &Settings::default(), b"hello").unwrap();
    assert!(matches!(until("the connection", || endpoint.event().unwrap()), Event::Connected(_)));
    let mut peer = Peer::new(&fabric, endpoint).unwrap();
    peer.run(10).unwrap();
    other.child.kill().unwrap();
    assert!(matches!(peer.run(u64::MAX), Err(Failure::Down(_))));
}
