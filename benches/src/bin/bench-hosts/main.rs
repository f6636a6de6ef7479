//! `make bench-hosts`: between two hosts of a lab, kernel TCP over their link, libfabric alone over the same link, and the same socket program under
//! IPC-Direct, in turns.
//!
//! | module | what it does |
//! |---|---|
//! | [`rows`] | the list of rows and their goals |
//! | [`hosts`] | the lab, and one measurement in it |

mod hosts;
mod rows;

use std::fs;
use std::process::ExitCode;

use clap::Parser;
use harness::Outcome;
use measure::turns::{Options, Turns as _};

use crate::hosts::Hosts;

/// Measure IPC-Direct between two hosts beside kernel TCP and libfabric alone; --quick takes about half a minute (root only)
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
    /// How libfabric goes between the hosts
    #[arg(long, default_value = "tcp")]
    provider: String,
}

fn main() -> ExitCode {
    match bench(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench-hosts: {}", e.0);
            ExitCode::FAILURE
        }
    }
}

fn bench(Cli { options, provider }: &Cli) -> Outcome {
    let Some(experiments) = options.choose(rows::all())? else { return Ok(()) };
    let hosts = Hosts::up(provider, options.seconds())?;
    let report = hosts.run(&experiments, options);
    hosts.down()?;
    report.print();
    fs::create_dir_all(&options.out)?;
    let json = options.out.join("hosts.json");
    fs::write(&json, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("The same as JSON: {}", json.display());
    Ok(())
}
