//! Losses as PyTorch defines them, with their gradients with respect to the logits.

use couplet_encoder::ops::Kernels;

use super::example::{Example, Target};

/// The training objective.
#[derive(Debug, Clone, PartialEq)]
pub enum Objective {
    /// Single-label classification: cross-entropy.
    Classification {
        /// The number of labels.
        labels: usize,
        /// The weight of each label's examples; none for equal weights of 1.
        class_weights: Option<Vec<f32>>,
        /// The share of the target's probability that is spread over all labels, in [0, 1).
        label_smoothing: f32,
    },
    /// Regression: mean squared error.
    Regression,
    /// Multi-label classification: binary cross-entropy per label, with a sigmoid.
    MultiLabel {
        /// The number of labels.
        labels: usize,
    },
    /// Masked-language modelling: cross-entropy over the vocabulary.
    MaskedWords,
}

impl Objective {
    /// Returns the weight of an example in the mean over a batch, in units of the loss's denominator.
    pub(super) fn weight(&self, example: &Example) -> f64 {
        match (self, &example.target) {
            (Self::Classification { class_weights: Some(weights), .. }, Target::Label(label)) => {
                f64::from(weights[*label])
            }
            (Self::MultiLabel { labels }, _) => *labels as f64,
            (Self::MaskedWords, _) => example.words().len() as f64,
            _ => 1.0,
        }
    }

    /// Computes the sum of the examples' losses divided by `denominator`, and replaces the logits `[rows, columns]`
    /// with their gradients. A row is an example, or with [`Objective::MaskedWords`] a masked token.
    ///
    /// **Source**: PyTorch's `CrossEntropyLoss`, `MSELoss` and `BCEWithLogitsLoss` with `reduction="mean"`, if
    /// `denominator` is the sum of all [`Objective::weight`].
    pub(super) fn loss(
        &self,
        logits: &mut [f32],
        columns: usize,
        examples: &[&Example],
        denominator: f64,
        kernels: Kernels,
    ) -> f64 {
        let scale = 1.0 / denominator;
        match self {
            Self::Classification { labels, class_weights, label_smoothing } => {
                let weight = |label: usize| class_weights.as_ref().map_or(1.0, |weights| weights[label]);
                let spread = label_smoothing / *labels as f32;
                let targets = examples.iter().filter_map(|example| match example.target {
                    Target::Label(label) => Some(label),
                    _ => None,
                });
                let soft_targets = targets.map(|label| {
                    let soft_target = |c: usize| {
                        weight(c) * spread + if c == label { weight(c) * (1.0 - label_smoothing) } else { 0.0 }
                    };
                    (0..columns).map(soft_target).collect::<Vec<f32>>()
                });
                soft_cross_entropy(logits, columns, soft_targets, scale, kernels)
            }
            Self::MaskedWords => {
                let words = examples.iter().flat_map(|example| example.words()).map(|(_, id)| *id as usize);
                cross_entropy(logits, columns, words, scale, kernels)
            }
            Self::Regression => {
                let mut sum = 0.0;
                for (x, example) in logits.iter_mut().zip(examples) {
                    if let Target::Value(y) = example.target {
                        let error = f64::from(*x) - f64::from(y);
                        sum += error * error;
                        *x = (2.0 * error * scale) as f32;
                    }
                }
                sum * scale
            }
            Self::MultiLabel { .. } => {
                let mut sum = 0.0;
                for (row, example) in logits.chunks_exact_mut(columns).zip(examples) {
                    let Target::Labels(labels) = &example.target else { continue };
                    for (x, y) in row.iter_mut().zip(labels) {
                        let (z, y) = (f64::from(*x), f64::from(*y));
                        // max(z, 0) - z y + ln(1 + e^-|z|), which does not overflow
                        sum += z.max(0.0) - z * y + (-z.abs()).exp().ln_1p();
                        *x = ((1.0 / (1.0 + (-z).exp()) - y) * scale) as f32;
                    }
                }
                sum * scale
            }
        }
    }
}

/// Computes the cross-entropy of each row with one class.
fn cross_entropy(
    logits: &mut [f32],
    columns: usize,
    classes: impl Iterator<Item = usize> + Clone,
    scale: f64,
    kernels: Kernels,
) -> f64 {
    let target_logits: Vec<f32> =
        logits.chunks_exact(columns).zip(classes.clone()).map(|(row, class)| row[class]).collect();
    let log_sums = kernels.softmax_rows(logits, columns);
    let mut sum = 0.0;
    for (((row, class), target_logit), log_sum) in
        logits.chunks_exact_mut(columns).zip(classes).zip(target_logits).zip(log_sums)
    {
        sum += f64::from(log_sum) - f64::from(target_logit);
        row[class] -= 1.0;
        for x in row {
            *x *= scale as f32;
        }
    }
    sum * scale
}

/// Computes the cross-entropy of each row with per-class target weights, which need not sum to 1.
fn soft_cross_entropy(
    logits: &mut [f32],
    columns: usize,
    soft_targets: impl Iterator<Item = Vec<f32>>,
    scale: f64,
    kernels: Kernels,
) -> f64 {
    let before = logits.to_vec();
    let log_sums = kernels.softmax_rows(logits, columns);
    let rows = logits.chunks_exact_mut(columns).zip(before.chunks_exact(columns)).zip(soft_targets).zip(log_sums);
    let mut sum = 0.0;
    for (((row, logits), soft_targets), log_sum) in rows {
        let total: f32 = soft_targets.iter().sum();
        for ((p, logit), soft_target) in row.iter_mut().zip(logits).zip(&soft_targets) {
            sum += f64::from(*soft_target) * (f64::from(log_sum) - f64::from(*logit));
            *p = (f64::from(total * *p - *soft_target) * scale) as f32;
        }
    }
    sum * scale
}
