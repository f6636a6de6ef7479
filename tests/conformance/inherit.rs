//! What a connection has from the socket it was made of: options set before `connect`, and on the listener before `accept`.

use harness::wire::Op;
use libc::{IPPROTO_IP, IPPROTO_TCP, SOL_SOCKET};

use crate::driver::Duo;
use crate::{
    Case,
    Expect::{Any, User},
};

pub const CASES: &[Case] = &[
    ("inherit::booleans", User, |t| {
        both(t, &BOOLEANS.map(|(level, name)| (level, name, 1_i32.to_ne_bytes().to_vec())));
    }),
    ("inherit::numbers", User, |t| {
        both(t, &NUMBERS.map(|(level, name, value)| (level, name, value.to_ne_bytes().to_vec())));
    }),
    ("inherit::structures", User, |t| {
        let time = [3_i64.to_ne_bytes(), 250_000_i64.to_ne_bytes()].concat();
        let linger = [1_i32.to_ne_bytes(), 7_i32.to_ne_bytes()].concat();
        both(
            t,
            &[
                (SOL_SOCKET, libc::SO_RCVTIMEO, time.clone()),
                (SOL_SOCKET, libc::SO_SNDTIMEO, time),
                (SOL_SOCKET, libc::SO_LINGER, linger),
                (IPPROTO_TCP, libc::TCP_CONGESTION, b"reno".to_vec()),
            ],
        );
    }),
    ("inherit::buffers", User, |t| {
        // What an established connection says of buffers that nobody set is the kernel's own tuning; set ones stay.
        let value = 50_000_i32.to_ne_bytes().to_vec();
        both(t, &[(SOL_SOCKET, libc::SO_RCVBUF, value.clone()), (SOL_SOCKET, libc::SO_SNDBUF, value)]);
    }),
    ("inherit::nothing_from_earlier_connections", User, |t| {
        let (l, addr) = t.listener();
        let one = t.c.tcp();
        t.c.connect(one, &addr);
        let s = t.s.accept(l);
        t.s.setopt(s, IPPROTO_TCP, libc::TCP_NODELAY, 1);
        let two = t.c.tcp();
        t.c.connect(two, &addr);
        let s = t.s.accept(l);
        t.s.getopt(s, IPPROTO_TCP, libc::TCP_NODELAY);
    }),
    ("inherit::of_a_forked_listener", Any, |t| {
        let (l, addr) = t.listener();
        let Some(child) = t.s.fork("child") else { return };
        child.setopt(l, IPPROTO_TCP, libc::TCP_KEEPCNT, 5);
        let c = t.c.tcp();
        t.c.connect(c, &addr);
        let s = t.s.accept(l);
        t.s.getopt(s, IPPROTO_TCP, libc::TCP_KEEPCNT);
        child.exit();
    }),
];

const BOOLEANS: [(i32, i32); 7] = [
    (SOL_SOCKET, libc::SO_KEEPALIVE),
    (SOL_SOCKET, libc::SO_OOBINLINE),
    (SOL_SOCKET, libc::SO_DONTROUTE),
    (SOL_SOCKET, libc::SO_TIMESTAMP),
    (IPPROTO_TCP, libc::TCP_NODELAY),
    (IPPROTO_IP, libc::IP_RECVERR),
    (IPPROTO_IP, libc::IP_RECVTTL),
];

const NUMBERS: [(i32, i32, i32); 9] = [
    (SOL_SOCKET, libc::SO_RCVLOWAT, 9),
    (IPPROTO_TCP, libc::TCP_KEEPIDLE, 71),
    (IPPROTO_TCP, libc::TCP_KEEPINTVL, 13),
    (IPPROTO_TCP, libc::TCP_KEEPCNT, 4),
    (IPPROTO_TCP, libc::TCP_SYNCNT, 3),
    (IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 12_345),
    (IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 20_000),
    (IPPROTO_IP, libc::IP_TOS, 0x10),
    (IPPROTO_IP, libc::IP_TTL, 33),
];

/// The options set on the listener and on the client before they meet, and read from both ends.
fn both(t: &Duo, options: &[(i32, i32, Vec<u8>)]) {
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    for (level, name, value) in options {
        t.s.setopt_bytes(l, *level, *name, value);
        t.c.setopt_bytes(c, *level, *name, value);
    }
    t.c.connect(c, &addr);
    let s = t.s.accept(l);
    for (level, name, _) in options {
        t.s.call(Op::Getsockopt { fd: s, level: *level, name: *name, len: 16 });
        t.c.call(Op::Getsockopt { fd: c, level: *level, name: *name, len: 16 });
    }
    t.c.send(c, b"ten bytes!");
    t.s.recv(s, 64);
}
