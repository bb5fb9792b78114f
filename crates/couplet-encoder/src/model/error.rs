//! Why a checkpoint could not be loaded: which file, which key or tensor, what was expected and what was found.

use std::path::{Component, Path, PathBuf};

use couplet_storage::backtrace::message;
use couplet_storage::files::nearest_file;
use thiserror::Error;

/// What is said of a path that does not exist: which folder does not either, and what may have been meant.
fn near(path: &Path) -> (String, String) {
    let nearest = nearest_file(path);
    if !nearest.starts_with(',') {
        return (String::new(), nearest);
    }
    let parts: Vec<_> = path.components().collect();
    let of_hub = match parts[..] {
        [Component::Normal(_), Component::Normal(_)] => format!("; if it is of the hub, write hf://{}", path.display()),
        _ => String::new(),
    };
    (nearest, of_hub)
}

/// A checkpoint that cannot be used.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The model's path is no folder.
    #[error("model {} {}; expected a folder with config.json, tokenizer.json or vocab.txt, and model.safetensors or pytorch_model.bin{}", path.display(), if *exists { "is not a folder".to_owned() } else { format!("does not exist{}", near(path).0) }, if *exists { String::new() } else { near(path).1 })]
    NotAFolder {
        /// What was asked for.
        path: PathBuf,
        /// Whether there is something else under that path.
        exists: bool,
    },
    /// The folder got other files each time that it was read.
    #[error("model folder {} changed each of the {attempts} times that it was read; run the same command again when nothing is copied there", folder.display())]
    Changing {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// How often it was read.
        attempts: u32,
    },
    /// A file that every checkpoint has is not there.
    #[error("model folder {} has no {expected}{}", folder.display(), inner_model(folder))]
    NoFile {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// The file or files, one of which is needed.
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
    /// A file is there and cannot be understood.
    #[error("cannot read {}: {problem}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A key of a JSON file is missing or has a value that couplet cannot use.
    #[error("{}: key `{key}`: expected {expected}, found {found}", path.display())]
    Key {
        /// The JSON file.
        path: PathBuf,
        /// The key's name.
        key: String,
        /// The values that would do.
        expected: String,
        /// The value that is there, or "nothing".
        found: String,
    },
    /// The checkpoint is an encoder without a classifier on top.
    #[error("{} has no classification head: tensor `{tensor}` is missing among its {tensors} tensors; {hint}", folder.display())]
    NoHead {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// The head's tensor that was looked for.
        tensor: String,
        /// How many tensors there are.
        tensors: usize,
        /// What the checkpoint seems to be instead, and the mend if there is one.
        hint: String,
    },
    /// A tensor is missing or has the wrong shape or type.
    #[error("{}: tensor `{tensor}`: expected {expected}, found {found}", folder.display())]
    Tensor {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The shape or type that the configuration asks for.
        expected: String,
        /// What is there, or "nothing".
        found: String,
    },
    /// The device could not hold the weights.
    #[error("cannot place the weights on the device: {}", message(.0))]
    Device(#[from] candle_core::Error),
}

impl LoadError {
    /// Whether the checkpoint is at fault, rather than the moment at which it was read.
    #[must_use]
    pub fn is_mistake(&self) -> bool {
        !matches!(self, Self::Changing { .. })
    }
}

/// "; did you mean …?" where a folder in this one is a model, such as a checkpoint of a training; else what a model is.
fn inner_model(folder: &Path) -> String {
    let inner = folder.read_dir().into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut models: Vec<PathBuf> = inner.filter(|path| path.join("config.json").exists()).collect();
    models.sort();
    match models.last() {
        Some(model) if !folder.join("config.json").exists() => format!("; did you mean {}?", model.display()),
        _ => "; a model and its tokenizer are written into one folder by `save_pretrained` of transformers".to_owned(),
    }
}
