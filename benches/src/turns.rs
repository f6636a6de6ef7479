//! Rounds in which every way of an experiment is measured in turn, and the options that say which, how often and for how long.

use std::path::PathBuf;

use harness::counters::Totals;
use harness::{Outcome, fail};

use crate::machine::runnable;
use crate::path::Path;
use crate::progress::Progress;
use crate::report::{Found, Report};
use crate::row::Experiment;

/// What is measured.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Rows whose name contains one of these texts; all without any
    pub rows: Vec<String>,
    /// A quick look: fewer and shorter rounds
    #[arg(long)]
    pub quick: bool,
    /// Rounds; each takes every way in turn [default: 7, with --quick 3]
    #[arg(long)]
    pub rounds: Option<usize>,
    /// Length of one measurement in seconds [default: 0.4, with --quick 0.1]
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Say what the rows are called, and measure nothing
    #[arg(long)]
    pub list: bool,
    /// The directory that the report goes to
    #[arg(long, default_value = "target/bench")]
    pub out: PathBuf,
}

impl Options {
    /// Those of `all` that are asked for. None: their names were, and are printed.
    ///
    /// # Errors
    /// When none has such a name.
    pub fn choose<W>(&self, mut all: Vec<Experiment<W>>) -> Outcome<Option<Vec<Experiment<W>>>> {
        let wanted = |name: &str| self.rows.is_empty() || self.rows.iter().any(|part| name.contains(part));
        all.retain(|experiment| experiment.rows.iter().any(|row| wanted(&row.name)));
        if self.list {
            for row in all.iter().flat_map(|experiment| &experiment.rows) {
                println!("{}", row.name);
            }
            return Ok(None);
        }
        if all.is_empty() {
            return fail(format!("no row is called {:?}: `--list` says what there is", self.rows));
        }
        Ok(Some(all))
    }

    /// How often each way is measured.
    #[must_use]
    pub fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 3 } else { 7 }).max(1)
    }

    /// For how long each time.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.seconds.unwrap_or(if self.quick { 0.1 } else { 0.4 })
    }
}

/// What can be measured here, and how.
pub trait Turns {
    /// What is run.
    type What;
    /// What lives for all rounds of an experiment.
    type Fixture;

    /// What an experiment needs before its first round.
    ///
    /// # Errors
    /// When it can't be had.
    fn fixture(&self, experiment: &Experiment<Self::What>, path: Path) -> Outcome<Self::Fixture>;

    /// One value for each row of the experiment.
    ///
    /// # Errors
    /// When a process fails.
    fn measure(
        &self,
        experiment: &Experiment<Self::What>,
        path: Path,
        fixture: &mut Self::Fixture,
    ) -> Outcome<Vec<f64>>;

    /// After the last round.
    ///
    /// # Errors
    /// When it does not end well.
    fn stop(&self, fixture: Self::Fixture) -> Outcome;

    /// How fast the machine is now: the raw ring's round trip in µs.
    ///
    /// # Errors
    /// When it fails.
    fn calibrate(&self) -> Outcome<f64>;

    /// What went which way so far, of all that ran under IPC-Direct.
    ///
    /// # Errors
    /// When nobody can say.
    fn totals(&self) -> Outcome<Totals>;

    /// Measures everything.
    fn run(&self, experiments: &[Experiment<Self::What>], options: &Options) -> Report {
        let rounds = options.rounds();
        let mut progress = Progress::new(experiments.len() * rounds);
        let mut report = Report::new(rounds, options.seconds());
        for experiment in experiments {
            report.add(experiment, interleave(self, experiment, rounds, &mut progress));
        }
        progress.finish();
        report.finish();
        report
    }
}

/// All rounds of one experiment. A way that fails is left out from then on, and its reason kept.
fn interleave<T: Turns + ?Sized>(
    machine: &T,
    experiment: &Experiment<T::What>,
    rounds: usize,
    progress: &mut Progress,
) -> Found {
    let mut found = Found::new(experiment.paths);
    let mut fixtures: Vec<Option<T::Fixture>> = Vec::new();
    for (path, column) in experiment.paths.iter().zip(&mut found.columns) {
        let fixture = machine.fixture(experiment, *path);
        fixtures.push(fixture.map_err(|e| column.failed = Some(e.0)).ok());
    }
    for round in 1..=rounds {
        let names: Vec<&str> = experiment.rows.iter().map(|row| row.name.as_str()).collect();
        progress.step(&format!("{}: round {round} of {rounds}", names.join("; ")));
        found.runnable.push(runnable());
        found.calibration_us.extend(machine.calibrate().ok());
        for ((path, column), fixture) in experiment.paths.iter().zip(&mut found.columns).zip(&mut fixtures) {
            let (Some(fixture), None) = (fixture, &column.failed) else { continue };
            let before = totals(machine, *path);
            match machine.measure(experiment, *path, fixture) {
                Ok(values) => column.rounds.push(values),
                Err(e) => column.failed = Some(e.0),
            }
            if let Some((before, after)) = before.zip(totals(machine, *path)) {
                found.counters = found.counters + (after - before);
            }
        }
    }
    for (fixture, column) in fixtures.into_iter().zip(&mut found.columns) {
        if let Some(Err(e)) = fixture.map(|fixture| machine.stop(fixture)) {
            column.failed.get_or_insert(e.0);
        }
    }
    found
}

/// What the counters say, where they say something.
fn totals<T: Turns + ?Sized>(machine: &T, path: Path) -> Option<Totals> {
    if path == Path::Direct { machine.totals().ok() } else { None }
}
