//! Checks that the locations of a pipeline do not overlap. A location that one stage writes must not be inside, or
//! contain, a location that another stage reads or writes: one would overwrite, or be read as, a part of the other.

use couplet_storage::place::{Lies, Place, Problem};
use couplet_tables::tables::Location;

use super::item::Item;
use super::pipeline::Pipeline;
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
    fn new(what: &'static str, key: &'static str, location: &Location, used: Use) -> Self {
        let (section, key) = key.split_once('.').unwrap_or(("", key));
        Self { what, section, key, written: location.written.clone(), place: location.place.clone(), used }
    }

    /// Returns the value in the file; `None` if the location is a default.
    fn item<'r>(&self, keys: &Keys<'r>) -> Option<Item<'r>> {
        let entries = keys.item(self.section)?.entries().ok()?;
        entries.into_iter().find(|entry| *entry.key.get_ref() == self.key)
    }

    /// Returns the overlap of two locations, if it is harmful.
    fn harms(&self, other: &Self) -> Option<Lies> {
        let lies = self.place.lies(&other.place)?;
        let harmless = match (self.used, other.used) {
            (Use::Read, _) => true,
            // A trained model is used by later stages, and a model is read by file name, so other files in its folder
            // do not matter.
            (Use::Trained, Use::Read) => lies != Lies::Around,
            (Use::Replaced, Use::Read) => lies == Lies::Inside,
            _ => false,
        };
        (!harmless).then_some(lies)
    }
}

/// Returns the locations of a pipeline. If two overlap, the error is about the first.
fn parts(pipeline: &Pipeline) -> Vec<Part> {
    let mut parts = Vec::new();
    if let Some(scoring) = &pipeline.scoring {
        parts.push(Part::new("the sink", "sink.uri", &scoring.sink.location, Use::Kept));
        parts.push(Part::new("the store", "score.store", &scoring.score.store, Use::Kept));
    }
    if let Some(stage) = &pipeline.evaluate {
        parts.push(Part::new(
            "the report of [evaluate]",
            "evaluate.output",
            &stage.output.clone().into(),
            Use::Replaced,
        ));
    }
    if let Some(stage) = &pipeline.finetune {
        let output = stage.learning.output.clone().into();
        parts.push(Part::new("the model of [finetune]", "finetune.output", &output, Use::Trained));
    }
    if let Some(stage) = &pipeline.pretrain {
        let output = stage.learning.output.clone().into();
        parts.push(Part::new("the model of [pretrain]", "pretrain.output", &output, Use::Trained));
    }
    if let Some(scoring) = &pipeline.scoring {
        parts.push(Part::new("the model", "model.uri", &scoring.model.location, Use::Read));
    }
    if let Some(stage) = &pipeline.evaluate {
        parts.push(Part::new("the model of [evaluate]", "evaluate.model", &stage.model.location, Use::Read));
    }
    if let Some(stage) = &pipeline.finetune {
        parts.push(Part::new("the base of [finetune]", "finetune.model", &stage.base, Use::Read));
    }
    if let Some(Start::Model(base)) = pipeline.pretrain.as_ref().map(|stage| &stage.start) {
        parts.push(Part::new("the base of [pretrain]", "pretrain.model", base, Use::Read));
    }
    parts
}

/// Rejects locations that overlap; links and different spellings are resolved.
pub(super) fn check(keys: &Keys<'_>, pipeline: &Pipeline) -> Read<()> {
    let parts = parts(pipeline);
    let mut checked = Ok(());
    for (i, part) in parts.iter().enumerate() {
        let harm = parts[i + 1..].iter().find_map(|other| Some((other, part.harms(other)?)));
        let Some((other, lies)) = harm else { continue };
        let (verb, label) = match lies {
            Lies::There => ("is", "the same place"),
            Lies::Inside => ("is inside", "inside it"),
            Lies::Around => ("contains", "contains it"),
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
