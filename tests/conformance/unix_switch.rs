//! The moment when an `AF_UNIX` connection leaves the kernel: whatever is done then, at whichever message of the first ones.

use harness::wire::{Op, PollBy, RecvBy, SendBy};
use libc::{
    AF_UNIX, EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP, F_SETFL, FIONREAD, MSG_DONTWAIT, MSG_OOB, MSG_PEEK,
    MSG_WAITALL, O_NONBLOCK, POLLIN, POLLOUT, SHUT_WR, SOCK_STREAM,
};

use crate::driver::{Duo, Pair};
use crate::{Case, Expect::Mixed};

pub const CASES: &[Case] = &[
    ("unix_switch::one_way", Mixed, one_way),
    ("unix_switch::answers_only", Mixed, answers_only),
    ("unix_switch::reader_is_behind", Mixed, behind),
    ("unix_switch::peek_and_count", Mixed, peek),
    ("unix_switch::end_at_each_message", Mixed, end),
    ("unix_switch::half_close_at_each_message", Mixed, half_close),
    ("unix_switch::close_with_unread_data_at_each_message", Mixed, reset),
    ("unix_switch::rights_at_each_message", Mixed, rights),
    ("unix_switch::urgent_at_each_message", Mixed, urgent),
    ("unix_switch::poll_at_each_message", Mixed, poll),
    ("unix_switch::epoll_at_each_message", Mixed, epoll),
    ("unix_switch::edges_at_each_message", Mixed, edges),
    ("unix_switch::blocked_reader_at_each_message", Mixed, blocked),
    ("unix_switch::fork_at_some_messages", Mixed, fork),
    ("unix_switch::nonblocking_and_full", Mixed, full),
];

/// The same over socketpair(2).
pub const PAIRS: &[Case] = &[
    ("pair_switch::one_way", Mixed, |t| over_pairs(t, one_way)),
    ("pair_switch::answers_only", Mixed, |t| over_pairs(t, answers_only)),
    ("pair_switch::reader_is_behind", Mixed, |t| over_pairs(t, behind)),
    ("pair_switch::peek_and_count", Mixed, |t| over_pairs(t, peek)),
    ("pair_switch::end_at_each_message", Mixed, |t| over_pairs(t, end)),
    ("pair_switch::half_close_at_each_message", Mixed, |t| over_pairs(t, half_close)),
    ("pair_switch::close_with_unread_data_at_each_message", Mixed, |t| over_pairs(t, reset)),
    ("pair_switch::rights_at_each_message", Mixed, |t| over_pairs(t, rights)),
    ("pair_switch::urgent_at_each_message", Mixed, |t| over_pairs(t, urgent)),
    ("pair_switch::poll_at_each_message", Mixed, |t| over_pairs(t, poll)),
    ("pair_switch::epoll_at_each_message", Mixed, |t| over_pairs(t, epoll)),
    ("pair_switch::edges_at_each_message", Mixed, |t| over_pairs(t, edges)),
    ("pair_switch::nonblocking_and_full", Mixed, |t| over_pairs(t, full)),
];

fn over_pairs(t: &Duo, case: fn(&Duo)) {
    t.over_pairs.set(true);
    case(t);
}

/// Messages by which both directions have left.
const LAST: usize = 30;

/// A new connection, of which nothing was sent.
fn young(t: &Duo, l: &mut Option<i32>, name: &harness::wire::Addr) -> Pair {
    if t.over_pairs.get() {
        let (c, s) = t.c.socketpair(SOCK_STREAM);
        return Pair { l: -1, s, c };
    }
    let l = *l.get_or_insert_with(|| t.unix_listener(SOCK_STREAM, name, 16));
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.connect(c, name);
    Pair { l, s: t.s.accept(l), c }
}

fn exchange(t: &Duo, p: Pair) {
    t.c.send(p.c, b"growing");
    t.s.recv(p.s, 64);
    t.s.send(p.s, b"grown");
    t.c.recv(p.c, 64);
}

/// Does something to connections that have made 0, 1, 2... exchanges, and closes them.
fn at_each(t: &Duo, act: impl Fn(&Duo, Pair)) {
    let (mut l, name) = (None, t.named("young"));
    for n in (0..LAST).filter(|n| *n < 2 || *n > 6) {
        let p = young(t, &mut l, &name);
        for _ in 0..n {
            exchange(t, p);
        }
        act(t, p);
        t.c.close(p.c);
        t.s.close(p.s);
    }
}

fn one_way(t: &Duo) {
    let p = young(t, &mut None, &t.named("young"));
    for _ in 0..100 {
        t.c.send(p.c, b"one way");
        t.s.recv(p.s, 64);
    }
    exchange(t, p);
}

fn answers_only(t: &Duo) {
    let p = young(t, &mut None, &t.named("young"));
    for _ in 0..100 {
        t.s.send(p.s, b"unasked");
        t.c.recv(p.c, 64);
    }
    exchange(t, p);
}

/// What is read lags more and more behind what is sent, and is caught up with in one read.
fn behind(t: &Duo) {
    let p = young(t, &mut None, &t.named("young"));
    for n in 0..120 {
        t.c.send(p.c, format!("message {n:3}").as_bytes());
        if n % 3 != 2 {
            t.s.recv(p.s, 11);
        }
    }
    t.s.recv_by(p.s, 40 * 11, RecvBy::Recv, MSG_WAITALL);
    exchange(t, p);
    t.s.recv_by(p.s, 64, RecvBy::Recv, MSG_DONTWAIT);
}

fn peek(t: &Duo) {
    at_each(t, |t, p| {
        t.c.send(p.c, b"seven b");
        t.s.ioctl(p.s, FIONREAD, 0);
        t.s.recv_by(p.s, 64, RecvBy::Recv, MSG_PEEK);
        t.s.recv(p.s, 3);
        t.s.ioctl(p.s, FIONREAD, 0);
        t.s.recv_by(p.s, 64, RecvBy::Readv(3), 0);
        t.s.recv_by(p.s, 64, RecvBy::Recv, MSG_DONTWAIT);
    });
}

fn end(t: &Duo) {
    at_each(t, |t, p| {
        t.c.send_by(p.c, b"the last of it", SendBy::Writev(3), 0);
        t.c.close(p.c);
        t.s.poll(&[(p.s, POLLIN | POLLOUT | libc::POLLRDHUP)], 0);
        t.s.recv(p.s, 4);
        t.s.recv(p.s, 64);
        t.s.recv(p.s, 64);
        t.s.send(p.s, b"x");
    });
}

fn half_close(t: &Duo) {
    at_each(t, |t, p| {
        t.c.send(p.c, b"last words");
        t.c.shutdown(p.c, SHUT_WR);
        t.s.recv(p.s, 64);
        t.s.recv(p.s, 64);
        t.s.send(p.s, b"still answers");
        t.c.recv(p.c, 64);
        t.c.send(p.c, b"x");
    });
}

fn reset(t: &Duo) {
    at_each(t, |t, p| {
        t.c.send(p.c, b"never read");
        t.s.close(p.s);
        t.c.recv(p.c, 64);
        t.c.recv(p.c, 64);
        t.c.send(p.c, b"x");
    });
}

fn rights(t: &Duo) {
    at_each(t, |t, p| {
        let (r, w) = t.c.pipe();
        t.c.send(p.c, b"before");
        t.s.recv(p.s, 64);
        t.c.send_fds(p.c, b"a pipe", &[r]);
        t.c.send(p.c, b"after");
        let got = t.s.recv_fd(p.s);
        t.c.write(w, b"through it");
        t.s.read(got, 64);
        t.s.recv(p.s, 64);
        t.s.close(got);
        t.c.close(r);
        t.c.close(w);
    });
}

fn urgent(t: &Duo) {
    at_each(t, |t, p| {
        t.c.send(p.c, b"abc");
        t.c.send_by(p.c, b"!", SendBy::Send, MSG_OOB);
        t.s.recv_by(p.s, 64, RecvBy::Recv, 0);
        t.s.recv_by(p.s, 1, RecvBy::Recv, MSG_OOB);
        t.c.send(p.c, b"more");
        t.s.recv(p.s, 64);
        exchange(t, p);
    });
}

fn poll(t: &Duo) {
    at_each(t, |t, p| {
        let both = POLLIN | POLLOUT;
        t.s.poll(&[(p.s, both)], 0);
        t.c.send(p.c, b"something");
        for by in [PollBy::Poll, PollBy::Ppoll, PollBy::Select] {
            t.s.poll_by(&[(p.s, both)], 1000, by);
        }
        t.s.recv(p.s, 64);
        t.s.poll(&[(p.s, both)], 0);
        t.c.poll(&[(p.c, POLLIN)], 0);
    });
}

fn epoll(t: &Duo) {
    at_each(t, |t, p| {
        let ep = t.s.epoll();
        t.s.epoll_add(ep, p.s, EPOLLIN | EPOLLRDHUP);
        for _ in 0..LAST {
            t.c.send(p.c, b"something");
            t.s.epoll_wait(ep, 1000);
            t.s.recv(p.s, 64);
            t.s.epoll_wait(ep, 0);
            t.s.send(p.s, b"else");
            t.c.recv(p.c, 64);
        }
        t.s.epoll_ctl(ep, libc::EPOLL_CTL_MOD, p.s, EPOLLIN | EPOLLOUT);
        t.s.epoll_wait(ep, 1000);
        t.c.close(p.c);
        t.s.epoll_wait(ep, 1000);
        t.s.close(ep);
    });
}

fn edges(t: &Duo) {
    at_each(t, |t, p| {
        let ep = t.s.epoll();
        t.s.epoll_add(ep, p.s, EPOLLIN | EPOLLET);
        for _ in 0..LAST {
            t.c.send(p.c, b"something");
            t.s.epoll_wait(ep, 1000);
            t.s.recv(p.s, 64);
            t.s.epoll_wait(ep, 0);
            t.s.send(p.s, b"else");
            t.c.recv(p.c, 64);
        }
        t.s.close(ep);
    });
}

fn blocked(t: &Duo) {
    if t.only_apart() {
        return;
    }
    at_each(t, |t, p| {
        for _ in 0..4 {
            let waits = t.s.start_recv(p.s, 64);
            t.s.until_blocked();
            t.c.send(p.c, b"wake up");
            t.s.join(waits);
            let waits = t.c.start_recv(p.c, 64);
            t.c.until_blocked();
            t.s.send(p.s, b"you, too");
            t.c.join(waits);
        }
    });
}

fn fork(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let (mut l, name) = (None, t.named("young"));
    for n in [0, 7, 8, 9, 10, 11, 20] {
        let p = young(t, &mut l, &name);
        for _ in 0..n {
            exchange(t, p);
        }
        let Some(child) = t.s.fork("child") else { return };
        for _ in 0..LAST {
            t.c.send(p.c, b"for the child");
            child.recv(p.s, 64);
            t.s.send(p.s, b"from the parent");
            t.c.recv(p.c, 64);
        }
        t.s.close(p.s);
        for _ in 0..2 * LAST {
            t.c.send(p.c, b"for the child alone");
            child.recv(p.s, 64);
            child.send(p.s, b"from it");
            t.c.recv(p.c, 64);
        }
        t.c.close(p.c);
        child.recv(p.s, 64);
        child.exit();
    }
}

fn full(t: &Duo) {
    at_each(t, |t, p| {
        t.c.fcntl(p.c, F_SETFL, O_NONBLOCK);
        let fill = Op::Fill { fd: p.c, len: 65536, flags: 0 };
        while t.c.quiet(&fill).ret > 0 {}
        t.c.poll(&[(p.c, POLLOUT)], 0);
        let drain = Op::Recv { fd: p.s, len: 65536, by: RecvBy::Recv, flags: MSG_DONTWAIT };
        while t.s.quiet(&drain).ret > 0 {}
        t.c.poll(&[(p.c, POLLOUT)], 1000);
        t.c.send(p.c, b"room");
        t.s.recv(p.s, 64);
    });
}
