//! The masked-LM head: hidden states of masked tokens to logits over the vocabulary.
//!
//! Source: Devlin et al. 2019, section 3.1; the projection is the table of word embeddings (Press & Wolf 2017).

use candle_core::Tensor;

use super::encoder::WORD_EMBEDDINGS;
use super::error::LoadError;
use super::family::MaskedWordsNames;
use super::source::Loader;
use crate::ops::{Activation, LayerNorm, Linear};

/// The masked-LM head: `[M, D] → [M, V]`, with M masked tokens and V tokens in the vocabulary.
#[derive(Debug)]
pub struct MaskedWordsHead {
    transform: Linear,
    activation: Activation,
    norm: LayerNorm,
    projector: Linear,
}

impl MaskedWordsHead {
    /// Loads the weights.
    ///
    /// # Errors
    /// Returns an error if a tensor is missing or has another shape.
    pub fn load(loader: &Loader) -> Result<Self, LoadError> {
        let Loader { source, config, kernels } = *loader;
        let MaskedWordsNames { transform, norm, bias } = config.family.masked_words;
        let words = source.tensor(WORD_EMBEDDINGS, &[config.vocab_size, config.dim])?;
        let bias = source.tensor(bias, &[config.vocab_size])?;
        Ok(Self {
            transform: loader.linear(transform, config.dim, config.dim)?,
            activation: config.activation,
            norm: loader.norm(norm)?,
            projector: Linear::new(&words, &bias, kernels)?,
        })
    }

    /// Computes the logits over the vocabulary: `[M, D] → [M, V]`.
    ///
    /// # Errors
    /// Returns an error if an operator fails.
    pub fn forward(&self, hidden_states: &Tensor) -> candle_core::Result<Tensor> {
        let hidden = self.transform.forward_activated(hidden_states, self.activation)?;
        self.projector.forward(&self.norm.normalise(&hidden, self.transform.kernels())?)
    }
}
