//! The keys of the sections that train and evaluate.

use super::super::item::names;
use super::super::key::{Key, Kind, Numbers, Section, optional, or, required};
use super::super::learning::SCHEDULES;
use super::{ANY_COUNT, COLUMN, COLUMNS, MAX_LENGTH, TEXTS};
use crate::train::MOST_EPOCHS;
use crate::train::metrics::Metric;
use crate::train::task::Task;

const EPOCHS: Kind = Kind::Integer(1..=MOST_EPOCHS as usize);
const SEED: Kind = Kind::Integer(0..=usize::MAX);
/// From 0 on, below 1.
const PART: Kind = Kind::Number(Numbers { low: 0.0, with_low: true, high: 1.0 });
/// Above 0, below 1.
const REAL_PART: Kind = Kind::Number(Numbers { low: 0.0, with_low: false, high: 1.0 });
const POSITIVE: Kind = Kind::Number(Numbers { low: 0.0, with_low: false, high: f64::MAX });
/// Of rows that are held out; the others are to be learned from.
const HELD_OUT: Kind = Kind::Number(Numbers { low: 0.0, with_low: false, high: 0.9 });
const TASK: Kind = Kind::Named(|| Task::all().map(Task::name).collect());

/// What both stages of training have, after what differs between them.
const TRAINING: &[Key] = &[
    required("output", Kind::Path, "\"models/mrpc\"", "The folder of the trained model."),
    or("max_length", MAX_LENGTH, "128", "256", "The length at which an input is cut, in tokens."),
    or("batch_size", ANY_COUNT, "32", "16", "Rows in an update."),
    or(
        "schedule",
        Kind::Choice(|| names(&SCHEDULES)),
        "\"linear\"",
        "\"cosine\"",
        "What becomes of the learning rate after the warm-up.",
    ),
    or("weight_decay", PART, "0.0", "0.01", "The decay of weights that are neither biases nor of a normalisation."),
    or("adam_epsilon", REAL_PART, "1e-8", "1e-6", "What Adam adds to the root of the second moment."),
    or("max_grad_norm", POSITIVE, "1.0", "5.0", "The norm to which a longer gradient is shortened."),
    or("seed", SEED, "42", "7", "Of all that is random."),
    or("checkpoint", Kind::Duration, "\"60s\"", "\"5m\"", "How much training a kill may cost."),
];

pub(super) static PRETRAIN: Section = Section {
    path: "pretrain",
    doc: "Hides words of plain text and learns to fill them in.",
    groups: &[
        &[
            optional("sql", Kind::Sql, "`file` is given", "\"SELECT text FROM corpus\"", "The query of the texts."),
            optional("file", Kind::Path, "`sql` is given", "\"corpus.sql\"", "A file with the query."),
            required(
                "model",
                Kind::Either(&[Kind::Path, Kind::Section(&RANDOM)]),
                "\"models/base\"",
                "The folder of the model to start from, or what to make one with random weights of.",
            ),
            or("text", COLUMN, "\"text\"", "\"body\"", "The column of texts."),
            or("validation", HELD_OUT, "0.05", "0.1", "The share of the texts that is held out to measure on."),
            or("mask_probability", REAL_PART, "0.15", "0.3", "The share of tokens that are hidden."),
            optional(
                "measure_at",
                Kind::Either(&[REAL_PART, Kind::List(&REAL_PART)]),
                "none",
                "[0.15, 0.5]",
                "Other shares at which the held-out texts are measured too, before and after.",
            ),
            or("epochs", EPOCHS, "1", "3", "How often each text is learned from."),
            or("learning_rate", REAL_PART, "1e-4", "5e-5", "The learning rate after the warm-up."),
            or("warmup", PART, "0.06", "0.1", "The share of the updates in which it rises from 0."),
        ],
        TRAINING,
    ],
};

static RANDOM: Section = Section {
    path: "pretrain.model",
    doc: "What a model with random weights is made of.",
    groups: &[&[
        required("config", Kind::Path, "\"configs/tiny.json\"", "A `config.json`, by whatever name, or its folder."),
        required("tokenizer", Kind::Path, "\"models/base\"", "A folder with a tokenizer."),
    ]],
};

pub(super) static FINETUNE: Section = Section {
    path: "finetune",
    doc: "Learns a task from labelled rows.",
    groups: &[
        &[
            optional(
                "sql",
                Kind::Sql,
                "`file` is given",
                "\"SELECT sentence1, sentence2, label FROM gold\"",
                "The query of the labelled rows.",
            ),
            optional("file", Kind::Path, "`sql` is given", "\"gold.sql\"", "A file with the query."),
            required(
                "task",
                TASK,
                "\"mrpc\"",
                "A task of GLUE, or a plain one: with `classification` a row has one label of several, with \
                 `regression` a number, with `multilabel` any number of labels.",
            ),
            required("model", Kind::Path, "\"models/base\"", "The folder of the model to start from."),
            optional(
                "id",
                COLUMNS,
                "the texts",
                "\"id\"",
                "Columns that name a row, in messages and for the choice of those that are held out.",
            ),
            optional(
                "text",
                TEXTS,
                "those of the task's data set",
                "[\"sentence1\", \"sentence2\"]",
                "The column of texts, or two for pairs.",
            ),
            or(
                "label",
                COLUMN,
                "\"label\"",
                "\"gold\"",
                "The column of labels: texts or whole numbers for a classification, numbers for a regression, lists of texts \
                 for `multilabel`. Whole numbers of a GLUE task stand for the labels of its data set, whatever the order of \
                 the model's.",
            ),
            optional(
                "labels",
                COLUMNS,
                "learned from the rows",
                "[\"no\", \"yes\"]",
                "The labels in the order of the model's outputs.",
            ),
            or(
                "validation",
                Kind::Either(&[HELD_OUT, Kind::Sql]),
                "0.1",
                "\"SELECT * FROM gold WHERE split = 'dev'\"",
                "The rows that are held out to measure on: a share, or a query.",
            ),
            or("label_smoothing", PART, "0.0", "0.1", "What part of each label is shared out among all."),
            optional(
                "class_weights",
                Kind::Either(&[Kind::Choice(|| vec!["balanced"]), Kind::Entries(&POSITIVE)]),
                "all weigh the same",
                "\"balanced\"",
                "How much each label weighs in the loss: by its rareness, or a number for each.",
            ),
            optional("patience", ANY_COUNT, "none", "2", "Epochs without a better model after which training stops."),
            optional(
                "metric",
                Kind::Named(|| Metric::all().map(Metric::name).collect()),
                "the task's main one",
                "\"f1\"",
                "What decides which epoch's model is the best.",
            ),
            optional(
                "promote_if",
                Kind::Text,
                "always",
                "\"f1 >= 0.85\"",
                "What a model must reach on the held-out rows, calibrated if it is to be, to take the place of the old \
                 one: a metric and a bound, or several joined by `and`, as in `f1 >= 0.85 and ece < 0.1` (`ece` is \
                 `calibration_error`). One that falls short stays beside the old one as ….candidate.",
            ),
            or(
                "calibrate",
                Kind::Either(&[Kind::Boolean, Kind::Section(&CALIBRATE)]),
                "false",
                "{ threshold = \"f1\" }",
                "Fits a temperature on the held-out rows, and a threshold if asked.",
            ),
            or("epochs", EPOCHS, "3", "5", "How often each row is learned from."),
            or("learning_rate", REAL_PART, "5e-5", "2e-5", "The learning rate after the warm-up."),
            or("warmup", PART, "0.0", "0.1", "The share of the updates in which it rises from 0."),
        ],
        TRAINING,
    ],
};

static CALIBRATE: Section = Section {
    path: "finetune.calibrate",
    doc: "A threshold besides the temperature, for two labels.",
    groups: &[&[required(
        "threshold",
        Kind::Text,
        "\"f1\"",
        "What it does best: `f1`, `accuracy`, `matthews`, `precision >= 0.9` or `recall >= 0.9`.",
    )]],
};

pub(super) static EVALUATE: Section = Section {
    path: "evaluate",
    doc: "Measures a model on labelled rows. What is left open is as in `[finetune]`, else as in `[source]` and `[model]`.",
    groups: &[&[
        optional(
            "sql",
            Kind::Sql,
            "`file` is given",
            "\"SELECT sentence1, sentence2, label FROM gold WHERE split = 'test'\"",
            "The query of the labelled rows.",
        ),
        optional("file", Kind::Path, "`sql` is given", "\"test.sql\"", "A file with the query."),
        optional("id", COLUMNS, "as in [finetune], else the texts", "\"id\"", "Columns that name a row in messages."),
        optional(
            "text",
            TEXTS,
            "those of the task, or as in [finetune] or [source]",
            "[\"sentence1\", \"sentence2\"]",
            "The column of texts, or two for pairs.",
        ),
        optional(
            "label",
            COLUMN,
            "as in [finetune], else `label`",
            "\"gold\"",
            "The column of labels, of the kinds that `[finetune]` takes.",
        ),
        optional("task", TASK, "as in [finetune], else what suits the model", "\"mrpc\"", "What labels mean."),
        optional("model", Kind::Uri, "that of [finetune], else of [model]", "\"models/mrpc\"", "The model."),
        optional(
            "max_length",
            MAX_LENGTH,
            "as in [model], else as in [finetune], else 128",
            "256",
            "The length at which an input is cut, in tokens.",
        ),
        optional(
            "slices",
            COLUMNS,
            "none",
            "[\"genre\"]",
            "Columns for each of whose values the metrics are given too.",
        ),
        or("resamples", Kind::Integer(20..=1_000_000), "1000", "200", "Resamples of the bootstrap."),
        or("level", REAL_PART, "0.95", "0.9", "The share of them that lies in an interval."),
        or("seed", SEED, "42", "7", "Of the bootstrap."),
        required("output", Kind::Path, "\"out/evaluation\"", "The folder of `evaluation.json` and `mistakes.parquet`."),
    ]],
};
