//! Signals during calls: `EINTR` and `SA_RESTART`.

use harness::wire::{Op, PollBy};
use libc::{EPOLLIN, POLLIN, SA_RESTART, SIGUSR1};

use crate::driver::Duo;
use crate::{
    Case,
    Expect::{Any, User},
};

pub const CASES: &[Case] = &[
    ("signals::interrupt_recv", User, |t| interrupted(t, 0)),
    ("signals::restart_recv", User, |t| interrupted(t, SA_RESTART)),
    ("signals::interrupt_accept", Any, |t| accept(t, 0)),
    ("signals::restart_accept", User, |t| accept(t, SA_RESTART)),
    ("signals::poll_is_never_restarted", User, poll),
    ("signals::select_is_never_restarted", User, select),
    ("signals::epoll_wait_is_never_restarted", User, epoll),
    ("signals::interrupt_blocked_send", User, send),
    ("signals::receive_timeout_is_never_restarted", User, timeout),
    ("signals::ignored_signal_changes_nothing", User, ignored),
];

fn interrupted(t: &Duo, flags: i32) {
    let p = t.pair();
    t.s.signal(SIGUSR1, 2, flags);
    let waiting = t.s.start_recv(p.s, 16);
    t.pause();
    t.s.interrupt(waiting, SIGUSR1);
    t.pause();
    t.c.send(p.c, b"after");
    t.s.join(waiting);
    t.s.signals(SIGUSR1);
}

fn accept(t: &Duo, flags: i32) {
    let (l, addr) = t.listener();
    t.s.signal(SIGUSR1, 2, flags);
    let c = t.c.tcp();
    let waiting = t.s.start(Op::Accept { fd: l, flags: None });
    t.pause();
    t.s.interrupt(waiting, SIGUSR1);
    t.pause();
    if flags == SA_RESTART {
        t.c.connect(c, &addr);
    }
    t.s.join(waiting);
    t.s.signals(SIGUSR1);
}

fn wait_interrupted(t: &Duo, op: Op) {
    t.s.signal(SIGUSR1, 2, SA_RESTART);
    let waiting = t.s.start(op);
    t.pause();
    t.s.interrupt(waiting, SIGUSR1);
    t.s.join(waiting);
}

fn poll(t: &Duo) {
    let p = t.pair();
    wait_interrupted(t, Op::Poll { fds: vec![(p.s, POLLIN)], timeout_ms: 8000, by: PollBy::Poll });
    wait_interrupted(t, Op::Poll { fds: vec![(p.s, POLLIN)], timeout_ms: -1, by: PollBy::Ppoll });
}

fn select(t: &Duo) {
    let p = t.pair();
    wait_interrupted(t, Op::Poll { fds: vec![(p.s, POLLIN)], timeout_ms: 8000, by: PollBy::Select });
    wait_interrupted(t, Op::Poll { fds: vec![(p.s, POLLIN)], timeout_ms: -1, by: PollBy::Pselect });
}

fn epoll(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    wait_interrupted(t, Op::EpollWait { ep, max: 4, timeout_ms: 8000 });
    t.c.send(p.c, b"x");
    t.s.epoll_wait(ep, 5000);
}

fn send(t: &Duo) {
    let p = t.pair();
    t.c.signal(SIGUSR1, 2, 0);
    let op = Op::Fill { fd: p.c, len: 8 << 20, flags: libc::MSG_NOSIGNAL };
    let waiting = t.c.quiet(&Op::Start { op: Box::new(op) }).ret;
    t.pause();
    t.pause();
    t.c.interrupt(waiting, SIGUSR1);
    let out = t.c.quiet(&Op::Join { ticket: waiting });
    // How much went out is each implementation's own business.
    t.c.remark(&format!("part of it: {}", out.ret > 0 && out.ret < 8 << 20));
}

fn timeout(t: &Duo) {
    let p = t.pair();
    let time = crate::options::time(8000);
    t.s.setopt_bytes(p.s, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &time);
    t.s.signal(SIGUSR1, 2, SA_RESTART);
    let waiting = t.s.start_recv(p.s, 16);
    t.pause();
    t.s.interrupt(waiting, SIGUSR1);
    t.s.join(waiting);
}

fn ignored(t: &Duo) {
    let p = t.pair();
    t.s.signal(SIGUSR1, 1, 0);
    let waiting = t.s.start_recv(p.s, 16);
    t.pause();
    t.s.interrupt(waiting, SIGUSR1);
    t.pause();
    t.c.send(p.c, b"x");
    t.s.join(waiting);
}
