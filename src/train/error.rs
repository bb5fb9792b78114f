//! Why a training step could not be done.

use thiserror::Error;

use crate::backtrace::message;
use crate::model::LoadError;

/// A training that cannot begin or go on. The weights are as they were before the call.
#[derive(Debug, Error)]
pub enum TrainError {
    /// The checkpoint to start from cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// An example that the model or the objective cannot take.
    #[error("example {index} of the batch: {problem}")]
    Example {
        /// Its place in the batch, from 0.
        index: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// An option that makes no sense.
    #[error("training option `{option}`: expected {expected}, found {found}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// The values that would do.
        expected: String,
        /// The value that is there.
        found: String,
    },
    /// Nothing to learn from.
    #[error("a batch without a target to learn from: {examples} examples, none of which counts")]
    NothingToLearn {
        /// How many examples there were.
        examples: usize,
    },
    /// The loss or the gradient is no number any more.
    #[error("training diverged at step {}: loss {loss}, gradient norm {grad_norm}; a lower learning rate may help", .step + 1)]
    Diverged {
        /// The step that was not taken, from 0; the message counts from 1, as all do.
        step: u64,
        /// The batch's loss.
        loss: f64,
        /// The norm of the whole gradient.
        grad_norm: f64,
    },
    /// A saved state that does not belong to this model.
    #[error("saved tensor `{tensor}`: expected {expected}, found {found}")]
    State {
        /// The tensor's name.
        tensor: String,
        /// The shape or type that the model has.
        expected: String,
        /// What is there, or "nothing".
        found: String,
    },
    /// A failure of the device.
    #[error("cannot compute: {}", message(.0))]
    Compute(#[from] candle_core::Error),
}
