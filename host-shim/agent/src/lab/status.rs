//! `lab status`.

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

use comfy_table::{Table, presets};
use emulator::lab::wire::Badness;
use emulator::lab::{HostStatus, State};
use emulator::runtime_dir;
use serde::Serialize;

use super::call::{Answer, Ask, Lab};
use crate::status::{self, Peer};

/// A host, and whom its card has met.
#[derive(Serialize)]
struct Host {
    #[serde(flatten)]
    host: HostStatus,
    peers: Vec<Peer>,
}

pub(super) fn status(name: &str, json: bool) -> Result<(), String> {
    let (Answer::Hosts(hosts), _) = Lab::find(name)?.call(&Ask::Status)? else {
        return Err("the lab's answer makes no sense: use files of one release".into());
    };
    let hosts: Vec<_> = hosts.into_iter().map(|host| Host { peers: peers_of(&host), host }).collect();
    let text = if json {
        serde_json::to_string_pretty(&hosts).map_err(|e| e.to_string())?
    } else {
        table(&hosts).to_string()
    };
    // A reader that has seen enough is no error.
    let _ = writeln!(io::stdout(), "{text}");
    Ok(())
}

/// What the host's card says, if there is one.
fn peers_of(host: &HostStatus) -> Vec<Peer> {
    // Its agent has a number of its own there.
    let directory = PathBuf::from(format!("/proc/{}/root/run/dpdk", host.agent_pid));
    let cards = fs::read_dir(directory).into_iter().flatten().flatten();
    let answers = cards.filter_map(|card| status::ask(&runtime_dir::telemetry_in(&card.path())).ok());
    answers.flat_map(|hosts| hosts.peers.into_values()).collect()
}

fn table(hosts: &[Host]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "host",
        "state",
        "addresses",
        "card",
        "agent",
        "coordinator",
        "side",
        "peers",
        "faults",
    ]);
    let name = |card: &str| hosts.iter().find(|h| h.host.card_address == card).map(|h| h.host.name.clone());
    for Host { host, peers } in hosts {
        let met = peers.iter().map(|p| format!("{} {}", name(&p.card).unwrap_or(p.card.clone()), p.state));
        let pid = |pid: u32| if pid == 0 { "-".to_owned() } else { pid.to_string() };
        table.add_row([
            host.name.clone(),
            match host.state {
                State::Up => "up".into(),
                State::NoAgent => "no agent".into(),
                State::Gone => "gone".into(),
            },
            format!("{}, {}", host.address, host.address_v6),
            host.card_address.clone(),
            pid(host.agent_pid),
            pid(host.coordinator_pid),
            host.side.to_string(),
            met.collect::<Vec<_>>().join("\n"),
            faults(host),
        ]);
    }
    table
}

fn faults(host: &HostStatus) -> String {
    let links = [("eth0", host.kernel_link), ("card0", host.card_link)];
    let bad: Vec<_> = links.iter().filter_map(|(name, b)| Some(format!("{name}: {}", words(b)?))).collect();
    bad.join("\n")
}

/// What is bad about a link, if anything is.
fn words(badness: &Badness) -> Option<String> {
    let parts = [
        ("loss", badness.loss_percent, "%"),
        ("duplicate", badness.duplicate_percent, "%"),
        ("reorder", badness.reorder_percent, "%"),
        ("delay", badness.delay_ms, " ms"),
        ("jitter", badness.jitter_ms, " ms"),
    ];
    let words: Vec<_> = parts
        .iter()
        .filter(|p| p.1 != 0.0)
        .map(|(name, value, unit)| format!("{name} {value}{unit}"))
        .collect();
    (!words.is_empty()).then(|| words.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_said_in_words() {
        assert_eq!(words(&Badness { seed: 3, ..Badness::default() }), None);
        let badness = Badness { loss_percent: 2.5, delay_ms: 10.0, ..Badness::default() };
        assert_eq!(words(&badness).unwrap(), "loss 2.5%, delay 10 ms");
    }
}
