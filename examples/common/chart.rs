//! Loss curves as SVG.

use std::error::Error;
use std::ops::Range;
use std::path::Path;

use cllm::checkpoint::atomic;
use plotters::prelude::*;

/// More points than this are averaged in groups of neighbours.
const MAX_POINTS: usize = 1000;

/// Up to this many points are marked each, so that a single one can be seen.
const MAX_MARKS: usize = 50;

/// A named line of (step, loss) points.
pub struct Curve<'a> {
    pub name: &'a str,
    pub points: &'a [(f64, f64)],
}

/// Draws the curves over their steps to the SVG file `path`.
pub fn draw_loss(path: &Path, title: &str, curves: &[Curve<'_>]) -> Result<(), Box<dyn Error>> {
    let mut svg = String::new();
    draw(&mut svg, title, curves).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(atomic::write(path, |file| file.write_all(svg.as_bytes()))?)
}

fn draw(svg: &mut String, title: &str, curves: &[Curve<'_>]) -> Result<(), Box<dyn Error>> {
    let area = SVGBackend::with_string(svg, (900, 540)).into_drawing_area();
    area.fill(&WHITE)?;
    let steps = range(curves, |point| point.0);
    let losses = range(curves, |point| point.1);
    let margin = 0.05 * (losses.end - losses.start);
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..steps.end, losses.start - margin..losses.end + margin)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("loss, nats per token")
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|loss| format!("{loss:.2}"))
        .max_light_lines(0)
        .draw()?;
    for (curve, color) in curves.iter().zip([RGBColor(120, 160, 210), RGBColor(200, 70, 30)]) {
        let points: Vec<_> = thinned(curve.points).collect();
        if points.len() <= MAX_MARKS {
            chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, color.filled())))?;
        }
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))?
            .label(curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}

/// From the smallest to the largest finite value, and never empty.
fn range(curves: &[Curve<'_>], value: impl Fn(&(f64, f64)) -> f64) -> Range<f64> {
    let values = curves.iter().flat_map(|curve| curve.points).map(value).filter(|value| value.is_finite());
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    if low < high { low..high } else { low.min(0.0)..high.max(1.0) }
}

fn thinned(points: &[(f64, f64)]) -> impl Iterator<Item = (f64, f64)> {
    let group = points.len().div_ceil(MAX_POINTS).max(1);
    points.chunks(group).map(|chunk| {
        let (steps, losses) = chunk.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (steps / chunk.len() as f64, losses / chunk.len() as f64)
    })
}
