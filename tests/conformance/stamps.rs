//! `SO_TIMESTAMP` and its relatives: when bytes have arrived. A time comes as the type of its control message, and whether it is one of the
//! last seconds.

use harness::wire::{Op, SendBy};
use libc::{EPOLLIN, MSG_NOSIGNAL, MSG_PEEK, SO_TIMESTAMP, SO_TIMESTAMPNS, SOL_SOCKET};

use crate::driver::{Duo, Pair, Side};
use crate::{
    Case,
    Expect::{Mixed, User},
};

const SO_TIMESTAMP_NEW: i32 = 63;
const SO_TIMESTAMPNS_NEW: i32 = 64;
const ALL: [i32; 4] = [SO_TIMESTAMP, SO_TIMESTAMPNS, SO_TIMESTAMP_NEW, SO_TIMESTAMPNS_NEW];

pub const CASES: &[Case] = &[
    ("stamps::of_each_kind", User, each_kind),
    ("stamps::of_parts_and_peeks", User, parts),
    ("stamps::of_bytes_that_waited", User, waited),
    ("stamps::without_room", User, without_room),
    ("stamps::switched_off", User, switched_off),
    ("stamps::set_before_connect_and_listen", User, set_before),
    ("stamps::of_the_end", User, of_the_end),
    ("stamps::in_an_epoll_set", User, in_a_set),
    ("stamps::in_a_forked_child", User, in_a_child),
    ("stamps::of_packets", Mixed, of_packets),
];

/// Linux begins with its clock a while after the first socket asks for times.
fn warm(from: (&Side, i32), to: (&Side, i32)) {
    for _ in 0..300 {
        from.0.quiet(&Op::Send {
            fd: from.1,
            data: b"warm".as_slice().into(),
            by: SendBy::Send,
            flags: MSG_NOSIGNAL,
        });
        let out = to.0.quiet(&Op::RecvMessage { fd: to.1, len: 64, control_len: 256, flags: 0 });
        if !out.events.is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// A connection whose server's end tells times.
fn stamped(t: &Duo, name: i32) -> Pair {
    let p = t.pair();
    t.s.setopt(p.s, SOL_SOCKET, name, 1);
    warm((&t.c, p.c), (&t.s, p.s));
    p
}

fn receive(side: &Side, fd: i32, len: usize, control_len: usize, flags: i32) {
    side.call(Op::RecvMessage { fd, len, control_len, flags });
}

fn each_kind(t: &Duo) {
    for name in ALL {
        let p = stamped(t, name);
        for other in ALL {
            t.s.getopt(p.s, SOL_SOCKET, other);
        }
        t.c.send(p.c, b"one");
        receive(&t.s, p.s, 64, 256, 0);
        t.s.send(p.s, b"not asked for");
        receive(&t.c, p.c, 64, 256, 0);
    }
}

fn parts(t: &Duo) {
    let p = stamped(t, SO_TIMESTAMPNS);
    t.c.send(p.c, b"two parts");
    receive(&t.s, p.s, 64, 256, MSG_PEEK);
    receive(&t.s, p.s, 3, 256, 0);
    receive(&t.s, p.s, 3, 256, 0);
    t.c.send(p.c, b" and more");
    receive(&t.s, p.s, 4, 256, 0);
    t.s.recv(p.s, 64);
}

fn waited(t: &Duo) {
    let p = stamped(t, SO_TIMESTAMP);
    t.c.send(p.c, b"early");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    receive(&t.s, p.s, 2, 256, 0);
    receive(&t.s, p.s, 64, 256, 0);
    t.c.send(p.c, b"late");
    receive(&t.s, p.s, 64, 256, 0);
}

fn without_room(t: &Duo) {
    let p = stamped(t, SO_TIMESTAMP);
    for room in [0, 8, 16, 20, 31, 32, 33] {
        t.c.send(p.c, b"x");
        receive(&t.s, p.s, 64, room, 0);
    }
}

fn switched_off(t: &Duo) {
    let p = stamped(t, SO_TIMESTAMP);
    t.s.setopt(p.s, SOL_SOCKET, SO_TIMESTAMPNS, 1);
    t.c.send(p.c, b"x");
    receive(&t.s, p.s, 64, 256, 0);
    t.s.setopt(p.s, SOL_SOCKET, SO_TIMESTAMP, 0);
    t.c.send(p.c, b"x");
    receive(&t.s, p.s, 64, 256, 0);
    t.s.getopt(p.s, SOL_SOCKET, SO_TIMESTAMPNS);
}

fn set_before(t: &Duo) {
    for name in ALL {
        let (l, addr) = t.listener();
        let c = t.c.tcp();
        t.s.setopt(l, SOL_SOCKET, name, 1);
        t.c.setopt(c, SOL_SOCKET, name, 1);
        t.c.connect(c, &addr);
        let s = t.s.accept(l);
        for (from, to) in [((&t.c, c), (&t.s, s)), ((&t.s, s), (&t.c, c))] {
            warm(from, to);
            from.0.send(from.1, b"x");
            receive(to.0, to.1, 64, 256, 0);
        }
        t.s.getopt(s, SOL_SOCKET, name);
    }
}

fn of_the_end(t: &Duo) {
    let p = stamped(t, SO_TIMESTAMP);
    t.c.send(p.c, b"last");
    t.c.close(p.c);
    receive(&t.s, p.s, 64, 256, 0);
    receive(&t.s, p.s, 64, 256, 0);
}

/// Several times in one message, of the packet that came.
fn of_packets(t: &Duo) {
    const RX_SOFTWARE: i32 = 1 << 3;
    const SOFTWARE: i32 = 1 << 4;
    let p = t.pair();
    t.c.send(p.c, b"before");
    t.s.setopt(p.s, SOL_SOCKET, libc::SO_TIMESTAMPING, RX_SOFTWARE | SOFTWARE);
    t.s.recv(p.s, 64);
    warm((&t.c, p.c), (&t.s, p.s));
    t.c.send(p.c, b"one");
    receive(&t.s, p.s, 64, 256, 0);
}

fn in_a_set(t: &Duo) {
    let p = stamped(t, SO_TIMESTAMP);
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    for _ in 0..3 {
        t.c.send(p.c, b"x");
        t.s.epoll_wait(ep, 5000);
        receive(&t.s, p.s, 64, 256, 0);
    }
    t.s.setopt(p.s, SOL_SOCKET, SO_TIMESTAMP, 0);
    t.c.send(p.c, b"x");
    t.s.epoll_wait(ep, 5000);
    receive(&t.s, p.s, 64, 256, 0);
}

fn in_a_child(t: &Duo) {
    let p = stamped(t, SO_TIMESTAMP);
    let Some(child) = t.s.fork("k") else { return };
    for side in [&child, &t.s, &child] {
        t.c.send(p.c, b"x");
        receive(side, p.s, 64, 256, 0);
    }
}
