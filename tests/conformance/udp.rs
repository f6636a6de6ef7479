//! UDP: passed through, and untouched by it.

use harness::wire::{Addr, Op, RecvBy, SendBy};
use libc::{
    AF_INET, AF_INET6, EPOLLIN, FIONREAD, MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC, POLLIN, POLLOUT, SO_BROADCAST,
    SO_ERROR, SO_REUSEPORT, SO_TYPE, SOCK_DGRAM, SOL_SOCKET,
};

use crate::driver::{Duo, at, v4, v6};
use crate::{Case, Expect::Any};

pub const CASES: &[Case] = &[
    ("udp::there_and_back", Any, |t| there_and_back(t, AF_INET, &v4())),
    ("udp::ipv6", Any, |t| there_and_back(t, AF_INET6, &v6())),
    ("udp::connected", Any, connected),
    ("udp::connected_hears_only_its_peer", Any, only_peer),
    ("udp::nobody_there", Any, nobody),
    ("udp::truncation_and_peek", Any, truncation),
    ("udp::empty_datagram", Any, empty),
    ("udp::many_messages_in_a_call", Any, many),
    ("udp::readiness", Any, ready),
    ("udp::broadcast_needs_the_option", Any, broadcast),
    ("udp::too_large", Any, too_large),
    ("udp::reuseport", Any, reuseport),
    ("udp::forked_receiver", Any, forked),
    ("udp::stream_calls_are_refused", Any, stream_calls),
    ("udp::blocked_receiver", Any, blocked),
];

/// A bound receiver at the server, and where it is.
fn receiver(t: &Duo) -> (i32, Addr) {
    let u = t.s.socket(AF_INET, SOCK_DGRAM);
    t.s.bind(u, &v4());
    (u, t.s.sockname(u))
}

fn send_to(t: &Duo, fd: i32, text: &str, to: &Addr) {
    t.c.call(Op::SendTo { fd, data: text.as_bytes().into(), to: to.clone(), flags: 0 });
}

fn there_and_back(t: &Duo, domain: i32, addr: &Addr) {
    let u = t.s.socket(domain, SOCK_DGRAM);
    t.s.bind(u, addr);
    let to = t.s.sockname(u);
    let c = t.c.socket(domain, SOCK_DGRAM);
    send_to(t, c, "hello", &to);
    let from = t.s.recv_by(u, 64, RecvBy::Recvfrom, 0).addr;
    if let Some(to) = from {
        t.s.call(Op::SendTo { fd: u, data: (&b"back"[..]).into(), to, flags: 0 });
    }
    t.c.recv_message(c, 0);
    t.c.sockname(c);
}

fn connected(t: &Duo) {
    let (u, addr) = receiver(t);
    let c = t.c.socket(AF_INET, SOCK_DGRAM);
    t.c.connect(c, &addr);
    t.c.peername(c);
    t.c.write(c, b"one");
    t.c.send(c, b"two");
    t.s.read(u, 64);
    t.s.recv(u, 64);
    t.c.connect(c, &at("none", 0));
    t.c.peername(c);
}

fn only_peer(t: &Duo) {
    let (a, addr) = receiver(t);
    let (_, other) = receiver(t);
    t.s.connect(a, &other);
    let c = t.c.socket(AF_INET, SOCK_DGRAM);
    send_to(t, c, "not for you", &addr);
    t.s.recv_by(a, 64, RecvBy::Recv, MSG_DONTWAIT);
}

fn nobody(t: &Duo) {
    let (u, addr) = receiver(t);
    t.s.close(u);
    let c = t.c.socket(AF_INET, SOCK_DGRAM);
    t.c.connect(c, &addr);
    t.c.send(c, b"x");
    t.c.poll(&[(c, POLLIN | POLLOUT)], 1000);
    t.c.send(c, b"y");
    t.c.getopt(c, SOL_SOCKET, SO_ERROR);
}

fn truncation(t: &Duo) {
    let (u, addr) = receiver(t);
    let c = t.c.socket(AF_INET, SOCK_DGRAM);
    send_to(t, c, "0123456789", &addr);
    t.s.ioctl(u, FIONREAD, 0);
    t.s.recv_by(u, 4, RecvBy::Recvmsg(4), MSG_PEEK);
    t.s.recv_by(u, 64, RecvBy::Recv, MSG_PEEK | MSG_TRUNC);
    t.s.recv_by(u, 4, RecvBy::Recvmsg(4), 0);
    t.s.recv_by(u, 4, RecvBy::Recv, MSG_DONTWAIT);
}

fn empty(t: &Duo) {
    let (u, addr) = receiver(t);
    let c = t.c.socket(AF_INET, SOCK_DGRAM);
    send_to(t, c, "", &addr);
    t.s.poll(&[(u, POLLIN)], 1000);
    t.s.recv(u, 4);
    t.s.recv_by(u, 4, RecvBy::Recv, MSG_DONTWAIT);
}

fn many(t: &Duo) {
    let (u, addr) = receiver(t);
    let c = t.c.socket(AF_INET, SOCK_DGRAM);
    t.c.connect(c, &addr);
    t.c.send_by(c, b"aabbccdde", SendBy::Sendmmsg(2), 0);
    t.s.recv_by(u, 16, RecvBy::Recvmmsg(4), MSG_DONTWAIT);
    t.s.recv_by(u, 16, RecvBy::Recvmmsg(4), MSG_DONTWAIT);
}

fn ready(t: &Duo) {
    let (u, addr) = receiver(t);
    let ep = t.s.epoll();
    t.s.epoll_add(ep, u, EPOLLIN);
    let c = t.c.socket(AF_INET, SOCK_DGRAM);
    send_to(t, c, "x", &addr);
    t.s.epoll_wait(ep, 1000);
    t.s.recv(u, 4);
    t.s.epoll_wait(ep, 0);
}

fn broadcast(t: &Duo) {
    let c = t.c.socket(AF_INET, SOCK_DGRAM);
    t.c.connect(c, &at("127.255.255.255", 9));
    t.c.setopt(c, SOL_SOCKET, SO_BROADCAST, 1);
    t.c.connect(c, &at("127.255.255.255", 9));
}

fn too_large(t: &Duo) {
    let (u, addr) = receiver(t);
    let c = t.c.socket(AF_INET, SOCK_DGRAM);
    t.c.connect(c, &addr);
    t.c.call(Op::Fill { fd: c, len: 65_508, flags: 0 });
    t.c.call(Op::Fill { fd: c, len: 65_507, flags: 0 });
    t.s.recv(u, 70_000);
}

fn reuseport(t: &Duo) {
    let (u, addr) = receiver(t);
    let second = t.s.socket(AF_INET, SOCK_DGRAM);
    t.s.bind(second, &addr);
    t.s.setopt(u, SOL_SOCKET, SO_REUSEPORT, 1);
    t.s.setopt(second, SOL_SOCKET, SO_REUSEPORT, 1);
    t.s.bind(second, &addr);
}

fn forked(t: &Duo) {
    let (u, addr) = receiver(t);
    let Some(child) = t.s.fork("k") else { return };
    t.s.close(u);
    let c = t.c.socket(AF_INET, SOCK_DGRAM);
    send_to(t, c, "for the child", &addr);
    child.recv(u, 64);
}

fn stream_calls(t: &Duo) {
    let (u, _) = receiver(t);
    t.s.listen(u, 4);
    t.s.accept(u);
    t.s.getopt(u, SOL_SOCKET, SO_TYPE);
    t.s.send(u, b"no destination");
    t.s.shutdown(u, libc::SHUT_RD);
}

fn blocked(t: &Duo) {
    let (u, addr) = receiver(t);
    let waiting = t.s.start_recv(u, 64);
    t.pause();
    let c = t.c.socket(AF_INET, SOCK_DGRAM);
    send_to(t, c, "wake", &addr);
    t.s.join(waiting);
}
