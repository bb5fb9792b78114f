//! Pretraining: from texts to a masked-language-model checkpoint, which fine-tuning can start from.
//!
//! **Source**: Devlin et al. 2019, section 3.1, without the next-sentence task, as Liu et al. 2019 (`RoBERTa`).

mod epoch_data;

use std::path::PathBuf;

use couplet_encoder::model::Tokenizer;
use serde_json::{Value, json};

use super::hyper::Hyper;
use super::job::{self, Base, Kind, Prepared};
use super::masking::{BERT_MASK_PROBABILITY, Chunking, Masking, Pieces};
use super::sampling::HoldOut;
use super::training_loop::{EpochData, Event, JobError, Key, Publication, REPORT, Score, TrainedModel, Watch};
use super::{MaskedWords, Objective, training_chart};
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

/// Pretraining: the start, the texts and the settings besides the hyperparameters.
#[derive(Debug, Clone)]
pub struct Pretraining {
    /// The starting point.
    pub start: Start,
    /// The training texts. A text that is longer than a sequence is split into several. All texts are kept in memory as
    /// tokens.
    pub texts: Vec<String>,
    /// The share of the texts to hold out for evaluation, by a hash of the text; none to hold out nothing.
    pub hold_out: Option<HoldOut>,
    /// The share of tokens that is masked.
    pub mask_probability: f64,
    /// Further mask probabilities at which the held-out texts are evaluated, before and after training.
    pub also_measure: Vec<f64>,
}

/// A pretraining job.
pub type Job = job::Job<Pretraining>;

impl Job {
    /// Creates a job with the default settings, which hold out a twentieth of the texts.
    #[must_use]
    pub fn new(start: Start, output: impl Into<PathBuf>) -> Self {
        let kind = Pretraining {
            start,
            texts: Vec::new(),
            hold_out: HoldOut::try_new(0.05, 42).ok(),
            mask_probability: BERT_MASK_PROBABILITY,
            also_measure: Vec::new(),
        };
        let hyper = Hyper { learning_rate: 1e-4, ..Hyper::default() };
        Self { hyper, ..Self::with_defaults(kind, output) }
    }
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

impl Kind for Pretraining {
    const NAME: &'static str = "pretrain";
    type Data = Texts;
    type Report = Report;

    fn read_base(&self) -> Result<Base, JobError> {
        match &self.start {
            Start::Checkpoint(folder) => Base::read(folder),
            Start::Random { config, tokenizer } => Base::read_random(config, tokenizer),
        }
    }

    fn base_to_json(&self) -> Value {
        match &self.start {
            Start::Checkpoint(folder) => json!(folder),
            Start::Random { config, .. } => json!({ "random": config }),
        }
    }

    fn hash(&self, hyper: &Hyper, key: &mut Key) -> Result<(), JobError> {
        key.text(&format!("{hyper:?} {:?}", self.hold_out));
        key.text(&format!("{} {:?}", self.mask_probability, self.also_measure));
        self.texts.iter().for_each(|text| key.text(text));
        Ok(())
    }

    fn prepare(job: &Job, base: Base, key: blake3::Hash) -> Result<Prepared<Texts>, JobError> {
        let tokenizer = Tokenizer::load(&base.tokenizer, &base.config)?;
        let special = special_tokens(&tokenizer)?;
        let pieces = Pieces::of_tokenizer(tokenizer.inner(), &special.mask)?;
        let chunking = Chunking::try_new(job.hyper.max_length, special.cls, special.sep)?;
        let masking = Masking::try_new(job.kind.mask_probability, job.hyper.seed)?;
        let data = Texts::new(job, &tokenizer, pieces, &chunking, masking)?;
        if let (Some(patience), 0) = (job.hyper.patience, data.held_out_rows()) {
            let expected = "held-out texts to evaluate on, or no patience".into();
            let found = format!("{patience} and none held out");
            return Err(JobError::Setting { setting: "patience", expected, found });
        }
        let (objective, tokens) = (Objective::MaskedWords, data.tokens());
        Ok(Prepared { base, key, data, objective, tokens, truncated: 0, labels: Vec::new() })
    }

    fn finish(
        job: &Job,
        prepared: &Prepared<Texts>,
        trained: &mut TrainedModel,
        watch: &mut Watch,
    ) -> Result<Report, JobError> {
        let data = &prepared.data;
        let scores = |place: usize| trained.progress.epochs().get(place).map(|epoch| epoch.scores.clone());
        let before = data.measured(&scores(0).unwrap_or_default());
        let best = trained.progress.best().map(|best| best.scores.clone()).unwrap_or_default();
        let measured = before
            .into_iter()
            .zip(data.measured(&best))
            .map(|((mask_probability, before), (_, after))| Measured { mask_probability, before, after });
        let measured: Vec<Measured> = measured.collect();
        trained.load_best()?;
        let mut json = job.common_report(prepared, trained);
        json["settings"]["mask_probability"] = job.kind.mask_probability.into();
        let (training, validation) = (data.rows(), data.held_out_rows());
        json["rows"] = json!({ "texts": job.kind.texts.len(), "training": training, "validation": validation });
        json["held_out"] = measured.iter().copied().map(Measured::to_json).collect();
        let mut config = prepared.base.config_for("ForMaskedLM")?;
        config.insert("tie_word_embeddings".into(), true.into());
        let (documents, chart) = (vec![(REPORT, json.clone())], training_chart::of_training(&json));
        let publication = Publication { config, tokenizer: &prepared.base.tokenizer, documents, chart };
        publication.publish(&trained.trainer, &job.output)?;
        watch.emit(&Event::Published { folder: &job.output });
        let (steps, skipped) = (trained.trainer.steps(), trained.progress.skipped);
        Ok(Report { epoch: trained.epoch(), steps, skipped, measured, json })
    }
}

impl Measured {
    fn to_json(self) -> Value {
        let words = |words: &MaskedWords| {
            json!({
                "loss": (words.words > 0).then_some(words.loss),
                "perplexity": words.perplexity(),
                "accuracy": words.accuracy(),
                "words": words.words,
            })
        };
        let (before, after) = (words(&self.before), words(&self.after));
        json!({ "mask_probability": self.mask_probability, "before": before, "after": after })
    }
}

/// Returns the scores at each mask probability.
fn scores(shares: &[f64]) -> Vec<Score> {
    use super::statistics::metrics::Better::{Higher, Lower};
    let at = |place: usize, share: f64| if place == 0 { String::new() } else { format!("_at_{share}") };
    let scores = shares.iter().enumerate().flat_map(|(place, share)| {
        let named = [("loss", Lower), ("perplexity", Lower), ("masked_accuracy", Higher), ("masked_words", Higher)];
        named.map(|(name, better)| Score { name: format!("{name}{}", at(place, *share)), better })
    });
    scores.collect()
}
