//! Socket options, `fcntl` flags, `ioctl`.

use harness::wire::Op;
use libc::{
    AF_INET, FIONBIO, FIONREAD, IPPROTO_TCP, POLLIN, SO_ACCEPTCONN, SO_BROADCAST, SO_DOMAIN, SO_ERROR,
    SO_KEEPALIVE, SO_LINGER, SO_OOBINLINE, SO_PROTOCOL, SO_RCVTIMEO, SO_REUSEADDR, SO_REUSEPORT, SO_SNDTIMEO,
    SO_TYPE, SOL_SOCKET, TCP_CORK, TCP_KEEPIDLE, TCP_NODELAY, TCP_QUICKACK,
};

use crate::driver::{Duo, v4};
use crate::{
    Case,
    Expect::{Any, Mixed, User},
};

pub const CASES: &[Case] = &[
    ("options::of_a_fresh_socket", Any, |t| {
        let c = t.c.tcp();
        read_all(t, c);
    }),
    ("options::of_a_listener", Any, of_listener),
    ("options::of_a_connection", User, of_connection),
    ("options::set_and_read_back", User, set_and_read),
    ("options::set_before_connect", User, set_before_connect),
    ("options::linger", User, linger),
    ("options::timeouts_read_back", User, timeouts_read_back),
    ("options::receive_timeout", User, receive_timeout),
    ("options::send_timeout", User, send_timeout),
    ("options::accept_timeout", Any, accept_timeout),
    ("options::timeout_zero_means_for_ever", User, timeout_zero),
    ("options::short_buffers", User, short_buffers),
    ("options::unknown", User, unknown),
    ("options::buffers_can_be_set", User, buffers),
    ("options::fionread", User, fionread),
    ("options::fionread_on_listener", Any, fionread_listener),
    ("options::fionbio", User, fionbio),
    ("options::nonblock_by_setfl", User, nonblock_setfl),
    ("options::error_is_read_once", Any, error_once),
    ("options::nodelay_after_traffic", User, nodelay_later),
    ("options::filter_that_drops_nothing", Mixed, filter_nothing),
    ("options::filter_that_drops_all", Mixed, filter_all),
    ("options::filter_that_makes_no_sense", Mixed, filter_nonsense),
];

/// What was there, what was set, and what comes.
fn filter_nothing(t: &Duo) {
    let p = t.pair();
    t.s.setopt(p.s, IPPROTO_TCP, TCP_NODELAY, 1);
    t.s.setopt(p.s, SOL_SOCKET, SO_KEEPALIVE, 1);
    t.s.setopt(p.s, IPPROTO_TCP, TCP_KEEPIDLE, 77);
    t.s.nonblocking(p.s);
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, libc::EPOLLIN);
    t.c.send(p.c, b"before the filter");
    t.s.settle(p.s, POLLIN);
    t.s.call(Op::AttachFilter { fd: p.s, verdict: u32::MAX });
    t.s.fcntl(p.s, libc::F_GETFL, 0);
    read_all(t, p.c);
    for name in [TCP_NODELAY, TCP_CORK, TCP_KEEPIDLE] {
        t.s.getopt(p.s, IPPROTO_TCP, name);
    }
    t.s.getopt(p.s, SOL_SOCKET, SO_KEEPALIVE);
    t.s.settle(p.s, POLLIN);
    t.s.epoll_wait(ep, 5000);
    t.s.recv(p.s, 64);
    t.s.epoll_wait(ep, 0);
    t.s.epoll_ctl(ep, libc::EPOLL_CTL_MOD, p.s, libc::EPOLLIN | libc::EPOLLOUT);
    t.s.epoll_wait(ep, 0);
    t.s.epoll_ctl(ep, libc::EPOLL_CTL_DEL, p.s, 0);
    for words in [b"after it", b"and more"] {
        t.c.send(p.c, words);
        t.s.settle(p.s, POLLIN);
        t.s.recv(p.s, 64);
        t.s.send(p.s, b"answer");
        t.c.recv(p.c, 64);
    }
    t.c.close(p.c);
    t.s.settle(p.s, POLLIN);
    t.s.recv(p.s, 64);
}

fn filter_all(t: &Duo) {
    let p = t.pair();
    t.s.call(Op::AttachFilter { fd: p.s, verdict: 0 });
    t.c.send(p.c, b"dropped");
    t.s.poll(&[(p.s, POLLIN)], 100);
    t.s.setopt(p.s, SOL_SOCKET, libc::SO_DETACH_FILTER, 0);
    t.s.settle(p.s, POLLIN);
    t.s.recv(p.s, 64);
}

fn filter_nonsense(t: &Duo) {
    let p = t.pair();
    t.s.setopt(p.s, SOL_SOCKET, libc::SO_ATTACH_FILTER, 0);
    t.s.setopt(p.s, SOL_SOCKET, libc::SO_ATTACH_BPF, -1);
    t.s.setopt(p.s, SOL_SOCKET, libc::SO_DETACH_FILTER, 0);
    t.c.send(p.c, b"x");
    t.s.recv(p.s, 4);
}

fn read_all(t: &Duo, fd: i32) {
    for name in [
        SO_TYPE,
        SO_DOMAIN,
        SO_PROTOCOL,
        SO_ACCEPTCONN,
        SO_ERROR,
        SO_KEEPALIVE,
        SO_REUSEADDR,
        SO_REUSEPORT,
        SO_BROADCAST,
        SO_OOBINLINE,
    ] {
        t.c.getopt(fd, SOL_SOCKET, name);
    }
    for name in [TCP_NODELAY, TCP_CORK, TCP_KEEPIDLE] {
        t.c.getopt(fd, IPPROTO_TCP, name);
    }
}

fn of_listener(t: &Duo) {
    let (l, _) = t.listener();
    for name in [SO_TYPE, SO_DOMAIN, SO_PROTOCOL, SO_ACCEPTCONN, SO_ERROR] {
        t.s.getopt(l, SOL_SOCKET, name);
    }
}

fn of_connection(t: &Duo) {
    let p = t.pair();
    read_all(t, p.c);
    for name in [SO_TYPE, SO_DOMAIN, SO_PROTOCOL, SO_ACCEPTCONN, SO_ERROR, SO_KEEPALIVE] {
        t.s.getopt(p.s, SOL_SOCKET, name);
    }
}

fn set_and_read(t: &Duo) {
    let p = t.pair();
    for name in [SO_KEEPALIVE, SO_REUSEADDR, SO_OOBINLINE] {
        for value in [1, 0] {
            t.c.setopt(p.c, SOL_SOCKET, name, value);
            t.c.getopt(p.c, SOL_SOCKET, name);
        }
    }
    for value in [1, 0] {
        t.c.setopt(p.c, IPPROTO_TCP, TCP_NODELAY, value);
        t.c.getopt(p.c, IPPROTO_TCP, TCP_NODELAY);
    }
    t.c.setopt(p.c, IPPROTO_TCP, TCP_KEEPIDLE, 77);
    t.c.getopt(p.c, IPPROTO_TCP, TCP_KEEPIDLE);
    t.c.setopt(p.c, IPPROTO_TCP, TCP_QUICKACK, 1);
    t.c.send(p.c, b"still works");
    t.s.recv(p.s, 64);
}

fn set_before_connect(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    t.c.setopt(c, SOL_SOCKET, SO_REUSEADDR, 1);
    t.c.setopt(c, SOL_SOCKET, SO_KEEPALIVE, 1);
    t.c.setopt(c, IPPROTO_TCP, TCP_NODELAY, 1);
    t.c.connect(c, &addr);
    t.c.getopt(c, SOL_SOCKET, SO_KEEPALIVE);
    t.c.getopt(c, IPPROTO_TCP, TCP_NODELAY);
    let s = t.s.accept(l);
    t.c.send(c, b"x");
    t.s.recv(s, 4);
}

fn two_ints(a: i32, b: i32) -> Vec<u8> {
    [a.to_ne_bytes(), b.to_ne_bytes()].concat()
}

fn linger(t: &Duo) {
    let p = t.pair();
    t.c.call(harness::wire::Op::Getsockopt { fd: p.c, level: SOL_SOCKET, name: SO_LINGER, len: 8 });
    t.c.setopt_bytes(p.c, SOL_SOCKET, SO_LINGER, &two_ints(1, 5));
    t.c.call(harness::wire::Op::Getsockopt { fd: p.c, level: SOL_SOCKET, name: SO_LINGER, len: 8 });
    t.c.send(p.c, b"lingering");
    t.c.close(p.c);
    t.s.recv(p.s, 64);
    t.s.recv(p.s, 64);
}

/// A timeval.
pub fn time(ms: i64) -> Vec<u8> {
    [(ms / 1000).to_ne_bytes(), (ms % 1000 * 1000).to_ne_bytes()].concat()
}

fn timeouts_read_back(t: &Duo) {
    let p = t.pair();
    for name in [SO_RCVTIMEO, SO_SNDTIMEO] {
        t.c.setopt_bytes(p.c, SOL_SOCKET, name, &time(12_000));
        t.c.call(harness::wire::Op::Getsockopt { fd: p.c, level: SOL_SOCKET, name, len: 16 });
    }
}

fn receive_timeout(t: &Duo) {
    let p = t.pair();
    t.c.setopt_bytes(p.c, SOL_SOCKET, SO_RCVTIMEO, &time(60));
    t.c.recv(p.c, 4);
    t.s.send(p.s, b"in time");
    t.c.recv(p.c, 16);
    t.c.recv(p.c, 4);
    t.c.recv_by(p.c, 8, harness::wire::RecvBy::Recv, libc::MSG_WAITALL);
}

fn send_timeout(t: &Duo) {
    let p = t.pair();
    t.c.setopt_bytes(p.c, SOL_SOCKET, SO_SNDTIMEO, &time(60));
    let op = harness::wire::Op::Fill { fd: p.c, len: 65_536, flags: libc::MSG_NOSIGNAL };
    // How much fits before the time-out is each implementation's own business.
    let last = (0..2000).map(|_| t.c.quiet(&op)).find(|out| out.ret < 0);
    t.c.remark(&format!("{last:?}"));
}

fn accept_timeout(t: &Duo) {
    let (l, _) = t.listener();
    t.s.setopt_bytes(l, SOL_SOCKET, SO_RCVTIMEO, &time(60));
    t.s.accept(l);
}

fn timeout_zero(t: &Duo) {
    let p = t.pair();
    t.c.setopt_bytes(p.c, SOL_SOCKET, SO_RCVTIMEO, &time(60));
    t.c.setopt_bytes(p.c, SOL_SOCKET, SO_RCVTIMEO, &time(0));
    let waiting = t.c.start_recv(p.c, 8);
    t.pause();
    t.pause();
    t.s.send(p.s, b"late");
    t.c.join(waiting);
}

fn short_buffers(t: &Duo) {
    let p = t.pair();
    for len in [1, 2, 4, 8, 16] {
        t.c.call(harness::wire::Op::Getsockopt { fd: p.c, level: SOL_SOCKET, name: SO_TYPE, len });
        t.c.call(harness::wire::Op::Getsockopt { fd: p.c, level: SOL_SOCKET, name: SO_ERROR, len });
    }
    t.c.setopt_bytes(p.c, SOL_SOCKET, SO_KEEPALIVE, &[1]);
    t.c.setopt_bytes(p.c, IPPROTO_TCP, TCP_NODELAY, &[1]);
    t.c.setopt_bytes(p.c, SOL_SOCKET, SO_RCVTIMEO, &[1, 0, 0, 0]);
}

fn unknown(t: &Duo) {
    let p = t.pair();
    t.c.getopt(p.c, SOL_SOCKET, 9999);
    t.c.setopt(p.c, SOL_SOCKET, 9999, 1);
    t.c.getopt(p.c, 7777, 1);
    t.c.setopt(p.c, 7777, 1, 1);
    t.c.getopt(99, SOL_SOCKET, SO_TYPE);
}

fn buffers(t: &Duo) {
    let p = t.pair();
    for name in [libc::SO_RCVBUF, libc::SO_SNDBUF] {
        t.c.setopt(p.c, SOL_SOCKET, name, 100_000);
        t.c.getopt(p.c, SOL_SOCKET, name);
    }
    t.c.send(p.c, b"x");
    t.s.recv(p.s, 4);
}

fn fionread(t: &Duo) {
    let p = t.pair();
    t.s.ioctl(p.s, FIONREAD, -1);
    t.c.send(p.c, b"twelve bytes");
    t.s.settle(p.s, POLLIN);
    t.s.ioctl(p.s, FIONREAD, -1);
    t.s.recv(p.s, 5);
    t.s.ioctl(p.s, FIONREAD, -1);
    t.s.recv(p.s, 64);
    t.s.ioctl(p.s, FIONREAD, -1);
}

fn fionread_listener(t: &Duo) {
    let (l, _) = t.listener();
    t.s.ioctl(l, FIONREAD, -1);
    t.s.ioctl(99, FIONREAD, -1);
}

fn fionbio(t: &Duo) {
    let p = t.pair();
    t.s.ioctl(p.s, FIONBIO, 1);
    t.s.fcntl(p.s, libc::F_GETFL, 0);
    t.s.recv(p.s, 4);
    t.s.ioctl(p.s, FIONBIO, 0);
    t.s.fcntl(p.s, libc::F_GETFL, 0);
    let waiting = t.s.start_recv(p.s, 8);
    t.pause();
    t.c.send(p.c, b"x");
    t.s.join(waiting);
}

fn nonblock_setfl(t: &Duo) {
    let p = t.pair();
    t.c.fcntl(p.c, libc::F_GETFL, 0);
    t.c.nonblocking(p.c);
    t.c.fcntl(p.c, libc::F_GETFL, 0);
    t.c.recv(p.c, 4);
    t.c.fcntl(p.c, libc::F_SETFL, libc::O_RDWR);
    t.c.fcntl(p.c, libc::F_GETFL, 0);
    t.c.fcntl(p.c, libc::F_SETFD, libc::FD_CLOEXEC);
    t.c.fcntl(p.c, libc::F_GETFD, 0);
}

fn error_once(t: &Duo) {
    let l = t.s.tcp();
    t.s.bind(l, &v4());
    let addr = t.s.sockname(l);
    t.s.close(l);
    let c = t.c.socket(AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
    t.c.connect(c, &addr);
    t.c.settle(c, libc::POLLOUT);
    t.c.getopt(c, SOL_SOCKET, SO_ERROR);
    t.c.getopt(c, SOL_SOCKET, SO_ERROR);
}

fn nodelay_later(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, b"a");
    t.c.setopt(p.c, IPPROTO_TCP, TCP_NODELAY, 1);
    t.c.setopt(p.c, IPPROTO_TCP, TCP_CORK, 1);
    t.c.send(p.c, b"b");
    t.c.setopt(p.c, IPPROTO_TCP, TCP_CORK, 0);
    t.s.recv_by(p.s, 2, harness::wire::RecvBy::Recv, libc::MSG_WAITALL);
}
