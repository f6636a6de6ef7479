//! What `dpdk-telemetry.py` shows of us: `/ipc_direct/stats`, `/ipc_direct/functions`, `/ipc_direct/listeners`,
//! `/ipc_direct/lcores`, `/ipc_direct/hosts`.
//!
//! The handlers run on DPDK's telemetry thread and only read what the lcores leave in [`Shown`].

use std::sync::Arc;

use dpdk::telemetry::{RegisterError, Reply, Value, register};
use nic_coordinator::counters::{HostsShown, LISTED_MAX, PeerShown, Shown};

/// Registers the commands.
///
/// # Errors
/// [`RegisterError`] of DPDK.
pub fn offer(shown: &Arc<Shown>) -> Result<(), RegisterError> {
    let stats = Arc::clone(shown);
    register(
        "/ipc_direct/stats",
        "Counters since the start, and table sizes. Takes no parameters.",
        move |_| {
            let counters = stats.sums().into_iter();
            let totals = stats.snapshot().totals.into_iter();
            Reply::Dict(counters.chain(totals).map(|(name, n)| (name.to_owned(), Value::Number(n))).collect())
        },
    )?;
    let lcores = Arc::clone(shown);
    register(
        "/ipc_direct/lcores",
        "What each lcore has counted: 0 decides, the others poll. Takes no parameters.",
        move |_| {
            let counted = (0..).zip(lcores.by_lcore());
            Reply::Dict(counted.map(|(n, counters): (u32, _)| (n.to_string(), numbers(counters))).collect())
        },
    )?;
    let functions = Arc::clone(shown);
    register("/ipc_direct/functions", "Attached processes, the first 64. Takes no parameters.", move |_| {
        listing(functions.snapshot().functions)
    })?;
    let hosts = Arc::clone(shown);
    register("/ipc_direct/hosts", "Other hosts' coordinators. Takes no parameters.", move |_| {
        let HostsShown { peers, datagrams, carried } = hosts.hosts();
        // DPDK's names have no dots.
        let peers =
            (1..).zip(&peers).take(LISTED_MAX).map(|(n, p): (u32, _)| (n.to_string(), host(p))).collect();
        let (datagrams, carried) = (numbers(datagrams), numbers(carried));
        let parts = [("peers", Value::Dict(peers)), ("datagrams", datagrams), ("carried", carried)];
        Reply::Dict(parts.map(|(name, part)| (name.to_owned(), part)).into())
    })?;
    let listeners = Arc::clone(shown);
    register("/ipc_direct/listeners", "Listening sockets, the first 64. Takes no parameters.", move |_| {
        listing(listeners.snapshot().listeners)
    })
}

fn host(peer: &PeerShown) -> Value {
    let addresses = peer.addresses.iter().map(|a| a.to_canonical().to_string()).collect();
    let mut fields = vec![
        ("card".to_owned(), Value::Text(peer.card.to_string())),
        ("state".to_owned(), Value::Text(peer.state.into())),
        ("addresses".to_owned(), Value::Texts(addresses)),
    ];
    fields.extend(peer.epoch.map(|epoch| ("epoch".to_owned(), Value::Number(epoch.into()))));
    fields.extend(peer.heard_ms_ago.map(|ms| ("heard_ms_ago".to_owned(), Value::Number(ms))));
    Value::Dict(fields)
}

fn listing(entries: Vec<(u32, String)>) -> Reply {
    Reply::Dict(entries.into_iter().map(|(number, text)| (number.to_string(), Value::Text(text))).collect())
}

fn numbers(counted: Vec<(&'static str, u64)>) -> Value {
    Value::Dict(counted.into_iter().map(|(name, n)| (name.to_owned(), Value::Number(n))).collect())
}
