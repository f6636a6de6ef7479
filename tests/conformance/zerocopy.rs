//! `SO_ZEROCOPY`, `MSG_ZEROCOPY`, and the error queue that says when a buffer is free again.

use harness::wire::{Op, RecvBy, SendBy};
use libc::{EPOLLIN, MSG_ERRQUEUE, MSG_NOSIGNAL, MSG_ZEROCOPY, POLLIN, SO_ZEROCOPY, SOL_SOCKET};

use crate::driver::{Duo, Pair, v6};
use crate::{Case, Expect::User};

pub const CASES: &[Case] = &[
    ("zerocopy::each_send_is_told", User, |t| {
        let p = enabled(t);
        for _ in 0..3 {
            send(t, &p);
            told(t, p.c, 128);
        }
        told(t, p.c, 128);
        t.s.recv_by(p.s, 30, RecvBy::Recv, libc::MSG_WAITALL);
    }),
    ("zerocopy::several_sends_are_told_at_once", User, |t| {
        let p = enabled(t);
        for _ in 0..3 {
            send(t, &p);
            t.s.recv(p.s, 64);
        }
        t.c.poll(&[(p.c, POLLIN)], 0);
        told(t, p.c, 128);
        t.c.poll(&[(p.c, POLLIN)], 0);
        told(t, p.c, 128);
    }),
    ("zerocopy::not_enabled", User, |t| {
        let p = t.pair();
        t.c.send_by(p.c, b"0123456789", SendBy::Send, MSG_ZEROCOPY | MSG_NOSIGNAL);
        t.s.recv(p.s, 64);
        t.c.poll(&[(p.c, POLLIN)], 0);
        told(t, p.c, 128);
    }),
    ("zerocopy::plain_and_empty_sends_are_not_told", User, |t| {
        let p = enabled(t);
        t.c.send(p.c, b"plain");
        t.c.send_by(p.c, b"", SendBy::Send, MSG_ZEROCOPY);
        t.s.recv(p.s, 64);
        told(t, p.c, 128);
    }),
    ("zerocopy::too_little_room_for_the_word", User, |t| {
        let p = enabled(t);
        for room in [0, 8, 20, 47, 48] {
            send(t, &p);
            t.s.recv(p.s, 64);
            told(t, p.c, room);
        }
    }),
    ("zerocopy::taken_by_recv", User, |t| {
        let p = enabled(t);
        send(t, &p);
        t.s.recv(p.s, 64);
        t.c.settle(p.c, libc::POLLERR);
        t.c.recv_by(p.c, 16, RecvBy::Recv, MSG_ERRQUEUE);
        t.c.recv_by(p.c, 16, RecvBy::Recv, MSG_ERRQUEUE);
    }),
    ("zerocopy::over_ipv6", User, |t| {
        let (l, addr) = t.listener_at(libc::AF_INET6, &v6(), 8);
        let c = t.c.socket(libc::AF_INET6, libc::SOCK_STREAM);
        t.c.setopt(c, SOL_SOCKET, SO_ZEROCOPY, 1);
        t.c.connect(c, &addr);
        let p = Pair { l, c, s: t.s.accept(l) };
        send(t, &p);
        t.s.recv(p.s, 64);
        told(t, c, 128);
    }),
    ("zerocopy::epoll_hears", User, |t| {
        let p = enabled(t);
        let ep = t.c.epoll();
        t.c.epoll_add(ep, p.c, EPOLLIN);
        t.c.epoll_wait(ep, 0);
        send(t, &p);
        t.s.recv(p.s, 64);
        t.c.settle(p.c, libc::POLLERR);
        t.c.epoll_wait(ep, 1000);
        told(t, p.c, 128);
        t.c.epoll_wait(ep, 0);
    }),
    ("zerocopy::from_the_listener", User, |t| {
        let (l, addr) = t.listener();
        t.s.setopt(l, SOL_SOCKET, SO_ZEROCOPY, 1);
        let c = t.c.tcp();
        t.c.connect(c, &addr);
        let s = t.s.accept(l);
        t.s.getopt(s, SOL_SOCKET, SO_ZEROCOPY);
        t.s.send_by(s, b"0123456789", SendBy::Send, MSG_ZEROCOPY | MSG_NOSIGNAL);
        t.c.recv(c, 64);
        t.s.settle(s, libc::POLLERR);
        t.s.call(Op::RecvMessage { fd: s, len: 16, control_len: 128, flags: MSG_ERRQUEUE });
    }),
    ("zerocopy::bad_values", User, |t| {
        let p = t.pair();
        for value in [2, -1, 1, 0] {
            t.c.setopt(p.c, SOL_SOCKET, SO_ZEROCOPY, value);
            t.c.getopt(p.c, SOL_SOCKET, SO_ZEROCOPY);
        }
    }),
];

fn enabled(t: &Duo) -> Pair {
    let p = t.pair();
    t.c.setopt(p.c, SOL_SOCKET, SO_ZEROCOPY, 1);
    p
}

fn send(t: &Duo, p: &Pair) {
    t.c.send_by(p.c, b"0123456789", SendBy::Send, MSG_ZEROCOPY | MSG_NOSIGNAL);
}

/// Reads the error queue, after time for the peer's kernel to acknowledge.
fn told(t: &Duo, fd: i32, control_len: usize) {
    t.pause();
    t.c.call(Op::RecvMessage { fd, len: 16, control_len, flags: MSG_ERRQUEUE });
}
