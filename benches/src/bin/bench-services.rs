//! PostgreSQL, nginx and gunicorn over kernel TCP and over IPC-Direct, in turns: a table, and the same as JSON in
//! `target/bench/services.json`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use harness::Outcome;
use harness::instance::Instance;
use measure::progress::Progress;
use measure::services::{Kind, ROWS, Row, Server};
use measure::stats::median;
use serde::Serialize;

/// Measure servers with several processes over the kernel and over IPC-Direct.
#[derive(Debug, Parser)]
struct Options {
    /// Rows whose name contains this; all without it.
    only: Option<String>,
    /// Interleaved rounds; each figure is the median over them.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of one measurement, in seconds.
    #[arg(long, default_value_t = 1)]
    seconds: u32,
    /// Where the JSON goes.
    #[arg(long, default_value = "target/bench/services.json")]
    json: PathBuf,
}

#[derive(Debug, Serialize)]
struct Line {
    row: &'static str,
    /// Requests or transactions per second, in each round.
    kernel_per_s: Vec<f64>,
    direct_per_s: Vec<f64>,
    /// Median by median.
    times_kernel: f64,
}

fn main() -> ExitCode {
    match measure_all(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench-services: {}", e.0);
            ExitCode::FAILURE
        }
    }
}

fn measure_all(options: &Options) -> Outcome {
    let wanted = |row: &&Row| options.only.as_ref().is_none_or(|part| row.name.contains(part));
    let rows: Vec<&Row> = ROWS.iter().filter(wanted).collect();
    let mut kinds: Vec<Kind> = rows.iter().map(|row| row.server).collect();
    kinds.dedup();
    let instance = Instance::start()?;
    let mut progress = Progress::new(rows.len() * options.rounds);
    let mut lines = Vec::new();
    for kind in kinds {
        let (plain, direct) = (Server::start(kind, None)?, Server::start(kind, Some(&instance))?);
        for row in rows.iter().filter(|row| row.server == kind) {
            let mut line =
                Line { row: row.name, kernel_per_s: Vec::new(), direct_per_s: Vec::new(), times_kernel: 0.0 };
            for round in 1..=options.rounds {
                progress.step(&format!("{}, round {round} of {}", row.name, options.rounds));
                line.kernel_per_s.push(plain.measure(row, options.seconds)?);
                line.direct_per_s.push(direct.measure(row, options.seconds)?);
            }
            line.times_kernel = median(line.direct_per_s.clone()) / median(line.kernel_per_s.clone());
            lines.push(line);
        }
        direct.stop()?;
        plain.stop()?;
    }
    progress.finish();
    instance.stop()?;
    print(&lines);
    if let Some(dir) = options.json.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(&options.json, serde_json::to_string_pretty(&lines)? + "\n")?;
    println!("The same as JSON: {}", options.json.display());
    Ok(())
}

fn print(lines: &[Line]) {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header(["per second", "kernel TCP", "IPC-Direct", "times", "worst to best round"]);
    for line in lines {
        let rounds = line.direct_per_s.iter().zip(&line.kernel_per_s).map(|(d, k)| d / k);
        let (worst, best) = rounds.fold((f64::INFINITY, 0.0f64), |(w, b), r| (w.min(r), b.max(r)));
        table.add_row([
            line.row.to_owned(),
            format!("{:.0}", median(line.kernel_per_s.clone())),
            format!("{:.0}", median(line.direct_per_s.clone())),
            format!("{:.2}", line.times_kernel),
            format!("{worst:.2} to {best:.2}"),
        ]);
    }
    for column in 1..=3 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("{table}");
}
