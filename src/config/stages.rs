//! The validated settings of the stages before scoring: pretraining, fine-tuning and evaluation.

use std::time::Duration;

use couplet_tables::tables::Location;
use couplet_train::Shape;
use couplet_train::finetune::Calibrate;
use couplet_train::sampling::ClassWeights;
use couplet_train::statistics::metrics::Metric;
use couplet_train::statistics::promotion::Condition;
use couplet_train::statistics::task::Task;

use super::pipeline::{LocalPath, ModelSettings, Query, Sql};

/// The settings common to both training stages.
#[derive(Debug, Clone, PartialEq)]
pub struct Learning {
    /// The query for the rows.
    pub query: Query,
    /// The folder of the trained model.
    pub output: LocalPath,
    /// The maximum length of an input, in tokens; longer inputs are truncated.
    pub max_length: usize,
    /// The number of passes over the rows.
    pub epochs: usize,
    /// The number of rows per optimizer step.
    pub batch_size: usize,
    /// The peak learning rate, reached at the end of warm-up.
    pub learning_rate: f64,
    /// The learning-rate schedule after warm-up.
    pub schedule: Shape,
    /// The share of optimizer steps during which the learning rate rises from 0.
    pub warmup: f64,
    /// The weight decay of all weights except biases and normalization weights.
    pub weight_decay: f64,
    /// Adam's epsilon, added to the square root of the second moment.
    pub adam_epsilon: f64,
    /// The maximum gradient norm; larger gradients are clipped to it.
    pub max_grad_norm: f64,
    /// The random seed.
    pub seed: u64,
    /// The most work lost if the process is killed.
    pub checkpoint: Duration,
}

/// The held-out rows, on which the model is measured during training.
#[derive(Debug, Clone, PartialEq)]
pub enum Validation {
    /// A share of the rows, selected by a hash of their ids.
    Share(f64),
    /// The rows of a separate query.
    Sql(Sql),
}

/// The settings of `[pretrain]`: masked language modelling on unlabelled text.
#[derive(Debug, Clone, PartialEq)]
pub struct Pretrain {
    /// Data and hyper-parameters.
    pub learning: Learning,
    /// The initial model.
    pub start: Start,
    /// The column of texts.
    pub text: String,
    /// The share of the texts held out for validation, selected by a hash of the text.
    pub validation: f64,
    /// The share of tokens that are masked.
    pub mask_probability: f64,
    /// Additional masking shares at which the model is measured on the held-out texts, before and after training.
    pub measure_at: Vec<f64>,
}

/// The initial model of pretraining.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// The folder of a model.
    Model(Location),
    /// Random weights.
    Random {
        /// A `config.json` (any file name), or its folder.
        config: LocalPath,
        /// The folder of a tokenizer.
        tokenizer: LocalPath,
    },
}

/// The settings of `[finetune]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Finetune {
    /// Data and hyper-parameters.
    pub learning: Learning,
    /// The folder of the model that training starts from.
    pub base: Location,
    /// The task.
    pub task: Task,
    /// The held-out rows.
    pub validation: Validation,
    /// The columns that identify a row, for messages and the selection of held-out rows; `None` for the texts.
    pub id: Option<Vec<String>>,
    /// The text column, or the two text columns of a pair.
    pub text: Vec<String>,
    /// The column of labels.
    pub label: String,
    /// The labels in the order of the model's outputs; `None` to take them from the rows.
    pub labels: Option<Vec<String>>,
    /// The share of each label's probability that is spread over all labels.
    pub label_smoothing: f64,
    /// The weight of each label in the loss.
    pub class_weights: ClassWeights,
    /// The number of epochs without improvement after which training stops.
    pub patience: Option<usize>,
    /// The metric that selects the best epoch; `None` for the task's main metric.
    pub metric: Option<Metric>,
    /// The condition under which the new model replaces the old one.
    pub promote_if: Option<Condition>,
    /// The calibration that is fitted on the held-out rows after training.
    pub calibrate: Calibrate,
}

/// The settings of `[evaluate]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluate {
    /// The query for the rows.
    pub query: Query,
    /// The columns that identify a row in messages; `None` for the texts.
    pub id: Option<Vec<String>>,
    /// The text column, or the two text columns of a pair.
    pub text: Vec<String>,
    /// The column of labels.
    pub label: String,
    /// The task, which defines the meaning of the labels; `None` for the generic task that fits the model.
    pub task: Option<Task>,
    /// The model settings.
    pub model: ModelSettings,
    /// The columns by whose values the metrics are broken down.
    pub slices: Vec<String>,
    /// The number of bootstrap resamples.
    pub resamples: usize,
    /// The confidence level of the intervals.
    pub level: f64,
    /// The random seed of the bootstrap.
    pub seed: u64,
    /// The folder for the report and the mistakes.
    pub output: LocalPath,
}
