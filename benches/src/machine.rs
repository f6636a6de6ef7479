//! What else the machine does while we measure.

use std::fs;
use std::hint::black_box;
use std::time::Instant;

/// Threads that may run while we look: ours. One more is somebody else's.
const OURS_RUNNABLE: usize = 1;
/// Share of the looks with others at work from which on a run says little.
const BUSY_SHARE: f64 = 0.2;
/// A fixed piece of work that took so many times longer than at another look is noise, too.
const CALM: f64 = 1.5;
/// Steps of that piece of work: about half a millisecond.
const STEPS: u64 = 400_000;

/// Threads that run or could run now, ours included.
#[must_use]
pub fn runnable() -> usize {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let number = |line: &str| line.strip_prefix("procs_running ")?.parse().ok();
    text.lines().find_map(number).unwrap_or(0)
}

/// Load averages of 1, 5 and 15 minutes, as the kernel prints them.
#[must_use]
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Looks between measurements, while we do nothing.
#[derive(Debug, Default)]
pub struct Looks {
    looks: usize,
    busy: usize,
    /// Of the fixed piece of work, in µs.
    fastest_us: Option<f64>,
    slow: usize,
}

impl Looks {
    /// Who else runs, and how long a fixed piece of work takes now.
    pub fn look(&mut self) {
        self.looks += 1;
        self.busy += usize::from(runnable() > OURS_RUNNABLE);
        let since = Instant::now();
        let worked =
            (0..STEPS).fold(1u64, |x, step| black_box(x.wrapping_mul(6_364_136_223_846_793_005) ^ step));
        black_box(worked);
        let us = since.elapsed().as_secs_f64() * 1e6;
        let fastest = self.fastest_us.map_or(us, |fastest| fastest.min(us));
        self.slow += usize::from(us > fastest * CALM);
        self.fastest_us = Some(fastest);
    }

    /// Others were at work so often that the figures say little.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // a few hundred
    pub fn too_noisy(&self) -> bool {
        self.busy.max(self.slow) as f64 > BUSY_SHARE * self.looks.max(1) as f64
    }

    /// In words.
    #[must_use]
    pub fn text(&self) -> String {
        format!(
            "other programs were at work in {} of {} looks between measurements, and a fixed piece of work \
            took more than {CALM} times as \
             long as the fastest in {}",
            self.busy, self.looks, self.slow
        )
    }
}
