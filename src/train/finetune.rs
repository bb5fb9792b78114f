//! Fine-tuning: labelled rows and a base checkpoint to a checkpoint that classifies, or gives a value.
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
use crate::files::{self, MAX_JSON};
use crate::model::{ModelConfig, ModelFiles, Tokenizer};
use crate::ops::Kernels;
use epoch_data::{Labelled, encode};
pub use row::Row;

/// What is fitted on the validation rows when training is over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Calibrate {
    /// Nothing.
    Nothing,
    /// A temperature.
    Temperature,
    /// A temperature, and the decision threshold for an objective; for two labels.
    Threshold(threshold::Objective),
}

/// What to fine-tune, on what, and where the model goes.
#[derive(Debug, Clone)]
pub struct Job {
    /// A Hugging Face folder to start from: an encoder, a masked-language model, or a classifier.
    ///
    /// It may be `output`. A run that is killed after the new model is in its place, and before it could remove its
    /// state, then finds another base and trains on top of the new model when it is run again.
    pub base: PathBuf,
    /// What the base is called, where its folder is a copy.
    pub base_name: Option<String>,
    /// The folder that the model is written to, instead of what is there.
    pub output: PathBuf,
    /// What is learned.
    pub task: Task,
    /// The names of the logits, in order; none to learn them from the rows.
    pub labels: Option<Vec<String>>,
    /// Rows to learn from.
    pub training: Vec<Row>,
    /// Rows to measure on; they choose the best epoch.
    pub validation: Vec<Row>,
    /// How to train.
    pub hyper: Hyper,
    /// The share of a target's probability that is spread over all labels.
    pub label_smoothing: f32,
    /// How much each label weighs.
    pub class_weights: ClassWeights,
    /// Which metric chooses the best epoch; none for the task's own.
    pub metric: Option<Metric>,
    /// What must hold for the model to take its place; it is judged as it would stand there, by the best epoch's metrics
    /// on the validation rows, calibrated if it is.
    pub promote_if: Option<Condition>,
    /// What is fitted on the validation rows when training is over.
    pub calibrate: Calibrate,
    /// How often the state is saved.
    pub interval: Interval,
}

impl Job {
    /// A job with the usual settings.
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

    /// Where a model goes that does not take its place.
    #[must_use]
    pub fn candidate(&self) -> PathBuf {
        beside(&self.output, ".candidate")
    }

    /// Whether the output holds the model that this very job leaves: same base, rows and settings. The base and all rows
    /// are read for it; nothing is trained.
    ///
    /// # Errors
    /// Labels or a base that cannot be used.
    pub fn is_done(&self) -> Result<bool, JobError> {
        Ok(matches!(self.find()?, Found::Done))
    }

    /// Whether the candidate is the model that this very job leaves, and was refused by the same condition.
    ///
    /// # Errors
    /// Labels or a base that cannot be used.
    pub fn is_rejected(&self) -> Result<bool, JobError> {
        Ok(matches!(self.find()?, Found::Rejected))
    }

    /// Removes the state of a run that was killed when its model was in its place already.
    ///
    /// # Errors
    /// As [`Job::is_done`]; files that cannot be removed.
    pub fn clean(&self) -> Result<(), JobError> {
        let (labels, ..) = self.read_labels()?;
        training_loop::discard_state(&self.output, self.key(&ModelFiles::read(&self.base)?, &labels))
    }

    /// The labels that no validation row has.
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

    /// What an earlier run of the job left: `calibrate` and `promote_if` change no weights.
    fn found(&self, key: blake3::Hash) -> Found {
        let is_calibrated = |report: &Value| report["settings"]["calibrate"] == self.calibrate.to_json();
        if let Some(report) = report_of(&self.output, key) {
            return if is_calibrated(&report) { Found::Done } else { Found::Weights(self.output.clone(), report) };
        }
        let Some(report) = report_of(&self.candidate(), key) else { return Found::Nothing };
        let same = report["settings"]["promote_if"] == self.promote_if_to_json() && is_calibrated(&report);
        if same { Found::Rejected } else { Found::Weights(self.candidate(), report) }
    }

    /// Where the last epoch's model goes, if it is not the best.
    #[must_use]
    pub fn last(&self) -> PathBuf {
        beside(&self.output, ".last")
    }
}

/// What an earlier run of a job left.
enum Found {
    /// Nothing, or what other jobs left.
    Nothing,
    /// Its model, in its place.
    Done,
    /// Its model as candidate, refused by the same condition.
    Rejected,
    /// Its model's weights, in this folder with this report, calibrated or judged otherwise.
    Weights(PathBuf, Value),
}

/// Where the model is that `promote_if` refused a place at `output`, and why, if there is one.
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

/// Whether the model took its place.
#[derive(Debug, Clone, PartialEq)]
pub enum Promotion {
    /// It did.
    Published,
    /// The condition does not hold: the old model stays, and the new one is beside it.
    Rejected {
        /// Where the new model is.
        candidate: PathBuf,
        /// The condition, with what was measured.
        verdict: Verdict,
    },
}

/// What came of a job.
#[derive(Debug, Clone)]
pub struct Report {
    /// Whether the model took its place.
    pub promotion: Promotion,
    /// Whether anything was learned, rather than the model that was there calibrated and judged anew.
    pub trained: bool,
    /// Which epoch's weights it has, from 1.
    pub epoch: u64,
    /// Steps that were taken.
    pub steps: u64,
    /// All metrics on the validation rows; none without such rows.
    pub evaluation: Option<Evaluation>,
    /// What was fitted on them.
    pub calibration: Option<Calibration>,
    /// The same metrics with that.
    pub calibrated: Option<Evaluation>,
    /// The names of the logits, in order; empty for a regression.
    pub labels: Vec<String>,
    /// What `training.json` says.
    pub json: Value,
}

/// Does a job, or goes on with it where an earlier run was ended.
///
/// The state is in the folder `<output>.training`, which goes when the model is in its place. Where the output is this
/// job's model already but for its calibration, that alone is done; and where the candidate has its weights, it is
/// calibrated and judged anew. Computes on `pool`.
///
/// # Errors
/// Settings that make no sense, rows or a base that cannot be used, a training that diverges, files that cannot be
/// written. What was at `output` before is still there then, and the last saved state too.
pub fn run(job: &Job, device: &Device, pool: &ThreadPool, watch: &mut Watch) -> Result<Outcome<Report>, JobError> {
    pool.install(|| run_here(job, device, watch))
}

/// A job whose rows and settings were found to make sense.
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

    /// Tries out on `pool`, for about `budget`, how long the job will take; nothing is written.
    ///
    /// # Errors
    /// As [`run`], as far as a job can fail before its end.
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
                let mut trainer = Trainer::of_files(&base, objective, options, device, Kernels::for_training(device))?;
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
        return job.judge_again(&folder, &base, &data, objective, report, device, watch).map(Outcome::Finished);
    }
    let (options, kernels) = (job.hyper.options(job.training.len()), Kernels::for_training(device));
    let trainer = Trainer::of_files(&base, objective, options, device, kernels)?;
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
