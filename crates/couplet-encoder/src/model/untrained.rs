//! A placeholder for a model that is not trained yet: the encoder that training starts from, with a head of zeros.
//!
//! A plan needs the sizes, the tokenizer and the speed of the future model. The predictions are meaningless.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use super::{
    Checkpoint, Fingerprint, LoadError, Loader, Model, ModelConfig, ModelFiles, Problem, Tokenizer, WeightSource,
    classifier,
};
use crate::ops::{Kernels, Precision};

/// The inputs of a model that is not trained yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UntrainedModel {
    /// The path of a configuration file, or of a folder with a `config.json`.
    pub config: PathBuf,
    /// The folder of the tokenizer.
    pub tokenizer: PathBuf,
    /// The folder of the encoder's weights; `None` if training starts from random weights.
    pub weights: Option<PathBuf>,
    /// The number of logits.
    pub outputs: usize,
}

impl UntrainedModel {
    /// Creates the inputs of a model with `outputs` logits that is fine-tuned from the encoder in `folder`.
    #[must_use]
    pub fn of_base(folder: &Path, outputs: usize) -> Self {
        let folder = folder.to_owned();
        Self { config: folder.clone(), tokenizer: folder.clone(), weights: Some(folder), outputs }
    }

    /// Returns the path that identifies the model: the folder of the weights, or the configuration.
    #[must_use]
    pub fn name(&self) -> &Path {
        self.weights.as_ref().unwrap_or(&self.config)
    }
}

/// The weights of a checkpoint, with zeros for missing weights.
struct CheckpointOrZeros<'a>(Option<&'a Checkpoint>, &'a Device);

impl WeightSource for CheckpointOrZeros<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let Self(checkpoint, device) = self;
        match checkpoint {
            Some(checkpoint) if checkpoint.provides(name, shape) => checkpoint.tensor(name, shape, device),
            _ => Ok(Tensor::zeros(shape, DType::F32, device)?),
        }
    }
}

impl Model {
    /// Loads an encoder with zeros for a missing head. Returns `None` if the device does not support the precision.
    ///
    /// # Errors
    /// Returns the errors of [`Model::load`], except that the head may be missing.
    pub(crate) fn untrained(
        inputs: &UntrainedModel,
        device: &Device,
        precision: Precision,
    ) -> Result<Option<Self>, LoadError> {
        let Some(kernels) = Kernels::with_precision(device, precision) else { return Ok(None) };
        let UntrainedModel { config, tokenizer, weights, outputs } = inputs;
        let config_file = ModelFiles::read_config(config)?;
        let mut config = ModelConfig::load(&config_file)?;
        let open = |folder: &PathBuf| Checkpoint::open(&ModelFiles::read(folder)?, config.family);
        let checkpoint = weights.as_ref().map(open).transpose()?;
        let tokenizer = Tokenizer::load(&ModelFiles::read(tokenizer)?.without_weights(), &config)?;
        config.problem = if *outputs == 1 { Problem::Regression } else { Problem::SingleLabel };
        config.labels =
            if *outputs == 1 { Vec::new() } else { (0..*outputs).map(|label| format!("LABEL_{label}")).collect() };
        let source = CheckpointOrZeros(checkpoint.as_ref(), device);
        let classifier = classifier::load(&Loader { source: &source, config: &config, kernels }, *outputs)?;
        Ok(Some(Self {
            folder: inputs.name().to_owned(),
            calibration: None,
            fingerprint: Fingerprint::of(&config_file, [config_file.config()]),
            tokenizer,
            parameters: checkpoint.as_ref().map_or(0, Checkpoint::parameters),
            bytes: checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.bytes),
            device: device.clone(),
            config,
            classifier,
        }))
    }
}
