//! What a run did: the summary that people read, and the same as JSON.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::frequent::most_frequent;
use crate::printable::printable;
use crate::progress::{counted, grouped, spoken};
use crate::run::plan::Forecast;
use crate::scorer::{Counts, PADDED_BATCH, Precision, Rejection};
use crate::train::evaluation::Evaluation;

/// What all stages of a run did.
#[derive(Debug, Clone, Default)]
pub struct RunReport {
    /// The pipeline's name.
    pub pipeline: String,
    /// The stage that hid words.
    pub pretrain: Option<StageReport>,
    /// The stage that learned a task.
    pub finetune: Option<StageReport>,
    /// The stage that measured.
    pub evaluate: Option<EvaluationReport>,
    /// The stage that scored.
    pub score: Option<Report>,
}

impl RunReport {
    /// The report as one JSON document: that of the scoring, with a key for each other stage.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let mut json = self.score.as_ref().map_or_else(|| json!({ "pipeline": self.pipeline }), Report::to_json);
        for (key, stage) in [("pretrain", &self.pretrain), ("finetune", &self.finetune)] {
            if let Some(stage) = stage {
                json[key] = stage.to_json();
            }
        }
        if let Some(stage) = &self.evaluate {
            json["evaluate"] = stage.to_json();
        }
        json
    }
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, stage) in [("pretrain", &self.pretrain), ("finetune", &self.finetune)] {
            if let Some(stage) = stage {
                write_stage(f, name, &stage.lines, &stage.folder, stage.elapsed)?;
            }
        }
        if let Some(stage) = &self.evaluate {
            write_stage(f, "evaluate", &stage.lines, &stage.folder, stage.elapsed)?;
        }
        self.score.iter().try_for_each(|report| write!(f, "{report}"))
    }
}

/// What a stage of training did.
#[derive(Debug, Clone)]
pub struct StageReport {
    /// The folder of the model.
    pub folder: PathBuf,
    /// What is worth saying, for people.
    pub lines: Vec<String>,
    /// Whether the model is in its place.
    pub promoted: bool,
    /// From the start of the stage to its end.
    pub elapsed: Duration,
    /// Everything: settings, curves, metrics; null where nothing was to be done.
    pub json: serde_json::Value,
}

impl StageReport {
    /// The stage has nothing to do: its model is there already.
    #[must_use]
    pub fn unchanged(folder: PathBuf, elapsed: Duration) -> Self {
        let lines = vec!["nothing to do: base, rows and settings are those of the model that is there".into()];
        Self { folder, lines, promoted: true, elapsed, json: serde_json::Value::Null }
    }

    fn to_json(&self) -> serde_json::Value {
        json!({
            "output": self.folder,
            "promoted": self.promoted,
            "seconds": self.elapsed.as_secs_f64(),
            "training": self.json,
        })
    }
}

/// What the stage that measures did.
#[derive(Debug, Clone)]
pub struct EvaluationReport {
    /// The folder of the report and the mistakes.
    pub folder: PathBuf,
    /// What is worth saying, for people.
    pub lines: Vec<String>,
    /// From the start of the stage to its end.
    pub elapsed: Duration,
    /// What `evaluation.json` says.
    pub json: serde_json::Value,
}

impl EvaluationReport {
    fn to_json(&self) -> serde_json::Value {
        json!({ "output": self.folder, "seconds": self.elapsed.as_secs_f64(), "evaluation": self.json })
    }
}

fn write_stage(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    lines: &[String],
    folder: &Path,
    elapsed: Duration,
) -> fmt::Result {
    for (i, line) in lines.iter().enumerate() {
        writeln!(f, "  {:<10} {line}", if i == 0 { name } else { "" })?;
    }
    writeln!(f, "  {:<10} {} ({})", "", folder.display(), spoken(elapsed))
}

/// Metrics in a line of the summary of an evaluation.
const METRICS_IN_LINE: usize = 3;
/// Labels that are listed with their rows.
const MOST_LISTED: usize = 20;

/// Labels up to which the summary shows the confusion matrix.
const MOST_LABELS: usize = 8;
/// Slices of a column that the summary shows.
const MOST_SLICES: usize = 12;

/// An evaluation for people: metrics with their intervals, the confusion matrix, the slices.
#[must_use]
pub fn evaluation_lines(evaluation: &Evaluation, labels: &[String]) -> Vec<String> {
    let level = evaluation.level.map_or_else(String::new, |level| format!("; intervals of {} %", 100.0 * level));
    let mut lines = vec![format!("{}{level}", counted(evaluation.rows as u64, "row"))];
    let metrics = evaluation.metrics.iter().map(|(metric, value)| {
        let Some(value) = value else { return format!("{metric} not defined") };
        let interval = evaluation.intervals.iter().find(|(other, _)| *other == metric).and_then(|(_, ends)| *ends);
        let interval = interval.map_or_else(String::new, |ends| format!(" [{:.4}, {:.4}]", ends.low, ends.high));
        format!("{metric} {value:.4}{interval}")
    });
    lines.extend(metrics.collect::<Vec<_>>().chunks(METRICS_IN_LINE).map(|metrics| metrics.join(" · ")));
    if let Some(confusion) = evaluation.confusion.as_ref().filter(|_| labels.len() <= MOST_LABELS) {
        let width = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0).max(9);
        let row = |head: &str, cells: Vec<String>| {
            let cells = cells.iter().map(|cell| format!("  {cell:>width$}")).collect::<Vec<_>>().concat();
            format!("{head:<width$}{cells}")
        };
        lines.push(row("gold \\ as", labels.to_vec()));
        for (gold, label) in labels.iter().enumerate() {
            let cells = (0..labels.len()).map(|predicted| grouped(confusion.count(gold, predicted)));
            lines.push(row(label, cells.collect()));
        }
    }
    for (column, slices) in &evaluation.slices {
        for slice in slices.iter().take(MOST_SLICES) {
            let metrics = slice.metrics.iter().take(METRICS_IN_LINE);
            let metrics = metrics.map(|(metric, value)| match value {
                Some(value) => format!("{metric} {value:.4}"),
                None => format!("{metric} not defined"),
            });
            let metrics = metrics.collect::<Vec<_>>().join(" · ");
            let value = slice.key.as_deref().unwrap_or("NULL");
            lines.push(format!("{column} = {value}: {}, {metrics}", counted(slice.rows as u64, "row")));
        }
        if slices.len() > MOST_SLICES {
            lines.push(format!("{column}: {} more values are in evaluation.json", slices.len() - MOST_SLICES));
        }
    }
    lines
}

/// What scoring did.
#[derive(Debug, Clone)]
pub struct Report {
    /// The pipeline's name.
    pub pipeline: String,
    /// The model as the pipeline names it.
    pub model: String,
    /// The model's fingerprint, all digits.
    pub fingerprint: String,
    /// The commit that the model was read from, where it came from a hub.
    pub revision: Option<String>,
    /// In which numbers the encoder multiplied.
    pub precision: Precision,
    /// The run's id.
    pub run: String,
    /// What became of the rows.
    pub rows: Rows,
    /// What the scorer counted, of the texts that it scored.
    pub counts: Counts,
    /// How many rows got each label, in the model's order; empty for regression.
    pub labels: Vec<(String, u64)>,
    /// The executors of a cluster, if one scored.
    pub executors: Vec<Executor>,
    /// From the start to the published table.
    pub elapsed: Duration,
    /// From the first window to the last.
    pub scoring: Duration,
    /// What was said beforehand, by the run itself or by a plan.
    pub predicted: Vec<Predicted>,
    /// The output table.
    pub output: String,
    /// Its size.
    pub output_bytes: u64,
    /// Its version, where tables have versions.
    pub output_version: Option<u64>,
    /// The table of rejected rows and their number, where there is such a table.
    pub quarantine: Option<(String, u64)>,
}

/// What an executor of a cluster did for a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executor {
    /// Its name.
    pub name: String,
    /// Tasks that it ended.
    pub tasks: u64,
    /// Texts that it scored or refused.
    pub texts: u64,
    /// Tokens that its encoder read.
    pub tokens: u64,
}

impl Executor {
    /// The same as JSON.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        json!({ "executor": self.name, "tasks": self.tasks, "texts": self.texts, "tokens": self.tokens })
    }
}

/// What was said beforehand of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Predicted {
    /// Who said it: `run`, or the file of a plan.
    pub by: String,
    /// How long the run had scored when it said so, in seconds; none for a plan.
    pub after: Option<f64>,
    /// What was said.
    pub forecast: Forecast,
}

impl Predicted {
    /// The share by which the time of scoring that was said is above what it took; negative if it is below.
    #[must_use]
    pub fn error(&self, scoring: Duration) -> Option<f64> {
        let seconds = scoring.as_secs_f64();
        (seconds > 0.0 && self.forecast.texts > 0).then(|| self.forecast.scoring / seconds - 1.0)
    }
}

/// What became of the rows of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// All of them.
    pub read: u64,
    /// Texts that went through the encoder.
    pub scored: u64,
    /// Rows whose score was known from an earlier run.
    pub remembered: u64,
    /// Rows whose text came more than once in this run, but for the first.
    pub repeated: u64,
    /// Rows with an error, by [`Rejection::KINDS`].
    pub rejected: [u64; Rejection::KINDS.len()],
    /// Rows whose texts were cut.
    pub truncated: u64,
}

impl Rows {
    /// Rows with an error.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.rejected.iter().sum()
    }
}

impl Report {
    /// Texts a second, from the first window to the last.
    #[must_use]
    pub fn rows_per_second(&self) -> f64 {
        per_second(self.rows.scored, self.scoring)
    }

    /// Tokens a second through the encoder, from the first window to the last.
    #[must_use]
    pub fn tokens_per_second(&self) -> f64 {
        per_second(self.counts.tokens, self.scoring)
    }

    /// The share of a padded batch's tokens that would have been padding.
    #[must_use]
    pub fn padding_share(&self) -> f64 {
        let padding = self.counts.padding_avoided as f64;
        let padded = padding + self.counts.tokens_in_rows as f64;
        if padded == 0.0 { 0.0 } else { padding / padded }
    }

    /// The report as one JSON document.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let counts = &self.counts;
        let rows = &self.rows;
        let rejected = Rejection::KINDS.iter().zip(rows.rejected).filter(|(_, n)| *n > 0);
        json!({
            "pipeline": self.pipeline,
            "run": self.run,
            "model": {
                "uri": self.model,
                "fingerprint": self.fingerprint,
                "revision": self.revision,
                "precision": self.precision.to_string(),
            },
            "rows": {
                "read": rows.read,
                "scored": rows.scored,
                "remembered": rows.remembered,
                "repeated": rows.repeated,
                "rejected": rows.rejected(),
                "truncated": rows.truncated,
            },
            "rejected": rejected.map(|(kind, n)| ((*kind).to_owned(), n.into())).collect::<serde_json::Map<_, _>>(),
            "labels": self.labels.iter().map(|(label, n)| (label.clone(), (*n).into())).collect::<serde_json::Map<_, _>>(),
            "tokens": {
                "scored": counts.tokens,
                "in_rows": counts.tokens_in_rows,
                "padding_avoided": counts.padding_avoided,
                "padded_batch": PADDED_BATCH,
            },
            "seconds": { "all": self.elapsed.as_secs_f64(), "scoring": self.scoring.as_secs_f64() },
            "rows_per_second": self.rows_per_second(),
            "tokens_per_second": self.tokens_per_second(),
            "executors": self.executors.iter().map(Executor::to_json).collect::<Vec<_>>(),
            "predicted": self.predicted.iter().map(|predicted| self.compared(predicted)).collect::<Vec<_>>(),
            "output": { "path": self.output, "bytes": self.output_bytes, "version": self.output_version },
            "quarantine": self.quarantine.as_ref().map(|(path, rows)| json!({ "path": path, "rows": rows })),
        })
    }
}

impl Report {
    /// A forecast beside what happened.
    fn compared(&self, predicted: &Predicted) -> serde_json::Value {
        let mut json = predicted.forecast.to_json();
        json["by"] = predicted.by.clone().into();
        json["after_seconds"] = predicted.after.into();
        json["actual"] = json!({
            "rows": self.rows.scored,
            "tokens": self.counts.tokens,
            "seconds": { "scoring": self.scoring.as_secs_f64(), "all": self.elapsed.as_secs_f64() },
        });
        json["error_of_scoring"] = predicted.error(self.scoring).into();
        json
    }
}

fn per_second(n: u64, duration: Duration) -> f64 {
    let seconds = duration.as_secs_f64();
    if seconds == 0.0 { 0.0 } else { n as f64 / seconds }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        let mut line = |name: &str, value: String| writeln!(f, "  {name:<10} {value}");
        let mut parts =
            vec![format!("{} read", grouped(self.rows.read)), format!("{} scored", grouped(self.rows.scored))];
        for (n, what) in [(self.rows.remembered, "remembered"), (self.rows.repeated, "repeated")] {
            if n > 0 {
                parts.push(format!("{} {what}", grouped(n)));
            }
        }
        parts.push(format!("{} rejected", grouped(self.rows.rejected())));
        line("rows", parts.join(" · "))?;
        for (kind, n) in Rejection::KINDS.iter().zip(self.rows.rejected).filter(|(_, n)| *n > 0) {
            line("", format!("{} with {kind}", grouped(n)))?;
        }
        if !self.labels.is_empty() {
            let all: u64 = self.labels.iter().map(|(_, n)| n).sum();
            let share = |n: u64| if all == 0 { 0.0 } else { 100.0 * n as f64 / all as f64 };
            let listed = most_frequent(&self.labels, MOST_LISTED, |(_, n)| *n);
            let listed = listed.into_iter().map(|place| &self.labels[place]);
            let labels = listed.map(|(label, n)| format!("{label} {} ({:.1} %)", grouped(*n), share(*n)));
            let mut labels: Vec<String> = labels.collect();
            if self.labels.len() > MOST_LISTED {
                labels.push(format!("{} more labels", grouped((self.labels.len() - MOST_LISTED) as u64)));
            }
            line("labels", labels.join(" · "))?;
        }
        let truncated = match self.rows.truncated {
            0 => "none truncated".to_owned(),
            n => format!("{} truncated", counted(n, "row")),
        };
        line("tokens", format!("{} · {truncated}", grouped(counts.tokens)))?;
        if counts.tokens == 0 {
            line("time", spoken(self.elapsed))?;
            return self.write_end(f);
        }
        line(
            "padding",
            format!(
                "{} tokens avoided ({:.1} % of what batches of {PADDED_BATCH} would have run)",
                grouped(counts.padding_avoided),
                100.0 * self.padding_share()
            ),
        )?;
        line(
            "speed",
            format!("{:.0} rows/s · {} tokens/s", self.rows_per_second(), grouped(self.tokens_per_second() as u64)),
        )?;
        line("time", format!("{} ({} scoring)", spoken(self.elapsed), spoken(self.scoring)))?;
        let all: u64 = self.executors.iter().map(|executor| executor.tokens).sum();
        for (i, executor) in self.executors.iter().enumerate() {
            let name = if i == 0 { "executors" } else { "" };
            let share = 100.0 * executor.tokens as f64 / all.max(1) as f64;
            let done =
                format!("{}, {} ({share:.0} %)", counted(executor.tasks, "task"), counted(executor.texts, "text"));
            line(name, format!("{} {done}", printable(&executor.name)))?;
        }
        // What a run says of itself is worth a line where somebody waits for it.
        let waited = self.scoring >= Duration::from_secs(10);
        for Predicted { by, after, forecast } in self.predicted.iter().filter(|said| said.after.is_none() || waited) {
            let seconds = |seconds: f64| spoken(Duration::from_secs_f64(seconds.max(0.0)));
            let said = match after {
                Some(after) => format!("{} scoring, said {} into it", seconds(forecast.scoring), seconds(*after)),
                None => format!(
                    "{} ({} scoring {} texts, {} tokens), by {by}",
                    seconds(forecast.all.unwrap_or(forecast.scoring)),
                    seconds(forecast.scoring),
                    grouped(forecast.texts),
                    grouped(forecast.tokens)
                ),
            };
            line("predicted", said)?;
        }
        self.write_end(f)
    }
}

impl Report {
    fn write_end(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: String| writeln!(f, "  {name:<10} {value}");
        let fingerprint = &self.fingerprint[..self.fingerprint.len().min(16)];
        let revision = self.revision.as_ref().map_or_else(String::new, |commit| format!(", commit {commit}"));
        line("model", format!("{} ({fingerprint}, {}{revision})", self.model, self.precision))?;
        let version = self.output_version.map_or_else(String::new, |version| format!(", version {version}"));
        line("output", format!("{} ({:.2} MB{version})", self.output, self.output_bytes as f64 / 1e6))?;
        match &self.quarantine {
            Some((path, rows)) => line("rejected", format!("{path} ({})", counted(*rows, "row"))),
            None => Ok(()),
        }
    }
}
