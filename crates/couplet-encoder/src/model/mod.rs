//! Sequence-classification models of the BERT family: loads a Hugging Face folder and computes logits.

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
pub use described::ModelDescription;
pub use encoder::{Encoder, WORD_EMBEDDINGS};
pub use error::LoadError;
pub use family::{BERT, DISTILBERT, Family};
pub use fingerprint::Fingerprint;
pub use folder::MODEL_FOLDER;
pub use import::{ImportError, Imported, import};
pub use outputs::ScoreActivation;
pub use tokenizer::{Encoding, Tokenizer};
pub use untrained::UntrainedModel;

use crate::ops::{Kernels, Precision};
pub use checkpoint::Checkpoint;
pub use files::ModelFiles;
pub use folder::{CHART, clear_head, copy_tokenizer, write_json};
pub use head::Head;
pub use masked_words::MaskedWordsHead;
pub use outputs::SENTENCE_TRANSFORMERS;
pub use source::{Loader, WeightSource};
pub use weights_file::{Data, Entry, write as write_weights};

/// An encoder with its classification head and tokenizer.
#[derive(Debug)]
pub struct Model {
    /// The folder that the model was loaded from.
    pub folder: PathBuf,
    /// The sizes and labels.
    pub config: ModelConfig,
    /// The tokenizer of the checkpoint.
    pub tokenizer: Tokenizer,
    /// The calibration of the probabilities, if the checkpoint has one.
    pub calibration: Option<Calibration>,
    /// The fingerprint of the weights, the tokenizer, the configuration and the calibration.
    pub fingerprint: Fingerprint,
    /// The number of parameters in the checkpoint.
    pub parameters: usize,
    /// The size of the weight files in bytes.
    pub bytes: u64,
    /// The device of the weights.
    pub device: Device,
    classifier: Box<dyn SequenceClassifier>,
}

impl Model {
    /// Loads the model in a Hugging Face folder onto a device, with the fastest f32 kernels for that device.
    ///
    /// # Errors
    /// Returns an error if the folder or a file is missing or invalid, or if the family is not supported.
    pub fn load(folder: &Path, device: &Device) -> std::result::Result<Self, LoadError> {
        Self::load_with(folder, device, Kernels::for_device(device))
    }

    /// Loads the model in a Hugging Face folder with the given kernels.
    ///
    /// # Errors
    /// Returns the errors of [`Model::load`].
    pub fn load_with(folder: &Path, device: &Device, kernels: Kernels) -> std::result::Result<Self, LoadError> {
        Self::of_files_with(&ModelFiles::read(folder)?, device, kernels)
    }

    /// Loads the model in a Hugging Face folder in a precision, or returns `None` if the device does not support it.
    pub(crate) fn load_at(
        folder: &Path,
        device: &Device,
        precision: Precision,
    ) -> std::result::Result<Option<Self>, LoadError> {
        Kernels::with_precision(device, precision).map(|kernels| Self::load_with(folder, device, kernels)).transpose()
    }

    /// Loads a model from its files with the fastest f32 kernels for the device.
    pub(crate) fn of_files(files: &ModelFiles, device: &Device) -> std::result::Result<Self, LoadError> {
        Self::of_files_with(files, device, Kernels::for_device(device))
    }

    fn of_files_with(files: &ModelFiles, device: &Device, kernels: Kernels) -> std::result::Result<Self, LoadError> {
        let mut config = ModelConfig::load(files)?;
        let checkpoint = Checkpoint::open(files, config.family)?;
        let tokenizer = Tokenizer::load(files, &config)?;
        let outputs = checkpoint.classifier_outputs()?;
        config.resolve_outputs(files, outputs)?;
        let loader = Loader { source: &(&checkpoint, device), config: &config, kernels };
        let classifier = classifier::load(&loader, outputs)?;
        // These files change probabilities, labels and scores, so they belong to the fingerprint. The first one sets
        // the activation of a single logit.
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
    /// Returns an error if the device fails.
    pub fn forward(&self, batch: &PackedBatch) -> Result<Tensor> {
        self.classifier.forward(batch)
    }

    /// Loads the classifier from the model's files in another precision. Returns `None` if the device does not support
    /// the precision.
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

    /// Returns the most tokens of a sequence: the smaller one of the limits of the encoder and the tokenizer.
    #[must_use]
    pub fn max_length(&self) -> usize {
        self.tokenizer.model_max_length.min(self.config.max_position_embeddings)
    }
}

/// Returns the names of the files that an encoder and its tokenizer were loaded from, in the order of the fingerprint.
fn encoder_files<'n>(
    files: &'n ModelFiles,
    tokenizer: &'n Tokenizer,
    checkpoint: &'n Checkpoint,
) -> impl Iterator<Item = &'n str> {
    let names = tokenizer.files.iter().copied().chain(checkpoint.files.iter().map(String::as_str));
    std::iter::once(files.config()).chain(names)
}
