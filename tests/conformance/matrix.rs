//! The support matrix: what the cases called, on what, and which way the traffic went by the counters. It is
//! `docs/support.md`, written by `make matrix`; a complete run fails when the file says something else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;

use harness::{Outcome, ensure};
use ring::stats::Reason;

/// What a case is about: a column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Family {
    #[default]
    Tcp,
    UnixStream,
    UnixSeqpacket,
    UnixDgram,
    Socketpair,
    Pipe,
    Fifo,
    Udp,
}

const FAMILIES: [(Family, &str); 8] = [
    (Family::Tcp, "TCP"),
    (Family::UnixStream, "unix stream"),
    (Family::UnixSeqpacket, "unix seqpacket"),
    (Family::UnixDgram, "unix dgram"),
    (Family::Socketpair, "socketpair"),
    (Family::Pipe, "pipe"),
    (Family::Fifo, "FIFO"),
    (Family::Udp, "UDP"),
];

/// Rows, by what they are for.
const CALLS: [(&str, &[&str]); 5] = [
    (
        "Making and naming",
        &[
            "socket",
            "socketpair",
            "pipe",
            "pipe2",
            "mkfifo",
            "bind",
            "listen",
            "connect",
            "accept",
            "accept4",
            "getsockname",
            "getpeername",
            "getsockopt",
            "setsockopt",
            "shutdown",
        ],
    ),
    (
        "Data",
        &[
            "read",
            "readv",
            "recv",
            "recvfrom",
            "recvmsg",
            "recvmmsg",
            "write",
            "writev",
            "send",
            "sendto",
            "sendmsg",
            "sendmmsg",
            "sendfile",
            "__read_chk",
            "__recv_chk",
            "__recvfrom_chk",
        ],
    ),
    ("Descriptors", &["close", "close_range", "closefrom", "dup", "dup2", "dup3", "fcntl", "ioctl"]),
    (
        "Readiness",
        &[
            "poll",
            "ppoll",
            "select",
            "pselect",
            "__poll_chk",
            "__ppoll_chk",
            "__fdelt_chk",
            "epoll_create1",
            "epoll_ctl",
            "epoll_wait",
            "epoll_pwait",
            "epoll_pwait2",
        ],
    ),
    (
        "Processes",
        &[
            "fork",
            "vfork",
            "daemon",
            "execve",
            "execv",
            "execvp",
            "fexecve",
            "posix_spawn",
            "posix_spawnp",
            "dlopen",
        ],
    ),
];

/// What one case showed.
#[derive(Debug, Default)]
pub struct Shown {
    pub family: Family,
    /// The case's name up to `::`.
    pub subject: &'static str,
    pub calls: BTreeSet<&'static str>,
    /// The counters of user space moved.
    pub user: bool,
}

/// Cases that have passed.
#[derive(Debug, Default)]
pub struct Matrix(Mutex<Vec<Shown>>);

/// How often something was proved, and how.
#[derive(Clone, Copy, Default)]
struct Cell {
    cases: usize,
    user: usize,
}

impl Cell {
    fn add(&mut self, shown: &Shown) {
        self.cases += 1;
        self.user += usize::from(shown.user);
    }

    fn text(self) -> String {
        match self {
            Cell { cases: 0, .. } => String::new(),
            Cell { user: 0, cases } => format!("kernel {cases}"),
            Cell { cases, .. } => format!("**user** {cases}"),
        }
    }
}

impl Matrix {
    /// Adds a case that has passed.
    pub fn add(&self, shown: Shown) {
        if let Ok(mut all) = self.0.lock() {
            all.push(shown);
        }
    }

    /// Compares `docs/support.md` with what was shown, or writes it.
    ///
    /// # Errors
    /// When a call was made that is in no row, a row has no case, or the file says something else.
    pub fn settle(&self) -> Outcome {
        let all = self.0.lock().map(|mut all| std::mem::take(&mut *all)).unwrap_or_default();
        complete(&all)?;
        let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/support.md"));
        let text = render(&all);
        if std::env::var_os("IPC_DIRECT_TEST_MATRIX").is_some() {
            std::fs::write(&path, text)?;
            return Ok(());
        }
        let file = std::fs::read_to_string(&path).unwrap_or_default();
        let differs = file.lines().zip(text.lines()).find(|(old, new)| ways(old) != ways(new));
        ensure(ways(&file) == ways(&text), || {
            let (old, new) = differs.unwrap_or(("(fewer or more lines)", ""));
            format!("docs/support.md is stale: run `make matrix`\nthe file: {old}\nthe run:  {new}")
        })
    }
}

/// Every call is in a row, and every row has a case.
fn complete(all: &[Shown]) -> Outcome {
    let made: BTreeSet<&str> = all.iter().flat_map(|s| s.calls.iter().copied()).collect();
    let rows: BTreeSet<&str> = CALLS.iter().flat_map(|(_, calls)| calls.iter().copied()).collect();
    ensure(made == rows, || {
        let (new, idle) = (made.difference(&rows), rows.difference(&made));
        format!(
            "rows of the support matrix (tests/conformance/matrix.rs): missing {:?}, without a case {:?}",
            new.collect::<Vec<_>>(),
            idle.collect::<Vec<_>>()
        )
    })
}

fn render(all: &[Shown]) -> String {
    let mut text = String::from(INTRODUCTION);
    let names: Vec<&str> = FAMILIES.iter().map(|(_, name)| *name).collect();
    for (purpose, calls) in CALLS {
        let _ = writeln!(text, "\n| {purpose} | {} |", names.join(" | "));
        let _ = writeln!(text, "|---|{}", "---|".repeat(names.len()));
        for call in calls {
            let cells = FAMILIES.map(|(family, _)| {
                let mut cell = Cell::default();
                all.iter().filter(|s| s.family == family && s.calls.contains(call)).for_each(|s| cell.add(s));
                cell.text()
            });
            let _ = writeln!(text, "| `{call}` | {} |", cells.join(" | "));
        }
    }
    text.push_str("\n## Passed through\n\n");
    for (family, name) in FAMILIES {
        if all.iter().any(|s| s.family == family && s.user) {
            continue;
        }
        let _ = match reason(family) {
            Some(reason) => writeln!(text, "* {name}: `{}`: {}", reason.code(), reason.text()),
            None => writeln!(text, "* {name}: any program may open the name, with or without the shim"),
        };
    }
    let mut subjects: BTreeMap<&str, usize> = BTreeMap::new();
    for shown in all {
        *subjects.entry(shown.subject).or_default() += 1;
    }
    let _ = writeln!(text, "\n## Cases by subject\n\n{} cases.\n\n| subject | cases |\n|---|---|", all.len());
    for (subject, cases) in subjects {
        let _ = writeln!(text, "| {subject} | {cases} |");
    }
    text
}

/// The reason that `ipc-direct ps` shows for sockets of a family that is passed through; a FIFO is no socket.
fn reason(family: Family) -> Option<Reason> {
    match family {
        Family::Fifo => None,
        Family::Udp => Some(Reason::Udp),
        Family::UnixSeqpacket | Family::UnixDgram => Some(Reason::UnixMessage),
        Family::Pipe => Some(Reason::Operation),
        Family::Tcp | Family::UnixStream | Family::Socketpair => Some(Reason::Family),
    }
}

/// What makes the page stale: which way each call goes. Cases that were added only change counts.
fn ways(text: &str) -> String {
    let tables = text.split("## Cases by subject").next().unwrap_or(text);
    tables.chars().filter(|c| !c.is_ascii_digit()).collect()
}

const INTRODUCTION: &str = "\
# What is supported

Written by `make matrix` from a run of `tests/conformance`; the suite fails when a cell's way changes. Every case runs on the kernel and
under the shim, and every return value, error, byte, event and descriptor number is the same. A cell says by how many cases a call
is proved on that kind of object; **user**: the counters of `ipc-direct ps` show that in at least one of them the bytes went through user
space; kernel: passed through, for the reason below; empty: the call does not apply, or has no case of its own there.
Nothing that is passed through is refused: there is no unsupported call in these tables.
";
