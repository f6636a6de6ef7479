//! Every row: what is run, and the goal that it has against libfabric alone. One list.

use measure::job::{Shape, Wait};
use measure::path::Path;
use measure::row::{Experiment, Row, Value, one, row, size};

const PATHS: &[Path] = &[Path::Tcp, Path::Fabric, Path::Direct];
const ROUND_TRIPS: &[Path] = &[Path::Tcp, Path::Fabric, Path::FabricBehind, Path::Direct];
/// So many times libfabric's round trip, at most.
const LATENCY: f64 = 1.2;
/// Such a share of libfabric's throughput, at least.
const BANDWIDTH: f64 = 0.9;

/// Without a goal against the kernel.
fn plain(name: impl Into<String>, value: Value) -> Row {
    row(name, value, None::<f64>)
}

/// All of them, in the order of the report.
pub fn all() -> Vec<Experiment<Shape>> {
    let ping_pong = |bytes| Shape::ping_pong(bytes, Wait::Blocking);
    let mut all = vec![Experiment {
        what: ping_pong(8),
        paths: ROUND_TRIPS,
        rows: vec![
            plain("ping-pong 8 B, p50", Value::P50).of_limit(LATENCY),
            plain("ping-pong 8 B, p99", Value::P99),
        ],
    }];
    for bytes in [1024, 4096, 64 << 10] {
        let row = plain(format!("ping-pong {}", size(bytes)), Value::P50);
        all.push(one(ping_pong(bytes), ROUND_TRIPS, row.of_limit(LATENCY)));
    }
    for bytes in [4096, 64 << 10, 1 << 20] {
        let row = plain(format!("stream {}", size(bytes)), Value::Throughput(bytes));
        all.push(one(Shape::Stream { bytes }, PATHS, row.of_limit(BANDWIDTH)));
    }
    let set_ups = plain("connect, 8 B there and back, close", Value::Rate);
    all.push(one(Shape::Connect { exchange: true }, PATHS, set_ups));
    all
}
