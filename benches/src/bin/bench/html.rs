//! The report as one page that needs nothing else: the table, and a plot for the ratios and for each unit.

use std::fmt::Write as _;

use harness::{Failure, Outcome};
use measure::path::Path;
use measure::report::{Line, Ratio, Report, Verdict, round};
use plotters::prelude::*;

/// Height of a row in a plot, and what is above and below, in pixels.
const ROW_PX: u32 = 26;
const MARGINS_PX: u32 = 55;
const WIDTH_PX: u32 = 1100;
const LABELS_PX: u32 = 330;

/// Colours of the ways, as in the legend.
const COLOURS: [(Path, RGBColor); 7] = [
    (Path::Tcp, RGBColor(214, 69, 65)),
    (Path::Unix, RGBColor(230, 140, 40)),
    (Path::Socketpair, RGBColor(190, 150, 30)),
    (Path::Pipe, RGBColor(150, 110, 60)),
    (Path::Sockmap, RGBColor(150, 80, 170)),
    (Path::Ring, RGBColor(120, 120, 120)),
    (Path::Direct, RGBColor(30, 110, 200)),
];

/// A value of one round, or of all.
struct Dot {
    row: usize,
    value: f64,
    colour: RGBColor,
    large: bool,
}

/// The whole page.
pub fn page(report: &Report) -> Outcome<String> {
    measure::fonts::register()?;
    let mut page = String::from(
        "<!DOCTYPE html><html lang=en><meta charset=utf-8><title>IPC-Direct: make bench</title><style>\
         body{font:14px/1.4 sans-serif;max-width:1150px;margin:2em auto}table{border-collapse:collapse}\
         td,th{padding:2px 8px;border-bottom:1px solid #ddd;text-align:right;vertical-align:top}\
         td:first-child,th:first-child{text-align:left}.bad{color:#b00;font-weight:bold}.open{color:#a60}</style>",
    );
    let _ = write!(
        page,
        "<h1>IPC-Direct: <code>make bench</code></h1><p>{} rounds of {} s each, all ways in turn within a round. {}</p>",
        report.rounds,
        report.seconds,
        escape(&report.machine)
    );
    page += &table(report);
    page += "<h2>How many times better than the kernel's way</h2><p>Large dot: median; small: rounds; grey line: goal.</p>";
    page += &ratios(&report.rows)?;
    let mut units: Vec<&str> = report.rows.iter().map(|line| line.unit).collect();
    units.sort_unstable();
    units.dedup();
    for unit in units {
        let lines: Vec<&Line> = report.rows.iter().filter(|line| line.unit == unit).collect();
        let better = if lines.first().is_some_and(|l| l.lower_is_better) { "less" } else { "more" };
        let _ = write!(page, "<h2>{unit} ({better} is better)</h2><p>{}</p>", legend());
        page += &values(&lines)?;
    }
    page += "<h2>Notes</h2><ul>";
    for line in &report.rows {
        for note in &line.notes {
            let _ = write!(page, "<li>{}: {}</li>", escape(&line.name), escape(note));
        }
    }
    Ok(page + "</ul></html>\n")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn legend() -> String {
    let mut text = String::new();
    for (path, RGBColor(r, g, b)) in COLOURS {
        let _ = write!(text, "<span style='color:rgb({r},{g},{b})'>&#9679; {path}</span> ");
    }
    text
}

fn table(report: &Report) -> String {
    let mut text = String::from("<table><tr><th>row<th>unit");
    for (path, _) in COLOURS {
        let _ = write!(text, "<th>{path}");
    }
    text += "<th>times<th>rounds<th>goal<th><th>of ring<th>goal<th></tr>";
    for line in &report.rows {
        let _ = write!(text, "<tr><td>{}<td>{}", escape(&line.name), line.unit);
        for (path, _) in COLOURS {
            let cell = line.columns.get(&path.to_string());
            let hover =
                cell.map_or(String::new(), |s| format!(" title='{} to {}'", round(s.min), round(s.max)));
            let _ = write!(text, "<td{hover}>{}", cell.map_or(String::new(), |s| round(s.median)));
        }
        let times = line.times.as_ref();
        let rounds = times.map(|r| format!("{} to {}", round(r.spread.min), round(r.spread.max)));
        let _ = write!(
            text,
            "<td>{}<td>{}{}",
            times.map_or(String::new(), |r| round(r.spread.median)),
            rounds.unwrap_or_default(),
            verdict(times)
        );
        let ring = line.limit.as_ref();
        let of_ring = ring.map_or(String::new(), |r| round(r.spread.median));
        let _ = write!(text, "<td>{of_ring}{}</tr>", verdict(ring));
    }
    text + "</table>"
}

fn verdict(ratio: Option<&Ratio>) -> String {
    let goal = ratio.and_then(|r| r.goal).map_or(String::new(), round);
    let (class, text) = match ratio.and_then(|r| r.verdict) {
        None => ("", ""),
        Some(verdict @ Verdict::Met) => ("", verdict.text()),
        Some(verdict @ Verdict::NotMet) => ("bad", verdict.text()),
        Some(verdict @ (Verdict::Unclear | Verdict::Kernel)) => ("open", verdict.text()),
    };
    format!("<td>{goal}<td class='{class}'>{text}")
}

/// Times the kernel of every row, with the goals.
fn ratios(lines: &[Line]) -> Outcome<String> {
    let colour = RGBColor(30, 110, 200);
    let (mut dots, mut goals, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for (line, ratio) in lines.iter().filter_map(|line| Some((line, line.times.as_ref()?))) {
        let row = names.len();
        names.push(line.name.as_str());
        goals.extend(ratio.goal.map(|goal| (row, goal)));
        let small = ratio.spread.rounds.iter().map(|v| Dot { row, value: *v, colour, large: false });
        dots.extend(small);
        dots.push(Dot { row, value: ratio.spread.median, colour, large: true });
    }
    plot(&names, &dots, &goals)
}

/// Every way's values in one unit.
fn values(lines: &[&Line]) -> Outcome<String> {
    let mut dots = Vec::new();
    for (row, line) in lines.iter().enumerate() {
        for (path, colour) in COLOURS {
            let Some(spread) = line.columns.get(&path.to_string()) else { continue };
            let small = spread.rounds.iter().map(|v| Dot { row, value: *v, colour, large: false });
            dots.extend(small);
            dots.push(Dot { row, value: spread.median, colour, large: true });
        }
    }
    let names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
    plot(&names, &dots, &[])
}

/// Dots on a logarithmic axis, a line for each name.
#[allow(clippy::cast_precision_loss)] // a few rows
fn plot(names: &[&str], dots: &[Dot], goals: &[(usize, f64)]) -> Outcome<String> {
    let drawable = |v: &f64| *v > 0.0 && v.is_finite();
    let values: Vec<f64> =
        dots.iter().map(|d| d.value).chain(goals.iter().map(|g| g.1)).filter(drawable).collect();
    let (Some(min), Some(max)) =
        (values.iter().copied().reduce(f64::min), values.iter().copied().reduce(f64::max))
    else {
        return Ok(String::new());
    };
    let rows = u32::try_from(names.len()).unwrap_or(0);
    let mut svg = String::new();
    {
        let wrong = |e: &dyn std::fmt::Display| Failure(format!("cannot draw the plot: {e}"));
        let area =
            SVGBackend::with_string(&mut svg, (WIDTH_PX, rows * ROW_PX + MARGINS_PX)).into_drawing_area();
        area.fill(&WHITE).map_err(|e| wrong(&e))?;
        let height = names.len() as f64;
        let mut chart = ChartBuilder::on(&area)
            .margin(10)
            .x_label_area_size(35)
            .y_label_area_size(LABELS_PX)
            .build_cartesian_2d((min / 1.3..max * 1.3).log_scale(), height..0.0)
            .map_err(|e| wrong(&e))?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(0)
            .x_labels(8)
            .x_label_formatter(&|v| round(*v))
            .draw()
            .map_err(|e| wrong(&e))?;
        for (row, text) in names.iter().enumerate() {
            let y = 10 + i32::try_from(row).unwrap_or(0) * i32::try_from(ROW_PX).unwrap_or(0) + 6;
            area.draw_text(text, &("sans-serif", 13).into_text_style(&area), (8, y))
                .map_err(|e| wrong(&e))?;
        }
        let grey = RGBColor(130, 130, 130);
        let lines = goals.iter().map(|(row, goal)| {
            let y = *row as f64;
            PathElement::new(vec![(*goal, y + 0.1), (*goal, y + 0.9)], grey.stroke_width(3))
        });
        chart.draw_series(lines).map_err(|e| wrong(&e))?;
        let circles = dots.iter().filter(|d| drawable(&d.value)).map(|d| {
            let style = if d.large { d.colour.filled() } else { d.colour.mix(0.45).filled() };
            Circle::new((d.value, d.row as f64 + 0.5), if d.large { 5 } else { 2 }, style)
        });
        chart.draw_series(circles).map_err(|e| wrong(&e))?;
        area.present().map_err(|e| wrong(&e))?;
    }
    Ok(svg)
}
