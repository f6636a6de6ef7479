//! Calls that are alike on every kind of object: waiting in all forms, and what works on any descriptor.

use harness::wire::{Op, PollBy, RecvBy, SendBy};
use libc::{
    AF_INET, AF_UNIX, EPOLLIN, F_DUPFD, F_GETFD, F_GETFL, FIONBIO, FIONREAD, O_CLOEXEC, O_NONBLOCK, O_RDONLY,
    O_WRONLY, POLLIN, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM,
};

use crate::driver::{Duo, v4};
use crate::{
    Case,
    Expect::{Any, Mixed, User},
};

/// A reading and a writing end; the client has both.
type Ends = fn(&Duo) -> (i32, i32);

pub const TCP: &[Case] = &[
    ("alike::waits_on_tcp", User, |t| waits(t, tcp)),
    ("alike::descriptor_calls_on_tcp", User, |t| descriptor_calls(t, tcp)),
];
pub const UNIX_STREAM: &[Case] = &[
    ("alike::waits_on_unix_stream", Mixed, |t| waits(t, unix_stream)),
    ("alike::descriptor_calls_on_unix_stream", Mixed, |t| descriptor_calls(t, unix_stream)),
];
pub const UNIX_SEQPACKET: &[Case] = &[
    ("alike::waits_on_unix_seqpacket", Any, |t| waits(t, unix_seqpacket)),
    ("alike::descriptor_calls_on_unix_seqpacket", Any, |t| descriptor_calls(t, unix_seqpacket)),
];
pub const UNIX_DGRAM: &[Case] = &[
    ("alike::waits_on_unix_dgram", Any, |t| waits(t, unix_dgram)),
    ("alike::descriptor_calls_on_unix_dgram", Any, |t| descriptor_calls(t, unix_dgram)),
];
pub const SOCKETPAIR: &[Case] = &[
    ("alike::waits_on_socketpair", Any, |t| waits(t, socketpair)),
    ("alike::descriptor_calls_on_socketpair", Any, |t| descriptor_calls(t, socketpair)),
];
pub const PIPE: &[Case] = &[
    ("alike::waits_on_pipe", Any, |t| waits(t, |t| t.c.pipe())),
    ("alike::descriptor_calls_on_pipe", Any, |t| descriptor_calls(t, |t| t.c.pipe())),
];
pub const FIFO: &[Case] = &[
    ("alike::waits_on_fifo", Any, |t| waits(t, fifo)),
    ("alike::descriptor_calls_on_fifo", Any, |t| descriptor_calls(t, fifo)),
];
pub const UDP: &[Case] = &[
    ("alike::waits_on_udp", Any, |t| waits(t, udp)),
    ("alike::descriptor_calls_on_udp", Any, |t| descriptor_calls(t, udp)),
];

fn tcp(t: &Duo) -> (i32, i32) {
    let p = t.pair();
    (p.s, p.c)
}

fn unix_stream(t: &Duo) -> (i32, i32) {
    let p = t.unix_pair(SOCK_STREAM);
    (p.s, p.c)
}

fn unix_seqpacket(t: &Duo) -> (i32, i32) {
    let p = t.unix_pair(SOCK_SEQPACKET);
    (p.s, p.c)
}

fn datagrams(t: &Duo, domain: i32, name: &harness::wire::Addr) -> (i32, i32) {
    let (r, w) = (t.c.socket(domain, SOCK_DGRAM), t.c.socket(domain, SOCK_DGRAM));
    t.c.bind(r, name);
    let name = t.c.sockname(r);
    t.c.connect(w, &name);
    (r, w)
}

fn unix_dgram(t: &Duo) -> (i32, i32) {
    datagrams(t, AF_UNIX, &t.named("mail"))
}

fn udp(t: &Duo) -> (i32, i32) {
    datagrams(t, AF_INET, &v4())
}

fn socketpair(t: &Duo) -> (i32, i32) {
    t.c.socketpair(SOCK_STREAM)
}

fn fifo(t: &Duo) -> (i32, i32) {
    let path = t.path("fifo");
    t.c.call(Op::Mkfifo { path: path.clone(), mode: 0o600 });
    let r = t.c.open(&path, O_RDONLY | O_NONBLOCK);
    (r, t.c.open(&path, O_WRONLY))
}

/// Every call that waits, before there is data, when there is, and in a thread that it wakes.
fn waits(t: &Duo, ends: Ends) {
    let (r, w) = ends(t);
    let forms = [
        PollBy::Poll,
        PollBy::Ppoll,
        PollBy::Select,
        PollBy::Pselect,
        PollBy::PollChk,
        PollBy::PpollChk,
        PollBy::SelectChk,
    ];
    let ep = t.c.epoll();
    t.c.epoll_add(ep, r, EPOLLIN);
    let all = |timeout_ms| {
        for by in forms {
            t.c.poll_by(&[(r, POLLIN)], timeout_ms, by);
        }
        t.c.epoll_wait(ep, timeout_ms);
        for ns in [false, true] {
            t.c.call(Op::EpollPwait { ep, max: 4, timeout_ms, mask: None, ns });
        }
    };
    all(0);
    t.c.write(w, b"x");
    all(1000);
    t.c.read(r, 4);
    all(0);
    for by in forms {
        let waiting = t.c.start(Op::Poll { fds: vec![(r, POLLIN)], timeout_ms: 5000, by });
        t.c.until_blocked();
        t.c.write(w, b"y");
        t.c.join(waiting);
        t.c.read(r, 4);
    }
    let waiting = t.c.start(Op::EpollWait { ep, max: 4, timeout_ms: 5000 });
    t.c.until_blocked();
    t.c.write(w, b"z");
    t.c.join(waiting);
}

/// What works on any descriptor, and data by what works on any.
fn descriptor_calls(t: &Duo, ends: Ends) {
    let (r, w) = ends(t);
    for fd in [r, w] {
        t.c.fcntl(fd, F_GETFD, 0);
        t.c.fcntl(fd, F_GETFL, 0);
        t.c.call(Op::Fstat { fd });
    }
    let d = t.c.dup(w);
    t.c.call(Op::Dup2 { fd: w, to: 40 });
    t.c.call(Op::Dup3 { fd: w, to: 41, flags: O_CLOEXEC });
    t.c.fcntl(w, F_DUPFD, 42);
    for fd in [d, 40, 41, 42] {
        t.c.send_by(fd, b"by a copy", SendBy::Writev(4), 0);
        t.c.ioctl(r, FIONREAD, 0);
        t.c.recv_by(r, 64, RecvBy::Readv(5), 0);
    }
    t.c.call(Op::CloseRange { first: 40, last: 41, flags: 0 });
    t.c.write(40, b"closed");
    t.c.write(42, b"checked");
    t.c.recv_by(r, 64, RecvBy::ReadChk, 0);
    t.c.ioctl(r, FIONBIO, 1);
    t.c.read(r, 4);
    t.c.closefrom(w.min(r));
    t.c.write(42, b"closed");
    t.c.read(r, 4);
}
