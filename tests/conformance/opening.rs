//! Less usual ways of connecting and listening: `AF_UNSPEC`, `MSG_FASTOPEN`, `SO_REUSEPORT`, everything twice.

use harness::wire::{Addr, Op, SendBy};
use libc::{EPOLLIN, EPOLLOUT, MSG_FASTOPEN, MSG_NOSIGNAL, POLLIN, SO_REUSEPORT, SOL_SOCKET};

use crate::driver::{Duo, Pair, at, v4};
use crate::{
    Case,
    Expect::{Any, User},
};

pub const CASES: &[Case] = &[
    ("opening::disconnected_and_connected_again", User, |t| {
        let p = t.pair();
        t.c.send(p.c, b"once");
        t.s.recv(p.s, 64);
        disconnect(t, p.c);
        t.s.recv(p.s, 64);
        t.s.recv(p.s, 64);
        t.c.send(p.c, b"to nobody");
        t.c.peername(p.c);
        let addr = t.s.sockname(p.l);
        t.c.connect(p.c, &addr);
        let s = t.s.accept(p.l);
        t.c.send(p.c, b"twice");
        t.s.recv(s, 64);
    }),
    ("opening::disconnected_with_unread_data", User, |t| {
        let p = t.pair();
        t.s.send(p.s, b"never read");
        t.c.settle(p.c, POLLIN);
        disconnect(t, p.c);
        t.s.settle(p.s, libc::POLLHUP);
        t.s.send(p.s, b"x");
        t.c.recv(p.c, 4);
    }),
    ("opening::disconnected_in_an_epoll_set", User, |t| {
        let p = t.pair();
        let ep = t.c.epoll();
        t.c.epoll_add(ep, p.c, EPOLLIN | EPOLLOUT);
        t.c.epoll_wait(ep, 1000);
        disconnect(t, p.c);
        t.c.epoll_wait(ep, 1000);
        let addr = t.s.sockname(p.l);
        t.c.connect(p.c, &addr);
        let s = t.s.accept(p.l);
        t.s.send(s, b"again");
        t.c.settle(p.c, POLLIN);
        t.c.epoll_wait(ep, 1000);
    }),
    ("opening::error_of_a_disconnected_socket", User, |t| tells_error(t, open, error_by_option)),
    ("opening::error_of_a_disconnected_socket_by_recv", User, |t| {
        tells_error(t, open, |t, fd| {
            t.c.recv(fd, 4);
        });
    }),
    ("opening::error_of_a_disconnected_socket_by_send", User, |t| {
        tells_error(t, open, |t, fd| {
            t.c.send(fd, b"x");
        });
    }),
    ("opening::error_of_a_disconnected_socket_by_poll", User, |t| {
        tells_error(t, open, |t, fd| {
            t.c.poll(&[(fd, POLLIN | libc::POLLOUT)], 0);
        });
    }),
    ("opening::error_of_a_disconnected_socket_by_epoll", User, |t| {
        tells_error(t, open, |t, fd| {
            let ep = t.c.epoll();
            t.c.epoll_add(ep, fd, EPOLLIN | EPOLLOUT);
            t.c.epoll_wait(ep, 0);
            t.c.close(ep);
        });
    }),
    ("opening::error_that_nobody_asked_for", User, |t| tells_error(t, open, |_, _| {})),
    ("opening::disconnected_after_the_peers_end", User, |t| {
        tells_error(t, |t, p| drop(t.s.close(p.s)), error_by_option);
    }),
    ("opening::disconnected_after_both_ends", User, |t| {
        let both = |t: &Duo, p: Pair| {
            t.s.shutdown(p.s, libc::SHUT_WR);
            t.c.recv(p.c, 4);
            t.c.shutdown(p.c, libc::SHUT_WR);
            t.s.recv(p.s, 4);
        };
        tells_error(t, both, error_by_option);
    }),
    ("opening::disconnected_after_half_an_end", User, |t| {
        let half = |t: &Duo, p: Pair| {
            t.c.shutdown(p.c, libc::SHUT_WR);
            t.s.recv(p.s, 4);
        };
        tells_error(t, half, error_by_option);
    }),
    ("opening::disconnected_after_a_reset", User, |t| {
        let reset = |t: &Duo, p: Pair| {
            t.c.send(p.c, b"never read");
            t.s.settle(p.s, POLLIN);
            t.s.close(p.s);
            t.c.settle(p.c, libc::POLLHUP);
        };
        tells_error(t, reset, error_by_option);
    }),
    ("opening::disconnected_while_non_blocking", User, |t| {
        let p = t.pair();
        t.c.nonblocking(p.c);
        unspecified(t, p.c);
        t.c.fcntl(p.c, libc::F_GETFL, 0);
        error_by_option(t, p.c);
        t.s.recv(p.s, 4);
    }),
    ("opening::a_disconnected_listener_listens_no_more", Any, |t| {
        let (l, addr) = t.listener();
        t.s.call(Op::Connect { fd: l, addr: at("unspecified", 0) });
        let c = t.c.tcp();
        t.c.connect(c, &addr);
        t.s.accept(l);
    }),
    ("opening::a_fresh_socket_disconnected_first", User, |t| {
        let (l, addr) = t.listener();
        let c = t.c.tcp();
        disconnect(t, c);
        t.c.connect(c, &addr);
        let s = t.s.accept(l);
        t.c.send(c, b"x");
        t.s.recv(s, 4);
    }),
    ("opening::with_data", User, |t| {
        let (l, addr) = t.listener();
        let c = t.c.tcp();
        t.c.call(Op::SendTo { fd: c, data: b"first words".as_slice().into(), to: addr, flags: MSG_FASTOPEN });
        let s = t.s.accept(l);
        t.s.recv(s, 64);
        t.s.send(s, b"answer");
        t.c.recv(c, 64);
    }),
    ("opening::with_data_when_connected", User, |t| {
        let p = t.pair();
        let addr = t.s.sockname(p.l);
        t.c.call(Op::SendTo {
            fd: p.c,
            data: b"x".as_slice().into(),
            to: addr,
            flags: MSG_FASTOPEN | MSG_NOSIGNAL,
        });
        t.c.send(p.c, b"y");
        t.s.recv(p.s, 4);
    }),
    ("opening::with_data_to_nobody", Any, |t| {
        let l = t.s.tcp();
        t.s.bind(l, &v4());
        let addr = t.s.sockname(l);
        t.s.close(l);
        let c = t.c.tcp();
        t.c.call(Op::SendTo {
            fd: c,
            data: b"x".as_slice().into(),
            to: addr,
            flags: MSG_FASTOPEN | MSG_NOSIGNAL,
        });
    }),
    ("opening::connected_twice", User, |t| {
        let p = t.pair();
        let addr = t.s.sockname(p.l);
        t.c.connect(p.c, &addr);
        t.s.connect(p.s, &addr);
        t.s.connect(p.l, &addr);
        t.c.listen(p.c, 4);
        t.c.bind(p.c, &v4());
        t.c.call(Op::Accept { fd: p.c, flags: None });
        t.c.send(p.c, b"still");
        t.s.recv(p.s, 64);
    }),
    ("opening::listens_twice", User, |t| {
        let (l, addr) = t.listener();
        t.s.listen(l, 2);
        t.s.bind(l, &v4());
        let c = t.c.tcp();
        t.c.connect(c, &addr);
        let s = t.s.accept(l);
        t.s.listen(l, 64);
        t.c.send(c, b"x");
        t.s.recv(s, 4);
        t.s.shutdown(l, libc::SHUT_WR);
        t.s.shutdown(s, 7);
    }),
    ("opening::two_listeners_of_one_port", User, |t| {
        let (one, two, addr) = two_listeners(t);
        let mut clients = Vec::new();
        for _ in 0..12 {
            let c = t.c.tcp();
            t.c.connect(c, &addr);
            clients.push(c);
        }
        // Who gets which is the kernel's secret; everybody is got by one.
        let mut got = 0;
        for l in [one, two] {
            t.s.quiet(&Op::Fcntl { fd: l, cmd: libc::F_SETFL, arg: libc::O_NONBLOCK });
        }
        for _ in 0..50 {
            t.s.quiet(&Op::Poll {
                fds: vec![(one, POLLIN), (two, POLLIN)],
                timeout_ms: 20,
                by: harness::wire::PollBy::Poll,
            });
            for l in [one, two] {
                got += i32::from(t.s.quiet(&Op::Accept { fd: l, flags: None }).ret >= 0);
            }
        }
        t.s.remark(&format!("{got} of {} accepted", clients.len()));
    }),
    ("opening::one_of_two_listeners_closes", User, |t| {
        let (one, two, addr) = two_listeners(t);
        t.s.close(one);
        for words in [b"first", b"again"] {
            let c = t.c.tcp();
            t.c.connect(c, &addr);
            let s = t.s.accept(two);
            t.c.send(c, words);
            t.s.recv(s, 64);
        }
    }),
    ("opening::a_second_listener_without_reuseport", Any, |t| {
        let (_l, addr) = t.listener();
        let second = t.s.tcp();
        t.s.bind(second, &addr);
        t.s.setopt(second, SOL_SOCKET, SO_REUSEPORT, 1);
        t.s.bind(second, &addr);
    }),
];

fn disconnect(t: &Duo, fd: i32) {
    unspecified(t, fd);
    t.c.getopt(fd, SOL_SOCKET, libc::SO_ERROR);
    t.c.send_by(fd, b"x", SendBy::Send, MSG_NOSIGNAL);
}

fn unspecified(t: &Duo, fd: i32) {
    t.c.call(Op::Connect { fd, addr: at("unspecified", 0) });
}

/// What a disconnected socket says of itself, call by call; then it connects anew.
fn tells_error(t: &Duo, before: fn(&Duo, Pair), ask: fn(&Duo, i32)) {
    let p = t.pair();
    before(t, p);
    unspecified(t, p.c);
    ask(t, p.c);
    ask(t, p.c);
    let addr = t.s.sockname(p.l);
    t.c.connect(p.c, &addr);
    t.c.getopt(p.c, SOL_SOCKET, libc::SO_ERROR);
    let s = t.s.accept(p.l);
    t.c.send(p.c, b"anew");
    t.s.recv(s, 64);
    t.s.close(s);
    t.c.recv(p.c, 64);
}

fn open(_: &Duo, _: Pair) {}

fn error_by_option(t: &Duo, fd: i32) {
    t.c.getopt(fd, SOL_SOCKET, libc::SO_ERROR);
}

/// Two listeners of the same port, and where they are.
fn two_listeners(t: &Duo) -> (i32, i32, Addr) {
    let one = t.s.tcp();
    t.s.setopt(one, SOL_SOCKET, SO_REUSEPORT, 1);
    t.s.bind(one, &v4());
    let addr = t.s.sockname(one);
    t.s.listen(one, 16);
    let two = t.s.tcp();
    t.s.setopt(two, SOL_SOCKET, SO_REUSEPORT, 1);
    t.s.bind(two, &addr);
    t.s.listen(two, 16);
    (one, two, addr)
}
