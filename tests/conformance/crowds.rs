//! Many clients who wait to be accepted, while the listener gets other holders, or none.

use harness::wire::{Addr, ExecBy, Op, SpawnBy};
use libc::{AF_INET, EPOLLET, EPOLLIN, POLLIN, SO_KEEPALIVE, SOCK_STREAM, SOL_SOCKET};

use crate::driver::{Duo, Pair, Side, v4};
use crate::together::used;
use crate::{
    Case,
    Expect::{Any, Mixed, User},
};

pub const CASES: &[Case] = &[
    ("crowds::in_order", User, in_order),
    ("crowds::until_nobody_waits", User, until_nobody),
    ("crowds::while_more_come", User, more_come),
    ("crowds::poll_sees_who_is_left", User, poll_left),
    ("crowds::one_edge_for_all", User, one_edge),
    ("crowds::level_for_each", User, level_for_each),
    ("crowds::parent_and_child_share_the_rest", User, parent_and_child),
    ("crowds::the_rest_is_the_childs", User, rest_of_child),
    ("crowds::the_rest_is_a_programs", User, rest_of_program),
    ("crowds::the_rest_is_there_after_exec", User, after_exec),
    ("crowds::the_rest_is_sent_away", Mixed, sent_away),
    ("crowds::the_listener_is_closed", Any, listener_closed),
    ("crowds::the_listener_is_shut_down", Any, listener_shut),
    ("crowds::some_have_gone", User, some_gone),
    ("crowds::two_threads", User, two_threads),
    ("crowds::two_listeners", User, two_listeners),
    ("crowds::the_listener_changes_in_between", User, listener_changes),
];

/// Clients who have said their numbers, and of whom the server has heard: of one that connects again and again that may take a moment (README).
fn come(t: &Duo, addr: &Addr, numbers: core::ops::Range<u8>) -> Vec<i32> {
    let come = |n: u8| {
        let c = t.c.tcp();
        t.c.connect(c, addr);
        t.c.send(c, &[b'A' + n]);
        c
    };
    let clients = numbers.map(come).collect();
    t.pause();
    clients
}

/// A listener, and so many who wait for it; the first ones are accepted.
fn crowd(t: &Duo, all: u8, accepted: u8) -> (i32, Addr, Vec<i32>) {
    let (l, addr) = t.listener_at(AF_INET, &v4(), 64);
    let clients = come(t, &addr, 0..all);
    for _ in 0..accepted {
        next(&t.s, l);
    }
    (l, addr, clients)
}

/// The next one, who says who it is.
fn next(side: &Side, l: i32) -> i32 {
    let s = side.accept(l);
    side.recv(s, 8);
    s
}

fn in_order(t: &Duo) {
    crowd(t, 40, 40);
}

fn until_nobody(t: &Duo) {
    let (l, addr, _clients) = crowd(t, 20, 1);
    t.s.nonblocking(l);
    for _ in 0..2 {
        while next(&t.s, l) >= 0 {}
        come(t, &addr, 30..33);
        t.s.settle(l, POLLIN);
    }
    while next(&t.s, l) >= 0 {}
}

fn more_come(t: &Duo) {
    let (l, addr, _clients) = crowd(t, 6, 2);
    for n in 6..20 {
        come(t, &addr, n..n + 1);
        next(&t.s, l);
    }
    for _ in 0..4 {
        next(&t.s, l);
    }
    let waiting = t.s.start(Op::Accept { fd: l, flags: None });
    t.s.until_blocked();
    come(t, &addr, 20..21);
    t.s.join(waiting);
}

fn poll_left(t: &Duo) {
    let (l, _addr, _clients) = crowd(t, 12, 0);
    for _ in 0..12 {
        t.s.poll(&[(l, POLLIN)], 0);
        next(&t.s, l);
    }
    t.s.poll(&[(l, POLLIN)], 0);
}

fn one_edge(t: &Duo) {
    let (l, addr) = t.listener_at(AF_INET, &v4(), 64);
    t.s.nonblocking(l);
    let ep = t.s.epoll();
    t.s.epoll_add(ep, l, EPOLLIN | EPOLLET);
    come(t, &addr, 0..12);
    t.s.settle(l, POLLIN);
    t.s.epoll_wait(ep, 1000);
    for _ in 0..3 {
        for _ in 0..3 {
            next(&t.s, l);
        }
        t.s.epoll_wait(ep, 0);
    }
    while next(&t.s, l) >= 0 {}
    t.s.epoll_wait(ep, 0);
    come(t, &addr, 12..13);
    t.s.epoll_wait(ep, 1000);
    next(&t.s, l);
}

fn level_for_each(t: &Duo) {
    let (l, addr) = t.listener_at(AF_INET, &v4(), 64);
    let ep = t.s.epoll();
    t.s.epoll_add(ep, l, EPOLLIN);
    come(t, &addr, 0..12);
    for _ in 0..12 {
        t.s.epoll_wait(ep, 1000);
        next(&t.s, l);
    }
    t.s.epoll_wait(ep, 0);
}

fn parent_and_child(t: &Duo) {
    let (l, addr, _clients) = crowd(t, 16, 4);
    let Some(child) = t.s.fork("k") else { return };
    for _ in 0..4 {
        next(&child, l);
        next(&t.s, l);
    }
    come(t, &addr, 20..22);
    for _ in 0..3 {
        next(&child, l);
        next(&child, l);
    }
}

fn rest_of_child(t: &Duo) {
    let (l, addr, _clients) = crowd(t, 16, 4);
    let Some(child) = t.s.fork("k") else { return };
    t.s.close(l);
    for _ in 0..10 {
        next(&child, l);
    }
    come(t, &addr, 20..21);
    for _ in 0..3 {
        next(&child, l);
    }
}

fn rest_of_program(t: &Duo) {
    let (l, _addr, _clients) = crowd(t, 16, 4);
    let Some(child) = t.s.spawn("k", SpawnBy::PosixSpawn, &[]) else { return };
    for _ in 0..3 {
        next(&child, l);
        next(&t.s, l);
    }
    t.s.close(l);
    for _ in 0..6 {
        next(&child, l);
    }
}

fn after_exec(t: &Duo) {
    let (l, addr, clients) = crowd(t, 12, 4);
    t.s.exec(ExecBy::Execve);
    for _ in 0..8 {
        next(&t.s, l);
    }
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    used(t, Pair { l, s: t.s.accept(l), c });
    t.c.close(clients[0]);
}

fn sent_away(t: &Duo) {
    let (l, _addr, _clients) = crowd(t, 12, 4);
    let (near, far) = t.s.socketpair(SOCK_STREAM);
    t.s.send_fds(near, b"yours", &[l]);
    let got = t.s.recv_fd(far);
    for _ in 0..4 {
        next(&t.s, l);
    }
    t.s.close(got);
    for _ in 0..4 {
        next(&t.s, l);
    }
}

fn listener_closed(t: &Duo) {
    let (l, addr, clients) = crowd(t, 12, 4);
    t.s.close(l);
    turned_away(t, &addr, &clients[4..]);
}

fn listener_shut(t: &Duo) {
    let (l, addr, clients) = crowd(t, 12, 4);
    t.s.shutdown(l, libc::SHUT_RD);
    t.s.accept(l);
    turned_away(t, &addr, &clients[4..]);
}

/// What those hear who were not accepted, and one who comes late.
fn turned_away(t: &Duo, addr: &Addr, clients: &[i32]) {
    for c in clients {
        t.c.settle(*c, POLLIN);
        t.c.recv(*c, 8);
    }
    let late = t.c.tcp();
    t.c.connect(late, addr);
}

fn some_gone(t: &Duo) {
    let (l, _addr, clients) = crowd(t, 16, 2);
    for c in clients.iter().skip(2).step_by(3) {
        t.c.close(*c);
    }
    t.c.shutdown(clients[3], libc::SHUT_WR);
    t.pause();
    for _ in 2..16 {
        let s = next(&t.s, l);
        t.s.poll(&[(s, POLLIN)], 0);
        t.s.peername(s);
    }
}

fn two_threads(t: &Duo) {
    let (l, addr, _clients) = crowd(t, 7, 5);
    let waiting = [(); 2].map(|()| t.s.start(Op::Accept { fd: l, flags: None }));
    let mut got = waiting.map(|w| t.s.quiet(&Op::Join { ticket: w }).ret);
    got.sort_unstable();
    t.s.remark(&format!("{got:?}"));
    come(t, &addr, 20..23);
    for _ in 0..3 {
        next(&t.s, l);
    }
}

fn two_listeners(t: &Duo) {
    let (l, _addr, _clients) = crowd(t, 12, 2);
    let (l2, _addr2, _clients2) = crowd(t, 12, 2);
    for _ in 0..5 {
        next(&t.s, l);
        next(&t.s, l2);
        next(&t.s, l2);
    }
    t.s.close(l2);
    for _ in 0..5 {
        next(&t.s, l);
    }
}

fn listener_changes(t: &Duo) {
    let (l, addr, _clients) = crowd(t, 12, 2);
    t.s.setopt(l, SOL_SOCKET, libc::SO_REUSEADDR, 1);
    t.s.nonblocking(l);
    for _ in 0..10 {
        let s = next(&t.s, l);
        t.s.fcntl(s, libc::F_GETFL, 0);
    }
    t.s.setopt(l, SOL_SOCKET, SO_KEEPALIVE, 1);
    come(t, &addr, 20..24);
    t.s.settle(l, POLLIN);
    for _ in 0..4 {
        let s = next(&t.s, l);
        t.s.getopt(s, SOL_SOCKET, SO_KEEPALIVE);
    }
}
