//! What the operator sees: `check`, `run --require`, `ps` with its reasons and its state of all rings.

mod check;
mod escapes;
mod require;
mod verbose;

use std::process::ExitCode;

use harness::instance::with_instance;
use harness::suite::{self, Test};

const TESTS: &[Test] = &[
    ("check::programs_that_are_accelerated", check::accelerated),
    ("check::programs_that_are_not", check::not_accelerated),
    ("check::programs_that_are_in_part", check::partly),
    ("check::privileged_programs", check::privileged),
    ("check::scripts", check::scripts),
    ("check::the_agent", check::agent),
    ("require::runs_what_can_be_accelerated", require::accelerated),
    ("require::refuses_what_can_not", require::not_accelerated),
    ("require::refuses_without_an_agent", require::no_agent),
    ("reasons::udp_and_messages", escapes::other_families),
    ("escapes::a_number_used_again", escapes::reused_number),
    ("escapes::raw_reads_and_writes", escapes::raw_data_calls),
    ("escapes::our_own_descriptors", escapes::raw_sweep),
    ("escapes::closed_behind_our_back", escapes::closed_behind_our_back),
    ("escapes::not_when_duplicated", escapes::duplicated_then_closed),
    ("verbose::a_sleeping_reader_and_a_full_ring", verbose::rings_and_sleepers),
];

fn main() -> ExitCode {
    suite::main(TESTS)
}
