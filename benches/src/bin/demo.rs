//! `make demo`: a real, unmodified redis-server and redis-benchmark over kernel TCP, AF_UNIX and IPC-Direct.
//!
//! Measures in turns, prints a table and what the counters say about the path of the bytes, and writes the
//! same as JSON: `demo FILE`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use harness::Outcome;
use harness::counters::{Totals, Traffic};
use harness::instance::Instance;
use harness::redis::Server;
use measure::job::{Job, Shape, Wait};
use measure::pairs;
use measure::path::Path;
use measure::progress::Progress;
use measure::redis::{Load, benchmark};
use measure::stats::median;
use serde::Serialize;

/// Interleaved rounds; each figure is the median over them.
const ROUNDS: usize = 3;
const LOADS: [Load; 4] = [
    Load { clients: 1, pipeline: 1 },
    Load { clients: 1, pipeline: 16 },
    Load { clients: 50, pipeline: 1 },
    Load { clients: 50, pipeline: 16 },
];
/// Requests of the first, uncounted run of each path, from which the others' number is taken.
const TRIAL_REQUESTS: u64 = 20_000;
/// How long SET and GET are measured in each round, in seconds.
const REDIS_SECONDS: f64 = 0.7;
const WAITS: [Wait; 2] = [Wait::Blocking, Wait::Epoll];
/// One ping-pong measurement in seconds, and its message in bytes.
const PING_PONG_SECONDS: f64 = 0.6;
const PING_PONG_BYTES: usize = 8;

/// A line of the table.
#[derive(Debug, Serialize)]
struct Row {
    operation: String,
    clients: u32,
    pipeline: u32,
    path: Path,
    ops_per_s: f64,
    p50_us: f64,
    p99_us: f64,
}

#[derive(Debug, Serialize)]
struct PingPongRow {
    wait: Wait,
    bytes: usize,
    path: Path,
    p50_ns: f64,
    p99_ns: f64,
}

/// What went each way, as the counters of the shimmed processes say.
#[derive(Debug, Serialize)]
struct Bytes {
    user_tx_bytes: u64,
    user_rx_bytes: u64,
    kernel_tx_bytes: u64,
    kernel_rx_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    /// How slow a bus the emulated card imitates.
    pcie_profile: String,
    rows: Vec<Row>,
    ping_pong: Vec<PingPongRow>,
    counters: Bytes,
}

fn main() -> ExitCode {
    let Some(file) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: demo FILE-FOR-THE-JSON");
        return ExitCode::from(2);
    };
    match demo(&file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("demo: {}", e.0);
            ExitCode::FAILURE
        }
    }
}

fn demo(file: &std::path::Path) -> Outcome {
    let instance = Instance::start()?;
    let mut progress = Progress::new(ROUNDS * Path::ALL.len() * (LOADS.len() + WAITS.len()));
    let rows = redis(&instance, &mut progress)?;
    let counters = instance.totals()?;
    let ping_pong = ping_pongs(&instance, &mut progress)?;
    progress.finish();
    let bus = instance.report()?.agent.pcie_profile;
    instance.stop()?;
    print(&rows, &ping_pong, counters);
    if bus != "none" {
        println!("All of this with an emulated card as slow as {bus} (docs/pcie.md).");
    }
    let Totals { user, kernel } = counters;
    let report = Report {
        pcie_profile: bus,
        rows,
        ping_pong,
        counters: Bytes {
            user_tx_bytes: user.tx_bytes,
            user_rx_bytes: user.rx_bytes,
            kernel_tx_bytes: kernel.tx_bytes,
            kernel_rx_bytes: kernel.rx_bytes,
        },
    };
    std::fs::write(file, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("The same as JSON: {}", file.display());
    Ok(())
}

/// All redis rows: every load, the paths in turns.
fn redis(instance: &Instance, progress: &mut Progress) -> Outcome<Vec<Row>> {
    let plain = Server::start(None)?;
    let direct = Server::start(Some(instance))?;
    let mut rows = Vec::new();
    for load in LOADS {
        let mut samples: BTreeMap<(String, Path), [Vec<f64>; 3]> = BTreeMap::new();
        let mut requests: BTreeMap<Path, u64> = BTreeMap::new();
        for round in 1..=ROUNDS {
            for path in Path::ALL {
                let Load { clients, pipeline } = load;
                progress.step(&format!(
                    "redis over {path}, {clients} clients, pipeline {pipeline}, round {round} of {ROUNDS}"
                ));
                let server = if path == Path::Direct { &direct } else { &plain };
                let requests = match requests.get(&path) {
                    Some(requests) => *requests,
                    None => {
                        let trial = benchmark(instance, server, path, load, TRIAL_REQUESTS)?;
                        let slower = trial.iter().map(|f| f.ops_per_s).fold(f64::INFINITY, f64::min);
                        *requests.entry(path).or_insert(enough(slower))
                    }
                };
                for f in benchmark(instance, server, path, load, requests)? {
                    let [ops, p50, p99] = samples.entry((f.operation, path)).or_default();
                    ops.push(f.ops_per_s);
                    p50.push(f.p50_us);
                    p99.push(f.p99_us);
                }
            }
        }
        for ((operation, path), [ops, p50, p99]) in samples {
            rows.push(Row {
                operation,
                clients: load.clients,
                pipeline: load.pipeline,
                path,
                ops_per_s: median(ops),
                p50_us: median(p50),
                p99_us: median(p99),
            });
        }
    }
    rows.sort_by_key(|r| (r.operation == "GET", r.clients, r.pipeline, r.path));
    direct.stop()?;
    plain.stop()?;
    Ok(rows)
}

/// Requests that keep a path of this speed busy for [`REDIS_SECONDS`].
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a positive number far below the limits
fn enough(ops_per_s: f64) -> u64 {
    (ops_per_s * REDIS_SECONDS) as u64 + TRIAL_REQUESTS / 10
}

fn ping_pongs(instance: &Instance, progress: &mut Progress) -> Outcome<Vec<PingPongRow>> {
    let program = pairs::program()?;
    let mut rows = Vec::new();
    for wait in WAITS {
        let mut samples = [const { (Vec::new(), Vec::new()) }; Path::ALL.len()];
        for round in 1..=ROUNDS {
            for (path, (p50, p99)) in Path::ALL.into_iter().zip(&mut samples) {
                progress.step(&format!("{wait:?} ping-pong over {path}, round {round} of {ROUNDS}"));
                let job = Job {
                    shape: Shape::ping_pong(PING_PONG_BYTES, wait),
                    seconds: PING_PONG_SECONDS,
                    cpus: None,
                    start_ns: None,
                };
                let shim = (path == Path::Direct).then_some(instance);
                let trips = pairs::two(&program, shim, path == Path::Unix, &job)?.client;
                p50.push(trips.p50_ns);
                p99.push(trips.p99_ns);
            }
        }
        for (path, (p50, p99)) in Path::ALL.into_iter().zip(samples) {
            let (p50_ns, p99_ns) = (median(p50), median(p99));
            rows.push(PingPongRow { wait, bytes: PING_PONG_BYTES, path, p50_ns, p99_ns });
        }
    }
    Ok(rows)
}

fn print(rows: &[Row], ping_pong: &[PingPongRow], counters: Totals) {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header(["redis", "clients", "pipeline", "path", "ops/s", "p50 µs", "p99 µs", "times TCP"]);
    for row in rows {
        let same = |r: &&Row| {
            r.operation == row.operation
                && r.clients == row.clients
                && r.pipeline == row.pipeline
                && r.path == Path::Tcp
        };
        let reference = rows.iter().find(same).map_or(0.0, |r| r.ops_per_s);
        table.add_row([
            row.operation.clone(),
            row.clients.to_string(),
            row.pipeline.to_string(),
            row.path.to_string(),
            format!("{:.0}", row.ops_per_s),
            format!("{:.0}", row.p50_us),
            format!("{:.0}", row.p99_us),
            format!("{:.2}", row.ops_per_s / reference),
        ]);
    }
    right(&mut table, &[1, 2, 4, 5, 6, 7]);
    println!("{table}");
    println!("redis-benchmark counts latencies in steps of 8 µs; 7 means at most 7.\n");

    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header(["8-byte ping-pong", "path", "p50 µs", "p99 µs", "times TCP"]);
    for row in ping_pong {
        let reference = ping_pong.iter().find(|r| r.wait == row.wait).map_or(0.0, |r| r.p50_ns);
        table.add_row([
            format!("{:?}", row.wait),
            row.path.to_string(),
            format!("{:.2}", row.p50_ns / 1000.0),
            format!("{:.2}", row.p99_ns / 1000.0),
            format!("{:.1}", reference / row.p50_ns),
        ]);
    }
    right(&mut table, &[2, 3, 4]);
    println!("{table}");

    let line = |t: Traffic| {
        format!(
            "{} sent, {} received, in {} connection ends",
            bytes(t.tx_bytes),
            bytes(t.rx_bytes),
            t.connections
        )
    };
    println!("Counters of redis-server and redis-benchmark under IPC-Direct (`ipc-direct ps --json`):");
    println!("  through user space: {}", line(counters.user));
    println!("  through the kernel: {}", line(counters.kernel));
}

fn right(table: &mut Table, columns: &[usize]) {
    for (i, column) in table.column_iter_mut().enumerate() {
        if columns.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

fn bytes(n: u64) -> String {
    #[allow(clippy::cast_precision_loss)] // for people
    let mb = n as f64 / 1e6;
    if n < 10_000 { format!("{n} B") } else { format!("{mb:.1} MB") }
}
