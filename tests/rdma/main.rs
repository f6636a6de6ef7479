//! Two hosts with RDMA: guests of QEMU, joined by an Ethernet with soft-RoCE on it. `make test-rdma` prepares the guest.

use std::process::ExitCode;

use harness::suite::{self, Test};

mod card;
mod fabric;
mod meeting;
mod pair;
mod pingpong;
mod session;

const TESTS: &[Test] = &[
    ("pingpong", pingpong::messages),
    ("session", session::redis),
    ("meeting", meeting::cards),
    ("fabric_writes", fabric::writes),
    ("fabric_process_killed", fabric::process_killed),
];

fn main() -> ExitCode {
    let code = suite::main(TESTS);
    drop(pair::take_running());
    code
}
