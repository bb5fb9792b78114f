//! The CPU kernels of fully connected layers: matrix products with fused epilogues, in blocks of rows.

use pulp::Simd;

use super::dot::Int16Kernel;
use super::elementwise::{add, layer_norm};
use super::gemm::{Finish, Panels, Rows, multiply};
use super::int16;
use super::quantize::{Int16Layer, Int16Rows};
use super::{Isa, Operator, Scratch};
use crate::ops::Activation;

/// The maximum number of rows in a block; a multiple of every tile height.
const ROW_BLOCK: usize = 192;
/// The number of floats in the rows of a block. Measured in 16-bit integers with 384 x 1536 layers and an L2 cache of 1
/// MB: blocks of a quarter to three quarters of this size are up to 6 % slower, blocks that are a third larger or more
/// are up to 18 % slower.
const BLOCK_FLOATS: usize = 192 * 1536;
/// The number of rows in a block is a multiple of this, except in the last block.
const ROW_MULTIPLE: usize = 24;
/// The number of unused floats after each row of the hidden layer. With a row stride of a power of two, rows would
/// compete for the same few sets of the L1 cache.
const ROW_GAP: usize = 16;

/// Returns the number of rows in a block for rows of up to `width` floats.
pub(super) fn block_rows(width: usize) -> usize {
    (BLOCK_FLOATS / width / ROW_MULTIPLE * ROW_MULTIPLE).clamp(ROW_MULTIPLE, ROW_BLOCK)
}

/// A fully connected layer `[in] → [out]`, packed for an instruction set.
#[derive(Debug, Clone)]
pub struct Layer {
    pub isa: Isa,
    weight: Weight,
    bias: Vec<f32>,
    pub inputs: usize,
    pub outputs: usize,
}

#[derive(Debug, Clone)]
enum Weight {
    F32(Panels),
    Int16(Int16Kernel, Int16Layer),
}

impl Layer {
    /// Packs a row-major weight `[out, in]`, in f32 or quantized for a kernel of 16-bit integers.
    pub fn pack(isa: Isa, int16: Option<Int16Kernel>, weight: &[f32], bias: &[f32]) -> Self {
        let (outputs, inputs) = (bias.len(), weight.len() / bias.len());
        debug_assert_eq!(weight.len(), outputs * inputs);
        let weight = if let Some(kernel) = int16 {
            Weight::Int16(kernel, Int16Layer::quantize(weight, outputs))
        } else {
            let mut panels = Panels::default();
            panels.pack_columns(weight.chunks_exact(inputs), inputs, isa.panel_width(), 1.0);
            Weight::F32(panels)
        };
        Self { isa, weight, bias: bias.to_vec(), inputs, outputs }
    }

    /// Returns the largest quantized activation that the layer accepts; none for an f32 layer.
    fn largest(&self) -> Option<i16> {
        match &self.weight {
            Weight::F32(_) => None,
            Weight::Int16(_, layer) => Some(layer.largest),
        }
    }

    /// Computes `x [rows, in] · weightᵀ + bias → out [rows, out]`, with an optional activation. `stride` is the row
    /// stride of `out`. A quantized layer reads `quantized`, the quantized rows of `x`.
    #[inline(always)]
    fn apply<S: Simd, const R: usize, const C: usize>(
        &self,
        simd: S,
        x: Rows,
        quantized: &Int16Rows,
        activation: Option<Activation>,
        out: &mut [f32],
        stride: usize,
    ) {
        let finish = Finish::with_bias(&self.bias, activation);
        match &self.weight {
            Weight::F32(panels) => multiply::<S, R, C>(simd, x, panels, finish, out, stride),
            Weight::Int16(kernel, layer) => int16::multiply(*kernel, quantized, layer, finish, out, stride),
        }
    }
}

/// The operation on each row after the bias is added.
#[derive(Clone, Copy)]
pub enum Epilogue<'a> {
    /// No operation.
    None,
    /// An activation of each element.
    Activation(Activation),
    /// `LayerNorm(row + residual)`, the residual `[rows, out]`.
    AddNorm(AddNorm<'a>),
}

/// Residual connection and layer norm: `LayerNorm(row + residual)`, with a residual `[rows, out]`, weight and bias
/// `[out]`.
#[derive(Clone, Copy)]
pub struct AddNorm<'a> {
    pub residual: &'a [f32],
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub eps: f32,
}

impl AddNorm<'_> {
    /// Applies to a block of rows; `first` is the index of its first row.
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

/// Computes `x [T, in] · weightᵀ + bias` and the epilogue for several layers with the same number of inputs.
pub struct Linear<'a> {
    pub x: &'a [f32],
    pub layers: &'a [&'a Layer],
    pub epilogue: Epilogue<'a>,
}

impl Operator for Linear<'_> {
    /// One result `[T, out]` per layer.
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
        let block_rows = block_rows(layers.iter().map(|layer| layer.outputs).fold(inputs, usize::max));
        for (b, x) in x.chunks(block_rows * inputs).enumerate() {
            let x = Rows::new(x, inputs);
            if let Some(largest) = largest {
                quantized.quantize(x, inputs, largest);
            }
            for (layer, out) in layers.iter().zip(&mut outs) {
                let start = out.len();
                out.resize(start + x.count * layer.outputs, 0.0);
                let block = &mut out[start..];
                let activation = if let Epilogue::Activation(activation) = epilogue { Some(activation) } else { None };
                layer.apply::<S, R, C>(simd, x, quantized, activation, block, layer.outputs);
                if let Epilogue::AddNorm(norm) = epilogue {
                    norm.apply(block, b * block_rows);
                }
            }
        }
        scratch.put();
        outs
    }
}

/// Computes `norm(x + lin2(activation(lin1(x))))` in blocks of rows, so that the output of `lin1` stays in the cache.
pub struct FeedForward<'a> {
    pub lin1: &'a Layer,
    pub activation: Activation,
    pub lin2: &'a Layer,
    /// The layer norm, whose residual is `x [T, D]`.
    pub norm: AddNorm<'a>,
}

impl Operator for FeedForward<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) -> Vec<f32> {
        let Self { lin1, activation, lin2, norm } = self;
        let x = norm.residual;
        let mut out = Vec::with_capacity(x.len());
        let mut scratch = Scratch::take();
        let Scratch { quantized, hidden, .. } = &mut scratch;
        let stride = lin1.outputs + ROW_GAP;
        let block_rows = block_rows(stride);
        for (b, x) in x.chunks(block_rows * lin1.inputs).enumerate() {
            let start = out.len();
            out.resize(start + x.len(), 0.0);
            let x = Rows::new(x, lin1.inputs);
            hidden.resize(hidden.len().max(x.count * stride), 0.0);
            if let Some(largest) = lin1.largest() {
                quantized.quantize(x, lin1.inputs, largest);
            }
            lin1.apply::<S, R, C>(simd, x, quantized, Some(activation), hidden, stride);
            let hidden = Rows { values: hidden, stride, count: x.count };
            if let Some(largest) = lin2.largest() {
                quantized.quantize(hidden, lin2.inputs, largest);
            }
            let block = &mut out[start..];
            lin2.apply::<S, R, C>(simd, hidden, quantized, None, block, lin2.outputs);
            norm.apply(block, b * block_rows);
        }
        scratch.put();
        out
    }
}
