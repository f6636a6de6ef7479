//! Sockets of a client that has connected before: what is done to one of them, the others do not show, and each connection has a
//! port of its own.

use harness::wire::{Addr, Op, SendBy, SpawnBy};
use libc::{
    AF_INET, AF_INET6, EPOLLIN, EPOLLOUT, F_GETFD, F_GETFL, F_SETFL, FIOASYNC, FIONBIO, IPPROTO_TCP,
    MSG_FASTOPEN, O_ASYNC, O_NONBLOCK, O_RDWR, POLLIN, POLLOUT, SHUT_RDWR, SHUT_WR, SO_COOKIE, SO_ERROR,
    SO_KEEPALIVE, SO_LINGER, SO_REUSEADDR, SO_TYPE, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET,
    TCP_KEEPIDLE, TCP_NODELAY,
};

use crate::driver::{Duo, Pair, at, v4, v6};
use crate::together::{show, used};
use crate::{
    Case,
    Expect::{Mixed, User},
};

pub const CASES: &[Case] = &[
    ("clients::options_before_connect", User, options_before),
    ("clients::blocking_and_not", User, blocking_and_not),
    ("clients::flags_of_socket", User, flags_of_socket),
    ("clients::bound_first", User, bound_first),
    ("clients::bound_to_the_port_of_another", Mixed, bound_to_anothers),
    ("clients::one_listens", Mixed, one_listens),
    ("clients::refused_and_then_not", User, refused_first),
    ("clients::used_unconnected", User, used_unconnected),
    ("clients::shut_down_unconnected", User, shut_unconnected),
    ("clients::in_a_set_before", User, in_a_set_before),
    ("clients::duplicated_before", User, duplicated_before),
    ("clients::forked_before", Mixed, forked_before),
    ("clients::forked_after", User, forked_after),
    ("clients::a_child_connects_too", User, child_connects),
    ("clients::inherited_by_a_program", Mixed, inherited),
    ("clients::sent_away_unconnected", Mixed, sent_unconnected),
    ("clients::sent_away", Mixed, sent_connected),
    ("clients::disconnected_and_connected_again", User, connected_again),
    ("clients::more_than_have_ports", User, many_at_once),
    ("clients::one_after_the_other", User, one_after_the_other),
    ("clients::the_server_keeps_its_side", User, server_keeps),
    ("clients::opened_fast", User, opened_fast),
    ("clients::signals_before", User, signals_before),
    ("clients::cookies_differ", User, cookies),
    ("clients::of_the_other_family", User, other_family),
    ("clients::closed_unconnected", User, closed_unconnected),
    ("clients::while_threads_wait", User, threads_wait),
];

/// A listener, and a client that has connected to it before.
fn practised(t: &Duo) -> (i32, Addr) {
    let (l, addr) = t.listener();
    let first = another(t, l, &addr);
    used(t, first);
    (l, addr)
}

fn another(t: &Duo, l: i32, addr: &Addr) -> Pair {
    let c = t.c.tcp();
    connected(t, l, c, addr)
}

fn connected(t: &Duo, l: i32, c: i32, addr: &Addr) -> Pair {
    t.c.connect(c, addr);
    Pair { l, s: t.s.accept(l), c }
}

/// The ports of these connections, as the server sees them, differ.
fn ports_differ(t: &Duo, pairs: &[Pair]) {
    let port = |p: &Pair| {
        let seen = t.s.quiet(&Op::Getpeername { fd: p.s }).addr.map(|a| a.port);
        let own = t.c.quiet(&Op::Getsockname { fd: p.c }).addr.map(|a| a.port);
        (seen == own, seen)
    };
    let mut ports: Vec<_> = pairs.iter().map(port).collect();
    let all = ports.len();
    ports.sort_unstable();
    ports.dedup();
    t.c.remark(&format!(
        "{} ports of {all}, the same on both sides: {}",
        ports.len(),
        ports.iter().all(|p| p.0)
    ));
}

fn options_before(t: &Duo) {
    let (l, addr) = practised(t);
    let [a, b, c] = [(); 3].map(|()| t.c.tcp());
    t.c.setopt(a, IPPROTO_TCP, TCP_NODELAY, 1);
    t.c.setopt(b, SOL_SOCKET, SO_KEEPALIVE, 1);
    t.c.setopt(b, IPPROTO_TCP, TCP_KEEPIDLE, 77);
    t.c.setopt_bytes(a, SOL_SOCKET, SO_LINGER, &[1, 0, 0, 0, 5, 0, 0, 0]);
    t.c.setopt(c, SOL_SOCKET, SO_REUSEADDR, 1);
    t.c.setopt(c, IPPROTO_TCP, 9999, 1);
    for fd in [a, b, c] {
        show(&t.c, fd);
        t.c.getopt(fd, SOL_SOCKET, SO_REUSEADDR);
        t.c.getopt(fd, SOL_SOCKET, SO_ERROR);
        t.c.getopt(fd, SOL_SOCKET, SO_TYPE);
    }
    let pairs = [a, b, c].map(|fd| connected(t, l, fd, &addr));
    t.c.setopt(b, IPPROTO_TCP, TCP_NODELAY, 1);
    for p in pairs {
        show(&t.c, p.c);
        used(t, p);
    }
}

fn blocking_and_not(t: &Duo) {
    let (l, addr) = practised(t);
    let [a, b, c] = [(); 3].map(|()| t.c.tcp());
    t.c.fcntl(a, F_SETFL, O_RDWR | O_NONBLOCK);
    t.c.ioctl(b, FIONBIO, 1);
    t.c.ioctl(c, FIONBIO, 1);
    t.c.ioctl(c, FIONBIO, 0);
    for fd in [a, b, c] {
        t.c.fcntl(fd, F_GETFL, 0);
    }
    for fd in [a, b, c] {
        t.c.connect(fd, &addr);
        t.c.settle(fd, POLLOUT);
        t.c.getopt(fd, SOL_SOCKET, SO_ERROR);
        let p = Pair { l, s: t.s.accept(l), c: fd };
        if fd != c {
            t.c.recv(fd, 8);
            t.c.fcntl(fd, F_SETFL, O_RDWR);
        }
        used(t, p);
    }
}

fn flags_of_socket(t: &Duo) {
    let (l, addr) = practised(t);
    for flags in [SOCK_CLOEXEC, 0, SOCK_NONBLOCK, SOCK_CLOEXEC | SOCK_NONBLOCK] {
        let c = t.c.socket(AF_INET, SOCK_STREAM | flags);
        t.c.fcntl(c, F_GETFD, 0);
        t.c.fcntl(c, F_GETFL, 0);
        t.c.setopt(c, IPPROTO_TCP, TCP_NODELAY, 1);
        t.c.fcntl(c, F_GETFD, 0);
        t.c.connect(c, &addr);
        let s = t.s.accept(l);
        t.c.fcntl(c, F_SETFL, O_RDWR);
        t.c.fcntl(c, F_GETFD, 0);
        used(t, Pair { l, s, c });
    }
}

fn bound_first(t: &Duo) {
    let (l, addr) = practised(t);
    let [a, b] = [(); 2].map(|()| t.c.tcp());
    t.c.setopt(a, SOL_SOCKET, SO_REUSEADDR, 1);
    t.c.bind(a, &v4());
    let mine = t.c.sockname(a);
    t.c.sockname(b);
    let p = connected(t, l, a, &addr);
    let q = connected(t, l, b, &addr);
    t.c.remark(&format!("the bound port stays: {}", t.c.sockname(a).port == mine.port));
    ports_differ(t, &[p, q]);
    used(t, p);
    used(t, q);
}

fn bound_to_anothers(t: &Duo) {
    let (l, addr) = practised(t);
    let p = another(t, l, &addr);
    let taken = t.c.sockname(p.c);
    let other = t.c.tcp();
    t.c.bind(other, &at("127.0.0.1", taken.port));
    t.c.bind(other, &at("0.0.0.0", taken.port));
    used(t, p);
}

fn one_listens(t: &Duo) {
    let (l, addr) = practised(t);
    let [a, b] = [(); 2].map(|()| t.c.tcp());
    t.c.bind(a, &v4());
    t.c.listen(a, 4);
    t.c.listen(b, 4);
    let c = t.c.tcp();
    t.c.accept(c);
    let there = t.c.sockname(a);
    let back = t.s.tcp();
    t.s.connect(back, &there);
    let s = t.c.accept(a);
    t.s.send(back, b"to the client");
    t.c.recv(s, 64);
    used(t, connected(t, l, c, &addr));
}

fn refused_first(t: &Duo) {
    let (l, addr) = practised(t);
    let (gone, nowhere) = t.listener();
    t.s.close(gone);
    let [a, b] = [(); 2].map(|()| t.c.tcp());
    t.c.connect(a, &nowhere);
    t.c.getopt(a, SOL_SOCKET, SO_ERROR);
    let p = connected(t, l, a, &addr);
    let q = connected(t, l, b, &addr);
    ports_differ(t, &[p, q]);
    used(t, p);
    used(t, q);
}

fn used_unconnected(t: &Duo) {
    let (l, addr) = practised(t);
    let [a, b] = [(); 2].map(|()| t.c.tcp());
    t.c.recv(a, 8);
    t.c.send_by(a, b"x", SendBy::Send, libc::MSG_NOSIGNAL);
    t.c.peername(a);
    t.c.sockname(a);
    t.c.poll(&[(a, POLLIN | POLLOUT), (b, POLLIN)], 0);
    t.c.getopt(a, SOL_SOCKET, SO_ERROR);
    t.c.getopt(b, SOL_SOCKET, SO_ERROR);
    used(t, connected(t, l, b, &addr));
    used(t, connected(t, l, a, &addr));
}

fn shut_unconnected(t: &Duo) {
    let (l, addr) = practised(t);
    let [a, b] = [(); 2].map(|()| t.c.tcp());
    t.c.shutdown(a, SHUT_WR);
    t.c.poll(&[(a, POLLIN | POLLOUT), (b, POLLIN | POLLOUT)], 0);
    let q = connected(t, l, b, &addr);
    used(t, q);
    t.c.shutdown(b, SHUT_RDWR);
    t.s.recv(q.s, 8);
}

fn in_a_set_before(t: &Duo) {
    let (l, addr) = practised(t);
    let ep = t.c.epoll();
    let [a, b] = [(); 2].map(|()| t.c.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK));
    t.c.epoll_add(ep, a, EPOLLIN);
    t.c.epoll_wait(ep, 0);
    t.c.close(b);
    t.c.connect(a, &addr);
    let s = t.s.accept(l);
    t.c.settle(a, POLLOUT);
    t.c.epoll_ctl(ep, libc::EPOLL_CTL_MOD, a, EPOLLIN | EPOLLOUT);
    t.c.epoll_wait(ep, 1000);
    t.s.send(s, b"x");
    t.c.settle(a, POLLIN);
    t.c.epoll_wait(ep, 1000);
    let c = t.c.tcp();
    let p = connected(t, l, c, &addr);
    t.c.epoll_add(ep, c, EPOLLIN);
    t.c.recv(a, 8);
    t.s.send(p.s, b"y");
    t.c.settle(c, POLLIN);
    t.c.epoll_ctl(ep, libc::EPOLL_CTL_MOD, a, EPOLLIN);
    t.c.epoll_wait(ep, 1000);
}

fn duplicated_before(t: &Duo) {
    let (l, addr) = practised(t);
    let [a, b] = [(); 2].map(|()| t.c.tcp());
    let d = t.c.dup(a);
    t.c.setopt(d, IPPROTO_TCP, TCP_NODELAY, 1);
    t.c.connect(d, &addr);
    let s = t.s.accept(l);
    for fd in [a, d, b] {
        show(&t.c, fd);
    }
    // Over one that is not connected.
    t.c.call(Op::Dup2 { fd: d, to: b });
    t.c.close(a);
    t.c.close(d);
    used(t, Pair { l, s, c: b });
}

fn forked_before(t: &Duo) {
    let (l, addr) = practised(t);
    let [a, b] = [(); 2].map(|()| t.c.tcp());
    let Some(child) = t.c.fork("k") else { return };
    child.setopt(a, IPPROTO_TCP, TCP_NODELAY, 1);
    t.c.getopt(a, IPPROTO_TCP, TCP_NODELAY);
    child.connect(a, &addr);
    let p = Pair { l, s: t.s.accept(l), c: a };
    used(t, p);
    used(t, connected(t, l, b, &addr));
}

fn forked_after(t: &Duo) {
    let (l, addr) = practised(t);
    let [p, q] = [(); 2].map(|()| another(t, l, &addr));
    let Some(child) = t.c.fork("k") else { return };
    t.c.close(p.c);
    child.setopt(q.c, IPPROTO_TCP, TCP_NODELAY, 1);
    t.c.getopt(q.c, IPPROTO_TCP, TCP_NODELAY);
    child.sockname(p.c);
    // The port is the child's as long as the child has the connection.
    let more: Vec<_> = (0..4).map(|_| another(t, l, &addr)).collect();
    ports_differ(t, &more);
    let own = child.quiet(&Op::Getsockname { fd: p.c }).addr.map(|a| a.port);
    let taken = more.iter().any(|m| t.c.quiet(&Op::Getsockname { fd: m.c }).addr.map(|a| a.port) == own);
    t.c.remark(&format!("given out again: {taken}"));
    child.send(p.c, b"of the child");
    t.s.recv(p.s, 64);
    child.close(p.c);
    t.s.recv(p.s, 64);
    used(t, q);
}

fn child_connects(t: &Duo) {
    let (l, addr) = practised(t);
    let p = another(t, l, &addr);
    t.c.close(p.c);
    t.s.recv(p.s, 8);
    t.s.close(p.s);
    let Some(child) = t.c.fork("k") else { return };
    for side in [&t.c, &child, &t.c, &child] {
        let c = side.tcp();
        side.connect(c, &addr);
        let s = t.s.accept(l);
        side.send(c, b"there");
        t.s.recv(s, 64);
        side.close(c);
        t.s.recv(s, 64);
        t.s.close(s);
    }
}

fn inherited(t: &Duo) {
    let (l, addr) = practised(t);
    let [a, b] = [(); 2].map(|()| t.c.tcp());
    let p = another(t, l, &addr);
    let Some(child) = t.c.spawn("k", SpawnBy::PosixSpawn, &[]) else { return };
    child.setopt(a, IPPROTO_TCP, TCP_NODELAY, 1);
    t.c.getopt(a, IPPROTO_TCP, TCP_NODELAY);
    t.c.getopt(b, IPPROTO_TCP, TCP_NODELAY);
    child.send(p.c, b"of the program");
    t.s.recv(p.s, 64);
    child.sockname(p.c);
    child.bind(b, &v4());
    t.c.remark(&format!("bound in the parent, too: {}", t.c.sockname(b).port != 0));
    used(t, connected(t, l, a, &addr));
}

fn sent_unconnected(t: &Duo) {
    let (l, addr) = practised(t);
    let [a, b] = [(); 2].map(|()| t.c.tcp());
    let (near, far) = t.c.socketpair(SOCK_STREAM);
    t.c.send_fds(near, b"yours", &[a]);
    let got = t.c.recv_fd(far);
    t.c.setopt(got, IPPROTO_TCP, TCP_NODELAY, 1);
    for fd in [a, b, got] {
        t.c.getopt(fd, IPPROTO_TCP, TCP_NODELAY);
    }
    t.c.close(a);
    used(t, connected(t, l, b, &addr));
}

fn sent_connected(t: &Duo) {
    let (l, addr) = practised(t);
    let [p, q] = [(); 2].map(|()| another(t, l, &addr));
    let (near, far) = t.c.socketpair(SOCK_STREAM);
    t.c.send_fds(near, b"yours", &[p.c]);
    let got = t.c.recv_fd(far);
    t.c.close(p.c);
    used(t, q);
    used(t, Pair { c: got, ..p });
}

fn connected_again(t: &Duo) {
    let (l, addr) = practised(t);
    let p = another(t, l, &addr);
    t.c.setopt(p.c, IPPROTO_TCP, TCP_NODELAY, 1);
    t.c.connect(p.c, &addr);
    t.c.connect(p.c, &at("unspecified", 0));
    t.s.recv(p.s, 8);
    t.c.sockname(p.c);
    show(&t.c, p.c);
    let q = connected(t, l, p.c, &addr);
    show(&t.c, p.c);
    used(t, q);
}

fn many_at_once(t: &Duo) {
    let (l, addr) = practised(t);
    let mut pairs: Vec<_> = (0..150).map(|_| another(t, l, &addr)).collect();
    ports_differ(t, &pairs);
    for p in pairs.drain(40..110) {
        t.c.close(p.c);
        t.s.recv(p.s, 8);
        t.s.close(p.s);
    }
    pairs.extend((0..20).map(|_| another(t, l, &addr)));
    ports_differ(t, &pairs);
    for p in pairs.into_iter().step_by(7) {
        used(t, p);
    }
}

fn one_after_the_other(t: &Duo) {
    let (l, addr) = practised(t);
    for round in 0..100 {
        let p = another(t, l, &addr);
        ports_differ(t, &[p]);
        t.c.send(p.c, b"there");
        t.s.recv(p.s, 64);
        let (first, then) =
            if round % 3 == 0 { ((&t.c, p.c), (&t.s, p.s)) } else { ((&t.s, p.s), (&t.c, p.c)) };
        first.0.close(first.1);
        then.0.recv(then.1, 64);
        then.0.close(then.1);
    }
}

fn server_keeps(t: &Duo) {
    let (l, addr) = practised(t);
    let open = |_| {
        let p = another(t, l, &addr);
        let port = t.s.quiet(&Op::Getpeername { fd: p.s }).addr.map(|a| a.port);
        t.c.close(p.c);
        port
    };
    let mut ports: Vec<_> = (0..50).map(open).collect();
    ports.sort_unstable();
    ports.dedup();
    t.c.remark(&format!("{} ports", ports.len()));
}

fn opened_fast(t: &Duo) {
    let (l, addr) = practised(t);
    let [a, b] = [(); 2].map(|()| t.c.tcp());
    t.c.call(Op::SendTo { fd: a, data: b"at once"[..].into(), to: addr, flags: MSG_FASTOPEN });
    let s = t.s.accept(l);
    t.s.recv(s, 64);
    t.c.peername(b);
    used(t, Pair { l, s, c: a });
}

fn signals_before(t: &Duo) {
    let (l, addr) = practised(t);
    let [a, b, c] = [(); 3].map(|()| t.c.tcp());
    t.c.signal(libc::SIGIO, 2, 0);
    t.c.owns(a);
    t.c.fcntl(a, F_SETFL, O_RDWR | O_ASYNC);
    t.c.ioctl(c, FIOASYNC, 1);
    for fd in [a, b, c] {
        t.c.fcntl(fd, F_GETFL, 0);
    }
    t.c.fcntl(b, libc::F_GETOWN, 0);
    used(t, connected(t, l, b, &addr));
    used(t, another(t, l, &addr));
}

fn cookies(t: &Duo) {
    let (l, addr) = practised(t);
    let [a, b] = [(); 2].map(|()| t.c.tcp());
    let cookie = |fd| t.c.quiet(&Op::Getsockopt { fd, level: SOL_SOCKET, name: SO_COOKIE, len: 8 }).data;
    t.c.remark(&format!("differ: {}", cookie(a) != cookie(b)));
    let before = cookie(a);
    let p = connected(t, l, a, &addr);
    t.c.remark(&format!("stays: {}", cookie(a) == before));
    used(t, p);
}

fn other_family(t: &Duo) {
    let (_, addr) = practised(t);
    let (l6, addr6) = t.listener_at(AF_INET6, &v6(), 8);
    for _ in 0..3 {
        let c = t.c.socket(AF_INET6, SOCK_STREAM);
        t.c.sockname(c);
        let p = connected(t, l6, c, &addr6);
        used(t, p);
        t.c.close(c);
        t.s.recv(p.s, 8);
        t.s.close(p.s);
    }
    let c = t.c.tcp();
    t.c.connect(c, &addr6);
    t.c.connect(c, &addr);
    t.c.send(c, b"at last");
}

fn closed_unconnected(t: &Duo) {
    let (l, addr) = practised(t);
    for _ in 0..3 {
        let fds = [(); 3].map(|()| t.c.tcp());
        t.c.setopt(fds[1], IPPROTO_TCP, TCP_NODELAY, 1);
        for fd in fds {
            t.c.close(fd);
        }
        let p = another(t, l, &addr);
        show(&t.c, p.c);
        used(t, p);
    }
}

fn threads_wait(t: &Duo) {
    let (l, addr) = practised(t);
    let [p, q] = [(); 2].map(|()| another(t, l, &addr));
    let waiting = t.c.start_recv(p.c, 64);
    t.c.until_blocked();
    t.c.setopt(p.c, IPPROTO_TCP, TCP_NODELAY, 1);
    let d = t.c.dup(p.c);
    t.s.send(p.s, b"news");
    t.c.join(waiting);
    t.c.close(d);
    used(t, q);
    used(t, p);
}
