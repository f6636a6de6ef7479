//! `nic-coordinator [EAL options] -- [options]`: the DPDK program around [`nic_coordinator`].
//!
//! The main lcore polls everything: the request rings, the emulated bus, the Ethernet port.
#![deny(unsafe_code)]

mod cli;
mod os;
mod run;
mod telemetry;

use std::io::Write;
use std::process::ExitCode;

use cli::Command;

/// Exit code for a command line that makes no sense.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    match cli::parse(std::env::args()) {
        Ok(Command::Run(eal_args, options)) => start(eal_args, options),
        Ok(Command::Print(text)) => {
            // Who has closed stdout does not want to know.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(sentence) => usage(&sentence),
    }
}

fn usage(sentence: &str) -> ExitCode {
    eprintln!("nic-coordinator: {sentence}");
    ExitCode::from(EXIT_USAGE)
}

fn start(eal_args: Vec<String>, options: cli::Options) -> ExitCode {
    use tracing_subscriber::EnvFilter;
    let filter = match &options.log {
        Some(text) => EnvFilter::try_new(text),
        None => EnvFilter::try_from_default_env().or_else(|_| EnvFilter::try_new("info")),
    };
    let filter = match filter {
        Ok(filter) => filter,
        Err(error) => return usage(&format!("--log: {error}; use off, error, warn, info or debug")),
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();

    let Some(number) = options.bus_fd else {
        return usage(
            "the bus of a real card is not implemented yet: only the emulated one, with --bus-fd N (started by ipc-direct up or run)",
        );
    };
    let bus = match os::inherited(number) {
        Ok(bus) => bus,
        Err(error) => return usage(&format!("--bus-fd {number} is not an open socket: {error}")),
    };
    match run::run(eal_args, &options, bus) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nic-coordinator: {error}");
            if error.is_usage() { ExitCode::from(EXIT_USAGE) } else { ExitCode::FAILURE }
        }
    }
}
