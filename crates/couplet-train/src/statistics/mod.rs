//! Statistics of predictions and gold labels, independent of training.
//!
//! | Module | Content |
//! |---|---|
//! | [`task`] | the GLUE tasks and the generic ones: columns, labels, metrics |
//! | [`labels`] | maps a label column to targets; the mapping is stored in the checkpoint |
//! | [`metrics`] | metrics of predictions |
//! | [`bootstrap`] | confidence intervals of metrics |
//! | [`slices`] | metrics per slice of the rows |
//! | [`evaluation`] | metrics, intervals and slices in one report |
//! | [`calibration`] | a temperature and a threshold fitted on the validation rows, stored with the checkpoint |
//! | [`promotion`] | the condition for replacing the old model with a new one |

pub mod bootstrap;
pub mod calibration;
pub mod evaluation;
pub mod labels;
pub mod metrics;
mod names;
pub mod promotion;
pub mod slices;
pub mod task;
pub mod temperature;
pub mod threshold;

pub use names::UnknownName;
