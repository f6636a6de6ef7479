//! Pipes, FIFOs and socket pairs, in one process and its children.

use harness::wire::{Op, PollBy, RecvBy, SendBy};
use libc::{
    AF_INET, AF_UNIX, EPOLLET, EPOLLIN, EPOLLOUT, F_GETFD, F_GETFL, F_GETPIPE_SZ, F_SETPIPE_SZ, FIONREAD,
    MSG_DONTWAIT, MSG_PEEK, O_CLOEXEC, O_DIRECT, O_NONBLOCK, O_RDONLY, O_RDWR, O_WRONLY, POLLIN, POLLOUT,
    SHUT_RD, SHUT_RDWR, SHUT_WR, SIGPIPE, SO_TYPE, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_SEQPACKET,
    SOCK_STREAM, SOL_SOCKET,
};

use crate::driver::Duo;
use crate::{Case, Expect::Any};

pub const PIPES: &[Case] = &[
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
    ("pipe::child_writes", Any, child_writes),
    ("pipe::child_reads", Any, child_reads),
    ("pipe::children_both_ways", Any, ping_pong),
    ("pipe::child_is_killed", Any, child_killed),
    ("pipe::spawned_child", Any, spawned),
    ("pipe::static_child", Any, static_child),
    ("pipe::exec_keeps_it", Any, exec),
    ("pipe::megabytes_to_a_child", Any, megabytes),
    ("pipe::thousands_of_messages", Any, messages),
    ("pipe::many", Any, many),
];

pub const FIFOS: &[Case] = &[
    ("fifo::reader_and_writer", Any, fifo),
    ("fifo::open_waits_for_the_other", Any, fifo_open_waits),
    ("fifo::nonblocking_open", Any, fifo_nonblocking),
    ("fifo::both_ends_in_one", Any, fifo_rdwr),
    ("fifo::opened_again_after_eof", Any, fifo_again),
    ("fifo::poll_before_a_writer", Any, fifo_poll),
    ("fifo::made_twice", Any, fifo_exists),
    ("fifo::child_writes", Any, fifo_child),
];

pub const SOCKETPAIRS: &[Case] = &[
    ("socketpair::stream", Any, |t| pair_exchange(t, SOCK_STREAM)),
    ("socketpair::seqpacket", Any, |t| pair_exchange(t, SOCK_SEQPACKET)),
    ("socketpair::dgram", Any, |t| pair_exchange(t, SOCK_DGRAM)),
    ("socketpair::flags", Any, pair_flags),
    ("socketpair::bad", Any, pair_bad),
    ("socketpair::names_and_peercred", Any, pair_names),
    ("socketpair::half_close", Any, pair_half_close),
    ("socketpair::shut_rd_and_rdwr", Any, pair_shut),
    ("socketpair::end", Any, pair_end),
    ("socketpair::unread_at_close", Any, pair_unread),
    ("socketpair::sigpipe", Any, pair_sigpipe),
    ("socketpair::every_form", Any, pair_forms),
    ("socketpair::peek", Any, pair_peek),
    ("socketpair::fill_and_drain", Any, pair_fill),
    ("socketpair::readiness", Any, pair_ready),
    ("socketpair::rights", Any, pair_rights),
    ("socketpair::rights_of_its_own_end", Any, pair_own_end),
    ("socketpair::fork", Any, pair_fork),
    ("socketpair::spawned_child", Any, pair_spawned),
    ("socketpair::static_child", Any, pair_static),
    ("socketpair::exec_keeps_it", Any, pair_exec),
    ("socketpair::both_directions_at_once", Any, pair_bulk),
    ("socketpair::thousands_of_messages", Any, pair_messages),
    ("socketpair::blocked_reader", Any, pair_blocked),
    ("socketpair::close_under_a_reader", Any, pair_close_reader),
    ("socketpair::dup_and_dup2", Any, pair_dup),
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

fn child_writes(t: &Duo) {
    let (r, w) = t.c.pipe();
    let Some(child) = t.c.fork("k") else { return };
    t.c.close(w);
    child.close(r);
    child.write(w, b"from the child");
    t.c.read(r, 64);
    child.exit();
    t.c.read(r, 64);
}

fn child_reads(t: &Duo) {
    let (r, w) = t.c.pipe();
    t.c.write(w, b"before the fork");
    let Some(child) = t.c.fork("k") else { return };
    child.close(w);
    child.read(r, 64);
    t.c.write(w, b"after it");
    child.read(r, 64);
    t.c.close(w);
    child.read(r, 64);
}

fn ping_pong(t: &Duo) {
    let (there, to) = t.c.pipe();
    let (back, from) = t.c.pipe();
    let Some(child) = t.c.fork("k") else { return };
    for _ in 0..100 {
        t.c.write(to, b"ping");
        child.read(there, 64);
        child.write(from, b"pong");
        t.c.read(back, 64);
    }
}

fn child_killed(t: &Duo) {
    let (r, w) = t.c.pipe();
    let Some(child) = t.c.fork("k") else { return };
    t.c.close(w);
    child.write(w, b"before the end");
    child.kill();
    t.c.read(r, 64);
    t.c.read(r, 64);
}

fn spawned(t: &Duo) {
    let (r, w) = t.c.pipe();
    let Some(child) = t.c.spawn("k", harness::wire::SpawnBy::PosixSpawn, &[(w, 1)]) else { return };
    t.c.close(w);
    child.close(w);
    child.write(1, b"to standard output");
    t.c.read(r, 64);
    child.exit();
    t.c.read(r, 64);
}

/// A static program that copies `from` to `to`.
fn copier(from: i32, to: i32) -> Op {
    let argv = vec![env!("STATIC_ECHO").to_owned(), from.to_string(), to.to_string()];
    Op::Spawn { by: harness::wire::SpawnBy::Fork, argv, moves: vec![] }
}

fn static_child(t: &Duo) {
    let (there, to) = t.c.two(Op::Pipe2 { flags: 0 });
    let (back, from) = t.c.pipe();
    t.c.fcntl(to, libc::F_SETFD, libc::FD_CLOEXEC);
    t.c.call(copier(there, from));
    t.c.close(from);
    t.c.write(to, b"through a static program");
    t.c.read(back, 64);
    t.c.close(to);
    t.c.read(back, 64);
    t.c.call(Op::Reap);
}

fn exec(t: &Duo) {
    let (r, w) = t.c.pipe();
    t.c.write(w, b"before");
    t.c.exec(harness::wire::ExecBy::Execve);
    t.c.read(r, 64);
    t.c.write(w, b"after");
    t.c.read(r, 64);
    t.c.close(w);
    t.c.read(r, 64);
}

fn megabytes(t: &Duo) {
    let (r, w) = t.c.pipe();
    let Some(child) = t.c.fork("k") else { return };
    t.c.close(r);
    let total = 8 << 20;
    let writing = t.c.start(Op::Pump { fd: w, total, chunk: 60_000, by: SendBy::Write });
    child.close(w);
    child.call(Op::Drain { fd: r, total, chunk: 50_000, by: RecvBy::Read, flags: 0 });
    t.c.join(writing);
}

fn messages(t: &Duo) {
    let (r, w) = t.c.pipe();
    let Some(child) = t.c.fork("k") else { return };
    let total = 64_000;
    let writing = t.c.start(Op::Pump { fd: w, total, chunk: 8, by: SendBy::Write });
    child.call(Op::Drain { fd: r, total, chunk: 8, by: RecvBy::Read, flags: 0 });
    t.c.join(writing);
    t.c.close(w);
    child.close(w);
    child.read(r, 4);
}

fn many(t: &Duo) {
    let pipes: Vec<(i32, i32)> = (0..50).map(|_| t.c.pipe()).collect();
    for (_, w) in pipes.iter().step_by(7) {
        t.c.write(*w, b"x");
    }
    let readers: Vec<(i32, i16)> = pipes.iter().map(|(r, _)| (*r, POLLIN)).collect();
    t.c.poll(&readers, 0);
    for (r, w) in pipes {
        t.c.close(r);
        t.c.close(w);
    }
    t.c.pipe();
}

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

fn pair_exchange(t: &Duo, ty: i32) {
    let (a, b) = t.c.socketpair(ty);
    t.c.send(a, b"one");
    t.c.send(a, b"two");
    t.c.recv(b, 64);
    t.c.recv_by(b, 64, RecvBy::Recv, MSG_DONTWAIT);
    t.c.write(b, b"and back");
    t.c.read(a, 3);
    t.c.recv_by(a, 64, RecvBy::Recv, MSG_DONTWAIT);
    t.c.close(b);
    t.c.recv_by(a, 64, RecvBy::Recv, MSG_DONTWAIT);
    t.c.send(a, b"x");
}

fn pair_flags(t: &Duo) {
    for flags in [SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_CLOEXEC | SOCK_NONBLOCK] {
        let (a, b) = t.c.socketpair(SOCK_STREAM | flags);
        for fd in [a, b] {
            t.c.fcntl(fd, F_GETFD, 0);
            t.c.fcntl(fd, F_GETFL, 0);
        }
    }
}

fn pair_bad(t: &Duo) {
    for (domain, ty, protocol) in
        [(AF_INET, SOCK_STREAM, 0), (AF_UNIX, 77, 0), (9999, SOCK_STREAM, 0), (AF_UNIX, SOCK_STREAM, 99)]
    {
        t.c.call(Op::Socketpair { domain, ty, protocol });
    }
}

fn pair_names(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.sockname(a);
    t.c.peername(b);
    t.c.peercred(a);
    t.c.getopt(a, SOL_SOCKET, SO_TYPE);
    t.c.connect(a, &t.named("nobody"));
    t.c.call(Op::Fstat { fd: b });
}

fn pair_half_close(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.send(a, b"last");
    t.c.shutdown(a, SHUT_WR);
    t.c.recv(b, 64);
    t.c.recv(b, 64);
    t.c.poll(&[(a, POLLIN | POLLOUT), (b, POLLIN | POLLOUT | libc::POLLRDHUP)], 0);
    t.c.send(b, b"still answers");
    t.c.recv(a, 64);
    t.c.send(a, b"x");
}

fn pair_shut(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.send(b, b"unread");
    t.c.shutdown(a, SHUT_RD);
    t.c.recv(a, 64);
    t.c.recv(a, 64);
    t.c.send(b, b"x");
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.shutdown(a, SHUT_RDWR);
    t.c.recv(b, 4);
    t.c.poll(&[(a, POLLIN | POLLOUT), (b, POLLIN | POLLOUT)], 0);
}

fn pair_end(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.send(a, b"all of it");
    t.c.close(a);
    t.c.poll(&[(b, POLLIN | POLLOUT)], 0);
    t.c.recv(b, 64);
    t.c.recv(b, 64);
}

fn pair_unread(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.send(a, b"unread");
    t.c.close(b);
    t.c.recv(a, 4);
    t.c.recv(a, 4);
    t.c.send(a, b"x");
}

fn pair_sigpipe(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.signal(SIGPIPE, 2, 0);
    t.c.close(b);
    t.c.write(a, b"x");
    t.c.signals(SIGPIPE);
    t.c.send(a, b"quiet");
    t.c.signals(SIGPIPE);
}

fn pair_forms(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let senders = [SendBy::Write, SendBy::Writev(3), SendBy::Send, SendBy::Sendto, SendBy::Sendmsg(4)];
    let receivers = [RecvBy::Read, RecvBy::Readv(5), RecvBy::Recv, RecvBy::Recvfrom, RecvBy::Recvmsg(3)];
    for by in senders {
        for to in receivers {
            t.c.send_by(a, b"hello world", by, 0);
            t.c.recv_by(b, 11, to, 0);
        }
    }
}

fn pair_peek(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.send(a, b"abc");
    t.c.recv_by(b, 2, RecvBy::Recv, MSG_PEEK);
    t.c.ioctl(b, FIONREAD, 0);
    t.c.send(a, b"def");
    t.c.recv_by(b, 6, RecvBy::Recv, libc::MSG_WAITALL);
    t.c.recv_by(b, 6, RecvBy::Recv, MSG_PEEK | MSG_DONTWAIT);
}

fn pair_fill(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM | SOCK_NONBLOCK);
    t.c.recv(b, 4);
    let fill = Op::Fill { fd: a, len: 4096, flags: 0 };
    let ended = (0..100_000).any(|_| t.c.quiet(&fill).ret < 0);
    t.c.remark(&format!("full: {ended}"));
    t.c.poll(&[(a, POLLOUT)], 0);
    while t.c.quiet(&Op::Recv { fd: b, len: 65_536, by: RecvBy::Recv, flags: 0 }).ret > 0 {}
    t.c.poll(&[(a, POLLOUT)], 1000);
    t.c.send(a, b"room");
    t.c.recv(b, 64);
}

fn pair_ready(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let ep = t.c.epoll();
    t.c.epoll_add(ep, b, EPOLLIN | EPOLLOUT | EPOLLET);
    t.c.epoll_wait(ep, 0);
    t.c.send(a, b"x");
    t.c.epoll_wait(ep, 0);
    t.c.epoll_wait(ep, 0);
    t.c.poll_by(&[(b, POLLIN)], 0, PollBy::Select);
    t.c.recv(b, 4);
    t.c.close(a);
    t.c.epoll_wait(ep, 0);
}

fn pair_rights(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let (r, w) = t.c.pipe();
    t.c.send(a, b"before");
    t.c.recv(b, 64);
    t.c.send_fds(a, b"a pipe", &[r]);
    t.c.send(a, b"after");
    let got = t.c.recv_fd(b);
    t.c.recv_by(b, 64, RecvBy::Recv, MSG_DONTWAIT);
    t.c.write(w, b"through it");
    t.c.read(got, 64);
}

fn pair_own_end(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.send_fds(a, b"your own", &[b]);
    let got = t.c.recv_fd(b);
    t.c.send(a, b"to either");
    t.c.recv(got, 4);
    t.c.recv(b, 64);
    t.c.close(b);
    t.c.send(got, b"back");
    t.c.recv(a, 64);
}

fn pair_fork(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let Some(child) = t.c.fork("k") else { return };
    t.c.close(b);
    child.close(a);
    for _ in 0..50 {
        t.c.send(a, b"ping");
        child.recv(b, 64);
        child.send(b, b"pong");
        t.c.recv(a, 64);
    }
    child.exit();
    t.c.recv(a, 64);
}

fn pair_spawned(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let Some(child) = t.c.spawn("k", harness::wire::SpawnBy::Vfork, &[(b, 0), (b, 1)]) else { return };
    t.c.close(b);
    child.close(b);
    t.c.send(a, b"in");
    child.read(0, 64);
    child.write(1, b"out");
    t.c.recv(a, 64);
    t.c.peercred(a);
    child.exit();
    t.c.close(a);
}

fn pair_static(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.fcntl(a, libc::F_SETFD, libc::FD_CLOEXEC);
    t.c.call(copier(b, b));
    t.c.close(b);
    t.c.send(a, b"around");
    t.c.recv(a, 64);
    t.c.shutdown(a, SHUT_WR);
    t.c.recv(a, 64);
    t.c.call(Op::Reap);
}

fn pair_exec(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    t.c.send(a, b"before");
    t.c.exec(harness::wire::ExecBy::Execv);
    t.c.recv(b, 64);
    t.c.send(b, b"after");
    t.c.recv(a, 64);
    t.c.close(a);
    t.c.recv(b, 64);
}

fn pair_bulk(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let Some(child) = t.c.fork("k") else { return };
    let (total, chunk) = (4 << 20, 40_000);
    let up = t.c.start(Op::Pump { fd: a, total, chunk, by: SendBy::Send });
    let down = child.start(Op::Pump { fd: b, total, chunk, by: SendBy::Send });
    let there = child.start(Op::Drain { fd: b, total, chunk, by: RecvBy::Recv, flags: 0 });
    t.c.call(Op::Drain { fd: a, total, chunk, by: RecvBy::Recv, flags: 0 });
    child.join(there);
    child.join(down);
    t.c.join(up);
}

fn pair_messages(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let Some(child) = t.c.fork("k") else { return };
    let total = 64_000;
    let writing = t.c.start(Op::Pump { fd: a, total, chunk: 8, by: SendBy::Write });
    child.call(Op::Drain { fd: b, total, chunk: 8, by: RecvBy::Read, flags: 0 });
    t.c.join(writing);
}

fn pair_blocked(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let reading = t.c.start_recv(b, 64);
    t.c.until_blocked();
    t.c.send(a, b"wake");
    t.c.join(reading);
    let reading = t.c.start_recv(b, 64);
    t.c.until_blocked();
    t.c.close(a);
    t.c.join(reading);
}

fn pair_close_reader(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let reading = t.c.start_recv(b, 64);
    t.c.until_blocked();
    t.c.close(b);
    t.c.send(a, b"still arrives");
    t.c.join(reading);
    t.c.recv(a, 4);
}

fn pair_dup(t: &Duo) {
    let (a, b) = t.c.socketpair(SOCK_STREAM);
    let d = t.c.dup(a);
    t.c.close(a);
    t.c.send(d, b"by the copy");
    t.c.recv(b, 64);
    t.c.call(Op::Dup2 { fd: b, to: d });
    t.c.recv(b, 4);
    t.c.send(d, b"x");
}
