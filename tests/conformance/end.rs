//! How connections end: EOF, half-close, reset, `EPIPE` and `SIGPIPE`, death.

use harness::wire::{RecvBy, SendBy};
use libc::{
    EPIPE, MSG_NOSIGNAL, POLLHUP, POLLIN, POLLRDHUP, SHUT_RD, SHUT_RDWR, SHUT_WR, SIGPIPE, SO_ERROR,
    SOL_SOCKET,
};

use crate::driver::{Duo, Pair};
use crate::{
    Case,
    Expect::{Any, User},
};

pub const CASES: &[Case] = &[
    ("end::close_is_eof_after_the_data", User, eof),
    ("end::eof_stays", User, eof_stays),
    ("end::server_closes", User, server_closes),
    ("end::client_half_close", User, half_close),
    ("end::server_half_close", User, server_half_close),
    ("end::both_half_close", User, both_half_close),
    ("end::shut_rd", User, shut_rd),
    ("end::shut_rd_then_data_arrives", User, shut_rd_data),
    ("end::shut_rdwr", User, shut_rdwr),
    ("end::shutdown_twice", User, shutdown_twice),
    ("end::shutdown_bad_how", User, shutdown_bad),
    ("end::shutdown_unconnected", Any, shutdown_unconnected),
    ("end::shutdown_wakes_own_reader", User, shutdown_wakes_reader),
    ("end::shutdown_wakes_peers_reader", User, shutdown_wakes_peer),
    ("end::close_with_unread_data_is_reset", User, reset),
    ("end::reset_reaches_a_blocked_reader", User, reset_blocked),
    ("end::reset_is_reported_once", User, reset_once),
    ("end::write_after_own_shutdown_is_epipe", User, epipe_own),
    ("end::write_after_peer_closed", User, epipe_peer),
    ("end::sigpipe_is_sent", User, sigpipe),
    ("end::sigpipe_not_with_nosignal", User, nosignal),
    ("end::sigpipe_by_write", User, sigpipe_write),
    ("end::client_process_exits", User, client_exits),
    ("end::server_process_exits", User, server_exits),
    ("end::exit_with_unread_data", User, exit_unread),
    ("end::exit_with_unread_data_after_shutdown", User, exit_unread_shut),
    ("end::blocked_sender_sees_the_peer_go", User, blocked_sender),
    ("end::data_before_half_close_is_complete", User, data_before_fin),
    ("end::close_twice", User, close_twice),
];

fn eof(t: &Duo) {
    let Pair { s, c, .. } = t.pair();
    t.c.send(c, b"last words");
    t.c.close(c);
    t.s.recv(s, 64);
    t.s.recv(s, 64);
}

fn eof_stays(t: &Duo) {
    let Pair { s, c, .. } = t.pair();
    t.c.close(c);
    for by in [RecvBy::Recv, RecvBy::Read, RecvBy::Readv(4), RecvBy::Recvmsg(4)] {
        t.s.recv_by(s, 8, by, 0);
    }
    t.s.getopt(s, SOL_SOCKET, SO_ERROR);
}

fn server_closes(t: &Duo) {
    let Pair { s, c, .. } = t.pair();
    t.s.send(s, b"bye");
    t.s.close(s);
    t.c.recv(c, 64);
    t.c.recv(c, 64);
    t.c.close(c);
}

fn half_close(t: &Duo) {
    let Pair { s, c, .. } = t.pair();
    t.c.send(c, b"request");
    t.c.shutdown(c, SHUT_WR);
    t.s.recv(s, 64);
    t.s.recv(s, 64);
    t.s.send(s, b"the answer still gets through");
    t.c.recv(c, 64);
    t.s.close(s);
    t.c.recv(c, 64);
}

fn server_half_close(t: &Duo) {
    let Pair { s, c, .. } = t.pair();
    t.s.shutdown(s, SHUT_WR);
    t.c.recv(c, 64);
    t.c.send(c, b"and I go on talking");
    t.s.recv(s, 64);
    t.c.close(c);
    t.s.recv(s, 64);
}

fn both_half_close(t: &Duo) {
    let Pair { s, c, .. } = t.pair();
    t.c.shutdown(c, SHUT_WR);
    t.s.shutdown(s, SHUT_WR);
    t.c.recv(c, 4);
    t.s.recv(s, 4);
    t.c.poll(&[(c, POLLIN | POLLRDHUP)], 5000);
    t.c.send(c, b"x");
    t.s.send(s, b"x");
}

fn shut_rd(t: &Duo) {
    let Pair { s, c, .. } = t.pair();
    t.c.shutdown(c, SHUT_RD);
    t.c.recv(c, 4);
    t.c.send(c, b"can still send");
    t.s.recv(s, 64);
}

/// Linux still delivers what arrives after `SHUT_RD`.
fn shut_rd_data(t: &Duo) {
    let Pair { s, c, .. } = t.pair();
    t.s.send(s, b"before");
    t.c.settle(c, POLLIN);
    t.c.shutdown(c, SHUT_RD);
    t.c.recv(c, 64);
    t.c.recv(c, 64);
    t.s.send(s, b"after");
    t.s.send(s, b"wards");
}

fn shut_rdwr(t: &Duo) {
    let Pair { s, c, .. } = t.pair();
    t.c.shutdown(c, SHUT_RDWR);
    t.c.recv(c, 4);
    t.c.send(c, b"x");
    t.s.recv(s, 4);
    t.s.close(s);
    t.c.settle(c, POLLHUP);
    t.c.poll(&[(c, POLLIN)], 0);
}

fn shutdown_twice(t: &Duo) {
    let Pair { s, c, .. } = t.pair();
    t.c.shutdown(c, SHUT_WR);
    t.c.shutdown(c, SHUT_WR);
    t.c.shutdown(c, SHUT_RD);
    t.s.recv(s, 4);
    t.s.shutdown(s, SHUT_RDWR);
    t.c.settle(c, POLLHUP);
    t.c.shutdown(c, SHUT_WR);
    t.s.shutdown(s, SHUT_WR);
}

fn shutdown_bad(t: &Duo) {
    let Pair { c, .. } = t.pair();
    t.c.shutdown(c, 3);
    t.c.shutdown(c, -1);
    t.c.shutdown(99, SHUT_WR);
}

fn shutdown_unconnected(t: &Duo) {
    let c = t.c.tcp();
    t.c.shutdown(c, SHUT_WR);
    t.c.shutdown(c, SHUT_RDWR);
}

fn shutdown_wakes_reader(t: &Duo) {
    let Pair { c, .. } = t.pair();
    let waiting = t.c.start_recv(c, 4);
    t.pause();
    t.c.shutdown(c, SHUT_RD);
    t.c.join(waiting);
}

fn shutdown_wakes_peer(t: &Duo) {
    let Pair { s, c, .. } = t.pair();
    let waiting = t.s.start_recv(s, 4);
    t.pause();
    t.c.shutdown(c, SHUT_WR);
    t.s.join(waiting);
}

fn reset(t: &Duo) {
    let Pair { s, c, .. } = t.pair();
    t.c.send(c, b"nobody reads this");
    t.s.settle(s, POLLIN);
    t.s.close(s);
    t.c.settle(c, POLLIN);
    t.c.recv(c, 4);
    t.c.recv(c, 4);
}

fn reset_blocked(t: &Duo) {
    let Pair { s, c, .. } = t.pair();
    t.c.send(c, b"nobody reads this");
    t.s.settle(s, POLLIN);
    let waiting = t.c.start_recv(c, 4);
    t.pause();
    t.s.close(s);
    t.c.join(waiting);
}

fn reset_once(t: &Duo) {
    let Pair { s, c, .. } = t.pair();
    t.c.send(c, b"x");
    t.s.settle(s, POLLIN);
    t.s.close(s);
    t.c.settle(c, POLLIN);
    t.c.getopt(c, SOL_SOCKET, SO_ERROR);
    t.c.getopt(c, SOL_SOCKET, SO_ERROR);
    t.c.recv(c, 4);
    t.c.send(c, b"x");
}

fn epipe_own(t: &Duo) {
    let Pair { c, .. } = t.pair();
    t.c.shutdown(c, SHUT_WR);
    for by in [SendBy::Send, SendBy::Sendto, SendBy::Sendmsg(4)] {
        t.c.send_by(c, b"x", by, MSG_NOSIGNAL);
    }
}

/// The first write after the peer's close succeeds (and provokes a reset), the next ones fail.
fn epipe_peer(t: &Duo) {
    let Pair { s, c, .. } = t.pair();
    t.s.close(s);
    t.c.recv(c, 4);
    let mut outs: Vec<_> = (0..3)
        .map(|_| {
            t.pause();
            t.c.quiet(&send_op(c))
        })
        .collect();
    // Whether the reset is already there at the first write is timing in the kernel.
    let last = outs.pop().map(|out| (out.ret, out.errno));
    t.c.remark(&format!("in the end EPIPE: {}", last == Some((-1, EPIPE))));
}

fn send_op(fd: i32) -> harness::wire::Op {
    harness::wire::Op::Send { fd, data: b"x"[..].into(), by: SendBy::Send, flags: MSG_NOSIGNAL }
}

fn sigpipe(t: &Duo) {
    let Pair { c, .. } = t.pair();
    t.c.signal(SIGPIPE, 2, libc::SA_RESTART);
    t.c.shutdown(c, SHUT_WR);
    t.c.send_by(c, b"x", SendBy::Send, 0);
    t.c.signals(SIGPIPE);
}

fn nosignal(t: &Duo) {
    let Pair { c, .. } = t.pair();
    t.c.signal(SIGPIPE, 2, 0);
    t.c.shutdown(c, SHUT_WR);
    t.c.send_by(c, b"x", SendBy::Send, MSG_NOSIGNAL);
    t.c.signals(SIGPIPE);
}

fn sigpipe_write(t: &Duo) {
    let Pair { c, .. } = t.pair();
    t.c.signal(SIGPIPE, 2, 0);
    t.c.shutdown(c, SHUT_WR);
    t.c.send_by(c, b"x", SendBy::Write, 0);
    t.c.send_by(c, b"x", SendBy::Writev(1), 0);
    t.c.signals(SIGPIPE);
}

fn client_exits(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let Pair { s, c, .. } = t.pair();
    t.c.send(c, b"goodbye");
    t.c.exit();
    t.s.recv(s, 64);
    t.s.recv(s, 64);
}

fn server_exits(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let Pair { l, c, .. } = t.pair();
    let waiting = t.c.start_recv(c, 4);
    t.pause();
    t.s.exit();
    t.c.join(waiting);
    t.c.recv(c, 4);
    let _ = l;
}

fn exit_unread(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let Pair { s, c, .. } = t.pair();
    t.c.send(c, b"nobody reads this");
    t.s.settle(s, POLLIN);
    t.s.exit();
    t.c.settle(c, POLLIN);
    t.c.recv(c, 4);
}

fn exit_unread_shut(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let Pair { s, c, .. } = t.pair();
    t.c.send(c, b"nobody reads this");
    t.s.settle(s, POLLIN);
    t.s.shutdown(s, SHUT_RDWR);
    t.c.settle(c, POLLRDHUP);
    t.s.exit();
    t.c.settle(c, POLLHUP);
    t.c.send(c, b"x");
    t.c.recv(c, 4);
}

fn blocked_sender(t: &Duo) {
    let Pair { s, c, .. } = t.pair();
    let pump = harness::wire::Op::Pump { fd: c, total: 64 << 20, chunk: 65_000, by: SendBy::Send };
    let sending = t.c.start(pump);
    t.pause();
    t.s.close(s);
    let out = t.c.quiet(&harness::wire::Op::Join { ticket: sending });
    t.c.remark(&format!("fails: {}", out.ret == -1 && [EPIPE, libc::ECONNRESET].contains(&out.errno)));
}

fn close_twice(t: &Duo) {
    let Pair { c, .. } = t.pair();
    t.c.close(c);
    t.c.close(c);
    t.c.send(c, b"x");
    t.c.recv(c, 1);
}

fn data_before_fin(t: &Duo) {
    let Pair { s, c, .. } = t.pair();
    let total = 1 << 20;
    let sending = t.c.start(harness::wire::Op::Pump { fd: c, total, chunk: 50_000, by: SendBy::Send });
    t.s.call(harness::wire::Op::Drain { fd: s, total: total / 2, chunk: 4096, by: RecvBy::Recv, flags: 0 });
    let rest = usize::try_from(total / 2).unwrap_or(0);
    let out =
        t.s.quiet(&harness::wire::Op::Recv { fd: s, len: rest, by: RecvBy::Recv, flags: libc::MSG_WAITALL });
    t.s.remark(&format!("the rest: {}", out.ret));
    t.c.join(sending);
    t.c.shutdown(c, SHUT_WR);
    t.s.recv(s, 64);
}
