//! Two shimmed workers, and `AF_UNIX` connections between them that are brought to a moment of their way out of the kernel,
//! call by call.

use std::cell::Cell;
use std::path::Path;

use harness::child::{Guarded, describe, wait_for};
use harness::instance::Instance;
use harness::scratch::Scratch;
use harness::wire::{Addr, Op, Out, Pattern, RecvBy, SendBy};
use harness::worker::{Worker, hire, meet, meeting_point};
use harness::{Failure, Outcome, ensure, fail};
use libc::{AF_UNIX, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_STREAM};

use crate::kills::BOUND;

/// Bytes of a message.
const MESSAGE: usize = 37;
/// Exchanges after which the client has offered the connection (its 16th call), and the server has not looked (its 20th).
const UNTIL_OFFERED: usize = 8;
/// Calls of the server from there to its look.
const UNTIL_CLAIMED: usize = 4;
/// Exchanges after which both directions are in user space.
pub const GROWN: usize = 24;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The client has offered it, and nobody has claimed it.
    Offered,
    /// The server has claimed it and joined; the client has not.
    Claimed,
    /// Both have joined, and nothing was written since.
    Joined,
}

pub const MOMENTS: [Moment; 3] = [Moment::Offered, Moment::Claimed, Moment::Joined];

/// A worker that makes the calls it is told to make.
pub struct Party {
    worker: Worker,
    pub process: Guarded,
}

impl Party {
    /// A shimmed one.
    pub fn new(instance: &Instance) -> Outcome<Party> {
        let (worker, process) = hire(Path::new(env!("CARGO_BIN_EXE_case-worker")), Some(instance))?;
        Ok(Party { worker, process })
    }

    /// Makes a call, which must return within the bound on calls.
    pub fn call(&self, op: Op) -> Outcome<Out> {
        let pid = self.worker.pid();
        self.worker.exchange(&op).map_err(|e| Failure(format!("{op:?}: {}\n{}", e.0, describe(pid))))
    }

    /// As [`Party::call`], of one that yields a descriptor or 0.
    pub fn number(&self, op: Op) -> Outcome<i32> {
        let out = self.call(op.clone())?;
        ensure(out.ret >= 0, || format!("{op:?}: {out:?}"))?;
        Ok(i32::try_from(out.ret)?)
    }

    pub fn send(&self, fd: i32, data: &[u8], flags: i32) -> Outcome<Out> {
        self.call(Op::Send { fd, data: data.into(), by: SendBy::Send, flags: flags | MSG_NOSIGNAL })
    }

    pub fn recv(&self, fd: i32, len: usize, flags: i32) -> Outcome<Out> {
        self.call(Op::Recv { fd, len, by: RecvBy::Recv, flags })
    }

    /// A socket that listens at `name`.
    pub fn listen(&self, name: &Addr) -> Outcome<i32> {
        let fd = self.number(Op::Socket { domain: AF_UNIX, ty: SOCK_STREAM, protocol: 0 })?;
        self.number(Op::Bind { fd, addr: name.clone() })?;
        self.number(Op::Listen { fd, backlog: 16 })?;
        Ok(fd)
    }

    /// A socket that is connected to `name`.
    pub fn connect(&self, name: &Addr) -> Outcome<i32> {
        let fd = self.number(Op::Socket { domain: AF_UNIX, ty: SOCK_STREAM, protocol: 0 })?;
        self.number(Op::Connect { fd, addr: name.clone() })?;
        Ok(fd)
    }

    /// Reads what there still is, up to the end, which must come: how it ended.
    pub fn until_end(&self, fd: i32) -> Outcome<Out> {
        loop {
            let out = self.recv(fd, 65_536, 0)?;
            if out.ret <= 0 {
                return Ok(out);
            }
        }
    }
}

/// A client and a server.
pub struct Pair<'a> {
    pub instance: &'a mut Instance,
    pub client: Party,
    pub server: Party,
    pub listener: i32,
    pub name: Addr,
    /// Of a forked server: it listens, and does nothing else.
    parent: Option<Worker>,
    _scratch: Scratch,
}

/// One connection of theirs: both descriptors, and bytes sent so far.
pub struct Conn {
    pub c: i32,
    pub s: i32,
    sent: Cell<u64>,
}

impl<'a> Pair<'a> {
    pub fn new(instance: &'a mut Instance) -> Outcome<Pair<'a>> {
        let scratch = Scratch::new()?;
        let name = Addr { ip: format!("unix:{}", scratch.path().join("socket").display()), port: 0 };
        let (client, server) = (Party::new(instance)?, Party::new(instance)?);
        let listener = server.listen(&name)?;
        Ok(Pair { instance, client, server, listener, name, parent: None, _scratch: scratch })
    }

    /// A child of the server accepts from now on, and the server only waits for it.
    pub fn fork_server(mut self) -> Outcome<Pair<'a>> {
        let (control, driver) = meeting_point()?;
        self.server.number(Op::Fork { control })?;
        let child = meet(&driver, || Ok(()))?;
        self.parent = Some(std::mem::replace(&mut self.server.worker, child));
        Ok(self)
    }

    /// A new connection.
    pub fn connect(&self) -> Outcome<Conn> {
        let c = self.client.connect(&self.name)?;
        let s = self.server.number(Op::Accept { fd: self.listener, flags: None })?;
        // Each one at a place of its own in the pattern, so that bytes of another one would not do.
        Ok(Conn { c, s, sent: Cell::new(u64::from(c.unsigned_abs()) * 1_000_003) })
    }

    /// So many messages there and back, every byte checked.
    pub fn exchange(&self, conn: &Conn, times: usize) -> Outcome {
        let pattern = Pattern::default();
        for n in 0..times {
            let message = pattern.at(conn.sent.get(), MESSAGE);
            conn.sent.set(conn.sent.get() + MESSAGE as u64);
            let ways =
                [(&self.client, conn.c, &self.server, conn.s), (&self.server, conn.s, &self.client, conn.c)];
            for (from, out, to, back) in ways {
                let sent = from.send(out, message, 0)?;
                ensure(sent.ret == MESSAGE as i64, || format!("message {n}: sent {sent:?}"))?;
                let mut got = Vec::new();
                while got.len() < MESSAGE {
                    let part = to.recv(back, MESSAGE - got.len(), 0)?;
                    ensure(part.ret > 0, || format!("message {n}: received {part:?}"))?;
                    got.extend_from_slice(&part.data.0);
                }
                ensure(got == message, || format!("message {n} is another one: {got:?}"))?;
            }
        }
        Ok(())
    }

    /// A new connection at that moment, which the kernel's table of sockets and the counters confirm.
    pub fn connect_until(&self, moment: Moment) -> Outcome<Conn> {
        let before = self.instance.totals()?;
        let names = self.offers()?.len();
        let conn = self.connect()?;
        self.exchange(&conn, UNTIL_OFFERED)?;
        ensure(self.offers()?.len() == names + 1, || "the client has not offered the connection".to_owned())?;
        if moment != Moment::Offered {
            for _ in 0..UNTIL_CLAIMED {
                self.server.recv(conn.s, 1, MSG_DONTWAIT)?;
            }
        }
        if moment == Moment::Joined {
            // `Paired` is on its way.
            let joined = wait_for(BOUND, || {
                self.client.recv(conn.c, 1, MSG_DONTWAIT)?;
                Ok(((self.instance.totals()? - before).user.connections == 2).then_some(()))
            })?;
            ensure(joined.is_some(), || "the client does not join".to_owned())?;
        }
        let moved = self.instance.totals()? - before;
        let joined = MOMENTS.iter().position(|m| *m == moment);
        ensure(Some(moved.user.connections) == joined.map(|n| n as u64), || {
            format!("not {moment:?}: {moved:?}")
        })?;
        Ok(conn)
    }

    /// The names that tell of offers under this coordinator: function and serial.
    pub fn offers(&self) -> Outcome<Vec<(u32, u32)>> {
        let prefix = format!("@ipc-direct:{:08x}:", self.instance.report()?.agent.epoch);
        let table = std::fs::read_to_string("/proc/net/unix")?;
        let numbers = |line: &str| {
            let (function, serial) = line.split_once(&prefix)?.1.split_once(':')?;
            Some((u32::from_str_radix(function, 16).ok()?, u32::from_str_radix(serial, 16).ok()?))
        };
        Ok(table.lines().filter_map(numbers).collect())
    }

    /// New connections, one after the other, until one has left the kernel at both ends.
    pub fn until_accelerated(&self) -> Outcome<Conn> {
        let accelerated = wait_for(BOUND, || {
            let before = self.instance.totals()?;
            let conn = self.connect()?;
            self.exchange(&conn, 2 * GROWN)?;
            let moved = self.instance.totals()? - before;
            if moved.user.connections == 2 && moved.user.tx_bytes > 0 {
                return Ok(Some(conn));
            }
            self.close(&conn)?;
            Ok(None)
        })?;
        accelerated.map_or_else(|| fail("new connections still use the kernel"), Ok)
    }

    pub fn close(&self, conn: &Conn) -> Outcome {
        self.client.number(Op::Close { fd: conn.c })?;
        self.server.number(Op::Close { fd: conn.s }).map(drop)
    }
}
