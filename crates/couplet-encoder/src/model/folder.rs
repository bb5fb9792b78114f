//! What a checkpoint's folder holds besides the weights, when it is written.

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

/// What a tokenizer may consist of.
pub(crate) const TOKENIZER: [&str; 5] =
    ["tokenizer.json", TOKENIZER_CONFIG, "vocab.txt", "special_tokens_map.json", "added_tokens.json"];

/// The tokenizer's settings.
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// The folder of a model, of couplet, transformers or a hub.
pub const MODEL_FOLDER: FolderKind = FolderKind { name: "a model", marker: "config.json", has: is_in_a_model };

/// What stands beside tokenizer and weights.
const OTHERS: [&str; 12] = [
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

/// Weights of all frameworks, as far as they are one file.
const WEIGHTS: [&str; 4] = ["tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model.onnx"];

/// Whether the folder of a model may have a file of this name: only what is known goes with a model that is replaced.
fn is_in_a_model(name: &str) -> bool {
    let sharded = |stem: &str, extension: &str| {
        let Some(rest) = name.strip_prefix(stem) else { return false };
        rest == format!("{extension}.index.json") || rest.strip_suffix(extension).is_some_and(is_shard)
    };
    TOKENIZER.contains(&name)
        || OTHERS.contains(&name)
        || WEIGHTS.contains(&name)
        || sharded("model", ".safetensors")
        || sharded("pytorch_model", ".bin")
}

/// Whether this numbers one of several files, as `-00001-of-00002`, or is nothing, as with a single one.
fn is_shard(text: &str) -> bool {
    let is_number = |digits: &str| digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = || text.strip_prefix('-')?.split_once("-of-");
    text.is_empty() || numbers().is_some_and(|(number, count)| is_number(number) && is_number(count))
}

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

/// Writes the files of a tokenizer, whose settings then name its class wherever it stood. For a family without token
/// types it gives none in `transformers`, whose DistilBERT does not take them.
///
/// # Errors
/// A file that cannot be read as JSON, or not written.
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
    let there = object(TOKENIZER_CONFIG)?;
    let mut settings = there.clone();
    // The `config.json` of the model that is written need not have it.
    if settings.get("tokenizer_class").is_none_or(Value::is_null)
        && let Some(class) = object(from.config())?.remove("tokenizer_class").filter(Value::is_string)
    {
        settings.insert("tokenizer_class".into(), class);
    }
    if family.token_types.is_none() {
        leave_out_token_types(&mut settings, family);
    }
    if settings == there { Ok(()) } else { write_json(&to.join(TOKENIZER_CONFIG), &Value::Object(settings)) }
}

/// Makes sure that the settings of a tokenizer ask for no token types.
fn leave_out_token_types(settings: &mut Map<String, Value>, family: &Family) {
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
        settings.insert("tokenizer_class".into(), family.class("Tokenizer").into());
    }
}

/// Makes a `config.json` that of another head's model, with weights in f32.
pub fn clear_head(config: &mut Map<String, Value>) {
    for key in OF_ANOTHER_HEAD {
        config.remove(key);
    }
    config.insert("dtype".into(), "float32".into());
}

/// Writes a JSON file for people to read too.
///
/// # Errors
/// A file that cannot be written.
pub fn write_json(path: &Path, document: &Value) -> io::Result<()> {
    files::write(path, format!("{document:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_models_are_in_a_model() {
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
