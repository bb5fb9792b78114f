//! The report of the scoring stage, and its JSON form.

use std::time::Duration;

use couplet_encoder::model::Problem;
use couplet_encoder::scorer::{Counts, PADDED_BATCH, Precision, Rejection};
use serde_json::json;

/// The report of the scoring stage.
#[derive(Debug, Clone)]
pub struct Report {
    /// The pipeline's name.
    pub pipeline: String,
    /// The model URI, as written in the pipeline.
    pub model: String,
    /// The full fingerprint of the model.
    pub fingerprint: String,
    /// The commit of the model, if it came from a hub.
    pub revision: Option<String>,
    /// The numeric precision of the encoder.
    pub precision: Precision,
    /// The run's id.
    pub run: String,
    /// The row counts by outcome.
    pub rows: Rows,
    /// The scorer's counts over the scored texts.
    pub counts: Counts,
    /// The problem type, which defines the meaning of the model's outputs.
    pub problem: Problem,
    /// The number of rows per label, in the model's order; empty for regression. In a multi-label model, a row has
    /// every label with a probability of at least [`Problem::HAS_LABEL`], which may be several or none.
    pub labels: Vec<(String, u64)>,
    /// The executors, if a cluster scored the rows.
    pub executors: Vec<Executor>,
    /// The time from the start of the run to the published table.
    pub elapsed: Duration,
    /// The time from the first window to the last.
    pub scoring: Duration,
    /// The output table.
    pub output: String,
    /// The size of the output, in bytes.
    pub output_bytes: u64,
    /// The version of the output, for formats with versions.
    pub output_version: Option<u64>,
    /// The table of rejected rows and its number of rows, if there is one.
    pub quarantine: Option<(String, u64)>,
    /// The run key of the append, if the sink appends.
    pub run_key: Option<String>,
}

/// The work of a cluster executor for a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executor {
    /// The name of the executor.
    pub name: String,
    /// The number of finished tasks.
    pub tasks: u64,
    /// The number of texts scored or rejected.
    pub texts: u64,
    /// The number of tokens encoded.
    pub tokens: u64,
}

impl Executor {
    /// Returns the work as JSON.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        json!({ "executor": self.name, "tasks": self.tasks, "texts": self.texts, "tokens": self.tokens })
    }
}

/// The rows of a source, counted by outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// All rows.
    pub read: u64,
    /// Texts that the encoder scored.
    pub scored: u64,
    /// Rows whose score was cached by an earlier run.
    pub remembered: u64,
    /// Rows whose text already occurred in this run.
    pub repeated: u64,
    /// Rows with an error, by [`Rejection::KINDS`].
    pub rejected: [u64; Rejection::KINDS.len()],
    /// Rows whose texts were cut.
    pub truncated: u64,
    /// Damaged scores in the store, whose texts were scored again.
    pub damaged_scores: u64,
}

impl Rows {
    /// Returns the number of rows with an error.
    #[must_use]
    pub fn rejected(&self) -> u64 {
        self.rejected.iter().sum()
    }
}

impl Report {
    /// Returns texts per second, from the first window to the last.
    #[must_use]
    pub fn rows_per_second(&self) -> f64 {
        per_second(self.rows.scored, self.scoring)
    }

    /// Returns encoder tokens per second, from the first window to the last.
    #[must_use]
    pub fn tokens_per_second(&self) -> f64 {
        per_second(self.counts.tokens, self.scoring)
    }

    /// Returns the share of padding tokens that padded batches would have had.
    #[must_use]
    pub fn padding_share(&self) -> f64 {
        let padding = self.counts.padding_avoided as f64;
        let padded = padding + self.counts.tokens_in_rows as f64;
        if padded == 0.0 { 0.0 } else { padding / padded }
    }

    /// Returns the report as one JSON document.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let counts = &self.counts;
        let rows = &self.rows;
        let rejected = Rejection::KINDS.iter().zip(rows.rejected).filter(|(_, n)| *n > 0);
        json!({
            "pipeline": self.pipeline,
            "run": self.run,
            "run_key": self.run_key,
            "already_appended": false,
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
                "damaged_scores": rows.damaged_scores,
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
            "output": { "path": self.output, "bytes": self.output_bytes, "version": self.output_version },
            "quarantine": self.quarantine.as_ref().map(|(path, rows)| json!({ "path": path, "rows": rows })),
        })
    }
}

fn per_second(n: u64, duration: Duration) -> f64 {
    let seconds = duration.as_secs_f64();
    if seconds == 0.0 { 0.0 } else { n as f64 / seconds }
}
