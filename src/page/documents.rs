//! The JSON documents in the folders of training and evaluation, in their current state.

use std::path::Path;

use couplet_storage::files::{self, MAX_JSON, readable};
use couplet_train::finetune;
use serde::Serialize;
use serde_json::Value;

/// A JSON document in a folder.
#[derive(Debug, Serialize)]
pub struct Document {
    /// The path of the document, in readable form.
    pub path: String,
    /// The contents.
    pub document: Value,
}

impl Document {
    /// Reads the training document of a model folder, if couplet trained the model.
    pub(super) fn training(folder: &Path) -> Option<Self> {
        Self::read(&folder.join("training.json"))
    }

    /// Reads the evaluation document of a folder, if there is one.
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

/// A model that failed `promote_if`.
#[derive(Debug, Serialize)]
pub struct Refused {
    /// The condition, with the measured values.
    pub verdict: String,
    /// The training document of the model.
    pub training: Document,
}

impl Refused {
    /// Returns the rejected candidate for the model in `folder`, if there is one.
    pub(super) fn beside(folder: &Path) -> Option<Self> {
        let (candidate, verdict) = finetune::rejected_candidate(folder)?;
        Some(Self { verdict, training: Document::training(&candidate)? })
    }
}
