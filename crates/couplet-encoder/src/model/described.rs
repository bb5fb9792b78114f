//! The description of a model for display. An encoder without a head has one too, although it cannot score.

use std::path::Path;

use candle_core::Device;

use super::{
    Calibration, Checkpoint, Encoder, Fingerprint, LoadError, Loader, Model, ModelConfig, ModelFiles, Tokenizer,
    encoder_files,
};

/// The description of a model.
#[derive(Debug)]
pub struct ModelDescription {
    /// The sizes and labels.
    pub config: ModelConfig,
    /// The number of tokens in the tokenizer's vocabulary.
    pub vocabulary: usize,
    /// The most tokens of a sequence.
    pub max_length: usize,
    /// The calibration of the probabilities, if the checkpoint has one.
    pub calibration: Option<Calibration>,
    /// The fingerprint of the files that it is loaded from.
    pub fingerprint: Fingerprint,
    /// The number of parameters in the checkpoint.
    pub parameters: usize,
    /// The size of the weight files in bytes.
    pub bytes: u64,
    /// For a checkpoint without a classification head, what it is instead and how to fix it.
    pub headless: Option<String>,
}

impl ModelDescription {
    /// Loads the model in a Hugging Face folder completely, to verify that it is usable, and describes it.
    ///
    /// # Errors
    /// Returns the errors of [`Model::load`], except that the head may be missing.
    pub fn load(folder: &Path) -> Result<Self, LoadError> {
        let files = ModelFiles::read(folder)?;
        match Model::of_files(&files, &Device::Cpu) {
            Ok(model) => Ok(Self::of(model)),
            Err(LoadError::NoHead { hint, .. }) => Self::of_encoder(&files, hint),
            Err(error) => Err(error),
        }
    }

    fn of(model: Model) -> Self {
        let (vocabulary, max_length) = (model.tokenizer.vocab_size(), model.max_length());
        let Model { config, calibration, fingerprint, parameters, bytes, .. } = model;
        Self { config, vocabulary, max_length, calibration, fingerprint, parameters, bytes, headless: None }
    }

    fn of_encoder(files: &ModelFiles, hint: String) -> Result<Self, LoadError> {
        let config = ModelConfig::load(files)?;
        let checkpoint = Checkpoint::open(files, config.family)?;
        let tokenizer = Tokenizer::load(files, &config)?;
        Encoder::load(&Loader::on_cpu(&(&checkpoint, &Device::Cpu), &config))?;
        Ok(Self {
            vocabulary: tokenizer.vocab_size(),
            max_length: tokenizer.model_max_length.min(config.max_position_embeddings),
            config,
            calibration: None,
            fingerprint: Fingerprint::of(files, encoder_files(files, &tokenizer, &checkpoint)),
            parameters: checkpoint.parameters(),
            bytes: checkpoint.bytes,
            headless: Some(hint),
        })
    }
}
