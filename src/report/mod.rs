//! The report of a run, as a text summary and as JSON.

mod appended;
mod evaluation;
mod scoring;
mod summary;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use couplet_storage::words::format_duration;
use serde_json::json;

pub use appended::Appended;
pub use evaluation::{evaluation_lines, positive_of};
pub use scoring::{Executor, Report};

/// The report of a run with all its stages.
#[derive(Debug, Clone, Default)]
pub struct RunReport {
    /// The pipeline's name.
    pub pipeline: String,
    /// The pretraining stage.
    pub pretrain: Option<StageReport>,
    /// The fine-tuning stage.
    pub finetune: Option<StageReport>,
    /// The evaluation stage.
    pub evaluate: Option<EvaluationReport>,
    /// The scoring stage.
    pub score: Option<Report>,
    /// Set instead of `score` if the sink already had the rows of the run.
    pub appended: Option<Appended>,
}

impl RunReport {
    /// Returns the report as one JSON document: the report of the scoring stage, with a key for each other stage.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let mut json = match (&self.score, &self.appended) {
            (Some(report), _) => report.to_json(),
            (None, Some(appended)) => appended.to_json(&self.pipeline),
            (None, None) => json!({ "pipeline": self.pipeline }),
        };
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
        self.appended.iter().try_for_each(|appended| writeln!(f, "  {:<10} {appended}", "append"))?;
        self.score.iter().try_for_each(|report| write!(f, "{report}"))
    }
}

/// The report of a training stage.
#[derive(Debug, Clone)]
pub struct StageReport {
    /// The folder of the model.
    pub folder: PathBuf,
    /// The summary lines.
    pub lines: Vec<String>,
    /// True if the model is in the output folder.
    pub promoted: bool,
    /// The duration of the stage.
    pub elapsed: Duration,
    /// Settings, curves and metrics; null if the stage had nothing to do.
    pub json: serde_json::Value,
}

impl StageReport {
    /// Reports a stage that had nothing to do because its model is up to date.
    #[must_use]
    pub fn unchanged(folder: PathBuf, elapsed: Duration) -> Self {
        let lines = vec!["nothing to do: the existing model has the same base, rows and settings".into()];
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

/// The report of the evaluation stage.
#[derive(Debug, Clone)]
pub struct EvaluationReport {
    /// The folder of `evaluation.json` and `mistakes.parquet`.
    pub folder: PathBuf,
    /// The summary lines.
    pub lines: Vec<String>,
    /// The duration of the stage.
    pub elapsed: Duration,
    /// The contents of `evaluation.json`.
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
    writeln!(f, "  {:<10} {} ({})", "", folder.display(), format_duration(elapsed))
}
