//! Describes the keys of the sections `[pretrain]`, `[finetune]` and `[evaluate]`.

use couplet_train::statistics::metrics::Metric;
use couplet_train::statistics::task::Task;
use couplet_train::{MAX_EPOCHS, Shape};

use super::super::item::names;
use super::super::key::{Key, Kind, Numbers, Section, optional, or, required};
use super::{ANY_COUNT, COLUMN, COLUMNS, MAX_LENGTH, TEXTS, sql, sql_file};

const EPOCHS: Kind = Kind::Integer(1..=MAX_EPOCHS as usize);
const SEED: Kind = Kind::Integer(0..=usize::MAX);
/// A number of at least 0 and below 1.
const PART: Kind = Kind::Number(Numbers { low: 0.0, with_low: true, high: 1.0 });
/// A number above 0 and below 1.
const REAL_PART: Kind = Kind::Number(Numbers { low: 0.0, with_low: false, high: 1.0 });
const POSITIVE: Kind = Kind::Number(Numbers { low: 0.0, with_low: false, high: f64::MAX });
/// The share of held-out rows. Its upper bound leaves rows for training.
const HELD_OUT: Kind = Kind::Number(Numbers { low: 0.0, with_low: false, high: 0.9 });
const TASK: Kind = Kind::Named(|| Task::all().map(Task::name).collect());

const fn warmup(default: &'static str) -> Key {
    let doc = "The share of optimizer steps during which the learning rate rises from 0.";
    or("warmup", PART, default, "0.1", doc)
}

/// The keys common to `[pretrain]` and `[finetune]`, which follow those of each section.
const TRAINING: &[Key] = &[
    required("output", Kind::Path, "\"models/mrpc\"", "The folder of the trained model."),
    or(
        "max_length",
        MAX_LENGTH,
        "128",
        "256",
        "The maximum length of an input, in tokens; longer inputs are truncated.",
    ),
    or("batch_size", ANY_COUNT, "32", "16", "The number of rows per optimizer step."),
    or(
        "schedule",
        Kind::Choice(|| names(&Shape::NAMED)),
        "\"linear\"",
        "\"cosine\"",
        "The learning-rate schedule after warm-up.",
    ),
    or("weight_decay", PART, "0.0", "0.01", "The weight decay of all weights except biases and normalization weights."),
    or("adam_epsilon", REAL_PART, "1e-8", "1e-6", "Adam's epsilon, added to the square root of the second moment."),
    or("max_grad_norm", POSITIVE, "1.0", "5.0", "The maximum gradient norm; larger gradients are clipped to it."),
    or("seed", SEED, "42", "7", "The random seed."),
    or("checkpoint", Kind::Duration, "\"60s\"", "\"5m\"", "The most training work lost if the process is killed."),
];

pub(super) static PRETRAIN: Section = Section {
    path: "pretrain",
    doc: "Pretrains an encoder on unlabelled text by masked language modelling.",
    groups: &[
        &[
            sql("\"SELECT text FROM corpus\"", "The query for the texts."),
            sql_file("\"corpus.sql\""),
            required(
                "model",
                Kind::Either(&[Kind::Path, Kind::Section(&RANDOM)]),
                "\"models/base\"",
                "The folder of the model to start from, or a config and a tokenizer for a model with random weights.",
            ),
            or("text", COLUMN, "\"text\"", "\"body\"", "The column of texts."),
            or("validation", HELD_OUT, "0.05", "0.1", "The share of the texts held out for validation."),
            or("mask_probability", REAL_PART, "0.15", "0.3", "The share of tokens that are masked."),
            optional(
                "measure_at",
                Kind::Either(&[REAL_PART, Kind::List(&REAL_PART)]),
                "none",
                "[0.15, 0.5]",
                "Additional masking shares at which the model is measured on the held-out texts, before and after \
                 training.",
            ),
            or("epochs", EPOCHS, "1", "3", "The number of passes over the texts."),
            or("learning_rate", REAL_PART, "1e-4", "5e-5", "The peak learning rate, reached at the end of warm-up."),
            warmup("0.06"),
        ],
        TRAINING,
    ],
};

static RANDOM: Section = Section {
    path: "pretrain.model",
    doc: "A model with random weights.",
    groups: &[&[
        required("config", Kind::Path, "\"configs/tiny.json\"", "A `config.json` (any file name), or its folder."),
        required("tokenizer", Kind::Path, "\"models/base\"", "The folder of a tokenizer."),
    ]],
};

pub(in crate::config) static FINETUNE: Section = Section {
    path: "finetune",
    doc: "Fine-tunes a model on labelled rows.",
    groups: &[
        &[
            sql("\"SELECT sentence1, sentence2, label FROM gold\"", "The query for the labelled rows."),
            sql_file("\"gold.sql\""),
            required(
                "task",
                TASK,
                "\"mrpc\"",
                "A GLUE task, or a generic one: `classification` (one label per row), `regression` (a number per row) \
                 or `multilabel` (any number of labels per row).",
            ),
            required("model", Kind::Path, "\"models/base\"", "The folder of the model to start from."),
            optional(
                "id",
                COLUMNS,
                "the texts",
                "\"id\"",
                "Columns that identify a row, in messages and for the selection of held-out rows.",
            ),
            optional(
                "text",
                TEXTS,
                "the columns of the task's data set",
                "[\"sentence1\", \"sentence2\"]",
                "The text column, or two for pairs.",
            ),
            or(
                "label",
                COLUMN,
                "\"label\"",
                "\"gold\"",
                "The column of labels: texts or integers for a classification, numbers for a regression, lists of \
                 texts for `multilabel`. The integers of a GLUE task are label indices of its data set, whatever the \
                 model's label order.",
            ),
            optional(
                "labels",
                COLUMNS,
                "taken from the rows",
                "[\"no\", \"yes\"]",
                "The labels, in the order of the model's outputs.",
            ),
            or(
                "validation",
                Kind::Either(&[HELD_OUT, Kind::Sql]),
                "0.1",
                "\"SELECT * FROM gold WHERE split = 'dev'\"",
                "The held-out rows: a share of the rows, or a query.",
            ),
            or(
                "label_smoothing",
                PART,
                "0.0",
                "0.1",
                "The share of each label's probability that is spread over all labels.",
            ),
            optional(
                "class_weights",
                Kind::Either(&[Kind::Choice(|| vec!["balanced"]), Kind::Entries(&POSITIVE)]),
                "equal weights",
                "\"balanced\"",
                "The weight of each label in the loss: `balanced` gives rare labels more weight; a table gives a \
                 number per label.",
            ),
            optional(
                "patience",
                ANY_COUNT,
                "none",
                "2",
                "The number of epochs without improvement after which training stops.",
            ),
            optional(
                "metric",
                Kind::Named(|| Metric::all().map(Metric::name).collect()),
                "the task's main metric",
                "\"f1\"",
                "The metric that selects the best epoch.",
            ),
            optional(
                "promote_if",
                Kind::Text,
                "always",
                "\"f1 >= 0.85\"",
                "The condition under which the new model replaces the old one: a metric and a bound, or several joined \
                 by `and`, as in `f1 >= 0.85 and ece < 0.1` (`ece` is `calibration_error`). It is measured on the \
                 held-out rows, after calibration if there is any. A model that fails it is kept next to the old one, \
                 as ….candidate.",
            ),
            or(
                "calibrate",
                Kind::Either(&[Kind::Boolean, Kind::Section(&CALIBRATE)]),
                "false",
                "{ threshold = \"f1\" }",
                "Fits a temperature on the held-out rows; with a table, a threshold too.",
            ),
            or("epochs", EPOCHS, "3", "5", "The number of passes over the rows."),
            or("learning_rate", REAL_PART, "5e-5", "2e-5", "The peak learning rate, reached at the end of warm-up."),
            warmup("0.0"),
        ],
        TRAINING,
    ],
};

static CALIBRATE: Section = Section {
    path: "finetune.calibrate",
    doc: "A decision threshold in addition to the temperature, for two labels.",
    groups: &[&[required(
        "threshold",
        Kind::Text,
        "\"f1\"",
        "The objective of the threshold: `f1`, `accuracy`, `matthews`, `precision >= 0.9` or `recall >= 0.9`.",
    )]],
};

pub(super) static EVALUATE: Section = Section {
    path: "evaluate",
    doc: "Evaluates a model on labelled rows. Missing keys default to those of `[finetune]`, else to those of \
          `[source]` and `[model]`.",
    groups: &[&[
        sql(
            "\"SELECT sentence1, sentence2, label FROM gold WHERE split = 'test'\"",
            "The query for the labelled rows.",
        ),
        sql_file("\"test.sql\""),
        optional(
            "id",
            COLUMNS,
            "as in [finetune], else the texts",
            "\"id\"",
            "Columns that identify a row in messages.",
        ),
        optional(
            "text",
            TEXTS,
            "the columns of the task, else as in [finetune], else as in [source]",
            "[\"sentence1\", \"sentence2\"]",
            "The text column, or two for pairs.",
        ),
        optional(
            "label",
            COLUMN,
            "as in [finetune], else `label`",
            "\"gold\"",
            "The column of labels, of the types that `[finetune]` accepts.",
        ),
        optional(
            "task",
            TASK,
            "as in [finetune], else the generic task that fits the model",
            "\"mrpc\"",
            "The task, which defines the meaning of the labels.",
        ),
        optional("model", Kind::Uri, "the model of [finetune], else of [model]", "\"models/mrpc\"", "The model."),
        optional(
            "max_length",
            MAX_LENGTH,
            "as in [model], else as in [finetune], else 128",
            "256",
            "The maximum length of an input, in tokens; longer inputs are truncated.",
        ),
        optional(
            "slices",
            COLUMNS,
            "none",
            "[\"genre\"]",
            "Columns by which the metrics are broken down, one group per value.",
        ),
        or("resamples", Kind::Integer(20..=1_000_000), "1000", "200", "The number of bootstrap resamples."),
        or("level", REAL_PART, "0.95", "0.9", "The confidence level of the intervals."),
        or("seed", SEED, "42", "7", "The random seed of the bootstrap."),
        required(
            "output",
            Kind::Path,
            "\"out/evaluation\"",
            "The folder for `evaluation.json` and `mistakes.parquet`.",
        ),
    ]],
};
