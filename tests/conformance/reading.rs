//! Reading with conditions: `SO_RCVLOWAT`, several messages at once, flags that mean nothing, buffers that can't be.

use harness::wire::{Op, PollBy, RecvBy, SendBy};
use libc::{
    EPOLLET, EPOLLIN, EPOLLOUT, MSG_DONTWAIT, MSG_ERRQUEUE, MSG_NOSIGNAL, MSG_PEEK, MSG_TRUNC, MSG_WAITALL,
    POLLIN, SHUT_WR, SO_KEEPALIVE, SO_LINGER, SO_OOBINLINE, SO_RCVLOWAT, SOL_SOCKET,
};

use crate::driver::{Duo, Pair};
use crate::{Case, Expect::User};

pub const CASES: &[Case] = &[
    ("reading::lowat_holds_poll_back", User, |t| {
        let p = low(t, 8);
        more(t, &p, b"seven!!");
        t.s.poll(&[(p.s, POLLIN)], 0);
        more(t, &p, b"8");
        t.s.poll(&[(p.s, POLLIN)], 1000);
        t.s.recv(p.s, 64);
        t.s.poll(&[(p.s, POLLIN)], 0);
    }),
    ("reading::lowat_holds_recv_back", User, |t| {
        let p = low(t, 8);
        let waiting = t.s.start_recv(p.s, 64);
        t.pause();
        more(t, &p, b"four");
        more(t, &p, b"more");
        t.s.join(waiting);
    }),
    ("reading::lowat_counts_what_is_left", User, |t| {
        let p = low(t, 5);
        more(t, &p, b"0123456789");
        t.s.recv(p.s, 7);
        t.s.poll(&[(p.s, POLLIN)], 0);
        more(t, &p, b"ab");
        t.s.poll(&[(p.s, POLLIN)], 1000);
    }),
    ("reading::lowat_above_the_buffer", User, |t| {
        let p = low(t, 8);
        more(t, &p, b"abc");
        t.s.recv(p.s, 3);
    }),
    ("reading::lowat_without_waiting", User, |t| {
        let p = low(t, 8);
        t.s.recv_by(p.s, 64, RecvBy::Recv, MSG_DONTWAIT);
        more(t, &p, b"abc");
        t.s.recv_by(p.s, 64, RecvBy::Recv, MSG_DONTWAIT | MSG_PEEK);
        t.s.recv_by(p.s, 64, RecvBy::Recv, MSG_DONTWAIT);
    }),
    ("reading::lowat_with_waitall", User, |t| {
        let p = low(t, 2);
        let waiting = t.s.start(Op::Recv { fd: p.s, len: 6, by: RecvBy::Recv, flags: MSG_WAITALL });
        more(t, &p, b"abc");
        more(t, &p, b"def");
        t.s.join(waiting);
    }),
    ("reading::lowat_and_the_end", User, |t| {
        let p = low(t, 8);
        more(t, &p, b"abc");
        t.s.poll(&[(p.s, POLLIN)], 0);
        t.c.close(p.c);
        t.s.poll(&[(p.s, POLLIN)], 1000);
        t.s.recv(p.s, 64);
        t.s.recv(p.s, 64);
    }),
    ("reading::lowat_lowered_while_data_waits", User, |t| {
        let p = low(t, 8);
        more(t, &p, b"abc");
        let waiting = t.s.start(Op::Poll { fds: vec![(p.s, POLLIN)], timeout_ms: 5000, by: PollBy::Poll });
        t.pause();
        t.s.setopt(p.s, SOL_SOCKET, SO_RCVLOWAT, 2);
        t.s.join(waiting);
    }),
    ("reading::lowat_in_epoll", User, |t| lowat_epoll(t, 0)),
    ("reading::lowat_in_epoll_edge", User, |t| lowat_epoll(t, EPOLLET)),
    ("reading::lowat_is_news_to_who_reads", User, |t| options_as_news(t, EPOLLIN | EPOLLOUT)),
    ("reading::lowat_is_no_news_to_who_writes", User, |t| options_as_news(t, EPOLLOUT)),
    ("reading::lowat_from_the_listener", User, |t| {
        let (l, addr) = t.listener();
        t.s.setopt(l, SOL_SOCKET, SO_RCVLOWAT, 4);
        let c = t.c.tcp();
        t.c.connect(c, &addr);
        let p = Pair { l, c, s: t.s.accept(l) };
        t.s.getopt(p.s, SOL_SOCKET, SO_RCVLOWAT);
        more(t, &p, b"abc");
        t.s.poll(&[(p.s, POLLIN)], 0);
    }),
    ("reading::lowat_set_before_connect", User, |t| {
        let (l, addr) = t.listener();
        let c = t.c.tcp();
        t.c.setopt(c, SOL_SOCKET, SO_RCVLOWAT, 4);
        t.c.connect(c, &addr);
        let s = t.s.accept(l);
        t.s.send(s, b"abc");
        t.pause();
        t.c.poll(&[(c, POLLIN)], 0);
        t.s.send(s, b"d");
        t.c.poll(&[(c, POLLIN)], 1000);
    }),
    ("reading::lowat_zero_and_negative", User, |t| {
        let p = t.pair();
        for value in [0, -1, 1] {
            t.s.setopt(p.s, SOL_SOCKET, SO_RCVLOWAT, value);
            t.s.getopt(p.s, SOL_SOCKET, SO_RCVLOWAT);
        }
        t.s.setopt(p.s, SOL_SOCKET, libc::SO_SNDLOWAT, 5);
    }),
    ("reading::many_messages_at_the_end", User, |t| {
        let p = t.pair();
        more(t, &p, b"abc");
        t.c.close(p.c);
        t.s.settle(p.s, libc::POLLRDHUP);
        t.s.recv_by(p.s, 16, RecvBy::Recvmmsg(4), 0);
        t.s.recv_by(p.s, 16, RecvBy::Recvmmsg(4), 0);
    }),
    ("reading::error_queue_is_empty", User, |t| {
        let p = t.pair();
        more(t, &p, b"abc");
        for by in [RecvBy::Recv, RecvBy::Recvmsg(4)] {
            t.s.recv_by(p.s, 16, by, MSG_ERRQUEUE);
        }
        t.s.recv(p.s, 16);
    }),
    ("reading::flags_that_tcp_ignores", User, |t| {
        let p = t.pair();
        for flags in
            [libc::MSG_CONFIRM, libc::MSG_DONTROUTE, libc::MSG_EOR, libc::MSG_MORE, libc::MSG_ZEROCOPY]
        {
            t.c.send_by(p.c, b"x", SendBy::Send, flags | MSG_NOSIGNAL);
        }
        t.c.send(p.c, b"y");
        t.s.recv_by(p.s, 6, RecvBy::Recv, MSG_WAITALL);
    }),
    ("reading::trunc_throws_away_part", User, |t| {
        let p = t.pair();
        more(t, &p, b"0123456789");
        t.s.recv_by(p.s, 4, RecvBy::Recvmsg(4), MSG_TRUNC);
        t.s.recv_by(p.s, 2, RecvBy::Recv, MSG_TRUNC | MSG_PEEK);
        t.s.recv(p.s, 64);
    }),
];

fn low(t: &Duo, bytes: i32) -> Pair {
    let p = t.pair();
    t.s.setopt(p.s, SOL_SOCKET, SO_RCVLOWAT, bytes);
    t.s.getopt(p.s, SOL_SOCKET, SO_RCVLOWAT);
    p
}

/// Sends `data` and gives it time to arrive: a mark may keep it from being seen.
fn more(t: &Duo, p: &Pair, data: &[u8]) {
    t.c.send(p.c, data);
    t.pause();
}

fn lowat_epoll(t: &Duo, how: i32) {
    let p = low(t, 4);
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN | how);
    more(t, &p, b"abc");
    t.s.epoll_wait(ep, 0);
    more(t, &p, b"d");
    t.s.epoll_wait(ep, 1000);
    t.s.recv(p.s, 2);
    t.s.epoll_wait(ep, 0);
    more(t, &p, b"ef");
    t.s.epoll_wait(ep, 1000);
}

/// Which options are an edge, without and with something to read.
fn options_as_news(t: &Duo, events: i32) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, events | EPOLLET);
    t.s.epoll_wait(ep, 0);
    let each_option = || {
        for (name, value) in [(SO_KEEPALIVE, 1), (SO_RCVLOWAT, 2), (SO_RCVLOWAT, 8), (SO_OOBINLINE, 1)] {
            t.s.setopt(p.s, SOL_SOCKET, name, value);
            t.s.epoll_wait(ep, 0);
        }
        t.s.setopt_bytes(p.s, SOL_SOCKET, SO_LINGER, &[0; 8]);
        t.s.epoll_wait(ep, 0);
    };
    each_option();
    more(t, &p, b"abcd");
    t.s.epoll_wait(ep, 0);
    each_option();
    t.c.shutdown(p.c, SHUT_WR);
    t.pause();
    t.s.epoll_wait(ep, 0);
    each_option();
}
