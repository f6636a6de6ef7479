//! Runs a case: two workers that make the calls, one script, one transcript.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use harness::child::{self, Guarded, signal_pid, wait_for};
use harness::instance::Instance;
use harness::lab::Lab;
use harness::scratch::Scratch;
use harness::wire::{Addr, Bytes, ExecBy, Op, Out, PollBy, RecvBy, SendBy, SpawnBy};
use harness::worker::{CALL_BOUND, Worker, hire, hire_by, meet, meeting_point};
use harness::{Outcome, fail};
use rustix::process::Signal;

use crate::transcript::Transcript;
use crate::{WORKER, across};

/// As many looks in a row must find a thread asleep: one may catch it on its way into the call.
const ASLEEP_LOOKS: u32 = 4;

/// Exchanges after which an `AF_UNIX` connection has left the kernel.
pub const GROWN: usize = 24;

/// Which sides run under the shim, and whether both are one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Two plain processes: the oracle.
    Native,
    /// One plain process that talks to itself: the oracle of `Alone`.
    NativeAlone,
    /// Two shimmed processes.
    Both,
    /// One shimmed process that talks to itself.
    Alone,
    /// Only the client is shimmed.
    ClientOnly,
    /// Only the server is shimmed.
    ServerOnly,
}

impl Mode {
    /// The mode whose transcript this one must repeat.
    pub fn oracle(self) -> Mode {
        match self {
            Mode::Alone | Mode::NativeAlone => Mode::NativeAlone,
            _ => Mode::Native,
        }
    }

    fn client_shimmed(self) -> bool {
        matches!(self, Mode::Both | Mode::Alone | Mode::ClientOnly)
    }

    fn server_shimmed(self) -> bool {
        matches!(self, Mode::Both | Mode::Alone | Mode::ServerOnly)
    }
}

/// Where the parties of a case are.
#[derive(Clone, Copy)]
pub enum Stage<'a> {
    /// Here; the shimmed ones with this agent.
    Here(Option<&'a Instance>),
    /// The server on the first host of a lab, the client on the second. What one side does has so long to arrive before the other's
    /// next call.
    Hosts(&'a Lab, Duration),
}

impl Stage<'_> {
    fn hire(self, worker: &Path, host: u32, shimmed: bool) -> Outcome<(Worker, Guarded)> {
        match self {
            Stage::Here(instance) => hire(worker, instance.filter(|_| shimmed)),
            Stage::Hosts(lab, _) => hire_by(lab.in_host(&format!("h{host}"), shimmed, worker)?),
        }
    }
}

const SERVER_HOST: u32 = 1;
const CLIENT_HOST: u32 = 2;

/// One party of a case; its methods are the calls that the party makes.
#[derive(Clone)]
pub struct Side {
    name: &'static str,
    worker: Rc<Worker>,
    transcript: Rc<Transcript>,
    /// Its host, and the other side's, if they are different ones, and how long the way is.
    hosts: Option<([u32; 2], Duration)>,
}

impl Side {
    /// Makes any call and records it.
    pub fn call(&self, op: Op) -> Out {
        let out = self.quiet(&op);
        self.transcript.note(self.name, &op, &out);
        out
    }

    /// Makes any call off the record.
    pub fn quiet(&self, op: &Op) -> Out {
        if self.transcript.broken.borrow().is_some() {
            return Out { ret: -1, ..Out::default() };
        }
        self.transcript.count(op);
        let told = self.hosts.map(|(hosts, _)| across::told(op, hosts));
        if let Some((_, on_the_way)) = self.hosts
            && self.transcript.last.replace(self.name) != self.name
        {
            std::thread::sleep(on_the_way);
        }
        match self.worker.exchange(told.as_ref().unwrap_or(op)) {
            Ok(out) => out,
            Err(e) => {
                self.transcript.give_up(format!("{} {op:?}: {}", self.name, e.0));
                Out { ret: -1, ..Out::default() }
            }
        }
    }

    fn fd(&self, op: Op) -> i32 {
        i32::try_from(self.call(op).ret).unwrap_or(-1)
    }

    pub fn socket(&self, domain: i32, ty: i32) -> i32 {
        self.fd(Op::Socket { domain, ty, protocol: 0 })
    }
    /// A TCP socket over IPv4.
    pub fn tcp(&self) -> i32 {
        self.socket(libc::AF_INET, libc::SOCK_STREAM)
    }
    pub fn bind(&self, fd: i32, addr: &Addr) -> Out {
        self.call(Op::Bind { fd, addr: addr.clone() })
    }
    pub fn listen(&self, fd: i32, backlog: i32) -> Out {
        self.call(Op::Listen { fd, backlog })
    }
    pub fn connect(&self, fd: i32, addr: &Addr) -> Out {
        self.call(Op::Connect { fd, addr: addr.clone() })
    }
    pub fn accept(&self, fd: i32) -> i32 {
        self.fd(Op::Accept { fd, flags: None })
    }
    pub fn accept4(&self, fd: i32, flags: i32) -> i32 {
        self.fd(Op::Accept { fd, flags: Some(flags) })
    }
    pub fn sockname(&self, fd: i32) -> Addr {
        self.call(Op::Getsockname { fd }).addr.unwrap_or(Addr { ip: String::new(), port: 0 })
    }
    pub fn peername(&self, fd: i32) -> Out {
        self.call(Op::Getpeername { fd })
    }
    pub fn send_by(&self, fd: i32, data: &[u8], by: SendBy, flags: i32) -> Out {
        self.call(Op::Send { fd, data: data.into(), by, flags })
    }
    pub fn recv_by(&self, fd: i32, len: usize, by: RecvBy, flags: i32) -> Out {
        self.call(Op::Recv { fd, len, by, flags })
    }
    pub fn send(&self, fd: i32, data: &[u8]) -> Out {
        self.send_by(fd, data, SendBy::Send, libc::MSG_NOSIGNAL)
    }
    pub fn recv(&self, fd: i32, len: usize) -> Out {
        self.recv_by(fd, len, RecvBy::Recv, 0)
    }
    pub fn shutdown(&self, fd: i32, how: i32) -> Out {
        self.call(Op::Shutdown { fd, how })
    }
    pub fn close(&self, fd: i32) -> Out {
        self.call(Op::Close { fd })
    }
    pub fn dup(&self, fd: i32) -> i32 {
        self.fd(Op::Dup { fd })
    }
    pub fn fcntl(&self, fd: i32, cmd: i32, arg: i32) -> i32 {
        self.fd(Op::Fcntl { fd, cmd, arg })
    }
    /// Adds `O_NONBLOCK`.
    pub fn nonblocking(&self, fd: i32) {
        let flags = self.fcntl(fd, libc::F_GETFL, 0);
        self.fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK);
    }
    pub fn ioctl(&self, fd: i32, request: libc::Ioctl, value: i32) -> Out {
        self.call(Op::Ioctl { fd, request, value })
    }
    pub fn getopt(&self, fd: i32, level: i32, name: i32) -> Out {
        self.call(Op::Getsockopt { fd, level, name, len: 4 })
    }
    pub fn setopt(&self, fd: i32, level: i32, name: i32, value: i32) -> Out {
        self.setopt_bytes(fd, level, name, &value.to_ne_bytes())
    }
    pub fn setopt_bytes(&self, fd: i32, level: i32, name: i32, data: &[u8]) -> Out {
        self.call(Op::Setsockopt { fd, level, name, data: Bytes(data.to_vec()) })
    }
    pub fn poll(&self, fds: &[(i32, i16)], timeout_ms: i32) -> Out {
        self.poll_by(fds, timeout_ms, PollBy::Poll)
    }
    pub fn poll_by(&self, fds: &[(i32, i16)], timeout_ms: i32, by: PollBy) -> Out {
        self.call(Op::Poll { fds: fds.to_vec(), timeout_ms, by })
    }
    /// Waits, off the record, until `fd` has one of `events`: for what the peer's stack does in its own time.
    pub fn settle(&self, fd: i32, events: i16) {
        let ready = self.quiet(&Op::Poll { fds: vec![(fd, events)], timeout_ms: 5000, by: PollBy::Poll }).ret;
        self.remark(&format!("{} waits for {events:#x} on {fd}: {ready}", self.name));
    }
    pub fn epoll(&self) -> i32 {
        self.fd(Op::EpollCreate { flags: 0 })
    }
    pub fn epoll_ctl(&self, ep: i32, op: i32, fd: i32, events: i32) -> Out {
        self.call(Op::EpollCtl { ep, op, fd, events: events.cast_unsigned() })
    }
    pub fn epoll_add(&self, ep: i32, fd: i32, events: i32) -> Out {
        self.epoll_ctl(ep, libc::EPOLL_CTL_ADD, fd, events)
    }
    pub fn epoll_wait(&self, ep: i32, timeout_ms: i32) -> Out {
        self.call(Op::EpollWait { ep, max: 16, timeout_ms })
    }
    /// Both ends of a fresh pipe.
    pub fn pipe(&self) -> (i32, i32) {
        self.two(Op::Pipe)
    }
    /// A pair by `call`: `Op::Pipe`, `Op::Pipe2` or `Op::Socketpair`.
    pub fn two(&self, op: Op) -> (i32, i32) {
        match self.call(op).events.as_slice() {
            [(a, _), (b, _)] => (*a, *b),
            _ => (-1, -1),
        }
    }
    /// Both ends of a fresh `AF_UNIX` pair.
    pub fn socketpair(&self, ty: i32) -> (i32, i32) {
        self.two(Op::Socketpair { domain: libc::AF_UNIX, ty, protocol: 0 })
    }
    pub fn write(&self, fd: i32, data: &[u8]) -> Out {
        self.send_by(fd, data, SendBy::Write, 0)
    }
    pub fn read(&self, fd: i32, len: usize) -> Out {
        self.recv_by(fd, len, RecvBy::Read, 0)
    }
    pub fn open(&self, path: &str, flags: i32) -> i32 {
        self.fd(Op::Open { path: path.to_owned(), flags, mode: 0o600 })
    }
    /// Sends descriptors with `data`.
    pub fn send_fds(&self, fd: i32, data: &[u8], fds: &[i32]) -> Out {
        let (data, rights) = (data.into(), fds.to_vec());
        self.call(Op::SendMessage {
            fd,
            data,
            to: None,
            rights,
            credentials: None,
            flags: libc::MSG_NOSIGNAL,
        })
    }
    /// Receives up to 64 bytes and whatever comes with them.
    pub fn recv_message(&self, fd: i32, flags: i32) -> Out {
        self.call(Op::RecvMessage { fd, len: 64, control_len: 256, flags })
    }
    /// Receives one descriptor.
    pub fn recv_fd(&self, fd: i32) -> i32 {
        self.recv_message(fd, 0).events.first().map_or(-1, |(fd, _)| *fd)
    }
    pub fn peercred(&self, fd: i32) -> Out {
        self.call(Op::Peercred { fd })
    }
    /// Starts a call in a thread of its own.
    pub fn start(&self, op: Op) -> i64 {
        self.call(Op::Start { op: Box::new(op) }).ret
    }
    pub fn start_recv(&self, fd: i32, len: usize) -> i64 {
        self.start(Op::Recv { fd, len, by: RecvBy::Recv, flags: 0 })
    }
    pub fn join(&self, ticket: i64) -> Out {
        self.call(Op::Join { ticket })
    }
    pub fn interrupt(&self, ticket: i64, signal: i32) -> Out {
        self.call(Op::Interrupt { ticket, signal })
    }
    /// What a signal does: 0 default, 1 ignore, 2 count.
    pub fn signal(&self, signal: i32, what: i32, flags: i32) -> Out {
        self.call(Op::Signal { signal, what, flags })
    }
    pub fn signals(&self, signal: i32) -> Out {
        self.call(Op::Signals { signal })
    }

    /// Waits, off the record, until every thread of the worker sleeps: the started calls are under way then.
    pub fn until_blocked(&self) {
        let mut looks = 0;
        let _ = wait_for(CALL_BOUND, || {
            looks = if child::sleeps(self.worker.pid()) { looks + 1 } else { 0 };
            Ok((looks == ASLEEP_LOOKS).then_some(()))
        });
    }

    /// The worker gets the signals of `fd` (`F_SETOWN`); off the record, since its number differs from run to run.
    pub fn owns(&self, fd: i32) {
        let pid = i32::try_from(self.worker.own_pid()).unwrap_or(-1);
        self.quiet(&Op::Fcntl { fd, cmd: libc::F_SETOWN, arg: pid });
    }
    /// Records whether a counted signal comes more than `than` times, waiting for it a while; returns how often it came.
    pub fn signalled(&self, signal: i32, than: i64) -> i64 {
        let count = || self.quiet(&Op::Signals { signal }).ret;
        let came = wait_for(CALL_BOUND / 5, || Ok(Some(count()).filter(|n| *n > than)));
        self.remark(&format!("{} gets signal {signal}: {}", self.name, matches!(came, Ok(Some(_)))));
        count()
    }

    /// Forks the worker; the child is a party of its own.
    pub fn fork(&self, name: &'static str) -> Option<Side> {
        self.child(name, |control| Op::Fork { control })
    }

    /// Starts another worker program with descriptors moved; it is a party of its own.
    pub fn spawn(&self, name: &'static str, by: SpawnBy, moves: &[(i32, i32)]) -> Option<Side> {
        let argv = |control| vec![WORKER.to_owned(), control];
        self.child(name, |control| Op::Spawn { by, argv: argv(control), moves: moves.to_vec() })
    }

    fn child(&self, name: &'static str, op: impl FnOnce(String) -> Op) -> Option<Side> {
        let (control, listener) = meeting_point().ok()?;
        let out = self.call(op(control));
        if out.ret != 1 {
            return None;
        }
        match meet(&listener, || Ok(())) {
            Ok(worker) => {
                self.transcript.pids.borrow_mut().push(worker.pid());
                let (worker, transcript) = (Rc::new(worker), Rc::clone(&self.transcript));
                Some(Side { name, worker, transcript, hosts: self.hosts })
            }
            Err(e) => {
                self.transcript.give_up(format!("{name}, which {} made: {}", self.name, e.0));
                None
            }
        }
    }

    /// Makes a call that takes the worker's link to the driver away: the worker reports anew.
    fn call_and_meet(&self, op: impl FnOnce(String) -> Op, answers: bool) {
        let renewed = || -> Outcome<(Op, Out)> {
            let (control, listener) = meeting_point()?;
            let op = op(control);
            self.worker.tell(&op)?;
            self.worker.meet_again(&listener)?;
            let out = if answers { self.worker.answer()? } else { Out::default() };
            Ok((op, out))
        };
        if self.transcript.broken.borrow().is_some() {
            return;
        }
        match renewed() {
            Ok((op, out)) => {
                self.transcript.count(&op);
                self.transcript.note(self.name, &op, &out);
                let (pid, mut pids) = (self.worker.pid(), self.transcript.pids.borrow_mut());
                if !pids.contains(&pid) {
                    pids.push(pid);
                }
            }
            Err(e) => self.transcript.give_up(format!("{}: {}", self.name, e.0)),
        }
    }

    /// Replaces the worker's program by itself: descriptors without `FD_CLOEXEC` stay.
    pub fn exec(&self, by: ExecBy) {
        self.call_and_meet(|control| Op::Exec { by, argv: vec![WORKER.to_owned(), control] }, false);
    }

    /// `closefrom`, which closes all that the process has.
    pub fn closefrom(&self, first: i32) {
        self.call_and_meet(|control| Op::Closefrom { first, control }, true);
    }

    /// `daemon(3)`: the party goes on as a child of its own.
    pub fn daemon(&self) {
        self.call_and_meet(|control| Op::Daemon { control }, true);
    }

    /// Ends the worker without closing anything, and waits until it is gone.
    pub fn exit(&self) {
        let _ = self.worker.tell(&Op::Exit);
        self.note_end("exits");
    }

    /// Kills the worker, and waits until it is gone.
    pub fn kill(&self) {
        signal_pid(self.worker.pid(), Signal::KILL);
        self.note_end("is killed");
    }

    fn note_end(&self, how: &str) {
        let gone = wait_for(CALL_BOUND, || Ok((!child::alive(self.worker.pid())).then_some(())));
        self.transcript.push(&format!("{} {how}: {}", self.name, matches!(gone, Ok(Some(())))));
    }

    /// A line of the transcript that is not a call.
    pub fn remark(&self, text: &str) {
        self.transcript.push(text);
    }
}

/// Both sides of a case.
pub struct Duo {
    /// The client.
    pub c: Side,
    /// The server.
    pub s: Side,
    /// A case of connections is run over pairs instead, which one process has.
    pub over_pairs: Cell<bool>,
    alone: bool,
    skipped: Cell<bool>,
    scratch: Scratch,
}

/// A connection: the listener, the server's and the client's descriptor.
#[derive(Clone, Copy)]
pub struct Pair {
    pub l: i32,
    pub s: i32,
    pub c: i32,
}

/// `127.0.0.1`, port 0.
pub fn v4() -> Addr {
    at("127.0.0.1", 0)
}

/// `::1`, port 0.
pub fn v6() -> Addr {
    at("::1", 0)
}

pub fn at(ip: &str, port: u16) -> Addr {
    Addr { ip: ip.to_owned(), port }
}

impl Duo {
    /// A file name of this run's own.
    pub fn path(&self, name: &str) -> String {
        self.scratch.path().join(name).display().to_string()
    }

    /// `path` as the name of an `AF_UNIX` socket.
    pub fn named(&self, name: &str) -> Addr {
        at(&format!("unix:{}", self.path(name)), 0)
    }

    /// An abstract `AF_UNIX` name of this run's own.
    pub fn abstract_name(&self, name: &str) -> Addr {
        at(&format!("unix:@{}/{name}", self.s.transcript.own_name), 0)
    }

    /// The server listens on `addr`; returns the listener and where it is.
    pub fn listener_at(&self, domain: i32, addr: &Addr, backlog: i32) -> (i32, Addr) {
        let l = self.s.socket(domain, libc::SOCK_STREAM);
        self.s.bind(l, addr);
        self.s.listen(l, backlog);
        (l, self.s.sockname(l))
    }

    /// The server listens on 127.0.0.1.
    pub fn listener(&self) -> (i32, Addr) {
        self.listener_at(libc::AF_INET, &v4(), 16)
    }

    /// A connection over IPv4.
    pub fn pair(&self) -> Pair {
        let (l, addr) = self.listener();
        let c = self.c.tcp();
        self.c.connect(c, &addr);
        Pair { l, s: self.s.accept(l), c }
    }

    /// The server listens at an `AF_UNIX` name.
    pub fn unix_listener(&self, ty: i32, name: &Addr, backlog: i32) -> i32 {
        let l = self.s.socket(libc::AF_UNIX, ty);
        self.s.bind(l, name);
        self.s.listen(l, backlog);
        l
    }

    /// A connection of the `AF_UNIX` family, through a path.
    pub fn unix_pair(&self, ty: i32) -> Pair {
        let name = self.named("socket");
        let l = self.unix_listener(ty, &name, 16);
        let c = self.c.socket(libc::AF_UNIX, ty);
        self.c.connect(c, &name);
        let p = Pair { l, s: self.s.accept(l), c };
        if ty == libc::SOCK_STREAM {
            self.grow(p);
        }
        p
    }

    /// Exchanges so many messages that an `AF_UNIX` connection has left the kernel, in both directions, if it can.
    pub fn grow(&self, p: Pair) {
        for _ in 0..GROWN {
            self.c.send(p.c, b"growing");
            self.s.recv(p.s, 64);
            self.s.send(p.s, b"grown");
            self.c.recv(p.c, 64);
        }
    }

    /// True when both sides are one process; a case that makes no sense then returns at once.
    pub fn only_apart(&self) -> bool {
        self.skipped.set(self.alone);
        self.alone
    }

    /// True when both sides are one process: after a fork the child then holds both ends.
    pub fn alone(&self) -> bool {
        self.alone
    }

    /// Gives a call in another thread time to block. No outcome depends on it: a call that comes later than
    /// what it waits for returns the same.
    pub fn pause(&self) {
        std::thread::sleep(Duration::from_millis(40));
    }
}

/// What a run of a case gave.
pub struct Run {
    /// The transcript.
    pub lines: Vec<String>,
    /// The case does not apply to this mode.
    pub skipped: bool,
    /// Functions that were called.
    pub calls: BTreeSet<&'static str>,
}

/// Runs `case` in `mode`; `look` is called when the script is done and the workers still live.
pub fn run<T>(
    worker: &Path,
    stage: Stage<'_>,
    mode: Mode,
    case: fn(&Duo),
    look: impl FnOnce() -> Outcome<T>,
) -> Outcome<(Run, T)> {
    let (server, mut server_process) = stage.hire(worker, SERVER_HOST, mode.server_shimmed())?;
    let alone = mode.oracle() == Mode::NativeAlone;
    let second = if alone { None } else { Some(stage.hire(worker, CLIENT_HOST, mode.client_shimmed())?) };
    let server = Rc::new(server);
    let (client, mut client_process) = match second {
        Some((w, p)) => (Rc::new(w), Some(p)),
        None => (Rc::clone(&server), None),
    };
    let scratch = Scratch::new()?;
    let own_name = scratch.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let transcript = Rc::new(Transcript::new(own_name, vec![server.pid(), client.pid()]));
    let side = |name, worker: &Rc<Worker>, hosts| Side {
        name,
        worker: Rc::clone(worker),
        transcript: Rc::clone(&transcript),
        hosts: match stage {
            Stage::Here(_) => None,
            Stage::Hosts(_, on_the_way) => Some((hosts, on_the_way)),
        },
    };
    let skipped = Cell::new(false);
    let over_pairs = Cell::new(false);
    let c = side("c", &client, [CLIENT_HOST, SERVER_HOST]);
    let s = side("s", &server, [SERVER_HOST, CLIENT_HOST]);
    let duo = Duo { c, s, over_pairs, alone, skipped, scratch };
    case(&duo);
    let skipped = duo.skipped.get();
    if let Some(text) = transcript.broken.borrow().as_ref() {
        let so_far = transcript.lines.borrow().join("\n  ");
        let others: Vec<String> = transcript.pids.borrow().iter().map(|pid| child::describe(*pid)).collect();
        let rings = match stage {
            Stage::Here(instance) => instance.map(Instance::describe).unwrap_or_default(),
            Stage::Hosts(lab, _) => lab.describe(),
        };
        let all = others.concat();
        return fail(format!("{mode:?} got stuck: {text}\nso far:\n  {so_far}\n{all}{rings}"));
    }
    let looked = look()?;
    drop(duo);
    drop((server, client));
    server_process.wait(CALL_BOUND)?;
    if let Some(process) = client_process.as_mut() {
        process.wait(CALL_BOUND)?;
    }
    Ok((Run { lines: transcript.lines.take(), skipped, calls: transcript.calls.take() }, looked))
}
