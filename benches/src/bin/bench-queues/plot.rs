//! A figure as a plot: SVG for the page, PNG beside it.

use std::path::Path;

use harness::{Failure, Outcome};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::figure::Figure;

const SIZE: (u32, u32) = (960, 500);
/// Room at the right for the legend, which so never covers a line.
const LEGEND_PX: u32 = 210;
/// Ends the name of a line of measured points in a simulated figure.
pub const MEASURED: &str = ", measured";
const COLOURS: [RGBColor; 6] = [
    RGBColor(30, 110, 200),
    RGBColor(214, 69, 65),
    RGBColor(40, 150, 80),
    RGBColor(110, 110, 110),
    RGBColor(150, 80, 170),
    RGBColor(190, 150, 30),
];

fn failed(e: impl std::fmt::Display) -> Failure {
    Failure(format!("a plot can't be drawn: {e}"))
}

/// As text for the page.
pub fn svg(figure: &Figure) -> Outcome<String> {
    let mut text = String::new();
    draw(figure, &SVGBackend::with_string(&mut text, SIZE).into_drawing_area())?;
    Ok(text)
}

/// As a file.
pub fn png(figure: &Figure, file: &Path) -> Outcome {
    draw(figure, &BitMapBackend::new(file, SIZE).into_drawing_area())
}

/// Whether an axis is wide enough for a logarithmic scale, and has no 0.
fn is_wide(low: f64, high: f64) -> bool {
    low > 0.0 && high / low > 8.0
}

/// Few digits.
pub fn short(value: f64) -> String {
    let trimmed = |text: String| {
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    };
    match value.abs() {
        v if v >= 1e6 => trimmed(format!("{:.2}", value / 1e6)) + " M",
        v if v >= 1e4 => trimmed(format!("{:.1}", value / 1e3)) + " k",
        v if v >= 100.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 10.0 => trimmed(format!("{value:.1}")),
        _ => trimmed(format!("{value:.2}")),
    }
}

/// Ticks of a logarithmic axis: 1, 2, 5, 10, ... in between, thinner if that is too many.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let steps: &[f64] = if high / low > 2000.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let mut all = Vec::new();
    let mut decade = 10f64.powf(low.log10().floor());
    while decade <= high {
        all.extend(steps.iter().map(|step| step * decade).filter(|tick| (low..=high).contains(tick)));
        decade *= 10.0;
    }
    all
}

/// One axis: from, to, where it is marked.
struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
    log: bool,
}

impl Axis {
    fn x(figure: &Figure) -> Axis {
        let ticks = figure.xs();
        let (low, high) = (ticks.first().copied().unwrap_or(0.0), ticks.last().copied().unwrap_or(1.0));
        let log = is_wide(low, high);
        let (low, high) = if log {
            (low / 1.1, high * 1.1)
        } else {
            (low - 0.02 * (high - low), high + 0.02 * (high - low))
        };
        Axis { low, high, ticks, log }
    }

    fn y(figure: &Figure) -> Axis {
        let points = || figure.series.iter().flat_map(|s| &s.points);
        let low = points().map(|p| p.min).fold(f64::INFINITY, f64::min);
        let high = points().map(|p| p.max).fold(f64::MIN_POSITIVE, f64::max);
        if is_wide(low, high) {
            let (low, high) = (low / 1.3, high * 1.3);
            return Axis { low, high, ticks: ticks(low, high), log: true };
        }
        let high = high * 1.1;
        let step = 10f64.powf((high / 5.0).log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|n| n * step).into_iter().find(|s| high / s <= 8.0).unwrap_or(step);
        let ticks = (0..9u32).map(|n| f64::from(n) * step).filter(|tick| *tick <= high).collect();
        Axis { low: 0.0, high, ticks, log: false }
    }

    /// Where `value` is, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        if self.log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low).max(f64::MIN_POSITIVE)
        }
    }
}

/// The plot is made on a plain square, with axes of our own: plotters marks logarithmic ones at powers of ten
/// only.
fn draw<B: DrawingBackend>(figure: &Figure, area: &DrawingArea<B, Shift>) -> Outcome
where
    B::ErrorType: 'static,
{
    area.fill(&WHITE).map_err(failed)?;
    let (x, y) = (Axis::x(figure), Axis::y(figure));
    let simulated = if figure.simulated { " (SIMULATED)" } else { "" };
    let mut builder = ChartBuilder::on(area);
    builder.caption(format!("{}{simulated}", figure.title), ("sans-serif", 19));
    builder.margin(14).margin_right(LEGEND_PX).x_label_area_size(52).y_label_area_size(84);
    let mut chart = builder.build_cartesian_2d(0.0..1.0, 0.0..1.0).map_err(failed)?;
    let grey = RGBColor(225, 225, 225);
    let lines = x.ticks.iter().map(|t| [(x.place(*t), 0.0), (x.place(*t), 1.0)]);
    let lines = lines.chain(y.ticks.iter().map(|t| [(0.0, y.place(*t)), (1.0, y.place(*t))]));
    chart.draw_series(lines.map(|line| PathElement::new(line, grey))).map_err(failed)?;
    let (left, top) = chart.plotting_area().get_base_pixel();
    let (width, height) = chart.plotting_area().dim_in_pixel();
    let (right, bottom) = (left + pixels(width), top + pixels(height));
    let text = |size: u32, h, v| {
        use plotters::style::text_anchor::Pos;
        ("sans-serif", size).into_text_style(area).pos(Pos::new(h, v))
    };
    use plotters::style::text_anchor::{HPos, VPos};
    let mut free = i32::MIN;
    for tick in &x.ticks {
        let at = left + scaled(x.place(*tick), width);
        // The next label must not touch the one before.
        if at >= free {
            let label = short(*tick);
            free = at + 14 + 9 * i32::try_from(label.len()).unwrap_or(0);
            area.draw_text(&label, &text(14, HPos::Center, VPos::Top), (at, bottom + 6)).map_err(failed)?;
        }
    }
    for tick in &y.ticks {
        let at = bottom - scaled(y.place(*tick), height);
        area.draw_text(&short(*tick), &text(14, HPos::Right, VPos::Center), (left - 8, at))
            .map_err(failed)?;
    }
    let scale = |axis: &Axis| if axis.log { " (log scale)" } else { "" };
    let below = format!("{}{}", figure.x, scale(&x));
    let middle = i32::midpoint(left, right);
    area.draw_text(&below, &text(15, HPos::Center, VPos::Top), (middle, bottom + 30)).map_err(failed)?;
    let beside = format!("{}{}", figure.y, scale(&y));
    let turned = text(15, HPos::Center, VPos::Center).transform(FontTransform::Rotate270);
    area.draw_text(&beside, &turned, (18, i32::midpoint(top, bottom))).map_err(failed)?;
    let mut colours = COLOURS.iter().cycle();
    let mut colour = &BLACK;
    for (n, series) in figure.series.iter().enumerate() {
        // What a simulation is checked against has its colour, and no line.
        let measured = figure.simulated && series.name.ends_with(MEASURED);
        if !measured {
            colour = colours.next().unwrap_or(&BLACK);
        }
        let points = || series.points.iter().filter(|p| p.median.is_finite());
        let line = points().map(|p| (x.place(p.x), y.place(p.median)));
        let at = (right + 16, top + 14 + 24 * i32::try_from(n).unwrap_or(0));
        if measured {
            chart.draw_series(line.map(|at| Circle::new(at, 6, colour))).map_err(failed)?;
            area.draw(&Circle::new((at.0 + 11, at.1), 6, colour)).map_err(failed)?;
        } else {
            chart.draw_series(LineSeries::new(line.clone(), colour.stroke_width(2))).map_err(failed)?;
            chart.draw_series(line.map(|at| Circle::new(at, 4, colour.filled()))).map_err(failed)?;
            area.draw(&PathElement::new([at, (at.0 + 22, at.1)], colour.stroke_width(3))).map_err(failed)?;
        }
        // From the worst to the best round.
        let spread = points().map(|p| [(x.place(p.x), y.place(p.min)), (x.place(p.x), y.place(p.max))]);
        chart.draw_series(spread.map(|line| PathElement::new(line, colour.mix(0.5)))).map_err(failed)?;
        let beside = (at.0 + 28, at.1);
        area.draw_text(&series.name, &text(14, HPos::Left, VPos::Center), beside).map_err(failed)?;
    }
    area.present().map_err(failed)
}

fn pixels(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(0)
}

#[allow(clippy::cast_possible_truncation)] // within a picture
fn scaled(share: f64, size: u32) -> i32 {
    (share * f64::from(size)).round() as i32
}

#[cfg(test)]
mod tests {
    use super::{short, ticks};

    #[test]
    fn figures_are_short() {
        let texts = [0.0, 0.25, 4.3, 12.34, 512.0, 10_000.0, 1_234_567.0].map(short);
        assert_eq!(texts, ["0", "0.25", "4.3", "12.3", "512", "10 k", "1.23 M"]);
    }

    #[test]
    fn logarithmic_axes_are_marked_often_enough() {
        assert_eq!(ticks(90.0, 1100.0), [100.0, 200.0, 500.0, 1000.0]);
        assert_eq!(ticks(1.0, 10_000.0), [1.0, 10.0, 100.0, 1000.0, 10_000.0]);
    }
}
