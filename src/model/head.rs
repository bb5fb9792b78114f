//! The classification head: the first token's hidden state to logits.

use candle_core::{Device, Result, Tensor};

use super::checkpoint::Checkpoint;
use super::config::{Architecture, ModelConfig};
use super::encoder::load_linear;
use super::error::LoadError;
use crate::ops::{Kernels, Linear};

/// `[B, D] → [B, L]`: DistilBERT's `pre_classifier` and a rectifier, or BERT's pooler and tanh, then `classifier`.
#[derive(Debug)]
pub(super) struct Head {
    architecture: Architecture,
    dense: Linear,
    classifier: Linear,
}

impl Head {
    /// Loads the head and settles the configuration's labels by the number of its outputs.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        config: &mut ModelConfig,
        device: &Device,
        kernels: Kernels,
    ) -> std::result::Result<Self, LoadError> {
        let outputs = checkpoint.classifier_outputs()?;
        config.settle_outputs(&checkpoint.folder.join("config.json"), outputs)?;
        let (dim, kernels) = (config.dim, kernels.with_f32());
        let dense = match config.architecture {
            Architecture::DistilBert => "pre_classifier",
            Architecture::Bert => "pooler.dense",
        };
        Ok(Self {
            architecture: config.architecture,
            dense: load_linear(checkpoint, dense, dim, dim, device, kernels)?,
            classifier: load_linear(checkpoint, "classifier", outputs, dim, device, kernels)?,
        })
    }

    pub(super) fn forward(&self, first: &Tensor) -> Result<Tensor> {
        let hidden = self.dense.forward(first)?;
        let hidden = match self.architecture {
            Architecture::DistilBert => hidden.relu()?,
            Architecture::Bert => hidden.tanh()?,
        };
        self.classifier.forward(&hidden)
    }
}
