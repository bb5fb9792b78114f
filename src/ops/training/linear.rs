//! Fully connected layers forwards and backwards, with what is fused to them.
//!
//! Source of the gradients: the chain rule; for the normalisation Ba, Kiros & Hinton 2016.

use std::cell::RefCell;

use pulp::Simd;

use super::dropout::Dropout;
use super::parameter::Panels;
use crate::ops::elementwise::{exp, gelu, sum_by};
use crate::ops::fast::Operator;
use crate::ops::gemm::{multiply, pack_panel_rows, pack_rows};

/// Rows that are multiplied before the next are packed; a multiple of every tile height.
const ROW_BLOCK: usize = 96;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    tiles: Vec<f32>,
    panels: Vec<f32>,
    block: Vec<f32>,
}

/// `x [T, in] · weightᵀ + bias → [T, out]`, through GELU if asked for.
pub(super) struct Forward<'a> {
    pub(super) x: &'a [f32],
    pub(super) weight: &'a Panels,
    pub(super) bias: &'a [f32],
    pub(super) gelu: bool,
}

impl Operator for Forward<'_> {
    /// The result, and what went into GELU.
    type Output = (Vec<f32>, Option<Vec<f32>>);

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) -> Self::Output {
        let Self { x, weight, bias, gelu: activate } = self;
        let (k, n) = (weight.inputs, weight.outputs);
        let mut out = vec![0.0; x.len() / k * n];
        let mut before = activate.then(|| vec![0.0; out.len()]);
        let mut scratch = SCRATCH.take();
        for (b, (x, out)) in x.chunks(ROW_BLOCK * k).zip(out.chunks_mut(ROW_BLOCK * n)).enumerate() {
            pack_rows(&mut scratch.tiles, x.chunks_exact(k), k, R, 1.0);
            multiply::<S, R, C>(simd, &scratch.tiles, x.len() / k, k, &weight.forward, n, out, n);
            for row in out.chunks_exact_mut(n) {
                add(row, bias);
            }
            if let Some(before) = &mut before {
                before[b * ROW_BLOCK * n..][..out.len()].copy_from_slice(out);
                for x in out {
                    *x = gelu(*x);
                }
            }
        }
        SCRATCH.set(scratch);
        (out, before)
    }
}

/// `LayerNorm(dropout(x · weightᵀ + bias) + residual) → [T, out]`
pub(super) struct ForwardAddNorm<'a> {
    pub(super) x: &'a [f32],
    pub(super) weight: &'a Panels,
    pub(super) bias: &'a [f32],
    pub(super) dropout: Option<&'a Dropout>,
    pub(super) residual: &'a [f32],
    pub(super) norm: Norm<'a>,
}

impl Operator for ForwardAddNorm<'_> {
    type Output = (Vec<f32>, Normalised);

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) -> Self::Output {
        let Self { x, weight, bias, dropout, residual, norm } = self;
        let (mut out, _) = Forward { x, weight, bias, gelu: false }.run::<S, R, C>(simd);
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

/// Scale, shift `[D]` and ε of a normalisation.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) eps: f32,
}

/// Rows of mean 0 and variance 1, and the reciprocals of the deviations they were divided by.
#[derive(Debug)]
pub(super) struct Normalised {
    rows: Vec<f32>,
    scales: Vec<f32>,
}

/// `LayerNorm(x)`: `[T, D] → [T, D]`
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

/// From the gradient of a normalisation's output to those of its input (returned), its scale and its shift (added).
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

/// From the gradient of GELU's output to that of its input.
pub(super) struct BackwardGelu<'a> {
    pub(super) gradient: &'a [f32],
    pub(super) before: &'a [f32],
}

impl Operator for BackwardGelu<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, _: S) -> Vec<f32> {
        let mut out = self.gradient.to_vec();
        for (g, x) in out.iter_mut().zip(self.before) {
            *g *= gelu_slope(*x);
        }
        out
    }
}

/// Drops from the gradient what was dropped from the values.
pub(super) struct Drop<'a> {
    pub(super) values: &'a [f32],
    pub(super) dropout: &'a Dropout,
}

impl Operator for Drop<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, _: S) -> Vec<f32> {
        let Self { values, dropout } = self;
        let mut out = values.to_vec();
        if !out.is_empty() {
            for (r, row) in out.chunks_exact_mut(values.len() / dropout.rows()).enumerate() {
                dropout.apply(r, row);
            }
        }
        out
    }
}

/// From the gradient `[T, out]` of a layer's output to those of its weight and bias, which are added.
pub(super) struct BackwardWeight<'a> {
    pub(super) x: &'a [f32],
    pub(super) gradient: &'a [f32],
    pub(super) weight_gradient: &'a mut [f32],
    pub(super) bias_gradient: &'a mut [f32],
}

impl Operator for BackwardWeight<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) {
        let Self { x, gradient, weight_gradient, bias_gradient } = self;
        let outputs = bias_gradient.len();
        let inputs = weight_gradient.len() / outputs;
        let tokens = x.len() / inputs;
        for row in gradient.chunks_exact(outputs) {
            add(bias_gradient, row);
        }
        let mut scratch = SCRATCH.take();
        let Scratch { tiles, panels, block } = &mut scratch;
        pack_panel_rows(panels, x.chunks_exact(inputs), inputs, C * S::F32_LANES);
        for (b, sums) in weight_gradient.chunks_mut(ROW_BLOCK * inputs).enumerate() {
            let rows = sums.len() / inputs;
            // A tile's columns are a matrix' rows: gradientᵀ is packed as a right-hand side of the tile's height.
            let columns = gradient.chunks_exact(outputs).map(|row| &row[b * ROW_BLOCK..][..rows]);
            pack_panel_rows(tiles, columns, rows, R);
            block.resize(block.len().max(sums.len()), 0.0);
            multiply::<S, R, C>(simd, tiles, rows, tokens, panels, inputs, block, inputs);
            add(sums, block);
        }
        SCRATCH.set(scratch);
    }
}

/// From the gradient `[T, out]` of a layer's output to that of its input `[T, in]`.
pub(super) struct BackwardInput<'a> {
    pub(super) gradient: &'a [f32],
    pub(super) weight: &'a Panels,
}

impl Operator for BackwardInput<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) -> Vec<f32> {
        let Self { gradient, weight } = self;
        let (k, n) = (weight.outputs, weight.inputs);
        let mut out = vec![0.0; gradient.len() / k * n];
        let mut scratch = SCRATCH.take();
        for (gradient, out) in gradient.chunks(ROW_BLOCK * k).zip(out.chunks_mut(ROW_BLOCK * n)) {
            pack_rows(&mut scratch.tiles, gradient.chunks_exact(k), k, R, 1.0);
            multiply::<S, R, C>(simd, &scratch.tiles, gradient.len() / k, k, &weight.backward, n, out, n);
        }
        SCRATCH.set(scratch);
        out
    }
}

#[inline(always)]
fn add(sums: &mut [f32], values: &[f32]) {
    for (sum, x) in sums.iter_mut().zip(values) {
        *sum += *x;
    }
}

/// The dot product, through as many partial sums as [`sum_by`].
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

/// The derivative of GELU: Φ(x) + x φ(x), with the `erf` of Abramowitz & Stegun 7.1.26; absolute error below 3e-7.
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
