//! `fork`: both processes keep using what they share.

use harness::wire::{Op, PollBy};
use libc::{EPOLLIN, EPOLLRDHUP, POLLIN, POLLRDHUP, SHUT_RD, SHUT_RDWR, SHUT_WR};

use crate::driver::{Duo, Pair, Side};
use crate::{Case, Expect::User};

pub const CASES: &[Case] = &[
    ("fork::child_serves_parent_closes", User, child_serves),
    ("fork::parent_goes_on_child_exits", User, parent_goes_on),
    ("fork::both_write", User, both_write),
    ("fork::both_read_in_turns", User, both_read),
    ("fork::eof_only_after_the_last_holder", User, last_holder),
    ("fork::last_holder_is_a_parent_that_was_receiving", User, receiving_parent_last),
    ("fork::last_holder_is_the_child_of_a_receiving_parent", User, receiving_parents_child_last),
    ("fork::child_exit_does_not_close", User, child_exit),
    ("fork::child_shutdown_reaches_the_parent", User, child_shutdown),
    ("fork::child_accepts", User, child_accepts),
    ("fork::both_accept", User, both_accept),
    ("fork::client_forks", User, client_forks),
    ("fork::child_connects_anew", User, child_connects),
    ("fork::grandchild", User, grandchild),
    ("fork::parent_exits_child_goes_on", User, parent_exits),
    ("fork::epoll_set_of_the_child", User, child_epoll),
    ("fork::epoll_set_with_connections_from_before_and_after", User, old_and_new_in_a_set),
    ("fork::data_sent_before_is_read_by_the_child", User, before_fork),
    ("fork::forty_children", User, forty),
    ("fork::shutdown_wakes_a_polling_relative", User, shutdown_wakes_poll),
    ("fork::shutdown_wakes_a_relative_in_epoll_wait", User, shutdown_wakes_epoll),
    ("fork::shutdown_wakes_all_relatives", User, shutdown_wakes_all),
];

fn shutdown_wakes_poll(t: &Duo) {
    for how in [SHUT_RD, SHUT_RDWR] {
        let p = t.pair();
        let Some(child) = t.s.fork("k") else { return };
        let fds = vec![(p.s, POLLIN | POLLRDHUP)];
        let waiting = child.start(Op::Poll { fds, timeout_ms: 8000, by: PollBy::Poll });
        t.pause();
        t.s.shutdown(p.s, how);
        child.join(waiting);
        child.exit();
    }
}

fn shutdown_wakes_all(t: &Duo) {
    for how in [SHUT_RD, SHUT_RDWR] {
        let p = t.pair();
        let (Some(one), Some(two)) = (t.s.fork("k"), t.s.fork("m")) else { return };
        let own = [&one, &two].map(|child| {
            let ep = child.epoll();
            child.epoll_add(ep, p.s, EPOLLIN | EPOLLRDHUP);
            ep
        });
        let fds = vec![(p.s, POLLIN | POLLRDHUP)];
        let calls = [
            [Op::Poll { fds: fds.clone(), timeout_ms: 8000, by: PollBy::Poll }, wait_in(own[0])],
            [Op::Poll { fds, timeout_ms: 8000, by: PollBy::Poll }, wait_in(own[1])],
        ];
        let waiting = [&one, &two].into_iter().zip(calls);
        let waiting: Vec<_> = waiting.map(|(child, ops)| (child, ops.map(|op| child.start(op)))).collect();
        one.until_blocked();
        two.until_blocked();
        t.s.shutdown(p.s, how);
        for (child, tickets) in waiting {
            for ticket in tickets {
                child.join(ticket);
            }
        }
        one.exit();
        two.exit();
    }
}

fn wait_in(ep: i32) -> Op {
    Op::EpollWait { ep, max: 4, timeout_ms: 8000 }
}

fn shutdown_wakes_epoll(t: &Duo) {
    for how in [SHUT_RD, SHUT_RDWR] {
        let p = t.pair();
        let Some(child) = t.s.fork("k") else { return };
        let ep = child.epoll();
        child.epoll_add(ep, p.s, EPOLLIN | EPOLLRDHUP);
        let waiting = child.start(Op::EpollWait { ep, max: 4, timeout_ms: 8000 });
        t.pause();
        t.s.shutdown(p.s, how);
        child.join(waiting);
        child.exit();
    }
}

fn child_serves(t: &Duo) {
    let p = t.pair();
    let Some(child) = t.s.fork("k") else { return };
    t.s.close(p.s);
    t.c.send(p.c, b"question");
    child.recv(p.s, 64);
    child.send(p.s, b"answer of the child");
    t.c.recv(p.c, 64);
    child.close(p.s);
    t.c.recv(p.c, 64);
}

fn parent_goes_on(t: &Duo) {
    let p = t.pair();
    let Some(child) = t.s.fork("k") else { return };
    child.exit();
    t.c.send(p.c, b"still");
    t.s.recv(p.s, 64);
    t.s.send(p.s, b"here");
    t.c.recv(p.c, 64);
}

fn both_write(t: &Duo) {
    let p = t.pair();
    let Some(child) = t.s.fork("k") else { return };
    for _ in 0..5 {
        t.s.send(p.s, b"parent");
        t.c.recv(p.c, 64);
        child.send(p.s, b"child");
        t.c.recv(p.c, 64);
    }
}

fn both_read(t: &Duo) {
    let p = t.pair();
    let Some(child) = t.s.fork("k") else { return };
    for _ in 0..5 {
        t.c.send(p.c, b"for both");
        t.s.recv(p.s, 4);
        child.recv(p.s, 4);
    }
    // In one process the child also holds the client's end, so no end of the stream comes.
    if !t.alone() {
        t.c.close(p.c);
        t.s.recv(p.s, 4);
        child.recv(p.s, 4);
    }
}

fn last_holder(t: &Duo) {
    let p = t.pair();
    let Some(child) = t.s.fork("k") else { return };
    t.s.close(p.s);
    t.c.poll(&[(p.c, POLLIN)], 50);
    child.close(p.s);
    t.c.recv(p.c, 4);
}

/// A fork while another thread of the parent is inside `recv`: the child has that connection's descriptor, but not
/// the call that uses it.
fn fork_while_receiving(t: &Duo) -> Option<(Pair, Side)> {
    let p = t.pair();
    let waiting = t.s.start_recv(p.s, 4);
    t.pause();
    let child = t.s.fork("k")?;
    t.c.send(p.c, b"x");
    t.s.join(waiting);
    Some((p, child))
}

fn receiving_parent_last(t: &Duo) {
    let Some((p, child)) = fork_while_receiving(t) else { return };
    child.close(p.s);
    t.c.poll(&[(p.c, POLLIN)], 50);
    t.s.close(p.s);
    t.c.recv(p.c, 4);
    child.exit();
}

fn receiving_parents_child_last(t: &Duo) {
    let Some((p, child)) = fork_while_receiving(t) else { return };
    t.s.close(p.s);
    t.c.poll(&[(p.c, POLLIN)], 50);
    child.close(p.s);
    t.c.recv(p.c, 4);
    child.exit();
}

fn child_exit(t: &Duo) {
    let p = t.pair();
    let Some(child) = t.s.fork("k") else { return };
    child.send(p.s, b"from the child");
    child.exit();
    t.c.recv(p.c, 64);
    t.c.poll(&[(p.c, POLLIN)], 50);
    t.s.close(p.s);
    t.c.recv(p.c, 4);
}

fn child_shutdown(t: &Duo) {
    let p = t.pair();
    let Some(child) = t.s.fork("k") else { return };
    child.shutdown(p.s, SHUT_WR);
    t.c.recv(p.c, 4);
    t.s.send(p.s, b"x");
    t.c.send(p.c, b"other way");
    t.s.recv(p.s, 64);
}

fn child_accepts(t: &Duo) {
    let (l, addr) = t.listener();
    let Some(child) = t.s.fork("k") else { return };
    // An ordinary user's child attaches when it shows that it is going to serve.
    child.poll(&[(l, POLLIN)], 0);
    t.s.close(l);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    let s = child.accept(l);
    child.send(s, b"child here");
    t.c.recv(c, 64);
}

fn both_accept(t: &Duo) {
    let (l, addr) = t.listener();
    let Some(child) = t.s.fork("k") else { return };
    for round in 0..4 {
        let c = t.c.tcp();
        t.c.connect(c, &addr);
        let side = if round % 2 == 0 { &t.s } else { &child };
        let s = side.accept(l);
        side.send(s, b"served");
        t.c.recv(c, 64);
        side.close(s);
        t.c.recv(c, 4);
    }
}

fn client_forks(t: &Duo) {
    let p = t.pair();
    let Some(child) = t.c.fork("k") else { return };
    child.send(p.c, b"from the child");
    t.s.recv(p.s, 64);
    t.c.send(p.c, b"from the parent");
    t.s.recv(p.s, 64);
    t.s.send(p.s, b"to whom");
    child.recv(p.c, 64);
    child.exit();
    t.c.close(p.c);
    // In one process the server's own copy of the client's descriptor went with the child.
    t.s.recv(p.s, 64);
}

fn child_connects(t: &Duo) {
    let (l, addr) = t.listener();
    let Some(child) = t.c.fork("k") else { return };
    let c = child.tcp();
    child.connect(c, &addr);
    let s = t.s.accept(l);
    child.send(c, b"new");
    t.s.recv(s, 64);
    child.close(c);
    t.s.recv(s, 64);
}

fn grandchild(t: &Duo) {
    let p = t.pair();
    let Some(child) = t.s.fork("k") else { return };
    let Some(grandchild) = child.fork("g") else { return };
    t.s.close(p.s);
    child.exit();
    t.c.send(p.c, b"to the youngest");
    grandchild.recv(p.s, 64);
    grandchild.send(p.s, b"got it");
    t.c.recv(p.c, 64);
    grandchild.exit();
    if !t.alone() {
        t.c.recv(p.c, 4);
    }
}

fn parent_exits(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let p = t.pair();
    let Some(child) = t.s.fork("k") else { return };
    t.s.exit();
    t.c.send(p.c, b"orphan?");
    child.recv(p.s, 64);
    child.send(p.s, b"yes");
    t.c.recv(p.c, 64);
    child.exit();
    t.c.recv(p.c, 4);
}

/// A descriptor is reported once, also where some connections are shared and some are not.
fn old_and_new_in_a_set(t: &Duo) {
    let ep = t.s.epoll();
    let old = t.pair();
    t.s.epoll_add(ep, old.s, EPOLLIN);
    let Some(_child) = t.s.fork("k") else { return };
    let new = t.pair();
    t.s.epoll_add(ep, new.s, EPOLLIN);
    t.s.epoll_wait(ep, 0);
    for (first, second) in [(&new, &old), (&old, &new)] {
        t.c.send(first.c, b"x");
        t.s.settle(first.s, POLLIN);
        t.s.epoll_wait(ep, 5000);
        t.c.send(second.c, b"y");
        t.s.settle(second.s, POLLIN);
        t.s.epoll_wait(ep, 5000);
        t.s.epoll_wait(ep, 0);
        t.s.recv(first.s, 8);
        t.s.recv(second.s, 8);
        t.s.epoll_wait(ep, 0);
    }
}

fn child_epoll(t: &Duo) {
    let p = t.pair();
    let Some(child) = t.s.fork("k") else { return };
    let ep = child.epoll();
    child.epoll_add(ep, p.s, EPOLLIN);
    t.c.send(p.c, b"x");
    child.epoll_wait(ep, 5000);
    child.recv(p.s, 4);
    child.epoll_wait(ep, 0);
}

fn before_fork(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, b"first second");
    t.s.recv(p.s, 6);
    let Some(child) = t.s.fork("k") else { return };
    child.recv(p.s, 64);
    t.c.send(p.c, b"third");
    t.s.recv(p.s, 64);
}

fn forty(t: &Duo) {
    let (l, addr) = t.listener();
    for _ in 0..40 {
        let c = t.c.tcp();
        t.c.connect(c, &addr);
        let s = t.s.accept(l);
        let Some(child) = t.s.fork("k") else { return };
        t.s.close(s);
        child.send(s, b"x");
        child.exit();
        t.c.recv(c, 4);
        t.c.recv(c, 4);
        t.c.close(c);
    }
}
