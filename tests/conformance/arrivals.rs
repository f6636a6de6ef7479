//! Signals for arriving data: `O_ASYNC`, `F_SETOWN`, `F_SETSIG`, `SIOCSPGRP`, `SIGURG`.

use harness::wire::{Op, SendBy};
use libc::{F_GETFL, F_SETFL, MSG_DONTWAIT, MSG_OOB, O_ASYNC, O_NONBLOCK, SIGIO, SIGURG, SIGUSR2};

use crate::driver::{Duo, Pair, Side};
use crate::{
    Case,
    Expect::{Any, User},
};

const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const FIOASYNC: libc::Ioctl = 0x5452;
const COUNT: i32 = 2;

pub const CASES: &[Case] = &[
    ("arrivals::data_is_a_signal", User, |t| {
        let p = t.pair();
        signal_driven(&t.s, p.s, SIGIO);
        t.c.send(p.c, b"one");
        let n = t.s.signalled(SIGIO, 0);
        t.s.recv(p.s, 64);
        t.c.send(p.c, b"two");
        let n = t.s.signalled(SIGIO, n);
        t.c.send(p.c, b"three");
        t.s.signalled(SIGIO, n);
        t.s.recv(p.s, 64);
    }),
    ("arrivals::many_without_a_read_in_between", User, |t| {
        let p = t.pair();
        signal_driven(&t.s, p.s, SIGIO);
        for _ in 0..5 {
            t.s.quiet(&Op::Signals { signal: SIGIO });
            let before = t.s.quiet(&Op::Signals { signal: SIGIO }).ret;
            t.c.send(p.c, b"x");
            t.s.signalled(SIGIO, before);
        }
        t.s.recv(p.s, 64);
    }),
    ("arrivals::the_end_is_a_signal", User, |t| {
        let p = t.pair();
        signal_driven(&t.s, p.s, SIGIO);
        t.c.shutdown(p.c, libc::SHUT_WR);
        t.s.signalled(SIGIO, 0);
        t.s.recv(p.s, 64);
    }),
    ("arrivals::close_is_a_signal", User, |t| {
        let p = t.pair();
        signal_driven(&t.s, p.s, SIGIO);
        t.c.close(p.c);
        t.s.signalled(SIGIO, 0);
        t.s.recv(p.s, 64);
    }),
    ("arrivals::death_is_a_signal", User, |t| {
        if t.only_apart() {
            return;
        }
        let p = t.pair();
        signal_driven(&t.s, p.s, SIGIO);
        t.c.kill();
        t.s.signalled(SIGIO, 0);
    }),
    ("arrivals::another_signal", User, |t| {
        let p = t.pair();
        t.s.fcntl(p.s, F_SETSIG, SIGUSR2);
        t.s.fcntl(p.s, F_GETSIG, 0);
        signal_driven(&t.s, p.s, SIGUSR2);
        t.c.send(p.c, b"one");
        t.s.signalled(SIGUSR2, 0);
        t.s.recv(p.s, 64);
        t.s.fcntl(p.s, libc::F_GETFD, 0);
    }),
    ("arrivals::switched_off", User, |t| {
        let p = t.pair();
        signal_driven(&t.s, p.s, SIGIO);
        t.c.send(p.c, b"one");
        t.s.signalled(SIGIO, 0);
        let flags = t.s.fcntl(p.s, F_GETFL, 0);
        t.s.fcntl(p.s, F_SETFL, flags & !O_ASYNC);
        t.s.fcntl(p.s, F_GETFL, 0);
        t.s.signal(SIGIO, 0, 0);
        t.c.send(p.c, b"two");
        t.pause();
        t.s.recv(p.s, 64);
    }),
    ("arrivals::by_ioctl", User, |t| {
        let p = t.pair();
        t.s.signal(SIGIO, COUNT, libc::SA_RESTART);
        t.s.owns(p.s);
        t.s.ioctl(p.s, FIOASYNC, 1);
        t.s.fcntl(p.s, F_GETFL, 0);
        t.c.send(p.c, b"one");
        t.s.signalled(SIGIO, 0);
        t.s.ioctl(p.s, FIOASYNC, 0);
        t.s.fcntl(p.s, F_GETFL, 0);
    }),
    ("arrivals::set_before_connect", User, |t| {
        let (l, addr) = t.listener();
        let c = t.c.tcp();
        t.c.signal(SIGIO, COUNT, libc::SA_RESTART);
        t.c.owns(c);
        t.c.fcntl(c, F_SETFL, O_ASYNC);
        t.c.connect(c, &addr);
        let s = t.s.accept(l);
        t.pause();
        let n = t.c.quiet(&Op::Signals { signal: SIGIO }).ret;
        t.s.send(s, b"one");
        t.c.signalled(SIGIO, n);
        t.c.recv(c, 64);
    }),
    ("arrivals::of_a_listener", Any, |t| {
        let (l, addr) = t.listener();
        signal_driven(&t.s, l, SIGIO);
        let c = t.c.tcp();
        t.c.connect(c, &addr);
        t.s.signalled(SIGIO, 0);
        let s = t.s.accept(l);
        t.c.send(c, b"x");
        t.s.recv(s, 4);
    }),
    ("arrivals::room_is_a_signal", User, |t| {
        let p = t.pair();
        signal_driven(&t.c, p.c, SIGIO);
        let fill = Op::Fill { fd: p.c, len: 65_536, flags: libc::MSG_NOSIGNAL };
        // How much fits before that is each implementation's own business.
        while t.c.quiet(&fill).ret > 0 {}
        let n = t.c.quiet(&Op::Signals { signal: SIGIO }).ret;
        t.s.nonblocking(p.s);
        let drain = || {
            t.s.quiet(&Op::Recv {
                fd: p.s,
                len: 1 << 16,
                by: harness::wire::RecvBy::Recv,
                flags: MSG_DONTWAIT,
            })
        };
        for _ in 0..200 {
            while drain().ret > 0 {}
            if t.c.quiet(&Op::Signals { signal: SIGIO }).ret > n {
                break;
            }
        }
        t.c.signalled(SIGIO, n);
    }),
    ("arrivals::urgent_data_without_async", User, |t| {
        let p = t.pair();
        t.s.signal(SIGURG, COUNT, libc::SA_RESTART);
        t.s.owns(p.s);
        t.c.send_by(p.c, b"!", SendBy::Send, MSG_OOB);
        let n = t.s.signalled(SIGURG, 0);
        t.c.send_by(p.c, b"!", SendBy::Send, MSG_OOB);
        t.s.signalled(SIGURG, n);
    }),
    ("arrivals::urgent_data_with_async", User, |t| {
        let p = t.pair();
        t.s.signal(SIGURG, COUNT, libc::SA_RESTART);
        signal_driven(&t.s, p.s, SIGIO);
        t.c.send_by(p.c, b"!", SendBy::Send, MSG_OOB);
        t.s.signalled(SIGURG, 0);
        t.s.signalled(SIGIO, 0);
        t.c.send(p.c, b"data");
        t.s.settle(p.s, libc::POLLIN);
        t.s.recv(p.s, 64);
    }),
    ("arrivals::nobody_owns_it", User, |t| {
        let p = t.pair();
        t.s.signal(SIGIO, COUNT, libc::SA_RESTART);
        t.s.fcntl(p.s, libc::F_GETOWN, 0);
        t.s.fcntl(p.s, F_SETFL, O_ASYNC);
        t.c.send(p.c, b"x");
        t.s.recv(p.s, 4);
        t.s.signals(SIGIO);
    }),
    ("arrivals::thousands", User, thousands),
];

/// `fd` becomes signal-driven and non-blocking.
fn signal_driven(side: &Side, fd: i32, signal: i32) {
    side.signal(signal, COUNT, libc::SA_RESTART);
    side.owns(fd);
    let flags = side.fcntl(fd, F_GETFL, 0);
    side.fcntl(fd, F_SETFL, flags | O_ASYNC | O_NONBLOCK);
    side.fcntl(fd, F_GETFL, 0);
}

/// More messages than anything in between has room for; the last of them is still a signal.
fn thousands(t: &Duo) {
    let p: Pair = t.pair();
    signal_driven(&t.s, p.s, SIGIO);
    for _ in 0..2000 {
        t.c.quiet(&Op::Send { fd: p.c, data: b"x".as_slice().into(), by: SendBy::Send, flags: 0 });
        t.s.quiet(&Op::Recv { fd: p.s, len: 8, by: harness::wire::RecvBy::Recv, flags: 0 });
    }
    let n = t.s.quiet(&Op::Signals { signal: SIGIO }).ret;
    t.c.send(p.c, b"last");
    t.s.signalled(SIGIO, n);
}
