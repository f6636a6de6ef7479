//! Programs' own test suites, on the kernel and under the shim: no failure that the kernel run does not have.
//!
//! | module | what it does |
//! |---|---|
//! | [`compare`] | runs the parts of a suite on both sides and judges the differences |
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
