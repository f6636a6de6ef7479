//! Starting the coordinator's process, and saying in one sentence why it did not come up.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::time::Duration;

use ring::profile::Profile;
use ring::queue::Kind;
use ring::segment::{FAR_RING_BYTES, RING_BYTES};

use crate::inherit::inherit;
use crate::pci::{PciError, PciId};
use crate::runtime_dir::RuntimeDir;

/// Overrides where the coordinator's program is.
pub const COORDINATOR_VARIABLE: &str = "IPC_DIRECT_COORDINATOR";

/// How many lcores an emulated card has: one that decides and polls, or one that decides and so many less that poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lcores(u32);

/// Lcores of an emulated card, at most: the cores of a large SmartNIC.
const LCORES_MAX: u32 = 16;

/// Not a number of [`Lcores`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an emulated card has 1 to {LCORES_MAX} lcores")]
pub struct NoLcores;

impl Default for Lcores {
    fn default() -> Self {
        Lcores(1)
    }
}

impl FromStr for Lcores {
    type Err = NoLcores;
    fn from_str(text: &str) -> Result<Lcores, NoLcores> {
        let count = text.parse().map_err(|_| NoLcores)?;
        if (1..=LCORES_MAX).contains(&count) { Ok(Lcores(count)) } else { Err(NoLcores) }
    }
}

impl Display for Lcores {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How an emulated card meets other hosts' cards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// The link that is the card's Ethernet port; nobody else's, and up. Needs `CAP_NET_RAW`.
    pub link: String,
    /// The card's own address and network, as in `10.0.0.1/24`.
    pub address: String,
    /// Router to what is beyond.
    pub gateway: Option<Ipv4Addr>,
    /// File with the hosts' key.
    pub key: PathBuf,
    /// Cards to look for where announcing does not reach.
    pub peers: Vec<Ipv4Addr>,
    /// Addresses that reach this host.
    pub host_addresses: Vec<IpAddr>,
    /// What carries connections with other hosts, if anything does.
    pub fabric: Option<Fabric>,
}

/// What carries connections with other hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fabric {
    /// libfabric's provider.
    pub provider: String,
    /// Address of this machine on the network that it uses.
    pub address: IpAddr,
    /// The host's network namespace, as the kernel numbers it.
    pub netns: u64,
}

impl Uplink {
    /// DPDK's name of the port.
    const PORT: &'static str = "net_af_packet0";

    /// The port, for the EAL.
    fn device(&self) -> String {
        format!("--vdev={},iface={}", Self::PORT, self.link)
    }

    /// Options of the coordinator.
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--port".into(), Self::PORT.into()];
        arguments.extend(["--uplink-address".into(), self.address.clone()]);
        arguments.extend(["--hosts-key".into(), self.key.display().to_string()]);
        arguments.extend(self.gateway.iter().flat_map(|g| ["--gateway".into(), g.to_string()]));
        arguments.extend(self.peers.iter().flat_map(|p| ["--peer".into(), p.to_string()]));
        arguments.extend(self.host_addresses.iter().flat_map(|a| ["--host-address".into(), a.to_string()]));
        if let Some(Fabric { provider, address, netns }) = &self.fabric {
            arguments.extend(["--fabric".into(), provider.clone()]);
            arguments.extend(["--fabric-address".into(), address.to_string()]);
            arguments.extend(["--host-netns".into(), netns.to_string()]);
        }
        arguments
    }
}

/// How to boot a card.
#[derive(Clone, Debug)]
pub struct BootOptions {
    /// The coordinator's program; otherwise `IPC_DIRECT_COORDINATOR`, otherwise `nic-coordinator`
    /// beside the running executable.
    pub coordinator: Option<PathBuf>,
    /// Take DPDK's memory from hugepages (they must be free) instead of ordinary pages.
    pub hugepages: bool,
    /// How processes' requests go to an emulated card; to a real one they always go by private rings.
    pub request_queue: Kind,
    /// How many lcores an emulated card has.
    pub lcores: Lcores,
    /// How slow a bus an emulated card imitates.
    pub pcie_profile: Profile,
    /// How long the card may take until it is up.
    pub up_timeout: Duration,
    /// Use this card, on which the coordinator runs already, instead of starting one.
    pub pci: Option<PciId>,
    /// Have an emulated card meet other hosts'.
    pub uplink: Option<Uplink>,
}

impl BootOptions {
    /// Bytes of the rings between hosts. Short ones where an adapter reads and writes by itself, as with all providers but `tcp`: for
    /// that, all rings of a connection stay in memory, used or not.
    #[must_use]
    pub fn far_ring_bytes(&self) -> usize {
        let fabric = self.uplink.as_ref().and_then(|uplink| uplink.fabric.as_ref());
        if fabric.is_some_and(|fabric| fabric.provider == "tcp") { FAR_RING_BYTES } else { RING_BYTES }
    }
}

impl Default for BootOptions {
    fn default() -> Self {
        BootOptions {
            coordinator: None,
            hugepages: false,
            request_queue: Kind::default(),
            lcores: Lcores::default(),
            pcie_profile: Profile::NONE,
            up_timeout: Duration::from_secs(10),
            pci: None,
            uplink: None,
        }
    }
}

/// Why no card came up.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The real card.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// No such program.
    #[error(
        "the coordinator's program {0} does not exist: build it (make build) or set IPC_DIRECT_COORDINATOR"
    )]
    Missing(PathBuf),
    /// It could not be executed.
    #[error("the coordinator {0} could not be started: {1}")]
    Start(PathBuf, #[source] io::Error),
    /// The loader did not find DPDK.
    #[error("the coordinator needs DPDK's shared libraries: install them (apt-get install libdpdk-dev): {0}")]
    NoDpdk(String),
    /// None are free, or they are not accessible.
    #[error(
        "no hugepages for the card: reserve some (dpdk-hugepages.py -p 2M --setup 128M) or leave --hugepages out: {0}"
    )]
    NoHugepages(String),
    /// It ended before it was up.
    #[error("the coordinator ended while starting ({0}); its last words: {1}")]
    Ended(ExitStatus, String),
    /// It did not come up in time.
    #[error("the coordinator was not up after {0:?}; its last words: {1}")]
    Late(Duration, String),
    /// It talks another bus version.
    #[error("the coordinator speaks another version of the bus: use files of one release")]
    Version,
    /// It refused the agent's own function.
    #[error("the coordinator could not map the agent's own function; its last words: {0}")]
    NoFunction(String),
    /// Out of descriptors or memory.
    #[error("the emulated card could not be set up: {0}")]
    Io(#[from] io::Error),
}

/// Where the coordinator's program is, by option, environment, or place of the running executable.
///
/// # Errors
/// [`BootError::Missing`] names the place where it should be.
pub fn find_coordinator(option: Option<&Path>) -> Result<PathBuf, BootError> {
    let variable = std::env::var_os(COORDINATOR_VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from);
    let path = match option.map(Path::to_path_buf).or(variable) {
        Some(path) => path,
        None => std::env::current_exe()?.with_file_name("nic-coordinator"),
    };
    if path.is_file() { Ok(path) } else { Err(BootError::Missing(path)) }
}

/// EAL options for a machine without NIC, and, unless with `hugepages`, without hugepages and root; several
/// instances run side by side, because none shares configuration files.
fn eal_arguments(options: &BootOptions, runtime: &RuntimeDir) -> Vec<String> {
    let port = options.uplink.as_ref().map_or("--vdev=net_null0,no-rx=1".into(), Uplink::device);
    let mut arguments: Vec<String> = vec!["--no-pci".into(), port];
    if options.hugepages {
        arguments.push("--in-memory".into());
    } else {
        arguments.extend(["--no-huge", "-m", "64", "--no-shconf"].map(String::from));
    }
    arguments.push(format!("--file-prefix={}", runtime.prefix()));
    // On CPUs that we may use: EAL would otherwise start a thread on each. They don't stay there, as the card sleeps.
    let cpus = allowed_cpus();
    let places = (0..options.lcores.0).zip(cpus.iter().cycle()).map(|(lcore, cpu)| format!("{lcore}@{cpu}"));
    arguments.push(format!("--lcores={}", places.collect::<Vec<_>>().join(",")));
    if !runtime.usable() {
        arguments.push("--no-telemetry".into());
    }
    arguments
}

/// The processors that we may run on; never none.
pub(crate) fn allowed_cpus() -> Vec<usize> {
    let allowed = rustix::thread::sched_getaffinity(None).ok();
    let all = 0..rustix::thread::CpuSet::MAX_CPU;
    let cpus: Vec<usize> = all.filter(|cpu| allowed.as_ref().is_some_and(|set| set.is_set(*cpu))).collect();
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// Starts the program with its end of the bus.
pub(crate) fn spawn(
    program: &Path,
    options: &BootOptions,
    runtime: &RuntimeDir,
    bus: OwnedFd,
) -> Result<Child, BootError> {
    let mut command = Command::new(program);
    let number = inherit(&mut command, bus);
    command
        .args(eal_arguments(options, runtime))
        .args(["--", "--bus-fd", &number.to_string(), "--request-queue", options.request_queue.name()])
        .args(["--pcie-profile", &options.pcie_profile.to_string()])
        .args(options.uplink.iter().flat_map(Uplink::arguments))
        // Of libfabric's providers the chosen one is enough; libpsm, which comes with others, would catch fatal signals and leave files.
        .envs(options.uplink.iter().flat_map(|u| &u.fabric).map(|f| ("FI_PROVIDER", &f.provider)))
        .env("IPATH_NO_BACKTRACE", "1")
        .env("HFI_NO_BACKTRACE", "1")
        // Cached by libfabric, registrations of memory would outlive their connections, and with them the keys that other hosts have.
        .env("FI_MR_CACHE_MAX_COUNT", "0")
        // The coordinator must not run under the shim that it serves.
        .env_remove("LD_PRELOAD")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // Ctrl-C in the terminal is for the agent, which then tells the coordinator.
        .process_group(0)
        .spawn()
        .map_err(|e| BootError::Start(program.to_path_buf(), e))
}
