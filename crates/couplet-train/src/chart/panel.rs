//! One panel of a chart: axes, series and labels.

use plotters::coord::Shift;
use plotters::prelude::{
    ChartBuilder, Circle, DrawingArea, DrawingBackend, LineSeries, PathElement, Rectangle, SeriesLabelPosition,
};
use plotters::style::{Color, FontDesc, FontFamily, FontStyle, RGBColor, ShapeStyle};

use super::{BACKGROUND, Drawn, FAINT, GRID, INK};

/// The drawing style of a series.
pub enum SeriesStyle {
    /// A line.
    Line,
    /// A faint line that others are drawn over.
    Faint,
    /// A line with a mark at each point.
    Marked,
    /// Marks whose areas are proportional to the given numbers of rows, joined by a faint line.
    Sized(Vec<f64>),
    /// Bars from 0, of the given width.
    Bars(f64),
}

/// A named series of points.
pub struct Series {
    name: String,
    colour: RGBColor,
    style: SeriesStyle,
    points: Vec<(f64, f64)>,
}

impl Series {
    /// Returns a series of points `(x, y)`.
    #[must_use]
    pub fn new(name: &str, colour: RGBColor, style: SeriesStyle, points: Vec<(f64, f64)>) -> Self {
        let points = points.into_iter().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
        Self { name: name.to_owned(), colour, style, points }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.points.is_empty()
    }
}

/// Axes with some series.
pub struct Panel {
    title: String,
    x: String,
    y: String,
    series: Vec<Series>,
    starting_at_zero: bool,
    integer_x: bool,
    diagonal: bool,
    x_range: Option<(f64, f64)>,
    text_scale: f64,
}

impl Panel {
    /// Returns an empty panel with the names of its axes.
    #[must_use]
    pub fn new(title: &str, x: &str, y: &str) -> Self {
        Self {
            title: title.to_owned(),
            x: x.to_owned(),
            y: y.to_owned(),
            series: Vec::new(),
            starting_at_zero: false,
            integer_x: false,
            diagonal: false,
            x_range: None,
            text_scale: 1.0,
        }
    }

    /// Returns the title.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Sets the series.
    #[must_use]
    pub fn with(mut self, series: Vec<Series>) -> Self {
        self.series = series;
        self
    }

    /// Starts the vertical axis at 0.
    #[must_use]
    pub fn starting_at_zero(mut self) -> Self {
        self.starting_at_zero = true;
        self
    }

    /// Labels only integers on the horizontal axis.
    #[must_use]
    pub fn integer_x(mut self) -> Self {
        self.integer_x = true;
        self
    }

    /// Scales the font sizes, for a chart that is displayed at a small size.
    #[must_use]
    pub fn with_text_scale(mut self, scale: f64) -> Self {
        self.text_scale = scale;
        self
    }

    /// Sets the range of the horizontal axis, independently of the points.
    #[must_use]
    pub fn with_x_range(mut self, low: f64, high: f64) -> Self {
        self.x_range = Some((low, high));
        self
    }

    /// Sets both axes to the range from `low` to `high`, and draws the diagonal.
    #[must_use]
    pub fn square(mut self, low: f64, high: f64) -> Self {
        self.diagonal = true;
        self.x_range = Some((low, high));
        self
    }

    /// Sets both axes to shares up to 1, and draws the diagonal.
    #[must_use]
    pub fn diagonal(mut self) -> Self {
        self.diagonal = true;
        self
    }

    /// Returns the ranges of both axes: around all points, and never empty.
    fn ranges(&self) -> ((f64, f64), (f64, f64)) {
        let ends = |value: fn(&(f64, f64)) -> f64| {
            let values = self.series.iter().flat_map(|series| &series.points).map(value);
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
        };
        let (x, y) = (ends(|point| point.0), ends(|point| point.1));
        if let (true, Some(ends)) = (self.diagonal, self.x_range) {
            return (ends, ends);
        }
        if self.diagonal {
            return (((x.0 - 0.05).clamp(0.0, 0.9), 1.0), (0.0, 1.0));
        }
        let wide = |(low, high): (f64, f64), margin: f64| {
            if low > high {
                return (0.0, 1.0);
            }
            let space = match (high - low, high.abs()) {
                (0.0, 0.0) => 0.5,
                (0.0, size) => 0.1 * size,
                (length, _) => margin * length,
            };
            (low - space, high + space)
        };
        let (x, mut y) = (wide(x, if self.integer_x { 0.12 } else { 0.02 }), wide(y, 0.1));
        // The legend is at the upper right; this keeps points from being hidden behind it.
        let hidden = |(px, py): &(f64, f64)| *px > x.0 + 0.55 * (x.1 - x.0) && *py > y.0 + 0.65 * (y.1 - y.0);
        if self.series.len() > 1 && self.series.iter().flat_map(|series| &series.points).any(hidden) {
            y.1 += 0.4 * (y.1 - y.0);
        }
        let x = self.x_range.unwrap_or(x);
        (x, if self.starting_at_zero { (0.0, y.1.max(f64::MIN_POSITIVE)) } else { y })
    }

    pub(crate) fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Drawn<B::ErrorType> {
        let ((left, right), (bottom, top)) = self.ranges();
        let font = |size: u32, style: FontStyle| {
            FontDesc::new(FontFamily::SansSerif, self.text_scale * f64::from(size), style)
        };
        let area_size = |size: f64| (self.text_scale * size) as u32;
        let text = |size: u32, colour: &RGBColor| font(size, FontStyle::Normal).color(colour);
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, font(16, FontStyle::Bold).color(&INK))
            .margin(14)
            .margin_right(24)
            .x_label_area_size(area_size(44.0))
            .y_label_area_size(area_size(66.0))
            .build_cartesian_2d(left..right, bottom..top)?;
        let integer_x = self.integer_x;
        let x_label = move |x: &f64| if integer_x && x.fract().abs() > 1e-9 { String::new() } else { number(*x) };
        chart
            .configure_mesh()
            .x_labels((8.0 / self.text_scale) as usize)
            .y_labels(6)
            .bold_line_style(GRID)
            .light_line_style(BACKGROUND)
            .axis_style(FAINT)
            .label_style(text(12, &FAINT))
            .axis_desc_style(text(13, &INK))
            .x_label_formatter(&x_label)
            .y_label_formatter(&|y| number(*y))
            .x_desc(&self.x)
            .y_desc(&self.y)
            .draw()?;
        if self.diagonal {
            let ends = [(left, left), (right, right)];
            chart.draw_series(LineSeries::new(ends, FAINT.mix(0.6).stroke_width(1)))?;
        }
        for series in &self.series {
            let colour = series.colour;
            let points = || series.points.iter().copied();
            let line = |opacity: f64, width: u32| -> ShapeStyle { colour.mix(opacity).stroke_width(width) };
            let style = match series.style {
                SeriesStyle::Line | SeriesStyle::Marked => line(1.0, 2),
                SeriesStyle::Faint => line(0.3, 1),
                SeriesStyle::Sized(_) => line(0.4, 1),
                SeriesStyle::Bars(width) => {
                    let bar = |(x, y): (f64, f64)| {
                        // A gap of a tenth separates the bars.
                        let half = 0.45 * width;
                        Rectangle::new([(x - half, 0.0), (x + half, y)], colour.mix(0.8).filled())
                    };
                    chart.draw_series(points().map(bar))?;
                    continue;
                }
            };
            let drawn = chart.draw_series(LineSeries::new(points(), style))?;
            if !series.points.is_empty() && self.series.len() > 1 || self.diagonal {
                let key = if matches!(series.style, SeriesStyle::Faint) { line(0.3, 2) } else { line(1.0, 2) };
                drawn.label(&series.name).legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], key));
            }
            match &series.style {
                SeriesStyle::Line | SeriesStyle::Faint | SeriesStyle::Bars(_) => {}
                SeriesStyle::Marked => {
                    chart.draw_series(points().map(|point| Circle::new(point, 4, colour.filled())))?;
                }
                SeriesStyle::Sized(counts) => {
                    let all: f64 = counts.iter().sum();
                    let radius = |rows: f64| (3.0 + 13.0 * (rows / all.max(1.0)).sqrt()) as i32;
                    let marks = points()
                        .zip(counts)
                        .map(|(point, rows)| Circle::new(point, radius(*rows), colour.mix(0.55).filled()));
                    chart.draw_series(marks)?;
                }
            }
        }
        if self.series.len() > 1 || self.diagonal {
            let place = if self.diagonal { SeriesLabelPosition::UpperLeft } else { SeriesLabelPosition::UpperRight };
            chart
                .configure_series_labels()
                .position(place)
                .margin(8)
                .background_style(BACKGROUND.mix(0.85))
                .border_style(GRID)
                .label_font(text(12, &INK))
                .draw()?;
        }
        Ok(())
    }
}

/// Formats a number as briefly as possible: `0.85`, `1,200`, `3e-5`.
fn number(x: f64) -> String {
    let size = x.abs();
    if size < 1e-12 {
        return "0".into();
    }
    if size < 5e-4 {
        let text = format!("{x:.1e}");
        return text.replace(".0e", "e");
    }
    if size >= 1000.0 {
        let sign = if x < 0.0 { "-" } else { "" };
        return format!("{sign}{}", couplet_storage::words::grouped(size.round() as u64));
    }
    let text = if size < 0.1 { format!("{x:.4}") } else { format!("{x:.3}") };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_never_empty_and_fit_their_values() {
        let panel = |points: Vec<(f64, f64)>| {
            let series = Series::new("a", RGBColor(0, 0, 0), SeriesStyle::Line, points);
            Panel::new("", "", "").with(vec![series]).starting_at_zero().ranges()
        };
        let (x, y) = panel(vec![(1.0, 3e-5), (206.0, 3e-5), (207.0, f64::NAN)]);
        assert!(x.0 < 1.0 && x.1 > 206.0 && y.0 == 0.0 && y.1 > 3e-5 && y.1 < 4e-5, "{x:?} {y:?}");
        for points in [vec![], vec![(0.0, 0.0)], vec![(1.0, 0.7)]] {
            let (x, y) = panel(points);
            assert!(x.0 < x.1 && y.0 < y.1, "{x:?} {y:?}");
        }
    }

    #[test]
    fn numbers_on_axes_are_short() {
        let shown = [0.0, 0.85, 1.0, -0.25, 0.0015, 3e-5, 2.5e-5, 1200.0, 100.0].map(number);
        assert_eq!(shown, ["0", "0.85", "1", "-0.25", "0.0015", "3e-5", "2.5e-5", "1,200", "100"]);
    }
}
