//! What a model is, for those who look at it: also an encoder that has no head yet, which can be trained but scores
//! nothing.

use std::path::Path;

use candle_core::Device;

use super::{
    Calibration, Checkpoint, Encoder, Fingerprint, LoadError, Loader, Model, ModelConfig, ModelFiles, Tokenizer,
    encoder_files,
};

/// What is known of a model by its files.
#[derive(Debug)]
pub struct Described {
    /// Sizes and labels.
    pub config: ModelConfig,
    /// Tokens that the tokenizer knows.
    pub vocabulary: usize,
    /// The most tokens in a sequence.
    pub max_length: usize,
    /// What makes its probabilities mean what they say, if the checkpoint has it.
    pub calibration: Option<Calibration>,
    /// Names the files that it is loaded from.
    pub fingerprint: Fingerprint,
    /// Trainable numbers in the checkpoint.
    pub parameters: usize,
    /// Size of the weights on disk, in bytes.
    pub bytes: u64,
    /// What it is instead, and the mend, where it has no head to score with.
    pub headless: Option<String>,
}

impl Described {
    /// Loads a Hugging Face folder, to be sure that it is whole.
    ///
    /// # Errors
    /// As [`Model::load`], but for a missing head.
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
