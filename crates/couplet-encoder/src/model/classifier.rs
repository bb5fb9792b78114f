//! The seam of all encoders: a packed batch to logits.
//!
//! The scorer sees only [`SequenceClassifier`], through [`super::Model`]; families, kernels and devices are behind it.
//!
//! - **A family of BERT's arithmetic** is a static in [`super::family`] and no code; see there.
//! - **A family of other arithmetic** is an encoder of its own beside [`super::encoder`], made of the operators of
//!   [`crate::ops`], with its names and sizes in [`super::Family`]; [`load`] is where it is chosen. Three places beside
//!   it name the encoder: `train::Network` (which calls `forward_first`, and `forward_at` with dropout), `Described` for
//!   a folder without a head, and `model/import.rs`.
//! - **A backend** is an implementation of the operators: see the module `backend` of the crate couplet-encoder. A
//!   runtime that takes whole batches instead implements [`SequenceClassifier`] itself.

use std::fmt;

use candle_core::{DType, Result, Tensor};

use super::encoder::Encoder;
use super::error::LoadError;
use super::head::Head;
use super::source::Loader;

/// Sequences one after the other, without padding.
#[derive(Debug, Clone, Default)]
pub struct PackedBatch {
    /// Token ids of all sequences, `[T]`.
    pub input_ids: Vec<u32>,
    /// 0 for the first text and its special tokens, 1 for the second, `[T]`.
    pub token_type_ids: Vec<u32>,
    /// Place of each token in its sequence, `[T]`.
    pub position_ids: Vec<u32>,
    /// Where each sequence begins, and the end of the last: `[B + 1]`, from 0, rising.
    pub cu_seqlens: Vec<u32>,
}

impl PackedBatch {
    /// Appends a sequence of at least one token.
    ///
    /// # Panics
    /// If the batch grows to 2^32 tokens.
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

    /// How many sequences there are.
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
    /// A failure of the device.
    fn forward(&self, batch: &PackedBatch) -> Result<Tensor>;
}

/// Loads the encoder of a family with a head of `outputs` logits.
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
