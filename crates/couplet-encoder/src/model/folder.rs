//! Writes the files of a checkpoint folder other than the weights.

use std::io;
use std::path::Path;

use couplet_storage::files::{self, FolderKind};
use serde_json::{Map, Value, json};

use super::calibration::CALIBRATION_FILE;
use super::card;
use super::family::Family;
use super::files::ModelFiles;
use super::outputs::SENTENCE_TRANSFORMERS;

/// The file name of the training chart.
pub const CHART: &str = "training.svg";

/// The possible files of a tokenizer.
pub(crate) const TOKENIZER: [&str; 5] =
    ["tokenizer.json", TOKENIZER_CONFIG, "vocab.txt", "special_tokens_map.json", "added_tokens.json"];

/// The file with the settings of a tokenizer.
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// A model folder written by couplet or transformers, or downloaded from a hub.
pub const MODEL_FOLDER: FolderKind = FolderKind { name: "a model", marker: "config.json", has: is_in_a_model };

/// Known files other than those of the tokenizer and the weights.
const OTHER_FILES: [&str; 12] = [
    "config.json",
    "generation_config.json",
    CALIBRATION_FILE,
    card::TRAINING,
    CHART,
    "training_args.bin",
    card::README,
    "LICENSE",
    ".gitattributes",
    "modules.json",
    "sentence_bert_config.json",
    SENTENCE_TRANSFORMERS,
];

/// Weight files of other frameworks.
const WEIGHTS: [&str; 4] = ["tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model.onnx"];

/// Returns true if a file with this name can belong to a model. Replacing a model deletes only such files.
fn is_in_a_model(name: &str) -> bool {
    let sharded = |stem: &str, extension: &str| {
        let Some(rest) = name.strip_prefix(stem) else { return false };
        rest == format!("{extension}.index.json") || rest.strip_suffix(extension).is_some_and(is_shard)
    };
    TOKENIZER.contains(&name)
        || OTHER_FILES.contains(&name)
        || WEIGHTS.contains(&name)
        || sharded("model", ".safetensors")
        || sharded("pytorch_model", ".bin")
}

/// Returns true if `text` is a shard suffix such as `-00001-of-00002`, or empty, as for a single file.
fn is_shard(text: &str) -> bool {
    let is_number = |digits: &str| digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = || text.strip_prefix('-')?.split_once("-of-");
    text.is_empty() || numbers().is_some_and(|(number, count)| is_number(number) && is_number(count))
}

/// The keys of `config.json` that describe the head, the data type and the origin of a checkpoint.
const HEAD_KEYS: [&str; 9] = [
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

/// Copies the files of a tokenizer to a folder.
///
/// The copied settings contain the tokenizer's class, also if only `config.json` had it. For a family without token
/// types, they disable the output of token types, because the DistilBERT of `transformers` does not accept them.
///
/// # Errors
/// Returns an error if a file is not valid JSON or cannot be written.
pub fn copy_tokenizer(from: &ModelFiles, to: &Path, family: &Family) -> io::Result<()> {
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
    let original = object(TOKENIZER_CONFIG)?;
    let mut settings = original.clone();
    // The new model's `config.json` may not contain the class.
    if settings.get("tokenizer_class").is_none_or(Value::is_null)
        && let Some(class) = object(from.config())?.remove("tokenizer_class").filter(Value::is_string)
    {
        settings.insert("tokenizer_class".into(), class);
    }
    if family.token_types.is_none() {
        disable_token_types(&mut settings, family);
    }
    if settings == original { Ok(()) } else { write_json(&to.join(TOKENIZER_CONFIG), &Value::Object(settings)) }
}

/// Changes the settings of a tokenizer so that it does not output token types.
fn disable_token_types(settings: &mut Map<String, Value>, family: &Family) {
    let class = settings.get("tokenizer_class").and_then(Value::as_str).unwrap_or("BertTokenizer");
    let is_bert = class.starts_with("BertTokenizer");
    let has_token_types = match settings.get("model_input_names").and_then(Value::as_array) {
        Some(names) => names.iter().any(|name| name == "token_type_ids"),
        None => is_bert,
    };
    if !has_token_types {
        return;
    }
    settings.insert("model_input_names".into(), json!(["input_ids", "attention_mask"]));
    if is_bert {
        settings.insert("tokenizer_class".into(), family.class("Tokenizer").into());
    }
}

/// Removes the keys of the head from a `config.json`, and sets the data type of the weights to f32.
pub fn clear_head(config: &mut Map<String, Value>) {
    for key in HEAD_KEYS {
        config.remove(key);
    }
    config.insert("dtype".into(), "float32".into());
}

/// Writes an indented JSON file.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn write_json(path: &Path, document: &Value) -> io::Result<()> {
    files::write(path, format!("{document:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognizes_the_file_names_of_models() {
        for name in [
            "config.json",
            "vocab.txt",
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "calibration.json",
            "training.svg",
        ] {
            assert!(is_in_a_model(name), "{name}");
        }
        for name in ["notes.txt", "model-old.safetensors", "data.bin", "my.safetensors", "model-1-of-2.safetensors"] {
            assert!(!is_in_a_model(name), "{name}");
        }
    }
}
