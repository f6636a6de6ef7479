//! One figure after the other, point by point, all competitors in turn within a round.

use std::time::Duration;

use harness::{Failure, Outcome};
use measure::machine::Looks;
use measure::progress::Progress;

use crate::figure::Figure;
use crate::watchdog::Watchdog;

/// How thorough.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Fewer points, too.
    pub quick: bool,
    /// Each point is measured so often, all competitors in turn.
    pub rounds: usize,
    /// For so long each time.
    pub time: Duration,
}

impl Effort {
    /// The points to measure.
    pub fn points(self, full: &'static [f64], quick: &'static [f64]) -> &'static [f64] {
        if self.quick { quick } else { full }
    }
}

/// A run of the program.
#[derive(Debug)]
pub struct Run {
    pub effort: Effort,
    pub looks: Looks,
    watchdog: Watchdog,
    progress: Progress,
}

impl Run {
    /// Nothing done yet, of `points`, each of which is measured in each round.
    pub fn new(effort: Effort, watchdog: Watchdog, points: usize) -> Run {
        let progress = Progress::new(points * effort.rounds);
        Run { effort, looks: Looks::default(), watchdog, progress }
    }

    /// Tells what is measured next.
    pub fn begin(&mut self, what: &str) {
        self.progress.step(what);
        self.still(what);
        self.looks.look();
    }

    /// Tells the watchdog alone that something moves.
    pub fn still(&self, what: &str) {
        self.watchdog.begin(what);
    }

    /// Everything is measured.
    pub fn finish(&self) {
        self.progress.finish();
        self.still("the report");
    }

    /// Measures in each round for each x, and for each of `names` in turn, what `value` finds for that number
    /// of `names`: one value
    /// for each of `figures`.
    pub fn sweep(
        &mut self,
        figures: &mut [&mut Figure],
        names: &[&str],
        xs: &[f64],
        mut value: impl FnMut(usize, f64, Duration) -> Outcome<Vec<f64>>,
    ) -> Outcome {
        let Effort { rounds, time, .. } = self.effort;
        let mut found: Vec<Vec<Vec<Vec<f64>>>> =
            vec![vec![vec![Vec::new(); names.len()]; xs.len()]; figures.len()];
        // All points once, then all again: what changes on the machine from one second to the next meets all
        // of them.
        for round in 0..rounds {
            for (at, x) in xs.iter().enumerate() {
                let what = figures.first().map_or(String::new(), |f| format!("{}: {x} {}", f.title, f.x));
                self.begin(&what);
                // Nobody is always the first, who finds the caches of another.
                for place in (0..names.len()).map(|n| (n + round) % names.len()) {
                    self.still(&what);
                    let values = value(place, *x, time).map_err(|e| {
                        let name = names.get(place).unwrap_or(&"");
                        Failure(format!("{what}, {name}: {}", e.0))
                    })?;
                    for (points, value) in found.iter_mut().zip(values) {
                        let row = points.get_mut(at).and_then(|rows| rows.get_mut(place));
                        row.into_iter().for_each(|row| row.push(value));
                    }
                }
            }
        }
        for (figure, points) in figures.iter_mut().zip(found) {
            for (x, rows) in xs.iter().zip(points) {
                for (name, row) in names.iter().zip(rows) {
                    figure.add(name, *x, row);
                }
            }
        }
        Ok(())
    }
}
