//! What a checkpoint's folder holds besides the weights, when it is written.

use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::files::ModelFiles;
use crate::files;

/// What a tokenizer may consist of.
pub(crate) const TOKENIZER: [&str; 5] =
    ["tokenizer.json", TOKENIZER_CONFIG, "vocab.txt", "special_tokens_map.json", "added_tokens.json"];

/// The tokenizer's settings.
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// What `config.json` says of a head, of the type of numbers, and of where a checkpoint came from.
const OF_ANOTHER_HEAD: [&str; 9] = [
    "_name_or_path",
    "torch_dtype",
    "id2label",
    "label2id",
    "problem_type",
    "finetuning_task",
    "num_labels",
    "sentence_transformers",
    "sbert_ce_default_activation_function",
];

/// Writes the files of a tokenizer. That of a DistilBERT gives no token types in `transformers`, whose DistilBERT does not
/// take them.
pub(crate) fn copy_tokenizer(from: &ModelFiles, to: &Path, is_distilbert: bool) -> io::Result<()> {
    for (name, bytes) in TOKENIZER.into_iter().filter_map(|name| Some((name, from.get(name)?))) {
        files::write(&to.join(name), bytes)?;
    }
    if is_distilbert { leave_out_token_types(from, &to.join(TOKENIZER_CONFIG)) } else { Ok(()) }
}

/// Makes sure that the settings of a tokenizer, which may be missing, ask for no token types.
fn leave_out_token_types(from: &ModelFiles, path: &Path) -> io::Result<()> {
    let mut settings: Value = match from.get(TOKENIZER_CONFIG) {
        Some(bytes) => serde_json::from_slice(bytes)?,
        None => Value::Object(Map::new()),
    };
    let class = settings["tokenizer_class"].as_str().unwrap_or("BertTokenizer");
    let is_berts = class.starts_with("BertTokenizer");
    let gives_them = match settings["model_input_names"].as_array() {
        Some(names) => names.iter().any(|name| name == "token_type_ids"),
        None => is_berts,
    };
    if !gives_them {
        return Ok(());
    }
    settings["model_input_names"] = json!(["input_ids", "attention_mask"]);
    if is_berts {
        settings["tokenizer_class"] = "DistilBertTokenizer".into();
    }
    write_json(path, &settings)
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
