//! The sections `[pretrain]` and `[finetune]`.

use super::item::{Choice, Item};
use super::pipeline::{Finetune, Learning, Pretrain, ScheduleShape, Validation};
use super::problem::Problem;
use super::reader::{Keys, Read};
use super::sections::query;
use crate::train::metrics::{Metric, measured};
use crate::train::promotion::Condition;
use crate::train::sampling::ClassWeights;
use crate::train::task::Task;

const SCHEDULES: [Choice<ScheduleShape>; 3] = [
    ("linear", Some(ScheduleShape::Linear)),
    ("cosine", Some(ScheduleShape::Cosine)),
    ("constant", Some(ScheduleShape::Constant)),
];

/// What the two sections leave open.
struct Defaults {
    epochs: usize,
    learning_rate: f64,
    warmup: f64,
}

pub(super) fn pretrain(keys: &mut Keys<'_>) -> Read<Pretrain> {
    let text = keys.or("text", "text".to_owned(), |item| Ok(item.words()?.to_owned()));
    let validation = keys.or("validation", 0.05, held_out_share);
    let mask_probability = keys.or("mask_probability", 0.15, |item| item.number(0.0, 1.0, false));
    let learning =
        learning(keys, "sql = \"SELECT text FROM corpus\"", &Defaults { epochs: 1, learning_rate: 1e-4, warmup: 0.06 });
    Ok(Pretrain { learning: learning?, text: text?, validation: validation?, mask_probability: mask_probability? })
}

pub(super) fn finetune(keys: &mut Keys<'_>) -> Read<Finetune> {
    let task = keys.required("task", "task = \"mrpc\"", |item| {
        Task::parse(item.words()?)
            .map_err(|e| item.refuse(Problem::new(format!("`{}`: {e}", item.path), "unknown task")))
    });
    let id = keys.optional("id", Item::names);
    let validation = keys.or("validation", Validation::Share(0.1), validation);
    let text = keys.optional("text", Item::names);
    let label = keys.or("label", "label".to_owned(), |item| Ok(item.words()?.to_owned()));
    let labels = keys.optional("labels", Item::names);
    let label_smoothing = keys.or("label_smoothing", 0.0, |item| item.number(0.0, 1.0, false));
    let class_weights = keys.or("class_weights", ClassWeights::Equal, class_weights);
    let patience = keys.optional("patience", |item| item.integer(1..=usize::MAX));
    let known = task.as_ref().ok().map(|task| measured(task.problem(), Some(task.labels().len()).filter(|n| *n > 0)));
    let known = known.unwrap_or_default();
    let metric = keys.optional("metric", |item| {
        Metric::parse_among(item.words()?, known.iter().copied())
            .map_err(|e| item.refuse(Problem::new(format!("`{}`: {e}", item.path), "unknown metric")))
    });
    let promote_if = keys.optional("promote_if", |item| {
        Condition::parse(item.words()?, &known)
            .map_err(|e| item.refuse(Problem::new(format!("`{}`: {e}", item.path), "not a condition")))
    });
    let calibrate = keys.not_yet("calibrate", "remove it: probabilities are those of the softmax");
    let learning = learning(
        keys,
        "sql = \"SELECT sentence1, sentence2, label FROM gold\"",
        &Defaults { epochs: 3, learning_rate: 5e-5, warmup: 0.0 },
    );
    calibrate?;
    let task = task?;
    let text = match text? {
        Some(text) => text,
        None if !task.text_columns().is_empty() => task.text_columns().iter().map(|s| (*s).to_owned()).collect(),
        None => return Err(keys.lacks("text", "`text`", "text = [\"sentence1\", \"sentence2\"]")),
    };
    if text.len() > 2 {
        let problem = Problem::new(format!("`text` names {} columns", text.len()), "too many");
        return Err(keys.refuse("text", problem.allowed("one column, or two for pairs")));
    }
    Ok(Finetune {
        learning: learning?,
        task,
        validation: validation?,
        id: id?,
        text,
        label: label?,
        labels: labels?,
        label_smoothing: label_smoothing?,
        class_weights: class_weights?,
        patience: patience?,
        metric: metric?,
        promote_if: promote_if?,
    })
}

fn learning(keys: &mut Keys<'_>, example: &str, defaults: &Defaults) -> Read<Learning> {
    let sql = keys.optional("sql", Item::template);
    let file = keys.optional("file", Item::location);
    let base = keys.required("model", "model = \"models/base\"", Item::location);
    let output = keys.required("output", "output = \"models/mrpc\"", Item::location);
    let max_length = keys.or("max_length", super::DEFAULT_MAX_LENGTH, |item| item.integer(3..=8192));
    let epochs = keys.or("epochs", defaults.epochs, |item| item.integer(1..=usize::MAX));
    let batch_size = keys.or("batch_size", 32, |item| item.integer(1..=usize::MAX));
    let learning_rate = keys.or("learning_rate", defaults.learning_rate, |item| item.number(0.0, 1.0, false));
    let schedule = keys.or("schedule", ScheduleShape::Linear, |item| item.choice(&SCHEDULES));
    let warmup = keys.or("warmup", defaults.warmup, |item| item.number(0.0, 1.0, true));
    let weight_decay = keys.or("weight_decay", 0.0, |item| item.number(0.0, 1.0, true));
    let adam_epsilon = keys.or("adam_epsilon", 1e-8, |item| item.number(0.0, 1.0, false));
    let max_grad_norm = keys.or("max_grad_norm", 1.0, |item| item.number(0.0, f64::MAX, false));
    let seed = keys.or("seed", 42, |item| item.integer(0..=usize::MAX));
    let checkpoint = keys.or("checkpoint", std::time::Duration::from_mins(1), Item::duration);
    let query = query(keys, sql, file, example);
    let (base, output) = (base?, output?);
    if base.path == output.path {
        let problem = Problem::new(format!("`output` is `{output}`, the model that training starts from"), "the same");
        return Err(keys.refuse("output", problem.help("write the trained model to a folder of its own")));
    }
    Ok(Learning {
        query: query?,
        base,
        output,
        max_length: max_length?,
        epochs: epochs?,
        batch_size: batch_size?,
        learning_rate: learning_rate?,
        schedule: schedule?,
        warmup: warmup?,
        weight_decay: weight_decay?,
        adam_epsilon: adam_epsilon?,
        max_grad_norm: max_grad_norm?,
        seed: seed? as u64,
        checkpoint: checkpoint?,
    })
}

/// A share of the rows, or a query of its own.
fn validation(item: &Item<'_>) -> Read<Validation> {
    if item.is_text() { item.template().map(Validation::Sql) } else { held_out_share(item).map(Validation::Share) }
}

fn held_out_share(item: &Item<'_>) -> Read<f64> {
    item.number(0.0, 0.9, false)
}

/// `"balanced"`, or one weight a label.
fn class_weights(item: &Item<'_>) -> Read<ClassWeights> {
    if item.is_text() {
        return item.choice(&[("balanced", Some(()))]).map(|()| ClassWeights::Balanced);
    }
    let entries = item.entries()?;
    let weights = entries.iter().map(|entry| {
        let label = entry.key.get_ref().to_string();
        Ok((label, entry.number(0.0, f64::MAX, true)?))
    });
    weights.collect::<Read<_>>().map(ClassWeights::Given)
}
