//! epoll sets that forked relatives share: one open set, so what one of them changes counts for all, and what is told once is told to
//! one of them.

use harness::wire::Op;
use libc::{
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLET, EPOLLIN, EPOLLONESHOT, EPOLLOUT, EPOLLRDHUP, POLLIN,
};

use crate::driver::{Duo, Pair, Side};
use crate::{Case, Expect::User};

pub const CASES: &[Case] = &[
    ("fork::set_whose_member_the_child_takes_out", User, child_takes_out),
    ("fork::set_whose_member_the_parent_takes_out", User, parent_takes_out),
    ("fork::set_whose_member_the_child_changes", User, child_changes),
    ("fork::set_that_the_child_adds_to", User, child_adds),
    ("fork::empty_set_that_the_child_adds_to", User, child_adds_first),
    ("fork::set_that_the_child_adds_to_while_the_parent_sleeps", User, adds_for_a_sleeper),
    ("fork::set_whose_member_the_child_changes_while_the_parent_sleeps", User, changes_for_a_sleeper),
    ("fork::edge_of_a_shared_set_is_told_once", User, edge_once),
    ("fork::one_shot_of_a_shared_set_is_told_once", User, shot_once),
    ("fork::level_of_a_shared_set_is_told_to_both", User, level_both),
    ("fork::parent_slept_in_the_set_before", User, slept_before),
    ("fork::shared_set_with_a_listener", User, with_listener),
    ("fork::shared_set_in_three_processes", User, three),
    ("fork::shared_set_outlives_its_maker", User, outlives),
    ("fork::shared_set_that_the_child_has_closed", User, child_closed_it),
    ("fork::shared_set_whose_child_is_gone", User, child_gone),
    ("fork::set_member_that_both_close", User, both_close),
];

/// A set with a connection in it, and a child that has both.
fn shared(t: &Duo, events: i32) -> Option<(Pair, i32, Side)> {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, events);
    let child = t.s.fork("k")?;
    Some((p, ep, child))
}

fn child_takes_out(t: &Duo) {
    let Some((p, ep, child)) = shared(t, EPOLLIN) else { return };
    child.epoll_ctl(ep, EPOLL_CTL_DEL, p.s, 0);
    t.c.send(p.c, b"x");
    t.s.settle(p.s, POLLIN);
    t.s.epoll_wait(ep, 0);
    child.epoll_wait(ep, 0);
    t.s.epoll_ctl(ep, EPOLL_CTL_DEL, p.s, 0);
    t.s.epoll_add(ep, p.s, EPOLLIN);
    child.epoll_add(ep, p.s, EPOLLIN);
    child.epoll_wait(ep, 1000);
}

fn parent_takes_out(t: &Duo) {
    let Some((p, ep, child)) = shared(t, EPOLLIN) else { return };
    t.s.epoll_ctl(ep, EPOLL_CTL_DEL, p.s, 0);
    t.c.send(p.c, b"x");
    child.settle(p.s, POLLIN);
    child.epoll_wait(ep, 0);
    child.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLIN);
}

fn child_changes(t: &Duo) {
    let Some((p, ep, child)) = shared(t, EPOLLIN) else { return };
    child.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLOUT);
    t.c.send(p.c, b"x");
    t.s.settle(p.s, POLLIN);
    t.s.epoll_wait(ep, 1000);
    t.s.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLIN | EPOLLRDHUP);
    child.epoll_wait(ep, 1000);
    child.recv(p.s, 4);
    child.epoll_wait(ep, 0);
    t.s.epoll_wait(ep, 0);
}

fn child_adds(t: &Duo) {
    let Some((first, ep, _)) = shared(t, EPOLLIN) else { return };
    let second = t.pair();
    let Some(child) = t.s.fork("l") else { return };
    child.epoll_add(ep, second.s, EPOLLIN);
    t.c.send(second.c, b"x");
    t.s.settle(second.s, POLLIN);
    t.s.epoll_wait(ep, 1000);
    t.s.recv(second.s, 4);
    t.c.send(first.c, b"y");
    t.s.settle(first.s, POLLIN);
    child.epoll_wait(ep, 1000);
    t.s.epoll_add(ep, second.s, EPOLLIN);
}

fn child_adds_first(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    let Some(child) = t.s.fork("k") else { return };
    t.s.epoll_wait(ep, 0);
    child.epoll_add(ep, p.s, EPOLLIN);
    t.c.send(p.c, b"x");
    t.s.settle(p.s, POLLIN);
    t.s.epoll_wait(ep, 1000);
    t.s.epoll_wait(ep, 0);
}

fn wait(ep: i32) -> Op {
    Op::EpollWait { ep, max: 4, timeout_ms: 5000 }
}

fn adds_for_a_sleeper(t: &Duo) {
    let other = t.pair();
    let Some((p, ep, child)) = shared(t, EPOLLIN) else { return };
    t.c.send(other.c, b"x");
    child.settle(other.s, POLLIN);
    let waiting = t.s.start(wait(ep));
    t.s.until_blocked();
    child.epoll_add(ep, other.s, EPOLLIN);
    t.s.join(waiting);
    t.s.recv(other.s, 4);
    let waiting = t.s.start(wait(ep));
    t.s.until_blocked();
    t.c.send(p.c, b"y");
    t.s.join(waiting);
}

fn changes_for_a_sleeper(t: &Duo) {
    let Some((p, ep, child)) = shared(t, EPOLLIN) else { return };
    let waiting = t.s.start(wait(ep));
    t.s.until_blocked();
    child.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLIN | EPOLLOUT);
    t.s.join(waiting);
}

fn edge_once(t: &Duo) {
    let Some((p, ep, child)) = shared(t, EPOLLIN | EPOLLET) else { return };
    for turn in 0..4 {
        t.c.send(p.c, b"x");
        t.s.settle(p.s, POLLIN);
        let (first, second) = if turn % 2 == 0 { (&t.s, &child) } else { (&child, &t.s) };
        first.epoll_wait(ep, 1000);
        second.epoll_wait(ep, 0);
        first.epoll_wait(ep, 0);
    }
    t.s.recv(p.s, 16);
    child.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLIN | EPOLLOUT | EPOLLET);
    t.s.epoll_wait(ep, 1000);
    child.epoll_wait(ep, 0);
    t.c.close(p.c);
    child.epoll_wait(ep, 1000);
    t.s.epoll_wait(ep, 0);
}

fn shot_once(t: &Duo) {
    let Some((p, ep, child)) = shared(t, EPOLLIN | EPOLLONESHOT) else { return };
    t.c.send(p.c, b"x");
    t.s.settle(p.s, POLLIN);
    child.epoll_wait(ep, 1000);
    t.s.epoll_wait(ep, 0);
    t.s.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLIN | EPOLLONESHOT);
    t.s.epoll_wait(ep, 1000);
    child.epoll_wait(ep, 0);
    child.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLIN | EPOLLONESHOT);
    t.s.epoll_wait(ep, 1000);
}

fn level_both(t: &Duo) {
    let Some((p, ep, child)) = shared(t, EPOLLIN) else { return };
    let of_parent = t.s.start(wait(ep));
    t.s.until_blocked();
    let of_child = child.start(wait(ep));
    child.until_blocked();
    t.c.send(p.c, b"x");
    t.s.join(of_parent);
    child.join(of_child);
}

fn slept_before(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    let of_parent = t.s.start(wait(ep));
    t.s.until_blocked();
    let Some(child) = t.s.fork("k") else { return };
    child.epoll_wait(ep, 20);
    let of_child = child.start(wait(ep));
    child.until_blocked();
    t.c.send(p.c, b"x");
    t.s.join(of_parent);
    child.join(of_child);
    t.s.recv(p.s, 4);
    // Alone again.
    child.exit();
    for _ in 0..2 {
        let waiting = t.s.start(wait(ep));
        t.s.until_blocked();
        t.c.send(p.c, b"y");
        t.s.join(waiting);
        t.s.recv(p.s, 4);
    }
}

fn with_listener(t: &Duo) {
    let (l, addr) = t.listener();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, l, EPOLLIN);
    let Some(child) = t.s.fork("k") else { return };
    child.epoll_ctl(ep, EPOLL_CTL_DEL, l, 0);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    t.s.settle(l, POLLIN);
    t.s.epoll_wait(ep, 0);
    child.epoll_add(ep, l, EPOLLIN);
    t.s.epoll_wait(ep, 1000);
    child.epoll_wait(ep, 1000);
    t.s.accept(l);
    child.epoll_wait(ep, 0);
}

fn three(t: &Duo) {
    let Some((p, ep, child)) = shared(t, EPOLLIN | EPOLLET) else { return };
    let Some(grandchild) = child.fork("g") else { return };
    t.c.send(p.c, b"x");
    t.s.settle(p.s, POLLIN);
    grandchild.epoll_wait(ep, 1000);
    child.epoll_wait(ep, 0);
    t.s.epoll_wait(ep, 0);
    grandchild.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLOUT);
    child.epoll_wait(ep, 1000);
    t.s.epoll_wait(ep, 1000);
    grandchild.epoll_ctl(ep, EPOLL_CTL_DEL, p.s, 0);
    child.epoll_wait(ep, 0);
    t.s.epoll_wait(ep, 0);
}

fn outlives(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let Some((p, ep, child)) = shared(t, EPOLLIN) else { return };
    t.s.exit();
    let waiting = child.start(wait(ep));
    child.until_blocked();
    t.c.send(p.c, b"x");
    child.join(waiting);
    child.epoll_ctl(ep, EPOLL_CTL_DEL, p.s, 0);
    child.epoll_wait(ep, 0);
}

fn child_closed_it(t: &Duo) {
    let Some((p, ep, child)) = shared(t, EPOLLIN) else { return };
    child.close(ep);
    child.close(p.s);
    let waiting = t.s.start(wait(ep));
    t.s.until_blocked();
    t.c.send(p.c, b"x");
    t.s.join(waiting);
}

fn child_gone(t: &Duo) {
    let Some((p, ep, child)) = shared(t, EPOLLIN) else { return };
    child.kill();
    for _ in 0..2 {
        t.c.send(p.c, b"x");
        t.s.settle(p.s, POLLIN);
        t.s.epoll_wait(ep, 1000);
        t.s.recv(p.s, 4);
        t.s.epoll_wait(ep, 20);
    }
    t.s.epoll_ctl(ep, EPOLL_CTL_ADD, p.s, EPOLLIN);
}

fn both_close(t: &Duo) {
    let Some((p, ep, child)) = shared(t, EPOLLIN) else { return };
    let other = t.pair();
    t.c.send(p.c, b"x");
    t.s.settle(p.s, POLLIN);
    child.close(p.s);
    t.s.epoll_wait(ep, 1000);
    t.s.close(p.s);
    t.s.epoll_wait(ep, 0);
    child.epoll_wait(ep, 0);
    t.s.epoll_add(ep, other.s, EPOLLIN);
    t.c.send(other.c, b"y");
    t.s.epoll_wait(ep, 1000);
}
