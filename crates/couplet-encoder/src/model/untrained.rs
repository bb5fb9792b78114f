//! A model in the place of one that is still to be trained: the encoder that training starts from, under an empty head.
//!
//! It scores nothing. It has the sizes, the tokenizer and the speed of the model to come, which is what a plan needs.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use super::{
    Checkpoint, Fingerprint, LoadError, Loader, Model, ModelConfig, ModelFiles, Problem, Source, Tokenizer, classifier,
};
use crate::ops::{Kernels, Precision};

/// What a model will be made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Makings {
    /// A `config.json`, by whatever name, or the folder of one.
    pub config: PathBuf,
    /// A folder with a tokenizer.
    pub tokenizer: PathBuf,
    /// A folder with the weights of the encoder; none where training starts from random ones.
    pub weights: Option<PathBuf>,
    /// Logits of the head.
    pub outputs: usize,
}

impl Makings {
    /// Those of a model that is trained from the encoder in a folder.
    #[must_use]
    pub fn of_base(folder: &Path, outputs: usize) -> Self {
        let folder = folder.to_owned();
        Self { config: folder.clone(), tokenizer: folder.clone(), weights: Some(folder), outputs }
    }

    /// The folder, or the file, that is named for the whole.
    #[must_use]
    pub fn name(&self) -> &Path {
        self.weights.as_ref().unwrap_or(&self.config)
    }
}

/// The weights of a checkpoint, and zeros where there are none.
struct OrZeros<'a>(Option<&'a Checkpoint>, &'a Device);

impl Source for OrZeros<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let Self(checkpoint, device) = self;
        match checkpoint {
            Some(checkpoint) if checkpoint.provides(name, shape) => checkpoint.tensor(name, shape, device),
            _ => Ok(Tensor::zeros(shape, DType::F32, device)?),
        }
    }
}

impl Model {
    /// Loads an encoder under a head that is zero where there is no such head; none where the device does not have the
    /// precision.
    ///
    /// # Errors
    /// As [`Model::load`], except for a head that is missing.
    pub(crate) fn stand_in(
        makings: &Makings,
        device: &Device,
        precision: Precision,
    ) -> Result<Option<Self>, LoadError> {
        let Some(kernels) = Kernels::with_precision(device, precision) else { return Ok(None) };
        let Makings { config, tokenizer, weights, outputs } = makings;
        let config_file = ModelFiles::read_config(config)?;
        let mut config = ModelConfig::load(&config_file)?;
        let open = |folder: &PathBuf| Checkpoint::open(&ModelFiles::read(folder)?, config.family);
        let checkpoint = weights.as_ref().map(open).transpose()?;
        let tokenizer = Tokenizer::load(&ModelFiles::read(tokenizer)?.without_weights(), &config)?;
        config.problem = if *outputs == 1 { Problem::Regression } else { Problem::SingleLabel };
        config.labels =
            if *outputs == 1 { Vec::new() } else { (0..*outputs).map(|label| format!("LABEL_{label}")).collect() };
        let source = OrZeros(checkpoint.as_ref(), device);
        let classifier = classifier::load(&Loader { source: &source, config: &config, kernels }, *outputs)?;
        Ok(Some(Self {
            folder: makings.name().to_owned(),
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
