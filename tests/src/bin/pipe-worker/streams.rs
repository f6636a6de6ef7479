//! Bytes in order, all of them, whoever writes and reads.

use std::thread;
use std::time::Duration;

use crate::calls::{Lengths, bytes, close, fork, outcome, pipe, read, read_all, wait, write, write_all};

/// Bytes of a stream.
const BYTES: u64 = 12_000_000;

/// Writes the stream from `from` to `to` in pieces of up to `max`.
fn send(fd: i32, from: u64, to: u64, max: usize, seed: u64) {
    let mut lengths = Lengths(seed);
    let mut at = from;
    while at < to {
        let n = lengths.next(max).min((to - at) as usize);
        write_all(fd, &bytes(at, n));
        at += n as u64;
    }
}

/// Reads the stream to its end, with varying lengths; where it ended, and the first position that was wrong.
fn check(fd: i32, from: u64, max: usize, seed: u64) -> (u64, Option<u64>) {
    let mut lengths = Lengths(seed);
    let mut buffer = vec![0; max];
    let mut at = from;
    loop {
        let want = lengths.next(max);
        let n = read(fd, &mut buffer[..want]);
        if n <= 0 {
            assert_eq!(n, 0, "read");
            return (at, None);
        }
        let expected = bytes(at, n as usize);
        if let Some(wrong) = (0..n as usize).find(|i| buffer[*i] != expected[*i]) {
            return (at, Some(at + wrong as u64));
        }
        at += n as u64;
    }
}

/// One writes, one reads, lengths vary.
pub fn stream() {
    let [r, w] = pipe(0);
    let child = fork(|| {
        close(r);
        send(w, 0, BYTES, 20_000, 1);
        0
    });
    close(w);
    println!("read to {:?}", check(r, 0, 70_000, 2));
    println!("child {}", wait(child));
}

/// Requests and answers.
pub fn ping_pong() {
    let (there, back) = (pipe(0), pipe(0));
    let child = fork(|| {
        close(there[1]);
        close(back[0]);
        let mut message = [0; 64];
        while read_all(there[0], &mut message) {
            message.reverse();
            write_all(back[1], &message);
        }
        0
    });
    close(there[0]);
    close(back[1]);
    let mut wrong = 0;
    for i in 0..20_000 {
        let sent = bytes(i, 64);
        write_all(there[1], &sent);
        let mut got = [0; 64];
        assert!(read_all(back[0], &mut got), "answer {i}");
        got.reverse();
        wrong += i32::from(got[..] != sent[..]);
    }
    close(there[1]);
    println!("wrong answers {wrong}, child {}", wait(child));
    println!("end {}", read(back[0], &mut [0; 8]));
}

/// readv(2) and writev(2), across the ring's end.
pub fn vectors() {
    let [r, w] = pipe(0);
    let child = fork(|| {
        close(r);
        let mut at = 0u64;
        let mut lengths = Lengths(5);
        for _ in 0..5000 {
            let parts: Vec<Vec<u8>> = (0..5).map(|_| lengths.next(900)).fold(Vec::new(), |mut all, n| {
                all.push(bytes(at, n));
                at += n as u64;
                all
            });
            let iov: Vec<libc::iovec> = parts
                .iter()
                .map(|p| libc::iovec { iov_base: p.as_ptr().cast_mut().cast(), iov_len: p.len() })
                .collect();
            let total: usize = parts.iter().map(Vec::len).sum();
            // SAFETY: five buffers.
            let n = unsafe { libc::writev(w, iov.as_ptr(), 5) };
            let mut done = outcome(n) as usize;
            let all = parts.concat();
            while done < total {
                done += write(w, &all[done..]) as usize;
            }
        }
        0
    });
    close(w);
    let mut at = 0u64;
    let mut buffers = [[0u8; 700], [0; 700], [0; 700]];
    loop {
        let iov =
            buffers.each_mut().map(|b| libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() });
        // SAFETY: three buffers.
        let n = outcome(unsafe { libc::readv(r, iov.as_ptr(), 3) });
        assert!(n >= 0, "readv: {n}");
        if n == 0 {
            break;
        }
        assert_eq!(buffers.concat()[..n as usize], bytes(at, n as usize)[..], "at {at}");
        at += n as u64;
    }
    println!("read to {at}, child {}", wait(child));
}

/// Writes of up to `PIPE_BUF` bytes by several processes never mix.
pub fn three_writers() {
    let [r, w] = pipe(0);
    let writers: Vec<i32> = (0..3u8)
        .map(|who| {
            fork(move || {
                close(r);
                let mut lengths = Lengths(u64::from(who));
                for i in 0..10_000u32 {
                    let n = 8 + lengths.next(if i % 50 == 0 { 4088 } else { 300 });
                    let mut record = vec![who; n];
                    record[..4].copy_from_slice(&(n as u32).to_le_bytes());
                    record[4..8].copy_from_slice(&i.to_le_bytes());
                    if write(w, &record) != n as isize {
                        return 1;
                    }
                }
                0
            })
        })
        .collect();
    close(w);
    let mut next = [0u32; 3];
    let mut head = [0u8; 8];
    while read_all(r, &mut head) {
        let n = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let i = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        let mut rest = vec![0; n - 8];
        assert!(read_all(r, &mut rest), "a record is whole");
        let who = usize::from(rest[0]);
        assert!(
            rest.iter().all(|b| usize::from(*b) == who),
            "a record of writer {who} is mixed with another"
        );
        assert_eq!(next[who], i, "writer {who} is in order");
        next[who] += 1;
    }
    println!("records {next:?}, writers {:?}", writers.into_iter().map(wait).collect::<Vec<_>>());
}

/// Two processes read whole records; together they get all of them.
pub fn two_readers() {
    let [r, w] = pipe(0);
    let [sum_r, sum_w] = pipe(0);
    let readers: Vec<i32> = (0..2)
        .map(|_| {
            fork(|| {
                close(w);
                let (mut sum, mut record) = (0u64, [0u8; 8]);
                while read(r, &mut record) == 8 {
                    sum += u64::from_le_bytes(record);
                }
                write_all(sum_w, &sum.to_le_bytes());
                0
            })
        })
        .collect();
    close(r);
    for i in 0..100_000u64 {
        write_all(w, &i.to_le_bytes());
    }
    close(w);
    let mut sum = 0;
    for _ in 0..2 {
        let mut part = [0; 8];
        assert!(read_all(sum_r, &mut part));
        sum += u64::from_le_bytes(part);
    }
    println!("sum {sum}, readers {:?}", readers.into_iter().map(wait).collect::<Vec<_>>());
}

/// Children that are forked while bytes are under way write on, and the parent after them.
pub fn fork_in_the_middle() {
    let [r, w] = pipe(0);
    let child = fork(|| {
        close(r);
        for part in 0..20 {
            let (from, to) = (part * 500_000, part * 500_000 + 250_000);
            send(w, from, to, 3000, part);
            let grandchild = fork(|| {
                send(w, to, to + 250_000, 3000, part);
                0
            });
            if wait(grandchild) != 0 {
                return 1;
            }
        }
        0
    });
    close(w);
    println!("read to {:?}", check(r, 0, 30_000, 3));
    println!("child {}", wait(child));
}

/// Threads of one process on both ends.
pub fn threads() {
    let [r, w] = pipe(0);
    let writer = thread::spawn(move || {
        send(w, 0, BYTES / 4, 5000, 7);
        close(w);
    });
    println!("read to {:?}, writer {}", check(r, 0, 10_000, 8), writer.join().is_ok());
}

/// A reader that pauses: the writer sleeps, and wakes up.
pub fn slow_reader() {
    let [r, w] = pipe(0);
    let child = fork(|| {
        close(r);
        send(w, 0, 8_000_000, 50_000, 1);
        0
    });
    close(w);
    let mut buffer = vec![0; 65_536];
    let mut at = 0u64;
    for i in 0.. {
        if i % 50 == 0 {
            thread::sleep(Duration::from_millis(3));
        }
        let n = read(r, &mut buffer);
        if n <= 0 {
            break;
        }
        assert_eq!(buffer[..n as usize], bytes(at, n as usize)[..], "at {at}");
        at += n as u64;
    }
    println!("read to {at}, child {}", wait(child));
}
