//! What a measurement leaves: lines over an axis, which become a plot, a table and JSON; and how two lines
//! compare.

use measure::stats::median;
use serde::Serialize;

/// Rounds on the same side from which on one line is said to be better than another.
const AGREE: f64 = 0.8;
/// Fewer rounds say nothing about noise.
const ROUNDS_MIN: usize = 3;
/// A smaller difference is none.
const MARGIN: f64 = 1.05;

/// The values of all rounds for one x.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    pub x: f64,
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub rounds: Vec<f64>,
}

impl Point {
    fn new(x: f64, rounds: Vec<f64>) -> Point {
        let min = rounds.iter().copied().fold(f64::INFINITY, f64::min);
        let max = rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Point { x, median: median(rounds.clone()), min, max, rounds }
    }
}

/// One line of a plot.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// Which queue, or what of the kernel's.
    pub name: String,
    pub points: Vec<Point>,
}

/// What is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Less,
    More,
}

/// One plot.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// Its file's name.
    pub id: &'static str,
    pub title: String,
    /// How it was obtained, and what one has to know to read it.
    pub note: String,
    /// What stands at the axes, with units.
    pub x: &'static str,
    pub y: &'static str,
    pub better: Better,
    /// Not measured.
    pub simulated: bool,
    pub series: Vec<Series>,
}

/// One line against another at one x, round by round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// So many times better; above 1.
    Ahead(f64),
    /// So many times worse; above 1.
    Behind(f64),
    /// Less than 5% apart in the median.
    Same,
    /// The rounds disagree.
    Unclear,
}

impl Figure {
    /// An empty one.
    pub fn new(
        id: &'static str,
        title: impl Into<String>,
        axes: [&'static str; 2],
        better: Better,
    ) -> Figure {
        let [x, y] = axes;
        let (title, note) = (title.into(), String::new());
        Figure { id, title, note, x, y, better, simulated: false, series: Vec::new() }
    }

    /// With this note.
    pub fn note(mut self, note: impl Into<String>) -> Figure {
        self.note = note.into();
        self
    }

    /// As not measured.
    pub fn simulated(mut self) -> Figure {
        self.simulated = true;
        self
    }

    /// Adds a point, all its rounds, to the line of that name.
    pub fn add(&mut self, name: &str, x: f64, rounds: Vec<f64>) {
        let point = Point::new(x, rounds);
        match self.series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => self.series.push(Series { name: name.to_owned(), points: vec![point] }),
        }
    }

    /// The point of a line at `x`.
    pub fn at(&self, name: &str, x: f64) -> Option<&Point> {
        let series = self.series.iter().find(|series| series.name == name)?;
        series.points.iter().find(|point| (point.x - x).abs() < 1e-9)
    }

    /// All x of any line, ascending.
    pub fn xs(&self) -> Vec<f64> {
        let mut xs: Vec<f64> = self.series.iter().flat_map(|s| s.points.iter().map(|p| p.x)).collect();
        xs.sort_by(f64::total_cmp);
        xs.dedup();
        xs
    }

    /// How `name` does beside `other` at `x`; a simulation has no noise.
    pub fn versus(&self, name: &str, other: &str, x: f64) -> Option<Verdict> {
        Some(verdict(&self.ratios(name, other, x)?, self.simulated))
    }

    /// So many times at least `name` was behind `other` at `x` in 80% of the rounds, if that is clear.
    pub fn surely_behind(&self, name: &str, other: &str, x: f64) -> Option<f64> {
        let mut ratios = self.ratios(other, name, x)?;
        ratios.sort_by(f64::total_cmp);
        let at_least = ratios.get(ratios.len() / 5).copied().filter(|times| *times > MARGIN);
        at_least.filter(|_| matches!(self.versus(name, other, x), Some(Verdict::Behind(_))))
    }

    /// How many times better `name` was than `other`, round by round.
    fn ratios(&self, name: &str, other: &str, x: f64) -> Option<Vec<f64>> {
        let (ours, theirs) = (self.at(name, x)?, self.at(other, x)?);
        let both = ours.rounds.iter().zip(&theirs.rounds);
        Some(both.map(|(a, b)| if self.better == Better::More { a / b } else { b / a }).collect())
    }
}

/// `ratios`: how many times better each round was.
#[allow(clippy::cast_precision_loss)] // a few rounds
fn verdict(ratios: &[f64], exact: bool) -> Verdict {
    let middle = median(ratios.to_vec());
    if (1.0 / MARGIN..=MARGIN).contains(&middle) {
        return Verdict::Same;
    }
    let agree = ratios.iter().filter(|r| (**r > 1.0) == (middle > 1.0)).count();
    let enough = exact || ratios.len() >= ROUNDS_MIN;
    match (enough && agree as f64 >= AGREE * ratios.len() as f64, middle > 1.0) {
        (false, _) => Verdict::Unclear,
        (true, true) => Verdict::Ahead(middle),
        (true, false) => Verdict::Behind(1.0 / middle),
    }
}

#[cfg(test)]
mod tests {
    use super::{Better, Figure, Verdict, verdict};

    #[test]
    fn a_verdict_needs_rounds_that_agree() {
        assert_eq!(verdict(&[2.0, 2.5, 1.5], false), Verdict::Ahead(2.0));
        assert_eq!(verdict(&[0.5, 0.4, 0.6], false), Verdict::Behind(2.0));
        assert_eq!(verdict(&[2.0, 2.5, 0.9], false), Verdict::Unclear);
        assert_eq!(verdict(&[2.0, 2.0], false), Verdict::Unclear);
        assert_eq!(verdict(&[2.0], true), Verdict::Ahead(2.0));
        assert_eq!(verdict(&[1.01, 1.3, 0.9], false), Verdict::Same);
    }

    #[test]
    fn less_is_better_where_the_figure_says_so() {
        let mut figure = Figure::new("t", "t", ["x", "y"], Better::Less);
        figure.add("a", 1.0, vec![1.0, 1.0, 1.0]);
        figure.add("b", 1.0, vec![3.0, 3.0, 3.0]);
        assert_eq!(figure.versus("a", "b", 1.0), Some(Verdict::Ahead(3.0)));
        assert_eq!(figure.versus("b", "a", 1.0), Some(Verdict::Behind(3.0)));
        assert_eq!(figure.versus("a", "b", 2.0), None);
        assert_eq!(figure.surely_behind("b", "a", 1.0), Some(3.0));
        assert_eq!(figure.surely_behind("a", "b", 1.0), None);
    }
}
