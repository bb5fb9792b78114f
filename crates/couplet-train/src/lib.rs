//! Training, from labelled rows or plain text to a checkpoint, and the statistics of predictions.
//!
//! | Module | Content |
//! |---|---|
//! | [`Job`] | the common part of both kinds of jobs: the base, the settings, resuming, the report |
//! | [`finetune`] | fine-tuning jobs: labelled rows to a classification or regression checkpoint |
//! | [`pretrain`] | pretraining jobs: texts to a masked-language-model checkpoint |
//! | [`training_loop`] | the training loop of both: epochs, evaluation, saved states, the published folder |
//! | [`Trainer`] | one optimizer step, with the weights and the optimizer's state |
//! | [`sampling`] | the validation split, class weights, the order of rows and their batches |
//! | [`masking`] | masked-language-model examples from tokens |
//! | [`training_chart`] | the training chart, drawn by [`chart`] |
//! | [`statistics`] | tasks, labels, metrics and their intervals, calibration; independent of training |
//!
//! A [`Trainer`] owns the weights of an encoder with a head, and the optimizer's state. [`Trainer::step`] runs a batch
//! of encoded examples forward and backward, and updates the weights. The network is that of
//! [`couplet_encoder::model`], with the differentiable kernels of [`couplet_encoder::ops`] on a CPU and candle's
//! operators on other devices.
//!
//! A step splits its batch into micro-batches by a rule that is independent of the number of threads. One thread runs
//! each micro-batch forward and backward, and gradients are added in a fixed order. The result is therefore
//! bit-identical for any number of threads, and for a resumed run. Random numbers are a function of a seed and a
//! purpose ([`random`]).

pub mod chart;
mod error;
mod evaluate;
mod example;
pub mod finetune;
mod gradients;
mod hyper;
mod job;
mod loss;
pub mod masking;
mod network;
mod optimizer;
mod options;
pub mod pretrain;
pub mod random;
pub mod sampling;
mod schedule;
mod state;
pub mod statistics;
mod trainer;
pub mod training_chart;
pub mod training_loop;
mod weights;

pub use couplet_encoder::ops::Rates;
pub use error::TrainError;
pub use evaluate::MaskedWords;
pub use example::{Example, Target};
pub use hyper::{Hyper, MAX_EPOCHS, Warmup};
pub use job::{Job, Kind};
pub use loss::Objective;
pub use optimizer::AdamW;
pub use options::Options;
pub use schedule::{Schedule, Shape};
pub use trainer::{Step, Trainer};
pub use training_loop::{foreign_state, with_suffix};
