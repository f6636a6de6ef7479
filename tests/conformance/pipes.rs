//! Pipes in one process.

use harness::wire::{Op, PollBy, RecvBy, SendBy};
use libc::{
    EPOLLET, EPOLLIN, EPOLLOUT, F_GETFD, F_GETFL, F_GETPIPE_SZ, F_SETPIPE_SZ, FIONREAD, O_CLOEXEC, O_DIRECT,
    O_NONBLOCK, POLLIN, POLLOUT, SHUT_WR, SIGPIPE, SO_TYPE, SOL_SOCKET,
};

use crate::driver::Duo;
use crate::{Case, Expect::Any};

pub const CASES: &[Case] = &[
    ("pipe::write_read", Any, write_read),
    ("pipe::eof_after_the_last_writer", Any, eof),
    ("pipe::several_writers", Any, several_writers),
    ("pipe::epipe_and_sigpipe", Any, epipe),
    ("pipe::wrong_end", Any, wrong_end),
    ("pipe::nonblocking", Any, nonblocking),
    ("pipe::flags_of_pipe2", Any, pipe2_flags),
    ("pipe::flags_are_per_description", Any, flags_shared),
    ("pipe::bad_flags", Any, bad_flags),
    ("pipe::capacity", Any, capacity),
    ("pipe::capacity_set", Any, capacity_set),
    ("pipe::small_writes_are_whole", Any, atomic),
    ("pipe::small_write_does_not_fit", Any, atomic_full),
    ("pipe::large_write_is_partial", Any, partial),
    ("pipe::large_write_blocks", Any, blocked_writer),
    ("pipe::reader_goes_under_a_writer", Any, reader_goes),
    ("pipe::blocked_reader", Any, blocked_reader),
    ("pipe::writer_goes_under_a_reader", Any, writer_goes),
    ("pipe::fionread", Any, fionread),
    ("pipe::poll_events", Any, |t| poll(t, PollBy::Poll)),
    ("pipe::select_events", Any, |t| poll(t, PollBy::Select)),
    ("pipe::epoll_edge", Any, edge),
    ("pipe::epoll_of_both_ends", Any, epoll_ends),
    ("pipe::vectors", Any, vectors),
    ("pipe::zero_bytes", Any, zero),
    ("pipe::socket_calls_are_refused", Any, socket_calls),
    ("pipe::seek_and_kind", Any, seek),
    ("pipe::dup_of_the_writer", Any, dup),
    ("pipe::packets", Any, packets),
];

fn write_read(t: &Duo) {
    let (r, w) = t.c.pipe();
    t.c.write(w, b"one");
    t.c.write(w, b"two");
    t.c.read(r, 4);
    t.c.read(r, 64);
    t.c.close(w);
    t.c.read(r, 64);
}

fn eof(t: &Duo) {
    let (r, w) = t.c.pipe();
    let d = t.c.dup(w);
    t.c.write(w, b"last");
    t.c.close(w);
    t.c.poll(&[(r, POLLIN)], 0);
    t.c.read(r, 64);
    t.c.poll(&[(r, POLLIN)], 0);
    t.c.close(d);
    t.c.poll(&[(r, POLLIN)], 0);
    t.c.read(r, 64);
    t.c.read(r, 64);
}

fn several_writers(t: &Duo) {
    let (r, w) = t.c.pipe();
    let Some(one) = t.c.fork("k1") else { return };
    let Some(two) = t.c.fork("k2") else { return };
    t.c.close(w);
    one.write(w, b"one ");
    two.write(w, b"two ");
    one.write(w, b"three ");
    t.c.read(r, 64);
    one.close(w);
    t.c.poll(&[(r, POLLIN)], 0);
    two.write(w, b"last");
    two.exit();
    t.c.read(r, 64);
    t.c.read(r, 64);
}

fn epipe(t: &Duo) {
    let (r, w) = t.c.pipe();
    t.c.signal(SIGPIPE, 2, 0);
    t.c.close(r);
    t.c.poll(&[(w, POLLOUT)], 0);
    t.c.write(w, b"x");
    t.c.signals(SIGPIPE);
    t.c.signal(SIGPIPE, 1, 0);
    t.c.write(w, b"y");
    t.c.write(w, b"");
}

fn wrong_end(t: &Duo) {
    let (r, w) = t.c.pipe();
    t.c.read(w, 4);
    t.c.write(r, b"x");
    t.c.fcntl(r, F_GETFL, 0);
    t.c.fcntl(w, F_GETFL, 0);
}

fn nonblocking(t: &Duo) {
    let (r, w) = t.c.pipe();
    t.c.nonblocking(r);
    t.c.nonblocking(w);
    t.c.read(r, 4);
    t.c.call(Op::Send { fd: w, data: vec![b'x'; 65_536].as_slice().into(), by: SendBy::Write, flags: 0 });
    t.c.write(w, b"no room");
    t.c.poll(&[(w, POLLOUT)], 0);
    t.c.read(r, 4096);
    t.c.poll(&[(w, POLLOUT)], 0);
    t.c.write(w, b"room");
}

fn pipe2_flags(t: &Duo) {
    for flags in [O_CLOEXEC, O_NONBLOCK, O_CLOEXEC | O_NONBLOCK] {
        let (r, w) = t.c.two(Op::Pipe2 { flags });
        for fd in [r, w] {
            t.c.fcntl(fd, F_GETFD, 0);
            t.c.fcntl(fd, F_GETFL, 0);
        }
    }
}

fn flags_shared(t: &Duo) {
    let (r, _) = t.c.pipe();
    let d = t.c.dup(r);
    t.c.nonblocking(d);
    t.c.read(r, 4);
    let Some(child) = t.c.fork("k") else { return };
    child.fcntl(r, libc::F_SETFL, 0);
    t.c.fcntl(r, F_GETFL, 0);
}

fn bad_flags(t: &Duo) {
    t.c.two(Op::Pipe2 { flags: libc::O_APPEND });
    t.c.pipe();
}

fn fill(t: &Duo, w: i32, each: usize) -> usize {
    let write = Op::Send { fd: w, data: vec![b'x'; each].as_slice().into(), by: SendBy::Write, flags: 0 };
    (0..100_000).position(|_| t.c.quiet(&write).ret < 0).unwrap_or(0)
}

fn capacity(t: &Duo) {
    let (_, w) = t.c.two(Op::Pipe2 { flags: O_NONBLOCK });
    t.c.fcntl(w, F_GETPIPE_SZ, 0);
    let pages = fill(t, w, 4096);
    t.c.remark(&format!("{pages} pages fit"));
}

fn capacity_set(t: &Duo) {
    let (r, w) = t.c.two(Op::Pipe2 { flags: O_NONBLOCK });
    t.c.fcntl(w, F_SETPIPE_SZ, 10_000);
    t.c.fcntl(r, F_GETPIPE_SZ, 0);
    let pages = fill(t, w, 4096);
    t.c.remark(&format!("{pages} pages fit"));
    t.c.fcntl(w, F_SETPIPE_SZ, 4096);
    t.c.fcntl(w, F_SETPIPE_SZ, 1 << 20);
    t.c.fcntl(w, F_GETPIPE_SZ, 0);
}

fn atomic(t: &Duo) {
    let (r, w) = t.c.pipe();
    let record =
        |byte: u8| Op::Send { fd: w, data: vec![byte; 3000].as_slice().into(), by: SendBy::Write, flags: 0 };
    let Some(child) = t.c.fork("k") else { return };
    let rounds = 20;
    for _ in 0..rounds {
        // Both at once: whole records in either order, never mixed.
        let one = t.c.start(record(b'a'));
        let two = child.start(record(b'b'));
        let got = t.c.quiet(&Op::Recv { fd: r, len: 3000, by: RecvBy::Read, flags: 0 }).data.0;
        let rest = t.c.quiet(&Op::Recv { fd: r, len: 3000, by: RecvBy::Read, flags: 0 }).data.0;
        t.c.quiet(&Op::Join { ticket: one });
        child.quiet(&Op::Join { ticket: two });
        let whole = |d: &[u8]| d.len() == 3000 && d.iter().all(|b| Some(b) == d.first());
        if !whole(&got) || !whole(&rest) {
            t.c.remark("records are mixed");
        }
    }
    t.c.remark(&format!("{rounds} rounds"));
}

fn atomic_full(t: &Duo) {
    let (r, w) = t.c.two(Op::Pipe2 { flags: O_NONBLOCK });
    fill(t, w, 4096);
    t.c.read(r, 4000);
    t.c.call(Op::Send { fd: w, data: vec![b'y'; 4096].as_slice().into(), by: SendBy::Write, flags: 0 });
    t.c.read(r, 96);
    t.c.call(Op::Send { fd: w, data: vec![b'y'; 4096].as_slice().into(), by: SendBy::Write, flags: 0 });
}

fn partial(t: &Duo) {
    let (r, w) = t.c.two(Op::Pipe2 { flags: O_NONBLOCK });
    t.c.call(Op::Send { fd: w, data: vec![b'z'; 100_000].as_slice().into(), by: SendBy::Write, flags: 0 });
    t.c.ioctl(r, FIONREAD, 0);
    t.c.read(r, 200_000);
    t.c.read(r, 200_000);
}

fn blocked_writer(t: &Duo) {
    let (r, w) = t.c.pipe();
    let data = vec![b'z'; 100_000].as_slice().into();
    let writing = t.c.start(Op::Send { fd: w, data, by: SendBy::Write, flags: 0 });
    t.c.until_blocked();
    let read = Op::Recv { fd: r, len: 100_000, by: RecvBy::Read, flags: 0 };
    let mut got = 0;
    while got < 100_000 {
        got += t.c.quiet(&read).ret.max(0);
    }
    t.c.join(writing);
    t.c.nonblocking(r);
    t.c.read(r, 4);
}

fn reader_goes(t: &Duo) {
    let (r, w) = t.c.pipe();
    t.c.signal(SIGPIPE, 1, 0);
    let Some(child) = t.c.fork("k") else { return };
    t.c.close(r);
    let data = vec![b'z'; 100_000].as_slice().into();
    let writing = t.c.start(Op::Send { fd: w, data, by: SendBy::Write, flags: 0 });
    t.c.until_blocked();
    child.exit();
    t.c.join(writing);
    t.c.write(w, b"x");
}

fn blocked_reader(t: &Duo) {
    let (r, w) = t.c.pipe();
    let reading = t.c.start(Op::Recv { fd: r, len: 64, by: RecvBy::Read, flags: 0 });
    t.c.until_blocked();
    t.c.write(w, b"wake");
    t.c.join(reading);
}

fn writer_goes(t: &Duo) {
    let (r, w) = t.c.pipe();
    let Some(child) = t.c.fork("k") else { return };
    t.c.close(w);
    let reading = t.c.start(Op::Recv { fd: r, len: 64, by: RecvBy::Read, flags: 0 });
    t.c.until_blocked();
    child.exit();
    t.c.join(reading);
}

fn fionread(t: &Duo) {
    let (r, w) = t.c.pipe();
    t.c.ioctl(r, FIONREAD, 0);
    t.c.write(w, b"12345");
    t.c.write(w, b"678");
    t.c.ioctl(r, FIONREAD, 0);
    t.c.ioctl(w, FIONREAD, 0);
    t.c.read(r, 3);
    t.c.ioctl(r, FIONREAD, 0);
}

fn poll(t: &Duo, by: PollBy) {
    let (r, w) = t.c.pipe();
    let both = [(r, POLLIN), (w, POLLOUT)];
    t.c.poll_by(&both, 0, by);
    t.c.write(w, b"x");
    t.c.poll_by(&both, 0, by);
    t.c.read(r, 4);
    t.c.poll_by(&both, 0, by);
    t.c.close(w);
    t.c.poll_by(&[(r, POLLIN)], 0, by);
    let (r, w) = t.c.pipe();
    t.c.close(r);
    t.c.poll_by(&[(w, POLLOUT)], 0, by);
}

fn edge(t: &Duo) {
    let (r, w) = t.c.pipe();
    let ep = t.c.epoll();
    t.c.epoll_add(ep, r, EPOLLIN | EPOLLET);
    t.c.epoll_wait(ep, 0);
    t.c.write(w, b"one");
    t.c.epoll_wait(ep, 0);
    t.c.epoll_wait(ep, 0);
    t.c.write(w, b"two");
    t.c.epoll_wait(ep, 0);
    t.c.read(r, 64);
    t.c.close(w);
    t.c.epoll_wait(ep, 0);
    t.c.epoll_wait(ep, 0);
}

fn epoll_ends(t: &Duo) {
    let (r, w) = t.c.pipe();
    let ep = t.c.epoll();
    t.c.epoll_add(ep, r, EPOLLIN);
    t.c.epoll_add(ep, w, EPOLLOUT);
    t.c.epoll_wait(ep, 0);
    t.c.write(w, b"x");
    t.c.epoll_wait(ep, 0);
    t.c.close(r);
    t.c.epoll_wait(ep, 0);
    t.c.epoll_add(ep, r, EPOLLIN);
}

fn vectors(t: &Duo) {
    let (r, w) = t.c.pipe();
    t.c.send_by(w, b"hello world", SendBy::Writev(3), 0);
    t.c.recv_by(r, 11, RecvBy::Readv(4), 0);
    t.c.write(w, b"checked");
    t.c.recv_by(r, 64, RecvBy::ReadChk, 0);
}

fn zero(t: &Duo) {
    let (r, w) = t.c.two(Op::Pipe2 { flags: O_NONBLOCK });
    t.c.write(w, b"");
    t.c.read(r, 4);
    t.c.read(r, 0);
    t.c.close(w);
    t.c.read(r, 0);
}

fn socket_calls(t: &Duo) {
    let (r, w) = t.c.pipe();
    t.c.send(w, b"x");
    t.c.recv(r, 4);
    t.c.shutdown(w, SHUT_WR);
    t.c.sockname(r);
    t.c.peername(w);
    t.c.getopt(r, SOL_SOCKET, SO_TYPE);
    t.c.listen(r, 4);
    t.c.accept(r);
}

fn seek(t: &Duo) {
    let (r, w) = t.c.pipe();
    for fd in [r, w] {
        t.c.call(Op::Lseek { fd, offset: 0, whence: libc::SEEK_CUR });
        t.c.call(Op::Fstat { fd });
    }
}

fn dup(t: &Duo) {
    let (r, w) = t.c.pipe();
    t.c.call(Op::Dup2 { fd: w, to: 70 });
    t.c.close(w);
    t.c.write(70, b"at 70");
    t.c.read(r, 64);
    t.c.call(Op::Dup2 { fd: r, to: 70 });
    t.c.read(r, 4);
    t.c.write(70, b"the reading end now");
}

fn packets(t: &Duo) {
    let (r, w) = t.c.two(Op::Pipe2 { flags: O_DIRECT });
    t.c.write(w, b"one");
    t.c.write(w, b"two and more");
    t.c.read(r, 64);
    t.c.read(r, 3);
    t.c.close(w);
    t.c.read(r, 64);
}
