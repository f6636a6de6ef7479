//! Descriptors go while they are used: ranges, daemons, close and dup2 under a blocked thread, libraries loaded late.

use harness::wire::{Op, RecvBy, SendBy};
use libc::{EPOLLIN, F_GETFD, POLLIN, RTLD_NOW, SOCK_CLOEXEC};

use crate::driver::{Duo, Pair};
use crate::{
    Case,
    Expect::{Any, User},
};

pub const CASES: &[Case] = &[
    ("close_range::of_connections", User, close_range),
    ("close_range::sets_cloexec", User, close_range_cloexec),
    ("close_range::unshares", User, close_range_unshare),
    ("close_range::bad", User, close_range_bad),
    ("close_range::empty", User, close_range_empty),
    ("closefrom::ends_connections", User, closefrom),
    ("closefrom::new_connections_after", User, closefrom_anew),
    ("closefrom::keeps_lower_numbers", User, closefrom_keeps),
    ("daemon::server_goes_on", User, daemon_server),
    ("daemon::client_goes_on", User, daemon_client),
    ("daemon::closes_every_descriptor", User, daemon_closes),
    ("daemon::twice", User, daemon_twice),
    ("blocked::close_under_a_reader", User, close_reader),
    ("blocked::close_under_a_peeker", User, close_peeker),
    ("blocked::close_under_a_writer", User, close_writer),
    ("blocked::exec_ends_other_threads", User, exec_reader),
    ("blocked::close_under_epoll", User, close_epoll),
    ("blocked::dup2_over_a_reader", User, dup2_reader),
    ("blocked::dup2_of_a_reader", User, dup2_of_reader),
    ("blocked::peer_closes_under_a_writer", User, peer_closes_writer),
    ("blocked::exit_under_a_reader", User, exit_reader),
    ("blocked::exit_under_accept", Any, exit_accept),
    ("blocked::fork_under_a_reader", User, fork_reader),
    ("blocked::close_by_the_child_under_a_reader", User, fork_close_reader),
    ("fork::pre_fork_workers_take_turns", User, pre_fork),
    ("fork::connection_per_child", User, per_child),
    ("fork::tree_of_three_generations", User, tree),
    ("fork::grandchild_keeps_it_open", User, grandchild_open),
    ("fork::child_is_killed_while_receiving", User, child_killed),
];

pub const ALONE: &[Case] = &[
    ("dlopen::constructor_uses_sockets", User, |t| dlopen(t, RTLD_NOW)),
    ("dlopen::bound_to_itself", Any, |t| dlopen(t, RTLD_NOW | libc::RTLD_DEEPBIND)),
];

fn exchange(t: &Duo, p: Pair) {
    t.c.send(p.c, b"question");
    t.s.recv(p.s, 64);
    t.s.send(p.s, b"answer");
    t.c.recv(p.c, 64);
}

fn several(t: &Duo) -> [Pair; 3] {
    let (l, addr) = t.listener();
    [0; 3].map(|_| {
        let c = t.c.tcp();
        t.c.connect(c, &addr);
        Pair { l, s: t.s.accept(l), c }
    })
}

fn range(first: i32, last: i32, flags: u32) -> Op {
    Op::CloseRange { first: first.cast_unsigned(), last: last.cast_unsigned(), flags: flags.cast_signed() }
}

fn close_range(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let [a, b, c] = several(t);
    t.s.call(range(a.s, b.s, 0));
    t.c.recv(a.c, 4);
    t.c.recv(b.c, 4);
    exchange(t, c);
    t.s.send(a.s, b"closed");
    t.s.tcp();
}

fn close_range_cloexec(t: &Duo) {
    let [a, b, c] = several(t);
    t.s.call(range(a.s, b.s, libc::CLOSE_RANGE_CLOEXEC));
    for p in [a, b, c] {
        t.s.fcntl(p.s, F_GETFD, 0);
        exchange(t, p);
    }
}

fn close_range_unshare(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let [a, b, c] = several(t);
    t.s.call(range(a.s, b.s, libc::CLOSE_RANGE_UNSHARE));
    t.c.recv(a.c, 4);
    t.c.recv(b.c, 4);
    exchange(t, c);
}

fn close_range_bad(t: &Duo) {
    let p = t.pair();
    t.s.call(range(50, 40, 0));
    t.s.call(range(40, 50, 1));
    exchange(t, p);
}

fn close_range_empty(t: &Duo) {
    let p = t.pair();
    t.s.call(range(100, 200, 0));
    exchange(t, p);
}

fn closefrom(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let [a, b, c] = several(t);
    exchange(t, a);
    t.s.closefrom(3);
    for p in [a, b, c] {
        t.c.recv(p.c, 4);
    }
    t.s.send(a.s, b"closed");
}

fn closefrom_anew(t: &Duo) {
    let p = t.pair();
    exchange(t, p);
    t.s.closefrom(3);
    let q = t.pair();
    exchange(t, q);
}

fn closefrom_keeps(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let [a, b, c] = several(t);
    t.s.closefrom(b.s);
    t.c.recv(b.c, 4);
    t.c.recv(c.c, 4);
    exchange(t, a);
}

fn daemon_server(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let p = t.pair();
    t.s.daemon();
    exchange(t, p);
    let c = t.c.tcp();
    let addr = t.s.sockname(p.l);
    t.c.connect(c, &addr);
    let s = t.s.accept(p.l);
    exchange(t, Pair { s, c, ..p });
    t.s.exit();
    t.c.recv(c, 4);
}

fn daemon_client(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let p = t.pair();
    t.c.daemon();
    exchange(t, p);
    t.c.exit();
    t.s.recv(p.s, 4);
}

fn daemon_closes(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let p = t.pair();
    exchange(t, p);
    t.s.daemon();
    t.s.closefrom(0);
    t.c.recv(p.c, 4);
    // 0, 1 and 2 are free now: the next sockets get them.
    let q = t.pair();
    exchange(t, q);
}

fn daemon_twice(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let (l, addr) = t.listener();
    t.s.daemon();
    t.s.daemon();
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    let s = t.s.accept(l);
    exchange(t, Pair { l, s, c });
}

fn dlopen(t: &Duo, flags: i32) {
    let path = env!("CONSTRUCTOR_LIBRARY").to_owned();
    let Some([(c, _), (s, _)]) = t.c.call(Op::Dlopen { path, flags }).events.first_chunk().copied() else {
        return;
    };
    t.c.send(c, b"through the library's connection");
    t.c.recv(s, 64);
    t.c.close(c);
    t.c.recv(s, 64);
    t.c.close(s);
    exchange(t, t.pair());
}

fn close_reader(t: &Duo) {
    let p = t.pair();
    let waiting = t.s.start_recv(p.s, 64);
    t.s.until_blocked();
    t.s.close(p.s);
    t.c.send(p.c, b"still arrives");
    t.s.join(waiting);
    t.c.recv(p.c, 4);
    t.s.send(p.s, b"closed");
}

fn close_peeker(t: &Duo) {
    let p = t.pair();
    let peek = Op::Recv { fd: p.s, len: 4, by: RecvBy::Recv, flags: libc::MSG_PEEK };
    let waiting = t.s.start(peek);
    t.s.until_blocked();
    t.s.close(p.s);
    t.c.send(p.c, b"unread");
    t.s.join(waiting);
    t.c.recv(p.c, 4);
}

fn close_writer(t: &Duo) {
    let p = t.pair();
    let total = 16 << 20;
    let writing = t.c.start(Op::Fill { fd: p.c, len: 16 << 20, flags: 0 });
    t.c.until_blocked();
    t.c.close(p.c);
    t.s.call(Op::Drain { fd: p.s, total, chunk: 65_536, by: RecvBy::Recv, flags: 0 });
    t.c.join(writing);
    t.s.recv(p.s, 4);
}

fn close_epoll(t: &Duo) {
    let [a, b, _] = several(t);
    let ep = t.s.epoll();
    t.s.epoll_add(ep, a.s, EPOLLIN);
    t.s.epoll_add(ep, b.s, EPOLLIN);
    let waiting = t.s.start(Op::EpollWait { ep, max: 4, timeout_ms: 5000 });
    t.s.until_blocked();
    t.s.close(a.s);
    t.c.send(b.c, b"x");
    t.s.join(waiting);
    t.s.epoll_wait(ep, 0);
}

fn dup2_reader(t: &Duo) {
    let [a, b, _] = several(t);
    let waiting = t.s.start_recv(a.s, 64);
    t.s.until_blocked();
    t.s.call(Op::Dup2 { fd: b.s, to: a.s });
    t.c.send(a.c, b"for the old one");
    t.s.join(waiting);
    t.c.send(b.c, b"for the new one");
    t.s.recv(a.s, 64);
    t.c.recv(a.c, 4);
}

fn dup2_of_reader(t: &Duo) {
    let [a, b, _] = several(t);
    let waiting = t.s.start_recv(a.s, 64);
    t.s.until_blocked();
    t.s.call(Op::Dup2 { fd: a.s, to: b.s });
    t.c.recv(b.c, 4);
    t.s.close(a.s);
    t.c.send(a.c, b"here");
    t.s.join(waiting);
    t.c.send(a.c, b"there");
    t.s.recv(b.s, 64);
}

fn peer_closes_writer(t: &Duo) {
    let p = t.pair();
    let writing = t.c.start(Op::Pump { fd: p.c, total: 64 << 20, chunk: 60_000, by: SendBy::Send });
    t.c.until_blocked();
    t.s.close(p.s);
    let out = t.c.quiet(&Op::Join { ticket: writing });
    // Which of the two depends on whether a call was under way when the reset came.
    t.c.remark(&format!("ended: {}", matches!(out.errno, libc::EPIPE | libc::ECONNRESET)));
}

fn exit_reader(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let p = t.pair();
    t.s.start_recv(p.s, 64);
    t.s.until_blocked();
    t.s.exit();
    t.c.recv(p.c, 4);
}

fn exit_accept(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let (l, addr) = t.listener();
    t.s.start(Op::Accept { fd: l, flags: None });
    t.s.until_blocked();
    t.s.exit();
    let c = t.c.tcp();
    t.c.connect(c, &addr);
}

fn exec_reader(t: &Duo) {
    let p = t.pair();
    t.s.start_recv(p.s, 64);
    t.s.until_blocked();
    t.s.exec(harness::wire::ExecBy::Execve);
    exchange(t, p);
}

fn fork_reader(t: &Duo) {
    let p = t.pair();
    let waiting = t.s.start_recv(p.s, 64);
    t.s.until_blocked();
    let Some(child) = t.s.fork("k") else { return };
    t.c.send(p.c, b"for the parent");
    t.s.join(waiting);
    t.c.send(p.c, b"for the child");
    child.recv(p.s, 64);
}

fn fork_close_reader(t: &Duo) {
    let p = t.pair();
    let waiting = t.s.start_recv(p.s, 64);
    t.s.until_blocked();
    let Some(child) = t.s.fork("k") else { return };
    child.close(p.s);
    child.exit();
    t.c.send(p.c, b"still here");
    t.s.join(waiting);
}

fn pre_fork(t: &Duo) {
    let (l, addr) = t.listener();
    let Some(one) = t.s.fork("k1") else { return };
    let Some(two) = t.s.fork("k2") else { return };
    for worker in [&one, &two] {
        worker.poll(&[(l, POLLIN)], 0);
    }
    t.s.close(l);
    for worker in [&one, &two, &one, &two] {
        let c = t.c.tcp();
        t.c.connect(c, &addr);
        let s = worker.accept(l);
        t.c.send(c, b"request");
        worker.recv(s, 64);
        worker.send(s, b"response");
        worker.close(s);
        t.c.recv(c, 64);
        t.c.recv(c, 64);
        t.c.close(c);
    }
    one.exit();
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    let s = two.accept(l);
    two.send(s, b"the other one");
    t.c.recv(c, 64);
}

fn per_child(t: &Duo) {
    let (l, addr) = t.listener();
    for name in ["k1", "k2", "k3"] {
        let c = t.c.tcp();
        t.c.connect(c, &addr);
        let s = t.s.accept4(l, SOCK_CLOEXEC);
        let Some(child) = t.s.fork(name) else { return };
        t.s.close(s);
        child.close(l);
        t.c.send(c, b"query");
        child.recv(s, 64);
        child.send(s, b"rows");
        t.c.recv(c, 64);
        t.c.close(c);
        if !t.alone() {
            child.recv(s, 64);
        }
        child.exit();
    }
}

fn tree(t: &Duo) {
    let p = t.pair();
    let Some(child) = t.s.fork("k") else { return };
    let Some(grandchild) = child.fork("g") else { return };
    let Some(second) = t.s.fork("k2") else { return };
    for side in [&grandchild, &t.s, &second, &child] {
        t.c.send(p.c, b"to one of four");
        side.recv(p.s, 64);
        side.send(p.s, b"from one of four");
        t.c.recv(p.c, 64);
    }
}

fn grandchild_open(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let p = t.pair();
    let Some(child) = t.s.fork("k") else { return };
    let Some(grandchild) = child.fork("g") else { return };
    t.s.close(p.s);
    child.exit();
    t.c.poll(&[(p.c, POLLIN)], 0);
    grandchild.send(p.s, b"still here");
    t.c.recv(p.c, 64);
    grandchild.exit();
    t.c.recv(p.c, 64);
}

fn child_killed(t: &Duo) {
    let p = t.pair();
    let Some(child) = t.s.fork("k") else { return };
    child.start_recv(p.s, 64);
    child.until_blocked();
    child.kill();
    exchange(t, p);
}
