//! Learning: the statistics around it, on slices and without I/O.
//!
//! | Module | What it is |
//! |---|---|
//! | [`task`] | GLUE's tasks and the plain ones: columns, labels, metrics |
//! | [`labels`] | a label column to targets, and the mapping that the checkpoint keeps |
//! | [`sampling`] | the validation split, class weights, the order of rows and their batches |
//! | [`masking`] | masked-language-model examples from tokens |
//! | [`metrics`] | how good predictions are |
//! | [`bootstrap`] | how sure that is |
//! | [`slices`] | the same for each part of the rows |
//! | [`evaluation`] | all of that in one report |
//! | [`calibration`] | a temperature and a threshold from the validation rows, kept with the checkpoint |
//! | [`promotion`] | whether a new model may take the place of the old one |
//!
//! All of it is deterministic: what is random is a function of a seed and of what it is for ([`random`]).

pub mod bootstrap;
pub mod calibration;
pub mod evaluation;
pub mod labels;
pub mod masking;
pub mod metrics;
mod names;
pub mod promotion;
pub mod random;
pub mod sampling;
pub mod slices;
pub mod task;
pub mod temperature;
pub mod threshold;

pub use names::UnknownName;
