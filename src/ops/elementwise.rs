//! GELU, softmax and LayerNorm over rows of activations.
//!
//! Loops are written so that the compiler turns them into vector code for whichever instruction set
//! they are inlined under. Sums go through a fixed number of partial sums, so that the order of
//! additions, and with it the last bit, does not depend on the width of the machine's vectors.

/// Partial sums of a reduction; a multiple of every vector width in use.
const PARTIAL_SUMS: usize = 16;

/// Adds up `f(x)` over the row.
#[inline(always)]
pub(super) fn sum_by(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
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

/// The largest value of a row without NaN.
#[inline(always)]
pub(super) fn max(row: &[f32]) -> f32 {
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

/// `e^x` with a relative error of about 1e-7, for `x` in [-87, 88].
///
/// Source: Cephes `expf` (range reduction by ln 2 in two parts, polynomial of degree 6).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let p =
        1.0 + r * (1.0 + r * (0.5 + r * (0.166_666_67 + r * (0.041_666_67 + r * (0.008_333_334 + r * 0.001_388_889)))));
    let power_of_two = f32::from_bits(((n as i32 + 127) as u32) << 23);
    power_of_two * p
}

/// GELU with the exact `erf`, as the checkpoints of the BERT family mean it; absolute error below 3e-7.
///
/// Source: Hendrycks & Gimpel 2016; `erf` by Abramowitz & Stegun 7.1.26.
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let p = t * (0.254_829_6 + t * (-0.284_496_72 + t * (1.421_413_8 + t * (-1.453_152_1 + t * 1.061_405_4))));
    let erf = (1.0 - p * exp(-z * z)).copysign(x);
    0.5 * x * (1.0 + erf)
}

/// Replaces a row of scores by its softmax.
#[inline(always)]
pub(super) fn softmax(row: &mut [f32]) {
    let max = max(row);
    for x in row.iter_mut() {
        *x = exp(*x - max);
    }
    let scale = 1.0 / sum_by(row, |x| x);
    for x in row.iter_mut() {
        *x *= scale;
    }
}

/// Normalises a row to mean 0 and variance 1, then scales and shifts it.
///
/// Source: Ba, Kiros & Hinton 2016, section 3.
#[inline(always)]
pub(super) fn layer_norm(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let n = row.len() as f32;
    let mean = sum_by(row, |x| x) / n;
    let variance = sum_by(row, |x| (x - mean) * (x - mean)) / n;
    let scale = 1.0 / (variance + eps).sqrt();
    for ((x, w), b) in row.iter_mut().zip(weight).zip(bias) {
        *x = (*x - mean) * scale * *w + *b;
    }
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
            assert!((gelu(x) - y).abs() < 4e-7, "gelu({x}) = {} for {y}", gelu(x));
        }
    }

    #[test]
    fn softmax_of_one_score_is_one() {
        let mut row = [-80.0];
        softmax(&mut row);
        assert!((row[0] - 1.0).abs() < 1e-6);
    }
}
