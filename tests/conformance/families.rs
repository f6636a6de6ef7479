//! IPv4, IPv6, both at once; and sockets that are none of ours.

use harness::wire::{Op, SendBy};
use libc::{
    AF_INET, AF_INET6, AF_UNIX, IPPROTO_IPV6, IPV6_V6ONLY, SO_DOMAIN, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET,
};

use crate::driver::{Duo, at, v4, v6};
use crate::{
    Case,
    Expect::{Any, User},
};

pub const CASES: &[Case] = &[
    ("families::ipv6", User, ipv6),
    ("families::ipv6_wildcard_takes_ipv6", User, wildcard6),
    ("families::dual_stack_takes_ipv4", User, dual),
    ("families::v6only_refuses_ipv4", Any, v6only),
    ("families::v4_mapped_client", User, mapped_client),
    ("families::v4_mapped_to_dual_stack", User, mapped_both),
    ("families::ipv4_wildcard", User, wildcard4),
    ("families::specific_beats_wildcard", User, specific),
    ("families::ipv6_refused", Any, refused6),
    ("families::ipv6_options", User, options6),
    ("families::bind_errors", Any, bind_errors),
    ("families::socket_errors", Any, socket_errors),
    ("families::udp_goes_on", Any, udp),
    ("families::same_port_both_families", User, same_port),
];

fn exchange(t: &Duo, domain: i32, listen: &harness::wire::Addr, client: i32, to: &str) {
    let (l, addr) = t.listener_at(domain, listen, 8);
    let c = t.c.socket(client, SOCK_STREAM);
    t.c.connect(c, &at(to, addr.port));
    let s = t.s.accept(l);
    for (side, fd) in [(&t.c, c), (&t.s, s)] {
        side.sockname(fd);
        side.peername(fd);
    }
    t.c.send(c, b"hello");
    t.s.recv(s, 16);
    t.s.send(s, b"world");
    t.c.recv(c, 16);
    t.c.close(c);
    t.s.recv(s, 16);
}

fn ipv6(t: &Duo) {
    exchange(t, AF_INET6, &v6(), AF_INET6, "::1");
}

fn wildcard6(t: &Duo) {
    exchange(t, AF_INET6, &at("::", 0), AF_INET6, "::1");
}

fn dual(t: &Duo) {
    exchange(t, AF_INET6, &at("::", 0), AF_INET, "127.0.0.1");
}

fn v6only(t: &Duo) {
    let l = t.s.socket(AF_INET6, SOCK_STREAM);
    t.s.setopt(l, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    t.s.bind(l, &at("::", 0));
    t.s.listen(l, 4);
    let port = t.s.sockname(l).port;
    let c = t.c.tcp();
    t.c.connect(c, &at("127.0.0.1", port));
    let c6 = t.c.socket(AF_INET6, SOCK_STREAM);
    t.c.connect(c6, &at("::1", port));
    t.s.accept(l);
}

fn mapped_client(t: &Duo) {
    exchange(t, AF_INET, &v4(), AF_INET6, "::ffff:127.0.0.1");
}

fn mapped_both(t: &Duo) {
    exchange(t, AF_INET6, &at("::", 0), AF_INET6, "::ffff:127.0.0.1");
}

fn wildcard4(t: &Duo) {
    exchange(t, AF_INET, &at("0.0.0.0", 0), AF_INET, "127.0.0.1");
}

fn specific(t: &Duo) {
    let (wide, addr) = t.listener_at(AF_INET, &at("127.0.0.2", 0), 4);
    let (narrow, _) = t.listener_at(AF_INET, &at("127.0.0.3", addr.port), 4);
    for (l, ip) in [(narrow, "127.0.0.3"), (wide, "127.0.0.2")] {
        let c = t.c.tcp();
        t.c.connect(c, &at(ip, addr.port));
        let s = t.s.accept(l);
        t.s.sockname(s);
        t.s.send(s, ip.as_bytes());
        t.c.recv(c, 32);
    }
    let nobody = t.c.tcp();
    t.c.connect(nobody, &at("127.0.0.4", addr.port));
}

fn refused6(t: &Duo) {
    let l = t.s.socket(AF_INET6, SOCK_STREAM);
    t.s.bind(l, &v6());
    let addr = t.s.sockname(l);
    t.s.close(l);
    let c = t.c.socket(AF_INET6, SOCK_STREAM);
    t.c.connect(c, &addr);
}

fn options6(t: &Duo) {
    let (l, addr) = t.listener_at(AF_INET6, &v6(), 4);
    let c = t.c.socket(AF_INET6, SOCK_STREAM);
    t.c.connect(c, &addr);
    let s = t.s.accept(l);
    t.c.getopt(c, SOL_SOCKET, SO_DOMAIN);
    t.s.getopt(s, SOL_SOCKET, SO_DOMAIN);
    t.c.getopt(c, IPPROTO_IPV6, IPV6_V6ONLY);
    t.s.setopt(l, IPPROTO_IPV6, IPV6_V6ONLY, 1);
}

fn bind_errors(t: &Duo) {
    let l = t.s.tcp();
    t.s.bind(l, &at("192.0.2.1", 0));
    t.s.bind(l, &at("::1", 0));
    t.s.bind(99, &v4());
    t.s.bind(l, &v4());
    t.s.bind(l, &v4());
}

fn socket_errors(t: &Duo) {
    for (domain, ty) in [(9999, SOCK_STREAM), (AF_INET, 77), (AF_INET, libc::SOCK_SEQPACKET)] {
        t.c.socket(domain, ty);
    }
    t.c.call(Op::Socket { domain: AF_INET, ty: SOCK_STREAM, protocol: libc::IPPROTO_UDP });
    let c = t.c.call(Op::Socket { domain: AF_INET, ty: SOCK_STREAM, protocol: libc::IPPROTO_TCP });
    t.c.close(i32::try_from(c.ret).unwrap_or(-1));
    t.c.socket(AF_UNIX, SOCK_STREAM);
}

fn udp(t: &Duo) {
    let u = t.s.socket(AF_INET, SOCK_DGRAM);
    t.s.bind(u, &v4());
    let addr = t.s.sockname(u);
    let c = t.c.socket(AF_INET, SOCK_DGRAM);
    t.c.connect(c, &addr);
    t.c.send_by(c, b"datagram", SendBy::Write, 0);
    t.s.recv(u, 64);
}

fn same_port(t: &Duo) {
    let (four, addr) = t.listener();
    let l = t.s.socket(AF_INET6, SOCK_STREAM);
    t.s.setopt(l, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    t.s.bind(l, &at("::1", addr.port));
    t.s.listen(l, 4);
    for (listener, domain, ip) in [(l, AF_INET6, "::1"), (four, AF_INET, "127.0.0.1")] {
        let c = t.c.socket(domain, SOCK_STREAM);
        t.c.connect(c, &at(ip, addr.port));
        let s = t.s.accept(listener);
        t.s.send(s, ip.as_bytes());
        t.c.recv(c, 32);
    }
}
