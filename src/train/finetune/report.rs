//! `training.json` of a fine-tuned model.

use serde_json::{Value, json};

use super::lesson::Labelled;
use super::{Calibrate, Job, Promotion, Report};
use crate::train::course::{Learned, Lesson, peak_memory};
use crate::train::sampling::ClassWeights;

impl Job {
    pub(super) fn report(&self, lesson: &Labelled, learned: &Learned, report: &Report, truncated: usize) -> Value {
        let class_weights = match &self.class_weights {
            ClassWeights::Equal => Value::Null,
            ClassWeights::Balanced => "balanced".into(),
            ClassWeights::Given(weights) => json!(weights),
        };
        let calibrate = match self.calibrate {
            Calibrate::Nothing => Value::Null,
            Calibrate::Temperature => "temperature".into(),
            Calibrate::Threshold(objective) => objective.to_string().into(),
        };
        let promotion = match &report.promotion {
            Promotion::Published => json!({ "published": true }),
            Promotion::Rejected { verdict, .. } => json!({ "published": false, "verdict": verdict.to_json() }),
        };
        let mut settings = self.hyper.to_json();
        settings["label_smoothing"] = self.label_smoothing.into();
        settings["class_weights"] = class_weights;
        settings["calibrate"] = calibrate;
        settings["metric"] = lesson.metric().into();
        settings["promote_if"] = self.promote_if.as_ref().map(ToString::to_string).into();
        let mut json = json!({
            "kind": "finetune",
            "job": learned.key(),
            "couplet": env!("CARGO_PKG_VERSION"),
            "base": self.base,
            "task": self.task.name(),
            "labels": report.labels,
            "settings": settings,
            "rows": { "training": self.training.len(), "validation": self.validation.len(), "truncated": truncated },
            "steps": report.steps,
            "epoch": report.epoch,
            "evaluation": report.evaluation.as_ref().map(|evaluation| evaluation.to_json(&report.labels)),
            "calibration": report.calibration.as_ref().map(crate::train::calibration::Calibration::to_json),
            "promotion": promotion,
            "peak_memory_bytes": peak_memory(),
        });
        if let Some(json) = json.as_object_mut() {
            json.extend(learned.progress.to_json(lesson.scores()));
        }
        json
    }
}
