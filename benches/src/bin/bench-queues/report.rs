//! What was found, as a page, and the paragraph that says so.

use std::fmt::Write as _;

use harness::Outcome;
use ring::queue::Kind;
use serde::Serialize;

use crate::figure::Figure;
use crate::plot;
use crate::rates::Costs;

/// Everything.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where it was measured.
    pub machine: String,
    /// How often and how long each point.
    pub effort: String,
    /// Measured.
    pub figures: Vec<Figure>,
    /// Connections of real processes, each second.
    pub setups: Vec<(String, f64)>,
    /// In ns; by queue: per-process, shared, hybrid.
    pub costs: Costs,
    /// From `costs`, with `assumptions`.
    pub simulated: Vec<Figure>,
    /// For the simulation.
    pub assumptions: &'static [&'static str],
    /// From the data.
    pub findings: String,
}

/// Bus operations by the protocol (SPEC 2), for a request with its answer: what crosses, in words, for each kind.
const OPERATIONS: [[&str; 6]; 4] = [
    [
        "",
        "host: posted stores",
        "host: locked instructions, in its memory",
        "card: DMA reads",
        "card: DMA stores",
        "card, a turn that finds nothing",
    ],
    ["per-process", "1 (64 B)", "0", "0", "1 (64 B)", "0 reads; a look at each ring in its own memory"],
    [
        "shared",
        "0",
        "1 (ticket)",
        "tail and entries: 2 a turn, shared by all that the turn finds (8 entries each)",
        "1 (64 B) + 1 a turn (how far it is free)",
        "2 reads (tail, counts)",
    ],
    [
        "hybrid",
        "1 (64 B)",
        "1 (count)",
        "counts and marks: 2 a turn, shared by all that the turn finds",
        "1 (64 B)",
        "1 read (counts)",
    ],
];

impl Report {
    fn figure(&self, id: &str) -> Option<&Figure> {
        self.figures.iter().chain(&self.simulated).find(|figure| figure.id == id)
    }

    fn at(&self, id: &str, kind: Kind, x: f64) -> f64 {
        self.figure(id).and_then(|figure| figure.at(kind.name(), x)).unwrap_or(f64::NAN)
    }

    /// Which of the kinds is best there, by how many times the next one.
    fn best(&self, id: &str, x: f64, lower: bool) -> String {
        let mut all = Kind::ALL.map(|kind| (self.at(id, kind, x), kind));
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        if !lower {
            all.reverse();
        }
        let [(best, kind), (second, next), (last, worst)] = all;
        let times = |other: f64| if lower { other / best } else { best / other };
        format!("{kind} ({:.2} times {next}, {:.2} times {worst})", times(second), times(last))
    }

    /// One paragraph.
    pub fn paragraph(&self) -> String {
        let setups =
            |name: &str| self.setups.iter().find(|(n, _)| n == name).map_or(f64::NAN, |(_, rate)| *rate);
        let kernel =
            |id: &str, name: &str, x| self.figure(id).and_then(|f| f.at(name, x)).unwrap_or(f64::NAN);
        let [private, shared, hybrid] = self.costs.contended_push_ns;
        let port = Kind::ALL.map(|kind| self.at("port", kind, 8.0)).into_iter().fold(0.0, f64::max);
        let accept = Kind::ALL.map(|kind| self.at("accept", kind, 8.0)).into_iter().fold(0.0, f64::max);
        format!(
            "One busy process of 1: the shortest round trip (p50) has {}; of 512: {}. All of 512 busy, the most requests: {}; with 99% idle: {}. \
             A turn over 512 idle processes costs {:.0} ns with private rings alone, {:.0} ns with hints and {:.0} ns with the shared ring. A push while \
             another processor pushes costs {private:.0} ns into a private ring, {hybrid:.0} ns with a hint and {shared:.0} ns into the shared ring (its seal alone is \
             most of {:.0} ns). Whole connections: {:.0}/s per-process, {:.0}/s shared, {:.0}/s hybrid, {:.0}/s by kernel TCP, so the queue hardly matters there: \
             two requests of a microsecond in a connection of tens. Eight that fight for one port get it {port:.0} times a second by the coordinator (best queue), \
             {:.0} times by bind(2) and {:.0} times by a futex in common memory; eight at one accept queue take {accept:.0} connections a second from it, and {:.0} by \
             accept(2). Simulated: with 10,000 processes of which 1% are busy, one core: {}; sixteen: {}.",
            self.best("p50", 1.0, true),
            self.best("p50", 512.0, true),
            self.best("rate", 512.0, false),
            self.best("idle", 99.0, false),
            self.at("polling", Kind::PerProcess, 512.0),
            self.at("polling", Kind::Hybrid, 512.0),
            self.at("polling", Kind::Shared, 512.0),
            self.costs.push_ns[1],
            setups(Kind::PerProcess.name()),
            setups(Kind::Shared.name()),
            setups(Kind::Hybrid.name()),
            setups("kernel: TCP"),
            kernel("port", "kernel: bind", 8.0),
            kernel("port", "kernel: futex", 8.0),
            kernel("accept", "kernel: accept", 8.0),
            self.best("simulated-idle", 1.0, false),
            self.best("simulated-idle", 16.0, false),
        )
    }

    /// The page.
    pub fn page(&self) -> Outcome<String> {
        let mut page = String::from(
            "<!DOCTYPE html><html lang=en><meta charset=utf-8><title>IPC-Direct: make bench-queues</title><style>\
             body{font:14px/1.4 sans-serif;max-width:950px;margin:2em auto}table{border-collapse:collapse;margin:.5em 0 2em}\
             td,th{padding:2px 8px;border-bottom:1px solid #ddd;text-align:right;vertical-align:top}\
             td:first-child,th:first-child{text-align:left}</style><h1>Request queues: <code>make bench-queues</code></h1>",
        );
        let _ =
            write!(page, "<p>{} {}</p><h2>Findings</h2><p>{}</p>", self.machine, self.effort, self.findings);
        for figure in &self.figures {
            page += &section(figure)?;
        }
        page += "<h2>Connection setups</h2><p>socket, connect, accept, close, by two real processes on the whole system.</p><table>";
        for (name, rate) in &self.setups {
            let _ = write!(page, "<tr><td>{name}<td>{rate:.0}/s");
        }
        page += "</table><h2>Costs</h2><p>In ns, for each request: what the simulation starts from.</p><table><tr><th><th>push<th>push, another processor pushing<th>the card's work";
        for (place, kind) in Kind::ALL.into_iter().enumerate() {
            let of = |costs: &[f64; 3]| costs.get(place).copied().unwrap_or(f64::NAN);
            let (push, together, card) =
                (of(&self.costs.push_ns), of(&self.costs.contended_push_ns), of(&self.costs.request_ns));
            let _ = write!(page, "<tr><td>{kind}<td>{push:.1}<td>{together:.1}<td>{card:.1}");
        }
        let _ = write!(
            page,
            "</table><p>A turn: {:.1} ns, and {:.2} ns for each private ring that is looked at.</p>",
            self.costs.turn_ns, self.costs.ring_ns
        );
        page += "<h2>Bus operations</h2><p>For a request and its answer, by the protocol. How many a turn finds: see the plot above.</p><table>";
        for row in OPERATIONS {
            page += "<tr>";
            row.iter().for_each(|cell| drop(write!(page, "<td>{cell}")));
        }
        page += "</table><h2>Simulation</h2><p>Not measured: from the costs above, taking for granted that</p><ul>";
        self.assumptions.iter().for_each(|line| drop(write!(page, "<li>{line}")));
        page += "</ul>";
        for figure in &self.simulated {
            page += &section(figure)?;
        }
        Ok(page)
    }
}

fn section(figure: &Figure) -> Outcome<String> {
    let simulated = if figure.simulated { " (simulated)" } else { "" };
    let mut text =
        format!("<h2>{}{simulated}</h2><p>{}</p>{}", figure.title, figure.note, plot::svg(figure)?);
    let _ = write!(text, "<table><tr><th>{}", figure.x);
    let xs = figure.xs();
    xs.iter().for_each(|x| drop(write!(text, "<th>{x}")));
    for series in &figure.series {
        let _ = write!(text, "<tr><td>{}, {}", series.name, figure.y);
        for x in &xs {
            let _ = match figure.at(&series.name, *x) {
                Some(y) if y < 100.0 => write!(text, "<td>{y:.2}"),
                Some(y) => write!(text, "<td>{y:.0}"),
                None => write!(text, "<td>-"),
            };
        }
    }
    text += "</table>";
    Ok(text)
}
