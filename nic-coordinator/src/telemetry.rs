//! What `dpdk-telemetry.py` shows of us: `/ipc_direct/stats`, `/ipc_direct/functions`, `/ipc_direct/listeners`.
//!
//! The handlers run on DPDK's telemetry thread and only read what the lcore leaves in [`Shown`].

use std::sync::Arc;

use dpdk::telemetry::{RegisterError, Reply, Value, register};
use nic_coordinator::counters::Shown;

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
            let counters = stats.counters.read().into_iter();
            let totals = stats.snapshot().totals.into_iter();
            Reply::Dict(counters.chain(totals).map(|(name, n)| (name.to_owned(), Value::Number(n))).collect())
        },
    )?;
    let functions = Arc::clone(shown);
    register("/ipc_direct/functions", "Attached processes, the first 64. Takes no parameters.", move |_| {
        listing(functions.snapshot().functions)
    })?;
    let listeners = Arc::clone(shown);
    register("/ipc_direct/listeners", "Listening sockets, the first 64. Takes no parameters.", move |_| {
        listing(listeners.snapshot().listeners)
    })
}

fn listing(entries: Vec<(u32, String)>) -> Reply {
    Reply::Dict(entries.into_iter().map(|(number, text)| (number.to_string(), Value::Text(text))).collect())
}
