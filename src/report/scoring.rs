//! The report of the scoring stage, and its JSON form.

use std::time::Duration;

use couplet_encoder::scorer::PADDED_BATCH;
use couplet_tables::store::RunRecord;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// The report of the scoring stage.
#[derive(Debug, Clone)]
pub struct Report {
    /// The record of the run.
    pub record: RunRecord,
    /// The model URI, as written in the pipeline.
    pub model: String,
    /// The commit of the model, if it came from a hub.
    pub revision: Option<String>,
    /// The executors, if a cluster scored the rows.
    pub executors: Vec<Executor>,
    /// The time from the start of the stage to the published table.
    pub elapsed: Duration,
    /// The table of rejected rows and its number of rows, if there is one.
    pub quarantine: Option<(String, u64)>,
    /// The run key of the append, if the sink appends.
    pub run_key: Option<String>,
}

/// The work of a cluster executor for a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Executor {
    /// The name of the executor.
    #[serde(rename = "executor")]
    pub name: String,
    /// The number of finished tasks.
    pub tasks: u64,
    /// The number of texts scored or rejected.
    pub texts: u64,
    /// The number of tokens encoded.
    pub tokens: u64,
}

impl Report {
    /// Returns the report as one JSON document.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let record = &self.record;
        json!({
            "pipeline": record.pipeline,
            "run": record.run,
            "run_key": self.run_key,
            "already_appended": false,
            "model": {
                "uri": self.model,
                "fingerprint": record.model,
                "revision": self.revision,
                "precision": record.precision,
            },
            "rows": {
                "read": record.rows_read,
                "scored": record.rows_scored,
                "remembered": record.rows_remembered,
                "repeated": record.rows_repeated,
                "rejected": record.rows_rejected,
                "truncated": record.rows_truncated,
                "damaged_scores": record.scores_damaged,
            },
            "rejected": object(&record.rejected),
            "labels": object(record.labels.as_deref().unwrap_or_default()),
            "tokens": {
                "scored": record.tokens,
                "in_rows": record.tokens_in_rows,
                "padding_avoided": record.padding_avoided,
                "padded_batch": PADDED_BATCH,
            },
            "seconds": { "all": self.elapsed.as_secs_f64(), "scoring": record.stages.score },
            "rows_per_second": record.speed.rows_per_second.unwrap_or_default(),
            "tokens_per_second": record.speed.tokens_per_second.unwrap_or_default(),
            "executors": self.executors,
            "output": { "path": record.output, "bytes": record.output_bytes, "version": record.output_version },
            "quarantine": self.quarantine.as_ref().map(|(path, rows)| json!({ "path": path, "rows": rows })),
        })
    }
}

fn object(counts: &[(String, u64)]) -> Map<String, Value> {
    counts.iter().map(|(name, n)| (name.clone(), (*n).into())).collect()
}
