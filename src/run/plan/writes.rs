//! Where a run writes: every place, what becomes of what is there, and whether it is outside the pipeline's folder.
//!
//! A pipeline file from someone else can name any place. Whatever a run of it would make, replace or remove stands in
//! this list; a new kind of output belongs here before it is written for the first time.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};

use super::super::sinks::rejected_beside;
use super::super::{Stage, query_text, readable};
use crate::config::{Errors, Pipeline, Place, Scoring, SinkFormat, SinkMode, Start, Validation, model_place};
use crate::objects::{Objects, model_cache};
use crate::predict::named_models;
use crate::train::beside;

/// A place that a run writes to.
#[derive(Debug, Clone)]
pub struct Write {
    /// What it is: `sink`, `store`, `temporary files`, …
    pub what: &'static str,
    /// Where it is, as a person at this folder would write it.
    pub place: String,
    /// What becomes of what is there.
    pub change: String,
    /// Whether it is neither in the folder of the pipeline file nor below it, links followed.
    pub outside: bool,
    /// Whether it goes when the run ends.
    pub temporary: bool,
    /// Why it cannot be written, as far as that can be told without trying.
    pub problem: Option<String>,
    /// What is free on its disk, in bytes.
    pub free: Option<u64>,
}

impl Write {
    /// The place as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "what": self.what,
            "place": self.place,
            "change": self.change,
            "outside_pipeline_folder": self.outside,
            "temporary": self.temporary,
            "problem": self.problem,
            "free_bytes": self.free,
        })
    }
}

/// Where copies of models lie.
const CACHE: &str = "model cache";

/// All places that the planned stages of a pipeline write to.
pub(super) struct Writes {
    folder: PathBuf,
    /// The models whose caches are among them.
    cached: Vec<Place>,
    all: Vec<Write>,
}

impl Writes {
    /// Collects them; `runs` tells which stages run.
    pub(super) async fn of(
        pipeline: &Pipeline,
        variables: &BTreeMap<String, String>,
        runs: impl Fn(Stage) -> bool,
    ) -> Vec<Write> {
        let folder = pipeline.path.parent().unwrap_or(Path::new(""));
        let mut writes = Self { folder: real(folder), cached: Vec::new(), all: Vec::new() };
        let spills = pipeline.scoring.is_some() && runs(Stage::Score);
        if let Some(scoring) = pipeline.scoring.as_ref().filter(|_| runs(Stage::Score)) {
            writes.scoring(scoring).await;
            writes.cache(&scoring.model.location.place);
        }
        if let Some(stage) = pipeline.pretrain.as_ref().filter(|_| runs(Stage::Pretrain)) {
            writes.training("model of [pretrain]", &stage.learning.output.path, &[]);
            if let Start::Model(base) = &stage.start {
                writes.cache(&base.place);
            }
        }
        if let Some(stage) = pipeline.finetune.as_ref().filter(|_| runs(Stage::Finetune)) {
            let beside: &[_] = if stage.promote_if.is_some() { &[".candidate", ".last"] } else { &[".last"] };
            writes.training("model of [finetune]", &stage.learning.output.path, beside);
            writes.cache(&stage.base.place);
        }
        if let Some(stage) = pipeline.evaluate.as_ref().filter(|_| runs(Stage::Evaluate)) {
            let path = &stage.output.path;
            writes.add("evaluation", &Place::Local(path.clone()), made_or_replaced(path), false);
            writes.cache(&stage.model.location.place);
        }
        for sql in queries(pipeline, variables, runs) {
            for place in named_models(&sql).iter().filter_map(|model| model_place(model).ok()) {
                writes.cache(&place);
            }
        }
        let change = if spills {
            "the rows of the run while it lasts, and what does not fit into memory"
        } else {
            "what does not fit into memory, while the run lasts"
        };
        writes.add("temporary", &Place::Local(pipeline.run.spill.join("couplet-*")), change.into(), true);
        writes.all
    }

    async fn scoring(&mut self, scoring: &Scoring) {
        let sink = &scoring.sink;
        let place = &sink.location.place;
        let there = is_there(place).await;
        let change = match (there, sink.format, sink.mode) {
            (false, _, _) => "will be created".to_owned(),
            (true, SinkFormat::Delta, SinkMode::Overwrite) => "a new version replaces its rows".into(),
            (true, SinkFormat::Delta, SinkMode::Append) => "a new version with more rows".into(),
            (true, SinkFormat::Delta, SinkMode::Merge) => "a new version, rows merged by their id".into(),
            (true, SinkFormat::Parquet, _) if sink.is_one_file() => "replaced".into(),
            (true, SinkFormat::Parquet, _) => match sink.keep {
                Some(keep) => format!("one more folder; of the runs before, all but the newest {} go", keep - 1),
                None => "one more folder".into(),
            },
        };
        self.add("sink", place, change, false);
        if scoring.score.errors == Errors::Quarantine {
            let rejected = rejected_beside(place);
            let change = if is_there(&rejected).await { "changed like the sink" } else { "will be created" };
            self.add("rejected rows", &rejected, change.into(), false);
        }
        let store = &scoring.score.store.place;
        let change =
            if is_there(store).await { "scores and the record of the run are added" } else { "will be created" };
        self.add("store", store, change.into(), false);
    }

    fn training(&mut self, what: &'static str, output: &Path, others: &[&str]) {
        self.add(what, &Place::Local(output.to_owned()), made_or_replaced(output), false);
        self.add("training state", &Place::Local(beside(output, ".training")), "until the model is there".into(), true);
        for suffix in others {
            let change = match *suffix {
                ".candidate" => "the model, where promote_if refuses it",
                _ => "the last epoch's model, where another epoch's is better",
            };
            self.add("model beside it", &Place::Local(beside(output, suffix)), change.into(), false);
        }
    }

    /// A model in a bucket or a hub is fetched into the user's cache.
    fn cache(&mut self, model: &Place) {
        if self.cached.contains(model) {
            return;
        }
        self.cached.push(model.clone());
        // Where no folder can be told, fetching the model fails and says so.
        if let Ok(Some(folder)) = model_cache(model) {
            let place = shown(&real(&folder));
            match self.all.iter_mut().find(|write| write.what == CACHE && write.place == place) {
                Some(write) => write.change = format!("{}, a copy of {model}, once", write.change),
                None => self.add(CACHE, &Place::Local(folder), format!("a copy of {model}, once"), false),
            }
        }
    }

    fn add(&mut self, what: &'static str, place: &Place, change: String, temporary: bool) {
        let local = place.local().map(real);
        let write = Write {
            what,
            place: local.as_ref().map_or_else(|| place.to_string(), |path| shown(path)),
            change,
            outside: local.as_ref().is_none_or(|path| !path.starts_with(&self.folder)),
            temporary,
            problem: local.as_deref().and_then(unwritable),
            free: local.as_deref().and_then(free_bytes),
        };
        if !self.all.iter().any(|other| other.what == write.what && other.place == write.place) {
            self.all.push(write);
        }
    }
}

/// The SQL of the planned stages, as far as it can be read.
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

fn made_or_replaced(path: &Path) -> String {
    if path.exists() { "replaced".into() } else { "will be created".into() }
}

async fn is_there(place: &Place) -> bool {
    match Objects::open(place) {
        Ok(objects) => objects.exists().await.unwrap_or(false),
        Err(_) => false,
    }
}

/// The path with its links followed, as far as it exists, and without `..`.
fn real(path: &Path) -> PathBuf {
    // The empty path, such as the folder of `pipeline.toml`, is the current folder.
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut found = PathBuf::new();
    for part in absolute.components() {
        match part {
            Component::ParentDir => {
                found.pop();
            }
            part => {
                found.push(part);
                found = found.canonicalize().unwrap_or(found);
            }
        }
    }
    found
}

/// The nearest folder above a path, or the path, that exists.
fn nearest(path: &Path) -> Option<&Path> {
    path.ancestors().find(|path| path.exists())
}

#[cfg(unix)]
fn unwritable(path: &Path) -> Option<String> {
    use rustix::fs::{Access, access};
    let there = nearest(path)?;
    if path.parent().is_some_and(Path::exists) || there.is_dir() {
        // A file is replaced by another of its name: that needs the folder.
        let folder = if there.is_dir() { there } else { there.parent()? };
        let refused = access(folder, Access::WRITE_OK | Access::EXEC_OK).err()?;
        return Some(format!("{} cannot be written to: {refused}", readable(folder).display()));
    }
    Some(format!("{} is a file, not a folder", readable(there).display()))
}

#[cfg(not(unix))]
fn unwritable(_: &Path) -> Option<String> {
    None
}

#[cfg(unix)]
fn free_bytes(path: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(nearest(path)?).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}
