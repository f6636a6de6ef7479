//! Machines of QEMU that `scripts/guest` has prepared.
//!
//! KVM is not to be had everywhere, so processors are emulated: a guest tests no speed. It ends with the process that
//! started it, however that ends.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use crate::child::Guarded;
use crate::{Failure, Outcome, bins, ensure, fail};

/// QEMU with the kernel and the file system that `make MAKE_TARGET` has left in `target/NAME` (or in
/// `IPC_DIRECT_GUEST_DIR`); `parameters` are for the kernel, whose messages go to the first serial port.
///
/// # Errors
/// When something is missing.
pub fn qemu(name: &str, make_target: &str, parameters: &str) -> Outcome<Command> {
    let directory = std::env::var_os("IPC_DIRECT_GUEST_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").join(name), PathBuf::from);
    for name in ["vmlinuz", "initrd"] {
        let file = directory.join(name);
        ensure(file.exists(), || format!("{} is missing: run `make {make_target}`", file.display()))?;
    }
    let mut command = Command::new(bins::program("setpriv")?);
    command.args(["--pdeathsig", "KILL", "--"]).arg(bins::program("qemu-system-x86_64")?);
    command.args(["-machine", "q35", "-accel", "tcg,thread=multi", "-smp", "1"]);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args(["-append", &format!("console=ttyS0 panic=-1 quiet {parameters}")]);
    command.arg("-kernel").arg(directory.join("vmlinuz"));
    command.arg("-initrd").arg(directory.join("initrd"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    Ok(command)
}

/// Lines of a child's output, as they come.
pub fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let _ = tell.send(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
    });
    told
}

/// The next line that holds `word`, within `bound`; all lines so far go to `heard`.
///
/// # Errors
/// When there is none; with what was heard.
pub fn line_with(
    told: &Receiver<String>,
    word: &str,
    bound: Duration,
    heard: &mut String,
) -> Outcome<String> {
    let deadline = Instant::now() + bound;
    while let Ok(line) = told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        heard.push_str(&line);
        heard.push('\n');
        if line.contains(word) {
            return Ok(line);
        }
    }
    fail(format!("no line with `{word}`; what came:\n{heard}"))
}

/// How long the shell may take for what does not wait.
const SOON: Duration = Duration::from_secs(60);

/// A guest whose init is a shell on a port of virtio.
#[derive(Debug)]
pub struct Guest {
    name: String,
    /// Killed with this value.
    _qemu: Guarded,
    shell: ChildStdin,
    told: Receiver<String>,
    /// Its kernel's messages.
    console: PathBuf,
    /// Numbers the commands.
    commands: u32,
}

impl Guest {
    /// Boots what `command` of [`qemu`] describes; the kernel's messages go to the file `console`.
    ///
    /// # Errors
    /// When QEMU can't be started.
    pub fn boot(name: &str, mut command: Command, console: PathBuf) -> Outcome<Guest> {
        command.arg("-serial").arg(format!("file:{}", console.display()));
        // Not a serial port: QEMU's keeps the last bytes of what comes for itself now and then.
        command.args(["-device", "virtio-serial-pci", "-chardev", "stdio,id=shell,signal=off"]);
        command.args(["-device", "virtserialport,chardev=shell"]);
        let mut qemu = Guarded::spawn(&mut command)?;
        let (Some(shell), Some(output)) = (qemu.stdin(), qemu.stdout()) else {
            return fail("QEMU's standard streams are not piped");
        };
        Ok(Guest { name: name.to_owned(), _qemu: qemu, shell, told: lines(output), console, commands: 0 })
    }

    /// The next line that holds `word`.
    ///
    /// # Errors
    /// When none comes within `bound`; with all that the guest has said, its kernel's messages too.
    pub fn line(&self, word: &str, bound: Duration) -> Outcome<String> {
        self.heard_until(word, bound).map(|heard| heard.lines().last().unwrap_or_default().to_owned())
    }

    /// Runs a command of the guest's shell, in one line; what it printed, and its status.
    fn status_of(&mut self, command: &str, bound: Duration) -> Outcome<(String, i32)> {
        self.commands += 1;
        let mark = format!("=command {} ended with ", self.commands);
        writeln!(self.shell, "{{ {command}; }} </dev/null; echo \"{mark}$?\"")?;
        let heard = self.heard_until(&mark, bound)?;
        let (text, status) = heard.rsplit_once(&mark).unwrap_or_default();
        Ok((text.to_owned(), status.trim_end().parse()?))
    }

    /// Runs a command of the guest's shell, in one line, that must succeed, and returns what it printed.
    ///
    /// # Errors
    /// When it fails, or has not ended within `bound`; as [`Guest::line`].
    pub fn run(&mut self, command: &str, bound: Duration) -> Outcome<String> {
        let (text, status) = self.status_of(command, bound)?;
        ensure(status == 0, || {
            format!("{}: `{command}` ended with {status}:\n{text}{}", self.name, self.kernel())
        })?;
        Ok(text)
    }

    /// Starts a program in the background: `NAME` is the shell's variable with its process id, `/tmp/NAME` what it prints.
    ///
    /// # Errors
    /// As [`Guest::run`].
    pub fn start(&mut self, name: &str, program: &str) -> Outcome {
        self.run(&format!("{program} >/tmp/{name} 2>&1 & {name}=$!"), SOON).map(drop)
    }

    /// Waits for the end of a program that [`Guest::start`] has started, which must succeed; what it printed.
    ///
    /// # Errors
    /// As [`Guest::run`].
    pub fn finish(&mut self, name: &str, bound: Duration) -> Outcome<String> {
        self.run(&format!("wait ${name} && cat /tmp/{name} || ! cat /tmp/{name}"), bound)
    }

    /// Looks until a command succeeds.
    ///
    /// # Errors
    /// As [`Guest::run`]; with what the programs in the background have printed.
    pub fn until(&mut self, command: &str, bound: Duration) -> Outcome {
        let last = bound.as_secs() * 5;
        let look = format!(
            "for i in $(busybox seq {last}); do {command} && break; sleep 0.2; [ $i != {last} ]; done"
        );
        self.run(&format!("{look} || ! busybox tail /tmp/*"), bound * 2).map(drop)
    }

    fn heard_until(&self, word: &str, bound: Duration) -> Outcome<String> {
        let mut heard = String::new();
        line_with(&self.told, word, bound, &mut heard)
            .map_err(|e| Failure(format!("{}: {}\n{}", self.name, e.0, self.kernel())))?;
        Ok(heard)
    }

    fn kernel(&self) -> String {
        let messages = std::fs::read(&self.console).unwrap_or_default();
        format!("its kernel:\n{}", String::from_utf8_lossy(&messages))
    }
}
