//! Where the weights of a model come from: a checkpoint, or a training that is under way.

use candle_core::Device;

use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::error::LoadError;
use crate::ops::{Kernels, LayerNorm, Linear, Parameter};

/// Weights by their canonical names: those of the checkpoint without `distilbert.` or `bert.`.
pub(crate) trait Source: Sync {
    /// Whether several threads may look weights up at the same time.
    const IN_ANY_ORDER: bool = true;

    /// Looks up a weight of the given shape.
    ///
    /// # Errors
    /// A weight that is missing, or of another shape or type.
    fn parameter(&self, name: &str, shape: &[usize]) -> Result<Parameter, LoadError>;
}

impl Source for (&Checkpoint, &Device) {
    fn parameter(&self, name: &str, shape: &[usize]) -> Result<Parameter, LoadError> {
        Ok(Parameter::plain(self.0.tensor(name, shape, self.1)?))
    }
}

pub(super) fn load_linear(
    source: &impl Source,
    name: &str,
    outputs: usize,
    inputs: usize,
    kernels: Kernels,
) -> Result<Linear, LoadError> {
    let weight = source.parameter(&format!("{name}.weight"), &[outputs, inputs])?;
    let bias = source.parameter(&format!("{name}.bias"), &[outputs])?;
    Ok(Linear::from_parameters(weight, bias, kernels)?)
}

pub(super) fn load_norm(source: &impl Source, name: &str, config: &ModelConfig) -> Result<LayerNorm, LoadError> {
    let weight = source.parameter(&format!("{name}.weight"), &[config.dim])?;
    let bias = source.parameter(&format!("{name}.bias"), &[config.dim])?;
    Ok(LayerNorm::from_parameters(weight, bias, config.layer_norm_eps))
}
