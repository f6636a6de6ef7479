//! From rounds to medians, ratios and verdicts; the table on the terminal, and what is written as JSON.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use harness::counters::{Totals, Traffic};
use serde::Serialize;

use crate::path::Path;
use crate::row::{Experiment, Row};
use crate::stats::median;

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
    /// Way by way.
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
    /// What it gave.
    pub rounds: Vec<Vec<f64>>,
    /// Why it was left out.
    pub failed: Option<String>,
}

impl Found {
    /// Nothing yet.
    #[must_use]
    pub fn new(paths: &[Path]) -> Found {
        let column = |path: &Path| Column { path: *path, rounds: Vec::new(), failed: None };
        Found {
            columns: paths.iter().map(column).collect(),
            counters: Totals::default(),
            calibration_us: Vec::new(),
            runnable: Vec::new(),
        }
    }

    /// IPC-Direct was measured, and none of it went through user space: what its column has is the kernel's.
    fn only_kernel(&self) -> bool {
        self.columns.iter().any(|c| c.path == Path::Direct && !c.rounds.is_empty())
            && calls(self.counters.user) == 0
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
    /// The middle one.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// All, in their order.
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
    /// Which.
    pub to: Path,
    /// Of the rounds' ratios.
    #[serde(flatten)]
    pub spread: Spread,
    /// What it should be.
    pub goal: Option<f64>,
    /// And whether it is.
    pub verdict: Option<Verdict>,
}

/// Is the goal reached?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// Yes.
    #[serde(rename = "met")]
    Met,
    /// No.
    #[serde(rename = "not met")]
    NotMet,
    /// The rounds disagree.
    #[serde(rename = "unclear: noise")]
    Unclear,
    /// What was measured is the kernel, by our own counters.
    #[serde(rename = "through the kernel")]
    Kernel,
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

    /// In a word.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Verdict::Met => "met",
            Verdict::NotMet => "NOT MET",
            Verdict::Unclear => "unclear",
            Verdict::Kernel => "is the kernel",
        }
    }
}

/// One row of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// What it is called.
    pub name: String,
    /// What its values are counted in.
    pub unit: &'static str,
    /// Of those.
    pub lower_is_better: bool,
    /// By the names of the ways.
    pub columns: BTreeMap<String, Spread>,
    /// How many times better than the kernel's way ours is.
    pub times: Option<Ratio>,
    /// Ours divided by that of the way that is the limit.
    #[serde(rename = "ring")]
    pub limit: Option<Ratio>,
    /// How much more time than that ours takes, or how much less goes through; none of what is the kernel's.
    pub overhead_percent: Option<f64>,
    /// Whether any of ours went through user space.
    pub accelerated: bool,
    /// What went which way, and what was left out.
    pub notes: Vec<String>,
    #[serde(skip)]
    beside: Option<(&'static str, f64)>,
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// How often each was measured.
    pub rounds: usize,
    /// For how long each time.
    pub seconds: f64,
    /// Was the machine too noisy to conclude?
    pub machine: String,
    /// Row by row.
    pub rows: Vec<Line>,
    #[serde(skip)]
    calibration_us: Vec<f64>,
    #[serde(skip)]
    runnable: Vec<usize>,
}

impl Report {
    /// Nothing yet.
    #[must_use]
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
    pub fn add<W>(&mut self, experiment: &Experiment<W>, found: Found) {
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

    /// For a terminal.
    pub fn print(&self) {
        let limit = self.rows.iter().find_map(|l| l.limit.as_ref()).map_or(Path::Ring, |r| r.to);
        let (limit_name, of_limit) = (limit.to_string(), format!("of {limit}"));
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED);
        table.set_header([
            "row",
            "unit",
            "kernel",
            "others",
            &limit_name,
            "IPC-Direct",
            "times",
            "worst to best",
            "goal",
            "",
            &of_limit,
            "goal",
            "",
            "overhead",
        ]);
        for line in &self.rows {
            let goal = |ratio: Option<&Ratio>| ratio.and_then(|r| r.goal).map_or(String::new(), round);
            let verdict = |ratio: Option<&Ratio>| ratio.and_then(|r| r.verdict).map_or("", Verdict::text);
            let (times, of_limit) = (line.times.as_ref(), line.limit.as_ref());
            table.add_row([
                line.name.clone(),
                line.unit.to_owned(),
                times.and_then(|r| line.cell(r.to)).unwrap_or_default(),
                line.others(),
                line.cell(limit).unwrap_or_default(),
                line.cell(Path::Direct).unwrap_or_else(|| "failed".to_owned()),
                times.map_or(String::new(), |r| round(r.spread.median)),
                times
                    .map_or(String::new(), |r| format!("{} to {}", round(r.spread.min), round(r.spread.max))),
                goal(times),
                verdict(times).to_owned(),
                of_limit.map_or(String::new(), |r| format!("{:.2}", r.spread.median)),
                goal(of_limit),
                verdict(of_limit).to_owned(),
                line.overhead_percent.map_or(String::new(), |percent| format!("{percent:.0}%")),
            ]);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        println!("{table}");
        println!(
            "times: how many times better than the kernel's way, median of the rounds; of {limit}: IPC-Direct divided by it."
        );
        for line in &self.rows {
            if line.accelerated && line.times.as_ref().is_some_and(|r| r.spread.median < 1.0) {
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
        let own = [self.limit.as_ref().map(|r| r.to.to_string()), Some(Path::Direct.to_string())];
        let other = |name: &&String| {
            !own.iter().flatten().any(|own| own == *name) && Some(*name) != reference.as_ref()
        };
        let cells = self.columns.iter().filter(|(name, _)| other(name));
        cells.map(|(name, spread)| format!("{name} {}", round(spread.median))).collect::<Vec<_>>().join("\n")
    }
}

/// Three digits.
#[must_use]
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
    let only_kernel = found.only_kernel();
    let verdict = |spread: &Spread, goal: Option<f64>, good: fn(f64, f64) -> bool| {
        let goal = goal?;
        Some(if only_kernel { Verdict::Kernel } else { Verdict::of(spread, |r| good(r, goal)) })
    };
    let times =
        against(reference, if lower { |ours, other| other / ours } else { |ours, other| ours / other });
    let times = times.map(|spread| {
        let verdict = verdict(&spread, row.goal, |r, goal| r >= goal);
        Ratio { to: reference, spread, goal: row.goal, verdict }
    });
    let to = found.columns.iter().map(|column| column.path).find(|path| path.is_limit());
    let limit = to.and_then(|to| Some((to, against(to, |ours, limit| ours / limit)?))).map(|(to, spread)| {
        let verdict =
            verdict(&spread, row.limit_goal, if lower { |r, goal| r <= goal } else { |r, goal| r >= goal });
        Ratio { to, spread, goal: row.limit_goal, verdict }
    });
    let over = |ratio: &Ratio| (ratio.spread.median - 1.0) * if lower { 100.0 } else { -100.0 };
    let spread =
        |column: &Column| Some((column.path.to_string(), Spread::of(found.rounds(column.path, at))?));
    Line {
        name: row.name.clone(),
        unit: row.value.unit(),
        lower_is_better: lower,
        columns: found.columns.iter().filter_map(spread).collect(),
        times,
        overhead_percent: limit.as_ref().filter(|_| !only_kernel).map(over),
        limit,
        accelerated: calls(found.counters.user) > 0,
        notes,
        beside: row.beside,
    }
}

/// Everything that is counted.
fn calls(traffic: Traffic) -> u64 {
    traffic.tx_ops + traffic.rx_ops + traffic.connections
}

/// What the counters say where it is not "all in user space".
fn proof(found: &Found) -> Option<String> {
    let (user, kernel) = (calls(found.counters.user), calls(found.counters.kernel));
    #[allow(clippy::cast_precision_loss)] // a share
    let share = kernel as f64 / (user + kernel).max(1) as f64;
    if found.only_kernel() {
        Some("IPC-Direct's counters: nothing went through user space, this is the kernel".to_owned())
    } else if user > 0 && share > KERNEL_SHARE {
        Some(format!("IPC-Direct's counters: {:.0}% of the calls went through the kernel", share * 100.0))
    } else {
        None
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
