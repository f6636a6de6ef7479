//! The agent of a guest, and its emulated card with a port on the second Ethernet.

use harness::child::wait_for;
use harness::counters::Report;
use harness::guest::Guest;
use harness::hosts::{Peer, Status};
use harness::{Failure, Outcome};
use serde::de::DeserializeOwned;

use crate::pair::BOUND;

/// How programs are started under the shim.
pub const SHIMMED: &str = "IPC_DIRECT_SOCKET=/run/agent /opt/ipc-direct run --require-agent --";
/// Of both hosts.
const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// The card's address in host `number`.
#[must_use]
pub fn address(number: u32) -> String {
    format!("10.7.1.{number}")
}

/// Starts them, and waits until they are up. `fabric`: what carries connections with the other host.
///
/// # Errors
/// When they do not come up.
pub fn up(host: &mut Guest, number: u32, fabric: &str) -> Outcome {
    host.run(&format!("(umask 077; echo {KEY} >/run/key)"), BOUND)?;
    let uplink = format!("--uplink eth1 --uplink-address {}/24 --hosts-key /run/key", address(number));
    let host_address = format!("--host-address 10.7.0.{number} --fabric {fabric}");
    let command = format!("/opt/ipc-direct up --log info --socket /run/agent {uplink} {host_address}");
    host.start("agent", &command)?;
    host.until("grep -q 'is up' /tmp/agent", BOUND)
}

/// Waits until `host` has the card of host `number` in `state`.
///
/// # Errors
/// When it never has.
pub fn wait_peer(host: &mut Guest, number: u32, state: &str) -> Outcome<Peer> {
    let address = address(number);
    let mut last = None;
    let there = wait_for(BOUND, || {
        last = status(host)?.peer(&address).cloned();
        Ok(last.clone().filter(|peer| peer.state == state))
    })?;
    there.ok_or_else(|| Failure(format!("{address} is not {state}: {last:?}")))
}

/// Ends them.
///
/// # Errors
/// When they do not end well.
pub fn down(host: &mut Guest) -> Outcome {
    host.run("kill $agent && wait $agent", BOUND).map(drop)
}

/// What `ipc-direct ps` says.
///
/// # Errors
/// When it fails.
pub fn report(host: &mut Guest) -> Outcome<Report> {
    ask(host, "ps")
}

/// What `ipc-direct status` says.
///
/// # Errors
/// When it fails.
pub fn status(host: &mut Guest) -> Outcome<Status> {
    ask(host, "status")
}

fn ask<T: DeserializeOwned>(host: &mut Guest, command: &str) -> Outcome<T> {
    let json = host.run(&format!("IPC_DIRECT_SOCKET=/run/agent /opt/ipc-direct {command} --json"), BOUND)?;
    serde_json::from_str(&json).map_err(|e| Failure(format!("{command} makes no sense ({e}): {json}")))
}
