//! `connect`: blocking and not, refused, twice, wrong.

use harness::wire::Op;
use libc::{
    AF_INET, EPOLLIN, O_NONBLOCK, POLLHUP, POLLIN, POLLOUT, POLLRDHUP, SO_ERROR, SOCK_CLOEXEC, SOCK_NONBLOCK,
    SOCK_STREAM, SOL_SOCKET,
};

use crate::driver::{Duo, at, v4};
use crate::{
    Case,
    Expect::{Any, User},
};

pub const CASES: &[Case] = &[
    ("connect::asked_again_when_it_broke", Any, asked_when_broken),
    ("connect::asked_again_when_the_server_has_closed", User, asked_when_closed),
    ("connect::asked_again_after_so_error", User, asked_after_so_error),
    ("connect::blocking", User, blocking),
    ("connect::before_accept_is_called", User, before_accept),
    ("connect::send_and_close_before_accept", User, send_and_close_before_accept),
    ("connect::one_thread_does_both_sides", User, before_accept),
    ("connect::refused", Any, refused),
    ("connect::refused_nonblocking", Any, refused_nonblocking),
    ("connect::refused_then_elsewhere", User, refused_then_elsewhere),
    ("connect::nonblocking_then_so_error", User, nonblocking),
    ("connect::nonblocking_by_fcntl", User, nonblocking_by_fcntl),
    ("connect::nonblocking_again_says_isconn", User, nonblocking_again),
    ("connect::twice_is_eisconn", User, twice),
    ("connect::accepted_socket_is_eisconn", User, accepted_socket),
    ("connect::listener_refuses_to_connect", Any, listener_connects),
    ("connect::to_port_zero", Any, port_zero),
    ("connect::wrong_family", Any, wrong_family),
    ("connect::bad_descriptor", Any, bad_descriptor),
    ("connect::from_bound_port", User, from_bound_port),
    ("connect::from_bound_address_only", User, from_bound_address),
    ("connect::many_in_a_row", User, many),
    ("connect::to_wildcard_address", User, to_wildcard),
    ("connect::cloexec_and_nonblock_types", User, socket_types),
    ("connect::unspec_disconnects", Any, unspec),
    ("connect::epoll_reports_completion", User, epoll_completion),
];

fn blocking(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, b"question");
    t.s.recv(p.s, 64);
    t.s.send(p.s, b"answer");
    t.c.recv(p.c, 64);
}

fn before_accept(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    t.c.send(c, b"early");
    let s = t.s.accept(l);
    t.s.recv(s, 16);
    t.s.send(s, b"late");
    t.c.recv(c, 16);
}

fn send_and_close_before_accept(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    t.c.send(c, b"all I had to say");
    t.c.close(c);
    let s = t.s.accept(l);
    t.s.recv(s, 64);
    t.s.recv(s, 64);
}

fn gone_port(t: &Duo) -> harness::wire::Addr {
    let l = t.s.tcp();
    t.s.bind(l, &v4());
    let addr = t.s.sockname(l);
    t.s.close(l);
    addr
}

fn refused(t: &Duo) {
    let addr = gone_port(t);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    t.c.getopt(c, SOL_SOCKET, SO_ERROR);
    t.c.peername(c);
    t.c.send(c, b"x");
}

fn refused_nonblocking(t: &Duo) {
    let addr = gone_port(t);
    let c = t.c.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK);
    let first = t.c.connect(c, &addr);
    if first.errno == libc::EINPROGRESS {
        t.c.poll(&[(c, POLLOUT)], 5000);
        t.c.getopt(c, SOL_SOCKET, SO_ERROR);
    }
    t.c.getopt(c, SOL_SOCKET, SO_ERROR);
}

fn refused_then_elsewhere(t: &Duo) {
    // The listener first: else its port is now and then the one that was just given back.
    let (l, good) = t.listener();
    let addr = gone_port(t);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    t.c.connect(c, &good);
    t.c.send(c, b"second try");
    let s = t.s.accept(l);
    t.s.recv(s, 64);
}

fn finish_nonblocking(t: &Duo, c: i32, l: i32) {
    t.c.poll(&[(c, POLLOUT)], 5000);
    t.c.getopt(c, SOL_SOCKET, SO_ERROR);
    let s = t.s.accept(l);
    t.c.send(c, b"ping");
    t.s.recv(s, 16);
}

/// The kernel completes a connection to this host within the call or right after it; both are right.
fn nonblocking(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK);
    t.c.connect(c, &addr);
    finish_nonblocking(t, c, l);
}

fn nonblocking_by_fcntl(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    t.c.nonblocking(c);
    t.c.connect(c, &addr);
    finish_nonblocking(t, c, l);
    t.c.fcntl(c, libc::F_SETFL, 0);
    let flags = t.c.fcntl(c, libc::F_GETFL, 0);
    t.c.remark(&format!("blocking again: {}", flags & O_NONBLOCK == 0));
}

fn nonblocking_again(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK);
    t.c.connect(c, &addr);
    t.c.poll(&[(c, POLLOUT)], 5000);
    t.c.connect(c, &addr);
    t.c.connect(c, &addr);
    t.s.accept(l);
}

fn twice(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    t.c.connect(c, &addr);
    t.s.accept(l);
    t.c.connect(c, &addr);
}

fn accepted_socket(t: &Duo) {
    let p = t.pair();
    let addr = t.s.sockname(p.l);
    t.s.connect(p.s, &addr);
}

fn listener_connects(t: &Duo) {
    let (l, addr) = t.listener();
    t.s.connect(l, &addr);
}

fn port_zero(t: &Duo) {
    let c = t.c.tcp();
    t.c.connect(c, &v4());
}

fn wrong_family(t: &Duo) {
    let c = t.c.tcp();
    t.c.connect(c, &at("::1", 9));
    t.c.connect(c, &at("not an address", 9));
}

fn bad_descriptor(t: &Duo) {
    t.c.connect(99, &v4());
    let (r, _w) = t.c.pipe();
    t.c.connect(r, &at("127.0.0.1", 9));
}

fn from_bound_port(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    t.c.bind(c, &v4());
    let mine = t.c.sockname(c);
    t.c.connect(c, &addr);
    t.c.sockname(c);
    let s = t.s.accept(l);
    let seen = t.s.peername(s).addr;
    t.c.remark(&format!("the server sees the bound port: {}", seen == Some(mine)));
}

fn from_bound_address(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    t.c.bind(c, &at("127.0.0.5", 0));
    t.c.connect(c, &addr);
    t.c.sockname(c);
    let s = t.s.accept(l);
    t.s.peername(s);
}

fn many(t: &Duo) {
    let (l, addr) = t.listener();
    for round in 0..40_u8 {
        let c = t.c.tcp();
        t.c.connect(c, &addr);
        let s = t.s.accept(l);
        t.c.send(c, &[b'a' + round % 26]);
        t.s.recv(s, 4);
        t.c.close(c);
        t.s.recv(s, 4);
        t.s.close(s);
    }
}

fn to_wildcard(t: &Duo) {
    let (l, addr) = t.listener_at(AF_INET, &at("0.0.0.0", 0), 16);
    let c = t.c.tcp();
    t.c.connect(c, &at("0.0.0.0", addr.port));
    let s = t.s.accept(l);
    t.c.sockname(c);
    t.c.peername(c);
    t.s.sockname(s);
    t.s.send(s, b"x");
    t.c.recv(c, 1);
}

fn socket_types(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC);
    t.c.fcntl(c, libc::F_GETFD, 0);
    t.c.fcntl(c, libc::F_GETFL, 0);
    t.c.connect(c, &addr);
    let s = t.s.accept(l);
    t.c.send(c, b"x");
    t.s.recv(s, 1);
    let n = t.c.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK);
    t.c.fcntl(n, libc::F_GETFD, 0);
    t.c.fcntl(n, libc::F_GETFL, 0);
}

/// `AF_UNSPEC` dissolves an association; on a fresh socket it does nothing.
fn unspec(t: &Duo) {
    let c = t.c.tcp();
    t.c.call(Op::Connect { fd: c, addr: at("unspecified", 0) });
    t.c.peername(c);
}

fn epoll_completion(t: &Duo) {
    let (l, addr) = t.listener();
    let ep = t.c.epoll();
    let c = t.c.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK);
    t.c.connect(c, &addr);
    t.c.epoll_add(ep, c, EPOLLIN | libc::EPOLLOUT);
    t.c.epoll_wait(ep, 5000);
    let s = t.s.accept(l);
    t.s.send(s, b"hello");
    t.c.settle(c, POLLIN);
    t.c.epoll_wait(ep, 5000);
}

/// The connection that came of a non-blocking connect is reset before anybody asks: the socket can be used anew.
fn asked_when_broken(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK);
    t.c.connect(c, &addr);
    t.c.settle(c, POLLOUT);
    t.s.close(l);
    t.c.settle(c, POLLHUP);
    t.c.connect(c, &addr);
    t.c.poll(&[(c, POLLIN | POLLOUT)], 0);
    let (l, addr) = t.listener();
    t.c.connect(c, &addr);
    t.c.settle(c, POLLOUT);
    t.c.connect(c, &addr);
    let s = t.s.accept(l);
    t.s.send(s, b"anew");
    t.c.settle(c, POLLIN);
    t.c.recv(c, 8);
}

fn asked_when_closed(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK);
    t.c.connect(c, &addr);
    let s = t.s.accept(l);
    t.s.close(s);
    t.c.settle(c, POLLRDHUP);
    t.c.connect(c, &addr);
    t.c.connect(c, &addr);
    t.c.recv(c, 4);
}

/// `SO_ERROR` does not count as asking how the connect went.
fn asked_after_so_error(t: &Duo) {
    let (_l, addr) = t.listener();
    let c = t.c.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK);
    t.c.connect(c, &addr);
    t.c.settle(c, POLLOUT);
    t.c.getopt(c, SOL_SOCKET, SO_ERROR);
    t.c.connect(c, &addr);
    t.c.connect(c, &addr);
}
