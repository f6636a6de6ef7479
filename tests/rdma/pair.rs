//! The two guests. Tests share a pair, since its start takes longer than what they do; after one that fails, the next one
//! boots another.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use harness::guest::{self, Guest};
use harness::scratch::Scratch;
use harness::{Outcome, ensure};

/// Longest time of a step. Each takes some seconds under software emulation on an idle machine.
pub const BOUND: Duration = Duration::from_secs(120);
const RAM_MIB: u32 = 384;

/// The pair that runs.
static RUNNING: Mutex<Option<Pair>> = Mutex::new(None);

/// Runs a test on the pair of guests, which stays if that went well.
///
/// # Errors
/// Those of the test, and when the guests do not come up.
pub fn on_pair(test: impl FnOnce(&mut Pair) -> Outcome) -> Outcome {
    let mut pair = running()?;
    test(&mut pair)?;
    *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = Some(pair);
    Ok(())
}

/// The pair that runs, or one that is booted now: for a test that does not leave it as it was.
///
/// # Errors
/// When the guests do not come up.
pub fn running() -> Outcome<Pair> {
    take_running().map_or_else(Pair::boot, Ok)
}

/// The pair that runs, if there is one.
#[must_use]
pub fn take_running() -> Option<Pair> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Two hosts that run; dropped, they are killed.
#[derive(Debug)]
pub struct Pair {
    /// 10.7.0.1.
    pub first: Guest,
    /// 10.7.0.2.
    pub second: Guest,
    _sockets: Scratch,
}

impl Pair {
    /// Boots both.
    ///
    /// # Errors
    /// When one does not come up, or has no soft-RoCE.
    fn boot() -> Outcome<Pair> {
        let scratch = Scratch::new()?;
        let first = boot(&scratch, 1, 2)?;
        let second = boot(&scratch, 2, 1)?;
        let mut pair = Pair { first, second, _sockets: scratch };
        for host in [&mut pair.first, &mut pair.second] {
            host.line("guest: ready", BOUND)?;
            let links = host.run("rdma link", BOUND)?;
            ensure(links.contains("state ACTIVE"), || format!("no soft-RoCE: {links}"))?;
        }
        Ok(pair)
    }
}

/// Boots one host of two. They have two Ethernets in common, each a pair of datagram sockets: the kernel's, with soft-RoCE on it,
/// and the cards'.
fn boot(scratch: &Scratch, host: u32, other: u32) -> Outcome<Guest> {
    let mut command = guest::qemu("guest-rdma", "test-rdma", &format!("HOST={host}"))?;
    // DPDK is compiled for processors of this generation and later.
    command.args(["-cpu", "Nehalem", "-m", &format!("{RAM_MIB}M")]);
    for net in ["eth0", "eth1"] {
        let socket = |host: u32| scratch.path().join(format!("{net}-{host}")).display().to_string();
        let (ours, theirs) = (socket(host), socket(other));
        command.args([
            "-netdev",
            &format!(
                "dgram,id={net},local.type=unix,local.path={ours},remote.type=unix,remote.path={theirs}"
            ),
        ]);
        let mac = format!("52:54:00:00:{}:{host:02x}", &net[3..].repeat(2));
        command.args(["-device", &format!("virtio-net-pci,netdev={net},mac={mac},romfile=")]);
    }
    Guest::boot(&format!("host {host}"), command, scratch.path().join(format!("console-{host}")))
}
