//! Where the weights of a model come from, and how layers are made of them.

use candle_core::{Device, Tensor};

use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::error::LoadError;
use crate::ops::{Kernels, LayerNorm, Linear};

/// Weights by their canonical names: those of the checkpoint without the prefix of the encoder.
pub trait Source: Sync {
    /// Whether several threads may look weights up at the same time.
    fn in_any_order(&self) -> bool {
        true
    }

    /// Looks up a weight of the given shape.
    ///
    /// # Errors
    /// A weight that is missing, or of another shape or type.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError>;
}

impl Source for (&Checkpoint, &Device) {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        self.0.tensor(name, shape, self.1)
    }
}

/// Makes the layers of a model: weights of a source, in the sizes of a configuration, for the kernels that run it.
#[derive(Clone, Copy)]
pub struct Loader<'a> {
    /// The source of the tensors.
    pub source: &'a dyn Source,
    /// The configuration of the model.
    pub config: &'a ModelConfig,
    /// The operators that will take the weights.
    pub kernels: Kernels,
}

impl<'a> Loader<'a> {
    /// Loads for the quickest kernels of the CPU in f32.
    pub(super) fn on_cpu(source: &'a dyn Source, config: &'a ModelConfig) -> Self {
        Self { source, config, kernels: Kernels::for_device(&Device::Cpu) }
    }

    pub(super) fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear, LoadError> {
        let weight = self.source.tensor(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = self.source.tensor(&format!("{name}.bias"), &[outputs])?;
        Ok(Linear::new(&weight, &bias, self.kernels)?)
    }

    pub(super) fn norm(&self, name: &str) -> Result<LayerNorm, LoadError> {
        let Self { source, config, .. } = self;
        let weight = source.tensor(&format!("{name}.weight"), &[config.dim])?;
        let bias = source.tensor(&format!("{name}.bias"), &[config.dim])?;
        Ok(LayerNorm::new(weight, bias, config.layer_norm_eps))
    }

    /// A table of embeddings, in the type of the hidden states.
    pub(super) fn table(&self, name: &str, rows: usize) -> Result<Tensor, LoadError> {
        Ok(self.source.tensor(name, &[rows, self.config.dim])?.to_dtype(self.kernels.dtype())?)
    }
}
