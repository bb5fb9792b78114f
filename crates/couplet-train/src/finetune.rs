//! Fine-tuning: from labelled rows and a base checkpoint to a classification or regression checkpoint.
//!
//! **Source**: Devlin et al. 2019, section 4; the settings are those of transformers' `Trainer` and `run_glue`.

mod epoch_data;
mod finish;
mod report;
mod row;
mod settings;

use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::Device;
use couplet_encoder::model::{ModelConfig, ModelFiles, Tokenizer};
use couplet_storage::files::{self, MAX_JSON};
use rayon::ThreadPool;
use serde_json::Value;

use super::calibration::Calibration;
use super::evaluation::Evaluation;
use super::hyper::Hyper;
use super::metrics::Metric;
use super::promotion::{Condition, Verdict};
use super::sampling::ClassWeights;
use super::task::Task;
use super::threshold;
use super::training_loop::{
    self, Event, Interval, JobError, Outcome, Plan, REPORT, Standing, Trial, Watch, beside, report_of,
};
use super::{Objective, Trainer};
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

/// A fine-tuning job: the base, the data, the settings and the output.
#[derive(Debug, Clone)]
pub struct Job {
    /// The Hugging Face folder to start from: an encoder, a masked-language model, or a classifier.
    ///
    /// It may be `output`. If a run is killed after publishing the new model and before removing its state, the next
    /// run then finds another base and trains on top of the new model.
    pub base: PathBuf,
    /// The base's name in the report, if its folder is a copy.
    pub base_name: Option<String>,
    /// The folder that the model is written to; its previous content is replaced.
    pub output: PathBuf,
    /// The task, which defines the labels and metrics.
    pub task: Task,
    /// The names of the logits, in order; none to derive them from the rows.
    pub labels: Option<Vec<String>>,
    /// The training rows.
    pub training: Vec<Row>,
    /// The validation rows; they select the best epoch.
    pub validation: Vec<Row>,
    /// The hyperparameters.
    pub hyper: Hyper,
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
    /// The interval between saves of the state.
    pub interval: Interval,
}

impl Job {
    /// Creates a job with the default settings.
    #[must_use]
    pub fn new(base: impl Into<PathBuf>, output: impl Into<PathBuf>, task: Task) -> Self {
        Self {
            base: base.into(),
            base_name: None,
            output: output.into(),
            task,
            labels: None,
            training: Vec::new(),
            validation: Vec::new(),
            hyper: Hyper::default(),
            label_smoothing: 0.0,
            class_weights: ClassWeights::Equal,
            metric: None,
            promote_if: None,
            calibrate: Calibrate::Nothing,
            interval: Interval::Seconds(60.0),
        }
    }

    /// Returns the folder of a model that `promote_if` rejects.
    #[must_use]
    pub fn candidate(&self) -> PathBuf {
        beside(&self.output, ".candidate")
    }

    /// Returns true if the output holds this job's model: same base, rows and settings. Reads the base and all rows;
    /// does not train.
    ///
    /// # Errors
    /// Labels or a base that cannot be used.
    pub fn is_done(&self) -> Result<bool, JobError> {
        Ok(matches!(self.find()?, Found::Done))
    }

    /// Returns true if the candidate folder holds this job's model, rejected by the same condition.
    ///
    /// # Errors
    /// Labels or a base that cannot be used.
    pub fn is_rejected(&self) -> Result<bool, JobError> {
        Ok(matches!(self.find()?, Found::Rejected))
    }

    /// Removes the state of a run that was killed after it had published its model.
    ///
    /// # Errors
    /// As [`Job::is_done`]; files that cannot be removed.
    pub fn clean(&self) -> Result<(), JobError> {
        let (labels, ..) = self.read_labels()?;
        training_loop::discard_state(&self.output, self.key(&ModelFiles::read(&self.base)?, &labels))
    }

    /// Returns the labels that no validation row has.
    ///
    /// # Errors
    /// Labels that cannot be used.
    pub fn unmeasured_labels(&self) -> Result<Vec<String>, JobError> {
        let (labels, _, gold) = self.read_labels()?;
        Ok(labels.without_rows(&gold))
    }

    fn find(&self) -> Result<Found, JobError> {
        if !self.output.exists() && !self.candidate().exists() {
            return Ok(Found::Nothing);
        }
        let (labels, ..) = self.read_labels()?;
        Ok(self.found(self.key(&ModelFiles::read(&self.base)?, &labels)))
    }

    /// Finds the results of an earlier run of the job. `calibrate` and `promote_if` do not change the weights.
    fn found(&self, key: blake3::Hash) -> Found {
        let is_calibrated = |report: &Value| report["settings"]["calibrate"] == self.calibrate.to_json();
        if let Some(report) = report_of(&self.output, key) {
            return if is_calibrated(&report) { Found::Done } else { Found::Weights(self.output.clone(), report) };
        }
        let Some(report) = report_of(&self.candidate(), key) else { return Found::Nothing };
        let same = report["settings"]["promote_if"] == self.promote_if_to_json() && is_calibrated(&report);
        if same { Found::Rejected } else { Found::Weights(self.candidate(), report) }
    }

    /// Returns the folder of the last epoch's model, which is written if that model is not the best.
    #[must_use]
    pub fn last(&self) -> PathBuf {
        beside(&self.output, ".last")
    }
}

/// The results that an earlier run of a job left.
enum Found {
    /// Nothing, or the results of other jobs.
    Nothing,
    /// The job's model, published.
    Done,
    /// The job's model as a candidate, rejected by the same condition.
    Rejected,
    /// The job's weights, in this folder with this report, but with another calibration or condition.
    Weights(PathBuf, Value),
}

/// Returns the candidate that `promote_if` rejected for `output`, if there is one, with the reason.
#[must_use]
pub fn refusal(output: &Path) -> Option<(PathBuf, String)> {
    let candidate = beside(output, ".candidate");
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
    /// The names of the logits, in order; empty for a regression.
    pub labels: Vec<String>,
    /// The contents of `training.json`.
    pub json: Value,
}

/// Runs a job, or resumes it from the state of an earlier run.
///
/// The state is in the folder `<output>.training`, which is removed after the model is published. If the output already
/// holds this job's weights with another calibration, only calibration is redone. If the candidate folder holds this
/// job's weights, they are calibrated and evaluated again. Computes on `pool`.
///
/// # Errors
/// Invalid settings, unusable rows or base, diverged training, files that cannot be written. The previous content of
/// `output` and the last saved state are kept then.
pub fn run(job: &Job, device: &Device, pool: &ThreadPool, watch: &mut Watch) -> Result<Outcome<Report>, JobError> {
    pool.install(|| run_here(job, device, watch))
}

/// A job with validated rows and settings.
struct Prepared {
    base: ModelFiles,
    data: Labelled,
    objective: Objective,
    key: blake3::Hash,
    tokens: u64,
    truncated: usize,
}

impl Job {
    /// Reads the base's tokenizer and the labels, and encodes all rows.
    fn prepare(&self) -> Result<Prepared, JobError> {
        let base = ModelFiles::read(&self.base)?;
        let config = ModelConfig::load(&base)?;
        self.hyper.check(config.max_position_embeddings)?;
        let (labels, targets, gold) = self.read_labels()?;
        let metric = self.check(&labels, &gold)?;
        let objective = self.objective(&labels, &targets)?;
        let tokenizer = Tokenizer::load(&base, &config)?.with_max_length(self.hyper.max_length);
        let tokenizer = tokenizer.map_err(|found| JobError::Setting {
            setting: "max_length",
            expected: "room for the special tokens".into(),
            found,
        })?;
        let training = encode(&tokenizer, &self.training, &targets)?;
        let validation = encode(&tokenizer, &self.validation, &gold)?;
        let data = Labelled::new(training.examples, validation.examples, labels, gold, metric);
        let key = self.key(&base, &data.labels);
        let truncated = training.truncated + validation.truncated;
        Ok(Prepared { base, data, objective, key, tokens: training.tokens, truncated })
    }

    /// Estimates the duration of the job by running a part of it on `pool` for about `budget`; writes nothing.
    ///
    /// # Errors
    /// As [`run`], for every failure that can occur before the end of a job.
    pub fn run_trial(&self, device: &Device, pool: &ThreadPool, budget: Duration) -> Result<Trial, JobError> {
        pool.install(|| {
            let Prepared { base, data, objective, key, tokens, truncated } = self.prepare()?;
            let standing = match self.found(key) {
                Found::Done => Standing::Done,
                Found::Rejected => Standing::Rejected,
                Found::Weights(..) => Standing::ToCalibrate,
                Found::Nothing => training_loop::standing(&self.output, key),
            };
            let mut trial = Trial {
                held_out: data.validation.len(),
                tokens,
                truncated,
                labels: data.labels.names().to_vec(),
                ..Trial::new(standing, &self.hyper, &data)
            };
            if trial.trains() {
                let options = self.hyper.options(self.training.len());
                let mut trainer = Trainer::of_files(&base, objective, options, device)?;
                trial.pace = Some(training_loop::run_trial(&mut trainer, &data, &self.hyper, budget)?);
                let held_out = &data.validation;
                trial.time_measuring(held_out, self.hyper.epochs, |part| Ok(trainer.logits(part).map(|_| ())?))?;
            }
            Ok(trial)
        })
    }
}

fn run_here(job: &Job, device: &Device, watch: &mut Watch) -> Result<Outcome<Report>, JobError> {
    let Prepared { base, data, objective, key, tokens, truncated } = job.prepare()?;
    let shared = job.shared();
    if shared > 0 {
        watch.emit(&Event::SharedTexts { rows: shared, held_out: job.validation.len() });
    }
    let labels = data.labels.without_rows(&data.gold);
    if !labels.is_empty() {
        watch.emit(&Event::UnmeasuredLabels { labels: &labels });
    }
    if let Found::Weights(folder, report) = job.found(key) {
        return job.recalibrate(&folder, &base, &data, objective, report, device, watch).map(Outcome::Finished);
    }
    let trainer = Trainer::of_files(&base, objective, job.hyper.options(job.training.len()), device)?;
    let base = base.without_weights();
    watch.emit(&Event::Prepared {
        rows: job.training.len(),
        held_out: job.validation.len(),
        tokens,
        truncated,
        total_steps: job.hyper.total_steps(job.training.len()),
    });
    let plan = Plan { output: &job.output, key, hyper: &job.hyper, interval: job.interval };
    match training_loop::run(&plan, &data, trainer, watch)? {
        Outcome::Finished(learned) => job.finish(&base, &data, learned, truncated, watch).map(Outcome::Finished),
        Outcome::Interrupted { step, total_steps, state } => Ok(Outcome::Interrupted { step, total_steps, state }),
    }
}
