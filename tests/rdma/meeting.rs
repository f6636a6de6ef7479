//! The cards of both hosts meet on their own Ethernet, over a NIC's driver and a wire outside of the machine.

use harness::child::wait_for;
use harness::guest::Guest;
use harness::hosts::Peer;
use harness::{Failure, Outcome, ensure};

use crate::card;
use crate::pair::{BOUND, on_pair};

/// Each has the other up, with the addresses of its host; one whose coordinator is killed is lost, and is met again under another epoch.
pub fn cards() -> Outcome {
    on_pair(|pair| {
        let (first, second) = (&mut pair.first, &mut pair.second);
        card::up(first, 1)?;
        card::up(second, 2)?;
        let one = wait_peer(second, 1, "up")?;
        let epoch = card::report(first)?.agent.epoch;
        ensure(one.addresses == ["10.7.0.1"] && one.epoch == Some(epoch), || {
            format!("{one:?}, epoch {epoch}")
        })?;
        let before = wait_peer(first, 2, "up")?;
        second.run("kill -9 $agent; wait $agent; true", BOUND)?;
        wait_peer(first, 2, "lost")?;
        card::up(second, 2)?;
        let after = wait_peer(first, 2, "up")?;
        ensure(before.epoch != after.epoch, || format!("{before:?}, then {after:?}"))?;
        card::down(second)?;
        card::down(first)
    })
}

/// Waits until `host` has the card of host `number` in `state`.
fn wait_peer(host: &mut Guest, number: u32, state: &str) -> Outcome<Peer> {
    let address = card::address(number);
    let mut last = None;
    let there = wait_for(BOUND, || {
        last = card::status(host)?.peer(&address).cloned();
        Ok(last.clone().filter(|peer| peer.state == state))
    })?;
    there.ok_or_else(|| Failure(format!("{address} is not {state}: {last:?}")))
}
