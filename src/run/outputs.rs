//! The places that a run writes to: which they are, and whether they can be what the run makes of them.
//!
//! Looked at before the first stage, and by a plan, so that nobody learns after hours of training that the predictions
//! have no place. What is in a bucket is tried by the run alone, as a server says so only when it is written to.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::sinks::rejected_beside;
use super::{Stage, evaluate, readable, readable_place};
use crate::config::{Errors, Pipeline, RunSettings};
use crate::error::Error;
use crate::files::{follow_links, irreplaceable};
use crate::model::MODEL_FOLDER;
use crate::objects::Objects;
use crate::place::Place;
use crate::train::{beside, foreign_state};

/// What is made at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// A file, instead of the one that is there.
    File,
    /// A folder to which files are added.
    Folder,
    /// A model's folder, instead of the one that is there.
    Model,
    /// An evaluation's folder, instead of the one that is there.
    Evaluation,
    /// The folder of a training that is under way.
    Training,
}

/// A place that a run writes to.
pub(super) struct Target {
    /// What it is, for people.
    pub(super) what: &'static str,
    /// The key of the pipeline file that says where it is.
    pub(super) key: &'static str,
    pub(super) place: Place,
    pub(super) shape: Shape,
    /// Whether it goes when the run ends.
    pub(super) temporary: bool,
}

pub(super) const SINK: &str = "sink";
pub(super) const REJECTED: &str = "rejected rows";
pub(super) const STORE: &str = "store";
pub(super) const STATE: &str = "training state";
pub(super) const BESIDE: &str = "model beside it";
pub(super) const TEMPORARY: &str = "temporary";

/// All places that stages of a pipeline write to; `runs` tells which stages run.
///
/// A pipeline file from someone else can name any place. Whatever a run of it would make, replace or remove stands in
/// this list, but for copies of models in the caches; a new kind of output belongs here before it is written for the
/// first time.
pub(super) fn targets(pipeline: &Pipeline, runs: impl Fn(Stage) -> bool) -> Vec<Target> {
    let mut targets = Vec::new();
    let mut add = |what, key, place, shape, temporary| targets.push(Target { what, key, place, shape, temporary });
    if let Some(scoring) = pipeline.scoring.as_ref().filter(|_| runs(Stage::Score)) {
        let sink = &scoring.sink;
        let shape = if sink.is_one_file() { Shape::File } else { Shape::Folder };
        add(SINK, "sink.uri", sink.location.place.clone(), shape, false);
        if scoring.score.errors == Errors::Quarantine {
            add(REJECTED, "sink.uri", rejected_beside(&sink.location.place), shape, false);
        }
        add(STORE, "score.store", scoring.score.store.place.clone(), Shape::Folder, false);
    }
    let mut train = |what, key, output: &Path, others: &[&str]| {
        add(what, key, Place::Local(output.to_owned()), Shape::Model, false);
        add(STATE, key, Place::Local(beside(output, ".training")), Shape::Training, true);
        for suffix in others {
            add(BESIDE, key, Place::Local(beside(output, suffix)), Shape::Model, false);
        }
    };
    if let Some(stage) = pipeline.pretrain.as_ref().filter(|_| runs(Stage::Pretrain)) {
        train("model of [pretrain]", "pretrain.output", &stage.learning.output.path, &[]);
    }
    if let Some(stage) = pipeline.finetune.as_ref().filter(|_| runs(Stage::Finetune)) {
        let others: &[_] = if stage.promote_if.is_some() { &[".candidate", ".last"] } else { &[".last"] };
        train("model of [finetune]", "finetune.output", &stage.learning.output.path, others);
    }
    if let Some(stage) = pipeline.evaluate.as_ref().filter(|_| runs(Stage::Evaluate)) {
        add("evaluation", "evaluate.output", Place::Local(stage.output.path.clone()), Shape::Evaluation, false);
    }
    let spill = Place::Local(pipeline.run.spill.clone());
    add(TEMPORARY, spill_key(&pipeline.run), spill, Shape::Folder, true);
    targets
}

/// The places that the scoring of a pipeline writes to for good.
///
/// # Errors
/// Settings in the environment that do not suit a service.
pub(super) fn of_scoring(pipeline: &Pipeline) -> Result<Vec<Objects>, Error> {
    let targets = targets(pipeline, |stage| stage == Stage::Score).into_iter().filter(|target| !target.temporary);
    targets.map(|target| Ok(Objects::open(&target.place)?)).collect()
}

/// Where the folder for temporary files is said to be.
fn spill_key(run: &RunSettings) -> &'static str {
    if run.spill == std::env::temp_dir() { "run.spill (the system's TMPDIR, unless it is given)" } else { "run.spill" }
}

/// Refuses places of these stages that cannot be what a run makes of them; `scoring`: those of the scoring's own too.
///
/// # Errors
/// All of them.
pub(super) fn check(pipeline: &Pipeline, runs: impl Fn(Stage) -> bool, scoring: bool) -> Result<(), Error> {
    let targets = targets(pipeline, runs);
    let targets = targets.iter().filter(|target| scoring || ![SINK, REJECTED].contains(&target.what));
    let mut problems: Vec<Error> = targets.filter_map(|target| target.refused(pipeline)).collect();
    problems.extend(in_store(pipeline));
    match problems.len() {
        0 => Ok(()),
        1 => Err(problems.remove(0)),
        _ => Err(Error::Foreseen(problems)),
    }
}

/// Refuses tables and rejected rows that lie in the store; the pipeline file is refused for its other places.
fn in_store(pipeline: &Pipeline) -> Vec<Error> {
    let Some(scoring) = &pipeline.scoring else { return Vec::new() };
    let store = &scoring.score.store;
    let tables = pipeline.tables.iter().map(|table| (format!("tables.{}", table.name), table.location.place.clone()));
    let rejected = (scoring.score.errors == Errors::Quarantine)
        .then(|| ("sink.uri: the place of rejected rows".to_owned(), rejected_beside(&scoring.sink.location.place)));
    let inside = tables.chain(rejected).filter(|(_, place)| place.is_in(&store.place));
    let refused = inside.map(|(key, place)| {
        Error::Usage(format!(
            "{}: {key}: {} lies in the store {}, in which only couplet's own files may be; name another place for one \
             of them",
            pipeline.path.display(),
            readable_place(&place),
            readable_place(&store.place)
        ))
    });
    refused.collect()
}

/// Refuses a sink that cannot be what is made of it.
///
/// # Errors
/// The sink, or the place of rejected rows beside it.
pub(super) fn check_sinks(pipeline: &Pipeline) -> Result<(), Error> {
    let targets = targets(pipeline, |stage| stage == Stage::Score);
    let mut sinks = targets.iter().filter(|target| [SINK, REJECTED].contains(&target.what));
    sinks.find_map(|target| target.refused(pipeline)).map_or(Ok(()), Err)
}

/// Says why there can be no temporary files where these settings want them; `otherwise` where nothing is to be seen.
pub(super) fn unspillable(run: &RunSettings, otherwise: &str) -> Error {
    let problem = problem(&run.spill, Shape::Folder).unwrap_or_else(|| format!("cannot be used: {otherwise}"));
    Error::Usage(format!("{}: {} {problem}", spill_key(run), run.spill.display()))
}

impl Target {
    fn refused(&self, pipeline: &Pipeline) -> Option<Error> {
        let path = self.place.local()?;
        let problem = match self.what {
            // It is written where the model is.
            STATE | BESIDE => unsuited(path, self.shape),
            _ => problem(path, self.shape),
        }?;
        let place = readable_place(&self.place);
        Some(Error::Usage(format!("{}: {}: {place} {problem}", pipeline.path.display(), self.key)))
    }
}

/// What keeps a place of this machine from becoming that, if anything does; leaves nothing there.
fn problem(path: &Path, shape: Shape) -> Option<String> {
    // What a link points to is written, not the link.
    let target = match follow_links(path) {
        Ok(target) => target,
        Err(problem) => return Some(format!("cannot be written: {problem}")),
    };
    if target != path && !target.exists() && shape != Shape::File {
        return Some("is a link to what is not there; make the folder that it points to, or remove the link".into());
    }
    let path = target.canonicalize().or_else(|_| std::path::absolute(&target)).unwrap_or(target);
    // A model that is there may be the one that the stage leaves, which then writes nothing.
    let stays = shape == Shape::Model && path.exists();
    unsuited(&path, shape).or_else(|| if stays { None } else { unwritable(&path, shape) })
}

/// What is there already and would have to be something else.
fn unsuited(path: &Path, shape: Shape) -> Option<String> {
    let there = path.metadata().ok()?;
    match shape {
        Shape::File if there.is_dir() => {
            Some("is a folder, and one file is to be written there; name another place, or remove the folder".into())
        }
        Shape::File if !there.is_file() => {
            Some("is a device or a pipe, and only a file can be replaced; name another place".into())
        }
        Shape::Folder | Shape::Training if !there.is_dir() => {
            Some("is a file, and a folder is to be there; name another place, or remove the file".into())
        }
        Shape::Model => irreplaceable(path, &MODEL_FOLDER),
        Shape::Evaluation => irreplaceable(path, &evaluate::EVALUATION_FOLDER),
        Shape::Training => foreign_state(path),
        Shape::File | Shape::Folder => None,
    }
}

/// Whether a file can be made where the place is or will be.
fn unwritable(path: &Path, shape: Shape) -> Option<String> {
    // A file, and a folder as a whole, are written beside what they replace.
    let around = if shape == Shape::Folder { Some(path) } else { path.parent() };
    let folder: PathBuf = around?.ancestors().find(|folder| folder.exists())?.to_owned();
    if !folder.is_dir() {
        return Some(format!(
            "cannot be made: {} is a file, not a folder; name another place",
            readable(&folder).display()
        ));
    }
    let error = tempfile::tempfile_in(&folder).err()?;
    // What else may be in the way, such as a full disk, may be gone until then.
    let lasts = [
        ErrorKind::PermissionDenied,
        ErrorKind::ReadOnlyFilesystem,
        ErrorKind::NotFound,
        ErrorKind::NotADirectory,
        ErrorKind::Unsupported,
    ];
    lasts.contains(&error.kind()).then(|| {
        let folder = readable(&folder);
        format!("cannot be written: no file can be made in {} ({error}); name another place", folder.display())
    })
}
