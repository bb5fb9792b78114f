//! Attention over packed sequences.

use candle_core::{DType, Device, Result, Tensor};

use super::fast::{self, FastKernels, Isa};
use super::training::Dropout;
use super::{Kernels, read};

/// The inputs of attention.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// `[Tq, D]`.
    pub query: &'a Tensor,
    /// `[T, D]`.
    pub key: &'a Tensor,
    /// `[T, D]`.
    pub value: &'a Tensor,
    /// Bounds of the sequences in the rows of the queries.
    pub cu_queries: &'a [u32],
    /// Bounds of the sequences in the rows of the keys.
    pub cu_keys: &'a [u32],
    /// Heads, among which the columns are shared out.
    pub heads: usize,
}

/// Softmax attention of each sequence's queries over its own keys and values, in several heads.
///
/// **Shapes**: `query [Tq, D]`, `key` and `value` `[T, D]` → `[Tq, D]`.
/// **Source**: Vaswani et al. 2017, section 3.2.
///
/// # Errors
/// Shapes that are not as above.
pub fn attention(of: &Attention, kernels: Kernels) -> Result<Tensor> {
    attention_with_dropout(of, None, kernels)
}

/// [`attention()`] with probabilities dropped, by kernels that have gradients.
///
/// # Errors
/// As [`attention()`]; a dropout of other rows; fused kernels without gradients.
pub fn attention_with_dropout(of: &Attention, dropout: Option<Dropout>, kernels: Kernels) -> Result<Tensor> {
    of.check()?;
    if let Some(dropout) = &dropout {
        dropout.check(of.query)?;
    }
    kernels.backend().attention(of, dropout)
}

impl Attention<'_> {
    fn check(&self) -> Result<()> {
        let Self { query, key, value, cu_queries, cu_keys, heads } = *self;
        let (rows, dim) = query.dims2()?;
        let ends = (cu_queries.last().map(|t| *t as usize), cu_keys.last().map(|t| *t as usize));
        let bounds_fit = cu_queries.len() == cu_keys.len() && cu_queries.is_sorted() && cu_keys.is_sorted();
        if key.dims() != value.dims() || ends != (Some(rows), Some(key.dim(0)?)) || key.dim(1)? != dim || !bounds_fit {
            candle_core::bail!(
                "query {:?}, key {:?} and value {:?} do not fit {ends:?} tokens of {} and {} bounds",
                query.dims(),
                key.dims(),
                value.dims(),
                cu_queries.len(),
                cu_keys.len()
            );
        }
        if heads == 0 || !dim.is_multiple_of(heads) {
            candle_core::bail!("{dim} columns cannot be shared out among {heads} heads");
        }
        Ok(())
    }
}

/// Attention of one token of each sequence by the fused kernels, straight from rows that are never projected to keys and
/// values.
#[derive(Debug, Clone)]
pub struct FirstTokenAttention {
    isa: Isa,
    weights: fast::FirstTokens,
}

impl FirstTokenAttention {
    /// Takes weight `[D, D]` of the keys, whose bias makes no difference, and weight and bias `[D]` of the values.
    ///
    /// # Errors
    /// Shapes that are not as above, `D` that cannot be shared out among the heads.
    pub fn new(key: &Tensor, value: (&Tensor, &Tensor), heads: usize, kernels: FastKernels) -> Result<Self> {
        let (isa, dim) = (kernels.isa, value.1.dims1()?);
        if [key.dims(), value.0.dims()] != [[dim; 2]; 2] || heads == 0 || !dim.is_multiple_of(heads) {
            candle_core::bail!("keys {:?} and values {:?} do not fit {heads} heads", key.dims(), value.0.dims());
        }
        let weights =
            read([key, value.0, value.1], |[key, value, bias]| fast::FirstTokens::pack(isa, key, value, bias, heads))?;
        Ok(Self { isa, weights })
    }

    /// Softmax attention: `query [B, D]`, `x [T, D]` of `B` sequences → `[B, D]`.
    ///
    /// # Errors
    /// Shapes that are not as above.
    pub fn forward(&self, query: &Tensor, x: &Tensor, cu_seqlens: &[u32]) -> Result<Tensor> {
        let Self { isa, weights } = self;
        let (rows, dim) = query.dims2()?;
        let end = cu_seqlens.last().map(|t| *t as usize);
        let fits = [x.dims2()?.1, weights.dim()] == [dim; 2] && end == Some(x.dim(0)?);
        if !fits || cu_seqlens.len() != rows + 1 {
            candle_core::bail!("query {:?} and x {:?} do not fit {rows} sequences", query.dims(), x.dims());
        }
        if cu_seqlens.windows(2).any(|s| s[0] >= s[1]) {
            candle_core::bail!("a sequence has no token: {cu_seqlens:?}");
        }
        if rows == 0 {
            return Tensor::zeros((0, dim), DType::F32, &Device::Cpu);
        }
        let context = read([query, x], |[query, x]| isa.run(fast::AttendFirst { weights, query, x, cu_seqlens }))?;
        Tensor::from_vec(context, (rows, dim), &Device::Cpu)
    }
}
