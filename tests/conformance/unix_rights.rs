//! Descriptors and credentials that come with the bytes of an `AF_UNIX` stream socket.

use harness::wire::{Cred, Op};
use libc::{MSG_CMSG_CLOEXEC, MSG_DONTWAIT, POLLIN, SO_PASSCRED, SOCK_STREAM, SOL_SOCKET};

use crate::driver::Duo;
use crate::unix_names::NOBODY;
use crate::{Case, Expect::Mixed};

pub const CASES: &[Case] = &[
    ("unix_stream::passcred", Mixed, passcred),
    ("unix_stream::credentials_sent", Mixed, credentials),
    ("unix_stream::rights_of_a_pipe", Mixed, rights_pipe),
    ("unix_stream::rights_of_a_file", Mixed, rights_file),
    ("unix_stream::rights_of_a_socket", Mixed, rights_socket),
    ("unix_stream::rights_of_several", Mixed, rights_several),
    ("unix_stream::rights_end_a_read", Mixed, rights_boundary),
    ("unix_stream::rights_without_room", Mixed, rights_truncated),
    ("unix_stream::rights_dropped_by_recv", Mixed, rights_dropped),
    ("unix_stream::rights_cloexec", Mixed, rights_cloexec),
    ("unix_stream::rights_of_bad_descriptors", Mixed, rights_bad),
    ("unix_stream::rights_unread_at_close", Mixed, rights_unread),
];

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
