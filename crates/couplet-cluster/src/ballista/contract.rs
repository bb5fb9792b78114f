//! The contract in a plan: the model and settings with which any executor computes the same scores.

use std::fmt;

use couplet_encoder::scorer::{DeviceSetting, Precision, PrecisionSetting, Scorer, ScorerOptions};
use couplet_storage::place::{self, Place};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The model and settings that a client requires of an executor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contract {
    /// The client's version of couplet.
    couplet: String,
    /// The model's URI, with the commit if it comes from a hub.
    model: String,
    /// The required fingerprint of the model.
    fingerprint: String,
    /// The largest number of tokens per sequence.
    max_length: usize,
    /// The numeric precision of the encoder. The client resolves `auto`.
    precision: String,
    /// The number of tokens per packed batch, if configured.
    batch_tokens: Option<usize>,
    /// The names of the text columns, for errors.
    columns: Vec<String>,
}

impl Contract {
    /// Creates the contract with which other processes compute the same scores as `scorer` for texts of these columns.
    #[must_use]
    pub fn of(scorer: &Scorer, model: &Place, batch_tokens: Option<usize>, columns: &[String]) -> Self {
        let model = match (model, scorer.revision()) {
            (Place::Hub(model), Some(commit)) => model.with_revision(commit).to_string(),
            (Place::Local(path), _) => {
                std::path::absolute(path).unwrap_or_else(|_| path.clone()).to_string_lossy().into_owned()
            }
            (place, _) => place.to_string(),
        };
        Self {
            couplet: env!("CARGO_PKG_VERSION").to_owned(),
            model,
            fingerprint: scorer.model().fingerprint.as_str().to_owned(),
            max_length: scorer.max_length(),
            precision: scorer.precision().to_string(),
            batch_tokens,
            columns: columns.to_vec(),
        }
    }

    /// Serializes the contract as the text that a plan carries.
    ///
    /// # Panics
    /// Never: its fields all have a JSON form.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers are JSON")
    }

    /// Parses a contract and checks its version.
    ///
    /// # Errors
    /// A contract of another version, whose scores may differ, or one that cannot be parsed.
    pub(super) fn read(text: &str) -> Result<Self, Refusal> {
        let json: Value = serde_json::from_str(text).map_err(|e| Refusal(format!("the task has no contract: {e}")))?;
        let own = env!("CARGO_PKG_VERSION");
        match json["couplet"].as_str() {
            Some(version) if version == own => {}
            version => {
                return Err(Refusal(format!(
                    "it is couplet {own} and the client is couplet {}; a cluster and its clients must have the same version",
                    version.unwrap_or("of an unknown version")
                )));
            }
        }
        serde_json::from_value(json).map_err(|e| Refusal(format!("the task's contract cannot be read: {e}")))
    }

    pub(super) fn model(&self) -> &str {
        &self.model
    }

    pub(super) fn column(&self, index: usize) -> String {
        self.columns.get(index).cloned().unwrap_or_else(|| ["text", "text_pair"][index.min(1)].to_owned())
    }

    pub(super) fn place(&self) -> Result<Place, Refusal> {
        place::model_place(&self.model).map_err(|problem| Refusal(format!("model {}: {problem}", self.model)))
    }

    /// Returns the options with which this machine runs the model.
    pub(super) fn options(&self, device: DeviceSetting) -> Result<ScorerOptions, Refusal> {
        let precision = Precision::ALL.into_iter().find(|precision| precision.to_string() == self.precision);
        let precision = precision.ok_or_else(|| Refusal(format!("precision {} is unknown here", self.precision)))?;
        Ok(ScorerOptions {
            max_length: Some(self.max_length),
            batch_tokens: self.batch_tokens,
            precision: PrecisionSetting::Of(precision),
            device,
        })
    }

    /// Checks that the model's fingerprint is the client's.
    pub(super) fn check(&self, scorer: &Scorer) -> Result<(), Refusal> {
        let found = scorer.model().fingerprint.as_str();
        if found == self.fingerprint {
            return Ok(());
        }
        Err(Refusal(format!(
            "model {} is not the client's: its fingerprint is {found}, and the client's is {}. Give all machines the same files",
            self.model, self.fingerprint
        )))
    }
}

/// The reason why an executor refuses a task. A retry would fail as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    fn contract() -> Contract {
        Contract {
            couplet: env!("CARGO_PKG_VERSION").into(),
            model: "s3://models/mrpc".into(),
            fingerprint: "f00d".into(),
            max_length: 128,
            precision: "int16".into(),
            batch_tokens: None,
            columns: vec!["a".into(), "b".into()],
        }
    }

    #[test]
    fn a_contract_survives_its_way() {
        let contract = contract();
        assert_eq!(Contract::read(&contract.to_text()).as_ref(), Ok(&contract));
        let options = contract.options(DeviceSetting::Cpu).unwrap();
        assert_eq!((options.max_length, options.precision), (Some(128), PrecisionSetting::Of(Precision::Int16)));
    }

    #[test]
    fn another_version_is_refused_whatever_it_says() {
        let text =
            contract().to_text().replacen(env!("CARGO_PKG_VERSION"), "9.9.9", 1).replace("max_length", "longest");
        let refusal = Contract::read(&text).unwrap_err().to_string();
        assert!(refusal.contains("the client is couplet 9.9.9") && refusal.contains("the same version"), "{refusal}");
        assert!(Contract::read("{}").is_err() && Contract::read("no").is_err());
    }
}
