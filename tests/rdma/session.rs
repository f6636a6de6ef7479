//! The product in a guest: agent and emulated card, a shimmed redis and its clients.

use harness::{Outcome, ensure};

use crate::card::{self, SHIMMED};
use crate::pair::{BOUND, on_pair};

/// On one host.
pub fn redis() -> Outcome {
    on_pair(|pair| {
        let host = &mut pair.first;
        card::up(host, 1, "off")?;
        host.start("redis", &format!("{SHIMMED} redis-server --port 7000 --save '' --dir /tmp"))?;
        host.until(&format!("{SHIMMED} redis-cli -p 7000 ping | grep -q PONG"), BOUND)?;
        host.run(&format!("{SHIMMED} redis-benchmark -p 7000 -c 4 -n 500 -t set,get -q"), BOUND)?;
        let totals = card::report(host)?.totals;
        host.run("kill $redis && wait $redis", BOUND)?;
        card::down(host)?;
        let through_kernel = totals.kernel.tx_ops + totals.kernel.rx_ops;
        ensure(totals.user.tx_bytes > 40_000 && through_kernel == 0, || {
            format!("not all went through user space: {totals:?}")
        })
    })
}
