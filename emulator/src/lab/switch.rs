//! The switch between the hosts: a bridge for each side of a partition, two links to each host, and what is bad about them.

use std::io::{self, BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde::{Deserialize, Serialize};

use super::iproute::ip;
use super::splice::READY;
use super::wire::Badness;

/// A link of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Port {
    /// The kernel's, `eth0`.
    Kernel,
    /// The card's, `card0`.
    Card,
}

impl Port {
    /// Both of them.
    pub const ALL: [Port; 2] = [Port::Kernel, Port::Card];

    /// What it is called in the host.
    #[must_use]
    pub fn link(self) -> &'static str {
        match self {
            Port::Kernel => "eth0",
            Port::Card => "card0",
        }
    }

    fn letter(self) -> char {
        match self {
            Port::Kernel => 'e',
            Port::Card => 'c',
        }
    }
}

/// The process between a bad link and its bridge; ends with this value.
#[derive(Debug)]
struct Bad {
    badness: Badness,
    process: Child,
}

impl Drop for Bad {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One link, seen from the switch.
#[derive(Debug)]
struct Plug {
    host: u32,
    port: Port,
    /// Which bridge it is in.
    side: u32,
    bad: Option<Bad>,
}

impl Plug {
    fn name(&self) -> String {
        format!("{}{}", self.port.letter(), self.host)
    }

    /// The same each time that the host is started: its neighbours remember it. Locally administered (IEEE 802).
    fn ethernet_address(&self) -> String {
        let [_, _, high, low] = self.host.to_be_bytes();
        format!("02:69:70:{:02x}:{high:02x}:{low:02x}", self.port as u8)
    }

    /// What is in the bridge: the link, or the far end of the bad wire.
    fn bridged(&self) -> String {
        if self.bad.is_some() { format!("{}-far", self.name()) } else { self.name() }
    }
}

/// The switch. It is in the lab's own network namespace, and ends with that.
#[derive(Debug)]
pub(crate) struct Switch {
    plugs: Vec<Plug>,
    bridges: u32,
    /// The command line that becomes [`super::splice::splice`], to be completed with links and badness.
    splice: Vec<PathBuf>,
}

impl Switch {
    pub(crate) fn new(splice: Vec<PathBuf>) -> Result<Switch, String> {
        let mut switch = Switch { plugs: Vec::new(), bridges: 0, splice };
        switch.need_bridges(1)?;
        Ok(switch)
    }

    fn need_bridges(&mut self, count: u32) -> Result<(), String> {
        while self.bridges < count {
            let bridge = self.bridges;
            // The switch itself says nothing: no IPv6 of its own, no spanning tree, no wait before it forwards.
            let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
            ip(&format!(
                "link add name br{bridge} type bridge forward_delay 0 mcast_snooping 0\nlink set br{bridge} up\n"
            ))?;
            self.bridges += 1;
        }
        Ok(())
    }

    /// Makes the links of `host`, whose first process is `pid`.
    pub(crate) fn plug(&mut self, host: u32, pid: u32) -> Result<(), String> {
        self.unplug(host);
        for port in Port::ALL {
            let plug = Plug { host, port, side: 0, bad: None };
            let (name, inside, address) = (plug.name(), port.link(), plug.ethernet_address());
            ip(&format!(
                "link add name {name} type veth peer name {inside} address {address} netns {pid}\n\
                 link set {name} master br0\nlink set {name} up\n"
            ))?;
            self.plugs.push(plug);
        }
        Ok(())
    }

    /// Removes the links of `host`, which may be gone by themselves.
    pub(crate) fn unplug(&mut self, host: u32) {
        let (gone, kept) = std::mem::take(&mut self.plugs).into_iter().partition(|p| p.host == host);
        self.plugs = kept;
        for plug in gone {
            let name = plug.name();
            let Plug { bad, .. } = plug;
            if bad.is_some() {
                drop(bad);
                let _ = ip(&format!("link del {name}-far\n"));
            }
            let _ = ip(&format!("link del {name}\n"));
        }
    }

    /// What is bad about a link.
    pub(crate) fn badness(&self, host: u32, port: Port) -> Badness {
        let plug = self.plugs.iter().find(|p| (p.host, p.port) == (host, port));
        plug.and_then(|p| p.bad.as_ref()).map(|b| b.badness).unwrap_or_default()
    }

    /// Makes a link as bad as that, or good again.
    pub(crate) fn set_badness(&mut self, host: u32, port: Port, badness: Badness) -> Result<(), String> {
        let command = self.splice.clone();
        let Some(plug) = self.plugs.iter_mut().find(|p| (p.host, p.port) == (host, port)) else {
            return Ok(());
        };
        let (name, bridge) = (plug.name(), format!("br{}", plug.side));
        if plug.bad.take().is_some() {
            ip(&format!("link del {name}-far\nlink set {name} master {bridge}\n"))?;
        }
        if badness.is_none() {
            return Ok(());
        }
        let (near, far) = (format!("{name}-near"), format!("{name}-far"));
        ip(&format!(
            "link add name {near} type veth peer name {far}\nlink set {near} up\nlink set {far} up\n"
        ))?;
        let process = start_splice(&command, [&name, &near], badness)?;
        plug.bad = Some(Bad { badness, process });
        ip(&format!("link set {name} nomaster\nlink set {far} master {bridge}\n"))
    }

    /// Cuts the network into sides that do not hear each other. `side` says which side a host is on.
    pub(crate) fn partition(&mut self, side: impl Fn(u32) -> u32) -> Result<(), String> {
        let sides = self.plugs.iter().map(|p| side(p.host) + 1).max().unwrap_or(1);
        self.need_bridges(sides)?;
        for plug in &mut self.plugs {
            plug.side = side(plug.host);
            ip(&format!("link set {} master br{}\n", plug.bridged(), plug.side))?;
        }
        Ok(())
    }

    /// Which side of a partition a host is on.
    pub(crate) fn side(&self, host: u32) -> u32 {
        self.plugs.iter().find(|p| p.host == host).map_or(0, |p| p.side)
    }
}

/// Starts the process that is the wire, and waits until it is one.
fn start_splice(command: &[PathBuf], links: [&String; 2], badness: Badness) -> Result<Child, String> {
    let failed = |e: io::Error| format!("the bad wire could not be started: {e}");
    let [program, arguments @ ..] = command else { return Err("no bad wire to start".into()) };
    let badness = serde_json::to_string(&badness).map_err(|e| failed(e.into()))?;
    let mut command = Command::new(program);
    command.args(arguments).args(links).arg(badness);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut process = command.spawn().map_err(failed)?;
    let mut line = String::new();
    if let Some(pipe) = process.stdout.take() {
        BufReader::new(pipe).read_line(&mut line).map_err(failed)?;
    }
    if line.trim() == READY {
        return Ok(process);
    }
    let _ = process.kill().and_then(|()| process.wait());
    Err("the bad wire has ended while starting: see its message above".into())
}
