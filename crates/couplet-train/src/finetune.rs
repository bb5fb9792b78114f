//! Fine-tuning: from labelled rows and a base checkpoint to a classification or regression checkpoint.
//!
//! **Source**: Devlin et al. 2019, section 4; the settings are those of transformers' `Trainer` and `run_glue`.

mod epoch_data;
mod finish;
mod report;
mod row;
mod settings;

use std::path::{Path, PathBuf};

use candle_core::Device;
use couplet_encoder::model::Tokenizer;
use couplet_storage::files::{self, MAX_JSON};
use serde_json::{Value, json};

use super::hyper::Hyper;
use super::job::{self, Base, Existing, Kind, Prepared};
use super::sampling::ClassWeights;
use super::statistics::calibration::Calibration;
use super::statistics::evaluation::Evaluation;
use super::statistics::metrics::Metric;
use super::statistics::promotion::{Condition, Verdict};
use super::statistics::task::Task;
use super::statistics::threshold;
use super::training_loop::{
    Event, JobError, JobStatus, Key, Publication, REPORT, TrainedModel, Watch, remove_model, report_of, with_suffix,
};
use epoch_data::{Labelled, encode};
pub use row::Row;

/// The calibration to fit on the validation rows after training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Calibrate {
    /// Nothing.
    Nothing,
    /// A temperature.
    Temperature,
    /// A temperature and a decision threshold for an objective; two labels only.
    Threshold(threshold::Objective),
}

/// Fine-tuning: the base, the labelled rows and the settings besides the hyperparameters.
#[derive(Debug, Clone)]
pub struct FineTuning {
    /// The Hugging Face folder to start from: an encoder, a masked-language model, or a classifier.
    ///
    /// It may be the job's output. If a run is killed after publishing the new model and before removing its state, the
    /// next run then finds another base and trains on top of the new model.
    pub base: PathBuf,
    /// The task, which defines the labels and metrics.
    pub task: Task,
    /// The names of the labels, in the order of the logits; none to derive them from the rows.
    pub labels: Option<Vec<String>>,
    /// The training rows.
    pub training: Vec<Row>,
    /// The validation rows; they select the best epoch.
    pub validation: Vec<Row>,
    /// The share of a target's probability that is spread over all labels.
    pub label_smoothing: f32,
    /// The weight of each label in the loss.
    pub class_weights: ClassWeights,
    /// The metric that selects the best epoch; none for the task's main metric.
    pub metric: Option<Metric>,
    /// The condition for publishing the model. It is evaluated on the best epoch's metrics of the validation rows,
    /// after calibration if any.
    pub promote_if: Option<Condition>,
    /// The calibration to fit on the validation rows after training.
    pub calibrate: Calibrate,
}

/// A fine-tuning job.
pub type Job = job::Job<FineTuning>;

impl Job {
    /// Creates a job with the default settings.
    #[must_use]
    pub fn new(base: impl Into<PathBuf>, output: impl Into<PathBuf>, task: Task) -> Self {
        let kind = FineTuning {
            base: base.into(),
            task,
            labels: None,
            training: Vec::new(),
            validation: Vec::new(),
            label_smoothing: 0.0,
            class_weights: ClassWeights::Equal,
            metric: None,
            promote_if: None,
            calibrate: Calibrate::Nothing,
        };
        Self::with_defaults(kind, output)
    }

    /// Returns the labels that no validation row has.
    ///
    /// # Errors
    /// Invalid labels.
    pub fn unmeasured_labels(&self) -> Result<Vec<String>, JobError> {
        let (labels, _, gold) = self.kind.read_labels()?;
        Ok(labels.without_rows(&gold))
    }

    /// Returns the folder of the last epoch's model, which is written if that model is not the best.
    #[must_use]
    pub fn last(&self) -> PathBuf {
        with_suffix(&self.output, ".last")
    }
}

/// Returns the folder of the model that `promote_if` rejected for `output`, with the reason; none if there is none.
#[must_use]
pub fn rejected_candidate(output: &Path) -> Option<(PathBuf, String)> {
    let candidate = with_suffix(output, ".candidate");
    let report: Value = serde_json::from_slice(&files::read(&candidate.join(REPORT), MAX_JSON).ok()?).ok()?;
    let verdict = &report["promotion"]["verdict"];
    let clause = |clause: &Value| {
        let condition = clause["condition"].as_str()?;
        let holds = if clause["holds"].as_bool()? { "holds" } else { "does not hold" };
        let value = clause["value"].as_f64().map_or_else(|| "not defined".into(), |value| format!("{value:.4}"));
        Some(format!("{condition} {holds} ({value})"))
    };
    let clauses: Vec<String> = verdict["clauses"].as_array()?.iter().filter_map(clause).collect();
    (verdict["holds"] == false).then(|| (candidate, clauses.join(", ")))
}

/// The outcome of the `promote_if` condition.
#[derive(Debug, Clone, PartialEq)]
pub enum Promotion {
    /// The model was published.
    Published,
    /// The condition does not hold: the old model stays, and the new one is in the candidate folder.
    Rejected {
        /// The folder of the new model.
        candidate: PathBuf,
        /// The condition with the measured values.
        verdict: Verdict,
    },
}

/// The result of a job.
#[derive(Debug, Clone)]
pub struct Report {
    /// The outcome of the `promote_if` condition.
    pub promotion: Promotion,
    /// True if the job trained; false if it only recalibrated and re-evaluated an existing model.
    pub trained: bool,
    /// The epoch of the model's weights, from 1.
    pub epoch: u64,
    /// The number of steps.
    pub steps: u64,
    /// All metrics on the validation rows, before calibration; none without validation rows.
    pub evaluation: Option<Evaluation>,
    /// The calibration fitted on the validation rows.
    pub calibration: Option<Calibration>,
    /// All metrics on the validation rows, after calibration.
    pub calibrated: Option<Evaluation>,
    /// The names of the labels, in the order of the logits; empty for a regression.
    pub labels: Vec<String>,
    /// The contents of `training.json`.
    pub json: Value,
}

impl Kind for FineTuning {
    const NAME: &'static str = "finetune";
    type Data = Labelled;
    type Report = Report;

    fn read_base(&self) -> Result<Base, JobError> {
        Base::read(&self.base)
    }

    fn base_to_json(&self) -> Value {
        json!(self.base)
    }

    /// Leaves out calibration and promotion, so that a condition can be changed while training is under way.
    fn hash(&self, hyper: &Hyper, key: &mut Key) -> Result<(), JobError> {
        let (labels, ..) = self.read_labels()?;
        key.text(self.task.name());
        key.text(&format!("{:?}", labels.names()));
        key.text(&format!("{hyper:?} {} {:?} {:?}", self.label_smoothing, self.class_weights, self.metric));
        for rows in [&self.training, &self.validation] {
            key.number(rows.len() as u64);
            for row in rows {
                key.text(&row.text);
                key.text(row.text_pair.as_deref().unwrap_or_default());
                key.text(&format!("{} {:?}", row.text_pair.is_some(), row.label));
            }
        }
        Ok(())
    }

    fn prepare(job: &Job, base: Base, key: blake3::Hash) -> Result<Prepared<Labelled>, JobError> {
        let kind = &job.kind;
        let (labels, targets, gold) = kind.read_labels()?;
        let metric = kind.check(&job.hyper, &labels, &gold)?;
        let objective = kind.objective(&labels, &targets)?;
        let tokenizer = Tokenizer::load(&base.tokenizer, &base.config)?.with_max_length(job.hyper.max_length);
        let tokenizer = tokenizer.map_err(|found| JobError::Setting {
            setting: "max_length",
            expected: "room for the special tokens".into(),
            found,
        })?;
        let training = encode(&tokenizer, &kind.training, &targets)?;
        let validation = encode(&tokenizer, &kind.validation, &gold)?;
        Ok(Prepared {
            base,
            key,
            objective,
            tokens: training.tokens,
            truncated: training.truncated + validation.truncated,
            labels: labels.names().to_vec(),
            data: Labelled::new(training.examples, validation.examples, labels, gold, metric),
        })
    }

    /// Looks for the job's weights in the output and in the candidate folder. `calibrate` and `promote_if` do not
    /// change the weights.
    fn existing(job: &Job, key: blake3::Hash) -> Option<Existing> {
        let existing = |folder: PathBuf, unchanged: JobStatus| {
            let report = report_of(&folder, key)?;
            let settings = &report["settings"];
            let same = settings["calibrate"] == job.kind.calibrate.to_json()
                && (unchanged == JobStatus::Done || settings["promote_if"] == job.kind.promote_if_to_json());
            Some(Existing { status: if same { unchanged } else { JobStatus::ToCalibrate }, folder, report })
        };
        existing(job.output.clone(), JobStatus::Done).or_else(|| existing(job.candidate(), JobStatus::Rejected))
    }

    fn without_training(
        job: &Job,
        prepared: &Prepared<Labelled>,
        device: &Device,
        watch: &mut Watch,
    ) -> Result<Option<Report>, JobError> {
        let (shared, data) = (job.overlapping_rows(), &prepared.data);
        if shared > 0 {
            watch.emit(&Event::SharedTexts { rows: shared, held_out: data.validation.len() });
        }
        let labels = data.labels.without_rows(&data.gold);
        if !labels.is_empty() {
            watch.emit(&Event::UnmeasuredLabels { labels: &labels });
        }
        match Self::existing(job, prepared.key) {
            Some(existing) if existing.status == JobStatus::ToCalibrate => {
                job.recalibrate(prepared, existing, device, watch).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn finish(
        job: &Job,
        prepared: &Prepared<Labelled>,
        trained: &mut TrainedModel,
        watch: &mut Watch,
    ) -> Result<Report, JobError> {
        if trained.last_is_not_best() {
            let note = json!({ "epoch": trained.progress.epochs().len(), "best": job.output });
            let (config, documents) = (job.config(prepared)?, vec![(REPORT, note)]);
            let publication = Publication { config, tokenizer: &prepared.base.tokenizer, documents, chart: None };
            publication.publish(&trained.trainer, &job.last())?;
        } else {
            remove_model(&job.last())?;
        }
        trained.load_best()?;
        let results = job.evaluate(&prepared.data, &trained.trainer)?;
        let (promotion, json) = (job.promotion(&results), job.report(prepared, trained));
        job.publish(prepared, &trained.trainer, results, promotion, json, watch)
    }
}
