//! What a measurement leaves: lines over an axis, which become a plot, a table and JSON.

use serde::Serialize;

/// One line of a plot.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// Which queue, or what of the kernel's.
    pub name: String,
    /// x and y.
    pub points: Vec<[f64; 2]>,
}

/// One plot.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// Its file's name.
    pub id: &'static str,
    /// What it shows.
    pub title: &'static str,
    /// How it was obtained, and what one has to know to read it.
    pub note: String,
    /// The axes, with units.
    pub x: &'static str,
    /// See `x`.
    pub y: &'static str,
    /// Not measured.
    pub simulated: bool,
    /// The lines.
    pub series: Vec<Series>,
}

impl Figure {
    /// An empty one.
    pub fn new(
        id: &'static str,
        title: &'static str,
        x: &'static str,
        y: &'static str,
        note: &str,
    ) -> Figure {
        Figure { id, title, note: note.to_owned(), x, y, simulated: false, series: Vec::new() }
    }

    /// Adds a point to the line of that name.
    pub fn add(&mut self, name: &str, x: f64, y: f64) {
        match self.series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push([x, y]),
            None => self.series.push(Series { name: name.to_owned(), points: vec![[x, y]] }),
        }
    }

    /// The value of a line at `x`.
    pub fn at(&self, name: &str, x: f64) -> Option<f64> {
        let series = self.series.iter().find(|series| series.name == name)?;
        series.points.iter().find(|point| (point[0] - x).abs() < 1e-9).map(|point| point[1])
    }

    /// All x of any line, ascending.
    pub fn xs(&self) -> Vec<f64> {
        let mut xs: Vec<f64> = self.series.iter().flat_map(|s| s.points.iter().map(|p| p[0])).collect();
        xs.sort_by(f64::total_cmp);
        xs.dedup();
        xs
    }
}
