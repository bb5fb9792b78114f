//! Reads the sections `[pretrain]` and `[finetune]`.

use couplet_encoder::model;
use couplet_storage::place::Problem;
use couplet_tables::tables::Location;
use couplet_train::Shape;
use couplet_train::finetune::Calibrate;
use couplet_train::sampling::ClassWeights;
use couplet_train::statistics::metrics::{Metric, measured};
use couplet_train::statistics::promotion::Condition;
use couplet_train::statistics::task::Task;
use couplet_train::statistics::threshold::Objective;
use toml::de::DeValue;

use super::item::Item;
use super::reader::{Keys, Read};
use super::sections::query;
use super::stages::{Finetune, Learning, Pretrain, Start, Validation};

pub(super) fn pretrain(keys: &mut Keys<'_>) -> Read<Pretrain> {
    let text = keys.or("text", Item::text);
    let validation = keys.or("validation", Item::number);
    let mask_probability = keys.or("mask_probability", Item::number);
    let measure_at = keys.optional("measure_at", mask_shares);
    let start = keys.required("model", start);
    let learning = learning(keys);
    let (learning, start) = (learning?, start?);
    if let Start::Model(base) = &start {
        check_output(keys, base, &learning)?;
    }
    Ok(Pretrain {
        learning,
        start,
        text: text?,
        validation: validation?,
        mask_probability: mask_probability?,
        measure_at: measure_at?.unwrap_or_default(),
    })
}

pub(super) fn finetune(keys: &mut Keys<'_>) -> Read<Finetune> {
    let task = keys.required("task", task);
    let base = keys.required("model", Item::model);
    let id = keys.optional("id", Item::names);
    let validation = keys.or("validation", validation);
    let text = keys.optional("text", Item::names);
    let label = keys.or("label", Item::text);
    let labels = keys.optional("labels", Item::names);
    let label_smoothing = keys.or("label_smoothing", Item::number);
    let class_weights = keys.optional("class_weights", class_weights);
    let patience = keys.optional("patience", Item::integer);
    let known = task.as_ref().ok().map(|task| measured(task.problem(), Some(task.labels().len()).filter(|n| *n > 0)));
    let known = known.unwrap_or_default();
    let metric = keys.optional("metric", |item| {
        Metric::parse_among(item.non_blank()?, known.iter().copied())
            .map_err(|e| item.refuse(Problem::new(format!("`{}`: {e}", item.path), "unknown metric")))
    });
    let promote_if = keys.optional("promote_if", |item| {
        Condition::parse(item.non_blank()?, &known)
            .map_err(|e| item.refuse(Problem::new(format!("`{}`: {e}", item.path), "not a condition")))
    });
    let calibrate = keys.or("calibrate", |item| calibrate(item, task.as_ref().ok()));
    let learning = learning(keys);
    let task = task?;
    let text = texts(keys, text?, Some(task), None)?;
    let (learning, base) = (learning?, base?);
    check_output(keys, &base, &learning)?;
    Ok(Finetune {
        learning,
        base,
        task,
        validation: validation?,
        id: id?,
        text,
        label: label?,
        labels: labels?,
        label_smoothing: label_smoothing?,
        class_weights: class_weights?.unwrap_or(ClassWeights::Equal),
        patience: patience?,
        metric: metric?,
        promote_if: promote_if?,
        calibrate: calibrate?,
    })
}

pub(super) fn task(item: &Item<'_>) -> Read<Task> {
    Task::parse(item.non_blank()?)
        .map_err(|e| item.refuse(Problem::new(format!("`{}`: {e}", item.path), "unknown task")))
}

/// Returns the text columns: the given ones, else those of the task's data set, else the fallback.
pub(super) fn texts(
    keys: &mut Keys<'_>,
    named: Option<Vec<String>>,
    task: Option<Task>,
    otherwise: Option<&Vec<String>>,
) -> Read<Vec<String>> {
    let of_task = task.map(Task::text_columns).filter(|columns| !columns.is_empty());
    let of_task = of_task.map(|columns| columns.iter().map(|column| (*column).to_owned()).collect());
    let Some(text) = named.or(of_task).or_else(|| otherwise.cloned()) else {
        return Err(keys.lacks("text", "`text`"));
    };
    if text.len() > 2 {
        let problem = Problem::new(format!("`text` names {} columns", text.len()), "too many");
        return Err(keys.refuse("text", problem.allowed("one column, or two for pairs")));
    }
    Ok(text)
}

fn learning(keys: &mut Keys<'_>) -> Read<Learning> {
    let output = keys.required("output", Item::local_path);
    let max_length = keys.or("max_length", Item::integer);
    let epochs = keys.or("epochs", Item::integer);
    let batch_size = keys.or("batch_size", Item::integer);
    let learning_rate = keys.or("learning_rate", Item::number);
    let schedule = keys.or("schedule", |item| item.choice(&Shape::NAMED));
    let warmup = keys.or("warmup", Item::number);
    let weight_decay = keys.or("weight_decay", Item::number);
    let adam_epsilon = keys.or("adam_epsilon", Item::number);
    let max_grad_norm = keys.or("max_grad_norm", Item::number);
    let seed = keys.or("seed", Item::integer);
    let checkpoint = keys.or("checkpoint", Item::duration);
    let query = query(keys);
    Ok(Learning {
        query: query?,
        output: output?,
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

/// Rejects an output folder that is the base model.
fn check_output(keys: &Keys<'_>, base: &Location, learning: &Learning) -> Read<()> {
    let output = &learning.output;
    if base.place.is_same(&couplet_storage::place::Place::Local(output.path.clone())) {
        let problem = Problem::new(format!("`output` is `{output}`, the model that training starts from"), "the same");
        return Err(keys.refuse("output", problem.help("write the trained model to a folder of its own")));
    }
    Ok(())
}

/// Reads the folder of a base model, or the config and tokenizer of a model with random weights.
fn start(item: &Item<'_>) -> Read<Start> {
    if !item.is_table() {
        return item.model().map(Start::Model);
    }
    item.table(|keys| {
        let config = keys.required("config", Item::local_path);
        let tokenizer = keys.required("tokenizer", Item::local_path);
        Ok(Start::Random { config: config?, tokenizer: tokenizer? })
    })
}

/// Reads a masking share, or a list of them.
fn mask_shares(item: &Item<'_>) -> Read<Vec<f64>> {
    match item.value.get_ref() {
        DeValue::Array(_) => {
            let elements = item.elements()?;
            let mut shares = Vec::with_capacity(elements.len());
            for element in &elements {
                let share = element.number()?;
                if let Some(first) = shares.iter().position(|earlier: &f64| earlier.total_cmp(&share).is_eq()) {
                    let problem = Problem::new(format!("`{}` has {share} twice", item.path), "the same share again");
                    let problem = problem.related(elements[first].value.span(), "given here");
                    return Err(element.refuse(problem.help("remove one of the two")));
                }
                shares.push(share);
            }
            Ok(shares)
        }
        _ => item.number().map(|share| vec![share]),
    }
}

/// Reads `true` for a temperature, or `{ threshold = "f1" }` for a temperature and a threshold.
fn calibrate(item: &Item<'_>, task: Option<&Task>) -> Read<Calibrate> {
    let calibrate = if item.is_table() {
        Calibrate::Threshold(item.table(|keys| keys.required("threshold", objective))?)
    } else if item.is_text() {
        let help =
            "write `calibrate = true` for a temperature, `calibrate = { threshold = \"f1\" }` for a threshold too";
        return Err(item.refuse(item.wrong_type("true, false or a table").help(help)));
    } else if item.boolean()? {
        Calibrate::Temperature
    } else {
        return Ok(Calibrate::Nothing);
    };
    let Some(task) = task else { return Ok(calibrate) };
    let refuse = |why: String, help: &str| {
        let problem = Problem::new(format!("`{}` does not suit task \"{task}\": {why}", item.path), "does not suit");
        Err(item.refuse(problem.help(help)))
    };
    match (calibrate, task.problem(), task.labels().len()) {
        (_, model::Problem::Regression, _) => refuse("a regression has no probabilities".into(), "remove it"),
        (Calibrate::Threshold(_), model::Problem::MultiLabel, _) => {
            refuse("a threshold needs two exclusive labels".into(), "write `calibrate = true`")
        }
        (Calibrate::Threshold(_), _, labels) if labels > 2 => {
            refuse(format!("a threshold needs two labels, and the task has {labels}"), "write `calibrate = true`")
        }
        _ => Ok(calibrate),
    }
}

fn objective(item: &Item<'_>) -> Read<Objective> {
    let text = item.non_blank()?;
    Objective::parse(text).map_err(|e| {
        let problem = Problem::new(format!("`{}`: {e}", item.path), "not an objective");
        item.refuse(problem.suggest(text, ["f1", "accuracy", "matthews", "precision >= 0.9", "recall >= 0.9"]))
    })
}

/// Reads the share of held-out rows, or a query for them.
fn validation(item: &Item<'_>) -> Read<Validation> {
    if item.is_text() { item.sql().map(Validation::Sql) } else { item.number().map(Validation::Share) }
}

/// Reads `"balanced"`, or one weight per label.
fn class_weights(item: &Item<'_>) -> Read<ClassWeights> {
    if item.is_text() {
        return item.choice(&[("balanced", ())]).map(|()| ClassWeights::Balanced);
    }
    let entries = item.entries()?;
    let weights = entries.iter().map(|entry| {
        let label = entry.key.get_ref().to_string();
        Ok((label, entry.number()?))
    });
    weights.collect::<Read<_>>().map(ClassWeights::Given)
}
