//! The text summary of an evaluation.

use couplet_storage::words::{counted, grouped};
use couplet_train::statistics::evaluation::Evaluation;

/// The number of metrics per line of the summary.
const METRICS_IN_LINE: usize = 3;
/// The maximum number of labels for which the summary shows the confusion matrix.
const MAX_LABELS: usize = 8;
/// The maximum number of slices per column in the summary.
const MAX_SLICES: usize = 12;

/// Names the label, of two, that precision, recall, F1 and average precision refer to, as a suffix to the number of
/// rows.
#[must_use]
pub fn positive_of(evaluation: &Evaluation, labels: &[String]) -> String {
    evaluation.positive(labels).map_or_else(String::new, |label| format!("; positive is {label:?}"))
}

/// Returns the summary lines of an evaluation: metrics with their intervals, the confusion matrix, and the slices.
#[must_use]
pub fn evaluation_lines(evaluation: &Evaluation, labels: &[String]) -> Vec<String> {
    let level = evaluation.level.map_or_else(String::new, |level| format!("; intervals of {} %", 100.0 * level));
    let positive = positive_of(evaluation, labels);
    let mut lines = vec![format!("{}{level}{positive}", counted(evaluation.rows as u64, "row"))];
    let metrics = evaluation.metrics.iter().map(|(metric, value)| {
        let Some(value) = value else { return format!("{metric} not defined") };
        let interval = evaluation.intervals.iter().find(|(other, _)| *other == metric).and_then(|(_, ends)| *ends);
        let interval = interval.map_or_else(String::new, |ends| format!(" [{:.4}, {:.4}]", ends.low, ends.high));
        format!("{metric} {value:.4}{interval}")
    });
    lines.extend(metrics.collect::<Vec<_>>().chunks(METRICS_IN_LINE).map(|metrics| metrics.join(" · ")));
    if let Some(confusion) = evaluation.confusion.as_ref().filter(|_| labels.len() <= MAX_LABELS) {
        let width = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0).max(9);
        let row = |head: &str, cells: Vec<String>| {
            let cells = cells.iter().map(|cell| format!("  {cell:>width$}")).collect::<Vec<_>>().concat();
            format!("{head:<width$}{cells}")
        };
        lines.push(row("gold \\ as", labels.to_vec()));
        for (label, counts) in labels.iter().zip(confusion.matrix()) {
            lines.push(row(label, counts.into_iter().map(grouped).collect()));
        }
    }
    for (column, slices) in &evaluation.slices {
        for slice in slices.iter().take(MAX_SLICES) {
            let metrics = slice.metrics.iter().take(METRICS_IN_LINE);
            let metrics = metrics.map(|(metric, value)| match value {
                Some(value) => format!("{metric} {value:.4}"),
                None => format!("{metric} not defined"),
            });
            let metrics = metrics.collect::<Vec<_>>().join(" · ");
            let value = slice.key.as_deref().unwrap_or("NULL");
            lines.push(format!("{column} = {value}: {}, {metrics}", counted(slice.rows as u64, "row")));
        }
        if slices.len() > MAX_SLICES {
            lines.push(format!("{column}: {} more values are in evaluation.json", slices.len() - MAX_SLICES));
        }
    }
    lines
}
