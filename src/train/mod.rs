//! Learning: one step of gradient descent, and what it needs.
//!
//! A [`Trainer`] owns the weights of an encoder with a head, and the optimizer's state. [`Trainer::step`] takes a
//! batch of encoded examples through the network and back, and updates the weights; the loop around it, the data and
//! the files are the caller's. The network is that of [`crate::model`], with the differentiable kernels of
//! [`crate::ops`] on a CPU and candle's operators elsewhere.
//!
//! A step cuts its batch into micro-batches by a rule that knows nothing of threads, each of which one thread takes
//! forwards and backwards; gradients are added in a fixed order. The result is the same to the last bit for any
//! number of threads, and for a run that was resumed.

mod error;
mod evaluate;
mod example;
mod gradients;
mod loss;
mod network;
mod optimizer;
mod options;
mod schedule;
mod state;
mod trainer;
mod weights;

pub use crate::ops::Rates;
pub use error::TrainError;
pub use evaluate::MaskedWords;
pub use example::{Example, Target};
pub use loss::Objective;
pub use optimizer::AdamW;
pub use options::Options;
pub use schedule::{Schedule, Shape};
pub use trainer::{Step, Trainer};
