//! The shards that other lcores run while an agent is served, and their loop.

use std::os::fd::OwnedFd;
use std::time::Instant;

use dpdk::affinity::Affinity;
use dpdk::eal::Eal;
use dpdk::lcore::{Lcore, LcoreScope};
use nic_coordinator::counters::Shown;
use nic_coordinator::intake::Intake;
use nic_coordinator::link::{RING_WORDS, ShardEnd, link};
use nic_coordinator::shard::Shard;
use nic_coordinator::worker::Worker;

use crate::cli::{Idle, Options};
use crate::run::{NAP, RunError, SLICES_US};

/// What the lcores of one agent's time have in common.
#[derive(Clone, Copy, Debug)]
pub struct Rhythm {
    /// What to do when there is nothing to do.
    pub idle: Idle,
    /// For how long to look for work before a nap.
    pub spin_us: u64,
    /// Where the clock starts.
    pub started: Instant,
    /// Where threads may run if they leave their cores to others.
    pub everywhere: Option<Affinity>,
}

impl Rhythm {
    /// Microseconds since the start.
    pub fn now_us(&self) -> u64 {
        // Wraps in half a million years.
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Who runs where.
type Crew<'r> = Vec<(Lcore, Worker<'r>)>;

/// A shard for each lcore but the main one, and the logic's ends of their links. `common`: as [`Intake::new`] has it.
pub fn shards<'eal>(
    eal: &'eal Eal,
    options: &Options,
    common: Option<&OwnedFd>,
    shown: &Shown,
) -> Result<(Vec<ShardEnd<'eal>>, Crew<'eal>), RunError> {
    let (mut ends, mut workers) = (Vec::new(), Vec::new());
    for (index, lcore) in eal.workers().into_iter().enumerate() {
        let common = common.map(OwnedFd::try_clone).transpose();
        let common = common.map_err(|e| RunError::Kernel("another descriptor of the common memory", e))?;
        let intake = Intake::new(options.request_queue, common)?;
        let (end, logic) = link(eal, index, RING_WORDS)?;
        ends.push(end);
        workers.push((lcore, Worker::new(Shard::new(intake, shown.lcore(index + 1)), logic)));
    }
    Ok((ends, workers))
}

/// Starts the shards' loops, which end when the logic's ends of their links are dropped.
pub fn launch<'scope>(
    scope: &'scope LcoreScope<'scope, '_>,
    workers: Crew<'scope>,
    rhythm: Rhythm,
) -> Result<(), RunError> {
    for (lcore, worker) in workers {
        scope.launch(&lcore, move || run(worker, rhythm))?;
    }
    Ok(())
}

/// A shard's loop. As the logic's lcore it polls for ever, naps, or leaves its core to others and sleeps; when to sleep, the logic says.
fn run(mut worker: Worker<'_>, rhythm: Rhythm) {
    if let Some(Err(error)) = rhythm.everywhere.map(|all| all.apply_to_this_thread()) {
        tracing::warn!("a shard stays on its CPU: {error}");
    }
    let mut worked_us = rhythm.now_us();
    while !worker.is_over() {
        let now_us = rhythm.now_us();
        if worker.turn(now_us) {
            worked_us = now_us;
        }
        match rhythm.idle {
            Idle::Nap if now_us.saturating_sub(worked_us) >= rhythm.spin_us => {
                // Cut short by nothing: signals are blocked.
                let _ = rustix::thread::nanosleep(&NAP);
            }
            Idle::Sleep if !worker.sleep_if_asked(now_us) => {
                rustix::thread::sched_yield();
                if rhythm.now_us() - now_us > SLICES_US {
                    worker.is_crowded();
                }
            }
            _ => {}
        }
    }
}
