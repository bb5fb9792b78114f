//! Errors of loading a checkpoint. They name the file, the key or tensor, the expected value and the actual value.

use std::path::{Component, Path, PathBuf};

use couplet_storage::backtrace::message;
use couplet_storage::files::nearest_file;
use thiserror::Error;

/// Returns two hints about a missing path: the nearest existing path, and the hub location that may be meant.
fn missing_path_hints(path: &Path) -> (String, String) {
    let nearest = nearest_file(path);
    if !nearest.starts_with(',') {
        return (String::new(), nearest);
    }
    let parts: Vec<_> = path.components().collect();
    let hub = match parts[..] {
        [Component::Normal(_), Component::Normal(_)] => format!("; if it is of the hub, write hf://{}", path.display()),
        _ => String::new(),
    };
    (nearest, hub)
}

/// An error of loading a checkpoint.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The path of the model does not exist or is not a folder.
    #[error("model {} {}; expected a folder with config.json, tokenizer.json or vocab.txt, and model.safetensors or pytorch_model.bin{}", path.display(), if *exists { "is not a folder".to_owned() } else { format!("does not exist{}", missing_path_hints(path).0) }, if *exists { String::new() } else { missing_path_hints(path).1 })]
    NotAFolder {
        /// The path.
        path: PathBuf,
        /// True if the path exists but is not a folder.
        exists: bool,
    },
    /// The folder changed during every attempt to read it.
    #[error("model folder {} changed each of the {attempts} times that it was read; run the same command again when nothing is copied there", folder.display())]
    Changing {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// The number of attempts.
        attempts: u32,
    },
    /// A required file is missing.
    #[error("model folder {} has no {expected}{}", folder.display(), inner_model(folder))]
    NoFile {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// The required file, or several of which one is required.
        expected: &'static str,
    },
    /// The operating system cannot read a file.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The content of a file is invalid.
    #[error("cannot read {}: {problem}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The reason.
        problem: String,
    },
    /// A key of a JSON file is missing or has an unsupported value.
    #[error("{}: key `{key}`: expected {expected}, found {found}", path.display())]
    Key {
        /// The JSON file.
        path: PathBuf,
        /// The name of the key.
        key: String,
        /// The allowed values.
        expected: String,
        /// The actual value, or "nothing".
        found: String,
    },
    /// The checkpoint is an encoder without a classification head.
    #[error("{} has no classification head: tensor `{tensor}` is missing among its {tensors} tensors; {hint}", folder.display())]
    NoHead {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// The missing tensor of the head.
        tensor: String,
        /// The number of tensors in the checkpoint.
        tensors: usize,
        /// What the checkpoint seems to be instead, and how to fix it.
        hint: String,
    },
    /// A tensor is missing or has the wrong shape or type.
    #[error("{}: tensor `{tensor}`: expected {expected}, found {found}", folder.display())]
    Tensor {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// The name of the tensor.
        tensor: String,
        /// The shape or type that the configuration requires.
        expected: String,
        /// The actual shape or type, or "nothing".
        found: String,
    },
    /// The device could not hold the weights.
    #[error("cannot place the weights on the device: {}", message(.0))]
    Device(#[from] candle_core::Error),
}

impl LoadError {
    /// Returns true if the checkpoint itself is invalid, and false if a retry can succeed.
    #[must_use]
    pub fn is_mistake(&self) -> bool {
        !matches!(self, Self::Changing { .. })
    }
}

/// Returns "; did you mean …?" if a subfolder is a model, such as a training checkpoint, and otherwise a hint on how to
/// write a model folder.
fn inner_model(folder: &Path) -> String {
    let inner = folder.read_dir().into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut models: Vec<PathBuf> = inner.filter(|path| path.join("config.json").exists()).collect();
    models.sort();
    match models.last() {
        Some(model) if !folder.join("config.json").exists() => format!("; did you mean {}?", model.display()),
        _ => "; a model and its tokenizer are written into one folder by `save_pretrained` of transformers".to_owned(),
    }
}
