//! `make guard`: the instructions of the hot calls under the shim, counted by callgrind, against `benches/baseline.json`.
//!
//! Time depends on the machine and its other work, instructions on the code and the compiler alone. More than 3% above
//! the baseline is a failure; what is as much below should be recorded by `make baseline`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use harness::child::run_ok;
use harness::instance::Instance;
use harness::scratch::Scratch;
use harness::{Failure, Outcome, bins, ensure, fail};
use measure::pairs;

/// Calls that are counted, as the load program and callgrind know them.
const CALLS: [&str; 4] = ["send", "recv", "epoll_wait", "connect"];
/// Runs of each call. A connect waits for the coordinator's answer, in all of one run's calls as long: 3,680, 3,810 or 3,940 instructions, a turn of
/// its wait (130) apart. Its baseline lies where the longest of these is within the tolerance.
const RUNS: usize = 4;
/// Per cent.
const TOLERANCE: f64 = 3.0;
const BOUND: Duration = Duration::from_secs(120);

/// Count the instructions of the hot calls
#[derive(Debug, Parser)]
struct Options {
    /// Write the baseline instead of comparing with it
    #[arg(long)]
    write: bool,
    /// The baseline
    #[arg(long, default_value = "benches/baseline.json")]
    file: PathBuf,
}

fn main() -> ExitCode {
    match guard(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("bench-guard: {}", e.0);
            ExitCode::FAILURE
        }
    }
}

/// Instructions of each call.
type Counts = BTreeMap<String, u64>;

fn guard(options: &Options) -> Outcome<bool> {
    let instance = Instance::start()?;
    let before = instance.totals()?;
    let found: Counts = CALLS
        .iter()
        .map(|call| Ok(((*call).to_owned(), fewest(&instance, call)?)))
        .collect::<Outcome<_>>()?;
    let counted = instance.totals()? - before;
    instance.stop()?;
    ensure(counted.user.tx_bytes > 0 && counted.kernel.connections == 0, || {
        format!("the counted calls did not go through user space: {counted:?}")
    })?;
    if options.write {
        fs::write(&options.file, serde_json::to_string_pretty(&found)? + "\n")?;
        println!("{}: {found:?}", options.file.display());
        return Ok(true);
    }
    let text = fs::read_to_string(&options.file)
        .map_err(|e| Failure(format!("{}: {e}: write it with `make baseline`", options.file.display())))?;
    Ok(compare(&serde_json::from_str(&text)?, &found))
}

/// The fewest instructions that one call took in any run.
fn fewest(instance: &Instance, call: &str) -> Outcome<u64> {
    let counts = (0..RUNS).map(|_| count(instance, call)).collect::<Outcome<Vec<_>>>()?;
    Ok(counts.into_iter().min().unwrap_or(u64::MAX))
}

/// The fewest that one call took in one run.
fn count(instance: &Instance, call: &str) -> Outcome<u64> {
    let scratch = Scratch::new()?;
    let function = format!("guard_{call}");
    let mut command = instance.shimmed(bins::program("valgrind")?);
    command
        .args(["--tool=callgrind", "--collect-atstart=no"])
        .arg(format!("--toggle-collect={function}"))
        .arg(format!("--dump-after={function}"))
        .arg(format!("--callgrind-out-file={}", scratch.path().join("out").display()))
        .arg(pairs::program()?)
        .arg("guarded");
    run_ok(&mut command, BOUND)?;
    // One file a call, each with its sum; what was collected after the last call is in one without.
    let mut sums = Vec::new();
    for entry in fs::read_dir(scratch.path())? {
        let text = fs::read_to_string(entry?.path())?;
        let sum = |line: &str| line.strip_prefix("totals: ").and_then(|n| n.trim().parse::<u64>().ok());
        sums.extend(text.lines().find_map(sum).filter(|sum| *sum != 0));
    }
    match sums.iter().min() {
        Some(fewest) if sums.len() > 10 => Ok(*fewest),
        _ => fail(format!("callgrind counted {call} only {} times", sums.len())),
    }
}

fn compare(baseline: &Counts, found: &Counts) -> bool {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header(["instructions of", "baseline", "now", "change", ""]);
    let mut kept = true;
    for (call, now) in found {
        let before = baseline.get(call).copied().unwrap_or(0);
        #[allow(clippy::cast_precision_loss)] // some hundred
        let change = (*now as f64 / before as f64 - 1.0) * 100.0;
        let verdict = match change {
            c if c > TOLERANCE => {
                kept = false;
                "MORE: make it fewer, or `make baseline` if it must be"
            }
            c if c < -TOLERANCE => "fewer: `make baseline`, so that it stays so",
            _ => "",
        };
        table.add_row([
            call.clone(),
            before.to_string(),
            now.to_string(),
            format!("{change:+.1}%"),
            verdict.to_owned(),
        ]);
    }
    for column in table.column_iter_mut().skip(1).take(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    kept
}
