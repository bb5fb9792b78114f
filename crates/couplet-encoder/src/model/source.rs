//! Sources of weights, and the construction of layers from them.

use candle_core::{Device, Tensor};

use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::error::LoadError;
use crate::ops::{Kernels, LayerNorm, Linear};

/// A source of weights by their canonical names: the names of the checkpoint without the prefix of the encoder.
pub trait WeightSource: Sync {
    /// Returns true if the weights may be requested in any order and by several threads at the same time.
    fn in_any_order(&self) -> bool {
        true
    }

    /// Returns the weight with a name and a shape, in f32.
    ///
    /// # Errors
    /// Returns an error if the weight is missing, or has another shape or an unsupported type.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError>;
}

impl WeightSource for (&Checkpoint, &Device) {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        self.0.tensor(name, shape, self.1)
    }
}

/// Creates the layers of a model from a source of weights, with the sizes of a configuration, for the given kernels.
#[derive(Clone, Copy)]
pub struct Loader<'a> {
    /// The source of the weights.
    pub source: &'a dyn WeightSource,
    /// The configuration of the model.
    pub config: &'a ModelConfig,
    /// The kernels that run the layers.
    pub kernels: Kernels,
}

impl<'a> Loader<'a> {
    /// Creates a loader for the fastest f32 kernels of the CPU.
    pub(super) fn on_cpu(source: &'a dyn WeightSource, config: &'a ModelConfig) -> Self {
        Self { source, config, kernels: Kernels::for_device(&Device::Cpu) }
    }

    /// Loads a linear layer: weight `[outputs, inputs]`, bias `[outputs]`.
    pub(super) fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear, LoadError> {
        let weight = self.source.tensor(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = self.source.tensor(&format!("{name}.bias"), &[outputs])?;
        Ok(Linear::new(&weight, &bias, self.kernels)?)
    }

    /// Loads a layer normalization of width `dim`.
    pub(super) fn norm(&self, name: &str) -> Result<LayerNorm, LoadError> {
        let Self { source, config, .. } = self;
        let weight = source.tensor(&format!("{name}.weight"), &[config.dim])?;
        let bias = source.tensor(&format!("{name}.bias"), &[config.dim])?;
        Ok(LayerNorm::new(weight, bias, config.layer_norm_eps))
    }

    /// Loads a table of embeddings, `[rows, dim]`, in the data type of the hidden states.
    pub(super) fn table(&self, name: &str, rows: usize) -> Result<Tensor, LoadError> {
        Ok(self.source.tensor(name, &[rows, self.config.dim])?.to_dtype(self.kernels.dtype())?)
    }
}
