//! The CPU kernels: each operator fused over a block of rows that stays in the cache.
//!
//! Everything here runs on the calling thread and on plain slices. [`pulp`] picks the instruction
//! set at run time and inlines the bodies below under it, so one binary uses AVX-512 where it is
//! present and AVX2 or NEON elsewhere.

use std::cell::RefCell;
use std::ops::Range;

use pulp::{NullaryFnOnce, Simd};

use super::dot::Int16Kernel;
use super::elementwise::{gelu, layer_norm, softmax};
use super::gemm::{multiply, pack_columns, pack_panel_rows, pack_rows};
use super::int16;
use super::quantize::{Int16Layer, Int16Rows};

/// Rows whose products and epilogue are finished before the next block begins; a multiple of every
/// tile height. 96 rows of a 384 x 1536 layer are 0.7 MB: they stay in a second-level cache of 1 MB.
const ROW_BLOCK: usize = 96;

/// Query rows whose attention scores are held at a time, so that long sequences stay in the cache too.
const QUERY_BLOCK: usize = 48;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Buffers that a thread keeps from one call to the next.
#[derive(Default)]
struct Scratch {
    tiles: Vec<f32>,
    quantized: Int16Rows,
    block: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
}

/// An instruction set with vectors and fused multiply-add.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512(pulp::x86::V4),
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    #[cfg(target_arch = "aarch64")]
    Neon(pulp::aarch64::Neon),
}

impl Isa {
    /// The best instruction set of this machine, if it has one.
    pub(super) fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = pulp::x86::V4::try_new().map(Self::Avx512);
            avx512.or_else(|| pulp::x86::V3::try_new().map(Self::Avx2))
        }
        #[cfg(target_arch = "aarch64")]
        {
            pulp::aarch64::Neon::try_new().map(Self::Neon)
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        None
    }

    /// Runs an operator, compiled for the instruction set, with the register tile that fills its registers.
    pub(super) fn run<O: Operator>(self, operator: O) -> O::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.vectorize(Run::<_, _, 12, 2> { simd, operator }),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.vectorize(Run::<_, _, 6, 2> { simd, operator }),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd) => simd.vectorize(Run::<_, _, 6, 4> { simd, operator }),
        }
    }

    /// Columns of the register tile, which is the width of a panel.
    pub(super) fn panel_width(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => 32,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => 16,
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => 16,
        }
    }
}

/// Work in register tiles of `R` rows and `C` vectors.
pub(super) trait Operator {
    type Output;

    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) -> Self::Output;
}

/// An operator for [`Simd::vectorize`].
struct Run<S, O, const R: usize, const C: usize> {
    simd: S,
    operator: O,
}

impl<S: Simd, O: Operator, const R: usize, const C: usize> NullaryFnOnce for Run<S, O, R, C> {
    type Output = O::Output;

    #[inline(always)]
    fn call(self) -> O::Output {
        self.operator.run::<S, R, C>(self.simd)
    }
}

/// A fully connected layer `[in] → [out]`, packed for the instruction set that will read it.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    weight: Weight,
    bias: Vec<f32>,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

#[derive(Debug, Clone)]
enum Weight {
    /// Panels for [`multiply`].
    F32(Vec<f32>),
    Int16(Int16Kernel, Int16Layer),
}

impl Layer {
    /// Packs a row-major weight `[out, in]` as it is.
    pub(super) fn pack(isa: Isa, weight: &[f32], bias: &[f32]) -> Self {
        let (outputs, inputs) = (bias.len(), weight.len() / bias.len());
        debug_assert_eq!(weight.len(), outputs * inputs);
        let mut panels = Vec::new();
        pack_columns(&mut panels, weight.chunks_exact(inputs), inputs, isa.panel_width());
        Self { weight: Weight::F32(panels), bias: bias.to_vec(), inputs, outputs }
    }

    /// Quantises a row-major weight `[out, in]`.
    pub(super) fn quantize(kernel: Int16Kernel, weight: &[f32], bias: &[f32]) -> Self {
        let (outputs, inputs) = (bias.len(), weight.len() / bias.len());
        let weight = Weight::Int16(kernel, Int16Layer::quantize(weight, outputs));
        Self { weight, bias: bias.to_vec(), inputs, outputs }
    }

    /// The largest activation that the layer admits, if it is quantised.
    fn largest(&self) -> Option<i16> {
        match &self.weight {
            Weight::F32(_) => None,
            Weight::Int16(_, layer) => Some(layer.largest),
        }
    }
}

/// What happens to a row of products after its bias was added.
#[derive(Clone, Copy)]
pub(super) enum Epilogue<'a> {
    None,
    Gelu,
    /// `LayerNorm(row + residual)`, the residual `[rows, out]`.
    AddNorm {
        residual: &'a [f32],
        weight: &'a [f32],
        bias: &'a [f32],
        eps: f32,
    },
}

/// `x [T, in] · weightᵀ + bias`, then the epilogue, for several layers of the same number of inputs.
pub(super) struct Linear<'a> {
    pub(super) x: &'a [f32],
    pub(super) layers: &'a [&'a Layer],
    pub(super) epilogue: Epilogue<'a>,
}

impl Operator for Linear<'_> {
    /// One product a layer.
    type Output = Vec<Vec<f32>>;

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) -> Vec<Vec<f32>> {
        let Self { x, layers, epilogue } = self;
        let Some(inputs) = layers.first().map(|layer| layer.inputs) else { return Vec::new() };
        let rows = x.len() / inputs;
        let mut outs: Vec<Vec<f32>> = layers.iter().map(|layer| Vec::with_capacity(rows * layer.outputs)).collect();
        // Not `with_borrow_mut`: its closure would be compiled without this function's instruction set.
        let mut scratch = SCRATCH.take();
        let Scratch { tiles, quantized, block, .. } = &mut scratch;
        let largest = layers.iter().filter_map(|layer| layer.largest()).min();
        let any_f32 = layers.iter().any(|layer| layer.largest().is_none());
        for (b, x) in x.chunks(ROW_BLOCK * inputs).enumerate() {
            let rows = x.len() / inputs;
            if any_f32 {
                pack_rows(tiles, x.chunks_exact(inputs), inputs, R, 1.0);
            }
            if let Some(largest) = largest {
                quantized.quantize(x, inputs, largest);
            }
            for (layer, out) in layers.iter().zip(&mut outs) {
                let n = layer.outputs;
                block.resize(block.len().max(rows * n), 0.0);
                let block = &mut block[..rows * n];
                match &layer.weight {
                    Weight::F32(panels) => multiply::<S, R, C>(simd, tiles, rows, inputs, panels, n, block, n),
                    Weight::Int16(kernel, layer) => int16::multiply(*kernel, quantized, layer, block, n),
                }
                for (r, row) in block.chunks_exact_mut(n).enumerate() {
                    finish_row(row, &layer.bias, epilogue, b * ROW_BLOCK + r);
                }
                out.extend_from_slice(block);
            }
        }
        SCRATCH.set(scratch);
        outs
    }
}

#[inline(always)]
fn finish_row(row: &mut [f32], bias: &[f32], epilogue: Epilogue, index: usize) {
    match epilogue {
        Epilogue::None => {
            for (x, b) in row.iter_mut().zip(bias) {
                *x += *b;
            }
        }
        Epilogue::Gelu => {
            for (x, b) in row.iter_mut().zip(bias) {
                *x = gelu(*x + *b);
            }
        }
        Epilogue::AddNorm { residual, weight, bias: shift, eps } => {
            let residual = &residual[index * row.len()..][..row.len()];
            for ((x, b), r) in row.iter_mut().zip(bias).zip(residual) {
                *x += *b + *r;
            }
            layer_norm(row, weight, shift, eps);
        }
    }
}

/// Softmax attention of each sequence's queries over its own keys and values, head by head.
///
/// Shapes: `query [Tq, D]`, `key`, `value` `[T, D]` → `[Tq, D]`; `cu_queries` and `cu_keys` bound the
/// sequences in the rows of queries and of keys.
/// Source: Vaswani et al. 2017, section 3.2.
pub(super) struct Attention<'a> {
    pub(super) query: &'a [f32],
    pub(super) key: &'a [f32],
    pub(super) value: &'a [f32],
    pub(super) cu_queries: &'a [u32],
    pub(super) cu_keys: &'a [u32],
    pub(super) dim: usize,
    pub(super) heads: usize,
}

impl Operator for Attention<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) -> Vec<f32> {
        let Self { query, key, value, cu_queries, cu_keys, dim, heads } = self;
        let head_dim = dim / heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut context = vec![0.0; query.len()];
        let mut scratch = SCRATCH.take();
        let Scratch { tiles, keys, values, scores, .. } = &mut scratch;
        for (queries, tokens) in cu_queries.windows(2).zip(cu_keys.windows(2)) {
            let queries = queries[0] as usize * dim..queries[1] as usize * dim;
            let tokens = tokens[0] as usize * dim..tokens[1] as usize * dim;
            let n = tokens.len() / dim;
            for head in 0..heads {
                let columns = head * head_dim..(head + 1) * head_dim;
                let key = head_rows(&key[tokens.clone()], dim, &columns);
                let value = head_rows(&value[tokens.clone()], dim, &columns);
                pack_columns(keys, key, head_dim, C * S::F32_LANES);
                pack_panel_rows(values, value, head_dim, C * S::F32_LANES);
                for start in queries.clone().step_by(QUERY_BLOCK * dim) {
                    let block = start..queries.end.min(start + QUERY_BLOCK * dim);
                    let rows = block.len() / dim;
                    pack_rows(tiles, head_rows(&query[block.clone()], dim, &columns), head_dim, R, scale);
                    scores.resize(scores.len().max(rows * n), 0.0);
                    let scores = &mut scores[..rows * n];
                    multiply::<S, R, C>(simd, tiles, rows, head_dim, keys, n, scores, n);
                    for row in scores.chunks_exact_mut(n) {
                        softmax(row);
                    }
                    pack_rows(tiles, scores.chunks_exact(n), n, R, 1.0);
                    let out = &mut context[block.start + columns.start..block.end];
                    multiply::<S, R, C>(simd, tiles, rows, n, values, head_dim, out, dim);
                }
            }
        }
        SCRATCH.set(scratch);
        context
    }
}

/// The columns of one head in each row.
fn head_rows<'a>(
    x: &'a [f32],
    dim: usize,
    columns: &Range<usize>,
) -> impl ExactSizeIterator<Item = &'a [f32]> + use<'a> {
    let columns = columns.clone();
    x.chunks_exact(dim).map(move |row| &row[columns.clone()])
}

/// The sum of each token's embeddings, normalised.
///
/// Shapes: `input_ids`, `position_ids` `[T]`, tables `[_, D]` → `[T, D]`; `token_types` holds the ids and their table.
/// Source: Devlin et al. 2019, figure 2.
pub(super) struct Embed<'a> {
    pub(super) input_ids: &'a [u32],
    pub(super) position_ids: &'a [u32],
    pub(super) tables: Tables<'a>,
}

/// What [`Embed`] adds up, and the normalisation `[D]` after it.
pub(super) struct Tables<'a> {
    pub(super) words: &'a [f32],
    pub(super) positions: &'a [f32],
    pub(super) token_types: Option<(&'a [u32], &'a [f32])>,
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) eps: f32,
}

impl Operator for Embed<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, _: S) -> Vec<f32> {
        let Self { input_ids, position_ids, tables } = self;
        let dim = tables.weight.len();
        let entry = |id: u32| id as usize * dim..(id as usize + 1) * dim;
        let mut out = Vec::with_capacity(input_ids.len() * dim);
        for (t, (&id, &position)) in input_ids.iter().zip(position_ids).enumerate() {
            let row_start = out.len();
            out.extend_from_slice(&tables.words[entry(id)]);
            let row = &mut out[row_start..];
            // PyTorch adds the token types before the positions; the order decides the last bit.
            if let Some((ids, table)) = tables.token_types {
                add(row, &table[entry(ids[t])]);
            }
            add(row, &tables.positions[entry(position)]);
            layer_norm(row, tables.weight, tables.bias, tables.eps);
        }
        out
    }
}

#[inline(always)]
fn add(row: &mut [f32], other: &[f32]) {
    for (x, y) in row.iter_mut().zip(other) {
        *x += *y;
    }
}
