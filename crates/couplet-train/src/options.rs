//! The options of a trainer.

use couplet_encoder::ops::Rates;

use super::TrainError;
use super::loss::Objective;
use super::optimizer::AdamW;
use super::schedule::Schedule;

/// The options of a trainer. They and the data determine the result.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The random seed of new weights and of dropout.
    pub seed: u64,
    /// The dropout rates; none for those in the base's `config.json`.
    pub dropout: Option<Rates>,
    /// The optimizer.
    pub adamw: AdamW,
    /// The learning-rate schedule.
    pub schedule: Schedule,
    /// The largest norm of the gradient of all weights together; a longer gradient is scaled down, as by PyTorch's
    /// `clip_grad_norm_`.
    pub max_grad_norm: Option<f64>,
    /// The approximate maximum number of tokens in a micro-batch. A larger value takes more memory and is slightly
    /// faster.
    pub micro_batch_tokens: usize,
    /// The number of micro-batches that can be computed at a time. It limits the threads that a step can use, and each
    /// lane holds a copy of the gradients.
    pub lanes: usize,
}

impl Default for Options {
    /// Returns the defaults of transformers' `Trainer`, with a constant learning rate at its peak.
    fn default() -> Self {
        Self {
            seed: 42,
            dropout: None,
            adamw: AdamW::default(),
            schedule: Schedule::constant(5e-5),
            max_grad_norm: Some(1.0),
            micro_batch_tokens: 512,
            lanes: 4,
        }
    }
}

/// Checks the options and the objective.
pub(super) fn check(options: &Options, objective: &Objective) -> Result<(), TrainError> {
    let error = |option, expected: &str, found: String| {
        Err(TrainError::Option { option, expected: expected.to_owned(), found })
    };
    if options.lanes == 0 {
        return error("lanes", "1 or more", "0".into());
    }
    if options.micro_batch_tokens == 0 {
        return error("micro_batch_tokens", "1 or more", "0".into());
    }
    if let Some(Rates { embeddings, attention, attention_output, feed_forward, head }) = options.dropout {
        for rate in [embeddings, attention, attention_output, feed_forward, head] {
            if !(0.0..1.0).contains(&rate) {
                return error("dropout", "rates from 0 to below 1", rate.to_string());
            }
        }
    }
    match objective {
        Objective::Classification { labels, class_weights, label_smoothing } => {
            if *labels < 2 {
                return error("labels", "2 or more", labels.to_string());
            }
            if !(0.0..1.0).contains(label_smoothing) {
                return error("label_smoothing", "0 to below 1", label_smoothing.to_string());
            }
            match class_weights {
                Some(weights) if weights.len() != *labels || weights.iter().any(|w| !w.is_finite() || *w < 0.0) => {
                    error("class_weights", &format!("{labels} numbers from 0"), format!("{weights:?}"))
                }
                _ => Ok(()),
            }
        }
        Objective::MultiLabel { labels: 0 } => error("labels", "1 or more", "0".into()),
        _ => Ok(()),
    }
}
