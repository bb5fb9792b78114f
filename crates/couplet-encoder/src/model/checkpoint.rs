//! The weights of a checkpoint: safetensors or a PyTorch archive, one file or several shards, in f64, f32, f16 or bf16.
//!
//! Tensors are looked up by canonical names: without the prefix `distilbert.` or `bert.`, and with `weight` and `bias`
//! instead of the `gamma` and `beta` of old checkpoints.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use candle_core::{DType, Device, Tensor};
use couplet_storage::backtrace::message;
use safetensors::SafeTensorError;
use safetensors::tensor::{Metadata, SafeTensors};
use serde_json::Value;

use super::archive::Archive;
use super::config::{Keys, read_json};
use super::error::LoadError;
use super::family::Family;
use super::files::{ModelFiles, is_name};

/// The tensors of a checkpoint, by canonical name.
pub struct Checkpoint {
    pub(super) folder: PathBuf,
    /// The names of the weight files, in order.
    pub(super) files: Vec<String>,
    /// The size of the weight files in bytes.
    pub(super) bytes: u64,
    family: &'static Family,
    tensors: BTreeMap<String, Entry>,
    shards: Vec<Shard>,
}

/// A tensor in a shard.
struct Entry {
    /// The index of its shard.
    shard: usize,
    /// The name in the file.
    name: String,
    shape: Vec<usize>,
    dtype: String,
}

impl Entry {
    /// Returns the number of values; `usize::MAX` on overflow.
    fn values(&self) -> usize {
        self.shape.iter().fold(1, |n, size| n.saturating_mul(*size))
    }
}

enum Shard {
    Safetensors(Safetensors),
    Pickle(Archive),
}

pub(super) use couplet_storage::hub::{PICKLE, SAFETENSORS};

impl Checkpoint {
    /// Opens the weight files of a model and lists their tensors without reading the values.
    ///
    /// # Errors
    /// Returns an error if a file is missing or damaged.
    pub fn open(files: &ModelFiles, family: &'static Family) -> Result<Self, LoadError> {
        let mut checkpoint = Self {
            folder: files.folder().to_owned(),
            files: weight_files(files)?,
            bytes: 0,
            family,
            tensors: BTreeMap::new(),
            shards: Vec::new(),
        };
        for name in checkpoint.files.clone() {
            let bytes = files.get(&name).cloned().unwrap_or_default();
            checkpoint.bytes += bytes.len() as u64;
            checkpoint.add_shard(&files.path(&name), bytes)?;
        }
        match checkpoint.files.first() {
            Some(name) if checkpoint.tensors.is_empty() => Err(LoadError::Unreadable {
                path: files.path(name),
                problem: "it holds no tensors by name, and nothing else in it is read".into(),
            }),
            _ => Ok(checkpoint),
        }
    }

    fn add_shard(&mut self, path: &Path, bytes: Bytes) -> Result<(), LoadError> {
        let index = self.shards.len();
        let mut add = |name: &str, shape: &[usize], dtype: String| {
            let canonical = canonical_name(name, self.family.tensor_prefix);
            let entry = Entry { shard: index, name: name.to_owned(), shape: shape.to_vec(), dtype };
            // If a tensor has two names, the full name takes precedence in any order, as in transformers.
            let full = self.family.full_name(&canonical);
            let known = self.tensors.get(&canonical);
            if known.is_none_or(|known| (name != full, name) <= (known.name != full, known.name.as_str())) {
                self.tensors.insert(canonical, entry);
            }
        };
        let shard = if is_safetensors(path) {
            let file = Safetensors::open(path, bytes)?;
            for (name, info) in file.metadata.tensors() {
                add(&name, &info.shape, info.dtype.to_string());
            }
            Shard::Safetensors(file)
        } else {
            let file = open_pickle(path, bytes)?;
            for info in file.tensors() {
                add(&info.name, info.layout.dims(), info.dtype.as_str().to_uppercase());
            }
            Shard::Pickle(file)
        };
        self.shards.push(shard);
        Ok(())
    }

    /// Loads a tensor as f32 onto a device, after checking its shape and type.
    ///
    /// # Errors
    /// Returns an error if the tensor is missing, has another shape, is not f64, f32, f16 or bf16, or cannot be read.
    pub fn tensor(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor, LoadError> {
        let error = |expected: String, found: String| LoadError::Tensor {
            folder: self.folder.clone(),
            tensor: self.family.full_name(name),
            expected,
            found,
        };
        let Some(entry) = self.tensors.get(name) else {
            return Err(error(format!("shape {shape:?}"), self.nearest(name)));
        };
        if entry.shape != shape {
            return Err(error(format!("shape {shape:?} by config.json"), format!("{:?}", entry.shape)));
        }
        if !matches!(entry.dtype.as_str(), "F64" | "F32" | "F16" | "BF16") {
            return Err(error("type F64, F32, F16 or BF16".into(), entry.dtype.clone()));
        }
        let values = format!("{} values of type {}", entry.values(), entry.dtype);
        let unreadable = |problem: String| error(values.clone(), format!("an unreadable tensor ({problem})"));
        let tensor = match &self.shards[entry.shard] {
            Shard::Safetensors(file) => file.tensor(&entry.name, device).map_err(|e| unreadable(message(&e)))?,
            Shard::Pickle(file) => match catch_panic(|| file.tensor(&entry.name)).map_err(unreadable)? {
                Some(tensor) => tensor.to_device(device)?.contiguous()?,
                None => return Err(error(values, "nothing".into())),
            },
        };
        Ok(tensor.to_dtype(DType::F32)?)
    }

    /// Returns the number of logits: the rows of `classifier.weight`.
    ///
    /// # Errors
    /// Returns an error if the checkpoint has no head, or if the weight is not a matrix.
    pub(crate) fn classifier_outputs(&self) -> Result<usize, LoadError> {
        match self.tensors.get("classifier.weight") {
            Some(entry) if entry.shape.len() == 2 && entry.shape[0] > 0 => Ok(entry.shape[0]),
            Some(entry) => Err(LoadError::Tensor {
                folder: self.folder.clone(),
                tensor: "classifier.weight".into(),
                expected: "shape [labels, dim]".into(),
                found: format!("{:?}", entry.shape),
            }),
            None => Err(LoadError::NoHead {
                folder: self.folder.clone(),
                tensor: "classifier.weight".into(),
                tensors: self.tensors.len(),
                hint: self.headless_hint().into(),
            }),
        }
    }

    /// Returns true if a weight must be read from this checkpoint: always for tensors of the encoder, and for tensors
    /// of a head if the checkpoint has one with that shape.
    #[must_use]
    pub fn provides(&self, name: &str, shape: &[usize]) -> bool {
        !self.family.is_head(name) || self.has(name, shape)
    }

    /// Returns true if the checkpoint has a tensor with that name and shape.
    pub(crate) fn has(&self, name: &str, shape: &[usize]) -> bool {
        self.tensors.get(name).is_some_and(|entry| entry.shape == shape)
    }

    /// Returns the canonical names of all tensors that are not in `used`, in order.
    pub(super) fn unused_names(&self, used: &[String]) -> Vec<String> {
        self.tensors.keys().filter(|name| !used.contains(name)).cloned().collect()
    }

    /// Returns the number of values in all floating-point tensors.
    pub(super) fn parameters(&self) -> usize {
        self.tensors
            .values()
            .filter(|entry| entry.dtype.contains('F'))
            .fold(0, |sum, entry| sum.saturating_add(entry.values()))
    }

    /// Returns a hint for the user about a checkpoint without a classification head.
    fn headless_hint(&self) -> &'static str {
        let has = |part: &str| self.tensors.keys().any(|name| name.contains(part));
        if has("vocab_transform") || has("cls.predictions") {
            "it is a masked-language model: fine-tune it for a task first"
        } else if has("qa_outputs") {
            "it answers questions, which couplet does not"
        } else if has("word_embeddings") {
            "it is a base encoder: fine-tune it for a task first"
        } else {
            "it has no word embeddings either: it is incomplete, or of another family than BERT"
        }
    }

    /// Describes a missing tensor, with the most similar name in the checkpoint.
    fn nearest(&self, name: &str) -> String {
        let near = self.tensors.iter().max_by_key(|(other, _)| {
            // The longest common prefix: names differ at their ends, as in `…layer.0.ffn.lin1.weight`.
            name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count()
        });
        match near {
            Some((_, entry)) => {
                format!("nothing under that name; {} tensors, the nearest is `{}`", self.tensors.len(), entry.name)
            }
            None => "no tensors at all".into(),
        }
    }
}

/// Returns the canonical name of a tensor.
fn canonical_name(name: &str, prefix: &str) -> String {
    let name = name.strip_prefix(prefix).unwrap_or(name);
    match (name.strip_suffix("LayerNorm.gamma"), name.strip_suffix("LayerNorm.beta")) {
        (Some(stem), _) => format!("{stem}LayerNorm.weight"),
        (_, Some(stem)) => format!("{stem}LayerNorm.bias"),
        _ => name.to_owned(),
    }
}

/// Returns the names of the weight files. Safetensors are preferred to PyTorch archives, an index to a single file.
fn weight_files(files: &ModelFiles) -> Result<Vec<String>, LoadError> {
    for single in [SAFETENSORS, PICKLE] {
        let index = format!("{single}.index.json");
        if files.get(&index).is_some() {
            return shards_of(files, &index);
        }
        if files.get(single).is_some() {
            return Ok(vec![single.to_owned()]);
        }
    }
    Err(LoadError::NoFile {
        folder: files.folder().to_owned(),
        expected: "weights: model.safetensors, model.safetensors.index.json or pytorch_model.bin",
    })
}

/// Returns the names of the shards that an index lists.
fn shards_of(files: &ModelFiles, index: &str) -> Result<Vec<String>, LoadError> {
    let (path, json) = (&files.path(index), read_json(files, index)?);
    let keys = Keys { path, json: &json };
    let map = match json.get("weight_map") {
        Some(Value::Object(map)) if !map.is_empty() => map,
        _ => return Err(keys.error("weight_map", "an object from tensor names to names of files beside the index")),
    };
    let mut shards = std::collections::BTreeSet::new();
    for (tensor, file) in map {
        match file.as_str() {
            Some(name) if is_name(name) => {
                shards.insert(name.to_owned());
            }
            _ => {
                return Err(LoadError::Key {
                    path: path.clone(),
                    key: format!("weight_map.{tensor}"),
                    expected: "the name of a file beside the index".into(),
                    found: file.to_string(),
                });
            }
        }
    }
    match shards.iter().find(|name| files.get(name).is_none()) {
        Some(missing) => Err(LoadError::Unreadable {
            path: files.path(missing),
            problem: format!("it does not exist, although {} names it", path.display()),
        }),
        None => Ok(shards.into_iter().collect()),
    }
}

/// A safetensors file in memory.
struct Safetensors {
    bytes: Bytes,
    metadata: Metadata,
    /// The offset of the values in bytes.
    start: usize,
}

impl Safetensors {
    fn open(path: &Path, bytes: Bytes) -> Result<Self, LoadError> {
        match SafeTensors::read_metadata(&bytes) {
            Ok((header, metadata)) => Ok(Self { start: HEADER_LENGTH + header, metadata, bytes }),
            Err(e) => Err(LoadError::Unreadable { path: path.to_owned(), problem: damaged(&e, bytes.len() as u64) }),
        }
    }

    fn tensor(&self, name: &str, device: &Device) -> candle_core::Result<Tensor> {
        let info = self.metadata.info(name).ok_or_else(|| candle_core::Error::Msg("it is not in the file".into()))?;
        let (from, to) = info.data_offsets;
        // The offsets were checked against the length of the file when its header was read.
        let values = &self.bytes[self.start + from..self.start + to];
        Tensor::from_raw_buffer(values, info.dtype.try_into()?, &info.shape, device)
    }
}

/// Returns the message for an invalid header of a safetensors file of `length` bytes.
fn damaged(error: &SafeTensorError, length: u64) -> String {
    match error {
        SafeTensorError::HeaderTooSmall | SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength => {
            format!("it is not a safetensors file, or truncated within its header ({length} bytes; {error})")
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            format!("its {length} bytes are not what its header describes: it is truncated or was appended to")
        }
        _ => format!("its header is damaged ({length} bytes; {error})"),
    }
}

/// The size of the field with the header's length at the start of a safetensors file, in bytes.
const HEADER_LENGTH: usize = 8;

/// The largest accepted header of a safetensors file, in bytes. A parsed header takes many times as much memory.
/// Headers of BERT models are below 100 KB.
const MAX_HEADER: u64 = 16 << 20;

/// The pickled magic number of the format before PyTorch 1.6.
const LEGACY_MAGIC: [u8; 14] = *b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19";

/// The number of bytes at the start of a weight file that [`check_head`] needs.
pub(super) const HEAD_BYTES: u64 = LEGACY_MAGIC.len() as u64;

/// Checks the first [`HEAD_BYTES`] of a weight file of `size` bytes. Rejects empty files, Git LFS pointers, the old
/// PyTorch format, and invalid or oversized safetensors headers.
pub(super) fn check_head(path: &Path, head: &[u8], size: u64) -> Result<(), String> {
    if size == 0 {
        return Err("it is empty".into());
    }
    if head == b"version https:" {
        return Err("it is a pointer of Git LFS, not the file itself; `git lfs pull` fetches that".into());
    }
    if head == LEGACY_MAGIC {
        let problem = "it has the format from before PyTorch 1.6; load it with transformers and `save_pretrained` it";
        return Err(problem.into());
    }
    if !is_safetensors(path) {
        return Ok(());
    }
    match head.first_chunk::<HEADER_LENGTH>().map(|length| u64::from_le_bytes(*length)) {
        None => Err(damaged(&SafeTensorError::HeaderTooSmall, size)),
        Some(header) if header > size.saturating_sub(HEADER_LENGTH as u64) => {
            let error = if header > MAX_HEADER {
                SafeTensorError::HeaderTooLarge
            } else {
                SafeTensorError::InvalidHeaderLength
            };
            Err(damaged(&error, size))
        }
        Some(header) if header > MAX_HEADER => {
            Err(format!("its header has {header} bytes, and at most {MAX_HEADER} are read"))
        }
        Some(_) => Ok(()),
    }
}

fn is_safetensors(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors")
}

fn open_pickle(path: &Path, bytes: Bytes) -> Result<Archive, LoadError> {
    catch_panic(|| Archive::open(path, bytes)).map_err(|problem| LoadError::Unreadable {
        path: path.to_owned(),
        problem: format!("it is truncated or not a PyTorch archive ({problem})"),
    })
}

/// Runs candle's pickle interpreter, which can panic on an invalid pickle, and turns a panic into an error.
fn catch_panic<T>(read: impl FnOnce() -> candle_core::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(result) => result.map_err(|e| message(&e)),
        Err(_) => Err("its pickle is not as PyTorch writes it".into()),
    }
}
