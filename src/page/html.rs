//! Renders the report as one self-contained HTML document. maud escapes all text; only the style sheet and the charts,
//! whose text plotters escapes, are inserted as they are.

mod agreement;
mod documents;

use std::time::Duration;

use couplet_encoder::model::Problem;
use couplet_storage::words::{format_duration, grouped, size};
use couplet_tables::store::{Outcome, RunRecord};
use maud::{DOCTYPE, Markup, PreEscaped, html as markup};
use serde_json::Value;

use super::charts::{self, Chart};
use super::{Page, Rows, time};
use crate::frequent::most_frequent;
use agreement::agreement;
use documents::{evaluated, refused, trained};

const STYLE: &str = include_str!("style.css");
/// The content security policy: no scripts and no network access, whatever a text contains.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
/// The maximum number of labels for which the confusion matrix is shown.
const MAX_LABELS: usize = 20;
/// The maximum number of files, labels or runs in a list.
const MAX_LISTED: usize = 30;

/// Renders the page as HTML.
#[must_use]
pub fn html(page: &Page) -> String {
    let document = markup! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="generator" content=(format!("couplet {}", page.couplet));
                title { (page.pipeline) " – couplet" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    header { (head(page)) }
                    @if let Some(run) = &page.run { (rows(run)) }
                    (scores(page))
                    @if let Some(judged) = &page.judged { (agreement(judged)) }
                    (samples(&page.samples))
                    (drift(page))
                    (speed(page))
                    @for training in &page.trainings { (trained(training)) }
                    @if let Some(model) = &page.refused { (refused(model)) }
                    @if let Some(evaluation) = &page.evaluation { (evaluated(evaluation)) }
                    @if let Some(run) = &page.run { (facts(run)) }
                    @if !page.notes.is_empty() {
                        section { h2 { "Not shown" } ul { @for note in &page.notes { li { (note) } } } }
                    }
                }
            }
        }
    };
    document.into_string()
}

fn head(page: &Page) -> Markup {
    markup! {
        h1 {
            (page.pipeline) " "
            @if let Some(run) = &page.run {
                @let outcome = run.outcome.map_or("unknown", Outcome::as_str);
                span class=(format!("outcome {outcome}")) { (outcome) }
            }
        }
        @if let Some(run) = &page.run {
            p.faint {
                @if let Some(started) = run.started_at { (display_time(&time(started))) }
                @if let Some(seconds) = run.seconds { " · " (duration(seconds)) }
                " · run " span.id { (run.run) }
            }
            @if let Some(message) = &run.message { p.message { (message) } }
            dl.tiles {
                (tile("rows read", run.rows_read.map(grouped), None))
                (tile("scored", run.rows_scored.map(grouped), run.tokens.filter(|n| *n > 0).map(|n| format!("{} tokens", grouped(n)))))
                @if run.rows_remembered.unwrap_or(0) + run.rows_repeated.unwrap_or(0) > 0 {
                    (tile("cached", run.rows_remembered.map(grouped),
                        run.rows_repeated.filter(|n| *n > 0).map(|n| format!("{} repeated", grouped(n)))))
                }
                (tile("rejected", run.rows_rejected.map(grouped), None))
                (tile("speed", run.speed.rows_per_second.map(|n| format!("{n:.0} /s")),
                    run.speed.tokens_per_second.map(|n| format!("{} tokens/s", grouped(n as u64)))))
                (tile("padding avoided", run.speed.padding_share.map(percent), Some("of batches of 32".into())))
            }
        }
        p.faint { "Made by couplet " (page.couplet) " on " (display_time(&page.made_at)) "." }
    }
}

fn tile(name: &str, value: Option<String>, note: Option<String>) -> Markup {
    markup! {
        @if let Some(value) = value {
            div { dt { (name) } dd { (value) @if let Some(note) = note { small { (note) } } } }
        }
    }
}

fn rows(run: &RunRecord) -> Markup {
    markup! {
        @if !run.rejected.is_empty() || run.rows_truncated.unwrap_or(0) > 0 {
            section {
                h2 { "Rejected and truncated" }
                table {
                    @for (kind, n) in &run.rejected { tr { td { (kind) } td.n { (grouped(*n)) } } }
                    @if let Some(n) = run.rows_truncated.filter(|n| *n > 0) {
                        tr {
                            td { "truncated to " (run.max_length.map_or(String::new(), |n| n.to_string())) " tokens, and scored" }
                            td.n { (grouped(n)) }
                        }
                    }
                }
            }
        }
    }
}

fn scores(page: &Page) -> Markup {
    let Some(run) = &page.run else { return markup! {} };
    let labels = run.labels.as_deref().unwrap_or_default();
    let any_number = run.task == Some(Problem::MultiLabel.to_string());
    let all: u64 = match (any_number, run.rows_read) {
        (true, Some(read)) => read - run.rows_rejected.unwrap_or_default().min(read),
        _ => labels.iter().map(|(_, n)| n).sum(),
    };
    let share = |n: u64| if all == 0 { 0.0 } else { n as f64 / all as f64 };
    let chart = charts::scores(page);
    markup! {
        @if chart.is_some() || all > 0 {
            section {
                h2 { "Scores" }
                div.charts {
                    (figures(chart))
                    @if all > 0 {
                        div {
                            div.scroll {
                                table {
                                    tr { th { "label" } th.n { "rows" } th.n { "share" } th {} }
                                    @for (label, n) in most_frequent(labels, MAX_LISTED, |(_, n)| *n).into_iter().map(|i| &labels[i]) {
                                        tr {
                                            td.label dir="auto" { (label) }
                                            td.n { (grouped(*n)) }
                                            td.n { (percent(share(*n))) }
                                            td { span.bar style=(format!("width: {:.1}em", 8.0 * share(*n))) {} }
                                        }
                                    }
                                }
                            }
                            @if labels.len() > MAX_LISTED {
                                p.faint { (labels.len() - MAX_LISTED) " less frequent labels are in the JSON report." }
                            }
                            @if any_number {
                                p.faint { "A row has every label with a probability of at least " (Problem::HAS_LABEL) ": several, or none." }
                            }
                            @if let Some(mean) = run.scores.as_ref().and_then(|scores| scores.mean) {
                                p { "Mean score " (format!("{mean:.4}")) "." }
                            }
                        }
                    } @else if let Some(mean) = run.scores.as_ref().and_then(|scores| scores.mean) {
                        p { "Mean value " (format!("{mean:.4}")) "." }
                    }
                }
            }
        }
    }
}

fn samples(samples: &[Rows]) -> Markup {
    let is_number = |text: &Option<String>| text.as_ref().is_none_or(|text| text.parse::<f64>().is_ok());
    let is_long = |text: &Option<String>| text.as_ref().is_some_and(|text| text.chars().count() > 24);
    let class = |sample: &Rows, column: usize| {
        let mut values = sample.rows.iter().map(|row| &row[column]);
        if values.clone().all(is_number) {
            "n"
        } else if values.any(is_long) {
            "text"
        } else {
            "short"
        }
    };
    markup! {
        @if !samples.is_empty() {
            section {
                h2 { "Sample rows" }
                @for sample in samples {
                    @let classes: Vec<_> = (0..sample.columns.len()).map(|column| class(sample, column)).collect();
                    h3 { (sample.title) }
                    div.scroll {
                        table {
                            tr { @for (column, class) in sample.columns.iter().zip(&classes) { th class=(class) { (column) } } }
                            @for row in &sample.rows {
                                tr {
                                    @for (value, class) in row.iter().zip(&classes) {
                                        td class=(class) dir="auto" {
                                            @match value { Some(value) => (value), None => span.faint { "NULL" } }
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn drift(page: &Page) -> Markup {
    let Some(about) = &page.run else { return markup! {} };
    let charts = charts::over_runs(page);
    let number = |value: Option<f64>| value.map(|value| format!("{value:.4}"));
    let short = |model: &Option<String>| model.as_ref().map(|model| model.chars().take(8).collect::<String>());
    markup! {
        section {
            h2 { "Runs" }
            @if !charts.is_empty() { div.charts { @for chart in charts { (figures(Some(chart))) } } }
            div.scroll {
                table {
                    tr {
                        th { "started" } th { "outcome" } th.n { "took" } th.n { "read" } th.n { "scored" } th.n { "cached" }
                        th.n { "rejected" } th.n { "rows/s" } th.n { "mean score" } th.n { "PSI" } th.n { "KS" }
                        th.n { "PSI of labels" } th { "model" }
                    }
                    @for run in page.runs.iter().take(MAX_LISTED) {
                        tr.about[run.run == about.run] {
                            td.time { (run.started_at.as_deref().map_or_else(String::new, display_time)) }
                            td { (run.outcome.unwrap_or_default()) }
                            td.n { (run.seconds.map_or_else(String::new, duration)) }
                            @for n in [run.rows_read, run.rows_scored, run.rows_remembered, run.rows_rejected] {
                                td.n { (n.map_or_else(String::new, grouped)) }
                            }
                            td.n { (run.speed.rows_per_second.map_or_else(String::new, |n| format!("{n:.0}"))) }
                            td.n { (number(run.score_mean).unwrap_or_default()) }
                            td.n { (number(run.drift_to_run.map(|drift| drift.psi)).unwrap_or_default()) }
                            td.n { (number(run.drift_to_run.map(|drift| drift.ks)).unwrap_or_default()) }
                            td.n { (number(run.label_psi_to_run).unwrap_or_default()) }
                            td.id { (short(&run.model).unwrap_or_default()) }
                        }
                    }
                }
            }
            @if page.runs.len() > 1 {
                p.faint {
                    "PSI and KS measure the drift of the scores of the run in bold from those of the run in each row. \
                     A PSI of 0.1 counts as a small shift, 0.25 as a large one. KS is the largest difference between \
                     the cumulative distributions. Runs of different models also differ by their model."
                }
            }
        }
    }
}

fn speed(page: &Page) -> Markup {
    let Some(run) = &page.run else { return markup! {} };
    let number = |value: &Value| value.as_u64().map_or_else(String::new, grouped);
    let stages = run.stages.seconds();
    let slowest = run.windows.as_ref().and_then(|windows| windows["slowest"].as_array());
    markup! {
        @if !stages.is_empty() {
            section {
                h2 { "Time by stage" }
                table {
                    @let all = run.seconds.unwrap_or(0.0).max(f64::MIN_POSITIVE);
                    @for (stage, seconds) in &stages {
                        tr {
                            td { (stage) } td.n { (duration(*seconds)) }
                            td { span.bar style=(format!("width: {:.1}em", (16.0 * seconds / all).min(16.0))) {} }
                        }
                    }
                }
                @if let (Some(windows), Some(slowest)) = (&run.windows, slowest) {
                    h3 { "Slowest windows" }
                    p.faint {
                        @if windows["count"] == 1 {
                            "All texts were in one window."
                        } @else {
                            (number(&windows["count"])) " windows of texts were scored, two at a time; the median window took "
                            (duration(windows["median_seconds"].as_f64().unwrap_or(0.0))) "."
                        }
                    }
                    div.scroll {
                        table {
                            tr { th { "texts" } th.n { "tokens" } th.n { "longest" } th.n { "took" } th.n { "tokens/s" } }
                            @for window in slowest {
                                @let first = window["first_text"].as_u64().unwrap_or(0);
                                @let texts = window["texts"].as_u64().unwrap_or(0);
                                @let seconds = window["seconds"].as_f64().unwrap_or(0.0);
                                tr {
                                    td { (grouped(first + 1)) " to " (grouped(first + texts)) }
                                    td.n { (number(&window["tokens"])) }
                                    td.n { (number(&window["longest"])) }
                                    td.n { (duration(seconds)) }
                                    td.n { (grouped((window["tokens"].as_f64().unwrap_or(0.0) / seconds.max(1e-9)) as u64)) }
                                }
                            }
                        }
                    }
                    p.faint { "Texts are numbered in source order, counting only distinct texts without a cached score." }
                }
            }
        }
    }
}

fn facts(run: &RunRecord) -> Markup {
    let fact =
        |name: &str, value: Option<String>| markup! { @if let Some(value) = value { dt { (name) } dd { (value) } } };
    let version = run.output_version.map_or_else(String::new, |version| format!(", version {version}"));
    let bytes_written = run.output_bytes.map_or_else(String::new, |bytes| format!(" ({})", size(bytes)));
    let bytes: u64 = run.sources.iter().map(|file| file.bytes).sum();
    markup! {
        section {
            h2 { "The run" }
            dl.facts {
                (fact("started", run.started_at.map(|at| display_time(&time(at)))))
                (fact("ended", run.ended_at.map(|at| display_time(&time(at)))))
                (fact("model", run.model_uri.clone()))
                (fact("fingerprint", run.model.clone()))
                (fact("task", run.task.clone()))
                (fact("fine-tuned model", run.promoted.map(|it_is| if it_is { "promoted" } else { "not promoted" }.into())))
                (fact("precision", run.precision.clone()))
                (fact("max. length", run.max_length.map(|n| format!("{n} tokens"))))
                (fact("output", run.output.as_ref().map(|output| format!("{output}{version}{bytes_written}"))))
                (fact("host", run.host.clone()))
                (fact("couplet", run.couplet_version.clone()))
            }
            @if !run.sources.is_empty() {
                details {
                    summary { (run.sources.len()) " source files, " (size(bytes)) }
                    div.scroll {
                        table {
                            tr { th { "file" } th.n { "bytes" } th { "modified" } }
                            @for file in run.sources.iter().take(MAX_LISTED) {
                                tr { td.text { (file.url) } td.n { (grouped(file.bytes)) } td.time { (display_time(&time(file.modified))) } }
                            }
                        }
                    }
                    @if run.sources.len() > MAX_LISTED { p.faint { (run.sources.len() - MAX_LISTED) " more are in the JSON report." } }
                }
            }
        }
    }
}

fn figures(chart: Option<Chart>) -> Markup {
    markup! {
        @if let Some(chart) = chart {
            figure {
                div role="img" aria-label=(chart.caption) { (PreEscaped(chart.svg)) }
                figcaption { (chart.caption) }
            }
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn short_number(value: &Value) -> String {
    value.as_f64().map_or_else(|| "not defined".to_owned(), |value| format!("{value:.4}"))
}

fn duration(seconds: f64) -> String {
    match seconds {
        0.1.. => format_duration(Duration::from_secs_f64(seconds)),
        _ => format!("{:.0} ms", 1000.0 * seconds.max(0.0)),
    }
}

/// Formats a time such as `2026-11-24T03:00:00Z` for people.
fn display_time(time: &str) -> String {
    time.replacen('T', " ", 1).replacen('Z', " UTC", 1)
}
