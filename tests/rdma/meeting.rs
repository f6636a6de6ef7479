//! The cards of both hosts meet on their own Ethernet, over a NIC's driver and a wire outside of the machine.

use harness::{Outcome, ensure};

use crate::card;
use crate::pair::{BOUND, on_pair};

/// Each has the other up, with the addresses of its host; one whose coordinator is killed is lost, and is met again under another epoch.
pub fn cards() -> Outcome {
    on_pair(|pair| {
        let (first, second) = (&mut pair.first, &mut pair.second);
        card::up(first, 1, "off")?;
        card::up(second, 2, "off")?;
        let one = card::wait_peer(second, 1, "up")?;
        let epoch = card::report(first)?.agent.epoch;
        ensure(one.addresses == ["10.7.0.1"] && one.epoch == Some(epoch), || {
            format!("{one:?}, epoch {epoch}")
        })?;
        let before = card::wait_peer(first, 2, "up")?;
        second.run("kill -9 $agent; wait $agent; true", BOUND)?;
        card::wait_peer(first, 2, "lost")?;
        card::up(second, 2, "off")?;
        let after = card::wait_peer(first, 2, "up")?;
        ensure(before.epoch != after.epoch, || format!("{before:?}, then {after:?}"))?;
        card::down(second)?;
        card::down(first)
    })
}
