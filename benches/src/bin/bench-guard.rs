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
/// Runs of each call.
const RUNS: usize = 2;
/// What is not counted: how often a connect looks for the coordinator's answer depends on the machine (130 instructions each time), and so does
/// whether the news of its arrival come together with that (1,200).
const WAITS: [&str; 2] = ["coordinator::await_news", "coordinator::take_batches"];
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

/// The instructions of one call in the run where it took the fewest.
fn fewest(instance: &Instance, call: &str) -> Outcome<u64> {
    let counts = (0..RUNS).map(|_| count(instance, call)).collect::<Outcome<Vec<_>>>()?;
    Ok(counts.into_iter().min().unwrap_or(u64::MAX))
}

/// The median of what one call took in one run: a first call takes more, and a wait that ended in a sleep has done part of the call's work.
fn count(instance: &Instance, call: &str) -> Outcome<u64> {
    let scratch = Scratch::new()?;
    let function = format!("guard_{call}");
    let mut command = instance.shimmed(bins::program("valgrind")?);
    command
        .args(["--tool=callgrind", "--collect-atstart=no"])
        .arg(format!("--toggle-collect={function}"))
        .arg("--compress-strings=no")
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
        let sum = text.lines().find_map(sum).unwrap_or(0);
        sums.extend(sum.checked_sub(waited(&text)).filter(|sum| *sum != 0));
    }
    sums.sort_unstable();
    match sums.get(sums.len() / 2) {
        Some(median) if sums.len() > 10 => Ok(*median),
        _ => fail(format!("callgrind counted {call} only {} times", sums.len())),
    }
}

/// Instructions in [`WAITS`] and what they called, in the text of one dump: each call is three lines, `cfn=NAME`, `calls=...` and `LINE COST`
/// (Callgrind Format Specification, "Basic structure").
fn waited(dump: &str) -> u64 {
    let lines = dump.lines();
    let calls = lines
        .clone()
        .zip(lines.skip(2))
        .filter(|(name, _)| name.starts_with("cfn=") && WAITS.iter().any(|w| name.contains(w)));
    calls.filter_map(|(_, cost)| cost.split_whitespace().last()?.parse::<u64>().ok()).sum()
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
