//! Errors of a training step.

use couplet_encoder::model::LoadError;
use couplet_storage::backtrace::message;
use thiserror::Error;

/// An error that stops training. The weights are as they were before the call.
#[derive(Debug, Error)]
pub enum TrainError {
    /// The base checkpoint cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// An example does not fit the model or the objective.
    #[error("example {index} of the batch: {problem}")]
    Example {
        /// The position in the batch, from 0.
        index: usize,
        /// The reason.
        problem: String,
    },
    /// An option is outside its allowed values.
    #[error("training option `{option}`: expected {expected}, found {found}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// The allowed values.
        expected: String,
        /// The actual value.
        found: String,
    },
    /// The batch has nothing to learn from.
    #[error("a batch without a target to train on: {examples} examples, none of which has any weight")]
    NothingToLearn {
        /// The number of examples.
        examples: usize,
    },
    /// The loss or the gradient is no longer finite.
    #[error("training diverged at step {}: loss {loss}, gradient norm {grad_norm}; a lower learning rate may help", .step + 1)]
    Diverged {
        /// The step that failed, from 0; messages count from 1.
        step: u64,
        /// The batch's loss.
        loss: f64,
        /// The norm of the whole gradient.
        grad_norm: f64,
    },
    /// A saved state does not belong to this model.
    #[error("saved tensor `{tensor}`: expected {expected}, found {found}")]
    State {
        /// The tensor's name.
        tensor: String,
        /// The model's shape or type.
        expected: String,
        /// The actual shape or type, or "nothing".
        found: String,
    },
    /// The device failed.
    #[error("cannot compute: {}", message(.0))]
    Compute(#[from] candle_core::Error),
}
