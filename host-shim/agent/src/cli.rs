//! The command line of `ipc-direct`.

use std::fmt::Display;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use emulator::{BootOptions, Fabric, Lcores, PciId, Uplink};
use ring::profile::Profile;
use ring::queue::Kind;
use tracing_subscriber::filter::LevelFilter;

use crate::address::Address;
use crate::serve::{Agent, Served, Settings};
use crate::{check, fault, lab, peer, ps, pump, run, start, status};

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
    /// Show which other hosts' cards ours has met
    Status(status::StatusArgs),
    /// Make an emulated card fail: for tests
    Fault(fault::FaultArgs),
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
    /// How programs' requests go to a card that this command starts: hybrid, per-process, or shared (only for programs that
    /// trust each other) [default: $IPC_DIRECT_REQUEST_QUEUE or hybrid]
    #[arg(long, value_name = "KIND")]
    pub request_queue: Option<Kind>,
    /// Lcores of a card that this command starts, 1 to 16: one decides, the others share the processes
    /// [default: $IPC_DIRECT_LCORES or 1]
    #[arg(long, value_name = "N")]
    pub lcores: Option<Lcores>,
    /// How slow a bus a card imitates that this command starts: none, bluefield2, bluefield3 or custom, with other figures as in
    /// bluefield2,posted-write-ns=600 (docs/pcie.md) [default: $IPC_DIRECT_PCIE_PROFILE or none]
    #[arg(long, value_name = "BUS")]
    pub pcie_profile: Option<Profile>,
}

/// Which request queue a card gets that is started without `--request-queue`.
pub const REQUEST_QUEUE_VARIABLE: &str = "IPC_DIRECT_REQUEST_QUEUE";
/// How many lcores a card gets that is started without `--lcores`.
pub const LCORES_VARIABLE: &str = "IPC_DIRECT_LCORES";
/// How slow a bus a card imitates that is started without `--pcie-profile`.
pub const PCIE_PROFILE_VARIABLE: &str = "IPC_DIRECT_PCIE_PROFILE";

impl CardArgs {
    /// The request queue, by option, environment or default.
    ///
    /// # Errors
    /// One sentence: the variable names none.
    pub fn choose_queue(&self) -> Result<Kind, String> {
        choose(self.request_queue, REQUEST_QUEUE_VARIABLE)
    }

    /// The lcores, likewise.
    ///
    /// # Errors
    /// One sentence: the variable says no number of them.
    pub fn choose_lcores(&self) -> Result<Lcores, String> {
        choose(self.lcores, LCORES_VARIABLE)
    }

    /// The bus, likewise.
    ///
    /// # Errors
    /// One sentence: the variable names none.
    pub fn choose_profile(&self) -> Result<Profile, String> {
        choose(self.pcie_profile, PCIE_PROFILE_VARIABLE)
    }
}

fn choose<T: FromStr<Err: Display> + Default>(option: Option<T>, variable: &str) -> Result<T, String> {
    match (option, std::env::var(variable)) {
        (Some(value), _) => Ok(value),
        (None, Ok(text)) if !text.is_empty() => text.parse().map_err(|e| format!("{variable}={text}: {e}")),
        _ => Ok(T::default()),
    }
}

#[derive(Debug, Args)]
struct UpArgs {
    #[command(flatten)]
    card: CardArgs,
    /// Use a real card, on which nic-coordinator runs: its functions' VENDOR:DEVICE[/BAR], as in 1af4:1110/2 (root only)
    #[arg(long, value_name = "ID", conflicts_with = "hugepages")]
    pci: Option<PciId>,
    #[command(flatten)]
    uplink: UplinkArgs,
    /// What to log on standard error
    #[arg(long, value_enum, default_value_t = LogLevel::Error, value_name = "LEVEL")]
    log: LogLevel,
}

/// Options of `up` for meeting other hosts.
#[derive(Debug, Args)]
struct UplinkArgs {
    /// Meet other hosts' cards: the link that is the emulated card's Ethernet port, and nobody else's (root only)
    #[arg(long, value_name = "LINK", requires_all = ["uplink_address", "hosts_key"], conflicts_with = "pci")]
    uplink: Option<String>,
    /// The card's own address and network there, as in 10.0.0.1/24
    #[arg(long, value_name = "ADDRESS/BITS", requires = "uplink")]
    uplink_address: Option<String>,
    /// File with the key that the hosts share: 64 hexadecimal digits, readable by its owner alone
    #[arg(long, value_name = "FILE", requires = "uplink")]
    hosts_key: Option<PathBuf>,
    /// Router to what is beyond that network
    #[arg(long, value_name = "ADDRESS", requires = "uplink")]
    gateway: Option<Ipv4Addr>,
    /// Address of a card to look for, where announcing on the local network does not reach it; may be given several times
    #[arg(long, value_name = "ADDRESS", requires = "uplink")]
    peer: Vec<Ipv4Addr>,
    /// Address that reaches this host; may be given several times
    #[arg(long, value_name = "ADDRESS", requires = "uplink")]
    host_address: Vec<IpAddr>,
    /// Carry connections with other hosts over this libfabric provider, as tcp or verbs; off: they use the kernel
    #[arg(long, value_name = "NAME", default_value = "tcp")]
    fabric: String,
    /// Address of this machine on the network that the provider uses [default: the first --host-address]
    #[arg(long, value_name = "ADDRESS", requires = "uplink")]
    fabric_address: Option<IpAddr>,
}

impl UplinkArgs {
    fn uplink(self) -> Result<Option<Uplink>, String> {
        let (Some(link), Some(address), Some(key)) = (self.uplink, self.uplink_address, self.hosts_key)
        else {
            return Ok(None);
        };
        let at = self.fabric_address.or(self.host_address.first().copied());
        let fabric = match at.filter(|_| self.fabric != "off") {
            Some(address) => {
                let netns = peer::own_netns_cookie()
                    .map_err(|e| format!("the network namespace has no number: {e}"))?;
                Some(Fabric { provider: self.fabric, address, netns })
            }
            None => None,
        };
        let (gateway, peers, host_addresses) = (self.gateway, self.peer, self.host_address);
        Ok(Some(Uplink { link, address, gateway, key, peers, host_addresses, fabric }))
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
        Command::Fault(arguments) => fault::fault(&arguments),
        Command::Lab(arguments) => lab::lab(&arguments),
        Command::Pump => pump::pump(),
        Command::Up(UpArgs { card, pci, uplink, log }) => {
            log_to_stderr(log);
            serve(uplink.uplink().and_then(|uplink| settings(&card, None, pci, uplink)))
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
            let idle_exit = arguments.idle_exit_ms.map(Duration::from_millis);
            serve(settings(&arguments.card, idle_exit, None, None))
        }
    }
}

fn settings(
    card: &CardArgs,
    idle_exit: Option<Duration>,
    pci: Option<PciId>,
    uplink: Option<Uplink>,
) -> Result<Settings, String> {
    let request_queue = match (pci, card.request_queue) {
        (None, _) => card.choose_queue()?,
        (Some(_), None | Some(Kind::PerProcess)) => Kind::PerProcess,
        (Some(_), Some(kind)) => {
            return Err(format!(
                "--request-queue {kind} is for an emulated card; a real one has per-process only"
            ));
        }
    };
    let lcores = match (pci, card.lcores) {
        (None, _) => card.choose_lcores()?,
        (Some(_), None) => Lcores::default(),
        (Some(_), Some(_)) => {
            return Err("--lcores is for an emulated card; a real one's are chosen on the card".into());
        }
    };
    let pcie_profile = match (pci, card.pcie_profile) {
        (None, _) => card.choose_profile()?,
        (Some(_), None) => Profile::NONE,
        (Some(_), Some(_)) => {
            return Err("--pcie-profile is for an emulated card: a real one takes its own time".into());
        }
    };
    let hugepages = card.hugepages;
    let boot =
        BootOptions { hugepages, request_queue, lcores, pcie_profile, pci, uplink, ..BootOptions::default() };
    Ok(Settings { address: Address::choose(card.socket.as_deref()), idle_exit, boot })
}

/// The agent's life: one line on standard output when it is up (or why it is not), then none.
fn serve(settings: Result<Settings, String>) -> ExitCode {
    let settings = match settings {
        Ok(settings) => settings,
        Err(sentence) => return not_up(&sentence),
    };
    let mut agent = match Agent::start(&settings) {
        Ok(agent) => agent,
        Err(e) => return not_up(&e.to_string()),
    };
    let card = agent.card();
    let (own, epoch) = (std::process::id(), card.epoch());
    let queue = match card.pcie_profile() {
        profile if profile.is_none() => format!("{} request queue", card.request_queue()),
        profile => format!("{} request queue, as slow as {profile}", card.request_queue()),
    };
    let at = format!("{}: agent {own} at {}", start::READY, settings.address);
    let line = match (card.coordinator_pid(), card.telemetry_prefix()) {
        (Some(pid), Some(prefix)) => {
            format!("{at}, coordinator {pid} (epoch {epoch:08x}), {queue}, telemetry -f {prefix}")
        }
        _ => format!(
            "{at}, coordinator on the card (epoch {epoch:08x}), {queue}, {} functions for processes",
            card.capacity()
        ),
    };
    // Whether anybody reads the line is not our affair.
    let _ = writeln!(std::io::stdout(), "{line}").and_then(|()| std::io::stdout().flush());
    start::close_stdout();
    loop {
        let served = agent.serve().map_err(|e| e.to_string());
        let reset = match served {
            Ok(Served::Ended) => return ExitCode::SUCCESS,
            Ok(Served::Reset) => agent.reset(&settings).map_err(|e| e.to_string()),
            Err(e) => Err(e),
        };
        match reset {
            Ok(fresh) => agent = fresh,
            Err(e) => {
                tracing::error!("{e}");
                return ExitCode::FAILURE;
            }
        }
    }
}

fn log_to_stderr(level: LogLevel) {
    let filter = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Info => LevelFilter::INFO,
    };
    // A closed stderr is no reason to end.
    let builder = tracing_subscriber::fmt().log_internal_errors(false);
    let builder = builder.with_max_level(filter).with_target(false).with_ansi(false);
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
