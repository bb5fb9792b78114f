//! `AdamW`: Adam with decoupled weight decay.

use rayon::prelude::*;

/// The number of values that one thread updates at a time.
pub(super) const CHUNK: usize = 1 << 14;

/// The settings of the optimizer.
///
/// **Source**: Loshchilov & Hutter 2019, with the arithmetic of `torch.optim.AdamW`: the bias corrections apply to the
/// step size and to the root, and ε is added after them. Without decay it is Adam.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// The decay rate of the running mean of gradients.
    pub beta1: f64,
    /// The decay rate of the running mean of squared gradients.
    pub beta2: f64,
    /// The constant added to the root of the mean of squared gradients.
    pub eps: f64,
    /// The share of a weight that a step at learning rate 1 removes. Biases and layer normalizations do not decay.
    pub weight_decay: f64,
}

impl Default for AdamW {
    /// Returns the defaults of transformers' `Trainer`: 0.9, 0.999, 1e-8, and no decay.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// The running means of a parameter's gradients and of their squares.
#[derive(Debug, Clone, Default)]
pub(super) struct Moments {
    pub(super) mean: Vec<f32>,
    pub(super) square: Vec<f32>,
}

/// The constants of one update, shared by all parameters.
#[derive(Clone, Copy)]
pub(super) struct Update {
    adamw: AdamW,
    step_size: f32,
    root_scale: f32,
    keep: f32,
    keep_decayed: f32,
    gradient_scale: f32,
}

impl Update {
    /// Prepares the `t`-th update, from 1, with gradients scaled by `gradient_scale`.
    pub(super) fn new(adamw: AdamW, t: u64, learning_rate: f64, gradient_scale: f64) -> Self {
        let correction = |beta: f64| 1.0 - beta.powf(t as f64);
        Self {
            adamw,
            step_size: (learning_rate / correction(adamw.beta1)) as f32,
            root_scale: correction(adamw.beta2).sqrt() as f32,
            keep: 1.0,
            keep_decayed: (1.0 - learning_rate * adamw.weight_decay) as f32,
            gradient_scale: gradient_scale as f32,
        }
    }

    /// Updates a parameter and its moments in one pass.
    pub(super) fn apply(&self, values: &mut [f32], gradient: &[f32], moments: &mut Moments, decay: bool) {
        let keep = if decay { self.keep_decayed } else { self.keep };
        let chunks = values
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks(CHUNK))
            .zip(moments.mean.par_chunks_mut(CHUNK).zip(moments.square.par_chunks_mut(CHUNK)));
        chunks.for_each(|((values, gradient), (mean, square))| self.apply_chunk(values, gradient, mean, square, keep));
    }

    fn apply_chunk(&self, values: &mut [f32], gradient: &[f32], mean: &mut [f32], square: &mut [f32], keep: f32) {
        let (beta2, eps) = (self.adamw.beta2 as f32, self.adamw.eps as f32);
        let (rest1, rest2) = ((1.0 - self.adamw.beta1) as f32, (1.0 - self.adamw.beta2) as f32);
        for (((p, g), m), v) in values.iter_mut().zip(gradient).zip(mean).zip(square) {
            let g = *g * self.gradient_scale;
            *m += rest1 * (g - *m);
            *v = *v * beta2 + rest2 * g * g;
            let root = v.sqrt() / self.root_scale + eps;
            *p = *p * keep - self.step_size * (*m / root);
        }
    }
}
