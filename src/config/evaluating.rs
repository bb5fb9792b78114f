//! Reads the section `[evaluate]`. Missing keys default to those of the training and scoring sections.

use couplet_storage::place::Problem;
use couplet_tables::tables::Location;

use super::described::{FINETUNE, MODEL};
use super::item::Item;
use super::learning::{task, texts};
use super::pipeline::{LocalPath, ModelSettings, Scoring};
use super::reader::{Keys, Read};
use super::sections::query;
use super::stages::{Evaluate, Finetune};

pub(super) fn evaluate(
    keys: &mut Keys<'_>,
    finetune: Read<Option<&Finetune>>,
    scoring: Read<Option<&Scoring>>,
) -> Read<Evaluate> {
    let id = keys.optional("id", Item::names);
    let text = keys.optional("text", Item::names);
    let label = keys.optional("label", Item::text);
    let task = keys.optional("task", task);
    let model = keys.optional("model", Item::model);
    let max_length = keys.optional("max_length", Item::integer);
    let slices = keys.optional("slices", Item::names);
    let resamples = keys.or("resamples", Item::integer);
    let level = keys.or("level", Item::number);
    let seed = keys.or("seed", Item::integer);
    let output = keys.required("output", folder);
    let query = query(keys);
    let (finetune, scoring) = (finetune?, scoring?);
    let task = task?.or(finetune.map(|stage| stage.task));
    let columns = finetune.map(|stage| &stage.text).or(scoring.map(|scoring| &scoring.source.text));
    let text = texts(keys, text?, task, columns)?;
    let trained = finetune.map(|stage| Location::from(stage.learning.output.clone()));
    let Some(location) = model?.or(trained).or_else(|| scoring.map(|s| s.model.location.clone())) else {
        return Err(keys.lacks("model", "`model`"));
    };
    let settings = scoring.map(|scoring| &scoring.model);
    let max_length = max_length?.or(settings.map(|model| model.max_length));
    let max_length = max_length.or(finetune.map(|stage| stage.learning.max_length));
    let label = label?.or_else(|| finetune.map(|stage| stage.label.clone()));
    Ok(Evaluate {
        query: query?,
        id: id?.or_else(|| finetune.and_then(|stage| stage.id.clone())),
        text,
        label: label.map_or_else(|| keys.default_in(&FINETUNE, "label", Item::text), Ok)?,
        task,
        model: ModelSettings {
            location,
            max_length: max_length.map_or_else(|| keys.default_in(&MODEL, "max_length", Item::integer), Ok)?,
            precision: settings.map(|model| model.precision).unwrap_or_default(),
            device: settings.map(|model| model.device).unwrap_or_default(),
        },
        slices: slices?.unwrap_or_default(),
        resamples: resamples?,
        level: level?,
        seed: seed? as u64,
        output: output?,
    })
}

/// Reads the path of the output folder; rejects a path that looks like a file.
fn folder(item: &Item<'_>) -> Read<LocalPath> {
    let location = item.local_path()?;
    let is_file =
        location.path.extension().is_some_and(|extension| ["json", "parquet", "csv"].iter().any(|e| extension == *e));
    if is_file {
        let problem = Problem::new(format!("`{}` is `{location}`, which looks like a file", item.path), "not a folder");
        return Err(
            item.refuse(problem.help("name a folder: evaluation.json and mistakes.parquet are written into it"))
        );
    }
    Ok(location)
}
