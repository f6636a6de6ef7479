//! Programs' own test suites under the shim: no failure that a run on the kernel does not have.
//!
//! | module | what it does |
//! |---|---|
//! | [`compare`] | runs the parts of a suite and judges the differences from the kernel |
//! | [`side`] | one part on one side: a process group with a bound on its time |
//! | [`source`] | source packages from Debian, unpacked and built below `target/suites` |
//! | [`python`], [`redis`], [`memcached`] | the suites |

mod compare;
mod memcached;
mod python;
mod redis;
mod side;
mod source;

use std::process::ExitCode;

use harness::suite::{self, Test};

const TESTS: &[Test] = &[
    ("python::socket_and_selectors", python::socket_and_selectors),
    ("memcached::prove", memcached::prove),
    ("redis::runtest", redis::runtest),
];

fn main() -> ExitCode {
    suite::main(TESTS)
}
