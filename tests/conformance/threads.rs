//! Several threads on the same sockets: only what Linux makes deterministic.

use harness::wire::{Op, RecvBy, SendBy};
use libc::{EPOLLIN, MSG_DONTWAIT, POLLIN, SHUT_RDWR};

use crate::driver::Duo;
use crate::{Case, Expect::User};

pub const CASES: &[Case] = &[
    ("threads::two_readers_get_everything_once", User, two_readers),
    ("threads::two_writers", User, two_writers),
    ("threads::reader_and_writer_of_one_socket", User, reader_and_writer),
    ("threads::shutdown_by_another_thread", User, shutdown_elsewhere),
    ("threads::many_connections_at_once", User, many_connections),
    ("threads::epoll_in_one_data_from_another", User, epoll_elsewhere),
    ("threads::add_to_a_set_that_is_waited_for", User, add_while_waiting),
    ("threads::connect_in_parallel", User, parallel_connects),
    ("threads::used_as_soon_as_the_other_side_has_accepted", User, used_at_once),
];

fn used_at_once(t: &Duo) {
    let (l, addr) = t.listener();
    for round in 0..40 {
        let c = t.c.tcp();
        let connecting = t.c.start(Op::Connect { fd: c, addr: addr.clone() });
        let s = t.s.accept(l);
        t.s.send(s, b"hello");
        if round % 2 == 0 {
            t.c.poll(&[(c, POLLIN)], 5000);
        }
        t.c.recv_by(c, 8, RecvBy::Recv, if round % 2 == 0 { MSG_DONTWAIT } else { 0 });
        t.c.send(c, b"answer");
        t.s.recv(s, 8);
        t.c.join(connecting);
        t.c.close(c);
        t.s.close(s);
    }
}

fn two_readers(t: &Duo) {
    let p = t.pair();
    let readers = [t.s.start_recv(p.s, 4), t.s.start_recv(p.s, 4)];
    t.pause();
    t.c.send(p.c, b"aaaa");
    t.c.send(p.c, b"bbbb");
    let mut got: Vec<Vec<u8>> = readers.map(|r| t.s.quiet(&Op::Join { ticket: r }).data.0).to_vec();
    got.sort();
    t.s.remark(&format!("{got:?}"));
}

fn two_writers(t: &Duo) {
    let p = t.pair();
    let send = |what: &[u8]| Op::Send { fd: p.c, data: what.into(), by: SendBy::Send, flags: 0 };
    let writers = [t.c.start(send(b"aaaa")), t.c.start(send(b"bbbb"))];
    for ticket in writers {
        t.c.join(ticket);
    }
    let got = t.s.quiet(&Op::Recv { fd: p.s, len: 8, by: RecvBy::Recv, flags: libc::MSG_WAITALL }).data.0;
    t.s.remark(&format!("whole messages: {}", got == b"aaaabbbb" || got == b"bbbbaaaa"));
}

fn reader_and_writer(t: &Duo) {
    let p = t.pair();
    let total = 2 << 20;
    let reading = t.s.start(Op::Drain { fd: p.s, total, chunk: 5000, by: RecvBy::Recv, flags: 0 });
    let writing = t.s.start(Op::Pump { fd: p.s, total, chunk: 6000, by: SendBy::Send });
    let up = t.c.start(Op::Pump { fd: p.c, total, chunk: 7000, by: SendBy::Send });
    t.c.call(Op::Drain { fd: p.c, total, chunk: 8000, by: RecvBy::Recv, flags: 0 });
    t.c.join(up);
    t.s.join(reading);
    t.s.join(writing);
}

fn shutdown_elsewhere(t: &Duo) {
    let p = t.pair();
    let waiting = t.s.start_recv(p.s, 4);
    t.pause();
    t.s.shutdown(p.s, SHUT_RDWR);
    t.s.join(waiting);
    t.c.recv(p.c, 4);
}

fn many_connections(t: &Duo) {
    let (l, addr) = t.listener();
    let pairs: Vec<(i32, i32)> = (0..8)
        .map(|_| {
            let c = t.c.tcp();
            t.c.connect(c, &addr);
            (c, t.s.accept(l))
        })
        .collect();
    let total = 512 << 10;
    let running: Vec<(i64, i64)> = pairs
        .iter()
        .map(|(c, s)| {
            let read = Op::Drain { fd: *s, total, chunk: 3000, by: RecvBy::Recv, flags: 0 };
            let write = Op::Pump { fd: *c, total, chunk: 4000, by: SendBy::Send };
            (t.s.start(read), t.c.start(write))
        })
        .collect();
    for (read, write) in running {
        t.s.join(read);
        t.c.join(write);
    }
}

fn epoll_elsewhere(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    let wait = || t.s.start(Op::EpollWait { ep, max: 4, timeout_ms: 8000 });
    for _ in 0..5 {
        let waiting = wait();
        t.c.send(p.c, b"x");
        t.s.join(waiting);
        t.s.recv(p.s, 4);
    }
}

fn add_while_waiting(t: &Duo) {
    let p = t.pair();
    let ep = t.s.epoll();
    let waiting = t.s.start(Op::EpollWait { ep, max: 4, timeout_ms: 8000 });
    t.pause();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.pause();
    t.c.send(p.c, b"x");
    t.s.join(waiting);
}

fn parallel_connects(t: &Duo) {
    let (l, addr) = t.listener();
    let clients: Vec<i32> = (0..8).map(|_| t.c.tcp()).collect();
    let connects: Vec<i64> =
        clients.iter().map(|c| t.c.start(Op::Connect { fd: *c, addr: addr.clone() })).collect();
    for ticket in connects {
        t.c.join(ticket);
    }
    // Who came first is nobody's promise; that all are there is.
    for c in &clients {
        t.c.send(*c, b"x");
    }
    for _ in &clients {
        let s = i32::try_from(t.s.quiet(&Op::Accept { fd: l, flags: None }).ret).unwrap_or(-1);
        t.s.recv(s, 4);
    }
}
