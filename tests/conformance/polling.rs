//! `poll`, `ppoll`, `select`, `pselect`.

use harness::wire::{Op, PollBy};
use libc::{POLLHUP, POLLIN, POLLOUT, POLLPRI, POLLRDHUP, SHUT_RDWR, SHUT_WR};

use crate::driver::Duo;
use crate::{
    Case,
    Expect::{Any, User},
};

pub const CASES: &[Case] = &[
    ("poll::data", User, |t| data(t, PollBy::Poll)),
    ("ppoll::data", User, |t| data(t, PollBy::Ppoll)),
    ("select::data", User, |t| data(t, PollBy::Select)),
    ("pselect::data", User, |t| data(t, PollBy::Pselect)),
    ("poll::woken", User, |t| woken(t, PollBy::Poll)),
    ("ppoll::woken", User, |t| woken(t, PollBy::Ppoll)),
    ("select::woken", User, |t| woken(t, PollBy::Select)),
    ("pselect::woken", User, |t| woken(t, PollBy::Pselect)),
    ("poll::times_out", User, |t| times_out(t, PollBy::Poll)),
    ("ppoll::times_out", User, |t| times_out(t, PollBy::Ppoll)),
    ("select::times_out", User, |t| times_out(t, PollBy::Select)),
    ("pselect::times_out", User, |t| times_out(t, PollBy::Pselect)),
    ("poll::mixed_with_a_pipe", User, |t| mixed(t, PollBy::Poll)),
    ("select::mixed_with_a_pipe", User, |t| mixed(t, PollBy::Select)),
    ("poll::kernel_descriptor_wakes_the_mixture", User, kernel_wakes),
    ("poll::peer_closes", User, peer_closes),
    ("poll::peer_half_closes", User, peer_half_closes),
    ("poll::own_shutdown", User, own_shutdown),
    ("poll::after_reset", User, after_reset),
    ("poll::unconnected_socket", Any, unconnected),
    ("poll::bad_and_negative_descriptors", User, bad),
    ("poll::same_descriptor_twice", User, twice),
    ("poll::nothing_asked", User, nothing_asked),
    ("poll::two_sockets_one_ready", User, one_of_two),
    ("poll::many_sockets", User, many),
    ("poll::writable_when_there_is_room", User, writable),
    ("select::bad_descriptor", Any, select_bad),
    ("poll::closed_by_another_thread", User, |t| closed_elsewhere(t, PollBy::Poll, 8000)),
    ("select::closed_by_another_thread", User, |t| closed_elsewhere(t, PollBy::Select, 400)),
    ("poll::closed_by_another_thread_and_nothing_comes", User, closed_and_silent),
    ("poll::number_used_again_by_another_thread", User, used_again),
];

/// Linux looks at the descriptors again when something comes, and until the call returns the connection stays open.
fn closed_elsewhere(t: &Duo, by: PollBy, timeout_ms: i32) {
    let p = t.pair();
    let waiting = t.s.start(Op::Poll { fds: vec![(p.s, POLLIN)], timeout_ms, by });
    t.pause();
    t.s.close(p.s);
    t.c.poll(&[(p.c, POLLIN | POLLRDHUP)], 100);
    t.c.send(p.c, b"x");
    t.s.join(waiting);
    t.c.recv(p.c, 4);
}

fn closed_and_silent(t: &Duo) {
    let p = t.pair();
    let waiting = t.s.start(Op::Poll { fds: vec![(p.s, POLLIN)], timeout_ms: 400, by: PollBy::Poll });
    t.pause();
    t.s.close(p.s);
    t.s.join(waiting);
    t.c.recv(p.c, 4);
}

fn used_again(t: &Duo) {
    let (p, q) = (t.pair(), t.pair());
    let waiting = t.s.start(Op::Poll { fds: vec![(p.s, POLLIN)], timeout_ms: 8000, by: PollBy::Poll });
    t.pause();
    t.s.close(p.s);
    let again = t.s.dup(q.s);
    t.c.send(q.c, b"y");
    t.c.send(p.c, b"x");
    t.s.join(waiting);
    t.s.recv(again, 4);
}

fn data(t: &Duo, by: PollBy) {
    let p = t.pair();
    t.s.poll_by(&[(p.s, POLLIN | POLLOUT)], 0, by);
    t.c.send(p.c, b"x");
    t.s.poll_by(&[(p.s, POLLIN)], 5000, by);
    t.s.poll_by(&[(p.s, POLLIN | POLLOUT)], 5000, by);
    t.s.recv(p.s, 4);
    t.s.poll_by(&[(p.s, POLLIN)], 0, by);
}

fn woken(t: &Duo, by: PollBy) {
    let p = t.pair();
    let waiting = t.s.start(Op::Poll { fds: vec![(p.s, POLLIN)], timeout_ms: -1, by });
    t.pause();
    t.c.send(p.c, b"x");
    t.s.join(waiting);
}

fn times_out(t: &Duo, by: PollBy) {
    let p = t.pair();
    t.s.poll_by(&[(p.s, POLLIN)], 30, by);
    t.s.poll_by(&[(p.s, POLLIN)], 0, by);
    t.s.poll_by(&[], 5, by);
}

fn mixed(t: &Duo, by: PollBy) {
    let p = t.pair();
    let (r, w) = t.s.pipe();
    let both = [(p.s, POLLIN), (r, POLLIN)];
    t.s.poll_by(&both, 0, by);
    t.s.send_by(w, b"x", harness::wire::SendBy::Write, 0);
    t.s.poll_by(&both, 5000, by);
    t.c.send(p.c, b"x");
    t.s.settle(p.s, POLLIN);
    t.s.poll_by(&both, 5000, by);
    t.s.recv_by(r, 4, harness::wire::RecvBy::Read, 0);
    t.s.poll_by(&both, 5000, by);
}

fn kernel_wakes(t: &Duo) {
    let p = t.pair();
    let (r, w) = t.s.pipe();
    let fds = vec![(p.s, POLLIN), (r, POLLIN)];
    let waiting = t.s.start(Op::Poll { fds, timeout_ms: -1, by: PollBy::Poll });
    t.pause();
    t.s.send_by(w, b"x", harness::wire::SendBy::Write, 0);
    t.s.join(waiting);
}

fn peer_closes(t: &Duo) {
    let p = t.pair();
    t.c.close(p.c);
    t.s.settle(p.s, POLLRDHUP);
    t.s.poll(&[(p.s, POLLIN)], 5000);
    t.s.poll(&[(p.s, POLLIN | POLLOUT | POLLRDHUP)], 5000);
    t.s.poll(&[(p.s, 0)], 0);
}

fn peer_half_closes(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, b"x");
    t.c.shutdown(p.c, SHUT_WR);
    t.s.settle(p.s, POLLRDHUP);
    t.s.poll(&[(p.s, POLLIN | POLLRDHUP)], 5000);
    t.s.recv(p.s, 4);
    t.s.poll(&[(p.s, POLLIN | POLLOUT | POLLRDHUP)], 5000);
    t.c.poll(&[(p.c, POLLIN | POLLOUT | POLLRDHUP)], 0);
}

fn own_shutdown(t: &Duo) {
    let p = t.pair();
    t.s.shutdown(p.s, SHUT_WR);
    t.s.poll(&[(p.s, POLLIN | POLLOUT | POLLRDHUP)], 0);
    t.s.shutdown(p.s, SHUT_RDWR);
    t.s.poll(&[(p.s, POLLIN | POLLOUT | POLLRDHUP)], 0);
}

fn after_reset(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, b"unread");
    t.s.settle(p.s, POLLIN);
    t.s.close(p.s);
    t.c.settle(p.c, POLLHUP);
    t.c.poll(&[(p.c, POLLIN | POLLOUT | POLLRDHUP)], 5000);
    t.c.recv(p.c, 4);
    t.c.poll(&[(p.c, POLLIN | POLLOUT | POLLRDHUP)], 5000);
}

fn unconnected(t: &Duo) {
    let c = t.c.tcp();
    t.c.poll(&[(c, POLLIN | POLLOUT)], 0);
}

fn bad(t: &Duo) {
    let p = t.pair();
    t.c.poll(&[(99, POLLIN)], 0);
    t.c.poll(&[(-1, POLLIN), (p.c, POLLOUT)], 0);
    t.c.poll(&[(99, POLLIN), (p.c, POLLIN)], 1000);
}

fn twice(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, b"x");
    t.s.settle(p.s, POLLIN);
    t.s.poll(&[(p.s, POLLIN), (p.s, POLLOUT), (p.s, POLLIN | POLLOUT)], 0);
}

fn nothing_asked(t: &Duo) {
    let p = t.pair();
    t.c.send(p.c, b"x");
    t.s.settle(p.s, POLLIN);
    t.s.poll(&[(p.s, 0)], 0);
    t.s.poll(&[(p.s, POLLPRI)], 0);
}

fn one_of_two(t: &Duo) {
    let (l, addr) = t.listener();
    let clients = [t.c.tcp(), t.c.tcp()];
    let servers = clients.map(|c| {
        t.c.connect(c, &addr);
        t.s.accept(l)
    });
    t.c.send(clients[1], b"x");
    let both = servers.map(|s| (s, POLLIN));
    t.s.poll(&both, 5000);
    t.c.send(clients[0], b"x");
    t.s.settle(servers[0], POLLIN);
    t.s.poll(&both, 5000);
}

fn many(t: &Duo) {
    let (l, addr) = t.listener_at(libc::AF_INET, &crate::driver::v4(), 128);
    let pairs: Vec<(i32, i32)> = (0..60)
        .map(|_| {
            let c = t.c.tcp();
            t.c.connect(c, &addr);
            (c, t.s.accept(l))
        })
        .collect();
    let all: Vec<(i32, i16)> = pairs.iter().map(|(_, s)| (*s, POLLIN)).collect();
    for (c, s) in pairs.iter().step_by(11) {
        t.c.send(*c, b"x");
        t.s.settle(*s, POLLIN);
    }
    t.s.poll(&all, 5000);
}

fn writable(t: &Duo) {
    let p = t.pair();
    t.c.poll(&[(p.c, POLLOUT)], 0);
    t.c.nonblocking(p.c);
    let op = Op::Fill { fd: p.c, len: 65_536, flags: libc::MSG_NOSIGNAL };
    let sent: i64 = (0..2000).map(|_| t.c.quiet(&op).ret).take_while(|n| *n > 0).sum();
    t.c.poll(&[(p.c, POLLOUT)], 0);
    let waiting = t.c.start(Op::Poll { fds: vec![(p.c, POLLOUT)], timeout_ms: 5000, by: PollBy::Poll });
    let mut left = sent;
    while left > 0 {
        let take = usize::try_from(left.min(1 << 16)).unwrap_or(1);
        let by = harness::wire::RecvBy::Recv;
        let got = t.s.quiet(&Op::Recv { fd: p.s, len: take, by, flags: libc::MSG_WAITALL }).ret;
        if got <= 0 {
            t.s.remark("the stream broke");
            break;
        }
        left -= got;
    }
    t.c.join(waiting);
}

fn select_bad(t: &Duo) {
    t.c.poll_by(&[(99, POLLIN)], 0, PollBy::Select);
    t.c.poll_by(&[(99, POLLIN)], 0, PollBy::Pselect);
}
