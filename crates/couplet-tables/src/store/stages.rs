//! The stages of a run, for the run record and the metrics.

use serde::{Serialize, Serializer};

/// The durations of the stages of a run, and of the parts of scoring, in seconds; `None` for a stage that has not
/// succeeded.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stages {
    /// Pretraining.
    pub pretrain: Option<f64>,
    /// Fine-tuning.
    pub finetune: Option<f64>,
    /// Evaluation.
    pub evaluate: Option<f64>,
    /// Opening tables, model, store and sink.
    pub prepare: Option<f64>,
    /// Reading the source and looking up its texts.
    pub read: Option<f64>,
    /// Scoring, from the first window to the last.
    pub score: Option<f64>,
    /// Writing the table.
    pub publish: Option<f64>,
}

impl Stages {
    /// Returns the completed stages with their durations in seconds, in order.
    #[must_use]
    pub fn seconds(&self) -> Vec<(&'static str, f64)> {
        let stages = [
            ("pretrain", self.pretrain),
            ("finetune", self.finetune),
            ("evaluate", self.evaluate),
            ("prepare", self.prepare),
            ("read", self.read),
            ("score", self.score),
            ("publish", self.publish),
        ];
        stages.into_iter().filter_map(|(stage, seconds)| Some((stage, seconds?))).collect()
    }
}

impl Serialize for Stages {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.seconds().serialize(serializer)
    }
}
