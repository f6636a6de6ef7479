//! A program: which process makes which call, in which order.
//!
//! Its text form is one step a line, in JSON. Descriptors have names instead of numbers, so that a program stays
//! meaningful when steps are taken out of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};

use harness::wire::{PollBy, RecvBy, SendBy};
use harness::{Failure, Outcome};
use serde::{Deserialize, Serialize};

/// A descriptor. A forked child has its parent's under the same names.
pub type Name = u32;

/// Processes that exist from the start; all others are forked.
pub const ROOTS: usize = 2;

/// What a process does in a step. `s` is what the call is about, `new` what it makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the fields are the calls' arguments, named as in their man pages
pub enum Act {
    /// A TCP socket.
    Socket {
        new: Name,
        v6: bool,
        nonblocking: bool,
    },
    /// A connected pair of AF_UNIX sockets.
    Socketpair {
        new: [Name; 2],
        ty: i32,
    },
    Pipe {
        new: [Name; 2],
    },
    /// Binds to any free port, which the place then has; or to the port of a place that was bound before.
    Bind {
        s: Name,
        ip: String,
        place: u32,
    },
    Listen {
        s: Name,
        backlog: i32,
    },
    /// A place that nobody has bound is port 1, where nobody listens.
    Connect {
        s: Name,
        ip: String,
        place: u32,
    },
    Accept {
        s: Name,
        new: Name,
        nonblocking: bool,
    },
    Getsockname {
        s: Name,
    },
    Getpeername {
        s: Name,
    },
    Send {
        s: Name,
        len: usize,
        by: SendBy,
        flags: i32,
    },
    Recv {
        s: Name,
        len: usize,
        by: RecvBy,
        flags: i32,
    },
    /// Sends until nothing more goes in. How much went in is no observable.
    Fill {
        s: Name,
    },
    /// Receives until nothing more is there. How much was there is no observable.
    Empty {
        s: Name,
    },
    Shutdown {
        s: Name,
        how: i32,
    },
    Close {
        s: Name,
    },
    Dup {
        s: Name,
        new: Name,
    },
    Dup2 {
        s: Name,
        to: Name,
    },
    /// `O_NONBLOCK` on or off.
    Nonblocking {
        s: Name,
        on: bool,
    },
    Fionread {
        s: Name,
    },
    Getsockopt {
        s: Name,
        level: i32,
        name: i32,
        len: usize,
    },
    /// The value is one or several ints (`linger`), or a `timeval` of that many ms.
    Setsockopt {
        s: Name,
        level: i32,
        name: i32,
        value: Vec<i32>,
    },
    SetTimeout {
        s: Name,
        name: i32,
        ms: i64,
    },
    Poll {
        set: Vec<(Name, i16)>,
        timeout_ms: i32,
        by: PollBy,
    },
    Epoll {
        new: Name,
    },
    EpollCtl {
        s: Name,
        op: i32,
        member: Name,
        events: u32,
    },
    EpollWait {
        s: Name,
        max: i32,
        timeout_ms: i32,
    },
    /// The child is the process with the number `child`.
    Fork {
        child: usize,
    },
    Exec {},
    Exit {},
    /// Killed from outside.
    Killed {},
}

impl Act {
    /// True for calls that may wait for somebody else's step: they are made in a thread of their own.
    pub fn may_block(&self) -> bool {
        match self {
            Act::Connect { .. } | Act::Accept { .. } | Act::Send { .. } | Act::Recv { .. } => true,
            Act::Poll { timeout_ms, .. } | Act::EpollWait { timeout_ms, .. } => *timeout_ms != 0,
            _ => false,
        }
    }

    /// Names that must exist before.
    pub fn uses(&self) -> Vec<Name> {
        match self {
            Act::Poll { set, .. } => set.iter().map(|(name, _)| *name).collect(),
            Act::EpollCtl { s, member, .. } => vec![*s, *member],
            Act::Dup2 { s, to } => vec![*s, *to],
            Act::Bind { s, .. }
            | Act::Listen { s, .. }
            | Act::Connect { s, .. }
            | Act::Accept { s, .. }
            | Act::Getsockname { s }
            | Act::Getpeername { s }
            | Act::Send { s, .. }
            | Act::Recv { s, .. }
            | Act::Fill { s }
            | Act::Empty { s }
            | Act::Shutdown { s, .. }
            | Act::Close { s }
            | Act::Dup { s, .. }
            | Act::Nonblocking { s, .. }
            | Act::Fionread { s }
            | Act::Getsockopt { s, .. }
            | Act::Setsockopt { s, .. }
            | Act::SetTimeout { s, .. }
            | Act::EpollWait { s, .. } => vec![*s],
            Act::Socket { .. }
            | Act::Socketpair { .. }
            | Act::Pipe { .. }
            | Act::Epoll { .. }
            | Act::Fork { .. }
            | Act::Exec {}
            | Act::Exit {}
            | Act::Killed {} => vec![],
        }
    }

    /// Names that it makes.
    pub fn makes(&self) -> Vec<Name> {
        match self {
            Act::Socket { new, .. } | Act::Accept { new, .. } | Act::Dup { new, .. } | Act::Epoll { new } => {
                vec![*new]
            }
            Act::Socketpair { new, .. } | Act::Pipe { new } => new.to_vec(),
            _ => vec![],
        }
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Number of the process.
    pub p: usize,
    /// What it does.
    pub act: Act,
}

impl Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// A program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program(pub Vec<Step>);

impl Program {
    /// Without the steps that speak of a descriptor or a process that no earlier step makes.
    #[must_use]
    pub fn tidy(&self) -> Program {
        let mut names = BTreeSet::new();
        let mut processes: BTreeSet<usize> = (0..ROOTS).collect();
        let sound = |step: &&Step| {
            if !processes.contains(&step.p) || !step.act.uses().iter().all(|n| names.contains(n)) {
                return false;
            }
            names.extend(step.act.makes());
            if let Act::Fork { child } = step.act {
                processes.insert(child);
            }
            true
        };
        Program(self.0.iter().filter(sound).cloned().collect())
    }

    /// True if one listener has clients of both kinds when `shimmed` of the first processes are shimmed: in which order the
    /// two kinds are accepted is not what the kernel does. A client of a shimmed process is of the other kind if its socket
    /// was shared by fork, or inherited by a program, before it was connected.
    #[must_use]
    pub fn mixes_clients(&self, shimmed: [bool; ROOTS]) -> bool {
        let mut is_shimmed: BTreeMap<usize, bool> = shimmed.into_iter().enumerate().collect();
        let mut clients: BTreeMap<u32, bool> = BTreeMap::new();
        // What each process has made since its last fork or exec.
        let mut fresh: BTreeMap<usize, BTreeSet<Name>> = BTreeMap::new();
        self.0.iter().any(|step| {
            let own = is_shimmed.get(&step.p).copied().unwrap_or(false);
            let names = fresh.entry(step.p).or_default();
            match &step.act {
                Act::Fork { child } => {
                    names.clear();
                    is_shimmed.insert(*child, own).is_some()
                }
                Act::Exec {} => {
                    names.clear();
                    false
                }
                Act::Dup { s, new: to } | Act::Dup2 { s, to } => {
                    if names.contains(s) {
                        names.insert(*to)
                    } else {
                        names.remove(to)
                    };
                    false
                }
                Act::Connect { s, place, .. } => {
                    let in_user = own && names.contains(s);
                    clients.insert(*place, in_user).is_some_and(|other| other != in_user)
                }
                act => {
                    names.extend(act.makes());
                    false
                }
            }
        })
    }

    /// From its text form; empty lines and lines that begin with `#` say nothing.
    ///
    /// # Errors
    /// When a line is not a step.
    pub fn parse(text: &str) -> Outcome<Program> {
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let steps = lines.map(|line| {
            serde_json::from_str(line).map_err(|e| Failure(format!("{line:?} is not a step: {e}")))
        });
        Ok(Program(steps.collect::<Outcome<_>>()?))
    }
}

impl Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}
