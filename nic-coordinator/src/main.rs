//! `nic-coordinator [EAL options] -- [options]`: the DPDK program around [`nic_coordinator`].
//!
//! The main lcore decides, and polls the bus and the Ethernet port; the request rings are polled by the others, or by it if there are none.
#![deny(unsafe_code)]

mod cli;
mod ethernet;
mod key;
mod lcores;
mod meeting;
mod os;
mod pace;
mod run;
mod telemetry;
mod udp;

use std::io::Write;
use std::process::ExitCode;

use cli::{Command, Idle};
use nic_coordinator::bus::{Bus, EmulatedBus};
use nic_coordinator::card::CardBus;

/// Exit code for a command line that makes no sense.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    match cli::parse(std::env::args()) {
        Ok(Command::Run(eal_args, options)) => start(eal_args, *options),
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
    // Nobody may be left who hears it: telling that on stderr as well would be a panic.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false);
    builder.with_writer(std::io::stderr).with_ansi(false).init();

    let bus = match bus(&options) {
        Ok(bus) => bus,
        Err(sentence) => return usage(&sentence),
    };
    match run::run(eal_args, &options, bus) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nic-coordinator: {error}");
            if error.is_usage() { ExitCode::from(EXIT_USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// The bus that the options name.
fn bus(options: &cli::Options) -> Result<Bus, String> {
    if let (Some(windows), Some(host_memory)) = (&options.windows, &options.host_memory) {
        if options.idle == Idle::Sleep {
            return Err(
                "--idle sleep needs doorbells, which only the emulated bus has: say --idle poll or nap"
                    .into(),
            );
        }
        return match CardBus::open(windows, host_memory) {
            Ok(card) => Ok(Bus::Card(Box::new(card))),
            Err(error) => Err(format!("--windows, --host-memory: {error}")),
        };
    }
    let number = options.bus_fd.ok_or(
        "say which bus: --windows DIR --host-memory FILE on a card; the emulated one's --bus-fd is for ipc-direct up and run, which start this program",
    )?;
    if options.idle == Idle::Nap {
        return Err("--idle nap is for a card's bus: the emulated one has doorbells, say --idle sleep".into());
    }
    match os::inherited(number) {
        Ok(socket) => Ok(Bus::Emulated(EmulatedBus::new(socket))),
        Err(error) => Err(format!("--bus-fd {number} is not an open socket: {error}")),
    }
}
