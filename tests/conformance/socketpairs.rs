//! Connected pairs of `AF_UNIX` sockets, in one process and its children.

use harness::wire::{Op, PollBy, RecvBy, SendBy};
use libc::{
    AF_INET, AF_UNIX, EPOLLET, EPOLLIN, EPOLLOUT, F_GETFD, F_GETFL, FIONREAD, MSG_DONTWAIT, MSG_PEEK, POLLIN,
    POLLOUT, SHUT_RD, SHUT_RDWR, SHUT_WR, SIGPIPE, SO_TYPE, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK,
    SOCK_SEQPACKET, SOCK_STREAM, SOL_SOCKET,
};

use crate::driver::Duo;
use crate::pipe_children::copier;
use crate::{
    Case,
    Expect::{Any, Mixed},
};

pub const CASES: &[Case] = &[
    ("socketpair::stream", Any, |t| pair_exchange(t, SOCK_STREAM)),
    ("socketpair::seqpacket", Any, |t| pair_exchange(t, SOCK_SEQPACKET)),
    ("socketpair::dgram", Any, |t| pair_exchange(t, SOCK_DGRAM)),
    ("socketpair::flags", Any, pair_flags),
    ("socketpair::bad", Any, pair_bad),
    ("socketpair::names_and_peercred", Any, pair_names),
    ("socketpair::half_close", Any, pair_half_close),
    ("socketpair::shut_rd_and_rdwr", Any, pair_shut),
    ("socketpair::end", Any, pair_end),
    ("socketpair::unread_at_close", Any, pair_unread),
    ("socketpair::sigpipe", Any, pair_sigpipe),
    ("socketpair::every_form", Any, pair_forms),
    ("socketpair::peek", Any, pair_peek),
    ("socketpair::fill_and_drain", Any, pair_fill),
    ("socketpair::readiness", Any, pair_ready),
    ("socketpair::rights", Any, pair_rights),
    ("socketpair::rights_of_its_own_end", Any, pair_own_end),
    ("socketpair::fork", Mixed, pair_fork),
    ("socketpair::fork_after_some_messages", Mixed, pair_fork_later),
    ("socketpair::between_two_children", Mixed, pair_children),
    ("socketpair::blocked_readers_in_two_processes", Mixed, pair_blocked_apart),
    ("socketpair::spawned_child", Any, pair_spawned),
    ("socketpair::static_child", Any, pair_static),
    ("socketpair::exec_keeps_it", Any, pair_exec),
    ("socketpair::both_directions_at_once", Any, pair_bulk),
    ("socketpair::thousands_of_messages", Any, pair_messages),
    ("socketpair::blocked_reader", Any, pair_blocked),
    ("socketpair::close_under_a_reader", Any, pair_close_reader),
    ("socketpair::dup_and_dup2", Any, pair_dup),
];

fn pair_exchange(t: &Duo, ty: i32) {
    let (a, b) = t.c.socketpair(ty);
    t.c.send(a, b"one");
    t.c.send(a, b"two");
    t.c.recv(b, 64);
    t.c.recv_by(b, 64, RecvBy::Recv, MSG_DONTWAIT);
    t.c.write(b, b"and back");
    t.c.read(a, 3);
    t.c.recv_by(a, 64, RecvBy::Recv, MSG_DONTWAIT);
    t.c.close(b);
    t.c.recv_by(a, 64, RecvBy::Recv, MSG_DONTWAIT);
    t.c.send(a, b"x");
}

fn pair_flags(t: &Duo) {
    for flags in [SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_CLOEXEC | SOCK_NONBLOCK] {
        let (a, b) = t.c.socketpair(SOCK_STREAM | flags);
        for fd in [a, b] {
            t.c.fcntl(fd, F_GETFD, 0);
            t.c.fcntl(fd, F_GETFL, 0);
        }
    }
}

fn pair_bad(t: &Duo) {
    for (domain, ty, protocol) in
        [(AF_INET, SOCK_STREAM, 0), (AF_UNIX, 77, 0), (9999, SOCK_STREAM, 0), (AF_UNIX, SOCK_STREAM, 99)]
    {
        t.c.call(Op::Socketpair { domain, ty, protocol });
    }
}

fn pair_names(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.sockname(a);
    t.c.peername(b);
    t.c.peercred(a);
    t.c.getopt(a, SOL_SOCKET, SO_TYPE);
    t.c.connect(a, &t.named("nobody"));
    t.c.call(Op::Fstat { fd: b });
}

fn pair_half_close(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.send(a, b"last");
    t.c.shutdown(a, SHUT_WR);
    t.c.recv(b, 64);
    t.c.recv(b, 64);
    t.c.poll(&[(a, POLLIN | POLLOUT), (b, POLLIN | POLLOUT | libc::POLLRDHUP)], 0);
    t.c.send(b, b"still answers");
    t.c.recv(a, 64);
    t.c.send(a, b"x");
}

fn pair_shut(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.send(b, b"unread");
    t.c.shutdown(a, SHUT_RD);
    t.c.recv(a, 64);
    t.c.recv(a, 64);
    t.c.send(b, b"x");
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.shutdown(a, SHUT_RDWR);
    t.c.recv(b, 4);
    t.c.poll(&[(a, POLLIN | POLLOUT), (b, POLLIN | POLLOUT)], 0);
}

fn pair_end(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.send(a, b"all of it");
    t.c.close(a);
    t.c.poll(&[(b, POLLIN | POLLOUT)], 0);
    t.c.recv(b, 64);
    t.c.recv(b, 64);
}

fn pair_unread(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.send(a, b"unread");
    t.c.close(b);
    t.c.recv(a, 4);
    t.c.recv(a, 4);
    t.c.send(a, b"x");
}

fn pair_sigpipe(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.signal(SIGPIPE, 2, 0);
    t.c.close(b);
    t.c.write(a, b"x");
    t.c.signals(SIGPIPE);
    t.c.send(a, b"quiet");
    t.c.signals(SIGPIPE);
}

fn pair_forms(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let senders = [SendBy::Write, SendBy::Writev(3), SendBy::Send, SendBy::Sendto, SendBy::Sendmsg(4)];
    let receivers = [RecvBy::Read, RecvBy::Readv(5), RecvBy::Recv, RecvBy::Recvfrom, RecvBy::Recvmsg(3)];
    for by in senders {
        for to in receivers {
            t.c.send_by(a, b"hello world", by, 0);
            t.c.recv_by(b, 11, to, 0);
        }
    }
}

fn pair_peek(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.send(a, b"abc");
    t.c.recv_by(b, 2, RecvBy::Recv, MSG_PEEK);
    t.c.ioctl(b, FIONREAD, 0);
    t.c.send(a, b"def");
    t.c.recv_by(b, 6, RecvBy::Recv, libc::MSG_WAITALL);
    t.c.recv_by(b, 6, RecvBy::Recv, MSG_PEEK | MSG_DONTWAIT);
}

fn pair_fill(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM | SOCK_NONBLOCK);
    t.c.recv(b, 4);
    let fill = Op::Fill { fd: a, len: 4096, flags: 0 };
    let ended = (0..100_000).any(|_| t.c.quiet(&fill).ret < 0);
    t.c.remark(&format!("full: {ended}"));
    t.c.poll(&[(a, POLLOUT)], 0);
    while t.c.quiet(&Op::Recv { fd: b, len: 65_536, by: RecvBy::Recv, flags: 0 }).ret > 0 {}
    t.c.poll(&[(a, POLLOUT)], 1000);
    t.c.send(a, b"room");
    t.c.recv(b, 64);
}

fn pair_ready(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let ep = t.c.epoll();
    t.c.epoll_add(ep, b, EPOLLIN | EPOLLOUT | EPOLLET);
    t.c.epoll_wait(ep, 0);
    t.c.send(a, b"x");
    t.c.epoll_wait(ep, 0);
    t.c.epoll_wait(ep, 0);
    t.c.poll_by(&[(b, POLLIN)], 0, PollBy::Select);
    t.c.recv(b, 4);
    t.c.close(a);
    t.c.epoll_wait(ep, 0);
}

fn pair_rights(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let (r, w) = t.c.pipe();
    t.c.send(a, b"before");
    t.c.recv(b, 64);
    t.c.send_fds(a, b"a pipe", &[r]);
    t.c.send(a, b"after");
    let got = t.c.recv_fd(b);
    t.c.recv_by(b, 64, RecvBy::Recv, MSG_DONTWAIT);
    t.c.write(w, b"through it");
    t.c.read(got, 64);
}

fn pair_own_end(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.send_fds(a, b"your own", &[b]);
    let got = t.c.recv_fd(b);
    t.c.send(a, b"to either");
    t.c.recv(got, 4);
    t.c.recv(b, 64);
    t.c.close(b);
    t.c.send(got, b"back");
    t.c.recv(a, 64);
}

fn pair_fork(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let Some(child) = t.c.fork("k") else { return };
    t.c.close(b);
    child.close(a);
    for _ in 0..50 {
        t.c.send(a, b"ping");
        child.recv(b, 64);
        child.send(b, b"pong");
        t.c.recv(a, 64);
    }
    child.exit();
    t.c.recv(a, 64);
}

/// The child has both ends for a while, and then the parent's.
fn pair_fork_later(t: &Duo) {
    for n in [0, 3, 8, 12, 30] {
        let (a, b) = t.c.socketpair(SOCK_STREAM);
        for _ in 0..n {
            t.c.send(a, b"before");
            t.c.recv(b, 64);
        }
        let Some(child) = t.c.fork("k") else { return };
        t.c.send(b, b"still ours");
        child.recv(a, 64);
        child.close(b);
        t.c.close(a);
        for _ in 0..60 {
            child.send(a, b"now apart");
            t.c.recv(b, 64);
            t.c.send(b, b"indeed");
            child.recv(a, 64);
        }
        child.send_fds(a, b"with a descriptor", &[a]);
        let other = t.c.recv_fd(b);
        child.exit();
        t.c.close(other);
        t.c.recv(b, 64);
        t.c.close(b);
    }
}

/// Who made it keeps neither end.
fn pair_children(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let Some(one) = t.c.fork("one") else { return };
    let Some(two) = t.c.fork("two") else { return };
    t.c.close(a);
    t.c.close(b);
    one.close(b);
    two.close(a);
    for _ in 0..60 {
        one.send(a, b"hello");
        two.recv(b, 64);
        two.send(b, b"hello yourself");
        one.recv(a, 64);
    }
    one.kill();
    two.recv(b, 64);
    two.exit();
}

fn pair_blocked_apart(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let Some(child) = t.c.fork("k") else { return };
    t.c.close(b);
    child.close(a);
    for _ in 0..30 {
        let waits = child.start_recv(b, 64);
        child.until_blocked();
        t.c.send(a, b"wake up");
        child.join(waits);
        let waits = t.c.start_recv(a, 64);
        t.c.until_blocked();
        child.send(b, b"you, too");
        t.c.join(waits);
    }
    child.exit();
}

fn pair_spawned(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let Some(child) = t.c.spawn("k", harness::wire::SpawnBy::Vfork, &[(b, 0), (b, 1)]) else { return };
    t.c.close(b);
    child.close(b);
    t.c.send(a, b"in");
    child.read(0, 64);
    child.write(1, b"out");
    t.c.recv(a, 64);
    t.c.peercred(a);
    child.exit();
    t.c.close(a);
}

fn pair_static(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.fcntl(a, libc::F_SETFD, libc::FD_CLOEXEC);
    t.c.call(copier(b, b));
    t.c.close(b);
    t.c.send(a, b"around");
    t.c.recv(a, 64);
    t.c.shutdown(a, SHUT_WR);
    t.c.recv(a, 64);
    t.c.call(Op::Reap);
}

fn pair_exec(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.send(a, b"before");
    t.c.exec(harness::wire::ExecBy::Execv);
    t.c.recv(b, 64);
    t.c.send(b, b"after");
    t.c.recv(a, 64);
    t.c.close(a);
    t.c.recv(b, 64);
}

fn pair_bulk(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let Some(child) = t.c.fork("k") else { return };
    let (total, chunk) = (4 << 20, 40_000);
    let up = t.c.start(Op::Pump { fd: a, total, chunk, by: SendBy::Send });
    let down = child.start(Op::Pump { fd: b, total, chunk, by: SendBy::Send });
    let there = child.start(Op::Drain { fd: b, total, chunk, by: RecvBy::Recv, flags: 0 });
    t.c.call(Op::Drain { fd: a, total, chunk, by: RecvBy::Recv, flags: 0 });
    child.join(there);
    child.join(down);
    t.c.join(up);
}

fn pair_messages(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let Some(child) = t.c.fork("k") else { return };
    let total = 64_000;
    let writing = t.c.start(Op::Pump { fd: a, total, chunk: 8, by: SendBy::Write });
    child.call(Op::Drain { fd: b, total, chunk: 8, by: RecvBy::Read, flags: 0 });
    t.c.join(writing);
}

fn pair_blocked(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let reading = t.c.start_recv(b, 64);
    t.c.until_blocked();
    t.c.send(a, b"wake");
    t.c.join(reading);
    let reading = t.c.start_recv(b, 64);
    t.c.until_blocked();
    t.c.close(a);
    t.c.join(reading);
}

fn pair_close_reader(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let reading = t.c.start_recv(b, 64);
    t.c.until_blocked();
    t.c.close(b);
    t.c.send(a, b"still arrives");
    t.c.join(reading);
    t.c.recv(a, 4);
}

fn pair_dup(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let d = t.c.dup(a);
    t.c.close(a);
    t.c.send(d, b"by the copy");
    t.c.recv(b, 64);
    t.c.call(Op::Dup2 { fd: b, to: d });
    t.c.recv(b, 4);
    t.c.send(d, b"x");
}
