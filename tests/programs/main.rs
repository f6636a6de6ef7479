//! Real, unmodified programs, each with a look at the counters: did the traffic take the path it should have?

mod children;
mod daemons;
mod inherit;
mod interop;
mod nginx;
mod outside;
mod python;
mod redis;
mod runtimes;
mod servers;
mod side;
mod storage;
mod transfers;
mod unix_web;
mod users;
mod web;

use std::process::ExitCode;

use harness::counters::Totals;
use harness::instance::{Instance, with_instance};
use harness::suite::{self, Test};
use harness::{Outcome, ensure};

const TESTS: &[Test] = &[
    ("redis::set_and_get", redis::set_and_get),
    ("redis::benchmark", redis::benchmark),
    ("redis::ipv6", redis::ipv6),
    ("redis::unix_socket", redis::unix_socket),
    ("redis::saves_in_the_background_under_load", redis::background_saves),
    ("redis::thousand_clients", redis::thousand_clients),
    ("redis::values_of_64_mib", redis::large_values),
    ("daemons::redis_daemonizes", daemons::redis_daemonizes),
    ("daemons::run_starts_and_ends_its_own_agent", daemons::own_agent),
    ("daemons::exit_status_and_errors_of_run", daemons::exit_status),
    ("interop::shimmed_client_plain_server", interop::shimmed_client),
    ("interop::plain_client_shimmed_server", interop::plain_client),
    ("interop::both_kinds_of_clients_at_once", interop::mixed_clients),
    ("inherit::by_programs_with_the_shim", inherit::by_programs_with_the_shim),
    ("inherit::by_programs_without", inherit::by_programs_without),
    ("python::echo_over_all_forms", python::echo),
    ("web::curl_gets_a_file", web::curl_gets_a_file),
    ("web::curls_in_parallel", web::curls_in_parallel),
    ("nginx::serves_files", nginx::serves_files),
    ("nginx::proxies", nginx::proxies),
    ("nginx::reloads_under_load", nginx::reloads_under_load),
    ("nginx::quits_gracefully", nginx::quits_gracefully),
    ("storage::memcached", storage::memcached),
    ("storage::postgres", storage::postgres),
    ("runtimes::node", runtimes::node),
    ("runtimes::node_cluster", runtimes::node_cluster),
    ("runtimes::java", runtimes::java),
    ("runtimes::gunicorn_sync", runtimes::gunicorn_sync),
    ("runtimes::gunicorn_threads", runtimes::gunicorn_threads),
    ("servers::haproxy", servers::haproxy),
    ("servers::lighttpd", servers::lighttpd),
    ("servers::php", servers::php),
    ("unix_web::php_over_kept_connections", unix_web::php_kept),
    ("unix_web::php_over_a_connection_each", unix_web::php_closed),
    ("unix_web::gunicorn_over_kept_connections", unix_web::gunicorn_kept),
    ("unix_web::gunicorn_over_a_connection_each", unix_web::gunicorn_closed),
    ("transfers::rsync", transfers::rsync),
    ("transfers::socat", transfers::socat),
    ("transfers::netcat", transfers::netcat),
    ("transfers::iperf3", transfers::iperf3),
    ("transfers::sockperf", transfers::sockperf),
    ("transfers::sockperf_udp", transfers::sockperf_udp),
    ("outside::static_program", outside::static_program),
    ("outside::go_program", outside::go_program),
    ("users::ordinary_user_without_hugepages", users::ordinary_user),
    ("children::of_connections", children::of_connections),
];

fn main() -> ExitCode {
    suite::main(TESTS)
}

/// At least `bytes` of what `body` moved must have gone through user space, and 20 times as many as through the kernel, where
/// `AF_UNIX` connections begin.
fn mostly_in_user_space(instance: &Instance, bytes: u64, body: impl FnOnce() -> Outcome) -> Outcome {
    let before = instance.totals()?;
    body()?;
    let moved: Totals = instance.totals()? - before;
    let enough = |user: u64, kernel: u64| user >= bytes.max(20 * kernel);
    ensure(
        enough(moved.user.tx_bytes, moved.kernel.tx_bytes)
            && enough(moved.user.rx_bytes, moved.kernel.rx_bytes),
        || format!("less than {bytes} bytes, or little of all, went through user space: {moved:?}"),
    )
}

/// What `body` moved must have gone through user space: at least `bytes` of it, and nothing through the kernel.
fn in_user_space(instance: &Instance, bytes: u64, body: impl FnOnce() -> Outcome) -> Outcome {
    let before = instance.totals()?;
    body()?;
    let moved: Totals = instance.totals()? - before;
    ensure(
        moved.user.tx_bytes >= bytes && moved.user.rx_bytes >= bytes && moved.user.connections > 0,
        || format!("less than {bytes} bytes went through user space: {moved:?}"),
    )?;
    ensure(moved.kernel.tx_bytes == 0 && moved.kernel.rx_bytes == 0 && moved.kernel.connections == 0, || {
        format!("some of it went through the kernel: {moved:?}")
    })
}
