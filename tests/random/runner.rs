//! Executes a program step by step, one at a time in one process, and records everything observable.
//!
//! A call that has not returned after a while, and whose thread sleeps, is recorded as blocked; a later step may let it return,
//! which is recorded there. Only the first run on the kernel decides in this way. Every other run knows from that
//! record what should come: for a return it waits long, so that a slow machine makes no difference.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::child::{self, Guarded, signal_pid, wait_for};
use harness::instance::Instance;
use harness::wire::{Addr, Bytes, ExecBy, Op, Out, RecvBy, SendBy};
use harness::worker::{CALL_BOUND, Worker, hire, meet, meeting_point};
use harness::{Failure, Outcome, ensure, fail};
use rustix::process::Signal;

use crate::program::{Act, Name, ROOTS, Step};

/// How long a call is given at least before the first run calls it blocked: more than the time-outs of a program.
const BLOCKED_AFTER_MS: u64 = 12;
/// How long a thread that does not sleep is given until the next look.
const LOOK_EVERY_MS: u64 = 2;
/// How long a call that should stay blocked is given to be wrong.
const WRONG_AFTER_MS: u64 = 5;
/// How long a call that should return is given, below the worker's own bound.
const RETURN_BOUND_MS: u64 = 8000;
/// Largest number of calls in a [`Act::Fill`] or [`Act::Empty`].
const CALLS_MAX: usize = 20_000;
/// Bytes in one of those calls.
const CHUNK: usize = 65_536;
/// First port that the kernel may have chosen.
const CHOSEN_PORTS_FROM: u16 = 1024;

/// What a step gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The call returned.
    Returned(Out),
    /// It did not.
    Blocked,
    /// The process was gone already.
    Gone,
    /// What is not a call was done.
    Done,
}

/// Everything observable of a step: its own answer, and the blocked calls of earlier steps that returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of the step itself.
    pub answer: Answer,
    /// Number of the earlier step, and what its call returned.
    pub released: Vec<(usize, Out)>,
}

/// A process.
struct Party {
    worker: Worker,
    fds: BTreeMap<Name, i32>,
}

impl Party {
    /// What the call returned, if it does within `ms`.
    fn join_within(&self, ticket: i64, ms: u64) -> Outcome<Option<Out>> {
        let out = self.worker.exchange(&Op::JoinWithin { ticket, ms })?;
        Ok((!out.is_busy()).then_some(out))
    }

    /// What the call returned, unless it sleeps after `ms`.
    fn join_or_sleep(&self, ticket: i64, ms: u64) -> Outcome<Option<Out>> {
        let mut out = self.join_within(ticket, ms)?;
        for _ in 0..RETURN_BOUND_MS / LOOK_EVERY_MS {
            if out.is_some() || child::sleeps(self.worker.pid()) {
                break;
            }
            out = self.join_within(ticket, LOOK_EVERY_MS)?;
        }
        // It may have returned while we looked.
        if out.is_some() { Ok(out) } else { self.join_within(ticket, 0) }
    }
}

/// A call that has not returned.
struct Blocked {
    step: usize,
    p: usize,
    ticket: i64,
    act: Act,
}

/// A run.
pub struct Runner {
    worker: PathBuf,
    parties: BTreeMap<usize, Party>,
    processes: Vec<Guarded>,
    pids: Vec<u32>,
    /// Port of each place.
    places: BTreeMap<u32, u16>,
    /// Ports that the kernel chose, in the order of their appearance.
    ports: Vec<u16>,
    blocked: Vec<Blocked>,
    steps: usize,
    settle: Duration,
}

/// Which of the two first processes are shimmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub [bool; ROOTS]);

/// Nobody is shimmed: the oracle.
pub const NATIVE: Mode = Mode([false; ROOTS]);

impl Runner {
    /// Starts the first processes. `settle`: how long what a step started is given to happen.
    ///
    /// # Errors
    /// When a process does not come up.
    pub fn new(worker: &Path, instance: Option<&Instance>, mode: Mode, settle: Duration) -> Outcome<Runner> {
        let mut runner = Runner {
            worker: worker.to_owned(),
            parties: BTreeMap::new(),
            processes: Vec::new(),
            pids: Vec::new(),
            places: BTreeMap::new(),
            ports: Vec::new(),
            blocked: Vec::new(),
            steps: 0,
            settle,
        };
        for (p, shimmed) in mode.0.into_iter().enumerate() {
            let (worker, process) = hire(worker, instance.filter(|_| shimmed))?;
            runner.processes.push(process);
            runner.enter(p, worker, BTreeMap::new());
        }
        Ok(runner)
    }

    /// True while the process is there.
    pub fn lives(&self, p: usize) -> bool {
        self.parties.contains_key(&p)
    }

    /// Executes one step; `expected` is what the oracle has recorded for it.
    ///
    /// # Errors
    /// When a worker does not answer: it hangs, or it has died.
    pub fn step(&mut self, step: &Step, expected: Option<&Record>) -> Outcome<Record> {
        let number = self.steps;
        self.steps += 1;
        let answer = if self.lives(step.p) {
            self.act(number, step, expected.map(|r| &r.answer)).map_err(|e| {
                Failure(format!("process {} hangs or died: {}\n{}", step.p, e.0, self.describe()))
            })?
        } else {
            Answer::Gone
        };
        std::thread::sleep(self.settle);
        let released = self.look_at_blocked(number, expected)?;
        Ok(Record { answer, released })
    }

    fn act(&mut self, number: usize, step: &Step, expected: Option<&Answer>) -> Outcome<Answer> {
        let p = step.p;
        match &step.act {
            Act::Fork { child } => return self.fork(p, *child),
            Act::Exec {} => return self.exec(p),
            Act::Exit {} => {
                self.party(p)?.worker.tell(&Op::Exit)?;
                return self.gone(p);
            }
            Act::Killed {} => {
                signal_pid(self.party(p)?.worker.pid(), Signal::KILL);
                return self.gone(p);
            }
            Act::Fill { s } => {
                let op = Op::Fill { fd: self.fd(p, *s), len: CHUNK, flags: libc::MSG_DONTWAIT };
                return self.repeat(p, &op).map(Answer::Returned);
            }
            Act::Empty { s } => {
                let (fd, by) = (self.fd(p, *s), RecvBy::Recv);
                let op = Op::Recv { fd, len: CHUNK, by, flags: libc::MSG_DONTWAIT };
                return self.repeat(p, &op).map(Answer::Returned);
            }
            _ => {}
        }
        let op = self.op(number, step)?;
        if !step.act.may_block() {
            let out = self.party(p)?.worker.exchange(&op)?;
            return Ok(Answer::Returned(self.returned(p, &step.act, out)));
        }
        let started = self.party(p)?.worker.exchange(&Op::Start { op: Box::new(op) })?;
        ensure(started.ret > 0, || format!("no thread could be started: {started:?}"))?;
        let ticket = started.ret;
        let out = match expected {
            None => self.party(p)?.join_or_sleep(ticket, BLOCKED_AFTER_MS)?,
            Some(Answer::Blocked) => self.party(p)?.join_within(ticket, WRONG_AFTER_MS)?,
            Some(_) => self.party(p)?.join_within(ticket, RETURN_BOUND_MS)?,
        };
        match out {
            Some(out) => Ok(Answer::Returned(self.returned(p, &step.act, out))),
            None => {
                self.blocked.push(Blocked { step: number, p, ticket, act: step.act.clone() });
                Ok(Answer::Blocked)
            }
        }
    }

    /// Which blocked calls have returned by now.
    fn look_at_blocked(&mut self, number: usize, expected: Option<&Record>) -> Outcome<Vec<(usize, Out)>> {
        let mut released = Vec::new();
        for blocked in std::mem::take(&mut self.blocked) {
            let should = expected.map(|r| r.released.iter().any(|(step, _)| *step == blocked.step));
            let Some(party) = self.parties.get(&blocked.p) else { continue };
            let out = match should {
                _ if blocked.step == number => None,
                None => party.join_or_sleep(blocked.ticket, 0)?,
                Some(true) => party.join_within(blocked.ticket, RETURN_BOUND_MS)?,
                Some(false) => party.join_within(blocked.ticket, 0)?,
            };
            match out {
                Some(out) => {
                    let out = self.returned(blocked.p, &blocked.act, out);
                    released.push((blocked.step, out));
                }
                None => self.blocked.push(blocked),
            }
        }
        Ok(released)
    }

    /// False for what Linux leaves to chance, so that no shrinking ends there: what would change descriptor numbers while an
    /// `accept` is blocked, which reserves its number when it begins; what closes a descriptor that the same process
    /// polls; a second call that waits where one waits already.
    pub fn is_determined(&self, p: usize, act: &Act) -> bool {
        let closes = match act {
            Act::Close { s } | Act::Dup2 { to: s, .. } => Some(s),
            _ => None,
        };
        let numbers = !act.makes().is_empty() || closes.is_some();
        let waits = if act.may_block() { act.uses() } else { Vec::new() };
        if self.blocked.iter().any(|b| b.act.uses().iter().any(|name| waits.contains(name))) {
            return false;
        }
        self.blocked.iter().filter(|b| b.p == p).all(|b| match &b.act {
            Act::Accept { .. } => !numbers,
            Act::Poll { set, .. } => set.iter().all(|(name, _)| Some(name) != closes),
            _ => true,
        })
    }

    fn party(&self, p: usize) -> Outcome<&Party> {
        self.parties.get(&p).ok_or_else(|| Failure(format!("there is no process {p}")))
    }

    fn enter(&mut self, p: usize, worker: Worker, fds: BTreeMap<Name, i32>) {
        self.pids.retain(|pid| *pid != worker.pid());
        self.pids.push(worker.pid());
        self.parties.insert(p, Party { worker, fds });
    }

    fn fork(&mut self, p: usize, child: usize) -> Outcome<Answer> {
        let (control, listener) = meeting_point()?;
        let out = self.party(p)?.worker.exchange(&Op::Fork { control })?;
        if out.ret == 1 {
            let fds = self.party(p)?.fds.clone();
            self.enter(child, meet(&listener, || Ok(()))?, fds);
        }
        Ok(Answer::Returned(out))
    }

    fn exec(&mut self, p: usize) -> Outcome<Answer> {
        let (control, listener) = meeting_point()?;
        let argv = vec![self.worker.display().to_string(), control];
        self.party(p)?.worker.tell(&Op::Exec { by: ExecBy::Execve, argv })?;
        let worker = meet(&listener, || Ok(()))?;
        let fds = self.party(p)?.fds.clone();
        self.blocked.retain(|b| b.p != p);
        self.enter(p, worker, fds);
        Ok(Answer::Done)
    }

    /// Waits until the process is gone.
    fn gone(&mut self, p: usize) -> Outcome<Answer> {
        let pid = self.party(p)?.worker.pid();
        let gone = wait_for(CALL_BOUND, || Ok((!child::alive(pid)).then_some(())))?;
        ensure(gone.is_some(), || format!("process {p} does not end"))?;
        self.parties.remove(&p);
        self.pids.retain(|other| *other != pid);
        self.blocked.retain(|b| b.p != p);
        Ok(Answer::Done)
    }

    /// Makes a call until it moves nothing more; the last answer.
    fn repeat(&self, p: usize, op: &Op) -> Outcome<Out> {
        let party = self.party(p)?;
        for _ in 0..CALLS_MAX {
            let out = party.worker.exchange(op)?;
            if out.ret <= 0 {
                return Ok(out);
            }
        }
        fail(format!("{CALLS_MAX} calls, and there is still more"))
    }

    /// The number of a descriptor; -1, which is none, if its making failed.
    fn fd(&self, p: usize, name: Name) -> i32 {
        self.parties.get(&p).and_then(|party| party.fds.get(&name)).copied().unwrap_or(-1)
    }

    fn address(&self, ip: &str, place: u32, unknown: u16) -> Addr {
        Addr { ip: ip.to_owned(), port: self.places.get(&place).copied().unwrap_or(unknown) }
    }

    /// The call that a step makes.
    fn op(&self, number: usize, step: &Step) -> Outcome<Op> {
        let fd = |name: &Name| self.fd(step.p, *name);
        Ok(match &step.act {
            Act::Socket { v6, nonblocking, .. } => Op::Socket {
                domain: if *v6 { libc::AF_INET6 } else { libc::AF_INET },
                ty: libc::SOCK_STREAM | if *nonblocking { libc::SOCK_NONBLOCK } else { 0 },
                protocol: 0,
            },
            Act::Socketpair { ty, .. } => Op::Socketpair { domain: libc::AF_UNIX, ty: *ty, protocol: 0 },
            Act::Pipe { .. } => Op::Pipe,
            Act::Bind { s, ip, place } => Op::Bind { fd: fd(s), addr: self.address(ip, *place, 0) },
            Act::Listen { s, backlog } => Op::Listen { fd: fd(s), backlog: *backlog },
            Act::Connect { s, ip, place } => Op::Connect { fd: fd(s), addr: self.address(ip, *place, 1) },
            Act::Accept { s, nonblocking, .. } => {
                Op::Accept { fd: fd(s), flags: nonblocking.then_some(libc::SOCK_NONBLOCK) }
            }
            Act::Getsockname { s } => Op::Getsockname { fd: fd(s) },
            Act::Getpeername { s } => Op::Getpeername { fd: fd(s) },
            Act::Send { s, len, by, flags } => {
                Op::Send { fd: fd(s), data: text(number, *len), by: *by, flags: *flags }
            }
            Act::Recv { s, len, by, flags } => Op::Recv { fd: fd(s), len: *len, by: *by, flags: *flags },
            Act::Shutdown { s, how } => Op::Shutdown { fd: fd(s), how: *how },
            Act::Close { s } => Op::Close { fd: fd(s) },
            Act::Dup { s, .. } => Op::Dup { fd: fd(s) },
            Act::Dup2 { s, to } => Op::Dup2 { fd: fd(s), to: fd(to) },
            Act::Nonblocking { s, on } => {
                Op::Ioctl { fd: fd(s), request: libc::FIONBIO, value: i32::from(*on) }
            }
            Act::Fionread { s } => Op::Ioctl { fd: fd(s), request: libc::FIONREAD, value: 0 },
            Act::Getsockopt { s, level, name, len } => {
                Op::Getsockopt { fd: fd(s), level: *level, name: *name, len: *len }
            }
            Act::Setsockopt { s, level, name, value } => {
                let data = Bytes(value.iter().flat_map(|v| v.to_ne_bytes()).collect());
                Op::Setsockopt { fd: fd(s), level: *level, name: *name, data }
            }
            Act::SetTimeout { s, name, ms } => {
                let parts = [ms / 1000, ms % 1000 * 1000];
                let data = Bytes(parts.iter().flat_map(|v| v.to_ne_bytes()).collect());
                Op::Setsockopt { fd: fd(s), level: libc::SOL_SOCKET, name: *name, data }
            }
            Act::Poll { set, timeout_ms, by } => Op::Poll {
                fds: set
                    .iter()
                    .map(|(name, events)| (fd(name), *events))
                    .filter(|(fd, _)| *fd >= 0)
                    .collect(),
                timeout_ms: *timeout_ms,
                by: *by,
            },
            Act::Epoll { .. } => Op::EpollCreate { flags: 0 },
            Act::EpollCtl { s, op, member, events } => {
                Op::EpollCtl { ep: fd(s), op: *op, fd: fd(member), events: *events }
            }
            Act::EpollWait { s, max, timeout_ms } => {
                Op::EpollWait { ep: fd(s), max: *max, timeout_ms: *timeout_ms }
            }
            act => return fail(format!("{act:?} is not one call")),
        })
    }

    /// Notes what a call made, and takes out of its answer what is nobody's promise.
    fn returned(&mut self, p: usize, act: &Act, out: Out) -> Out {
        let made: Vec<i32> = match act {
            Act::Pipe { .. } | Act::Socketpair { .. } if out.ret == 0 => {
                out.events.iter().map(|(fd, _)| *fd).collect()
            }
            _ => vec![i32::try_from(out.ret).unwrap_or(-1)],
        };
        if let Some(party) = self.parties.get_mut(&p) {
            match act {
                Act::Close { s } => drop(party.fds.remove(s)),
                act => party.fds.extend(act.makes().into_iter().zip(made).filter(|(_, fd)| *fd >= 0)),
            }
        }
        if let Act::Bind { s, place, .. } = act
            && out.ret == 0
        {
            self.learn_port(p, *s, *place);
        }
        let mut out = out;
        if let Some(addr) = out.addr.as_mut() {
            addr.port = match act {
                // Which port a client gets, and when a number comes again, is nobody's promise.
                Act::Accept { .. } => u16::from(addr.port != 0),
                _ => self.neutral(addr.port),
            };
        }
        out
    }

    /// Asks, off the record, which port a place got.
    fn learn_port(&mut self, p: usize, s: Name, place: u32) {
        let op = Op::Getsockname { fd: self.fd(p, s) };
        let port = self.parties.get(&p).and_then(|party| party.worker.exchange(&op).ok()?.addr);
        if let Some(addr) = port {
            self.places.insert(place, addr.port);
            self.neutral(addr.port);
        }
    }

    /// A chosen port by the order of its appearance.
    fn neutral(&mut self, port: u16) -> u16 {
        if port < CHOSEN_PORTS_FROM {
            return port;
        }
        let at = self.ports.iter().position(|p| *p == port).unwrap_or_else(|| {
            self.ports.push(port);
            self.ports.len() - 1
        });
        u16::try_from(at + 1).unwrap_or(u16::MAX)
    }

    /// What its processes are doing, for a report.
    pub fn describe(&self) -> String {
        self.parties
            .iter()
            .map(|(p, party)| format!("process {p}: {}", child::describe(party.worker.pid())))
            .collect()
    }

    /// Lets all processes end.
    ///
    /// # Errors
    /// When one does not.
    pub fn finish(mut self) -> Outcome {
        self.parties.clear();
        for pid in &self.pids {
            let gone = wait_for(CALL_BOUND, || Ok((!child::alive(*pid)).then_some(())))?;
            ensure(gone.is_some(), || format!("a process does not end\n{}", child::describe(*pid)))?;
        }
        self.pids.clear();
        Ok(())
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // Forked processes are nobody's children here: those that do not end by themselves are killed by number.
        self.parties.clear();
        for pid in &self.pids {
            let gone = wait_for(Duration::from_millis(200), || Ok((!child::alive(*pid)).then_some(())));
            if !matches!(gone, Ok(Some(()))) {
                signal_pid(*pid, Signal::KILL);
            }
        }
    }
}

/// What a step sends: different in each step, so that mixed-up bytes are seen.
fn text(number: usize, len: usize) -> Bytes {
    let alphabet = b"abcdefghijklmnopqrstuvwxyz";
    Bytes(
        alphabet
            .iter()
            .cycle()
            .skip(number % alphabet.len())
            .step_by(1 + number % 3)
            .take(len)
            .copied()
            .collect(),
    )
}

/// Kinds of sending calls that a generator may choose from.
pub const SEND_BY: [SendBy; 5] =
    [SendBy::Write, SendBy::Send, SendBy::Sendto, SendBy::Writev(3), SendBy::Sendmsg(100)];
/// Kinds of receiving calls.
pub const RECV_BY: [RecvBy; 5] =
    [RecvBy::Read, RecvBy::Recv, RecvBy::Recvfrom, RecvBy::Readv(3), RecvBy::Recvmsg(100)];
