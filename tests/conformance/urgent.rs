//! Urgent data: `MSG_OOB`, `SO_OOBINLINE`, `SIOCATMARK`, `POLLPRI`.

use harness::wire::{Op, PollBy, RecvBy, SendBy};
use libc::{
    EPOLLET, EPOLLIN, EPOLLPRI, FIONREAD, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_OOB, MSG_PEEK, MSG_WAITALL, POLLIN,
    POLLPRI, SO_OOBINLINE, SOL_SOCKET,
};

use crate::driver::{Duo, Pair};
use crate::{Case, Expect::User};

const SIOCATMARK: libc::Ioctl = 0x8905;

pub const CASES: &[Case] = &[
    ("urgent::alone", User, |t| marked(t, "", "")),
    ("urgent::behind_data", User, |t| marked(t, "before", "")),
    ("urgent::before_data", User, |t| marked(t, "", "after")),
    ("urgent::between_data", User, |t| marked(t, "before", "after")),
    ("urgent::a_read_stops_at_the_mark", User, |t| stops(t, 0)),
    ("urgent::waitall_stops_at_the_mark", User, |t| stops(t, MSG_WAITALL)),
    ("urgent::peek_stops_at_the_mark", User, |t| stops(t, MSG_PEEK)),
    ("urgent::peeked_twice_taken_once", User, |t| {
        let p = urgent(t, b"", b"!", b"");
        for flags in [MSG_PEEK, MSG_PEEK, 0, MSG_PEEK, 0] {
            oob(t, &p, flags);
        }
    }),
    ("urgent::last_byte_of_many_counts", User, |t| {
        let p = urgent(t, b"", b"hello!", b"world");
        t.s.recv(p.s, 64);
        oob(t, &p, 0);
        t.s.recv(p.s, 64);
    }),
    ("urgent::never_taken", User, |t| {
        let p = urgent(t, b"ab", b"!", b"cd");
        t.s.recv(p.s, 64);
        t.s.recv(p.s, 64);
        oob(t, &p, 0);
        t.s.poll(&[(p.s, POLLPRI)], 0);
    }),
    ("urgent::a_second_one_replaces_the_first", User, |t| {
        let p = urgent(t, b"ab", b"1", b"cd");
        t.c.send_by(p.c, b"2", SendBy::Send, MSG_OOB);
        settled(t, &p, b"ef");
        look(t, &p);
        t.s.recv(p.s, 64);
        oob(t, &p, 0);
        t.s.recv(p.s, 64);
    }),
    ("urgent::a_second_one_while_at_the_first", User, |t| {
        let p = urgent(t, b"ab", b"1", b"");
        t.s.recv(p.s, 64);
        look(t, &p);
        t.c.send_by(p.c, b"2", SendBy::Send, MSG_OOB);
        settled(t, &p, b"ef");
        look(t, &p);
        oob(t, &p, 0);
        t.s.recv(p.s, 64);
        look(t, &p);
    }),
    ("urgent::taken_before_the_data_in_front_of_it", User, |t| {
        let p = urgent(t, b"front", b"!", b"back");
        oob(t, &p, 0);
        oob(t, &p, 0);
        look(t, &p);
        t.s.recv(p.s, 64);
        look(t, &p);
        t.s.recv(p.s, 64);
    }),
    ("urgent::none", User, |t| {
        let p = t.pair();
        oob(t, &p, 0);
        look(t, &p);
        t.c.send(p.c, b"plain");
        t.s.settle(p.s, POLLIN);
        oob(t, &p, 0);
        t.s.recv(p.s, 16);
    }),
    ("urgent::inline", User, inline),
    ("urgent::inline_set_while_it_waits", User, |t| {
        let p = urgent(t, b"ab", b"!", b"cd");
        t.s.setopt(p.s, SOL_SOCKET, SO_OOBINLINE, 1);
        look(t, &p);
        t.s.recv(p.s, 64);
        t.s.recv(p.s, 64);
    }),
    ("urgent::inline_from_the_listener", User, |t| {
        let (l, addr) = t.listener();
        t.s.setopt(l, SOL_SOCKET, SO_OOBINLINE, 1);
        let c = t.c.tcp();
        t.c.connect(c, &addr);
        let p = Pair { l, c, s: t.s.accept(l) };
        t.c.send_by(c, b"ab!", SendBy::Send, MSG_OOB);
        settled(t, &p, b"cd");
        t.s.recv(p.s, 64);
        t.s.recv(p.s, 64);
    }),
    ("urgent::by_every_sending_call", User, |t| {
        for by in [SendBy::Sendto, SendBy::Sendmsg(2), SendBy::Sendmmsg(2)] {
            let p = t.pair();
            t.c.send_by(p.c, b"abcde", by, MSG_OOB | MSG_NOSIGNAL);
            settled(t, &p, b"rest");
            t.s.recv(p.s, 64);
            oob(t, &p, 0);
            t.s.recv(p.s, 64);
        }
    }),
    ("urgent::by_every_receiving_call", User, |t| {
        for by in [RecvBy::Recvfrom, RecvBy::Recvmsg(1), RecvBy::Recvmmsg(1)] {
            let p = urgent(t, b"ab", b"!", b"cd");
            t.s.recv_by(p.s, 1, by, MSG_OOB);
            t.s.recv_by(p.s, 1, by, MSG_OOB);
        }
    }),
    ("urgent::both_ways", User, |t| {
        let p = urgent(t, b"there", b"!", b"");
        t.s.send_by(p.s, b"back?", SendBy::Send, MSG_OOB);
        t.c.settle(p.c, POLLPRI);
        t.c.recv(p.c, 64);
        t.c.recv_by(p.c, 1, RecvBy::Recv, MSG_OOB);
        t.s.recv(p.s, 64);
        oob(t, &p, 0);
    }),
    ("urgent::then_the_end", User, |t| {
        let p = urgent(t, b"ab", b"!", b"");
        t.c.close(p.c);
        t.s.settle(p.s, libc::POLLRDHUP);
        look(t, &p);
        t.s.recv(p.s, 64);
        oob(t, &p, 0);
        t.s.recv(p.s, 64);
        oob(t, &p, 0);
    }),
    ("urgent::select_has_it_as_exceptional", User, |t| {
        let p = urgent(t, b"ab", b"!", b"");
        t.s.poll_by(&[(p.s, POLLIN | POLLPRI)], 0, PollBy::Select);
        oob(t, &p, 0);
        t.s.poll_by(&[(p.s, POLLIN | POLLPRI)], 0, PollBy::Select);
    }),
    ("urgent::a_sleeping_poll_wakes", User, |t| {
        let p = t.pair();
        let waiting = t.s.start(Op::Poll { fds: vec![(p.s, POLLPRI)], timeout_ms: 5000, by: PollBy::Poll });
        t.pause();
        t.c.send_by(p.c, b"!", SendBy::Send, MSG_OOB);
        t.s.join(waiting);
    }),
    ("urgent::epoll", User, |t| in_epoll(t, 0)),
    ("urgent::epoll_edge", User, |t| in_epoll(t, EPOLLET)),
    ("urgent::a_sleeping_recv_wakes_for_what_follows", User, |t| {
        let p = t.pair();
        let waiting = t.s.start_recv(p.s, 8);
        t.pause();
        t.c.send_by(p.c, b"!", SendBy::Send, MSG_OOB);
        t.pause();
        t.c.send(p.c, b"data");
        t.s.join(waiting);
    }),
];

/// A connection on which `front`, `urgent` with `MSG_OOB` and `back` have been sent, and have arrived.
fn urgent(t: &Duo, front: &[u8], urgent: &[u8], back: &[u8]) -> Pair {
    let p = t.pair();
    if !front.is_empty() {
        t.c.send(p.c, front);
    }
    t.c.send_by(p.c, urgent, SendBy::Send, MSG_OOB);
    t.s.settle(p.s, POLLPRI);
    if !back.is_empty() {
        settled(t, &p, back);
    }
    p
}

/// Sends `data`, and waits until it has all arrived, whatever the mark hides of it.
fn settled(t: &Duo, p: &Pair, data: &[u8]) {
    t.c.send(p.c, data);
    t.pause();
}

fn oob(t: &Duo, p: &Pair, flags: i32) {
    t.s.recv_by(p.s, 1, RecvBy::Recv, MSG_OOB | MSG_DONTWAIT | flags);
}

/// Everything that tells of urgent data without taking it.
fn look(t: &Duo, p: &Pair) {
    t.s.poll(&[(p.s, POLLIN | POLLPRI)], 0);
    t.s.ioctl(p.s, SIOCATMARK, -1);
    t.s.ioctl(p.s, FIONREAD, -1);
}

fn marked(t: &Duo, front: &str, back: &str) {
    let p = urgent(t, front.as_bytes(), b"!", back.as_bytes());
    look(t, &p);
    if !front.is_empty() {
        t.s.recv(p.s, 64);
        look(t, &p);
    }
    oob(t, &p, 0);
    look(t, &p);
    t.s.recv_by(p.s, 64, RecvBy::Recv, MSG_DONTWAIT);
    look(t, &p);
    oob(t, &p, 0);
}

fn stops(t: &Duo, flags: i32) {
    let p = urgent(t, b"front", b"!", b"back");
    t.s.recv_by(p.s, 9, RecvBy::Recv, flags);
    t.s.recv_by(p.s, 5, RecvBy::Recv, 0);
    t.s.recv_by(p.s, 4, RecvBy::Recv, flags | MSG_DONTWAIT);
}

fn inline(t: &Duo) {
    let p = t.pair();
    t.s.setopt(p.s, SOL_SOCKET, SO_OOBINLINE, 1);
    t.c.send(p.c, b"front");
    t.c.send_by(p.c, b"!", SendBy::Send, MSG_OOB);
    t.s.settle(p.s, POLLPRI);
    settled(t, &p, b"back");
    look(t, &p);
    oob(t, &p, 0);
    t.s.recv(p.s, 64);
    look(t, &p);
    t.s.recv(p.s, 64);
    look(t, &p);
}

fn in_epoll(t: &Duo, how: i32) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN | EPOLLPRI | how);
    t.s.epoll_wait(ep, 0);
    t.c.send_by(p.c, b"!", SendBy::Send, MSG_OOB);
    t.s.settle(p.s, POLLPRI);
    t.s.epoll_wait(ep, 1000);
    oob(t, &p, 0);
    t.s.epoll_wait(ep, 0);
    t.c.send(p.c, b"data");
    t.s.settle(p.s, POLLIN);
    t.s.epoll_wait(ep, 1000);
}
