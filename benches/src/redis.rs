//! redis-benchmark, on any path.

use std::process::Command;
use std::time::Duration;

use harness::child::run_ok;
use harness::instance::Instance;
use harness::redis::{Server, command};
use harness::{Failure, Outcome, bins, fail};

use crate::path::Path;

/// One redis-benchmark setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Connections.
    pub clients: u32,
    /// Requests sent before the first answer is awaited.
    pub pipeline: u32,
}

/// What redis-benchmark says of one operation.
#[derive(Clone, Debug)]
pub struct Figures {
    /// `SET` or `GET`.
    pub operation: String,
    /// Operations per second.
    pub ops_per_s: f64,
    /// Median latency in µs.
    pub p50_us: f64,
    /// 99th percentile in µs.
    pub p99_us: f64,
}

/// Runs redis-benchmark against `server` by `path`: SET, then GET, `requests` of each.
///
/// # Errors
/// When it fails, or writes something unexpected.
pub fn benchmark(
    instance: &Instance,
    server: &Server,
    path: Path,
    load: Load,
    requests: u64,
) -> Outcome<Vec<Figures>> {
    let mut command: Command = match path {
        Path::Direct => server.client(Some(instance), "redis-benchmark")?,
        Path::Tcp => server.client(None, "redis-benchmark")?,
        Path::Unix => command(None, bins::program("redis-benchmark")?),
        other => return fail(format!("redis has no {other}")),
    };
    if path == Path::Unix {
        command.arg("-s").arg(server.unix_socket());
    }
    command.args(["-t", "set,get", "--csv"]);
    for (option, value) in [("-c", load.clients.into()), ("-P", load.pipeline.into()), ("-n", requests)] {
        command.args([option, &value.to_string()]);
    }
    parse(&run_ok(&mut command, Duration::from_secs(120))?)
}

/// Columns: test, rps, avg, min, p50, p95, p99, max; latencies in ms.
fn parse(csv: &str) -> Outcome<Vec<Figures>> {
    let mut all = Vec::new();
    for line in csv.lines() {
        let fields: Vec<&str> = line.split(',').map(|f| f.trim_matches('"')).collect();
        let [operation, rps, _, _, p50, _, p99, _] = fields.as_slice() else { continue };
        let Ok(ops_per_s) = rps.parse() else { continue };
        let us = |ms: &str| {
            ms.parse::<f64>()
                .map(|ms| ms * 1000.0)
                .map_err(|e| Failure(format!("redis-benchmark wrote {line:?}: {e}")))
        };
        all.push(Figures {
            operation: (*operation).to_owned(),
            ops_per_s,
            p50_us: us(p50)?,
            p99_us: us(p99)?,
        });
    }
    if all.len() == 2 { Ok(all) } else { fail(format!("redis-benchmark wrote {csv:?}")) }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn csv_of_redis_7() {
        let figures = parse(
            "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n\
             \"SET\",\"16806.72\",\"0.055\",\"0.016\",\"0.055\",\"0.079\",\"0.111\",\"4.143\"\n\
             \"GET\",\"16233.77\",\"0.057\",\"0.024\",\"0.056\",\"0.079\",\"0.112\",\"2.255\"\n",
        )
        .unwrap_or_default();
        let [set, get] = figures.as_slice() else { panic!("{figures:?}") };
        assert_eq!((set.operation.as_str(), get.operation.as_str()), ("SET", "GET"));
        assert!((set.ops_per_s - 16806.72).abs() < 0.01);
        assert!((get.p50_us - 56.0).abs() < 0.01 && (get.p99_us - 112.0).abs() < 0.01);
    }

    #[test]
    fn anything_else_is_refused() {
        assert!(parse("").is_err());
        assert!(parse("Could not connect to Redis").is_err());
    }
}
