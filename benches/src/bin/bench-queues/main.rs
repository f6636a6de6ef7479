//! `make bench-queues`: the three request queues beside each other, and beside the kernel where several fight for one thing.
//!
//! The coordinator's own polling loop and decisions run on one processor, the host's side of any number of functions on the other: no part is
//! a stand-in. What two processors cannot show is simulated from the costs that were measured, and labelled.

mod fights;
mod figure;
mod plot;
mod rates;
mod report;
mod rig;
mod simulate;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use harness::{Failure, Outcome};

use rates::Effort;
use report::Report;

/// Compares the request queues; writes report.html, PNGs and queues.json.
#[derive(Debug, Parser)]
struct Arguments {
    /// Directory for the report
    #[arg(long, value_name = "DIR", default_value = "target/bench/queues")]
    out: PathBuf,
    /// One short round of everything: about a minute
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(why)) => {
            eprintln!("bench-queues: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Outcome {
    measure::fonts::register()?;
    std::fs::create_dir_all(&arguments.out)?;
    let effort = if arguments.quick {
        Effort { rounds: 1, time: Duration::from_millis(100) }
    } else {
        Effort { rounds: 5, time: Duration::from_millis(300) }
    };
    let mut figures = rates::rates(effort)?;
    let polling =
        figures.iter().find(|f| f.id == "polling").ok_or_else(|| Failure("no polling".to_owned()))?;
    let costs = rates::costs(effort, polling)?;
    figures.extend(fights::fights(effort)?);
    let setups = fights::setups(effort)?;
    let simulated = simulate::simulate(&costs);
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let mut report = Report {
        machine: format!("{cpus} processors."),
        effort: format!(
            "Median of {} rounds of {} ms, all in turn within a round.",
            effort.rounds,
            effort.time.as_millis()
        ),
        figures,
        setups,
        costs,
        simulated,
        assumptions: simulate::ASSUMPTIONS,
        findings: String::new(),
    };
    report.findings = report.paragraph();
    for figure in report.figures.iter().chain(&report.simulated) {
        plot::png(figure, &arguments.out.join(format!("{}.png", figure.id)))?;
    }
    std::fs::write(arguments.out.join("report.html"), report.page()?)?;
    std::fs::write(arguments.out.join("queues.json"), serde_json::to_string_pretty(&report)?)?;
    println!("{}", report.findings);
    println!("\nThe simulation takes for granted that");
    simulate::ASSUMPTIONS.iter().for_each(|line| println!("- {line}"));
    println!("\nplots and tables: {}", arguments.out.join("report.html").display());
    Ok(())
}
