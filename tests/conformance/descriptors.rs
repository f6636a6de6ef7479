//! The dup family, `FD_CLOEXEC`, and descriptor numbers: they are the kernel's, shim or not.

use harness::wire::Op;
use libc::{
    F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_GETFL, F_SETFL, FD_CLOEXEC, O_CLOEXEC, O_NONBLOCK, POLLIN, SHUT_WR,
};

use crate::driver::Duo;
use crate::{
    Case,
    Expect::{Any, User},
};

pub const CASES: &[Case] = &[
    ("dup::both_numbers_work", User, dup),
    ("dup::closing_one_keeps_the_connection", User, close_one),
    ("dup::closing_the_original_keeps_the_connection", User, close_original),
    ("dup::last_close_is_eof", User, last_close),
    ("dup::shutdown_reaches_all", User, shutdown_reaches),
    ("dup::flags_are_shared", User, flags_shared),
    ("dup2::onto_a_free_number", User, dup2_free),
    ("dup2::onto_a_connected_socket", User, dup2_connected),
    ("dup2::onto_itself", User, dup2_itself),
    ("dup2::a_pipe_onto_a_socket", User, dup2_pipe),
    ("dup2::bad", Any, dup2_bad),
    ("dup3::cloexec", User, dup3),
    ("dup::fcntl_dupfd", User, dupfd),
    ("dup::of_a_listener", User, listener),
    ("dup::before_connect", User, before_connect),
    ("dup::of_a_listener_made_before_listen", User, before_listen),
    ("descriptors::lowest_free_number", User, lowest),
    ("descriptors::number_reused_by_another_kind", User, reused),
    ("descriptors::many_sockets", User, many),
];

fn dup(t: &Duo) {
    let p = t.pair();
    let d = t.c.dup(p.c);
    t.c.send(p.c, b"one");
    t.c.send(d, b"two");
    t.s.recv_by(p.s, 6, harness::wire::RecvBy::Recv, libc::MSG_WAITALL);
    t.s.send(p.s, b"answer");
    t.c.recv(d, 3);
    t.c.recv(p.c, 3);
}

fn close_one(t: &Duo) {
    let p = t.pair();
    let d = t.c.dup(p.c);
    t.c.close(d);
    t.c.send(p.c, b"still here");
    t.s.recv(p.s, 64);
    t.s.poll(&[(p.s, POLLIN)], 0);
}

fn close_original(t: &Duo) {
    let p = t.pair();
    let d = t.c.dup(p.c);
    t.c.close(p.c);
    t.c.send(d, b"still here");
    t.s.recv(p.s, 64);
    t.c.peername(d);
    t.c.send(p.c, b"not here");
}

fn last_close(t: &Duo) {
    let p = t.pair();
    let d = t.c.dup(p.c);
    t.c.close(p.c);
    t.s.poll(&[(p.s, POLLIN)], 0);
    t.c.close(d);
    t.s.recv(p.s, 4);
}

fn shutdown_reaches(t: &Duo) {
    let p = t.pair();
    let d = t.c.dup(p.c);
    t.c.shutdown(d, SHUT_WR);
    t.s.recv(p.s, 4);
    t.c.send(p.c, b"x");
}

fn flags_shared(t: &Duo) {
    let p = t.pair();
    let d = t.c.dup(p.c);
    t.c.fcntl(d, F_SETFL, O_NONBLOCK);
    t.c.fcntl(p.c, F_GETFL, 0);
    t.c.recv(p.c, 4);
    t.c.fcntl(p.c, libc::F_SETFD, FD_CLOEXEC);
    t.c.fcntl(d, F_GETFD, 0);
}

fn dup2_free(t: &Duo) {
    let p = t.pair();
    t.c.call(Op::Dup2 { fd: p.c, to: 55 });
    t.c.close(p.c);
    t.c.send(55, b"at 55");
    t.s.recv(p.s, 64);
    t.s.send(p.s, b"x");
    t.c.recv(55, 4);
}

fn dup2_connected(t: &Duo) {
    let (l, addr) = t.listener();
    let clients = [t.c.tcp(), t.c.tcp()];
    let servers = clients.map(|c| {
        t.c.connect(c, &addr);
        t.s.accept(l)
    });
    t.c.call(Op::Dup2 { fd: clients[0], to: clients[1] });
    t.s.recv(servers[1], 4);
    t.c.send(clients[1], b"goes to the first");
    t.s.recv(servers[0], 64);
}

fn dup2_itself(t: &Duo) {
    let p = t.pair();
    t.c.call(Op::Dup2 { fd: p.c, to: p.c });
    t.c.call(Op::Dup3 { fd: p.c, to: p.c, flags: 0 });
    t.c.send(p.c, b"x");
    t.s.recv(p.s, 4);
}

fn dup2_pipe(t: &Duo) {
    let p = t.pair();
    let (r, w) = t.c.pipe();
    t.c.call(Op::Dup2 { fd: r, to: p.c });
    t.s.recv(p.s, 4);
    t.c.send_by(w, b"a pipe now", harness::wire::SendBy::Write, 0);
    t.c.recv_by(p.c, 64, harness::wire::RecvBy::Read, 0);
    t.c.send(p.c, b"x");
}

fn dup2_bad(t: &Duo) {
    let c = t.c.tcp();
    t.c.call(Op::Dup2 { fd: 99, to: c });
    t.c.call(Op::Dup2 { fd: c, to: -1 });
    t.c.call(Op::Dup { fd: 99 });
    t.c.call(Op::Dup3 { fd: c, to: 50, flags: 1 });
    t.c.sockname(c);
}

fn dup3(t: &Duo) {
    let p = t.pair();
    t.c.call(Op::Dup3 { fd: p.c, to: 60, flags: O_CLOEXEC });
    t.c.fcntl(60, F_GETFD, 0);
    t.c.fcntl(p.c, F_GETFD, 0);
    t.c.send(60, b"x");
    t.s.recv(p.s, 4);
}

fn dupfd(t: &Duo) {
    let p = t.pair();
    let d = t.c.fcntl(p.c, F_DUPFD, 40);
    let e = t.c.fcntl(p.c, F_DUPFD_CLOEXEC, 40);
    t.c.fcntl(d, F_GETFD, 0);
    t.c.fcntl(e, F_GETFD, 0);
    t.c.close(p.c);
    t.c.send(d, b"d");
    t.c.send(e, b"e");
    t.s.recv_by(p.s, 2, harness::wire::RecvBy::Recv, libc::MSG_WAITALL);
    t.c.close(d);
    t.c.close(e);
    t.s.recv(p.s, 2);
}

fn listener(t: &Duo) {
    let (l, addr) = t.listener();
    let d = t.s.dup(l);
    t.s.close(l);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    let s = t.s.accept(d);
    t.c.send(c, b"x");
    t.s.recv(s, 4);
    t.s.close(d);
    let late = t.c.tcp();
    t.c.connect(late, &addr);
}

fn before_connect(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    let d = t.c.dup(c);
    t.c.connect(d, &addr);
    t.c.peername(c);
    t.c.send(c, b"x");
    let s = t.s.accept(l);
    t.s.recv(s, 4);
}

fn before_listen(t: &Duo) {
    let l = t.s.tcp();
    let d = t.s.dup(l);
    t.s.bind(l, &crate::driver::v4());
    t.s.listen(d, 4);
    let addr = t.s.sockname(l);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    let s = t.s.accept(l);
    t.c.send(c, b"x");
    t.s.recv(s, 4);
}

fn lowest(t: &Duo) {
    let p = t.pair();
    let more: Vec<i32> = (0..4).map(|_| t.c.tcp()).collect();
    t.c.close(more[1]);
    t.c.close(p.c);
    t.c.tcp();
    t.c.tcp();
    t.c.tcp();
}

fn reused(t: &Duo) {
    let p = t.pair();
    t.c.close(p.c);
    let (r, w) = t.c.pipe();
    t.c.send_by(w, b"pipe", harness::wire::SendBy::Write, 0);
    t.c.recv_by(r, 8, harness::wire::RecvBy::Read, 0);
    t.c.poll(&[(r, POLLIN)], 0);
    t.c.recv(r, 1);
    t.s.recv(p.s, 4);
}

fn many(t: &Duo) {
    let (l, addr) = t.listener_at(libc::AF_INET, &crate::driver::v4(), 128);
    let pairs: Vec<(i32, i32)> = (0..100)
        .map(|_| {
            let c = t.c.tcp();
            t.c.connect(c, &addr);
            (c, t.s.accept(l))
        })
        .collect();
    for (c, s) in pairs.iter().step_by(7) {
        t.c.send(*c, b"x");
        t.s.recv(*s, 4);
    }
    for (c, _) in &pairs {
        t.c.close(*c);
    }
    for (_, s) in &pairs {
        t.s.recv(*s, 4);
        t.s.close(*s);
    }
}
