//! What happens when a party dies or lies: the others go on, nothing hangs, nothing is left behind.

mod cards;
mod corrupt;
mod hostile;
mod kills;
mod often;
mod queues;
mod restarts;
mod unix_kills;
mod unix_lies;
mod unix_pair;

use std::process::ExitCode;

use harness::instance::with_instance;
use harness::suite::{self, Test};

const TESTS: &[Test] = &[
    ("kill::busy_client", kills::busy_client),
    ("kill::busy_server", kills::busy_server),
    ("kill::busy_unix_client", kills::busy_unix_client),
    ("kill::busy_unix_server", kills::busy_unix_server),
    ("kill::idle_client", kills::idle_client),
    ("kill::idle_server", kills::idle_server),
    ("kill::agent", kills::agent),
    ("kill::coordinator", kills::coordinator),
    ("kill::redis_clients_one_after_the_other", kills::redis_clients),
    ("kill::redis_server_under_load", kills::redis_server),
    ("kill::agent_under_redis_load", kills::agent_under_redis),
    ("kill::coordinator_under_redis_load", kills::coordinator_under_redis),
    ("unix_kill::agent_while_a_connection_leaves_the_kernel", unix_kills::agent),
    ("unix_kill::coordinator_while_a_connection_leaves_the_kernel", unix_kills::coordinator),
    ("unix_kill::client_while_a_connection_leaves_the_kernel", unix_kills::client),
    ("unix_kill::server_while_a_connection_leaves_the_kernel", unix_kills::server),
    ("restart::redis_is_accelerated_again", restarts::redis),
    ("restart::a_blocked_accept_is_accelerated_again", restarts::blocked_accept),
    ("restart::forked_workers", restarts::workers),
    ("restart::forked_worker_on_a_unix_listener", restarts::unix_worker),
    ("restart::a_silent_coordinator", restarts::silent_coordinator),
    ("often::the_coordinator_is_killed", often::killed),
    ("often::the_coordinator_is_killed_while_it_selects", often::killed_while_it_selects),
    ("often::there_is_another_coordinator", often::another_one),
    ("often::the_coordinator_hangs", often::hangs),
    ("often::the_coordinator_hangs_while_it_selects", often::hangs_while_it_selects),
    ("card::stuck", cards::stuck),
    ("card::link_loss", cards::link_loss),
    ("card::reset", cards::reset),
    ("card::behind_a_slow_bus", cards::slow_bus),
    ("queues::clients_killed_on_private_rings", queues::per_process),
    ("queues::clients_killed_on_the_shared_ring", queues::shared),
    ("queues::clients_killed_on_hinted_rings", queues::hybrid),
    ("corrupt::attach_messages", corrupt::attach_messages),
    ("corrupt::silent_and_half_clients", corrupt::silent_clients),
    ("hostile::request_ring", hostile::request_ring),
    ("hostile::client_that_lies", hostile::lying_client),
    ("hostile::server_that_lies", hostile::lying_server),
    ("hostile::client_that_lies_about_a_unix_socket", unix_lies::clients),
    ("hostile::server_that_lies_about_a_unix_socket", unix_lies::servers),
];

fn main() -> ExitCode {
    suite::main(TESTS)
}
