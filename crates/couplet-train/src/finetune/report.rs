//! `training.json` of a fine-tuned model.

use serde_json::{Value, json};

use super::epoch_data::Labelled;
use super::{Calibrate, FineTuning, Job, Promotion};
use crate::job::Prepared;
use crate::sampling::ClassWeights;
use crate::training_loop::TrainedModel;

impl Job {
    /// Builds the report without the results.
    pub(super) fn report(&self, prepared: &Prepared<Labelled>, trained: &TrainedModel) -> Value {
        let FineTuning { training, validation, task, label_smoothing, class_weights, .. } = &self.kind;
        let data = &prepared.data;
        let mut json = self.common_report(prepared, trained);
        json["settings"]["label_smoothing"] = (*label_smoothing).into();
        json["settings"]["class_weights"] = match class_weights {
            ClassWeights::Equal => Value::Null,
            ClassWeights::Balanced => "balanced".into(),
            ClassWeights::Given(weights) => json!(weights),
        };
        json["settings"]["metric"] = data.metric().into();
        json["task"] = task.name().into();
        json["labels"] = json!(prepared.labels);
        json["rows"] = json!({
            "training": training.len(),
            "validation": validation.len(),
            "validation_in_training": self.overlapping_rows(),
            "truncated": prepared.truncated,
        });
        json["unmeasured_labels"] = data.labels.without_rows(&data.gold).into();
        json
    }
}

impl FineTuning {
    pub(super) fn promote_if_to_json(&self) -> Value {
        self.promote_if.as_ref().map(ToString::to_string).into()
    }
}

impl Promotion {
    pub(super) fn to_json(&self) -> Value {
        match self {
            Self::Published => json!({ "published": true }),
            Self::Rejected { verdict, .. } => json!({ "published": false, "verdict": verdict.to_json() }),
        }
    }
}

impl Calibrate {
    /// Returns the setting's value in `training.json`.
    pub(super) fn to_json(self) -> Value {
        match self {
            Self::Nothing => Value::Null,
            Self::Temperature => "temperature".into(),
            Self::Threshold(objective) => objective.to_string().into(),
        }
    }
}
