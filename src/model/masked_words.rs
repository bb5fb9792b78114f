//! The masked-LM head: hidden states of masked tokens to logits over the vocabulary.
//!
//! Source: Devlin et al. 2019, section 3.1; the projection is the table of word embeddings (Press & Wolf 2017).

use candle_core::Tensor;

use super::config::ModelConfig;
use super::encoder::WORD_EMBEDDINGS;
use super::error::LoadError;
use super::family::MaskedWordsNames;
use super::source::{Source, load_linear, load_norm};
use crate::ops::{Activation, Kernels, LayerNorm, Linear};

/// `[M, D] → [M, vocabulary]`
#[derive(Debug)]
pub(crate) struct MaskedWordsHead {
    transform: Linear,
    activation: Activation,
    norm: LayerNorm,
    projector: Linear,
    kernels: Kernels,
}

impl MaskedWordsHead {
    pub(crate) fn load(source: &impl Source, config: &ModelConfig, kernels: Kernels) -> Result<Self, LoadError> {
        let MaskedWordsNames { transform, norm, bias } = config.family.masked_words;
        let words = source.parameter(WORD_EMBEDDINGS, &[config.vocab_size, config.dim])?;
        let bias = source.parameter(bias, &[config.vocab_size])?;
        Ok(Self {
            transform: load_linear(source, transform, config.dim, config.dim, kernels)?,
            activation: config.activation,
            norm: load_norm(source, norm, config)?,
            projector: Linear::from_parameters(words, bias, kernels)?,
            kernels,
        })
    }

    pub(crate) fn forward(&self, hidden_states: &Tensor) -> candle_core::Result<Tensor> {
        let hidden = self.transform.forward_activated(hidden_states, self.activation)?;
        self.projector.forward(&self.norm.normalise(&hidden, self.kernels)?)
    }
}
