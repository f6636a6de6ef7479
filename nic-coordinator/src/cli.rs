//! The command line, in DPDK's convention: `nic-coordinator [EAL options] -- [options]`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use ring::profile::Profile;
use ring::queue::Kind;

const EAL_HELP: &str = "\
EAL options come first, then --, then the options above. Without a NIC, hugepages or root:
  nic-coordinator --no-pci --no-huge -m 64 --no-shconf --vdev=net_null0,no-rx=1 -- --bus-fd 3
On a card, whose functions' windows and whose view of the host's memory are files:
  nic-coordinator -a 03:00.0 -- --windows DIR --host-memory FILE --idle poll --port 03:00.0
With several lcores (--lcores, -l; without either, all cores) the first decides, the others share the processes.
`nic-coordinator --no-pci --help --` lists the EAL's own options.";

/// What to do when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Idle {
    /// Spin for a while, then sleep until a doorbell: the emulated card.
    Sleep,
    /// Poll for ever: a card with cores of its own.
    Poll,
    /// Spin for a while, then look every 0.1 ms: a card's bus, which has no doorbell, on cores that others want.
    Nap,
}

/// The IPC-Direct coordinator: decides who talks to whom. The host agent starts it as an emulated card; on a card it is a service.
#[derive(Debug, Parser)]
#[command(name = "nic-coordinator", version, override_usage = "nic-coordinator [EAL options] -- [options]", after_help = EAL_HELP)]
pub struct Options {
    /// Inherited descriptor of the emulated bus, a SOCK_SEQPACKET socket
    #[arg(long, value_name = "N")]
    pub bus_fd: Option<i32>,
    /// A card's bus: directory with function-0, function-1, ..., the card's own side of the functions' BARs
    #[arg(long, value_name = "DIR", requires = "host_memory", conflicts_with = "bus_fd")]
    pub windows: Option<PathBuf>,
    /// A card's bus: the host's memory, in which a bus address is an offset
    #[arg(long, value_name = "FILE", requires = "windows")]
    pub host_memory: Option<PathBuf>,
    /// What to do when there is nothing to do
    #[arg(long, value_enum, default_value = "sleep")]
    pub idle: Idle,
    /// With --idle sleep or nap: microseconds to look for work before sleeping
    #[arg(long, value_name = "US", default_value_t = 50, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub spin_us: u64,
    /// How processes' requests come, as the agent says: per-process, shared (for processes that trust each other) or hybrid; a card's bus: per-process
    #[arg(long, value_name = "KIND", default_value_t = Kind::PerProcess)]
    pub request_queue: Kind,
    /// On the emulated bus: be as slow as a real one: none, bluefield2, bluefield3 or custom, with other figures as in bluefield2,posted-write-ns=600
    #[arg(long, value_name = "BUS", default_value_t)]
    pub pcie_profile: Profile,
    /// Ethernet port to poll, by DPDK's name [default: net_null0 if there is one]
    #[arg(long, value_name = "NAME")]
    pub port: Option<String>,
    /// Meet other hosts' coordinators over the port: its own address and network, as in 10.0.0.1/24
    #[arg(long, value_name = "ADDRESS/BITS", requires = "hosts_key")]
    pub uplink_address: Option<String>,
    /// File with the key that these hosts share: 64 hexadecimal digits, readable by its owner alone
    #[arg(long, value_name = "FILE", requires = "uplink_address")]
    pub hosts_key: Option<PathBuf>,
    /// Router to what is beyond that network
    #[arg(long, value_name = "ADDRESS", requires = "uplink_address")]
    pub gateway: Option<Ipv4Addr>,
    /// Card address of a host to look for, where announcing on the local network does not reach it; may be given several times
    #[arg(long, value_name = "ADDRESS", requires = "uplink_address")]
    pub peer: Vec<Ipv4Addr>,
    /// Address that reaches this card's host; may be given several times
    #[arg(long, value_name = "ADDRESS", requires = "uplink_address")]
    pub host_address: Vec<IpAddr>,
    /// Carry connections with other hosts over this libfabric provider, as tcp or verbs
    #[arg(long, value_name = "NAME", requires_all = ["uplink_address", "fabric_address", "host_netns"], conflicts_with = "windows")]
    pub fabric: Option<String>,
    /// Address of this machine, on the network that the provider uses
    #[arg(long, value_name = "ADDRESS", requires = "fabric")]
    pub fabric_address: Option<IpAddr>,
    /// The host's own network namespace, as the agent names it: who is in another one does not reach other hosts
    #[arg(long, value_name = "N", requires = "fabric")]
    pub host_netns: Option<u64>,
    /// What to log to stderr: off, error, warn, info, debug or a filter as in RUST_LOG, which it overrides
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Run, with these arguments for the EAL (program name first).
    Run(Vec<String>, Box<Options>),
    /// Print this and end.
    Print(String),
}

/// Takes the command line apart.
///
/// # Errors
/// One sentence that says what is wrong.
pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Command, String> {
    let mut eal: Vec<String> = args.into_iter().collect();
    let ours = match eal.iter().position(|arg| arg == "--") {
        Some(at) => {
            let ours = eal.split_off(at);
            ours.into_iter().skip(1).collect()
        }
        None => {
            // Not DPDK's convention, but what everybody tries first.
            let known = |arg: &String| ["-h", "--help", "-V", "--version"].contains(&arg.as_str());
            eal.iter().filter(|arg| known(arg)).cloned().collect::<Vec<_>>()
        }
    };
    let name = std::iter::once("nic-coordinator".to_owned());
    match Options::try_parse_from(name.chain(ours)) {
        // The others need memory that all hosts' processes and the card share, which a card's bus does not bring (SPEC 12.9).
        Ok(Options { windows: Some(_), request_queue, .. }) if request_queue != Kind::PerProcess => {
            Err(format!(
                "--request-queue {request_queue} is for the emulated bus, a card's is per-process; see nic-coordinator --help"
            ))
        }
        Ok(Options { windows: Some(_), pcie_profile, .. }) if !pcie_profile.is_none() => {
            Err("--pcie-profile is for the emulated bus; see nic-coordinator --help".into())
        }
        Ok(options) => Ok(Command::Run(eal, Box::new(options))),
        Err(error) if !error.use_stderr() => Ok(Command::Print(error.to_string())),
        Err(error) => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            Err(format!("{}; see nic-coordinator --help", first.trim_start_matches("error: ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_eal_gets_what_stands_before_the_dashes() {
        let Ok(Command::Run(eal, options)) =
            parse(words("prog --no-pci -m 64 -- --bus-fd 3 --idle poll --request-queue hybrid"))
        else {
            panic!("a good line is refused");
        };
        assert_eq!(eal, words("prog --no-pci -m 64"));
        assert_eq!(options.request_queue, Kind::Hybrid);
        assert_eq!((options.bus_fd, options.idle, options.spin_us), (Some(3), Idle::Poll, 50));
    }

    #[test]
    fn help_is_ours_unless_the_dashes_say_otherwise() {
        assert!(matches!(parse(words("prog --help")), Ok(Command::Print(text)) if text.contains("--bus-fd")));
        assert!(matches!(parse(words("prog --help --")), Ok(Command::Run(..))));
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        let half = ["prog -- --windows d", "prog -- --windows d --host-memory f --bus-fd 3"];
        let nonsense = ["prog -- --nonsense", "prog -- --bus-fd x", "prog -- --idle never", "prog -- stray"];
        let queues = [
            "prog -- --request-queue x",
            "prog -- --windows d --host-memory f --request-queue shared",
            "prog -- --windows d --host-memory f --request-queue hybrid",
        ];
        for line in nonsense.into_iter().chain(half).chain(queues) {
            let message = parse(words(line)).unwrap_err();
            assert!(!message.contains('\n') && message.ends_with("see nic-coordinator --help"), "{message}");
        }
    }
}
