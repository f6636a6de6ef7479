//! Pipes to and from children, and programs that they run.

use harness::wire::{Op, RecvBy, SendBy};
use libc::POLLIN;

use crate::driver::Duo;
use crate::{Case, Expect::Any};

pub const CASES: &[Case] = &[
    ("pipe::child_writes", Any, child_writes),
    ("pipe::child_reads", Any, child_reads),
    ("pipe::children_both_ways", Any, ping_pong),
    ("pipe::child_is_killed", Any, child_killed),
    ("pipe::spawned_child", Any, spawned),
    ("pipe::static_child", Any, static_child),
    ("pipe::exec_keeps_it", Any, exec),
    ("pipe::megabytes_to_a_child", Any, megabytes),
    ("pipe::thousands_of_messages", Any, messages),
    ("pipe::many", Any, many),
];

fn child_writes(t: &Duo) {
    let (r, w) = t.c.pipe();
    let Some(child) = t.c.fork("k") else { return };
    t.c.close(w);
    child.close(r);
    child.write(w, b"from the child");
    t.c.read(r, 64);
    child.exit();
    t.c.read(r, 64);
}

fn child_reads(t: &Duo) {
    let (r, w) = t.c.pipe();
    t.c.write(w, b"before the fork");
    let Some(child) = t.c.fork("k") else { return };
    child.close(w);
    child.read(r, 64);
    t.c.write(w, b"after it");
    child.read(r, 64);
    t.c.close(w);
    child.read(r, 64);
}

fn ping_pong(t: &Duo) {
    let (there, to) = t.c.pipe();
    let (back, from) = t.c.pipe();
    let Some(child) = t.c.fork("k") else { return };
    for _ in 0..100 {
        t.c.write(to, b"ping");
        child.read(there, 64);
        child.write(from, b"pong");
        t.c.read(back, 64);
    }
}

fn child_killed(t: &Duo) {
    let (r, w) = t.c.pipe();
    let Some(child) = t.c.fork("k") else { return };
    t.c.close(w);
    child.write(w, b"before the end");
    child.kill();
    t.c.read(r, 64);
    t.c.read(r, 64);
}

fn spawned(t: &Duo) {
    let (r, w) = t.c.pipe();
    let Some(child) = t.c.spawn("k", harness::wire::SpawnBy::PosixSpawn, &[(w, 1)]) else { return };
    t.c.close(w);
    child.close(w);
    child.write(1, b"to standard output");
    t.c.read(r, 64);
    child.exit();
    t.c.read(r, 64);
}

/// A static program that copies `from` to `to`.
pub fn copier(from: i32, to: i32) -> Op {
    let argv = vec![env!("STATIC_ECHO").to_owned(), from.to_string(), to.to_string()];
    Op::Spawn { by: harness::wire::SpawnBy::Fork, argv, moves: vec![] }
}

fn static_child(t: &Duo) {
    let (there, to) = t.c.two(Op::Pipe2 { flags: 0 });
    let (back, from) = t.c.pipe();
    t.c.fcntl(to, libc::F_SETFD, libc::FD_CLOEXEC);
    t.c.call(copier(there, from));
    t.c.close(from);
    t.c.write(to, b"through a static program");
    t.c.read(back, 64);
    t.c.close(to);
    t.c.read(back, 64);
    t.c.call(Op::Reap);
}

fn exec(t: &Duo) {
    let (r, w) = t.c.pipe();
    t.c.write(w, b"before");
    t.c.exec(harness::wire::ExecBy::Execve);
    t.c.read(r, 64);
    t.c.write(w, b"after");
    t.c.read(r, 64);
    t.c.close(w);
    t.c.read(r, 64);
}

fn megabytes(t: &Duo) {
    let (r, w) = t.c.pipe();
    let Some(child) = t.c.fork("k") else { return };
    t.c.close(r);
    let total = 8 << 20;
    let writing = t.c.start(Op::Pump { fd: w, total, chunk: 60_000, by: SendBy::Write });
    child.close(w);
    child.call(Op::Drain { fd: r, total, chunk: 50_000, by: RecvBy::Read, flags: 0 });
    t.c.join(writing);
}

fn messages(t: &Duo) {
    let (r, w) = t.c.pipe();
    let Some(child) = t.c.fork("k") else { return };
    let total = 64_000;
    let writing = t.c.start(Op::Pump { fd: w, total, chunk: 8, by: SendBy::Write });
    child.call(Op::Drain { fd: r, total, chunk: 8, by: RecvBy::Read, flags: 0 });
    t.c.join(writing);
    t.c.close(w);
    child.close(w);
    child.read(r, 4);
}

fn many(t: &Duo) {
    let pipes: Vec<(i32, i32)> = (0..50).map(|_| t.c.pipe()).collect();
    for (_, w) in pipes.iter().step_by(7) {
        t.c.write(*w, b"x");
    }
    let readers: Vec<(i32, i16)> = pipes.iter().map(|(r, _)| (*r, POLLIN)).collect();
    t.c.poll(&readers, 0);
    for (r, w) in pipes {
        t.c.close(r);
        t.c.close(w);
    }
    t.c.pipe();
}
