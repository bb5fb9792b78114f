//! The weights of a checkpoint: safetensors or a PyTorch archive, whole or in shards, in f64, f32, f16 or bf16.
//!
//! Tensors are looked up by one canonical name each: without the `distilbert.` or `bert.` prefix, and
//! with `weight` and `bias` where old checkpoints say `gamma` and `beta`.

use std::collections::BTreeMap;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Component, Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::archive::Archive;
use super::config::{Architecture, Keys, read_json};
use super::error::LoadError;

pub(crate) struct Checkpoint {
    pub(super) folder: PathBuf,
    /// The files that hold weights, in the order of their names.
    pub(super) files: Vec<PathBuf>,
    prefix: &'static str,
    tensors: BTreeMap<String, Entry>,
    shards: Vec<Shard>,
}

struct Entry {
    shard: usize,
    name: String,
    shape: Vec<usize>,
    dtype: String,
}

impl Entry {
    /// Values of the tensor; `usize::MAX` if there are more.
    fn values(&self) -> usize {
        self.shape.iter().fold(1, |n, size| n.saturating_mul(*size))
    }
}

enum Shard {
    Safetensors(MmapedSafetensors),
    Pickle(Archive),
}

pub(super) const SAFETENSORS: &str = "model.safetensors";
pub(super) const PICKLE: &str = "pytorch_model.bin";

impl Checkpoint {
    /// Opens the weights of a folder and lists their tensors, without reading them.
    pub(crate) fn open(folder: &Path, architecture: Architecture) -> Result<Self, LoadError> {
        let prefix = architecture.prefix();
        let files = weight_files(folder)?;
        let mut checkpoint =
            Self { folder: folder.to_owned(), files: Vec::new(), prefix, tensors: BTreeMap::new(), shards: Vec::new() };
        for path in &files {
            checkpoint.add_shard(path)?;
        }
        match files.first() {
            Some(path) if checkpoint.tensors.is_empty() => Err(LoadError::Unreadable {
                path: path.clone(),
                problem: "it holds no tensors by name, and nothing else in it is read".into(),
            }),
            _ => {
                checkpoint.files = files;
                Ok(checkpoint)
            }
        }
    }

    fn add_shard(&mut self, path: &Path) -> Result<(), LoadError> {
        let index = self.shards.len();
        let mut add = |name: &str, shape: &[usize], dtype: String| {
            let canonical = canonical_name(name, self.prefix);
            let entry = Entry { shard: index, name: name.to_owned(), shape: shape.to_vec(), dtype };
            // Of two names for one tensor the full one holds, as in transformers, in whatever order the file has them.
            let full = full_name(&canonical, self.prefix);
            let known = self.tensors.get(&canonical);
            if known.is_none_or(|known| (name != full, name) <= (known.name != full, known.name.as_str())) {
                self.tensors.insert(canonical, entry);
            }
        };
        let is_safetensors = path.extension().is_some_and(|e| e == "safetensors");
        let shard = if is_safetensors {
            let file = open_safetensors(path)?;
            for (name, view) in file.tensors() {
                add(&name, view.shape(), view.dtype().to_string());
            }
            Shard::Safetensors(file)
        } else {
            let file = open_pickle(path)?;
            for info in file.tensors() {
                add(&info.name, info.layout.dims(), info.dtype.as_str().to_uppercase());
            }
            Shard::Pickle(file)
        };
        self.shards.push(shard);
        Ok(())
    }

    /// Loads a tensor as f32, after checking its shape and type.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape, or not of floating-point numbers of 16, 32 or 64 bits.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor, LoadError> {
        let error = |expected: String, found: String| LoadError::Tensor {
            folder: self.folder.clone(),
            tensor: self.full_name(name),
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
            Shard::Safetensors(file) => file.load(&entry.name, device).map_err(|e| unreadable(first_line(&e)))?,
            Shard::Pickle(file) => match guarded(|| file.tensor(&entry.name)).map_err(unreadable)? {
                Some(tensor) => tensor.to_device(device)?.contiguous()?,
                None => return Err(error(values, "nothing".into())),
            },
        };
        Ok(tensor.to_dtype(DType::F32)?)
    }

    /// How many logits `classifier.weight` gives.
    ///
    /// # Errors
    /// A checkpoint without a head.
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
                hint: self.kind().into(),
            }),
        }
    }

    /// Whether there is a tensor of that name and shape.
    pub(crate) fn has(&self, name: &str, shape: &[usize]) -> bool {
        self.tensors.get(name).is_some_and(|entry| entry.shape == shape)
    }

    /// The canonical names of all tensors but these, in order.
    pub(super) fn names_besides(&self, used: &[String]) -> Vec<String> {
        self.tensors.keys().filter(|name| !used.contains(name)).cloned().collect()
    }

    /// Numbers in all tensors of floating point.
    pub(super) fn parameters(&self) -> usize {
        self.tensors
            .values()
            .filter(|entry| entry.dtype.contains('F'))
            .fold(0, |sum, entry| sum.saturating_add(entry.values()))
    }

    /// Size of the files with weights, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().filter_map(|file| file.metadata().ok()).map(|found| found.len()).sum()
    }

    fn kind(&self) -> &'static str {
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

    /// The name as `transformers` writes it.
    fn full_name(&self, name: &str) -> String {
        full_name(name, self.prefix)
    }

    fn nearest(&self, name: &str) -> String {
        let near = self.tensors.iter().max_by_key(|(other, _)| {
            // Tensors are told apart by their ends: `…layer.0.ffn.lin1.weight`.
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

/// A tensor's name in a file, under the prefix of the encoder if it is a part of that.
pub(crate) fn full_name(name: &str, prefix: &str) -> String {
    if is_head(name) && !name.starts_with("pooler.") { name.to_owned() } else { format!("{prefix}{name}") }
}

/// Whether a tensor is of a head, which may be missing, rather than of an encoder; BERT's pooler is of its heads.
pub(crate) fn is_head(name: &str) -> bool {
    let heads =
        ["classifier", "pre_classifier", "pooler", "cls", "vocab_transform", "vocab_layer_norm", "vocab_projector"];
    heads.contains(&name.split('.').next().unwrap_or_default())
}

fn canonical_name(name: &str, prefix: &str) -> String {
    let name = name.strip_prefix(prefix).unwrap_or(name);
    match (name.strip_suffix("LayerNorm.gamma"), name.strip_suffix("LayerNorm.beta")) {
        (Some(stem), _) => format!("{stem}LayerNorm.weight"),
        (_, Some(stem)) => format!("{stem}LayerNorm.bias"),
        _ => name.to_owned(),
    }
}

/// The files with weights: safetensors before PyTorch, an index before a single file.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, LoadError> {
    for single in [SAFETENSORS, PICKLE] {
        let index = folder.join(format!("{single}.index.json"));
        if index.exists() {
            return shards_of(folder, &index);
        }
        let path = folder.join(single);
        if path.exists() {
            return Ok(vec![path]);
        }
    }
    Err(LoadError::NoFile {
        folder: folder.to_owned(),
        expected: "weights: model.safetensors, model.safetensors.index.json or pytorch_model.bin",
    })
}

fn shards_of(folder: &Path, index: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let json = read_json(index)?;
    let keys = Keys { path: index, json: &json };
    let map = match json.get("weight_map") {
        Some(Value::Object(map)) if !map.is_empty() => map,
        _ => return Err(keys.error("weight_map", "an object from tensor names to names of files beside the index")),
    };
    let mut files = std::collections::BTreeSet::new();
    for (tensor, file) in map {
        // An index from elsewhere must not make us read other folders.
        let name = file.as_str().map(Path::new);
        match name {
            Some(name) if matches!(name.components().collect::<Vec<_>>()[..], [Component::Normal(_)]) => {
                files.insert(folder.join(name));
            }
            _ => {
                return Err(LoadError::Key {
                    path: index.to_owned(),
                    key: format!("weight_map.{tensor}"),
                    expected: "the name of a file beside the index".into(),
                    found: file.to_string(),
                });
            }
        }
    }
    match files.iter().find(|file| !file.exists()) {
        Some(missing) => Err(LoadError::Unreadable {
            path: missing.clone(),
            problem: format!("it does not exist, although {} names it", index.display()),
        }),
        None => Ok(files.into_iter().collect()),
    }
}

fn open_safetensors(path: &Path) -> Result<MmapedSafetensors, LoadError> {
    check_start(path)?;
    // SAFETY: the file is mapped for the length of the load. A checkpoint that another program truncates
    // in that time would kill the process, as it would with every loader that maps files.
    unsafe { MmapedSafetensors::new(path) }.map_err(|e| {
        let length = path.metadata().map_or(0, |metadata| metadata.len());
        // candle puts the path before what safetensors says.
        let said = first_line(&e);
        let said = said.rsplit_once(&path.display().to_string()).map_or(&*said, |(_, said)| said);
        let said = said.trim_start_matches([' ', '"', ':']);
        let problem = match said {
            "header too small" | "header too large" | "invalid header length" => {
                format!("it is not a safetensors file, or truncated within its header ({length} bytes; {said})")
            }
            _ if said.contains("not fully covered") => {
                format!("its {length} bytes are not what its header describes: it is truncated or was appended to")
            }
            _ => format!("its header is damaged ({length} bytes; {said})"),
        };
        LoadError::Unreadable { path: path.to_owned(), problem }
    })
}

/// The magic number, as a pickle, of what PyTorch wrote before it wrote archives.
const LEGACY: [u8; 14] = *b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19";

fn open_pickle(path: &Path) -> Result<Archive, LoadError> {
    check_start(path)?;
    guarded(|| Archive::open(path)).map_err(|problem| LoadError::Unreadable {
        path: path.to_owned(),
        problem: format!("it is truncated or not a PyTorch archive ({problem})"),
    })
}

/// Tells by its first bytes a file that stands for one that was not downloaded, and one of an old format.
fn check_start(path: &Path) -> Result<(), LoadError> {
    let mut start = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(LEGACY.len() as u64).read_to_end(&mut start));
    let problem = match read {
        Err(e) => e.to_string(),
        Ok(0) => "it is empty".into(),
        Ok(_) if start == *b"version https:" => {
            "it is a pointer of Git LFS, not the file itself; `git lfs pull` fetches that".into()
        }
        Ok(_) if start == LEGACY => {
            "it has the format from before PyTorch 1.6; load it with transformers and `save_pretrained` it".into()
        }
        Ok(_) => return Ok(()),
    };
    Err(LoadError::Unreadable { path: path.to_owned(), problem })
}

/// Runs what follows a pickle: candle's interpreter trusts it to be whole, and a panic of it is an error like any other.
fn guarded<T>(read: impl FnOnce() -> candle_core::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(result) => result.map_err(|e| first_line(&e)),
        Err(_) => Err("its pickle is not as PyTorch writes it".into()),
    }
}

/// What candle says, without the backtrace that may follow.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
