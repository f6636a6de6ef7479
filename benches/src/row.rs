//! What a report is made of: rows with their goals, and what is run for them.

use crate::pairs::Both;
use crate::path::Path;

/// A figure of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Median round trip.
    P50,
    /// 99th percentile.
    P99,
    /// Messages, connections, requests each second.
    Rate,
    /// Bytes each second, of messages of so many bytes.
    Throughput(usize),
    /// Processor time of all that take part, for each message.
    Cpu,
    /// Memory for each connection.
    Memory,
}

impl Value {
    /// What it is counted in.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Value::P50 | Value::P99 => "µs",
            Value::Rate => "1/s",
            Value::Throughput(_) => "GB/s",
            Value::Cpu => "µs CPU",
            Value::Memory => "KiB",
        }
    }

    /// True where less is better.
    #[must_use]
    pub fn lower_is_better(self) -> bool {
        matches!(self, Value::P50 | Value::P99 | Value::Cpu | Value::Memory)
    }

    /// Out of what both processes found.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // counts and sizes stay far below 2^52
    pub fn of(self, both: &Both) -> f64 {
        let client = &both.client;
        match self {
            Value::P50 => client.p50_ns / 1000.0,
            Value::P99 => client.p99_ns / 1000.0,
            Value::Rate => client.per_s(),
            Value::Throughput(bytes) => client.per_s() * bytes as f64 / 1e9,
            Value::Cpu => (client.cpu_s + both.server.cpu_s) * 1e6 / client.count.max(1) as f64,
            Value::Memory => f64::NAN,
        }
    }
}

/// A row of the report.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it is called.
    pub name: String,
    /// Which figure.
    pub value: Value,
    /// How many times better than the reference it should be.
    pub goal: Option<f64>,
    /// How much of the way that is the limit: at most so many times its time, or at least such a share of its rate.
    pub limit_goal: Option<f64>,
    /// Another row of ours, and how many times worse than that it may be.
    pub beside: Option<(&'static str, f64)>,
}

impl Row {
    /// With a goal against the way that is the limit.
    #[must_use]
    pub fn of_limit(mut self, goal: f64) -> Row {
        self.limit_goal = Some(goal);
        self
    }

    /// With a goal against another row of ours.
    #[must_use]
    pub fn beside(mut self, row: &'static str, times: f64) -> Row {
        self.beside = Some((row, times));
        self
    }
}

/// What is measured together: one run gives all its rows.
#[derive(Clone, Debug)]
pub struct Experiment<W> {
    /// What is run.
    pub what: W,
    /// Reference first, IPC-Direct last.
    pub paths: &'static [Path],
    /// What comes out.
    pub rows: Vec<Row>,
}

/// A row, with how many times better than the reference it should be.
pub fn row(name: impl Into<String>, value: Value, goal: impl Into<Option<f64>>) -> Row {
    Row { name: name.into(), value, goal: goal.into(), limit_goal: None, beside: None }
}

/// An experiment with one row.
pub fn one<W>(what: W, paths: &'static [Path], row: Row) -> Experiment<W> {
    Experiment { what, paths, rows: vec![row] }
}

/// `1 KiB`.
#[must_use]
pub fn size(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes / 1024),
        _ => format!("{} MiB", bytes / 1_048_576),
    }
}
