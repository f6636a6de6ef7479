//! The product in a guest: agent and emulated card, a shimmed redis and its clients.

use harness::counters::Report;
use harness::{Failure, Outcome, ensure};

use crate::pair::{BOUND, on_pair};

/// How programs are started under the shim.
const SHIMMED: &str = "IPC_DIRECT_SOCKET=/run/agent /opt/ipc-direct run --require-agent --";

/// On one host.
pub fn redis() -> Outcome {
    on_pair(|pair| {
        let host = &mut pair.first;
        host.start("agent", "/opt/ipc-direct up --socket /run/agent")?;
        host.until("grep -q 'is up' /tmp/agent", BOUND)?;
        host.start("redis", &format!("{SHIMMED} redis-server --port 7000 --save '' --dir /tmp"))?;
        host.until(&format!("{SHIMMED} redis-cli -p 7000 ping | grep -q PONG"), BOUND)?;
        host.run(&format!("{SHIMMED} redis-benchmark -p 7000 -c 4 -n 500 -t set,get -q"), BOUND)?;
        let report = host.run("IPC_DIRECT_SOCKET=/run/agent /opt/ipc-direct ps --json", BOUND)?;
        host.run("kill $redis && wait $redis; kill $agent && wait $agent", BOUND)?;
        let report: Report =
            serde_json::from_str(&report).map_err(|e| Failure(format!("no report ({e}): {report}")))?;
        let totals = report.totals;
        let through_kernel = totals.kernel.tx_ops + totals.kernel.rx_ops;
        ensure(totals.user.tx_bytes > 40_000 && through_kernel == 0, || {
            format!("not all went through user space: {totals:?}")
        })
    })
}
