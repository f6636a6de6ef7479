//! Coordinators meet over their DPDK ports: who is there, who is gone, and what is dropped.

use std::process::Command;

use harness::census::sockets;
use harness::child::{run, run_ok, wait_for};
use harness::hosts::{Peer, Status};
use harness::instance::with_instance;
use harness::{Failure, Outcome, bins, ensure};
use rustix::process::Signal;

use harness::lab::{BOUND, Lab, command, with_lab};

pub fn status(lab: &Lab, host: &str) -> Outcome<Status> {
    let json = lab.ask(host, &["status", "--json"])?;
    serde_json::from_str(&json).map_err(|e| Failure(format!("{e}: {json}")))
}

fn peer(lab: &Lab, host: &str, number: u32) -> Outcome<Option<Peer>> {
    let card = format!("10.99.1.{number}");
    Ok(status(lab, host)?.peer(&card).cloned())
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
        ensure(two.epoch == Some(h2.agent.epoch), || format!("{two:?}, not {:08x}", h2.agent.epoch))?;
        let table = run_ok(command(lab.name())?.arg("status"), BOUND)?;
        ensure(table.contains("h1 up") && table.contains("h3 up"), || table)
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
        let bad = "fault link h2 --port card --loss 20 --duplicate 20 --reorder 20";
        lab.tell(&bad.split(' ').collect::<Vec<_>>())?;
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

/// Whoever is on the network without the key: garbage, true datagrams from a false address, and true ones again.
pub fn intruder() -> Outcome {
    with_lab(2, |lab| {
        all_up(lab, 2)?;
        let before = status(lab, "h1")?;
        // A packet socket in h1 sees what h2's card sends there; the content of UDP begins at byte 42.
        let intrude = "import socket\n\
            s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); s.bind(('card0', 0)); s.settimeout(20)\n\
            u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
            while True:\n\
            \x20   f, a = s.recvfrom(2000)\n\
            \x20   if a[2] == 0 and f[12:14] == b'\\x08\\x00' and f[26:30] == bytes([10, 99, 1, 2]): break\n\
            for d in (b'', b'garbage', b'IPDH' * 40, f[42:], f[42:-1] + b'x'):\n\
            \x20   u.sendto(d, ('10.99.1.1', 4796))\n\
            r = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); r.bind(('eth0', 0)); r.send(f)\n";
        run_ok(lab.plain("h1", "python3")?.args(["-c", intrude]), BOUND)?;
        let counted = wait_for(BOUND, || {
            let now = status(lab, "h1")?;
            let more = |name: &str, by: u64| {
                now.datagrams.get(name) >= before.datagrams.get(name).map(|n| n + by).as_ref()
            };
            Ok((more("malformed", 3) && more("forged", 2) && more("replayed", 1)).then_some(()))
        })?;
        ensure(counted.is_some(), || format!("{before:?}, then {:?}", status(lab, "h1")))?;
        let peers = status(lab, "h1")?.peers;
        ensure(peers.len() == 1, || format!("somebody was believed: {peers:?}"))?;
        wait_peer(lab, "h1", 2, "up").map(drop)
    })
}

/// What is wrong with the key is said in a sentence.
pub fn sentences() -> Outcome {
    with_lab(1, |lab| {
        let own = bins::product_dir()?.join("ipc-direct");
        let up = |key: &str| -> Outcome<String> {
            let mut up = lab.plain("h1", "sh")?;
            up.args(["-c", &format!("umask 077; {}", key), "sh"]).arg(&own);
            let said = run(&mut up, BOUND)?;
            ensure(!said.status.success(), || format!("{key}: it is up"))?;
            Ok(String::from_utf8_lossy(&said.stderr).into_owned())
        };
        let start =
            "exec \"$1\" up --socket @other --uplink card0 --uplink-address 10.99.1.77/16 --hosts-key /run/k";
        let cases = [
            (String::new(), "No such file"),
            ("echo 0123 > /run/k; ".into(), "64 hexadecimal digits, not 4"),
            ("cp /run/ipc-direct-key /run/k; chmod 644 /run/k; ".into(), "chmod 600"),
        ];
        for (before, part) in cases {
            let said = up(&format!("{before}{start}"))?;
            ensure(said.contains(part) && said.contains("--hosts-key /run/k"), || {
                format!("{before}: {said}")
            })?;
        }
        let said = up("exec \"$1\" up --socket @other --uplink card0")?;
        ensure(said.contains("--uplink-address"), || said)
    })
}

/// Who does not ask for it opens no port: no socket for packets, and a sentence from `status`.
pub fn without() -> Outcome {
    with_instance(|instance| {
        let coordinator = instance.coordinator_pid()?;
        let sockets: Vec<_> = sockets(coordinator).collect();
        ensure(!sockets.is_empty(), || "the coordinator is gone".to_owned())?;
        let packet = std::fs::read_to_string("/proc/net/packet")?;
        for inode in packet.lines().skip(1).filter_map(|line| line.split_whitespace().last()) {
            ensure(sockets.iter().all(|s| s != inode), || packet.clone())?;
        }
        let mut status = Command::new(bins::product_dir()?.join("ipc-direct"));
        let said = run_ok(status.args(["status", "--socket", instance.socket()]), BOUND)?;
        ensure(said.contains("does not meet other hosts"), || said)
    })
}
