//! The CPU kernels of fully connected layers: products and what follows them, block by block of rows.

use pulp::Simd;

use super::dot::Int16Kernel;
use super::elementwise::{add, layer_norm};
use super::gemm::{Finish, Panels, Rows, multiply};
use super::int16;
use super::quantize::{Int16Layer, Int16Rows};
use super::{Isa, Operator, Scratch};

/// Rows whose products and epilogue are finished before the next block begins; a multiple of every tile height.
/// Measured with layers of 384 x 1536 and a second-level cache of 1 MB: 48 to 144 rows are up to 6 % slower in 16-bit
/// integers, 264 and more up to 10 %; f32 is level up to 192.
const ROW_BLOCK: usize = 192;

/// A fully connected layer `[in] → [out]`, packed for the instruction set that will read it.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    weight: Weight,
    bias: Vec<f32>,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

#[derive(Debug, Clone)]
enum Weight {
    F32(Panels),
    Int16(Int16Kernel, Int16Layer),
}

impl Layer {
    /// Packs a row-major weight `[out, in]` as it is.
    pub(crate) fn pack(isa: Isa, weight: &[f32], bias: &[f32]) -> Self {
        let (outputs, inputs) = (bias.len(), weight.len() / bias.len());
        debug_assert_eq!(weight.len(), outputs * inputs);
        let mut panels = Panels::default();
        panels.pack_columns(weight.chunks_exact(inputs), inputs, isa.panel_width(), 1.0);
        Self { weight: Weight::F32(panels), bias: bias.to_vec(), inputs, outputs }
    }

    /// Quantises a row-major weight `[out, in]`.
    pub(crate) fn quantize(kernel: Int16Kernel, weight: &[f32], bias: &[f32]) -> Self {
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

    /// `x · weightᵀ + bias → out [rows, out]`, through `gelu` if wanted; `quantized` are the rows of `x`.
    #[inline(always)]
    fn apply<S: Simd, const R: usize, const C: usize>(
        &self,
        simd: S,
        x: &[f32],
        quantized: &Int16Rows,
        gelu: bool,
        out: &mut [f32],
    ) {
        let finish = if gelu { Finish::BiasGelu(&self.bias) } else { Finish::Bias(&self.bias) };
        match &self.weight {
            Weight::F32(panels) => {
                let x = Rows { values: x, stride: self.inputs, count: x.len() / self.inputs };
                multiply::<S, R, C>(simd, x, panels, finish, out, self.outputs);
            }
            Weight::Int16(kernel, layer) => int16::multiply(*kernel, quantized, layer, finish, out, self.outputs),
        }
    }
}

/// What happens to a row of products after its bias was added.
#[derive(Clone, Copy)]
pub(crate) enum Epilogue<'a> {
    None,
    Gelu,
    /// `LayerNorm(row + residual)`, the residual `[rows, out]`.
    AddNorm(AddNorm<'a>),
}

/// `LayerNorm(row + residual)`, the residual `[rows, out]`, weight and bias `[out]`.
#[derive(Clone, Copy)]
pub(crate) struct AddNorm<'a> {
    pub(crate) residual: &'a [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) eps: f32,
}

impl AddNorm<'_> {
    /// Finishes rows of which `first` is the first.
    #[inline(always)]
    fn apply(&self, rows: &mut [f32], first: usize) {
        let n = self.weight.len();
        let residual = self.residual[first * n..].chunks_exact(n);
        for (row, residual) in rows.chunks_exact_mut(n).zip(residual) {
            add(row, residual);
            layer_norm(row, self.weight, self.bias, self.eps);
        }
    }
}

/// `x [T, in] · weightᵀ + bias`, then the epilogue, for several layers of the same number of inputs.
pub(crate) struct Linear<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) layers: &'a [&'a Layer],
    pub(crate) epilogue: Epilogue<'a>,
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
        let mut scratch = Scratch::take();
        let quantized = &mut scratch.quantized;
        let largest = layers.iter().filter_map(|layer| layer.largest()).min();
        for (b, x) in x.chunks(ROW_BLOCK * inputs).enumerate() {
            if let Some(largest) = largest {
                quantized.quantize(x, inputs, largest);
            }
            for (layer, out) in layers.iter().zip(&mut outs) {
                let start = out.len();
                out.resize(start + x.len() / inputs * layer.outputs, 0.0);
                let block = &mut out[start..];
                layer.apply::<S, R, C>(simd, x, quantized, matches!(epilogue, Epilogue::Gelu), block);
                if let Epilogue::AddNorm(norm) = epilogue {
                    norm.apply(block, b * ROW_BLOCK);
                }
            }
        }
        scratch.put();
        outs
    }
}

/// `norm(x + lin2(gelu(lin1(x))))`: what `lin1` gives stays in the cache until `lin2` has read it.
pub(crate) struct FeedForward<'a> {
    pub(crate) lin1: &'a Layer,
    pub(crate) lin2: &'a Layer,
    /// Its residual is `x [T, D]`.
    pub(crate) norm: AddNorm<'a>,
}

impl Operator for FeedForward<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) -> Vec<f32> {
        let Self { lin1, lin2, norm } = self;
        let x = norm.residual;
        let mut out = Vec::with_capacity(x.len());
        let mut scratch = Scratch::take();
        let Scratch { quantized, hidden, .. } = &mut scratch;
        for (b, x) in x.chunks(ROW_BLOCK * lin1.inputs).enumerate() {
            let inner = x.len() / lin1.inputs * lin1.outputs;
            hidden.resize(hidden.len().max(inner), 0.0);
            let hidden = &mut hidden[..inner];
            if let Some(largest) = lin1.largest() {
                quantized.quantize(x, lin1.inputs, largest);
            }
            lin1.apply::<S, R, C>(simd, x, quantized, true, hidden);
            if let Some(largest) = lin2.largest() {
                quantized.quantize(hidden, lin2.inputs, largest);
            }
            let start = out.len();
            out.resize(start + x.len(), 0.0);
            let block = &mut out[start..];
            lin2.apply::<S, R, C>(simd, hidden, quantized, false, block);
            norm.apply(block, b * ROW_BLOCK);
        }
        scratch.put();
        out
    }
}
