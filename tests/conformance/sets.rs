//! epoll sets as objects: copied, forked, nested, waited for by several calls; and what `_FORTIFY_SOURCE` calls.

use harness::wire::{Op, PollBy, RecvBy, SendBy};
use libc::{
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLET, EPOLLEXCLUSIVE, EPOLLIN,
    EPOLLONESHOT, EPOLLOUT, EPOLLRDHUP, F_GETFD, MSG_DONTWAIT, MSG_PEEK, POLLIN, POLLOUT, SIGUSR1,
};

use crate::driver::Duo;
use crate::{
    Case,
    Expect::{Any, User},
};

pub const CASES: &[Case] = &[
    ("epoll::dup_of_the_set", User, dup),
    ("epoll::dup_outlives_the_first", User, dup_outlives),
    ("epoll::dup2_of_the_set", User, dup2),
    ("epoll::closed_set_is_gone", User, closed),
    ("epoll::closed_under_a_waiter", User, closed_under_waiter),
    ("epoll::closed_under_a_waiter_and_replaced", User, replaced_under_waiter),
    ("epoll::cloexec", Any, cloexec),
    ("epoll::pwait_with_a_mask", User, |t| masked(t, false)),
    ("epoll::pwait2_with_a_mask", User, |t| masked(t, true)),
    ("epoll::pwait_without_a_mask", User, |t| unmasked(t, false)),
    ("epoll::pwait2_without_a_mask", User, |t| unmasked(t, true)),
    ("epoll::pwait2_times_out", User, pwait2_timeout),
    ("epoll::bad_counts", User, bad_counts),
    ("epoll::polled_after_a_sleep", User, polled_after_sleep),
    ("epoll::set_in_itself", Any, in_itself),
    ("epoll::nested_edge", User, nested_edge),
    ("epoll::nested_twice", User, nested_twice),
    ("epoll::nested_wakes_a_sleeper", User, nested_wakes),
    ("epoll::exclusive_cannot_be_changed", User, exclusive_mod),
    ("epoll::oneshot_of_a_listener", User, oneshot_listener),
    ("epoll::edge_of_both_kinds", User, edge_both),
    ("epoll::rdhup_edge", User, rdhup),
    ("epoll::same_socket_twice_by_dup", User, twice_by_dup),
    ("epoll::plain_file_is_refused", Any, plain_file),
    ("epoll::removed_while_ready", User, removed),
    ("epoll::readded_after_close", User, readded),
    ("epoll::set_of_the_parent_in_the_child", User, forked),
    ("epoll::child_closes_its_copy", User, child_closes),
    ("fortified::read", User, |t| checked(t, RecvBy::ReadChk)),
    ("fortified::recv", User, |t| checked(t, RecvBy::RecvChk)),
    ("fortified::recvfrom", User, |t| checked(t, RecvBy::RecvfromChk)),
    ("fortified::recv_flags", User, checked_flags),
    ("fortified::poll", User, |t| checked_wait(t, PollBy::PollChk)),
    ("fortified::ppoll", User, |t| checked_wait(t, PollBy::PpollChk)),
    ("fortified::select", User, |t| checked_wait(t, PollBy::SelectChk)),
];

fn dup(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    let copy = t.s.dup(ep);
    t.s.epoll_add(copy, p.s, EPOLLIN);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(ep, 1000);
    t.s.epoll_wait(copy, 0);
    t.s.epoll_ctl(ep, EPOLL_CTL_DEL, p.s, 0);
    t.s.epoll_wait(copy, 0);
}

fn dup_outlives(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    let copy = t.s.dup(ep);
    t.s.close(ep);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(copy, 1000);
    t.s.recv(p.s, 4);
    t.s.epoll_wait(copy, 0);
    t.s.epoll_wait(ep, 0);
}

fn dup2(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.s.call(Op::Dup2 { fd: ep, to: 80 });
    t.s.close(ep);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(80, 1000);
    t.s.call(Op::Dup2 { fd: p.s, to: 80 });
    t.s.epoll_wait(80, 0);
    t.s.recv(80, 4);
}

fn closed(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.s.close(ep);
    t.s.epoll_wait(ep, 0);
    t.s.epoll_add(ep, p.s, EPOLLIN);
    let anew = t.s.epoll();
    t.c.send(p.c, b"x");
    t.s.epoll_wait(anew, 0);
    t.s.recv(p.s, 4);
}

fn cloexec(t: &Duo) {
    for flags in [0, EPOLL_CLOEXEC, 1] {
        let ep = i32::try_from(t.s.call(Op::EpollCreate { flags }).ret).unwrap_or(-1);
        t.s.fcntl(ep, F_GETFD, 0);
    }
}

fn masked(t: &Duo, ns: bool) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.s.signal(SIGUSR1, 2, 0);
    let wait = Op::EpollPwait { ep, max: 4, timeout_ms: 5000, mask: Some(vec![SIGUSR1]), ns };
    let waiting = t.s.start(wait);
    t.s.until_blocked();
    t.s.interrupt(waiting, SIGUSR1);
    t.c.send(p.c, b"x");
    t.s.join(waiting);
    t.s.signals(SIGUSR1);
}

fn unmasked(t: &Duo, ns: bool) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.s.signal(SIGUSR1, 2, libc::SA_RESTART);
    let waiting = t.s.start(Op::EpollPwait { ep, max: 4, timeout_ms: 5000, mask: None, ns });
    t.s.until_blocked();
    t.s.interrupt(waiting, SIGUSR1);
    t.s.join(waiting);
    t.c.send(p.c, b"x");
    t.s.call(Op::EpollPwait { ep, max: 4, timeout_ms: 1000, mask: None, ns });
}

fn polled_after_sleep(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    for _ in 0..4 {
        let waiting = t.s.start(Op::EpollWait { ep, max: 4, timeout_ms: 5000 });
        t.s.until_blocked();
        t.c.send(p.c, b"x");
        t.s.join(waiting);
        t.s.poll(&[(ep, POLLIN)], 1000);
        t.s.recv(p.s, 4);
        t.s.poll(&[(ep, POLLIN)], 0);
        t.s.poll_by(&[(ep, POLLIN)], 30, PollBy::Select);
    }
    // Nobody takes these out of the set.
    let waiting = t.s.start(Op::EpollWait { ep, max: 4, timeout_ms: 100 });
    t.s.join(waiting);
    t.c.send(p.c, b"x");
    t.s.settle(p.s, POLLIN);
    t.s.recv(p.s, 4);
    t.s.poll(&[(ep, POLLIN)], 0);
    t.c.send(p.c, b"y");
    t.s.poll(&[(ep, POLLIN)], 5000);
    t.s.epoll_wait(ep, 0);
}

fn pwait2_timeout(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    for timeout_ms in [0, 30] {
        t.s.call(Op::EpollPwait { ep, max: 4, timeout_ms, mask: None, ns: true });
    }
}

fn bad_counts(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    for max in [0, -1] {
        t.s.call(Op::EpollWait { ep, max, timeout_ms: 0 });
    }
    t.s.epoll_wait(p.s, 0);
    t.s.epoll_wait(99, 0);
    t.s.epoll_ctl(ep, 77, p.s, EPOLLIN);
}

fn in_itself(t: &Duo) {
    let ep = t.s.epoll();
    t.s.epoll_add(ep, ep, EPOLLIN);
    let outer = t.s.epoll();
    t.s.epoll_add(outer, ep, EPOLLIN);
    t.s.epoll_add(ep, outer, EPOLLIN);
}

fn nested_edge(t: &Duo) {
    let p = t.pair();
    let (inner, outer) = (t.s.epoll(), t.s.epoll());
    t.s.epoll_add(inner, p.s, EPOLLIN);
    t.s.epoll_add(outer, inner, EPOLLIN | EPOLLET);
    t.s.epoll_wait(outer, 0);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(outer, 1000);
    t.s.epoll_wait(outer, 0);
    t.s.epoll_wait(inner, 0);
    t.s.recv(p.s, 4);
    t.s.epoll_wait(inner, 0);
}

fn nested_twice(t: &Duo) {
    let p = t.pair();
    let sets = [t.s.epoll(), t.s.epoll(), t.s.epoll()];
    t.s.epoll_add(sets[0], p.s, EPOLLIN);
    t.s.epoll_add(sets[1], sets[0], EPOLLIN);
    t.s.epoll_add(sets[2], sets[1], EPOLLIN);
    t.s.epoll_wait(sets[2], 0);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(sets[2], 1000);
    t.s.poll(&[(sets[2], POLLIN)], 0);
    t.s.recv(p.s, 4);
    t.s.epoll_wait(sets[2], 0);
}

fn nested_wakes(t: &Duo) {
    let p = t.pair();
    let (inner, outer) = (t.s.epoll(), t.s.epoll());
    t.s.epoll_add(outer, inner, EPOLLIN);
    t.s.epoll_add(inner, p.s, EPOLLIN);
    let waiting = t.s.start(Op::EpollWait { ep: outer, max: 4, timeout_ms: 5000 });
    t.s.until_blocked();
    t.c.send(p.c, b"x");
    t.s.join(waiting);
}

fn exclusive_mod(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN | EPOLLEXCLUSIVE);
    t.s.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLIN);
    t.s.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLIN | EPOLLEXCLUSIVE);
    t.s.epoll_add(ep, p.l, EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(ep, 1000);
}

fn oneshot_listener(t: &Duo) {
    let (l, addr) = t.listener();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, l, EPOLLIN | EPOLLONESHOT);
    for _ in 0..2 {
        let c = t.c.tcp();
        t.c.connect(c, &addr);
        t.s.settle(l, POLLIN);
        t.s.epoll_wait(ep, 0);
    }
    t.s.accept(l);
    t.s.epoll_ctl(ep, EPOLL_CTL_MOD, l, EPOLLIN | EPOLLONESHOT);
    t.s.epoll_wait(ep, 0);
    t.s.accept(l);
}

fn edge_both(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN | EPOLLOUT | EPOLLET);
    t.s.epoll_wait(ep, 0);
    t.s.epoll_wait(ep, 0);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(ep, 1000);
    t.s.send(p.s, b"y");
    t.s.epoll_wait(ep, 0);
    t.s.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLIN | EPOLLET);
    t.s.epoll_wait(ep, 0);
    t.s.epoll_wait(ep, 0);
}

fn rdhup(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN | EPOLLRDHUP | EPOLLET);
    t.s.epoll_wait(ep, 0);
    t.c.shutdown(p.c, libc::SHUT_WR);
    t.s.settle(p.s, POLLIN);
    t.s.epoll_wait(ep, 0);
    t.s.epoll_wait(ep, 0);
}

fn twice_by_dup(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    let d = t.s.dup(p.s);
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.s.epoll_add(ep, d, EPOLLIN);
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.c.send(p.c, b"x");
    t.s.settle(p.s, POLLIN);
    t.s.epoll_wait(ep, 0);
    t.s.epoll_ctl(ep, EPOLL_CTL_DEL, p.s, 0);
    t.s.epoll_wait(ep, 0);
}

fn plain_file(t: &Duo) {
    let ep = t.s.epoll();
    let file = t.s.open(&t.path("file"), libc::O_CREAT | libc::O_RDWR);
    t.s.epoll_add(ep, file, EPOLLIN);
}

fn removed(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.c.send(p.c, b"x");
    t.s.settle(p.s, POLLIN);
    t.s.epoll_ctl(ep, EPOLL_CTL_DEL, p.s, 0);
    t.s.epoll_wait(ep, 0);
    t.s.epoll_ctl(ep, EPOLL_CTL_DEL, p.s, 0);
    t.s.epoll_ctl(ep, EPOLL_CTL_ADD, p.s, EPOLLIN);
    t.s.epoll_wait(ep, 0);
}

fn readded(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.s.close(p.s);
    let q = t.pair();
    t.s.epoll_add(ep, q.s, EPOLLIN);
    t.c.send(q.c, b"x");
    t.s.epoll_wait(ep, 1000);
}

fn forked(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    let Some(child) = t.s.fork("k") else { return };
    t.c.send(p.c, b"x");
    child.epoll_wait(ep, 1000);
    t.s.epoll_wait(ep, 1000);
    child.recv(p.s, 4);
    t.s.epoll_wait(ep, 0);
    child.epoll_wait(ep, 0);
}

fn child_closes(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    let Some(child) = t.s.fork("k") else { return };
    child.close(p.s);
    child.close(ep);
    child.exit();
    t.c.send(p.c, b"x");
    t.s.epoll_wait(ep, 1000);
}

fn checked(t: &Duo, by: RecvBy) {
    let p = t.pair();
    t.c.send(p.c, b"checked");
    t.s.recv_by(p.s, 4, by, 0);
    t.s.recv_by(p.s, 64, by, 0);
    t.c.close(p.c);
    t.s.recv_by(p.s, 64, by, 0);
    t.s.recv_by(99, 64, by, 0);
}

fn checked_flags(t: &Duo) {
    let p = t.pair();
    t.s.recv_by(p.s, 4, RecvBy::RecvChk, MSG_DONTWAIT);
    t.c.send_by(p.c, b"checked", SendBy::Write, 0);
    t.s.recv_by(p.s, 4, RecvBy::RecvChk, MSG_PEEK);
    t.s.recv_by(p.s, 7, RecvBy::RecvfromChk, libc::MSG_WAITALL);
}

fn checked_wait(t: &Duo, by: PollBy) {
    let p = t.pair();
    t.s.poll_by(&[(p.s, POLLIN | POLLOUT)], 0, by);
    let waiting = t.s.start(Op::Poll { fds: vec![(p.s, POLLIN)], timeout_ms: 5000, by });
    t.s.until_blocked();
    t.c.send(p.c, b"x");
    t.s.join(waiting);
}

/// The waiter hears of what comes to the set that nobody has a descriptor of any more.
fn closed_under_waiter(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    let waiting = t.s.start(Op::EpollWait { ep, max: 4, timeout_ms: 10_000 });
    t.s.until_blocked();
    t.s.close(ep);
    t.c.send(p.c, b"x");
    t.s.join(waiting);
    t.s.recv(p.s, 4);
    t.s.epoll();
}

fn replaced_under_waiter(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    let waiting = t.s.start(Op::EpollWait { ep, max: 4, timeout_ms: 10_000 });
    t.s.until_blocked();
    let other = t.s.epoll();
    t.s.call(Op::Dup2 { fd: other, to: ep });
    t.s.close(other);
    // Wakes whoever sleeps in the shim.
    let c = t.c.tcp();
    let s = t.s.tcp();
    t.c.close(c);
    t.s.close(s);
    t.s.epoll_add(ep, p.s, EPOLLOUT);
    t.s.epoll_wait(ep, 0);
    t.c.send(p.c, b"x");
    t.s.join(waiting);
    t.s.epoll_wait(ep, 0);
}
