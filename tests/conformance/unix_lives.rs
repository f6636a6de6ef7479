//! `AF_UNIX` stream connections that outlive the program, or go to another process.

use harness::wire::{ExecBy, Op, SpawnBy};
use libc::{AF_UNIX, F_SETFD, FD_CLOEXEC, SHUT_WR, SO_ERROR, SOCK_STREAM, SOL_SOCKET};

use crate::driver::{Duo, GROWN, Pair, Side};
use crate::{
    Case,
    Expect::{Any, Mixed},
};

pub const CASES: &[Case] = &[
    ("unix_lives::server_execs", Mixed, server_execs),
    ("unix_lives::client_execs_with_data_waiting", Mixed, client_execs),
    ("unix_lives::listener_execs", Mixed, listener_execs),
    ("unix_lives::exec_closes", Mixed, exec_closes),
    ("unix_lives::children_share", Mixed, children_share),
    ("unix_lives::accepted_before_the_fork", Mixed, fork_each),
    ("unix_lives::children_accept", Mixed, children_accept),
    ("unix_lives::child_accepts_after_the_listeners_end", Mixed, outlives_listener),
    ("unix_lives::listener_is_passed", Mixed, passed_listener),
    ("unix_lives::child_listens_again", Any, listens_again),
    ("unix_lives::socket_made_before_the_fork", Any, made_before_fork),
    ("unix_lives::spawned_program", Mixed, spawned),
    ("unix_lives::static_program", Mixed, static_program),
    ("unix_lives::passed_to_the_peer", Mixed, passed),
    ("unix_lives::passed_and_never_received", Any, passed_never),
    ("unix_lives::rights_after_an_exec", Mixed, rights_after_exec),
];

/// Questions and answers: enough of them for a new connection to leave the kernel.
fn exchange(c: &Side, cfd: i32, s: &Side, sfd: i32) {
    for _ in 0..GROWN {
        c.send(cfd, b"question");
        s.recv(sfd, 64);
        s.send(sfd, b"answer");
        c.recv(cfd, 64);
    }
}

fn server_execs(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    exchange(&t.c, p.c, &t.s, p.s);
    t.s.exec(ExecBy::Execve);
    t.s.sockname(p.s);
    t.s.peername(p.s);
    t.s.peercred(p.s);
    exchange(&t.c, p.c, &t.s, p.s);
    t.c.close(p.c);
    t.s.recv(p.s, 64);
}

fn client_execs(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.s.send(p.s, b"in the queue");
    t.c.exec(ExecBy::Execve);
    t.c.recv(p.c, 6);
    t.c.recv(p.c, 64);
    exchange(&t.c, p.c, &t.s, p.s);
    t.s.close(p.s);
    t.c.recv(p.c, 64);
    t.c.send(p.c, b"x");
}

fn listener_execs(t: &Duo) {
    let name = t.named("kept");
    let l = t.unix_listener(SOCK_STREAM, &name, 4);
    let early = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.connect(early, &name);
    t.c.send(early, b"before the exec");
    t.s.exec(ExecBy::Execve);
    let s = t.s.accept(l);
    t.s.recv(s, 64);
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.connect(c, &name);
    let s = t.s.accept(l);
    exchange(&t.c, c, &t.s, s);
}

fn exec_closes(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let p = t.unix_pair(SOCK_STREAM);
    exchange(&t.c, p.c, &t.s, p.s);
    t.s.fcntl(p.s, F_SETFD, FD_CLOEXEC);
    t.s.exec(ExecBy::Execve);
    t.c.recv(p.c, 64);
    t.s.recv(p.s, 64);
}

fn children_share(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let Some(child) = t.s.fork("k") else { return };
    for _ in 0..3 {
        exchange(&t.c, p.c, &child, p.s);
        exchange(&t.c, p.c, &t.s, p.s);
    }
    t.s.close(p.s);
    exchange(&t.c, p.c, &child, p.s);
    child.exit();
    if !t.alone() {
        t.c.recv(p.c, 64);
    }
}

fn fork_each(t: &Duo) {
    // One process: its child has the client's end, too, and such an end stays in the kernel.
    if t.only_apart() {
        return;
    }
    let name = t.named("each");
    let l = t.unix_listener(SOCK_STREAM, &name, 4);
    for k in ["k", "m"] {
        let c = t.c.socket(AF_UNIX, SOCK_STREAM);
        t.c.connect(c, &name);
        let s = t.s.accept(l);
        let Some(child) = t.s.fork(k) else { return };
        t.s.close(s);
        exchange(&t.c, c, &child, s);
        child.exit();
        t.s.call(Op::Reap);
        t.c.recv(c, 64);
        t.c.close(c);
    }
}

fn children_accept(t: &Duo) {
    let name = t.named("workers");
    let l = t.unix_listener(SOCK_STREAM, &name, 4);
    let (Some(one), Some(two)) = (t.s.fork("k"), t.s.fork("m")) else { return };
    for worker in [&one, &two, &t.s] {
        let c = t.c.socket(AF_UNIX, SOCK_STREAM);
        t.c.connect(c, &name);
        t.c.peercred(c);
        let s = worker.accept(l);
        exchange(&t.c, c, worker, s);
        worker.peercred(s);
    }
}

/// Clients see in it the process that has called listen(2), which is gone.
fn outlives_listener(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let name = t.named("left");
    let l = t.unix_listener(SOCK_STREAM, &name, 4);
    let Some(child) = t.s.fork("k") else { return };
    t.s.exit();
    for _ in 0..2 {
        let c = t.c.socket(AF_UNIX, SOCK_STREAM);
        t.c.connect(c, &name);
        let s = child.accept(l);
        exchange(&t.c, c, &child, s);
    }
}

/// Who has made it connects, and who has received it accepts.
fn passed_listener(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let name = t.named("passed");
    let l = t.unix_listener(SOCK_STREAM, &name, 4);
    t.s.send_fds(p.s, b"a listener", &[l]);
    let received = t.c.recv_fd(p.c);
    for _ in 0..2 {
        let one = t.s.socket(AF_UNIX, SOCK_STREAM);
        t.s.connect(one, &name);
        let other = t.c.accept(received);
        exchange(&t.s, one, &t.c, other);
    }
}

fn listens_again(t: &Duo) {
    let name = t.named("again");
    let l = t.unix_listener(SOCK_STREAM, &name, 4);
    let Some(child) = t.s.fork("k") else { return };
    child.listen(l, 8);
    for side in [&child, &t.s] {
        let c = t.c.socket(AF_UNIX, SOCK_STREAM);
        t.c.connect(c, &name);
        let s = side.accept(l);
        exchange(&t.c, c, side, s);
    }
}

fn made_before_fork(t: &Duo) {
    let name = t.named("early");
    let l = t.unix_listener(SOCK_STREAM, &name, 4);
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    let Some(child) = t.c.fork("k") else { return };
    child.connect(c, &name);
    let s = t.s.accept(l);
    exchange(&t.c, c, &t.s, s);
    exchange(&child, c, &t.s, s);
}

fn spawned(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let Some(child) = t.s.spawn("k", SpawnBy::PosixSpawn, &[(p.s, 0), (p.s, 1)]) else { return };
    t.s.close(p.s);
    t.c.send(p.c, b"question");
    child.read(0, 64);
    child.write(1, b"answer");
    t.c.recv(p.c, 64);
}

fn static_program(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let p = t.unix_pair(SOCK_STREAM);
    let argv = vec![env!("STATIC_ECHO").to_owned(), p.s.to_string(), p.s.to_string()];
    t.s.call(Op::Spawn { by: SpawnBy::PosixSpawn, argv, moves: vec![] });
    t.s.close(p.s);
    t.c.send(p.c, b"around and back");
    t.c.recv(p.c, 64);
    t.c.shutdown(p.c, SHUT_WR);
    t.c.recv(p.c, 64);
    t.s.call(Op::Reap);
}

/// Two connections, the first to be passed over the second.
fn two(t: &Duo) -> (Pair, Pair) {
    let name = t.named("two");
    let l = t.unix_listener(SOCK_STREAM, &name, 4);
    let make = || {
        let c = t.c.socket(AF_UNIX, SOCK_STREAM);
        t.c.connect(c, &name);
        Pair { l, s: t.s.accept(l), c }
    };
    (make(), make())
}

fn passed(t: &Duo) {
    let (p, over) = two(t);
    exchange(&t.c, p.c, &t.s, p.s);
    t.s.send_fds(over.s, b"yours", &[p.s]);
    t.s.close(p.s);
    let got = t.c.recv_fd(over.c);
    exchange(&t.c, p.c, &t.c, got);
    t.c.close(got);
    t.c.recv(p.c, 64);
}

fn passed_never(t: &Duo) {
    let (p, over) = two(t);
    t.s.send_fds(over.s, b"lost", &[p.s]);
    t.s.close(p.s);
    t.c.close(over.c);
    t.c.recv(p.c, 64);
    t.c.getopt(p.c, SOL_SOCKET, SO_ERROR);
}

fn rights_after_exec(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let (r, w) = t.c.pipe();
    t.c.send(p.c, b"plain ");
    t.c.send_fds(p.c, b"with", &[r]);
    t.c.write(w, b"through it");
    t.s.exec(ExecBy::Execve);
    t.s.recv(p.s, 6);
    let got = t.s.recv_fd(p.s);
    t.s.read(got, 64);
    t.s.send_fds(p.s, b"back", &[got]);
    let back = t.c.recv_fd(p.c);
    t.c.write(w, b"again");
    t.c.read(back, 64);
}
