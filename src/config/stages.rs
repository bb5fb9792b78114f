//! The stages before the scoring, validated: those that learn, and the one that measures.

use std::time::Duration;

use super::pipeline::{LocalPath, Location, ModelSettings, Query, Sql};
use crate::train::finetune::Calibrate;
use crate::train::metrics::Metric;
use crate::train::promotion::Condition;
use crate::train::sampling::ClassWeights;
use crate::train::task::Task;

/// What the two stages of training have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Learning {
    /// The query that gives the rows.
    pub query: Query,
    /// The folder of the model that it ends with.
    pub output: LocalPath,
    /// The length at which an input is cut, in tokens.
    pub max_length: usize,
    /// How often each row is learned from.
    pub epochs: usize,
    /// Rows in an update.
    pub batch_size: usize,
    /// The learning rate after the warm-up.
    pub learning_rate: f64,
    /// What becomes of it.
    pub schedule: ScheduleShape,
    /// The share of the updates in which it rises from 0.
    pub warmup: f64,
    /// The decay of weights that are neither biases nor of a normalisation.
    pub weight_decay: f64,
    /// What Adam adds to the root of the second moment.
    pub adam_epsilon: f64,
    /// The norm to which a longer gradient is shortened.
    pub max_grad_norm: f64,
    /// Of everything that is random.
    pub seed: u64,
    /// How much work a kill may cost.
    pub checkpoint: Duration,
}

/// The rows that a model is measured with while it learns from the others.
#[derive(Debug, Clone, PartialEq)]
pub enum Validation {
    /// A share of the rows, by a hash of their ids.
    Share(f64),
    /// Rows of their own.
    Sql(Sql),
}

/// Learning-rate schedule after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduleShape {
    /// Falls to 0 in a straight line.
    Linear,
    /// Falls to 0 like half a wave.
    Cosine,
    /// Stays.
    Constant,
}

/// The stage that hides words and learns to fill them in.
#[derive(Debug, Clone, PartialEq)]
pub struct Pretrain {
    /// Data and hyper-parameters.
    pub learning: Learning,
    /// What training starts from.
    pub start: Start,
    /// The column of texts.
    pub text: String,
    /// The share of the texts that is held out to measure on, by a hash of the text.
    pub validation: f64,
    /// The share of tokens that are hidden.
    pub mask_probability: f64,
    /// Other shares at which the held-out texts are measured too, before and after.
    pub measure_at: Vec<f64>,
}

/// What pretraining starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// The folder of a model.
    Model(Location),
    /// Random weights.
    Random {
        /// A `config.json`, by whatever name, or the folder of one.
        config: LocalPath,
        /// A folder with a tokenizer.
        tokenizer: LocalPath,
    },
}

/// The stage that learns a task from labelled rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Finetune {
    /// Data and hyper-parameters.
    pub learning: Learning,
    /// The folder of the model that training starts from.
    pub base: Location,
    /// The task.
    pub task: Task,
    /// The rows that are held out to measure on.
    pub validation: Validation,
    /// The columns that name a row, for the choice of those that are held out; the texts if not given.
    pub id: Option<Vec<String>>,
    /// A text, or a text and its pair.
    pub text: Vec<String>,
    /// The column of labels.
    pub label: String,
    /// The labels in the order of the model's outputs; learned from the rows if not given.
    pub labels: Option<Vec<String>>,
    /// What part of each label is shared out among all.
    pub label_smoothing: f64,
    /// How much each label weighs in the loss.
    pub class_weights: ClassWeights,
    /// Epochs without a better model after which training stops.
    pub patience: Option<usize>,
    /// What decides which epoch's model is the best; the task's main one if not given.
    pub metric: Option<Metric>,
    /// What the new model must reach to take the place of the old one.
    pub promote_if: Option<Condition>,
    /// What is fitted on the held-out rows when training is over.
    pub calibrate: Calibrate,
}

/// The stage that measures a model on labelled rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluate {
    /// The query that gives the rows.
    pub query: Query,
    /// The columns that name a row in messages; the texts if not given.
    pub id: Option<Vec<String>>,
    /// A text, or a text and its pair.
    pub text: Vec<String>,
    /// The column of labels.
    pub label: String,
    /// The task, which says what labels mean; the plain one that suits the model if not given.
    pub task: Option<Task>,
    /// The model, and how it is run.
    pub model: ModelSettings,
    /// The columns by which the rows are sliced.
    pub slices: Vec<String>,
    /// Resamples of the bootstrap.
    pub resamples: usize,
    /// The share of them that lies in an interval.
    pub level: f64,
    /// Of the bootstrap.
    pub seed: u64,
    /// The folder that the report and the mistakes are written to.
    pub output: LocalPath,
}
