//! Flash attention (Dao 2023) on CUDA, which takes packed sequences without a padded copy.

use candle_core::{DType, Result, Tensor};

use super::Attention;

/// The largest head width that the kernel supports, in columns.
const MAX_HEAD_DIM: usize = 256;

/// Returns true if the kernel supports the queries `[T, D]`: half precision, on CUDA, a head width that is a multiple
/// of 8.
pub(super) fn supports(query: &Tensor, heads: usize) -> bool {
    let head_dim = query.dims()[1] / heads;
    query.device().is_cuda()
        && matches!(query.dtype(), DType::F16 | DType::BF16)
        && head_dim.is_multiple_of(8)
        && head_dim <= MAX_HEAD_DIM
}

/// See [`attention`](crate::ops::attention::attention) for the shapes.
pub(super) fn attention(of: &Attention) -> Result<Tensor> {
    let Attention { query, key, value, cu_queries, cu_keys, heads } = *of;
    let (rows, dim) = query.dims2()?;
    let head_dim = dim / heads;
    let split = |x: &Tensor| x.reshape((x.dim(0)?, heads, head_dim));
    let longest = |bounds: &[u32]| bounds.windows(2).map(|s| s[1] - s[0]).max().unwrap_or(0) as usize;
    let device = query.device();
    candle_flash_attn::flash_attn_varlen(
        &split(query)?,
        &split(key)?,
        &split(value)?,
        &Tensor::new(cu_queries, device)?,
        &Tensor::new(cu_keys, device)?,
        longest(cu_queries),
        longest(cu_keys),
        1.0 / (head_dim as f32).sqrt(),
        false,
    )?
    .reshape((rows, dim))
}
