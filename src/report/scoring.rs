//! What scoring did, and the same as JSON.

use std::time::Duration;

use serde_json::json;

use crate::model::Problem;
use crate::scorer::{Counts, PADDED_BATCH, Precision, Rejection};

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
    /// What the model's outputs mean.
    pub problem: Problem,
    /// How many rows got each label, in the model's order; empty for regression. A row of a multi-label model has every
    /// label of a probability of at least [`Problem::HAS_LABEL`], which may be several or none.
    pub labels: Vec<(String, u64)>,
    /// The executors of a cluster, if one scored.
    pub executors: Vec<Executor>,
    /// From the start to the published table.
    pub elapsed: Duration,
    /// From the first window to the last.
    pub scoring: Duration,
    /// The output table.
    pub output: String,
    /// Its size.
    pub output_bytes: u64,
    /// Its version, where tables have versions.
    pub output_version: Option<u64>,
    /// The table of rejected rows and their number, where there is such a table.
    pub quarantine: Option<(String, u64)>,
    /// The key under which rows were appended, where the sink appends.
    pub run_key: Option<String>,
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
    /// Scores of the store that were damaged, and whose texts were scored anew.
    pub damaged_scores: u64,
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
