//! Libfabric's own ping-pong over the verbs provider: it shows that the guests have RDMA.

use harness::{Outcome, ensure};

use crate::pair::{BOUND, on_pair};

/// Messages each way, of 64 KiB, the contents of which it compares.
const MESSAGES: &str = "50";
const OPTIONS: &str = "-p verbs -e msg -c -I 50 -S 65536";

/// Connected endpoints (`FI_EP_MSG`).
pub fn messages() -> Outcome {
    on_pair(|pair| {
        pair.first.start("pingpong", &format!("fi_pingpong {OPTIONS}"))?;
        // The client asks once. This is the program's port, 47592.
        pair.first.until("grep -q ':B9E8 ' /proc/net/tcp /proc/net/tcp6", BOUND)?;
        let client = pair.second.run(&format!("fi_pingpong {OPTIONS} 10.7.0.1"), BOUND)?;
        let server = pair.first.finish("pingpong", BOUND)?;
        all_went(&client)?;
        all_went(&server)
    })
}

/// Checks its table: size, messages sent and acknowledged, bytes in all.
fn all_went(said: &str) -> Outcome {
    let row: Vec<&str> = said.lines().last().unwrap_or_default().split_whitespace().collect();
    let acknowledged = format!("={MESSAGES}");
    ensure(row.starts_with(&["64k", MESSAGES, &acknowledged, "6.2m"]), || {
        format!("not all messages went:\n{said}")
    })
}
