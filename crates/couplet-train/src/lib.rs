//! Training: from labelled rows or plain text to a checkpoint.
//!
//! | Module | Content |
//! |---|---|
//! | [`Job`] | what both kinds of jobs share: the base, the settings, resuming, the report |
//! | [`finetune`] | fine-tuning jobs: labelled rows to a classification or regression checkpoint |
//! | [`pretrain`] | pretraining jobs: texts to a masked-language-model checkpoint |
//! | `training_loop` | shared by both: epochs, evaluation, saved states, the published folder |
//! | [`Trainer`] | one optimizer step, with the weights and the optimizer's state |
//! | [`task`] | the GLUE tasks and the generic ones: columns, labels, metrics |
//! | [`labels`] | maps a label column to targets; the mapping is stored in the checkpoint |
//! | [`sampling`] | the validation split, class weights, the order of rows and their batches |
//! | [`masking`] | masked-language-model examples from tokens |
//! | [`metrics`] | metrics of predictions |
//! | [`bootstrap`] | confidence intervals of metrics |
//! | [`slices`] | metrics per slice of the rows |
//! | [`evaluation`] | metrics, intervals and slices in one report |
//! | [`calibration`] | a temperature and a threshold fitted on the validation rows, stored with the checkpoint |
//! | `training_chart` | the training chart |
//! | [`promotion`] | the condition for replacing the old model with a new one |
//!
//! A [`Trainer`] owns the weights of an encoder with a head, and the optimizer's state. [`Trainer::step`] runs a batch
//! of encoded examples forward and backward, and updates the weights. The network is that of [`couplet_encoder::model`], with the
//! differentiable kernels of [`couplet_encoder::ops`] on a CPU and candle's operators on other devices.
//!
//! A step splits its batch into micro-batches by a rule that is independent of the number of threads. One thread runs
//! each micro-batch forward and backward, and gradients are added in a fixed order. The result is therefore
//! bit-identical for any number of threads, and for a resumed run. Random numbers are a function of a seed and of their
//! purpose ([`random`]).

pub mod bootstrap;
pub mod calibration;
pub mod chart;
mod error;
mod evaluate;
pub mod evaluation;
mod example;
pub mod finetune;
mod gradients;
mod hyper;
mod job;
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
pub mod training_chart;
pub mod training_loop;
mod weights;

pub use couplet_encoder::ops::Rates;
pub use error::TrainError;
pub use evaluate::MaskedWords;
pub use example::{Example, Target};
pub use hyper::MOST_EPOCHS;
pub use hyper::{Hyper, Warmup};
pub use job::{Job, Kind};
pub use loss::Objective;
pub use names::UnknownName;
pub use optimizer::AdamW;
pub use options::Options;
pub use schedule::{Schedule, Shape};
pub use trainer::{Step, Trainer};
pub use training_loop::{beside, foreign_state};
