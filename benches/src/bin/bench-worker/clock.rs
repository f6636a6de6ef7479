//! Time, processor time, and staying on one processor.

use std::io;
use std::mem::MaybeUninit;
use std::time::Instant;

use measure::job::{Figures, Job};
use measure::stats::percentile;

use crate::link::check;

/// Share of the time that is not measured: caches and the other side's habits settle.
const WARM_UP: f64 = 0.2;
/// Most samples that are kept; a percentile does not need more.
const SAMPLES_MAX: usize = 4_000_000;

/// Stays on `cpu`, if one is given.
pub fn pin(cpu: Option<usize>) -> io::Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    // SAFETY: a zeroed set is an empty one, and CPU_SET checks the number.
    let set = unsafe {
        let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed().assume_init();
        libc::CPU_SET(cpu, &mut set);
        set
    };
    // SAFETY: the set is read for its size.
    check(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } as isize).map(drop)
}

/// Processor time of this process so far.
pub fn cpu_s() -> f64 {
    clock_s(libc::CLOCK_PROCESS_CPUTIME_ID)
}

#[allow(clippy::cast_precision_loss)] // times since boot
fn clock_s(clock: libc::clockid_t) -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: room for one time.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Sleeps until the job's time has come, if it has one.
pub fn wait_for_start(job: &Job) {
    let Some(start) = job.start_ns else { return };
    let time = libc::timespec {
        tv_sec: i64::try_from(start / 1_000_000_000).unwrap_or(0),
        tv_nsec: i64::try_from(start % 1_000_000_000).unwrap_or(0),
    };
    // SAFETY: the time is read.
    unsafe {
        libc::clock_nanosleep(
            libc::CLOCK_MONOTONIC,
            libc::TIMER_ABSTIME,
            &raw const time,
            std::ptr::null_mut(),
        )
    };
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
