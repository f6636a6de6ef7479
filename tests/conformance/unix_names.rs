//! `AF_UNIX` stream sockets and their names: paths, abstract names, permissions, the accept queue, who the other side is.

use harness::wire::Op;
use libc::{
    AF_UNIX, EPOLLIN, F_GETFD, POLLIN, POLLOUT, SHUT_RDWR, SO_ERROR, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK,
    SOCK_SEQPACKET, SOCK_STREAM, SOL_SOCKET,
};

use crate::driver::{Duo, Pair, at};
use crate::unix_stream::exchange;
use crate::{
    Case,
    Expect::{Any, Mixed},
};

pub const CASES: &[Case] = &[
    ("unix_stream::path", Mixed, path),
    ("unix_stream::abstract_name", Mixed, abstract_name),
    ("unix_stream::autobind", Mixed, autobind),
    ("unix_stream::names_of_both_ends", Mixed, names),
    ("unix_stream::bound_client", Any, bound_client),
    ("unix_stream::stale_path_refuses", Any, stale),
    ("unix_stream::path_that_is_not_there", Any, missing),
    ("unix_stream::path_of_a_plain_file", Any, plain_file),
    ("unix_stream::bound_but_not_listening", Any, not_listening),
    ("unix_stream::name_in_use", Any, in_use),
    ("unix_stream::name_too_long", Any, too_long),
    ("unix_stream::wrong_type", Any, wrong_type),
    ("unix_stream::abstract_name_is_free_after_close", Mixed, abstract_again),
    ("unix_stream::bind_twice", Any, bind_twice),
    ("unix_stream::connect_twice", Mixed, connect_twice),
    ("unix_stream::unconnected", Any, unconnected),
    ("unix_stream::listen_without_a_name", Any, listen_unbound),
    ("unix_stream::permission_by_mode", Any, permission),
    ("unix_stream::permission_of_another_user", Any, permission_users),
    ("unix_stream::peercred", Mixed, peercred),
    ("unix_stream::peercred_is_of_the_connect", Any, peercred_early),
    ("unix_stream::peercred_of_a_listener", Any, peercred_listener),
    ("unix_stream::backlog_full_nonblocking", Any, backlog),
    ("unix_stream::backlog_full_blocks", Mixed, backlog_blocks),
    ("unix_stream::accept_flags", Any, accept_flags),
    ("unix_stream::accept_nonblocking", Any, accept_nonblocking),
    ("unix_stream::listener_closes_on_the_waiting", Any, listener_closes),
    ("unix_stream::unlink_and_bind_anew", Mixed, unlinked),
    ("unix_stream::epoll_listener", Any, epoll_listener),
];

fn path(t: &Duo) {
    exchange(t, t.unix_pair(SOCK_STREAM));
}

fn abstract_name(t: &Duo) {
    let name = t.abstract_name("x");
    let l = t.unix_listener(SOCK_STREAM, &name, 4);
    t.s.sockname(l);
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.connect(c, &name);
    t.c.peername(c);
    let s = t.s.accept(l);
    exchange(t, Pair { l, s, c });
}

fn autobind(t: &Duo) {
    let l = t.unix_listener(SOCK_STREAM, &at("unix:", 0), 4);
    let name = t.s.sockname(l);
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.connect(c, &name);
    let s = t.s.accept(l);
    exchange(t, Pair { l, s, c });
}

fn names(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.c.sockname(p.c);
    t.c.peername(p.c);
    t.s.sockname(p.s);
    t.s.peername(p.s);
    t.s.peername(p.l);
}

fn bound_client(t: &Duo) {
    let name = t.named("server");
    let l = t.unix_listener(SOCK_STREAM, &name, 4);
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.bind(c, &t.named("client"));
    t.c.connect(c, &name);
    let s = t.s.accept(l);
    t.s.peername(s);
    exchange(t, Pair { l, s, c });
}

fn stale(t: &Duo) {
    let name = t.named("stale");
    let l = t.unix_listener(SOCK_STREAM, &name, 4);
    t.s.close(l);
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.connect(c, &name);
    t.c.getopt(c, SOL_SOCKET, SO_ERROR);
    let anew = t.s.socket(AF_UNIX, SOCK_STREAM);
    t.s.bind(anew, &name);
}

fn missing(t: &Duo) {
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.connect(c, &t.named("nobody"));
    t.c.connect(c, &t.named("no/such/directory"));
    t.c.connect(c, &t.abstract_name("nobody"));
    t.c.bind(c, &t.named("no/such/directory"));
}

fn plain_file(t: &Duo) {
    let file = t.s.open(&t.path("file"), libc::O_CREAT | libc::O_RDWR);
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.connect(c, &t.named("file"));
    t.c.bind(c, &t.named("file"));
    t.s.close(file);
}

fn not_listening(t: &Duo) {
    let l = t.s.socket(AF_UNIX, SOCK_STREAM);
    t.s.bind(l, &t.named("quiet"));
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.connect(c, &t.named("quiet"));
    t.s.accept(l);
}

fn in_use(t: &Duo) {
    for name in [t.named("taken"), t.abstract_name("taken")] {
        t.unix_listener(SOCK_STREAM, &name, 4);
        let second = t.s.socket(AF_UNIX, SOCK_STREAM);
        t.s.bind(second, &name);
    }
}

fn too_long(t: &Duo) {
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.bind(c, &t.named(&"long".repeat(30)));
    t.c.connect(c, &t.named(&"long".repeat(30)));
}

fn wrong_type(t: &Duo) {
    let name = t.named("stream");
    t.unix_listener(SOCK_STREAM, &name, 4);
    for ty in [SOCK_SEQPACKET, SOCK_DGRAM] {
        let c = t.c.socket(AF_UNIX, ty);
        t.c.connect(c, &name);
    }
    let tcp = t.c.tcp();
    t.c.connect(tcp, &name);
}

fn abstract_again(t: &Duo) {
    let name = t.abstract_name("again");
    for _ in 0..3 {
        let l = t.unix_listener(SOCK_STREAM, &name, 4);
        let c = t.c.socket(AF_UNIX, SOCK_STREAM);
        t.c.connect(c, &name);
        let s = t.s.accept(l);
        exchange(t, Pair { l, s, c });
        t.s.close(l);
        t.s.close(s);
        t.c.recv(c, 4);
        t.c.close(c);
    }
}

fn bind_twice(t: &Duo) {
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.bind(c, &t.named("one"));
    t.c.bind(c, &t.named("two"));
    t.c.sockname(c);
}

fn connect_twice(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.c.connect(p.c, &t.named("socket"));
    t.s.connect(p.l, &t.named("socket"));
    exchange(t, p);
}

fn unconnected(t: &Duo) {
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.send(c, b"x");
    t.c.recv(c, 4);
    t.c.peername(c);
    t.c.sockname(c);
    t.c.shutdown(c, SHUT_RDWR);
    t.c.accept(c);
    t.c.poll(&[(c, POLLIN | POLLOUT)], 0);
}

fn listen_unbound(t: &Duo) {
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.listen(c, 4);
    let dgram = t.c.socket(AF_UNIX, SOCK_DGRAM);
    t.c.listen(dgram, 4);
}

/// The user id that Debian calls `nobody`.
pub const NOBODY: u32 = 65534;

fn permission(t: &Duo) {
    let name = t.named("guarded");
    let path = t.path("guarded");
    let l = t.unix_listener(SOCK_STREAM, &name, 8);
    t.c.call(Op::Seteuid { uid: NOBODY });
    for mode in [0o755, 0o600, 0o722, 0o000] {
        t.s.call(Op::Seteuid { uid: 0 });
        t.s.call(Op::Chmod { path: path.clone(), mode });
        t.c.call(Op::Seteuid { uid: NOBODY });
        let c = t.c.socket(AF_UNIX, SOCK_STREAM);
        if t.c.connect(c, &name).ret == 0 {
            let s = t.s.accept(l);
            exchange(t, Pair { l, s, c });
            t.s.peercred(s);
        }
    }
    t.c.call(Op::Seteuid { uid: 0 });
}

fn permission_users(t: &Duo) {
    // A directory that nobody else may search.
    let name = t.named("hidden");
    let l = t.unix_listener(SOCK_STREAM, &name, 8);
    t.s.call(Op::Chmod { path: t.path("hidden"), mode: 0o777 });
    t.s.call(Op::Chmod { path: t.path(""), mode: 0o700 });
    for uid in [NOBODY, 0] {
        t.c.call(Op::Seteuid { uid });
        let c = t.c.socket(AF_UNIX, SOCK_STREAM);
        t.c.connect(c, &name);
        t.c.peercred(c);
    }
    let s = t.s.accept(l);
    t.s.peercred(s);
}

fn peercred(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.c.peercred(p.c);
    t.s.peercred(p.s);
    t.s.setopt(p.s, SOL_SOCKET, libc::SO_PEERCRED, 0);
}

fn peercred_early(t: &Duo) {
    let name = t.named("early");
    let l = t.unix_listener(SOCK_STREAM, &name, 4);
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.s.call(Op::Chmod { path: t.path("early"), mode: 0o777 });
    t.c.call(Op::Seteuid { uid: NOBODY });
    t.c.connect(c, &name);
    t.c.call(Op::Seteuid { uid: 0 });
    let s = t.s.accept(l);
    t.s.peercred(s);
    t.c.peercred(c);
    let Some(child) = t.c.fork("k") else { return };
    child.send(c, b"of the child");
    t.s.recv(s, 64);
    t.s.peercred(s);
}

fn peercred_listener(t: &Duo) {
    let c = t.s.socket(AF_UNIX, SOCK_STREAM);
    t.s.peercred(c);
    let l = t.unix_listener(SOCK_STREAM, &t.named("l"), 4);
    t.s.peercred(l);
}

fn backlog(t: &Duo) {
    let name = t.named("small");
    let l = t.unix_listener(SOCK_STREAM, &name, 1);
    for _ in 0..4 {
        let c = t.c.socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK);
        t.c.connect(c, &name);
        t.c.poll(&[(c, POLLOUT)], 0);
    }
    t.s.accept(l);
    let c = t.c.socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK);
    t.c.connect(c, &name);
}

fn backlog_blocks(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let name = t.named("small");
    let l = t.unix_listener(SOCK_STREAM, &name, 0);
    let c = [0; 2].map(|_| t.c.socket(AF_UNIX, SOCK_STREAM));
    t.c.connect(c[0], &name);
    let waiting = t.c.start(Op::Connect { fd: c[1], addr: name.clone() });
    t.pause();
    t.s.accept(l);
    t.c.join(waiting);
    let s = t.s.accept(l);
    exchange(t, Pair { l, s, c: c[1] });
}

fn accept_flags(t: &Duo) {
    let name = t.named("flags");
    let l = t.unix_listener(SOCK_STREAM, &name, 4);
    let c = t.c.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC);
    t.c.fcntl(c, F_GETFD, 0);
    t.c.connect(c, &name);
    let s = t.s.accept4(l, SOCK_NONBLOCK | SOCK_CLOEXEC);
    t.s.fcntl(s, F_GETFD, 0);
    t.s.fcntl(s, libc::F_GETFL, 0);
    t.s.recv(s, 4);
    t.s.accept4(l, 1);
}

fn accept_nonblocking(t: &Duo) {
    let name = t.named("empty");
    let l = t.unix_listener(SOCK_STREAM, &name, 4);
    t.s.nonblocking(l);
    t.s.accept(l);
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.connect(c, &name);
    t.s.poll(&[(l, POLLIN)], 0);
    t.s.accept(l);
    t.s.accept(l);
}

fn listener_closes(t: &Duo) {
    let name = t.named("closing");
    let l = t.unix_listener(SOCK_STREAM, &name, 4);
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.connect(c, &name);
    t.c.send(c, b"never read");
    t.s.close(l);
    t.c.poll(&[(c, POLLIN | POLLOUT)], 0);
    t.c.recv(c, 4);
    t.c.send(c, b"x");
}

fn unlinked(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.s.call(Op::Unlink { path: t.path("socket") });
    exchange(t, p);
    let q = t.unix_pair(SOCK_STREAM);
    exchange(t, q);
    exchange(t, p);
}

fn epoll_listener(t: &Duo) {
    let name = t.named("watched");
    let l = t.unix_listener(SOCK_STREAM, &name, 4);
    let ep = t.s.epoll();
    t.s.epoll_add(ep, l, EPOLLIN);
    t.s.epoll_wait(ep, 0);
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.connect(c, &name);
    t.s.epoll_wait(ep, 1000);
    t.s.accept(l);
    t.s.epoll_wait(ep, 0);
}
