//! What a checkpoint's folder holds besides the weights, when it is written.

use std::io;
use std::path::Path;

use serde_json::{Map, Value};

use super::files::ModelFiles;
use crate::files;

/// What a tokenizer may consist of.
const TOKENIZER: [&str; 3] = ["tokenizer.json", TOKENIZER_CONFIG, "vocab.txt"];

/// What other programs may read of it besides.
pub(crate) const COPIED: [&str; 2] = ["special_tokens_map.json", "added_tokens.json"];

/// The tokenizer's settings.
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// What `config.json` says of a head, of the type of numbers, and of where a checkpoint came from.
const OF_ANOTHER_HEAD: [&str; 7] =
    ["_name_or_path", "torch_dtype", "id2label", "label2id", "problem_type", "finetuning_task", "num_labels"];

/// Writes the files of a tokenizer.
pub(crate) fn copy_tokenizer(from: &ModelFiles, to: &Path) -> io::Result<()> {
    let files = TOKENIZER.into_iter().chain(COPIED).filter_map(|name| Some((name, from.get(name)?)));
    files.into_iter().try_for_each(|(name, bytes)| files::write(&to.join(name), bytes))
}

/// Makes a `config.json` that of another head's model, with weights in f32.
pub(crate) fn clear_head(config: &mut Map<String, Value>) {
    for key in OF_ANOTHER_HEAD {
        config.remove(key);
    }
    config.insert("dtype".into(), "float32".into());
}

/// Writes a JSON file for people to read too.
pub(crate) fn write_json(path: &Path, document: &Value) -> io::Result<()> {
    files::write(path, format!("{document:#}\n"))
}
