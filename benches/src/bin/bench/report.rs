//! From rounds to medians, ratios and verdicts; the table on the terminal, and what is written as JSON.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use harness::counters::{Totals, Traffic};
use measure::path::Path;
use measure::stats::median;
use serde::Serialize;

use crate::rows::{Experiment, Row};

/// The raw ring's figures within one run differ by less than this on a quiet machine.
const CALM: f64 = 2.5;
/// Threads that may run while we look: ours. One more is somebody else's.
const OURS_RUNNABLE: usize = 1;
/// Share of the rounds on the other side of a goal from which on the verdict is left open.
const DISSENT: f64 = 0.25;
/// Share of calls through the kernel that is worth a word.
const KERNEL_SHARE: f64 = 0.01;

/// What the rounds of one experiment gave.
#[derive(Debug)]
pub struct Found {
    pub columns: Vec<Column>,
    /// What went which way under IPC-Direct.
    pub counters: Totals,
    /// The raw ring's round trip before each round.
    pub calibration_us: Vec<f64>,
    /// Runnable threads before each round.
    pub runnable: Vec<usize>,
}

/// One way: a list of values, one for each row, per round.
#[derive(Debug)]
pub struct Column {
    path: Path,
    pub rounds: Vec<Vec<f64>>,
    /// Why it was left out.
    pub failed: Option<String>,
}

impl Found {
    pub fn new(paths: &[Path]) -> Found {
        let column = |path: &Path| Column { path: *path, rounds: Vec::new(), failed: None };
        Found {
            columns: paths.iter().map(column).collect(),
            counters: Totals::default(),
            calibration_us: Vec::new(),
            runnable: Vec::new(),
        }
    }

    /// The values of row number `row` over one way.
    fn rounds(&self, path: Path, row: usize) -> Vec<f64> {
        let column = self.columns.iter().find(|column| column.path == path);
        column.into_iter().flat_map(|c| &c.rounds).filter_map(|values| values.get(row).copied()).collect()
    }
}

/// Values of all rounds, and what is made of them.
#[derive(Clone, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub rounds: Vec<f64>,
}

impl Spread {
    fn of(rounds: Vec<f64>) -> Option<Spread> {
        let min = rounds.iter().copied().reduce(f64::min)?;
        let max = rounds.iter().copied().reduce(f64::max)?;
        Some(Spread { median: median(rounds.clone()), min, max, rounds })
    }
}

/// Round by round against another way.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    pub to: Path,
    #[serde(flatten)]
    pub spread: Spread,
    pub goal: Option<f64>,
    pub verdict: Option<Verdict>,
}

/// Is the goal reached?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Verdict {
    #[serde(rename = "met")]
    Met,
    #[serde(rename = "not met")]
    NotMet,
    /// The rounds disagree.
    #[serde(rename = "unclear: noise")]
    Unclear,
}

impl Verdict {
    /// `good`: is a round on the goal's side?
    fn of(spread: &Spread, good: impl Fn(f64) -> bool) -> Verdict {
        let met = good(spread.median);
        let dissent = spread.rounds.iter().filter(|r| good(**r) != met).count();
        #[allow(clippy::cast_precision_loss)] // a few rounds
        let share = dissent as f64 / spread.rounds.len().max(1) as f64;
        match (share >= DISSENT, met) {
            (true, _) => Verdict::Unclear,
            (false, true) => Verdict::Met,
            (false, false) => Verdict::NotMet,
        }
    }

    pub fn text(self) -> &'static str {
        match self {
            Verdict::Met => "met",
            Verdict::NotMet => "NOT MET",
            Verdict::Unclear => "unclear",
        }
    }
}

/// One row of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub name: String,
    pub unit: &'static str,
    pub lower_is_better: bool,
    pub columns: BTreeMap<String, Spread>,
    /// How many times better than the kernel's way ours is.
    pub times: Option<Ratio>,
    /// Ours divided by the raw ring's.
    pub ring: Option<Ratio>,
    /// What went which way, and what was left out.
    pub notes: Vec<String>,
    #[serde(skip)]
    beside: Option<(&'static str, f64)>,
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    pub rounds: usize,
    pub seconds: f64,
    /// Was the machine too noisy to conclude?
    pub machine: String,
    pub rows: Vec<Line>,
    #[serde(skip)]
    calibration_us: Vec<f64>,
    #[serde(skip)]
    runnable: Vec<usize>,
}

impl Report {
    pub fn new(rounds: usize, seconds: f64) -> Report {
        Report {
            rounds,
            seconds,
            machine: String::new(),
            rows: Vec::new(),
            calibration_us: Vec::new(),
            runnable: Vec::new(),
        }
    }

    /// The rows of one experiment.
    pub fn add(&mut self, experiment: &Experiment, found: Found) {
        let reference = experiment.paths.first().copied().unwrap_or(Path::Tcp);
        let mut notes: Vec<String> = proof(&found).into_iter().collect();
        for column in &found.columns {
            if let Some(reason) = &column.failed {
                notes.push(format!("{} left out: {}", column.path, reason.trim()));
            }
        }
        if let Some(spread) = Spread::of(found.calibration_us.clone()).filter(|s| s.max > s.min * CALM) {
            notes.push(format!(
                "the raw ring alone took {:.2} to {:.2} µs between these rounds",
                spread.min, spread.max
            ));
        }
        for (at, row) in experiment.rows.iter().enumerate() {
            self.rows.push(line(row, at, reference, &found, notes.clone()));
        }
        self.calibration_us.extend(found.calibration_us);
        self.runnable.extend(found.runnable);
    }

    /// What only the whole run can tell.
    pub fn finish(&mut self) {
        let ours = Path::Direct.to_string();
        let medians: BTreeMap<String, f64> = self
            .rows
            .iter()
            .filter_map(|line| Some((line.name.clone(), line.columns.get(&ours)?.median)))
            .collect();
        for line in &mut self.rows {
            let Some((name, times)) = line.beside else { continue };
            let (Some(other), Some(mine)) = (medians.get(name), medians.get(&line.name)) else { continue };
            let worse = if line.lower_is_better { mine / other } else { other / mine };
            let verdict = if worse <= times { Verdict::Met } else { Verdict::NotMet };
            line.notes.push(format!(
                "{worse:.2} times worse than our \"{name}\" (goal: at most {times}: {})",
                verdict.text()
            ));
        }
        let busy = self.runnable.iter().filter(|n| **n > OURS_RUNNABLE).count();
        let spread = Spread::of(self.calibration_us.clone());
        let drift = spread.as_ref().map_or(1.0, |s| s.max / s.min);
        let looks = self.runnable.len();
        let (min, max) = spread.map_or((0.0, 0.0), |s| (s.min, s.max));
        let found = format!(
            "the raw ring's round trip between rounds was {min:.2} to {max:.2} µs; other programs were running in {busy} of {looks} looks"
        );
        self.machine = if busy * 5 > looks {
            format!("TOO NOISY TO CONCLUDE: {found}. Only large ratios say something.")
        } else if drift > CALM {
            format!("Noisy: {found}. Rows whose rounds disagree are marked unclear.")
        } else {
            format!("Quiet enough: {found}.")
        };
    }

    pub fn print(&self) {
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED);
        table.set_header([
            "row",
            "unit",
            "kernel",
            "others",
            "raw ring",
            "IPC-Direct",
            "times",
            "worst to best",
            "goal",
            "",
            "of ring",
            "goal",
            "",
        ]);
        for line in &self.rows {
            let goal = |ratio: Option<&Ratio>| ratio.and_then(|r| r.goal).map_or(String::new(), round);
            let verdict = |ratio: Option<&Ratio>| ratio.and_then(|r| r.verdict).map_or("", Verdict::text);
            let (times, ring) = (line.times.as_ref(), line.ring.as_ref());
            table.add_row([
                line.name.clone(),
                line.unit.to_owned(),
                times.and_then(|r| line.cell(r.to)).unwrap_or_default(),
                line.others(),
                line.cell(Path::Ring).unwrap_or_default(),
                line.cell(Path::Direct).unwrap_or_else(|| "failed".to_owned()),
                times.map_or(String::new(), |r| round(r.spread.median)),
                times
                    .map_or(String::new(), |r| format!("{} to {}", round(r.spread.min), round(r.spread.max))),
                goal(times),
                verdict(times).to_owned(),
                ring.map_or(String::new(), |r| format!("{:.2}", r.spread.median)),
                goal(ring),
                verdict(ring).to_owned(),
            ]);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        println!("{table}");
        println!(
            "times: how many times better than the kernel's way, median of the rounds; of ring: IPC-Direct divided by the raw ring."
        );
        for line in &self.rows {
            if line.times.as_ref().is_some_and(|r| r.spread.median < 1.0) {
                println!("SLOWER THAN THE KERNEL: {}", line.name);
            }
            for note in &line.notes {
                println!("  {}: {note}", line.name);
            }
        }
        println!("{}", self.machine);
    }
}

impl Line {
    fn cell(&self, path: Path) -> Option<String> {
        self.columns.get(&path.to_string()).map(|spread| round(spread.median))
    }

    /// The ways that have no column of their own.
    fn others(&self) -> String {
        let reference = self.times.as_ref().map(|r| r.to.to_string());
        let own = [Path::Ring.to_string(), Path::Direct.to_string()];
        let other = |name: &&String| !own.contains(name) && Some(*name) != reference.as_ref();
        let cells = self.columns.iter().filter(|(name, _)| other(name));
        cells.map(|(name, spread)| format!("{name} {}", round(spread.median))).collect::<Vec<_>>().join("\n")
    }
}

/// Three digits.
pub fn round(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{:.2} M", value / 1e6),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn line(row: &Row, at: usize, reference: Path, found: &Found, notes: Vec<String>) -> Line {
    let lower = row.value.lower_is_better();
    let ours = found.rounds(Path::Direct, at);
    // Round by round: both were measured within seconds of each other.
    let against = |path: Path, ratio: fn(f64, f64) -> f64| {
        let others = found.rounds(path, at);
        Spread::of(ours.iter().zip(&others).map(|(ours, other)| ratio(*ours, *other)).collect())
    };
    let times =
        against(reference, if lower { |ours, other| other / ours } else { |ours, other| ours / other });
    let times = times.map(|spread| {
        let verdict = row.goal.map(|goal| Verdict::of(&spread, |r| r >= goal));
        Ratio { to: reference, spread, goal: row.goal, verdict }
    });
    let ring = against(Path::Ring, |ours, ring| ours / ring).map(|spread| {
        let good = |goal: f64| move |r: f64| if lower { r <= goal } else { r >= goal };
        let verdict = row.ring_goal.map(|goal| Verdict::of(&spread, good(goal)));
        Ratio { to: Path::Ring, spread, goal: row.ring_goal, verdict }
    });
    let spread =
        |column: &Column| Some((column.path.to_string(), Spread::of(found.rounds(column.path, at))?));
    Line {
        name: row.name.clone(),
        unit: row.value.unit(),
        lower_is_better: lower,
        columns: found.columns.iter().filter_map(spread).collect(),
        times,
        ring,
        notes,
        beside: row.beside,
    }
}

/// What the counters say where it is not "all in user space".
fn proof(found: &Found) -> Option<String> {
    let calls = |t: Traffic| t.tx_ops + t.rx_ops + t.connections;
    let (user, kernel) = (calls(found.counters.user), calls(found.counters.kernel));
    #[allow(clippy::cast_precision_loss)] // a share
    let share = kernel as f64 / (user + kernel).max(1) as f64;
    let direct = found.columns.iter().any(|c| c.path == Path::Direct && !c.rounds.is_empty());
    match (direct, user) {
        (false, _) => None,
        (true, 0) => {
            Some("IPC-Direct's counters: nothing went through user space, this is the kernel".to_owned())
        }
        (true, _) if share > KERNEL_SHARE => {
            Some(format!("IPC-Direct's counters: {:.0}% of the calls went through the kernel", share * 100.0))
        }
        (true, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Spread, Verdict};

    fn verdict(rounds: &[f64]) -> Option<Verdict> {
        Spread::of(rounds.to_vec()).map(|spread| Verdict::of(&spread, |r| r >= 2.0))
    }

    #[test]
    fn a_verdict_needs_rounds_that_agree() {
        assert_eq!(verdict(&[3.0, 3.0, 2.5, 2.1, 9.0, 2.2, 1.0]), Some(Verdict::Met));
        assert_eq!(verdict(&[1.0, 1.0, 1.5, 1.1, 1.9, 1.2, 3.0]), Some(Verdict::NotMet));
        assert_eq!(verdict(&[3.0, 3.0, 2.5, 2.1, 9.0, 1.2, 1.0]), Some(Verdict::Unclear));
        assert_eq!(verdict(&[]), None);
    }
}
