//! Coordinators meet over their DPDK ports: who is there, who is gone, and what is dropped.

use std::collections::BTreeMap;

use harness::child::{run_ok, wait_for};
use harness::{Failure, Outcome, bins, ensure};
use rustix::process::Signal;
use serde::Deserialize;

use crate::scene::{BOUND, Lab, command, with_lab};

/// What `ipc-direct status --json` says.
#[derive(Debug, Deserialize)]
struct Status {
    peers: BTreeMap<u32, Peer>,
    datagrams: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Deserialize)]
struct Peer {
    card: String,
    state: String,
    epoch: Option<u32>,
    addresses: Vec<String>,
}

fn status(lab: &Lab, host: &str) -> Outcome<Status> {
    let own = bins::product_dir()?.join("ipc-direct");
    let mut exec = command(lab.name())?;
    exec.args(["exec", "--plain", host, "--"]).arg(own).args(["status", "--json"]);
    let json = run_ok(&mut exec, BOUND)?;
    serde_json::from_str(&json).map_err(|e| Failure(format!("{e}: {json}")))
}

fn peer(lab: &Lab, host: &str, number: u32) -> Outcome<Option<Peer>> {
    let card = format!("10.99.1.{number}");
    Ok(status(lab, host)?.peers.into_values().find(|p| p.card == card))
}

/// Waits until `host` has host `number` in `state`.
fn wait_peer(lab: &Lab, host: &str, number: u32, state: &str) -> Outcome<Peer> {
    let there = wait_for(BOUND, || Ok(peer(lab, host, number)?.filter(|p| p.state == state)))?;
    there.ok_or_else(|| Failure(format!("{host} does not have h{number} {state}: {:?}", status(lab, host))))
}

fn all_up(lab: &Lab, hosts: u32) -> Outcome {
    for (host, other) in (1..=hosts).flat_map(|h| (1..=hosts).map(move |o| (h, o))).filter(|(h, o)| h != o) {
        wait_peer(lab, &format!("h{host}"), other, "up")?;
    }
    Ok(())
}

pub fn meet() -> Outcome {
    with_lab(3, |lab| {
        all_up(lab, 3)?;
        let two = wait_peer(lab, "h1", 2, "up")?;
        let h2 = lab.report("h2")?;
        ensure(two.addresses == ["10.99.0.2", "fd99::2"], || format!("{two:?}"))?;
        ensure(two.epoch == Some(h2.agent.epoch), || format!("{two:?}, not {:08x}", h2.agent.epoch))
    })
}

/// A host, its coordinator or the way to it is gone, and comes back.
pub fn gone_and_back() -> Outcome {
    with_lab(3, |lab| {
        all_up(lab, 3)?;
        for words in [&["fault", "kill", "h3"][..], &["fault", "kill", "h3", "coordinator"]] {
            let before = wait_peer(lab, "h1", 3, "up")?;
            lab.tell(words)?;
            wait_peer(lab, "h1", 3, "lost")?;
            wait_peer(lab, "h2", 3, "lost")?;
            wait_for(BOUND, || Ok((lab.host("h3")?.agent_pid == 0).then_some(())))?;
            lab.tell(&["start", "h3"])?;
            all_up(lab, 3)?;
            let after = wait_peer(lab, "h1", 3, "up")?;
            ensure(before.epoch != after.epoch, || format!("{before:?}, then {after:?}"))?;
        }
        // One that ends as its operator would says so.
        harness::child::signal_pid(lab.host("h3")?.agent_pid, Signal::TERM);
        wait_peer(lab, "h1", 3, "lost")?;
        wait_for(BOUND, || Ok((lab.host("h3")?.agent_pid == 0).then_some(())))?;
        lab.tell(&["start", "h3"])?;
        all_up(lab, 3)?;
        let before = wait_peer(lab, "h1", 2, "up")?;
        lab.tell(&["fault", "partition", "h1", "h2,h3"])?;
        wait_peer(lab, "h1", 2, "lost")?;
        wait_peer(lab, "h3", 1, "lost")?;
        wait_peer(lab, "h3", 2, "up")?;
        lab.tell(&["fault", "heal"])?;
        all_up(lab, 3)?;
        let after = wait_peer(lab, "h1", 2, "up")?;
        ensure(before.epoch == after.epoch, || format!("{before:?}, then {after:?}"))
    })
}

/// Loss, duplicates and reordering delay it only.
pub fn bad_links() -> Outcome {
    with_lab(2, |lab| {
        lab.tell(&[
            "fault",
            "link",
            "h2",
            "--port",
            "card",
            "--loss",
            "20",
            "--duplicate",
            "20",
            "--reorder",
            "20",
        ])?;
        lab.tell(&["fault", "kill", "h2", "coordinator"])?;
        lab.wait_state("h2", "no-agent")?;
        wait_for(BOUND, || Ok((lab.host("h2")?.agent_pid == 0).then_some(())))?;
        lab.tell(&["start", "h2"])?;
        let epoch = Some(lab.report("h2")?.agent.epoch);
        let met = wait_for(BOUND, || {
            Ok(peer(lab, "h1", 2)?.filter(|p| p.epoch == epoch && p.state == "up").map(drop))
        })?;
        ensure(met.is_some(), || format!("{:?}", status(lab, "h1")))
    })
}

/// Whoever is on the network without the key: garbage, and true datagrams from a false address.
pub fn intruder() -> Outcome {
    with_lab(2, |lab| {
        all_up(lab, 2)?;
        let before = status(lab, "h2")?;
        // A packet socket sees what h1's card sends; its UDP content begins at byte 42.
        let intrude = "import socket\n\
            s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); s.bind(('card0', 0)); s.settimeout(20)\n\
            u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
            while True:\n\
            \x20   f = s.recv(2000)\n\
            \x20   if f[12:14] == b'\\x08\\x00' and f[26:30] == bytes([10, 99, 1, 1]): break\n\
            for d in (b'', b'garbage', b'IPDH' * 40, f[42:], f[42:-1] + b'x'):\n\
            \x20   u.sendto(d, ('10.99.1.2', 4796))\n";
        run_ok(lab.plain("h1", "python3")?.args(["-c", intrude]), BOUND)?;
        let counted = wait_for(BOUND, || {
            let now = status(lab, "h2")?;
            let more =
                |name: &str| now.datagrams.get(name) >= before.datagrams.get(name).map(|n| n + 2).as_ref();
            Ok((more("malformed") && more("forged")).then_some(()))
        })?;
        ensure(counted.is_some(), || format!("{before:?}, then {:?}", status(lab, "h2")))?;
        let peers = status(lab, "h2")?.peers;
        ensure(peers.len() == 1, || format!("somebody was believed: {peers:?}"))?;
        wait_peer(lab, "h2", 1, "up").map(drop)
    })
}
