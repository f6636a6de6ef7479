//! One socket call as data: what the conformance driver sends to a worker, and what comes back.
//!
//! A worker is a small process that makes the calls it is told to make, natively or under the shim. So a
//! case is one linear script, and the same script runs with any mixture of shimmed and plain sides.

use std::fmt;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Octets in a call or an answer; printed as text, or as a length when long.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() > 64 {
            return write!(f, "<{} bytes>", self.0.len());
        }
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl From<&[u8]> for Bytes {
    fn from(b: &[u8]) -> Self {
        Bytes(b.to_vec())
    }
}

/// An IP address (as text) and a port, or a name of the `AF_UNIX` family.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addr {
    /// `127.0.0.1`, `::1`, ...; `unix:/path`, `unix:@abstract`, `unix:` (no name).
    pub ip: String,
    /// Host order; 0 for a name.
    pub port: u16,
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ip.starts_with("unix:") {
            return write!(f, "{}", self.ip);
        }
        write!(f, "[{}]:{}", self.ip, self.port)
    }
}

/// Who a process is, as `SO_PEERCRED` and `SCM_CREDENTIALS` say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cred {
    /// Process id.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Which call replaces the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecBy {
    /// `execve`
    Execve,
    /// `execv`
    Execv,
    /// `execvp`
    Execvp,
    /// `fexecve`
    Fexecve,
}

/// Which calls start another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpawnBy {
    /// `fork` and `execve`
    Fork,
    /// `vfork` and `execve`
    Vfork,
    /// `posix_spawn`
    PosixSpawn,
    /// `posix_spawnp`
    PosixSpawnp,
}

/// Which call sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SendBy {
    /// `write`
    Write,
    /// `writev`, in vectors of at most this many bytes
    Writev(usize),
    /// `send`
    Send,
    /// `sendto` without an address
    Sendto,
    /// `sendmsg`, in vectors of at most this many bytes
    Sendmsg(usize),
    /// `sendmmsg`, in messages of at most this many bytes
    Sendmmsg(usize),
}

/// Which call receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecvBy {
    /// `read`
    Read,
    /// `readv`, into vectors of this many bytes
    Readv(usize),
    /// `recv`
    Recv,
    /// `recvfrom` with an address buffer
    Recvfrom,
    /// `recvmsg`, into vectors of this many bytes
    Recvmsg(usize),
    /// `recvmmsg`, into messages of this many bytes
    Recvmmsg(usize),
    /// `__read_chk`: what `read` is in a program built with `_FORTIFY_SOURCE`
    ReadChk,
    /// `__recv_chk`
    RecvChk,
    /// `__recvfrom_chk`
    RecvfromChk,
}

/// Which call waits for readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PollBy {
    /// `poll`
    Poll,
    /// `ppoll`
    Ppoll,
    /// `select` (`POLLIN` = read set, `POLLOUT` = write set, `POLLPRI` = exception set)
    Select,
    /// `pselect`
    Pselect,
    /// `__poll_chk`
    PollChk,
    /// `__ppoll_chk`
    PpollChk,
    /// `select` with sets that `__fdelt_chk` indexes
    SelectChk,
}

/// A time of the last second.
pub const FRESH: u32 = 0x100;
/// An older one, of the last minute.
pub const OLD: u32 = 0x200;

/// A call. Descriptors are the worker's own numbers; constants are libc's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields are the calls' arguments, named as in their man pages
pub enum Op {
    Socket {
        domain: i32,
        ty: i32,
        protocol: i32,
    },
    Bind {
        fd: i32,
        addr: Addr,
    },
    Listen {
        fd: i32,
        backlog: i32,
    },
    Connect {
        fd: i32,
        addr: Addr,
    },
    /// `connect` over and over until somebody listens there.
    Knock {
        fd: i32,
        addr: Addr,
    },
    /// `accept` without flags, `accept4` with.
    Accept {
        fd: i32,
        flags: Option<i32>,
    },
    Getsockname {
        fd: i32,
    },
    Getpeername {
        fd: i32,
    },
    Send {
        fd: i32,
        data: Bytes,
        by: SendBy,
        flags: i32,
    },
    Recv {
        fd: i32,
        len: usize,
        by: RecvBy,
        flags: i32,
    },
    Shutdown {
        fd: i32,
        how: i32,
    },
    Close {
        fd: i32,
    },
    Dup {
        fd: i32,
    },
    Dup2 {
        fd: i32,
        to: i32,
    },
    Dup3 {
        fd: i32,
        to: i32,
        flags: i32,
    },
    Fcntl {
        fd: i32,
        cmd: i32,
        arg: i32,
    },
    /// The value comes back in `value`.
    Ioctl {
        fd: i32,
        request: u64,
        value: i32,
    },
    /// The option comes back in `data`.
    Getsockopt {
        fd: i32,
        level: i32,
        name: i32,
        len: usize,
    },
    Setsockopt {
        fd: i32,
        level: i32,
        name: i32,
        data: Bytes,
    },
    /// `SO_ATTACH_FILTER` of a program that answers `verdict` for each packet: 0 drops it.
    AttachFilter {
        fd: i32,
        verdict: u32,
    },
    /// Ready descriptors come back in `events`, in the order asked.
    Poll {
        fds: Vec<(i32, i16)>,
        timeout_ms: i32,
        by: PollBy,
    },
    EpollCreate {
        flags: i32,
    },
    EpollCtl {
        ep: i32,
        op: i32,
        fd: i32,
        events: u32,
    },
    /// Events come back sorted by descriptor: their order is nobody's promise.
    EpollWait {
        ep: i32,
        max: i32,
        timeout_ms: i32,
    },
    /// `epoll_pwait`, or `epoll_pwait2` (`ns`), with `mask` as the signals that stay blocked.
    EpollPwait {
        ep: i32,
        max: i32,
        timeout_ms: i32,
        mask: Option<Vec<i32>>,
        ns: bool,
    },
    /// The two ends come back in `events` as descriptors.
    Pipe,
    /// As `Pipe`, by `pipe2`.
    Pipe2 {
        flags: i32,
    },
    /// As `Pipe`, by `socketpair`.
    Socketpair {
        domain: i32,
        ty: i32,
        protocol: i32,
    },
    /// `sendto` with an address.
    SendTo {
        fd: i32,
        data: Bytes,
        to: Addr,
        flags: i32,
    },
    /// `sendmsg` with `SCM_RIGHTS` and `SCM_CREDENTIALS` (pid 0: the sender's own).
    SendMessage {
        fd: i32,
        data: Bytes,
        to: Option<Addr>,
        rights: Vec<i32>,
        credentials: Option<Cred>,
        flags: i32,
    },
    /// `recvmsg` with a name and `control_len` bytes for control data; descriptors come back in `events` with their
    /// `FD_CLOEXEC`, times as their type with the message's length and age ([`FRESH`], [`OLD`]), the flags in `value`.
    RecvMessage {
        fd: i32,
        len: usize,
        control_len: usize,
        flags: i32,
    },
    /// `SO_PEERCRED`.
    Peercred {
        fd: i32,
    },
    CloseRange {
        first: u32,
        last: u32,
        flags: i32,
    },
    /// `closefrom`; the worker's own descriptor goes, too, so it connects to the driver anew at `control`.
    Closefrom {
        first: i32,
        control: String,
    },
    Mkfifo {
        path: String,
        mode: u32,
    },
    Open {
        path: String,
        flags: i32,
        mode: u32,
    },
    Unlink {
        path: String,
    },
    Chmod {
        path: String,
        mode: u32,
    },
    /// File type (`S_IFMT`) in `value`.
    Fstat {
        fd: i32,
    },
    Lseek {
        fd: i32,
        offset: i64,
        whence: i32,
    },
    /// Becomes another user, or root again (real user id stays).
    Seteuid {
        uid: u32,
    },
    /// Replaces the program by `argv`; a new worker connects at `control`.
    Exec {
        by: ExecBy,
        argv: Vec<String>,
    },
    /// Starts `argv` with descriptors moved (`dup2(from, to)`); 1 on success.
    Spawn {
        by: SpawnBy,
        argv: Vec<String>,
        moves: Vec<(i32, i32)>,
    },
    /// Waits for the program started last; its wait status in `value`.
    Reap,
    /// `daemon(3)`: forks, the parent ends, the child leads a new session; the child connects at `control`.
    Daemon {
        control: String,
    },
    /// `dlopen` of a library whose constructor makes a connection to itself; its two ends come back in `events`.
    Dlopen {
        path: String,
        flags: i32,
    },
    Eventfd {
        initial: u32,
        flags: i32,
    },
    /// A timer that fires once.
    Timerfd {
        ms: u64,
    },
    /// `send` of `len` bytes in one call; which bytes does not matter.
    Fill {
        fd: i32,
        len: usize,
        flags: i32,
    },
    /// Sends `total` bytes of the pattern in calls of `chunk` bytes, waiting (poll) on `EAGAIN`.
    Pump {
        fd: i32,
        total: u64,
        chunk: usize,
        by: SendBy,
    },
    /// Receives `total` bytes of the pattern, or up to EOF; `value` is 1 if all bytes were right.
    Drain {
        fd: i32,
        total: u64,
        chunk: usize,
        by: RecvBy,
        flags: i32,
    },
    /// `sendfile` of a fresh file with the pattern, from `offset` (or the file's own) for `count` bytes, in one call;
    /// the offset afterwards comes back in `value`.
    Sendfile {
        fd: i32,
        size: u64,
        offset: Option<i64>,
        count: usize,
    },
    /// What a signal does: 0 default, 1 ignore, 2 count; `flags` as in `sigaction`.
    Signal {
        signal: i32,
        what: i32,
        flags: i32,
    },
    /// How often a counted signal came.
    Signals {
        signal: i32,
    },
    /// Makes a call in a new thread; the answer's `ret` is a ticket for `Join` and `Interrupt`.
    Start {
        op: Box<Op>,
    },
    /// Waits for that thread's call.
    Join {
        ticket: i64,
    },
    /// As `Join`, for at most `ms`: then the answer is -1 with `EBUSY`, and the ticket stays good.
    JoinWithin {
        ticket: i64,
        ms: u64,
    },
    /// Sends a signal to exactly that thread.
    Interrupt {
        ticket: i64,
        signal: i32,
    },
    /// Forks; the child connects to the driver at `control` as a worker of its own.
    Fork {
        control: String,
    },
    /// The worker ends without closing anything.
    Exit,
}

/// An answer.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Out {
    /// What the call returned.
    pub ret: i64,
    /// `errno` when it returned -1.
    pub errno: i32,
    /// Octets received, or an option.
    pub data: Bytes,
    /// An address.
    pub addr: Option<Addr>,
    /// Descriptors and their events.
    pub events: Vec<(i32, u32)>,
    /// Another value: `msg_flags`, `ioctl`'s, ...
    pub value: i64,
    /// Who the other side is.
    #[serde(default)]
    pub credentials: Option<Cred>,
}

impl Out {
    /// True for `JoinWithin`'s answer that the call has not returned.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.ret == -1 && self.errno == libc::EBUSY
    }
}

impl fmt::Debug for Out {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ret)?;
        if self.ret < 0 {
            write!(f, " {}", io::Error::from_raw_os_error(self.errno))?;
        }
        if !self.data.0.is_empty() {
            write!(f, " {:?}", self.data)?;
        }
        if let Some(addr) = &self.addr {
            write!(f, " {addr:?}")?;
        }
        if !self.events.is_empty() {
            let list: Vec<String> = self.events.iter().map(|(fd, ev)| format!("{fd}:{ev:#x}")).collect();
            write!(f, " events {}", list.join(" "))?;
        }
        if self.value != 0 {
            write!(f, " value {:#x}", self.value)?;
        }
        if let Some(Cred { pid, uid, gid }) = self.credentials {
            write!(f, " process {pid} of {uid}:{gid}")?;
        }
        Ok(())
    }
}

/// Longest message in bytes; more is not one of ours.
const MESSAGE_MAX: usize = 16 << 20;

/// Writes one message: length, then JSON.
///
/// # Errors
/// Those of the stream.
pub fn put(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let len = u32::try_from(text.len()).map_err(io::Error::other)?;
    let mut all = len.to_le_bytes().to_vec();
    all.extend_from_slice(&text);
    to.write_all(&all)
}

/// Reads one message.
///
/// # Errors
/// Those of the stream, and `InvalidData` for what is not a message.
pub fn get<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > MESSAGE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too long"));
    }
    let mut text = vec![0; len];
    from.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Length of the repeating pattern: a prime, so that it never lines up with pages, chunks or rings.
const PATTERN_PERIOD: usize = 65_521;

/// The pattern that `Pump` sends, `Sendfile` stores and `Drain` expects.
#[derive(Debug)]
pub struct Pattern(Vec<u8>);

impl Default for Pattern {
    fn default() -> Self {
        let mut x = 0x2545_f491_u32;
        let mut block = Vec::with_capacity(2 * PATTERN_PERIOD);
        for _ in 0..PATTERN_PERIOD {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            block.push(x.to_le_bytes()[1]);
        }
        // Twice, so that a slice from any start is contiguous.
        block.extend_from_within(..);
        Pattern(block)
    }
}

impl Pattern {
    /// Longest slice that [`Pattern::at`] gives.
    pub const LEN_MAX: usize = PATTERN_PERIOD;

    /// At most `len` bytes of the pattern from byte `position` of the stream.
    #[must_use]
    pub fn at(&self, position: u64, len: usize) -> &[u8] {
        let start = usize::try_from(position % PATTERN_PERIOD as u64).unwrap_or(0);
        self.0.get(start..start + len.min(Self::LEN_MAX)).unwrap_or(&[])
    }

    /// True if `data` is what the stream has at `position`.
    #[must_use]
    pub fn check(&self, position: u64, data: &[u8]) -> bool {
        let mut at = position;
        data.chunks(Self::LEN_MAX).all(|chunk| {
            let good = self.at(at, chunk.len()) == chunk;
            at += chunk.len() as u64;
            good
        })
    }
}
