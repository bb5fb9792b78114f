//! The classification head: the first token's hidden state to logits.

use candle_core::{Result, Tensor};

use super::config::ModelConfig;
use super::error::LoadError;
use super::family::HeadNames;
use super::source::{Source, load_linear};
use crate::ops::{Kernels, Linear, Noise, Place, Pointwise, drop_elements, pointwise};

/// `[B, D] → [B, L]`: a square layer (DistilBERT's `pre_classifier`, BERT's pooler), an activation, then `classifier`.
#[derive(Debug)]
pub(crate) struct Head {
    kernels: Kernels,
    dense: Linear,
    activation: Pointwise,
    classifier: Linear,
}

impl Head {
    /// Loads a head of so many outputs.
    pub(crate) fn load(
        source: &impl Source,
        config: &ModelConfig,
        outputs: usize,
        kernels: Kernels,
    ) -> std::result::Result<Self, LoadError> {
        let (dim, kernels) = (config.dim, kernels.with_f32());
        let HeadNames { dense, activation, .. } = config.family.head;
        Ok(Self {
            kernels,
            dense: load_linear(source, dense, dim, dim, kernels)?,
            activation,
            classifier: load_linear(source, "classifier", outputs, dim, kernels)?,
        })
    }

    /// Classifies each sequence by its first token; in training, drops from the classifier's input what `noise` says.
    pub(crate) fn forward(&self, first: &Tensor, noise: Option<&Noise>) -> Result<Tensor> {
        let hidden = pointwise(&self.dense.forward(first)?, self.activation, self.kernels)?;
        let one_each: Vec<u32> = (0..=first.dim(0)? as u32).collect();
        let dropout = noise.and_then(|noise| noise.at(Place::Head, &one_each));
        self.classifier.forward(&drop_elements(&hidden, dropout, self.kernels)?)
    }
}
