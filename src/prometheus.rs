//! Metrics of a run as a Prometheus text file, for the textfile collector of `node_exporter`.
//!
//! A file holds the latest run of one pipeline, and is replaced as a whole. All metrics are gauges, as each run starts
//! from zero. Unknown values (the rows of a run that failed before it read them) are left out rather than written as 0.
//!
//! **Source**: <https://prometheus.io/docs/instrumenting/exposition_formats/>, text format 0.0.4; names and units by
//! <https://prometheus.io/docs/practices/naming/>.

use std::fmt::Write;

use chrono::{DateTime, Utc};
use couplet_tables::histogram::Drift;
use couplet_tables::store::{Outcome, RunRecord, Stages};

use crate::frequent::most_frequent;

/// The name of the metric for the success of the run.
const SUCCESS: &str = "couplet_run_success";
/// The name of the metric for the time of the last successful run.
const LAST_SUCCESS: &str = "couplet_run_last_success_timestamp_seconds";

/// The maximum number of labels with a series: each series costs the server memory, again with every run.
const MAX_LABELS: usize = 100;

/// The facts about a run.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The pipeline's name.
    pub pipeline: String,
    /// True if the run succeeded.
    pub success: bool,
    /// The start of the run.
    pub started_at: Option<DateTime<Utc>>,
    /// The end of the run.
    pub ended_at: Option<DateTime<Utc>>,
    /// The duration of all stages.
    pub seconds: Option<f64>,
    /// The end of the last successful run before this one, in seconds since 1970.
    pub last_success: Option<f64>,
    /// The completed stages.
    pub stages: Stages,
    /// True if the fine-tuned model was promoted, false if `promote_if` rejected it.
    pub promoted: Option<bool>,
    /// The record of the scoring.
    pub record: Option<RunRecord>,
    /// The drift of the scores from those of the previous run.
    pub drift: Option<Drift>,
}

impl Facts {
    /// Takes the facts from a run record.
    #[must_use]
    pub fn of(record: RunRecord) -> Self {
        Self {
            pipeline: record.pipeline.clone(),
            success: record.outcome == Some(Outcome::Done),
            started_at: record.started_at,
            ended_at: record.ended_at,
            seconds: record.seconds,
            stages: record.stages,
            promoted: record.promoted,
            record: Some(record),
            ..Self::default()
        }
    }
}

/// Converts a time to Prometheus's seconds since 1970.
#[must_use]
pub fn timestamp(time: DateTime<Utc>) -> f64 {
    time.timestamp_micros() as f64 / 1e6
}

/// Returns the text of the file.
#[must_use]
pub fn text(facts: &Facts) -> String {
    let mut text = Text { text: String::new(), pipeline: label_value(&facts.pipeline) };
    text.one(SUCCESS, "1 if the run succeeded, 0 otherwise.", Some(u8::from(facts.success).into()));
    text.one("couplet_run_start_timestamp_seconds", "Start time of the run.", facts.started_at.map(timestamp));
    text.one("couplet_run_end_timestamp_seconds", "End time of the run.", facts.ended_at.map(timestamp));
    let last = if facts.success { facts.ended_at.map(timestamp) } else { facts.last_success };
    text.one(LAST_SUCCESS, "End time of the last successful run.", last);
    text.one("couplet_run_duration_seconds", "Duration of the run.", facts.seconds);
    let stages = facts.stages.seconds().into_iter().map(|(stage, seconds)| (stage.to_owned(), seconds));
    text.many("couplet_run_stage_duration_seconds", "Duration of each stage.", "stage", stages);
    let promoted = facts.promoted.map(|promoted| f64::from(u8::from(promoted)));
    text.one("couplet_run_promoted", "1 if the fine-tuned model was published, 0 if it was rejected.", promoted);
    let Some(record) = facts.record.as_ref() else { return text.text };
    text.one("couplet_run_read_rows", "Rows read from the source.", count(record.rows_read));
    let outcomes = [
        ("scored", record.rows_scored),
        ("remembered", record.rows_remembered),
        ("repeated", record.rows_repeated),
        ("rejected", record.rows_rejected),
    ];
    let outcomes = outcomes.into_iter().filter_map(|(outcome, n)| Some((outcome.to_owned(), count(n)?)));
    text.many("couplet_run_rows", "Rows by outcome.", "outcome", outcomes);
    let rejected = record.rejected.iter().map(|(kind, n)| (kind.clone(), *n as f64));
    text.many("couplet_run_rejected_rows", "Rows without a score, by reason.", "reason", rejected);
    text.one("couplet_run_truncated_rows", "Rows whose texts were truncated.", count(record.rows_truncated));
    let labels = record.labels.as_deref().unwrap_or_default();
    let left_out = labels.len().saturating_sub(MAX_LABELS);
    let labels = most_frequent(labels, MAX_LABELS, |(_, n)| *n).into_iter().map(|place| &labels[place]);
    let labels = labels.map(|(label, n)| (label.clone(), *n as f64));
    text.many("couplet_run_label_rows", "Rows by predicted label, for the most frequent labels.", "label", labels);
    let left_out = Some(left_out).filter(|n| *n > 0).map(|n| n as f64);
    text.one("couplet_run_omitted_labels", "Further labels, too many for a series each.", left_out);
    text.one("couplet_run_tokens", "Tokens encoded by the model.", count(record.tokens));
    let padding = "Padding tokens that padded batches of 32 rows would have added.";
    text.one("couplet_run_padding_avoided_tokens", padding, count(record.padding_avoided));
    text.one("couplet_run_rows_per_second", "Rows scored per second.", record.speed.rows_per_second);
    text.one("couplet_run_tokens_per_second", "Tokens encoded per second.", record.speed.tokens_per_second);
    text.one("couplet_run_output_bytes", "The size of the published table.", count(record.output_bytes));
    let mean = record.scores.as_ref().and_then(|scores| scores.mean);
    text.one("couplet_run_score_mean", "The mean score.", mean);
    let psi = "Population stability index of the scores against the previous run; 0.25 is a large shift.";
    text.one("couplet_run_score_psi", psi, facts.drift.map(|drift| drift.psi));
    let ks = "Kolmogorov-Smirnov statistic of the scores against the previous run, 0 to 1.";
    text.one("couplet_run_score_ks_ratio", ks, facts.drift.map(|drift| drift.ks));
    text.info(record);
    text.text
}

/// Returns the name of the pipeline in the text of an existing file.
#[must_use]
pub fn pipeline_of(text: &str) -> Option<String> {
    let start = format!("{SUCCESS}{{pipeline=\"");
    let value = text.lines().find_map(|line| line.strip_prefix(&start)?.rsplit_once("\"} "))?.0;
    let mut name = String::new();
    let mut chars = value.chars();
    while let Some(char) = chars.next() {
        name.push(match char {
            '\\' => match chars.next()? {
                'n' => '\n',
                escaped => escaped,
            },
            char => char,
        });
    }
    Some(name)
}

/// Returns the time of the last successful run in the text of an existing file of the same pipeline.
#[must_use]
pub fn last_success(text: &str, pipeline: &str) -> Option<f64> {
    let start = format!("{LAST_SUCCESS}{{pipeline=\"{}\"}} ", label_value(pipeline));
    text.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok())
}

fn count(n: Option<u64>) -> Option<f64> {
    n.map(|n| n as f64)
}

/// The text being written.
struct Text {
    text: String,
    pipeline: String,
}

impl Text {
    fn head(&mut self, name: &str, help: &str) {
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
    }

    fn one(&mut self, name: &str, help: &str, value: Option<f64>) {
        let Some(value) = value.filter(|value| value.is_finite()) else { return };
        self.head(name, help);
        let _ = writeln!(self.text, "{name}{{pipeline=\"{}\"}} {value}", self.pipeline);
    }

    fn many(&mut self, name: &str, help: &str, label: &str, values: impl Iterator<Item = (String, f64)>) {
        // A duplicate series makes the collector refuse the whole file. Labels with the same name share their rows.
        let mut series: Vec<(String, f64)> = Vec::new();
        for (key, value) in values.filter(|(_, value)| value.is_finite()) {
            if !series.iter().any(|(other, _)| *other == key) {
                series.push((key, value));
            }
        }
        for (i, (key, value)) in series.iter().enumerate() {
            if i == 0 {
                self.head(name, help);
            }
            let key = label_value(key);
            let _ = writeln!(self.text, "{name}{{pipeline=\"{}\",{label}=\"{key}\"}} {value}", self.pipeline);
        }
    }

    fn info(&mut self, record: &RunRecord) {
        self.head("couplet_run_info", "Identity of the run; always 1.");
        let facts = [
            ("run", Some(&record.run)),
            ("outcome", record.outcome.map(|outcome| outcome.as_str().to_owned()).as_ref()),
            ("model", record.model.as_ref()),
            ("precision", record.precision.as_ref()),
            ("version", record.couplet_version.as_ref()),
        ]
        .map(|(name, value)| format!(",{name}=\"{}\"", label_value(value.map_or("", String::as_str))))
        .concat();
        let _ = writeln!(self.text, "couplet_run_info{{pipeline=\"{}\"{facts}}} 1", self.pipeline);
    }
}

/// Escapes a label value.
fn label_value(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use couplet_tables::store::Speed;

    #[test]
    fn the_text_has_known_values_and_keeps_the_last_success() {
        let time = |seconds| DateTime::from_timestamp(seconds, 500_000_000);
        let mut facts = Facts {
            pipeline: "a\"b".into(),
            success: true,
            started_at: time(100),
            ended_at: time(107),
            seconds: Some(7.0),
            record: Some(RunRecord {
                rows_read: Some(10),
                rows_scored: Some(8),
                rows_rejected: Some(2),
                rejected: vec![("NULL text".into(), 2)],
                labels: Some(vec![("back\\slash\nline".into(), 8)]),
                speed: Speed { rows_per_second: Some(2.0), ..Speed::default() },
                ..RunRecord::default()
            }),
            ..Facts::default()
        };
        let done = text(&facts);
        for line in [
            "# TYPE couplet_run_success gauge",
            "couplet_run_success{pipeline=\"a\\\"b\"} 1",
            "couplet_run_end_timestamp_seconds{pipeline=\"a\\\"b\"} 107.5",
            "couplet_run_rows{pipeline=\"a\\\"b\",outcome=\"rejected\"} 2",
            "couplet_run_rejected_rows{pipeline=\"a\\\"b\",reason=\"NULL text\"} 2",
            "couplet_run_label_rows{pipeline=\"a\\\"b\",label=\"back\\\\slash\\nline\"} 8",
            "couplet_run_rows_per_second{pipeline=\"a\\\"b\"} 2",
        ] {
            assert!(done.lines().any(|other| other == line), "{line} is not in\n{done}");
        }
        assert!(!done.contains("couplet_run_tokens ") && !done.contains("psi"), "{done}");
        assert_eq!(last_success(&done, "a\"b"), Some(107.5));
        (facts.success, facts.ended_at, facts.record) = (false, time(900), None);
        facts.last_success = last_success(&done, "a\"b");
        let failed = text(&facts);
        assert!(failed.contains("couplet_run_success{pipeline=\"a\\\"b\"} 0") && !failed.contains("rows"), "{failed}");
        assert_eq!(last_success(&failed, "a\"b"), Some(107.5));
        assert_eq!(last_success(&failed, "other"), None);
        assert_eq!(pipeline_of(&failed).as_deref(), Some("a\"b"));
        for pipeline in ["plain", "back\\slash", "two\nlines\\n"] {
            let facts = Facts { pipeline: pipeline.into(), ..Facts::default() };
            assert_eq!(pipeline_of(&text(&facts)).as_deref(), Some(pipeline));
        }
        assert_eq!(pipeline_of("something else\n"), None);
    }

    /// The rules of `promtool check metrics` for names and series.
    #[test]
    fn names_end_with_their_unit_and_series_are_unique() {
        let labels = (0..500).map(|i| (format!("label {}", i % 499), i));
        let counted = Some(3);
        let facts = Facts {
            pipeline: "p".into(),
            success: true,
            started_at: Some(Utc::now()),
            ended_at: Some(Utc::now()),
            seconds: Some(1.0),
            stages: Stages { finetune: Some(1.0), evaluate: Some(f64::NAN), score: Some(1.0), ..Stages::default() },
            promoted: Some(true),
            drift: Some(Drift { psi: 0.1, ks: 0.2, ks_by_chance: 0.3 }),
            record: Some(RunRecord {
                rows_read: counted,
                rows_scored: counted,
                rows_remembered: counted,
                rows_repeated: counted,
                rows_rejected: counted,
                rows_truncated: counted,
                rejected: vec![("NULL text".into(), 3)],
                tokens: counted,
                tokens_in_rows: counted,
                padding_avoided: counted,
                output_bytes: counted,
                speed: Speed { rows_per_second: counted.map(|n| n as f64), ..Speed::default() },
                labels: Some(labels.collect()),
                ..RunRecord::default()
            }),
            ..Facts::default()
        };
        let text = text(&facts);
        let (mut names, mut series) = (Vec::new(), Vec::new());
        for line in text.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(typed) => names.push(typed.strip_suffix(" gauge").unwrap()),
                None if line.starts_with('#') => assert!(line.starts_with("# HELP ")),
                None => series.push(line.rsplit_once(' ').unwrap().0),
            }
        }
        let units = [
            "success", "promoted", "seconds", "rows", "tokens", "bytes", "second", "labels", "psi", "ratio", "mean",
            "info",
        ];
        for name in &names {
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert!(units.contains(&name.rsplit('_').next().unwrap()), "{name} does not end with a unit");
        }
        let unique = |of: &[&str]| of.iter().collect::<std::collections::BTreeSet<_>>().len() == of.len();
        assert!(unique(&names) && unique(&series), "{text}");
        // The most frequent labels have the last places here.
        assert_eq!(series.iter().filter(|line| line.starts_with("couplet_run_label_rows")).count(), 100);
        assert!(
            text.contains("label=\"label 498\"") && text.contains("couplet_run_omitted_labels{pipeline=\"p\"} 400\n")
        );
        assert!(text.contains("reason=\"NULL text\"} 3\n") && !text.contains("NaN"), "{text}");
    }
}
