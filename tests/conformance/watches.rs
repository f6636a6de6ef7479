//! epoll sets across exec: registrations go with the open file, whatever program has it. And sets of forked relatives that watch
//! one connection.

use harness::wire::{ExecBy, Op, SpawnBy};
use libc::{
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLET, EPOLLIN, EPOLLONESHOT, EPOLLOUT,
    EPOLLRDHUP, F_SETFD, FD_CLOEXEC,
};

use crate::driver::{Duo, Pair};
use crate::{Case, Expect::User};

pub const CASES: &[Case] = &[
    ("exec::set_goes_on", User, goes_on),
    ("exec::set_wakes_a_sleeper", User, wakes),
    ("exec::set_with_data_from_before", User, data_before),
    ("exec::edge_that_was_told_is_not_told_again", User, edge_told),
    ("exec::edge_that_was_not_told", User, edge_untold),
    ("exec::edge_of_room", User, edge_of_room),
    ("exec::one_shot_that_was_shot", User, shot),
    ("exec::set_with_a_listener", User, listener),
    ("exec::set_is_changed_after", User, changed),
    ("exec::members_that_close", User, members_close),
    ("exec::two_sets_and_a_copy", User, two_sets),
    ("exec::set_of_a_forked_child", User, in_child),
    ("exec::empty_set_gets_members_after", User, empty_set),
    ("exec::set_in_a_set", User, |t| nested(t, 0)),
    ("exec::set_in_a_set_for_edges", User, |t| nested(t, EPOLLET)),
    ("exec::set_in_a_set_wakes_a_sleeper", User, nested_wakes),
    ("exec::set_in_a_set_that_was_shot", User, nested_shot),
    ("exec::set_in_a_set_is_changed_after", User, nested_changed),
    ("exec::set_in_a_set_closes", User, nested_closes),
    ("exec::sets_three_deep", User, three_deep),
    ("spawn::moved_set", User, |t| moved(t, SpawnBy::PosixSpawn, 0)),
    ("spawn::moved_set_by_vfork", User, |t| moved(t, SpawnBy::Vfork, 0)),
    ("spawn::moved_set_by_fork", User, |t| moved(t, SpawnBy::Fork, 0)),
    ("spawn::moved_set_that_closes_on_exec", User, |t| moved(t, SpawnBy::PosixSpawn, EPOLL_CLOEXEC)),
    ("spawn::moved_set_that_closes_on_exec_by_vfork", User, |t| moved(t, SpawnBy::Vfork, EPOLL_CLOEXEC)),
    ("spawn::sets_change_places", User, |t| swapped(t, SpawnBy::PosixSpawn)),
    ("spawn::sets_change_places_by_vfork", User, |t| swapped(t, SpawnBy::Vfork)),
    ("spawn::moved_set_in_a_set", User, moved_nested),
    ("fork::both_watch_in_sets_of_their_own", User, |t| both_watch(t, 0)),
    ("fork::both_watch_for_edges_in_sets_of_their_own", User, |t| both_watch(t, EPOLLET)),
    ("fork::edge_that_the_parent_was_not_told_of", User, untold_at_fork),
];

fn watched(t: &Duo, events: i32) -> (Pair, i32) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, events);
    (p, ep)
}

fn goes_on(t: &Duo) {
    let (p, ep) = watched(t, EPOLLIN);
    t.s.exec(ExecBy::Execve);
    t.s.epoll_wait(ep, 0);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(ep, 5000);
    t.s.recv(p.s, 4);
    t.s.epoll_wait(ep, 0);
    t.c.close(p.c);
    t.s.epoll_wait(ep, 5000);
}

fn wakes(t: &Duo) {
    let (p, ep) = watched(t, EPOLLIN | EPOLLRDHUP);
    // It has slept in the program before, too.
    t.s.epoll_wait(ep, 20);
    t.s.exec(ExecBy::Execve);
    for _ in 0..3 {
        let waiting = t.s.start(Op::EpollWait { ep, max: 4, timeout_ms: 5000 });
        t.s.until_blocked();
        t.c.send(p.c, b"x");
        t.s.join(waiting);
        t.s.recv(p.s, 4);
    }
}

fn data_before(t: &Duo) {
    let (p, ep) = watched(t, EPOLLIN);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(ep, 5000);
    t.s.exec(ExecBy::Execve);
    t.s.epoll_wait(ep, 5000);
    t.s.recv(p.s, 4);
    t.s.epoll_wait(ep, 0);
}

fn edge_told(t: &Duo) {
    let (p, ep) = watched(t, EPOLLIN | EPOLLET);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(ep, 5000);
    t.s.exec(ExecBy::Execve);
    t.s.epoll_wait(ep, 20);
    t.c.send(p.c, b"y");
    t.s.epoll_wait(ep, 5000);
    t.s.recv(p.s, 4);
}

fn edge_untold(t: &Duo) {
    let (p, ep) = watched(t, EPOLLIN | EPOLLET);
    t.c.send(p.c, b"x");
    t.s.settle(p.s, libc::POLLIN);
    t.s.exec(ExecBy::Execve);
    t.s.epoll_wait(ep, 5000);
    t.s.epoll_wait(ep, 0);
}

fn edge_of_room(t: &Duo) {
    let (p, ep) = watched(t, EPOLLOUT | EPOLLET);
    t.s.epoll_wait(ep, 0);
    t.s.exec(ExecBy::Execve);
    t.s.epoll_wait(ep, 20);
    t.s.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLOUT | EPOLLET);
    t.s.epoll_wait(ep, 0);
    t.s.epoll_wait(ep, 0);
}

fn shot(t: &Duo) {
    let (p, ep) = watched(t, EPOLLIN | EPOLLONESHOT);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(ep, 5000);
    t.s.exec(ExecBy::Execve);
    t.s.epoll_wait(ep, 20);
    t.s.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLIN | EPOLLONESHOT);
    t.s.epoll_wait(ep, 5000);
    t.s.epoll_wait(ep, 20);
}

fn listener(t: &Duo) {
    let (l, addr) = t.listener();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, l, EPOLLIN);
    t.s.exec(ExecBy::Execve);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    t.s.epoll_wait(ep, 5000);
    let s = t.s.accept(l);
    t.s.epoll_wait(ep, 0);
    t.s.send(s, b"hello");
    t.c.recv(c, 8);
}

fn changed(t: &Duo) {
    let (p, ep) = watched(t, EPOLLIN);
    t.s.exec(ExecBy::Execve);
    t.s.epoll_ctl(ep, EPOLL_CTL_ADD, p.s, EPOLLIN);
    t.s.epoll_ctl(ep, EPOLL_CTL_MOD, p.s, EPOLLIN | EPOLLOUT);
    t.s.epoll_wait(ep, 0);
    t.s.epoll_ctl(ep, EPOLL_CTL_DEL, p.s, 0);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(ep, 20);
    t.s.epoll_ctl(ep, EPOLL_CTL_DEL, p.s, 0);
    t.s.epoll_ctl(ep, EPOLL_CTL_ADD, p.s, EPOLLIN);
    t.s.epoll_wait(ep, 5000);
}

fn members_close(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let (p, ep) = watched(t, EPOLLIN);
    let q = t.pair();
    t.s.epoll_add(ep, q.s, EPOLLIN);
    t.s.fcntl(p.s, F_SETFD, FD_CLOEXEC);
    t.s.exec(ExecBy::Execve);
    t.c.recv(p.c, 4);
    t.s.epoll_wait(ep, 0);
    t.c.send(q.c, b"x");
    t.s.epoll_wait(ep, 5000);
    t.s.close(q.s);
    t.s.epoll_wait(ep, 20);
}

fn two_sets(t: &Duo) {
    let (p, ep) = watched(t, EPOLLIN);
    let other = t.s.epoll();
    t.s.epoll_add(other, p.s, EPOLLIN | EPOLLOUT);
    let copy = t.s.dup(ep);
    t.s.exec(ExecBy::Execve);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(copy, 5000);
    t.s.epoll_wait(other, 5000);
    t.s.close(ep);
    t.s.recv(p.s, 4);
    t.s.epoll_wait(copy, 0);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(copy, 5000);
}

fn in_child(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let (p, ep) = watched(t, EPOLLIN);
    let Some(child) = t.s.fork("k") else { return };
    t.s.close(ep);
    t.s.close(p.s);
    child.exec(ExecBy::Execve);
    t.c.send(p.c, b"x");
    child.epoll_wait(ep, 5000);
    child.recv(p.s, 4);
    child.exit();
    t.c.recv(p.c, 4);
}

/// Nothing of ours is there when the program starts.
fn empty_set(t: &Duo) {
    let ep = t.c.epoll();
    t.c.exec(ExecBy::Execve);
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    t.c.epoll_add(ep, c, EPOLLIN | EPOLLOUT);
    t.c.epoll_wait(ep, 0);
    let s = t.s.accept(l);
    t.s.send(s, b"x");
    t.c.settle(c, libc::POLLIN);
    t.c.epoll_wait(ep, 0);
}

/// A connection in a set, which is in another: the connection, the inner set, the outer one.
fn in_two(t: &Duo, events: i32) -> (Pair, i32, i32) {
    let (p, inner) = watched(t, EPOLLIN);
    let outer = t.s.epoll();
    t.s.epoll_add(outer, inner, events);
    (p, inner, outer)
}

fn nested(t: &Duo, how: i32) {
    let (p, inner, outer) = in_two(t, EPOLLIN | how);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(outer, 5000);
    t.s.exec(ExecBy::Execve);
    t.s.epoll_wait(outer, 20);
    t.s.epoll_wait(inner, 0);
    t.s.recv(p.s, 4);
    t.s.epoll_wait(outer, 0);
    t.c.send(p.c, b"y");
    t.s.epoll_wait(outer, 5000);
    t.s.epoll_wait(inner, 0);
    t.s.recv(p.s, 4);
    t.c.close(p.c);
    t.s.epoll_wait(outer, 5000);
    t.s.epoll_wait(inner, 0);
}

fn nested_wakes(t: &Duo) {
    let (p, _, outer) = in_two(t, EPOLLIN);
    t.s.epoll_wait(outer, 20);
    t.s.exec(ExecBy::Execve);
    for _ in 0..3 {
        let waiting = t.s.start(Op::EpollWait { ep: outer, max: 4, timeout_ms: 5000 });
        t.s.until_blocked();
        t.c.send(p.c, b"x");
        t.s.join(waiting);
        t.s.recv(p.s, 4);
    }
}

fn nested_shot(t: &Duo) {
    let (p, inner, outer) = in_two(t, EPOLLIN | EPOLLONESHOT);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(outer, 5000);
    t.s.exec(ExecBy::Execve);
    t.s.epoll_wait(outer, 20);
    t.s.epoll_ctl(outer, EPOLL_CTL_MOD, inner, EPOLLIN | EPOLLONESHOT);
    t.s.epoll_wait(outer, 5000);
    t.s.epoll_wait(outer, 20);
}

fn nested_changed(t: &Duo) {
    let (p, inner, outer) = in_two(t, EPOLLIN);
    t.s.exec(ExecBy::Execve);
    t.s.epoll_ctl(outer, EPOLL_CTL_ADD, inner, EPOLLIN);
    t.s.epoll_ctl(inner, EPOLL_CTL_ADD, outer, EPOLLIN);
    t.s.epoll_ctl(outer, EPOLL_CTL_DEL, inner, 0);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(outer, 20);
    t.s.epoll_ctl(outer, EPOLL_CTL_DEL, inner, 0);
    t.s.epoll_ctl(outer, EPOLL_CTL_ADD, inner, EPOLLIN);
    t.s.epoll_wait(outer, 5000);
}

fn nested_closes(t: &Duo) {
    let (p, inner, outer) = in_two(t, EPOLLIN);
    t.s.fcntl(inner, F_SETFD, FD_CLOEXEC);
    t.s.exec(ExecBy::Execve);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(outer, 20);
    t.s.epoll_ctl(outer, EPOLL_CTL_ADD, p.s, EPOLLIN);
    t.s.epoll_wait(outer, 5000);
}

fn three_deep(t: &Duo) {
    let (p, _, middle) = in_two(t, EPOLLIN);
    let outer = t.s.epoll();
    t.s.epoll_add(outer, middle, EPOLLIN);
    t.s.exec(ExecBy::Execve);
    t.s.epoll_wait(outer, 0);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(outer, 5000);
    t.s.epoll_wait(middle, 0);
    t.s.recv(p.s, 4);
    t.s.epoll_wait(outer, 0);
}

fn moved(t: &Duo, by: SpawnBy, flags: i32) {
    let p = t.pair();
    let ep = i32::try_from(t.s.call(Op::EpollCreate { flags }).ret).unwrap_or(-1);
    t.s.epoll_add(ep, p.s, EPOLLIN);
    let Some(child) = t.s.spawn("k", by, &[(ep, 60), (p.s, 61)]) else { return };
    t.s.close(ep);
    t.s.close(p.s);
    child.epoll_wait(60, 0);
    t.c.send(p.c, b"x");
    child.epoll_wait(60, 5000);
    child.recv(61, 4);
    // Registered by another number, as on Linux.
    child.epoll_ctl(60, EPOLL_CTL_MOD, 61, EPOLLIN | EPOLLOUT);
    child.epoll_ctl(60, EPOLL_CTL_ADD, 61, EPOLLOUT);
    child.epoll_wait(60, 1000);
}

fn swapped(t: &Duo, by: SpawnBy) {
    let (p, ep) = watched(t, EPOLLIN);
    let other = t.s.epoll();
    t.s.epoll_add(other, p.s, EPOLLOUT);
    let moves = [(ep, 60), (other, ep), (60, other)];
    let Some(child) = t.s.spawn("k", by, &moves) else { return };
    t.s.close(ep);
    t.s.close(other);
    child.epoll_wait(ep, 1000);
    t.c.send(p.c, b"x");
    child.epoll_wait(other, 5000);
    child.epoll_wait(60, 5000);
    child.recv(p.s, 4);
    child.epoll_wait(60, 0);
}

fn moved_nested(t: &Duo) {
    let (p, inner, outer) = in_two(t, EPOLLIN);
    let Some(child) = t.s.spawn("k", SpawnBy::PosixSpawn, &[(inner, 60), (outer, 61)]) else { return };
    for fd in [p.s, inner, outer] {
        t.s.close(fd);
    }
    t.c.send(p.c, b"x");
    child.epoll_wait(61, 5000);
    child.epoll_wait(60, 5000);
    child.recv(p.s, 4);
    child.epoll_wait(61, 0);
}

fn both_watch(t: &Duo, how: i32) {
    let p = t.pair();
    let Some(child) = t.s.fork("k") else { return };
    let sides = [(&t.s, t.s.epoll()), (&child, child.epoll())];
    for (side, ep) in sides {
        side.epoll_add(ep, p.s, EPOLLIN | how);
    }
    for reads in [true, false, false] {
        let waiting = sides.map(|(side, ep)| side.start(Op::EpollWait { ep, max: 4, timeout_ms: 5000 }));
        t.s.until_blocked();
        child.until_blocked();
        t.c.send(p.c, b"x");
        for ((side, _), ticket) in sides.into_iter().zip(waiting) {
            side.join(ticket);
        }
        if reads || how == 0 {
            t.s.recv(p.s, 4);
        }
        for (side, ep) in sides {
            side.epoll_wait(ep, 0);
        }
    }
    child.exit();
}

/// The set is shared by the fork, and what came before it is still an edge for who asks first.
fn untold_at_fork(t: &Duo) {
    let (p, ep) = watched(t, EPOLLIN | EPOLLET);
    t.c.send(p.c, b"x");
    t.s.settle(p.s, libc::POLLIN);
    let Some(child) = t.s.fork("k") else { return };
    t.s.epoll_wait(ep, 1000);
    t.s.epoll_wait(ep, 20);
    t.c.send(p.c, b"y");
    t.s.epoll_wait(ep, 1000);
    t.s.epoll_wait(ep, 20);
    child.exit();
}
