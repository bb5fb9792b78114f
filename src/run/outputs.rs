//! Output places of a run, and checks that they are usable.
//!
//! They are checked before the first stage, and by a plan, so that a bad sink is reported before hours of training.
//! Write access to a bucket is tested only by the run, as a server reports it only on a write.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use couplet_encoder::model::MODEL_FOLDER;
use couplet_storage::files::{follow_links, irreplaceable};
use couplet_storage::objects::Objects;
use couplet_storage::place::Place;
use couplet_storage::trouble::Explained;
use couplet_train::{foreign_state, with_suffix};

use super::sinks::rejected_place;
use super::{Stage, evaluate, readable, readable_place};
use crate::config::{Errors, Pipeline, RunSettings};
use crate::error::Error;

/// The kind of output at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// A file, which replaces an existing one.
    File,
    /// A folder to which files are added.
    Folder,
    /// A model folder, which replaces an existing one.
    Model,
    /// An evaluation folder, which replaces an existing one.
    Evaluation,
    /// The state folder of a training in progress.
    Training,
}

/// A place that a run writes to.
pub(super) struct Target {
    /// The name of the output in messages.
    pub(super) what: &'static str,
    /// The pipeline key that sets the place.
    pub(super) key: &'static str,
    pub(super) place: Place,
    pub(super) shape: Shape,
    /// True if it is removed when the run ends.
    pub(super) temporary: bool,
}

pub(super) const SINK: &str = "sink";
pub(super) const REJECTED: &str = "rejected rows";
pub(super) const STORE: &str = "store";
pub(super) const STATE: &str = "training state";
pub(super) const SIBLING_MODEL: &str = "model beside it";
pub(super) const TEMPORARY: &str = "temporary";

/// Returns all places that stages of a pipeline write to. `runs` selects the stages.
///
/// An untrusted pipeline file can name any place. Everything that a run of it would create, replace or remove is in
/// this list, except for model copies in caches. A new kind of output must be added here before it is written.
pub(super) fn targets(pipeline: &Pipeline, runs: impl Fn(Stage) -> bool) -> Vec<Target> {
    let mut targets = Vec::new();
    let mut add = |what, key, place, shape, temporary| targets.push(Target { what, key, place, shape, temporary });
    if let Some(scoring) = pipeline.scoring.as_ref().filter(|_| runs(Stage::Score)) {
        let sink = &scoring.sink;
        let shape = if sink.is_one_file() { Shape::File } else { Shape::Folder };
        add(SINK, "sink.uri", sink.location.place.clone(), shape, false);
        if scoring.score.errors == Errors::Quarantine {
            add(REJECTED, "sink.uri", rejected_place(&sink.location.place), shape, false);
        }
        add(STORE, "score.store", scoring.score.store.place.clone(), Shape::Folder, false);
    }
    let mut train = |what, key, output: &Path, others: &[&str]| {
        add(what, key, Place::Local(output.to_owned()), Shape::Model, false);
        add(STATE, key, Place::Local(with_suffix(output, ".training")), Shape::Training, true);
        for suffix in others {
            add(SIBLING_MODEL, key, Place::Local(with_suffix(output, suffix)), Shape::Model, false);
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

/// Returns the permanent outputs of scoring.
///
/// # Errors
/// Environment settings that are not valid for a service.
pub(super) fn of_scoring(pipeline: &Pipeline) -> Result<Vec<Objects>, Error> {
    let targets = targets(pipeline, |stage| stage == Stage::Score).into_iter().filter(|target| !target.temporary);
    targets.map(|target| Ok(Objects::open(&target.place)?)).collect()
}

/// The setting of the spill folder, for messages.
fn spill_key(run: &RunSettings) -> &'static str {
    if run.spill == std::env::temp_dir() { "run.spill (the system's TMPDIR, unless it is given)" } else { "run.spill" }
}

/// Rejects unusable output places of the selected stages. `scoring` includes those of the scoring stage's sinks.
///
/// # Errors
/// All problems.
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

/// Rejects tables and rejected rows inside the store; other places are checked when the pipeline file is read.
fn in_store(pipeline: &Pipeline) -> Vec<Error> {
    let Some(scoring) = &pipeline.scoring else { return Vec::new() };
    let store = &scoring.score.store;
    let tables = pipeline.tables.iter().map(|table| (format!("tables.{}", table.name), table.location.place.clone()));
    let rejected = (scoring.score.errors == Errors::Quarantine)
        .then(|| ("sink.uri: the place of rejected rows".to_owned(), rejected_place(&scoring.sink.location.place)));
    let inside = tables.chain(rejected).filter(|(_, place)| place.is_in(&store.place));
    let refused = inside.map(|(key, place)| {
        Error::Usage(format!(
            "{}: {key}: {} is inside the store {}, which may contain only couplet's own files; use another location \
             for one of them",
            pipeline.path.display(),
            readable_place(&place),
            readable_place(&store.place)
        ))
    });
    refused.collect()
}

/// Rejects an unusable sink.
///
/// # Errors
/// A problem with the sink, or with the place of rejected rows next to it.
pub(super) fn check_sinks(pipeline: &Pipeline) -> Result<(), Error> {
    let targets = targets(pipeline, |stage| stage == Stage::Score);
    let mut sinks = targets.iter().filter(|target| [SINK, REJECTED].contains(&target.what));
    sinks.find_map(|target| target.refused(pipeline)).map_or(Ok(()), Err)
}

/// Explains why the spill folder cannot be used; `otherwise` is the message if the cause is not found.
pub(super) fn unspillable(run: &RunSettings, otherwise: &(dyn std::error::Error + 'static)) -> Error {
    let problem = problem(&run.spill, Shape::Folder)
        .unwrap_or_else(|| Explained::of(otherwise).in_words(|otherwise| format!("cannot be used: {otherwise}")));
    Error::Unusable(problem.in_words(|problem| format!("{}: {} {problem}", spill_key(run), run.spill.display())))
}

impl Target {
    fn refused(&self, pipeline: &Pipeline) -> Option<Error> {
        let path = self.place.local()?;
        let problem = match self.what {
            // Write access is checked at the model's place, in the same folder.
            STATE | SIBLING_MODEL => unsuited(path, self.shape).map(Explained::from),
            _ => problem(path, self.shape),
        }?;
        let place = readable_place(&self.place);
        let named = |problem: &str| format!("{}: {}: {place} {problem}", pipeline.path.display(), self.key);
        Some(Error::Unusable(problem.in_words(named)))
    }
}

/// Returns the problem with a local place, if any. Leaves nothing there.
fn problem(path: &Path, shape: Shape) -> Option<Explained> {
    // Symbolic links are followed: their target is written, not the link.
    let target = match follow_links(path) {
        Ok(target) => target,
        Err(e) => return Some(Explained::of(&e).in_words(|problem| format!("cannot be written: {problem}"))),
    };
    if target != path && !target.exists() && shape != Shape::File {
        return Some("is a link to a folder that does not exist; create that folder, or remove the link".into());
    }
    let path = target.canonicalize().or_else(|_| std::path::absolute(&target)).unwrap_or(target);
    // If the existing model is up to date, nothing is written.
    let stays = shape == Shape::Model && path.exists();
    unsuited(&path, shape).map(Explained::from).or_else(|| if stays { None } else { unwritable(&path, shape) })
}

/// Checks that an existing file or folder has the right kind.
fn unsuited(path: &Path, shape: Shape) -> Option<String> {
    let there = path.metadata().ok()?;
    match shape {
        Shape::File if there.is_dir() => {
            Some("is a folder, but a file is needed there; name another place, or remove the folder".into())
        }
        Shape::File if !there.is_file() => {
            Some("is a device or a pipe, and only a file can be replaced; name another place".into())
        }
        Shape::Folder | Shape::Training if !there.is_dir() => {
            Some("is a file, but a folder is needed there; name another place, or remove the file".into())
        }
        Shape::Model => irreplaceable(path, &MODEL_FOLDER),
        Shape::Evaluation => irreplaceable(path, &evaluate::EVALUATION_FOLDER),
        Shape::Training => foreign_state(path),
        Shape::File | Shape::Folder => None,
    }
}

/// Checks that a file can be created at the place, or in its nearest existing parent folder.
fn unwritable(path: &Path, shape: Shape) -> Option<Explained> {
    // Files, and folders that are replaced as a whole, are written next to their target.
    let around = if shape == Shape::Folder { Some(path) } else { path.parent() };
    let folder: PathBuf = around?.ancestors().find(|folder| folder.exists())?.to_owned();
    if !folder.is_dir() {
        let folder = readable(&folder);
        let problem = format!("cannot be created: {} is a file, not a folder; name another place", folder.display());
        return Some(problem.into());
    }
    let error = tempfile::tempfile_in(&folder).err()?;
    // Other errors, such as a full disk, may be fixed before the run writes.
    let lasts = [
        ErrorKind::PermissionDenied,
        ErrorKind::ReadOnlyFilesystem,
        ErrorKind::NotFound,
        ErrorKind::NotADirectory,
        ErrorKind::Unsupported,
    ];
    lasts.contains(&error.kind()).then(|| {
        let folder = readable(&folder);
        Explained::of(&error).in_words(|error| {
            format!("cannot be written: no file can be created in {} ({error}); name another place", folder.display())
        })
    })
}
