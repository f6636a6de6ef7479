//! FIFOs: pipes with a name.

use harness::wire::Op;
use libc::{FIONREAD, O_CLOEXEC, O_NONBLOCK, O_RDONLY, O_RDWR, O_WRONLY, POLLIN, POLLOUT};

use crate::driver::Duo;
use crate::{Case, Expect::Any};

pub const CASES: &[Case] = &[
    ("fifo::reader_and_writer", Any, fifo),
    ("fifo::open_waits_for_the_other", Any, fifo_open_waits),
    ("fifo::nonblocking_open", Any, fifo_nonblocking),
    ("fifo::both_ends_in_one", Any, fifo_rdwr),
    ("fifo::opened_again_after_eof", Any, fifo_again),
    ("fifo::poll_before_a_writer", Any, fifo_poll),
    ("fifo::made_twice", Any, fifo_exists),
    ("fifo::child_writes", Any, fifo_child),
];

fn make_fifo(t: &Duo) -> String {
    let path = t.path("fifo");
    t.c.call(Op::Mkfifo { path: path.clone(), mode: 0o600 });
    path
}

/// Opens both ends without blocking; the reader first.
fn open_fifo(t: &Duo) -> (i32, i32) {
    let path = make_fifo(t);
    let r = t.c.open(&path, O_RDONLY | O_NONBLOCK);
    let w = t.c.open(&path, O_WRONLY);
    t.c.fcntl(r, libc::F_SETFL, 0);
    (r, w)
}

fn fifo(t: &Duo) {
    let (r, w) = open_fifo(t);
    t.c.write(w, b"through a name");
    t.c.ioctl(r, FIONREAD, 0);
    t.c.read(r, 64);
    t.c.call(Op::Fstat { fd: r });
    t.c.close(w);
    t.c.read(r, 64);
}

fn fifo_open_waits(t: &Duo) {
    let path = make_fifo(t);
    let opening = t.c.start(Op::Open { path: path.clone(), flags: O_RDONLY | O_CLOEXEC, mode: 0 });
    t.c.until_blocked();
    let w = t.c.open(&path, O_WRONLY | O_CLOEXEC);
    let r = i32::try_from(t.c.join(opening).ret).unwrap_or(-1);
    t.c.write(w, b"x");
    t.c.read(r, 4);
}

fn fifo_nonblocking(t: &Duo) {
    let path = make_fifo(t);
    t.c.open(&path, O_WRONLY | O_NONBLOCK);
    let r = t.c.open(&path, O_RDONLY | O_NONBLOCK);
    t.c.read(r, 4);
    let w = t.c.open(&path, O_WRONLY | O_NONBLOCK);
    t.c.read(r, 4);
    t.c.write(w, b"x");
    t.c.read(r, 4);
}

fn fifo_rdwr(t: &Duo) {
    let path = make_fifo(t);
    let fd = t.c.open(&path, O_RDWR);
    t.c.write(fd, b"around");
    t.c.read(fd, 64);
    t.c.poll(&[(fd, POLLIN | POLLOUT)], 0);
}

fn fifo_again(t: &Duo) {
    let (r, w) = open_fifo(t);
    t.c.close(w);
    t.c.read(r, 4);
    let w = t.c.open(&t.path("fifo"), O_WRONLY);
    t.c.write(w, b"a second writer");
    t.c.read(r, 64);
    t.c.call(Op::Unlink { path: t.path("fifo") });
    t.c.write(w, b"without a name");
    t.c.read(r, 64);
}

fn fifo_poll(t: &Duo) {
    let path = make_fifo(t);
    let r = t.c.open(&path, O_RDONLY | O_NONBLOCK);
    t.c.poll(&[(r, POLLIN)], 0);
    let w = t.c.open(&path, O_WRONLY);
    t.c.poll(&[(r, POLLIN), (w, POLLOUT)], 0);
    t.c.close(w);
    t.c.poll(&[(r, POLLIN)], 0);
}

fn fifo_exists(t: &Duo) {
    make_fifo(t);
    make_fifo(t);
    t.c.call(Op::Mkfifo { path: t.path("no/such/directory"), mode: 0o600 });
}

fn fifo_child(t: &Duo) {
    let path = make_fifo(t);
    let Some(child) = t.c.fork("k") else { return };
    let opening = child.start(Op::Open { path: path.clone(), flags: O_WRONLY, mode: 0 });
    let r = t.c.open(&path, O_RDONLY);
    let w = i32::try_from(child.join(opening).ret).unwrap_or(-1);
    child.write(w, b"by name");
    t.c.read(r, 64);
    child.exit();
    t.c.read(r, 64);
}
