//! `epoll`: level, edge, oneshot, changes, hang-ups, mixtures, several sets.

use harness::wire::{Op, RecvBy, SendBy};
use libc::{
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLET, EPOLLEXCLUSIVE, EPOLLIN, EPOLLONESHOT, EPOLLOUT,
    EPOLLRDHUP, POLLHUP, POLLIN, POLLRDHUP, SHUT_RDWR, SHUT_WR,
};

use crate::driver::Duo;
use crate::{
    Case,
    Expect::{Any, User},
};

pub const CASES: &[Case] = &[
    ("epoll::one_shot_that_was_shot_before_the_connection", User, shot_before),
    ("epoll::data_is_no_edge_for_a_writer", User, data_no_edge),
    ("epoll::own_shutdown_is_an_edge", User, each_shutdown),
    ("epoll::level_triggered", User, level),
    ("epoll::level_with_partial_reads", User, level_partial),
    ("epoll::edge_triggered", User, edge),
    ("epoll::edge_after_partial_read", User, edge_partial),
    ("epoll::edge_out_after_full", User, edge_out),
    ("epoll::edge_added_when_already_ready", User, edge_added_late),
    ("epoll::oneshot", User, oneshot),
    ("epoll::oneshot_rearmed_while_ready", User, oneshot_rearm),
    ("epoll::mod_changes_events", User, modify),
    ("epoll::del_silences", User, delete),
    ("epoll::errors", User, errors),
    ("epoll::wakes_a_sleeper", User, wakes),
    ("epoll::times_out", User, times_out),
    ("epoll::peer_closes", User, peer_closes),
    ("epoll::peer_half_closes", User, peer_half_closes),
    ("epoll::own_shutdown", User, own_shutdown),
    ("epoll::reset", User, reset),
    ("epoll::closed_descriptor_leaves_the_set", User, closed_leaves),
    ("epoll::dup_keeps_the_registration", User, dup_keeps),
    ("epoll::listener", User, listener),
    ("epoll::listener_edge", User, listener_edge),
    ("epoll::mixed_with_pipe", User, mixed_pipe),
    ("epoll::mixed_with_eventfd_and_timerfd", User, mixed_others),
    ("epoll::kernel_descriptor_wakes_the_mixture", User, kernel_wakes),
    ("epoll::only_kernel_descriptors", Any, only_kernel),
    ("epoll::one_socket_in_two_sets", User, two_sets),
    ("epoll::nested", User, nested),
    ("epoll::more_ready_than_asked_for", User, more_ready),
    ("epoll::many_sockets", User, many),
    ("epoll::events_in_the_order_of_arrival", User, in_order),
    ("epoll::added_before_connect", User, before_connect),
    ("epoll::set_made_before_the_sockets", User, level),
    ("epoll::exclusive", User, exclusive),
    ("epoll::poll_on_the_set_itself", User, poll_set),
    ("epoll::request_response_rounds", User, rounds),
];

fn level(t: &Duo) {
    let ep = t.s.epoll();
    let p = t.pair();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.s.epoll_wait(ep, 0);
    t.c.send(p.c, b"abc");
    t.s.epoll_wait(ep, 5000);
    t.s.epoll_wait(ep, 0);
    t.s.recv(p.s, 16);
    t.s.epoll_wait(ep, 0);
}

fn level_partial(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.c.send(p.c, b"abc");
    for _ in 0..3 {
        t.s.epoll_wait(ep, 5000);
        t.s.recv(p.s, 1);
    }
    t.s.epoll_wait(ep, 0);
}

fn edge(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN | EPOLLET);
    t.s.epoll_wait(ep, 0);
    t.c.send(p.c, b"one");
    t.s.epoll_wait(ep, 5000);
    t.s.epoll_wait(ep, 0);
    t.c.send(p.c, b"two");
    t.s.epoll_wait(ep, 5000);
    t.s.epoll_wait(ep, 0);
    t.s.recv(p.s, 16);
    t.s.epoll_wait(ep, 0);
    t.c.send(p.c, b"three");
    t.s.epoll_wait(ep, 5000);
}

fn edge_partial(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN | EPOLLET);
    t.c.send(p.c, b"abcdef");
    t.s.epoll_wait(ep, 5000);
    t.s.recv(p.s, 2);
    t.s.epoll_wait(ep, 0);
    t.c.send(p.c, b"ghi");
    t.s.epoll_wait(ep, 5000);
    t.s.recv(p.s, 64);
    t.s.epoll_wait(ep, 0);
}

fn fill(t: &Duo, fd: i32) -> i64 {
    let op = Op::Fill { fd, len: 65_536, flags: libc::MSG_DONTWAIT };
    (0..2000).map(|_| t.c.quiet(&op).ret).take_while(|n| *n > 0).sum()
}

fn empty(t: &Duo, fd: i32, bytes: i64) {
    let mut left = bytes;
    while left > 0 {
        let len = usize::try_from(left.min(1 << 16)).unwrap_or(1);
        let got = t.s.quiet(&Op::Recv { fd, len, by: RecvBy::Recv, flags: libc::MSG_WAITALL }).ret;
        if got <= 0 {
            t.s.remark("the stream broke");
            return;
        }
        left -= got;
    }
}

fn edge_out(t: &Duo) {
    let p = t.pair();
    let ep = t.c.epoll();
    t.c.epoll_add(ep, p.c, EPOLLOUT | EPOLLET);
    t.c.epoll_wait(ep, 0);
    t.c.epoll_wait(ep, 0);
    let sent = fill(t, p.c);
    t.c.epoll_wait(ep, 0);
    empty(t, p.s, sent);
    t.c.epoll_wait(ep, 5000);
}

fn edge_added_late(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, b"already there");
    t.s.settle(p.s, POLLIN);
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN | EPOLLOUT | EPOLLET);
    t.s.epoll_wait(ep, 5000);
    t.s.epoll_wait(ep, 0);
    t.s.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLIN | EPOLLET);
    t.s.epoll_wait(ep, 5000);
    t.s.epoll_wait(ep, 0);
}

fn oneshot(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN | EPOLLONESHOT);
    t.c.send(p.c, b"one");
    t.s.epoll_wait(ep, 5000);
    t.c.send(p.c, b"two");
    t.s.epoll_wait(ep, 0);
    t.s.recv(p.s, 64);
    t.s.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLIN | EPOLLONESHOT);
    t.s.epoll_wait(ep, 0);
    t.c.send(p.c, b"three");
    t.s.epoll_wait(ep, 5000);
}

fn oneshot_rearm(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN | EPOLLONESHOT);
    t.c.send(p.c, b"stays");
    t.s.epoll_wait(ep, 5000);
    t.s.epoll_wait(ep, 0);
    t.s.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLIN | EPOLLONESHOT);
    t.s.epoll_wait(ep, 5000);
}

fn modify(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.s.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLIN | EPOLLOUT);
    t.s.epoll_wait(ep, 5000);
    t.c.send(p.c, b"x");
    t.s.settle(p.s, POLLIN);
    t.s.epoll_wait(ep, 5000);
    t.s.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLOUT);
    t.s.epoll_wait(ep, 5000);
    t.s.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, 0);
    t.s.epoll_wait(ep, 0);
    t.s.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLIN);
    t.s.epoll_wait(ep, 5000);
}

fn delete(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(ep, 5000);
    t.s.epoll_ctl(ep, EPOLL_CTL_DEL, p.s, 0);
    t.s.epoll_wait(ep, 20);
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.s.epoll_wait(ep, 5000);
}

fn errors(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.s.epoll_ctl(ep, EPOLL_CTL_DEL, p.l, 0);
    t.s.epoll_ctl(ep, EPOLL_CTL_MOD, p.l, EPOLLIN);
    t.s.epoll_add(ep, 99, EPOLLIN);
    t.s.epoll_add(p.s, p.l, EPOLLIN);
    t.s.epoll_add(ep, ep, EPOLLIN);
    t.s.epoll_ctl(ep, 42, p.l, EPOLLIN);
    t.s.call(Op::EpollWait { ep, max: 0, timeout_ms: 0 });
    t.s.call(Op::EpollWait { ep: p.s, max: 4, timeout_ms: 0 });
    t.s.call(Op::EpollWait { ep: 99, max: 4, timeout_ms: 0 });
}

fn wakes(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    let waiting = t.s.start(Op::EpollWait { ep, max: 4, timeout_ms: -1 });
    t.pause();
    t.c.send(p.c, b"wake up");
    t.s.join(waiting);
    t.s.recv(p.s, 64);
}

fn times_out(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.s.epoll_wait(ep, 30);
    t.s.epoll_wait(ep, 1);
    t.s.epoll_wait(ep, 0);
}

fn peer_closes(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
    t.c.send(p.c, b"last");
    t.c.close(p.c);
    t.s.settle(p.s, POLLRDHUP);
    t.s.epoll_wait(ep, 5000);
    t.s.recv(p.s, 64);
    t.s.epoll_wait(ep, 5000);
    t.s.recv(p.s, 64);
    t.s.close(p.s);
    t.s.epoll_wait(ep, 0);
}

fn peer_half_closes(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN | EPOLLET | EPOLLRDHUP);
    t.c.shutdown(p.c, SHUT_WR);
    t.s.epoll_wait(ep, 5000);
    t.s.epoll_wait(ep, 0);
    t.s.recv(p.s, 4);
    t.s.epoll_wait(ep, 0);
}

fn own_shutdown(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN | EPOLLRDHUP);
    t.s.shutdown(p.s, SHUT_RDWR);
    t.s.epoll_wait(ep, 5000);
    t.c.close(p.c);
    t.s.settle(p.s, POLLHUP);
    t.s.epoll_wait(ep, 5000);
}

fn reset(t: &Duo) {
    let p = t.pair();
    let ep = t.c.epoll();
    t.c.epoll_add(ep, p.c, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
    t.c.send(p.c, b"unread");
    t.s.settle(p.s, POLLIN);
    t.s.close(p.s);
    t.c.settle(p.c, POLLHUP);
    t.c.epoll_wait(ep, 5000);
    t.c.recv(p.c, 4);
    t.c.epoll_wait(ep, 5000);
}

fn closed_leaves(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.c.send(p.c, b"x");
    t.s.settle(p.s, POLLIN);
    t.s.close(p.s);
    t.s.epoll_wait(ep, 0);
    t.s.epoll_ctl(ep, EPOLL_CTL_DEL, p.s, 0);
}

/// The registration belongs to the open file description: it stays until the last descriptor is closed.
fn dup_keeps(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    let d = t.s.dup(p.s);
    t.s.close(p.s);
    t.c.send(p.c, b"x");
    t.s.settle(d, POLLIN);
    t.s.epoll_wait(ep, 5000);
    t.s.close(d);
    t.s.epoll_wait(ep, 0);
}

fn listener(t: &Duo) {
    let (l, addr) = t.listener();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, l, EPOLLIN);
    t.s.epoll_wait(ep, 0);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    t.s.epoll_wait(ep, 5000);
    t.s.epoll_wait(ep, 0);
    let s = t.s.accept4(l, libc::SOCK_NONBLOCK);
    t.s.epoll_wait(ep, 0);
    t.s.epoll_add(ep, s, EPOLLIN);
    t.c.send(c, b"x");
    t.s.epoll_wait(ep, 5000);
}

fn listener_edge(t: &Duo) {
    let (l, addr) = t.listener();
    t.s.nonblocking(l);
    let ep = t.s.epoll();
    t.s.epoll_add(ep, l, EPOLLIN | EPOLLET);
    for _ in 0..2 {
        let c = t.c.tcp();
        t.c.connect(c, &addr);
        t.s.epoll_wait(ep, 5000);
    }
    t.s.epoll_wait(ep, 0);
    t.s.accept(l);
    t.s.accept(l);
    t.s.accept(l);
}

fn mixed_pipe(t: &Duo) {
    let p = t.pair();
    let (r, w) = t.s.pipe();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.s.epoll_add(ep, r, EPOLLIN);
    t.s.epoll_wait(ep, 0);
    t.s.send_by(w, b"x", SendBy::Write, 0);
    t.s.epoll_wait(ep, 5000);
    t.c.send(p.c, b"x");
    t.s.settle(p.s, POLLIN);
    t.s.epoll_wait(ep, 5000);
    t.s.recv_by(r, 4, RecvBy::Read, 0);
    t.s.epoll_wait(ep, 5000);
    t.s.recv(p.s, 4);
    t.s.close(w);
    t.s.epoll_wait(ep, 5000);
}

fn mixed_others(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    let event = i32::try_from(t.s.call(Op::Eventfd { initial: 0, flags: 0 }).ret).unwrap_or(-1);
    t.s.epoll_add(ep, event, EPOLLIN);
    let timer = i32::try_from(t.s.call(Op::Timerfd { ms: 20 }).ret).unwrap_or(-1);
    t.s.epoll_add(ep, timer, EPOLLIN);
    t.s.epoll_wait(ep, 5000);
    t.s.recv_by(timer, 8, RecvBy::Read, 0);
    t.s.send_by(event, &7_u64.to_ne_bytes(), SendBy::Write, 0);
    t.s.epoll_wait(ep, 5000);
    t.s.recv_by(event, 8, RecvBy::Read, 0);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(ep, 5000);
}

fn kernel_wakes(t: &Duo) {
    let p = t.pair();
    let (r, w) = t.s.pipe();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.s.epoll_add(ep, r, EPOLLIN);
    let waiting = t.s.start(Op::EpollWait { ep, max: 4, timeout_ms: -1 });
    t.pause();
    t.s.send_by(w, b"x", SendBy::Write, 0);
    t.s.join(waiting);
}

fn only_kernel(t: &Duo) {
    let (r, w) = t.s.pipe();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, r, EPOLLIN);
    t.s.epoll_wait(ep, 0);
    t.s.send_by(w, b"x", SendBy::Write, 0);
    t.s.epoll_wait(ep, 5000);
}

fn two_sets(t: &Duo) {
    let p = t.pair();
    let sets = [t.s.epoll(), t.s.epoll()];
    t.s.epoll_add(sets[0], p.s, EPOLLIN);
    t.s.epoll_add(sets[1], p.s, EPOLLIN | EPOLLET);
    t.c.send(p.c, b"x");
    t.s.settle(p.s, POLLIN);
    for _ in 0..2 {
        t.s.epoll_wait(sets[0], 1000);
        t.s.epoll_wait(sets[1], 0);
    }
}

fn nested(t: &Duo) {
    let p = t.pair();
    let (inner, outer) = (t.s.epoll(), t.s.epoll());
    t.s.epoll_add(inner, p.s, EPOLLIN);
    t.s.epoll_add(outer, inner, EPOLLIN);
    t.s.epoll_wait(outer, 0);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(outer, 5000);
    t.s.epoll_wait(inner, 5000);
}

/// With a full answer array, level-triggered descriptors take turns.
fn more_ready(t: &Duo) {
    let (l, addr) = t.listener();
    let ep = t.s.epoll();
    for _ in 0..6 {
        let c = t.c.tcp();
        t.c.connect(c, &addr);
        let s = t.s.accept(l);
        t.s.epoll_add(ep, s, EPOLLIN);
        t.c.send(c, b"x");
        t.s.settle(s, POLLIN);
    }
    let mut seen: Vec<i32> = Vec::new();
    for _ in 0..3 {
        let out = t.s.quiet(&Op::EpollWait { ep, max: 2, timeout_ms: 5000 });
        t.s.remark(&format!("{} events", out.ret));
        seen.extend(out.events.iter().map(|(fd, _)| fd));
    }
    seen.sort_unstable();
    seen.dedup();
    t.s.remark(&format!("{} different ones in three calls", seen.len()));
}

fn many(t: &Duo) {
    let (l, addr) = t.listener_at(libc::AF_INET, &crate::driver::v4(), 128);
    let ep = t.s.epoll();
    let pairs: Vec<(i32, i32)> = (0..80)
        .map(|_| {
            let c = t.c.tcp();
            t.c.connect(c, &addr);
            let s = t.s.accept(l);
            t.s.epoll_add(ep, s, EPOLLIN);
            (c, s)
        })
        .collect();
    for (c, s) in pairs.iter().step_by(9) {
        t.c.send(*c, b"x");
        t.s.settle(*s, POLLIN);
    }
    t.s.epoll_wait(ep, 5000);
}

/// One event a call, so that their order shows.
fn in_order(t: &Duo) {
    let ep = t.s.epoll();
    let pairs: Vec<_> = (0..6).map(|_| t.pair()).collect();
    for p in &pairs {
        t.s.epoll_add(ep, p.s, EPOLLIN | EPOLLET);
    }
    t.s.epoll_wait(ep, 0);
    for round in [[4, 1, 5, 0, 3, 2], [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]] {
        for p in round.iter().filter_map(|i| pairs.get(*i)) {
            t.c.send(p.c, b"x");
            t.s.settle(p.s, POLLIN);
        }
        for _ in round {
            t.s.call(Op::EpollWait { ep, max: 1, timeout_ms: 5000 });
        }
        t.s.epoll_wait(ep, 0);
    }
}

fn before_connect(t: &Duo) {
    let (l, addr) = t.listener();
    let ep = t.c.epoll();
    let c = t.c.socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
    t.c.epoll_add(ep, c, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
    t.c.epoll_wait(ep, 0);
    t.c.connect(c, &addr);
    t.c.epoll_wait(ep, 5000);
    let s = t.s.accept(l);
    t.s.send(s, b"x");
    t.c.settle(c, POLLIN);
    t.c.epoll_wait(ep, 5000);
}

fn exclusive(t: &Duo) {
    let (l, addr) = t.listener();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, l, EPOLLIN | EPOLLEXCLUSIVE);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    t.s.epoll_wait(ep, 5000);
    t.s.accept(l);
    t.s.epoll_ctl(ep, EPOLL_CTL_ADD, l, EPOLLIN);
    t.s.epoll_ctl(ep, EPOLL_CTL_MOD, l, EPOLLIN);
}

fn poll_set(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.s.poll(&[(ep, POLLIN)], 0);
    t.c.send(p.c, b"x");
    t.s.poll(&[(ep, POLLIN)], 5000);
    t.s.epoll_wait(ep, 5000);
    t.s.recv(p.s, 4);
    t.s.poll(&[(ep, POLLIN)], 0);
}

fn rounds(t: &Duo) {
    let p = t.pair();
    t.s.nonblocking(p.s);
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN | EPOLLET);
    for round in 0..20_u8 {
        let waiting = t.s.start(Op::EpollWait { ep, max: 4, timeout_ms: 5000 });
        t.c.send(p.c, &[b'a' + round]);
        t.s.join(waiting);
        t.s.recv(p.s, 16);
        t.s.recv(p.s, 16);
        t.s.send(p.s, &[b'A' + round]);
        t.c.recv(p.c, 16);
    }
}

/// A socket that is not connected yet is ready for an event, which uses a one-shot registration up.
fn shot_before(t: &Duo) {
    let (_l, addr) = t.listener();
    let ep = t.c.epoll();
    for (events, wait) in [(EPOLLOUT, true), (EPOLLOUT | EPOLLET, true), (EPOLLOUT, false)] {
        let c = t.c.tcp();
        t.c.epoll_add(ep, c, events | EPOLLONESHOT);
        if wait {
            t.c.epoll_wait(ep, 0);
        }
        t.c.connect(c, &addr);
        t.c.epoll_wait(ep, 0);
        t.c.epoll_ctl(ep, libc::EPOLL_CTL_MOD, c, EPOLLOUT | EPOLLONESHOT);
        t.c.epoll_wait(ep, 0);
        t.c.epoll_wait(ep, 0);
    }
}

/// Whoever asks edge-triggered for room alone does not hear of data, but of the end.
fn data_no_edge(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLOUT | EPOLLET);
    t.s.epoll_wait(ep, 0);
    t.c.send(p.c, b"x");
    t.s.settle(p.s, libc::POLLIN);
    t.s.epoll_wait(ep, 0);
    t.c.shutdown(p.c, libc::SHUT_WR);
    t.s.settle(p.s, libc::POLLRDHUP);
    t.s.epoll_wait(ep, 0);
    t.s.epoll_wait(ep, 0);
}

/// Whatever is watched, and each time.
fn each_shutdown(t: &Duo) {
    for (events, how) in [(EPOLLOUT, SHUT_WR), (EPOLLIN | EPOLLOUT, libc::SHUT_RD), (EPOLLRDHUP, SHUT_RDWR)] {
        let p = t.pair();
        let ep = t.s.epoll();
        t.s.epoll_add(ep, p.s, events | EPOLLET);
        for _ in 0..2 {
            t.s.epoll_wait(ep, 0);
            t.s.epoll_wait(ep, 0);
            t.s.shutdown(p.s, how);
            // On a busy machine the peer's ACK of the end comes late, and is an edge of its own then.
            t.pause();
        }
        t.s.epoll_wait(ep, 0);
        t.s.close(ep);
        t.s.close(p.s);
        t.c.close(p.c);
        t.s.close(p.l);
    }
}
