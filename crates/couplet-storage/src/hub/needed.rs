//! The files of a model folder that loading needs.

use std::collections::BTreeSet;

use serde_json::Value;

/// The file name of a calibrated model's temperature and thresholds.
pub const CALIBRATION_FILE: &str = "calibration.json";

/// The file name of sentence-transformers' settings.
pub const SENTENCE_TRANSFORMERS: &str = "config_sentence_transformers.json";

/// The file name of weights in one safetensors file.
pub const SAFETENSORS: &str = "model.safetensors";
/// The file name of weights in one PyTorch file.
pub const PICKLE: &str = "pytorch_model.bin";

/// The file names of configuration, tokenizer and calibration.
const SMALL: [&str; 8] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    SENTENCE_TRANSFORMERS,
    CALIBRATION_FILE,
];

/// The suffix of the file names of weight indexes.
const INDEX: &str = ".index.json";

/// The file names of weights, in order of preference.
const WEIGHTS: [&str; 4] = ["model.safetensors.index.json", SAFETENSORS, "pytorch_model.bin.index.json", PICKLE];

/// Returns true if a file holds weights, judging by its name.
#[must_use]
pub fn is_weights(name: &str) -> bool {
    !SMALL.contains(&name) && !name.ends_with(INDEX)
}

/// The files that loading reads, out of those that exist: configuration and tokenizer, and either the weights or the
/// index that lists the weight files.
pub struct Needed<'n> {
    /// The names of the files.
    pub files: Vec<&'n str>,
    /// The index of weights that are split into several files.
    pub index: Option<&'n str>,
}

impl<'n> Needed<'n> {
    /// Selects files with the same preferences as loading: safetensors before PyTorch, an index before a single file.
    #[must_use]
    pub fn among(names: &[&'n str]) -> Self {
        let find = |wanted: &str| names.iter().find(|name| **name == wanted).copied();
        let mut files: Vec<&str> = SMALL.iter().filter_map(|name| find(name)).collect();
        let weights = WEIGHTS.iter().find_map(|name| find(name));
        files.extend(weights);
        Self { files, index: weights.filter(|name| name.ends_with(INDEX)) }
    }

    /// Returns all file names that loading looks for.
    pub fn candidates() -> impl Iterator<Item = &'static str> {
        SMALL.into_iter().chain(WEIGHTS)
    }

    /// Returns the files that loading would read in addition to these, or instead of them, if they existed.
    pub(crate) fn alternatives(&self) -> impl Iterator<Item = &'static str> {
        let is_chosen = |name: &&str| self.files.contains(name);
        let before = WEIGHTS.iter().position(&is_chosen).unwrap_or(WEIGHTS.len());
        SMALL.into_iter().filter(move |name| !is_chosen(name)).chain(WEIGHTS.into_iter().take(before))
    }

    /// Adds the weight files that the index lists. Loading reports an invalid index.
    pub(crate) fn add_shards(&mut self, index: &[u8], names: &[&'n str]) {
        let shards = Self::shards(index);
        self.files.extend(names.iter().filter(|name| shards.contains(**name)));
    }

    /// Returns the weight files that an index lists.
    pub fn shards(index: &[u8]) -> BTreeSet<String> {
        let index: Value = serde_json::from_slice(index).unwrap_or_default();
        let map = index.get("weight_map").and_then(Value::as_object);
        map.into_iter().flatten().filter_map(|(_, file)| file.as_str().map(str::to_owned)).collect()
    }

    /// Returns the first required file that is missing. Weight files of an index are not checked.
    pub(crate) fn first_missing(&self) -> Option<&'static str> {
        let has = |name: &str| self.files.contains(&name);
        if !has("config.json") {
            Some("config.json")
        } else if !has("tokenizer.json") && !has("vocab.txt") {
            Some("tokenizer.json or vocab.txt")
        } else if self.index.is_none() && !has(SAFETENSORS) && !has(PICKLE) {
            Some("model.safetensors or pytorch_model.bin")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_needs_a_config_a_tokenizer_and_weights() {
        let names =
            ["README.md", "calibration.json", "config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt"];
        let needed = ["config.json", "vocab.txt", "calibration.json", "model.safetensors"];
        assert_eq!(Needed::among(&names).files, needed);
        let names = ["a.safetensors", "b.safetensors", "c.safetensors", "model.safetensors.index.json"];
        let mut needed = Needed::among(&names);
        assert_eq!(needed.index, Some("model.safetensors.index.json"));
        let index =
            br#"{"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "a.safetensors", "w": "../q"}}"#;
        needed.add_shards(index, &names);
        assert_eq!(needed.files, ["model.safetensors.index.json", "a.safetensors", "b.safetensors"]);
        needed.add_shards(b"not JSON", &names);
        assert_eq!(needed.files.len(), 3);
    }

    #[test]
    fn what_is_loaded_depends_on_what_is_not_there_too() {
        let alternatives = |names: &[&str]| Needed::among(names).alternatives().collect::<Vec<_>>();
        let small = SMALL;
        assert_eq!(alternatives(&[&small[..], &["model.safetensors.index.json"]].concat()), Vec::<&str>::new());
        assert_eq!(
            alternatives(&[&small[1..], &["pytorch_model.bin"]].concat()),
            ["config.json", "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json"]
        );
    }
}
