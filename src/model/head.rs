//! The classification head: the first token's hidden state to logits.

use candle_core::{Result, Tensor};

use super::config::{Architecture, ModelConfig};
use super::error::LoadError;
use super::source::{Source, load_linear};
use crate::ops::{Kernels, Linear, Noise, Place, drop_elements, rectify, tanh};

/// `[B, D] → [B, L]`: DistilBERT's `pre_classifier` and a rectifier, or BERT's pooler and tanh, then `classifier`.
#[derive(Debug)]
pub(crate) struct Head {
    kernels: Kernels,
    architecture: Architecture,
    dense: Linear,
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
        let dense = match config.architecture {
            Architecture::DistilBert => "pre_classifier",
            Architecture::Bert => "pooler.dense",
        };
        Ok(Self {
            kernels,
            architecture: config.architecture,
            dense: load_linear(source, dense, dim, dim, kernels)?,
            classifier: load_linear(source, "classifier", outputs, dim, kernels)?,
        })
    }

    /// Classifies each sequence by its first token; in training, drops from the classifier's input what `noise` says.
    pub(crate) fn forward(&self, first: &Tensor, noise: Option<&Noise>) -> Result<Tensor> {
        let hidden = self.dense.forward(first)?;
        let hidden = match self.architecture {
            Architecture::DistilBert => rectify(&hidden, self.kernels)?,
            Architecture::Bert => tanh(&hidden, self.kernels)?,
        };
        let one_each: Vec<u32> = (0..=first.dim(0)? as u32).collect();
        let dropout = noise.and_then(|noise| noise.at(Place::Head, &one_each));
        self.classifier.forward(&drop_elements(&hidden, dropout, self.kernels)?)
    }
}
