//! The speed promise, checked: 8-byte ping-pong under IPC-Direct against kernel TCP, in one interleaved run.
//!
//! Prints a table and fails if blocking is less than 20 times or epoll less than 10 times faster. A machine
//! whose cores are taken by others at the wrong moment gets two more attempts.

use std::process::ExitCode;

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use harness::Outcome;
use harness::instance::Instance;
use measure::job::{Job, Shape, Wait};
use measure::pairs;
use measure::path::Path;
use measure::progress::Progress;
use measure::stats::median;

/// Interleaved rounds; the median of each path counts.
const ROUNDS: usize = 5;
/// One measurement in seconds.
const SECONDS: f64 = 0.6;
const ATTEMPTS: usize = 3;
/// Message size in bytes.
const BYTES: usize = 8;
/// How many times faster than kernel TCP each way of waiting must be.
const PROMISES: [(Wait, f64); 2] = [(Wait::Blocking, 20.0), (Wait::Epoll, 10.0)];

fn main() -> ExitCode {
    for attempt in 1..=ATTEMPTS {
        match check() {
            Ok(true) => return ExitCode::SUCCESS,
            Ok(false) => eprintln!("attempt {attempt} of {ATTEMPTS} did not reach the promised ratios"),
            Err(e) => {
                eprintln!("bench-check: {}", e.0);
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::FAILURE
}

fn check() -> Outcome<bool> {
    let program = pairs::program()?;
    let instance = Instance::start()?;
    let mut progress = Progress::new(ROUNDS * PROMISES.len() * Path::ALL.len());
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header(["8-byte ping-pong", "path", "p50 ns", "p99 ns", "times TCP", "promised"]);
    let mut kept = true;
    for (wait, promise) in PROMISES {
        let mut samples = [const { (Vec::new(), Vec::new()) }; Path::ALL.len()];
        for round in 1..=ROUNDS {
            for (path, (p50, p99)) in Path::ALL.into_iter().zip(&mut samples) {
                progress.step(&format!("{wait:?} ping-pong over {path}, round {round} of {ROUNDS}"));
                let shape = Shape::ping_pong(BYTES, wait);
                let job = Job { shape, seconds: SECONDS, cpus: None, start_ns: None };
                let shim = (path == Path::Direct).then_some(&instance);
                let trips = pairs::two(&program, shim, path == Path::Unix, &job)?.client;
                p50.push(trips.p50_ns);
                p99.push(trips.p99_ns);
            }
        }
        let reference = median(samples[0].0.clone());
        for (path, (p50, p99)) in Path::ALL.into_iter().zip(samples) {
            let (p50, p99) = (median(p50), median(p99));
            let times = reference / p50;
            let promised = if path == Path::Direct {
                kept &= times >= promise;
                format!("{promise:.0}")
            } else {
                String::new()
            };
            table.add_row([
                format!("{wait:?}"),
                path.to_string(),
                format!("{p50:.0}"),
                format!("{p99:.0}"),
                format!("{times:.1}"),
                promised,
            ]);
        }
    }
    progress.finish();
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    instance.stop()?;
    Ok(kept)
}
