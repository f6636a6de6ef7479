//! Large transfers, byte for byte; `sendfile`.

use harness::wire::{Op, RecvBy, SendBy};

use crate::driver::Duo;
use crate::{Case, Expect::User};

pub const CASES: &[Case] = &[
    ("transfers::64_mib_up", User, |t| up(t, 64 << 20, 60_000, 65_536)),
    ("transfers::64_mib_down", User, down),
    ("transfers::small_writes_large_reads", User, |t| up(t, 1 << 20, 100, 65_536)),
    ("transfers::large_writes_small_reads", User, |t| up(t, 1 << 20, 65_000, 100)),
    ("transfers::odd_sizes", User, |t| up(t, 3_000_001, 4097, 8191)),
    ("transfers::by_vectors", User, vectors),
    ("transfers::nonblocking_both_ends", User, nonblocking),
    ("transfers::waitall_blocks", User, waitall),
    ("transfers::sendfile_small", User, |t| sendfile(t, 1000, None, 1000)),
    ("transfers::sendfile_with_offset", User, |t| sendfile(t, 1000, Some(0), 600)),
    ("transfers::sendfile_past_the_end", User, |t| sendfile(t, 1000, None, 5000)),
    ("transfers::sendfile_megabytes", User, |t| sendfile(t, 4 << 20, None, 4 << 20)),
    ("transfers::ping_pong_of_growing_messages", User, growing),
];

fn up(t: &Duo, total: u64, write: usize, read: usize) {
    let p = t.pair();
    let sending = t.c.start(Op::Pump { fd: p.c, total, chunk: write, by: SendBy::Send });
    t.s.call(Op::Drain { fd: p.s, total, chunk: read, by: RecvBy::Recv, flags: 0 });
    t.c.join(sending);
    t.c.close(p.c);
    t.s.recv(p.s, 16);
}

fn down(t: &Duo) {
    let p = t.pair();
    let total = 64 << 20;
    let sending = t.s.start(Op::Pump { fd: p.s, total, chunk: 65_000, by: SendBy::Write });
    t.c.call(Op::Drain { fd: p.c, total, chunk: 1 << 18, by: RecvBy::Read, flags: 0 });
    t.s.join(sending);
    t.s.close(p.s);
    t.c.recv(p.c, 16);
}

fn vectors(t: &Duo) {
    let p = t.pair();
    let total = 2 << 20;
    for (send, recv) in [
        (SendBy::Writev(1000), RecvBy::Readv(3333)),
        (SendBy::Sendmsg(777), RecvBy::Recvmsg(5000)),
        (SendBy::Sendto, RecvBy::Recvfrom),
    ] {
        let sending = t.c.start(Op::Pump { fd: p.c, total, chunk: 40_000, by: send });
        t.s.call(Op::Drain { fd: p.s, total, chunk: 30_000, by: recv, flags: 0 });
        t.c.join(sending);
    }
}

fn nonblocking(t: &Duo) {
    let p = t.pair();
    t.c.nonblocking(p.c);
    t.s.nonblocking(p.s);
    let total = 8 << 20;
    let sending = t.c.start(Op::Pump { fd: p.c, total, chunk: 65_000, by: SendBy::Send });
    t.s.call(Op::Drain { fd: p.s, total, chunk: 20_000, by: RecvBy::Recv, flags: 0 });
    t.c.join(sending);
}

fn waitall(t: &Duo) {
    let p = t.pair();
    let total = 4 << 20;
    let sending = t.c.start(Op::Pump { fd: p.c, total, chunk: 10_001, by: SendBy::Send });
    t.s.call(Op::Drain { fd: p.s, total, chunk: 1 << 20, by: RecvBy::Recv, flags: libc::MSG_WAITALL });
    t.c.join(sending);
}

fn sendfile(t: &Duo, size: u64, offset: Option<i64>, count: usize) {
    let p = t.pair();
    let sending = t.c.start(Op::Sendfile { fd: p.c, size, offset, count });
    let total = size.min(count as u64);
    t.s.call(Op::Drain { fd: p.s, total, chunk: 65_536, by: RecvBy::Recv, flags: 0 });
    t.c.join(sending);
    t.c.close(p.c);
    t.s.recv(p.s, 16);
}

fn growing(t: &Duo) {
    let p = t.pair();
    let mut len = 1;
    while len <= 1 << 20 {
        for (from, out, to, into) in [(&t.c, p.c, &t.s, p.s), (&t.s, p.s, &t.c, p.c)] {
            let sending = from.start(Op::Pump { fd: out, total: len, chunk: 1 << 20, by: SendBy::Send });
            to.call(Op::Drain { fd: into, total: len, chunk: 1 << 20, by: RecvBy::Recv, flags: 0 });
            from.join(sending);
        }
        len *= 4;
    }
}
