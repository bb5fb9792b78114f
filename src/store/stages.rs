//! The stages of a run before its scoring, as its record and its metrics have them.

/// What a run did before it scored: the stages that train and measure, as far as they ended well.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EarlierStages {
    /// How long the stage that hides words took, in seconds.
    pub pretrain: Option<f64>,
    /// How long the stage that learns a task took, in seconds.
    pub finetune: Option<f64>,
    /// How long the stage that measures took, in seconds.
    pub evaluate: Option<f64>,
    /// Whether the fine-tuned model is in its place, or was refused by `promote_if`.
    pub promoted: Option<bool>,
}

impl EarlierStages {
    /// The stages with their seconds, in their order.
    #[must_use]
    pub fn seconds(&self) -> Vec<(&'static str, f64)> {
        ended([("pretrain", self.pretrain), ("finetune", self.finetune), ("evaluate", self.evaluate)])
    }
}

/// Those that ended, with their seconds.
pub(super) fn ended<const N: usize>(stages: [(&'static str, Option<f64>); N]) -> Vec<(&'static str, f64)> {
    stages.into_iter().filter_map(|(stage, seconds)| Some((stage, seconds?))).collect()
}
