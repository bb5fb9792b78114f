//! The reference implementation: compositions of candle's operators, for any device and float type, differentiable.
//!
//! On a CPU it is slower than [`super::fast`]. GPUs use it, and the tests compare the other implementations with it.

use candle_core::{D, DType, Device, Result, Tensor};

use super::backend::Backend;
use super::training::Dropout;
use super::{Activation, Attention, Linear};

/// candle's operators, computing in a floating-point type.
#[derive(Debug, Clone, Copy)]
pub struct ReferenceKernels(pub(super) DType);

impl Backend for ReferenceKernels {
    fn dtype(&self) -> DType {
        self.0
    }

    #[cfg(feature = "flash-attn")]
    fn attention(&self, of: &Attention, dropout: Option<Dropout>) -> Result<Tensor> {
        match dropout {
            None if super::flash::supports(of.query, of.heads) => super::flash::attention(of),
            dropout => attention(of, dropout.as_ref()),
        }
    }
}

/// Computes `activation(x · weightᵀ + bias)`: `[T, in] → [T, out]`.
pub(super) fn linear(x: &Tensor, layer: &Linear, activation: Option<Activation>) -> Result<Tensor> {
    let (weight, bias) = layer.plain()?;
    let out = x.matmul(&weight.t()?)?.broadcast_add(bias)?;
    match activation {
        None => Ok(out),
        Some(activation) => activation.forward(&out),
    }
}

/// Applies dropout to `x [T, D]`, if there is any.
pub(super) fn drop_elements(x: Tensor, dropout: Option<&Dropout>) -> Result<Tensor> {
    let Some(dropout) = dropout else { return Ok(x) };
    dropout.check(&x)?;
    &x * dropout.factors(x.dim(1)?, x.device())?.to_dtype(x.dtype())?
}

/// Computes `LayerNorm(x)` over the last dimension, in the type of the weight (f32). It is composed of basic operators
/// because candle-nn's fused kernel has no gradient.
pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(weight.dtype())?;
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)?.broadcast_mul(weight)?.broadcast_add(bias)?.to_dtype(dtype)
}

/// Computes softmax over the last dimension, in f32. candle-nn's fused kernel has no gradient here either.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let exp = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?.to_dtype(dtype)
}

/// Computes attention over packed rows through a padded batch, with optional dropout of the probabilities. See
/// [`attention`](crate::ops::attention::attention) for the shapes.
pub(super) fn attention(of: &Attention, dropout: Option<&Dropout>) -> Result<Tensor> {
    let Attention { query, key, value, cu_queries, cu_keys, heads } = *of;
    let device = query.device();
    let dim = query.dim(D::Minus1)?;
    let padded_queries = Padding::new(cu_queries);
    let padded_keys = Padding::new(cu_keys);
    let split = |x: &Tensor, padding: &Padding| -> Result<Tensor> {
        padding.pad(x)?.reshape((padding.batch, padding.longest, heads, dim / heads))?.transpose(1, 2)?.contiguous()
    };
    let (query, key, value) = (split(query, &padded_queries)?, split(key, &padded_keys)?, split(value, &padded_keys)?);
    let scale = 1.0 / ((dim / heads) as f64).sqrt();
    let scores = (query.matmul(&key.t()?.contiguous()?)? * scale)?;
    let scores = scores.broadcast_add(&padded_keys.mask(device)?.to_dtype(scores.dtype())?)?;
    let mut probabilities = softmax(&scores)?;
    if let Some(dropout) = dropout {
        let factors = dropout_factors(dropout, cu_queries, &padded_queries, &padded_keys, heads);
        probabilities = (&probabilities
            * Tensor::from_vec(factors, probabilities.shape(), device)?.to_dtype(probabilities.dtype())?)?;
    }
    let context = probabilities.matmul(&value)?;
    let context = context.transpose(1, 2)?.reshape((padded_queries.batch * padded_queries.longest, dim))?;
    context.index_select(&Tensor::new(padded_queries.rows(), device)?, 0)
}

/// Returns the dropout factors of the probabilities, `[batch, heads, queries, keys]`; 0 for a dropped probability.
fn dropout_factors(dropout: &Dropout, cu_queries: &[u32], queries: &Padding, keys: &Padding, heads: usize) -> Vec<f32> {
    let mut factors = vec![1.0; queries.batch * heads * queries.longest * keys.longest];
    let blocks = factors.chunks_exact_mut((queries.longest * keys.longest).max(1));
    let heads_of_sequences = (0..queries.batch).flat_map(|s| (0..heads).map(move |head| (s, head)));
    for (block, (sequence, head)) in blocks.zip(heads_of_sequences) {
        let rows = cu_queries[sequence] as usize..cu_queries[sequence + 1] as usize;
        let tokens = (keys.cu_seqlens[sequence + 1] - keys.cu_seqlens[sequence]) as usize;
        for (row, query) in block.chunks_exact_mut(keys.longest).zip(rows) {
            dropout.apply_to_head(query, head, heads, &mut row[..tokens]);
        }
    }
    factors
}

/// The layout of packed sequences in a padded batch.
struct Padding<'a> {
    cu_seqlens: &'a [u32],
    batch: usize,
    longest: usize,
}

impl<'a> Padding<'a> {
    fn new(cu_seqlens: &'a [u32]) -> Self {
        let longest = cu_seqlens.windows(2).map(|s| s[1] - s[0]).max().unwrap_or(0) as usize;
        Self { cu_seqlens, batch: cu_seqlens.len() - 1, longest }
    }

    /// Returns the lengths of the sequences, in tokens.
    fn lengths(&self) -> impl Iterator<Item = usize> {
        self.cu_seqlens.windows(2).map(|s| (s[1] - s[0]) as usize)
    }

    /// Pads packed rows: `[T, D] → [batch · longest, D]`. Padding rows are copies of row 0, which the mask excludes.
    fn pad(&self, x: &Tensor) -> Result<Tensor> {
        let mut index = vec![0u32; self.batch * self.longest];
        for (slots, sequence) in index.chunks_exact_mut(self.longest.max(1)).zip(self.cu_seqlens.windows(2)) {
            for (slot, row) in slots.iter_mut().zip(sequence[0]..sequence[1]) {
                *slot = row;
            }
        }
        x.index_select(&Tensor::new(index, x.device())?, 0)
    }

    /// Returns the indices of the padded batch's rows that hold tokens, in packed order.
    fn rows(&self) -> Vec<u32> {
        let row = |sequence: usize, position: usize| u32::try_from(sequence * self.longest + position);
        self.lengths()
            .enumerate()
            .flat_map(|(s, n)| (0..n).map(move |p| row(s, p).expect("a batch has fewer than 2^32 tokens")))
            .collect()
    }

    /// Returns the attention mask `[batch, 1, 1, longest]`: 0 for a token, -∞ for padding.
    fn mask(&self, device: &Device) -> Result<Tensor> {
        let mask: Vec<f32> = self
            .lengths()
            .flat_map(|n| (0..self.longest).map(move |p| if p < n { 0.0 } else { f32::NEG_INFINITY }))
            .collect();
        Tensor::from_vec(mask, (self.batch, 1, 1, self.longest), device)
    }
}
