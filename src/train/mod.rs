//! Learning: from labelled rows or plain text to a checkpoint.
//!
//! | Module | What it is |
//! |---|---|
//! | [`finetune`] | a job: labelled rows to a checkpoint that classifies |
//! | [`pretrain`] | a job: texts to a checkpoint that fills in hidden words |
//! | `training_loop` | what both share: epochs, evaluation, saved states, the published folder |
//! | [`Trainer`] | one step of gradient descent, and what it needs |
//! | [`task`] | GLUE's tasks and the plain ones: columns, labels, metrics |
//! | [`labels`] | a label column to targets, and the mapping that the checkpoint keeps |
//! | [`sampling`] | the validation split, class weights, the order of rows and their batches |
//! | [`masking`] | masked-language-model examples from tokens |
//! | [`metrics`] | how good predictions are |
//! | [`bootstrap`] | how sure that is |
//! | [`slices`] | the same for each part of the rows |
//! | [`evaluation`] | all of that in one report |
//! | [`calibration`] | a temperature and a threshold from the validation rows, kept with the checkpoint |
//! | `chart` | a training as a picture |
//! | [`promotion`] | whether a new model may take the place of the old one |
//!
//! A [`Trainer`] owns the weights of an encoder with a head, and the optimizer's state. [`Trainer::step`] takes a
//! batch of encoded examples through the network and back, and updates the weights. The network is that of
//! [`crate::model`], with the differentiable kernels of [`crate::ops`] on a CPU and candle's operators elsewhere.
//!
//! A step cuts its batch into micro-batches by a rule that knows nothing of threads, each of which one thread takes
//! forwards and backwards; gradients are added in a fixed order. The result is the same to the last bit for any
//! number of threads, and for a run that was resumed. What is random is a function of a seed and of what it is for
//! ([`random`]).

pub mod bootstrap;
pub mod calibration;
pub(crate) mod chart;
mod error;
mod evaluate;
pub mod evaluation;
mod example;
pub mod finetune;
mod gradients;
mod hyper;
pub mod labels;
mod loss;
pub mod masking;
pub mod metrics;
mod names;
mod network;
mod optimizer;
mod options;
pub mod pretrain;
pub mod promotion;
pub mod random;
pub mod sampling;
mod schedule;
pub mod slices;
mod state;
pub mod task;
pub mod temperature;
pub mod threshold;
mod trainer;
pub mod training_loop;
mod weights;

pub use crate::ops::Rates;
pub use error::TrainError;
pub use evaluate::MaskedWords;
pub use example::{Example, Target};
pub(crate) use hyper::MOST_EPOCHS;
pub use hyper::{Hyper, Warmup};
pub use loss::Objective;
pub use names::UnknownName;
pub use optimizer::AdamW;
pub use options::Options;
pub use schedule::{Schedule, Shape};
pub use trainer::{Step, Trainer};
pub(crate) use training_loop::{beside, foreign_state};
