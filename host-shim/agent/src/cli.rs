//! The command line of `ipc-direct`.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use emulator::{BootOptions, PciId, Wire};
use tracing_subscriber::filter::LevelFilter;

use crate::address::Address;
use crate::serve::{Agent, Settings};
use crate::{check, lab, ps, pump, run, start, status};

/// Socket traffic of unmodified programs through shared memory.
#[derive(Debug, Parser)]
#[command(name = "ipc-direct", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a program with its TCP connections on this host in user space
    Run(run::RunArgs),
    /// Run the agent in the foreground, with an emulated card or a real one; Ctrl-C ends it
    Up(UpArgs),
    /// Say beforehand what of a program will be accelerated; status 0: it will be, 1: in part, 2: not
    Check(check::CheckArgs),
    /// Show attached processes, their sockets, and why a socket is not accelerated
    Ps(ps::PsArgs),
    /// Show which other hosts' cards ours has met, and what it has counted
    Status(status::StatusArgs),
    /// Several hosts on this machine, each with an agent and an emulated card of its own
    Lab(lab::LabArgs),
    /// The agent itself, as `run` starts it
    #[command(hide = true)]
    Agent(AgentArgs),
    /// A relay, as the agent starts it
    #[command(hide = true)]
    Pump,
}

/// What the agent logs on its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What went wrong.
    #[default]
    Error,
    /// Also who comes and goes.
    Info,
}

impl LogLevel {
    /// As options and variables spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            LogLevel::Off => "off",
            LogLevel::Error => "error",
            LogLevel::Info => "info",
        }
    }
}

/// Options of the card, for `up`, `run` and `agent` alike.
#[derive(Clone, Debug, Args)]
pub struct CardArgs {
    /// Socket of the agent: @NAME (abstract) or a path; default $IPC_DIRECT_SOCKET or @ipc-direct/UID
    #[arg(long, value_name = "S")]
    pub socket: Option<String>,
    /// Take the card's memory from hugepages (they must be reserved and accessible)
    #[arg(long)]
    pub hugepages: bool,
}

#[derive(Debug, Args)]
struct UpArgs {
    #[command(flatten)]
    card: CardArgs,
    /// Use a real card, on which nic-coordinator runs: its functions' VENDOR:DEVICE[/BAR], as in 1af4:1110/2 (root only)
    #[arg(long, value_name = "ID", conflicts_with = "hugepages")]
    pci: Option<PciId>,
    #[command(flatten)]
    wire: WireArgs,
    /// What to log on standard error
    #[arg(long, value_enum, default_value_t = LogLevel::Error, value_name = "LEVEL")]
    log: LogLevel,
}

/// Options of `up` for meeting other hosts.
#[derive(Debug, Args)]
struct WireArgs {
    /// Meet other hosts' cards: the link that is the emulated card's Ethernet port, and nobody else's (root only)
    #[arg(long, value_name = "LINK", requires_all = ["wire_address", "wire_key"], conflicts_with = "pci")]
    wire: Option<String>,
    /// The card's own address and network there, as in 10.0.0.1/24
    #[arg(long, value_name = "ADDRESS/BITS", requires = "wire")]
    wire_address: Option<String>,
    /// File with the key that the hosts share: 64 hexadecimal digits
    #[arg(long, value_name = "FILE", requires = "wire")]
    wire_key: Option<PathBuf>,
    /// Address of a card to look for beyond the local network; may be given several times
    #[arg(long, value_name = "ADDRESS", requires = "wire")]
    peer: Vec<Ipv4Addr>,
    /// Address that reaches this host; may be given several times
    #[arg(long, value_name = "ADDRESS", requires = "wire")]
    host_address: Vec<IpAddr>,
}

impl WireArgs {
    fn wire(self) -> Option<Wire> {
        Some(Wire {
            link: self.wire?,
            address: self.wire_address?,
            key: self.wire_key?,
            peers: self.peer,
            host_addresses: self.host_address,
        })
    }
}

#[derive(Debug, Args)]
struct AgentArgs {
    #[command(flatten)]
    card: CardArgs,
    /// End after N milliseconds without processes and leases
    #[arg(long, value_name = "N")]
    idle_exit_ms: Option<u64>,
    /// What to log on standard error
    #[arg(long, value_enum, default_value_t = LogLevel::Error, value_name = "LEVEL")]
    log: LogLevel,
    /// Start the agent in a session of its own and return; it says on standard output how it went
    #[arg(long)]
    detach: bool,
    /// Be that agent
    #[arg(long, conflicts_with = "detach")]
    detached: bool,
    /// Append standard error to this file
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
}

/// Parses the command line and does what it says. Usage errors end with status 2.
#[must_use]
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Check(arguments) => check::check(&arguments),
        Command::Ps(arguments) => ps::ps(&arguments),
        Command::Status(arguments) => status::status(&arguments),
        Command::Lab(arguments) => lab::lab(&arguments),
        Command::Pump => pump::pump(),
        Command::Up(UpArgs { card, pci, wire, log }) => {
            log_to_stderr(log);
            let mut settings = settings(&card, None);
            settings.boot.pci = pci;
            settings.boot.wire = wire.wire();
            serve(&settings)
        }
        Command::Agent(arguments) if arguments.detach => {
            match start::respawn_detached(arguments.log_file.as_deref()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => not_up(&format!("the agent could not be started: {e}")),
            }
        }
        Command::Agent(arguments) => {
            log_to_stderr(arguments.log);
            if arguments.detached {
                start::leave_session();
            }
            serve(&settings(&arguments.card, arguments.idle_exit_ms.map(Duration::from_millis)))
        }
    }
}

fn settings(card: &CardArgs, idle_exit: Option<Duration>) -> Settings {
    Settings {
        address: Address::choose(card.socket.as_deref()),
        idle_exit,
        boot: BootOptions { hugepages: card.hugepages, ..BootOptions::default() },
    }
}

/// The agent's life: one line on standard output when it is up (or why it is not), then none.
fn serve(settings: &Settings) -> ExitCode {
    let mut agent = match Agent::start(settings) {
        Ok(agent) => agent,
        Err(e) => return not_up(&e.to_string()),
    };
    let card = agent.card();
    let (own, epoch) = (std::process::id(), card.epoch());
    let at = format!("{}: agent {own} at {}", start::READY, settings.address);
    let line = match (card.coordinator_pid(), card.telemetry_prefix()) {
        (Some(pid), Some(prefix)) => {
            format!("{at}, coordinator {pid} (epoch {epoch:08x}), telemetry -f {prefix}")
        }
        _ => format!(
            "{at}, coordinator on the card (epoch {epoch:08x}), {} functions for processes",
            card.capacity()
        ),
    };
    // Whether anybody reads the line is not our affair.
    let _ = writeln!(std::io::stdout(), "{line}").and_then(|()| std::io::stdout().flush());
    start::close_stdout();
    match agent.serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr(level: LogLevel) {
    let filter = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Info => LevelFilter::INFO,
    };
    let builder = tracing_subscriber::fmt().with_max_level(filter).with_target(false).with_ansi(false);
    builder.with_writer(std::io::stderr).init();
}

/// The sentence goes to standard error for people and logs, and, where that is not the terminal, to
/// standard output for the `run` that waits for the ready line.
fn not_up(sentence: &str) -> ExitCode {
    use std::io::IsTerminal;
    if !std::io::stdout().is_terminal() {
        let _ = writeln!(std::io::stdout(), "{sentence}");
    }
    fail(sentence)
}

/// One sentence on standard error; status 1.
pub(crate) fn fail(sentence: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "ipc-direct: {sentence}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_the_program_are_the_programs() {
        let cli =
            Cli::try_parse_from(["ipc-direct", "run", "--spin-us", "7", "--", "redis-server", "--port", "1"]);
        let Ok(Cli { command: Command::Run(arguments) }) = cli else { panic!("{cli:?}") };
        assert_eq!(arguments.program, ["redis-server", "--port", "1"]);
        assert!(Cli::try_parse_from(["ipc-direct", "run"]).is_err());
        assert!(Cli::try_parse_from(["ipc-direct", "run", "--spin-us", "x", "--", "a"]).is_err());
    }
}
