//! Boots the real program on an emulated bus, and plays agent and processes.
//!
//! `unsafe`: the mappings, and what has to happen between fork and exec.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering as O};
use std::time::{Duration, Instant};

use memmap2::{MmapOptions, MmapRaw};
use ring::atomic::{AtomicU64, Ordering, fence};
use ring::bus::BusMsg;
use ring::msg::{Completion, Request};
use ring::queue::{COMMON_BYTES, CommonMemory, Key, Kind, Requests};
use ring::shared::Region;
use ring::window::{Consumer, HOST_BYTES, HostMemory, WINDOW_BYTES, Window};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::{FdFlags, IoSlice, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    recv, sendmsg, socketpair,
};

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

static INSTANCES: AtomicU32 = AtomicU32::new(0);

/// The program, and our end of its bus.
pub struct Card {
    pub child: Child,
    bus: Option<OwnedFd>,
    doorbell: OwnedFd,
    kind: Kind,
    common: Option<OwnedFd>,
    prefix: String,
    pub epoch: u32,
}

pub fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_nic-coordinator"))
}

fn first_cpu() -> usize {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap()
}

fn wait_readable(fd: BorrowedFd<'_>, what: &str) {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    assert_eq!(poll(&mut fds, Some(&timeout)), Ok(1), "waited in vain for {what}");
}

impl Card {
    /// Starts the program with these of its own options, and the request queue and lcores of the environment, as everything that is
    /// tested over all of them, and waits until it is up.
    pub fn boot(options: &[&str], vdev: &str) -> Card {
        let kind = std::env::var("IPC_DIRECT_REQUEST_QUEUE").map(|text| text.parse().unwrap());
        Card::boot_with(kind.unwrap_or_default(), options, vdev)
    }

    /// As [`Card::boot`], with this request queue.
    pub fn boot_with(kind: Kind, options: &[&str], vdev: &str) -> Card {
        let lcores = std::env::var("IPC_DIRECT_LCORES").map(|text| text.parse().unwrap());
        Card::boot_on(lcores.unwrap_or(1), kind, options, vdev)
    }

    /// As [`Card::boot_with`], with so many lcores, all on one CPU of ours: unless they poll for ever, they don't stay there.
    pub fn boot_on(lcores: u32, kind: Kind, options: &[&str], vdev: &str) -> Card {
        let flags = SocketFlags::CLOEXEC;
        let (bus, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let doorbell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let prefix = format!("ipcd-test-{}-{}", std::process::id(), INSTANCES.fetch_add(1, O::Relaxed));
        let mut command = program();
        command.args(["--no-pci", "--no-huge", "-m", "64", "--no-shconf"]);
        command.args([format!("--file-prefix={prefix}"), format!("--vdev={vdev}")]);
        command.arg(format!("--lcores=(0-{})@{}", lcores - 1, first_cpu()));
        command.args(["--", "--bus-fd", &theirs.as_raw_fd().to_string()]);
        command.args(["--request-queue", kind.name()]).args(options);
        command.stdin(Stdio::null()).stderr(Stdio::inherit());
        let number = theirs.as_raw_fd();
        // SAFETY: one system call on an open descriptor; nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(move || {
                fcntl_setfd(BorrowedFd::borrow_raw(number), FdFlags::empty()).map_err(Into::into)
            });
        }
        let child = command.spawn().expect("the program starts");
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        let common = (kind != Kind::PerProcess).then(|| memory(COMMON_BYTES, seals));
        let (_map, region) = common.as_ref().map(|fd| map(fd, COMMON_BYTES)).unzip();
        region.and_then(CommonMemory::over).into_iter().for_each(CommonMemory::format);
        let mut card = Card { child, bus: Some(bus), doorbell, kind, common, prefix, epoch: 0 };
        let shared: Vec<_> =
            [Some(&card.doorbell), card.common.as_ref()].into_iter().flatten().map(AsFd::as_fd).collect();
        card.send(BusMsg::Hello, &shared);
        let BusMsg::Up { epoch } = card.receive() else { panic!("no Up") };
        card.epoch = epoch;
        card
    }

    fn bus(&self) -> BorrowedFd<'_> {
        self.bus.as_ref().expect("not hung up").as_fd()
    }

    pub fn send(&self, message: BusMsg, fds: &[BorrowedFd<'_>]) {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        sendmsg(self.bus(), &[IoSlice::new(&message.to_wire())], &mut control, SendFlags::NOSIGNAL).unwrap();
    }

    pub fn receive(&self) -> BusMsg {
        wait_readable(self.bus(), "a message on the bus");
        let mut bytes = [0; 64];
        let (n, _) = recv(self.bus(), &mut bytes[..], RecvFlags::empty()).unwrap();
        assert_ne!(n, 0, "the program hung up");
        BusMsg::from_wire(&bytes[..n]).unwrap()
    }

    /// Maps a fresh function.
    pub fn function(&self, number: u32) -> Process {
        let (process, fds) = Process::new(number, self);
        self.send(BusMsg::Map { function: number }, &fds.each_ref().map(AsFd::as_fd));
        assert_eq!(self.receive(), BusMsg::Mapped { function: number });
        process
    }

    pub fn hang_up(&mut self) {
        self.bus = None;
    }

    /// Waits for the end of the program and checks that it left nothing.
    pub fn ended(mut self) -> ExitStatus {
        let since = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(since.elapsed() < PATIENCE, "the program does not end");
            std::thread::sleep(Duration::from_millis(2));
        };
        assert!(!self.runtime_dir().exists(), "{} is left", self.runtime_dir().display());
        for dir in ["/dev/shm", "/tmp"] {
            for entry in std::fs::read_dir(dir).unwrap() {
                let name = entry.unwrap().file_name();
                assert!(!name.to_string_lossy().contains(&self.prefix), "{dir}/{name:?} is left");
            }
        }
        status
    }

    pub fn runtime_dir(&self) -> PathBuf {
        let base = if rustix::process::getuid().is_root() {
            PathBuf::from("/var/run")
        } else {
            std::env::var_os("XDG_RUNTIME_DIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from)
        };
        base.join("dpdk").join(&self.prefix)
    }

    /// Asks DPDK's telemetry socket.
    pub fn telemetry(&self, command: &str) -> String {
        use rustix::net::{SocketAddrUnix, connect, send, socket_with};
        let address = SocketAddrUnix::new(self.runtime_dir().join("dpdk_telemetry.v2")).unwrap();
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        connect(&socket, &address).unwrap();
        let mut bytes = [0; 32 * 1024];
        let mut answer = || {
            wait_readable(socket.as_fd(), "telemetry");
            let (n, _) = recv(&socket, &mut bytes[..], RecvFlags::empty()).unwrap();
            String::from_utf8_lossy(&bytes[..n]).into_owned()
        };
        answer();
        send(&socket, command.as_bytes(), SendFlags::NOSIGNAL).unwrap();
        answer()
    }

    /// A counter of `/ipc_direct/stats`.
    pub fn counter(&self, name: &str) -> u64 {
        let text = self.telemetry("/ipc_direct/stats");
        let key = format!("\"{name}\":");
        let (_, rest) = text.split_once(&key).unwrap_or_else(|| panic!("no {name} in {text}"));
        let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    }

    /// CPU time used so far, in clock ticks.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').skip(11).take(2).map(|f| f.parse::<u64>().unwrap()).sum()
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // A failed test leaves no process, nor (best effort) what a killed program could not remove.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            let _ = std::fs::remove_dir_all(self.runtime_dir());
        }
    }
}

/// A process's (or the agent's) end of a function.
pub struct Process {
    pub number: u32,
    pub window: Window<'static>,
    pub host: HostMemory<'static>,
    /// For writing nonsense.
    region: Region,
    requests: Requests<'static>,
    completions: Consumer<'static>,
    pub irqs: [OwnedFd; 2],
    doorbell: OwnedFd,
    token: u32,
    /// Completions that nobody has asked for yet.
    pub news: Vec<(u32, Completion)>,
    pub key: Key,
    /// What all functions share, unless their rings are private.
    pub common: Option<&'static CommonMemory>,
    _maps: Vec<MmapRaw>,
}

pub fn memory(bytes: usize, seals: SealFlags) -> OwnedFd {
    let fd = memfd_create("ipcd-test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, bytes as u64).unwrap();
    fcntl_add_seals(&fd, seals).unwrap();
    fd
}

fn map(fd: &OwnedFd, bytes: usize) -> (MmapRaw, Region) {
    let map = MmapOptions::new().len(bytes).map_raw(fd).unwrap();
    // SAFETY: mapped, page-aligned, of that size; unmapped with the Process that uses it.
    let region = unsafe { Region::new(NonNull::new(map.as_mut_ptr()).unwrap(), bytes) };
    (map, region)
}

impl Process {
    fn new(number: u32, card: &Card) -> (Process, [OwnedFd; 4]) {
        let doorbell = card.doorbell.try_clone().unwrap();
        let kind = if number == ring::bus::AGENT_FUNCTION { Kind::PerProcess } else { card.kind };
        let (common_map, common) = card.common.as_ref().map(|fd| map(fd, COMMON_BYTES)).unzip();
        let common = common.and_then(CommonMemory::over);
        let key = Key([number.into(), 0x5eed]);
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        let (window_fd, host_fd) = (memory(WINDOW_BYTES, seals), memory(HOST_BYTES, seals));
        let (window_map, region) = map(&window_fd, WINDOW_BYTES);
        let (host_map, host_region) = map(&host_fd, HOST_BYTES);
        let window = Window::over(region).unwrap();
        let host = HostMemory::over(host_region).unwrap();
        window.format(number);
        host.format(kind, key);
        let irqs = [0; 2].map(|n| eventfd(n, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
        let fds = [window_fd, host_fd, irqs[0].try_clone().unwrap(), irqs[1].try_clone().unwrap()];
        let process = Process {
            number,
            window,
            host,
            region,
            requests: Requests::over(number, &window.far(), &host, common).unwrap(),
            completions: Consumer::new(host.completions, 0),
            irqs,
            doorbell,
            token: 0,
            news: Vec::new(),
            key,
            common,
            _maps: [window_map, host_map].into_iter().chain(common_map).collect(),
        };
        (process, fds)
    }

    /// Posts a request, waiting for credit if necessary, and rings the doorbell if it is wanted.
    pub fn post(&mut self, request: Request) -> u32 {
        self.token += 1;
        self.push(request, self.token);
        self.token
    }

    /// Posts a request that wants no answer.
    pub fn tell(&mut self, request: Request) {
        self.push(request, 0);
    }

    fn push(&mut self, request: Request, token: u32) {
        let since = Instant::now();
        while self.requests.space() == 0 {
            self.collect();
            assert!(since.elapsed() < PATIENCE, "no credit");
            std::thread::yield_now();
        }
        let credit = self.completions.credit();
        self.requests.push(&request.to_raw(token), credit).unwrap();
        self.ring();
    }

    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.host.header.doorbell_wanted.load(Ordering::Relaxed) != 0 {
            rustix::io::write(&self.doorbell, &1u64.to_ne_bytes()).unwrap();
        }
    }

    /// Takes what has arrived.
    pub fn collect(&mut self) {
        while let Some((raw, credit)) = self.completions.pop().unwrap() {
            assert!(self.requests.take_credit(credit));
            let completion = Completion::from_raw(&raw).unwrap();
            if completion != Completion::Credit {
                self.news.push((raw.token, completion));
            }
        }
    }

    /// Waits for the first completion that `wanted` accepts.
    pub fn wait_for<T>(&mut self, what: &str, wanted: impl Fn(u32, Completion) -> Option<T>) -> T {
        let since = Instant::now();
        loop {
            self.collect();
            let found = self.news.iter().enumerate().find_map(|(i, (t, c))| Some((i, wanted(*t, *c)?)));
            if let Some((index, value)) = found {
                self.news.remove(index);
                return value;
            }
            assert!(since.elapsed() < PATIENCE, "function {} waits for {what}: {:?}", self.number, self.news);
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    pub fn answer(&mut self, token: u32) -> Completion {
        self.wait_for("an answer", |t, c| (t == token).then_some(c))
    }

    pub fn ask(&mut self, request: Request) -> Completion {
        let token = self.post(request);
        self.answer(token)
    }

    /// Asks for an interrupt after the next completion; false if one is there already.
    pub fn arm(&mut self) -> bool {
        self.window.header.armed.store(self.completions.consumed() + 1, Ordering::Release);
        self.requests.armed();
        self.ring();
        !self.completions.ready()
    }

    /// Sleeps until interrupt vector `n` fires.
    pub fn interrupted(&self, n: usize) {
        wait_readable(self.irqs[n].as_fd(), "an interrupt");
        rustix::io::read(&self.irqs[n], &mut [0; 8]).unwrap();
    }

    /// Entries posted so far: the index of the next one.
    pub fn posted(&self) -> u64 {
        self.requests.pushed()
    }

    /// Overwrites a 64-bit word of the window.
    pub fn scribble(&self, offset: usize, value: u64) {
        self.region.get::<AtomicU64>(offset).unwrap().store(value, Ordering::Release);
    }
}
