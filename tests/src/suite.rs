//! Runs a list of tests with the usual command line of `cargo test`.

use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{Outcome, watchdog};

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

/// Longest time of a test: the longest take a quarter of an hour, on a slow machine more than twice that.
const TEST_MAX: Duration = Duration::from_secs(40 * 60);

/// One test for the runner, watched.
pub fn trial(name: String, run: impl FnOnce() -> Outcome + Send + 'static) -> Trial {
    trial_within(name, TEST_MAX, run)
}

/// One test that must end within `limit`.
pub fn trial_within(name: String, limit: Duration, run: impl FnOnce() -> Outcome + Send + 'static) -> Trial {
    Trial::test(name.clone(), move || {
        let _watch = watchdog::watch(&name, limit);
        run().map_err(|e| Failed::from(e.0))
    })
}
