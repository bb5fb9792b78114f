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

/// Writes the files of a tokenizer, whose settings then name its class wherever it stood. That of a DistilBERT gives no
/// token types in `transformers`, whose DistilBERT does not take them.
pub(crate) fn copy_tokenizer(from: &ModelFiles, to: &Path, is_distilbert: bool) -> io::Result<()> {
    for (name, bytes) in TOKENIZER.into_iter().filter_map(|name| Some((name, from.get(name)?))) {
        files::write(&to.join(name), bytes)?;
    }
    let object = |name: &str| -> io::Result<Map<String, Value>> {
        let value = from.get(name).map(|bytes| serde_json::from_slice(bytes)).transpose()?;
        Ok(match value {
            Some(Value::Object(object)) => object,
            _ => Map::new(),
        })
    };
    let there = object(TOKENIZER_CONFIG)?;
    let mut settings = there.clone();
    // The `config.json` of the model that is written need not have it.
    if settings.get("tokenizer_class").is_none_or(Value::is_null)
        && let Some(class) = object(from.config())?.remove("tokenizer_class").filter(Value::is_string)
    {
        settings.insert("tokenizer_class".into(), class);
    }
    if is_distilbert {
        leave_out_token_types(&mut settings);
    }
    if settings == there { Ok(()) } else { write_json(&to.join(TOKENIZER_CONFIG), &Value::Object(settings)) }
}

/// Makes sure that the settings of a tokenizer ask for no token types.
fn leave_out_token_types(settings: &mut Map<String, Value>) {
    let class = settings.get("tokenizer_class").and_then(Value::as_str).unwrap_or("BertTokenizer");
    let is_berts = class.starts_with("BertTokenizer");
    let gives_them = match settings.get("model_input_names").and_then(Value::as_array) {
        Some(names) => names.iter().any(|name| name == "token_type_ids"),
        None => is_berts,
    };
    if !gives_them {
        return;
    }
    settings.insert("model_input_names".into(), json!(["input_ids", "attention_mask"]));
    if is_berts {
        settings.insert("tokenizer_class".into(), "DistilBertTokenizer".into());
    }
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
