//! `ipc-direct status`: which other hosts the card has met, by its telemetry.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use comfy_table::{Table, presets};
use emulator::{packet, runtime_dir};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::address::Address;
use crate::cli::fail;
use crate::ps;
use crate::report::AgentReport;

/// DPDK's longest reply, in bytes.
const REPLY_BYTES_MAX: usize = 16 * 1024;
/// How long the coordinator's telemetry thread may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is asked of it.
const COMMAND: &str = "/ipc_direct/hosts";

/// `ipc-direct status [--json]`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print JSON (docs/operations.md)
    #[arg(long)]
    json: bool,
    /// Socket of the agent: @NAME (abstract) or a path; default $IPC_DIRECT_SOCKET or @ipc-direct/UID
    #[arg(long, value_name = "S")]
    socket: Option<String>,
}

/// What a card says of others.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Hosts {
    /// By a number of no meaning.
    pub(crate) peers: BTreeMap<u32, Peer>,
    /// Datagrams counted by what became of them. None: it does not meet others.
    pub(crate) datagrams: BTreeMap<String, u64>,
    /// Connections with other hosts, and what carries them. None: they use the kernel.
    pub(crate) carried: BTreeMap<String, u64>,
    /// Why it says nothing.
    #[serde(skip_serializing)]
    error: Option<String>,
}

/// Another card.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Peer {
    /// Its address.
    pub(crate) card: String,
    /// `sought`, `up` or `lost`.
    pub(crate) state: String,
    /// Of its coordinator.
    #[serde(default)]
    epoch: Option<u32>,
    #[serde(default)]
    heard_ms_ago: Option<u64>,
    /// Of its host.
    #[serde(default)]
    addresses: Vec<String>,
}

/// Prints it. Status 1 and one sentence if there is no agent, or its card can't be asked.
#[must_use]
pub fn status(arguments: &StatusArgs) -> ExitCode {
    let asked = ps::fetch(&Address::choose(arguments.socket.as_deref()), false);
    let hosts = match asked.and_then(|report| ask_own(&report.agent)) {
        Ok(hosts) => hosts,
        Err(sentence) => return fail(&sentence),
    };
    let text = if arguments.json {
        match serde_json::to_string_pretty(&hosts) {
            Ok(json) => json + "\n",
            Err(e) => return fail(&format!("the answer can't be printed: {e}")),
        }
    } else {
        render(&hosts)
    };
    // A reader that has seen enough is no error.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn ask_own(agent: &AgentReport) -> Result<Hosts, String> {
    match agent.telemetry_prefix.as_str() {
        "" => {
            Err("the coordinator runs on a card: ask there, with dpdk-telemetry.py and /ipc_direct/hosts"
                .into())
        }
        prefix => ask(&runtime_dir::telemetry_of(prefix)),
    }
}

/// DPDK's protocol: it greets, is asked, and answers, in one JSON message each.
pub(crate) fn ask(telemetry: &Path) -> Result<Hosts, String> {
    let failed = |e: io::Error| format!("the card can't be asked at {}: {e}", telemetry.display());
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|e| failed(e.into()))?;
    let address = SocketAddrUnix::new(telemetry).map_err(|e| failed(e.into()))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE)).map_err(|e| failed(e.into()))?;
    rustix::net::connect(&socket, &address).map_err(|e| failed(e.into()))?;
    let mut buffer = vec![0; REPLY_BYTES_MAX];
    packet::receive(&socket, &mut buffer).map_err(failed)?;
    packet::send(&socket, COMMAND.as_bytes(), &[]).map_err(failed)?;
    let (n, _) = packet::receive(&socket, &mut buffer).map_err(failed)?;
    let reply: Result<BTreeMap<String, Hosts>, _> =
        serde_json::from_slice(buffer.get(..n).unwrap_or_default());
    let hosts =
        reply.map_err(|e| format!("the card's answer makes no sense ({e}): use files of one release"))?;
    let hosts = hosts.into_values().next().unwrap_or_default();
    match hosts.error {
        Some(why) => Err(format!("the card's telemetry failed: {why}")),
        None => Ok(hosts),
    }
}

fn render(hosts: &Hosts) -> String {
    if hosts.datagrams.is_empty() {
        return "the card does not meet other hosts: see ipc-direct up --uplink\n".into();
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["card", "state", "epoch", "heard", "addresses"]);
    for peer in hosts.peers.values() {
        table.add_row([
            peer.card.clone(),
            peer.state.clone(),
            peer.epoch.map_or("-".into(), |epoch| format!("{epoch:08x}")),
            peer.heard_ms_ago.map_or("never".into(), |ms| format!("{ms} ms ago")),
            peer.addresses.join(", "),
        ]);
    }
    let counted = |all: &BTreeMap<String, u64>| {
        all.iter().map(|(name, n)| format!("{n} {name}")).collect::<Vec<_>>().join(", ")
    };
    let carried = match counted(&hosts.carried) {
        none if none.is_empty() => "by the kernel: see ipc-direct up --fabric".into(),
        counted => counted,
    };
    format!("{table}\ndatagrams: {}\ncarried: {carried}\n", counted(&hosts.datagrams))
}
