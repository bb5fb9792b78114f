//! Checks that the locations of a pipeline do not overlap. A location that one stage writes must not be inside, or
//! contain, a location that another stage reads or writes: one would overwrite, or be read as, a part of the other.

use couplet_storage::place::{Overlap, Place, Problem};
use couplet_tables::tables::Location;

use super::item::Item;
use super::pipeline::{LocalPath, Pipeline};
use super::reader::{Keys, Read};
use super::stages::Start;

/// The use of a location.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// A table, or the store: files are added over its lifetime.
    Kept,
    /// A folder that each run replaces as a whole.
    Replaced,
    /// A model folder that training replaces as a whole.
    Trained,
    /// A model that is read.
    Read,
}

/// A location in a pipeline.
struct Part {
    what: &'static str,
    section: &'static str,
    key: &'static str,
    written: String,
    place: Place,
    used: Use,
}

impl Part {
    fn new(what: &'static str, key: &'static str, location: Location, used: Use) -> Self {
        let (section, key) = key.split_once('.').unwrap_or(("", key));
        Self { what, section, key, written: location.written, place: location.place, used }
    }

    /// Returns the value in the file; `None` if the location is a default.
    fn item<'r>(&self, keys: &Keys<'r>) -> Option<Item<'r>> {
        let entries = keys.item(self.section)?.entries().ok()?;
        entries.into_iter().find(|entry| *entry.key.get_ref() == self.key)
    }

    /// Returns the overlap of two locations, if it is harmful.
    fn harmful_overlap(&self, other: &Self) -> Option<Overlap> {
        let overlap = self.place.overlap(&other.place)?;
        let harmless = match (self.used, other.used) {
            (Use::Read, _) => true,
            // A trained model is used by later stages, and a model is read by file name, so other files in its folder
            // do not matter.
            (Use::Trained, Use::Read) => overlap != Overlap::Contains,
            (Use::Replaced, Use::Read) => overlap == Overlap::Inside,
            _ => false,
        };
        (!harmless).then_some(overlap)
    }
}

/// Returns the locations of a pipeline. If two overlap, the error is about the first.
fn parts(pipeline: &Pipeline) -> Vec<Part> {
    let (pretrain, finetune) = (pipeline.pretrain.as_ref(), pipeline.finetune.as_ref());
    let (evaluate, scoring) = (pipeline.evaluate.as_ref(), pipeline.scoring.as_ref());
    let local = |path: &LocalPath| Location::from(path.clone());
    let base = pretrain.and_then(|stage| match &stage.start {
        Start::Model(base) => Some(base.clone()),
        Start::Random { .. } => None,
    });
    let parts = [
        ("the sink", "sink.uri", scoring.map(|stage| stage.sink.location.clone()), Use::Kept),
        ("the store", "score.store", scoring.map(|stage| stage.score.store.clone()), Use::Kept),
        ("the report of [evaluate]", "evaluate.output", evaluate.map(|stage| local(&stage.output)), Use::Replaced),
        ("the model of [finetune]", "finetune.output", finetune.map(|s| local(&s.learning.output)), Use::Trained),
        ("the model of [pretrain]", "pretrain.output", pretrain.map(|s| local(&s.learning.output)), Use::Trained),
        ("the model", "model.uri", scoring.map(|stage| stage.model.location.clone()), Use::Read),
        ("the model of [evaluate]", "evaluate.model", evaluate.map(|s| s.model.location.clone()), Use::Read),
        ("the base of [finetune]", "finetune.model", finetune.map(|stage| stage.base.clone()), Use::Read),
        ("the base of [pretrain]", "pretrain.model", base, Use::Read),
    ];
    parts.into_iter().filter_map(|(what, key, location, used)| Some(Part::new(what, key, location?, used))).collect()
}

/// Rejects locations that overlap; links and different spellings are resolved.
pub(super) fn check(keys: &Keys<'_>, pipeline: &Pipeline) -> Read<()> {
    let parts = parts(pipeline);
    let mut checked = Ok(());
    for (i, part) in parts.iter().enumerate() {
        let harm = parts[i + 1..].iter().find_map(|other| Some((other, part.harmful_overlap(other)?)));
        let Some((other, overlap)) = harm else { continue };
        let (verb, label) = match overlap {
            Overlap::Same => ("is", "the same place"),
            Overlap::Inside => ("is inside", "inside it"),
            Overlap::Contains => ("contains", "contains it"),
        };
        let message = format!("{} `{}` {verb} {} `{}`", part.what, part.written, other.what, other.written);
        let problem = Problem::new(message, label);
        let problem = problem.help("use separate locations, neither of them inside the other");
        checked = Err(match (part.item(keys), other.item(keys)) {
            (Some(own), Some(other)) => own.refuse(problem.related(other.value.span(), "this place")),
            (Some(item), None) | (None, Some(item)) => item.refuse(problem),
            (None, None) => keys.reader.report(problem),
        });
    }
    checked
}
