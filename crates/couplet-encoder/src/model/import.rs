//! Import: writes a BERT encoder as a base checkpoint, unchanged or converted to DistilBERT's form.
//!
//! DistilBERT has no token types. BERT adds three embeddings per token, `word + position + token type`. In a single
//! text, all tokens have type 0, so `position + token type 0` can be folded into one table. The converted encoder
//! computes the same hidden states except for the rounding of one addition: within 1e-5.
//!
//! The conversion loses the token types of pairs: in BERT the second text has type 1, in DistilBERT only `[SEP]`
//! separates the texts. It also drops the pooler, which DistilBERT does not have; fine-tuning trains a
//! `pre_classifier` instead.

use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use couplet_storage::backtrace::message;
use couplet_storage::files::{self, AtomicFolder};
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::checkpoint::Checkpoint;
use super::classifier::PackedBatch;
use super::config::{ModelConfig, read_json};
use super::encoder::{Encoder, WORD_EMBEDDINGS};
use super::error::LoadError;
use super::family::Family;
use super::files::ModelFiles;
use super::folder::{MODEL_FOLDER, clear_head, copy_tokenizer, write_json};
use super::source::Loader;
use super::weights_file::{self, Entry};

/// The result of an import.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// The family of the source.
    pub from: &'static Family,
    /// The family of the checkpoint that was written.
    pub family: &'static Family,
    /// The number of parameters in the checkpoint.
    pub parameters: usize,
    /// The names of the source's tensors that were not copied: heads, the pooler, buffers.
    pub dropped: Vec<String>,
    /// The largest absolute difference between hidden states of the source and of the checkpoint, for single texts.
    pub difference: f32,
}

/// The largest difference of a hidden state that rounding can explain. Hidden states have a magnitude of about 1.
const MAX_ROUNDING_ERROR: f32 = 1e-4;

/// An error of an import. Nothing is written in this case.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The source cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The encoder cannot be converted to the requested form exactly.
    #[error("{} cannot be imported in that form: {problem}", folder.display())]
    Form {
        /// The folder of the source.
        folder: PathBuf,
        /// The reason.
        problem: String,
    },
    /// The target folder cannot be written.
    #[error("cannot write {}: {source}", folder.display())]
    Write {
        /// The folder.
        folder: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The computation of hidden states failed.
    #[error("cannot compute: {}", message(.0))]
    Compute(#[from] candle_core::Error),
}

const POSITIONS: &str = "embeddings.position_embeddings.weight";
const TOKEN_TYPES: &str = "embeddings.token_type_embeddings.weight";

/// Writes the encoder of `source` as a base checkpoint in f32 to `target`, converted to the family `form` if given.
///
/// Verifies that the hidden states are the same, then replaces `target` atomically.
///
/// # Errors
/// Returns an error if the source is not an encoder of the BERT family, if `form` cannot express it, or if the target
/// cannot be written.
pub fn import(source: &Path, target: &Path, form: Option<&'static Family>) -> Result<Imported, ImportError> {
    let files = ModelFiles::read(source)?;
    let config = ModelConfig::load(&files)?;
    let mut json = match read_json(&files, files.config())? {
        Value::Object(json) => json,
        _ => Map::new(),
    };
    let checkpoint = Checkpoint::open(&files, config.family)?;
    let (from, family) = (config.family, form.unwrap_or(config.family));
    let folded = family.folded.filter(|_| from.token_types.is_some());
    if from != family && folded.is_none() {
        let (from, to) = (from.name, family.name);
        let problem = format!("it is a {from}, which has no token types to make a {to} of; import it as it is");
        return Err(ImportError::Form { folder: source.to_owned(), problem });
    }
    let copied = encoder_tensors(&checkpoint, &config, family)?;
    let mut used: Vec<String> = copied.iter().map(|(name, ..)| name.clone()).collect();
    let mut tensors: Vec<(String, Tensor)> = copied.into_iter().map(|(_, name, tensor)| (name, tensor)).collect();
    if let Some(entries) = folded {
        check_layer_norm_eps(source, &config, family)?;
        fold_token_types(&mut tensors)?;
        json = folded_config(&json, &config, family, entries);
    } else if family.head.has_prefix {
        let (weight, bias) = (format!("{}.weight", family.head.dense), format!("{}.bias", family.head.dense));
        for (name, shape) in [(weight, vec![config.dim, config.dim]), (bias, vec![config.dim])] {
            if checkpoint.has(&name, &shape) {
                tensors.push((name.clone(), checkpoint.tensor(&name, &shape, &Device::Cpu)?));
                used.push(name);
            }
        }
    }
    clear_head(&mut json);
    json.insert("architectures".into(), json!([family.class("Model")]));
    let parameters = tensors.iter().map(|(_, tensor)| tensor.elem_count()).sum();
    let unwritable = |source| ImportError::Write { folder: target.to_owned(), source };
    let written = write(&files, target, family, &json, &tensors).map_err(unwritable)?;
    let difference = largest_difference(&files, &ModelFiles::read(written.path())?)?;
    if difference > MAX_ROUNDING_ERROR {
        let problem = match difference {
            f32::INFINITY => "its hidden states are no numbers: its weights hold NaN or infinity".to_owned(),
            difference => format!("its hidden states would differ by {difference:e}: please report this"),
        };
        return Err(ImportError::Form { folder: source.to_owned(), problem });
    }
    written.publish().map_err(unwritable)?;
    let dropped = checkpoint.unused_names(&used);
    Ok(Imported { from, family, parameters, dropped, difference })
}

/// Returns the largest absolute difference between the hidden states of two encoders, for two single texts.
fn largest_difference(one: &ModelFiles, other: &ModelFiles) -> Result<f32, ImportError> {
    let (one, other) = (hidden_states(one)?, hidden_states(other)?);
    let differences = one.into_iter().zip(other).map(|(a, b)| (a - b).abs());
    // NaN counts as infinitely different.
    Ok(differences.fold(0.0, |most, d| if d.is_nan() { f32::INFINITY } else { most.max(d) }))
}

/// Computes the hidden states of two fixed sequences, flattened.
fn hidden_states(files: &ModelFiles) -> Result<Vec<f32>, ImportError> {
    let config = ModelConfig::load(files)?;
    let checkpoint = Checkpoint::open(files, config.family)?;
    let encoder = Encoder::load(&Loader::on_cpu(&(&checkpoint, &Device::Cpu), &config))?;
    let mut batch = PackedBatch::default();
    for length in [90, 17] {
        let length = length.min(config.max_position_embeddings as u32);
        let input_ids: Vec<u32> = (0..length).map(|i| (i * 7919 + length) % config.vocab_size as u32).collect();
        batch.push(&input_ids, &vec![0; input_ids.len()]);
    }
    Ok(encoder.forward(&batch)?.flatten_all()?.to_vec1()?)
}

/// Loads the tensors of an encoder, each with its canonical name and its name in the family `to`.
fn encoder_tensors(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    to: &Family,
) -> Result<Vec<(String, String, Tensor)>, LoadError> {
    let dim = config.dim;
    let mut shapes = vec![
        (WORD_EMBEDDINGS, vec![config.vocab_size, dim]),
        (POSITIONS, vec![config.max_position_embeddings, dim]),
        ("embeddings.LayerNorm.weight", vec![dim]),
        ("embeddings.LayerNorm.bias", vec![dim]),
    ];
    if config.family.token_types.is_some() {
        shapes.push((TOKEN_TYPES, vec![config.type_vocab_size, dim]));
    }
    let mut shapes: Vec<_> =
        shapes.into_iter().map(|(name, shape)| (name.to_owned(), name.to_owned(), shape)).collect();
    let (block, to) = (&config.family.block, &to.block);
    for layer in 0..config.n_layers {
        for ((name, weight), (renamed, _)) in block.shapes(config).into_iter().zip(to.shapes(config)) {
            let bias = vec![weight[0]];
            for (kind, shape) in [("weight", weight), ("bias", bias)] {
                let name = format!("{}.{layer}.{name}.{kind}", block.prefix);
                shapes.push((name, format!("{}.{layer}.{renamed}.{kind}", to.prefix), shape));
            }
        }
    }
    let read = |(name, renamed, shape): (String, String, Vec<usize>)| {
        let tensor = checkpoint.tensor(&name, &shape, &Device::Cpu)?;
        Ok((name, renamed, tensor))
    };
    shapes.into_iter().map(read).collect()
}

/// Returns an error if the other family has a fixed ε that differs from this model's.
fn check_layer_norm_eps(source: &Path, config: &ModelConfig, to: &Family) -> Result<(), ImportError> {
    if to.layer_norm_eps.is_none() && (config.layer_norm_eps / 1e-12 - 1.0).abs() > 1e-6 {
        let problem = format!(
            "its layer_norm_eps is {:e}, and {}'s is always 1e-12; import it as it is",
            config.layer_norm_eps, to.name
        );
        return Err(ImportError::Form { folder: source.to_owned(), problem });
    }
    Ok(())
}

/// Removes the token types and adds the embedding of type 0 to all position embeddings.
fn fold_token_types(tensors: &mut Vec<(String, Tensor)>) -> candle_core::Result<()> {
    let Some(index) = tensors.iter().position(|(name, _)| name == TOKEN_TYPES) else { return Ok(()) };
    let first = tensors.remove(index).1.get(0)?;
    for (_, positions) in tensors.iter_mut().filter(|(name, _)| name == POSITIONS) {
        *positions = positions.broadcast_add(&first)?;
    }
    Ok(())
}

/// Returns the `config.json` of the converted encoder. `entries` are the family's additional ones.
fn folded_config(from: &Map<String, Value>, config: &ModelConfig, to: &Family, entries: &str) -> Map<String, Value> {
    let or = |key: &str, default: Value| from.get(key).filter(|value| !value.is_null()).cloned().unwrap_or(default);
    let (old, new) = (config.family, &to.keys);
    let mut json: Map<String, Value> = serde_json::from_str(entries).expect("the entries of a family are JSON");
    json.extend([
        ("model_type".into(), json!(to.model_type)),
        ("vocab_size".into(), json!(config.vocab_size)),
        (new.dim.into(), json!(config.dim)),
        (new.n_layers.into(), json!(config.n_layers)),
        (new.n_heads.into(), json!(config.n_heads)),
        (new.hidden_dim.into(), json!(config.hidden_dim)),
        ("max_position_embeddings".into(), json!(config.max_position_embeddings)),
        (new.activation.into(), or(old.keys.activation, json!("gelu"))),
        (to.dropout.hidden.into(), or(old.dropout.hidden, json!(0.1))),
        (to.dropout.attention.into(), or(old.dropout.attention, json!(0.1))),
        ("initializer_range".into(), or("initializer_range", json!(0.02))),
        ("pad_token_id".into(), or("pad_token_id", json!(0))),
    ]);
    json
}

/// Writes the checkpoint to a temporary folder, to be published at `target`.
fn write(
    source: &ModelFiles,
    target: &Path,
    family: &Family,
    config: &Map<String, Value>,
    tensors: &[(String, Tensor)],
) -> io::Result<AtomicFolder> {
    let folder = AtomicFolder::create(target, &MODEL_FOLDER)?;
    let path = folder.path();
    write_json(&path.join("config.json"), &Value::Object(config.clone()))?;
    copy_tokenizer(source, path, family)?;
    let mut file = BufWriter::new(files::create(&path.join("model.safetensors"))?);
    let entries = tensors.iter().map(|(name, tensor)| Entry::of_tensor(name.clone(), tensor)).collect();
    weights_file::write(entries, &mut file)?;
    file.flush()?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::family::{BERT, DISTILBERT};
    use super::*;

    #[test]
    fn keeps_the_hidden_states_of_single_texts() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let minilm = root.join("../shared/models/minilm-base");
        for source in [root.join("tests/it/goldens/tiny-bert"), minilm] {
            if !source.exists() {
                eprintln!("SKIPPED keeps_the_hidden_states_of_single_texts: {} is not there", source.display());
                continue;
            }
            let folder = tempfile::tempdir().unwrap();
            let difference = |form| import(&source, &folder.path().join("imported"), form).unwrap().difference;
            assert!(difference(None) == 0.0 && difference(Some(&BERT)) == 0.0);
            let difference = difference(Some(&DISTILBERT));
            assert!(difference < 1e-5, "{}: {difference}", source.display());
            println!("{}: largest difference {difference:e}", source.display());
        }
    }

    #[test]
    fn rejects_an_encoder_that_distilbert_cannot_express() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/it/goldens/tiny-bert");
        let folder = tempfile::tempdir().unwrap();
        for entry in source.read_dir().unwrap().flatten() {
            fs::write(folder.path().join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap();
        }
        let config = fs::read_to_string(source.join("config.json")).unwrap();
        fs::write(folder.path().join("config.json"), config.replace("1e-12", "1e-5")).unwrap();
        let error = import(folder.path(), &folder.path().join("out"), Some(&DISTILBERT)).unwrap_err().to_string();
        assert!(error.contains("layer_norm_eps is 1e-5"), "{error}");
    }
}
