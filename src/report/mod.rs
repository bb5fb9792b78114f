//! What a run did: the summary that people read, and the same as JSON.

mod appended;
mod evaluation;
mod scoring;
mod summary;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::words::spoken;

pub use appended::Appended;
pub use evaluation::{evaluation_lines, positive_of};
pub use scoring::{Executor, Report, Rows};

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
    /// In its place, that the sink had the rows already.
    pub appended: Option<Appended>,
}

impl RunReport {
    /// The report as one JSON document: that of the scoring, with a key for each other stage.
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
