//! Scoring: windows of text pairs to predictions. Tokenizes, packs without padding, and runs the encoder and its head.
//!
//! ```text
//! Window ─ claim texts not in the cache ─┬─ tokenize ─┬─ plan ─┬─ forward ─┬─ Predictions
//!          (memo)                        └─ …         ┘        └─ …        ┘   (in the window's order)
//! ```
//!
//! Every step runs as single-threaded jobs of one [`Pool`]. Several windows can be in progress at the same time, so
//! that no core is idle near the end of a window. This module does not depend on DataFusion.

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

use crate::model::{Encoding, LoadError, Model, ModelFiles, PackedBatch, Tokenizer, UntrainedModel};
pub use crate::ops::Precision;

use memo::{Answer, CacheMode, Memo, Slot, text_key};
use tally::WindowCounts;
use window::Work;

/// The largest text that is scored, in bytes. `max_length` truncates far smaller texts in any case.
pub const MAX_TEXT_BYTES: usize = 1 << 20;

/// The default for [`ScorerOptions::batch_tokens`], in tokens.
pub const DEFAULT_BATCH_TOKENS: usize = 1024;

/// The settings of a [`Scorer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScorerOptions {
    /// The most tokens of a sequence, special tokens included. The default is the model's limit.
    pub max_length: Option<usize>,
    /// The most tokens of a packed batch. The default is [`DEFAULT_BATCH_TOKENS`].
    pub batch_tokens: Option<usize>,
    /// The device of the encoder.
    pub device: DeviceSetting,
    /// The numeric precision of the encoder.
    pub precision: PrecisionSetting,
}

/// The requested numeric precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PrecisionSetting {
    /// The fastest precision that passes the self-check at load, which compares its results with those of f32.
    Auto,
    /// A fixed precision.
    Of(Precision),
}

impl Default for PrecisionSetting {
    fn default() -> Self {
        Self::Of(Precision::F32)
    }
}

/// An error of loading or running a model.
#[derive(Debug, Error)]
pub enum ScorerError {
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model's name is not a valid location.
    #[error("model {name:?}: {problem}")]
    Name {
        /// The name.
        name: String,
        /// The reason.
        problem: String,
    },
    /// The checkpoint cannot be downloaded.
    #[error("model {0}")]
    Fetch(#[from] ObjectsError),
    /// The checkpoint was downloaded but cannot be used.
    #[error("{}", error.to_string().replace(&*copy.to_string_lossy(), place))]
    Fetched {
        /// The location of the model.
        place: String,
        /// The path of the local copy.
        copy: PathBuf,
        /// The error, which names the local copy.
        #[source]
        error: Box<ScorerError>,
    },
    /// The device is not available.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device does not support the precision.
    #[error("precision = \"{precision}\" needs {}, which is not where the model runs here; use \"auto\" or \"f32\"", requirement(*precision))]
    Precision {
        /// The requested precision.
        precision: Precision,
    },
    /// `max_length` is out of range for the model.
    #[error("max_length = {max_length} does not suit {model}: {problem}")]
    MaxLength {
        /// The model's folder.
        model: String,
        /// The requested length in tokens.
        max_length: usize,
        /// The reason.
        problem: String,
    },
    /// The encoder failed on a batch.
    #[error("the encoder failed on a batch of {sequences} sequences and {tokens} tokens: {problem}")]
    Forward {
        /// The number of sequences in the batch.
        sequences: usize,
        /// The number of tokens in the batch.
        tokens: usize,
        /// The error of the device.
        problem: String,
    },
    /// A job ended without a result.
    #[error("scoring was stopped")]
    Stopped,
}

/// Returns the hardware that a precision requires.
fn requirement(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "any CPU or GPU",
        Precision::Int16 => "a CPU with AVX2",
        Precision::F16 | Precision::Bf16 => "a GPU (device = \"cuda\" or \"metal\")",
    }
}

impl ScorerError {
    /// Makes the error name the location of the model instead of the path of its local copy.
    #[must_use]
    pub fn of_copy(self, place: &Place, copy: &Path) -> Self {
        match place {
            Place::Local(_) => self,
            remote => Self::Fetched {
                place: remote.to_string().trim_end_matches('/').to_owned(),
                copy: copy.to_owned(),
                error: Box::new(self),
            },
        }
    }

    /// Returns true if the model or the settings are invalid, and false if scoring failed at run time.
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

/// A loaded model that scores windows. Cloning is cheap.
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
    /// Runs the sequences as one batch and returns the logits of each, and the number of tokens in the batch.
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
    /// Loads the model in `folder`, to run on the threads of `pool`.
    ///
    /// # Errors
    /// Returns an error if the checkpoint cannot be loaded, the device or the precision is not available, or
    /// `max_length` is out of range.
    pub fn load(folder: &Path, options: ScorerOptions, pool: &Pool) -> Result<Self, ScorerError> {
        let (model, precision) = Self::load_model(folder, options, pool)?;
        Self::assemble(model, precision, None, options, pool)
    }

    fn load_model(folder: &Path, options: ScorerOptions, pool: &Pool) -> Result<(Model, Precision), ScorerError> {
        let device = options.device.open()?;
        pool.install(|| match options.precision {
            PrecisionSetting::Auto => Ok(self_check::load_fastest(&ModelFiles::read(folder)?, &device)?),
            PrecisionSetting::Of(precision) => {
                let model = Model::load_at(folder, &device, precision)?;
                Ok((model.ok_or(ScorerError::Precision { precision })?, precision))
            }
        })
    }

    /// Loads the model at a location. A remote model is downloaded first.
    ///
    /// # Errors
    /// Returns the errors of [`Scorer::load`], and an error if the download fails.
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
        // A prediction has a probability per label, twice if it is calibrated, or one score.
        let values = model.config.labels.len().max(1) * if model.calibration.is_some() { 2 } else { 1 };
        Ok(Self(Arc::new(Shared {
            model,
            precision,
            revision,
            tokenizer,
            max_length,
            batch_tokens: options.batch_tokens.unwrap_or(DEFAULT_BATCH_TOKENS),
            pool: pool.clone(),
            memo: Memo::new(values),
            tally: Tally::default(),
        })))
    }

    /// Creates a scorer for a model that is not trained yet. Its sizes, token counts and speed are those of the future
    /// model; its predictions are meaningless.
    ///
    /// # Errors
    /// Returns the errors of [`Scorer::load`].
    pub fn untrained(inputs: &UntrainedModel, options: ScorerOptions, pool: &Pool) -> Result<Self, ScorerError> {
        let device = options.device.open()?;
        let precision = match options.precision {
            PrecisionSetting::Of(precision) => precision,
            // The result of the self-check is not known yet. Most models pass it.
            PrecisionSetting::Auto if Precision::Int16.runs_on(&device) => Precision::Int16,
            PrecisionSetting::Auto => Precision::F32,
        };
        let model = pool.install(|| Model::untrained(inputs, &device, precision))?;
        let model = model.ok_or(ScorerError::Precision { precision })?;
        Self::assemble(model, precision, None, options, pool)
    }

    /// Returns the model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.0.model
    }

    /// Returns the number of inference threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.0.pool.threads()
    }

    /// Returns the numeric precision of the encoder.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.0.precision
    }

    /// Returns the commit of the model if it came from a hub.
    #[must_use]
    pub fn revision(&self) -> Option<&str> {
        self.0.revision.as_deref()
    }

    /// Returns the most tokens of a sequence, special tokens included.
    #[must_use]
    pub fn max_length(&self) -> usize {
        self.0.max_length
    }

    /// Returns the counters of the work done so far.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.0.tally
    }

    /// Scores a window and returns one prediction or rejection per row, in the window's order.
    ///
    /// A prediction depends on the row's texts alone. Dropping the future cancels the work after the current batches.
    ///
    /// # Errors
    /// Returns an error if the encoder fails. A text that cannot be scored is a rejection, not an error.
    pub async fn score(&self, window: Window) -> Result<Vec<Result<Prediction, Rejection>>, ScorerError> {
        self.score_window(window, CacheMode::ReadWrite).await
    }

    /// Scores a window without adding its predictions to the in-memory cache, for texts that are not expected again.
    ///
    /// # Errors
    /// Returns the errors of [`Scorer::score`].
    pub async fn score_once(&self, window: Window) -> Result<Vec<Result<Prediction, Rejection>>, ScorerError> {
        self.score_window(window, CacheMode::ReadOnly).await
    }

    async fn score_window(
        &self,
        window: Window,
        mode: CacheMode,
    ) -> Result<Vec<Result<Prediction, Rejection>>, ScorerError> {
        let shared = &self.0;
        let rejections: Vec<Option<Rejection>> = (0..window.len()).map(|row| window.rejection(row)).collect();
        let rows: Vec<usize> = (0..window.len()).filter(|&row| rejections[row].is_none()).collect();
        let window = Arc::new(window);

        // True for the texts that this window scored itself, rather than another window.
        let mut scored_here = vec![false; rows.len()];
        let mut rows_to_plan = window.len();
        // Repeats only if another window abandoned a text that this one waited for.
        let slots: Vec<Slot> = loop {
            let keys = rows.iter().map(|&row| text_key(window.text(row), window.text_pair(row)));
            let claims = shared.memo.claim(keys, mode);
            let new: Vec<(usize, Slot)> = rows
                .iter()
                .zip(&claims)
                .filter(|(_, (_, new))| *new)
                .map(|(&row, (slot, _))| (row, Arc::clone(slot)))
                .collect();
            for (scored_here, (_, new)) in scored_here.iter_mut().zip(&claims) {
                *scored_here |= new;
            }
            let slots: Vec<Slot> = claims.into_iter().map(|(slot, _)| slot).collect();
            Work::start(shared, &window, new, std::mem::take(&mut rows_to_plan)).wait().await?;
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
                    Some(Answer::Abandoned) | None => unreachable!("all slots are filled"),
                },
            })
            .collect();
        let remembered =
            slots.iter().zip(scored_here).filter(|(slot, here)| !here && matches!(slot.get(), Some(Answer::Scored(_))));
        shared.tally.add_window(&count(&outcomes, remembered.count()));
        Ok(outcomes)
    }

    /// Adds outcomes that another process computed with the same model to the counters.
    pub fn credit(&self, outcomes: &[Result<Prediction, Rejection>]) {
        let counts = count(outcomes, 0);
        let scored = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        let tally = &self.0.tally;
        tally.add_planned(outcomes.len(), counts.tokens);
        tally.add_batch(scored, counts.tokens);
        tally.add_window(&counts);
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
