//! Several connections of one listener: what is done to one of them, the others do not show.

use harness::wire::{Addr, Op, SpawnBy};
use libc::{
    AF_INET, EPOLLIN, F_GETFD, F_GETFL, F_SETFL, FIOASYNC, FIONBIO, IPPROTO_IP, IPPROTO_TCP, O_ASYNC,
    O_NONBLOCK, O_RDWR, SO_KEEPALIVE, SO_LINGER, SO_RCVBUF, SO_RCVTIMEO, SO_SNDBUF, SOCK_CLOEXEC,
    SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, TCP_CORK, TCP_KEEPCNT, TCP_KEEPIDLE, TCP_NODELAY, TCP_QUICKACK,
};

use crate::driver::{Duo, Pair, Side, at, v4};
use crate::options::time;
use crate::{
    Case,
    Expect::{Mixed, User},
};

pub const CASES: &[Case] = &[
    ("together::each_has_its_options", User, own_options),
    ("together::the_same_options_one_after_the_other", User, same_options),
    ("together::as_many_values_as_connections", User, many_values),
    ("together::an_option_comes_and_goes", User, comes_and_goes),
    ("together::refused_options", User, refused_options),
    ("together::blocking_and_not", User, blocking_and_not),
    ("together::closed_on_exec_or_not", User, closed_on_exec),
    ("together::the_listener_changes_in_between", User, listener_changes),
    ("together::the_listener_changes_while_a_call_waits", User, listener_changes_meanwhile),
    ("together::one_is_duplicated", User, one_duplicated),
    ("together::options_after_fork", User, after_fork),
    ("together::options_of_children", User, of_children),
    ("together::a_program_tells_them_apart", User, spawned),
    ("together::a_program_gets_one_by_another_number", User, spawned_one),
    ("together::one_is_sent_away", Mixed, one_sent),
    ("together::signals_for_one", User, signals_for_one),
    ("together::one_is_disconnected", Mixed, one_disconnected),
    ("together::some_close_others_stay", User, some_close),
    ("together::both_in_a_set", User, both_in_a_set),
];

/// Another connection of that listener, accepted with those flags.
fn another(t: &Duo, l: i32, addr: &Addr, flags: i32) -> Pair {
    let c = t.c.tcp();
    t.c.connect(c, addr);
    Pair { l, s: t.s.accept4(l, flags), c }
}

/// Two connections of one listener.
fn two(t: &Duo) -> (Pair, Pair) {
    let (l, addr) = t.listener();
    (another(t, l, &addr, 0), another(t, l, &addr, 0))
}

/// What was set, as it shows.
pub fn show(side: &Side, fd: i32) {
    side.fcntl(fd, F_GETFL, 0);
    for name in [TCP_NODELAY, TCP_CORK, TCP_KEEPIDLE, TCP_KEEPCNT] {
        side.getopt(fd, IPPROTO_TCP, name);
    }
    side.getopt(fd, SOL_SOCKET, SO_KEEPALIVE);
    side.getopt(fd, IPPROTO_IP, libc::IP_TOS);
    for (name, len) in [(SO_RCVTIMEO, 16), (SO_LINGER, 8)] {
        side.call(Op::Getsockopt { fd, level: SOL_SOCKET, name, len });
    }
}

/// It carries bytes both ways.
pub fn used(t: &Duo, p: Pair) {
    t.c.send(p.c, b"there");
    t.s.recv(p.s, 64);
    t.s.send(p.s, b"and back");
    t.c.recv(p.c, 64);
}

fn own_options(t: &Duo) {
    let (p, q) = two(t);
    t.s.setopt(p.s, IPPROTO_TCP, TCP_NODELAY, 1);
    show(&t.s, q.s);
    t.s.setopt(q.s, IPPROTO_TCP, TCP_CORK, 1);
    t.s.setopt_bytes(q.s, SOL_SOCKET, SO_RCVTIMEO, &time(7000));
    t.s.setopt(p.s, SOL_SOCKET, SO_KEEPALIVE, 1);
    t.s.setopt_bytes(p.s, SOL_SOCKET, SO_LINGER, &[1, 0, 0, 0, 5, 0, 0, 0]);
    t.s.setopt_bytes(p.s, SOL_SOCKET, SO_LINGER, &[0; 8]);
    t.s.setopt(q.s, IPPROTO_TCP, TCP_QUICKACK, 0);
    for name in [SO_SNDBUF, SO_RCVBUF] {
        t.s.setopt(p.s, SOL_SOCKET, name, 100_000);
        t.s.getopt(p.s, SOL_SOCKET, name);
    }
    t.s.setopt(q.s, IPPROTO_IP, libc::IP_TOS, 16);
    for pair in [p, q] {
        show(&t.s, pair.s);
        used(t, pair);
    }
}

fn same_options(t: &Duo) {
    let (l, addr) = t.listener();
    for flags in [0, SOCK_NONBLOCK, 0, SOCK_CLOEXEC] {
        let p = another(t, l, &addr, flags);
        t.s.fcntl(p.s, F_SETFL, O_RDWR | O_NONBLOCK);
        t.s.setopt(p.s, IPPROTO_TCP, TCP_NODELAY, 1);
        t.s.setopt(p.s, SOL_SOCKET, SO_KEEPALIVE, 1);
        t.s.setopt(p.s, IPPROTO_TCP, TCP_KEEPIDLE, 300);
        show(&t.s, p.s);
        t.s.setopt(p.s, IPPROTO_TCP, TCP_NODELAY, 0);
        show(&t.s, p.s);
        t.s.fcntl(p.s, F_SETFL, O_RDWR);
        used(t, p);
    }
}

fn many_values(t: &Duo) {
    let (l, addr) = t.listener();
    let pairs: Vec<_> = (0..50).map(|_| another(t, l, &addr, 0)).collect();
    for (value, p) in (1..).zip(&pairs) {
        t.s.setopt(p.s, IPPROTO_TCP, TCP_KEEPIDLE, value);
        t.s.setopt(p.s, IPPROTO_TCP, TCP_KEEPCNT, 1 + value % 7);
    }
    for p in pairs {
        t.s.getopt(p.s, IPPROTO_TCP, TCP_KEEPIDLE);
        t.s.getopt(p.s, IPPROTO_TCP, TCP_KEEPCNT);
    }
}

/// As with `TCP_CORK` around each answer of a web server.
fn comes_and_goes(t: &Duo) {
    let (p, q) = two(t);
    for round in 0..40 {
        let [first, second] = if round % 3 == 0 { [p, q] } else { [q, p] };
        t.s.setopt(first.s, IPPROTO_TCP, TCP_CORK, 1);
        t.s.setopt(second.s, IPPROTO_TCP, TCP_CORK, round % 2);
        t.s.fcntl(second.s, F_SETFL, if round % 5 == 0 { O_RDWR | O_NONBLOCK } else { O_RDWR });
        t.s.setopt(first.s, IPPROTO_TCP, TCP_CORK, 0);
        show(&t.s, second.s);
    }
    for pair in [p, q] {
        t.s.fcntl(pair.s, F_SETFL, O_RDWR);
        show(&t.s, pair.s);
        used(t, pair);
    }
}

fn refused_options(t: &Duo) {
    let (p, q) = two(t);
    t.s.setopt(p.s, IPPROTO_TCP, TCP_KEEPIDLE, 0);
    t.s.setopt(p.s, IPPROTO_TCP, TCP_KEEPIDLE, 1_000_000);
    t.s.setopt_bytes(p.s, IPPROTO_TCP, TCP_NODELAY, &[1]);
    t.s.setopt_bytes(p.s, IPPROTO_TCP, TCP_NODELAY, &[]);
    t.s.setopt_bytes(p.s, SOL_SOCKET, SO_RCVTIMEO, &[1, 0, 0, 0]);
    t.s.setopt(p.s, SOL_SOCKET, 9999, 1);
    t.s.setopt(p.s, IPPROTO_TCP, 9999, 1);
    // Longer than it need be.
    t.s.setopt_bytes(p.s, IPPROTO_TCP, TCP_NODELAY, &[1, 0, 0, 0, 9, 9, 9, 9]);
    for pair in [p, q] {
        show(&t.s, pair.s);
        used(t, pair);
    }
}

fn blocking_and_not(t: &Duo) {
    let (l, addr) = t.listener();
    let (p, q) = (another(t, l, &addr, 0), another(t, l, &addr, SOCK_NONBLOCK));
    t.s.recv(q.s, 8);
    t.s.ioctl(p.s, FIONBIO, 1);
    t.s.recv(p.s, 8);
    t.s.ioctl(q.s, FIONBIO, 0);
    for fd in [p.s, q.s] {
        t.s.fcntl(fd, F_GETFL, 0);
    }
    let waiting = t.s.start_recv(q.s, 8);
    t.pause();
    t.s.recv(p.s, 8);
    t.c.send(q.c, b"late");
    t.s.join(waiting);
}

fn closed_on_exec(t: &Duo) {
    let (l, addr) = t.listener();
    let pairs = [0, SOCK_CLOEXEC, SOCK_CLOEXEC | SOCK_NONBLOCK].map(|flags| another(t, l, &addr, flags));
    for p in pairs {
        t.s.setopt(p.s, IPPROTO_TCP, TCP_NODELAY, 1);
        t.s.fcntl(p.s, F_GETFD, 0);
        t.s.setopt(p.s, IPPROTO_TCP, TCP_QUICKACK, 1);
        t.s.fcntl(p.s, F_GETFD, 0);
    }
}

fn listener_changes(t: &Duo) {
    let (l, addr) = t.listener();
    let first = another(t, l, &addr, 0);
    t.s.setopt(l, IPPROTO_TCP, TCP_NODELAY, 1);
    t.s.setopt(l, SOL_SOCKET, SO_KEEPALIVE, 1);
    let second = another(t, l, &addr, 0);
    t.s.setopt(l, IPPROTO_TCP, TCP_NODELAY, 0);
    t.s.setopt(l, IPPROTO_TCP, TCP_KEEPIDLE, 44);
    let third = another(t, l, &addr, 0);
    t.s.setopt(second.s, IPPROTO_TCP, TCP_CORK, 1);
    t.s.setopt(first.s, SOL_SOCKET, SO_KEEPALIVE, 1);
    for p in [first, second, third] {
        show(&t.s, p.s);
    }
    t.s.close(l);
    t.s.setopt(third.s, IPPROTO_TCP, TCP_KEEPIDLE, 55);
    for p in [first, second, third] {
        show(&t.s, p.s);
        used(t, p);
    }
}

fn listener_changes_meanwhile(t: &Duo) {
    let (l, addr) = t.listener();
    let first = another(t, l, &addr, 0);
    let waiting = t.s.start(Op::Accept { fd: l, flags: None });
    t.s.until_blocked();
    t.s.setopt(l, IPPROTO_TCP, TCP_KEEPIDLE, 66);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    let Ok(s) = i32::try_from(t.s.join(waiting).ret) else { return };
    let third = another(t, l, &addr, 0);
    for fd in [first.s, s, third.s] {
        show(&t.s, fd);
    }
    used(t, Pair { l, s, c });
}

fn one_duplicated(t: &Duo) {
    let (p, q) = two(t);
    let d = t.s.dup(p.s);
    t.s.setopt(d, IPPROTO_TCP, TCP_NODELAY, 1);
    t.s.setopt(q.s, IPPROTO_TCP, TCP_CORK, 1);
    t.s.nonblocking(p.s);
    for fd in [p.s, d, q.s] {
        show(&t.s, fd);
    }
    // Over another connection, which ends by that.
    t.s.call(Op::Dup2 { fd: d, to: q.s });
    show(&t.s, q.s);
    t.c.recv(q.c, 8);
    t.s.close(p.s);
    t.s.close(d);
    used(t, Pair { s: q.s, ..p });
}

fn after_fork(t: &Duo) {
    let (p, q) = two(t);
    let Some(child) = t.s.fork("k") else { return };
    child.setopt(p.s, IPPROTO_TCP, TCP_NODELAY, 1);
    t.s.setopt(p.s, SOL_SOCKET, SO_KEEPALIVE, 1);
    child.nonblocking(p.s);
    for side in [&t.s, &child] {
        show(side, p.s);
        show(side, q.s);
    }
    let l2 = t.listener();
    let new = another(t, l2.0, &l2.1, 0);
    t.s.setopt(new.s, IPPROTO_TCP, TCP_CORK, 1);
    show(&t.s, new.s);
    used(t, q);
}

fn of_children(t: &Duo) {
    let (l, addr) = t.listener();
    let p = another(t, l, &addr, 0);
    let Some(child) = t.s.fork("k") else { return };
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    let s = child.accept(l);
    child.setopt(s, IPPROTO_TCP, TCP_NODELAY, 1);
    let q = another(t, l, &addr, 0);
    show(&child, s);
    show(&t.s, q.s);
    show(&t.s, p.s);
    child.send(s, b"of the child");
    t.c.recv(c, 64);
}

fn spawned(t: &Duo) {
    let (p, q) = two(t);
    t.s.setopt(q.s, IPPROTO_TCP, TCP_NODELAY, 1);
    let Some(child) = t.s.spawn("k", SpawnBy::PosixSpawn, &[]) else { return };
    child.send(p.s, b"of the first");
    child.send(q.s, b"of the second");
    show(&child, q.s);
    t.c.recv(p.c, 64);
    t.c.recv(q.c, 64);
}

fn spawned_one(t: &Duo) {
    let (p, q) = two(t);
    let Some(child) = t.s.spawn("k", SpawnBy::PosixSpawn, &[(q.s, 50)]) else { return };
    child.send(50, b"of the second");
    t.c.recv(q.c, 64);
    used(t, p);
}

fn one_sent(t: &Duo) {
    let (p, q) = two(t);
    let (near, far) = t.s.socketpair(SOCK_STREAM);
    t.s.send_fds(near, b"yours", &[p.s]);
    let got = t.s.recv_fd(far);
    t.s.close(p.s);
    used(t, q);
    used(t, Pair { s: got, ..p });
}

fn signals_for_one(t: &Duo) {
    let (p, q) = two(t);
    t.s.signal(libc::SIGIO, 2, 0);
    t.s.owns(p.s);
    t.s.fcntl(p.s, F_SETFL, O_RDWR | O_ASYNC);
    t.s.fcntl(q.s, F_GETFL, 0);
    t.s.fcntl(q.s, libc::F_GETOWN, 0);
    used(t, q);
    t.s.ioctl(p.s, FIOASYNC, 0);
    for fd in [p.s, q.s] {
        t.s.fcntl(fd, F_GETFL, 0);
    }
    used(t, p);
}

fn one_disconnected(t: &Duo) {
    let (p, q) = two(t);
    t.s.setopt(p.s, IPPROTO_TCP, TCP_NODELAY, 1);
    t.s.connect(p.s, &at("unspecified", 0));
    t.c.recv(p.c, 8);
    show(&t.s, p.s);
    used(t, q);
    // It listens now, which the other one must not.
    t.s.bind(p.s, &v4());
    t.s.listen(p.s, 4);
    let addr = t.s.sockname(p.s);
    let c = t.c.socket(AF_INET, SOCK_STREAM);
    t.c.connect(c, &addr);
    let s = t.s.accept(p.s);
    show(&t.s, s);
    used(t, Pair { l: p.s, s, c });
    used(t, q);
}

fn some_close(t: &Duo) {
    let (l, addr) = t.listener();
    for round in 0..4 {
        let pairs = [(); 3].map(|()| another(t, l, &addr, 0));
        let [a, b, c] = pairs;
        t.s.setopt(a.s, IPPROTO_TCP, TCP_NODELAY, 1);
        t.s.close(b.s);
        t.c.recv(b.c, 8);
        let d = another(t, l, &addr, 0);
        for p in [a, c, d] {
            show(&t.s, p.s);
            used(t, p);
            t.s.close(p.s);
            t.c.recv(p.c, 8);
        }
        t.s.setopt(l, IPPROTO_TCP, TCP_KEEPIDLE, 10 + round);
    }
}

fn both_in_a_set(t: &Duo) {
    let (p, q) = two(t);
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.s.epoll_add(ep, q.s, EPOLLIN);
    t.s.setopt(p.s, IPPROTO_TCP, TCP_NODELAY, 1);
    t.s.setopt(q.s, IPPROTO_TCP, TCP_QUICKACK, 1);
    t.c.send(q.c, b"x");
    t.s.epoll_wait(ep, 5000);
    t.s.recv(q.s, 8);
    t.s.close(q.s);
    t.s.epoll_wait(ep, 0);
    t.c.send(p.c, b"y");
    t.s.epoll_wait(ep, 5000);
}
