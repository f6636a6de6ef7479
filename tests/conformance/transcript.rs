//! What was called and answered, with everything that differs from run to run made neutral.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use harness::wire::{Addr, Cred, Op, Out};

use crate::symbols;

/// Length of the abstract names that Linux gives: five hexadecimal digits.
const AUTOBIND_LEN: usize = 5;

/// The transcript; ports and processes are replaced by their order of appearance.
#[derive(Default)]
pub struct Transcript {
    /// In every path and name of this run; of the same length in all runs.
    pub own_name: String,
    /// Processes, in the order of their appearance.
    pub pids: RefCell<Vec<u32>>,
    /// What there is so far.
    pub lines: RefCell<Vec<String>>,
    /// Functions of the C library that were called.
    pub calls: RefCell<BTreeSet<&'static str>>,
    ports: RefCell<Vec<u16>>,
    /// The party that has made the last call.
    pub last: Cell<&'static str>,
    /// Why the case can't go on.
    pub broken: RefCell<Option<String>>,
}

impl Transcript {
    /// An empty one.
    pub fn new(own_name: String, pids: Vec<u32>) -> Transcript {
        Transcript { own_name, pids: RefCell::new(pids), ..Transcript::default() }
    }

    fn port(&self, port: u16) -> u16 {
        if port < 1024 {
            return port;
        }
        let mut ports = self.ports.borrow_mut();
        let at = ports.iter().position(|p| *p == port).unwrap_or_else(|| {
            ports.push(port);
            ports.len() - 1
        });
        u16::try_from(at + 1).unwrap_or(u16::MAX)
    }

    fn neutral(&self, addr: &Addr) -> Addr {
        if let Some(name) = addr.ip.strip_prefix("unix:@").filter(|n| n.len() == AUTOBIND_LEN) {
            let made_by_linux = name.bytes().all(|b| b.is_ascii_hexdigit());
            let name = if made_by_linux { "autobind" } else { name };
            return Addr { ip: format!("unix:@{name}"), port: 0 };
        }
        Addr { ip: addr.ip.clone(), port: self.port(addr.port) }
    }

    fn neutral_op(&self, op: &Op) -> Op {
        match op {
            Op::Bind { fd, addr } => Op::Bind { fd: *fd, addr: self.neutral(addr) },
            Op::Connect { fd, addr } => Op::Connect { fd: *fd, addr: self.neutral(addr) },
            Op::Knock { fd, addr } => Op::Knock { fd: *fd, addr: self.neutral(addr) },
            Op::SendTo { fd, data, to, flags } => {
                Op::SendTo { fd: *fd, data: data.clone(), to: self.neutral(to), flags: *flags }
            }
            Op::Start { op } => Op::Start { op: Box::new(self.neutral_op(op)) },
            Op::Fork { .. } => Op::Fork { control: String::new() },
            Op::Closefrom { first, .. } => Op::Closefrom { first: *first, control: String::new() },
            Op::Daemon { .. } => Op::Daemon { control: String::new() },
            Op::Exec { by, .. } => Op::Exec { by: *by, argv: Vec::new() },
            Op::Spawn { by, moves, .. } => Op::Spawn { by: *by, argv: Vec::new(), moves: moves.clone() },
            Op::Dlopen { flags, .. } => Op::Dlopen { path: String::new(), flags: *flags },
            op => op.clone(),
        }
    }

    /// Remembers which functions `op` calls.
    pub fn count(&self, op: &Op) {
        self.calls.borrow_mut().extend(symbols::of(op));
    }

    /// Adds a call and its answer.
    pub fn note(&self, who: &str, op: &Op, out: &Out) {
        let addr = out.addr.as_ref().map(|addr| match op {
            // Which port a client gets, and when a number comes again, is nobody's promise.
            Op::Accept { .. } | Op::Join { .. } if addr.port != 0 => Addr { port: 1, ..addr.clone() },
            _ => self.neutral(addr),
        });
        let credentials = out.credentials.map(|c| Cred { pid: self.person(c.pid), ..c });
        let out = Out { addr, credentials, ..out.clone() };
        self.push(&format!("{who} {:?} = {out:?}", self.neutral_op(op)));
    }

    /// A process of the case by its order of appearance, from 1; 0 is nobody, -1 a stranger.
    fn person(&self, pid: i32) -> i32 {
        let known = self.pids.borrow().iter().position(|p| i32::try_from(*p) == Ok(pid));
        known.map_or(-i32::from(pid != 0), |at| i32::try_from(at + 1).unwrap_or(-1))
    }

    /// The case cannot go on; the first reason counts.
    pub fn give_up(&self, why: String) {
        self.broken.borrow_mut().get_or_insert(why);
    }

    /// A line without this run's own name.
    pub fn push(&self, line: &str) {
        self.lines.borrow_mut().push(line.replace(&self.own_name, "~"));
    }
}
