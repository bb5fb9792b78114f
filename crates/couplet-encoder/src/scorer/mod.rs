//! Windows of text pairs to predictions: tokenize, pack without padding, run the encoder, read the head.
//!
//! ```text
//! Window ─ claim texts nobody has scored ─┬─ tokenize ─┬─ plan ─┬─ forward ─┬─ Predictions
//!          (memo)                         └─ …         ┘        └─ …        ┘   (in the window's order)
//! ```
//!
//! Every step runs as jobs of one [`Pool`]; a job is single-threaded. Several windows may be under way at
//! once, so that the end of one does not idle the cores. Nothing here knows of DataFusion.

mod device;
mod memo;
mod pack;
mod pool;
mod prediction;
mod self_check;
mod tally;
mod trial;
mod window;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use couplet_storage::backtrace::message;
use couplet_storage::hub::{ModelFolder, model_folder};
use couplet_storage::objects::ObjectsError;
use couplet_storage::place::Place;
use thiserror::Error;

pub use device::{DeviceError, DeviceSetting};
pub use pack::plan as plan_batches;
pub use pool::Pool;
pub use prediction::{Prediction, Rejection};
pub use tally::{Counts, PADDED_BATCH, Tally};
pub use trial::{Pace, Tokenized};
pub use window::{TextColumn, Window};

use crate::model::{Encoding, LoadError, Makings, Model, ModelFiles, PackedBatch, Tokenizer};
pub use crate::ops::Precision;

use memo::{Answer, Memo, Memory, Slot, text_key};
use tally::WindowCounts;
use window::Work;

/// The largest text that is scored, in bytes; `max_length` cuts far smaller ones anyway.
pub const MAX_TEXT_BYTES: usize = 1 << 20;

/// Tokens of a packed batch where nothing else is asked for.
pub const DEFAULT_BATCH_TOKENS: usize = 1024;

/// How a model is to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScorerOptions {
    /// Tokens of a sequence, special tokens included; the model's own limit if none.
    pub max_length: Option<usize>,
    /// Tokens of a packed batch.
    pub batch_tokens: Option<usize>,
    /// Where the encoder runs.
    pub device: DeviceSetting,
    /// In which numbers it multiplies.
    pub precision: PrecisionSetting,
}

/// The precision that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PrecisionSetting {
    /// The quickest that a self-check at load finds to change nothing that matters.
    Auto,
    /// This one.
    Of(Precision),
}

impl Default for PrecisionSetting {
    fn default() -> Self {
        Self::Of(Precision::F32)
    }
}

/// A model that cannot be run as asked for.
#[derive(Debug, Error)]
pub enum ScorerError {
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model's name is no place.
    #[error("model {name:?}: {problem}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The checkpoint cannot be fetched from where it is.
    #[error("model {0}")]
    Fetch(#[from] ObjectsError),
    /// The checkpoint was fetched and cannot be run as asked for.
    #[error("{}", error.to_string().replace(&*copy.to_string_lossy(), place))]
    Fetched {
        /// Where it is.
        place: String,
        /// Where its copy is.
        copy: PathBuf,
        /// What is wrong with the copy.
        #[source]
        error: Box<ScorerError>,
    },
    /// There is no such device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The precision is not to be had on the device.
    #[error("precision = \"{precision}\" needs {}, which is not where the model runs here; use \"auto\" or \"f32\"", needs(*precision))]
    Precision {
        /// What was asked for.
        precision: Precision,
    },
    /// `max_length` does not suit the model.
    #[error("max_length = {max_length} does not suit {model}: {problem}")]
    MaxLength {
        /// The model's folder.
        model: String,
        /// What was asked for.
        max_length: usize,
        /// Why not.
        problem: String,
    },
    /// The encoder failed while it ran.
    #[error("the encoder failed on a batch of {sequences} sequences and {tokens} tokens: {problem}")]
    Forward {
        /// Sequences of the batch.
        sequences: usize,
        /// Tokens of the batch.
        tokens: usize,
        /// What the device said.
        problem: String,
    },
    /// A job ended without an answer.
    #[error("scoring was stopped")]
    Stopped,
}

fn needs(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "any CPU or GPU",
        Precision::Int16 => "a CPU with AVX2",
        Precision::F16 | Precision::Bf16 => "a GPU (device = \"cuda\" or \"metal\")",
    }
}

impl ScorerError {
    /// Names the place of a model instead of that of its copy.
    #[must_use]
    pub fn of_copy(self, place: &Place, copy: &Path) -> Self {
        match place {
            Place::Local(_) => self,
            elsewhere => Self::Fetched {
                place: elsewhere.to_string().trim_end_matches('/').to_owned(),
                copy: copy.to_owned(),
                error: Box::new(self),
            },
        }
    }

    /// Whether the model cannot be run as asked for, rather than having failed while it ran.
    #[must_use]
    pub fn is_mistake(&self) -> bool {
        match self {
            Self::Fetch(error) => error.trouble.is_mistake(),
            Self::Fetched { error, .. } => error.is_mistake(),
            Self::Load(error) => error.is_mistake(),
            Self::Name { .. } | Self::Device(_) | Self::Precision { .. } | Self::MaxLength { .. } => true,
            Self::Forward { .. } | Self::Stopped => false,
        }
    }
}

/// A loaded model that scores windows; cheap to clone.
#[derive(Debug, Clone)]
pub struct Scorer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    model: Model,
    precision: Precision,
    revision: Option<String>,
    tokenizer: Tokenizer,
    max_length: usize,
    batch_tokens: usize,
    pool: Pool,
    memo: Memo,
    tally: Tally,
}

impl Shared {
    /// Runs a batch of these sequences: the logits of each, and their tokens together.
    fn forward<'e>(
        &self,
        encodings: impl Iterator<Item = &'e Encoding>,
    ) -> Result<(Vec<Vec<f32>>, usize), ScorerError> {
        let mut batch = PackedBatch::default();
        for encoding in encodings {
            batch.push(&encoding.input_ids, &encoding.token_type_ids);
        }
        let (sequences, tokens) = (batch.sequences(), batch.input_ids.len());
        let logits = self.model.forward(&batch).and_then(|logits| logits.to_vec2::<f32>());
        let failed = |e: candle_core::Error| ScorerError::Forward { sequences, tokens, problem: message(&e) };
        Ok((logits.map_err(failed)?, tokens))
    }
}

impl Scorer {
    /// Loads the model in `folder` to run on the threads of `pool`.
    ///
    /// # Errors
    /// A checkpoint, a device or a `max_length` that does not suit.
    pub fn load(folder: &Path, options: ScorerOptions, pool: &Pool) -> Result<Self, ScorerError> {
        let (model, precision) = Self::load_model(folder, options, pool)?;
        Self::assemble(model, precision, None, options, pool)
    }

    fn load_model(folder: &Path, options: ScorerOptions, pool: &Pool) -> Result<(Model, Precision), ScorerError> {
        let device = options.device.open()?;
        pool.install(|| match options.precision {
            PrecisionSetting::Auto => Ok(self_check::quickest(&ModelFiles::read(folder)?, &device)?),
            PrecisionSetting::Of(precision) => {
                let model = Model::load_at(folder, &device, precision)?;
                Ok((model.ok_or(ScorerError::Precision { precision })?, precision))
            }
        })
    }

    /// Loads the model at a place, from a copy where that is not on the local disk.
    ///
    /// # Errors
    /// As [`Scorer::load`]; a model that cannot be fetched.
    pub async fn open(place: &Place, options: ScorerOptions, pool: &Pool) -> Result<Self, ScorerError> {
        let ModelFolder { path, revision } = model_folder(place).await?;
        let (copy, pool) = (path.clone(), pool.clone());
        let loading = tokio::task::spawn_blocking(move || {
            let (model, precision) = Self::load_model(&path, options, &pool)?;
            Self::assemble(model, precision, revision, options, &pool)
        });
        loading.await.unwrap_or(Err(ScorerError::Stopped)).map_err(|error| error.of_copy(place, &copy))
    }

    fn assemble(
        model: Model,
        precision: Precision,
        revision: Option<String>,
        options: ScorerOptions,
        pool: &Pool,
    ) -> Result<Self, ScorerError> {
        let limit = model.max_length();
        let max_length = options.max_length.unwrap_or(limit);
        let unsuitable =
            |problem: String| ScorerError::MaxLength { model: model.folder.display().to_string(), max_length, problem };
        if max_length > limit {
            return Err(unsuitable(format!("it reads at most {limit} tokens")));
        }
        let tokenizer = model.tokenizer.with_max_length(max_length).map_err(unsuitable)?;
        // Probabilities, and once more where they are calibrated; or a logit.
        let numbers = model.config.labels.len().max(1) * if model.calibration.is_some() { 2 } else { 1 };
        Ok(Self(Arc::new(Shared {
            model,
            precision,
            revision,
            tokenizer,
            max_length,
            batch_tokens: options.batch_tokens.unwrap_or(DEFAULT_BATCH_TOKENS),
            pool: pool.clone(),
            memo: Memo::new(numbers),
            tally: Tally::default(),
        })))
    }

    /// A model that stands for one that does not exist yet, and of which nothing but sizes, tokens and times is true.
    ///
    /// # Errors
    /// As [`Scorer::load`].
    pub fn stand_in(makings: &Makings, options: ScorerOptions, pool: &Pool) -> Result<Self, ScorerError> {
        let device = options.device.open()?;
        let precision = match options.precision {
            PrecisionSetting::Of(precision) => precision,
            // What the self-check will say of a model that is not there is not known; its answer is mostly yes.
            PrecisionSetting::Auto if Precision::Int16.runs_on(&device) => Precision::Int16,
            PrecisionSetting::Auto => Precision::F32,
        };
        let model = pool.install(|| Model::stand_in(makings, &device, precision))?;
        let model = model.ok_or(ScorerError::Precision { precision })?;
        Self::assemble(model, precision, None, options, pool)
    }

    /// The model that is run.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.0.model
    }

    /// Threads that work for it.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.0.pool.threads()
    }

    /// In which numbers it multiplies.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.0.precision
    }

    /// The commit that it was read from, where it came from a hub.
    #[must_use]
    pub fn revision(&self) -> Option<&str> {
        self.0.revision.as_deref()
    }

    /// The most tokens of a sequence, special tokens included.
    #[must_use]
    pub fn max_length(&self) -> usize {
        self.0.max_length
    }

    /// What has been done so far.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.0.tally
    }

    /// Scores a window: one prediction or rejection a row, in the window's order.
    ///
    /// A prediction depends on the row's texts alone. Dropping the future stops the work between two batches.
    ///
    /// # Errors
    /// A failure of the encoder; bad texts are rejections, not errors.
    pub async fn score(&self, window: Window) -> Result<Vec<Result<Prediction, Rejection>>, ScorerError> {
        self.score_or_recall(window, Memory::Kept).await
    }

    /// The same for texts that will not come again, which are therefore not kept in memory.
    ///
    /// # Errors
    /// As [`Scorer::score`].
    pub async fn score_once(&self, window: Window) -> Result<Vec<Result<Prediction, Rejection>>, ScorerError> {
        self.score_or_recall(window, Memory::Asked).await
    }

    async fn score_or_recall(
        &self,
        window: Window,
        memory: Memory,
    ) -> Result<Vec<Result<Prediction, Rejection>>, ScorerError> {
        let shared = &self.0;
        let rejections: Vec<Option<Rejection>> = (0..window.len()).map(|row| window.rejection(row)).collect();
        let rows: Vec<usize> = (0..window.len()).filter(|&row| rejections[row].is_none()).collect();
        let window = Arc::new(window);

        // Texts that this window scored itself.
        let mut own = vec![false; rows.len()];
        let mut rows_to_plan = window.len();
        // More than one round only where another window abandoned texts that this one waited for.
        let slots: Vec<Slot> = loop {
            let keys = rows.iter().map(|&row| text_key(window.text(row), window.text_pair(row)));
            let claims = shared.memo.claim(keys, memory);
            let new: Vec<(usize, Slot)> = rows
                .iter()
                .zip(&claims)
                .filter(|(_, (_, new))| *new)
                .map(|(&row, (slot, _))| (row, Arc::clone(slot)))
                .collect();
            for (own, (_, new)) in own.iter_mut().zip(&claims) {
                *own |= new;
            }
            let slots: Vec<Slot> = claims.into_iter().map(|(slot, _)| slot).collect();
            Work::start(shared, &window, new, std::mem::take(&mut rows_to_plan)).finished().await?;
            shared.memo.wait_for(slots.iter()).await;
            if !slots.iter().any(|slot| matches!(slot.get(), Some(Answer::Abandoned))) {
                break slots;
            }
        };

        let mut answers = slots.iter();
        let outcomes: Vec<Result<Prediction, Rejection>> = rejections
            .into_iter()
            .map(|rejection| match rejection {
                Some(rejection) => Err(rejection),
                None => match answers.next().and_then(|slot| slot.get()) {
                    Some(Answer::Scored(prediction)) => Ok(prediction.clone()),
                    Some(Answer::Rejected(rejection)) => Err(rejection.clone()),
                    Some(Answer::Abandoned) | None => unreachable!("every slot was waited for"),
                },
            })
            .collect();
        let remembered =
            slots.iter().zip(own).filter(|(slot, own)| !own && matches!(slot.get(), Some(Answer::Scored(_))));
        shared.tally.window(&count(&outcomes, remembered.count()));
        Ok(outcomes)
    }

    /// Counts what another process scored with the same model, as if it had been scored here.
    pub fn credit(&self, outcomes: &[Result<Prediction, Rejection>]) {
        let counts = count(outcomes, 0);
        let scored = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        let tally = &self.0.tally;
        tally.planned(outcomes.len(), counts.tokens);
        tally.batch(scored, counts.tokens);
        tally.window(&counts);
    }
}

fn count(outcomes: &[Result<Prediction, Rejection>], remembered: usize) -> WindowCounts {
    let predictions = || outcomes.iter().filter_map(|outcome| outcome.as_ref().ok());
    let lengths: Vec<usize> = predictions().map(|p| p.tokens).collect();
    let mut counts = WindowCounts {
        rows: outcomes.len(),
        remembered,
        truncated: predictions().filter(|p| p.truncated).count(),
        tokens: lengths.iter().sum(),
        padding: pack::padding_of_batches(&lengths, PADDED_BATCH),
        ..WindowCounts::default()
    };
    for rejection in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        counts.rejected[rejection.kind()] += 1;
    }
    counts
}
