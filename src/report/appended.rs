//! The report of a run that appended nothing because the sink already had its rows.

use std::fmt;

use serde_json::json;

/// A run whose run key is already in the sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The run's id.
    pub run: String,
    /// The run key.
    pub run_key: String,
    /// The sink.
    pub output: String,
}

impl Appended {
    pub(super) fn to_json(&self, pipeline: &str) -> serde_json::Value {
        json!({
            "pipeline": pipeline,
            "run": self.run,
            "run_key": self.run_key,
            "already_appended": true,
            "output": { "path": self.output },
        })
    }
}

impl fmt::Display for Appended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run_key, output, .. } = self;
        write!(f, "nothing: {output} already has the rows of run key {run_key} (--again appends them again)")
    }
}
