//! How much fits, how it ends, and operations that only the kernel can do, all in the middle of traffic.

use std::ffi::CString;
use std::io::Write as _;
use std::os::fd::FromRawFd as _;
use std::time::Duration;

use crate::calls::{
    bytes, close, fork, ignore_sigpipe, kill, pipe, poll, read, read_all, set_nonblocking, wait, waiting,
    write, write_all,
};

/// Messages that make both sides use each other's presence.
const WARM_UP: u64 = 3000;

/// A child that answers each byte of `there` on `back`; it closes the other ends.
struct Echo {
    there: [i32; 2],
    back: [i32; 2],
}

impl Echo {
    fn new() -> Echo {
        Echo { there: pipe(0), back: pipe(0) }
    }

    /// In the child: answers `n` messages of 8 bytes.
    fn answer(&self, n: u64) {
        close(self.there[1]);
        close(self.back[0]);
        let mut message = [0; 8];
        for _ in 0..n {
            assert!(read_all(self.there[0], &mut message), "a message");
            write_all(self.back[1], &message);
        }
    }

    /// In the parent: asks `n` times.
    fn ask(&self, n: u64) {
        for i in 0..n {
            write_all(self.there[1], &i.to_le_bytes());
            let mut got = [0; 8];
            assert!(read_all(self.back[0], &mut got), "an answer");
            assert_eq!(u64::from_le_bytes(got), i, "the right answer");
        }
    }

    /// In the parent: the child's ends.
    fn close_theirs(&self) {
        close(self.there[0]);
        close(self.back[1]);
    }
}

/// How much a full pipe has taken, in writes of various sizes, and when there is room again.
pub fn capacity() {
    for size in [1usize, 512, 4096, 65_536] {
        let echo = Echo::new();
        let [hold_r, hold_w] = pipe(0);
        let child = fork(|| {
            close(hold_w);
            echo.answer(WARM_UP);
            // Reads nothing until it is told.
            read(hold_r, &mut [0; 1]);
            let mut page = [0; 4096];
            read_all(echo.there[0], &mut page);
            write_all(echo.back[1], &[1]);
            read(hold_r, &mut [0; 1]);
            let mut total = 4096;
            loop {
                match read(echo.there[0], &mut page) {
                    n if n > 0 => total += n as u64,
                    _ => break,
                }
            }
            write_all(echo.back[1], &u64::to_le_bytes(total));
            0
        });
        echo.close_theirs();
        close(hold_r);
        echo.ask(WARM_UP);
        let w = echo.there[1];
        set_nonblocking(w, true);
        let fill = || {
            let mut total = 0;
            loop {
                match write(w, &bytes(total, size)) {
                    n if n > 0 => total += n as u64,
                    e => return (total, e),
                }
            }
        };
        println!("{size}: {:?}, again {}", fill(), write(w, &[0; 1]));
        write_all(hold_w, &[0]);
        assert!(read_all(echo.back[0], &mut [0; 1]));
        println!("{size}: after a page was read {:?}", fill());
        close(w);
        close(hold_w);
        let mut total = [0; 8];
        assert!(read_all(echo.back[0], &mut total));
        println!("{size}: read {}, child {}", u64::from_le_bytes(total), wait(child));
    }
}

/// What a killed writer has written is read, and then the end of the file.
pub fn writer_is_killed() {
    let [r, w] = pipe(0);
    let [told_r, told_w] = pipe(0);
    let child = fork(|| {
        close(r);
        for i in 0..WARM_UP {
            write_all(w, &bytes(i * 10, 10));
        }
        write_all(told_w, &[1]);
        std::thread::sleep(Duration::from_secs(60));
        0
    });
    close(w);
    close(told_w);
    let mut at = 0u64;
    let mut buffer = [0; 7];
    // Some is read while it lives, the rest afterwards.
    while at < WARM_UP * 10 - 5000 {
        let n = read(r, &mut buffer) as usize;
        assert_eq!(buffer[..n], bytes(at, n)[..]);
        at += n as u64;
    }
    assert!(read_all(told_r, &mut [0]));
    kill(child);
    println!("child {}", wait(child));
    loop {
        let n = read(r, &mut buffer);
        if n <= 0 {
            println!("read to {at}, then {n}");
            break;
        }
        assert_eq!(buffer[..n as usize], bytes(at, n as usize)[..]);
        at += n as u64;
    }
}

/// A write after the reader was killed fails.
pub fn reader_is_killed() {
    ignore_sigpipe();
    let echo = Echo::new();
    let child = fork(|| {
        echo.answer(WARM_UP);
        std::thread::sleep(Duration::from_secs(60));
        0
    });
    echo.close_theirs();
    echo.ask(WARM_UP);
    println!("unread {}", write(echo.there[1], b"unread"));
    kill(child);
    println!("child {}", wait(child));
    println!("poll {:#x}", poll(echo.there[1], libc::POLLOUT, 1000));
    println!("write {}", write(echo.there[1], b"x"));
    println!("read {}", read(echo.back[0], &mut [0; 4]));
}

/// The writer is told by SIGPIPE, or EPIPE, that the last reader closed.
pub fn reader_closes() {
    let echo = Echo::new();
    let child = fork(|| {
        echo.answer(WARM_UP);
        close(echo.there[0]);
        write_all(echo.back[1], b"closed");
        0
    });
    echo.close_theirs();
    echo.ask(WARM_UP);
    assert!(read_all(echo.back[0], &mut [0; 6]));
    let writer = fork(|| {
        // SAFETY: no handler; Rust's runtime has set it to be ignored.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        write(echo.there[1], b"x");
        0
    });
    println!("a process that writes ends with {}", wait(writer));
    ignore_sigpipe();
    println!("write {}, child {}", write(echo.there[1], b"x"), wait(child));
    println!("end {}", read(echo.back[0], &mut [0; 1]));
}

/// poll(2), select(2) by way of poll, and FIONREAD between reads and writes.
pub fn polls_in_between() {
    let echo = Echo::new();
    let child = fork(|| {
        echo.answer(WARM_UP);
        for i in 0..50u64 {
            let mut message = [0; 8];
            // The descriptor is readable, and stays so until it is read.
            assert_eq!(poll(echo.there[0], libc::POLLIN, 20_000), libc::POLLIN, "poll {i}");
            assert_eq!(waiting(echo.there[0]), 8, "FIONREAD {i}");
            assert!(read_all(echo.there[0], &mut message));
            write_all(echo.back[1], &message);
        }
        echo.answer_again();
        0
    });
    echo.close_theirs();
    echo.ask(WARM_UP);
    echo.ask(50);
    println!(
        "nothing there {:#x} {:#x}",
        poll(echo.back[0], libc::POLLIN, 0),
        poll(echo.there[1], libc::POLLOUT, 0)
    );
    echo.ask(WARM_UP);
    close(echo.there[1]);
    println!("child {}", wait(child));
    println!("at the end {:#x}", poll(echo.back[0], libc::POLLIN, 20_000));
}

impl Echo {
    /// In the child: until the end.
    fn answer_again(&self) {
        let mut message = [0; 8];
        while read_all(self.there[0], &mut message) {
            write_all(self.back[1], &message);
        }
    }
}

/// FIONREAD, from either end, and a non-blocking reader.
pub fn bytes_that_wait() {
    let echo = Echo::new();
    let child = fork(|| {
        echo.answer(WARM_UP);
        echo.answer_again();
        0
    });
    // The parent keeps the reading end, too, and takes part.
    echo.ask(WARM_UP);
    close(echo.back[1]);
    set_nonblocking(echo.back[0], true);
    println!("empty {} {}", read(echo.back[0], &mut [0; 1]), waiting(echo.back[0]));
    write_all(echo.there[1], b"12345678");
    let mut got = [0; 8];
    let mut n = 0;
    while n < 8 {
        n += read(echo.back[0], &mut got[n..]).max(0) as usize;
    }
    println!("got {got:?}");
    close(echo.there[1]);
    close(echo.there[0]);
    println!("child {}", wait(child));
    println!("end {}", read(echo.back[0], &mut [0; 1]));
}

/// A process that also writes in another way than by our calls: nothing is lost, nothing changes places.
pub fn libc_writes_too() {
    let [r, w] = pipe(0);
    let child = fork(|| {
        close(r);
        // SAFETY: the process owns the descriptor, and ends before anything closes it twice.
        let mut file = unsafe { std::fs::File::from_raw_fd(w) };
        let (text, mode) = (CString::new("w").expect("no zero"), CString::new("%05d\n").expect("no zero"));
        // SAFETY: an open descriptor.
        let stream = unsafe { libc::fdopen(libc::dup(w), text.as_ptr()) };
        for i in 0..3000 {
            if i % 2 == 0 {
                file.write_all(format!("{i:05}\n").as_bytes()).expect("write");
            } else {
                // SAFETY: a stream of ours and a format with one int.
                unsafe {
                    libc::fprintf(stream, mode.as_ptr(), i);
                    libc::fflush(stream);
                }
            }
        }
        std::mem::forget(file);
        0
    });
    close(w);
    let mut line = [0; 6];
    let mut lines = 0;
    while read_all(r, &mut line) {
        assert_eq!(line[..], *format!("{lines:05}\n").as_bytes(), "line {lines}");
        lines += 1;
    }
    println!("lines {lines}, child {}", wait(child));
}

/// A reader that executes another program leaves it what it has not read.
pub fn exec_with_bytes_in_flight() {
    let [r, w] = pipe(0);
    let child = fork(|| {
        close(w);
        let mut piece = [0; 16];
        for i in 0..WARM_UP {
            assert!(read_all(r, &mut piece), "piece {i}");
        }
        // SAFETY: descriptors of this process, and a program with its arguments.
        unsafe {
            libc::dup2(r, 0);
            let (path, option) = (c"/usr/bin/wc", c"-c");
            libc::execl(path.as_ptr(), path.as_ptr(), option.as_ptr(), core::ptr::null::<libc::c_char>());
        }
        1
    });
    close(r);
    for i in 0..2 * WARM_UP {
        write_all(w, &bytes(i, 16));
    }
    close(w);
    println!("child {}", wait(child));
}

/// More pipes than there are rings for, with traffic on some.
pub fn many_pipes() {
    let all: Vec<[i32; 2]> = (0..100).map(|_| pipe(libc::O_CLOEXEC)).collect();
    let child = fork(|| {
        for [r, w] in &all {
            close(*r);
            for i in 0..100u64 {
                write_all(*w, &bytes(i * 500, 500));
            }
            close(*w);
        }
        0
    });
    let mut total = 0;
    let mut buffer = [0; 333];
    for [r, w] in &all {
        close(*w);
        let mut at = 0u64;
        loop {
            let n = read(*r, &mut buffer);
            if n <= 0 {
                break;
            }
            assert_eq!(buffer[..n as usize], bytes(at, n as usize)[..]);
            at += n as u64;
        }
        total += at;
        close(*r);
    }
    println!("read {total}, child {}", wait(child));
}
