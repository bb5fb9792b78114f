//! The stages of a run before scoring, for the run record and the metrics.

/// The training and evaluation stages of a run that have succeeded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EarlierStages {
    /// Duration of pretraining, in seconds.
    pub pretrain: Option<f64>,
    /// Duration of fine-tuning, in seconds.
    pub finetune: Option<f64>,
    /// Duration of evaluation, in seconds.
    pub evaluate: Option<f64>,
    /// True if the fine-tuned model was promoted, false if `promote_if` rejected it.
    pub promoted: Option<bool>,
}

impl EarlierStages {
    /// Returns the completed stages with their durations in seconds, in order.
    #[must_use]
    pub fn seconds(&self) -> Vec<(&'static str, f64)> {
        ended([("pretrain", self.pretrain), ("finetune", self.finetune), ("evaluate", self.evaluate)])
    }
}

/// Returns the stages that ended, with their durations.
pub(super) fn ended<const N: usize>(stages: [(&'static str, Option<f64>); N]) -> Vec<(&'static str, f64)> {
    stages.into_iter().filter_map(|(stage, seconds)| Some((stage, seconds?))).collect()
}
