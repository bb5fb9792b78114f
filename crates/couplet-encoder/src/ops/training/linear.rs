//! Forward and backward passes of fully connected layers, activations, dropout and layer norm.
//!
//! **Source** of the layer norm's gradient: Ba, Kiros & Hinton 2016.

use std::cell::RefCell;

use pulp::Simd;

use super::dropout::Dropout;
use super::parameter::PackedWeight;
use super::transposed::{Columns, PADDING, multiply_transposed};
use crate::ops::Activation;
use crate::ops::fast::Operator;
use crate::ops::fast::elementwise::{GELU_TANH, activate, add, exp, sigmoid, sum_by};
use crate::ops::fast::gemm::{Finish, Panels, Rows, multiply};

/// The number of rows in a block; a multiple of every tile height.
const ROW_BLOCK: usize = 96;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    columns: Vec<f32>,
    panels: Panels,
    block: Vec<f32>,
}

/// The weight `[out, in]` and the bias `[out]` of a layer.
#[derive(Clone, Copy)]
pub(super) struct Weight<'a> {
    pub(super) panels: &'a PackedWeight,
    pub(super) bias: &'a [f32],
}

/// Computes `x [T, in] · weightᵀ + bias → [T, out]` for layers with the same inputs, with an optional activation.
pub(super) struct Forward<'a> {
    pub(super) x: &'a [f32],
    pub(super) layers: &'a [Weight<'a>],
    pub(super) activation: Option<Activation>,
}

impl Operator for Forward<'_> {
    /// The outputs, and the inputs of the activation (empty without an activation).
    type Output = (Vec<Vec<f32>>, Vec<Vec<f32>>);

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) -> Self::Output {
        let Self { x, layers, activation } = self;
        let Some(k) = layers.first().map(|layer| layer.panels.inputs) else { return (Vec::new(), Vec::new()) };
        let sizes = || layers.iter().map(|layer| x.len() / k * layer.panels.outputs);
        let mut outs: Vec<Vec<f32>> = sizes().map(|size| vec![0.0; size]).collect();
        let mut pre_activations: Vec<Vec<f32>> =
            sizes().filter(|_| activation.is_some()).map(Vec::with_capacity).collect();
        for (b, x) in x.chunks(ROW_BLOCK * k).enumerate() {
            let rows = Rows { values: x, stride: k, count: x.len() / k };
            for (l, (layer, out)) in layers.iter().zip(&mut outs).enumerate() {
                let n = layer.panels.outputs;
                let out = &mut out[b * ROW_BLOCK * n..][..rows.count * n];
                multiply::<S, R, C>(simd, rows, &layer.panels.forward, Finish::Bias(layer.bias), out, n);
                if let Some(activation) = activation {
                    pre_activations[l].extend_from_slice(out);
                    activate(out, activation);
                }
            }
        }
        (outs, pre_activations)
    }
}

/// Computes `LayerNorm(dropout(x · weightᵀ + bias) + residual) → [T, out]`.
pub(super) struct ForwardAddNorm<'a> {
    pub(super) x: &'a [f32],
    pub(super) weight: Weight<'a>,
    pub(super) dropout: Option<&'a Dropout>,
    pub(super) residual: &'a [f32],
    pub(super) norm: Norm<'a>,
}

impl Operator for ForwardAddNorm<'_> {
    type Output = (Vec<f32>, Normalised);

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) -> Self::Output {
        let Self { x, weight, dropout, residual, norm } = self;
        let bias = weight.bias;
        let (outs, _) = Forward { x, layers: &[weight], activation: None }.run::<S, R, C>(simd);
        let mut out = outs.into_iter().next().unwrap_or_default();
        for (r, (row, residual)) in out.chunks_exact_mut(bias.len()).zip(residual.chunks_exact(bias.len())).enumerate()
        {
            if let Some(dropout) = dropout {
                dropout.apply(r, row);
            }
            add(row, residual);
        }
        ForwardNorm { x: out, norm }.run::<S, R, C>(simd)
    }
}

/// The weight `[D]`, the bias `[D]` and ε of a layer norm.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) eps: f32,
}

/// Rows normalized to mean 0 and variance 1, and the inverse standard deviation of each row before.
#[derive(Debug)]
pub(super) struct Normalised {
    rows: Vec<f32>,
    scales: Vec<f32>,
}

/// Computes `LayerNorm(x)`: `[T, D] → [T, D]`.
pub(super) struct ForwardNorm<'a> {
    pub(super) x: Vec<f32>,
    pub(super) norm: Norm<'a>,
}

impl Operator for ForwardNorm<'_> {
    type Output = (Vec<f32>, Normalised);

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, _: S) -> Self::Output {
        let Self { x: mut rows, norm } = self;
        let dim = norm.weight.len();
        let mut out = vec![0.0; rows.len()];
        let mut scales = Vec::with_capacity(rows.len() / dim);
        for (row, out) in rows.chunks_exact_mut(dim).zip(out.chunks_exact_mut(dim)) {
            let mean = sum_by(row, |x| x) / dim as f32;
            let variance = sum_by(row, |x| (x - mean) * (x - mean)) / dim as f32;
            let scale = 1.0 / (variance + norm.eps).sqrt();
            for (((x, out), w), b) in row.iter_mut().zip(out).zip(norm.weight).zip(norm.bias) {
                *x = (*x - mean) * scale;
                *out = *x * *w + *b;
            }
            scales.push(scale);
        }
        (out, Normalised { rows, scales })
    }
}

/// The backward pass of a layer norm: returns the gradient of the input, and accumulates those of weight and bias.
pub(super) struct BackwardNorm<'a> {
    pub(super) gradient: &'a [f32],
    pub(super) normalised: &'a Normalised,
    pub(super) weight: &'a [f32],
    pub(super) weight_gradient: &'a mut [f32],
    pub(super) bias_gradient: &'a mut [f32],
}

impl Operator for BackwardNorm<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, _: S) -> Vec<f32> {
        let Self { gradient, normalised, weight, weight_gradient, bias_gradient } = self;
        let dim = weight.len();
        let mut out = vec![0.0; gradient.len()];
        let rows = gradient.chunks_exact(dim).zip(normalised.rows.chunks_exact(dim)).zip(&normalised.scales);
        for (((g, x), scale), out) in rows.zip(out.chunks_exact_mut(dim)) {
            add(bias_gradient, g);
            for ((sum, g), x) in weight_gradient.iter_mut().zip(g).zip(x) {
                *sum += *g * *x;
            }
            for ((out, g), w) in out.iter_mut().zip(g).zip(weight) {
                *out = *g * *w;
            }
            let mean = sum_by(out, |x| x) / dim as f32;
            let slope = dot(out, x) / dim as f32;
            for (out, x) in out.iter_mut().zip(x) {
                *out = (*out - mean - slope * *x) * *scale;
            }
        }
        out
    }
}

/// The backward pass of an activation: replaces the gradient of the output with the gradient of the input.
pub(super) struct BackwardActivation<'a> {
    pub(super) gradient: &'a mut [f32],
    /// The input of the activation.
    pub(super) pre_activation: &'a [f32],
    pub(super) activation: Activation,
}

impl Operator for BackwardActivation<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, _: S) {
        #[inline(always)]
        fn each(gradient: &mut [f32], pre_activation: &[f32], slope: impl Fn(f32) -> f32) {
            for (g, x) in gradient.iter_mut().zip(pre_activation) {
                *g *= slope(*x);
            }
        }
        let Self { gradient, pre_activation, activation } = self;
        match activation {
            Activation::Gelu => each(gradient, pre_activation, gelu_slope),
            Activation::GeluTanh => each(gradient, pre_activation, gelu_tanh_slope),
            Activation::Relu => each(gradient, pre_activation, relu_slope),
            Activation::Silu => each(gradient, pre_activation, silu_slope),
        }
    }
}

/// Applies dropout to rows, in place.
pub(super) struct Drop<'a> {
    pub(super) values: &'a mut [f32],
    pub(super) dropout: &'a Dropout,
}

impl Operator for Drop<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, _: S) {
        let Self { values, dropout } = self;
        let columns = values.len() / dropout.rows().max(1);
        for (r, row) in values.chunks_exact_mut(columns.max(1)).enumerate() {
            dropout.apply(r, row);
        }
    }
}

/// The backward pass of linear layers with respect to their parameters: from the gradients `[T, out]` of the outputs,
/// accumulates the gradients of the weights and biases.
pub(super) struct BackwardWeight<'a> {
    pub(super) x: &'a [f32],
    pub(super) gradients: &'a [Vec<f32>],
    pub(super) sums: Vec<Sums<'a>>,
}

/// The accumulators of a layer's gradients.
pub(super) struct Sums<'a> {
    pub(super) weight: &'a mut [f32],
    pub(super) bias: &'a mut [f32],
}

impl Operator for BackwardWeight<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) {
        let Self { x, gradients, sums } = self;
        let Some(inputs) = sums.first().map(|sums| sums.weight.len() / sums.bias.len()) else { return };
        let mut scratch = SCRATCH.take();
        let Scratch { columns, panels, block } = &mut scratch;
        panels.pack_rows(x.chunks_exact(inputs), inputs, C * S::F32_LANES);
        for (gradient, Sums { weight, bias }) in gradients.iter().zip(sums) {
            let outputs = bias.len();
            for row in gradient.chunks_exact(outputs) {
                add(bias, row);
            }
            for (b, sums) in weight.chunks_mut(ROW_BLOCK * inputs).enumerate() {
                // Every panel reads this block of the gradient, so it is made contiguous.
                let count = sums.len() / inputs;
                columns.clear();
                for row in gradient.chunks_exact(outputs) {
                    columns.extend_from_slice(&row[b * ROW_BLOCK..][..count]);
                }
                columns.extend([0.0; PADDING]);
                block.resize(block.len().max(sums.len()), 0.0);
                let columns = Columns { values: columns, count };
                multiply_transposed::<S, R, C>(simd, columns, panels, block, inputs);
                add(sums, block);
            }
        }
        SCRATCH.set(scratch);
    }
}

/// The backward pass of linear layers with respect to their input: from the gradients `[T, out]` of the outputs to the
/// gradient `[T, in]` of the common input.
pub(super) struct BackwardInput<'a> {
    pub(super) gradients: &'a [Vec<f32>],
    pub(super) weights: &'a [&'a PackedWeight],
}

impl Operator for BackwardInput<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) -> Vec<f32> {
        let Self { gradients, weights } = self;
        let Some((weight, gradient)) = weights.first().zip(gradients.first()) else { return Vec::new() };
        let n = weight.inputs;
        let mut sum = vec![0.0; gradient.len() / weight.outputs * n];
        let mut scratch = SCRATCH.take();
        let block = &mut scratch.block;
        for (l, (weight, gradient)) in weights.iter().zip(gradients).enumerate() {
            let k = weight.outputs;
            for (gradient, sum) in gradient.chunks(ROW_BLOCK * k).zip(sum.chunks_mut(ROW_BLOCK * n)) {
                let rows = Rows { values: gradient, stride: k, count: gradient.len() / k };
                if l == 0 {
                    multiply::<S, R, C>(simd, rows, &weight.backward, Finish::None, sum, n);
                } else {
                    block.resize(block.len().max(sum.len()), 0.0);
                    multiply::<S, R, C>(simd, rows, &weight.backward, Finish::None, block, n);
                    add(sum, block);
                }
            }
        }
        SCRATCH.set(scratch);
        sum
    }
}

/// Computes the dot product in as many partial sums as [`sum_by`].
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const PARTIAL_SUMS: usize = 16;
    let mut sums = [0.0; PARTIAL_SUMS];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<PARTIAL_SUMS>(), b.as_chunks::<PARTIAL_SUMS>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += *a * *b;
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum += *a * *b;
    }
    sums.iter().sum()
}

/// Returns the derivative of GELU: Φ(x) + x φ(x), with the `erf` of Abramowitz & Stegun 7.1.26; absolute error below
/// 3e-7.
#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    const DENSITY_AT_0: f32 = 0.398_942_3;
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let p = t * (0.254_829_6 + t * (-0.284_496_72 + t * (1.421_413_8 + t * (-1.453_152_1 + t * 1.061_405_4))));
    let bell = exp(-z * z);
    let erf = (1.0 - p * bell).copysign(x);
    0.5 * (1.0 + erf) + x * DENSITY_AT_0 * bell
}

/// Returns the derivative of GELU's tanh approximation.
#[inline(always)]
fn gelu_tanh_slope(x: f32) -> f32 {
    let [scale, cubic] = GELU_TANH;
    let square = cubic * x * x;
    let s = sigmoid(scale * x * (1.0 + square));
    s + x * s * (1.0 - s) * scale * 3.0_f32.mul_add(square, 1.0)
}

/// Returns the derivative of `relu`; 0 at 0, as in PyTorch.
#[inline(always)]
fn relu_slope(x: f32) -> f32 {
    if x > 0.0 { 1.0 } else { 0.0 }
}

/// Returns the derivative of `x · sigmoid(x)`.
#[inline(always)]
fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s + x * s * (1.0 - s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_slope_agrees_with_reference_values() {
        // scipy: norm.cdf(x) + x * norm.pdf(x)
        for (x, y) in [
            (-6.0, -3.547_1e-8),
            (-1.0, -0.083_315_47),
            (0.0, 0.5),
            (0.5, 0.867_495_3),
            (1.0, 1.083_315_5),
            (3.0, 1.011_945_7),
        ] {
            assert!((gelu_slope(x) - y).abs() < 4e-7, "slope at {x} is {} for {y}", gelu_slope(x));
        }
    }
}
