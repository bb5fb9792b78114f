//! Renders the comparison of predictions with gold labels.

use couplet_storage::words::grouped;
use couplet_train::statistics::metrics::LabelScores;
use maud::{Markup, html as markup};

use super::{MAX_LABELS, MAX_LISTED, figures, percent, tile};
use crate::frequent::most_frequent;
use crate::page::charts;
use crate::page::judged::Judged;

/// Renders the section of the comparison.
pub(super) fn agreement(judged: &Judged) -> Markup {
    let number = |value: &Option<f64>| value.map(|value| format!("{value:.4}"));
    markup! {
        section {
            h2 { "Compared with the labels" }
            @match judged {
                Judged::Labels { rows, labels, confusion, accuracy, f1_macro, matthews, calibration_error, by_label, unscored, unknown, .. } => {
                    dl.tiles {
                        (tile("rows", Some(grouped(*rows)), (*unscored > 0).then(|| format!("{} more without a score", grouped(*unscored)))))
                        (tile("accuracy", accuracy.map(percent), None))
                        (tile("F1, macro-averaged", number(f1_macro), None))
                        (tile("Matthews", number(matthews), None))
                        (tile("calibration error", number(calibration_error), None))
                    }
                    div.charts {
                        (figures(charts::agreement(judged)))
                        @if labels.len() <= MAX_LABELS { div { (matrix(labels, confusion)) } }
                    }
                    (label_scores(by_label))
                    @if !unknown.is_empty() {
                        p { "Left out, because the model does not have the label: "
                            @for (i, (label, n)) in unknown.iter().enumerate() {
                                @if i > 0 { ", " } bdi { (label) } " (" (grouped(*n)) ")"
                            } "."
                        }
                    }
                }
                Judged::Values { rows, mae, rmse, bias, pearson, .. } => {
                    dl.tiles {
                        (tile("rows", Some(grouped(*rows)), None))
                        (tile("mean absolute error", number(mae), None))
                        (tile("root mean squared error", number(rmse), None))
                        (tile("bias", number(bias), Some("value minus label".into())))
                        (tile("Pearson's correlation", number(pearson), None))
                    }
                    div.charts { (figures(charts::agreement(judged))) }
                }
                Judged::Sets { rows, f1_micro, f1_macro, by_label, left_out } => {
                    @let which = (*left_out > 0).then(|| format!("of the {} most frequent", by_label.len()));
                    dl.tiles {
                        (tile("rows", Some(grouped(*rows)), None))
                        (tile("F1, micro-averaged", number(f1_micro), which.clone()))
                        (tile("F1, macro-averaged", number(f1_macro), which))
                    }
                    (label_scores(by_label))
                    @if *left_out > 0 {
                        p.faint { (grouped(*left_out as u64)) " less frequent labels were left out of the comparison." }
                    }
                }
            }
        }
    }
}

/// Renders the confusion matrix; darker cells hold a larger share of the rows of a label.
pub(super) fn matrix(labels: &[String], confusion: &[Vec<u64>]) -> Markup {
    markup! {
        h3 { "Confusion" }
        div.scroll {
            table {
                tr { th { "label ╲ predicted" } @for label in labels { th.n dir="auto" { (label) } } }
                @for (gold, row) in confusion.iter().enumerate() {
                    @let all = row.iter().sum::<u64>().max(1) as f64;
                    tr {
                        th dir="auto" { (labels[gold]) }
                        @for (predicted, n) in row.iter().enumerate() {
                            @let share = *n as f64 / all;
                            td class=(if gold == predicted { "cell right" } else { "cell" }) style=(format!("--share: {share:.3}")) {
                                (grouped(*n)) br; span.faint { (percent(share)) }
                            }
                        }
                    }
                }
            }
        }
        p.faint { "Percentages are of the rows with the label on the left." }
    }
}

fn label_scores(labels: &[LabelScores]) -> Markup {
    markup! {
        div.scroll {
            table {
                tr { th { "label" } th.n { "rows" } th.n { "predicted" } th.n { "precision" } th.n { "recall" } th.n { "F1" } }
                @for label in most_frequent(labels, MAX_LISTED, |label| label.scores.support).into_iter().map(|i| &labels[i]) {
                    @let scores = &label.scores;
                    tr {
                        td.short dir="auto" { (label.label) }
                        td.n { (grouped(scores.support)) }
                        td.n { (grouped(scores.predicted)) }
                        @for value in [scores.precision, scores.recall, scores.f1] { td.n { (format!("{value:.4}")) } }
                    }
                }
            }
        }
        @if labels.len() > MAX_LISTED { p.faint { (labels.len() - MAX_LISTED) " less frequent labels are in the JSON report." } }
    }
}
