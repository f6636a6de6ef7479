//! A figure as a plot: SVG for the page, PNG beside it.

use std::path::Path;

use harness::{Failure, Outcome};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::figure::Figure;

const SIZE: (u32, u32) = (900, 460);
const COLOURS: [RGBColor; 6] = [
    RGBColor(30, 110, 200),
    RGBColor(214, 69, 65),
    RGBColor(40, 150, 80),
    RGBColor(120, 120, 120),
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
fn is_wide(values: &[f64]) -> bool {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    low > 0.0 && high / low > 20.0
}

/// One decimal digit above a thousand, k and M.
fn short(value: &f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{:.1} M", value / 1e6),
        v if v >= 1e4 => format!("{:.0} k", value / 1e3),
        v if v >= 1e3 => format!("{:.1} k", value / 1e3),
        v if v >= 10.0 || v == 0.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

fn draw<B: DrawingBackend>(figure: &Figure, area: &DrawingArea<B, Shift>) -> Outcome
where
    B::ErrorType: 'static,
{
    area.fill(&WHITE).map_err(failed)?;
    let xs = figure.xs();
    let ys: Vec<f64> = figure.series.iter().flat_map(|s| s.points.iter().map(|p| p[1])).collect();
    let (x_low, x_high) = (xs.first().copied().unwrap_or(0.0), xs.last().copied().unwrap_or(1.0));
    let y_high = ys.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let y_low = ys.iter().copied().fold(f64::INFINITY, f64::min);
    let mut builder = ChartBuilder::on(area);
    let simulated = if figure.simulated { " (simulated)" } else { "" };
    builder.caption(format!("{}{simulated}", figure.title), ("sans-serif", 20));
    builder.margin(12).x_label_area_size(44).y_label_area_size(72);
    // The four combinations are four types.
    macro_rules! on {
        ($x:expr, $y:expr) => {{
            let mut chart = builder.build_cartesian_2d($x, $y).map_err(failed)?;
            let mut mesh = chart.configure_mesh();
            mesh.x_desc(figure.x).y_desc(figure.y).label_style(("sans-serif", 14));
            mesh.axis_desc_style(("sans-serif", 15)).light_line_style(WHITE);
            mesh.x_label_formatter(&short).y_label_formatter(&short).draw().map_err(failed)?;
            for (series, colour) in figure.series.iter().zip(COLOURS.iter().cycle()) {
                let points = || series.points.iter().map(|p| (p[0], p[1]));
                let line = LineSeries::new(points(), colour.stroke_width(2));
                chart
                    .draw_series(line)
                    .map_err(failed)?
                    .label(series.name.as_str())
                    .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
                let dots = points().map(|point| Circle::new(point, 3, colour.filled()));
                chart.draw_series(dots).map_err(failed)?;
            }
            let mut labels = chart.configure_series_labels();
            labels.position(SeriesLabelPosition::UpperLeft).label_font(("sans-serif", 15));
            labels.background_style(WHITE.mix(0.8)).border_style(RGBColor(200, 200, 200));
            labels.draw().map_err(failed)?;
        }};
    }
    let x_log = is_wide(&xs);
    let y_log = is_wide(&ys);
    match (x_log, y_log) {
        (true, true) => on!((x_low..x_high).log_scale(), (y_low * 0.8..y_high * 1.5).log_scale()),
        (true, false) => on!((x_low..x_high).log_scale(), 0.0..y_high * 1.3),
        (false, true) => on!(x_low..x_high, (y_low * 0.8..y_high * 1.5).log_scale()),
        (false, false) => on!(x_low..x_high, 0.0..y_high * 1.3),
    }
    area.present().map_err(failed)
}
