//! Import: a BERT encoder becomes a base checkpoint, as it is or folded into DistilBERT's form.
//!
//! DistilBERT has no token types. BERT adds three embeddings for each token, `word + position + token type`; for a
//! single text all tokens are of type 0, so that `position + token type 0` can be one table, and the folded encoder
//! gives the same hidden states but for the rounding of one addition: within 1e-5.
//!
//! What is lost: the second text of a pair has token type 1 in BERT and cannot have it in DistilBERT. There the two
//! texts are told apart by `[SEP]` only. The pooler is dropped too, as DistilBERT has none: a classifier that is
//! fine-tuned learns a `pre_classifier` in its place.

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

/// What was imported.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// The family of the source.
    pub from: &'static Family,
    /// The family of the checkpoint that was written.
    pub family: &'static Family,
    /// Numbers in it.
    pub parameters: usize,
    /// Tensors of the source that have no place in it: heads, the pooler, buffers.
    pub dropped: Vec<String>,
    /// The largest difference of a hidden state of single texts between the source and what was written.
    pub difference: f32,
}

/// The largest difference of a hidden state that is put down to rounding; the states are of size 1.
const ROUNDING: f32 = 1e-4;

/// Why an encoder cannot be imported; nothing is written then.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The source cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It does not have the form that was asked for, and cannot be brought into it exactly.
    #[error("{} cannot be imported in that form: {problem}", folder.display())]
    Form {
        /// The source.
        folder: PathBuf,
        /// Why not.
        problem: String,
    },
    /// The folder cannot be written.
    #[error("cannot write {}: {source}", folder.display())]
    Write {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A failure of arithmetic.
    #[error("cannot compute: {}", message(.0))]
    Compute(#[from] candle_core::Error),
}

const POSITIONS: &str = "embeddings.position_embeddings.weight";
const TOKEN_TYPES: &str = "embeddings.token_type_embeddings.weight";

/// Writes the encoder of `source` as a base checkpoint to `target`, in f32, and in the form of another family if one is
/// given. What was at `target` is replaced at once, after a check that the hidden states are the same.
///
/// # Errors
/// A source that is no encoder of the BERT family; one that the form cannot express; a target that cannot be written.
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
    let copied = encoder(&checkpoint, &config, family)?;
    let mut used: Vec<String> = copied.iter().map(|(name, ..)| name.clone()).collect();
    let mut tensors: Vec<(String, Tensor)> = copied.into_iter().map(|(_, name, tensor)| (name, tensor)).collect();
    if let Some(further) = folded {
        check(source, &config, family)?;
        fold_token_types(&mut tensors)?;
        json = folded_config(&json, &config, family, further);
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
    if difference > ROUNDING {
        let problem = match difference {
            f32::INFINITY => "its hidden states are no numbers: its weights hold NaN or infinity".to_owned(),
            difference => format!("its hidden states would differ by {difference:e}: please report this"),
        };
        return Err(ImportError::Form { folder: source.to_owned(), problem });
    }
    written.publish().map_err(unwritable)?;
    let dropped = checkpoint.names_besides(&used);
    Ok(Imported { from, family, parameters, dropped, difference })
}

/// How far the hidden states of two encoders are apart, for two sequences without a token of type 1.
fn largest_difference(one: &ModelFiles, other: &ModelFiles) -> Result<f32, ImportError> {
    let (one, other) = (hidden_states(one)?, hidden_states(other)?);
    let differences = one.into_iter().zip(other).map(|(a, b)| (a - b).abs());
    // What is no number is as far as can be.
    Ok(differences.fold(0.0, |most, d| if d.is_nan() { f32::INFINITY } else { most.max(d) }))
}

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

/// The tensors of an encoder, each with its canonical name and the name that another family has for it.
fn encoder(
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

/// Checks that the other family computes what this one does.
fn check(source: &Path, config: &ModelConfig, to: &Family) -> Result<(), ImportError> {
    if to.layer_norm_eps.is_none() && (config.layer_norm_eps / 1e-12 - 1.0).abs() > 1e-6 {
        let problem = format!(
            "its layer_norm_eps is {:e}, and {}'s is always 1e-12; import it as it is",
            config.layer_norm_eps, to.name
        );
        return Err(ImportError::Form { folder: source.to_owned(), problem });
    }
    Ok(())
}

/// Adds the embedding of token type 0 to those of all positions.
fn fold_token_types(tensors: &mut Vec<(String, Tensor)>) -> candle_core::Result<()> {
    let Some(place) = tensors.iter().position(|(name, _)| name == TOKEN_TYPES) else { return Ok(()) };
    let first = tensors.remove(place).1.get(0)?;
    for (_, positions) in tensors.iter_mut().filter(|(name, _)| name == POSITIONS) {
        *positions = positions.broadcast_add(&first)?;
    }
    Ok(())
}

fn folded_config(from: &Map<String, Value>, config: &ModelConfig, to: &Family, further: &str) -> Map<String, Value> {
    let or = |key: &str, default: Value| from.get(key).filter(|value| !value.is_null()).cloned().unwrap_or(default);
    let (old, new) = (config.family, &to.keys);
    let mut json: Map<String, Value> = serde_json::from_str(further).expect("the entries of a family are JSON");
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
    fn refuses_an_encoder_that_distilbert_does_not_compute() {
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
