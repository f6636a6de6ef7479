//! System calls that don't come through libc: never a byte in the wrong place, and `ps` says what happened.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use harness::child::{Guarded, run_ok, wait_for};
use harness::instance::Instance;
use harness::scratch::Scratch;
use harness::{Outcome, ensure, fail};
use serde_json::Value;

use crate::check::compile;
use crate::with_instance;

const BOUND: Duration = Duration::from_secs(60);

/// Connects to itself; then `argv[1]` says what it does with the client's descriptor past libc. It says `ok` or a
/// complaint, and stays until its standard input ends.
const PROGRAM: &str = r#"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static long raw(long number, long a, long b, long c) {
#if defined(__x86_64__)
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
#endif
}

static const char *reused(int fd, int server) {
    char text[16] = "";
    raw(SYS_close, fd, 0, 0);
    int file = open("/proc/self/comm", O_RDONLY);
    if (file != fd) return "the number was not given out again";
    if (read(file, text, 7) != 7 || memcmp(text, "escapes", 7)) return "the file's bytes did not come";
    struct pollfd end = {server, POLLIN, 0};
    if (poll(&end, 1, 20000) != 1 || read(server, text, 1) != 0) return "the peer saw no end";
    if (close(file) != 0 || close(file) == 0) return "the file did not close";
    return "ok";
}

static const char *refused(int fd, int server) {
    char text[16] = "";
    if (raw(SYS_read, fd, (long)text, 1) >= 0) return "a raw read of the placeholder read something";
    if (raw(SYS_sendto, fd, (long)"x", 1) >= 0) return "a raw send to the placeholder sent something";
    if (write(fd, "y", 1) != 1 || read(server, text, 16) != 1 || text[0] != 'y') return "a byte got lost";
    return "ok";
}

/* Every descriptor that the program did not open itself is closed by number, as old daemons do; then its numbers are used again. */
static const char *swept(int fd, int server) {
    char text[16] = "";
    for (int n = 3; n < 70000; n++)
        if (n != fd && n != server) raw(SYS_close, n, 0, 0);
    for (int n = 0; n < 1000; n++) {
        int event = eventfd(0, EFD_NONBLOCK);
        if (event < 0) return "no more descriptors";
        if (read(event, text, 8) != -1 || errno != EAGAIN) return "somebody wrote to a descriptor of the program's";
    }
    /* What says that a process lives is among those numbers, so its connections are over. */
    if (write(fd, "y", 1) == 1 && read(server, text, 16) != -1) return "a connection outlived its process's wires";
    if (errno != ECONNRESET && errno != EPIPE) return "the connection ended in another way than by a reset";
    return "ok";
}

int main(int argc, char **argv) {
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof addr;
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&addr, length) || listen(listener, 8)) return 1;
    if (getsockname(listener, (void *)&addr, &length) || connect(client, (void *)&addr, length)) return 1;
    int server = accept(listener, 0, 0);
    const char *said = "ok";
    if (!strcmp(argv[1], "reused")) said = reused(client, server);
    if (!strcmp(argv[1], "refused")) said = refused(client, server);
    if (!strcmp(argv[1], "swept")) said = swept(client, server);
    if (!strcmp(argv[1], "closed")) raw(SYS_close, client, 0, 0);
    if (!strcmp(argv[1], "dup")) { int copy = dup(client); close(client); client = copy; }
    if (!strcmp(argv[1], "families")) {
        int udp = socket(AF_INET, SOCK_DGRAM, 0), message = socket(AF_UNIX, SOCK_SEQPACKET, 0);
        if (bind(udp, (void *)&(struct sockaddr_in){.sin_family = AF_INET}, length) || message < 0) return 1;
        if (connect(udp, (void *)&addr, length)) return 1;
    }
    puts(said);
    fflush(stdout);
    char end;
    raw(SYS_read, 0, (long)&end, 1);
    return strcmp(said, "ok");
}
"#;

/// Runs the program; `look` sees it while it stays.
fn with_program(what: &str, look: impl Fn(&Instance, &Guarded) -> Outcome) -> Outcome {
    let scratch = Scratch::new()?;
    let program: PathBuf = compile(scratch.path(), "escapes", PROGRAM, &[])?;
    with_instance(|instance| {
        let mut command = instance.shimmed(Path::new(&program));
        let mut process = Guarded::spawn(command.arg(what).stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let Some(out) = process.stdout() else { return fail("its output is not piped") };
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line)?;
        ensure(line == "ok\n", || format!("{what}: {line}"))?;
        look(instance, &process)
    })
}

/// The reasons of the process's sockets, once there are `n` of them.
fn reasons(instance: &Instance) -> Outcome<Vec<(i64, String)>> {
    let json = run_ok(instance.command().args(["ps", "--json", "--all"]), BOUND)?;
    let report: Value = serde_json::from_str(&json)?;
    let sockets = report["processes"][0]["sockets"].as_array().cloned().unwrap_or_default();
    let text = |s: &Value| (s["fd"].as_i64().unwrap_or(-2), s["reason"].as_str().unwrap_or("?").to_owned());
    Ok(sockets.iter().map(text).collect())
}

/// A raw close, then open(2) gets the number: it is the file's, and the connection has ended.
pub fn reused_number() -> Outcome {
    with_program("reused", |instance, _| {
        let json = run_ok(instance.command().args(["ps", "--json"]), BOUND)?;
        ensure(json.contains("\"escapes\": 1"), || format!("the escape is not counted:\n{json}"))
    })
}

/// Raw reads and writes meet the placeholder: an error, and nothing else.
pub fn raw_data_calls() -> Outcome {
    with_program("refused", |_, _| Ok(()))
}

/// All our own descriptors are closed, and their numbers used again.
pub fn raw_sweep() -> Outcome {
    with_program("swept", |_, _| Ok(()))
}

/// A raw close, and nothing after it.
pub fn closed_behind_our_back() -> Outcome {
    with_program("closed", |instance, _| {
        let seen = reasons(instance)?;
        ensure(seen.iter().filter(|(_, reason)| reason == "escaped").count() == 1, || format!("{seen:?}"))
    })
}

/// A socket that has lost its first number to close(2) has not escaped.
pub fn duplicated_then_closed() -> Outcome {
    with_program("dup", |instance, _| {
        let seen = wait_for(BOUND, || Ok(Some(reasons(instance)?)))?.unwrap_or_default();
        ensure(seen.len() == 3 && seen.iter().all(|(fd, reason)| *fd >= 3 && reason == "-"), || {
            format!("{seen:?}")
        })
    })
}

/// What is passed through says why.
pub fn other_families() -> Outcome {
    with_program("families", |instance, _| {
        let seen = reasons(instance)?;
        let has = |code: &str| seen.iter().any(|(_, reason)| reason == code);
        ensure(has("udp") && has("unix-message"), || format!("{seen:?}"))
    })
}
