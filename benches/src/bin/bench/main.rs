//! `make bench`: every row of the speed goals, each way between two processes in turns with ours.
//!
//! | module | what it does |
//! |---|---|
//! | [`rows`] | the list of rows, their ways and goals |
//! | [`run`] | one measurement |
//! | [`html`] | the report with plots |

mod html;
mod rows;
mod run;

use std::fs;
use std::process::ExitCode;

use clap::Parser;
use harness::Outcome;
use harness::instance::Instance;
use measure::turns::{Options, Turns as _};

use crate::run::Machine;

/// Measure IPC-Direct beside the kernel's ways and beside shared memory alone; --quick takes about two minutes
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    match bench(&Cli::parse().options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {}", e.0);
            ExitCode::FAILURE
        }
    }
}

fn bench(options: &Options) -> Outcome {
    let Some(experiments) = options.choose(rows::all())? else { return Ok(()) };
    let instance = Instance::start()?;
    let mut report = Machine::new(&instance, options.seconds())?.run(&experiments, options);
    let bus = instance.report()?.agent.pcie_profile;
    instance.stop()?;
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
