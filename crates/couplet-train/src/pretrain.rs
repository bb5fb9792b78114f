//! Pretraining: from texts to a masked-language-model checkpoint, which fine-tuning can start from.
//!
//! **Source**: Devlin et al. 2019, section 3.1, without the next-sentence task, as Liu et al. 2019 (`RoBERTa`).

mod epoch_data;

use std::path::PathBuf;
use std::time::Duration;

use candle_core::Device;
use couplet_encoder::model::{CHART, ModelConfig, ModelFiles, Tokenizer};
use rayon::ThreadPool;
use serde_json::{Map, Value, json};

use super::hyper::Hyper;
use super::masking::{BERT_MASK_PROBABILITY, Chunking, Masking, Pieces};
use super::sampling::HoldOut;
use super::training_chart;
use super::training_loop::{
    self, EpochData, Event, Interval, JobError, Key, Learned, Outcome, Plan, Publication, REPORT, Score, Standing,
    Trial, Watch, base_config, discard_state, peak_memory, report_of,
};
use super::{MaskedWords, Objective, Trainer};
use epoch_data::{Texts, special_tokens};

/// The starting point of pretraining.
#[derive(Debug, Clone, PartialEq)]
pub enum Start {
    /// A Hugging Face folder: its encoder, and its masked-language head if it has one.
    Checkpoint(PathBuf),
    /// Random weights.
    Random {
        /// `config.json`, or a folder that has one.
        config: PathBuf,
        /// A folder with a tokenizer.
        tokenizer: PathBuf,
    },
}

/// A pretraining job: the start, the texts, the settings and the output.
#[derive(Debug, Clone)]
pub struct Job {
    /// The starting point.
    pub start: Start,
    /// The name of the start checkpoint in the report, if its folder is a copy.
    pub base_name: Option<String>,
    /// The folder that the model is written to; its previous content is replaced.
    pub output: PathBuf,
    /// The training texts. A text that is longer than a sequence is split into several. All texts are kept in memory as
    /// tokens.
    pub texts: Vec<String>,
    /// The share of the texts to hold out for evaluation, by a hash of the text; none to hold out nothing.
    pub hold_out: Option<HoldOut>,
    /// The hyperparameters.
    pub hyper: Hyper,
    /// The share of tokens that is masked.
    pub mask_probability: f64,
    /// Further mask probabilities at which the held-out texts are evaluated, before and after training.
    pub also_measure: Vec<f64>,
    /// The interval between saves of the state.
    pub interval: Interval,
}

impl Job {
    /// Creates a job with the default settings, which hold out a twentieth of the texts.
    #[must_use]
    pub fn new(start: Start, output: impl Into<PathBuf>) -> Self {
        Self {
            start,
            base_name: None,
            output: output.into(),
            texts: Vec::new(),
            hold_out: HoldOut::try_new(0.05, 42).ok(),
            hyper: Hyper { learning_rate: 1e-4, ..Hyper::default() },
            mask_probability: BERT_MASK_PROBABILITY,
            also_measure: Vec::new(),
            interval: Interval::Seconds(60.0),
        }
    }

    /// Returns true if the output holds this job's model; see [`super::finetune::Job::is_done`].
    ///
    /// # Errors
    /// A start that cannot be read.
    pub fn is_done(&self) -> Result<bool, JobError> {
        Ok(self.output.exists() && report_of(&self.output, self.key(&self.files()?)).is_some())
    }

    /// Removes the state of a run that was killed after it had published its model.
    ///
    /// # Errors
    /// As [`Job::is_done`]; files that cannot be removed.
    pub fn clean(&self) -> Result<(), JobError> {
        discard_state(&self.output, self.key(&self.files()?))
    }

    /// Reads the files of the starting point.
    fn files(&self) -> Result<Files, JobError> {
        Ok(match &self.start {
            Start::Checkpoint(folder) => {
                let files = ModelFiles::read(folder)?;
                Files { config: files.clone(), tokenizer: files }
            }
            Start::Random { config, tokenizer } => {
                Files { config: ModelFiles::read_config(config)?, tokenizer: ModelFiles::read(tokenizer)? }
            }
        })
    }
}

/// The files that a job starts from.
struct Files {
    /// The files with the `config.json` of the model, and the weights if there are any.
    config: ModelFiles,
    /// The files with the tokenizer.
    tokenizer: ModelFiles,
}

/// The evaluation at one mask probability. The same tokens are masked before and after training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The mask probability.
    pub mask_probability: f64,
    /// Before the first step.
    pub before: MaskedWords,
    /// With the published weights.
    pub after: MaskedWords,
}

/// The result of a job.
#[derive(Debug, Clone)]
pub struct Report {
    /// The epoch of the model's weights; 0 if no epoch was better than the start.
    pub epoch: u64,
    /// The number of steps.
    pub steps: u64,
    /// The number of batches without a masked token, which take no step.
    pub skipped: u64,
    /// The evaluations, the job's own mask probability first; empty if nothing was held out.
    pub measured: Vec<Measured>,
    /// The contents of `training.json`.
    pub json: Value,
}

/// Runs a job, or resumes it from the state of an earlier run; see [`super::finetune::run`].
///
/// # Errors
/// Invalid settings, unusable texts or start, diverged training, files that cannot be written. The previous content of
/// `output` and the last saved state are kept then.
pub fn run(job: &Job, device: &Device, pool: &ThreadPool, watch: &mut Watch) -> Result<Outcome<Report>, JobError> {
    pool.install(|| run_here(job, device, watch))
}

impl Job {
    /// Reads the tokenizer, and encodes all texts.
    fn prepare(&self) -> Result<(Files, ModelConfig, Texts), JobError> {
        let files = self.files()?;
        let config = ModelConfig::load(&files.config)?;
        self.hyper.check(config.max_position_embeddings)?;
        let tokenizer = Tokenizer::load(&files.tokenizer, &config)?;
        let special = special_tokens(&tokenizer)?;
        let pieces = Pieces::of_tokenizer(tokenizer.inner(), &special.mask)?;
        let chunking = Chunking::try_new(self.hyper.max_length, special.cls, special.sep)?;
        let masking = Masking::try_new(self.mask_probability, self.hyper.seed)?;
        let data = Texts::new(self, &tokenizer, pieces, &chunking, masking)?;
        if let (Some(patience), 0) = (self.hyper.patience, data.held_out()) {
            let expected = "held-out texts to evaluate on, or no patience".into();
            return Err(JobError::Setting {
                setting: "patience",
                expected,
                found: format!("{patience} and none held out"),
            });
        }
        Ok((files, config, data))
    }

    fn trainer(&self, files: &Files, config: &ModelConfig, data: &Texts, device: &Device) -> Result<Trainer, JobError> {
        let options = self.hyper.options(data.rows());
        Ok(match &self.start {
            Start::Checkpoint(_) => Trainer::of_files(&files.config, Objective::MaskedWords, options, device)?,
            Start::Random { .. } => Trainer::from_config(config.clone(), Objective::MaskedWords, options, device)?,
        })
    }

    /// Estimates the duration of the job by running a part of it on `pool` for about `budget`; writes nothing.
    ///
    /// # Errors
    /// As [`run`], for every failure that can occur before the end of a job.
    pub fn run_trial(&self, device: &Device, pool: &ThreadPool, budget: Duration) -> Result<Trial, JobError> {
        pool.install(|| {
            let (files, config, data) = self.prepare()?;
            let key = self.key(&files);
            let standing = match report_of(&self.output, key) {
                Some(_) => Standing::Done,
                None => training_loop::standing(&self.output, key),
            };
            let mut trial =
                Trial { held_out: data.held_out(), tokens: data.tokens(), ..Trial::new(standing, &self.hyper, &data) };
            if trial.trains() {
                let mut trainer = self.trainer(&files, &config, &data, device)?;
                trial.pace = Some(training_loop::run_trial(&mut trainer, &data, &self.hyper, budget)?);
                for examples in data.held_out_examples() {
                    // The model is evaluated before the first epoch too.
                    let times = self.hyper.epochs + 1;
                    trial.time_measuring(examples, times, |part| Ok(trainer.masked_words(part).map(|_| ())?))?;
                }
            }
            Ok(trial)
        })
    }
}

fn run_here(job: &Job, device: &Device, watch: &mut Watch) -> Result<Outcome<Report>, JobError> {
    let (files, config, data) = job.prepare()?;
    let trainer = job.trainer(&files, &config, &data, device)?;
    let key = job.key(&files);
    let files = Files { config: files.config.without_weights(), tokenizer: files.tokenizer.without_weights() };
    watch.emit(&Event::Prepared {
        rows: data.rows(),
        held_out: data.held_out(),
        tokens: data.tokens(),
        truncated: 0,
        total_steps: job.hyper.total_steps(data.rows()),
    });
    let plan = Plan { output: &job.output, key, hyper: &job.hyper, interval: job.interval };
    match training_loop::run(&plan, &data, trainer, watch)? {
        Outcome::Finished(learned) => job.finish(&files, &config, &data, learned, watch).map(Outcome::Finished),
        Outcome::Interrupted { step, total_steps, state } => Ok(Outcome::Interrupted { step, total_steps, state }),
    }
}

impl Job {
    fn key(&self, files: &Files) -> blake3::Hash {
        let mut key = Key::new("pretrain");
        if let Start::Random { .. } = &self.start {
            key.text("random");
            key.files(&files.config);
        }
        key.files(&files.tokenizer);
        key.text(&format!("{:?} {:?}", self.hyper, self.hold_out));
        key.text(&format!("{} {:?}", self.mask_probability, self.also_measure));
        self.texts.iter().for_each(|text| key.text(text));
        key.finish()
    }

    fn finish(
        &self,
        files: &Files,
        config: &ModelConfig,
        data: &Texts,
        mut learned: Learned,
        watch: &mut Watch,
    ) -> Result<Report, JobError> {
        let scores = |place: usize| learned.progress.epochs().get(place).map(|epoch| epoch.scores.clone());
        let before = data.measured(&scores(0).unwrap_or_default());
        let best = learned.progress.best().map(|best| best.scores.clone()).unwrap_or_default();
        let measured = before
            .into_iter()
            .zip(data.measured(&best))
            .map(|((mask_probability, before), (_, after))| Measured { mask_probability, before, after });
        let measured: Vec<Measured> = measured.collect();
        learned.load_best()?;
        let epoch = learned.progress.best().map_or(self.hyper.epochs, |best| best.epoch);
        let json = self.report(data, &learned, &measured, epoch);
        let publication = Publication {
            config: Self::config(files, config)?,
            tokenizer: &files.tokenizer,
            documents: vec![(REPORT, json.clone())],
            chart: training_chart::of_training(&json).map(|chart| (CHART, chart)),
        };
        publication.publish(&learned.trainer, &self.output)?;
        watch.emit(&Event::Published { folder: &self.output });
        let (steps, skipped) = (learned.trainer.steps(), learned.progress.skipped);
        learned.discard_state()?;
        Ok(Report { epoch, steps, skipped, measured, json })
    }

    /// Builds the model's `config.json`.
    fn config(files: &Files, model: &ModelConfig) -> Result<Map<String, Value>, JobError> {
        let mut config = base_config(&files.config)?;
        config.insert("architectures".into(), json!([model.family.class("ForMaskedLM")]));
        config.insert("tie_word_embeddings".into(), true.into());
        Ok(config)
    }

    fn report(&self, data: &Texts, learned: &Learned, measured: &[Measured], epoch: u64) -> Value {
        let words = |words: &MaskedWords| {
            json!({
                "loss": (words.words > 0).then_some(words.loss),
                "perplexity": words.perplexity(),
                "accuracy": words.accuracy(),
                "words": words.words,
            })
        };
        let measured = measured.iter().map(
            |m| json!({ "mask_probability": m.mask_probability, "before": words(&m.before), "after": words(&m.after) }),
        );
        let start = match &self.start {
            Start::Checkpoint(folder) => self.base_name.as_deref().map_or_else(|| json!(folder), |name| json!(name)),
            Start::Random { config, .. } => json!({ "random": config }),
        };
        let mut settings = self.hyper.to_json(learned.trainer.dropout());
        settings["mask_probability"] = self.mask_probability.into();
        let mut json = json!({
            "kind": "pretrain",
            "job": learned.key(),
            "couplet": env!("CARGO_PKG_VERSION"),
            "base": start,
            "settings": settings,
            "rows": { "texts": self.texts.len(), "training": data.rows(), "validation": data.held_out() },
            "steps": learned.trainer.steps(),
            "epoch": epoch,
            "held_out": measured.collect::<Vec<_>>(),
            "peak_memory_bytes": peak_memory(),
        });
        if let Some(json) = json.as_object_mut() {
            json.extend(learned.progress.to_json(data.scores()));
        }
        json
    }
}

/// Returns the scores at each mask probability.
fn scores(shares: &[f64]) -> Vec<Score> {
    use super::metrics::Better::{Higher, Lower};
    let at = |place: usize, share: f64| if place == 0 { String::new() } else { format!("_at_{share}") };
    let scores = shares.iter().enumerate().flat_map(|(place, share)| {
        let named = [("loss", Lower), ("perplexity", Lower), ("masked_accuracy", Higher), ("masked_words", Higher)];
        named.map(|(name, better)| Score { name: format!("{name}{}", at(place, *share)), better })
    });
    scores.collect()
}
