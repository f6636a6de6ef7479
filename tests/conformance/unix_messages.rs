//! `AF_UNIX` sockets that keep message boundaries: seqpacket and datagram.

use harness::wire::{Op, RecvBy, SendBy};
use libc::{
    AF_UNIX, EPOLLIN, FIONREAD, MSG_DONTWAIT, MSG_PEEK, MSG_TRUNC, POLLIN, POLLOUT, SHUT_WR, SIGPIPE,
    SO_PASSCRED, SO_TYPE, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_SEQPACKET, SOCK_STREAM, SOL_SOCKET,
};

use crate::driver::{Duo, at};
use crate::{Case, Expect::Any};

pub const SEQPACKET: &[Case] = &[
    ("unix_seqpacket::boundaries", Any, packet_boundaries),
    ("unix_seqpacket::abstract_name", Any, packet_abstract),
    ("unix_seqpacket::short_reads_lose_the_rest", Any, packet_truncation),
    ("unix_seqpacket::empty_message_and_end", Any, packet_empty),
    ("unix_seqpacket::too_large_a_message", Any, packet_too_large),
    ("unix_seqpacket::names_and_peercred", Any, packet_names),
    ("unix_seqpacket::rights", Any, packet_rights),
    ("unix_seqpacket::many_messages_in_a_call", Any, packet_many),
    ("unix_seqpacket::half_close_and_sigpipe", Any, packet_half_close),
    ("unix_seqpacket::readiness", Any, packet_ready),
    ("unix_seqpacket::backlog_full", Any, packet_backlog),
    ("unix_seqpacket::options", Any, packet_options),
    ("unix_seqpacket::forked_server", Any, packet_fork),
];

pub const DGRAM: &[Case] = &[
    ("unix_dgram::path", Any, to_path),
    ("unix_dgram::abstract_name", Any, to_abstract),
    ("unix_dgram::sender_without_a_name", Any, nameless),
    ("unix_dgram::autobound_sender", Any, autobound),
    ("unix_dgram::connected", Any, connected),
    ("unix_dgram::connected_hears_only_its_peer", Any, only_peer),
    ("unix_dgram::reconnect_and_dissolve", Any, reconnect),
    ("unix_dgram::boundaries_and_truncation", Any, truncation),
    ("unix_dgram::empty_datagram", Any, empty),
    ("unix_dgram::nobody_there", Any, nobody),
    ("unix_dgram::receiver_closes", Any, receiver_closes),
    ("unix_dgram::full_queue", Any, full),
    ("unix_dgram::full_queue_blocks", Any, full_blocks),
    ("unix_dgram::too_large", Any, too_large),
    ("unix_dgram::wrong_type", Any, wrong_type),
    ("unix_dgram::peek_and_trunc", Any, peek),
    ("unix_dgram::rights_and_credentials", Any, rights),
    ("unix_dgram::many_messages_in_a_call", Any, many),
    ("unix_dgram::readiness", Any, ready),
    ("unix_dgram::permission", Any, permission),
];

fn packet_boundaries(t: &Duo) {
    let p = t.unix_pair(SOCK_SEQPACKET);
    for text in ["one", "two and more", "3"] {
        t.c.send(p.c, text.as_bytes());
    }
    for _ in 0..3 {
        t.s.recv(p.s, 64);
    }
    t.s.send_by(p.s, b"in vectors", SendBy::Writev(3), 0);
    t.c.recv_by(p.c, 64, RecvBy::Readv(4), 0);
    t.c.close(p.c);
    t.s.recv(p.s, 64);
}

fn packet_abstract(t: &Duo) {
    let name = t.abstract_name("packets");
    let l = t.unix_listener(SOCK_SEQPACKET, &name, 4);
    let c = t.c.socket(AF_UNIX, SOCK_SEQPACKET);
    t.c.connect(c, &name);
    let s = t.s.accept(l);
    t.c.send(c, b"x");
    t.s.recv_message(s, 0);
}

fn packet_truncation(t: &Duo) {
    let p = t.unix_pair(SOCK_SEQPACKET);
    t.c.send(p.c, b"0123456789");
    t.c.send(p.c, b"next");
    t.s.recv_by(p.s, 4, RecvBy::Recvmsg(4), MSG_PEEK);
    t.s.recv_by(p.s, 4, RecvBy::Recvmsg(4), 0);
    t.s.recv(p.s, 64);
    t.c.send(p.c, b"0123456789");
    t.s.call(Op::Recv { fd: p.s, len: 4, by: RecvBy::Recvfrom, flags: 0 });
    t.c.close(p.c);
    t.s.recv(p.s, 4);
}

fn packet_empty(t: &Duo) {
    let p = t.unix_pair(SOCK_SEQPACKET);
    t.c.send(p.c, b"");
    t.s.poll(&[(p.s, POLLIN)], 0);
    t.s.recv_message(p.s, MSG_DONTWAIT);
    t.c.close(p.c);
    t.s.recv_message(p.s, 0);
}

fn packet_too_large(t: &Duo) {
    let p = t.unix_pair(SOCK_SEQPACKET);
    t.c.call(Op::Fill { fd: p.c, len: 4 << 20, flags: 0 });
    t.c.call(Op::Fill { fd: p.c, len: 100_000, flags: 0 });
    t.s.recv(p.s, 200_000);
}

fn packet_names(t: &Duo) {
    let p = t.unix_pair(SOCK_SEQPACKET);
    t.c.sockname(p.c);
    t.c.peername(p.c);
    t.s.peername(p.s);
    t.c.peercred(p.c);
    t.s.peercred(p.s);
}

fn packet_rights(t: &Duo) {
    let p = t.unix_pair(SOCK_SEQPACKET);
    let (r, w) = t.c.pipe();
    t.c.send_fds(p.c, b"a pipe", &[r]);
    let got = t.s.recv_fd(p.s);
    t.c.write(w, b"through it");
    t.s.read(got, 64);
}

fn packet_many(t: &Duo) {
    let p = t.unix_pair(SOCK_SEQPACKET);
    t.c.send_by(p.c, b"aabbccdde", SendBy::Sendmmsg(2), 0);
    t.s.recv_by(p.s, 12, RecvBy::Recvmmsg(4), MSG_DONTWAIT);
    t.s.recv_by(p.s, 12, RecvBy::Recvmmsg(4), MSG_DONTWAIT);
    t.s.recv_by(p.s, 12, RecvBy::Recvmmsg(4), MSG_DONTWAIT);
}

fn packet_half_close(t: &Duo) {
    let p = t.unix_pair(SOCK_SEQPACKET);
    t.c.shutdown(p.c, SHUT_WR);
    t.s.recv(p.s, 4);
    t.s.send(p.s, b"still");
    t.c.recv(p.c, 64);
    t.c.signal(SIGPIPE, 2, 0);
    t.c.write(p.c, b"x");
    t.c.signals(SIGPIPE);
    t.s.close(p.s);
    t.c.poll(&[(p.c, POLLIN | POLLOUT)], 0);
    t.c.recv(p.c, 4);
}

fn packet_ready(t: &Duo) {
    let p = t.unix_pair(SOCK_SEQPACKET);
    let ep = t.s.epoll();
    t.s.epoll_add(ep, p.s, EPOLLIN);
    t.s.epoll_wait(ep, 0);
    t.c.send(p.c, b"one");
    t.c.send(p.c, b"two");
    t.s.ioctl(p.s, FIONREAD, 0);
    t.s.epoll_wait(ep, 0);
    t.s.recv(p.s, 64);
    t.s.epoll_wait(ep, 0);
    t.s.recv(p.s, 64);
    t.s.epoll_wait(ep, 0);
}

fn packet_backlog(t: &Duo) {
    let name = t.named("small");
    t.unix_listener(SOCK_SEQPACKET, &name, 0);
    for _ in 0..3 {
        let c = t.c.socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK);
        t.c.connect(c, &name);
    }
}

fn packet_options(t: &Duo) {
    let p = t.unix_pair(SOCK_SEQPACKET);
    t.c.getopt(p.c, SOL_SOCKET, SO_TYPE);
    let stream = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.connect(stream, &t.named("socket"));
}

fn packet_fork(t: &Duo) {
    let p = t.unix_pair(SOCK_SEQPACKET);
    let Some(child) = t.s.fork("k") else { return };
    t.c.send(p.c, b"for the child");
    t.c.send(p.c, b"for the parent");
    child.recv(p.s, 64);
    t.s.recv(p.s, 64);
    child.send(p.s, b"from the child");
    t.c.recv(p.c, 64);
}

/// A bound receiver at the server, and its name.
fn receiver(t: &Duo, name: &str) -> (i32, harness::wire::Addr) {
    let u = t.s.socket(AF_UNIX, SOCK_DGRAM);
    let name = t.named(name);
    t.s.bind(u, &name);
    (u, name)
}

fn send_to(t: &Duo, fd: i32, text: &str, to: &harness::wire::Addr) {
    t.c.call(Op::SendTo { fd, data: text.as_bytes().into(), to: to.clone(), flags: 0 });
}

fn to_path(t: &Duo) {
    let (u, name) = receiver(t, "mail");
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    t.c.bind(c, &t.named("sender"));
    send_to(t, c, "hello", &name);
    let from = t.s.recv_by(u, 64, RecvBy::Recvfrom, 0).addr;
    if let Some(to) = from {
        t.s.call(Op::SendTo { fd: u, data: (&b"back"[..]).into(), to, flags: 0 });
    }
    t.c.recv_message(c, 0);
}

fn to_abstract(t: &Duo) {
    let u = t.s.socket(AF_UNIX, SOCK_DGRAM);
    let name = t.abstract_name("mail");
    t.s.bind(u, &name);
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    send_to(t, c, "hello", &name);
    t.s.recv_message(u, 0);
}

fn nameless(t: &Duo) {
    let (u, name) = receiver(t, "mail");
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    send_to(t, c, "who", &name);
    t.s.recv_by(u, 64, RecvBy::Recvfrom, 0);
    t.c.send(c, b"to nobody");
}

fn autobound(t: &Duo) {
    let (u, name) = receiver(t, "mail");
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    t.c.bind(c, &at("unix:", 0));
    t.c.sockname(c);
    send_to(t, c, "who", &name);
    t.s.recv_by(u, 64, RecvBy::Recvfrom, 0);
}

fn connected(t: &Duo) {
    let (u, name) = receiver(t, "mail");
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    t.c.connect(c, &name);
    t.c.peername(c);
    t.c.send(c, b"one");
    t.c.write(c, b"two");
    t.s.recv(u, 64);
    t.s.read(u, 64);
    t.s.peername(u);
}

fn only_peer(t: &Duo) {
    let (u, name) = receiver(t, "chosen");
    let (_, other) = receiver(t, "other");
    t.s.connect(u, &other);
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    send_to(t, c, "not for you", &name);
    t.s.recv_by(u, 64, RecvBy::Recv, MSG_DONTWAIT);
}

fn reconnect(t: &Duo) {
    let (a, first) = receiver(t, "first");
    let (b, second) = receiver(t, "second");
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    t.c.connect(c, &first);
    t.c.send(c, b"to the first");
    t.c.connect(c, &second);
    t.c.send(c, b"to the second");
    t.s.recv(a, 64);
    t.s.recv(b, 64);
    t.c.connect(c, &at("none", 0));
    t.c.send(c, b"to nobody");
}

fn truncation(t: &Duo) {
    let (u, name) = receiver(t, "mail");
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    send_to(t, c, "0123456789", &name);
    send_to(t, c, "next", &name);
    t.s.recv_by(u, 4, RecvBy::Recvmsg(4), 0);
    t.s.recv(u, 64);
}

fn empty(t: &Duo) {
    let (u, name) = receiver(t, "mail");
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    send_to(t, c, "", &name);
    t.s.poll(&[(u, POLLIN)], 0);
    t.s.recv_message(u, MSG_DONTWAIT);
    t.s.recv_message(u, MSG_DONTWAIT);
}

fn nobody(t: &Duo) {
    let (u, name) = receiver(t, "mail");
    t.s.close(u);
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    send_to(t, c, "x", &name);
    send_to(t, c, "x", &t.named("never"));
    send_to(t, c, "x", &t.abstract_name("never"));
    t.c.connect(c, &name);
}

fn receiver_closes(t: &Duo) {
    let (u, name) = receiver(t, "mail");
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    t.c.connect(c, &name);
    t.c.send(c, b"unread");
    t.s.close(u);
    t.c.send(c, b"x");
    t.c.send(c, b"y");
    t.c.poll(&[(c, POLLIN | POLLOUT)], 0);
}

fn full(t: &Duo) {
    let (u, name) = receiver(t, "mail");
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    t.c.connect(c, &name);
    t.c.nonblocking(c);
    let sent = (0..1000).position(|_| {
        t.c.quiet(&Op::Send { fd: c, data: (&b"x"[..]).into(), by: SendBy::Send, flags: 0 }).ret < 0
    });
    t.c.remark(&format!("{sent:?} datagrams fit"));
    t.c.send(c, b"no room");
    t.c.poll(&[(c, POLLOUT)], 0);
    t.s.recv(u, 4);
    t.c.poll(&[(c, POLLOUT)], 1000);
    t.c.send(c, b"room");
}

fn full_blocks(t: &Duo) {
    let (u, name) = receiver(t, "mail");
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    t.c.connect(c, &name);
    let send = Op::Send { fd: c, data: (&b"x"[..]).into(), by: SendBy::Send, flags: MSG_DONTWAIT };
    while t.c.quiet(&send).ret > 0 {}
    let waiting = t.c.start(Op::Send { fd: c, data: (&b"last"[..]).into(), by: SendBy::Send, flags: 0 });
    t.pause();
    t.s.recv(u, 4);
    t.c.join(waiting);
}

fn too_large(t: &Duo) {
    let (u, name) = receiver(t, "mail");
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    t.c.connect(c, &name);
    t.c.call(Op::Fill { fd: c, len: 4 << 20, flags: 0 });
    t.c.call(Op::Fill { fd: c, len: 60_000, flags: 0 });
    t.s.recv(u, 100_000);
}

fn wrong_type(t: &Duo) {
    let name = t.named("stream");
    t.unix_listener(SOCK_STREAM, &name, 4);
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    send_to(t, c, "x", &name);
    t.c.accept(c);
    let (_, mail) = receiver(t, "mail");
    let stream = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.connect(stream, &mail);
}

fn peek(t: &Duo) {
    let (u, name) = receiver(t, "mail");
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    send_to(t, c, "0123456789", &name);
    t.s.recv_by(u, 4, RecvBy::Recvmsg(4), MSG_PEEK);
    t.s.recv_by(u, 64, RecvBy::Recvmsg(64), MSG_TRUNC | MSG_PEEK);
    t.s.ioctl(u, FIONREAD, 0);
    t.s.recv(u, 64);
    t.s.ioctl(u, FIONREAD, 0);
}

fn rights(t: &Duo) {
    let (u, name) = receiver(t, "mail");
    t.s.setopt(u, SOL_SOCKET, SO_PASSCRED, 1);
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    let (r, w) = t.c.pipe();
    t.c.connect(c, &name);
    t.c.send_fds(c, b"a pipe", &[r]);
    let got = t.s.recv_fd(u);
    t.c.write(w, b"through it");
    t.s.read(got, 64);
}

fn many(t: &Duo) {
    let (u, name) = receiver(t, "mail");
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    t.c.connect(c, &name);
    t.c.send_by(c, b"aabbccdde", SendBy::Sendmmsg(2), 0);
    t.s.recv_by(u, 16, RecvBy::Recvmmsg(4), MSG_DONTWAIT);
    t.s.recv_by(u, 16, RecvBy::Recvmmsg(4), MSG_DONTWAIT);
}

fn ready(t: &Duo) {
    let (u, name) = receiver(t, "mail");
    let ep = t.s.epoll();
    t.s.epoll_add(ep, u, EPOLLIN | libc::EPOLLET);
    t.s.epoll_wait(ep, 0);
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    send_to(t, c, "one", &name);
    t.s.epoll_wait(ep, 1000);
    t.s.epoll_wait(ep, 0);
    send_to(t, c, "two", &name);
    t.s.epoll_wait(ep, 1000);
    t.s.poll(&[(u, POLLIN | POLLOUT)], 0);
}

fn permission(t: &Duo) {
    let (u, name) = receiver(t, "guarded");
    t.s.call(Op::Chmod { path: t.path("guarded"), mode: 0o600 });
    t.c.call(Op::Seteuid { uid: 65534 });
    let c = t.c.socket(AF_UNIX, SOCK_DGRAM);
    send_to(t, c, "x", &name);
    t.c.connect(c, &name);
    t.c.call(Op::Seteuid { uid: 0 });
    send_to(t, c, "y", &name);
    t.s.recv_by(u, 64, RecvBy::Recv, MSG_DONTWAIT);
}
