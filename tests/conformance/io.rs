//! Sending and receiving: every form, every flag.

use harness::wire::{Op, RecvBy, SendBy};
use libc::{
    MSG_DONTWAIT, MSG_MORE, MSG_NOSIGNAL, MSG_OOB, MSG_PEEK, MSG_TRUNC, MSG_WAITALL, MSG_WAITFORONE, POLLIN,
    POLLOUT,
};

use crate::driver::{Duo, Pair};
use crate::{
    Case,
    Expect::{Any, User},
};

pub const CASES: &[Case] = &[
    ("io::write_read", User, |t| forms(t, SendBy::Write, RecvBy::Read)),
    ("io::writev_readv", User, |t| forms(t, SendBy::Writev(3), RecvBy::Readv(5))),
    ("io::send_recv", User, |t| forms(t, SendBy::Send, RecvBy::Recv)),
    ("io::sendto_recvfrom", User, |t| forms(t, SendBy::Sendto, RecvBy::Recvfrom)),
    ("io::sendmsg_recvmsg", User, |t| forms(t, SendBy::Sendmsg(4), RecvBy::Recvmsg(3))),
    ("io::sendmmsg_recvmmsg", User, many_messages),
    ("io::every_form_to_every_form", User, all_forms),
    ("io::short_reads_leave_the_rest", User, short_reads),
    ("io::writes_join_into_one_stream", User, joined),
    ("io::zero_bytes", User, zero_bytes),
    ("io::one_byte_at_a_time", User, one_byte),
    ("io::peek", User, peek),
    ("io::peek_then_more_arrives", User, peek_more),
    ("io::peek_by_recvmsg", User, peek_recvmsg),
    ("io::peek_at_end", User, peek_at_end),
    ("io::dontwait_empty", User, dontwait_empty),
    ("io::dontwait_full", User, dontwait_full),
    ("io::nonblocking_empty", User, nonblocking_empty),
    ("io::waitall", User, waitall),
    ("io::waitall_ends_at_eof", User, waitall_eof),
    ("io::waitall_with_dontwait", User, waitall_dontwait),
    ("io::waitall_peek", User, waitall_peek),
    ("io::trunc_discards", User, trunc),
    ("io::more_then_rest", User, more),
    ("io::recvmsg_flags_are_clear", User, recvmsg_flags),
    ("io::waitforone", User, waitforone),
    ("io::blocked_recv_gets_what_comes", User, blocked_recv),
    ("io::blocked_send_goes_on", User, blocked_send),
    ("io::both_directions_at_once", User, both_directions),
    ("io::unconnected", Any, unconnected),
    ("io::on_listener", Any, on_listener),
    ("io::bad_descriptor", Any, bad_descriptor),
    ("io::urgent_data", Any, urgent),
    ("io::write_of_megabytes_nonblocking_is_partial", User, partial_write),
];

const TEXT: &[u8] = b"the quick brown fox jumps over the lazy dog";

fn forms(t: &Duo, send: SendBy, recv: RecvBy) {
    let p = t.pair();
    t.c.send_by(p.c, TEXT, send, 0);
    t.s.recv_by(p.s, 64, recv, 0);
    t.s.send_by(p.s, TEXT, send, 0);
    t.c.recv_by(p.c, 64, recv, 0);
}

fn many_messages(t: &Duo) {
    let p = t.pair();
    t.c.send_by(p.c, TEXT, SendBy::Sendmmsg(10), 0);
    t.s.recv_by(p.s, 64, RecvBy::Recvmmsg(20), MSG_DONTWAIT);
    t.s.recv_by(p.s, 64, RecvBy::Recvmmsg(20), MSG_DONTWAIT);
}

fn all_forms(t: &Duo) {
    let p = t.pair();
    let sends = [
        SendBy::Write,
        SendBy::Writev(7),
        SendBy::Send,
        SendBy::Sendto,
        SendBy::Sendmsg(7),
        SendBy::Sendmmsg(50),
    ];
    let recvs = [RecvBy::Read, RecvBy::Readv(9), RecvBy::Recv, RecvBy::Recvfrom, RecvBy::Recvmsg(9)];
    for send in sends {
        for recv in recvs {
            t.c.send_by(p.c, TEXT, send, 0);
            t.s.recv_by(p.s, 64, recv, 0);
        }
    }
}

fn short_reads(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, TEXT);
    for len in [1, 2, 3, 5, 8, 13, 100] {
        t.s.recv(p.s, len);
    }
}

fn joined(t: &Duo) {
    let p = t.pair();
    for word in [&b"one "[..], b"two ", b"three"] {
        t.c.send(p.c, word);
    }
    t.s.recv_by(p.s, 13, RecvBy::Recv, MSG_WAITALL);
}

fn zero_bytes(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, b"");
    t.c.send_by(p.c, b"", SendBy::Write, 0);
    t.s.recv_by(p.s, 0, RecvBy::Recv, MSG_DONTWAIT);
    t.s.recv_by(p.s, 8, RecvBy::Recv, MSG_DONTWAIT);
    t.c.send(p.c, b"x");
    t.s.recv(p.s, 0);
    t.s.recv(p.s, 8);
}

fn one_byte(t: &Duo) {
    let p = t.pair();
    for byte in TEXT {
        t.c.send(p.c, &[*byte]);
    }
    t.s.recv_by(p.s, TEXT.len(), RecvBy::Recv, MSG_WAITALL);
    t.s.send(p.s, TEXT);
    for _ in TEXT {
        t.c.recv(p.c, 1);
    }
}

fn peek(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, b"look, don't touch");
    t.s.recv_by(p.s, 4, RecvBy::Recv, MSG_PEEK);
    t.s.recv_by(p.s, 64, RecvBy::Recv, MSG_PEEK);
    t.s.recv(p.s, 4);
    t.s.recv_by(p.s, 64, RecvBy::Recv, MSG_PEEK);
    t.s.recv(p.s, 64);
    t.s.recv_by(p.s, 64, RecvBy::Recv, MSG_PEEK | MSG_DONTWAIT);
}

fn peek_more(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, b"first ");
    t.s.recv_by(p.s, 64, RecvBy::Recv, MSG_PEEK);
    t.c.send(p.c, b"second");
    t.s.recv_by(p.s, 64, RecvBy::Recv, MSG_PEEK);
    t.s.recv(p.s, 64);
}

fn peek_recvmsg(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, TEXT);
    t.s.recv_by(p.s, 20, RecvBy::Recvmsg(6), MSG_PEEK);
    t.s.recv_by(p.s, 64, RecvBy::Recvmsg(6), 0);
}

fn peek_at_end(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, b"last");
    t.c.close(p.c);
    t.s.recv(p.s, 4);
    t.s.recv_by(p.s, 4, RecvBy::Recv, MSG_PEEK);
    t.s.recv(p.s, 4);
}

fn dontwait_empty(t: &Duo) {
    let p = t.pair();
    t.s.recv_by(p.s, 4, RecvBy::Recv, MSG_DONTWAIT);
    t.s.recv_by(p.s, 4, RecvBy::Recvmsg(4), MSG_DONTWAIT);
    t.c.send(p.c, b"x");
    t.s.settle(p.s, POLLIN);
    t.s.recv_by(p.s, 4, RecvBy::Recv, MSG_DONTWAIT);
    t.s.recv_by(p.s, 4, RecvBy::Recv, MSG_DONTWAIT);
}

/// How much fits is each implementation's own business; that it ends with `EAGAIN` and goes on later is not.
fn fill(t: &Duo, fd: i32) -> usize {
    let op = Op::Fill { fd, len: 32_768, flags: MSG_DONTWAIT | MSG_NOSIGNAL };
    let mut sent = 0;
    for _ in 0..2000 {
        let out = t.c.quiet(&op);
        match usize::try_from(out.ret) {
            Ok(n) => sent += n,
            Err(_) => {
                t.c.remark(&format!("full: {out:?}"));
                return sent;
            }
        }
    }
    t.c.remark("never full");
    sent
}

fn empty(t: &Duo, fd: i32, bytes: usize) {
    let mut left = bytes;
    while left > 0 {
        let op = Op::Recv { fd, len: left.min(65_536), by: RecvBy::Recv, flags: 0 };
        let n = usize::try_from(t.s.quiet(&op).ret).unwrap_or(0);
        if n == 0 {
            break;
        }
        left -= n.min(left);
    }
    t.s.remark(&format!("missing: {left}"));
}

fn dontwait_full(t: &Duo) {
    let p = t.pair();
    let sent = fill(t, p.c);
    t.c.poll(&[(p.c, POLLOUT)], 0);
    empty(t, p.s, sent);
    t.c.poll(&[(p.c, POLLOUT)], 5000);
    t.c.send(p.c, b"goes on");
    t.s.recv(p.s, 64);
}

fn nonblocking_empty(t: &Duo) {
    let p = t.pair();
    t.s.nonblocking(p.s);
    t.s.recv(p.s, 4);
    t.s.recv_by(p.s, 4, RecvBy::Read, 0);
    t.s.recv_by(p.s, 4, RecvBy::Readv(2), 0);
    t.c.send(p.c, b"now");
    t.s.settle(p.s, POLLIN);
    t.s.recv_by(p.s, 4, RecvBy::Read, 0);
}

fn waitall(t: &Duo) {
    let p = t.pair();
    let op = Op::Recv { fd: p.s, len: 12, by: RecvBy::Recv, flags: MSG_WAITALL };
    let waiting = t.s.start(op);
    for part in [&b"four"[..], b"four", b"four"] {
        t.c.send(p.c, part);
        t.pause();
    }
    t.s.join(waiting);
}

fn waitall_eof(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, b"short");
    t.c.close(p.c);
    t.s.recv_by(p.s, 12, RecvBy::Recv, MSG_WAITALL);
    t.s.recv_by(p.s, 12, RecvBy::Recv, MSG_WAITALL);
}

fn waitall_dontwait(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, b"part");
    t.s.settle(p.s, POLLIN);
    t.s.recv_by(p.s, 12, RecvBy::Recv, MSG_WAITALL | MSG_DONTWAIT);
    t.s.recv_by(p.s, 12, RecvBy::Recv, MSG_WAITALL | MSG_DONTWAIT);
}

fn waitall_peek(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, b"eight by");
    t.s.recv_by(p.s, 8, RecvBy::Recv, MSG_WAITALL | MSG_PEEK);
    t.s.recv_by(p.s, 8, RecvBy::Recv, MSG_WAITALL);
}

/// For TCP, `MSG_TRUNC` throws bytes away without copying them.
fn trunc(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, b"0123456789");
    let out = t.s.quiet(&Op::Recv { fd: p.s, len: 4, by: RecvBy::Recv, flags: MSG_TRUNC });
    t.s.remark(&format!("discarded {}", out.ret));
    t.s.recv(p.s, 64);
}

fn more(t: &Duo) {
    let p = t.pair();
    t.c.send_by(p.c, b"head ", SendBy::Send, MSG_MORE);
    t.c.send_by(p.c, b"tail", SendBy::Send, 0);
    t.s.recv_by(p.s, 9, RecvBy::Recv, MSG_WAITALL);
}

fn recvmsg_flags(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, TEXT);
    t.s.recv_by(p.s, 4, RecvBy::Recvmsg(4), 0);
    t.c.close(p.c);
    t.s.recv_by(p.s, 64, RecvBy::Recvmsg(64), 0);
    t.s.recv_by(p.s, 64, RecvBy::Recvmsg(64), 0);
}

fn waitforone(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, b"ten bytes.");
    t.s.recv_by(p.s, 40, RecvBy::Recvmmsg(20), MSG_WAITFORONE);
}

fn blocked_recv(t: &Duo) {
    let p = t.pair();
    let waiting = t.s.start_recv(p.s, 64);
    t.pause();
    t.c.send(p.c, b"woken");
    t.s.join(waiting);
}

fn blocked_send(t: &Duo) {
    let p = t.pair();
    let total = 8 << 20;
    let sending = t.c.start(Op::Pump { fd: p.c, total, chunk: 60_000, by: SendBy::Send });
    t.pause();
    t.s.call(Op::Drain { fd: p.s, total, chunk: 100_000, by: RecvBy::Recv, flags: 0 });
    t.c.join(sending);
}

fn both_directions(t: &Duo) {
    let p = t.pair();
    let total = 4 << 20;
    let up = t.c.start(Op::Pump { fd: p.c, total, chunk: 10_000, by: SendBy::Write });
    let down = t.s.start(Op::Pump { fd: p.s, total, chunk: 20_000, by: SendBy::Writev(777) });
    let at_server = t.s.start(Op::Drain { fd: p.s, total, chunk: 30_000, by: RecvBy::Read, flags: 0 });
    let at_client = t.c.start(Op::Drain { fd: p.c, total, chunk: 7_000, by: RecvBy::Readv(999), flags: 0 });
    t.s.join(at_server);
    t.c.join(at_client);
    t.c.join(up);
    t.s.join(down);
}

fn unconnected(t: &Duo) {
    let c = t.c.tcp();
    t.c.recv(c, 4);
    t.c.send(c, b"x");
    t.c.recv_by(c, 4, RecvBy::Read, 0);
    t.c.send_by(c, b"x", SendBy::Sendmsg(1), MSG_NOSIGNAL);
}

fn on_listener(t: &Duo) {
    let (l, _) = t.listener();
    t.s.recv(l, 4);
    t.s.send(l, b"x");
}

fn bad_descriptor(t: &Duo) {
    t.c.recv(99, 4);
    t.c.send(99, b"x");
    t.c.recv_by(99, 4, RecvBy::Readv(2), 0);
    t.c.send_by(99, b"x", SendBy::Writev(2), 0);
    let (r, w) = t.c.pipe();
    t.c.recv(r, 4);
    t.c.send(w, b"x");
    t.c.send_by(w, b"through a pipe", SendBy::Write, 0);
    t.c.recv_by(r, 64, RecvBy::Read, 0);
}

fn urgent(t: &Duo) {
    let Pair { s, c, .. } = t.pair();
    t.c.send(c, b"plain");
    t.s.recv(s, 16);
    t.s.recv_by(s, 1, RecvBy::Recv, MSG_OOB | MSG_DONTWAIT);
}

fn partial_write(t: &Duo) {
    let p = t.pair();
    t.c.nonblocking(p.c);
    let total = 8 << 20;
    let sending = t.c.start(Op::Pump { fd: p.c, total, chunk: 65_000, by: SendBy::Write });
    t.s.call(Op::Drain { fd: p.s, total, chunk: 65_536, by: RecvBy::Read, flags: 0 });
    t.c.join(sending);
}
