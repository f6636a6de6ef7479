//! Runs a list of tests with the usual command line of `cargo test`.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::Outcome;

/// A test: its name and what it does.
pub type Test = (&'static str, fn() -> Outcome);

/// Runs `tests` one after the other (they share cores and ports with nobody).
#[must_use]
pub fn main(tests: &[Test]) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trials = tests.iter().map(|(name, run)| trial((*name).to_owned(), *run)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// One test for the runner.
pub fn trial(name: String, run: impl FnOnce() -> Outcome + Send + 'static) -> Trial {
    Trial::test(name, move || run().map_err(|e| Failed::from(e.0)))
}
