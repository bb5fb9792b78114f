//! The gradients of a step: one set per lane, and their sum in a fixed order.

use std::sync::Arc;

use couplet_encoder::ops::Gradient;
use rayon::prelude::*;

use super::optimizer::CHUNK;

/// The gradients of all parameters: per lane, and summed.
#[derive(Debug)]
pub(super) struct Gradients {
    pub(super) lanes: Vec<Vec<Arc<Gradient>>>,
    sums: Vec<Vec<f32>>,
}

impl Gradients {
    pub(super) fn new(lanes: usize, sizes: &[usize]) -> Self {
        let lane = || sizes.iter().map(|_| Arc::default()).collect();
        Self { lanes: (0..lanes).map(|_| lane()).collect(), sums: sizes.iter().map(|size| vec![0.0; *size]).collect() }
    }

    /// Sums the lanes and clears them; returns the Euclidean norm of all gradients together.
    ///
    /// The norm is a sum in f64 over chunks of fixed size, in order, so it does not depend on the number of threads.
    pub(super) fn reduce(&mut self) -> f64 {
        let mut square = 0.0;
        for (parameter, sum) in self.sums.iter_mut().enumerate() {
            let gradients: Vec<&Gradient> = self.lanes.iter().map(|lane| &*lane[parameter]).collect();
            square += reduce_one(sum, &gradients);
        }
        square.sqrt()
    }

    /// Returns the summed gradient of a parameter.
    pub(super) fn sum(&self, parameter: usize) -> &[f32] {
        &self.sums[parameter]
    }

    /// Clears the lanes, after a failed step.
    pub(super) fn clear(&mut self) {
        for gradient in self.lanes.iter().flatten() {
            gradient.take_rows();
            gradient.dense().fill(0.0);
        }
    }
}

/// Sums the lanes' gradients of one parameter and clears them; returns the sum of squares.
fn reduce_one(sum: &mut [f32], lanes: &[&Gradient]) -> f64 {
    let mut dense: Vec<_> = lanes.iter().map(|lane| lane.dense()).filter(|dense| !dense.is_empty()).collect();
    let mut parts: Vec<_> = dense.iter_mut().map(|dense| dense.chunks_mut(CHUNK)).collect();
    let chunks: Vec<(&mut [f32], Vec<&mut [f32]>)> =
        sum.chunks_mut(CHUNK).map(|sum| (sum, parts.iter_mut().filter_map(Iterator::next).collect())).collect();
    chunks.into_par_iter().for_each(|(sum, parts)| {
        sum.fill(0.0);
        for part in parts {
            for (sum, x) in sum.iter_mut().zip(part) {
                *sum += *x;
                *x = 0.0;
            }
        }
    });
    for rows in lanes.iter().flat_map(|lane| lane.take_rows()) {
        let dim = rows.gradients.len() / rows.ids.len().max(1);
        for (gradient, id) in rows.gradients.chunks_exact(dim.max(1)).zip(&rows.ids) {
            for (sum, x) in sum[*id as usize * dim..].iter_mut().zip(gradient) {
                *sum += *x;
            }
        }
    }
    let squares: Vec<f64> = sum.par_chunks(CHUNK).map(sum_of_squares).collect();
    squares.iter().sum()
}

/// Sums squares in eight partial sums, so that the compiler can vectorize the loop.
fn sum_of_squares(values: &[f32]) -> f64 {
    let (chunks, rest) = values.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(*x) * f64::from(*x);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>()
}
