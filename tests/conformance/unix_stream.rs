//! `AF_UNIX` stream sockets with names: paths, abstract names, permissions, who the other side is.

use harness::wire::{Cred, Op, RecvBy, SendBy};
use libc::{
    AF_UNIX, EPOLLET, EPOLLIN, EPOLLOUT, F_GETFD, FIONREAD, MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_OOB,
    MSG_PEEK, MSG_WAITALL, O_NONBLOCK, POLLIN, POLLOUT, SHUT_RD, SHUT_RDWR, SHUT_WR, SIGPIPE, SO_ACCEPTCONN,
    SO_DOMAIN, SO_ERROR, SO_PASSCRED, SO_PROTOCOL, SO_RCVTIMEO, SO_TYPE, SOCK_CLOEXEC, SOCK_DGRAM,
    SOCK_NONBLOCK, SOCK_SEQPACKET, SOCK_STREAM, SOL_SOCKET,
};

use crate::driver::{Duo, Pair, at};
use crate::{Case, Expect::Any};

pub const CASES: &[Case] = &[
    ("unix_stream::path", Any, path),
    ("unix_stream::abstract_name", Any, abstract_name),
    ("unix_stream::autobind", Any, autobind),
    ("unix_stream::names_of_both_ends", Any, names),
    ("unix_stream::bound_client", Any, bound_client),
    ("unix_stream::stale_path_refuses", Any, stale),
    ("unix_stream::path_that_is_not_there", Any, missing),
    ("unix_stream::path_of_a_plain_file", Any, plain_file),
    ("unix_stream::bound_but_not_listening", Any, not_listening),
    ("unix_stream::name_in_use", Any, in_use),
    ("unix_stream::name_too_long", Any, too_long),
    ("unix_stream::wrong_type", Any, wrong_type),
    ("unix_stream::abstract_name_is_free_after_close", Any, abstract_again),
    ("unix_stream::bind_twice", Any, bind_twice),
    ("unix_stream::connect_twice", Any, connect_twice),
    ("unix_stream::unconnected", Any, unconnected),
    ("unix_stream::listen_without_a_name", Any, listen_unbound),
    ("unix_stream::permission_by_mode", Any, permission),
    ("unix_stream::permission_of_another_user", Any, permission_users),
    ("unix_stream::peercred", Any, peercred),
    ("unix_stream::peercred_is_of_the_connect", Any, peercred_early),
    ("unix_stream::peercred_of_a_listener", Any, peercred_listener),
    ("unix_stream::passcred", Any, passcred),
    ("unix_stream::credentials_sent", Any, credentials),
    ("unix_stream::rights_of_a_pipe", Any, rights_pipe),
    ("unix_stream::rights_of_a_file", Any, rights_file),
    ("unix_stream::rights_of_a_socket", Any, rights_socket),
    ("unix_stream::rights_of_several", Any, rights_several),
    ("unix_stream::rights_end_a_read", Any, rights_boundary),
    ("unix_stream::rights_without_room", Any, rights_truncated),
    ("unix_stream::rights_dropped_by_recv", Any, rights_dropped),
    ("unix_stream::rights_cloexec", Any, rights_cloexec),
    ("unix_stream::rights_of_bad_descriptors", Any, rights_bad),
    ("unix_stream::rights_unread_at_close", Any, rights_unread),
    ("unix_stream::backlog_full_nonblocking", Any, backlog),
    ("unix_stream::backlog_full_blocks", Any, backlog_blocks),
    ("unix_stream::accept_flags", Any, accept_flags),
    ("unix_stream::accept_nonblocking", Any, accept_nonblocking),
    ("unix_stream::listener_closes_on_the_waiting", Any, listener_closes),
    ("unix_stream::unlink_and_bind_anew", Any, unlinked),
    ("unix_stream::half_close", Any, half_close),
    ("unix_stream::shut_rd", Any, shut_rd),
    ("unix_stream::close_is_eof_after_the_data", Any, eof),
    ("unix_stream::close_with_unread_data", Any, reset),
    ("unix_stream::sigpipe", Any, sigpipe),
    ("unix_stream::peer_is_killed", Any, killed),
    ("unix_stream::poll_events", Any, poll),
    ("unix_stream::epoll_edge", Any, edge),
    ("unix_stream::epoll_listener", Any, epoll_listener),
    ("unix_stream::every_form", Any, forms),
    ("unix_stream::peek_and_waitall", Any, peek),
    ("unix_stream::fionread", Any, fionread),
    ("unix_stream::nonblocking_empty_and_full", Any, full),
    ("unix_stream::receive_timeout", Any, timeout),
    ("unix_stream::address_in_sendto", Any, sendto),
    ("unix_stream::urgent_data", Any, urgent),
    ("unix_stream::options", Any, options),
    ("unix_stream::megabytes", Any, megabytes),
    ("unix_stream::sendfile", Any, sendfile),
    ("unix_stream::blocked_reader_is_woken", Any, woken),
    ("unix_stream::forked_server", Any, forked),
    ("unix_stream::dup_keeps_the_connection", Any, dup),
];

fn exchange(t: &Duo, p: Pair) {
    t.c.send(p.c, b"question");
    t.s.recv(p.s, 64);
    t.s.send(p.s, b"answer");
    t.c.recv(p.c, 64);
}

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
const NOBODY: u32 = 65534;

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

fn passcred(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.s.setopt(p.s, SOL_SOCKET, SO_PASSCRED, 1);
    t.s.getopt(p.s, SOL_SOCKET, SO_PASSCRED);
    t.c.send(p.c, b"who am I");
    t.s.recv_message(p.s, 0);
    t.s.setopt(p.s, SOL_SOCKET, SO_PASSCRED, 0);
    t.c.send(p.c, b"and now");
    t.s.recv_message(p.s, 0);
}

fn credentials(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.s.setopt(p.s, SOL_SOCKET, SO_PASSCRED, 1);
    let send = |credentials| {
        let data = (&b"trust me"[..]).into();
        t.c.call(Op::SendMessage { fd: p.c, data, to: None, rights: vec![], credentials, flags: 0 });
    };
    send(Some(Cred { pid: 0, uid: 0, gid: 0 }));
    t.s.recv_message(p.s, 0);
    send(Some(Cred { pid: 0, uid: NOBODY, gid: NOBODY }));
    t.s.recv_message(p.s, 0);
    t.c.call(Op::Seteuid { uid: NOBODY });
    send(Some(Cred { pid: 0, uid: 12345, gid: 0 }));
    t.c.call(Op::Seteuid { uid: 0 });
}

fn rights_pipe(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let (r, w) = t.c.pipe();
    t.c.send_fds(p.c, b"a pipe", &[r]);
    t.c.close(r);
    let got = t.s.recv_fd(p.s);
    t.c.write(w, b"through it");
    t.s.read(got, 64);
    t.c.close(w);
    t.s.read(got, 64);
}

fn rights_file(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let file = t.c.open(&t.path("file"), libc::O_CREAT | libc::O_RDWR);
    t.c.write(file, b"contents");
    t.c.send_fds(p.c, b"f", &[file]);
    let got = t.s.recv_fd(p.s);
    t.s.call(Op::Lseek { fd: got, offset: 0, whence: libc::SEEK_SET });
    t.s.read(got, 64);
    t.c.call(Op::Lseek { fd: file, offset: 0, whence: libc::SEEK_CUR });
    t.s.call(Op::Fstat { fd: got });
}

fn rights_socket(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let (near, far) = t.c.socketpair(SOCK_STREAM);
    t.c.send_fds(p.c, b"s", &[far]);
    t.c.close(far);
    let got = t.s.recv_fd(p.s);
    t.c.send(near, b"over the passed one");
    t.s.recv(got, 64);
    t.s.send(got, b"and back");
    t.c.recv(near, 64);
    t.s.close(got);
    t.c.recv(near, 64);
}

fn rights_several(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let (r, w) = t.c.pipe();
    t.c.send_fds(p.c, b"three", &[r, w, r]);
    let got = t.s.recv_message(p.s, 0).events;
    if let [(r, _), (w, _), (again, _)] = got.as_slice() {
        t.s.write(*w, b"around");
        t.s.read(*r, 3);
        t.s.read(*again, 3);
    }
}

fn rights_boundary(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let (r, _) = t.c.pipe();
    t.c.send(p.c, b"before ");
    t.c.send_fds(p.c, b"with ", &[r]);
    t.c.send(p.c, b"after");
    t.s.recv_message(p.s, 0);
    t.s.recv_message(p.s, 0);
    t.s.recv_message(p.s, MSG_DONTWAIT);
}

fn rights_truncated(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let (r, w) = t.c.pipe();
    t.c.send_fds(p.c, b"two", &[r, w]);
    t.s.call(Op::RecvMessage { fd: p.s, len: 64, control_len: 20, flags: 0 });
    t.c.send_fds(p.c, b"two", &[r, w]);
    t.s.call(Op::RecvMessage { fd: p.s, len: 64, control_len: 0, flags: 0 });
}

fn rights_dropped(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let (r, w) = t.c.pipe();
    t.c.send_fds(p.c, b"lost", &[w]);
    t.c.close(w);
    t.c.poll(&[(r, POLLIN)], 0);
    t.s.recv(p.s, 64);
    t.c.read(r, 4);
}

fn rights_cloexec(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let (r, _) = t.c.pipe();
    t.c.send_fds(p.c, b"x", &[r]);
    t.c.send_fds(p.c, b"y", &[r]);
    t.s.recv_message(p.s, MSG_CMSG_CLOEXEC);
    t.s.recv_message(p.s, 0);
}

fn rights_bad(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.c.send_fds(p.c, b"x", &[99]);
    t.c.send_fds(p.c, b"x", &[-1]);
    t.c.send_fds(p.c, b"", &[p.c]);
    t.c.send(p.c, b"nothing lost");
    t.s.recv_message(p.s, 0);
}

fn rights_unread(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let (r, w) = t.c.pipe();
    t.c.send_fds(p.c, b"x", &[w]);
    t.c.close(w);
    t.s.close(p.s);
    t.c.read(r, 4);
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

fn half_close(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.c.send(p.c, b"last words");
    t.c.shutdown(p.c, SHUT_WR);
    t.s.recv(p.s, 64);
    t.s.recv(p.s, 64);
    t.s.poll(&[(p.s, POLLIN | POLLOUT | libc::POLLRDHUP)], 0);
    t.s.send(p.s, b"still answers");
    t.c.recv(p.c, 64);
    t.c.send(p.c, b"x");
}

fn shut_rd(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.s.send(p.s, b"in flight");
    t.c.shutdown(p.c, SHUT_RD);
    t.c.recv(p.c, 64);
    t.c.recv(p.c, 64);
    t.s.send(p.s, b"x");
}

fn eof(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.c.send(p.c, b"all of it");
    t.c.close(p.c);
    t.s.poll(&[(p.s, POLLIN | POLLOUT)], 0);
    t.s.recv(p.s, 4);
    t.s.recv(p.s, 64);
    t.s.recv(p.s, 64);
    t.s.send(p.s, b"x");
}

fn reset(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.c.send(p.c, b"unread");
    t.s.close(p.s);
    t.c.poll(&[(p.c, POLLIN | POLLOUT)], 0);
    t.c.recv(p.c, 4);
    t.c.recv(p.c, 4);
    t.c.getopt(p.c, SOL_SOCKET, SO_ERROR);
}

fn sigpipe(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.c.signal(SIGPIPE, 2, 0);
    t.s.close(p.s);
    t.c.write(p.c, b"x");
    t.c.signals(SIGPIPE);
    t.c.send(p.c, b"quiet");
    t.c.signals(SIGPIPE);
}

fn killed(t: &Duo) {
    if t.only_apart() {
        return;
    }
    let p = t.unix_pair(SOCK_STREAM);
    t.s.send(p.s, b"before the end");
    t.s.kill();
    t.c.recv(p.c, 64);
    t.c.recv(p.c, 64);
    t.c.send(p.c, b"x");
}

fn poll(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let all = POLLIN | POLLOUT | libc::POLLRDHUP | libc::POLLPRI;
    t.c.poll(&[(p.c, all)], 0);
    t.s.send(p.s, b"x");
    t.c.poll(&[(p.c, all)], 0);
    t.s.shutdown(p.s, SHUT_WR);
    t.c.poll(&[(p.c, all)], 0);
    t.s.close(p.s);
    t.c.poll(&[(p.c, all)], 0);
    t.s.poll(&[(p.l, all)], 0);
}

fn edge(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let ep = t.c.epoll();
    t.c.epoll_add(ep, p.c, EPOLLIN | EPOLLOUT | EPOLLET);
    t.c.epoll_wait(ep, 0);
    t.c.epoll_wait(ep, 0);
    t.s.send(p.s, b"one");
    t.c.epoll_wait(ep, 0);
    t.c.epoll_wait(ep, 0);
    t.s.send(p.s, b"two");
    t.c.epoll_wait(ep, 0);
    t.c.recv(p.c, 64);
    t.s.close(p.s);
    t.c.epoll_wait(ep, 0);
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

fn forms(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let senders = [SendBy::Write, SendBy::Writev(3), SendBy::Send, SendBy::Sendto, SendBy::Sendmsg(4)];
    let receivers = [
        RecvBy::Read,
        RecvBy::Readv(5),
        RecvBy::Recv,
        RecvBy::Recvfrom,
        RecvBy::Recvmsg(3),
        RecvBy::Recvmmsg(4),
    ];
    for by in senders {
        for to in receivers {
            t.c.send_by(p.c, b"hello world", by, 0);
            t.s.recv_by(p.s, 11, to, 0);
        }
    }
}

fn peek(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.c.send(p.c, b"abc");
    t.s.recv_by(p.s, 2, RecvBy::Recv, MSG_PEEK);
    t.s.recv_by(p.s, 64, RecvBy::Recv, MSG_PEEK);
    t.c.send(p.c, b"def");
    t.s.recv_by(p.s, 6, RecvBy::Recv, MSG_WAITALL);
    t.c.send(p.c, b"gh");
    t.c.close(p.c);
    t.s.recv_by(p.s, 6, RecvBy::Recv, MSG_WAITALL);
}

fn fionread(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.s.ioctl(p.s, FIONREAD, 0);
    t.c.send(p.c, b"seven b");
    t.c.send(p.c, b"and more");
    t.s.ioctl(p.s, FIONREAD, 0);
    t.s.recv(p.s, 3);
    t.s.ioctl(p.s, FIONREAD, 0);
    t.c.call(Op::Lseek { fd: p.c, offset: 0, whence: libc::SEEK_CUR });
    t.c.call(Op::Fstat { fd: p.c });
}

fn full(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.s.recv_by(p.s, 4, RecvBy::Recv, MSG_DONTWAIT);
    t.c.nonblocking(p.c);
    // How much fits is not promised; that it ends is.
    let fill = Op::Fill { fd: p.c, len: 65536, flags: 0 };
    let rounds = (0..1000).position(|_| t.c.quiet(&fill).ret < 65536);
    t.c.remark(&format!("full: {}", rounds.is_some()));
    while t.c.quiet(&fill).ret > 0 {}
    t.c.send(p.c, b"no room");
    t.c.poll(&[(p.c, POLLOUT)], 0);
    t.s.nonblocking(p.s);
    while t.s.quiet(&Op::Recv { fd: p.s, len: 65536, by: RecvBy::Recv, flags: 0 }).ret > 0 {}
    t.c.poll(&[(p.c, POLLOUT)], 1000);
    t.c.send(p.c, b"room");
    t.s.recv(p.s, 64);
}

fn timeout(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let time = libc::timeval { tv_sec: 0, tv_usec: 30_000 };
    let bytes = [time.tv_sec.to_ne_bytes(), time.tv_usec.to_ne_bytes()].concat();
    t.s.setopt_bytes(p.s, SOL_SOCKET, SO_RCVTIMEO, &bytes);
    t.s.recv(p.s, 4);
    t.c.send(p.c, b"x");
    t.s.recv(p.s, 4);
}

fn sendto(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let to = t.named("socket");
    t.c.call(Op::SendTo { fd: p.c, data: (&b"x"[..]).into(), to: to.clone(), flags: 0 });
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.call(Op::SendTo { fd: c, data: (&b"x"[..]).into(), to, flags: libc::MSG_NOSIGNAL });
}

fn urgent(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.c.send_by(p.c, b"u", SendBy::Send, MSG_OOB);
    t.s.poll(&[(p.s, POLLIN | libc::POLLPRI)], 0);
    t.s.recv_by(p.s, 4, RecvBy::Recv, MSG_OOB | MSG_DONTWAIT);
    t.c.send(p.c, b"plain");
    t.s.recv_by(p.s, 64, RecvBy::Recv, MSG_DONTWAIT);
}

fn options(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    for name in [SO_TYPE, SO_DOMAIN, SO_PROTOCOL, SO_ACCEPTCONN, SO_ERROR, libc::SO_SNDBUF, libc::SO_RCVBUF] {
        t.c.getopt(p.c, SOL_SOCKET, name);
        t.s.getopt(p.l, SOL_SOCKET, name);
    }
    t.c.getopt(p.c, libc::IPPROTO_TCP, libc::TCP_NODELAY);
    t.c.setopt(p.c, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    t.c.setopt(p.c, SOL_SOCKET, libc::SO_SNDBUF, 20_000);
    t.c.getopt(p.c, SOL_SOCKET, libc::SO_SNDBUF);
    t.c.fcntl(p.c, libc::F_SETFL, O_NONBLOCK);
    t.c.fcntl(p.c, libc::F_GETFL, 0);
}

fn megabytes(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let total = 8 << 20;
    let sending = t.c.start(Op::Pump { fd: p.c, total, chunk: 60_000, by: SendBy::Write });
    t.s.call(Op::Drain { fd: p.s, total, chunk: 50_000, by: RecvBy::Read, flags: 0 });
    t.c.join(sending);
}

fn sendfile(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    t.c.call(Op::Sendfile { fd: p.c, size: 10_000, offset: Some(1_000), count: 8_000 });
    t.s.recv_by(p.s, 8_000, RecvBy::Recv, MSG_WAITALL);
    t.c.call(Op::Sendfile { fd: p.c, size: 100, offset: None, count: 1_000 });
    t.s.call(Op::Drain { fd: p.s, total: 100, chunk: 100, by: RecvBy::Recv, flags: 0 });
}

fn woken(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let waiting = t.s.start_recv(p.s, 64);
    t.pause();
    t.c.send(p.c, b"wake up");
    t.s.join(waiting);
    let waiting = t.s.start_recv(p.s, 64);
    t.pause();
    t.c.close(p.c);
    t.s.join(waiting);
}

fn forked(t: &Duo) {
    let name = t.named("pre-fork");
    let l = t.unix_listener(SOCK_STREAM, &name, 4);
    let Some(child) = t.s.fork("k") else { return };
    let c = t.c.socket(AF_UNIX, SOCK_STREAM);
    t.c.connect(c, &name);
    let s = child.accept(l);
    t.c.send(c, b"to the child");
    child.recv(s, 64);
    child.send(s, b"from the child");
    t.c.recv(c, 64);
    child.exit();
    t.c.recv(c, 64);
}

fn dup(t: &Duo) {
    let p = t.unix_pair(SOCK_STREAM);
    let d = t.c.dup(p.c);
    t.c.close(p.c);
    exchange(t, Pair { c: d, ..p });
    t.c.call(Op::Dup2 { fd: d, to: 90 });
    t.c.close(d);
    exchange(t, Pair { c: 90, ..p });
    t.c.close(90);
    t.s.recv(p.s, 4);
}
