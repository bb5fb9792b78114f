//! The interface of all encoders: a packed batch to logits.
//!
//! The scorer sees only [`SequenceClassifier`], through [`super::Model`]; families, kernels and devices are behind it.
//!
//! - **A family with BERT's arithmetic** needs no code, only a static in [`super::family`]; see there.
//! - **A family with other arithmetic** needs an encoder of its own beside [`super::encoder`], built from the operators
//!   of [`crate::ops`], with its names and sizes in [`super::Family`]. [`load`] selects the encoder. Three other places
//!   name the encoder: `train::Network` (which calls `forward_first`, and `forward_at` with dropout),
//!   `ModelDescription` for a folder without a head, and `model/import.rs`.
//! - **A backend** implements the operators; see `ops/backend.rs`. A runtime that runs whole models implements
//!   [`SequenceClassifier`] itself.

use std::fmt;

use candle_core::{DType, Result, Tensor};

use super::encoder::Encoder;
use super::error::LoadError;
use super::head::Head;
use super::source::Loader;

/// A batch of B concatenated sequences with T tokens in total, without padding.
#[derive(Debug, Clone, Default)]
pub struct PackedBatch {
    /// The token ids of all sequences, `[T]`.
    pub input_ids: Vec<u32>,
    /// 0 for the first text and its special tokens, 1 for the second, `[T]`.
    pub token_type_ids: Vec<u32>,
    /// The position of each token in its sequence, `[T]`, from 0.
    pub position_ids: Vec<u32>,
    /// The start of each sequence and the end of the last one, `[B + 1]`, ascending from 0.
    pub cu_seqlens: Vec<u32>,
}

impl PackedBatch {
    /// Appends a sequence of at least one token.
    ///
    /// # Panics
    /// Panics if the batch reaches 2^32 tokens.
    pub fn push(&mut self, input_ids: &[u32], token_type_ids: &[u32]) {
        debug_assert!(!input_ids.is_empty() && input_ids.len() == token_type_ids.len());
        if self.cu_seqlens.is_empty() {
            self.cu_seqlens.push(0);
        }
        self.input_ids.extend_from_slice(input_ids);
        self.token_type_ids.extend_from_slice(token_type_ids);
        self.position_ids.extend((0..).take(input_ids.len()));
        self.cu_seqlens.push(u32::try_from(self.input_ids.len()).expect("a batch has fewer than 2^32 tokens"));
    }

    /// Returns the number of sequences, B.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len().saturating_sub(1)
    }
}

/// Computes the logits of packed sequences.
pub trait SequenceClassifier: fmt::Debug + Send + Sync {
    /// Computes the logits of each sequence: `[T] → [B, L]` f32.
    ///
    /// # Errors
    /// Returns an error if the device fails.
    fn forward(&self, batch: &PackedBatch) -> Result<Tensor>;
}

/// Loads the encoder of the configuration's family and a head with `outputs` logits.
pub(crate) fn load(loader: &Loader, outputs: usize) -> std::result::Result<Box<dyn SequenceClassifier>, LoadError> {
    let head = Head::load(loader, outputs)?;
    Ok(Box::new(EncoderWithHead { head, encoder: Encoder::load(loader)? }))
}

#[derive(Debug)]
struct EncoderWithHead {
    encoder: Encoder,
    head: Head,
}

impl SequenceClassifier for EncoderWithHead {
    fn forward(&self, batch: &PackedBatch) -> Result<Tensor> {
        self.head.forward(&self.encoder.forward_first(batch)?.to_dtype(DType::F32)?, None)
    }
}
