//! Two hosts with RDMA: guests of QEMU, joined by an Ethernet with soft-RoCE on it. `make test-rdma` prepares the guest.

use std::process::ExitCode;

use harness::suite::{self, Test};

mod card;
mod carried;
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
    ("carried_bytes", carried::bytes),
    ("carried_redis", carried::redis),
    ("carried_process_killed", carried::process_killed),
    ("carried_coordinator_killed", carried::coordinator_killed),
    // The last: it needs a pair for itself.
    ("carried_host_killed", carried::host_killed),
];

fn main() -> ExitCode {
    let code = suite::main(TESTS);
    drop(pair::take_running());
    code
}
