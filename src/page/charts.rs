//! The charts of a report page, as SVG. The style sheet of the page overrides their colours with those of its theme.

use couplet_storage::words::grouped;
use couplet_tables::histogram::Histogram;
use couplet_train::chart::{BLUE, GREEN, ORANGE, Panel, Series, SeriesStyle, to_svg};
use couplet_train::training_chart::panels;
use serde_json::Value;

use super::{Judged, Page};

/// The size of a chart, in pixels: not much wider than a phone, so that text stays readable there.
const SIZE: (u32, u32) = (440, 310);
/// The scale of the text, relative to a full-screen chart.
const TEXT_SCALE: f64 = 1.3;
/// The maximum number of bars of a histogram.
const MAX_BARS: usize = 48;

/// A chart with its caption.
pub(super) struct Chart {
    pub(super) svg: String,
    pub(super) caption: String,
}

fn chart(panel: Panel, caption: impl Into<String>) -> Option<Chart> {
    Some(Chart { svg: to_svg(&panel.with_text_scale(TEXT_SCALE), SIZE)?, caption: caption.into() })
}

/// Draws the distribution of the scores, with that of the previous run.
pub(super) fn scores(page: &Page) -> Option<Chart> {
    let run = page.run.as_ref()?;
    let scores = run.scores.as_ref().filter(|scores| scores.total() > 0)?.coarser(MAX_BARS);
    let mut series = vec![Series::new("this run", BLUE, SeriesStyle::Bars(scores.width), percent(&scores))];
    let end = |histogram: &Histogram| histogram.from + histogram.counts.len() as f64 * histogram.width;
    let mut ends = (scores.from, end(&scores));
    let before =
        page.runs.iter().skip(1).find_map(|other| other.scores.as_ref().filter(|_| other.outcome == Some("done")));
    let mut caption = format!("Distribution of the scores of {} rows", grouped(scores.total()));
    if let Some(before) = before.map(|before| before.coarser(MAX_BARS)).filter(|before| before.total() > 0) {
        // Shares are proportional to the bin width, so they are scaled to the bins of this run.
        let scale = scores.width / before.width;
        let points = percent(&before).into_iter().map(|(x, y)| (x, y * scale)).collect();
        series.push(Series::new("previous run", ORANGE, SeriesStyle::Line, points));
        caption.push_str("; the line is the previous run");
        ends = (ends.0.min(before.from), ends.1.max(end(&before)));
    }
    let is_value = run.task.as_deref() == Some("regression");
    let (low, high) = if is_value { ends } else { (ends.0.min(0.5), 1.0) };
    let panel =
        Panel::new("Scores", if is_value { "value" } else { "probability of the predicted label" }, "% of rows");
    chart(panel.with(series).starting_at_zero().with_x_range(low, high), caption)
}

fn percent(histogram: &Histogram) -> Vec<(f64, f64)> {
    histogram.shares().into_iter().map(|(x, share)| (x, 100.0 * share)).collect()
}

/// Draws the reliability diagram of a classification, or values against labels of a regression.
pub(super) fn agreement(judged: &Judged) -> Option<Chart> {
    match judged {
        Judged::Labels { reliability, calibration_error, .. } => {
            let points = reliability.iter().filter_map(|bin| Some((bin.confidence?, bin.accuracy?))).collect();
            let rows = reliability.iter().map(|bin| bin.count as f64).collect();
            let name = format!("off by {:.3} on average", calibration_error.unwrap_or_default());
            let series = vec![Series::new(&name, BLUE, SeriesStyle::Sized(rows), points)];
            let panel = Panel::new("Reliability", "confidence", "share of correct rows").with(series).diagonal();
            chart(panel, "Accuracy by confidence; on the diagonal, the confidence is exact")
        }
        Judged::Values { ranges, .. } => {
            let points: Vec<(f64, f64)> = ranges.iter().map(|range| (range.mean_label, range.mean_score)).collect();
            let rows = ranges.iter().map(|range| range.rows as f64).collect();
            let all = || points.iter().flat_map(|(x, y)| [*x, *y]);
            let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
            let space = 0.05 * (high - low).max(1e-6);
            let series =
                vec![Series::new("mean of a tenth of the scale", BLUE, SeriesStyle::Sized(rows), points.clone())];
            let panel =
                Panel::new("Values against labels", "label", "value").with(series).square(low - space, high + space);
            chart(panel, "The mean value of rows by their label; on the line, both are the same")
        }
        Judged::Sets { .. } => None,
    }
}

/// Draws speed, avoided padding and drift over the runs of the page.
pub(super) fn over_runs(page: &Page) -> Vec<Chart> {
    let runs: Vec<_> = page.runs.iter().rev().filter(|run| run.outcome == Some("done")).collect();
    if runs.len() < 2 {
        return Vec::new();
    }
    let last = runs.len() as f64;
    let points = |value: &dyn Fn(&super::Earlier) -> Option<f64>| -> Vec<(f64, f64)> {
        let values = runs.iter().enumerate().map(|(i, run)| ((i + 1) as f64 - last, value(run)));
        values.filter_map(|(x, y)| Some((x, y?))).collect()
    };
    let axis = "runs; this one is 0";
    let one = |title: &str, unit: &str, colour, values: Vec<(f64, f64)>, caption: &str| {
        if values.is_empty() {
            return None;
        }
        let series = vec![Series::new(title, colour, SeriesStyle::Marked, values)];
        chart(Panel::new(title, axis, unit).with(series).starting_at_zero().integer_x(), caption)
    };
    let speed = points(&|run| run.speed.rows_per_second);
    let padding = points(&|run| run.speed.padding_share.map(|share| 100.0 * share));
    let psi = points(&|run| run.drift.map(|drift| drift.psi));
    let charts = [
        one("Speed", "texts scored per second", BLUE, speed, "Texts scored per second, in each run that scored any"),
        one("Padding avoided", "% of padded batches", GREEN, padding, "The share of padded batches that was not run"),
        one(
            "Drift of the scores",
            "PSI against the previous run",
            ORANGE,
            psi,
            "Drift of the scores of each run from those of the previous run",
        ),
    ];
    charts.into_iter().flatten().collect()
}

/// Draws the training curves.
pub(super) fn training(json: &Value) -> Vec<Chart> {
    let titled = panels(json).into_iter().map(|panel| (panel.title().to_owned(), panel));
    titled.filter_map(|(title, panel)| chart(panel, title)).collect()
}
