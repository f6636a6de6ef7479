//! Bytes of `AF_UNIX` stream sockets: how they come, and how they end.

use harness::wire::{Op, RecvBy, SendBy};
use libc::{
    AF_UNIX, EPOLLET, EPOLLIN, EPOLLOUT, FIONREAD, MSG_DONTWAIT, MSG_OOB, MSG_PEEK, MSG_WAITALL, O_NONBLOCK,
    POLLIN, POLLOUT, SHUT_RD, SHUT_WR, SIGPIPE, SO_ACCEPTCONN, SO_DOMAIN, SO_ERROR, SO_PROTOCOL, SO_RCVTIMEO,
    SO_TYPE, SOCK_STREAM, SOL_SOCKET,
};

use crate::driver::{Duo, GROWN, Pair};
use crate::{Case, Expect::Mixed};

pub const CASES: &[Case] = &[
    ("unix_stream::half_close", Mixed, half_close),
    ("unix_stream::shut_rd", Mixed, shut_rd),
    ("unix_stream::close_is_eof_after_the_data", Mixed, eof),
    ("unix_stream::close_with_unread_data", Mixed, reset),
    ("unix_stream::sigpipe", Mixed, sigpipe),
    ("unix_stream::peer_is_killed", Mixed, killed),
    ("unix_stream::poll_events", Mixed, poll),
    ("unix_stream::epoll_edge", Mixed, edge),
    ("unix_stream::every_form", Mixed, forms),
    ("unix_stream::peek_and_waitall", Mixed, peek),
    ("unix_stream::fionread", Mixed, fionread),
    ("unix_stream::nonblocking_empty_and_full", Mixed, full),
    ("unix_stream::receive_timeout", Mixed, timeout),
    ("unix_stream::address_in_sendto", Mixed, sendto),
    ("unix_stream::urgent_data", Mixed, urgent),
    ("unix_stream::options", Mixed, options),
    ("unix_stream::megabytes", Mixed, megabytes),
    ("unix_stream::sendfile", Mixed, sendfile),
    ("unix_stream::blocked_reader_is_woken", Mixed, woken),
    ("unix_stream::forked_server", Mixed, forked),
    ("unix_stream::dup_keeps_the_connection", Mixed, dup),
];

/// A question and its answer, of a connection that has carried some.
pub fn exchange(t: &Duo, p: Pair) {
    t.grow(p);
    t.c.send(p.c, b"question");
    t.s.recv(p.s, 64);
    t.s.send(p.s, b"answer");
    t.c.recv(p.c, 64);
}

fn half_close(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.c.send(p.c, b"last words");
    t.c.shutdown(p.c, SHUT_WR);
    t.s.recv(p.s, 64);
    t.s.recv(p.s, 64);
    t.s.poll(&[(p.s, POLLIN | POLLOUT | libc::POLLRDHUP)], 0);
    t.s.send(p.s, b"still answers");
    t.c.recv(p.c, 64);
    t.c.send(p.c, b"x");
}

fn shut_rd(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.s.send(p.s, b"in flight");
    t.c.shutdown(p.c, SHUT_RD);
    t.c.recv(p.c, 64);
    t.c.recv(p.c, 64);
    t.s.send(p.s, b"x");
}

fn eof(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.c.send(p.c, b"all of it");
    t.c.close(p.c);
    t.s.poll(&[(p.s, POLLIN | POLLOUT)], 0);
    t.s.recv(p.s, 4);
    t.s.recv(p.s, 64);
    t.s.recv(p.s, 64);
    t.s.send(p.s, b"x");
}

fn reset(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.c.send(p.c, b"unread");
    t.s.close(p.s);
    t.c.poll(&[(p.c, POLLIN | POLLOUT)], 0);
    t.c.recv(p.c, 4);
    t.c.recv(p.c, 4);
    t.c.getopt(p.c, SOL_SOCKET, SO_ERROR);
}

fn sigpipe(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.c.signal(SIGPIPE, 2, 0);
    t.s.close(p.s);
    t.c.write(p.c, b"x");
    t.c.signals(SIGPIPE);
    t.c.send(p.c, b"quiet");
    t.c.signals(SIGPIPE);
}

fn killed(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let p = t.unix_pair(SOCK_STREAM);
    t.s.send(p.s, b"before the end");
    t.s.kill();
    t.c.recv(p.c, 64);
    t.c.recv(p.c, 64);
    t.c.send(p.c, b"x");
}

fn poll(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let all = POLLIN | POLLOUT | libc::POLLRDHUP | libc::POLLPRI;
    t.c.poll(&[(p.c, all)], 0);
    t.s.send(p.s, b"x");
    t.c.poll(&[(p.c, all)], 0);
    t.s.shutdown(p.s, SHUT_WR);
    t.c.poll(&[(p.c, all)], 0);
    t.s.close(p.s);
    t.c.poll(&[(p.c, all)], 0);
    t.s.poll(&[(p.l, all)], 0);
}

fn edge(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let ep = t.c.epoll();
    t.c.epoll_add(ep, p.c, EPOLLIN | EPOLLOUT | EPOLLET);
    t.c.epoll_wait(ep, 0);
    t.c.epoll_wait(ep, 0);
    t.s.send(p.s, b"one");
    t.c.epoll_wait(ep, 0);
    t.c.epoll_wait(ep, 0);
    t.s.send(p.s, b"two");
    t.c.epoll_wait(ep, 0);
    t.c.recv(p.c, 64);
    t.s.close(p.s);
    t.c.epoll_wait(ep, 0);
}

fn forms(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let senders = [SendBy::Write, SendBy::Writev(3), SendBy::Send, SendBy::Sendto, SendBy::Sendmsg(4)];
    let receivers = [
        RecvBy::Read,
        RecvBy::Readv(5),
        RecvBy::Recv,
        RecvBy::Recvfrom,
        RecvBy::Recvmsg(3),
        RecvBy::Recvmmsg(4),
    ];
    for by in senders {
        for to in receivers {
            t.c.send_by(p.c, b"hello world", by, 0);
            t.s.recv_by(p.s, 11, to, 0);
        }
    }
}

fn peek(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.c.send(p.c, b"abc");
    t.s.recv_by(p.s, 2, RecvBy::Recv, MSG_PEEK);
    t.s.recv_by(p.s, 64, RecvBy::Recv, MSG_PEEK);
    t.c.send(p.c, b"def");
    t.s.recv_by(p.s, 6, RecvBy::Recv, MSG_WAITALL);
    t.c.send(p.c, b"gh");
    t.c.close(p.c);
    t.s.recv_by(p.s, 6, RecvBy::Recv, MSG_WAITALL);
}

fn fionread(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.s.ioctl(p.s, FIONREAD, 0);
    t.c.send(p.c, b"seven b");
    t.c.send(p.c, b"and more");
    t.s.ioctl(p.s, FIONREAD, 0);
    t.s.recv(p.s, 3);
    t.s.ioctl(p.s, FIONREAD, 0);
    t.c.call(Op::Lseek { fd: p.c, offset: 0, whence: libc::SEEK_CUR });
    t.c.call(Op::Fstat { fd: p.c });
}

fn full(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.s.recv_by(p.s, 4, RecvBy::Recv, MSG_DONTWAIT);
    t.c.nonblocking(p.c);
    // How much fits is not promised; that it ends is.
    let fill = Op::Fill { fd: p.c, len: 65536, flags: 0 };
    let rounds = (0..1000).position(|_| t.c.quiet(&fill).ret < 65536);
    t.c.remark(&format!("full: {}", rounds.is_some()));
    while t.c.quiet(&fill).ret > 0 {}
    t.c.send(p.c, b"no room");
    t.c.poll(&[(p.c, POLLOUT)], 0);
    t.s.nonblocking(p.s);
    while t.s.quiet(&Op::Recv { fd: p.s, len: 65536, by: RecvBy::Recv, flags: 0 }).ret > 0 {}
    t.c.poll(&[(p.c, POLLOUT)], 1000);
    t.c.send(p.c, b"room");
    t.s.recv(p.s, 64);
}

fn timeout(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let time = libc::timeval { tv_sec: 0, tv_usec: 30_000 };
    let bytes = [time.tv_sec.to_ne_bytes(), time.tv_usec.to_ne_bytes()].concat();
    t.s.setopt_bytes(p.s, SOL_SOCKET, SO_RCVTIMEO, &bytes);
    t.s.recv(p.s, 4);
    t.c.send(p.c, b"x");
    t.s.recv(p.s, 4);
}

fn sendto(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let to = t.named("socket");
    t.c.call(Op::SendTo { fd: p.c, data: (&b"x"[..]).into(), to: to.clone(), flags: 0 });
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.call(Op::SendTo { fd: c, data: (&b"x"[..]).into(), to, flags: libc::MSG_NOSIGNAL });
}

fn urgent(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.c.send_by(p.c, b"u", SendBy::Send, MSG_OOB);
    t.s.poll(&[(p.s, POLLIN | libc::POLLPRI)], 0);
    t.s.recv_by(p.s, 4, RecvBy::Recv, MSG_OOB | MSG_DONTWAIT);
    t.c.send(p.c, b"plain");
    t.s.recv_by(p.s, 64, RecvBy::Recv, MSG_DONTWAIT);
}

fn options(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    for name in [SO_TYPE, SO_DOMAIN, SO_PROTOCOL, SO_ACCEPTCONN, SO_ERROR, libc::SO_SNDBUF, libc::SO_RCVBUF] {
        t.c.getopt(p.c, SOL_SOCKET, name);
        t.s.getopt(p.l, SOL_SOCKET, name);
    }
    t.c.getopt(p.c, libc::IPPROTO_TCP, libc::TCP_NODELAY);
    t.c.setopt(p.c, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    t.c.setopt(p.c, SOL_SOCKET, libc::SO_SNDBUF, 20_000);
    t.c.getopt(p.c, SOL_SOCKET, libc::SO_SNDBUF);
    t.c.fcntl(p.c, libc::F_SETFL, O_NONBLOCK);
    t.c.fcntl(p.c, libc::F_GETFL, 0);
}

fn megabytes(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let total = 8 << 20;
    let sending = t.c.start(Op::Pump { fd: p.c, total, chunk: 60_000, by: SendBy::Write });
    t.s.call(Op::Drain { fd: p.s, total, chunk: 50_000, by: RecvBy::Read, flags: 0 });
    t.c.join(sending);
}

fn sendfile(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.c.call(Op::Sendfile { fd: p.c, size: 10_000, offset: Some(1_000), count: 8_000 });
    t.s.recv_by(p.s, 8_000, RecvBy::Recv, MSG_WAITALL);
    t.c.call(Op::Sendfile { fd: p.c, size: 100, offset: None, count: 1_000 });
    t.s.call(Op::Drain { fd: p.s, total: 100, chunk: 100, by: RecvBy::Recv, flags: 0 });
}

fn woken(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let waiting = t.s.start_recv(p.s, 64);
    t.pause();
    t.c.send(p.c, b"wake up");
    t.s.join(waiting);
    let waiting = t.s.start_recv(p.s, 64);
    t.pause();
    t.c.close(p.c);
    t.s.join(waiting);
}

fn forked(t: &Duo) {
    let name = t.named("pre-fork");
    let l = t.unix_listener(SOCK_STREAM, &name, 4);
    let Some(child) = t.s.fork("k") else { return };
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.connect(c, &name);
    let s = child.accept(l);
    for _ in 0..GROWN {
        t.c.send(c, b"to the child");
        child.recv(s, 64);
        child.send(s, b"from the child");
        t.c.recv(c, 64);
    }
    child.exit();
    t.c.recv(c, 64);
}

fn dup(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let d = t.c.dup(p.c);
    t.c.close(p.c);
    exchange(t, Pair { c: d, ..p });
    t.c.call(Op::Dup2 { fd: d, to: 90 });
    t.c.close(d);
    exchange(t, Pair { c: 90, ..p });
    t.c.close(90);
    t.s.recv(p.s, 4);
}
