//! Peers of an `AF_UNIX` connection that lie about it (the `hostile` program): whom they lie to gets an error or goes on over the
//! kernel, its calls return, and its other connections go on, byte by byte.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use harness::child::Guarded;
use harness::instance::{Instance, with_instance};
use harness::scratch::Scratch;
use harness::wire::{Addr, Op, Pattern, PollBy};
use harness::{Failure, Outcome, ensure, fail};
use libc::{MSG_DONTWAIT, POLLIN};

use crate::kills::BOUND;
use crate::unix_pair::{GROWN, Moment, Pair, Party};

/// What a lie leaves of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    /// The kernel's: nobody has got memory for it.
    Kernel,
    /// Bytes that come back right, by whichever way.
    Bytes,
    /// Whatever the liar makes of it.
    Garbage,
}

/// Those told by a client, and by a server.
const CLIENTS: [(&str, Left); 8] = [
    ("silent", Left::Bytes),
    ("retracts", Left::Kernel),
    ("offers-to-others", Left::Kernel),
    ("forges-names", Left::Kernel),
    ("dies-after-its-offer", Left::Bytes),
    ("dies-after-the-claim", Left::Bytes),
    ("betrays", Left::Garbage),
    ("scribbles", Left::Garbage),
];
const SERVERS: [(&str, Left); 5] = [
    ("server-steals", Left::Bytes),
    ("server-claims-twice", Left::Bytes),
    ("server-dies-after-its-claim", Left::Bytes),
    ("server-betrays", Left::Garbage),
    ("server-scribbles", Left::Garbage),
];
/// Reads after a liar's end; garbage in a ring may go on for as long as somebody reads.
const READS_MAX: usize = 64;

pub fn clients() -> Outcome {
    each(&CLIENTS, |lie, left, seed| with_instance(|instance| client(instance, lie, left, seed)))
}

pub fn servers() -> Outcome {
    each(&SERVERS, |lie, left, seed| with_instance(|instance| server(instance, lie, left, seed)))
}

fn each(lies: &[(&str, Left)], tell: impl Fn(&str, Left, &str) -> Outcome) -> Outcome {
    for (lie, left) in lies {
        let seeds: &[&str] = if *left == Left::Garbage { &["1", "2", "3"] } else { &["1"] };
        for seed in seeds {
            let told = tell(lie, *left, seed);
            told.or_else(|e| fail(format!("{lie}, seed {seed}: {}", e.0)))?;
        }
    }
    Ok(())
}

fn liar(instance: &Instance, lie: &str, seed: &str, name: &Addr) -> Outcome<Guarded> {
    let path = name.ip.trim_start_matches("unix:");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hostile"));
    command.args(["unix", instance.socket(), "1", seed, lie, path]);
    Guarded::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()))
}

/// Does `step` until the liar has ended, which it must do well: what must hold for it, it has seen.
fn while_lying(liar: &mut Guarded, mut step: impl FnMut() -> Outcome) -> Outcome {
    let end = Instant::now() + BOUND;
    loop {
        if let Some(status) = liar.ended()? {
            return ensure(status.success(), || format!("the liar ended with {status}"));
        }
        ensure(Instant::now() < end, || "the liar does not end".to_owned())?;
        step()?;
    }
}

/// The server gives back whatever comes over a liar's connections, beside an honest client's.
fn client(instance: &mut Instance, lie: &str, left: Left, seed: &str) -> Outcome {
    let pair = Pair::new(instance)?;
    let grown = pair.until_accelerated()?;
    let offered = pair.connect_until(Moment::Offered)?;
    let before = pair.instance.totals()?;
    let mut liar = liar(pair.instance, lie, seed, &pair.name)?;
    let victim = &pair.server;
    let mut liars = Vec::new();
    while_lying(&mut liar, || {
        let come = Op::Poll { fds: vec![(pair.listener, POLLIN)], timeout_ms: 0, by: PollBy::Poll };
        if victim.number(come)? == 1 {
            liars.push(victim.number(Op::Accept { fd: pair.listener, flags: None })?);
        }
        for fd in &liars {
            let got = victim.recv(*fd, 65_536, MSG_DONTWAIT)?;
            if got.ret > 0 {
                victim.send(*fd, &got.data.0, MSG_DONTWAIT)?;
            }
        }
        pair.exchange(&grown, 1)
    })?;
    let joined = (pair.instance.totals()? - before).user.connections;
    ensure(left != Left::Kernel || joined == 0, || {
        "a connection that was not offered was claimed".to_owned()
    })?;
    ensure(!liars.is_empty(), || "the liar did not come".to_owned())?;
    for fd in liars {
        end(victim, fd, left)?;
    }
    pair.exchange(&offered, 2 * GROWN)?;
    pair.exchange(&grown, GROWN)?;
    pair.until_accelerated().map(drop)
}

/// The client sends a pattern to a liar and takes what comes back, beside its connections to an honest server.
fn server(instance: &mut Instance, lie: &str, left: Left, seed: &str) -> Outcome {
    const MESSAGE: usize = 41;
    let pair = Pair::new(instance)?;
    let grown = pair.until_accelerated()?;
    let offered = pair.connect_until(Moment::Offered)?;
    let scratch = Scratch::new()?;
    let name = Addr { ip: format!("unix:{}", scratch.path().join("liar").display()), port: 0 };
    let mut liar = liar(pair.instance, lie, seed, &name)?;
    let out = liar.stdout().ok_or_else(|| Failure("the output is not piped".to_owned()))?;
    BufReader::new(out).read_line(&mut String::new())?;
    let victim = &pair.client;
    let fd = victim.connect(&name)?;
    let pattern = Pattern::default();
    let (mut sent, mut received) = (0, 0);
    while_lying(&mut liar, || {
        let out = victim.send(fd, pattern.at(sent, MESSAGE), MSG_DONTWAIT)?;
        sent += u64::try_from(out.ret).unwrap_or(0);
        let got = victim.recv(fd, 65_536, MSG_DONTWAIT)?;
        let right = left == Left::Garbage || pattern.check(received, &got.data.0);
        ensure(right, || format!("after {received} bytes came others than were sent"))?;
        received += u64::try_from(got.ret).unwrap_or(0);
        pair.exchange(&grown, 1)
    })?;
    end(victim, fd, left)?;
    pair.exchange(&offered, 2 * GROWN)?;
    pair.exchange(&grown, GROWN)?;
    pair.until_accelerated().map(drop)
}

/// The liar is gone: the victim's reads, which wait, come to an end.
fn end(victim: &Party, fd: i32, left: Left) -> Outcome {
    for _ in 0..READS_MAX {
        if victim.recv(fd, 65_536, 0)?.ret <= 0 {
            return victim.number(Op::Close { fd }).map(drop);
        }
    }
    ensure(left == Left::Garbage, || "the end does not come".to_owned())?;
    victim.number(Op::Close { fd }).map(drop)
}
