//! Planned writes: every place that a run writes to, the change there, and whether it is outside the pipeline's folder.
//!
//! The places are those of [`outputs`](crate::run::outputs), and the caches of models.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use couplet_storage::files::{TEMPORARY as UNFINISHED, real_path};
use couplet_storage::hub::model_cache;
use couplet_storage::objects::{Objects, PENDING};
use couplet_storage::place::{Place, model_place};
use couplet_tables::predict::named_models;
use serde::Serialize;

use super::super::outputs::{REJECTED, SIBLING_MODEL, SINK, STATE, STORE, Shape, TEMPORARY, Target, targets};
use super::super::{Stage, query_text, readable};
use crate::config::{self, Pipeline, SinkFormat, SinkMode, Start, Validation};

/// A place that a run writes to.
#[derive(Debug, Clone, Serialize)]
pub struct Write {
    /// The kind of output: `sink`, `store`, `temporary files`, …
    pub what: &'static str,
    /// The place, for display; local paths are relative to the current folder where possible.
    pub place: String,
    /// The change to the content of the place.
    pub change: String,
    /// True if the place is outside the folder of the pipeline file, after resolving symbolic links.
    #[serde(rename = "outside_pipeline_folder")]
    pub outside: bool,
    /// True if it is removed when the run ends.
    pub temporary: bool,
    /// Free space on its disk in bytes.
    #[serde(rename = "free_bytes")]
    pub free: Option<u64>,
}

/// Kind of place: the folder of cached models.
const CACHE: &str = "model cache";

/// Kind of place: leftovers of a killed run.
pub(super) const LEFT: &str = "left by a killed run";

/// Collects all places that the planned stages write to.
pub(super) struct Writes {
    folder: PathBuf,
    /// The models whose caches have been added.
    cached: Vec<Place>,
    all: Vec<Write>,
}

impl Writes {
    /// Returns all places that the stages selected by `runs` write to.
    pub(super) async fn of(
        pipeline: &Pipeline,
        variables: &BTreeMap<String, String>,
        runs: impl Fn(Stage) -> bool,
    ) -> Vec<Write> {
        let folder = Place::Local(pipeline.path.parent().unwrap_or(Path::new("")).to_owned());
        let mut writes = Self { folder: folder.real(), cached: Vec::new(), all: Vec::new() };
        for target in targets(pipeline, &runs) {
            if target.what == TEMPORARY {
                writes.caches(pipeline, variables, &runs);
            }
            let change = change(&target, pipeline, &runs).await;
            let left = left(&target, pipeline);
            // Each run creates a folder with its own name.
            let place = if target.what == TEMPORARY { target.place.join("couplet-*") } else { target.place };
            writes.add(target.what, &place, change, target.temporary);
            for path in left {
                writes.add(LEFT, &Place::Local(path), "removed, unless that run is still alive".into(), false);
            }
        }
        writes.all
    }

    /// Adds the caches of the models that the stages read.
    fn caches(
        &mut self,
        pipeline: &Pipeline,
        variables: &BTreeMap<String, String>,
        runs: impl Fn(Stage) -> bool + Copy,
    ) {
        let scoring = pipeline.scoring.iter().filter(|_| runs(Stage::Score)).map(|s| &s.model.location.place);
        let pretrain = pipeline.pretrain.iter().filter(|_| runs(Stage::Pretrain)).filter_map(|s| match &s.start {
            Start::Model(base) => Some(&base.place),
            Start::Random { .. } => None,
        });
        let finetune = pipeline.finetune.iter().filter(|_| runs(Stage::Finetune)).map(|s| &s.base.place);
        let evaluate = pipeline.evaluate.iter().filter(|_| runs(Stage::Evaluate)).map(|s| &s.model.location.place);
        scoring.chain(pretrain).chain(finetune).chain(evaluate).for_each(|model| self.cache(model));
        for sql in queries(pipeline, variables, runs) {
            named_models(&sql).iter().filter_map(|model| model_place(model).ok()).for_each(|model| self.cache(&model));
        }
    }

    /// Adds the cache of a model in a bucket or a hub.
    fn cache(&mut self, model: &Place) {
        if self.cached.contains(model) {
            return;
        }
        self.cached.push(model.clone());
        // If there is no cache folder, downloading the model reports the error.
        if let Ok(Some(folder)) = model_cache(model) {
            let place = shown(&real_path(&folder));
            match self.all.iter_mut().find(|write| write.what == CACHE && write.place == place) {
                Some(write) => write.change = format!("{}, a copy of {model}, once", write.change),
                None => self.add(CACHE, &Place::Local(folder), format!("a copy of {model}, once"), false),
            }
        }
    }

    fn add(&mut self, what: &'static str, place: &Place, change: String, temporary: bool) {
        let local = place.local().map(real_path);
        let write = Write {
            what,
            place: local.as_ref().map_or_else(|| place.to_string(), |path| shown(path)),
            change,
            outside: local.as_ref().is_none_or(|path| !path.starts_with(&self.folder)),
            temporary,
            free: local.as_deref().and_then(free_bytes),
        };
        if !self.all.iter().any(|other| other.what == write.what && other.place == write.place) {
            self.all.push(write);
        }
    }
}

/// Describes the change to the content of a place.
async fn change(target: &Target, pipeline: &Pipeline, runs: impl Fn(Stage) -> bool) -> String {
    let is_existing = exists(&target.place).await;
    let sink = pipeline.scoring.as_ref().map(|scoring| &scoring.sink);
    match (target.what, sink) {
        (TEMPORARY, _) if pipeline.scoring.is_some() && runs(Stage::Score) => {
            "the rows of the run and spilled data, until the run ends"
        }
        (TEMPORARY, _) => "spilled data, until the run ends",
        (STATE, _) => "until the model is complete",
        (SIBLING_MODEL, _) if target.place.name().ends_with(".candidate") => "the model, if promote_if rejects it",
        (SIBLING_MODEL, _) => "the last epoch's model, if another epoch's is better",
        _ if !is_existing => "will be created",
        (SINK, Some(sink)) => return change_of_sink(sink),
        (REJECTED, _) => "changed like the sink",
        (STORE, _) => "scores and the run record are added; unfinished files of killed runs are removed",
        _ => "replaced",
    }
    .into()
}

/// Lists local files and folders that killed runs left at a place, and that the next run removes.
fn left(target: &Target, pipeline: &Pipeline) -> Vec<PathBuf> {
    let Some(path) = target.place.local().map(real_path) else { return Vec::new() };
    let has_runs = pipeline.scoring.as_ref().is_some_and(|scoring| scoring.sink.format == SinkFormat::Parquet);
    let name = path.file_name().map(|name| format!(".{}.", name.to_string_lossy()));
    let (folder, prefix) = match (target.shape, path.parent(), name) {
        (Shape::Folder, ..) if has_runs && [SINK, REJECTED].contains(&target.what) => (&*path, ".run=".to_owned()),
        (Shape::File | Shape::Model | Shape::Evaluation, Some(around), Some(name)) => (around, name),
        _ => return Vec::new(),
    };
    let names = folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut left: Vec<PathBuf> = names
        .filter(|name| {
            let name = name.to_string_lossy();
            // Pending rejected rows have such a name, and a second prefix while they are written.
            let is_of_this =
                name.starts_with(&prefix) || name.strip_prefix('.').is_some_and(|n| n.starts_with(&prefix));
            is_of_this && [UNFINISHED, PENDING].iter().any(|end| name.ends_with(end))
        })
        .map(|name| folder.join(name))
        .collect();
    left.sort();
    left
}

fn change_of_sink(sink: &config::Sink) -> String {
    match (sink.format, sink.mode) {
        (SinkFormat::Delta, SinkMode::Overwrite) => "a new version replaces its rows".into(),
        (SinkFormat::Delta, SinkMode::Append) => "a new version with the rows appended".into(),
        (SinkFormat::Delta, SinkMode::Merge) => "a new version, rows merged by their id".into(),
        (SinkFormat::Parquet, _) if sink.is_one_file() => "replaced".into(),
        (SinkFormat::Parquet, _) => match sink.keep {
            Some(keep) => format!("a new folder; of the existing runs, all but the newest {} are removed", keep - 1),
            None => "a new folder".into(),
        },
    }
}

/// Returns the SQL of the planned stages, without files that cannot be read.
fn queries(pipeline: &Pipeline, variables: &BTreeMap<String, String>, runs: impl Fn(Stage) -> bool) -> Vec<String> {
    let stage_of = |key: &str| match key {
        "pretrain.file" => Stage::Pretrain,
        "finetune.file" => Stage::Finetune,
        "evaluate.file" => Stage::Evaluate,
        _ => Stage::Score,
    };
    let planned = pipeline.queries().filter(|(key, _)| runs(stage_of(key)));
    let mut queries: Vec<String> =
        planned.filter_map(|(key, query)| query_text(pipeline, query, key, variables).ok()).collect();
    if let Some(Validation::Sql(sql)) =
        pipeline.finetune.as_ref().filter(|_| runs(Stage::Finetune)).map(|s| &s.validation)
    {
        queries.push(sql.text.clone());
    }
    queries
}

fn shown(path: &Path) -> String {
    readable(path).display().to_string()
}

async fn exists(place: &Place) -> bool {
    match Objects::open(place) {
        Ok(objects) => objects.exists().await.unwrap_or(false),
        Err(_) => false,
    }
}

#[cfg(unix)]
fn free_bytes(path: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(path.ancestors().find(|path| path.exists())?).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}
