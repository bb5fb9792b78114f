//! What trainings and evaluations left in their folders, as it is now.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::files::{self, MAX_JSON, readable};
use crate::train::finetune;

/// A JSON document in a folder.
#[derive(Debug, Serialize)]
pub struct Document {
    /// Where it is, as a person at this folder would write it.
    pub path: String,
    /// What it says.
    pub document: Value,
}

impl Document {
    /// How the model in a folder was trained, if couplet trained it.
    pub(super) fn training(folder: &Path) -> Option<Self> {
        Self::read(&folder.join("training.json"))
    }

    /// What an evaluation left in a folder, if there has been one.
    pub(super) fn evaluation(folder: &Path) -> Option<Self> {
        Self::read(&folder.join("evaluation.json"))
    }

    fn read(path: &Path) -> Option<Self> {
        let text = files::read_string(path, MAX_JSON).ok()?;
        let path = readable(path).display().to_string();
        let document = serde_json::from_str(&text);
        let document = document.inspect_err(|e| tracing::warn!("{path} is left out: {e}")).ok()?;
        Some(Self { path, document })
    }
}

/// A model that `promote_if` refused its place.
#[derive(Debug, Serialize)]
pub struct Refused {
    /// The condition, with what was measured.
    pub verdict: String,
    /// How it was trained.
    pub training: Document,
}

impl Refused {
    /// The model that was refused the place of the one in `folder`, if there is one.
    pub(super) fn beside(folder: &Path) -> Option<Self> {
        let (candidate, verdict) = finetune::refusal(folder)?;
        Some(Self { verdict, training: Document::training(&candidate)? })
    }
}
