//! `training.json` of a fine-tuned model.

use serde_json::{Value, json};

use super::epoch_data::Labelled;
use super::finish::Judgement;
use super::{Calibrate, Job, Promotion};
use crate::sampling::ClassWeights;
use crate::training_loop::{EpochData, Learned, peak_memory};

impl Job {
    pub(super) fn report(
        &self,
        data: &Labelled,
        learned: &Learned,
        results: &Judgement,
        promotion: &Promotion,
        truncated: usize,
    ) -> Value {
        let class_weights = match &self.class_weights {
            ClassWeights::Equal => Value::Null,
            ClassWeights::Balanced => "balanced".into(),
            ClassWeights::Given(weights) => json!(weights),
        };
        let epochs = learned.progress.epochs().len() as u64;
        let mut settings = self.hyper.to_json(learned.trainer.dropout());
        settings["label_smoothing"] = self.label_smoothing.into();
        settings["class_weights"] = class_weights;
        settings["calibrate"] = self.calibrate.to_json();
        settings["metric"] = data.metric().into();
        settings["promote_if"] = self.promote_if_to_json();
        let mut json = json!({
            "kind": "finetune",
            "job": learned.key(),
            "couplet": env!("CARGO_PKG_VERSION"),
            "base": self.base_name.as_deref().map_or_else(|| json!(self.base), |name| json!(name)),
            "task": self.task.name(),
            "labels": data.labels.names(),
            "settings": settings,
            "rows": {
                "training": self.training.len(),
                "validation": self.validation.len(),
                "validation_in_training": self.shared(),
                "truncated": truncated,
            },
            "unmeasured_labels": data.labels.without_rows(&data.gold),
            "steps": learned.trainer.steps(),
            "epoch": learned.progress.best().map_or(epochs, |best| best.epoch),
            "promotion": promotion.to_json(),
            "peak_memory_bytes": peak_memory(),
        });
        if let Some(json) = json.as_object_mut() {
            let results = results.entries(data.labels.names());
            json.extend(results.map(|(key, value)| (key.to_owned(), value)));
            json.extend(learned.progress.to_json(data.scores()));
        }
        json
    }

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
