//! Training jobs: the part that fine-tuning and pretraining have in common.
//!
//! ```text
//!  Job ── Kind::prepare ──▶ Prepared ── training_loop::run ──▶ TrainedModel ── Kind::finish ──▶ <output>
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::Device;
use couplet_encoder::model::{ModelConfig, ModelFiles, clear_head, read_json};
use rayon::ThreadPool;
use serde_json::{Map, Value, json};

use super::hyper::Hyper;
use super::training_loop::{
    self, EpochData, Event, Interval, JobError, JobStatus, Key, Outcome, Plan, TrainedModel, Trial, Watch, peak_memory,
    report_of, with_suffix,
};
use super::{Objective, Trainer};

/// A training job: the base and the data of its kind, the settings and the output.
#[derive(Debug, Clone)]
pub struct Job<K> {
    /// The kind of training, with its base and rows.
    pub kind: K,
    /// The base's name in the report, if its folder is a copy.
    pub base_name: Option<String>,
    /// The folder that the model is written to; its previous content is replaced.
    pub output: PathBuf,
    /// The hyperparameters.
    pub hyper: Hyper,
    /// The interval between saves of the state.
    pub interval: Interval,
}

/// A kind of training: the steps in which fine-tuning and pretraining differ.
#[expect(clippy::missing_errors_doc, reason = "every error stops the job: see `Job::run`")]
pub trait Kind: Sized + Send + Sync + 'static {
    /// The name in reports, in job keys, and of the section in pipelines.
    const NAME: &'static str;
    /// The encoded rows.
    type Data: EpochData;
    /// The result of a job.
    type Report: Send + 'static;

    /// Reads the model to start from.
    fn read_base(&self) -> Result<Base, JobError>;
    /// Returns the base as it is named in `training.json`.
    fn base_to_json(&self) -> Value;
    /// Hashes everything besides the base that the weights depend on.
    fn hash(&self, hyper: &Hyper, key: &mut Key) -> Result<(), JobError>;
    /// Checks the settings, and encodes all rows.
    fn prepare(job: &Job<Self>, base: Base, key: blake3::Hash) -> Result<Prepared<Self::Data>, JobError>;
    /// Returns the model that an earlier run of the job left.
    fn existing(job: &Job<Self>, key: blake3::Hash) -> Option<Existing> {
        let report = report_of(&job.output, key)?;
        Some(Existing { status: JobStatus::Done, folder: job.output.clone(), report })
    }
    /// Emits warnings about the rows, and finishes the job if it has nothing to train.
    fn without_training(
        _job: &Job<Self>,
        _prepared: &Prepared<Self::Data>,
        _device: &Device,
        _watch: &mut Watch,
    ) -> Result<Option<Self::Report>, JobError> {
        Ok(None)
    }
    /// Evaluates and publishes the best weights.
    fn finish(
        job: &Job<Self>,
        prepared: &Prepared<Self::Data>,
        trained: &mut TrainedModel,
        watch: &mut Watch,
    ) -> Result<Self::Report, JobError>;
}

/// The model that a job starts from.
pub struct Base {
    /// The files with the `config.json`, and the weights unless they are random.
    model: ModelFiles,
    pub(super) tokenizer: ModelFiles,
    pub(super) config: ModelConfig,
    /// True if the weights are random.
    random: bool,
}

impl Base {
    /// Reads a Hugging Face folder.
    pub(super) fn read(folder: &Path) -> Result<Self, JobError> {
        let model = ModelFiles::read(folder)?;
        Ok(Self { config: ModelConfig::load(&model)?, tokenizer: model.clone(), model, random: false })
    }

    /// Reads a `config.json`, for random weights, and the folder of a tokenizer.
    pub(super) fn read_random(config: &Path, tokenizer: &Path) -> Result<Self, JobError> {
        let (model, tokenizer) = (ModelFiles::read_config(config)?, ModelFiles::read(tokenizer)?);
        Ok(Self { config: ModelConfig::load(&model)?, tokenizer, model, random: true })
    }

    /// Returns the `config.json` of a model with another head; `head` is the suffix of its class in transformers.
    pub(super) fn config_for(&self, head: &str) -> Result<Map<String, Value>, JobError> {
        let mut config = match read_json(&self.model, self.model.config())? {
            Value::Object(config) => config,
            _ => Map::new(),
        };
        clear_head(&mut config);
        config.insert("architectures".into(), json!([self.config.family.class(head)]));
        Ok(config)
    }

    fn without_weights(self) -> Self {
        Self { model: self.model.without_weights(), tokenizer: self.tokenizer.without_weights(), ..self }
    }
}

/// A job with validated settings and encoded rows.
pub struct Prepared<D> {
    pub(super) base: Base,
    pub(super) key: blake3::Hash,
    pub(super) data: D,
    pub(super) objective: Objective,
    /// The number of tokens per epoch.
    pub(super) tokens: u64,
    /// The number of truncated rows.
    pub(super) truncated: usize,
    /// The names of the logits; empty if they have none.
    pub(super) labels: Vec<String>,
}

/// A model that an earlier run of a job left.
pub struct Existing {
    /// [`JobStatus::Done`], [`JobStatus::Rejected`] or [`JobStatus::ToCalibrate`].
    pub(super) status: JobStatus,
    pub(super) folder: PathBuf,
    /// The contents of its `training.json`.
    pub(super) report: Value,
}

impl<K: Kind> Job<K> {
    /// Creates a job with the default settings.
    pub(super) fn with_defaults(kind: K, output: impl Into<PathBuf>) -> Self {
        let interval = Interval::Seconds(60.0);
        Self { kind, base_name: None, output: output.into(), hyper: Hyper::default(), interval }
    }

    /// Returns the folder of a model that `promote_if` rejects.
    #[must_use]
    pub fn candidate(&self) -> PathBuf {
        with_suffix(&self.output, ".candidate")
    }

    /// Returns the status of the model that an earlier run of this job left; none if there is no such model. Two jobs
    /// are the same if base, rows and settings are equal. Reads the base and all rows; does not train.
    ///
    /// # Errors
    /// Labels or a base that cannot be used.
    pub fn status(&self) -> Result<Option<JobStatus>, JobError> {
        if !self.output.exists() && !self.candidate().exists() {
            return Ok(None);
        }
        let key = self.key(&self.kind.read_base()?)?;
        Ok(K::existing(self, key).map(|existing| existing.status))
    }

    /// Removes the state of a run that was killed after it had published its model.
    ///
    /// # Errors
    /// As [`Job::status`]; files that cannot be removed.
    pub fn clean(&self) -> Result<(), JobError> {
        training_loop::discard_state(&self.output, self.key(&self.kind.read_base()?)?)
    }

    /// Runs the job, or resumes it from the state of an earlier run.
    ///
    /// The state is in the folder `<output>.training`, which is removed after the model is published. If the output
    /// already holds this job's weights with another calibration, only calibration is redone. If the candidate folder
    /// holds this job's weights, they are calibrated and evaluated again. Computes on `pool`.
    ///
    /// # Errors
    /// Invalid settings, unusable rows or base, diverged training, files that cannot be written. The previous content
    /// of `output` and the last saved state are kept then.
    pub fn run(&self, device: &Device, pool: &ThreadPool, watch: &mut Watch) -> Result<Outcome<K::Report>, JobError> {
        pool.install(|| self.run_in_pool(device, watch))
    }

    fn run_in_pool(&self, device: &Device, watch: &mut Watch) -> Result<Outcome<K::Report>, JobError> {
        let prepared = self.prepare()?;
        if let Some(report) = K::without_training(self, &prepared, device, watch)? {
            return Ok(Outcome::Finished(report));
        }
        let trainer = self.trainer(&prepared, device)?;
        let prepared = Prepared { base: prepared.base.without_weights(), ..prepared };
        let data = &prepared.data;
        watch.emit(&Event::Prepared {
            rows: data.rows(),
            held_out: data.held_out_rows(),
            tokens: prepared.tokens,
            truncated: prepared.truncated,
            total_steps: self.hyper.total_steps(data.rows()),
        });
        let plan = Plan { output: &self.output, key: prepared.key, hyper: &self.hyper, interval: self.interval };
        match training_loop::run(&plan, data, trainer, watch)? {
            Outcome::Finished(mut trained) => {
                let report = K::finish(self, &prepared, &mut trained, watch)?;
                trained.discard_state()?;
                Ok(Outcome::Finished(report))
            }
            Outcome::Interrupted { step, total_steps, state } => Ok(Outcome::Interrupted { step, total_steps, state }),
        }
    }

    /// Estimates the duration of the job by running a part of it on `pool` for about `budget`; writes nothing.
    ///
    /// # Errors
    /// As [`Job::run`], for every failure that can occur before the end of a job.
    pub fn run_trial(&self, device: &Device, pool: &ThreadPool, budget: Duration) -> Result<Trial, JobError> {
        pool.install(|| {
            let prepared = self.prepare()?;
            let existing = K::existing(self, prepared.key).map(|existing| existing.status);
            let data = &prepared.data;
            let mut trial = Trial {
                status: existing.unwrap_or_else(|| training_loop::status(&self.output, prepared.key)),
                rows: data.rows(),
                held_out: data.held_out_rows(),
                tokens: prepared.tokens,
                truncated: prepared.truncated,
                labels: prepared.labels.clone(),
                total_steps: self.hyper.total_steps(data.rows()),
                batch_size: self.hyper.batch_size,
                pace: None,
                evaluation_seconds: 0.0,
            };
            if trial.trains() {
                let mut trainer = self.trainer(&prepared, device)?;
                trial.pace = Some(training_loop::run_trial(&mut trainer, data, &self.hyper, budget)?);
                let times = self.hyper.epochs + u64::from(data.measures_initial_model());
                for examples in data.held_out() {
                    trial.time_measuring(examples, times, |part| data.try_measure(&trainer, part))?;
                }
            }
            Ok(trial)
        })
    }

    /// Builds the part of `training.json` that all kinds of training have.
    pub(super) fn common_report(&self, prepared: &Prepared<K::Data>, trained: &TrainedModel) -> Value {
        let mut json = trained.progress.to_json(prepared.data.scores());
        json["kind"] = K::NAME.into();
        json["job"] = prepared.key.to_hex().as_str().into();
        json["couplet"] = env!("CARGO_PKG_VERSION").into();
        json["base"] = self.base_name.as_deref().map_or_else(|| self.kind.base_to_json(), Value::from);
        json["settings"] = self.hyper.to_json(trained.trainer.dropout());
        json["steps"] = trained.trainer.steps().into();
        json["epoch"] = trained.epoch().into();
        json["peak_memory_bytes"] = peak_memory().into();
        json
    }

    fn prepare(&self) -> Result<Prepared<K::Data>, JobError> {
        let base = self.kind.read_base()?;
        self.hyper.check(base.config.max_position_embeddings)?;
        let key = self.key(&base)?;
        K::prepare(self, base, key)
    }

    /// Hashes everything that the weights depend on.
    fn key(&self, base: &Base) -> Result<blake3::Hash, JobError> {
        let mut key = Key::new(K::NAME);
        if base.random {
            key.text("random");
            key.files(&base.model);
        }
        key.files(&base.tokenizer);
        self.kind.hash(&self.hyper, &mut key)?;
        Ok(key.finish())
    }

    fn trainer(&self, prepared: &Prepared<K::Data>, device: &Device) -> Result<Trainer, JobError> {
        let Prepared { base, data, objective, .. } = prepared;
        let (objective, options) = (objective.clone(), self.hyper.options(data.rows()));
        Ok(if base.random {
            Trainer::from_config(base.config.clone(), objective, options, device)?
        } else {
            Trainer::of_files(&base.model, objective, options, device)?
        })
    }
}
