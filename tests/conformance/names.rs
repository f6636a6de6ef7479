//! `getsockname` and `getpeername` at every stage of a socket's life.

use libc::AF_INET;

use crate::driver::{Duo, at, v4};
use crate::{
    Case,
    Expect::{Any, User},
};

pub const CASES: &[Case] = &[
    ("names::fresh_socket", Any, fresh),
    ("names::bound_to_port_zero", Any, bound),
    ("names::both_ends_agree", User, agree),
    ("names::accept_tells_the_peer", User, accept_tells),
    ("names::after_shutdown", User, after_shutdown),
    ("names::after_the_peer_closed", User, after_peer_closed),
    ("names::wildcard_listener_gives_the_real_address", User, wildcard),
    ("names::other_loopback_address", User, other_loopback),
    ("names::not_a_socket", Any, not_a_socket),
    ("names::reuse_of_a_closed_socket_number", User, reuse),
    ("names::after_the_listener_closed_without_accepting", Any, never_accepted),
];

fn never_accepted(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    t.c.peername(c);
    t.s.close(l);
    t.c.peername(c);
    t.c.sockname(c);
    t.c.getopt(c, libc::SOL_SOCKET, libc::SO_ERROR);
    t.c.recv(c, 4);
}

fn fresh(t: &Duo) {
    let c = t.c.tcp();
    t.c.sockname(c);
    t.c.peername(c);
    let c6 = t.c.socket(libc::AF_INET6, libc::SOCK_STREAM);
    t.c.sockname(c6);
    t.c.peername(c6);
}

fn bound(t: &Duo) {
    let l = t.s.tcp();
    t.s.bind(l, &v4());
    let before = t.s.sockname(l);
    t.s.listen(l, 1);
    let after = t.s.sockname(l);
    t.s.remark(&format!("listen keeps the port: {}", before == after));
    t.s.peername(l);
    t.s.bind(l, &v4());
}

fn agree(t: &Duo) {
    let p = t.pair();
    let mine = t.c.sockname(p.c);
    let seen = t.s.peername(p.s).addr;
    let theirs = t.c.peername(p.c).addr;
    let own = t.s.sockname(p.s);
    t.c.remark(&format!("agree: {} {}", Some(mine) == seen, theirs == Some(own)));
}

fn accept_tells(t: &Duo) {
    let (l, addr) = t.listener();
    let c = t.c.tcp();
    t.c.connect(c, &addr);
    let mine = t.c.sockname(c);
    let out = t.s.call(harness::wire::Op::Accept { fd: l, flags: None });
    t.c.remark(&format!("same: {}", out.addr == Some(mine)));
}

fn after_shutdown(t: &Duo) {
    let p = t.pair();
    t.c.shutdown(p.c, libc::SHUT_RDWR);
    t.c.sockname(p.c);
    t.c.peername(p.c);
}

fn after_peer_closed(t: &Duo) {
    let p = t.pair();
    t.s.close(p.s);
    t.c.recv(p.c, 1);
    t.c.sockname(p.c);
    t.c.peername(p.c);
}

fn wildcard(t: &Duo) {
    let (l, addr) = t.listener_at(AF_INET, &at("0.0.0.0", 0), 4);
    let c = t.c.tcp();
    t.c.connect(c, &at("127.0.0.1", addr.port));
    let s = t.s.accept(l);
    t.s.sockname(s);
    t.c.peername(c);
}

fn other_loopback(t: &Duo) {
    let (l, addr) = t.listener_at(AF_INET, &at("0.0.0.0", 0), 4);
    let c = t.c.tcp();
    t.c.connect(c, &at("127.9.8.7", addr.port));
    t.c.sockname(c);
    let s = t.s.accept(l);
    t.s.sockname(s);
    t.s.peername(s);
}

fn not_a_socket(t: &Duo) {
    let (r, _w) = t.c.pipe();
    t.c.sockname(r);
    t.c.peername(r);
    t.c.sockname(99);
}

fn reuse(t: &Duo) {
    let p = t.pair();
    t.c.close(p.c);
    let c = t.c.tcp();
    t.c.sockname(c);
    t.c.peername(c);
}
