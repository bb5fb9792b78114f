//! Multi-head attention over packed sequences.

use candle_core::{DType, Device, Result, Tensor};

use super::fast::{self, FastKernels, Isa};
use super::training::Dropout;
use super::{Kernels, read};

/// The inputs of attention.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// The queries, `[Tq, D]`.
    pub query: &'a Tensor,
    /// The keys, `[T, D]`.
    pub key: &'a Tensor,
    /// The values, `[T, D]`.
    pub value: &'a Tensor,
    /// The offsets of the sequences in the rows of the queries, `[B + 1]`.
    pub cu_queries: &'a [u32],
    /// The offsets of the sequences in the rows of the keys, `[B + 1]`.
    pub cu_keys: &'a [u32],
    /// The number of heads; divides `D`.
    pub heads: usize,
}

/// Computes multi-head softmax attention. The queries of a sequence attend to the keys and values of the same sequence.
///
/// **Shapes**: `query [Tq, D]`, `key` and `value` `[T, D]` → `[Tq, D]`.
/// **Source**: Vaswani et al. 2017, section 3.2.
///
/// # Errors
/// Shapes other than the above; offsets that do not fit the rows; heads that do not divide `D`.
pub fn attention(of: &Attention, kernels: Kernels) -> Result<Tensor> {
    attention_with_dropout(of, None, kernels)
}

/// Computes [`attention()`] with dropout of the attention probabilities.
///
/// # Errors
/// As [`attention()`]; a dropout mask whose number of rows is not `Tq`; dropout with the inference kernels on a CPU.
pub fn attention_with_dropout(of: &Attention, dropout: Option<Dropout>, kernels: Kernels) -> Result<Tensor> {
    of.check()?;
    if let Some(dropout) = &dropout {
        dropout.check(of.query)?;
    }
    kernels.backend().attention(of, dropout)
}

impl Attention<'_> {
    /// Checks the shapes and the offsets.
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
            candle_core::bail!("{heads} heads do not divide {dim} columns");
        }
        Ok(())
    }
}

/// Attention of one query per sequence with the fused CPU kernels. It skips the projection of all tokens to keys and
/// values.
#[derive(Debug, Clone)]
pub struct FirstTokenAttention {
    isa: Isa,
    weights: fast::FirstTokens,
}

impl FirstTokenAttention {
    /// Takes the weight `[D, D]` of the keys, and the weight `[D, D]` and the bias `[D]` of the values. The bias of the
    /// keys has no effect on the result.
    ///
    /// # Errors
    /// Shapes other than the above; heads that do not divide `D`.
    pub fn new(key: &Tensor, value: (&Tensor, &Tensor), heads: usize, kernels: FastKernels) -> Result<Self> {
        let (isa, dim) = (kernels.isa, value.1.dims1()?);
        if [key.dims(), value.0.dims()] != [[dim; 2]; 2] || heads == 0 || !dim.is_multiple_of(heads) {
            candle_core::bail!("keys {:?} and values {:?} do not fit {heads} heads", key.dims(), value.0.dims());
        }
        let weights =
            read([key, value.0, value.1], |[key, value, bias]| fast::FirstTokens::pack(isa, key, value, bias, heads))?;
        Ok(Self { isa, weights })
    }

    /// Computes softmax attention: `query [B, D]`, `x [T, D]`, `cu_seqlens [B + 1]` → `[B, D]`.
    ///
    /// # Errors
    /// Shapes other than the above; a sequence without tokens.
    pub fn forward(&self, query: &Tensor, x: &Tensor, cu_seqlens: &[u32]) -> Result<Tensor> {
        let Self { isa, weights } = self;
        let (rows, dim) = query.dims2()?;
        let end = cu_seqlens.last().map(|t| *t as usize);
        let fits = [x.dims2()?.1, weights.dim()] == [dim; 2] && end == Some(x.dim(0)?);
        if !fits || cu_seqlens.len() != rows + 1 {
            candle_core::bail!("query {:?} and x {:?} do not fit {rows} sequences", query.dims(), x.dims());
        }
        if cu_seqlens.windows(2).any(|s| s[0] >= s[1]) {
            candle_core::bail!("a sequence has no tokens: {cu_seqlens:?}");
        }
        if rows == 0 {
            return Tensor::zeros((0, dim), DType::F32, &Device::Cpu);
        }
        let context = read([query, x], |[query, x]| isa.run(fast::AttendFirst { weights, query, x, cu_seqlens }))?;
        Tensor::from_vec(context, (rows, dim), &Device::Cpu)
    }
}
