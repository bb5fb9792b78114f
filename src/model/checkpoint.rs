//! The weights of a checkpoint: safetensors or a PyTorch archive, whole or in shards, in f32, f16 or bf16.
//!
//! Tensors are looked up by one canonical name each: without the `distilbert.` or `bert.` prefix, and
//! with `weight` and `bias` where old checkpoints say `gamma` and `beta`. A PyTorch archive is read by
//! an interpreter of the few pickle instructions that tensors need; nothing in it is executed.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use candle_core::pickle::PthTensors;
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::config::{Architecture, read_json};
use super::error::LoadError;

pub(super) struct Checkpoint {
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

enum Shard {
    Safetensors(MmapedSafetensors),
    Pickle(PthTensors),
}

const SAFETENSORS: &str = "model.safetensors";
const PICKLE: &str = "pytorch_model.bin";

impl Checkpoint {
    /// Opens the weights of a folder and lists their tensors, without reading them.
    pub(super) fn open(folder: &Path, architecture: Architecture) -> Result<Self, LoadError> {
        let prefix = match architecture {
            Architecture::DistilBert => "distilbert.",
            Architecture::Bert => "bert.",
        };
        let files = weight_files(folder)?;
        let mut checkpoint =
            Self { folder: folder.to_owned(), files: Vec::new(), prefix, tensors: BTreeMap::new(), shards: Vec::new() };
        for path in &files {
            checkpoint.add_shard(path)?;
        }
        checkpoint.files = files;
        Ok(checkpoint)
    }

    fn add_shard(&mut self, path: &Path) -> Result<(), LoadError> {
        let index = self.shards.len();
        let mut add = |name: &str, shape: &[usize], dtype: String| {
            let canonical = canonical_name(name, self.prefix);
            let entry = Entry { shard: index, name: name.to_owned(), shape: shape.to_vec(), dtype };
            self.tensors.insert(canonical, entry);
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
            for (name, info) in file.tensor_infos() {
                add(name, info.layout.dims(), info.dtype.as_str().to_uppercase());
            }
            Shard::Pickle(file)
        };
        self.shards.push(shard);
        Ok(())
    }

    /// Loads a tensor as f32, after checking its shape and type.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape, or neither f32, f16 nor bf16.
    pub(super) fn tensor(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor, LoadError> {
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
        if !matches!(entry.dtype.as_str(), "F32" | "F16" | "BF16") {
            return Err(error("type F32, F16 or BF16".into(), entry.dtype.clone()));
        }
        let unreadable =
            |e: candle_core::Error| error(format!("{} values", entry.dtype), format!("an unreadable tensor: {e}"));
        let tensor = match &self.shards[entry.shard] {
            Shard::Safetensors(file) => file.load(&entry.name, device).map_err(unreadable)?,
            Shard::Pickle(file) => match file.get(&entry.name).map_err(unreadable)? {
                Some(tensor) => tensor.to_device(device)?.contiguous()?,
                None => return Err(error(format!("shape {shape:?}"), "nothing".into())),
            },
        };
        Ok(tensor.to_dtype(DType::F32)?)
    }

    /// How many logits `classifier.weight` gives.
    ///
    /// # Errors
    /// A checkpoint without a head.
    pub(super) fn classifier_outputs(&self) -> Result<usize, LoadError> {
        match self.tensors.get("classifier.weight") {
            Some(entry) if entry.shape.len() == 2 => Ok(entry.shape[0]),
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

    /// Numbers in all tensors of floating point.
    pub(super) fn parameters(&self) -> usize {
        self.tensors
            .values()
            .filter(|entry| entry.dtype.contains('F'))
            .map(|entry| entry.shape.iter().product::<usize>())
            .sum()
    }

    fn kind(&self) -> &'static str {
        let has = |part: &str| self.tensors.keys().any(|name| name.contains(part));
        if has("vocab_transform") || has("cls.predictions") {
            "it is a masked-language model"
        } else if has("qa_outputs") {
            "it answers questions"
        } else if has("word_embeddings") {
            "it is a base encoder"
        } else {
            "it is no checkpoint of the BERT family"
        }
    }

    /// The name as `transformers` writes it.
    fn full_name(&self, name: &str) -> String {
        match name.split('.').next() {
            Some("classifier" | "pre_classifier") => name.to_owned(),
            _ => format!("{}{name}", self.prefix),
        }
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
    let key = |found: String| LoadError::Key {
        path: index.to_owned(),
        key: "weight_map".into(),
        expected: "an object from tensor names to names of files beside the index".into(),
        found,
    };
    let map = match json.get("weight_map") {
        Some(Value::Object(map)) if !map.is_empty() => map,
        found => return Err(key(found.map_or_else(|| "nothing".into(), Value::to_string))),
    };
    let mut files = std::collections::BTreeSet::new();
    for file in map.values() {
        // An index from elsewhere must not make us read other folders.
        let name = file.as_str().map(Path::new);
        match name {
            Some(name) if matches!(name.components().collect::<Vec<_>>()[..], [Component::Normal(_)]) => {
                files.insert(folder.join(name));
            }
            _ => return Err(key(file.to_string())),
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
    // SAFETY: the file is mapped for the length of the load. A checkpoint that another program truncates
    // in that time would kill the process, as it would with every loader that maps files.
    unsafe { MmapedSafetensors::new(path) }.map_err(|e| {
        let length = path.metadata().map(|m| m.len()).unwrap_or_default();
        let problem = e.to_string();
        let problem = if problem.contains("not fully covered") {
            format!("it is truncated: its header promises more than its {length} bytes")
        } else if problem.contains("header") || problem.contains("JSON") || length < 8 {
            format!("it is not a safetensors file ({length} bytes, {})", problem.lines().next().unwrap_or_default())
        } else {
            problem.lines().next().unwrap_or_default().to_owned()
        };
        LoadError::Unreadable { path: path.to_owned(), problem }
    })
}

fn open_pickle(path: &Path) -> Result<PthTensors, LoadError> {
    PthTensors::new(path, None).map_err(|e| LoadError::Unreadable {
        path: path.to_owned(),
        problem: format!(
            "it is truncated or not a PyTorch archive ({})",
            e.to_string().lines().next().unwrap_or_default()
        ),
    })
}
