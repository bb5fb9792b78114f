//! A model in the place of one that is still to be trained: the encoder that training starts from, under an empty head.
//!
//! It scores nothing. It has the sizes, the tokenizer and the speed of the model to come, which is what a plan needs.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::{Checkpoint, Encoder, Fingerprint, Head, LoadError, Model, ModelConfig, Problem, Source, Tokenizer};
use crate::ops::{Kernels, Parameter};

/// The weights of a checkpoint, and zeros where it has none.
struct OrZeros<'a>(&'a Checkpoint, &'a Device);

impl Source for OrZeros<'_> {
    fn parameter(&self, name: &str, shape: &[usize]) -> Result<Parameter, LoadError> {
        let Self(checkpoint, device) = self;
        if checkpoint.has(name, shape) {
            return (*checkpoint, *device).parameter(name, shape);
        }
        Ok(Parameter::plain(Tensor::zeros(shape, DType::F32, device)?))
    }
}

impl Model {
    /// Loads the encoder of a folder under a head of `outputs` outputs, which are zero where the folder has no such head.
    ///
    /// # Errors
    /// As [`Model::load`], except for a head that is missing.
    pub(crate) fn stand_in(
        folder: &Path,
        outputs: usize,
        device: &Device,
        kernels: Kernels,
    ) -> Result<Self, LoadError> {
        if !folder.is_dir() {
            return Err(LoadError::NotAFolder { path: folder.to_owned(), exists: folder.exists() });
        }
        let mut config = ModelConfig::load(&folder.join("config.json"))?;
        let checkpoint = Checkpoint::open(folder, config.architecture)?;
        let tokenizer = Tokenizer::load(folder, &config)?;
        config.problem = if outputs == 1 { Problem::Regression } else { Problem::SingleLabel };
        config.labels =
            if outputs == 1 { Vec::new() } else { (0..outputs).map(|label| format!("LABEL_{label}")).collect() };
        let head = Head::load(&OrZeros(&checkpoint, device), &config, outputs, kernels)?;
        let encoder = Encoder::load(&(&checkpoint, device), &config, kernels)?;
        let mut files = vec![folder.join("config.json")];
        files.extend(tokenizer.files.iter().cloned());
        files.extend(checkpoint.files.iter().cloned());
        Ok(Self {
            folder: folder.to_owned(),
            calibration: None,
            fingerprint: Fingerprint::of_files(&files)?,
            tokenizer,
            parameters: checkpoint.parameters(),
            bytes: checkpoint.files.iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum(),
            device: device.clone(),
            config,
            encoder,
            head,
        })
    }
}
