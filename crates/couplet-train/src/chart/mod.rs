//! SVG charts, for the training chart and for the page of a run.

mod panel;

use plotters::prelude::{DrawingAreaErrorKind, IntoDrawingArea, SVGBackend};
use plotters::style::RGBColor;

pub use panel::{Panel, Series, SeriesStyle};

pub(crate) const INK: RGBColor = RGBColor(36, 41, 47);
pub(crate) const FAINT: RGBColor = RGBColor(110, 119, 129);
pub(crate) const GRID: RGBColor = RGBColor(230, 233, 237);
pub(crate) const BACKGROUND: RGBColor = RGBColor(255, 255, 255);

// Colours that are distinguishable for colour-blind readers. Source: Okabe and Ito 2008, "Color universal design".
/// The colour of the first series.
pub const BLUE: RGBColor = RGBColor(0, 114, 178);
/// The colour of the second series.
pub const ORANGE: RGBColor = RGBColor(213, 94, 0);
/// The colour of the third series.
pub const GREEN: RGBColor = RGBColor(0, 158, 115);
pub(crate) const COLOURS: [RGBColor; 4] = [BLUE, ORANGE, GREEN, RGBColor(204, 121, 167)];

pub(crate) type Drawn<E> = Result<(), DrawingAreaErrorKind<E>>;

/// Draws a single panel as an SVG image. Logs a warning and returns none if that fails.
#[must_use]
pub fn to_svg(panel: &Panel, size: (u32, u32)) -> Option<String> {
    let mut svg = String::new();
    let drawn = {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        panel.draw(&root).and_then(|()| root.present()).map_err(|e| e.to_string())
    };
    drawn.inspect_err(|e| tracing::warn!("a chart cannot be drawn: {e}")).ok()?;
    Some(svg)
}
