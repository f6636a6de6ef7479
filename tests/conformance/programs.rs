//! Other programs get our sockets: exec, spawn in its kinds, a static child, descriptors passed in messages.

use harness::wire::{ExecBy, Op, SpawnBy};
use libc::{
    AF_INET, F_GETFD, F_GETFL, F_SETFD, FD_CLOEXEC, IPPROTO_TCP, POLLIN, SHUT_WR, SO_ERROR, SOCK_CLOEXEC,
    SOCK_STREAM, SOL_SOCKET, TCP_NODELAY,
};

use crate::driver::{Duo, Pair, Side};
use crate::{
    Case,
    Expect::{Any, Mixed, User},
};

pub const CASES: &[Case] = &[
    ("exec::server_goes_on", User, |t| server_execs(t, ExecBy::Execve)),
    ("exec::by_execv", User, |t| server_execs(t, ExecBy::Execv)),
    ("exec::by_execvp", User, |t| server_execs(t, ExecBy::Execvp)),
    ("exec::by_fexecve", User, |t| server_execs(t, ExecBy::Fexecve)),
    ("exec::client_goes_on", User, client_execs),
    ("exec::twice", User, exec_twice),
    ("exec::cloexec_closes", User, exec_cloexec),
    ("exec::listener_stays", User, exec_listener),
    ("exec::waiting_connection_is_accepted_after", User, exec_backlog),
    ("exec::unread_data_is_read_after", User, exec_unread),
    ("exec::dup_stays", User, exec_dup),
    ("exec::flags_and_options_stay", User, exec_flags),
    ("exec::half_closed_stays_so", User, exec_half_closed),
    ("exec::peer_closed_meanwhile", User, exec_peer_closed),
    ("exec::bound_socket_listens_after", Any, exec_bound),
    ("exec::fresh_socket_connects_after", Any, exec_fresh),
    ("exec::of_what_is_not_there", Mixed, exec_fails),
    ("exec::child_of_fork_execs", User, exec_in_child),
    ("exec::parent_execs_child_stays", User, exec_of_parent),
    ("spawn::by_fork", User, |t| spawned(t, SpawnBy::Fork)),
    ("spawn::by_vfork", User, |t| spawned(t, SpawnBy::Vfork)),
    ("spawn::by_posix_spawn", User, |t| spawned(t, SpawnBy::PosixSpawn)),
    ("spawn::by_posix_spawnp", User, |t| spawned(t, SpawnBy::PosixSpawnp)),
    ("spawn::as_standard_streams", User, |t| standard_streams(t, SpawnBy::Fork)),
    ("spawn::as_standard_streams_by_vfork", User, |t| standard_streams(t, SpawnBy::Vfork)),
    ("spawn::as_standard_streams_by_posix_spawn", User, |t| standard_streams(t, SpawnBy::PosixSpawn)),
    ("spawn::cloexec_is_not_inherited", User, spawn_cloexec),
    ("spawn::child_accepts", User, spawn_accepts),
    ("spawn::both_write", User, spawn_both),
    ("spawn::of_what_is_not_there", Mixed, spawn_fails),
    ("spawn::child_connects_back", User, spawn_connects),
    ("static::by_fork", Mixed, |t| static_child(t, SpawnBy::Fork)),
    ("static::by_vfork", Mixed, |t| static_child(t, SpawnBy::Vfork)),
    ("static::by_posix_spawn", Mixed, |t| static_child(t, SpawnBy::PosixSpawn)),
    ("static::megabytes", Mixed, static_bulk),
    ("passing::to_the_peer", Mixed, pass_to_peer),
    ("passing::to_a_child", User, pass_to_child),
    ("passing::to_oneself", User, pass_to_self),
    ("passing::with_unread_data", Mixed, pass_unread),
    ("passing::sender_exits", User, pass_and_exit),
    ("passing::closed_before_it_arrives", Mixed, pass_closed),
    ("passing::listener", Any, pass_listener),
    ("passing::never_received", Mixed, pass_never),
    ("passing::there_and_back", Mixed, pass_back),
    ("passing::receiver_ends_and_the_giver_goes_on", Mixed, pass_and_keep),
    ("passing::receiver_shuts_down_and_the_giver_goes_on", Mixed, pass_and_shut),
];

fn exchange(c: &Side, cfd: i32, s: &Side, sfd: i32) {
    c.send(cfd, b"question");
    s.recv(sfd, 64);
    s.send(sfd, b"answer");
    c.recv(cfd, 64);
}

/// An exchange, then the client closes and the server sees the end.
fn to_the_end(t: &Duo, p: Pair) {
    exchange(&t.c, p.c, &t.s, p.s);
    t.c.close(p.c);
    t.s.recv(p.s, 64);
}

fn server_execs(t: &Duo, by: ExecBy) {
    let p = t.pair();
    exchange(&t.c, p.c, &t.s, p.s);
    t.s.exec(by);
    t.s.sockname(p.s);
    t.s.peername(p.s);
    to_the_end(t, p);
}

fn client_execs(t: &Duo) {
    let p = t.pair();
    t.c.exec(ExecBy::Execve);
    exchange(&t.c, p.c, &t.s, p.s);
    t.s.close(p.s);
    t.c.recv(p.c, 64);
}

fn exec_twice(t: &Duo) {
    let p = t.pair();
    for _ in 0..2 {
        t.s.exec(ExecBy::Execve);
        exchange(&t.c, p.c, &t.s, p.s);
    }
    to_the_end(t, p);
}

fn exec_cloexec(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    let s = t.s.accept4(l, SOCK_CLOEXEC);
    exchange(&t.c, c, &t.s, s);
    t.s.exec(ExecBy::Execve);
    t.c.recv(c, 64);
    t.s.recv(s, 64);
}

fn exec_listener(t: &Duo) {
    let (l, addr) = t.listener();
    t.s.exec(ExecBy::Execve);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    let s = t.s.accept(l);
    to_the_end(t, Pair { l, s, c });
}

fn exec_backlog(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    t.c.send(c, b"before the exec");
    t.s.exec(ExecBy::Execve);
    let s = t.s.accept(l);
    t.s.recv(s, 64);
    to_the_end(t, Pair { l, s, c });
}

fn exec_unread(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, b"in the queue");
    t.s.exec(ExecBy::Execve);
    t.s.recv(p.s, 6);
    t.s.exec(ExecBy::Execve);
    t.s.recv(p.s, 64);
    to_the_end(t, p);
}

fn exec_dup(t: &Duo) {
    let p = t.pair();
    let d = t.s.dup(p.s);
    t.s.fcntl(p.s, F_SETFD, FD_CLOEXEC);
    t.s.exec(ExecBy::Execve);
    t.s.send(p.s, b"gone");
    to_the_end(t, Pair { s: d, ..p });
}

fn exec_flags(t: &Duo) {
    let p = t.pair();
    t.s.nonblocking(p.s);
    t.s.setopt(p.s, IPPROTO_TCP, TCP_NODELAY, 1);
    t.s.exec(ExecBy::Execve);
    t.s.fcntl(p.s, F_GETFL, 0);
    t.s.fcntl(p.s, F_GETFD, 0);
    t.s.getopt(p.s, IPPROTO_TCP, TCP_NODELAY);
    t.s.recv(p.s, 4);
    t.c.send(p.c, b"x");
    t.s.poll(&[(p.s, POLLIN)], 1000);
    t.s.recv(p.s, 4);
}

fn exec_half_closed(t: &Duo) {
    let p = t.pair();
    t.s.shutdown(p.s, SHUT_WR);
    t.c.recv(p.c, 4);
    t.s.exec(ExecBy::Execve);
    t.s.send(p.s, b"x");
    t.c.send(p.c, b"one way");
    t.s.recv(p.s, 64);
    t.c.close(p.c);
    t.s.recv(p.s, 64);
}

fn exec_peer_closed(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, b"last");
    t.c.close(p.c);
    t.s.exec(ExecBy::Execve);
    t.s.recv(p.s, 64);
    t.s.recv(p.s, 64);
}

fn exec_bound(t: &Duo) {
    let l = t.s.tcp();
    t.s.bind(l, &crate::driver::v4());
    t.s.exec(ExecBy::Execve);
    t.s.listen(l, 4);
    let addr = t.s.sockname(l);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    let s = t.s.accept(l);
    to_the_end(t, Pair { l, s, c });
}

fn exec_fresh(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    t.c.exec(ExecBy::Execve);
    t.c.connect(c, &addr);
    let s = t.s.accept(l);
    to_the_end(t, Pair { l, s, c });
}

fn exec_fails(t: &Duo) {
    let p = t.pair();
    let argv = vec!["/no/such/program".to_owned()];
    for by in [ExecBy::Execve, ExecBy::Execv, ExecBy::Execvp] {
        t.s.call(Op::Exec { by, argv: argv.clone() });
    }
    to_the_end(t, p);
}

fn exec_in_child(t: &Duo) {
    let p = t.pair();
    let Some(child) = t.s.fork("k") else { return };
    t.s.close(p.s);
    child.exec(ExecBy::Execve);
    exchange(&t.c, p.c, &child, p.s);
    child.exit();
    t.c.recv(p.c, 64);
}

fn exec_of_parent(t: &Duo) {
    let p = t.pair();
    let Some(child) = t.s.fork("k") else { return };
    t.s.exec(ExecBy::Execve);
    exchange(&t.c, p.c, &t.s, p.s);
    exchange(&t.c, p.c, &child, p.s);
}

fn spawned(t: &Duo, by: SpawnBy) {
    let p = t.pair();
    let Some(child) = t.s.spawn("k", by, &[]) else { return };
    exchange(&t.c, p.c, &child, p.s);
    exchange(&t.c, p.c, &t.s, p.s);
    t.s.close(p.s);
    exchange(&t.c, p.c, &child, p.s);
    child.exit();
    t.s.call(Op::Reap);
    if !t.alone() {
        t.c.recv(p.c, 64);
    }
}

fn standard_streams(t: &Duo, by: SpawnBy) {
    let p = t.pair();
    let Some(child) = t.s.spawn("k", by, &[(p.s, 0), (p.s, 1)]) else { return };
    t.s.close(p.s);
    t.c.send(p.c, b"question");
    child.read(0, 64);
    child.write(1, b"answer");
    t.c.recv(p.c, 64);
    // The parent's table is untouched by what a vforked child did.
    t.s.call(Op::Fstat { fd: 0 });
    t.s.send(p.s, b"closed");
}

fn spawn_cloexec(t: &Duo) {
    let p = t.pair();
    t.s.fcntl(p.s, F_SETFD, FD_CLOEXEC);
    let Some(child) = t.s.spawn("k", SpawnBy::PosixSpawn, &[(p.s, 50)]) else { return };
    child.send(p.s, b"not here");
    exchange(&t.c, p.c, &child, 50);
}

fn spawn_accepts(t: &Duo) {
    let (l, addr) = t.listener();
    let Some(child) = t.s.spawn("k", SpawnBy::PosixSpawn, &[]) else { return };
    t.s.close(l);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    let s = child.accept(l);
    exchange(&t.c, c, &child, s);
}

fn spawn_both(t: &Duo) {
    let p = t.pair();
    let Some(child) = t.s.spawn("k", SpawnBy::Vfork, &[]) else { return };
    for _ in 0..3 {
        exchange(&t.c, p.c, &child, p.s);
        exchange(&t.c, p.c, &t.s, p.s);
    }
}

fn spawn_fails(t: &Duo) {
    let p = t.pair();
    let argv = vec!["/no/such/program".to_owned()];
    for by in [SpawnBy::PosixSpawn, SpawnBy::PosixSpawnp, SpawnBy::Vfork, SpawnBy::Fork] {
        t.s.call(Op::Spawn { by, argv: argv.clone(), moves: vec![(p.s, 60)] });
    }
    t.s.call(Op::Reap);
    t.s.send(60, b"not here");
    to_the_end(t, p);
}

fn spawn_connects(t: &Duo) {
    let (l, addr) = t.listener();
    let Some(child) = t.c.spawn("k", SpawnBy::PosixSpawn, &[]) else { return };
    let c = child.tcp();
    child.connect(c, &addr);
    let s = t.s.accept(l);
    exchange(&child, c, &t.s, s);
    child.exit();
    t.s.recv(s, 64);
}

/// A static program that echoes descriptor `fd`.
fn echo(fd: i32, by: SpawnBy) -> Op {
    let argv = vec![env!("STATIC_ECHO").to_owned(), fd.to_string(), fd.to_string()];
    Op::Spawn { by, argv, moves: vec![] }
}

fn static_child(t: &Duo, by: SpawnBy) {
    if t.only_apart() {
        return;
    }
    let p = t.pair();
    t.s.call(echo(p.s, by));
    t.s.close(p.s);
    t.c.send(p.c, b"around and back");
    t.c.recv(p.c, 64);
    t.c.shutdown(p.c, SHUT_WR);
    t.c.recv(p.c, 64);
    t.s.call(Op::Reap);
}

fn static_bulk(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let p = t.pair();
    t.s.call(echo(p.s, SpawnBy::PosixSpawn));
    t.s.close(p.s);
    let (total, chunk) = (4 << 20, 50_000);
    let sending = t.c.start(Op::Pump { fd: p.c, total, chunk, by: harness::wire::SendBy::Send });
    t.c.call(Op::Drain { fd: p.c, total, chunk, by: harness::wire::RecvBy::Recv, flags: 0 });
    t.c.join(sending);
    t.c.close(p.c);
    t.s.call(Op::Reap);
}

/// A TCP connection, and a connection of the `AF_UNIX` family to pass it over.
fn pass_pairs(t: &Duo) -> (Pair, Pair) {
    (t.pair(), t.unix_pair(SOCK_STREAM))
}

fn pass_to_peer(t: &Duo) {
    let (p, u) = pass_pairs(t);
    exchange(&t.c, p.c, &t.s, p.s);
    t.s.send_fds(u.s, b"yours", &[p.s]);
    let got = t.c.recv_fd(u.c);
    t.s.close(p.s);
    exchange(&t.c, p.c, &t.c, got);
    t.c.close(got);
    t.c.recv(p.c, 64);
}

fn pass_to_child(t: &Duo) {
    let (near, far) = t.s.socketpair(SOCK_STREAM);
    let Some(child) = t.s.fork("k") else { return };
    let p = t.pair();
    t.s.send_fds(near, b"work", &[p.s]);
    t.s.close(p.s);
    let got = child.recv_fd(far);
    exchange(&t.c, p.c, &child, got);
    child.close(got);
    t.c.recv(p.c, 64);
}

fn pass_to_self(t: &Duo) {
    let p = t.pair();
    let (near, far) = t.s.socketpair(SOCK_STREAM);
    t.s.send_fds(near, b"later", &[p.s]);
    let got = t.s.recv_fd(far);
    exchange(&t.c, p.c, &t.s, got);
    t.s.close(p.s);
    exchange(&t.c, p.c, &t.s, got);
    t.s.close(got);
    t.c.recv(p.c, 64);
}

fn pass_unread(t: &Duo) {
    let (p, u) = pass_pairs(t);
    t.c.send(p.c, b"already there");
    t.s.send_fds(u.s, b"x", &[p.s]);
    t.s.close(p.s);
    let got = t.c.recv_fd(u.c);
    t.c.recv(got, 64);
    exchange(&t.c, p.c, &t.c, got);
}

fn pass_and_exit(t: &Duo) {
    let (near, far) = t.s.socketpair(SOCK_STREAM);
    let Some(child) = t.s.fork("k") else { return };
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    // The child hands over a connection that only it has, and ends.
    let s = t.s.accept(l);
    t.s.send_fds(far, b"take it", &[s]);
    t.s.close(s);
    let mine = child.recv_fd(near);
    child.send_fds(near, b"bequeathed", &[mine]);
    child.exit();
    let got = t.s.recv_fd(far);
    exchange(&t.c, c, &t.s, got);
}

fn pass_closed(t: &Duo) {
    let (p, u) = pass_pairs(t);
    t.s.send_fds(u.s, b"x", &[p.s]);
    t.s.close(p.s);
    t.c.send(p.c, b"nobody reads yet");
    t.c.poll(&[(p.c, POLLIN)], 0);
    let got = t.c.recv_fd(u.c);
    t.c.recv(got, 64);
    t.c.close(got);
    t.c.recv(p.c, 64);
}

fn pass_listener(t: &Duo) {
    let (l, addr) = t.listener();
    let u = t.unix_pair(SOCK_STREAM);
    t.s.send_fds(u.s, b"accept here", &[l]);
    let got = t.c.recv_fd(u.c);
    let c = t.c.socket(AF_INET, SOCK_STREAM);
    t.c.connect(c, &addr);
    let s = t.c.accept(got);
    exchange(&t.c, c, &t.c, s);
    t.s.close(l);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    let s = t.c.accept(got);
    exchange(&t.c, c, &t.c, s);
}

fn pass_never(t: &Duo) {
    let (p, u) = pass_pairs(t);
    t.s.send_fds(u.s, b"lost", &[p.s]);
    t.s.close(p.s);
    t.c.close(u.c);
    t.c.recv(p.c, 64);
    t.c.getopt(p.c, SOL_SOCKET, SO_ERROR);
}

fn pass_back(t: &Duo) {
    let (p, u) = pass_pairs(t);
    t.s.send_fds(u.s, b"there", &[p.s]);
    t.s.close(p.s);
    let got = t.c.recv_fd(u.c);
    t.c.send(got, b"by the client");
    t.c.send_fds(u.c, b"back", &[got]);
    t.c.close(got);
    let again = t.s.recv_fd(u.s);
    t.s.send(again, b" and the server");
    t.c.recv(p.c, 13);
    t.c.recv(p.c, 64);
    exchange(&t.c, p.c, &t.s, again);
}

fn pass_and_keep(t: &Duo) {
    let (p, u) = pass_pairs(t);
    t.s.send_fds(u.s, b"for both of us", &[p.s]);
    let got = t.c.recv_fd(u.c);
    exchange(&t.c, p.c, &t.c, got);
    t.c.close(got);
    t.c.poll(&[(p.c, POLLIN)], 300);
    exchange(&t.c, p.c, &t.s, p.s);
    t.s.close(p.s);
    t.c.recv(p.c, 64);
}

fn pass_and_shut(t: &Duo) {
    let (p, u) = pass_pairs(t);
    t.s.send_fds(u.s, b"for both of us", &[p.s]);
    let got = t.c.recv_fd(u.c);
    t.c.shutdown(got, SHUT_WR);
    t.c.recv(p.c, 64);
    t.c.close(got);
    t.s.close(p.s);
}
