//! Time, processor time, and staying on one processor.

use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, clock_nanosleep_absolute, sched_setaffinity};
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::job::{Figures, Job};
use crate::stats::percentile;

/// Share of the time that is not measured: caches and the other side's habits settle.
const WARM_UP: f64 = 0.2;
/// Most samples that are kept; a percentile does not need more.
const SAMPLES_MAX: usize = 4_000_000;

/// The calling thread, and those that it starts, stay on `cpu`, if one is given.
///
/// # Errors
/// When the machine has no such processor for us.
pub fn pin(cpu: Option<usize>) -> std::io::Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Processor time of this process so far.
#[must_use]
#[allow(clippy::cast_precision_loss)] // times since boot
pub fn cpu_s() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Sleeps until the job's time has come, if it has one.
pub fn wait_for_start(job: &Job) {
    let start = job.start_ns.and_then(|ns| Timespec::try_from(Duration::from_nanos(ns)).ok());
    if let Some(start) = start {
        // Woken early by a signal, it begins early.
        let _ = clock_nanosleep_absolute(ClockId::Monotonic, &start);
    }
}

/// Counts what happens between the warm-up and the end, and how long each took.
#[derive(Debug)]
pub struct Meter {
    start: Instant,
    before: Instant,
    measured_from: Option<(Instant, f64)>,
    seconds: f64,
    count: u64,
    samples: Vec<u32>,
}

impl Meter {
    /// Begins now.
    #[must_use]
    pub fn new(seconds: f64) -> Meter {
        let start = Instant::now();
        Meter {
            start,
            before: start,
            measured_from: None,
            seconds,
            count: 0,
            samples: Vec::with_capacity(SAMPLES_MAX),
        }
    }

    /// Forgets the time since the last call: it was no part of what is measured.
    pub fn skip(&mut self) {
        self.before = Instant::now();
    }

    /// `count` more are done; false when the time is over.
    pub fn done(&mut self, count: u64) -> bool {
        let now = Instant::now();
        if self.measured_from.is_none() {
            if (now - self.start).as_secs_f64() >= self.seconds * WARM_UP {
                self.measured_from = Some((now, cpu_s()));
                self.before = Instant::now();
            } else {
                self.before = now;
            }
            return true;
        }
        self.count += count;
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push(u32::try_from((now - self.before).as_nanos()).unwrap_or(u32::MAX));
        }
        self.before = now;
        (now - self.start).as_secs_f64() < self.seconds
    }

    /// What was found.
    #[must_use]
    pub fn figures(mut self) -> Figures {
        let (from, cpu) = self.measured_from.unwrap_or((self.start, 0.0));
        self.samples.sort_unstable();
        Figures {
            count: self.count,
            seconds: (self.before - from).as_secs_f64(),
            p50_ns: f64::from(percentile(&self.samples, 500)),
            p99_ns: f64::from(percentile(&self.samples, 990)),
            cpu_s: cpu_s() - cpu,
        }
    }
}
