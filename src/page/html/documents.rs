//! Renders the documents of training and evaluation.

use couplet_encoder::model::Calibration;
use couplet_storage::words::grouped;
use couplet_train::training_chart::headline;
use maud::{Markup, html as markup};
use serde_json::Value;

use super::agreement::matrix;
use super::{MAX_LABELS, MAX_LISTED, figures, short_number};
use crate::page::{Document, Refused, charts};

/// Renders a training document.
pub(super) fn trained(training: &Document) -> Markup {
    markup! { section { (training_parts(training, None)) } }
}

/// Renders the training document of a model that failed `promote_if`.
pub(super) fn refused(refused: &Refused) -> Markup {
    markup! { section { (training_parts(&refused.training, Some(&refused.verdict))) } }
}

fn training_parts(training: &Document, verdict: Option<&str>) -> Markup {
    let json = &training.document;
    let (title, subtitle) = headline(json);
    markup! {
        h2 { @if verdict.is_some() { "Not promoted: " } (title) }
        @if let Some(verdict) = verdict {
            p.message { "This model was not promoted, as " (verdict) ". The existing model, if any, was kept." }
        }
        p { (subtitle) }
        @if let Some(calibration) = calibration(&json["calibration"]) { p { "Calibrated: " (calibration) "." } }
        p.faint { "From " code { (training.path) } ", as it is now." }
        div.charts { @for chart in charts::training(json) { (figures(Some(chart))) } }
        (training_metrics(&json["evaluation"], &json["calibrated"]["metrics"]))
    }
}

/// Renders the metrics of a model before and after calibration; labels are assigned with calibration.
fn training_metrics(raw: &Value, calibrated: &Value) -> Markup {
    let Some(metrics) = raw["metrics"].as_object() else { return markup! {} };
    markup! {
        details {
            summary { "All metrics on the held-out rows" }
            table {
                @if calibrated.is_object() { tr { th { "metric" } th.n { "before calibration" } th.n { "calibrated" } } }
                @for (name, value) in metrics {
                    tr {
                        td { (name) }
                        td.n { (short_number(value)) }
                        @if calibrated.is_object() { td.n { (short_number(&calibrated[name])) } }
                    }
                }
            }
            (positive(raw))
        }
    }
}

/// Names the label, of two, that precision and recall refer to.
fn positive(evaluation: &Value) -> Markup {
    markup! {
        @if let Some(label) = evaluation["positive"].as_str() {
            p.faint { "Precision, recall, F1 and average precision are for the label " bdi { (label) } "." }
        }
    }
}

/// Parses the calibration of a training document.
fn calibration(fitted: &Value) -> Option<Calibration> {
    let threshold = &fitted["threshold"];
    Some(Calibration {
        temperature: fitted["temperature"].as_f64()?,
        threshold: threshold["value"].as_f64(),
        objective: threshold["objective"].as_str().map(str::to_owned),
        fitted_on: fitted["fitted_on"].as_u64(),
        bound: fitted["temperature_bound"].as_str().map(str::to_owned),
    })
}

/// Renders an evaluation document.
pub(super) fn evaluated(evaluation: &Document) -> Markup {
    let json = &evaluation.document;
    let metrics = json["metrics"].as_object();
    let labels: Vec<String> = serde_json::from_value(json["labels"].clone()).unwrap_or_default();
    let confusion: Vec<Vec<u64>> =
        serde_json::from_value(json["confusion"]["gold_by_predicted"].clone()).unwrap_or_default();
    let is_matrix = !confusion.is_empty() && confusion.len() == labels.len() && labels.len() <= MAX_LABELS;
    let level = json["level"].as_f64().map(|level| format!("{} % interval", 100.0 * level));
    markup! {
        section {
            h2 { "Evaluation on " (json["rows"].as_u64().map_or_else(String::new, grouped)) " rows" }
            p.faint { "From " code { (evaluation.path) } ", as it is now." }
            @if let Some(metrics) = metrics {
                div.scroll {
                    table {
                        tr { th { "metric" } th.n { "value" } @if let Some(level) = &level { th.n { (level) } } }
                        @for (name, value) in metrics {
                            @let ends = &json["intervals"][name];
                            tr {
                                td { (name) } td.n { (short_number(value)) }
                                @if level.is_some() {
                                    td.n { @if ends.is_array() { (short_number(&ends[0])) " – " (short_number(&ends[1])) } }
                                }
                            }
                        }
                    }
                }
            }
            (positive(json))
            @if is_matrix { (matrix(&labels, &confusion)) }
            @if let Some(columns) = json["slices"].as_object() {
                @for (column, slices) in columns {
                    h3 { "By " (column) }
                    (slice_table(slices))
                }
            }
        }
    }
}

/// Renders the first six metrics of each slice of a column.
fn slice_table(slices: &Value) -> Markup {
    let slices = slices.as_array().map(Vec::as_slice).unwrap_or_default();
    let metrics: Vec<&String> = slices
        .first()
        .and_then(|slice| slice["metrics"].as_object())
        .map(|metrics| metrics.keys().take(6).collect())
        .unwrap_or_default();
    markup! {
        div.scroll {
            table {
                tr { th { "value" } th.n { "rows" } @for metric in &metrics { th.n { (metric) } } }
                @for slice in slices.iter().take(MAX_LISTED) {
                    tr {
                        td.short dir="auto" { (slice["value"].as_str().unwrap_or("NULL")) }
                        td.n { (slice["rows"].as_u64().map_or_else(String::new, grouped)) }
                        @for metric in &metrics { td.n { (short_number(&slice["metrics"][metric])) } }
                    }
                }
            }
        }
    }
}
