#![allow(unsafe_code)] // reason: fork, pipes and signals as a C program uses them
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_lossless)] // values of C types
//! What relatives do with pipes and socket pairs, one scenario for each run: `pipe-worker NAME` prints what it saw.
//!
//! What is printed does not depend on timing, so a run on the kernel and one under the shim print the same.

mod calls;
mod ends;
mod streams;

use std::process::ExitCode;

/// Scenarios by name.
const SCENARIOS: &[(&str, fn())] = &[
    ("stream", streams::stream),
    ("ping-pong", streams::ping_pong),
    ("vectors", streams::vectors),
    ("records-of-three-writers", streams::three_writers),
    ("two-readers", streams::two_readers),
    ("fork-in-the-middle", streams::fork_in_the_middle),
    ("threads", streams::threads),
    ("slow-reader", streams::slow_reader),
    ("capacity", ends::capacity),
    ("writer-is-killed", ends::writer_is_killed),
    ("reader-is-killed", ends::reader_is_killed),
    ("reader-closes", ends::reader_closes),
    ("polls-in-between", ends::polls_in_between),
    ("bytes-that-wait", ends::bytes_that_wait),
    ("libc-writes-too", ends::libc_writes_too),
    ("exec-with-bytes-in-flight", ends::exec_with_bytes_in_flight),
    ("many-pipes", ends::many_pipes),
];

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    match SCENARIOS.iter().find(|(n, _)| *n == name) {
        Some((_, run)) => {
            run();
            ExitCode::SUCCESS
        }
        None => {
            eprintln!(
                "usage: pipe-worker {}",
                SCENARIOS.iter().map(|(n, _)| *n).collect::<Vec<_>>().join("|")
            );
            ExitCode::from(2)
        }
    }
}
