//! A sequence-classification checkpoint of the BERT family: from a Hugging Face folder to logits.

mod archive;
mod calibration;
pub mod card;
mod checkpoint;
mod classifier;
mod config;
mod described;
mod encoder;
mod error;
mod family;
mod files;
mod fingerprint;
mod folder;
mod head;
mod import;
mod limits;
mod masked_words;
mod outputs;
mod pickle;
mod source;
mod special_tokens;
mod tokenizer;
mod untrained;
mod weights_file;

use std::path::{Path, PathBuf};

use candle_core::{Device, Result, Tensor};

pub use calibration::{CALIBRATION_FILE, Calibration};
pub use calibration::{CALIBRATION_VERSION, problem_type};
pub use classifier::PackedBatch;
pub use classifier::SequenceClassifier;
pub use config::read_json;
pub use config::{ModelConfig, Problem};
pub use described::Described;
pub use encoder::{Encoder, WORD_EMBEDDINGS};
pub use error::LoadError;
pub use family::{BERT, DISTILBERT, Family};
pub use fingerprint::Fingerprint;
pub use folder::MODEL_FOLDER;
pub use import::{ImportError, Imported, import};
pub use outputs::ScoreActivation;
pub use tokenizer::{Encoding, Tokenizer};
pub use untrained::Makings;

use crate::ops::{Kernels, Precision};
pub use checkpoint::Checkpoint;
pub use files::ModelFiles;
pub use folder::{CHART, clear_head, copy_tokenizer, write_json};
pub use head::Head;
pub use masked_words::MaskedWordsHead;
pub use outputs::SENTENCE_TRANSFORMERS;
pub use source::{Loader, Source};
pub use weights_file::{Data, Entry, write as write_weights};

/// An encoder with its classification head and tokenizer.
#[derive(Debug)]
pub struct Model {
    /// The folder it was loaded from.
    pub folder: PathBuf,
    /// Sizes and labels.
    pub config: ModelConfig,
    /// Text to token ids, as the checkpoint's folder defines it.
    pub tokenizer: Tokenizer,
    /// What makes its probabilities mean what they say, if the checkpoint has it.
    pub calibration: Option<Calibration>,
    /// Names the weights, the tokenizer, the configuration and the calibration.
    pub fingerprint: Fingerprint,
    /// Trainable numbers in the checkpoint.
    pub parameters: usize,
    /// Size of the weights on disk, in bytes.
    pub bytes: u64,
    /// Where it runs.
    pub device: Device,
    classifier: Box<dyn SequenceClassifier>,
}

impl Model {
    /// Loads a Hugging Face folder onto a device with the quickest kernels there are for it.
    ///
    /// # Errors
    /// A folder or file that is missing, unreadable, inconsistent, or of a family that couplet does not run.
    pub fn load(folder: &Path, device: &Device) -> std::result::Result<Self, LoadError> {
        Self::load_with(folder, device, Kernels::for_device(device))
    }

    /// Loads a Hugging Face folder with the given kernels.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_with(folder: &Path, device: &Device, kernels: Kernels) -> std::result::Result<Self, LoadError> {
        Self::of_files_with(&ModelFiles::read(folder)?, device, kernels)
    }

    /// Loads a Hugging Face folder in a precision; none where the device does not have it.
    pub(crate) fn load_at(
        folder: &Path,
        device: &Device,
        precision: Precision,
    ) -> std::result::Result<Option<Self>, LoadError> {
        Kernels::with_precision(device, precision).map(|kernels| Self::load_with(folder, device, kernels)).transpose()
    }

    /// Loads a model from its files with the quickest kernels there are for the device.
    pub(crate) fn of_files(files: &ModelFiles, device: &Device) -> std::result::Result<Self, LoadError> {
        Self::of_files_with(files, device, Kernels::for_device(device))
    }

    fn of_files_with(files: &ModelFiles, device: &Device, kernels: Kernels) -> std::result::Result<Self, LoadError> {
        let mut config = ModelConfig::load(files)?;
        let checkpoint = Checkpoint::open(files, config.family)?;
        let tokenizer = Tokenizer::load(files, &config)?;
        let outputs = checkpoint.classifier_outputs()?;
        config.settle_outputs(files, outputs)?;
        let loader = Loader { source: &(&checkpoint, device), config: &config, kernels };
        let classifier = classifier::load(&loader, outputs)?;
        // Other probabilities, labels and scores are another model's. The first file says what one logit becomes.
        let others = [(outputs == 1).then_some(SENTENCE_TRANSFORMERS), Some(CALIBRATION_FILE)];
        let names = encoder_files(files, &tokenizer, &checkpoint).chain(others.into_iter().flatten());
        Ok(Self {
            folder: files.folder().to_owned(),
            calibration: Calibration::load(files, &config)?,
            fingerprint: Fingerprint::of(files, names),
            config,
            tokenizer,
            parameters: checkpoint.parameters(),
            bytes: checkpoint.bytes,
            device: device.clone(),
            classifier,
        })
    }

    /// Computes the logits of each sequence of a packed batch: `[T] → [B, L]` f32.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn forward(&self, batch: &PackedBatch) -> Result<Tensor> {
        self.classifier.forward(batch)
    }

    /// Loads the classifier of the same files in another precision; none where the device does not have it.
    pub(crate) fn classifier_at(
        &self,
        files: &ModelFiles,
        precision: Precision,
    ) -> std::result::Result<Option<Box<dyn SequenceClassifier>>, LoadError> {
        let Some(kernels) = Kernels::with_precision(&self.device, precision) else { return Ok(None) };
        let checkpoint = Checkpoint::open(files, self.config.family)?;
        let loader = Loader { source: &(&checkpoint, &self.device), config: &self.config, kernels };
        classifier::load(&loader, checkpoint.classifier_outputs()?).map(Some)
    }

    /// Replaces the classifier.
    pub(crate) fn with_classifier(self, classifier: Box<dyn SequenceClassifier>) -> Self {
        Self { classifier, ..self }
    }

    /// The most tokens in a sequence: what the positions allow and the tokenizer asks for.
    #[must_use]
    pub fn max_length(&self) -> usize {
        self.tokenizer.model_max_length.min(self.config.max_position_embeddings)
    }
}

/// The files that an encoder and its tokenizer were loaded from, in the order of the fingerprint.
fn encoder_files<'n>(
    files: &'n ModelFiles,
    tokenizer: &'n Tokenizer,
    checkpoint: &'n Checkpoint,
) -> impl Iterator<Item = &'n str> {
    let names = tokenizer.files.iter().copied().chain(checkpoint.files.iter().map(String::as_str));
    std::iter::once(files.config()).chain(names)
}
