//! Reads the section `[evaluate]`. Missing keys default to those of the training and scoring sections.

use couplet_encoder::scorer::DeviceSetting;
use couplet_storage::place::Problem;
use couplet_tables::tables::Location;

use super::item::Item;
use super::learning::{task, texts};
use super::pipeline::{DEFAULT_MAX_LENGTH, LocalPath, ModelSettings, Precision, Scoring};
use super::reader::{Keys, Read};
use super::sections::query;
use super::stages::{Evaluate, Finetune};

pub(super) fn evaluate(
    keys: &mut Keys<'_>,
    finetune: Read<Option<&Finetune>>,
    scoring: Read<Option<&Scoring>>,
) -> Read<Evaluate> {
    let sql = keys.optional("sql", Item::sql);
    let file = keys.optional("file", Item::local_path);
    let id = keys.optional("id", Item::names);
    let text = keys.optional("text", Item::names);
    let label = keys.optional("label", |item| Ok(item.non_blank()?.to_owned()));
    let task = keys.optional("task", task);
    let model = keys.optional("model", Item::model);
    let max_length = keys.optional("max_length", Item::integer);
    let slices = keys.optional("slices", Item::names);
    let resamples = keys.or("resamples", Item::integer);
    let level = keys.or("level", Item::number);
    let seed = keys.or("seed", Item::integer);
    let output = keys.required("output", folder);
    let query = query(keys, sql, file);
    let (finetune, scoring) = (finetune?, scoring?);
    let task = task?.or(finetune.map(|stage| stage.task));
    let columns = finetune.map(|stage| &stage.text).or(scoring.map(|scoring| &scoring.source.text));
    let text = texts(keys, text?, task, columns)?;
    let trained = finetune.map(|stage| Location::from(stage.learning.output.clone()));
    let Some(location) = model?.or(trained).or_else(|| scoring.map(|s| s.model.location.clone())) else {
        return Err(keys.lacks("model", "`model`"));
    };
    let settings = scoring.map(|scoring| &scoring.model);
    let usual = settings.map(|model| model.max_length).or(finetune.map(|stage| stage.learning.max_length));
    Ok(Evaluate {
        query: query?,
        id: id?.or_else(|| finetune.and_then(|stage| stage.id.clone())),
        text,
        label: label?.or_else(|| finetune.map(|stage| stage.label.clone())).unwrap_or_else(|| "label".to_owned()),
        task,
        model: ModelSettings {
            location,
            max_length: max_length?.or(usual).unwrap_or(DEFAULT_MAX_LENGTH),
            precision: settings.map_or(Precision::F32, |model| model.precision),
            device: settings.map_or(DeviceSetting::Auto, |model| model.device),
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
