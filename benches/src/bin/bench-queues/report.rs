//! Everything that a run found: as JSON, as tables on the terminal, and as a page with plots.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use harness::Outcome;
use serde::Serialize;

use crate::figure::Figure;
use crate::plot::{self, short};
use crate::simulate::Costs;

/// The report.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Processors, kernel, load before and after.
    pub machine: String,
    /// How often and how long each point was measured.
    pub effort: String,
    /// What else ran.
    pub noise: String,
    pub too_noisy: bool,
    /// Parts that were measured.
    pub parts: Vec<&'static str>,
    /// One paragraph from the measured figures, one from the simulated ones.
    pub findings: Vec<String>,
    /// `per-process` or `hybrid`, if the figures tell.
    pub default_queue: Option<&'static str>,
    pub figures: Vec<Figure>,
    /// What the simulation starts from; none without the parts that measure it.
    pub costs: Option<Costs>,
    pub assumptions: Vec<String>,
    pub simulated: Vec<Figure>,
}

/// A value and how far the rounds were apart.
fn cell(figure: &Figure, name: &str, x: f64) -> String {
    figure.at(name, x).map_or_else(|| "-".to_owned(), |point| short(point.median))
}

impl Report {
    fn all(&self) -> impl Iterator<Item = &Figure> {
        self.figures.iter().chain(&self.simulated)
    }

    /// Tables and findings, for a terminal.
    pub fn print(&self) {
        for figure in self.all() {
            let mut table = Table::new();
            table.load_preset(UTF8_FULL_CONDENSED);
            let xs = figure.xs();
            table.set_header([figure.x.to_owned()].into_iter().chain(xs.iter().map(|x| short(*x))));
            for series in &figure.series {
                let cells = xs.iter().map(|x| cell(figure, &series.name, *x));
                table.add_row([series.name.clone()].into_iter().chain(cells));
            }
            for column in table.column_iter_mut().skip(1) {
                column.set_cell_alignment(CellAlignment::Right);
            }
            let simulated = if figure.simulated { "SIMULATED: " } else { "" };
            println!("\n{simulated}{}, {}\n{table}", figure.title, figure.y);
        }
        if !self.assumptions.is_empty() {
            println!("\nThe simulation takes for granted:");
            self.assumptions.iter().for_each(|line| println!("- {line}"));
        }
        println!("\n{}\n{}\n{}", self.machine, self.effort, self.noise);
        self.findings.iter().for_each(|paragraph| println!("\n{paragraph}"));
    }

    /// report.json, report.html, and a PNG for each figure.
    pub fn write(&self, dir: &Path) -> Outcome {
        fs::create_dir_all(dir)?;
        for figure in self.all() {
            plot::png(figure, &dir.join(format!("{}.png", figure.id)))?;
        }
        fs::write(dir.join("report.html"), self.page()?)?;
        Ok(fs::write(dir.join("report.json"), serde_json::to_string_pretty(self)? + "\n")?)
    }

    fn page(&self) -> Outcome<String> {
        let mut page = String::from(
            "<!DOCTYPE html><html lang=en><meta charset=utf-8><title>IPC-Direct: make bench-queues</title><style>\
             body{font:15px/1.45 sans-serif;max-width:1000px;margin:2em auto;padding:0 \
             1em}table{border-collapse:collapse;margin:.5em 0 2.5em}\
             td,th{padding:2px 9px;border-bottom:1px solid \
             #ddd;text-align:right}td:first-child,th:first-child{text-align:left}\
             svg{max-width:100%;height:auto}.bad{color:#b00;font-weight:bold}.simulated{background:#f6f2e6;padding:0 1em}</style>\
             <h1>Request queues: <code>make bench-queues</code></h1>",
        );
        let _ = write!(page, "<p>{} {}</p>", escape(&self.machine), escape(&self.effort));
        let class = if self.too_noisy { " class=bad" } else { "" };
        let _ = write!(page, "<p{class}>{}</p><h2>Findings</h2>", escape(&self.noise));
        for text in &self.findings {
            let _ = write!(page, "<p>{}</p>", escape(text));
        }
        page += "<h2>Measured</h2><p>Points are medians of the rounds, the thin lines go from the worst to \
        the best one.</p>";
        for figure in &self.figures {
            page += &section(figure)?;
        }
        if let Some(costs) = &self.costs {
            page += "<div class=simulated><h2>Simulated, not measured</h2><p>From the costs that this run \
            measured, in ns, \
                     by queue (per-process, shared, hybrid):</p>";
            let _ = write!(page, "<pre>{}</pre>", escape(&serde_json::to_string_pretty(costs)?));
            page += "<p>Taken for granted:</p><ul>";
            for line in &self.assumptions {
                let _ = write!(page, "<li>{}", escape(line));
            }
            page += "</ul>";
            for figure in &self.simulated {
                page += &section(figure)?;
            }
            page += "</div>";
        }
        Ok(page + "</html>\n")
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// Plot and table of one figure.
fn section(figure: &Figure) -> Outcome<String> {
    let simulated = if figure.simulated { " (simulated)" } else { "" };
    let mut text = format!("<h3 id={}>{}{simulated}</h3>", figure.id, escape(&figure.title));
    let _ = write!(text, "<p>{}</p>{}<table><tr><th>{}", escape(&figure.note), plot::svg(figure)?, figure.x);
    let xs = figure.xs();
    for x in &xs {
        let _ = write!(text, "<th>{}", short(*x));
    }
    for series in &figure.series {
        let _ = write!(text, "<tr><td>{}, {}", series.name, figure.y);
        for x in &xs {
            let rounds = figure.at(&series.name, *x);
            let hover = rounds.map(|p| format!(" title='{} to {}'", short(p.min), short(p.max)));
            let _ = write!(text, "<td{}>{}", hover.unwrap_or_default(), cell(figure, &series.name, *x));
        }
    }
    Ok(text + "</table>")
}
