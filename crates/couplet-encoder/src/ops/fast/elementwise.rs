//! Activations, softmax and layer norm over rows.
//!
//! Loops are written such that the compiler vectorizes them for the instruction set of the function they are inlined
//! into. Sums use a fixed number of partial sums, so that the order of additions, and thus the last bit, does not
//! depend on the width of the vectors.

use crate::ops::Activation;

/// The number of partial sums in a reduction; a multiple of every vector width.
const PARTIAL_SUMS: usize = 16;

/// Returns the sum of `f(x)` over a row.
#[inline(always)]
pub(in crate::ops) fn sum_by(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<PARTIAL_SUMS>();
    let mut sums = [0.0; PARTIAL_SUMS];
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += f(*x);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum += f(*x);
    }
    sums.iter().sum()
}

/// Returns the largest value of a row that has no NaN.
#[inline(always)]
fn max(row: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let (chunks, rest) = row.as_chunks::<PARTIAL_SUMS>();
    let mut maxima = [f32::NEG_INFINITY; PARTIAL_SUMS];
    for chunk in chunks {
        for (max, x) in maxima.iter_mut().zip(chunk) {
            *max = larger(*max, *x);
        }
    }
    rest.iter().chain(&maxima).copied().fold(f32::NEG_INFINITY, larger)
}

/// Returns `e^x` with a relative error of about 1e-7, for `x` in [-87, 88]; `e^-87` for lower `x`, and NaN for NaN.
///
/// **Source**: Cephes `expf` (range reduction by ln 2 in two parts, polynomial of degree 6).
#[inline(always)]
pub(in crate::ops) fn exp(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    /// 1.5 · 2^23: adding it to a small number puts the number, rounded to the nearest even integer, in the lowest
    /// bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let n = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let power_of_two = f32::from_bits((n.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    let n = n - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    power_of_two * horner(r, [1.0, 1.0, 0.5, 0.166_666_67, 0.041_666_67, 0.008_333_334, 0.001_388_889])
}

/// Returns GELU with the exact `erf`, as BERT uses it. The relative error is below 4e-7 for positive `x`; the absolute
/// error is below 1.1e-6 up to 8.
///
/// **Source**: Hendrycks & Gimpel 2016; `erf(x / √2) = x · P(x²) / Q(x²)`, a minimax fit of its relative error (2.5e-8)
/// up to `x = 3.9 √2`, where `erf` is 1 in f32.
#[inline(always)]
pub(in crate::ops) fn gelu(x: f32) -> f32 {
    const LIMIT: f32 = 5.515_433;
    let z = if x > LIMIT { LIMIT } else { x };
    let z = if z < -LIMIT { -LIMIT } else { z };
    let s = z * z;
    let p = horner(s, [0.797_884_5, 0.067_057_61, 0.009_310_507, 0.000_330_429_1, 1.259_812_9e-5, 4.566_297e-8]);
    let q = horner(s, [1.0, 0.250_710_64, 0.028_454_816, 0.001_864_292_7, 7.233_652e-5, 1.195_938e-6]);
    let half = 0.5 * x;
    half.mul_add(z * p / q, half)
}

/// Returns the tanh approximation of GELU, `x · sigmoid(2 √(2/π) (x + 0.044715 x³))`; its error is that of [`silu`].
#[inline(always)]
pub(in crate::ops) fn gelu_tanh(x: f32) -> f32 {
    x * sigmoid(GELU_TANH[0] * x * (GELU_TANH[1] * x).mul_add(x, 1.0))
}

/// `2 √(2/π)` and 0.044715.
pub(in crate::ops) const GELU_TANH: [f32; 2] = [1.595_769, 0.044_715];

/// Returns `x · sigmoid(x)`, with the relative error of [`exp`].
#[inline(always)]
pub(in crate::ops) fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// Returns `max(x, 0)`; NaN for NaN.
#[inline(always)]
pub(in crate::ops) fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// Returns `1 / (1 + e^-x)`; constant below -87.
#[inline(always)]
pub(in crate::ops) fn sigmoid(x: f32) -> f32 {
    let x = if x < -87.0 { -87.0 } else { x };
    1.0 / (1.0 + exp(-x))
}

/// Applies an activation to each element; each function gets a loop of its own.
#[inline(always)]
pub(in crate::ops) fn activate(values: &mut [f32], activation: Activation) {
    #[inline(always)]
    fn each(values: &mut [f32], f: impl Fn(f32) -> f32) {
        for x in values {
            *x = f(*x);
        }
    }
    match activation {
        Activation::Gelu => each(values, gelu),
        Activation::GeluTanh => each(values, gelu_tanh),
        Activation::Relu => each(values, relu),
        Activation::Silu => each(values, silu),
    }
}

/// Evaluates the polynomial with the given coefficients, the constant first.
#[inline(always)]
fn horner<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[N - 1];
    for c in coefficients[..N - 1].iter().rev() {
        sum = sum.mul_add(x, *c);
    }
    sum
}

/// Replaces a row of scores with its softmax. Returns the largest score, and the sum of `exp(score - largest)`.
#[inline(always)]
pub(in crate::ops) fn softmax(row: &mut [f32]) -> (f32, f32) {
    let max = max(row);
    for x in row.iter_mut() {
        *x = exp(*x - max);
    }
    let sum = sum_by(row, |x| x);
    let scale = 1.0 / sum;
    for x in row.iter_mut() {
        *x *= scale;
    }
    (max, sum)
}

/// Adds `other` to `row`.
#[inline(always)]
pub(in crate::ops) fn add(row: &mut [f32], other: &[f32]) {
    for (x, y) in row.iter_mut().zip(other) {
        *x += *y;
    }
}

/// Normalizes a row to mean 0 and variance 1, then applies weight and bias. Returns the inverse standard deviation.
///
/// **Source**: Ba, Kiros & Hinton 2016, section 3.
#[inline(always)]
pub(super) fn layer_norm(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) -> f32 {
    let n = row.len() as f32;
    let mean = sum_by(row, |x| x) / n;
    let variance = sum_by(row, |x| (x - mean) * (x - mean)) / n;
    let scale = 1.0 / (variance + eps).sqrt();
    for ((x, w), b) in row.iter_mut().zip(weight).zip(bias) {
        *x = (*x - mean) * scale * *w + *b;
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library() {
        for i in -870..=880 {
            let x = i as f32 / 10.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 5e-7, "exp({x}) = {} for {exact}", exp(x));
        }
    }

    #[test]
    fn other_activations_agree_with_reference_values() {
        // x, and `gelu_new` and `silu` of transformers in f64.
        for (x, tanh, swish) in [
            (-400.0_f32, 0.0_f32, 0.0_f32),
            (-100.0, 0.0, 0.0),
            (-3.0, -0.003_637_392, -0.142_277_6),
            (-0.5, -0.154_286, -0.188_770_33),
            (0.0, 0.0, 0.0),
            (1.0, 0.841_192, 0.731_058_6),
            (4.0, 3.999_93, 3.928_055),
            (400.0, 400.0, 400.0),
        ] {
            assert!((gelu_tanh(x) - tanh).abs() <= 1e-6 * x.abs().max(1.0), "gelu_tanh({x}) = {}", gelu_tanh(x));
            assert!((silu(x) - swish).abs() <= 1e-6 * x.abs().max(1.0), "silu({x}) = {}", silu(x));
            assert!((relu(x) - x.max(0.0)).abs() < f32::EPSILON);
        }
        assert!([gelu_tanh, silu, relu, gelu].iter().all(|f| f(f32::NAN).is_nan()));
    }

    #[test]
    fn gelu_agrees_with_reference_values() {
        // scipy: 0.5 * x * (1 + erf(x / sqrt(2)))
        for (x, y) in [
            (-6.0, -5.919_5e-9),
            (-1.0, -0.158_655),
            (-0.1, -0.046_017),
            (0.0, 0.0),
            (0.5, 0.345_731_2),
            (1.0, 0.841_344_7),
            (3.0, 2.995_95),
        ] {
            assert!((gelu(x) - y).abs() < 6e-7, "gelu({x}) = {} for {y}", gelu(x));
        }
    }

    #[test]
    fn softmax_of_one_score_is_one() {
        let mut row = [-80.0];
        softmax(&mut row);
        assert!((row[0] - 1.0).abs() < 1e-6);
    }
}
