//! `listen` and `accept`: order, flags, queues, clients that leave early.

use harness::wire::Op;
use libc::{AF_INET, EPOLLIN, POLLIN, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM};

use crate::driver::{Duo, v4};
use crate::{
    Case,
    Expect::{Any, User},
};

pub const CASES: &[Case] = &[
    ("accept::queue_is_first_in_first_out", User, fifo),
    ("accept::blocks_until_a_client_comes", User, blocks),
    ("accept::nonblocking_empty_is_eagain", User, eagain),
    ("accept::accept4_flags", User, flags),
    ("accept::listener_flags_are_not_inherited", User, not_inherited),
    ("accept::options_are_inherited", User, inherited_options),
    ("accept::client_closed_before", User, client_closed),
    ("accept::client_reset_before", Any, client_reset),
    ("accept::client_process_exited_before", User, client_exited),
    ("accept::clients_killed_before", User, clients_killed),
    ("accept::poll_sees_a_waiting_client", User, poll_listener),
    ("accept::poll_goes_quiet_when_the_queue_is_empty", User, poll_quiet),
    ("accept::bad_flags", Any, bad_flags),
    ("accept::without_listen_is_einval", Any, without_listen),
    ("accept::on_connected_socket_is_einval", User, on_connected),
    ("accept::two_waiting_accepts", User, two_waiting),
    ("accept::waiting_has_its_number_already", User, number_first),
    ("accept::waiting_in_vain_gives_its_number_back", Any, number_back),
    ("accept::a_forked_child_has_not_the_number_of_a_waiting_call", User, number_in_child),
    ("accept::flags_after_waiting", User, flags_after_waiting),
    ("accept::goes_on_when_the_listener_is_closed", User, closed_under_accept),
    ("accept::goes_on_when_the_listener_is_replaced", User, replaced_under_accept),
    ("accept::backlog_beyond_what_was_asked", Any, backlog),
    ("accept::listener_closed_with_clients_waiting", Any, listener_closed),
    ("accept::shut_down_listener_wakes_accept", Any, listener_shutdown),
    ("listen::again_changes_the_backlog", User, listen_again),
    ("listen::unbound_gets_a_port", User, listen_unbound),
    ("listen::in_use", Any, in_use),
    ("listen::after_close_the_port_is_free", User, rebind),
    ("listen::shutdown_then_listen_again", Any, listen_shutdown_listen),
    ("listen::a_client_comes_at_once", Any, at_once),
    ("listen::udp_cannot", Any, udp),
    ("listen::connected_cannot", User, connected),
];

fn fifo(t: &Duo) {
    let (l, addr) = t.listener();
    let clients: Vec<i32> = (0..5).map(|_| t.c.tcp()).collect();
    for (i, c) in (0_u8..).zip(&clients) {
        t.c.connect(*c, &addr);
        t.c.send(*c, &[b'0' + i]);
    }
    for _ in &clients {
        let s = t.s.accept(l);
        t.s.recv(s, 8);
    }
}

fn blocks(t: &Duo) {
    let (l, addr) = t.listener();
    // The client's descriptor comes first: when a blocked accept takes its number is nobody's promise.
    let c = t.c.tcp();
    let waiting = t.s.start(Op::Accept { fd: l, flags: None });
    t.pause();
    t.c.connect(c, &addr);
    let s = t.s.join(waiting).ret;
    t.c.send(c, b"x");
    t.s.recv(i32::try_from(s).unwrap_or(-1), 4);
}

fn eagain(t: &Duo) {
    let (l, addr) = t.listener();
    t.s.nonblocking(l);
    t.s.accept(l);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    t.s.settle(l, POLLIN);
    t.s.accept(l);
    t.s.accept(l);
}

fn flags(t: &Duo) {
    let (l, addr) = t.listener();
    for flags in [0, SOCK_NONBLOCK, SOCK_CLOEXEC, SOCK_NONBLOCK | SOCK_CLOEXEC] {
        let c = t.c.tcp();
        t.c.connect(c, &addr);
        let s = t.s.accept4(l, flags);
        t.s.fcntl(s, libc::F_GETFL, 0);
        t.s.fcntl(s, libc::F_GETFD, 0);
        if flags & SOCK_NONBLOCK != 0 {
            t.s.recv(s, 4);
        }
    }
}

fn not_inherited(t: &Duo) {
    let (l, addr) = t.listener();
    t.s.nonblocking(l);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    t.s.settle(l, POLLIN);
    let s = t.s.accept(l);
    t.s.fcntl(s, libc::F_GETFL, 0);
}

fn inherited_options(t: &Duo) {
    let (l, addr) = t.listener();
    t.s.setopt(l, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    t.s.setopt(l, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    let s = t.s.accept(l);
    t.s.getopt(s, libc::SOL_SOCKET, libc::SO_KEEPALIVE);
    t.s.getopt(s, libc::IPPROTO_TCP, libc::TCP_NODELAY);
    t.s.getopt(s, libc::SOL_SOCKET, libc::SO_ACCEPTCONN);
}

fn client_closed(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    t.c.close(c);
    let s = t.s.accept(l);
    t.s.recv(s, 4);
    t.s.send(s, b"into the void");
}

fn client_reset(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    let linger = [1_i32.to_ne_bytes(), 0_i32.to_ne_bytes()].concat();
    t.c.setopt_bytes(c, libc::SOL_SOCKET, libc::SO_LINGER, &linger);
    t.c.close(c);
    let s = t.s.accept(l);
    t.s.recv(s, 4);
}

fn client_exited(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    t.c.send(c, b"testament");
    t.c.exit();
    let s = t.s.accept(l);
    t.s.recv(s, 64);
    t.s.recv(s, 64);
}

/// The parent of the killed clients lives on and keeps a connection of its own, which goes on.
fn clients_killed(t: &Duo) {
    let (l, addr) = t.listener();
    let kept = t.c.tcp();
    t.c.connect(kept, &addr);
    let kept_s = t.s.accept(l);
    for words in [b"testament".as_slice(), b""] {
        let Some(child) = t.c.fork("k") else { return };
        let c = child.tcp();
        child.connect(c, &addr);
        if !words.is_empty() {
            child.send(c, words);
        }
        child.kill();
        let s = t.s.accept(l);
        if !words.is_empty() {
            t.s.recv(s, 64);
        }
        t.s.recv(s, 64);
        t.s.close(s);
    }
    t.c.send(kept, b"still here");
    t.s.recv(kept_s, 64);
}

fn poll_listener(t: &Duo) {
    let (l, addr) = t.listener();
    t.s.poll(&[(l, POLLIN)], 0);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    t.s.poll(&[(l, POLLIN)], 5000);
    t.s.accept(l);
}

fn poll_quiet(t: &Duo) {
    let (l, addr) = t.listener();
    for _ in 0..2 {
        let c = t.c.tcp();
        t.c.connect(c, &addr);
    }
    t.s.poll(&[(l, POLLIN)], 5000);
    t.s.accept(l);
    t.s.poll(&[(l, POLLIN)], 5000);
    t.s.accept(l);
    t.s.poll(&[(l, POLLIN)], 0);
}

fn bad_flags(t: &Duo) {
    let (l, _) = t.listener();
    t.s.accept4(l, 0x7);
    t.s.accept(99);
}

fn without_listen(t: &Duo) {
    let l = t.s.tcp();
    t.s.accept(l);
    t.s.bind(l, &v4());
    t.s.accept(l);
}

fn on_connected(t: &Duo) {
    let p = t.pair();
    t.s.accept(p.s);
    t.c.accept(p.c);
}

fn two_waiting(t: &Duo) {
    let (l, addr) = t.listener();
    let clients = [t.c.tcp(), t.c.tcp()];
    let waiting =
        [t.s.start(Op::Accept { fd: l, flags: None }), t.s.start(Op::Accept { fd: l, flags: None })];
    t.pause();
    for c in clients {
        t.c.connect(c, &addr);
    }
    // Which of the two gets which client is nobody's promise; that both come back is.
    let mut fds: Vec<i64> = waiting.iter().map(|w| t.s.quiet(&Op::Join { ticket: *w }).ret).collect();
    fds.sort_unstable();
    t.s.remark(&format!("accepted {fds:?}"));
}

/// A call that waits, and its thread.
fn waiting_accept(t: &Duo, l: i32, flags: i32) -> i64 {
    let waiting = t.s.start(Op::Accept { fd: l, flags: Some(flags) });
    t.s.until_blocked();
    waiting
}

fn joined(t: &Duo, waiting: i64) -> i32 {
    i32::try_from(t.s.join(waiting).ret).unwrap_or(-1)
}

fn number_first(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    let free = t.s.tcp();
    t.s.close(free);
    let waiting = waiting_accept(t, l, 0);
    // As if it were not there, but not to be had.
    t.s.close(free);
    t.s.call(Op::Dup2 { fd: l, to: free });
    t.s.tcp();
    t.c.connect(c, &addr);
    let s = joined(t, waiting);
    t.s.send(s, b"here");
    t.c.recv(c, 4);
    t.s.tcp();
}

fn number_back(t: &Duo) {
    let (l, _) = t.listener();
    let timeout: Vec<u8> = [0_i64, 20_000].iter().flat_map(|v| v.to_ne_bytes()).collect();
    t.s.setopt_bytes(l, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout);
    t.s.accept(l);
    t.s.tcp();
}

fn number_in_child(t: &Duo) {
    let (l, addr) = t.listener();
    let waiting = waiting_accept(t, l, 0);
    let Some(child) = t.s.fork("k") else { return };
    child.tcp();
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    let s = joined(t, waiting);
    t.s.send(s, b"parent");
    t.c.recv(c, 8);
    child.exit();
}

fn flags_after_waiting(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    for flags in [0, SOCK_NONBLOCK, SOCK_CLOEXEC] {
        let waiting = waiting_accept(t, l, flags);
        let c = if flags == 0 { c } else { t.c.tcp() };
        t.c.connect(c, &addr);
        let s = joined(t, waiting);
        t.s.fcntl(s, libc::F_GETFD, 0);
        t.s.fcntl(s, libc::F_GETFL, 0);
    }
}

/// The call holds the listening socket: one more connection comes, and then it is gone.
fn closed_under_accept(t: &Duo) {
    let (l, addr) = t.listener();
    let clients = [t.c.tcp(), t.c.tcp()];
    let waiting = waiting_accept(t, l, 0);
    t.s.close(l);
    t.c.connect(clients[0], &addr);
    let s = joined(t, waiting);
    t.c.send(clients[0], b"the last");
    t.s.recv(s, 16);
    t.c.connect(clients[1], &addr);
}

fn replaced_under_accept(t: &Duo) {
    let (l, addr) = t.listener();
    let (other, elsewhere) = t.listener();
    let clients = [t.c.tcp(), t.c.tcp()];
    let waiting = waiting_accept(t, l, 0);
    t.s.call(Op::Dup2 { fd: other, to: l });
    t.c.connect(clients[0], &addr);
    let s = joined(t, waiting);
    t.c.send(clients[0], b"of the old one");
    t.s.recv(s, 16);
    t.c.connect(clients[1], &elsewhere);
    let s = t.s.accept(l);
    t.c.send(clients[1], b"of the new one");
    t.s.recv(s, 16);
}

fn backlog(t: &Duo) {
    let (l, addr) = t.listener_at(AF_INET, &v4(), 1);
    let clients: Vec<i32> = (0..6).map(|_| t.c.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK)).collect();
    for c in &clients {
        t.c.connect(*c, &addr);
    }
    for _ in 0..2 {
        let s = t.s.accept(l);
        t.s.send(s, b"next");
    }
    t.c.recv_by(clients[0], 4, harness::wire::RecvBy::Recv, 0);
    t.c.recv_by(clients[1], 4, harness::wire::RecvBy::Recv, 0);
}

fn listener_closed(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    t.s.close(l);
    t.c.recv(c, 4);
    t.c.recv(c, 4);
    let again = t.c.tcp();
    t.c.connect(again, &addr);
}

fn listener_shutdown(t: &Duo) {
    let (l, _) = t.listener();
    let waiting = t.s.start(Op::Accept { fd: l, flags: None });
    t.pause();
    t.s.shutdown(l, libc::SHUT_RDWR);
    t.s.join(waiting);
}

fn listen_again(t: &Duo) {
    let (l, addr) = t.listener();
    t.s.listen(l, 64);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    let s = t.s.accept(l);
    t.s.send(s, b"x");
    t.c.recv(c, 4);
}

fn listen_unbound(t: &Duo) {
    let l = t.s.tcp();
    t.s.listen(l, 4);
    let port = t.s.sockname(l).port;
    let c = t.c.tcp();
    t.c.connect(c, &crate::driver::at("127.0.0.1", port));
    let s = t.s.accept(l);
    t.s.send(s, b"x");
    t.c.recv(c, 4);
}

fn in_use(t: &Duo) {
    let (_l, addr) = t.listener();
    let other = t.c.tcp();
    t.c.bind(other, &addr);
    t.c.setopt(other, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
    t.c.bind(other, &addr);
}

fn rebind(t: &Duo) {
    let (l, addr) = t.listener();
    t.s.close(l);
    let again = t.s.tcp();
    t.s.setopt(again, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
    t.s.bind(again, &addr);
    t.s.listen(again, 4);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    let s = t.s.accept(again);
    t.c.send(c, b"x");
    t.s.recv(s, 4);
}

/// A shut-down listener can be told to listen again; what clients find there is up to the kernel.
fn listen_shutdown_listen(t: &Duo) {
    let (l, addr) = t.listener();
    t.s.shutdown(l, libc::SHUT_RD);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    t.s.listen(l, 4);
    t.s.sockname(l);
    let c = t.c.tcp();
    t.c.connect(c, &addr);
}

/// Clients that connect while `listen` is still at work are seen by a server that only asks epoll. Which path such a
/// connection takes depends on how far `listen` was.
fn at_once(t: &Duo) {
    // All bound before the first is closed, so that no port comes twice.
    let listeners: Vec<_> = (0..50)
        .map(|_| {
            let l = t.s.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK);
            t.s.bind(l, &v4());
            (l, t.s.sockname(l))
        })
        .collect();
    for (round, (l, addr)) in listeners.into_iter().enumerate() {
        let c = t.c.tcp();
        let ep = t.s.epoll();
        if round % 2 == 0 {
            t.s.epoll_add(ep, l, EPOLLIN);
        }
        let knocking = t.c.start(Op::Knock { fd: c, addr });
        t.s.listen(l, 8);
        if round % 2 == 1 {
            t.s.epoll_add(ep, l, EPOLLIN);
        }
        t.s.epoll_wait(ep, 5000);
        let s = t.s.accept(l);
        t.c.join(knocking);
        t.s.close(s);
        t.c.recv(c, 4);
        t.s.close(l);
        t.s.close(ep);
        t.c.close(c);
    }
}

fn udp(t: &Duo) {
    let u = t.s.socket(AF_INET, libc::SOCK_DGRAM);
    t.s.listen(u, 4);
    t.s.bind(u, &v4());
    t.s.accept(u);
}

fn connected(t: &Duo) {
    let p = t.pair();
    t.c.listen(p.c, 4);
    t.s.listen(p.s, 4);
}
