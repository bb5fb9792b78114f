//! The end of a job: evaluates and calibrates the best weights, and publishes them if the condition holds.

use std::path::Path;

use candle_core::Device;
use couplet_encoder::model::{CALIBRATION_FILE, CHART, ModelConfig, ModelFiles};
use serde_json::{Map, Value, json};

use super::epoch_data::{Labelled, calibrated_sample, sample};
use super::{Calibrate, Job, Promotion, Report};
use crate::calibration::Calibration;
use crate::evaluation::Evaluation;
use crate::labels::{Labels, Targets};
use crate::temperature::Temperature;
use crate::training_loop::{Event, JobError, Learned, Publication, REPORT, Watch, base_config, remove_model};
use crate::{Objective, Trainer, training_chart};

/// The evaluation of a model on the validation rows.
#[derive(Default)]
pub(super) struct Judgement {
    /// The evaluation without calibration.
    pub(super) evaluation: Option<Evaluation>,
    pub(super) calibration: Option<Calibration>,
    /// The evaluation with calibration.
    pub(super) calibrated: Option<Evaluation>,
}

impl Judgement {
    /// Returns the evaluation of the model as it is to be published.
    fn final_evaluation(&self) -> Option<&Evaluation> {
        self.calibrated.as_ref().or(self.evaluation.as_ref())
    }

    /// Warns of an unreliable temperature.
    fn warn(&self, watch: &mut Watch) {
        let temperature = self.calibration.as_ref().map(|calibration| calibration.temperature);
        if let Some(Temperature { value: temperature, bound: Some(bound), .. }) = temperature {
            watch.emit(&Event::TemperatureAtBound { temperature, bound });
        }
    }

    /// Returns the evaluation's entries in `training.json`.
    pub(super) fn entries(&self, labels: &[String]) -> [(&'static str, Value); 3] {
        let json =
            |evaluation: &Option<Evaluation>| evaluation.as_ref().map(|measured| measured.to_json(labels)).into();
        [
            ("evaluation", json(&self.evaluation)),
            ("calibration", self.calibration.as_ref().map(Calibration::to_json).into()),
            ("calibrated", json(&self.calibrated)),
        ]
    }
}

impl Job {
    /// Evaluates and calibrates the best weights, and publishes them if the condition holds.
    pub(super) fn finish(
        &self,
        base: &ModelFiles,
        data: &Labelled,
        mut learned: Learned,
        truncated: usize,
        watch: &mut Watch,
    ) -> Result<Report, JobError> {
        let config = self.config(base, &data.labels)?;
        if learned.last_is_not_best() {
            let note = json!({ "epoch": learned.progress.epochs().len(), "best": self.output });
            let documents = vec![(REPORT, note)];
            let publication = Publication { config: config.clone(), tokenizer: base, documents, chart: None };
            publication.publish(&learned.trainer, &self.last())?;
        } else {
            remove_model(&self.last())?;
        }
        learned.load_best()?;
        let results = self.evaluate(data, &learned.trainer)?;
        results.warn(watch);
        let promotion = self.promotion(&results);
        let json = self.report(data, &learned, &results, &promotion, truncated);
        self.publish(&Self::publication(base, config, &results, &json), &learned.trainer, &promotion, watch)?;
        learned.discard_state()?;
        Ok(build_report(promotion, true, results, &data.labels, json))
    }

    /// Evaluates the `promote_if` condition.
    fn promotion(&self, results: &Judgement) -> Promotion {
        let metrics = results.final_evaluation().map(|evaluation| &evaluation.metrics);
        let verdict = self.promote_if.as_ref().zip(metrics).map(|(condition, metrics)| condition.evaluate(metrics));
        match verdict {
            Some(verdict) if !verdict.holds => Promotion::Rejected { candidate: self.candidate(), verdict },
            _ => Promotion::Published,
        }
    }

    /// Publishes a model to the output or to the candidate folder.
    fn publish(
        &self,
        publication: &Publication,
        trainer: &Trainer,
        promotion: &Promotion,
        watch: &mut Watch,
    ) -> Result<(), JobError> {
        match promotion {
            Promotion::Published => {
                publication.publish(trainer, &self.output)?;
                remove_model(&self.candidate())?;
                watch.emit(&Event::Published { folder: &self.output });
            }
            Promotion::Rejected { candidate, verdict } => {
                publication.publish(trainer, candidate)?;
                let replaces = self.output.exists();
                watch.emit(&Event::Rejected { candidate, verdict: &verdict.to_string(), replaces });
            }
        }
        Ok(())
    }

    /// Calibrates the model in `folder` again. Evaluates the condition again too, unless the model is already
    /// published. The weights stay as they are.
    #[expect(clippy::too_many_arguments, reason = "a model, its inputs, and the observer")]
    pub(super) fn recalibrate(
        &self,
        folder: &Path,
        base: &ModelFiles,
        data: &Labelled,
        objective: Objective,
        mut json: Value,
        device: &Device,
        watch: &mut Watch,
    ) -> Result<Report, JobError> {
        let options = self.hyper.options(self.training.len());
        let trainer = Trainer::from_checkpoint(folder, objective, options, device)?;
        let results = self.evaluate(data, &trainer)?;
        results.warn(watch);
        let promotion = if folder == self.output { Promotion::Published } else { self.promotion(&results) };
        json["settings"]["calibrate"] = self.calibrate.to_json();
        json["settings"]["promote_if"] = self.promote_if_to_json();
        json["promotion"] = promotion.to_json();
        for (key, value) in results.entries(data.labels.names()) {
            json[key] = value;
        }
        let publication = Self::publication(base, self.config(base, &data.labels)?, &results, &json);
        self.publish(&publication, &trainer, &promotion, watch)?;
        Ok(build_report(promotion, false, results, &data.labels, json))
    }

    fn publication<'b>(
        base: &'b ModelFiles,
        config: Map<String, Value>,
        results: &Judgement,
        json: &Value,
    ) -> Publication<'b> {
        let calibration = results.calibration.as_ref().map(|calibration| (CALIBRATION_FILE, calibration.to_json()));
        let documents = std::iter::once((REPORT, json.clone())).chain(calibration).collect();
        Publication {
            config,
            tokenizer: base,
            documents,
            chart: training_chart::of_training(json).map(|chart| (CHART, chart)),
        }
    }

    /// Evaluates the model on the validation rows, and fits the calibration on them.
    fn evaluate(&self, data: &Labelled, trainer: &Trainer) -> Result<Judgement, JobError> {
        if self.validation.is_empty() {
            return Ok(Judgement::default());
        }
        let logits = trainer.logits(&data.validation)?.concat();
        let evaluation = Evaluation::of(&sample(&data.labels, &data.gold, &logits)?, None, &[])?;
        let calibration = self.fit(&data.labels, &data.gold, &logits)?;
        let calibrated = match &calibration {
            None => None,
            Some(calibration) => {
                let sample = calibrated_sample(&data.labels, &data.gold, &logits, &calibration.applied())?;
                Some(Evaluation::of(&sample, None, &[])?)
            }
        };
        Ok(Judgement { evaluation: Some(evaluation), calibration, calibrated })
    }

    fn fit(&self, labels: &Labels, gold: &Targets, logits: &[f32]) -> Result<Option<Calibration>, JobError> {
        let objective = match self.calibrate {
            Calibrate::Nothing => return Ok(None),
            Calibrate::Temperature => None,
            Calibrate::Threshold(objective) => Some(objective),
        };
        let count = labels.names().len();
        Ok(match gold {
            Targets::Classes(gold) => {
                let objective = objective.map(|objective| (objective, labels.positive().unwrap_or(1)));
                Some(Calibration::fit(count, logits, gold, objective)?)
            }
            Targets::Sets(gold) => Some(Calibration::fit_sets(count, logits, gold)?),
            Targets::Values(_) => None,
        })
    }

    /// Builds the model's `config.json`.
    fn config(&self, base: &ModelFiles, labels: &Labels) -> Result<Map<String, Value>, JobError> {
        let family = ModelConfig::load(base)?.family;
        let mut config = base_config(base)?;
        config.insert("architectures".into(), json!([family.class("ForSequenceClassification")]));
        config.extend(labels.config_keys());
        config.insert("num_labels".into(), json!(labels.names().len().max(1)));
        config.insert("finetuning_task".into(), self.task.name().into());
        Ok(config)
    }
}

/// Builds the job's report.
fn build_report(promotion: Promotion, trained: bool, results: Judgement, labels: &Labels, json: Value) -> Report {
    let number = |key: &str| json[key].as_u64().unwrap_or(0);
    Report {
        promotion,
        trained,
        epoch: number("epoch"),
        steps: number("steps"),
        evaluation: results.evaluation,
        calibration: results.calibration,
        calibrated: results.calibrated,
        labels: labels.names().to_vec(),
        json,
    }
}
