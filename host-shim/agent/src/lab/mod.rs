//! `ipc-direct lab`: several hosts on this machine, each with an agent and an emulated card of its own.
//!
//! | module | what it holds |
//! |---|---|
//! | `call` | what the commands ask of the lab's process, and how |
//! | `up` | that process |
//! | `exec` | a program in a host |
//! | `status` | the table |

mod call;
mod exec;
mod status;
mod up;

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use emulator::lab::host::Addresses;
use emulator::lab::switch::Port;
use emulator::lab::wire::Badness;
use emulator::lab::{HOSTS_MAX, Target, init, splice};

use crate::cli::fail;
use call::{Ask, Lab};

/// `ipc-direct lab [--name NAME] COMMAND`
#[derive(Debug, Args)]
pub struct LabArgs {
    /// Which lab, where there are several
    #[arg(long, global = true, default_value = "lab", value_name = "NAME")]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the hosts h1, h2, ... and keep them, in the foreground; Ctrl-C ends them (root only)
    Up {
        /// How many
        #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(HOSTS_MAX)))]
        hosts: u32,
    },
    /// Run a program in a host, with its TCP connections on that host in user space
    Exec(exec::ExecArgs),
    /// Show the hosts, their addresses, and what was broken about them
    Status {
        /// Print JSON (docs/lab.md)
        #[arg(long)]
        json: bool,
    },
    /// Break something
    #[command(subcommand)]
    Fault(Fault),
    /// Start a host again that was killed, or its agent
    Start {
        /// Which
        host: String,
    },
    /// End the lab, and wait until nothing is left of it
    Down,
    /// The first process of a host, as `up` starts it
    #[command(hide = true)]
    Init { number: u32, hosts: u32 },
    /// A bad wire, as `fault link` starts it
    #[command(hide = true)]
    Splice { near: String, far: String, badness: String },
    /// A program in a host, as `exec` starts it
    #[command(hide = true)]
    Inside(exec::InsideArgs),
}

#[derive(Debug, Subcommand)]
enum Fault {
    /// Make the links of a host lose, delay, reorder and duplicate packets, both ways; without options: no longer
    Link(LinkArgs),
    /// Cut the network into sides that do not hear each other: h1,h2 h3 (hosts that are not named are one more side)
    Partition {
        /// The sides: names of hosts with commas between them
        #[arg(required = true, value_name = "HOSTS")]
        sides: Vec<String>,
    },
    /// All links are good, and all hosts hear each other
    Heal,
    /// kill -9
    Kill {
        /// Where
        host: String,
        /// What
        #[arg(value_enum, default_value_t = What::Host)]
        what: What,
    },
}

#[derive(Debug, Args)]
struct LinkArgs {
    /// Which host
    host: String,
    /// Packets lost, in percent
    #[arg(long, default_value_t = 0.0, value_name = "PERCENT")]
    loss: f64,
    /// Packets that come twice, in percent
    #[arg(long, default_value_t = 0.0, value_name = "PERCENT")]
    duplicate: f64,
    /// Packets held back for 2 ms, so that later ones overtake them, in percent
    #[arg(long, default_value_t = 0.0, value_name = "PERCENT")]
    reorder: f64,
    /// How long each packet takes, in milliseconds
    #[arg(long, default_value_t = 0.0, value_name = "MS")]
    delay_ms: f64,
    /// Up to so much longer, in milliseconds
    #[arg(long, default_value_t = 0.0, value_name = "MS")]
    jitter_ms: f64,
    /// Which of the host's two links
    #[arg(long, value_enum, default_value_t = Which::Both)]
    port: Which,
    /// Where the random numbers start
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Which {
    /// The kernel's, eth0
    Kernel,
    /// The card's, card0
    Card,
    /// Both
    Both,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// The agent; the coordinator ends with it
    Agent,
    /// The coordinator; the agent ends with it
    Coordinator,
    /// Everything
    Host,
}

impl LinkArgs {
    fn ask(&self) -> Ask {
        let ports = match self.port {
            Which::Kernel => vec![Port::Kernel],
            Which::Card => vec![Port::Card],
            Which::Both => Port::ALL.to_vec(),
        };
        let badness = Badness {
            loss_percent: self.loss,
            duplicate_percent: self.duplicate,
            reorder_percent: self.reorder,
            delay_ms: self.delay_ms,
            jitter_ms: self.jitter_ms,
            seed: self.seed,
        };
        Ask::Link { host: self.host.clone(), ports, badness }
    }
}

impl Fault {
    fn ask(&self) -> Ask {
        match self {
            Fault::Link(link) => link.ask(),
            Fault::Partition { sides } => Ask::Partition {
                sides: sides.iter().map(|s| s.split(',').map(str::to_owned).collect()).collect(),
            },
            Fault::Heal => Ask::Heal,
            Fault::Kill { host, what } => Ask::Kill {
                host: host.clone(),
                target: match what {
                    What::Agent => Target::Agent,
                    What::Coordinator => Target::Coordinator,
                    What::Host => Target::Host,
                },
            },
        }
    }
}

/// Does what the command line says.
#[must_use]
pub fn lab(arguments: &LabArgs) -> ExitCode {
    let name = &arguments.name;
    match &arguments.command {
        Command::Up { hosts } => done(up::up(name, *hosts)),
        Command::Exec(exec) => exec::exec(name, exec),
        Command::Inside(inside) => exec::inside(inside),
        Command::Status { json } => done(status::status(name, *json)),
        Command::Fault(fault) => done(ask(name, &fault.ask())),
        Command::Start { host } => done(ask(name, &Ask::Start { host: host.clone() })),
        Command::Down => done(Lab::find(name).and_then(Lab::down)),
        Command::Init { number, hosts } => done(first_process(*number, *hosts)),
        Command::Splice { near, far, badness } => done(wire([near, far], badness)),
    }
}

fn done(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => fail(&sentence),
    }
}

fn ask(name: &str, ask: &Ask) -> Result<(), String> {
    Lab::find(name)?.call(ask).map(drop)
}

fn first_process(number: u32, hosts: u32) -> Result<(), String> {
    use signal_hook::consts::SIGCHLD;
    let failed = |e: std::io::Error| format!("the host's first process could not begin: {e}");
    let (read, write) = UnixStream::pair().map_err(failed)?;
    signal_hook::low_level::pipe::register(SIGCHLD, write).map_err(failed)?;
    let own = crate::start::own_program().map_err(failed)?;
    let host = Addresses::of(number);
    let (socket, card) = (exec::agent_address().to_string(), format!("{}/16", host.card));
    let options = ["up", "--socket", &socket, "--uplink", Port::Card.link(), "--uplink-address", &card];
    let more = ["--hosts-key", init::KEY_FILE, "--host-address", &host.v4, "--host-address", &host.v6];
    let agent: Vec<_> =
        std::iter::once(own.as_path()).chain(options.into_iter().chain(more).map(Path::new)).collect();
    init::init(number, hosts, &agent, read);
    Ok(())
}

fn wire(links: [&str; 2], badness: &str) -> Result<(), String> {
    let badness = serde_json::from_str(badness).map_err(|e| format!("the wire's badness: {e}"))?;
    splice::splice(links, badness)
}

/// A hidden command of this program.
fn own_command(command: &str, name: &str) -> Result<Vec<PathBuf>, String> {
    let own = crate::start::own_program().map_err(|e| format!("this program's file is not known: {e}"))?;
    Ok(vec![own, "lab".into(), "--name".into(), name.into(), command.into()])
}

fn say(sentence: &str) {
    let _ = writeln!(std::io::stderr(), "ipc-direct: {sentence}");
}
