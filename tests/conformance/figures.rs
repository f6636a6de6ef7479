//! What a connection says of itself: `TCP_INFO`, segment sizes, names, queues; and options that it refuses.

use harness::wire::{Bytes, Op};
use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET};

use crate::driver::v6;
use crate::{Case, Expect::User};

const SIOCINQ: libc::Ioctl = libc::FIONREAD;
const SIOCOUTQ: libc::Ioctl = libc::TIOCOUTQ;
const SIOCOUTQNSD: libc::Ioctl = 0x894b;
const SO_PEERNAME: i32 = 28;
const TCP_FASTOPEN_NO_COOKIE: i32 = 34;

pub const CASES: &[Case] = &[
    ("figures::segments_and_paths", User, |t| {
        let p = t.pair();
        let mss = t.c.quiet(&Op::Getsockopt { fd: p.c, level: IPPROTO_TCP, name: libc::TCP_MAXSEG, len: 4 });
        // 32,741 or 32,768, as the connection's age has it.
        t.c.remark(&format!(
            "segments of about 32 KiB: {:?}",
            mss.data.0.get(1).map(|high| high.div_ceil(128))
        ));
        t.c.getopt(p.c, IPPROTO_TCP, libc::TCP_WINDOW_CLAMP);
        t.c.getopt(p.c, IPPROTO_IP, libc::IP_MTU);
    }),
    ("figures::paths_of_ipv6", User, |t| {
        let (l, addr) = t.listener_at(libc::AF_INET6, &v6(), 8);
        let c = t.c.socket(libc::AF_INET6, libc::SOCK_STREAM);
        t.c.connect(c, &addr);
        t.s.accept(l);
        t.c.getopt(c, IPPROTO_IPV6, libc::IPV6_MTU);
        t.c.getopt(c, IPPROTO_IPV6, libc::IPV6_V6ONLY);
        t.c.call(Op::Getsockopt { fd: c, level: SOL_SOCKET, name: SO_PEERNAME, len: 100 });
    }),
    ("figures::segments_limited_before", User, |t| {
        let (l, addr) = t.listener();
        let c = t.c.tcp();
        t.c.setopt(c, IPPROTO_TCP, libc::TCP_MAXSEG, 1000);
        t.c.getopt(c, IPPROTO_TCP, libc::TCP_MAXSEG);
        t.c.connect(c, &addr);
        t.s.accept(l);
        t.c.send(c, b"x");
    }),
    ("figures::state_in_tcp_info", User, |t| {
        let p = t.pair();
        let state = |side: &crate::driver::Side, fd| {
            side.call(Op::Getsockopt { fd, level: IPPROTO_TCP, name: libc::TCP_INFO, len: 1 });
        };
        state(&t.c, p.c);
        state(&t.s, p.s);
        t.c.shutdown(p.c, libc::SHUT_WR);
        t.s.settle(p.s, libc::POLLRDHUP);
        t.pause();
        state(&t.c, p.c);
        state(&t.s, p.s);
        t.s.shutdown(p.s, libc::SHUT_WR);
        t.c.settle(p.c, libc::POLLHUP);
        state(&t.c, p.c);
    }),
    ("figures::length_of_tcp_info", User, |t| {
        let p = t.pair();
        for len in [0, 8, 104, 192] {
            let out = t.c.quiet(&Op::Getsockopt { fd: p.c, level: IPPROTO_TCP, name: libc::TCP_INFO, len });
            t.c.remark(&format!("TCP_INFO in {len}: {} {} {}", out.ret, out.errno, out.data.0.len()));
        }
    }),
    ("figures::bytes_in_tcp_info", User, |t| {
        let p = t.pair();
        t.c.send(p.c, b"twelve bytes");
        t.s.recv(p.s, 64);
        t.pause();
        let info = t.c.quiet(&Op::Getsockopt { fd: p.c, level: IPPROTO_TCP, name: libc::TCP_INFO, len: 232 });
        // tcpi_bytes_sent
        t.c.remark(&format!("{:?}", info.data.0.get(200..208)));
        let info = t.s.quiet(&Op::Getsockopt { fd: p.s, level: IPPROTO_TCP, name: libc::TCP_INFO, len: 232 });
        // tcpi_bytes_received
        t.s.remark(&format!("{:?}", info.data.0.get(128..136)));
    }),
    ("figures::peer_credentials_of_tcp", User, |t| {
        let p = t.pair();
        t.c.call(Op::Getsockopt { fd: p.c, level: SOL_SOCKET, name: libc::SO_PEERCRED, len: 12 });
        t.c.call(Op::Getsockopt { fd: p.c, level: SOL_SOCKET, name: libc::SO_PEERSEC, len: 64 });
    }),
    ("figures::peer_name_option", User, |t| {
        let p = t.pair();
        for len in [4, 8, 17] {
            let call = Op::Getsockopt { fd: p.c, level: SOL_SOCKET, name: SO_PEERNAME, len };
            let out = t.c.quiet(&call);
            // Family only: the port differs from run to run.
            let family = out.data.0.get(..2).map(<[u8]>::to_vec).unwrap_or_default();
            t.c.remark(&format!("{call:?}: {} {} {:?}", out.ret, out.errno, Bytes(family)));
        }
    }),
    ("figures::cookie_and_congestion", User, |t| {
        let p = t.pair();
        let cookie = t.c.quiet(&Op::Getsockopt { fd: p.c, level: SOL_SOCKET, name: libc::SO_COOKIE, len: 8 });
        t.c.remark(&format!("cookie: {} bytes", cookie.data.0.len()));
        t.c.call(Op::Getsockopt { fd: p.c, level: IPPROTO_TCP, name: libc::TCP_CONGESTION, len: 16 });
        t.c.setopt_bytes(p.c, IPPROTO_TCP, libc::TCP_CONGESTION, b"reno");
        t.c.call(Op::Getsockopt { fd: p.c, level: IPPROTO_TCP, name: libc::TCP_CONGESTION, len: 16 });
    }),
    ("figures::set_on_a_connection", User, |t| {
        let p = t.pair();
        for name in [
            libc::TCP_DEFER_ACCEPT,
            libc::TCP_USER_TIMEOUT,
            libc::TCP_NOTSENT_LOWAT,
            libc::TCP_FASTOPEN,
            libc::TCP_FASTOPEN_CONNECT,
            TCP_FASTOPEN_NO_COOKIE,
        ] {
            t.c.setopt(p.c, IPPROTO_TCP, name, 3);
            t.c.getopt(p.c, IPPROTO_TCP, name);
        }
        t.c.setopt_bytes(p.c, IPPROTO_TCP, libc::TCP_ULP, b"no-such\0");
        for name in
            [libc::SO_PRIORITY, libc::SO_MARK, libc::SO_BUSY_POLL, libc::SO_TIMESTAMP, libc::SO_INCOMING_CPU]
        {
            t.c.setopt(p.c, SOL_SOCKET, name, 0);
        }
        for name in [libc::SO_PRIORITY, libc::SO_MARK, libc::SO_BUSY_POLL, libc::SO_TIMESTAMP] {
            t.c.getopt(p.c, SOL_SOCKET, name);
        }
        t.c.setopt(p.c, IPPROTO_IP, libc::IP_TOS, 0x08);
        t.c.getopt(p.c, IPPROTO_IP, libc::IP_TOS);
        t.c.send(p.c, b"x");
        t.s.recv(p.s, 4);
    }),
    ("figures::queues", User, |t| {
        let p = t.pair();
        for request in [SIOCINQ, SIOCOUTQ, SIOCOUTQNSD] {
            t.c.ioctl(p.c, request, -1);
        }
        t.c.send(p.c, b"some");
        t.s.settle(p.s, libc::POLLIN);
        t.s.ioctl(p.s, SIOCINQ, -1);
        t.s.recv(p.s, 64);
        t.s.send(p.s, b"acknowledges");
        t.c.recv(p.c, 64);
        t.c.ioctl(p.c, SIOCOUTQ, -1);
    }),
    ("figures::queue_of_a_full_connection", User, |t| {
        let p = t.pair();
        t.c.nonblocking(p.c);
        let op = Op::Fill { fd: p.c, len: 65_536, flags: libc::MSG_NOSIGNAL };
        // How much fits before that is each implementation's own business.
        while t.c.quiet(&op).ret > 0 {}
        let waiting = t.c.quiet(&Op::Ioctl { fd: p.c, request: SIOCOUTQ, value: -1 });
        t.c.remark(&format!("{} and something waits: {}", waiting.ret, waiting.value > 0));
    }),
    ("figures::close_on_exec_by_ioctl", User, |t| {
        let p = t.pair();
        t.c.ioctl(p.c, 0x5451, 0);
        t.c.fcntl(p.c, libc::F_GETFD, 0);
        t.c.ioctl(p.c, 0x5450, 0);
        t.c.fcntl(p.c, libc::F_GETFD, 0);
    }),
];
