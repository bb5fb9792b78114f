//! The end of a job: evaluates and calibrates the best weights, and publishes them if the condition holds.

use candle_core::Device;
use couplet_encoder::model::{self, CALIBRATION_FILE};
use serde_json::{Map, Value, json};

use super::epoch_data::{Labelled, sample};
use super::{Calibrate, Job, Promotion, Report};
use crate::job::{Existing, Prepared};
use crate::statistics::calibration::Calibration;
use crate::statistics::evaluation::Evaluation;
use crate::statistics::labels::{Labels, Targets};
use crate::statistics::temperature::Temperature;
use crate::training_loop::{Event, JobError, Publication, REPORT, Watch, remove_model};
use crate::{Trainer, training_chart};

/// The evaluation of a model on the validation rows.
#[derive(Default)]
pub(super) struct ValidationResults {
    /// The evaluation without calibration.
    pub(super) evaluation: Option<Evaluation>,
    pub(super) calibration: Option<Calibration>,
    /// The evaluation with calibration.
    pub(super) calibrated: Option<Evaluation>,
}

impl ValidationResults {
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
}

impl Job {
    /// Evaluates the `promote_if` condition.
    pub(super) fn promotion(&self, results: &ValidationResults) -> Promotion {
        let metrics = results.final_evaluation().map(|evaluation| &evaluation.metrics);
        let verdict =
            self.kind.promote_if.as_ref().zip(metrics).map(|(condition, metrics)| condition.evaluate(metrics));
        match verdict {
            Some(verdict) if !verdict.holds => Promotion::Rejected { candidate: self.candidate(), verdict },
            _ => Promotion::Published,
        }
    }

    /// Writes the results into the report, and publishes the model to the output or to the candidate folder.
    pub(super) fn publish(
        &self,
        prepared: &Prepared<Labelled>,
        trainer: &Trainer,
        results: ValidationResults,
        promotion: Promotion,
        mut json: Value,
        watch: &mut Watch,
    ) -> Result<Report, JobError> {
        results.warn(watch);
        let labels = &prepared.labels;
        let measured =
            |evaluation: &Option<Evaluation>| evaluation.as_ref().map(|measured| measured.to_json(labels)).into();
        json["settings"]["calibrate"] = self.kind.calibrate.to_json();
        json["settings"]["promote_if"] = self.kind.promote_if_to_json();
        json["promotion"] = promotion.to_json();
        json["evaluation"] = measured(&results.evaluation);
        json["calibration"] = results.calibration.as_ref().map(Calibration::to_json).into();
        json["calibrated"] = measured(&results.calibrated);
        let calibration = results.calibration.as_ref().map(|calibration| (CALIBRATION_FILE, calibration.to_json()));
        let publication = Publication {
            config: self.config(prepared)?,
            tokenizer: &prepared.base.tokenizer,
            documents: std::iter::once((REPORT, json.clone())).chain(calibration).collect(),
            chart: training_chart::of_training(&json),
        };
        match &promotion {
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
        let number = |key: &str| json[key].as_u64().unwrap_or(0);
        Ok(Report {
            promotion,
            trained: true,
            epoch: number("epoch"),
            steps: number("steps"),
            evaluation: results.evaluation,
            calibration: results.calibration,
            calibrated: results.calibrated,
            labels: labels.clone(),
            json,
        })
    }

    /// Calibrates an existing model again. Evaluates the condition again too, unless the model is already published.
    /// The weights stay as they are.
    pub(super) fn recalibrate(
        &self,
        prepared: &Prepared<Labelled>,
        existing: Existing,
        device: &Device,
        watch: &mut Watch,
    ) -> Result<Report, JobError> {
        let (objective, options) = (prepared.objective.clone(), self.hyper.options(self.kind.training.len()));
        let trainer = Trainer::from_checkpoint(&existing.folder, objective, options, device)?;
        let results = self.evaluate(&prepared.data, &trainer)?;
        let published = existing.folder == self.output;
        let promotion = if published { Promotion::Published } else { self.promotion(&results) };
        let report = self.publish(prepared, &trainer, results, promotion, existing.report, watch)?;
        Ok(Report { trained: false, ..report })
    }

    /// Evaluates the model on the validation rows, and fits the calibration on them.
    pub(super) fn evaluate(&self, data: &Labelled, trainer: &Trainer) -> Result<ValidationResults, JobError> {
        if data.validation.is_empty() {
            return Ok(ValidationResults::default());
        }
        let logits = trainer.logits(&data.validation)?.concat();
        let measure = |calibration: Option<&model::Calibration>| -> Result<Evaluation, JobError> {
            Ok(Evaluation::of(&sample(&data.labels, &data.gold, &logits, calibration)?, None, &[])?)
        };
        let evaluation = measure(None)?;
        let calibration = self.fit(&data.labels, &data.gold, &logits)?;
        let calibrated = calibration.as_ref().map(|fitted| measure(Some(&fitted.applied()))).transpose()?;
        Ok(ValidationResults { evaluation: Some(evaluation), calibration, calibrated })
    }

    fn fit(&self, labels: &Labels, gold: &Targets, logits: &[f32]) -> Result<Option<Calibration>, JobError> {
        let objective = match self.kind.calibrate {
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
    pub(super) fn config(&self, prepared: &Prepared<Labelled>) -> Result<Map<String, Value>, JobError> {
        let mut config = prepared.base.config_for("ForSequenceClassification")?;
        config.extend(prepared.data.labels.config_keys());
        config.insert("num_labels".into(), json!(prepared.labels.len().max(1)));
        config.insert("finetuning_task".into(), self.kind.task.name().into());
        Ok(config)
    }
}
