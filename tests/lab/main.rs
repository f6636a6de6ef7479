//! `ipc-direct lab`: several hosts on this machine. What crosses hosts behaves as between machines, what stays on one is
//! accelerated, faults do what they say, and nothing stays behind, however it ends.

mod across;
mod ends;
mod faults;
mod meeting;
mod traffic;

use std::process::ExitCode;

use harness::suite::{self, Test};

const TESTS: &[Test] = &[
    ("traffic::within_a_host_is_accelerated", traffic::within),
    ("traffic::names_and_addresses", traffic::names),
    ("traffic::a_host_is_a_world_of_its_own", traffic::own_world),
    ("traffic::status_signals_and_streams_of_exec", traffic::exec),
    ("faults::packets", faults::packets),
    ("faults::large_transfer_over_a_bad_link", faults::transfer),
    ("faults::partition_and_heal", faults::partition),
    ("faults::kill_and_start", faults::kill_and_start),
    ("across::redis", across::redis_across),
    ("across::bytes", across::bytes),
    ("across::ten_thousand", across::many),
    ("across::kills", across::kills),
    ("across::nginx_proxy", across::nginx_proxy),
    ("across::refusals", across::refusals),
    ("meeting::cards_find_each_other", meeting::meet),
    ("meeting::gone_and_back", meeting::gone_and_back),
    ("meeting::over_bad_links", meeting::bad_links),
    ("meeting::an_intruder_is_counted", meeting::intruder),
    ("meeting::sentences", meeting::sentences),
    ("meeting::without_the_option", meeting::without),
    ("ends::down", ends::down),
    ("ends::ctrl_c", ends::ctrl_c),
    ("ends::killed", ends::killed),
    ("ends::half_started", ends::half_started),
    ("ends::exec_is_killed", ends::exec_is_killed),
    ("ends::sentences", ends::sentences),
];

fn main() -> ExitCode {
    suite::main(TESTS)
}
