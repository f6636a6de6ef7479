//! `make bench`: every row of the speed goals, each way between two processes in turns with ours.
//!
//! | module | what it does |
//! |---|---|
//! | [`rows`] | the list of rows, their ways and goals |
//! | [`run`] | one measurement |
//! | [`report`] | medians, ratios, verdicts; the table and the JSON |
//! | [`html`] | the same with plots |

mod html;
mod report;
mod rows;
mod run;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use harness::Outcome;
use harness::counters::Totals;
use harness::instance::Instance;
use measure::path::Path;
use measure::progress::Progress;

use crate::report::{Found, Report};
use crate::rows::Experiment;
use crate::run::{Fixture, Machine};

/// Measure IPC-Direct beside the kernel's ways and beside shared memory alone
#[derive(Debug, Parser)]
struct Options {
    /// Rows whose name contains one of these texts; all without any
    rows: Vec<String>,
    /// A look of about two minutes: fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Rounds; each takes every way in turn [default: 7, with --quick 3]
    #[arg(long)]
    rounds: Option<usize>,
    /// Length of one measurement in seconds [default: 0.4, with --quick 0.1]
    #[arg(long)]
    seconds: Option<f64>,
    /// Say what the rows are called, and measure nothing
    #[arg(long)]
    list: bool,
    /// Where report.json and report.html go
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

fn main() -> ExitCode {
    match bench(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {}", e.0);
            ExitCode::FAILURE
        }
    }
}

fn bench(options: &Options) -> Outcome {
    let wanted = |name: &str| options.rows.is_empty() || options.rows.iter().any(|part| name.contains(part));
    let mut experiments = rows::all();
    experiments.retain(|experiment| experiment.rows.iter().any(|row| wanted(&row.name)));
    if options.list {
        for row in experiments.iter().flat_map(|experiment| &experiment.rows) {
            println!("{}", row.name);
        }
        return Ok(());
    }
    if experiments.is_empty() {
        return harness::fail(format!(
            "no row is called {:?}: `bench --list` says what there is",
            options.rows
        ));
    }
    let rounds = options.rounds.unwrap_or(if options.quick { 3 } else { 7 }).max(1);
    let seconds = options.seconds.unwrap_or(if options.quick { 0.1 } else { 0.4 });
    let instance = Instance::start()?;
    let machine = Machine::new(&instance, seconds)?;
    let mut progress = Progress::new(experiments.len() * rounds);
    let mut report = Report::new(rounds, seconds);
    for experiment in &experiments {
        let found = interleave(&machine, experiment, rounds, &mut progress);
        report.add(experiment, found);
    }
    progress.finish();
    let bus = instance.report()?.agent.pcie_profile;
    instance.stop()?;
    report.finish();
    if bus != "none" {
        report.machine += &format!(" All of this with an emulated card as slow as {bus} (docs/pcie.md).");
    }
    report.print();
    fs::create_dir_all(&options.out)?;
    let (json, page) = (options.out.join("report.json"), options.out.join("report.html"));
    fs::write(&json, serde_json::to_string_pretty(&report)? + "\n")?;
    fs::write(&page, html::page(&report)?)?;
    println!("The same as JSON: {}; with plots: {}", json.display(), page.display());
    Ok(())
}

/// All rounds of one experiment. A way that fails is left out from then on, and its reason kept.
fn interleave(
    machine: &Machine<'_>,
    experiment: &Experiment,
    rounds: usize,
    progress: &mut Progress,
) -> Found {
    let mut found = Found::new(experiment.paths);
    let mut fixtures: Vec<Option<Fixture<'_>>> = Vec::new();
    for (path, column) in experiment.paths.iter().zip(&mut found.columns) {
        let fixture = machine.fixture(experiment, *path);
        fixtures.push(fixture.map_err(|e| column.failed = Some(e.0)).ok());
    }
    for round in 1..=rounds {
        let names: Vec<&str> = experiment.rows.iter().map(|row| row.name.as_str()).collect();
        progress.step(&format!("{}: round {round} of {rounds}", names.join("; ")));
        found.runnable.push(measure::machine::runnable());
        found.calibration_us.extend(machine.calibrate().ok());
        for ((path, column), fixture) in experiment.paths.iter().zip(&mut found.columns).zip(&mut fixtures) {
            let (Some(fixture), None) = (fixture, &column.failed) else { continue };
            let before = totals(machine, *path);
            match machine.measure(experiment, *path, fixture) {
                Ok(values) => column.rounds.push(values),
                Err(e) => column.failed = Some(e.0),
            }
            if let Some((before, after)) = before.zip(totals(machine, *path)) {
                found.counters = found.counters + (after - before);
            }
        }
    }
    for (fixture, column) in fixtures.into_iter().zip(&mut found.columns) {
        if let Some(Err(e)) = fixture.map(Fixture::stop) {
            column.failed.get_or_insert(e.0);
        }
    }
    found
}

/// What the counters say, where they say something.
fn totals(machine: &Machine<'_>, path: Path) -> Option<Totals> {
    if path == Path::Direct { machine.instance.totals().ok() } else { None }
}
