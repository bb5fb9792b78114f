//! A hash of everything that the weights of a job depend on.

use std::fs::File;
use std::io;
use std::path::Path;

use super::JobError;
use crate::model::TOKENIZER;

/// Changes when the arithmetic, the reading of a base or the saved state changes in a way that makes old states useless.
const VERSION: &str = "couplet training 3";

/// Takes in what a job depends on, in a fixed order.
pub(in crate::train) struct Key(blake3::Hasher);

impl Key {
    pub(in crate::train) fn new(kind: &str) -> Self {
        let mut key = Self(blake3::Hasher::new());
        key.text(VERSION);
        key.text(kind);
        key
    }

    /// Takes in a text, with its length, so that ("a", "bc") is not ("ab", "c").
    pub(in crate::train) fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }

    pub(in crate::train) fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    /// Takes in files with their contents, in the order of their names.
    pub(in crate::train) fn files(&mut self, folder: &Path) -> Result<(), JobError> {
        let entries = folder.read_dir().map_err(JobError::file("read", folder))?;
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| is_read(path)).collect();
        paths.sort();
        paths.iter().try_for_each(|path| self.file(path))
    }

    pub(in crate::train) fn file(&mut self, path: &Path) -> Result<(), JobError> {
        let mut read = || -> io::Result<()> {
            let file = File::open(path)?;
            self.number(file.metadata()?.len());
            self.0.update_reader(file)?;
            Ok(())
        };
        read().map_err(JobError::file("read", path))
    }

    pub(in crate::train) fn finish(self) -> blake3::Hash {
        self.0.finalize()
    }
}

/// Whether a file of a checkpoint's folder may matter to a training: weights, configuration, tokenizer.
fn is_read(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let weights = name.contains(".safetensors") || (name.starts_with("pytorch_model") && name.contains(".bin"));
    path.is_file() && (weights || name == "config.json" || TOKENIZER.contains(&&*name))
}
