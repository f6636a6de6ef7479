//! Namespaces: processes reach exactly what the kernel lets them reach, and nobody is taken for somebody else.
//!
//! Each test runs on the kernel first, then under the shim; what the programs say must be the same. Then the counters
//! say which way the bytes went.

mod identity;
mod network;
mod scene;

use std::process::ExitCode;

use harness::suite::{self, Test};

const TESTS: &[Test] = &[
    ("network::loopback_is_the_namespaces_own", network::loopback),
    ("network::one_port_in_two_namespaces", network::same_port),
    ("network::routed_addresses_go_through_the_kernel", network::routed),
    ("network::a_thread_that_moves", network::moved),
    ("network::a_process_that_leaves", network::left),
    ("network::abstract_names", network::abstract_names),
    ("network::an_agent_with_a_path", network::agent_at_a_path),
    ("identity::pid_namespaces", identity::pid_namespaces),
    ("identity::a_death_in_a_pid_namespace", identity::death),
    ("identity::user_namespace", identity::user_namespace),
    ("identity::two_users", identity::two_users),
    ("identity::chroot", identity::chroot),
];

fn main() -> ExitCode {
    suite::main(TESTS)
}
