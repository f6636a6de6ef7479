//! A card behind a real PCI bus: QEMU's ivshmem devices are its functions, the coordinator outside of the guest is the card,
//! and in the guest an agent as root serves redis and its clients, ordinary users' processes.
//!
//! The windows are the devices' BARs. Host memory is the guest's own: the guest's RAM is a file that the coordinator maps,
//! in which a physical address is an offset, as a card's DMA engine sees it. Nothing else joins the two.
//!
//! `make test-pci` prepares the guest. `IPC_DIRECT_COORDINATOR` names another coordinator, as for `ipc-direct up`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use harness::child::Guarded;
use harness::counters::Report;
use harness::scratch::Scratch;
use harness::suite::{self, Test};
use harness::{Failure, Outcome, bins, ensure, fail, guest};
use rustix::process::Signal;

const TESTS: &[Test] = &[("redis_behind_pci", redis_behind_pci)];

/// Functions of the card, the agent's included.
const FUNCTIONS: u32 = 8;
/// A BAR.
const BAR_BYTES: u64 = 1 << 20;
const RAM_BYTES: u64 = 320 << 20;
/// Everything in the guest takes 10 to 30 s under software emulation on an idle machine.
const BOUND: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    suite::main(TESTS)
}

/// The card's own side: windows, and the host's memory.
struct Memory {
    windows: PathBuf,
    ram: Scratch,
}

impl Memory {
    fn new() -> Outcome<Memory> {
        let ram = Scratch::new()?;
        let windows = ram.path().join("windows");
        fs::create_dir(&windows)?;
        for number in 0..FUNCTIONS {
            File::create(windows.join(format!("function-{number}")))?.set_len(BAR_BYTES)?;
        }
        File::create(ram.path().join("ram"))?.set_len(RAM_BYTES)?;
        Ok(Memory { windows, ram })
    }

    fn ram(&self) -> PathBuf {
        self.ram.path().join("ram")
    }
}

fn card(memory: &Memory) -> Outcome<Guarded> {
    let own = bins::product_dir()?.join("nic-coordinator");
    let program = std::env::var_os("IPC_DIRECT_COORDINATOR").map_or(own, PathBuf::from);
    let mut command = Command::new(program);
    command.args(["--no-pci", "--no-huge", "-m", "64", "--no-shconf", "--vdev=net_null0,no-rx=1"]);
    command.arg(format!("--file-prefix=ipc-direct-{}-pci", std::process::id()));
    command.arg("--").arg("--windows").arg(&memory.windows).arg("--host-memory").arg(memory.ram());
    command.args(["--idle", "nap", "--log", "info"]);
    Guarded::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()))
}

fn guest(memory: &Memory) -> Outcome<Guarded> {
    let mut command = guest::qemu("guest", "test-pci", "")?;
    command.args(["-machine", "memory-backend=ram", "-cpu", "qemu64", "-serial", "stdio"]);
    command.args(["-m", &format!("{}M", RAM_BYTES >> 20)]);
    let file = |id: &str, path: &Path, bytes: u64| {
        format!("memory-backend-file,id={id},share=on,mem-path={},size={bytes}", path.display())
    };
    command.args(["-object", &file("ram", &memory.ram(), RAM_BYTES)]);
    for number in 0..FUNCTIONS {
        let path = memory.windows.join(format!("function-{number}"));
        let id = format!("function{number}");
        command.args(["-object", &file(&id, &path, BAR_BYTES)]);
        command.args(["-device", &format!("ivshmem-plain,memdev={id},addr={:#x}", 0x10 + number)]);
    }
    Guarded::spawn(&mut command)
}

/// The next line that holds `word`, within [`BOUND`]; all lines so far go to `heard`.
fn line_with(told: &Receiver<String>, word: &str, heard: &mut String) -> Outcome<String> {
    guest::line_with(told, word, BOUND, heard)
}

fn redis_behind_pci() -> Outcome {
    let memory = Memory::new()?;
    let mut card = card(&memory)?;
    let Some(log) = card.stderr() else { return fail("the coordinator's log is not piped") };
    let log = guest::lines(log);
    let mut heard = String::new();
    line_with(&log, "waiting for an agent", &mut heard)?;

    let mut guest = guest(&memory)?;
    let Some(console) = guest.stdout() else { return fail("the guest's console is not piped") };
    let console = guest::lines(console);
    let up = line_with(&console, "pci: ", &mut heard)?;
    ensure(up.contains("coordinator on the card"), || {
        format!("no agent in the guest:\n{heard}\n{}", rest(&console, &log))
    })?;
    // The one outside answered, and none in the guest.
    let first = epoch(&log, &mut heard)?;
    ensure(up.contains(&first), || format!("`{up}` is not the epoch {first} of the coordinator"))?;

    let ping = line_with(&console, "pci: ", &mut heard)?;
    ensure(ping.ends_with("ping PONG"), || {
        format!("no answer from redis:\n{heard}\n{}", rest(&console, &log))
    })?;
    line_with(&console, "pci: benchmark", &mut heard)?;
    for test in ["SET", "GET"] {
        line_with(&console, &format!("{test}: "), &mut heard)?;
    }
    // Each needs a function of its own, and there are fewer.
    let incremented = line_with(&console, "pci: incremented", &mut heard)?;
    ensure(incremented.ends_with("10 in 10"), || format!("{incremented}\n{heard}"))?;
    let report = line_with(&console, "pci: report", &mut heard)?;
    let again = line_with(&console, "pci: again", &mut heard)?;
    let second = epoch(&log, &mut heard)?;
    ensure(first != second && again.contains(&second), || {
        format!("`{again}` is not the epoch {second} of the coordinator\n{heard}")
    })?;
    line_with(&console, "pci: end", &mut heard)?;
    ensure(!heard.contains("window open to all"), || "a user can open a window by himself".to_owned())?;
    let text = report.split_once("report ").map_or("", |(_, json)| json);
    let report: Report =
        serde_json::from_str(text).map_err(|e| Failure(format!("no report ({e}): {text}")))?;
    let totals = report.totals;
    // Who asked before redis listened was refused by the kernel.
    let through_kernel = totals.kernel.tx_ops + totals.kernel.rx_ops;
    ensure(totals.user.tx_bytes > 100_000 && totals.user.connections > 20 && through_kernel == 0, || {
        format!("not all went through user space: {totals:?}\n{heard}")
    })?;
    guest.wait(BOUND)?;
    card.signal(Signal::TERM);
    let status = card.wait(Duration::from_secs(20))?;
    ensure(status.success(), || format!("the coordinator ended with {status}\n{}", rest(&console, &log)))
}

/// The coordinator's epoch for the next agent, as its log has it.
fn epoch(log: &Receiver<String>, heard: &mut String) -> Outcome<String> {
    let line = line_with(log, "up: epoch", heard)?;
    let epoch = line.split("up: epoch ").nth(1).and_then(|rest| rest.split(',').next());
    Ok(epoch.unwrap_or("-").to_owned())
}

/// What else there was to hear.
fn rest(console: &Receiver<String>, log: &Receiver<String>) -> String {
    let soon = Duration::from_secs(5);
    let mut text = String::new();
    for told in [console, log] {
        while let Ok(line) = told.recv_timeout(soon) {
            text.push_str(&line);
            text.push('\n');
        }
    }
    text
}
