//! The classification head: the first token's hidden state to logits.

use candle_core::{Result, Tensor};

use super::error::LoadError;
use super::family::HeadNames;
use super::source::Loader;
use crate::ops::{Linear, Noise, Place, Pointwise};

/// The head, `[B, D] → [B, L]`: a dense layer (`pre_classifier` or BERT's pooler), an activation, and `classifier`.
#[derive(Debug)]
pub struct Head {
    dense: Linear,
    activation: Pointwise,
    classifier: Linear,
}

impl Head {
    /// Loads a head with `outputs` logits. It computes in f32.
    ///
    /// # Errors
    /// Returns an error if a tensor is missing or has another shape.
    pub fn load(loader: &Loader, outputs: usize) -> std::result::Result<Self, LoadError> {
        let HeadNames { dense, activation, .. } = loader.config.family.head;
        let (loader, dim) = (Loader { kernels: loader.kernels.with_f32(), ..*loader }, loader.config.dim);
        Ok(Self {
            dense: loader.linear(dense, dim, dim)?,
            activation,
            classifier: loader.linear("classifier", outputs, dim)?,
        })
    }

    /// Computes the logits from the hidden state of each sequence's first token: `[B, D] → [B, L]`. Applies the dropout
    /// of `noise` to the classifier's input in training.
    ///
    /// # Errors
    /// Returns an error if an operator fails.
    pub fn forward(&self, first: &Tensor, noise: Option<&Noise>) -> Result<Tensor> {
        let kernels = self.dense.kernels();
        let hidden = kernels.pointwise(&self.dense.forward(first)?, self.activation)?;
        let one_each: Vec<u32> = (0..=first.dim(0)? as u32).collect();
        let dropout = noise.and_then(|noise| noise.at(Place::Head, &one_each));
        self.classifier.forward(&kernels.drop_elements(&hidden, dropout)?)
    }
}
